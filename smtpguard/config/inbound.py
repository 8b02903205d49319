"""What does the file say about the way in?  Inbound listeners, `[inbound]` and `[[inbound_policy]]`.

How the MTA learns who the client is has no default (DESIGN §6): a wrong one makes an open relay of it.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from smtpguard.config import listeners
from smtpguard.config.findings import Findings, item_place, quoted, why
from smtpguard.config.schema import File, InboundPolicyTable, Listener
from smtpguard.inbound.limits import Limits, Times
from smtpguard.inbound.settings import InboundListener, Mta
from smtpguard.names import NameInvalid, parse_address, parse_domain
from smtpguard.policy.inbound import CertificateDemand, InboundRule, InboundRules, Require
from smtpguard.policy.rules import (
    AfterExpiry,
    Mode,
    OnFailure,
    RuleInvalid,
    parse_fingerprints,
    parse_match_item,
    parse_min_tls,
)
from smtpguard.policy.scopes import (
    Mailbox,
    RecipientDomain,
    Scope,
    SenderDomain,
    parse_client,
    parse_domain_pattern,
    parse_exempt,
)
from smtpguard.tls.certificates import CertificateFiles, ServerCertificates
from smtpguard.tls.context import client_context
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.outcome import TlsVersion
from smtpguard.tls.pkix import RootStore

INBOUND_KEYS = frozenset({
    "tls", "certificates", "min_tls", "upstream", "upstream_open", "upstream_tls", "upstream_name", "upstream_ca_file",
    "pass_client", "upstream_has_no_trusted_networks", "client_names", "submission", "require_tls", "proxy_from",
    "normalize_from", "unlimited_from", "received", "max_message_size", "max_recipients", "limits",
})  # fmt: skip
"""Keys of a listener that mean something inbound only, and those that do outbound only."""
OUTBOUND_KEYS = frozenset({
    "protocol", "clients", "cleartext_from", "ehlo", "family", "source_ipv4", "source_ipv6", "max_sessions",
    "intercept", "intercept_by", "intercept_direct",
})  # fmt: skip

_TLS_VERSIONS: Mapping[str, TlsVersion] = MappingProxyType({"1.2": TlsVersion.TLS_1_2, "1.3": TlsVersion.TLS_1_3})
_IDENTITY_NEEDED = (
    'is needed, and has no default: "xclient" (Postfix), "proxy-v2" (Postfix, Exim, OpenSMTPD), or "none" for an MTA '
    "that trusts no network"
)


def foreign_keys(found: Findings, place: str, table: Listener) -> None:
    """A key of the other role would be believed to do something."""
    foreign, role = (OUTBOUND_KEYS, "outbound") if table.role == "inbound" else (INBOUND_KEYS, "inbound")
    defaults = Listener(role=table.role, bind=[])
    for key in sorted(foreign):
        if getattr(table, key) != getattr(defaults, key):
            found.wrong(place, key, "", f'belongs to listeners with role = "{role}"')


def inbound_name(table: Listener) -> str:
    """The listener's name in logs: its own, or `inbound` and its first address."""
    return table.name or f"inbound:{table.bind[0] if table.bind else ''}"


def inbound_listener(found: Findings, place: str, table: Listener, rules: InboundRules) -> InboundListener:
    """One `[[listener]]` with `role = "inbound"`."""
    limits = table.limits
    if table.submission and table.tls == "none":
        found.wrong(place, "tls", '"none"', 'a submission listener needs TLS: "starttls" (587) or "implicit" (465)')
    return InboundListener(
        name=inbound_name(table),
        binds=listeners.binds(found, place, table),
        tls=table.tls,
        mta=_mta(found, place, table),
        certificates=_certificates(found, place, table),
        open_at_connect=table.upstream_open == "connect",
        proxy_from=listeners.own_networks(
            found,
            place,
            "proxy_from",
            table.proxy_from,
            "could then name itself any client, one the MTA trusts too: an open relay",
        ),
        normalize_from=found.networks(place, "normalize_from", table.normalize_from),
        unlimited_from=found.networks(place, "unlimited_from", table.unlimited_from),
        received=table.received,
        client_names=table.client_names,
        rules=InboundRules(
            rules.rules, require_tls=table.require_tls, submission=table.submission, exempt=rules.exempt
        ),
        limits=Limits(
            sessions=limits.sessions,
            sessions_per_client=limits.sessions_per_client,
            connections_per_minute=limits.connections_per_minute,
            handshake_failures_per_minute=limits.handshake_failures_per_minute,
            handshakes=limits.handshakes,
            errors=limits.errors,
            idle_commands=limits.idle_commands,
            octets_per_second=limits.octets_per_second,
            recipients=table.max_recipients,
            message_octets=table.max_message_size,
        ),
        times=Times(hello=float(limits.hello_seconds), command=float(limits.command_seconds)),
    )


