"""Which spelling of a domain name or address is the one we compare, look up and print?

The only normaliser. A `Domain` is A-labels (RFC 5890), lower case, without the final dot, at most 253 octets; every
name from the network, the MTA or the configuration passes through `parse_domain` before it reaches another module.
Address literals are RFC 5321 §4.1.3.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NewType

import idna

Domain = NewType("Domain", str)
"""A normalised domain name: A-labels, lower case, no final dot."""

IpAddress = IPv4Address | IPv6Address

_LABEL_OCTETS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class NameInvalid(ValueError):
    """The text is not a domain name or address literal; the message says why."""


def parse_domain(text: str) -> Domain:
    """The normalised form of `text`; U-labels become A-labels (RFC 5891, UTS 46).

    Letters, digits, hyphen and underscore are allowed: host names with underscores exist, and `_25._tcp` is one.
    Raises NameInvalid.
    """
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True, transitional=False).decode("ascii")
        except idna.IDNAError as error:
            raise NameInvalid(f"{_shown(text)} is not a domain name: {error}") from error
    name = name.lower()
    if not name or len(name) > 253:
        raise NameInvalid(f"{_shown(text)} is not a domain name: it must have 1 to 253 octets")
    for label in name.split("."):
        if not 1 <= len(label) <= 63:
            raise NameInvalid(f"{_shown(text)} is not a domain name: each label must have 1 to 63 octets")
        if not _LABEL_OCTETS.issuperset(label):
            raise NameInvalid(f"{_shown(text)} is not a domain name: only letters, digits, '-' and '_' are allowed")
        if label[0] == "-" or label[-1] == "-":
            raise NameInvalid(f"{_shown(text)} is not a domain name: a label begins or ends with '-'")
    if name.rpartition(".")[2].isdigit():
        raise NameInvalid(f"{_shown(text)} is not a domain name: the last label is a number")
    return Domain(name)


def parse_address_literal(text: str) -> IpAddress:
    """The address of `[192.0.2.1]` or `[IPv6:2001:db8::1]` (RFC 5321 §4.1.3).  Raises NameInvalid."""
    if not (text.startswith("[") and text.endswith("]")):
        raise NameInvalid(f"{_shown(text)} is not an address literal: it must stand in [ ]")
    inner = text[1:-1]
    try:
        if inner[:5].lower() == "ipv6:" and "%" not in inner:  # a scope means nothing to others
            return IPv6Address(inner[5:])
        return IPv4Address(inner)
    except ValueError as error:
        raise NameInvalid(f"{_shown(text)} is not an address literal (RFC 5321 §4.1.3)") from error


def parse_mail_domain(text: str) -> Domain | IpAddress:
    """The right-hand side of a mailbox: a domain or an address literal.  Raises NameInvalid."""
    if text.startswith("["):
        return parse_address_literal(text)
    return parse_domain(text)


def parse_address(text: str) -> IpAddress:
    """A bare IPv4 or IPv6 address, without scope.  Raises NameInvalid."""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise NameInvalid(f"{_shown(text)} is not an IP address") from error
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise NameInvalid(f"{_shown(text)} carries a scope id")
    return address


def unmapped(address: IpAddress) -> IpAddress:
    """The IPv4 address inside `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2), else the address itself."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def parents(domain: Domain) -> Iterator[Domain]:
    """The enclosing domains, nearest first: `a.b.example` gives `b.example`, `example`."""
    rest = domain.partition(".")[2]
    while rest:
        yield Domain(rest)
        rest = rest.partition(".")[2]


def _shown(text: str) -> str:
    """`text` quoted, escaped and bounded, for an error message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
