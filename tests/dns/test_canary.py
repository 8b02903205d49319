"""tests for dns/canary.py"""

from collections.abc import Callable

import pytest
import trio

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.dns.canary import (
    CONFIRMED_SECONDS,
    Canary,
    CanarySettings,
    CanaryState,
    Contradicts,
    Unreachable,
    Validates,
    judge_answers,
    next_state,
)
from smtpguard.dns.records import FailureKind, RdType, Security
from smtpguard.dns.resolver import Validation
from smtpguard.events import DnssecState
from smtpguard.names import Domain
from tests.support.zone import Node, Zone

SETTINGS = CanarySettings(Domain("signed.example"), Domain("unsigned.example"), Domain("broken.example"))
GOOD = {
    "signed.example": Node(a=["192.0.2.1"], security=Security.SECURE),
    "unsigned.example": Node(a=["192.0.2.1"], security=Security.INSECURE),
    "broken.example": Node(fail=FailureKind.BOGUS, ede=(6,)),
}
NO_AD = Node(a=["192.0.2.1"], security=Security.INSECURE)
NO_VALIDATION = {"signed.example": NO_AD, "broken.example": NO_AD}
SILENCE = dict.fromkeys(GOOD, Node(fail=FailureKind.TIMEOUT))


class Bench:
    """A canary over a zone, with what it said and what it wants remembered."""

    def __init__(self, remembered: CanaryState | None = None) -> None:
        self.zone = Zone(GOOD)
        self.events: list[DnssecState] = []
        self.remembered: list[CanaryState] = []
        self.canary = Canary(
            SETTINGS, self.zone.lookup, SYSTEM_CLOCK, self.events.append, self.remembered.append, remembered
        )

    async def ask(self, nodes: dict[str, Node]) -> CanaryState:
        self.zone.nodes = {Domain(name): node for name, node in {**GOOD, **nodes}.items()}
        await self.canary.ask()
        return self.canary.state


async def test_before_the_first_answer_ad_counts_as_it_comes() -> None:
    bench = Bench()
    assert bench.canary.state is CanaryState.UNKNOWN
    assert bench.canary.validation is Validation.TRUSTED
    assert not bench.canary.answers_confirmed()


async def test_dane_01_a_resolver_that_validates() -> None:
    bench = Bench()
    assert await bench.ask({}) is CanaryState.VALIDATING
    assert bench.canary.validation is Validation.TRUSTED
    assert bench.remembered == [CanaryState.VALIDATING]
    assert [(event.state, event.severity) for event in bench.events] == [("validating", "info")]
    await bench.ask({})
    assert len(bench.events) == len(bench.remembered) == 1


@pytest.mark.parametrize(
    "nodes",
    [
        {"signed.example": NO_AD},
        {"unsigned.example": Node(a=["192.0.2.1"], security=Security.SECURE)},
        {"broken.example": NO_AD},
        {"broken.example": NO_AD, "signed.example": Node(fail=FailureKind.TIMEOUT)},
    ],
)
async def test_a_contradiction_is_never_validated_or_lost(nodes: dict[str, Node]) -> None:
    never = Bench()
    assert await never.ask(nodes) is CanaryState.NEVER
    assert never.canary.validation is Validation.OFF
    assert never.remembered == []
    assert await never.ask(nodes) is CanaryState.NEVER
    lost = Bench()
    await lost.ask({})
    assert await lost.ask(nodes) is CanaryState.LOST
    assert lost.canary.validation is Validation.LOST
    assert lost.remembered == [CanaryState.VALIDATING, CanaryState.LOST]
    assert [(event.state, event.severity) for event in lost.events] == [("validating", "info"), ("lost", "warning")]
    assert await lost.ask(nodes) is CanaryState.LOST
    assert await lost.ask({}) is CanaryState.VALIDATING


