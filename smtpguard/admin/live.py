"""Who follows the events, and which of them?  The feed behind `/events`.

`emit` never waits: each subscriber has a bounded queue, and one that reads too slowly for it loses its subscription and
hears how many events it missed.  Without subscribers an event costs one place in a short memory of the latest.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import ClassVar, Final, get_args

import msgspec
import trio

from smtpguard.clock import Clock
from smtpguard.events import Event, Severity
from smtpguard.policy.rules import RuleInvalid
from smtpguard.policy.scopes import parse_domain_pattern
from smtpguard.reasons import printable
from smtpguard.telemetry.log import json_record
from smtpguard.telemetry.outcomes import DIRECTIONS, OUTCOMES, direction, domains, outcome

LEVELS: Final[tuple[str, ...]] = get_args(Severity)
_RANK = MappingProxyType({level: rank for rank, level in enumerate(LEVELS)})
_REMEMBERED = "info"

MAX_SUBSCRIBERS: Final = 16
MAX_RECENT: Final = 200
_QUEUE_EVENTS: Final = 1000
_QUEUE_OCTETS: Final = 1024 * 1024
_MESSAGE_OCTETS: Final = 64 * 1024
_MAX_DOMAINS: Final = 32


class FilterInvalid(ValueError):
    """The query asks for what there is not; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a subscriber wants.  Of an empty tuple everything; an event that has no direction, domain or outcome passes
    only where it is not asked for."""

    directions: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    """`example.org`, or `.example.org` for its subdomains."""
    level: Severity = "info"
    """The lowest severity."""

    def matches(self, event: Event) -> bool:
        """Does this event pass?"""
        return (
            _RANK[event.severity] >= _RANK[self.level]
            and (not self.directions or direction(event) in self.directions)
            and (not self.outcomes or outcome(event) in self.outcomes)
            and (not self.domains or any(self._names(domain) for domain in domains(event)))
        )

    def _names(self, domain: str) -> bool:
        return any(
            domain.endswith(pattern) if pattern.startswith(".") else domain == pattern or pattern == "*"
            for pattern in self.domains
        )


def parse_filter(query: Mapping[str, Sequence[str]]) -> tuple[Filter, int]:
    """The filter of a query (`direction`, `outcome` and `domain` may come several times, and `level`), and how many
    `recent` events are asked for.  Raises FilterInvalid."""
    for key in query:
        if key not in ("direction", "outcome", "domain", "level", "recent"):
            raise FilterInvalid(f"{printable(key, 40)}: the filters are direction, outcome, domain, level and recent")
    if len(query.get("domain", ())) > _MAX_DOMAINS:
        raise FilterInvalid(f"domain: at most {_MAX_DOMAINS}")
    try:
        patterns = tuple(parse_domain_pattern(text) for text in query.get("domain", ()))
    except RuleInvalid as error:
        raise FilterInvalid(f"domain: {error}") from error
    recent = _last(query, "recent", "0")
    if not (recent.isascii() and recent.isdigit() and len(recent) < 5) or int(recent) > MAX_RECENT:
        raise FilterInvalid(f"recent: a number from 0 to {MAX_RECENT}")
    wanted = Filter(
        directions=tuple(_word("direction", word, DIRECTIONS) for word in query.get("direction", ())),
        outcomes=tuple(_word("outcome", word, OUTCOMES) for word in query.get("outcome", ())),
        domains=patterns,
        level=_word("level", _last(query, "level", "info"), LEVELS),  # type: ignore[arg-type]  # one of LEVELS
    )
    return wanted, int(recent)


def _last(query: Mapping[str, Sequence[str]], key: str, default: str) -> str:
    return query[key][-1] if query.get(key) else default


def _word(key: str, word: str, words: Sequence[str]) -> str:
    if word not in words:
        raise FilterInvalid(f"{key}: {printable(word, 40)!r} is none of {', '.join(words)}")
    return word


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsMissed(Event):
    """The last line of a subscriber who read too slowly."""

    name: ClassVar[str] = "events_missed"
    severity: ClassVar[Severity] = "warning"
    missed: int


class Subscription:
    """The queue of one subscriber: JSON lines that wait to be sent."""

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.missed = 0
        """Events that came after the queue had been full; then no more are taken."""
        self.is_ended = False
        """The process ends: what waits is all there will be."""
        self._lines: deque[bytes] = deque()
        self._octets = 0
        self._changed = trio.Event()

    def offer(self, line: bytes) -> None:
        """One more line, or one more missed."""
        if self.missed or len(self._lines) >= _QUEUE_EVENTS or self._octets + len(line) > _QUEUE_OCTETS:
            self.missed += 1
        else:
            self._lines.append(line)
            self._octets += len(line)
        self._changed.set()

    def end(self) -> None:
        """No more will come."""
        self.is_ended = True
        self._changed.set()

    async def take(self) -> bytes:
        """Lines, as many as fit a message, as soon as there are any.  Empty: there are no more and `missed` or
        `is_ended` says why.  Cancel it to stop waiting; nothing is lost."""
        while not self._lines and not self.missed and not self.is_ended:
            self._changed = trio.Event()
            await self._changed.wait()
        taken: list[bytes] = []
        octets = 0
        while self._lines and (not taken or octets + len(self._lines[0]) <= _MESSAGE_OCTETS):
            line = self._lines.popleft()
            octets += len(line)
            taken.append(line)
        self._octets -= octets
        return b"".join(taken)


class Feed:
    """The sink.  All calls are made in the Trio thread."""

    def __init__(self, clock: Clock) -> None:
        self.failures = 0
        """Events lost to a bug."""
        self._clock = clock
        self._recent: deque[tuple[datetime, Event]] = deque(maxlen=MAX_RECENT)
        self._subscriptions: list[Subscription] = []
        self._is_ended = False
        self._left = trio.Event()

    def emit(self, event: Event) -> None:
        """Hands the event on; never waits and never raises."""
        try:
            if _RANK[event.severity] >= _RANK[_REMEMBERED]:
                self._recent.append((self._clock.now(), event))
            if self._subscriptions:
                self._offer(event)
        except Exception:  # noqa: BLE001 - the boundary of a sink: a follower must not end a session
            self.failures += 1

    @contextmanager
    def subscribe(self, wanted: Filter, recent: int = 0) -> Iterator[Subscription]:
        """Events from now on, after the latest `recent` that pass (of severity info at least); not for more than
        MAX_SUBSCRIBERS."""
        assert not self.is_full
        subscription = Subscription(wanted)
        passed = [(at, event) for at, event in self._recent if wanted.matches(event)]
        for at, event in passed[-recent:] if recent else ():
            subscription.offer(line_of(at, event))
        if self._is_ended:
            subscription.end()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self._left.set()

    async def end(self) -> None:
        """The process ends: subscribers hear what waits for them, and no more.  Waits until all have left; their
        connections have time limits of their own."""
        self._is_ended = True
        for subscription in self._subscriptions:
            subscription.end()
        while self._subscriptions:
            self._left = trio.Event()
            await self._left.wait()

    @property
    def is_full(self) -> bool:
        """There are as many subscribers as there may be."""
        return len(self._subscriptions) >= MAX_SUBSCRIBERS

    def __len__(self) -> int:
        return len(self._subscriptions)

    def _offer(self, event: Event) -> None:
        line = b""
        for subscription in self._subscriptions:
            if subscription.wanted.matches(event):
                line = line or line_of(self._clock.now(), event)
                subscription.offer(line)


def line_of(at: datetime, event: Event) -> bytes:
    """The event as the JSON log has it, with `direction` and `outcome` where it has any, and a line end."""
    record = json_record(at, event)
    if way := direction(event):
        record["direction"] = way
    if became := outcome(event):
        record["outcome"] = became
    return msgspec.json.encode(record) + b"\n"
