"""What became of this mail, and why?  The last decisions, kept over a restart.

One decision is all events with one decision id: hosts skipped and opened, policies observed, the delivery
or the refusal.  Kept are the newest `capacity` decisions, found by id or by domain.  Each change is given
to the store, which writes behind; a record that cannot be read back is left out.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from smtpguard.clock import Clock
from smtpguard.events import Delivered, DeliveryRefused, Event, HostOpened, HostSkipped, PolicyObserved

DecisionEvent = Delivered | DeliveryRefused | HostSkipped | HostOpened | PolicyObserved

TABLE = "history"

_TYPES: MappingProxyType[str, type[DecisionEvent]] = MappingProxyType(
    {
        Delivered.name: Delivered,
        DeliveryRefused.name: DeliveryRefused,
        HostSkipped.name: HostSkipped,
        HostOpened.name: HostOpened,
        PolicyObserved.name: PolicyObserved,
    }
)
# A decision is a walk over some hosts; these bound one record to some 100 KiB, and a usual one has 1 to 2
# KiB.
_MAX_ENTRIES = 32
_MAX_TEXT = 500
_MAX_ITEMS = 16


class HistoryStore(Protocol):
    """Where the records live.  None of these waits for a disk."""

    def put(self, table: str, key: str, value: bytes) -> None:
        """Replaces the value of `key`."""

    def load(self, table: str) -> Iterable[tuple[str, bytes]]:
        """All of a table, in any order."""
        ...

    def delete(self, table: str, key: str) -> None:
        """Forgets `key`, if it is there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a decision, and when it happened."""

    at: datetime
    event: DecisionEvent


@dataclass(frozen=True, slots=True)
class Decision:
    """All that is known of one decision; `entries` are in order of time.

    `omitted` counts the entries between the first and the last that did not fit.
    """

    id: str
    domain: str
    entries: tuple[Entry, ...]
    omitted: int = 0


class _StoredEntry(msgspec.Struct, frozen=True):
    at: datetime
    event: str
    facts: msgspec.Raw


class _StoredDecision(msgspec.Struct, frozen=True):
    id: str
    domain: str
    entries: tuple[_StoredEntry, ...]
    omitted: int = 0


class History:
    """The sink.  Reads the store once, when it is made."""

    def __init__(self, store: HistoryStore, clock: Clock, capacity: int = 10_000) -> None:
        self.unreadable = 0
        """Stored records that were left out: written by another version, or damaged."""
        self.failures = 0
        """Events lost to a bug or a failing store."""
        self._store = store
        self._clock = clock
        self._capacity = capacity
        self._decisions: OrderedDict[str, Decision] = OrderedDict()  # oldest first
        self._by_domain: dict[str, dict[str, None]] = {}  # ids, oldest first
        self._load()

    def emit(self, event: Event) -> None:
        """Keeps the events of decisions, ignores the others; never raises."""
        if not isinstance(event, DecisionEvent):
            return
        try:
            self._add(event)
        except Exception:  # noqa: BLE001 - the boundary of a sink: the history must not end a session
            self.failures += 1

    def find(self, id_or_domain: str) -> list[Decision]:
        """The decision of this id, or all about this domain, newest first."""
        key = id_or_domain.strip()
        if (decision := self._decisions.get(key)) is not None:
            return [decision]
        ids = self._by_domain.get(key.rstrip(".").lower(), {})
        return [self._decisions[id_] for id_ in reversed(ids)]

    def recent(self, n: int) -> list[Decision]:
        """The newest `n` decisions, newest first."""
        return list(islice(reversed(self._decisions.values()), max(n, 0)))

    def __len__(self) -> int:
        return len(self._decisions)

    def _add(self, event: DecisionEvent) -> None:
        entry = Entry(self._clock.now(), _bounded(event))
        known = self._decisions.get(event.id)
        if known is None:
            decision = Decision(event.id, event.domain.lower(), (entry,))
        elif len(known.entries) < _MAX_ENTRIES:
            decision = dataclasses.replace(known, entries=(*known.entries, entry))
        else:
            # The end says what became of it: the newest takes the place of the one before.
            entries = (*known.entries[:-1], entry)
            decision = dataclasses.replace(known, entries=entries, omitted=known.omitted + 1)
        self._keep(decision)
        while len(self._decisions) > self._capacity:
            self._store.delete(TABLE, self._drop_oldest())
        self._store.put(TABLE, decision.id, encode(decision))

    def _keep(self, decision: Decision) -> None:
        self._decisions[decision.id] = decision
        self._by_domain.setdefault(decision.domain, {})[decision.id] = None

    def _drop_oldest(self) -> str:
        id_, decision = self._decisions.popitem(last=False)
        ids = self._by_domain[decision.domain]
        del ids[id_]
        if not ids:
            del self._by_domain[decision.domain]
        return id_

    def _load(self) -> None:
        decisions = []
        for key, value in self._store.load(TABLE):
            try:
                decision = _decode(value)
                if decision.id != key:
                    raise ValueError("a record under another id")
            except (ValueError, KeyError):  # msgspec's errors are ValueErrors
                self.unreadable += 1
                self._store.delete(TABLE, key)
            else:
                decisions.append(decision)
        decisions.sort(key=lambda decision: decision.entries[0].at)
        for decision in decisions:
            self._keep(decision)
        while len(self._decisions) > self._capacity:
            self._store.delete(TABLE, self._drop_oldest())


def encode(decision: Decision) -> bytes:
    """One decision as JSON: `{"id", "domain", "entries": [{"at", "event", "facts": {…}}], "omitted"}`."""
    return msgspec.json.encode(_record(decision))


def encode_all(decisions: Sequence[Decision]) -> bytes:
    """Several decisions as a JSON array, for the admin interface."""
    return msgspec.json.encode([_record(decision) for decision in decisions])


def _record(decision: Decision) -> dict[str, object]:
    return {
        "id": decision.id,
        "domain": decision.domain,
        "entries": [{"at": e.at, "event": e.event.name, "facts": e.event} for e in decision.entries],
        "omitted": decision.omitted,
    }


def _decode(value: bytes) -> Decision:
    """Raises ValueError or KeyError where this is no record of ours."""
    stored = msgspec.json.decode(value, type=_StoredDecision)
    entries = tuple(Entry(e.at, msgspec.json.decode(e.facts, type=_TYPES[e.event])) for e in stored.entries)
    if not entries or any(entry.at.tzinfo is None for entry in entries):
        raise ValueError("no entries, or a naive time")
    return Decision(stored.id, stored.domain, entries, stored.omitted)


def _bounded(event: DecisionEvent) -> DecisionEvent:
    """The event with long texts cut: a policy of 64 KiB is a peer's to publish, and not ours to keep 10,000
    times."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            changes[field.name] = _cut(value)
        elif isinstance(value, tuple) and (len(value) > _MAX_ITEMS or any(len(v) > _MAX_TEXT for v in value)):
            changes[field.name] = tuple(_cut(v) for v in value[:_MAX_ITEMS])
    return dataclasses.replace(event, **changes) if changes else event


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
