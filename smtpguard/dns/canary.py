"""Does the resolver still validate?  (DESIGN §6 DNSSEC; RFC 7672 §2.1.1, RFC 4035 §4.3)

Asks through the very path that mail routing uses for three names that hold A records: a signed one (its AD
bit must come), an unsigned one (no AD bit) and one whose signatures are broken (must fail).  Silence proves
nothing; only an answer that contradicts does.  A resolver that once validated and contradicts is *lost*,
also over a restart: what would have been DANE then fails instead of falling back.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import trio

from smtpguard.clock import Clock
from smtpguard.dns.records import Answer, FailureKind, Lookup, LookupFailed, RdType, Security
from smtpguard.dns.resolver import Validation
from smtpguard.events import DnssecAlert, DnssecState, Emit
from smtpguard.names import Domain

CONFIRMED_SECONDS = 600
"""How long an answer to the unsigned name backs permanent verdicts."""

RETRY_SECONDS = 30
"""After a round that proved nothing, where the interval is not shorter anyway."""


@dataclass(frozen=True, slots=True)
class CanarySettings:
    """The three names, each with A records, and the seconds between two rounds."""

    signed: Domain
    unsigned: Domain
    broken: Domain
    interval_seconds: float = 300


class CanaryState(Enum):
    """What the answers proved so far."""

    UNKNOWN = "unknown"
    """Nothing yet: the AD bit counts as it comes."""
    NEVER = "never-validated"
    VALIDATING = "validating"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Validates:
    """All three answers are as they must be."""


@dataclass(frozen=True, slots=True)
class Contradicts:
    """One answer cannot come from a resolver that validates."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The answers prove nothing."""

    detail: str


Verdict = Validates | Contradicts | Unreachable


def judge_answers(signed: Lookup, unsigned: Lookup, broken: Lookup) -> Verdict:
    """What the three answers prove; any contradiction outweighs all silence."""
    match signed:
        case Answer(security=Security.INSECURE) if signed.records:
            return Contradicts(f"signed {signed.name} came without AD")
    match unsigned:
        case Answer(security=Security.SECURE):
            return Contradicts(f"unsigned {unsigned.name} came with AD")
    match broken:
        case Answer() if broken.records:
            return Contradicts(f"{broken.name}, whose signatures are broken, came with data")
    match broken:
        case LookupFailed(kind=FailureKind.SERVFAIL | FailureKind.BOGUS):
            silent = [lookup for lookup in (signed, unsigned) if not _holds(lookup)]
        case _:
            silent = [broken]
    if silent:
        return Unreachable("; ".join(_described(lookup) for lookup in silent))
    return Validates()


def next_state(state: CanaryState, verdict: Verdict) -> CanaryState:
    """The state after a round."""
    match verdict:
        case Validates():
            return CanaryState.VALIDATING
        case Contradicts():
            once = state in (CanaryState.VALIDATING, CanaryState.LOST)
            return CanaryState.LOST if once else CanaryState.NEVER
        case Unreachable():
            return state
        case _:
            assert_never(verdict)


class Canary:
    """Keeps the verdict on the resolver.

    `query` asks past the cache and leaves the AD bit as it came.  `remembered` is what `remember` was last
    given, in an earlier process, or None; `remember` must not block.
    """

    def __init__(
        self,
        settings: CanarySettings,
        query: Callable[[Domain, RdType], Awaitable[Lookup]],
        clock: Clock,
        emit: Emit,
        remember: Callable[[CanaryState], None],
        remembered: CanaryState | None = None,
    ) -> None:
        self._settings = settings
        self._query = query
        self._clock = clock
        self._emit = emit
        self._remember = remember
        # Never-validated is not carried over: it would keep DANE off until the first round of a mended
        # resolver.
        known = remembered in (CanaryState.VALIDATING, CanaryState.LOST)
        self._state = remembered if remembered is not None and known else CanaryState.UNKNOWN
        self._last_verdict: Verdict | None = None
        self._last_unsigned_answer: float | None = None

    @property
    def state(self) -> CanaryState:
        """What the answers proved so far."""
        return self._state

    @property
    def verdict(self) -> Verdict | None:
        """The last round's; None before it."""
        return self._last_verdict

    @property
    def last_unsigned_answer(self) -> float | None:
        """When the unsigned name was last answered with data, on the monotonic clock."""
        return self._last_unsigned_answer

    @property
    def validation(self) -> Validation:
        """What the AD bit is worth now: the resolver's `validation` argument."""
        match self._state:
            case CanaryState.UNKNOWN | CanaryState.VALIDATING:
                return Validation.TRUSTED
            case CanaryState.NEVER:
                return Validation.OFF
            case CanaryState.LOST:
                return Validation.LOST
            case _:
                assert_never(self._state)

    def answers_confirmed(self) -> bool:
        """May "does not exist" be final?  The resolver's `confirmed` argument."""
        last = self._last_unsigned_answer
        return last is not None and self._clock.monotonic() - last <= CONFIRMED_SECONDS

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled; started after the first round."""
        started = False
        while True:
            await self.ask()
            if not started:
                task_status.started()
                started = True
            interval = self._settings.interval_seconds
            silent = isinstance(self._last_verdict, Unreachable)
            await trio.sleep(min(interval, RETRY_SECONDS) if silent else interval)

    async def ask(self) -> Verdict:
        """One round: all three names at once."""
        answers: dict[Domain, Lookup] = {}

        async def find(name: Domain) -> None:
            lookup = await self._query(name, RdType.A)
            if name == self._settings.unsigned and _holds(lookup):
                self._last_unsigned_answer = self._clock.monotonic()
            answers[name] = lookup

        names = (self._settings.signed, self._settings.unsigned, self._settings.broken)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(find, name)
        verdict = judge_answers(*(answers[name] for name in names))
        self._take(verdict)
        return verdict

    def _take(self, verdict: Verdict) -> None:
        before, spoken = self._state, self._last_verdict
        self._state = next_state(before, verdict)
        self._last_verdict = verdict
        if self._state is not before and self._state in (CanaryState.VALIDATING, CanaryState.LOST):
            self._remember(self._state)
        if self._state is not before or type(verdict) is not type(spoken):
            match verdict:
                case Validates():
                    detail = "the resolver validates"
                case Contradicts():
                    detail = verdict.detail
                case Unreachable():
                    detail = f"unreachable, the state stays: {verdict.detail}"
                case _:
                    assert_never(verdict)
            kind = DnssecState if isinstance(verdict, Validates) else DnssecAlert
            self._emit(kind(state=self._state.value, detail=detail))


def _holds(lookup: Lookup) -> bool:
    return isinstance(lookup, Answer) and bool(lookup.records)


def _described(lookup: Lookup) -> str:
    match lookup:
        case Answer():
            return f"{lookup.name}: {'data' if lookup.records else 'no data'}"
        case LookupFailed():
            return f"{lookup.name}: {lookup.detail or lookup.kind.value}"
        case _:
            assert_never(lookup)
