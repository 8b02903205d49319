"""How do octets go in and out of one connection, in clear and then under TLS?  (RFC 3207 §4, RFC 8446 §6.1)

A `Wire` is one non-blocking socket used by one task: plain at first, then a pyOpenSSL `Connection` on the
same descriptor.  It tries first and waits only where the kernel or OpenSSL says so, always through `_wait`,
the one seam where a test can cancel, interrupt or cut.  It buffers nothing itself: what arrived in clear
cannot be read under TLS.

Time limits cost nothing per wait: `deadline` is looked at by the tick of `net.sessions`, which calls
`interrupt`.  The wait then raises `Interrupted`, and the socket is still good for an owed 421 or 451
(`clear_interrupt`).
"""

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from math import inf
from typing import Final, assert_never

import trio
from OpenSSL import SSL

from smtpguard.clock import Clock
from smtpguard.names import Domain
from smtpguard.net.endpoint import Endpoint as Endpoint  # part of the vocabulary of wires, as are the next ones
from smtpguard.net.ends import HandshakeFailed as HandshakeFailed
from smtpguard.net.ends import Interrupted as Interrupted
from smtpguard.net.ends import Wait as Wait
from smtpguard.net.ends import Why as Why
from smtpguard.net.ends import WireLost as WireLost
from smtpguard.net.ends import lost_by
from smtpguard.net.handshake import CLIENT_HELLO_OCTETS, Handshake, peek, timed_out
from smtpguard.tls.outcome import TlsOutcome, read_outcome

RECEIVE_OCTETS: Final = 65536
"""What one `receive` gives at most unless it is asked for more."""
TURN_OCTETS: Final = 256 * 1024
"""What one wire may move, over several calls, before it lets the other tasks run."""
LINGER_OCTETS: Final = 256 * 1024
LINGER_SECONDS: Final = 2.0
LAST_WORDS_SECONDS: Final = 10.0

_CALL_OCTETS: Final = TURN_OCTETS // 64  # a call counts as at least this: 64 small ones are a turn too
_RECORD_OCTETS: Final = 16384  # RFC 8446 §5.1: OpenSSL hands out one record per call

Octets = bytes | bytearray | memoryview


class _State(Enum):
    OPEN = "open"
    DEAF = "the peer takes nothing more"  # a send failed; what the peer said before may still be read
    BROKEN = "an operation was left unfinished"
    CLOSED = "closed"


