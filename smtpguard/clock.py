"""What time is it, and what is this session called?

Everything that needs the time gets a `Clock`; nothing reads one by itself (ruff bans the others).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import randbits

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


_START_BITS = 30  # seconds: 34 years
_NONCE_BITS = 15


class Ids:
    """Names sessions: start, worker, nonce and counter in base32, unique over restarts and replicas.

    `nonce` (15 bits, random unless given) keeps two processes apart that start in one second: pids do not, every
    container has its own 7.  `worker` is 0 to 31.  A decision is `<session>.<n>`; the session numbers its own.
    """

    __slots__ = ("_counter", "_prefix")

    def __init__(self, started: datetime, worker: int = 0, nonce: int | None = None) -> None:
        if not 0 <= worker < 32:
            raise ValueError(f"a worker is one base32 digit: {worker}")
        nonce = randbits(_NONCE_BITS) if nonce is None else nonce % (1 << _NONCE_BITS)
        start = int(started.timestamp()) % (1 << _START_BITS)
        self._prefix = _base32(start, _START_BITS // 5) + _base32(worker, 1) + _base32(nonce, _NONCE_BITS // 5)
        self._counter = 0

    def session(self) -> str:
        """The next session id, such as `3f9q2a07kd1c`."""
        self._counter += 1
        return self._prefix + _base32(self._counter, 1)


def _base32(value: int, width: int) -> str:
    text = ""
    while value or len(text) < width:
        value, digit = divmod(value, 32)
        text = _DIGITS[digit] + text
    return text
