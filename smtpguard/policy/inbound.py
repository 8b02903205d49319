"""Must this client come over TLS, or show a certificate, before its mail is taken?  (`[[inbound_policy]]`, CH-30)

RFC 3207 §4 (a public MX must not ask for TLS unless told to; the replies), RFC 8314 §3.3 and §4.1 (submission), RFC
5321 §4.5.1 (postmaster), RFC 8460 §3 (reports arrive even so).  Facts and rules in, a value out.

Rules are judged at RCPT, also those about the sender or the client: a refusal of MAIL would shut out postmaster and
the report address (STLS-15, RPT-28).  Only a submission listener refuses MAIL.  All rules that match must be met,
thus the strictest applies; there is no order among them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import assert_never

from smtpguard.events import RuleWarning
from smtpguard.names import IpAddress, unmapped
from smtpguard.policy.rules import AfterExpiry, Mode, OnFailure, RuleInvalid, has_expired
from smtpguard.policy.scopes import (
    ClientNetwork,
    Mailbox,
    RecipientDomain,
    Scope,
    SenderDomain,
    WholeListener,
    domains_of,
    fold_local_part,
    generality,
    is_everything,
    patterns,
)
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.commands import BadCommand, Command, Ehlo, Noop, Quit, Rcpt, StartTls
from smtpguard.smtp.replies import Reply, reply_of
from smtpguard.smtp.syntax import ForwardPath, ReversePath
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.outcome import TlsVersion


class Require(Enum):
    """What a rule asks of the client; the later contains the earlier."""

    TLS = "tls"
    CLIENT_CERT = "client-cert"


@dataclass(frozen=True, slots=True)
class CertificateDemand:
    """Which client certificate satisfies a rule: one of these fingerprints, or one of `ca_file` that has one of `names`
    (any name, where there are none).  The key under which its verdict arrives in ClientFacts."""

    ca_file: str | None = None
    names: tuple[DnsId | DotDomain, ...] = ()
    fingerprints: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class CertificateHolds:
    """The client's certificate satisfies a demand; `identity` names the client in logs, printable."""

    identity: str


@dataclass(frozen=True, slots=True)
class CertificateFails:
    """It does not; `detail` says why, printable."""

    detail: str


CertificateVerdict = CertificateHolds | CertificateFails


@dataclass(frozen=True, slots=True)
class ClientFacts:
    """What is known of a client.

    `version` is None in clear, and where a load balancer ended TLS and does not tell (then `encrypted` says it).
    `certificates` has a verdict for each demand of `InboundRules.certificate_demands`, None where the client presented
    no certificate.
    """

    address: IpAddress | None
    encrypted: bool = False
    version: TlsVersion | None = None
    certificates: Mapping[CertificateDemand, CertificateVerdict] | None = None


@dataclass(frozen=True, slots=True)
class InboundRule:
    """One `[[inbound_policy]]`.

    `reason` is the operator's, shown wherever the rule decides.  `expires` is the last day (UTC): a rule that asks for
    protection outlives it, with a warning, unless `after_expiry` is DROP.
    """

    scope: Scope
    require: Require = Require.TLS
    demand: CertificateDemand = CertificateDemand()
    min_tls: TlsVersion | None = None
    reason: str = ""
    expires: date | None = None
    after_expiry: AfterExpiry = AfterExpiry.KEEP
    mode: Mode = Mode.ENFORCE
    on_fail: OnFailure = OnFailure.PERMFAIL

    def is_live(self, today: date) -> bool:
        """Does it still say anything?  A shadow has nothing to protect and ends with its time."""
        ends = self.after_expiry is AfterExpiry.DROP or self.mode is Mode.SHADOW
        return not (ends and has_expired(self.expires, today))

    def problems(self) -> tuple[str, ...]:
        """What is wrong with this rule as a whole, each with what would be right."""
        demand = self.demand
        found: list[str] = []
        if self.require is Require.CLIENT_CERT:
            if demand.ca_file is None and not demand.fingerprints:
                found.append('require = "client-cert" needs ca_file, or at least one entry in fingerprints')
            if demand.ca_file is not None and demand.fingerprints:
                found.append("ca_file and fingerprints exclude each other: a fingerprint needs no authority")
            if demand.names and demand.ca_file is None:
                found.append("names need ca_file: anybody can make a certificate with a name")
        elif demand != CertificateDemand():
            found.append('ca_file, names and fingerprints belong to require = "client-cert"')
        if self.after_expiry is AfterExpiry.DROP and self.expires is None:
            found.append("after_expiry has no meaning without expires")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """What a rule in shadow would have said: the reasons to refuse, none where it is met."""

    rule: InboundRule
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Accept:
    """The command may go on.  `rules` were met, `certificate` names the client where one of them asked who it is."""

    rules: tuple[InboundRule, ...] = ()
    certificate: str = ""
    shadowed: tuple[Shadowed, ...] = ()


