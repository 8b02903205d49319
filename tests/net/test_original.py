"""What the kernel says of redirected connections.  With real netfilter: tests/interop/test_intercept.py."""

import errno
import socket
from ipaddress import ip_address

import pytest

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.original import redirected_from, transparently_from
from smtpguard.net.wire import Wire


class Redirected(Wire):
    """A wire on which netfilter speaks."""

    def __init__(self, sock: socket.socket, answer: bytes | OSError | None) -> None:
        super().__init__(sock, SYSTEM_CLOCK)
        self.answer = answer
        self.asked: list[tuple[int, int, int]] = []

    def socket_option(self, level: int, option: int, octets: int) -> bytes:
        self.asked.append((level, option, octets))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer if self.answer is not None else super().socket_option(level, option, octets)


def accepted(family: int, answer: bytes | OSError | None) -> Redirected:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as server:
        socket.create_connection(server.getsockname()[:2]).close()
        return Redirected(server.accept()[0], answer)


@pytest.mark.parametrize(
    ("family", "answer", "asked", "expected"),
    [
        # struct sockaddr_in of linux/in.h, sockaddr_in6 of linux/in6.h
        (
            socket.AF_INET,
            bytes.fromhex("0200 0019 cb007105 0000000000000000"),
            (0, 80, 16),
            Endpoint(ip_address("203.0.113.5"), 25),
        ),
        (
            socket.AF_INET6,
            bytes.fromhex("0a00 0019 00000000 20010db8000000000000000000000005 00000000"),
            (41, 80, 28),
            Endpoint(ip_address("2001:db8::5"), 25),
        ),
        (socket.AF_INET, OSError(errno.ENOENT, "no entry"), (0, 80, 16), None),
        (socket.AF_INET6, OSError(errno.ENOPROTOOPT, "no table"), (41, 80, 28), None),
    ],
    ids=["IPv4", "IPv6", "not tracked", "no table"],
)
async def test_redirected_from(
    family: int, answer: bytes | OSError, asked: tuple[int, int, int], expected: Endpoint | None
) -> None:
    """MX-17: SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST."""
    wire = accepted(family, answer)
    assert redirected_from(wire) == expected
    assert wire.asked == [asked]
    wire.close()


async def test_a_tracked_connection_to_the_listener_itself() -> None:
    """MX-17: the kernel answers with the listener's own address."""
    wire = accepted(socket.AF_INET, b"")
    assert wire.local.address is not None
    wire.answer = b"\2\0" + wire.local.port.to_bytes(2, "big") + wire.local.address.packed + bytes(8)
    assert redirected_from(wire) is None
    wire.close()


async def test_an_untouched_connection_of_this_machine() -> None:
    """MX-17: asked of the real kernel, with and without connection tracking."""
    wire = accepted(socket.AF_INET, None)
    assert redirected_from(wire) is None
    assert transparently_from(wire) == wire.local
    wire.close()


async def test_unix_sockets_are_no_part_of_this() -> None:
    one, other = socket.socketpair()
    with other:
        wire = Wire(one, SYSTEM_CLOCK)
        assert redirected_from(wire) is transparently_from(wire) is None
        wire.close()
