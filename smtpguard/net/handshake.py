"""How does a TLS handshake go on over a socket, what may it cost, and what does its first flight say?

RFC 8446 §4, RFC 3207 §4.1.  OpenSSL works on the descriptor itself: it sends the alert of a failure before it tells us,
and nothing that came before the handshake is read into it unseen.  This module only steps; `net.wire` waits.
"""

import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from OpenSSL import SSL

from smtpguard.names import Domain
from smtpguard.net.ends import HandshakeFailed, Wait
from smtpguard.tls.outcome import StartTls, TlsOutcome, handshake_failed

HANDSHAKE_OCTETS: Final = 128 * 1024
"""What a peer may send before its handshake is done: OpenSSL's 100 KiB of certificates, and the rest."""
CLIENT_HELLO_OCTETS: Final = 16384


class Handshake:
    """One handshake over `sock`; `step` until it is done."""

    __slots__ = ("_octets", "_sock", "tls")

    def __init__(self, context: SSL.Context, sock: socket.socket, *, server_side: bool, sni: Domain | None) -> None:
        self._sock = sock
        self._octets = 0
        self.tls = SSL.Connection(context, sock)
        if server_side:
            self.tls.set_accept_state()
        else:
            self.tls.set_connect_state()
            if sni is not None:
                self.tls.set_tlsext_host_name(sni.encode("ascii"))

    def step(self) -> Wait | None:
        """Go on as far as the socket allows; what to wait for, or None when it is done.  Raises HandshakeFailed."""
        # OpenSSL does not count; WantRead means that it took everything, so what was there before is what it took.
        self._octets += unread(self._sock)
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            if self._octets > HANDSHAKE_OCTETS:
                raise HandshakeFailed(_too_long()) from None
            return Wait.READABLE
        except SSL.WantWriteError:
            return Wait.WRITABLE
        except SSL.Error as error:
            raise HandshakeFailed(handshake_failed(error)) from error
        return None


def timed_out() -> HandshakeFailed:
    """The handshake was not done in its time."""
    return HandshakeFailed(handshake_failed(TimeoutError()))


def _too_long() -> TlsOutcome:
    return TlsOutcome(
        StartTls.FAILED,
        detail=f"more than {HANDSHAKE_OCTETS} octets and the handshake is not done",
        failure_code="handshake-too-long",
    )


def unread(sock: socket.socket) -> int:
    """Octets that have arrived on `sock` and were not read."""
    try:
        (octets,) = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))
    except OSError:  # closed or reset: the next read says so
        return 0
    return int(octets)


async def peek(
    sock: socket.socket, wait: Callable[[Wait], Awaitable[None]], needs: Callable[[bytes], bool], limit: int
) -> bytes:
    """The first octets that have arrived, left unread; more are waited for while `needs` says so, up to `limit`.

    What comes back may still need more: at the peer's end, or where the kernel cannot wait for more (a Unix
    socket).  Never polls: SO_RCVLOWAT lets the kernel wake us only for an octet we have not seen.
    """
    seen = b""
    try:
        while True:
            try:
                octets = sock.recv(limit, socket.MSG_PEEK)
            except BlockingIOError:
                await wait(Wait.READABLE)
                continue
            if len(octets) <= len(seen) or len(octets) >= limit or not needs(octets):
                return octets
            seen = octets
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(octets) + 1)
            await wait(Wait.READABLE)
    finally:
        if seen:
            with suppress(OSError):  # closed meanwhile
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # or OpenSSL would wait for more
