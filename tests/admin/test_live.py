"""admin.live: the queue of one subscriber, and a feed that no event and no subscriber can end."""

import pytest
import trio

from smtpguard.admin import live
from smtpguard.admin.live import Feed, Filter, Subscription, parse_filter
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import Event, Lifecycle


async def test_a_full_queue_takes_no_more() -> None:
    """By number or by octets; once a line was missed none comes after it, for a gap in the middle would not show."""
    for line, fits in ((b"x\n", 1000), (b"x" * (256 * 1024), 4)):
        subscription = Subscription(Filter())
        for _ in range(fits + 2):
            subscription.offer(line)
        assert subscription.missed == 2
        first = await subscription.take()
        subscription.offer(line)
        assert subscription.missed == 3
        taken = [first]
        while octets := await subscription.take():
            taken.append(octets)
        assert b"".join(taken) == line * fits


async def test_a_message_is_bounded() -> None:
    """As many lines as fit; one that is longer than a message goes alone."""
    subscription = Subscription(Filter())
    lines = [b"a" * 40_000, b"b" * 20_000, b"c" * 20_000, b"d" * 100_000, b"e"]
    for line in lines:
        subscription.offer(line)
    taken = [await subscription.take() for _ in range(4)]
    assert [len(octets) for octets in taken] == [60_000, 20_000, 100_000, 1]
    assert b"".join(taken) == b"".join(lines)


async def test_room_that_was_made_is_used() -> None:
    """Octets that were taken count no longer."""
    subscription = Subscription(Filter())
    for _ in range(20):
        subscription.offer(b"x" * 200_000)
        await subscription.take()
    assert subscription.missed == 0


async def test_a_wait_that_is_cancelled_loses_nothing() -> None:
    subscription = Subscription(Filter())
    with trio.move_on_after(0):
        await subscription.take()
    subscription.offer(b"x\n")
    assert await subscription.take() == b"x\n"


async def test_a_bug_ends_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that cannot be rendered is counted, and the next one comes."""
    feed = Feed(SYSTEM_CLOCK)
    with feed.subscribe(Filter()) as subscription:
        monkeypatch.setattr(live, "json_record", lambda at, event: 1 / 0)
        feed.emit(Lifecycle(stage="ready"))
        assert feed.failures == 1
        monkeypatch.undo()
        feed.emit(Lifecycle(stage="ready"))
        assert b'"stage":"ready"' in await subscription.take()


async def test_the_memory_is_bounded_and_holds_no_debug() -> None:
    class Quiet(Event):
        severity = "debug"

    feed = Feed(SYSTEM_CLOCK)
    for number in range(live.MAX_RECENT + 10):
        feed.emit(Lifecycle(stage=str(number)))
        feed.emit(Quiet())
    with feed.subscribe(Filter(level="debug"), live.MAX_RECENT) as subscription:
        lines = (await subscription.take()).splitlines()
    assert len(lines) == live.MAX_RECENT
    assert b'"stage":"10"' in lines[0]


@pytest.mark.parametrize(
    ("pattern", "domain", "passes"),
    [
        ("a.example", "a.example", True),
        ("A.example.", "a.example", True),
        ("a.example", "b.a.example", False),
        (".a.example", "b.a.example", True),
        (".a.example", "a.example", False),
        (".a.example", "ba.example", False),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("*", "a.example", True),
    ],
)
def test_domains(pattern: str, domain: str, passes: bool) -> None:
    """As in `[[policy]]`."""
    wanted, recent = parse_filter({"domain": [pattern]})
    assert recent == 0
    assert wanted._names(domain) == passes
