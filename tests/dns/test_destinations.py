"""tests for dns/destinations.py"""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import trio

from smtpguard.dns.destinations import (
    MAX_ADDRESSES,
    MAX_HOSTS,
    Family,
    NoAddresses,
    NoDestination,
    find_addresses,
    find_destination,
    shuffled,
)
from smtpguard.dns.records import (
    Answer,
    Destination,
    FailureKind,
    HostAddresses,
    Lookup,
    LookupFailed,
    MxHost,
    RdType,
    Security,
)
from smtpguard.dns.resolver import Validation
from smtpguard.names import Domain
from smtpguard.reasons import ReasonCode
from tests.support.zone import Node, Zone

DOMAIN = Domain("example.org")
MX1 = Domain("mx1.example.org")
MX2 = Domain("mx2.example.org")
SECURE, INSECURE = Security.SECURE, Security.INSECURE


async def destination(zone: Zone, domain: Domain = DOMAIN) -> Destination:
    found = await find_destination(zone, domain)
    assert isinstance(found, Destination)
    return found


async def no_destination(zone: Zone, domain: Domain = DOMAIN) -> NoDestination:
    found = await find_destination(zone, domain)
    assert isinstance(found, NoDestination)
    return found


async def addresses(zone: Zone, host: Domain = MX1, family: Family = Family.BOTH) -> HostAddresses:
    found = await find_addresses(zone, host, family)
    assert isinstance(found, HostAddresses)
    return found


async def test_mx_06_hosts_ascend_by_preference() -> None:
    zone = Zone({"example.org": Node(mx=["20 mx2.example.org", "10 mx1.example.org"])})
    found = await destination(zone)
    assert found == Destination(DOMAIN, DOMAIN, SECURE, (MxHost(MX1, 10), MxHost(MX2, 20)))


async def test_mx_06_a_host_named_twice_is_tried_once_at_its_best() -> None:
    zone = Zone({"example.org": Node(mx=["20 mx1.example.org", "10 mx1.example.org"])})
    assert (await destination(zone)).hosts == (MxHost(MX1, 10),)


async def test_hosts_are_bounded_best_first() -> None:
    zone = Zone({"example.org": Node(mx=[f"{n} mx{n}.example.org" for n in range(100, 0, -1)])})
    hosts = (await destination(zone)).hosts
    assert [host.preference for host in hosts] == list(range(1, MAX_HOSTS + 1))


def test_mx_06_equal_preferences_are_shuffled_evenly() -> None:
    """chi-square over 10,000 runs: each of the 6 orders of three equals, after the better one"""
    hosts = [MxHost(Domain(name), preference) for name, preference in (("b", 20), ("a", 10), ("c", 20), ("d", 20))]
    random = Random(5321)
    orders = Counter(tuple(host.name for host in shuffled(hosts, random)) for _ in range(10_000))
    assert len(orders) == 6
    assert all(order[0] == "a" for order in orders)
    expected = 10_000 / 6
    assert sum((count - expected) ** 2 / expected for count in orders.values()) < 20.5  # p = 0.001, 5 degrees


async def test_mx_01_an_alias_leads_to_the_targets_mx() -> None:
    zone = Zone(
        {
            "example.org": Node(cname="real.example", security=INSECURE),
            "real.example": Node(mx=["10 mx1.example.org"]),
        }
    )
    found = await destination(zone)
    assert (found.next_hop_domain, found.expanded) == (DOMAIN, Domain("real.example"))
    assert found.security is INSECURE  # DANE-08: one insecure link


async def test_mx_01_dane_08_an_alias_loop_is_temporary() -> None:
    zone = Zone({"example.org": Node(cname="b.example"), "b.example": Node(cname="example.org")})
    found = await no_destination(zone)
    assert found.code is ReasonCode.DNS_FAILURE
    assert found.failure is not None
    assert found.failure.kind is FailureKind.ALIAS_LOOP


async def test_mx_02_a_domain_that_does_not_exist() -> None:
    assert (await no_destination(Zone({}))).code is ReasonCode.NO_SUCH_DOMAIN


@pytest.mark.parametrize("kind", [kind for kind in FailureKind if kind is not FailureKind.BOGUS])
async def test_mx_02_dane_05_a_failed_mx_lookup_is_temporary(kind: FailureKind) -> None:
    found = await no_destination(Zone({"example.org": Node(fail=kind)}))
    assert found.code is ReasonCode.DNS_FAILURE
    assert found.failure is not None
    assert found.failure.kind is kind
    assert found.code.reply_code == 451


