"""Which client does a load balancer in front of us speak for?  (HAProxy proxy-protocol.txt §2, versions 1 and 2)

Reading never raises and takes no octet behind the header.  A listener either demands a header of every connection, and
then of listed peers only, or never looks for one: there is no guessing (CONFORMANCE PXY-01).  Our own header, toward
the MTA, is written by forwarded.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from smtpguard.names import IpAddress, unmapped
from smtpguard.reasons import printable
from smtpguard.smtp.forwarded import (
    AF_TCP4,
    AF_TCP6,
    AF_UNIX,
    MAX_UNIQUE_ID,
    PROXY_COMMAND,
    V2_SIGNATURE,
    ClientCertificate,
    ClientIdentity,
    ClientTls,
    SslClient,
    SslTlv,
    Tlv,
)

MAX_V1_OCTETS = 107
"""A version 1 header with its CRLF."""

MAX_TLV_OCTETS = 2048
"""What we read behind the addresses of a version 2 header; its length field would allow 65535."""

_V2_FIXED = 16
_V1_PREFIX = b"PROXY "
_V1_SHORTEST = len(b"PROXY UNKNOWN\r\n")

_LOCAL_COMMAND = 0x20
_UNSPEC = 0x00
_ADDRESS_OCTETS = MappingProxyType({_UNSPEC: 0, AF_TCP4: 12, AF_TCP6: 36, AF_UNIX: 216})
_MAX_NAME = 255
_MAX_WORD = 80

_V1 = re.compile(
    rb"PROXY TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f.:]{2,45}) (?P<destination>[0-9A-Fa-f.:]{2,45})"
    rb" (?P<source_port>0|[1-9][0-9]{0,4}) (?P<destination_port>0|[1-9][0-9]{0,4})\r\n"
)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A forwarded connection.  `consumed` is the length of the header in octets.

    `source` and `destination` are None where the client came by a unix socket: it has no address, and above all not
    the proxy's.  `authority` is the SNI name the client sent.  `tls` is what the proxy says of TLS it terminated.
    """

    source: IpAddress | None
    source_port: int
    destination: IpAddress | None
    destination_port: int
    consumed: int
    tls: ClientTls | None = None
    authority: str = ""
    unique_id: bytes = b""


@dataclass(frozen=True, slots=True)
class LocalHeader:
    """The peer speaks for itself (a health check), or does not know its client: the real endpoints count."""

    consumed: int


@dataclass(frozen=True, slots=True)
class Incomplete:
    """So far a header.  `needed` more octets are its least rest: who reads no more never reads past it."""

    needed: int


