"""tests for dns/tlsa.py"""

import pytest
import trio

from smtpguard.dns.destinations import find_addresses, find_destination
from smtpguard.dns.records import (
    Destination,
    FailureKind,
    HostAddresses,
    LookupFailed,
    NoTlsa,
    RdType,
    Security,
    TlsaFound,
    TlsaLookup,
    TlsaRecord,
)
from smtpguard.dns.resolver import Validation
from smtpguard.dns.tlsa import find_tlsa
from smtpguard.names import Domain, parse_domain
from tests.support.zone import Node, Zone

MX1 = Domain("mx1.example.org")
TARGET = Domain("host.example")
SECURE, INSECURE = Security.SECURE, Security.INSECURE
DATA = "ab" * 32
RECORD = TlsaRecord(3, 1, 1, bytes.fromhex(DATA))
TLSA = Node(tlsa=["3 1 1 " + DATA])
HOST = Node(a=["192.0.2.1"])


async def tlsa(zone: Zone, host: str = MX1, port: int = 25) -> TlsaLookup:
    found = await find_addresses(zone, parse_domain(host))
    assert isinstance(found, HostAddresses)
    return await find_tlsa(zone, found, port)


async def test_dane_13_a_secure_host_that_is_no_alias_is_its_own_base_domain() -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": TLSA})
    assert await tlsa(zone) == TlsaFound(MX1, (RECORD,))


async def test_dane_10_addresses_are_asked_before_tlsa() -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": TLSA})
    await tlsa(zone)
    assert [rdtype for _, rdtype in zone.asked[-1:]] == [RdType.TLSA]
    assert {rdtype for _, rdtype in zone.asked[:-1]} == {RdType.A, RdType.AAAA}


async def test_dane_11_an_insecure_host_is_never_asked_for_tlsa() -> None:
    zone = Zone({MX1: Node(a=["192.0.2.1"], security=INSECURE), f"_25._tcp.{MX1}": Node(fail=FailureKind.TIMEOUT)})
    assert await tlsa(zone) == NoTlsa()
    assert zone.asked_for(RdType.TLSA) == []


@pytest.mark.parametrize("kind", list(FailureKind))
async def test_dane_03_dane_07_any_failure_of_the_tlsa_lookup_is_a_failure(kind: FailureKind) -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": Node(fail=kind)})
    failed = await tlsa(zone)
    assert isinstance(failed, LookupFailed)
    assert (failed.name, failed.kind) == (f"_25._tcp.{MX1}", kind)


@pytest.mark.parametrize("security", [SECURE, INSECURE])
@pytest.mark.parametrize("nodes", [{}, {"_tcp.mx1.example.org": Node()}, {"_25._tcp.mx1.example.org": Node()}])
async def test_dane_04_absence_is_an_answer(nodes: dict[str, Node], security: Security) -> None:
    nodes = {name: Node(security=security) for name in nodes}
    assert await tlsa(Zone({MX1: HOST, **nodes})) == NoTlsa()


async def test_insecure_tlsa_records_do_not_count() -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": Node(tlsa=["3 1 1 " + DATA], security=INSECURE)})
    assert await tlsa(zone) == NoTlsa()


def alias(*, target: Security = SECURE, link: Security = SECURE, **tlsa_at: Node) -> Zone:
    """mx1 -> middle -> host.example, TLSA records at those named `mx1`, `middle`, `target`"""
    owners = {"mx1": MX1, "middle": "middle.example", "target": TARGET}
    return Zone(
        {
            MX1: Node(cname="middle.example", security=link),
            "middle.example": Node(cname=TARGET),
            TARGET: Node(a=["192.0.2.1"], security=target),
            **{f"_25._tcp.{owners[name]}": node for name, node in tlsa_at.items()},
        }
    )


async def test_dane_14_expanded_name_first_then_the_initial_one_never_those_between() -> None:
    assert await tlsa(alias(mx1=TLSA, target=SECURE)) == TlsaFound(MX1, (RECORD,))
    both = alias(mx1=TLSA)
    both.nodes[Domain(f"_25._tcp.{TARGET}")] = TLSA
    assert await tlsa(both) == TlsaFound(TARGET, (RECORD,))
    assert both.asked_for(RdType.TLSA) == [f"_25._tcp.{TARGET}"]
    middle = alias(middle=TLSA)
    assert await tlsa(middle) == NoTlsa()
    assert middle.asked_for(RdType.TLSA) == [f"_25._tcp.{TARGET}", f"_25._tcp.{MX1}"]


async def test_dane_15_an_insecure_alias_has_no_dane() -> None:
    zone = alias(link=INSECURE, mx1=TLSA)
    zone.nodes[Domain(f"_25._tcp.{TARGET}")] = TLSA
    assert await tlsa(zone) == NoTlsa()
    assert zone.asked_for(RdType.TLSA) == []


