"""Which MTA-STS policy holds for this domain now?  (RFC 8461 §3.3, §5, §10)

`StsCache.find` asks the TXT record each time (the resolver caches it), and fetches only where the id is not
the cached one.  A policy that cannot be renewed holds until it expires.  About daily every policy is fetched
again; when that fails, an alert is emitted long before the policy is gone.

An error of the domain's own servers leaves it without MTA-STS only where nothing unexpired is cached (RFC
8461 §3.3); an error of ours (overload, shutdown, a bug) defers.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from random import Random
from typing import Final, assert_never

import trio

from smtpguard.clock import Clock
from smtpguard.dns.records import LookupFailed, RdType, Security
from smtpguard.dns.resolver import Lookups
from smtpguard.events import Emit, StsAlert, StsEvent
from smtpguard.mtasts.entries import Entry, Shelf
from smtpguard.mtasts.fetch import FetchedPolicy
from smtpguard.mtasts.flights import Fetch, Flight, Flights, overload
from smtpguard.mtasts.parse import (
    Mode,
    NoSts,
    NoStsRecord,
    ParsedPolicy,
    StsId,
    StsPolicy,
    StsUnavailable,
    parse_txt,
)
from smtpguard.mtasts.store import Store
from smtpguard.names import Domain, NameInvalid, parse_domain
from smtpguard.reasons import ReasonCode, printable

_TICK_SECONDS: Final = 60.0
_SPREAD_SECONDS: Final = 600.0
"""After a start the overdue refreshes are spread over this."""
_MAX_FAILING: Final = 10_000

StsEvidence = NoSts | StsPolicy | StsUnavailable
MxSecurity = Security | None | Callable[[], Security | None]
"""The DNSSEC verdict on the MX records, None where it is not known (yet); a callable is asked when needed."""


class TxtTempfail(Enum):
    """What a failing TXT look-up means where nothing is cached (CONFORMANCE CH-25)."""

    DEFER = "defer"
    GRACE = "grace"
    """Defer; but where the MX records are not secure and it has failed for an hour, go on without."""
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class StsSettings:
    """Limits and times of the cache, in seconds."""

    txt_tempfail: TxtTempfail = TxtTempfail.GRACE
    grace_seconds: float = 3600.0
    delivery_wait_seconds: float = 20.0
    retry_seconds: float = 300.0
    """RFC 8461 §3.3: a failed fetch of the same policy id is not repeated for five minutes."""
    refresh_seconds: float = 86400.0
    refresh_retry_seconds: float = 14400.0
    max_policies: int = 10_000
    max_fetches: int = 32
    """Fetches at once, and also fetches begun per second."""


class StsCache:
    """The policies of all domains.  Without its service `run` only cached ones are found, the rest defers."""

    def __init__(
        self,
        settings: StsSettings,
        lookups: Lookups,
        fetch: Fetch,
        store: Store,
        clock: Clock,
        emit: Emit,
        random: Random,
    ) -> None:
        """Reads the cached policies from `store` at once: they must outlive a restart (RFC 8461 §10.2)."""
        self._settings = settings
        self._lookups = lookups
        self._clock = clock
        self._emit = emit
        self._random = random
        self._shelf = Shelf(store, settings.max_policies)
        self._shelf.load(clock.now())
        self._flights = Flights(
            fetch,
            self._landed,
            clock,
            emit,
            at_once=settings.max_fetches,
            retry_seconds=settings.retry_seconds,
        )
        self._txt_failing: OrderedDict[Domain, tuple[float, float]] = OrderedDict()

    # -- for deliveries

    async def find(self, domain: Domain, mx_security: MxSecurity = None) -> StsEvidence:
        """The policy of `domain`, the next-hop domain before any alias is followed (§3.4).

        Waits for the TXT look-up and at most `delivery_wait_seconds` for a fetch.  `grace` needs
        `mx_security`.  Raises nothing but Cancelled.
        """
        found = await self._find_id(domain)
        cached = self._unexpired(domain)
        match found:
            case LookupFailed():
                failure = StsUnavailable(
                    ReasonCode.STS_TXT_FAILURE,
                    printable(f"{found.name} TXT: {found.kind.value} {found.detail}".rstrip()),
                    found.reason_code,
                )
                if cached is None:
                    return self._without_txt(domain, failure, mx_security)
                return self._use(cached, failure)
            case NoStsRecord():
                self._txt_failing.pop(domain, None)
                if cached is None:
                    return NoSts()
                failure = StsUnavailable(ReasonCode.STS_FETCH, found.why, "sts-txt-missing")
                return self._use(cached, failure, event="txt_missing_cached")
            case StsId():
                self._txt_failing.pop(domain, None)
                # RFC 8461 §3: the same id means the same policy, there is nothing to fetch.
                if cached is not None and cached.id == found.id:
                    return self._use(cached, cached.failure)
                recent = self._flights.recent_failure(domain, found.id)
                return self._use_landed(domain, recent or await self._wait(domain, found.id))
            case _:
                assert_never(found)

    async def recheck(self, domain: Domain) -> bool:
        """After a failure that `enforce` caused: does the domain announce another policy now?  (§5.1)

        If so it is being fetched when this returns, in time for the retry that a transient failure brings.  The TXT
        record comes from the resolver's cache while it lives: a new policy counts once "the TXT record's TTL has
        passed" (§8.1), and a stream of failing mail must not become a stream of queries.
        """
        found = await self._find_id(domain)
        cached = self._unexpired(domain)
        if not isinstance(found, StsId) or (cached is not None and cached.id == found.id):
            return False
        if self._flights.recent_failure(domain, found.id) is None:
            self._flights.start(domain, found.id)
        return True

    async def _find_id(self, domain: Domain) -> StsId | NoStsRecord | LookupFailed:
        """What the TXT record says.  No parent domain is ever asked (RFC 8461 §3.4)."""
        try:
            owner = parse_domain(f"_mta-sts.{domain}")
        except NameInvalid:
            return NoStsRecord("the domain is too long to have a policy")
        answer = await self._lookups.lookup(owner, RdType.TXT)
        if isinstance(answer, LookupFailed):
            return answer
        return parse_txt([record for record in answer.records if isinstance(record, bytes)])

    def _without_txt(self, domain: Domain, failure: StsUnavailable, mx_security: MxSecurity) -> StsUnavailable:
        """The TXT look-up failed and nothing is cached."""
        now = self._clock.monotonic()
        first, last = self._txt_failing.pop(domain, (now, now))
        if now - last > 2 * self._settings.grace_seconds:
            first = now  # two failures far apart are no outage: nothing is known of the time between
        self._txt_failing[domain] = (first, now)
        if len(self._txt_failing) > _MAX_FAILING:
            self._txt_failing.popitem(last=False)
        self._report("txt_tempfail", domain, failure)
        match self._settings.txt_tempfail:
            case TxtTempfail.DEFER:
                return replace(failure, defer=True)
            case TxtTempfail.IGNORE:
                return failure
            case TxtTempfail.GRACE:
                security = mx_security() if callable(mx_security) else mx_security
                # In a signed zone a look-up that goes on failing is an attack rather than a broken server.
                if security is not Security.INSECURE or now - first <= self._settings.grace_seconds:
                    return replace(failure, defer=True)
                self._report("grace", domain, failure, alert=True)
                return failure
            case _:
                assert_never(self._settings.txt_tempfail)

    async def _wait(self, domain: Domain, policy_id: str) -> Entry | StsUnavailable | None:
        """Wait for a fetch of this id; None where the delivery must not wait any longer."""
        flight = self._flights.start(domain, policy_id)
        with trio.move_on_after(self._settings.delivery_wait_seconds):
            await flight.done.wait()
            if flight.id != policy_id and not isinstance(flight.result, StsUnavailable):
                # It set out before the id changed, and may have brought the old policy.
                flight = self._flights.start(domain, policy_id)
                await flight.done.wait()
            return flight.result
        if not flight.started:
            return overload("the fetch of the policy has not begun")
        return None

    def _use_landed(self, domain: Domain, landed: Entry | StsUnavailable | None) -> StsEvidence:
        """What a fetch brought; where it failed, the cached policy if there is one (RFC 8461 §3.3)."""
        match landed:
            case Entry():
                return self._use(landed, None)
            case StsUnavailable():
                failure = landed
            case None:
                wait = self._settings.delivery_wait_seconds
                detail = f"no policy after {wait:g} s; the fetch goes on"
                failure = StsUnavailable(ReasonCode.STS_FETCH, detail, "http-timeout")
            case _:
                assert_never(landed)
        cached = self._unexpired(domain)
        return failure if cached is None else self._use(cached, failure)

    def _use(self, entry: Entry, failure: StsUnavailable | None, event: str = "cache_stale_used") -> NoSts | StsPolicy:
        """The policy of `entry` applies; `failure`: no live one could be had, and why.  Says so once."""
        told = f"{event} {failure.failure_code}" if failure is not None else ""
        self._shelf.note(replace(entry, used_at=self._clock.monotonic(), told=told))
        if entry.mode is Mode.NONE:
            return NoSts()
        policy = entry.as_policy(failure)
        if failure is not None and told != entry.told:
            missing = event == "txt_missing_cached"  # who took the record away, the domain or an attacker?
            self._report(event, entry.domain, failure, policy=entry.policy, alert=missing)
        return policy

    def _unexpired(self, domain: Domain) -> Entry | None:
        entry = self._shelf.get(domain)
        if entry is None or not entry.is_expired(self._clock.now()):
            return entry
        self._expire(entry)
        return None

    def _expire(self, entry: Entry) -> None:
        self._shelf.drop(entry.domain)
        if entry.mode is not Mode.NONE:
            detail = f"last fetched {entry.fetched:%Y-%m-%dT%H:%M:%SZ}"
            self._say("expired", entry.domain, entry.policy, detail, alert=True)

    # -- the service

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch what deliveries ask for and refresh what is cached, until cancelled."""

        async def refresh() -> None:
            self._plan_refreshes()
            task_status.started()
            while True:
                await trio.sleep(_TICK_SECONDS)
                self._refresh_due()

        await self._flights.run(refresh)

    def _plan_refreshes(self) -> None:
        """After a restart: when each policy is due, without a stampede of those that were due meanwhile."""
        now = self._clock.now()
        for entry in self._shelf:
            waits = (entry.fetched + timedelta(seconds=self._interval(entry.policy)) - now).total_seconds()
            due = self._clock.monotonic() + max(waits, self._random.uniform(0.0, _SPREAD_SECONDS))
            self._shelf.note(replace(entry, refresh_at=due))

    def _refresh_due(self) -> None:
        """RFC 8461 §3.3: about daily, whatever the TXT record says."""
        now = self._clock.now()
        for entry in self._shelf:
            if entry.is_expired(now):
                self._expire(entry)
            elif entry.refresh_at <= self._clock.monotonic():
                self._flights.start(entry.domain, entry.id, refresh=True)

    def _interval(self, policy: ParsedPolicy) -> float:
        """Daily, but before it expires; never more than hourly."""
        return min(self._settings.refresh_seconds, max(policy.max_age_seconds / 2, 3600.0))

    def _landed(self, flight: Flight, result: FetchedPolicy | StsUnavailable) -> Entry | StsUnavailable:
        match result:
            case FetchedPolicy():
                return self._keep(flight, result)
            case StsUnavailable():
                self._note_failure(flight.domain, result)
                return result
            case _:
                assert_never(result)

    def _keep(self, flight: Flight, fetched: FetchedPolicy) -> Entry:
        """The new policy replaces the old one only here, where it is known to be valid (RFC 8461 §5.1)."""
        now = self._clock.now()
        policy = fetched.policy
        entry = Entry(
            domain=flight.domain,
            id=flight.id,
            policy=policy,
            size=len(fetched.octets),
            fetched=now,
            refresh_at=self._jittered(self._interval(policy)),
            used_at=self._clock.monotonic(),
        )
        previous = self._shelf.get(flight.domain)
        for evicted in self._shelf.put(entry, fetched.octets, now):
            self._say("forgotten", evicted.domain, evicted.policy, "the cache is full", alert=True)
        self._say("refreshed" if flight.refresh else "fetched", flight.domain, policy)
        if policy.mode is Mode.NONE and (previous is None or previous.mode is not Mode.NONE):
            self._say("mode_none", flight.domain, policy)
        return entry

    def _note_failure(self, domain: Domain, failure: StsUnavailable) -> None:
        events = {ReasonCode.STS_INVALID: "invalid", ReasonCode.STS_WEBPKI: "webpki"}
        self._report(events.get(failure.code, "fetch_error"), domain, failure)
        cached = self._shelf.get(domain)
        if cached is None:
            return
        again = self._jittered(self._settings.refresh_retry_seconds)
        self._shelf.note(replace(cached, refresh_at=again, failure=failure))
        if cached.mode is not Mode.NONE:  # RFC 8461 §3.3: no alert for a policy that asks for nothing
            self._report("refresh_failed", domain, failure, policy=cached.policy, expires=cached, alert=True)

    def _jittered(self, seconds: float) -> float:
        return self._clock.monotonic() + seconds * self._random.uniform(0.9, 1.1)

    # -- for the operator

    def list(self) -> tuple[Entry, ...]:
        """All cached policies, by domain; expired ones included until they are noticed."""
        return tuple(sorted(self._shelf, key=lambda entry: entry.domain))

    def show(self, domain: Domain) -> Entry | None:
        """The cached policy of `domain`, whatever its mode."""
        return self._shelf.get(domain)

    @property
    def refresh_failing(self) -> int:
        """How many cached policies could not be renewed at the last try (RFC 8461 §10.2)."""
        return sum(1 for entry in self._shelf if entry.failure is not None and entry.mode is not Mode.NONE)

    def count(self) -> dict[Mode, int]:
        """How many policies are cached, by their mode."""
        return Counter(entry.mode for entry in self._shelf)

    def forget(self, domain: Domain) -> bool:
        """Drop the cached policy of `domain`; False if there is none.  The next delivery fetches it anew."""
        entry = self._shelf.drop(domain)
        if entry is None:
            return False
        self._flights.forgive(domain, entry.id)
        self._say("forgotten", domain, entry.policy, "by the operator")
        return True

    async def refresh(self, domain: Domain) -> StsEvidence:
        """Fetch the policy now, whatever is cached or failed before; waits as long as the fetch takes."""
        found = await self._find_id(domain)
        if not isinstance(found, StsId):
            return await self.find(domain)
        self._flights.forgive(domain, found.id)
        flight = self._flights.start(domain, found.id, refresh=True)
        await flight.done.wait()
        return self._use_landed(domain, flight.result)

    # -- events

    def _say(self, event: str, domain: Domain, policy: ParsedPolicy, detail: str = "", *, alert: bool = False) -> None:
        kind = StsAlert if alert else StsEvent
        self._emit(kind(event=event, domain=domain, detail=printable(detail), policy_string=policy.lines))

    def _report(
        self,
        event: str,
        domain: Domain,
        failure: StsUnavailable,
        *,
        policy: ParsedPolicy | None = None,
        expires: Entry | None = None,
        alert: bool = False,
    ) -> None:
        """A failure; with `policy` it did not take the cached policy away (RFC 8460: info)."""
        kind = StsAlert if alert else StsEvent
        code = failure.failure_code if policy is None else f"{failure.failure_code}+cached-policy"
        until = f"; the cached policy ends {expires.expires:%Y-%m-%dT%H:%M:%SZ}" if expires is not None else ""
        self._emit(
            kind(
                event=event,
                domain=domain,
                result_type=failure.code.result_type.value if failure.code.result_type is not None else "",
                failure_reason_code=printable(code),
                detail=printable(failure.detail) + until,
                policy_string=policy.lines if policy is not None else (),
            )
        )