def _certificates(found: Findings, place: str, table: Listener) -> ServerCertificates | None:
    named = [(table.certificate, table.key)] if table.certificate or table.key else []
    pairs = named + [(one.certificate, one.key) for one in table.certificates]
    if table.tls == "none":
        if pairs:
            found.wrong(place, "certificate" if named else "certificates", "", 'has no use with tls = "none"')
        return None
    if bool(table.certificate) != bool(table.key):
        missing = "key" if table.certificate else "certificate"
        found.wrong(place, missing, "", "is missing: a certificate and its key come together")
        return None
    if not pairs:
        found.wrong(place, "certificate", "", f'is needed for tls = "{table.tls}", with key')
        return None
    if not all(certificate and key for certificate, key in pairs):
        return None  # told with the form of the table
    files = [CertificateFiles(Path(certificate), Path(key)) for certificate, key in pairs]
    now, floor = datetime.now(UTC), _TLS_VERSIONS[table.min_tls]
    for number, pair in enumerate(files):
        try:
            ServerCertificates.load([pair], now, floor=floor)
        except (OSError, ValueError) as error:
            inner = not (named and number == 0)
            is_key = str(pair.key) in str(error) and str(pair.certificate) not in str(error)
            key = "certificates" if inner else "key" if is_key else "certificate"
            found.wrong(place, key, quoted(str(pair.key if is_key else pair.certificate)), why(error))
            return None
    return ServerCertificates.load(files, now, floor=floor)


def _mta(found: Findings, place: str, table: Listener) -> Mta:
    """The MTA behind: `host:port`, an address, or `unix:/path`."""
    passing = table.pass_client
    if not passing:
        found.wrong(place, "pass_client", "", _IDENTITY_NEEDED)
    if passing == "none" and not table.upstream_has_no_trusted_networks:
        found.wrong(
            place, "pass_client", '"none"',
            "the MTA would take every client for this host: write upstream_has_no_trusted_networks = true once its "
            "mynetworks (or the like) does not hold our address",
        )  # fmt: skip
    host, port, path = _upstream(found, place, table.upstream)
    try:
        address = parse_address(host) if host else None
    except NameInvalid:
        address = None
    name = found.parsed(place, "upstream_name", table.upstream_name, parse_domain) if table.upstream_name else None
    if table.upstream_tls == "verify" and name is None:
        if host and address is None:
            name = found.parsed(place, "upstream", host, parse_domain)
        else:
            found.wrong(place, "upstream_name", "", 'is needed for upstream_tls = "verify": the name to verify')
    roots = None
    if table.upstream_tls == "verify":
        ca_file = Path(table.upstream_ca_file) if table.upstream_ca_file else None
        try:
            roots = RootStore.load(ca_file)
        except (OSError, ValueError) as error:
            found.wrong(place, "upstream_ca_file", quoted(table.upstream_ca_file), why(error))
    elif table.upstream_ca_file:
        found.wrong(place, "upstream_ca_file", "", 'has a use with upstream_tls = "verify" only')
    if table.upstream_name and table.upstream_tls == "none":
        found.wrong(place, "upstream_name", "", 'has a use with upstream_tls = "encrypt" or "verify" only')
    return Mta(
        host=host,
        port=port,
        path=path,
        address=address,
        tls=table.upstream_tls,
        tls_name=name,
        context=client_context() if table.upstream_tls != "none" else None,
        roots=roots,
        identity_by=passing or "none",
    )


