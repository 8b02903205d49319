"""What do the values of the file mean?  From the tables to each package's frozen settings, or all errors at once."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import TypeVar

from OpenSSL import SSL

from smtpguard.config.schema import ConfigError, File, Listener, PolicyTable, read
from smtpguard.dns.canary import CanarySettings
from smtpguard.dns.destinations import Family
from smtpguard.dns.resolver import ResolverAddress, ResolverSettings, resolvers_from_resolv_conf
from smtpguard.mtasts.cache import StsSettings, TxtTempfail
from smtpguard.names import Domain, IpAddress, NameInvalid, parse_address, parse_domain
from smtpguard.net.connect import AddressRules
from smtpguard.net.listen import Bind, BindInvalid, parse_bind
from smtpguard.net.wire import Endpoint
from smtpguard.outbound.routes import NextHop, Routes, parse_next_hop
from smtpguard.outbound.settings import Network, Outbound, OutboundListener
from smtpguard.policy.model import Level
from smtpguard.policy.rules import (
    AfterExpiry,
    Mode,
    OnFailure,
    Rule,
    RuleInvalid,
    RuleSet,
    duplicates,
    parse_fingerprints,
    parse_level,
    parse_match_item,
    parse_min_tls,
    parse_pattern,
    parse_servername,
)
from smtpguard.smtp.body import BareNewlines
from smtpguard.telemetry.log import LogSettings
from smtpguard.tls.context import server_context
from smtpguard.tls.pkix import RootStore

T = TypeVar("T")

DEFAULT_PATH = Path("/etc/smtpguard/smtpguard.toml")
RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the file decides."""

    path: Path
    hostname: Domain
    state_dir: Path
    drain_seconds: int
    listeners: tuple[OutboundListener, ...]
    outbound: Outbound
    resolver: ResolverSettings
    canary: CanarySettings
    sts: StsSettings | None
    sts_port: int
    ca_file: Path | None
    anchors: tuple[str, ...]
    """CA files that rules name; each was readable when the file was read."""
    admin: Bind | None
    log: LogSettings


def load(path: Path) -> Settings | list[ConfigError]:
    """The settings of the file at `path`, or everything that is wrong with it."""
    file, errors = read(path)
    return errors if file is None else _Builder(path, file, errors).build()


