"""Whom not to try again yet, and who was where of late?  (DESIGN §6: host memory; §3: interception)

Pure counters: no waiting, no clock; `now` is seconds of the monotonic clock.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from smtpguard.names import Domain, IpAddress

K = TypeVar("K", bound=Hashable)

FIRST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 600.0
ADDRESS_MEMORY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class _Failure:
    until: float
    pause: float


class FailureMemory(Generic[K]):
    """Addresses that failed a moment ago: skipped for 60 s, after each further failure twice as long, up to
    10 min.

    Failures that arrive during a pause (from connections begun before it) do not lengthen it.  A key that
    has behaved for LONGEST_PAUSE_SECONDS after its pause begins anew.  At most `capacity` keys; the one that
    failed longest ago is forgotten first, which only means that it is tried.
    """

    __slots__ = ("_capacity", "_failures")

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._failures: OrderedDict[K, _Failure] = OrderedDict()

    def failed(self, key: K, now: float) -> float:
        """Remember a failure; gives the seconds for which `key` is skipped from `now` on."""
        known = self._failures.get(key)
        if known is not None and now < known.until:
            return known.until - now
        pause = FIRST_PAUSE_SECONDS
        if known is not None and now < known.until + LONGEST_PAUSE_SECONDS:
            pause = min(known.pause * 2, LONGEST_PAUSE_SECONDS)
        self._failures[key] = _Failure(now + pause, pause)
        self._failures.move_to_end(key)
        if len(self._failures) > self._capacity:
            self._failures.popitem(last=False)
        return pause

    def succeeded(self, key: K) -> None:
        """Forget: the address works."""
        self._failures.pop(key, None)

    def is_remembered(self, key: K, now: float) -> bool:
        """Is `key` still to be skipped?"""
        return self.seconds_left(key, now) > 0

    def seconds_left(self, key: K, now: float) -> float:
        """For how long `key` is still to be skipped; 0 means it may be tried."""
        known = self._failures.get(key)
        return max(0.0, known.until - now) if known is not None else 0.0

    def __len__(self) -> int:
        return len(self._failures)


class AddressMemory:
    """At which addresses our own look-ups saw a host within the last day.

    An MTA may connect to an address that DNS no longer gives: its own cache is older, or the host has many addresses of
    which each answer holds some.  At most `capacity` pairs; the one seen longest ago is forgotten first.
    """

    __slots__ = ("_capacity", "_seconds", "_seen")

    def __init__(self, seconds: float = ADDRESS_MEMORY_SECONDS, capacity: int = 20_000) -> None:
        self._seconds = seconds
        self._capacity = capacity
        self._seen: OrderedDict[tuple[Domain, IpAddress], float] = OrderedDict()

    def saw(self, host: Domain, addresses: Iterable[IpAddress], now: float) -> None:
        """A look-up gave these addresses of `host`."""
        for address in addresses:
            self._seen[host, address] = now
            self._seen.move_to_end((host, address))
        while len(self._seen) > self._capacity:
            self._seen.popitem(last=False)

    def had(self, host: Domain, address: IpAddress, now: float) -> bool:
        """Did `host` have this address within the last day?"""
        seen = self._seen.get((host, address))
        return seen is not None and now - seen <= self._seconds

    def __len__(self) -> int:
        return len(self._seen)
