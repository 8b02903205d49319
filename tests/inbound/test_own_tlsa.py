"""Does the chain that is served agree with our own TLSA records?  (DANE-45, RFC 7672 §8.1)"""

from pathlib import Path

import trio.testing

from smtpguard.events import CertificateAlert
from smtpguard.telemetry.state import ServedCertificate, State, with_inbound
from tests.support.front import HOST, open_front
from tests.support.zone import Node, Zone


async def test_records_of_another_key_are_told_once(tmp_path: Path) -> None:
    """DANE-45: what to publish is in the text; the same problem is not told each hour."""
    zone = Zone({HOST: Node(a=["192.0.2.25"]), f"_25._tcp.{HOST}": Node(tlsa=["3 1 1 " + "00" * 32])})
    async with open_front(tmp_path, zone=zone) as front:
        await front.service.check_tlsa()
        await front.service.check_tlsa()
        certificates = front.service.certificates
        assert certificates is not None
        spki = certificates.certificates[0].spki_sha256
    told = [event.detail for event in front.of(CertificateAlert) if event.event == "tlsa"]
    assert front.service.tlsa_problems == tuple(
        event.detail for event in front.of(CertificateAlert) if event.event == "tlsa"
    )
    assert any(f"publish 3 1 1 {spki}" in detail for detail in told)
    assert len(told) == len(set(told))


async def test_matching_or_no_records_are_fine(tmp_path: Path) -> None:
    """DANE-45."""
    zone = Zone({HOST: Node(a=["192.0.2.25"])})
    async with open_front(tmp_path, zone=zone) as front:
        certificates = front.service.certificates
        assert certificates is not None
        await front.service.check_tlsa()
        zone.nodes[f"_25._tcp.{HOST}"] = Node(tlsa=["3 1 1 " + certificates.certificates[0].spki_sha256])
        await front.service.check_tlsa()
        assert front.service.tlsa_problems == ()
    assert [event for event in front.of(CertificateAlert) if event.event == "tlsa"] == []


async def test_a_listener_that_nobody_asks_tlsa_of_has_nothing_to_compare(tmp_path: Path) -> None:
    """RFC 7672 is about relays on port 25: submission and implicit TLS show no result, not a good one."""
    for other in ({"submission": True}, {"tls": "implicit"}):
        async with open_front(tmp_path, **other) as front:
            await trio.testing.wait_all_tasks_blocked()
            assert front.service.tlsa_problems is None


async def test_what_the_metrics_read_of_a_listener(tmp_path: Path) -> None:
    """The MTA's state, each certificate's end by file and name, and how much the comparison found."""
    zone = Zone({HOST: Node(a=["192.0.2.25"]), f"_25._tcp.{HOST}": Node(tlsa=["3 1 1 " + "00" * 32])})
    async with open_front(tmp_path, zone=zone, names=(HOST, "b.example")) as front:
        await front.service.check_tlsa()
        state = with_inbound(State(ready=True), [front.service])
        certificates = front.service.certificates
        assert certificates is not None
    assert state.ready
    assert state.mta_states == {"mx": "ready"}
    assert state.self_check_problems == {"mx": 1}
    assert state.certificates == tuple(
        ServedCertificate("mx", str(tmp_path / f"{name}.pem"), name, certificate.not_after)
        for name, certificate in zip((HOST, "b.example"), certificates.certificates, strict=True)
    )
