"""A Clock for tests: Trio's time, which `autojump_clock` moves, on a calendar that begins on a fixed day."""

from datetime import UTC, datetime, timedelta

import trio

from smtpguard.clock import Clock

START = datetime(2026, 11, 2, 10, 0, tzinfo=UTC)


def test_clock(start: datetime = START) -> Clock:  # noqa: PT028  -- not a test
    """`monotonic()` is trio.current_time(); `now()` begins at `start` with the call, and moves with it."""
    first: list[float] = []

    def now() -> datetime:
        current = trio.current_time()
        if not first:
            first.append(current)
        return start + timedelta(seconds=current - first[0])

    return Clock(now=now, monotonic=trio.current_time)


test_clock.__test__ = False  # type: ignore[attr-defined]  # pytest collects by name
