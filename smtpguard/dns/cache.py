"""Which answers are still good?  (RFC 2181 §8, RFC 2308 §5, §7; RFC 4035 §4.5)

A bounded TTL cache, least recently used out first.  What goes in comes out with the DNSSEC verdict it came
with. Failures stay only for moments: long enough that the hosts of one message do not all wait for the same
dead server, too short to hide its recovery.  No clock: `now` is an argument, on the monotonic clock of
`Answer.expires`.
"""

from collections import OrderedDict

from smtpguard.dns.records import Answer, Lookup, RdType
from smtpguard.names import Domain

MAX_TTL_SECONDS = 86_400
"""A longer TTL counts as a day (RFC 2181 §8 lets a cache set its own bound)."""

MAX_NEGATIVE_TTL_SECONDS = 3_600
"""NODATA and NXDOMAIN: RFC 2308 §5 recommends one to three hours at most."""

FAILURE_SECONDS = 5
"""Time-outs, SERVFAIL, bogus; RFC 2308 §7 allows at most five minutes."""

Key = tuple[Domain, RdType]


def answer_ttl(ttl: int, soa_ttl: int | None, *, negative: bool) -> int:
    """Seconds an answer may be kept: its TTL, or for NODATA and NXDOMAIN what the SOA record says (RFC 2308
    §5).

    `ttl` is the least of the records that led to the answer, aliases included.  A negative answer without
    SOA record is kept as briefly as a failure.  A TTL with the top bit set counts as zero (RFC 2181 §8).
    """
    ttl = 0 if ttl > 0x7FFFFFFF else min(ttl, MAX_TTL_SECONDS)
    if not negative:
        return ttl
    return min(ttl, FAILURE_SECONDS if soa_ttl is None else min(soa_ttl, MAX_NEGATIVE_TTL_SECONDS))


class LookupCache:
    """The last answers, at most `entries` of them; 0 keeps nothing."""

    __slots__ = ("_entries", "_limit")

    def __init__(self, entries: int) -> None:
        self._limit = entries
        self._entries: OrderedDict[Key, tuple[float, Lookup]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: Domain, rdtype: RdType, now: float) -> Lookup | None:
        """What was kept, or None where nothing was or its time is over."""
        key = name, rdtype
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, lookup = entry
        if now >= expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return lookup

    def keep(self, lookup: Lookup, now: float) -> None:
        """Keep an answer until it expires, a failure for `FAILURE_SECONDS`; the least recently used makes
        room.
        """
        expires = lookup.expires if isinstance(lookup, Answer) else now + FAILURE_SECONDS
        key = lookup.name, lookup.rdtype
        self._entries.pop(key, None)
        if expires <= now:
            return
        self._entries[key] = expires, lookup
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
