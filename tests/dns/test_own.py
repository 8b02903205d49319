"""The TLSA records of our own listeners (DANE-45)."""

import pytest

from smtpguard.dns.own import find_own_tlsa
from smtpguard.dns.records import FailureKind, LookupFailed, NoTlsa, TlsaFound, TlsaRecord
from smtpguard.names import Domain
from tests.support.zone import Node, Zone

MX = Domain("mx.example.org")
DATA = "ab" * 32
HOST = Node(a=["192.0.2.1"])
TLSA = Node(tlsa=[f"3 1 1 {DATA}"])


async def test_records_at_the_public_port() -> None:
    """RFC 7672 §2.2.3: under the name that MX records hold, at the port that others connect to."""
    zone = Zone({MX: HOST, f"_25._tcp.{MX}": TLSA})
    assert await find_own_tlsa(zone, MX) == TlsaFound(MX, (TlsaRecord(3, 1, 1, bytes.fromhex(DATA)),))
    assert await find_own_tlsa(zone, MX, 465) == NoTlsa()


async def test_host_without_an_address() -> None:
    assert await find_own_tlsa(Zone({f"_25._tcp.{MX}": TLSA}), MX) == NoTlsa()


@pytest.mark.parametrize("kind", [FailureKind.SERVFAIL, FailureKind.TIMEOUT])
async def test_failure_is_not_absence(kind: FailureKind) -> None:
    """Nothing is known then, so nothing is said about the chain."""
    for zone in (
        Zone({MX: Node(fail=kind), f"_25._tcp.{MX}": TLSA}),
        Zone({MX: HOST, f"_25._tcp.{MX}": Node(fail=kind)}),
    ):
        result = await find_own_tlsa(zone, MX)
        assert isinstance(result, LookupFailed)
        assert result.kind is kind