@dataclass(frozen=True, slots=True)
class RefuseInbound:
    """The command is refused.  `reasons` is never empty, the strictest first; `temporary`: with a 4xx."""

    reasons: tuple[Reason, ...]
    temporary: bool = False
    shadowed: tuple[Shadowed, ...] = ()

    def reply(self, decision_id: str = "") -> Reply:
        """`530 5.7.0 [inbound/tls-required] recipient domain secret.example: ...`; 450 4.7.0 where temporary."""
        reply = reply_of(self.reasons[0], decision_id)
        return reply.with_code(450) if self.temporary else reply


@dataclass(frozen=True, slots=True)
class InboundRules:
    """What one listener asks of its clients: the `[[inbound_policy]]` table, `require_tls` and `submission`.

    `exempt` are the addresses of our own `rua`; postmaster needs no mention.  Raises RuleInvalid where two rules have
    one scope and mode.
    """

    rules: tuple[InboundRule, ...] = ()
    require_tls: bool = False
    submission: bool = False
    exempt: frozenset[Mailbox] = frozenset()
    _table: dict[Scope, tuple[InboundRule, ...]] = field(init=False, repr=False, compare=False)
    _networks: tuple[ClientNetwork, ...] = field(init=False, repr=False, compare=False)
    _kinds: frozenset[type[Scope]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if twice := duplicates(self.rules):
            raise RuleInvalid(f"two rules for {', '.join(twice)}: one scope has one rule, order means nothing")
        rules = (*self.rules, *((InboundRule(WholeListener()),) if self.require_tls else ()))
        scopes = tuple(dict.fromkeys(rule.scope for rule in rules))
        table = {scope: tuple(rule for rule in rules if rule.scope == scope) for scope in scopes}
        object.__setattr__(self, "_table", table)
        object.__setattr__(self, "_kinds", frozenset(map(type, scopes)))
        object.__setattr__(self, "_networks", tuple(scope for scope in scopes if isinstance(scope, ClientNetwork)))

    def find(
        self, address: IpAddress | None, sender: ReversePath, recipient: ForwardPath, today: date
    ) -> tuple[InboundRule, ...]:
        """Every live rule that speaks about this recipient of this mail, none for an exempt recipient."""
        if not self._table or self.is_exempt(recipient):
            return ()
        scopes: list[Scope] = [WholeListener(), *self._networks_of(address)]
        feared: tuple[InboundRule, ...] = ()
        if RecipientDomain in self._kinds:
            domains = tuple(domains_of(recipient))
            names = [domain for domain in domains if isinstance(domain, str)]
            if len(names) == len(domains):
                scopes += dict.fromkeys(RecipientDomain(pattern) for name in names for pattern in patterns(name))
            else:  # whose mail a literal is, only the MTA knows
                feared = tuple(rule for rule in self.rules if _may_concern_a_literal(rule))
        if SenderDomain in self._kinds:
            scopes += map(SenderDomain, patterns(sender.domain))
        found = (*(rule for scope in scopes for rule in self._table.get(scope, ())), *feared)
        return tuple(rule for rule in found if rule.is_live(today))

    def is_exempt(self, recipient: ForwardPath) -> bool:
        """Is it postmaster, with or without a domain (RFC 5321 §4.5.1), or a report address of ours (RPT-28)?"""
        local = fold_local_part(recipient.local_part)
        if local == b"postmaster":
            return True
        return isinstance(recipient.domain, str) and Mailbox(local, recipient.domain) in self.exempt

    def certificate_demands(self, address: IpAddress | None, today: date) -> tuple[CertificateDemand, ...]:
        """The demands to judge a certificate of this client by: those of any rule that may come to speak about it.

        Recipient and sender are not known at the handshake, so that a rule about them may concern every client.
        """
        networks = frozenset(self._networks_of(address))
        return tuple(
            dict.fromkeys(
                rule.demand
                for rule in self.rules
                if rule.require is Require.CLIENT_CERT and rule.is_live(today)
                and (not isinstance(rule.scope, ClientNetwork) or rule.scope in networks)
            )
        )  # fmt: skip

    def wants_client_certificate(self, address: IpAddress | None, today: date) -> bool:
        """Is this client to be asked for a certificate?  Only where a rule needs it (SUB-04); a rule in shadow does, or
        it could learn nothing."""
        return bool(self.certificate_demands(address, today))

    def warnings(self, today: date) -> tuple[RuleWarning, ...]:
        """What an operator should know about rules that are allowed and may not do what they seem to."""
        return tuple(
            RuleWarning(direction="inbound", rule=str(rule.scope), domain="", kind=kind, detail=detail)
            for rule in self.rules
            for kind, detail in _doubts(rule, today)
        )

    def _networks_of(self, address: IpAddress | None) -> list[ClientNetwork]:
        if address is None:
            return []
        plain = unmapped(address)
        return [scope for scope in self._networks if plain in scope.network]


def judge_client(
    rules: InboundRules, facts: ClientFacts, command: Command, *, sender: ReversePath | None, today: date
) -> Accept | RefuseInbound:
    """May `command` go on?  `sender` is the path of the MAIL in force, needed at RCPT; `today` is UTC.

    Not asked about commands that are refused for their form.  AUTH in clear is refused where it is not offered in
    clear, which is everywhere (`smtp.order`, AUTH-01).
    """
    match command:
        case Ehlo() | Noop() | Quit() | StartTls() | BadCommand():
            return Accept()  # all that RFC 3207 §4 lets a client say in clear
        case _ if rules.submission and not facts.encrypted:
            return RefuseInbound((Reason(ReasonCode.INBOUND_TLS_REQUIRED, "submission"),))  # SUB-02
        case Rcpt(path) if sender is not None:
            return _judge_recipient(rules.find(facts.address, sender, path, today), facts)
        case _:
            return Accept()


def _judge_recipient(rules: tuple[InboundRule, ...], facts: ClientFacts) -> Accept | RefuseInbound:
    failed: list[tuple[InboundRule, Reason]] = []
    shadowed: list[Shadowed] = []
    for rule in sorted(rules, key=_strictness):
        reason = _unmet(rule, facts)
        if rule.mode is Mode.SHADOW:
            shadowed.append(Shadowed(rule, () if reason is None else (reason,)))
        elif reason is not None:
            failed.append((rule, reason))
    if not failed:
        enforced = tuple(rule for rule in rules if rule.mode is Mode.ENFORCE)
        return Accept(enforced, _certificate_identity(enforced, facts), tuple(shadowed))
    # One rule that refuses for good decides: the others could only put off the same end.
    failed.sort(key=lambda pair: pair[0].on_fail is OnFailure.TEMPFAIL)
    temporary = failed[0][0].on_fail is OnFailure.TEMPFAIL
    return RefuseInbound(tuple(reason for _, reason in failed), temporary, tuple(shadowed))


def _unmet(rule: InboundRule, facts: ClientFacts) -> Reason | None:
    """Why the client does not meet the rule; None where it does."""
    subject = str(rule.scope)
    if not facts.encrypted:
        return Reason(ReasonCode.INBOUND_TLS_REQUIRED, subject, _detail(_further(rule), rule))
    if rule.min_tls is not None and (facts.version is None or facts.version < rule.min_tls):
        seen = f"TLS {facts.version.value}" if facts.version is not None else "an unknown version"
        detail = f"TLS {rule.min_tls.value} is required, this is {seen}"
        return Reason(ReasonCode.INBOUND_TLS_TOO_OLD, subject, _detail(detail, rule))
    if rule.require is Require.TLS:
        return None
    if facts.certificates is None:
        return Reason(ReasonCode.INBOUND_NO_CERTIFICATE, subject, _detail("", rule))
    # A verdict that is missing is no verdict in the client's favour (DESIGN §2 law 2).
    match facts.certificates.get(rule.demand, CertificateFails("it was not verified")):
        case CertificateHolds():
            return None
        case CertificateFails(detail):
            return Reason(ReasonCode.INBOUND_BAD_CERTIFICATE, subject, _detail(detail, rule))
        case never:
            assert_never(never)


def _may_concern_a_literal(rule: InboundRule) -> bool:
    """A rule in shadow would only count what may not concern it."""
    return isinstance(rule.scope, RecipientDomain) and (rule.mode is Mode.ENFORCE or is_everything(rule.scope))


def _further(rule: InboundRule) -> str:
    """What will be asked once TLS is there, so that the client learns all at once."""
    asked = [f"TLS {rule.min_tls.value} or later"] if rule.min_tls is not None else []
    if rule.require is Require.CLIENT_CERT:
        asked.append("a client certificate")
    return f"with {' and '.join(asked)}" if asked else ""


def _detail(seen: str, rule: InboundRule) -> str:
    return "; ".join(text for text in (seen, rule.reason) if text)


def _certificate_identity(rules: tuple[InboundRule, ...], facts: ClientFacts) -> str:
    for rule in rules:
        if rule.require is Require.CLIENT_CERT and facts.certificates is not None:
            verdict = facts.certificates.get(rule.demand)
            if isinstance(verdict, CertificateHolds):
                return verdict.identity
    return ""


def _strictness(rule: InboundRule) -> tuple[bool, int, int, str]:
    """The strictest first; among equals the one that says most about this mail."""
    return (
        rule.require is not Require.CLIENT_CERT,
        0 if rule.min_tls is TlsVersion.TLS_1_3 else 1 if rule.min_tls is not None else 2,
        generality(rule.scope),
        str(rule.scope),
    )


def _doubts(rule: InboundRule, today: date) -> Iterator[tuple[str, str]]:
    if rule.mode is Mode.ENFORCE and is_everything(rule.scope):
        yield "star", "everybody who cannot speak TLS is refused: on a public MX mail is lost (RFC 3207 §4)"
    if has_expired(rule.expires, today):
        yield "expired", f"expired on {rule.expires}: {'still applied' if rule.is_live(today) else 'has ended'}"


def duplicates(rules: tuple[InboundRule, ...]) -> tuple[str, ...]:
    """The scopes that more than one rule of one mode claims, sorted."""
    claims = Counter((rule.scope, rule.mode) for rule in rules)
    return tuple(sorted({str(scope) for (scope, _), count in claims.items() if count > 1}))