@dataclass(frozen=True, slots=True)
class NotProxy:
    """Something else: the connection is closed, unread (PXY-01)."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """It began as a header and is none: the connection is closed."""

    detail: str


ReadHeader = ProxyHeader | LocalHeader | Incomplete | NotProxy | Malformed


class _Fault(Exception):
    """Why the octets are no header."""


def read_proxy_header(octets: bytes) -> ReadHeader:
    """What the first octets of a connection are; `octets` may hold more than the header."""
    if not octets:
        return Incomplete(_V1_SHORTEST)
    try:
        if octets.startswith(V2_SIGNATURE[: len(octets)]):
            return _read_v2(octets)
        if octets.startswith(_V1_PREFIX[: len(octets)]):
            return _read_v1(octets)
    except _Fault as fault:
        return Malformed(str(fault))
    return NotProxy()


def client_behind(header: ProxyHeader | LocalHeader, connection: ClientIdentity) -> ClientIdentity:
    """The identity of the client, where `connection` is the peer that sent `header`.

    A header without addresses leaves no address: to give the client the proxy's would let it pass for the proxy.
    """
    if isinstance(header, LocalHeader):
        return connection
    return replace(
        connection,
        address=header.source,
        port=header.source_port,
        server_address=header.destination,
        server_port=header.destination_port,
        tls=header.tls,
    )


def _read_v1(octets: bytes) -> ReadHeader:
    end = octets.find(b"\n", 0, MAX_V1_OCTETS)
    if end < 0:
        if len(octets) >= MAX_V1_OCTETS:
            raise _Fault(f"no line end within {MAX_V1_OCTETS} octets")
        if b"\r" in octets[:-1]:
            raise _Fault("a bare CR")
        least = 1 if octets.endswith(b"\r") else 2
        return Incomplete(max(least, _V1_SHORTEST - len(octets)))
    line = octets[: end + 1]
    if _V1_UNKNOWN.fullmatch(line):
        return LocalHeader(len(line))
    found = _V1.fullmatch(line)
    if found is None:
        raise _Fault(f"not a version 1 header: {printable(line.rstrip(), 120)}")
    four = found["family"] == b"4"
    return ProxyHeader(
        _v1_address(found["source"], four),
        _v1_port(found["source_port"]),
        _v1_address(found["destination"], four),
        _v1_port(found["destination_port"]),
        len(line),
    )


def _v1_address(text: bytes, four: bool) -> IpAddress:
    try:
        shown = text.decode("ascii")
        return IPv4Address(shown) if four else unmapped(IPv6Address(shown))
    except ValueError as error:
        raise _Fault(f"not an address of its family: {printable(text, 50)}") from error


def _v1_port(digits: bytes) -> int:
    if (port := int(digits)) > 65535:
        raise _Fault(f"{port} is not a port")
    return port


def _read_v2(octets: bytes) -> ReadHeader:
    # Judged as soon as it is here: no waiting for the rest of what is refused anyway.
    command = octets[12] if len(octets) > 12 else PROXY_COMMAND
    if command >> 4 != 2:
        raise _Fault(f"version {command >> 4} is not known")
    if command not in (_LOCAL_COMMAND, PROXY_COMMAND):
        raise _Fault(f"command {command & 15} is not known")
    if len(octets) < _V2_FIXED:
        return Incomplete(_V2_FIXED - len(octets))
    family = octets[13]
    length = int.from_bytes(octets[14:16], "big")
    if length > _ADDRESS_OCTETS[AF_UNIX] + MAX_TLV_OCTETS:
        raise _Fault(f"{length} octets of addresses and TLVs are more than is read")
    if command == PROXY_COMMAND and family not in _ADDRESS_OCTETS:
        raise _Fault(f"family {family:#04x} is not known")
    if command == PROXY_COMMAND and length < _ADDRESS_OCTETS[family]:
        raise _Fault(f"{length} octets are too few for the addresses")
    end = _V2_FIXED + length
    if len(octets) < end:
        return Incomplete(end - len(octets))
    if command == _LOCAL_COMMAND or family == _UNSPEC:
        return LocalHeader(end)  # whatever it holds is to be skipped (§2.2)
    return _read_addresses(octets[:end], family)


def _read_addresses(header: bytes, family: int) -> ProxyHeader:
    start = _V2_FIXED + _ADDRESS_OCTETS[family]
    addresses = header[_V2_FIXED:start]
    source: IpAddress | None = None
    destination: IpAddress | None = None
    ports = bytes(4)
    if family == AF_TCP4:
        source, destination = IPv4Address(addresses[:4]), IPv4Address(addresses[4:8])
        ports = addresses[8:]
    elif family == AF_TCP6:
        source, destination = unmapped(IPv6Address(addresses[:16])), unmapped(IPv6Address(addresses[16:32]))
        ports = addresses[32:]
    tls: ClientTls | None = None
    authority = alpn = ""
    unique_id = b""
    seen_checksum = False
    for offset, kind, value in _tlvs(header, start):
        if kind == Tlv.CRC32C:
            if len(value) != 4 or seen_checksum:
                raise _Fault("a checksum that is not one of 4 octets")
            seen_checksum = True
            if int.from_bytes(value, "big") != crc32c(header[:offset] + bytes(4) + header[offset + 4 :]):
                raise _Fault("the checksum is wrong")
        elif kind == Tlv.AUTHORITY:
            authority = printable(value, _MAX_NAME)
        elif kind == Tlv.ALPN:
            alpn = printable(value, _MAX_WORD)
        elif kind == Tlv.UNIQUE_ID:
            if len(value) > MAX_UNIQUE_ID:
                raise _Fault(f"a unique id over {MAX_UNIQUE_ID} octets")
            unique_id = value
        elif kind == Tlv.SSL:
            tls = _read_tls(value)
    if tls is not None:
        tls = replace(tls, sni=authority, alpn=alpn)
    return ProxyHeader(
        source,
        int.from_bytes(ports[:2], "big"),
        destination,
        int.from_bytes(ports[2:], "big"),
        len(header),
        tls,
        authority,
        unique_id,
    )


def _read_tls(value: bytes) -> ClientTls | None:
    """The facts of a PP2_TYPE_SSL TLV; None where the client came without TLS."""
    if len(value) < 5:
        raise _Fault("a TLS TLV under 5 octets")
    client, unverified = value[0], any(value[1:5])
    words = {kind: text for _, kind, text in _tlvs(value, 5)}
    if not client & SslClient.TLS:
        return None
    certificate = None
    if client & (SslClient.CERTIFICATE | SslClient.SESSION_CERTIFICATE):
        name = words.get(SslTlv.COMMON_NAME, b"")[:_MAX_NAME].decode("utf-8", "replace")
        certificate = ClientCertificate(name, not unverified)
    return ClientTls(
        printable(words.get(SslTlv.VERSION, b""), _MAX_WORD),
        printable(words.get(SslTlv.CIPHER, b""), _MAX_WORD),
        group=printable(words.get(SslTlv.GROUP, b""), _MAX_WORD),
        certificate=certificate,
    )


def _tlvs(octets: bytes, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Where each value stands, its type, and the value."""
    while start < len(octets):
        end = start + 3 + int.from_bytes(octets[start + 1 : start + 3], "big")
        if end > len(octets):
            raise _Fault("a TLV runs past the end")
        yield start + 3, octets[start], octets[start + 3 : end]
        start = end


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C_TABLE = _crc32c_table()


def crc32c(octets: bytes) -> int:
    """The CRC32C (Castagnoli) of `octets` (RFC 3720 §12.1, appendix B.4)."""
    crc = 0xFFFFFFFF
    for octet in octets:
        crc = crc >> 8 ^ _CRC32C_TABLE[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF
