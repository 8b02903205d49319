"""Is this policy being fetched already, or did it fail a moment ago?  (RFC 8461 §3.3, §10.3)

One fetch per domain, a cap on all of them, and a memory of what failed.  Fetches belong to the service, not
to the delivery that asked: it may stop waiting, and the policy still arrives for the next one.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from smtpguard.clock import Clock
from smtpguard.events import Emit, InternalError
from smtpguard.mtasts.entries import Entry
from smtpguard.mtasts.fetch import FetchedPolicy
from smtpguard.mtasts.parse import StsUnavailable
from smtpguard.names import Domain
from smtpguard.reasons import ReasonCode

_WAITING_PER_SLOT: Final = 32
_MAX_REMEMBERED: Final = 10_000

Fetch = Callable[[Domain], Awaitable[FetchedPolicy | StsUnavailable]]


@dataclass(slots=True, eq=False)
class Flight:
    """One fetch under way; `result` is there once `done` is set.

    `id` is what the TXT record said when it began.  `started`: it has got one of the slots.
    """

    domain: Domain
    id: str
    refresh: bool
    done: trio.Event = field(default_factory=trio.Event)
    started: bool = False
    result: Entry | StsUnavailable | None = None


def overload(detail: str) -> StsUnavailable:
    """The failure is ours: it must not lower what the domain asks for, so mail waits."""
    return StsUnavailable(ReasonCode.STS_FETCH, detail, "sts-local-failure", defer=True)


class Flights:
    """The fetches of one cache.

    `landed` is told each result, in the Trio thread, before those who wait for it; what it returns is theirs.
    """

    def __init__(
        self,
        fetch: Fetch,
        landed: Callable[[Flight, FetchedPolicy | StsUnavailable], Entry | StsUnavailable],
        clock: Clock,
        emit: Emit,
        *,
        at_once: int,
        retry_seconds: float,
    ) -> None:
        self._fetch = fetch
        self._landed = landed
        self._clock = clock
        self._emit = emit
        self._at_once = at_once
        self._retry_seconds = retry_seconds
        self._slots = trio.Semaphore(at_once)
        self._flights: dict[Domain, Flight] = {}
        self._failed: OrderedDict[tuple[Domain, str], tuple[float, StsUnavailable]] = OrderedDict()
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._flights)

    async def run(self, service: Callable[[], Awaitable[None]]) -> None:
        """Fetches live as long as `service` runs, which ends by cancellation."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await service()
            finally:
                self._nursery = None

    def start(self, domain: Domain, policy_id: str, *, refresh: bool = False) -> Flight:
        """Begin a fetch, or join the one of this domain that is under way, whatever its id."""
        flight = self._flights.get(domain)
        if flight is not None:
            return flight
        flight = Flight(domain, policy_id, refresh)
        if self._nursery is None:
            _end(flight, overload("the MTA-STS service is not running"))
        elif len(self._flights) >= self._at_once * _WAITING_PER_SLOT:
            _end(flight, overload("too many policies are being fetched"))
        else:
            self._flights[domain] = flight
            self._nursery.start_soon(self._fly, flight)
        return flight

    def recent_failure(self, domain: Domain, policy_id: str) -> StsUnavailable | None:
        """Why the fetch of this id failed, while it is too early to try again."""
        until, failure = self._failed.get((domain, policy_id), (0.0, None))
        return failure if self._clock.monotonic() < until else None

    def forgive(self, domain: Domain, policy_id: str) -> None:
        """The next fetch of this id need not wait."""
        self._failed.pop((domain, policy_id), None)

    async def _fly(self, flight: Flight) -> None:
        try:
            async with self._slots:
                flight.started = True
                begun = self._clock.monotonic()
                try:
                    result = await self._fetch(flight.domain)
                except Exception as error:  # noqa: BLE001  -- the boundary of the fetching service: a bug defers
                    self._emit(InternalError.of("mtasts.fetch", error))
                    result = StsUnavailable(ReasonCode.INTERNAL, "the fetch failed here", "internal", defer=True)
                self._land(flight, result)
                # A slot is held for a second at least: the cap is also one on the rate.
                await trio.sleep(max(0.0, begun + 1.0 - self._clock.monotonic()))
        finally:
            if flight.result is None:
                del self._flights[flight.domain]
                _end(flight, overload("the MTA-STS service was stopped"))

    def _land(self, flight: Flight, result: FetchedPolicy | StsUnavailable) -> None:
        place = flight.domain, flight.id
        self._failed.pop(place, None)
        if isinstance(result, StsUnavailable):
            self._failed[place] = (self._clock.monotonic() + self._retry_seconds, result)
            if len(self._failed) > _MAX_REMEMBERED:
                self._failed.popitem(last=False)
        del self._flights[flight.domain]
        _end(flight, self._landed(flight, result))


def _end(flight: Flight, result: Entry | StsUnavailable) -> None:
    flight.result = result
    flight.done.set()
