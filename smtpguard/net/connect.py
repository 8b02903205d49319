"""May this address be dialled, and what happens when it is?  (TO-01; RFC 5321 §5.1, RFC 4291, RFC 6052, RFC
6890)

`AddressRules` judges the very address that is dialled, after DNS: names of the Internet must not lead into
this host or its network.  `connect` makes one attempt at one address; which address comes next is the
caller's affair.
"""

import errno
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import trio

from smtpguard.clock import Clock
from smtpguard.names import IpAddress, unmapped
from smtpguard.net.wire import Endpoint, Wire
from smtpguard.reasons import printable

CONNECT_SECONDS: Final = 30.0
"""TO-01: the habit of Postfix."""

_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052 §2.1
_IP_BIND_ADDRESS_NO_PORT: Final = 24  # ip(7); not in the socket module of Python 3.11


class Verdict(Enum):
    """May the address be dialled?  The value is the reason, for people; empty: it may."""

    ALLOWED = ""
    OWN = "is an address of this host"
    OWN_LISTENER = "is a listener of this process"
    UNSPECIFIED = "is the unspecified address"
    LOOPBACK = "is a loopback address"
    LINK_LOCAL = "is a link-local address"
    MULTICAST = "is a multicast address"
    NOT_GLOBAL = "is not a global address"


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What outbound connections may reach.

    `allow` is `[outbound] allow_destinations`; `own_addresses` what the operator calls this host's own
    (behind NAT we cannot know); `own_listeners` what this process listens on, wildcards included.
    """

    allow: tuple[IPv4Network | IPv6Network, ...] = ()
    own_addresses: frozenset[IpAddress] = frozenset()
    own_listeners: frozenset[Endpoint] = frozenset()

    def verdict(self, address: IpAddress, port: int, *, routed: bool = False) -> Verdict:
        """Judge one address.  An address inside another one (IPv4-mapped, NAT64, 6to4) is judged too.

        OWN is how a loop shows in the MX list (MX-08).  `routed`: the operator's own route led here, so
        private and own addresses are meant; our own listeners are a loop even then.
        """
        for candidate in _layers(address):
            if self._is_listener(candidate, port):
                return Verdict.OWN_LISTENER
            if not routed and (verdict := self._judge(candidate)) is not Verdict.ALLOWED:
                return verdict
        return Verdict.ALLOWED

    def forbidden(self, address: IpAddress, port: int, *, routed: bool = False) -> str:
        """Why the address may not be dialled; empty: it may."""
        return self.verdict(address, port, routed=routed).value

    def may_be_listener(self, end: Endpoint) -> bool:
        """Do we listen at this address, or with this port at every address?  Which addresses are this host's is not
        known, so the second may be wrong."""
        return end in self.own_listeners or self._is_wildcard_port(end.port)

    def reached_ourselves(self, local: Endpoint, peer: Endpoint) -> bool:
        """Did an established connection arrive at our own wildcard listener?  Only then are both addresses
        the same.
        """
        return local.address == peer.address and self._is_wildcard_port(peer.port)

    def _is_listener(self, address: IpAddress, port: int) -> bool:
        if Endpoint(address, port) in self.own_listeners:
            return True
        return self._is_wildcard_port(port) and (address.is_loopback or address in self.own_addresses)

    def _is_wildcard_port(self, port: int) -> bool:
        return any(
            own.port == port and own.address is not None and own.address.is_unspecified for own in self.own_listeners
        )

    def _judge(self, address: IpAddress) -> Verdict:
        if address in self.own_addresses:
            return Verdict.OWN
        if any(address in network for network in self.allow):
            return Verdict.ALLOWED
        if address.is_unspecified:
            return Verdict.UNSPECIFIED
        if address.is_loopback:
            return Verdict.LOOPBACK
        if address.is_link_local:
            return Verdict.LINK_LOCAL
        if address.is_multicast:
            return Verdict.MULTICAST
        if isinstance(address, IPv6Address) and address in _NAT64:
            return Verdict.ALLOWED  # the address inside decides
        if not address.is_global or address.is_reserved:
            return Verdict.NOT_GLOBAL
        if isinstance(address, IPv6Address) and address.is_site_local:
            return Verdict.NOT_GLOBAL
        return Verdict.ALLOWED


def _layers(address: IpAddress) -> tuple[IpAddress, ...]:
    """The address as packets will see it: the IPv4 address it carries, which says more, and itself."""
    address = unmapped(address)
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF), address
        if address.sixtofour is not None:
            return address.sixtofour, address
    return (address,)


class ConnectFailure(Enum):
    """What kind of failure it was.  LOCAL is ours (source address, permission): the host is not to blame.  So is
    EXHAUSTED (descriptors, memory), and it passes.
    """

    TIMEOUT = "timeout"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    LOCAL = "local"
    EXHAUSTED = "exhausted"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ConnectFailed:
    """No connection; `detail` is a short printable text such as `connection refused`."""

    kind: ConnectFailure
    detail: str

    @property
    def is_ours(self) -> bool:
        """Nothing is known about the host."""
        return self.kind in (ConnectFailure.LOCAL, ConnectFailure.EXHAUSTED)

    @property
    def is_exhaustion(self) -> bool:
        """This host has no room for a connection just now."""
        return self.kind is ConnectFailure.EXHAUSTED


_KINDS: Final = {
    errno.ECONNREFUSED: ConnectFailure.REFUSED,
    errno.ECONNRESET: ConnectFailure.REFUSED,
    errno.ETIMEDOUT: ConnectFailure.TIMEOUT,
    errno.EHOSTUNREACH: ConnectFailure.UNREACHABLE,
    errno.ENETUNREACH: ConnectFailure.UNREACHABLE,
    errno.ENETDOWN: ConnectFailure.UNREACHABLE,
    errno.EHOSTDOWN: ConnectFailure.UNREACHABLE,
    errno.EADDRNOTAVAIL: ConnectFailure.LOCAL,
    errno.EADDRINUSE: ConnectFailure.LOCAL,
    errno.EAFNOSUPPORT: ConnectFailure.LOCAL,
    errno.EACCES: ConnectFailure.LOCAL,
    errno.EPERM: ConnectFailure.LOCAL,
    errno.EMFILE: ConnectFailure.EXHAUSTED,
    errno.ENFILE: ConnectFailure.EXHAUSTED,
    errno.ENOBUFS: ConnectFailure.EXHAUSTED,
    errno.ENOMEM: ConnectFailure.EXHAUSTED,
    errno.ENOENT: ConnectFailure.REFUSED,  # a Unix socket that is not there: nobody listens
    errno.EAGAIN: ConnectFailure.REFUSED,  # a Unix socket whose queue is full
}


async def connect(
    address: IpAddress,
    port: int,
    *,
    source: IpAddress | None = None,
    timeout: float = CONNECT_SECONDS,
    clock: Clock,
) -> Wire | ConnectFailed:
    """One TCP connection within `timeout` seconds, from `source` if given.  Failure is a value, not an
    exception.
    """
    address = unmapped(address)
    if source is not None and source.version != address.version:
        return ConnectFailed(ConnectFailure.LOCAL, f"no IPv{address.version} source address is configured")
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        return _failed(error)
    if source is not None:
        with suppress(OSError):  # spares ports: the kernel then chooses one per destination
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        try:
            sock.bind((str(source), 0))
        except OSError as error:
            sock.close()
            return ConnectFailed(ConnectFailure.LOCAL, printable(f"source address {source}: {error.strerror}"))
    return await _establish(sock, (str(address), port), timeout, clock)


async def connect_unix(path: str, *, timeout: float = CONNECT_SECONDS, clock: Clock) -> Wire | ConnectFailed:
    """One connection to the Unix socket at `path`."""
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        return _failed(error)
    return await _establish(sock, path, timeout, clock)


async def _establish(
    sock: socket.socket, target: tuple[str, int] | str, timeout: float, clock: Clock
) -> Wire | ConnectFailed:
    connected = False
    try:
        code = sock.connect_ex(target)
        if code == errno.EINPROGRESS:
            with trio.move_on_after(timeout) as scope:
                await trio.lowlevel.wait_writable(sock)
            if scope.cancelled_caught:
                return ConnectFailed(ConnectFailure.TIMEOUT, f"no answer within {timeout:g} s")
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code != 0:
            return _failed(OSError(code, os.strerror(code)))
        wire = Wire(sock, clock)
        connected = True
        return wire
    except OSError as error:  # a path too long for a Unix socket, a descriptor the peer closed
        return _failed(error)
    finally:
        if not connected:
            sock.close()


def _failed(error: OSError) -> ConnectFailed:
    kind = _KINDS.get(error.errno or 0, ConnectFailure.OTHER)
    return ConnectFailed(kind, printable((error.strerror or str(error)).lower()))
