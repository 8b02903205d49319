"""May one more delivery to this destination start now?"""

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from smtpguard.outbound.slots import DestinationSlots

FREE = "<DestinationSlots connections={} walks={}>"


def give_back(slots: DestinationSlots, *keys: str) -> None:
    for key in keys:
        slots.walk_ended(key)
        slots.connection_ended(key)


def test_all_or_nothing() -> None:
    """DESIGN §6: routes of one group ask together."""
    slots = DestinationSlots(1, 1)
    assert slots.try_take(["a"])
    assert not slots.try_take(["b", "a"])
    assert slots.try_take(["b"])
    give_back(slots, "a", "b")
    assert repr(slots) == FREE


def test_walks_and_connections_have_limits_of_their_own() -> None:
    """DESIGN §6: at most 20 connections and 5 walks for each next hop; a walk ends before its connection does."""
    slots = DestinationSlots(3, 2)
    assert slots.try_take(["a"])
    assert slots.try_take(["a"])
    assert not slots.try_take(["a"])
    slots.walk_ended("a")
    assert slots.try_take(["a"])
    slots.walk_ended("a")
    assert not slots.try_take(["a"])  # three connections
    slots.connection_ended("a")
    assert slots.try_take(["a"])


def test_nothing_is_asked_of_nobody() -> None:
    assert DestinationSlots(1, 1).try_take([])


async def test_waiting_ends_with_what_becomes_free(autojump_clock: MockClock) -> None:
    slots = DestinationSlots(1, 1)
    assert slots.try_take(["a"])
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def later() -> None:
            await trio.sleep(3)
            give_back(slots, "a")

        nursery.start_soon(later)
        assert await slots.take(["a", "b"], 5)
    assert trio.current_time() - began == 3
    give_back(slots, "a", "b")
    assert repr(slots) == FREE


async def test_waiting_has_an_end_and_takes_nothing(autojump_clock: MockClock) -> None:
    """DESIGN §6: wait ≤ 5 s."""
    slots = DestinationSlots(1, 1)
    assert slots.try_take(["a"])
    began = trio.current_time()
    assert not await slots.take(["a", "b"], 5)
    assert trio.current_time() - began == 5
    assert not await slots.take(["a", "b"], 0)
    assert slots.try_take(["b"])


async def test_who_is_cancelled_while_waiting_holds_nothing() -> None:
    slots = DestinationSlots(1, 1)
    assert slots.try_take(["a"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.take, ["b", "a"], 60)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    give_back(slots, "a")
    assert repr(slots) == FREE


async def test_groups_that_want_the_same_in_another_order_do_not_block_each_other(autojump_clock: MockClock) -> None:
    """No deadlock: nobody waits while holding."""
    slots = DestinationSlots(1, 1)
    served = 0

    async def group(*keys: str) -> None:
        nonlocal served
        assert await slots.take(keys, 100)
        await trio.sleep(1)
        give_back(slots, *keys)
        served += 1

    async with trio.open_nursery() as nursery:
        for keys in (("a", "b"), ("b", "a"), ("b", "c"), ("c", "a")) * 3:
            nursery.start_soon(group, *keys)
    assert served == 12
    assert repr(slots) == FREE


@given(st.lists(st.lists(st.sampled_from("abc"), unique=True, max_size=3), max_size=30), st.data())
@settings(max_examples=100)
def test_limits_hold_whatever_comes_and_goes(wishes: list[list[str]], data: st.DataObject) -> None:
    """Memory is one number for each key in use; counts return to nothing."""
    slots = DestinationSlots(3, 2)
    held: list[list[str]] = []
    for keys in wishes:
        if slots.try_take(keys):
            held.append(keys)
        for key in "abc":
            assert sum(key in group for group in held) <= 2
        if held and data.draw(st.booleans()):
            give_back(slots, *held.pop(data.draw(st.integers(0, len(held) - 1))))
    for group in held:
        give_back(slots, *group)
    assert repr(slots) == FREE


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_a_free_slot_is_taken_without_waiting(autojump_clock: MockClock, seconds: float) -> None:
    slots = DestinationSlots(1, 1)
    began = trio.current_time()
    assert await slots.take(["a"], seconds)
    assert trio.current_time() == began
