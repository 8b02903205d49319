"""The registry: ticks, and how a drain ends every session."""

from collections.abc import Iterator

import pytest
import trio

from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Interrupted, Why, Wire
from tests.net.peers import wires
from tests.support.clock import test_clock


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(test_clock())


@pytest.fixture
async def three(sessions: Sessions) -> Iterator[list[Wire]]:
    with wires() as (a, _1), wires() as (b, _2), wires() as (c, _3):
        for wire in (a, b, c):
            sessions.add(wire)
        yield [a, b, c]


async def ends_with(wire: Wire, sessions: Sessions, log: list[Why]) -> None:
    """A session: waits for its client, and ends as it is told."""
    try:
        await wire.receive()
    except Interrupted as interrupted:
        log.append(interrupted.why)
    finally:
        sessions.remove(wire)


async def test_the_tick_interrupts_what_is_overdue_and_nothing_else(
    sessions: Sessions, three: list[Wire], autojump_clock: trio.testing.MockClock
) -> None:
    now = trio.current_time()
    three[0].deadline = now + 5
    three[1].deadline = now + 50
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run)
        await trio.sleep(7)
        nursery.cancel_scope.cancel()
    assert [wire.interrupted for wire in three] == [Why.TIMEOUT, None, None]


async def test_a_new_deadline_after_the_last_words_counts_again(
    sessions: Sessions, three: list[Wire], autojump_clock: trio.testing.MockClock
) -> None:
    wire = three[0]
    wire.deadline = trio.current_time() + 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run)
        with pytest.raises(Interrupted):
            await wire.receive()
        wire.clear_interrupt(10)
        cleared = trio.current_time()
        with pytest.raises(Interrupted):
            await wire.receive()
        assert 10 <= trio.current_time() - cleared <= 11.1
        nursery.cancel_scope.cancel()


async def test_drain_ends_idle_sessions_now_busy_ones_when_idle_and_the_rest_with_cut(
    sessions: Sessions, three: list[Wire], autojump_clock: trio.testing.MockClock
) -> None:
    idle, busy, stuck = three
    idle.idle = True
    logs: list[list[Why]] = [[], [], []]
    began = trio.current_time()
    ended: list[float] = []

    async def session(wire: Wire, log: list[Why]) -> None:
        await ends_with(wire, sessions, log)
        ended.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for wire, log in zip(three, logs, strict=True):
            nursery.start_soon(session, wire, log)
        await trio.testing.wait_all_tasks_blocked()
        assert not sessions.draining

        async def transaction_ends() -> None:
            await trio.sleep(3)
            assert busy.interrupted is None
            assert sessions.draining
            busy.idle = True

        nursery.start_soon(transaction_ends)
        assert await sessions.drain(30) == 1
    assert logs == [[Why.SHUTDOWN], [Why.SHUTDOWN], [Why.CUT]]
    assert ended[0] == 0
    assert ended[1] == pytest.approx(3, abs=0.3)
    assert ended[2] == 30
    assert len(sessions) == 0
    assert stuck not in sessions._wires


async def test_drain_returns_as_soon_as_nobody_is_left(
    sessions: Sessions, three: list[Wire], autojump_clock: trio.testing.MockClock
) -> None:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for wire in three:
            wire.idle = True
            nursery.start_soon(ends_with, wire, sessions, [])
        await trio.testing.wait_all_tasks_blocked()
        assert await sessions.drain(30) == 0
    assert trio.current_time() - began < 1
    assert await Sessions(test_clock()).drain(30) == 0


async def test_a_second_drain_overtakes_the_first(
    sessions: Sessions, three: list[Wire], autojump_clock: trio.testing.MockClock
) -> None:
    log: list[Why] = []
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for wire in three:
            nursery.start_soon(ends_with, wire, sessions, log)
        nursery.start_soon(sessions.drain, 600)
        await trio.testing.wait_all_tasks_blocked()
        assert await sessions.drain(0) == 3
    assert log == [Why.CUT] * 3
    assert trio.current_time() - began < 1


async def test_removing_twice_does_nothing(sessions: Sessions, three: list[Wire]) -> None:
    sessions.remove(three[0])
    sessions.remove(three[0])
    assert len(sessions) == 2
    assert repr(sessions) == "<Sessions 2>"
