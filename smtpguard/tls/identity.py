"""Does this certificate name the host we meant?  (RFC 9525 §6, RFC 7672 §3.2.2-3.2.3, RFC 8461 §4.2)

Reference ids are ours, presented ids are the certificate's subjectAltName entries.  The common name is never
looked at.  An entry that is not well formed is skipped and spoils no other.  A wildcard is the complete
leftmost label and stands for exactly one label.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import assert_never

from smtpguard.names import Domain, NameInvalid, parse_domain
from smtpguard.reasons import printable
from smtpguard.tls.chain import Certificate, MalformedCertificateError
from smtpguard.tls.der import SEQUENCE, MalformedDerError, elements, read_one

_SUBJECT_ALT_NAME = b"\x55\x1d\x11"  # 2.5.29.17
_DNS_NAME = 0x82  # [2] IA5String
_IP_ADDRESS = 0x87  # [7] OCTET STRING
_SHOWN_NAMES = 10
_MAX_NAME_OCTETS = 255


@dataclass(frozen=True, slots=True)
class DnsId:
    """The certificate must name this host."""

    domain: Domain


@dataclass(frozen=True, slots=True)
class DotDomain:
    """The certificate must name some host below `suffix`, at any depth of one label or more (Postfix
    `.example.org`)."""

    suffix: Domain


@dataclass(frozen=True, slots=True)
class IpId:
    """The certificate must name this address, as an iPAddress (RFC 9525 §6.4)."""

    address: IPv4Address | IPv6Address


ReferenceId = DnsId | DotDomain | IpId


def names_match(leaf: Certificate, reference_ids: Iterable[ReferenceId]) -> bool:
    """Does a presented id match one of the reference ids?  A certificate that cannot be read names
    nothing."""
    presented = _presented(leaf)
    return any(_matches(kind, value, reference) for reference in reference_ids for kind, value in presented)


def presented_names(leaf: Certificate) -> tuple[str, ...]:
    """The DNS names and addresses of the certificate for a message: printable, and at most ten."""
    shown: list[str] = []
    for kind, value in _presented(leaf)[:_SHOWN_NAMES]:
        if kind == _DNS_NAME:
            shown.append(printable(value, 80))
        elif len(value) in (4, 16):
            shown.append(str(ip_address(value)))
    return tuple(shown)


def dns_names(leaf: Certificate) -> tuple[str, ...]:
    """Every DNS name of the certificate that can name a host, normalised and once; a wildcard keeps its `*.`."""
    found: dict[str, None] = {}
    for kind, value in _presented(leaf):
        name = _normalised(value) if kind == _DNS_NAME else ""
        if _is_domain(_wildcard(name) or name):
            found[name] = None
    return tuple(found)


def _presented(leaf: Certificate) -> Sequence[tuple[int, bytes]]:
    """The dNSName and iPAddress entries before the first octet that is no element; other kinds are left
    out."""
    found: list[tuple[int, bytes]] = []
    with suppress(MalformedCertificateError, MalformedDerError):
        extension = leaf.extension(_SUBJECT_ALT_NAME)
        names = read_one(extension.value, SEQUENCE).content if extension is not None else b""
        # One by one: what stands before a fault is kept.
        for element in elements(names):
            if element.tag in (_DNS_NAME, _IP_ADDRESS) and len(element.content) <= _MAX_NAME_OCTETS:
                found += [(element.tag, element.content)]
    return found


def _matches(kind: int, value: bytes, reference: ReferenceId) -> bool:
    match reference:
        case DnsId(domain):
            return kind == _DNS_NAME and _names_host(value, domain)
        case DotDomain(suffix):
            return kind == _DNS_NAME and _names_below(value, suffix)
        case IpId(address):
            return kind == _IP_ADDRESS and value == address.packed
        case _:
            assert_never(reference)


def _names_host(value: bytes, domain: Domain) -> bool:
    # The reference id is normalised and holds no '*', so equality also proves the presented id well formed.
    name = _normalised(value)
    if name == domain:
        return True
    covered = _wildcard(name)
    return covered is not None and covered == domain.partition(".")[2]


def _names_below(value: bytes, suffix: Domain) -> bool:
    name = _normalised(value)
    below = _wildcard(name)
    if below is not None:  # every host it stands for is below `below`
        name, suffixed = below, below == suffix or below.endswith(f".{suffix}")
    else:
        suffixed = name.endswith(f".{suffix}")
    return suffixed and _is_domain(name)


def _wildcard(name: str) -> str | None:
    """The domain whose direct children `*.domain` names.  `*.org` is no wildcard for us, nor for OpenSSL: a
    whole registry is nobody's mail host."""
    if not name.startswith("*."):
        return None
    domain = name[2:]
    return domain if "." in domain and "*" not in domain else None


def _normalised(value: bytes) -> str:
    """Lower case, without one final dot; octets that are not ASCII stay unequal to every reference id."""
    return value.decode("latin-1").lower().removesuffix(".") if value.isascii() else ""


def _is_domain(name: str) -> bool:
    try:
        parse_domain(name)
    except NameInvalid:
        return False
    return True