async def test_dane_05_a_bogus_mx_answer_is_temporary_and_says_so() -> None:
    found = await no_destination(Zone({"example.org": Node(fail=FailureKind.BOGUS, ede=(7,))}))
    assert found.code is ReasonCode.DNS_BOGUS
    assert found.detail == "MX example.org: bogus, EDE 7"


async def test_mx_03_dane_28_no_mx_record_makes_the_domain_its_own_host() -> None:
    zone = Zone({"example.org": Node(a=["192.0.2.1"])})
    assert await destination(zone) == Destination(DOMAIN, DOMAIN, SECURE, (MxHost(DOMAIN, 0),), implicit=True)


async def test_mx_04_with_an_mx_record_the_domains_own_address_is_never_asked() -> None:
    zone = Zone({"example.org": Node(mx=["10 mx1.example.org"], a=["192.0.2.1"])})
    found = await destination(zone)
    assert await find_addresses(zone, found.hosts[0].name) == NoAddresses(permanent=True)
    assert ("example.org", RdType.A) not in zone.asked
    assert not found.implicit


@pytest.mark.parametrize("mx", [["10 192.0.2.1"], ["0 .", "10 ."], ["10 bad!name.example", "20 -x.example"]])
async def test_mx_05_dane_27_only_unusable_exchanges(mx: list[str]) -> None:
    assert (await no_destination(Zone({"example.org": Node(mx=mx)}))).code is ReasonCode.NO_USABLE_MX


async def test_mx_10_null_mx() -> None:
    assert (await no_destination(Zone({"example.org": Node(mx=["0 ."])}))).code is ReasonCode.NULL_MX


async def test_mx_10_the_root_among_other_hosts_is_ignored() -> None:
    zone = Zone({"example.org": Node(mx=["0 .", "10 mx1.example.org", "5 192.0.2.9"])})
    assert (await destination(zone)).hosts == (MxHost(MX1, 10),)


@pytest.mark.parametrize("nodes", [{}, {"example.org": Node(mx=["0 ."])}, {"example.org": Node(mx=["10 192.0.2.1"])}])
async def test_permanent_verdicts_need_a_confirmed_resolver(nodes: dict[str, Node]) -> None:
    zone = Zone(nodes, confirmed=False)
    found = await no_destination(zone)
    assert found.code is ReasonCode.DNS_UNCONFIRMED
    assert found.code.reply_code == 451
    assert found.detail
    assert await find_addresses(zone, MX1) == NoAddresses(permanent=False)


async def test_mx_12_both_families_taking_turns() -> None:
    zone = Zone({MX1: Node(a=["192.0.2.1", "192.0.2.2"], aaaa=["2001:db8::1"])})
    found = await addresses(zone)
    assert list(map(str, found.addresses)) == ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
    assert found == HostAddresses(MX1, found.addresses, SECURE, MX1)


async def test_mx_12_a_host_without_addresses_of_our_family() -> None:
    zone = Zone({MX1: Node(aaaa=["2001:db8::1"])})
    assert await find_addresses(zone, MX1, Family.IPV4) == NoAddresses(permanent=True)
    assert zone.asked_for(RdType.AAAA) == []
    assert len((await addresses(zone, family=Family.IPV6)).addresses) == 1


async def test_dane_12_no_address_although_tlsa_exists() -> None:
    zone = Zone({MX1: Node(), f"_25._tcp.{MX1}": Node(tlsa=["3 1 1 " + "00" * 32])})
    assert await find_addresses(zone, MX1) == NoAddresses(permanent=True)


async def test_dane_06_a_failed_address_lookup_is_of_that_host_only() -> None:
    zone = Zone({MX1: Node(fail=FailureKind.SERVFAIL), MX2: Node(a=["192.0.2.2"])})
    failed = await find_addresses(zone, MX1)
    assert isinstance(failed, LookupFailed)
    assert failed.name == MX1
    assert (await addresses(zone, MX2)).security is SECURE