class _Builder:
    def __init__(self, path: Path, file: File, errors: list[ConfigError]) -> None:
        self._path = path
        self._file = file
        self._errors = errors

    def build(self) -> Settings | list[ConfigError]:
        file = self._file
        hostname = self._parsed("", "hostname", file.hostname, parse_domain)
        listeners = [self._listener(number, one, hostname) for number, one in enumerate(file.listener, 1)]
        self._listeners_as_a_whole(listeners)
        admin = self._parsed("admin", "bind", file.admin.bind, parse_bind) if file.admin.enabled else None
        if admin is not None and not admin.is_local:
            self._wrong("admin", "bind", file.admin.bind, "must be a loopback address or a unix socket")
        ca_file = Path(file.tls.ca_file) if file.tls.ca_file else None
        self._readable_roots("tls", "ca_file", ca_file)
        rules = self._rules()
        resolver = self._resolver()
        canary = file.dns.canary
        canary_settings = CanarySettings(
            signed=self._name("dns.canary", "signed", canary.signed),
            unsigned=self._name("dns.canary", "unsigned", canary.unsigned),
            broken=self._name("dns.canary", "broken", canary.broken),
            interval_seconds=canary.interval_seconds,
        )
        outbound = self._outbound(hostname, rules, [one for one in listeners if one is not None], admin)
        if self._errors:
            return self._errors
        assert hostname is not None
        assert outbound is not None
        return Settings(
            path=self._path,
            hostname=hostname,
            state_dir=Path(file.state_dir or os.environ.get("STATE_DIRECTORY") or "/var/lib/smtpguard"),
            drain_seconds=file.drain_seconds,
            listeners=tuple(one for one in listeners if one is not None),
            outbound=outbound,
            resolver=resolver,
            canary=canary_settings,
            sts=self._sts() if file.mtasts.enabled else None,
            sts_port=file.mtasts.port,
            ca_file=ca_file,
            anchors=tuple({rule.ca_file: None for rule in rules.rules if rule.ca_file is not None}),
            admin=admin,
            log=LogSettings(format=file.log.format, level=file.log.level),
        )

    # -- tables

    def _listener(self, number: int, table: Listener, hostname: Domain | None) -> OutboundListener | None:
        place = f"listener {number}"
        if table.role == "inbound":
            self._wrong(place, "role", '"inbound"', 'this version has outbound listeners only: write "outbound"')
            return None
        if not table.bind:
            self._wrong(place, "bind", "[]", 'needs at least one address, as in ["127.0.0.1:10027"]')
        binds = [
            self._parsed(place, "bind", text, lambda text: parse_bind(text, group=table.group)) for text in table.bind
        ]
        clients = self._networks(place, "clients", table.clients)
        cleartext = self._networks(place, "cleartext_from", table.cleartext_from)
        tls = self._certificate(place, table)
        for network in clients:
            if network.prefixlen == 0:
                self._wrong(place, "clients", f'"{network}"', "would make this an open relay: name your networks")
        for bind in binds:
            if bind is None or bind.is_local or bind.fd_name:
                continue
            if not clients:
                self._wrong(place, "clients", "", f"is needed because {bind} can be reached from other hosts")
            if tls is None and not cleartext:
                self._wrong(
                    place, "certificate", "", f"is needed because {bind} can be reached from other hosts; or name the "
                    "networks whose cleartext you accept in cleartext_from",
                )  # fmt: skip
            if table.protocol == "lmtp" and bind.port == 25:
                self._wrong(place, "bind", f'"{bind}"', "LMTP is never spoken on port 25 (RFC 2033 §5)")
        ehlo = self._parsed(place, "ehlo", table.ehlo, parse_domain) if table.ehlo else hostname
        sources = [self._source(place, version, getattr(table, f"source_ipv{version}")) for version in (4, 6)]
        return OutboundListener(
            name=table.name or f"{table.protocol}:{table.bind[0] if table.bind else ''}",
            binds=tuple(bind for bind in binds if bind is not None),
            protocol=table.protocol,
            ehlo=ehlo or Domain("invalid"),
            family=Family[table.family.upper()],
            source_ipv4=sources[0],
            source_ipv6=sources[1],
            clients=clients,
            cleartext_from=cleartext,
            tls=tls,
            max_sessions=table.max_sessions,
        )

    def _certificate(self, place: str, table: Listener) -> SSL.Context | None:
        if bool(table.certificate) != bool(table.key):
            missing = "key" if table.certificate else "certificate"
            self._wrong(place, missing, "", "is missing: a certificate and its key come together")
            return None
        if not table.certificate:
            return None
        try:
            return server_context(Path(table.certificate), Path(table.key))
        except (OSError, ValueError) as error:
            self._wrong(place, "certificate", f'"{table.certificate}"', str(error))
            return None

    def _source(self, place: str, version: int, text: str) -> IpAddress | None:
        if not text:
            return None
        address = self._parsed(place, f"source_ipv{version}", text, parse_address)
        if address is not None and address.version != version:
            self._wrong(place, f"source_ipv{version}", f'"{text}"', f"must be an IPv{version} address")
            return None
        return address

    def _listeners_as_a_whole(self, listeners: list[OutboundListener | None]) -> None:
        if not listeners:
            self._wrong("", "listener", "", 'is missing: write at least one [[listener]] with role = "outbound"')
        seen: dict[str, str] = {}
        for listener in listeners:
            for bind in listener.binds if listener else ():
                if str(bind) in seen and bind.port:
                    self._wrong("listener", "bind", f'"{bind}"', "is bound twice")
                seen[str(bind)] = ""

    def _rules(self) -> RuleSet:
        file = self._file
        rules = [self._rule(number, table) for number, table in enumerate(file.policy, 1)]
        found = tuple(rule for rule in rules if rule is not None)
        for key in duplicates(found):
            self._wrong("policy", "domain", f'"{key}"', "has two rules: one key has one rule, order means nothing")
        try:
            level = parse_level(file.outbound.level)
            floor = parse_level(file.outbound.auto_floor)
            unique = {rule.pattern: rule for rule in found}
            return RuleSet(tuple(unique.values()), level, floor)
        except RuleInvalid as error:
            self._wrong("outbound", "level", f'"{file.outbound.level}"', str(error))
            return RuleSet()

    def _rule(self, number: int, table: PolicyTable) -> Rule | None:
        place = f"policy {number}"
        pattern = self._parsed(
            place, "domain", table.domain, lambda text: parse_pattern(text, self._file.outbound.port)
        )
        level = self._parsed(place, "level", table.level, parse_level)
        match = [self._parsed(place, "match", text, parse_match_item) for text in table.match]
        min_tls = self._parsed(place, "min_tls", table.min_tls, parse_min_tls) if table.min_tls else None
        server = self._parsed(place, "servername", table.servername, parse_servername) if table.servername else None
        digests = [self._parsed(place, "fingerprints", text, parse_fingerprints) for text in table.fingerprints]
        if table.ca_file:
            self._readable_roots(place, "ca_file", Path(table.ca_file))
        if pattern is None or level is None:
            return None
        rule = Rule(
            pattern=pattern,
            level=level,
            match=tuple(item for item in match if item is not None),
            min_tls=min_tls,
            override=table.override,
            reason=table.reason,
            expires=table.expires,
            after_expiry=AfterExpiry(table.after_expiry),
            mode=Mode(table.mode),
            on_failure=OnFailure(table.on_failure),
            ca_file=table.ca_file or None,
            fingerprints=tuple(one for some in digests if some is not None for one in some),
            servername=server,
        )
        for problem in rule.problems():
            self._wrong(place, "", "", problem)
        return rule

    def _resolver(self) -> ResolverSettings:
        table = self._file.dns
        addresses = [self._parsed("dns", "resolvers", text, parse_resolver) for text in table.resolvers]
        trust_ad = table.trust_ad
        if not addresses:
            try:
                found, vouched = resolvers_from_resolv_conf(RESOLV_CONF.read_text("utf-8", "replace"))
            except OSError as error:
                found, vouched = (), False
                self._wrong("dns", "resolvers", "", f"is missing, and {RESOLV_CONF} cannot be read: {error.strerror}")
            addresses = list(found)
            trust_ad = trust_ad or vouched  # each address carries whether the file vouches for it
            if not found:
                self._wrong("dns", "resolvers", "", f"is missing, and {RESOLV_CONF} names none")
        return ResolverSettings(
            resolvers=tuple(address for address in addresses if address is not None),
            trust_ad=trust_ad,
            dnssec=table.dnssec,
            timeout_seconds=table.timeout_seconds,
            attempts=table.attempts,
            cache_entries=table.cache_entries,
            ca_file=Path(self._file.tls.ca_file) if self._file.tls.ca_file else None,
        )

    def _sts(self) -> StsSettings:
        table = self._file.mtasts
        return StsSettings(txt_tempfail=TxtTempfail(table.sts_txt_tempfail), max_policies=table.max_policies)

    def _outbound(
        self, hostname: Domain | None, rules: RuleSet, listeners: list[OutboundListener], admin: Bind | None
    ) -> Outbound | None:
        table = self._file.outbound
        own = [self._parsed("outbound", "own_addresses", text, parse_address) for text in table.own_addresses]
        names = [self._parsed("outbound", "own_names", text, parse_domain) for text in table.own_names]
        binds = [bind for listener in listeners for bind in listener.binds]
        if admin is not None:
            binds.append(admin)
        addresses = AddressRules(
            allow=self._networks("outbound", "allow_destinations", table.allow_destinations),
            own_addresses=frozenset(address for address in own if address is not None),
            own_listeners=frozenset(
                Endpoint(bind.address, bind.port) for bind in binds if bind.address is not None and bind.port
            ),
        )
        routes = self._routes(table.port)
        if hostname is None:
            return None
        return Outbound(
            hostname=hostname,
            rules=rules,
            routes=routes,
            addresses=addresses,
            own_names=frozenset(
                {hostname, *(one.ehlo for one in listeners), *(name for name in names if name is not None)}
            ),
            annotate=table.annotate,
            eightbit_to_7bit_mx=table.eightbit_to_7bit_mx,
            dsn=table.dsn,
            bare_newlines=BareNewlines[table.bare_newlines.upper()],
            literals=table.literals,
            max_octets=table.max_message_size,
            max_recipients=table.max_recipients,
            destination_connections=table.destination_connections,
            destination_walks=table.destination_walks,
            tlsa_digests=tuple(self._file.tls.dane_digests),
        )

    def _routes(self, port: int) -> Routes:
        table: dict[str, NextHop] = {}
        for number, route in enumerate(self._file.route, 1):
            place = f"route {number}"
            key = self._parsed(place, "domain", route.domain, _route_key)
            hop = self._parsed(place, "next_hop", route.next_hop, lambda text: parse_next_hop(text, port))
            if key is None or hop is None:
                continue
            if key in table:
                self._wrong(place, "domain", f'"{route.domain}"', "is routed twice")
            table[key] = hop
        return Routes(table, port)

    # -- values

    def _wrong(self, table: str, key: str, value: str, expected: str) -> None:
        if any((error.table, error.key) == (table, key) for error in self._errors):
            return  # one error a value: the first is the nearest to what was written
        self._errors.append(ConfigError(str(self._path), table, key, value, expected))

    def _parsed(self, table: str, key: str, text: str, parse: Callable[[str], T]) -> T | None:
        try:
            return parse(text)
        except (NameInvalid, BindInvalid, RuleInvalid, ValueError) as error:
            self._wrong(table, key, f'"{text}"', str(error))
            return None

    def _name(self, table: str, key: str, text: str) -> Domain:
        return self._parsed(table, key, text, parse_domain) or Domain("invalid")

    def _networks(self, table: str, key: str, texts: list[str]) -> tuple[Network, ...]:
        networks = []
        for text in texts:
            try:
                networks.append(ip_network(text))
            except ValueError as error:
                self._wrong(table, key, f'"{text}"', f"must be a network such as 192.0.2.0/24: {error}")
        return tuple(networks)

    def _readable_roots(self, table: str, key: str, path: Path | None) -> None:
        if path is None:
            return
        try:
            RootStore.load(path)
        except (OSError, ValueError) as error:
            self._wrong(table, key, f'"{path}"', str(error))


