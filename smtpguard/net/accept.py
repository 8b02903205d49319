"""How does a connection become a session, and what ends it?  (accept(2), RFC 5321 §3.8)

Accepting never fails for good: without a free descriptor or session slot it pauses, so that the MTA waits in the
kernel's queue instead of being turned away.  A connection is registered in the step in which it is accepted: a drain
that begins before its task first runs must not miss it.
"""

import errno
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from smtpguard.clock import Clock
from smtpguard.events import AcceptPaused, Emit, InternalError
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Endpoint, Interrupted, Wire, WireLost
from smtpguard.reasons import printable

PAUSE_SECONDS: Final = 0.1
_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UNUSABLE: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})


async def serve(
    listener: socket.socket,
    session: Callable[[Wire], Awaitable[object]],
    *,
    name: str,
    slots: trio.Semaphore,
    sessions: Sessions,
    nursery: trio.Nursery,
    clock: Clock,
    emit: Emit,
    farewell: bytes = b"",
) -> None:
    """Accept until cancelled; each connection becomes a task of `nursery`, so that sessions outlive the
    accepting.

    `slots` is the number of sessions, shared by listeners if so wished; while none is free, accepting
    pauses. A session gets its Wire and need not close it.  `farewell` is written, if it can be, when a
    session dies of a bug; never in clear to a peer that awaits TLS.
    """
    paused = False

    def pause(detail: str) -> None:
        nonlocal paused
        if not paused:  # one event per pause, not ten a second
            emit(AcceptPaused(listener=name, detail=detail))
        paused = True

    while True:
        await trio.lowlevel.wait_readable(listener)
        if slots.value == 0:
            pause("the maximum of sessions is reached")
        await slots.acquire()
        try:
            wire = _accept(listener, clock)
        except OSError as error:
            slots.release()
            if error.errno in _NO_RESOURCES:
                pause(printable(error.strerror or "no descriptor is free"))
                await trio.sleep(PAUSE_SECONDS)
            elif error.errno in _UNUSABLE:
                raise
            continue  # EAGAIN, ECONNABORTED and the network errors of accept(2) belong to one connection
        if slots.value > 0:
            paused = False
        sessions.add(wire)
        nursery.start_soon(_run_session, wire, session, name, slots, sessions, emit, farewell)


def _accept(listener: socket.socket, clock: Clock) -> Wire:
    sock, peer = listener.accept()
    try:
        return Wire(sock, clock, peer=Endpoint.of(sock.family, peer))
    except OSError as error:  # reset before we could set an option
        sock.close()
        raise ConnectionAbortedError(errno.ECONNABORTED, "reset at once") from error


async def _run_session(
    wire: Wire,
    session: Callable[[Wire], Awaitable[object]],
    name: str,
    slots: trio.Semaphore,
    sessions: Sessions,
    emit: Emit,
    farewell: bytes,
) -> None:
    """The boundary of a session: whatever goes wrong inside ends this session and no other."""
    try:
        await session(wire)
    except (Interrupted, WireLost):
        pass  # an end like any other
    except Exception as error:  # noqa: BLE001  -- the session boundary (DESIGN §7)
        if not _is_end(error):
            emit(InternalError.of(f"session of {name}", error, wire.session or str(wire.peer)))
            if farewell and wire.may_speak:
                with suppress(WireLost):
                    wire.send_nowait(farewell)
                    await wire.linger()  # or what it still sends makes the kernel take the farewell back
    finally:
        wire.close()
        sessions.remove(wire)
        slots.release()


def _is_end(error: Exception) -> bool:
    """A session with a nursery inside wraps the ends in groups."""
    return isinstance(error, ExceptionGroup) and error.split((Interrupted, WireLost))[1] is None
