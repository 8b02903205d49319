"""Where does mail for this recipient domain go next?  (RFC 5321 §5.1; Postfix next-hop syntax, MX-14, MX-16, PF-01)

Pure: the table of `[[route]]` and the parsing of next hops.  `[host]` and `[host]:port` suppress the MX look-up, `host`
keeps it.  Recipients with an equal NextHop share one route of a transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from smtpguard.names import (
    Domain,
    IpAddress,
    NameInvalid,
    parents,
    parse_address,
    parse_address_literal,
    parse_domain,
)


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a route leads.  `key` is what `[[policy]]` is looked up by, verbatim (PF-01).

    Exactly one of `domain` and `address` is set; `bracketed`: the domain is the host itself, no MX look-up.
    `routed`: it comes from the configuration, so the name is as good as configured.
    """

    key: str
    domain: Domain | None
    address: IpAddress | None
    port: int
    bracketed: bool = False
    routed: bool = False

    def __str__(self) -> str:
        return self.key


def parse_next_hop(text: str, port: int) -> NextHop:
    """A next hop in Postfix's words: `example.org`, `example.org:26`, `[mx.example.org]:25`, `[192.0.2.1]`,
    `[2001:db8::1]:25`.  `port` is the default.  Raises NameInvalid."""
    text = text.strip()
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise NameInvalid(f"{text!r}: the ']' is missing")
        number = _port(text, rest, port)
        try:
            address = parse_address_literal(f"[{inner}]") if ":" in inner[:5] else parse_address(inner)
        except NameInvalid:
            try:
                address = parse_address(inner)
            except NameInvalid:
                domain = parse_domain(inner)
                return NextHop(_key(f"[{domain}]", number, port), domain, None, number, bracketed=True, routed=True)
        return NextHop(_key(f"[{address}]", number, port), None, address, number, bracketed=True, routed=True)
    name, colon, rest = text.partition(":")
    number = _port(text, colon + rest, port)
    domain = parse_domain(name)
    return NextHop(_key(domain, number, port), domain, None, number, routed=True)


def _port(text: str, rest: str, default: int) -> int:
    if not rest:
        return default
    digits = rest[1:]
    if rest[0] != ":" or not (digits.isascii() and digits.isdigit()) or not 0 < int(digits) < 65536:
        raise NameInvalid(f"{text!r}: what follows the host must be ':' and a port from 1 to 65535")
    return int(digits)


def _key(host: str, port: int, default: int) -> str:
    return host if port == default else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Routes:
    """The `[[route]]` table: exact domain, longest `.parent`, `*`, as `[[policy]]` is matched."""

    table: Mapping[str, NextHop]
    port: int

    def next_hop(self, domain: Domain | IpAddress) -> NextHop:
        """Where mail for this domain or address literal goes."""
        if not isinstance(domain, str):  # a smarthost for everything is for literals too, as Postfix's relayhost is
            if (default := self.table.get("*")) is not None:
                return default
            return NextHop(f"[{domain}]", None, domain, self.port, bracketed=True)
        if (exact := self.table.get(domain)) is not None:
            return exact
        for parent in parents(domain):
            if (found := self.table.get(f".{parent}")) is not None:
                return found
        if (default := self.table.get("*")) is not None:
            return default
        return NextHop(domain, domain, None, self.port)
