"""The harness itself: it hits the wait it should, and sees what is left open."""

import socket

import pytest
import trio

from smtpguard.net.wire import Interrupted, Why, Wire, WireLost
from tests.net.peers import tcp_pair, wires
from tests.support.clock import START, test_clock
from tests.support.waits import Fault, NthWait, at_every_wait


async def three_waits() -> None:
    with wires() as (client, server):
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.send, b"a")
                await client.receive()
                client._wait_first = True


@pytest.mark.parametrize("fault", [Fault.CANCEL, Fault.INTERRUPT])
async def test_it_hits_every_wait_once(fault: Fault) -> None:
    assert await at_every_wait(three_waits, fault, allowed=(Interrupted, WireLost)) in (2, 3)


async def test_an_exception_that_is_not_allowed_says_at_which_wait() -> None:
    with pytest.RaisesGroup(Interrupted) as caught:
        await at_every_wait(three_waits, Fault.INTERRUPT)
    assert caught.value.__notes__[0].startswith("interrupt at wait 1 (<Wire 127.0.0.1:")


async def test_a_descriptor_left_open_fails() -> None:
    kept: list[socket.socket] = []

    async def leaky() -> None:
        kept.extend(tcp_pair())

    with pytest.raises(AssertionError, match="left open"):
        await at_every_wait(leaky, Fault.CANCEL)
    for sock in kept:
        sock.close()


async def test_only_the_wires_that_concern_are_counted() -> None:
    with wires() as (client, server):
        harness = NthWait(Fault.INTERRUPT_CUT, 1, lambda wire: wire is server)
        with harness.installed():
            with trio.move_on_after(0):
                await client.receive()
            assert harness.count == 0
            with pytest.raises(Interrupted) as caught:
                await server.receive()
        assert caught.value.why is Why.CUT
        assert harness.wire is server
        assert Wire._wait.__qualname__ == "Wire._wait"


async def test_the_test_clock_moves_with_trio(autojump_clock: trio.testing.MockClock) -> None:
    clock = test_clock()
    assert clock.now() == START
    began = clock.monotonic()
    await trio.sleep(90)
    assert (clock.now() - START).total_seconds() == pytest.approx(90)
    assert clock.monotonic() - began == pytest.approx(90)
