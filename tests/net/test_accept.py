"""The accept loop, and the boundary of a session."""

import errno
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest
import trio

from smtpguard.events import AcceptPaused, Event, InternalError
from smtpguard.net.accept import serve
from smtpguard.net.listen import Bind, open_listeners
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Interrupted, Why, Wire, WireLost
from tests.support.clock import test_clock

ANY_PORT = Bind(ip_address("127.0.0.1"), 0)


class Served:
    """A running `serve` and what it emitted."""

    def __init__(self, address: tuple[str, int], slots: trio.Semaphore) -> None:
        self.address = address
        self.slots = slots
        self.sessions = Sessions(test_clock())
        self.events: list[Event] = []

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)


@asynccontextmanager
async def served(
    session: Callable[[Wire], Awaitable[object]], *, most: int = 10, farewell: bytes = b""
) -> AsyncIterator[Served]:
    (listener,) = open_listeners([ANY_PORT])
    run = Served(listener.getsockname(), trio.Semaphore(most))
    async with trio.open_nursery() as nursery:

        async def accepting() -> None:
            await serve(
                listener,
                session,
                name="outbound",
                slots=run.slots,
                sessions=run.sessions,
                nursery=nursery,
                clock=test_clock(),
                emit=run.events.append,
                farewell=farewell,
            )

        nursery.start_soon(accepting)
        yield run
        nursery.cancel_scope.cancel()
    listener.close()


async def echo(wire: Wire) -> None:
    while octets := await wire.receive():
        await wire.send(octets)


async def test_each_connection_is_a_session_that_need_not_close() -> None:
    async with served(echo) as run:
        async with await run.dial() as a, await run.dial() as b:
            await a.send_all(b"a")
            await b.send_all(b"b")
            assert await a.receive_some() + await b.receive_some() == b"ab"
            assert len(run.sessions) == 2
            assert run.slots.value == 8
            await a.send_eof()
            assert await a.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert run.slots.value == 10
        assert len(run.sessions) == 0
        assert run.events == []


async def test_a_bug_ends_its_session_with_a_farewell_and_no_other() -> None:
    async def buggy(wire: Wire) -> None:
        if await wire.receive() == b"bug":
            raise KeyError("what\r\never")
        await wire.send(b"fine")

    async with served(buggy, farewell=b"421 4.3.0 internal error\r\n") as run:
        async with await run.dial() as good, await run.dial() as bad:
            await bad.send_all(b"bug")
            assert await bad.receive_some() == b"421 4.3.0 internal error\r\n"
            assert await bad.receive_some() == b""
            await good.send_all(b"ok")
            assert await good.receive_some() == b"fine"
        (event,) = run.events
        assert isinstance(event, InternalError)
        assert event.where == "session of outbound"
        assert event.session.startswith("127.0.0.1:")
        assert event.error.startswith("KeyError: 'what")
        assert " at test_accept.py:" in event.error


async def test_a_session_cut_off_is_no_bug() -> None:
    async def lost(wire: Wire) -> None:
        await wire.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.receive)
            nursery.cancel_scope.cancel()
        raise ExceptionGroup("walks", [WireLost("gone")])

    async with served(lost) as run:
        async with await run.dial() as client:
            await client.send_all(b"a")
            assert await client.receive_some() == b""
        assert run.events == []


async def test_without_a_free_slot_accepting_pauses_and_says_so_once() -> None:
    async with served(echo, most=1) as run:
        first = await run.dial()
        async with first:
            await first.send_all(b"a")
            await first.receive_some()
            async with await run.dial() as second, await run.dial() as third:
                await second.send_all(b"b")
                await trio.testing.wait_all_tasks_blocked()
                assert len(run.sessions) == 1  # the others wait in the kernel's queue
                await first.aclose()
                assert await second.receive_some() == b"b"
                await second.aclose()
                await third.send_all(b"c")
                assert await third.receive_some() == b"c"
        assert run.events == [AcceptPaused(listener="outbound", detail="the maximum of sessions is reached")]


async def test_without_descriptors_accepting_pauses_100_ms(autojump_clock: trio.testing.MockClock) -> None:
    async with served(echo) as run:
        first = await run.dial()
        async with first:
            await first.send_all(b"a")
            await first.receive_some()
            second = socket.socket()
            second.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                second.connect_ex(run.address)
                began = trio.current_time()
                await trio.sleep(1)
                assert trio.current_time() - began == 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert run.events == [AcceptPaused(listener="outbound", detail=os.strerror(errno.EMFILE))]
            assert run.slots.value == 9
            await trio.sleep(0.2)
            assert len(run.sessions) == 2  # it goes on by itself
            second.close()