async def test_dane_09_dane_15_a_secure_alias_of_an_insecure_target_has_one_candidate() -> None:
    zone = alias(target=INSECURE, mx1=TLSA)
    zone.nodes[Domain(f"_25._tcp.{TARGET}")] = Node(tlsa=["3 1 1 " + DATA], security=SECURE)
    assert await tlsa(zone) == TlsaFound(MX1, (RECORD,))
    assert zone.asked_for(RdType.CNAME) == [MX1]
    assert zone.asked_for(RdType.TLSA) == [f"_25._tcp.{MX1}"]


async def test_dane_16_an_error_at_the_expanded_name_does_not_advance() -> None:
    zone = alias(mx1=TLSA)
    zone.nodes[Domain(f"_25._tcp.{TARGET}")] = Node(fail=FailureKind.SERVFAIL)
    failed = await tlsa(zone)
    assert isinstance(failed, LookupFailed)
    assert zone.asked_for(RdType.TLSA) == [f"_25._tcp.{TARGET}"]


async def test_dane_16_an_insecure_answer_at_the_expanded_name_does() -> None:
    zone = alias(mx1=TLSA)
    zone.nodes[Domain(f"_25._tcp.{TARGET}")] = Node(tlsa=["3 1 1 " + DATA], security=INSECURE)
    assert await tlsa(zone) == TlsaFound(MX1, (RECORD,))


async def test_dane_17_the_port_really_used() -> None:
    zone = Zone({MX1: HOST, f"_26._tcp.{MX1}": TLSA, f"_25._tcp.{MX1}": Node()})
    assert await tlsa(zone, port=26) == TlsaFound(MX1, (RECORD,))
    assert zone.asked_for(RdType.TLSA) == [f"_26._tcp.{MX1}"]


async def test_dane_18_an_alias_at_the_tlsa_owner_keeps_the_base_domain() -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": Node(cname="tlsa201._dane.example"), "tlsa201._dane.example": TLSA})
    assert await tlsa(zone) == TlsaFound(MX1, (RECORD,))


async def test_dane_08_an_alias_at_the_tlsa_owner_must_be_secure_to_its_end() -> None:
    zone = Zone(
        {
            MX1: HOST,
            f"_25._tcp.{MX1}": Node(cname="tlsa.example", security=INSECURE),
            "tlsa.example": Node(tlsa=["3 1 1 " + DATA], security=SECURE),
        }
    )
    assert await tlsa(zone) == NoTlsa()


async def test_tlsa_01_a_malformed_record_still_counts_as_present() -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": Node(tlsa=["3 1 1"])})
    assert await tlsa(zone) == TlsaFound(MX1, (TlsaRecord(3, 1, 1, b"", malformed=True),))


async def test_dane_28_the_implicit_mx_is_its_own_base_domain() -> None:
    domain = Domain("example.org")
    zone = Zone({domain: HOST, f"_25._tcp.{domain}": TLSA})
    destination = await find_destination(zone, domain)
    assert isinstance(destination, Destination)
    assert destination.implicit
    assert await tlsa(zone, destination.hosts[0].name) == TlsaFound(domain, (RECORD,))


@pytest.mark.parametrize("security", [SECURE, INSECURE])
async def test_lost_validation_fails_every_host_without_a_query(security: Security) -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": TLSA}, security=security, validation=Validation.LOST)
    failed = await tlsa(zone)
    assert isinstance(failed, LookupFailed)
    assert (failed.name, failed.kind) == (MX1, FailureKind.DNSSEC_LOST)
    assert zone.asked_for(RdType.TLSA) == []


async def test_dane_02_without_validation_there_is_no_dane_and_no_query() -> None:
    zone = Zone({MX1: HOST, f"_25._tcp.{MX1}": TLSA}, validation=Validation.OFF)
    assert await tlsa(zone) == NoTlsa()
    assert zone.asked_for(RdType.TLSA) == []


async def test_a_host_name_too_long_for_a_tlsa_owner_has_no_tlsa() -> None:
    host = ".".join(["a" * 60] * 4) + ".example"
    assert await tlsa(Zone({host: HOST}), host) == NoTlsa()


async def test_a_cold_dane_domain_takes_three_round_trips(autojump_clock: trio.abc.Clock) -> None:
    """DESIGN §5"""
    zone = Zone({"example.org": Node(mx=["10 " + MX1]), MX1: HOST, f"_25._tcp.{MX1}": TLSA}, latency_seconds=1.0)
    started = trio.current_time()
    assert isinstance(await find_destination(zone, Domain("example.org")), Destination)
    assert isinstance(await tlsa(zone), TlsaFound)
    assert trio.current_time() - started == 3.0
