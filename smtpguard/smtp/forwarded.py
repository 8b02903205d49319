"""Who is the client, and how does the MTA behind us learn it?

Postfix XCLIENT_README with RFC 3461 §4 (xtext), HAProxy proxy-protocol.txt §2.2 (version 2, as the sender).  One
`ClientIdentity` feeds everything that names the client: XCLIENT, the PROXY header, the Received line (trace.py) and
the logs, so that they cannot differ (CONFORMANCE PXY-11).  An MTA that would decide by our address instead of the
client's must get nothing relayed, therefore every way but the right one ends in a value that says so.  What a load
balancer tells us is read by proxy_header.py.
"""

from dataclasses import dataclass, replace
from enum import Enum, IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address

from smtpguard.names import Domain, IpAddress, unmapped
from smtpguard.reasons import printable
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.syntax import encode_xtext

MAX_COMMAND_LINE = 512
"""Octets of one command line with its CRLF (RFC 5321 §4.5.3.1.4)."""

V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PROXY_COMMAND = 0x21
"""Version 2, command PROXY."""
AF_TCP4, AF_TCP6, AF_UNIX = 0x11, 0x21, 0x31
"""Families with the stream transport."""
MAX_UNIQUE_ID = 128
"""Octets of a unique id (§2.2.5)."""

_MAX_VALUE = 255  # octets of xtext: Postfix 3.7 refuses more, "501 5.5.4 attribute value too long"
_NO_GREETING = frozenset({521, 554})
_MAX_NAME = 255
_MAX_WORD = 80