def _upstream(found: Findings, place: str, text: str) -> tuple[str, int, str]:
    """Host, port and path."""
    right = 'must be where the MTA listens: "127.0.0.1:2525", "[::1]:2525", "mta:25" or "unix:/run/mta.sock"'
    if text.startswith("unix:/") and text != "unix:/":
        return "", 0, text.removeprefix("unix:")
    host, _, digits = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not digits.isascii() or not digits.isdigit() or not 0 < int(digits[:6]) < 65536 or not host:
        found.wrong(place, "upstream", quoted(text) if text else "", right)
        return "", 0, ""
    try:
        parse_address(host)
    except NameInvalid:
        try:
            parse_domain(host)
        except NameInvalid as error:
            found.wrong(place, "upstream", quoted(text), right if bracketed or ":" in host else str(error))
        else:
            if bracketed:
                found.wrong(place, "upstream", quoted(text), right)
    return host, int(digits), ""


def inbound_rules(found: Findings, file: File) -> InboundRules:
    """`[inbound] rua` and all of `[[inbound_policy]]`, or what can be read of them."""
    exempt: frozenset[Mailbox] = frozenset(found.parsed_all("[inbound]", "rua", file.inbound.rua, parse_exempt))
    rules: list[InboundRule] = []
    first: dict[tuple[Scope, Mode], str] = {}
    for number, table in enumerate(file.inbound_policy, 1):
        place = item_place("inbound_policy", number, table.recipient_domain or table.sender_domain or table.client)
        rule = _rule(found, place, table)
        if rule is None:
            continue
        key = (rule.scope, rule.mode)
        if key in first:
            found.wrong(place, "", "", f"speaks about {rule.scope}, as {first[key]} does: one of them must go")
            continue
        first[key] = place
        rules.append(rule)
    try:
        return InboundRules(tuple(rules), exempt=exempt)
    except RuleInvalid as error:
        found.wrong("[[inbound_policy]]", "", "", str(error))
        return InboundRules(exempt=exempt)


def _rule(found: Findings, place: str, table: InboundPolicyTable) -> InboundRule | None:
    before = len(found.errors)
    scope = _scope(found, place, table)
    min_tls = found.parsed(place, "min_tls", table.min_tls, parse_min_tls) if table.min_tls else None
    digests = found.parsed_all(place, "fingerprints", table.fingerprints, parse_fingerprints)
    items = found.parsed_all(place, "names", table.names, parse_match_item)
    names: list[DnsId | DotDomain] = []
    for item, text in zip(items, table.names, strict=False):
        if isinstance(item, DnsId | DotDomain):
            names.append(item)
        else:
            found.wrong(place, "names", quoted(text), 'must be a host name, or ".example.org" for those below it')
    if table.ca_file:
        found.roots(place, "ca_file", Path(table.ca_file))
    if scope is None or not table.require:  # a `require` that is missing or unknown was told with the form
        return None
    rule = InboundRule(
        scope=scope,
        require=Require(table.require),
        demand=CertificateDemand(
            ca_file=table.ca_file or None,
            names=tuple(names),
            fingerprints=tuple(digest for some in digests for digest in some),
        ),
        min_tls=min_tls,
        reason=table.reason,
        expires=table.expires,
        after_expiry=AfterExpiry(table.after_expiry),
        mode=Mode(table.mode),
        on_fail=OnFailure(table.on_fail),
    )
    for problem in rule.problems() if len(found.errors) == before else ():  # or it may be for want of what was wrong
        found.wrong(place, "", "", problem)
    return rule


def _scope(found: Findings, place: str, table: InboundPolicyTable) -> Scope | None:
    given = [key for key in ("recipient_domain", "sender_domain", "client") if getattr(table, key)]
    if len(given) != 1:
        found.wrong(place, "", "", "speaks about one of recipient_domain, sender_domain and client: write exactly one")
        return None
    match given[0]:
        case "recipient_domain":
            pattern = found.parsed(place, given[0], table.recipient_domain, parse_domain_pattern)
            return RecipientDomain(pattern) if pattern is not None else None
        case "sender_domain":
            pattern = found.parsed(place, given[0], table.sender_domain, parse_domain_pattern)
            return SenderDomain(pattern) if pattern is not None else None
        case _:
            return found.parsed(place, "client", table.client, parse_client)
