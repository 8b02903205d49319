"""Which policies are cached, until when, and which one goes when the cache is full?  (RFC 8461 §3.2, §10.2)

`Shelf` is the bounded map domain -> Entry, mirrored in the store.  A policy is stored as the octets that were
fetched and parsed again at start, so what is used was always judged by the parser of today.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from smtpguard.mtasts.parse import Mode, ParsedPolicy, StsPolicy, StsUnavailable, parse_policy
from smtpguard.mtasts.store import Store
from smtpguard.names import Domain, NameInvalid, parse_domain

TABLE = "sts"
_AVERAGE_OCTETS = 2048


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached policy, mode `none` included.

    `fetched`: the last successful fetch, from which max_age counts (RFC 8461 §3.2).  `failure`: why the fetch
    after it failed, None if none did.  `size`: octets of the file.  `refresh_at` and `used_at` are on the
    monotonic clock.  `told`: the failure that was last said about its use.
    """

    domain: Domain
    id: str
    policy: ParsedPolicy
    size: int
    fetched: datetime
    refresh_at: float
    used_at: float = 0.0
    failure: StsUnavailable | None = None
    told: str = ""

    @property
    def mode(self) -> Mode:
        return self.policy.mode

    @property
    def expires(self) -> datetime:
        return self.fetched + timedelta(seconds=self.policy.max_age_seconds)

    def is_expired(self, now: datetime) -> bool:
        """Is it older than max_age?  (RFC 8461 §3.2)"""
        return now > self.expires

    def as_policy(self, failure: StsUnavailable | None) -> StsPolicy:
        """The policy as evidence; `failure`: no live policy could be had, and why (RFC 8461 §6)."""
        policy = StsPolicy(
            domain=self.domain,
            id=self.id,
            mode=self.policy.mode,
            max_age_seconds=self.policy.max_age_seconds,
            mx=self.policy.mx,
            lines=self.policy.lines,
        )
        if failure is None:
            return policy
        return replace(
            policy,
            stale=True,
            result_type=failure.code.result_type,
            failure_code=f"{failure.failure_code}+cached-policy",
        )


class Shelf:
    """At most `limit` entries, of 2 KiB on average.

    Unexpired `enforce` policies leave last: dropping one lowers protection.
    """

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self._limit = limit
        self._octets = 0
        self._entries: dict[Domain, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, domain: Domain) -> Entry | None:
        return self._entries.get(domain)

    def load(self, now: datetime) -> None:
        """Read what the store remembers; what has expired or cannot be read any more is dropped from it."""
        for key, value in self._store.load(TABLE):
            entry = _decode(key, value, now)
            if entry is None or entry.is_expired(now):
                self._store.delete(TABLE, key)
            else:
                self._entries[entry.domain] = entry
                self._octets += entry.size
        self._make_room(now)

    def put(self, entry: Entry, octets: bytes, now: datetime) -> list[Entry]:
        """Keep a policy fetched as `octets`.  Returns the unexpired `enforce` entries that had to leave."""
        self._forget(entry.domain)
        evicted = self._make_room(now, entry.size)
        self._entries[entry.domain] = entry
        self._octets += entry.size
        self._store.put(TABLE, entry.domain, _encode(entry, octets))
        return [gone for gone in evicted if gone.mode is Mode.ENFORCE and not gone.is_expired(now)]

    def note(self, entry: Entry) -> None:
        """Replace an entry whose policy has not changed; nothing of it is stored."""
        if entry.domain in self._entries:
            self._entries[entry.domain] = entry

    def drop(self, domain: Domain) -> Entry | None:
        entry = self._forget(domain)
        if entry is not None:
            self._store.delete(TABLE, domain)
        return entry

    def _forget(self, domain: Domain) -> Entry | None:
        entry = self._entries.pop(domain, None)
        if entry is not None:
            self._octets -= entry.size
        return entry

    def _make_room(self, now: datetime, size: int | None = None) -> list[Entry]:
        """Drop entries until all, and one more of `size` octets, are within the limits.

        Expired and `none` go first, then `testing`, then `enforce`; of these the longest unused.
        """

        def worth(entry: Entry) -> tuple[int, float]:
            if entry.mode is Mode.NONE or entry.is_expired(now):
                return 0, entry.used_at
            return (1 if entry.mode is Mode.TESTING else 2), entry.used_at

        dropped: list[Entry] = []
        entries = self._limit - (size is not None)
        octets = self._limit * _AVERAGE_OCTETS - (size or 0)
        while self._entries and (len(self._entries) > entries or self._octets > octets):
            least = min(self._entries.values(), key=worth)
            self.drop(least.domain)
            dropped.append(least)
        return dropped


def _encode(entry: Entry, octets: bytes) -> bytes:
    return json.dumps({"id": entry.id, "fetched": entry.fetched.timestamp(), "policy": octets.decode("utf-8")}).encode(
        "ascii"
    )


def _decode(key: str, value: bytes, now: datetime) -> Entry | None:
    """The entry, due for refresh; None if it is not one (of another version, or damaged)."""
    try:
        fields = json.loads(value)
        octets = fields["policy"].encode("utf-8")
        policy = parse_policy(octets)
        if not isinstance(policy, ParsedPolicy):
            return None
        # A clock that was set back must not prolong a policy.
        fetched = min(datetime.fromtimestamp(float(fields["fetched"]), UTC), now)
        return Entry(parse_domain(key), str(fields["id"]), policy, len(octets), fetched, refresh_at=0.0)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, NameInvalid):
        return None