class Tlv(IntEnum):
    """Types of what may follow the addresses (§2.2)."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    UNIQUE_ID = 0x05
    SSL = 0x20


class SslTlv(IntEnum):
    """Types inside Tlv.SSL."""

    VERSION = 0x21
    COMMON_NAME = 0x22
    CIPHER = 0x23
    GROUP = 0x26


class SslClient(IntFlag):
    """The client field of Tlv.SSL."""

    TLS = 0x01
    CERTIFICATE = 0x02
    SESSION_CERTIFICATE = 0x04


class NameMissing(Enum):
    """Why there is no host name for the client's address; the values are XCLIENT's words."""

    UNAVAILABLE = "[UNAVAILABLE]"
    """There is none, or nobody asked."""
    TEMPORARY = "[TEMPUNAVAIL]"
    """The look-up failed and may succeed later."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What the client's certificate says.  `common_name` is its CN, untrusted text; `verified`: it held."""

    common_name: str
    verified: bool


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What the TLS between client and us (or the load balancer) is.

    `version` is OpenSSL's word (`TLSv1.3`), `cipher` the suite by OpenSSL's or IANA's name, `bits` its strength (0:
    not known), `group` the key exchange, `sni` the name the client asked for.  Empty text: not known.
    """

    version: str
    cipher: str = ""
    bits: int = 0
    group: str = ""
    sni: str = ""
    alpn: str = ""
    certificate: ClientCertificate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientIdentity:
    """The client of one inbound session, as every other party hears it.

    `address` is None for a client without one (a unix socket); port 0 is "not known".  An IPv4 address arrives as
    one, never inside an IPv6 address: the MTA's access lists speak of it so.  `server_address` is what the client
    connected to.  `name` is the forward-confirmed name of the address, `reverse_name` its PTR name whether confirmed or
    not.  `helo` is what the client said in EHLO or HELO, octet by octet, empty before it spoke; `extended`: it said
    EHLO.  `session` is our session id.
    """

    address: IpAddress | None
    port: int = 0
    server_address: IpAddress | None = None
    server_port: int = 0
    name: Domain | NameMissing = NameMissing.UNAVAILABLE
    reverse_name: Domain | NameMissing = NameMissing.UNAVAILABLE
    helo: bytes = b""
    extended: bool = False
    tls: ClientTls | None = None
    session: str = ""

    def __post_init__(self) -> None:
        if self.address is not None:
            object.__setattr__(self, "address", unmapped(self.address))
        if self.server_address is not None:
            object.__setattr__(self, "server_address", unmapped(self.server_address))

    @property
    def protocol(self) -> str:
        """`SMTP` or `ESMTP`: the two words XCLIENT PROTO knows."""
        return "ESMTP" if self.extended else "SMTP"

    def named(self, helo: bytes, *, extended: bool) -> "ClientIdentity":
        """The same client once it has said EHLO or HELO."""
        return replace(self, helo=helo, extended=extended)


@dataclass(frozen=True, slots=True)
class XclientImpossible:
    """The MTA cannot be told who the client is: nothing may be relayed to it (DESIGN §6, `421 4.3.0`)."""

    detail: str


@dataclass(frozen=True, slots=True)
class XclientAccepted:
    """The MTA took the identity and begins anew with this greeting: EHLO comes next (PXY-09)."""

    greeting: Reply


@dataclass(frozen=True, slots=True)
class XclientRefused:
    """The MTA did not take it: nothing may be relayed."""

    detail: str


@dataclass(frozen=True, slots=True)
class ClientTurnedAway:
    """The MTA took it, and in place of its greeting says that it wants nothing of this client."""

    reply: Reply


def plan_xclient(identity: ClientIdentity, offered: str) -> tuple[bytes, ...] | XclientImpossible:
    """The XCLIENT commands for `identity`, without CRLF and at most 512 octets with it, to send one after the other.

    `offered` is what stands behind XCLIENT in the MTA's EHLO reply; no attribute but these is sent.  ADDR is the very
    last (PXY-10): when the MTA begins to take us for the client it knows the rest already.  LOGIN is never sent, though
    offered: we authenticate nobody (AUTH-06).  The next command is EHLO with the client's name, after
    `read_xclient_reply` has accepted every reply.
    """
    names = frozenset(offered.upper().split())
    if not names:
        return XclientImpossible(
            "the MTA does not offer XCLIENT to this host (Postfix: smtpd_authorized_xclient_hosts)"
        )
    if "ADDR" not in names:
        return XclientImpossible("the MTA offers XCLIENT without ADDR")
    commands: list[bytes] = []
    line = b"XCLIENT"
    for keyword, value in _attributes(identity):
        if keyword not in names:
            continue
        attribute = f" {keyword}={value}".encode("ascii")
        if len(line) + len(attribute) + len(b"\r\n") > MAX_COMMAND_LINE:
            commands.append(line)
            line = b"XCLIENT"
        line += attribute
    return (*commands, line)


def read_xclient_reply(reply: Reply) -> XclientAccepted | XclientRefused | ClientTurnedAway:
    """What the MTA's reply to one XCLIENT command means: 220 is yes, anything else, 250 included, is no.

    A 250 would come from a server that took the command for another one: it has not begun anew.  The codes of a server
    that does not greet (RFC 5321 §3.1, RFC 7504) are about the client: a block list, in Postfix with
    `smtpd_delay_reject = no`.
    """
    if reply.code == 220:
        return XclientAccepted(reply)
    if reply.is_transient or reply.code in _NO_GREETING:
        return ClientTurnedAway(reply)
    return XclientRefused(f"the MTA answered XCLIENT with {printable(str(reply), 120)}")


def _attributes(identity: ClientIdentity) -> tuple[tuple[str, str], ...]:
    """Every attribute we may send, ADDR last.

    What is not known is sent as unavailable: left out, the MTA would keep what it knows of our own connection, and a
    check by host name would take the client for us.
    """
    return (
        ("NAME", _host_name(identity.name)),
        ("REVERSE_NAME", _host_name(identity.reverse_name)),
        ("PROTO", identity.protocol),
        ("HELO", _bounded_xtext(identity.helo[:_MAX_VALUE]) or NameMissing.UNAVAILABLE.value),
        ("DESTADDR", _address(identity.server_address)),
        ("DESTPORT", _port(identity.server_port)),
        ("PORT", _port(identity.port)),
        ("ADDR", _address(identity.address)),
    )


def _host_name(name: Domain | NameMissing) -> str:
    return name.value if isinstance(name, NameMissing) else _bounded_xtext(name.encode("utf-8"))


def _address(address: IpAddress | None) -> str:
    if address is None:
        return NameMissing.UNAVAILABLE.value
    return f"IPV6:{_scopeless(address)}" if isinstance(address, IPv6Address) else str(address)


def _scopeless(address: IPv6Address) -> str:
    return str(address).partition("%")[0]  # a scope means nothing to others


def _port(port: int) -> str:
    return str(port) if port else NameMissing.UNAVAILABLE.value


def _bounded_xtext(octets: bytes) -> str:
    """`octets` as xtext, cut between two octets where it would pass the bound."""
    text = encode_xtext(octets)
    while len(text) > _MAX_VALUE:
        octets = octets[: -max(1, (len(text) - _MAX_VALUE) // 3)]
        text = encode_xtext(octets)
    return text


def build_proxy_v2(identity: ClientIdentity) -> bytes:
    """The version 2 header that tells the MTA who `identity` is, under 2 KiB.

    It is the first thing written to a new connection, in one write, and the connection serves this client only
    (PXY-08).  The command is PROXY always: LOCAL, or an unspecified family, would make the MTA take the client for us.
    A client without an IP address is said to come by a unix socket, and an MTA that cannot take that drops it.
    """
    if identity.address is None:
        family, body = AF_UNIX, bytes(216)
    else:
        source, destination = _one_family(identity.address, identity.server_address)
        family = AF_TCP4 if isinstance(source, IPv4Address) else AF_TCP6
        body = source.packed + destination.packed
        body += identity.port.to_bytes(2, "big") + identity.server_port.to_bytes(2, "big")
    if identity.tls is not None:
        if identity.tls.alpn:
            body += _tlv(Tlv.ALPN, _word(identity.tls.alpn))
        if identity.tls.sni:
            body += _tlv(Tlv.AUTHORITY, printable(identity.tls.sni, _MAX_NAME).encode("ascii"))
        body += _tlv(Tlv.SSL, _tls_value(identity.tls))
    if identity.session:
        body += _tlv(Tlv.UNIQUE_ID, printable(identity.session, MAX_UNIQUE_ID).encode("ascii"))
    return V2_SIGNATURE + bytes((PROXY_COMMAND, family)) + len(body).to_bytes(2, "big") + body


def _one_family(source: IpAddress, destination: IpAddress | None) -> tuple[IpAddress, IpAddress]:
    """Both as IPv4, or both as IPv6 with the IPv4 one mapped (RFC 4291 §2.5.5.2); 0.0.0.0 or :: for an unknown one."""
    if destination is None:
        return source, IPv4Address(0) if isinstance(source, IPv4Address) else IPv6Address(0)
    if source.version == destination.version:
        return source, destination
    return _as_ipv6(source), _as_ipv6(destination)


def _as_ipv6(address: IpAddress) -> IPv6Address:
    return address if isinstance(address, IPv6Address) else IPv6Address(bytes(10) + b"\xff\xff" + address.packed)


def _tls_value(tls: ClientTls) -> bytes:
    certificate = tls.certificate
    client = SslClient.TLS
    if certificate is not None:
        client |= SslClient.CERTIFICATE | SslClient.SESSION_CERTIFICATE
    verified = certificate is not None and certificate.verified
    value = bytes((client,)) + (0 if verified else 1).to_bytes(4, "big")
    value += _tlv(SslTlv.VERSION, _word(tls.version))
    if tls.cipher:
        value += _tlv(SslTlv.CIPHER, _word(tls.cipher))
    if tls.group:
        value += _tlv(SslTlv.GROUP, _word(tls.group))
    if certificate is not None and certificate.common_name:
        value += _tlv(SslTlv.COMMON_NAME, _utf8(certificate.common_name, _MAX_NAME))
    return value


def _word(text: str) -> bytes:
    return printable(text, _MAX_WORD).encode("ascii")


def _utf8(text: str, limit: int) -> bytes:
    """`text` as UTF-8 without control characters, cut between two characters."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:limit])
    return shown.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode("utf-8")


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value
