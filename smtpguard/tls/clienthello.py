"""Which host does this client ask for?  (RFC 6066 §3, RFC 8446 §4.1.2 and §5.1, RFC 5246 App. E.2)

In: the first octets of a connection, looked at (MSG_PEEK) and left to OpenSSL.  Out: the name, or how many octets
there must be before more can be said.  Read here because OpenSSL's own way is a callback, and pyOpenSSL's callbacks
need memory that is writable and executable.

This is no judge of ClientHellos: where one is malformed there is no name, the default certificate is chosen, and
OpenSSL finds the fault and sends the alert.  The answer comes as soon as the name is there, wherever the hello is cut
and over however many records it is spread; more octets never change an answer once given.  Nothing raises.
"""

from dataclasses import dataclass

from smtpguard.names import Domain, NameInvalid, parse_domain

MAX_HELLO_OCTETS = 16384
"""Octets of one connection that are looked at.  Real hellos have 200 to 2000."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_RECORD_HEADER = 5
_MAX_RECORD = 16384
_MAX_NAME_OCTETS = 255


@dataclass(frozen=True, slots=True)
class Sni:
    """A ClientHello.  `name` is None where it names no host, or what it names is not a host name: an address,
    U-labels, control characters (RFC 6066 §3).  Upper case is folded; a final dot, which the RFC wants left out,
    means the same host."""

    name: Domain | None


@dataclass(frozen=True, slots=True)
class Incomplete:
    """There is no answer before `needed` octets, counted from the first, have come.  More than there are, never
    more than MAX_HELLO_OCTETS, and never more than an honest client sends before it waits for us."""

    needed: int


@dataclass(frozen=True, slots=True)
class NotTls:
    """These octets do not begin a ClientHello: the handshake will fail."""


Hello = Sni | Incomplete | NotTls


def read_hello(octets: bytes) -> Hello:
    """What do the first octets of a connection ask for?"""
    octets = octets[:MAX_HELLO_OCTETS]
    if not octets:
        return Incomplete(1)
    if octets[0] & 0x80:
        return _old_hello(octets)
    if octets[0] != _HANDSHAKE or octets[1:2] not in (b"", b"\3"):
        return NotTls()
    message = _Message(octets)
    try:
        return _read_message(message.octets)
    except _Short as short:
        if message.is_broken:
            return Sni(None) if message.octets else NotTls()
        if len(octets) == MAX_HELLO_OCTETS:
            return Sni(None)
        needed = len(octets) + message.missing(short.count - len(message.octets))
        return Incomplete(min(needed, MAX_HELLO_OCTETS))


class _Short(Exception):
    """The message must have `count` octets before it can be read on."""

    def __init__(self, count: int) -> None:
        self.count = count


class _Message:
    """The handshake octets that the records carry (RFC 8446 §5.1), as far as they have come."""

    __slots__ = ("_header_missing", "_record_missing", "is_broken", "octets")

    def __init__(self, octets: bytes) -> None:
        self.octets = bytearray()
        self.is_broken = False
        self._header_missing = self._record_missing = 0
        at = 0
        while self._record_missing == 0:
            header = octets[at : at + _RECORD_HEADER]
            length = int.from_bytes(header[3:5], "big")
            whole = len(header) == _RECORD_HEADER
            # An alert or an empty record inside a hello, or one that is too long.
            if header[:1] not in (b"", b"\x16") or header[1:2] not in (b"", b"\3"):
                self.is_broken = True
                return
            if whole and not 1 <= length <= _MAX_RECORD:
                self.is_broken = True
                return
            if not whole:
                self._header_missing = _RECORD_HEADER - len(header)
                return
            at += _RECORD_HEADER
            content = octets[at : at + length]
            self.octets += content
            at += len(content)
            self._record_missing = length - len(content)

    def missing(self, count: int) -> int:
        """The fewest octets on the wire that can bring `count` more of the message."""
        if self._record_missing:
            # What the record does not hold stands behind another header.
            return count if count <= self._record_missing else count + _RECORD_HEADER
        return self._header_missing + count


def _read_message(message: bytearray) -> Sni | NotTls:
    """Raises _Short where the message ends before its answer."""

    def require(count: int) -> None:
        if count > len(message):
            raise _Short(count)

    def number(at: int, octets: int) -> int:
        require(at + octets)
        return int.from_bytes(message[at : at + octets], "big")

    if number(0, 1) != _CLIENT_HELLO:
        return NotTls()
    end = 4 + number(1, 3)
    at = 4 + 2 + 32  # version, random
    # session_id, cipher_suites, compression_methods, whose lengths have one, two and one octets
    for width in (1, 2, 1):
        if at + width > end:
            return Sni(None)
        at += width + number(at, width)
    if at + 2 > end:  # no extensions, or what stands before them does not fit
        return Sni(None)
    extensions_end = at + 2 + number(at, 2)
    if extensions_end > end:
        return Sni(None)
    at += 2
    while at + 4 <= extensions_end:
        kind, length = number(at, 2), number(at + 2, 2)
        at += 4
        if kind == _SERVER_NAME and at + length <= extensions_end:
            require(at + length)
            return Sni(_host_name(bytes(message[at : at + length])))
        at += length
    return Sni(None)


def _host_name(extension: bytes) -> Domain | None:
    """RFC 6066 §3: a list that may hold one name of each type, and only one type exists."""
    if len(extension) < 5 or extension[2] != _HOST_NAME:
        return None
    name = extension[5:]
    if int.from_bytes(extension[:2], "big") != len(extension) - 2 or int.from_bytes(extension[3:5], "big") != len(name):
        return None
    if len(name) > _MAX_NAME_OCTETS or not name.isascii():
        return None
    try:
        return parse_domain(name.decode("ascii"))
    except NameInvalid:
        return None


def _old_hello(octets: bytes) -> Hello:
    """A hello in the form of SSL 2.0 has no extensions (RFC 5246 App. E.2): two octets of length with the first
    bit set, the type, the version.  Whether it is still welcome is OpenSSL's business."""
    if octets[2:3] not in (b"", b"\1") or octets[3:4] not in (b"", b"\0", b"\3"):
        return NotTls()
    return Sni(None) if len(octets) >= 5 else Incomplete(5)