async def test_sessions_outlive_the_accepting() -> None:
    (listener,) = open_listeners([ANY_PORT])
    sessions = Sessions(test_clock())
    async with trio.open_nursery() as outer:
        scope = trio.CancelScope()

        async def accepting() -> None:
            with scope:
                await serve(
                    listener,
                    echo,
                    name="x",
                    slots=trio.Semaphore(5),
                    sessions=sessions,
                    nursery=outer,
                    clock=test_clock(),
                    emit=lambda event: None,
                )

        outer.start_soon(accepting)
        async with await trio.open_tcp_stream(*listener.getsockname()) as client:
            await client.send_all(b"a")
            assert await client.receive_some() == b"a"
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"b")
            assert await client.receive_some() == b"b"
    listener.close()


async def test_a_listener_that_is_gone_is_an_error() -> None:
    """Not a busy loop: somebody ended what we listen on."""
    (listener,) = open_listeners([ANY_PORT])
    async with trio.open_nursery() as nursery:
        listener.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="Invalid argument"):
            await serve(
                listener,
                echo,
                name="x",
                slots=trio.Semaphore(5),
                sessions=Sessions(test_clock()),
                nursery=nursery,
                clock=test_clock(),
                emit=lambda event: None,
            )
    listener.close()


async def test_a_bugs_farewell_is_read_although_more_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT-27, DESIGN §7: 421 4.3.0; without lingering the kernel would reset, and the MTA lose the reply."""

    async def buggy(wire: Wire) -> None:
        await wire.receive(1)
        raise KeyError("what")

    async with served(buggy, farewell=b"421 4.3.0 Internal error, closing\r\n") as run, await run.dial() as client:
        await client.send_all(b"MAIL FROM:<>\r\n" * 1000)
        said = b""
        while octets := await client.receive_some():
            said += octets
        assert said == b"421 4.3.0 Internal error, closing\r\n"


class Watching:
    """A nursery that looks at the registry in the moment a session is spawned."""

    def __init__(self, nursery: trio.Nursery, sessions: Sessions) -> None:
        self.nursery = nursery
        self.sessions = sessions
        self.seen: list[int] = []

    def start_soon(self, *args: object) -> None:
        self.seen.append(len(self.sessions))
        self.nursery.start_soon(*args)  # type: ignore[arg-type]


async def test_a_session_is_registered_before_its_task_runs() -> None:
    """A drain between accept and the first step of the session would have missed it."""
    (listener,) = open_listeners([ANY_PORT])
    sessions = Sessions(test_clock())
    async with trio.open_nursery() as nursery:
        watching = Watching(nursery, sessions)

        async def accepting() -> None:
            await serve(
                listener,
                echo,
                name="x",
                slots=trio.Semaphore(5),
                sessions=sessions,
                nursery=watching,  # type: ignore[arg-type]
                clock=test_clock(),
                emit=lambda event: None,
            )

        nursery.start_soon(accepting)
        async with await trio.open_tcp_stream(*listener.getsockname()) as client:
            await client.send_all(b"a")
            await client.receive_some()
        assert watching.seen == [1]
        nursery.cancel_scope.cancel()
    listener.close()


@pytest.mark.parametrize("_", range(20))
async def test_an_accept_in_the_moment_of_a_drain_is_drained(_: int, autojump_clock: object) -> None:
    """The accepting task may run before or after the drain: its session is told either way, never cancelled."""
    (listener,) = open_listeners([ANY_PORT])
    sessions = Sessions(test_clock())
    ends: list[object] = []

    async def session(wire: Wire) -> None:
        wire.idle = True
        try:
            await wire.receive()
        except Interrupted as interrupted:
            ends.append(interrupted.why)
        except trio.Cancelled:
            ends.append("cancelled")
            raise

    async with trio.open_nursery() as nursery:
        accepting = trio.CancelScope()

        async def accept() -> None:
            with accepting:
                await serve(
                    listener,
                    session,
                    name="x",
                    slots=trio.Semaphore(5),
                    sessions=sessions,
                    nursery=nursery,
                    clock=test_clock(),
                    emit=lambda event: None,
                )

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        with socket.socket() as client:
            client.connect(listener.getsockname())
            await trio.lowlevel.checkpoint()  # the accepting task is runnable now, or has run

            async def drain() -> None:
                await sessions.drain(5)
                nursery.cancel_scope.cancel()

            nursery.start_soon(drain)
            accepting.cancel()
            await trio.sleep_forever()
    assert ends in ([Why.SHUTDOWN], [])
    listener.close()
