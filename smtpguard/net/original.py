"""Where was this connection going before it was redirected to us?  (netfilter: nft(8), iptables-extensions(8), ip(7))

REDIRECT rewrites the destination, and the kernel remembers the old one (SO_ORIGINAL_DST); TPROXY rewrites nothing, and
the accepted socket's own address is the destination.  Each has its function.
"""

import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from smtpguard.names import unmapped
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.wire import Wire

_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h SO_ORIGINAL_DST, netfilter_ipv6/ip6_tables.h IP6T_SO_ORIGINAL_DST
_IPV4: Final = struct.Struct("!2xH4s8x")  # struct sockaddr_in: family, port, address, padding
_IPV6: Final = struct.Struct("!2xH4x16s4x")  # struct sockaddr_in6: family, port, flow, address, scope

Original = Callable[[Wire], Endpoint | None]
"""Tells the original destination of an accepted connection; None: it was not redirected."""


def redirected_from(wire: Wire) -> Endpoint | None:
    """What nftables' `redirect` or iptables' REDIRECT changed.  None for a connection to the listener itself, also
    where the kernel tracks no connections."""
    if wire.local.address is None:
        return None
    try:
        if wire.local.address.version == 4:
            original = _ipv4(wire.socket_option(socket.IPPROTO_IP, _ORIGINAL_DST, _IPV4.size))
        else:
            original = _ipv6(wire.socket_option(socket.IPPROTO_IPV6, _ORIGINAL_DST, _IPV6.size))
    except OSError:  # ENOENT, ENOPROTOOPT: there is no entry, or no table that could hold one
        return None
    return None if original == wire.local else original


def transparently_from(wire: Wire) -> Endpoint | None:
    """What `tproxy` or TPROXY led to a socket with IP_TRANSPARENT.  A connection to the listener itself looks alike:
    the caller compares with its own listeners."""
    return wire.local if wire.local.address is not None else None


def _ipv4(octets: bytes) -> Endpoint:
    port, address = _IPV4.unpack(octets)
    return Endpoint(IPv4Address(address), port)


def _ipv6(octets: bytes) -> Endpoint:
    port, address = _IPV6.unpack(octets)
    return Endpoint(unmapped(IPv6Address(address)), port)
