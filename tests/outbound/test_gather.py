"""How many round trips, one after the other, does a cold domain cost?  Counted on a clock that only DNS moves."""

from random import Random

import trio
from trio.testing import MockClock

from smtpguard.dns.destinations import Family
from smtpguard.dns.records import FailureKind
from smtpguard.mtasts.parse import NoSts
from smtpguard.names import Domain
from smtpguard.outbound.gather import Gathering, Plan
from smtpguard.outbound.routes import NextHop
from smtpguard.policy.model import Authentication, StsEvidence, TryNextMx
from smtpguard.policy.rules import RuleSet
from smtpguard.reasons import Reason
from tests.support.clock import test_clock as make_clock
from tests.support.zone import Node, Zone

DOMAIN = Domain("a.example")


class SlowSts:
    """A policy look-up that takes very long."""

    async def find(self, domain: Domain, mx_security: object = None) -> StsEvidence:
        await trio.sleep(1000)
        return NoSts()


def gathering_of(zone: Zone) -> Gathering:
    return Gathering(
        NextHop("a.example", DOMAIN, None, 25),
        RuleSet().find("a.example"),
        lookups=zone,
        sts=SlowSts(),
        clock=make_clock(),
        family=Family.BOTH,
        random=Random(1),
        digests=(2, 1),
    )


async def test_cold_dane_domain_is_decided_in_three_round_trips(autojump_clock: MockClock) -> None:
    """DANE-10, DESIGN §5: MX, addresses, TLSA; MTA-STS runs beside and is not waited for where DANE decides."""
    zone = Zone(
        {
            "a.example": Node(mx=["10 mx1.a.example", "20 mx2.a.example"]),
            "mx1.a.example": Node(a=["192.0.2.1"], aaaa=["2001:db8::1"]),
            "mx2.a.example": Node(a=["192.0.2.2"]),
            "_25._tcp.mx1.a.example": Node(tlsa=["3 1 1 " + "ab" * 32]),
            "_25._tcp.mx2.a.example": Node(tlsa=["3 1 1 " + "cd" * 32]),
        },
        latency_seconds=1,
    )
    gathering = gathering_of(zone)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        gathering.start(nursery)
        hosts = await gathering.hosts()
        assert not hasattr(hosts, "code")
        for host in hosts:  # type: ignore[union-attr]
            plan = await gathering.plan(host)
            assert isinstance(plan, Plan)
            assert plan.requirement.authentication is Authentication.DANE
        assert trio.current_time() - began == 3
        nursery.cancel_scope.cancel()


async def test_many_hosts_are_looked_up_a_few_at_a_time(autojump_clock: MockClock) -> None:
    """Law 7: one domain with many mail hosts and slow name servers must not take all look-ups that can be under way."""
    names = [f"mx{number}.a.example" for number in range(50)]
    nodes = {name: Node(fail=FailureKind.TIMEOUT) for name in names[:-1]}
    nodes[names[-1]] = Node(a=["192.0.2.1"])
    zone = Zone({"a.example": Node(mx=[f"10 {name}" for name in names]), **nodes}, latency_seconds=1)
    gathering = gathering_of(zone)
    async with trio.open_nursery() as nursery:
        gathering.start(nursery)
        hosts = await gathering.hosts()
        assert not isinstance(hosts, Reason)
        await gathering.plan(hosts[0])
        assert len({name for name, _ in zone.asked}) <= 1 + 8
        await gathering.addresses(hosts[-1])  # not in order, and nobody is left out
        for host in hosts:
            assert isinstance(await gathering.plan(host), TryNextMx) is (host.name != names[-1])
        assert {name for name, _ in zone.asked} >= {"a.example", *names}
        nursery.cancel_scope.cancel()