class Wire:
    """One connection.  Only its own task calls it, except `interrupt` and `close`, which any task may call.

    A `send` or `start_tls` that was cancelled, interrupted or failed leaves the wire broken: some octets
    are out, and nobody knows which.  Then only `close` (and `linger`) make sense; after a send that
    *failed*, `receive` still gives what the peer had said, often the 421 that explains it.
    """

    __slots__ = (
        "_clock",
        "_failure",
        "_finished",
        "_hangup",
        "_interrupted",
        "_sock",
        "_spent",
        "_state",
        "_tls",
        "_wait_first",
        "deadline",
        "idle",
        "local",
        "peer",
        "session",
        "tls_is_due",
    )

    def __init__(self, sock: socket.socket, clock: Clock, *, peer: Endpoint | None = None) -> None:
        """Takes the connected `sock` over.  `peer`: what accept said; without it the socket is asked."""
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._clock = clock
        self._tls: SSL.Connection | None = None
        self._state = _State.OPEN
        self._interrupted: Why | None = None
        self._failure: WireLost | None = None
        self._finished = False
        self._hangup = select.poll()
        self._wait_first = False
        self._spent = 0
        self.local = Endpoint.asked(sock.family, sock.getsockname)
        self.peer = peer or Endpoint.asked(sock.family, sock.getpeername)
        self.deadline = inf
        """Monotonic seconds after which the tick, up to 1 s late, interrupts with TIMEOUT.

        It holds while this peer is waited for: set it anew, or to inf, before going on to other work.
        """
        self.idle = False
        """Nothing is owed to the peer, between transactions: a drain may interrupt now."""
        self.session = ""
        """The id by which events tell of the session that it serves."""
        self.tls_is_due = False
        """The peer awaits a handshake: until it is done, nothing may be said in clear any more."""

    def __repr__(self) -> str:
        return f"<Wire {self.local} {self.peer} {'tls' if self._tls else 'plain'} {self._state.name.lower()}>"

    @property
    def closed(self) -> bool:
        return self._state is _State.CLOSED

    @property
    def broken(self) -> bool:
        """No octet can be sent any more."""
        return self._state is not _State.OPEN

    @property
    def is_tls(self) -> bool:
        return self._tls is not None

    @property
    def may_speak(self) -> bool:
        """Would the peer take what is said now for what it is?"""
        return self.is_tls or not self.tls_is_due

    @property
    def tls(self) -> SSL.Connection | None:
        """The TLS connection, for those who read facts of it.  None in clear and after close."""
        return self._tls

    def socket_option(self, level: int, option: int, octets: int) -> bytes:
        """getsockopt(2) of the socket below.  Raises OSError."""
        return self._sock.getsockopt(level, option, octets)

    # -- receiving

    async def receive(self, limit: int = RECEIVE_OCTETS) -> bytes:
        """What the peer sent, 1 to `limit` octets, as soon as there is some; b"" is its end, for good.

        A missing close_notify is an end like any other: SMTP has its own ends.  With a large `limit`
        (TURN_OCTETS) everything that has arrived is drained in one call.  Raises Interrupted, WireLost.
        """
        self._may_receive()
        if self._spent >= TURN_OCTETS:
            await self._wait(Wait.TURN)
        if self._wait_first and not (self._tls is not None and self._tls.pending()):
            # After a send the answer is a round trip away: trying first would be a call for nothing.
            self._wait_first = False
            await self._wait(Wait.READABLE)
        while isinstance(got := self._read(limit), Wait):
            await self._wait(got)
        return got

    def receive_nowait(self, limit: int = RECEIVE_OCTETS) -> bytes | None:
        """As `receive`, but None where it would wait.  Raises WireLost."""
        self._may_receive()
        got = self._read(limit)
        return None if isinstance(got, Wait) else got

    def is_alive(self) -> bool:
        """Is an idle connection still good?  One non-blocking receive: only silence is life."""
        if self.broken or self._finished or self._failure is not None:
            return False
        try:
            return isinstance(self._read(1), Wait)
        except WireLost:
            return False

    def _may_receive(self) -> None:
        if self._state is _State.BROKEN or self._state is _State.CLOSED:
            raise WireLost(self._state.value)

    def _read(self, limit: int) -> bytes | Wait:
        """What has arrived, or what to wait for.  An end or failure behind octets waits for the next call."""
        if self._finished:
            return b""
        if self._failure is not None:
            raise self._failure
        got = self._read_plain(limit) if self._tls is None else self._read_tls(self._tls, limit)
        if not isinstance(got, Wait):
            self._spent += max(len(got), _CALL_OCTETS)
        return got

    def _read_plain(self, limit: int) -> bytes | Wait:
        try:
            got = self._sock.recv(limit)
        except BlockingIOError:
            return Wait.READABLE
        except OSError as error:
            self._failure = lost_by(error)
            raise self._failure from error
        self._finished = not got
        return got

    def _read_tls(self, tls: SSL.Connection, limit: int) -> bytes | Wait:
        got: list[bytes] = []
        left = limit
        while left > 0:
            try:
                octets = tls.recv(min(left, _RECORD_OCTETS))
            except (SSL.WantReadError, SSL.WantWriteError) as want:
                if not got:
                    return Wait.READABLE if isinstance(want, SSL.WantReadError) else Wait.WRITABLE
                break
            except SSL.ZeroReturnError:
                self._finished = True
                break
            except SSL.Error as error:
                if isinstance(error, SSL.SysCallError) and error.args[0] == -1:  # end of file without close_notify
                    self._finished = True
                    break
                self._failure = lost_by(error)
                if not got:
                    raise self._failure from error
                break
            got.append(octets)
            left -= len(octets)
            if limit <= RECEIVE_OCTETS and len(octets) < _RECORD_OCTETS and not tls.pending():
                break  # a command or reply: asking once more would be a call for nothing
        return got[0] if len(got) == 1 else b"".join(got)

    # -- sending

    async def send(self, octets: Octets) -> None:
        """Give all `octets` to the kernel, waiting as often as it takes.  Raises Interrupted, WireLost."""
        self._may_send()
        view = memoryview(octets)
        self._state = _State.BROKEN  # until the last octet is out, however this ends
        self._wait_first = True
        if self._spent >= TURN_OCTETS:
            await self._wait(Wait.TURN)
        while view:
            done = self._write(view)
            if isinstance(done, Wait):
                await self._wait(done)
                continue
            view = view[done:]
            if view and self._spent >= TURN_OCTETS:
                await self._wait(Wait.TURN)
        self._state = _State.OPEN

    def send_nowait(self, octets: Octets) -> int:
        """Give as many of `octets` to the kernel as it takes now, and say how many (0: full).

        The next send on this wire must begin with the octets that are left: under TLS a part of them may be
        out in a half-written record.  It does not yield.  Raises WireLost.
        """
        self._may_send()
        view = memoryview(octets)
        self._wait_first = True
        start = len(view)
        while view and not isinstance(done := self._write(view), Wait):
            view = view[done:]
        return start - len(view)

    def _may_send(self) -> None:
        if self._state is not _State.OPEN:
            raise WireLost(self._state.value)

    def _write(self, view: memoryview) -> int | Wait:
        if self._tls is not None and self._hangup.poll(0):
            # A write that fails inside OpenSSL spoils reading too: then nobody would see what the peer said.
            self._state = _State.DEAF
            raise WireLost("connection lost: the peer reset it")
        try:
            done = self._sock.send(view) if self._tls is None else self._tls.send(view)
        except (BlockingIOError, SSL.WantWriteError):
            return Wait.WRITABLE
        except SSL.WantReadError:
            return Wait.READABLE
        except OSError as error:
            self._state = _State.DEAF
            raise lost_by(error) from error
        except SSL.Error as error:
            self._state = _State.DEAF
            raise lost_by(error) from error
        self._spent += max(done, _CALL_OCTETS)
        return done

    # -- TLS

    async def peek(self, needs: Callable[[bytes], bool], limit: int = CLIENT_HELLO_OCTETS) -> bytes:
        """The next octets, such as those of the handshake to come, without reading them: `start_tls` sees them too.

        Waits until `needs(octets)` is false, `limit` is reached or the peer sends no more; b"" is its end.  The
        time limit is the caller's, the same as for the handshake.  Raises Interrupted, WireLost.
        """
        self._may_receive()
        try:
            return await peek(self._sock, self._wait, needs, limit)
        except OSError as error:
            self._failure = lost_by(error)
            raise self._failure from error

    async def start_tls(
        self, context: SSL.Context, *, server_side: bool, sni: Domain | None = None, seconds: float = inf
    ) -> TlsOutcome:
        """Shake hands on this connection; from then on everything goes through TLS.

        The certificate is *not* judged here: the context verifies nothing, tls.pkix and tls.dane do, on the
        outcome's chain.  After `seconds` it fails as a time-out (or the caller sets a scope, or `deadline`).
        Octets that the peer sent in clear behind STARTTLS are taken for a broken handshake, never for commands
        (STLS-07, 09).  OpenSSL has sent the alert of a failure already; `linger` before `close` lets the peer
        read it.  Raises HandshakeFailed, Interrupted, WireLost.
        """
        self._may_send()
        if self._tls is not None:
            raise WireLost("TLS is already active")
        self._state = _State.BROKEN
        handshake = Handshake(context, self._sock, server_side=server_side, sni=sni)
        with trio.move_on_after(seconds) as scope:
            while (wait := handshake.step()) is not None:
                await self._wait(wait)
        if scope.cancelled_caught:
            raise timed_out()
        self._tls = handshake.tls
        self._hangup.register(self._sock, 0)  # error and hang-up only
        self._state = _State.OPEN
        self._wait_first = False
        return read_outcome(handshake.tls)

    # -- waiting and being interrupted

    async def _wait(self, what: Wait) -> None:
        """The only place where a wire waits."""
        if self._interrupted is not None:
            raise Interrupted(self._interrupted)
        self._spent = 0
        try:
            match what:
                case Wait.READABLE:
                    await trio.lowlevel.wait_readable(self._sock)
                case Wait.WRITABLE:
                    await trio.lowlevel.wait_writable(self._sock)
                case Wait.TURN:
                    await trio.lowlevel.checkpoint()
                case _:
                    assert_never(what)
        except trio.ClosedResourceError:  # by notify_closing, below
            if self._state is not _State.CLOSED and self._interrupted is not None:
                raise Interrupted(self._interrupted) from None
            raise WireLost(_State.CLOSED.value) from None
        if self._state is _State.CLOSED:
            raise WireLost(_State.CLOSED.value)

    def interrupt(self, why: Why) -> None:
        """End this wait, or the next one, with Interrupted(why).  The first reason stays, but CUT wins."""
        if self._state is _State.CLOSED:
            return
        if self._interrupted is None or why is Why.CUT:
            self._interrupted = why
        trio.lowlevel.notify_closing(self._sock)

    @property
    def interrupted(self) -> Why | None:
        return self._interrupted

    def clear_interrupt(self, seconds: float = LAST_WORDS_SECONDS) -> None:
        """Make the wire usable for the reply that is owed, with a deadline `seconds` from now.  CUT stays."""
        if self._interrupted is not Why.CUT:
            self._interrupted = None
        self.deadline = self._clock.monotonic() + seconds

    # -- the end

    async def linger(self) -> None:
        """Say that no more comes, and discard what the peer still sends, so that it reads our last words.

        Closing with unread input makes the kernel reset the connection, and the peer loses the refusal
        (RFC 1122 §4.2.2.13).  At most LINGER_OCTETS or LINGER_SECONDS; then only `close` is left.
        Raises nothing but Cancelled.
        """
        if self._state is _State.CLOSED:
            return
        self._say_close_notify()
        self._state = _State.BROKEN
        left = LINGER_OCTETS
        with trio.move_on_after(LINGER_SECONDS):
            try:
                self._sock.shutdown(socket.SHUT_WR)
                while left > 0:
                    try:
                        # Under TLS too: nobody will read it, so it need not be decrypted.
                        octets = self._sock.recv(min(left, RECEIVE_OCTETS))
                    except BlockingIOError:
                        await self._wait(Wait.READABLE)
                        continue
                    if not octets:
                        break
                    left -= len(octets)
            except (OSError, Interrupted, WireLost):
                return

    def close(self) -> None:
        """Close at once, without waiting; whoever waits on this wire gets WireLost.  May be called again."""
        if self._state is _State.CLOSED:
            return
        self._say_close_notify()
        self._state = _State.CLOSED
        trio.lowlevel.notify_closing(self._sock)  # before the descriptor can be another's
        self._tls = None  # it would go on using the number of the descriptor
        self._sock.close()

    def _say_close_notify(self) -> None:
        if self._tls is None or self._state is not _State.OPEN:
            return
        with suppress(SSL.Error):  # the kernel's buffer is full, or the peer is gone: SMTP does not depend on it
            self._tls.shutdown()
