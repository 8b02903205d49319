"""How many round trips, one after the other, does a cold domain cost?  Counted on a clock that only DNS moves."""

from random import Random

import trio
from trio.testing import MockClock

from smtpguard.dns.destinations import Family
from smtpguard.mtasts.parse import NoSts
from smtpguard.names import Domain
from smtpguard.outbound.gather import Gathering, Plan
from smtpguard.outbound.routes import NextHop
from smtpguard.policy.model import Authentication, StsEvidence
from smtpguard.policy.rules import RuleSet
from tests.support.clock import test_clock as make_clock
from tests.support.zone import Node, Zone

DOMAIN = Domain("a.example")


class SlowSts:
    """A policy look-up that takes very long."""

    async def find(self, domain: Domain, mx_security: object = None) -> StsEvidence:
        await trio.sleep(1000)
        return NoSts()


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
    gathering = Gathering(
        NextHop("a.example", DOMAIN, None, 25),
        RuleSet().find("a.example"),
        lookups=zone,
        sts=SlowSts(),
        clock=make_clock(),
        family=Family.BOTH,
        random=Random(1),
        digests=(2, 1),
    )
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