def _route_key(text: str) -> str:
    """`example.org`, `.example.org` or `*`.  Raises NameInvalid."""
    if text == "*":
        return text
    return f".{parse_domain(text[1:])}" if text.startswith(".") else parse_domain(text)


def parse_resolver(text: str) -> ResolverAddress:
    """`127.0.0.1`, `127.0.0.1:5353`, `[::1]:53`, `tls://[2001:db8::1]#dns.example`.  Raises NameInvalid."""
    scheme = text.startswith("tls://")
    rest, mark, name = text.removeprefix("tls://").partition("#")
    tls_name = parse_domain(name) if mark else None
    if scheme and tls_name is None:
        raise NameInvalid("DNS over TLS needs the name to verify, as in tls://192.0.2.1#dns.example")
    if mark and not scheme:
        raise NameInvalid("a name after # belongs to tls://")
    port = 853 if scheme else 53
    if rest.startswith("["):
        host, _, after = rest[1:].partition("]")
        digits = after.removeprefix(":") if after else ""
    elif rest.count(":") == 1:
        host, _, digits = rest.partition(":")
    else:
        host, digits = rest, ""
    if digits:
        if not (digits.isascii() and digits.isdigit()) or not 0 < int(digits) < 65536:
            raise NameInvalid("the port must be a number from 1 to 65535")
        port = int(digits)
    return ResolverAddress(parse_address(host), port, tls_name)


def host_name_resolves(settings: Settings) -> str:
    """A start-up check (SMTP-26): empty, or what is wrong with the name we give in EHLO."""
    try:
        socket.getaddrinfo(settings.hostname, None)
    except OSError as error:
        return f"{settings.hostname} does not resolve: {error.strerror}"
    return ""


__all__ = ["DEFAULT_PATH", "Level", "Settings", "host_name_resolves", "load", "parse_resolver"]
