"""May one more connection of this client be served?  Pure counters (DESIGN §6; AF-50, OUT-20, OUT-21).

A client is an IPv4 address or an IPv6 /64: the smallest thing one party is given.  Memory is bounded: rates are kept
for the clients seen last, and forgetting one can only be lenient.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address

from smtpguard.inbound.limits import Limits
from smtpguard.names import IpAddress, unmapped

_CLIENTS = 50_000
_MINUTE = 60.0


class Excess(Enum):
    """Which limit is reached; the value is the word of events and metrics."""

    SESSIONS = "sessions"
    PER_CLIENT = "sessions_per_client"
    RATE = "connection_rate"
    HANDSHAKES = "handshake_failures"


@dataclass(slots=True)
class _Rate:
    """A bucket that holds a minute's worth and fills evenly."""

    level: float
    at: float

    def take(self, capacity: int, now: float) -> bool:
        self.refill(capacity, now)
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True

    def refill(self, capacity: int, now: float) -> None:
        self.level = min(float(capacity), self.level + (now - self.at) * capacity / _MINUTE)
        self.at = now


class Gate:
    """The counters of one listener.  `now` is seconds of the monotonic clock."""

    __slots__ = ("_connections", "_handshakes", "_open", "_total")

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._total = 0
        self._connections: OrderedDict[int, _Rate] = OrderedDict()
        self._handshakes: OrderedDict[int, _Rate] = OrderedDict()

    @property
    def sessions(self) -> int:
        """Sessions that were let in and have not left."""
        return self._total

    def enter(self, client: IpAddress | None, limits: Limits, now: float, *, unlimited: bool = False) -> Excess | None:
        """Let one session in: None, and `leave` is owed once; or the limit it would pass, and nothing is owed.

        `client` None (a unix socket) and `unlimited` know only the limit of all together.
        """
        if self._total >= limits.sessions:
            return Excess.SESSIONS
        if client is not None:
            key = client_key(client)
            if not unlimited:
                if self._open.get(key, 0) >= limits.sessions_per_client:
                    return Excess.PER_CLIENT
                failed = self._handshakes.get(key)
                if failed is not None:
                    failed.refill(limits.handshake_failures_per_minute, now)
                    if failed.level < 1.0:
                        return Excess.HANDSHAKES
                if not _bucket(self._connections, key, limits.connections_per_minute, now).take(
                    limits.connections_per_minute, now
                ):
                    return Excess.RATE
            self._open[key] = self._open.get(key, 0) + 1
        self._total += 1
        return None

    def leave(self, client: IpAddress | None) -> None:
        """A session that was let in has ended."""
        self._total -= 1
        if client is not None:
            key = client_key(client)
            left = self._open[key] - 1
            if left:
                self._open[key] = left
            else:
                del self._open[key]

    def handshake_failed(self, client: IpAddress | None, limits: Limits, now: float) -> None:
        """A handshake of this client failed: too many, and it has to wait."""
        if client is not None:
            bucket = _bucket(self._handshakes, client_key(client), limits.handshake_failures_per_minute, now)
            bucket.take(limits.handshake_failures_per_minute, now)


def client_key(client: IpAddress) -> int:
    """The party behind an address: IPv4 the address, IPv6 its /64.  The two never meet."""
    client = unmapped(client)
    return (int(client) >> 64) | (1 << 64) if isinstance(client, IPv6Address) else int(client)


def _bucket(buckets: OrderedDict[int, _Rate], key: int, capacity: int, now: float) -> _Rate:
    bucket = buckets.get(key)
    if bucket is None:
        bucket = buckets[key] = _Rate(float(capacity), now)
        if len(buckets) > _CLIENTS:
            buckets.popitem(last=False)
    else:
        buckets.move_to_end(key)
    return bucket
