"""What does the file say about the way out?  Outbound listeners, `[outbound]` and `[[route]]`.

Who may send through a listener that other hosts can reach is never guessed: `clients` is needed, and TLS or
`cleartext_from` (DESIGN §6).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from smtpguard.config import listeners
from smtpguard.config.findings import STAND_IN, Findings, Network, item_place, quoted
from smtpguard.config.schema import File, Listener
from smtpguard.dns.destinations import Family
from smtpguard.names import Domain, IpAddress, NameInvalid, parse_address, parse_domain
from smtpguard.net.connect import AddressRules
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.listen import Bind
from smtpguard.outbound.routes import NextHop, Routes, parse_next_hop
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.policy.rules import RuleSet
from smtpguard.smtp.body import BareNewlines


def outbound_listener(
    found: Findings, place: str, table: Listener, hostname: Domain, mail_port: int
) -> OutboundListener:
    """One `[[listener]]` with `role = "outbound"`.  `mail_port`: that of mail hosts."""
    binds = listeners.binds(found, place, table)
    transparent = table.intercept and table.intercept_by == "tproxy"
    if transparent:
        binds = tuple(replace(bind, transparent=True) for bind in binds)
    direct = _interception(found, place, table, binds, mail_port)
    clients = listeners.clients(found, place, table.clients)
    cleartext = found.networks(place, "cleartext_from", table.cleartext_from)
    tls = listeners.certificate(found, place, table)
    for bind in binds:
        if (bind.is_local or bind.fd_name) and not transparent:
            continue
        why = "TPROXY brings connections of other hosts" if transparent else f"{bind} can be reached from other hosts"
        if not clients:
            found.wrong(place, "clients", "", f'is needed because {why}: name yours, as in ["192.0.2.0/24"]')
        if tls is None and not cleartext:
            found.wrong(
                place, "certificate", "",
                f"is needed because {why}; or name the networks whose cleartext you accept in cleartext_from",
            )  # fmt: skip
        if table.protocol == "lmtp" and bind.port == 25:
            found.wrong(place, "bind", quoted(str(bind)), "LMTP is never spoken on port 25 (RFC 2033 §5)")
    return OutboundListener(
        name=outbound_name(table),
        binds=binds,
        protocol=table.protocol,
        ehlo=found.name(place, "ehlo", table.ehlo) if table.ehlo else hostname,
        family=Family[table.family.upper()],
        source_ipv4=_source(found, place, 4, table.source_ipv4),
        source_ipv6=_source(found, place, 6, table.source_ipv6),
        clients=clients,
        cleartext_from=cleartext,
        tls=tls,
        max_sessions=table.max_sessions,
        intercept=table.intercept_by if table.intercept else "",
        intercept_direct=direct,
    )


def _interception(
    found: Findings, place: str, table: Listener, binds: Sequence[Bind], mail_port: int
) -> tuple[Network, ...]:
    """What only a listener for redirected connections has: its checks, and `intercept_direct`."""
    if not table.intercept:
        for key, given in (
            ("intercept_by", table.intercept_by != "redirect"),
            ("intercept_direct", table.intercept_direct),
        ):
            if given:
                found.wrong(place, key, "", "has no use without intercept = true")
        return ()
    if table.protocol != "smtp":
        found.wrong(
            place, "protocol", quoted(table.protocol),
            'what an MTA sends to mail hosts is SMTP: write "smtp", or leave the key out',
        )  # fmt: skip
    for bind in binds:
        if bind.is_unix:
            found.wrong(
                place, "bind", quoted(str(bind)),
                "connections are redirected to a TCP port: write an address and a port, as in 127.0.0.1:10025",
            )  # fmt: skip
        elif bind.address is not None and bind.port == mail_port:
            found.wrong(
                place, "bind", quoted(str(bind)),
                f"has the port of mail hosts, so what is redirected could not be told from what is meant for this "
                f"listener: take another one, as in {Endpoint(bind.address, 10025)}",
            )  # fmt: skip
    return listeners.own_networks(
        found, place, "intercept_direct", table.intercept_direct,
        "mail would go wherever the MTA was told to, whatever its domain publishes",
    )  # fmt: skip


def outbound_name(table: Listener) -> str:
    """The listener's name in logs: its own, or protocol and first address."""
    protocol = "intercept" if table.intercept else table.protocol
    return table.name or f"{protocol}:{table.bind[0] if table.bind else ''}"


def _source(found: Findings, place: str, version: int, text: str) -> IpAddress | None:
    key = f"source_ipv{version}"
    address = found.parsed(place, key, text, parse_address) if text else None
    if address is not None and address.version != version:
        found.wrong(place, key, quoted(text), f"must be an IPv{version} address")
        return None
    return address


def outbound(
    found: Findings, file: File, hostname: Domain, rules: RuleSet, ehlo_names: Iterable[Domain], binds: Sequence[Bind]
) -> Outbound:
    """`[outbound]` and `[[route]]`.  `binds`: all that this process listens on, never dialled."""
    table = file.outbound
    place = "[outbound]"
    addresses = AddressRules(
        allow=found.networks(place, "allow_destinations", table.allow_destinations),
        own_addresses=frozenset(found.parsed_all(place, "own_addresses", table.own_addresses, _own_address)),
        own_listeners=frozenset(
            Endpoint(bind.address, bind.port) for bind in binds if bind.address is not None and bind.port
        ),
    )
    own_names = found.parsed_all(place, "own_names", table.own_names, parse_domain)
    return Outbound(
        hostname=hostname,
        rules=rules,
        routes=_routes(found, file),
        addresses=addresses,
        own_names=frozenset({hostname, *ehlo_names, *own_names} - {STAND_IN}),
        annotate=table.annotate,
        eightbit_to_7bit_mx=table.eightbit_to_7bit_mx,
        dsn=table.dsn,
        bare_newlines=BareNewlines[table.bare_newlines.upper()],
        literals=table.literals,
        max_octets=table.max_message_size,
        max_recipients=table.max_recipients,
        destination_connections=table.destination_connections,
        destination_walks=table.destination_walks,
        tlsa_digests=tuple(file.tls.dane_digests),
    )


def _own_address(text: str) -> IpAddress:
    """Raises NameInvalid."""
    try:
        return parse_address(text)
    except NameInvalid as error:
        raise NameInvalid(f"{error}; right would be 203.0.113.25 or 2001:db8::25, without a prefix length") from error


def _routes(found: Findings, file: File) -> Routes:
    port = file.outbound.port
    table: dict[str, NextHop] = {}
    first: dict[str, str] = {}
    for number, route in enumerate(file.route, 1):
        place = item_place("route", number, route.domain)
        key = found.parsed(place, "domain", route.domain, _route_key)
        hop = found.parsed(place, "next_hop", route.next_hop, partial(_next_hop, port=port))
        if key is None or hop is None:
            continue
        if key in table:
            found.wrong(place, "domain", quoted(route.domain), f"is routed by {first[key]} already: keep one of them")
        first.setdefault(key, place)
        table[key] = hop
    return Routes(table, port)


def _next_hop(text: str, port: int) -> NextHop:
    """Raises NameInvalid."""
    try:
        return parse_next_hop(text, port)
    except NameInvalid as error:
        raise NameInvalid(f'{error}; right would be "[mx.example]:25", "relay.example" or "[192.0.2.1]"') from error


def _route_key(text: str) -> str:
    """`example.org`, `.example.org` or `*`.  Raises NameInvalid."""
    if text == "*":
        return text
    return f".{parse_domain(text[1:])}" if text.startswith(".") else parse_domain(text)