@pytest.mark.parametrize("bad", [RdType.A, RdType.AAAA])
async def test_ch_27_the_good_family_is_enough(bad: RdType) -> None:
    zone = Zone({MX1: Node(a=["192.0.2.1"], aaaa=["2001:db8::1"], fail={bad: FailureKind.TIMEOUT})})
    found = await addresses(zone)
    assert len(found.addresses) == 1
    assert found.security is SECURE


@pytest.mark.parametrize("bad", [RdType.A, RdType.AAAA])
async def test_ch_27_one_family_failed_and_the_other_empty_proves_nothing(bad: RdType) -> None:
    zone = Zone({MX1: Node(fail={bad: FailureKind.BOGUS})})
    failed = await find_addresses(zone, MX1)
    assert isinstance(failed, LookupFailed)
    assert (failed.rdtype, failed.kind) == (bad, FailureKind.BOGUS)


async def test_ch_27_secure_only_if_every_family_used_is() -> None:
    class Mixed(Zone):
        async def lookup(self, name: Domain, rdtype: RdType) -> Lookup:
            found = await super().lookup(name, rdtype)
            if isinstance(found, Answer) and rdtype is RdType.AAAA:
                return replace(found, security=INSECURE)
            return found

    zone = Mixed({MX1: Node(a=["192.0.2.1"], aaaa=["2001:db8::1"]), MX2: Node(a=["192.0.2.2"])})
    assert (await addresses(zone)).security is INSECURE
    assert (await addresses(zone, MX2)).security is SECURE  # the empty family is not used


async def test_of_two_failures_the_bogus_one_is_reported() -> None:
    zone = Zone({MX1: Node(fail={RdType.AAAA: FailureKind.TIMEOUT, RdType.A: FailureKind.BOGUS})})
    failed = await find_addresses(zone, MX1)
    assert isinstance(failed, LookupFailed)
    assert failed.kind is FailureKind.BOGUS


async def test_addresses_are_bounded() -> None:
    zone = Zone({MX1: Node(a=[f"192.0.2.{n}" for n in range(100)], aaaa=["2001:db8::1"])})
    found = await addresses(zone)
    assert len(found.addresses) == MAX_ADDRESSES
    assert str(found.addresses[0]) == "2001:db8::1"


async def test_mx_09_dane_14_a_secure_alias_is_followed_without_another_query() -> None:
    zone = Zone({MX1: Node(cname="host.example"), "host.example": Node(a=["192.0.2.1"])})
    found = await addresses(zone)
    assert found.canonical == "host.example"
    assert (found.security, found.alias_security) == (SECURE, SECURE)
    assert zone.asked_for(RdType.CNAME) == []


@pytest.mark.parametrize("alias", [SECURE, INSECURE])
async def test_dane_09_insecure_addresses_of_an_alias_ask_for_the_alias_itself(alias: Security) -> None:
    zone = Zone(
        {
            MX1: Node(cname="host.example", security=alias),
            "host.example": Node(a=["192.0.2.1"], security=INSECURE),
        }
    )
    found = await addresses(zone)
    assert zone.asked_for(RdType.CNAME) == [MX1]
    assert (found.security, found.alias_security) == (INSECURE, alias)


async def test_dane_09_no_cname_query_for_a_host_that_is_no_alias_or_without_dnssec() -> None:
    zone = Zone({MX1: Node(a=["192.0.2.1"])}, security=INSECURE)
    assert (await addresses(zone)).alias_security is None
    zone = Zone({MX1: Node(cname="host.example"), "host.example": Node(a=["192.0.2.1"])}, validation=Validation.OFF)
    assert (await addresses(zone)).alias_security is INSECURE
    assert zone.asked_for(RdType.CNAME) == []


async def test_dane_07_dane_08_a_failed_alias_query_fails_the_host() -> None:
    zone = Zone(
        {
            MX1: Node(cname="host.example", fail={RdType.CNAME: FailureKind.SERVFAIL}),
            "host.example": Node(a=["192.0.2.1"], security=INSECURE),
        }
    )
    failed = await find_addresses(zone, MX1)
    assert isinstance(failed, LookupFailed)
    assert failed.rdtype is RdType.CNAME


async def test_both_families_are_one_round_trip(autojump_clock: trio.abc.Clock) -> None:
    zone = Zone({MX1: Node(a=["192.0.2.1"], aaaa=["2001:db8::1"])}, latency_seconds=1.0)
    started = trio.current_time()
    await addresses(zone)
    assert trio.current_time() - started == 1.0
