"""What time is it, and what is this session called?

Everything that needs the time gets a `Clock`; nothing reads one by itself (ruff bans the others).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import trio


@dataclass(frozen=True, slots=True)
class Clock:
    """`now()` is aware UTC, for certificates, policies and logs; `monotonic()` is seconds, for deadlines, and is
    Trio's own clock, so that a test's MockClock moves both alike."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]


def _now() -> datetime:
    return datetime.now(UTC)


SYSTEM_CLOCK = Clock(now=_now, monotonic=trio.current_time)


_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


class Ids:
    """Names sessions: start, worker and counter in base32, unique over restarts a second apart.

    A decision is `<session>.<n>`; the session numbers its own.
    """

    __slots__ = ("_counter", "_prefix")

    def __init__(self, started: datetime, worker: int = 0) -> None:
        self._prefix = _base32(int(started.timestamp()) & 0x3FFFFFFF, 6) + _base32(worker, 1)
        self._counter = 0

    def session(self) -> str:
        """The next session id, such as `3f9q2a01c`."""
        self._counter += 1
        return self._prefix + _base32(self._counter, 1)


def _base32(value: int, width: int) -> str:
    text = ""
    while value or len(text) < width:
        value, digit = divmod(value, 32)
        text = _DIGITS[digit] + text
    return text