@pytest.mark.parametrize("name", list(GOOD))
@pytest.mark.parametrize("node", [Node(fail=FailureKind.TIMEOUT), Node(fail=FailureKind.NETWORK)])
@pytest.mark.parametrize("before", [CanaryState.VALIDATING, CanaryState.LOST, None])
async def test_silence_changes_no_state(name: str, node: Node, before: CanaryState | None) -> None:
    bench = Bench(before)
    state = bench.canary.state
    assert await bench.ask({name: node}) is state
    assert isinstance(bench.canary.verdict, Unreachable)
    assert name in bench.events[-1].detail
    assert bench.events[-1].severity == "warning"
    assert bench.remembered == []


@pytest.mark.parametrize("name", ["signed.example", "unsigned.example"])
async def test_servfail_and_nxdomain_of_an_answerable_name_are_unreachable(name: str) -> None:
    bench = Bench(CanaryState.VALIDATING)
    assert await bench.ask({name: Node(fail=FailureKind.SERVFAIL)}) is CanaryState.VALIDATING
    bench.zone.nodes.pop(Domain(name))
    bench.zone.security = Security.INSECURE
    assert isinstance(await bench.canary.ask(), Unreachable)


async def test_what_is_remembered_holds_until_the_first_proof() -> None:
    lost = Bench(CanaryState.LOST)
    assert lost.canary.validation is Validation.LOST
    assert await lost.ask(SILENCE) is CanaryState.LOST
    assert await lost.ask({}) is CanaryState.VALIDATING
    once = Bench(CanaryState.VALIDATING)
    assert await once.ask(NO_VALIDATION) is CanaryState.LOST
    assert Bench(CanaryState.NEVER).canary.state is CanaryState.UNKNOWN


async def test_answers_are_confirmed_by_the_unsigned_name_for_ten_minutes(
    autojump_clock: trio.abc.Clock,
) -> None:
    bench = Bench()
    await bench.ask({"unsigned.example": Node(fail=FailureKind.SERVFAIL)})
    assert not bench.canary.answers_confirmed()
    await bench.ask({"unsigned.example": Node()})
    assert not bench.canary.answers_confirmed()
    await bench.ask(NO_VALIDATION)  # in every state
    assert bench.canary.answers_confirmed()
    await trio.sleep(CONFIRMED_SECONDS)
    assert bench.canary.answers_confirmed()
    await trio.sleep(1)
    assert not bench.canary.answers_confirmed()


async def test_asks_every_interval_and_sooner_after_silence(
    autojump_clock: trio.abc.Clock, nursery: trio.Nursery
) -> None:
    bench = Bench()
    await nursery.start(bench.canary.run)
    assert len(bench.zone.asked) == 3
    await trio.sleep(299)
    assert len(bench.zone.asked) == 3
    bench.zone.nodes = {Domain(name): node for name, node in SILENCE.items()}
    await trio.sleep(2)
    assert len(bench.zone.asked) == 6
    await trio.sleep(30)
    assert len(bench.zone.asked) == 9


async def test_the_three_names_are_asked_at_once(autojump_clock: trio.abc.Clock) -> None:
    bench = Bench()
    bench.zone.latency_seconds = 1.0
    started = trio.current_time()
    await bench.ask({})
    assert trio.current_time() - started == 1.0


def test_the_table_of_states() -> None:
    states = list(CanaryState)
    expected: dict[type, Callable[[CanaryState], CanaryState]] = {
        Validates: lambda state: CanaryState.VALIDATING,
        Contradicts: lambda state: (
            CanaryState.LOST if state in (CanaryState.VALIDATING, CanaryState.LOST) else CanaryState.NEVER
        ),
        Unreachable: lambda state: state,
    }
    for verdict in (Validates(), Contradicts(""), Unreachable("")):
        assert [next_state(s, verdict) for s in states] == [expected[type(verdict)](s) for s in states]


async def test_a_contradiction_outweighs_silence() -> None:
    zone = Zone({**GOOD, "signed.example": NO_AD, "broken.example": Node(fail=FailureKind.TIMEOUT)})
    names = (SETTINGS.signed, SETTINGS.unsigned, SETTINGS.broken)
    answers = [await zone.lookup(name, RdType.A) for name in names]
    assert isinstance(judge_answers(*answers), Contradicts)
