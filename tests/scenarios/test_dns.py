"""CONFORMANCE §D2: DNS faults, key rollovers and local rules (AF-10..AF-21, AF-32).

Each test looks at the reply, at the wire (`outcome` lets no octet of mail pass in clear, INV-04) and at the events
that an RFC 8460 report will be made of.
"""

from pathlib import Path

import pytest

from smtpguard.events import Delivered, DeliveryRefused, DnsLookup, DnssecState, HostOpened, PolicyObserved, RuleWarning
from smtpguard.sandbox.certificates import tlsa
from smtpguard.sandbox.dns import Fault, Security
from smtpguard.sandbox.internet import Attack, Publication, Site
from tests.support.rig import open_rig
from tests.support.told import (
    MX,
    MX2,
    NO_MATCH,
    TLSA_BOGUS,
    UNTRUSTED,
    UNUSABLE,
    D,
    observed,
    opened,
    outcome,
    self_signed,
    skipped,
)


async def test_mismatch_on_the_first_match_on_the_second(tmp_path: Path) -> None:
    """AF-10, DANE-19, DANE-22, RM-05: a failing MX is skipped with its reason, the next one delivers."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        second = await rig.internet.add_mx(D, MX2)
        await rig.internet.attack(D, Attack.STALE_TLSA)
        assert await outcome(rig) == "delivered"
        assert skipped(rig) == [NO_MATCH]
        assert opened(rig) == [(MX2, "dane", "tlsa", "")]
        assert len(second.messages) == 1
        assert rig.of(Delivered)[0].mx == MX2


@pytest.mark.parametrize("served", ["old", "new"])
async def test_rollover(tmp_path: Path, served: str) -> None:
    """AF-11, TLSA-18: the RRset has the old and the new key."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        host = rig.internet.hosts[D]
        new = rig.internet.certificates.leaf(None, [MX])
        records = [tlsa(3, 1, 1, host.honest.der), tlsa(3, 1, 1, new.der)]
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", *records, ttl=0)
        if served == "new":
            host.mx.credential = new
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "dane", "tlsa", "")]
        assert sorted(rig.of(HostOpened)[0].policy_string) == sorted(records)


async def test_botched_rollover(tmp_path: Path) -> None:
    """AF-12, OUT-12, RM-05: only the new key stands in DNS, the old one is served."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        new = rig.internet.certificates.leaf(None, [MX])
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", tlsa(3, 1, 1, new.der), ttl=0)
        assert f"451 4.7.5 [dane/no-match] {MX}" in await outcome(rig)
        assert skipped(rig) == [NO_MATCH]
        assert not opened(rig)


async def test_bogus_tlsa_skips_the_host(tmp_path: Path) -> None:
    """AF-13, DANE-07, RM-07: the host is never contacted, the next one delivers."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        await rig.internet.add_mx(D, MX2)
        await rig.internet.attack(D, Attack.BOGUS_TLSA)
        assert await outcome(rig) == "delivered"
        assert not rig.internet.hosts[D].mx.sessions
        assert skipped(rig) == [TLSA_BOGUS]
        assert opened(rig) == [(MX2, "dane", "tlsa", "")]


async def test_sts_does_not_rescue_a_bogus_tlsa(tmp_path: Path) -> None:
    """AF-14, DANE-39, STS-36, OUT-13, RM-07: a valid certificate and an enforce policy change nothing."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_AND_STS)]) as rig:
        await rig.internet.attack(D, Attack.BOGUS_TLSA)
        assert f"451 4.7.5 [dane/tlsa-bogus] {MX}" in await outcome(rig)
        assert not rig.internet.hosts[D].mx.sessions
        assert skipped(rig) == [TLSA_BOGUS]


async def test_tlsa_timeout(tmp_path: Path) -> None:
    """AF-15, DANE-07, OUT-13, RM-08: a signed host whose TLSA query gets no answer."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)], dns_seconds=1) as rig:
        rig.internet.names.fail(rig.internet.tlsa_name(MX), Fault.DROP, "TLSA")
        assert f"451 4.7.5 [dane/tlsa-lookup] {MX}" in await outcome(rig)
        assert skipped(rig) == [(MX, "dane/tlsa-lookup", "tlsa", "tlsa-invalid", "dns-timeout")]
        assert "timeout" in {lookup.status for lookup in rig.of(DnsLookup) if lookup.rdtype == "TLSA"}
        assert not rig.internet.hosts[D].mx.sessions


@pytest.mark.parametrize(
    ("publishes", "level", "policy_type"),
    [(Publication.NOTHING, "may", "no-policy-found"), (Publication.STS_ENFORCE, "sts", "sts")],
)
async def test_unsigned_host_is_not_asked_for_tlsa(
    tmp_path: Path, publishes: Publication, level: str, policy_type: str
) -> None:
    """AF-16, DANE-11: its name servers may drop such queries; MTA-STS or the default level applies."""
    async with open_rig(tmp_path, [Site(D, publishes)]) as rig:
        rig.internet.names.fail(rig.internet.tlsa_name(MX), Fault.DROP, "TLSA")
        assert await outcome(rig) == "delivered"
        assert not rig.internet.name_server.asked(rig.internet.tlsa_name(MX), "TLSA")
        assert opened(rig) == [(MX, level, policy_type, "")]


@pytest.mark.parametrize(("fault", "status"), [(Fault.SERVFAIL, "servfail"), (Fault.DROP, "timeout")])
async def test_mx_lookup_fails(tmp_path: Path, fault: Fault, status: str) -> None:
    """AF-17, DANE-05, MX-02, OUT-04: the domain waits, and no TLS result is told of it."""
    async with open_rig(tmp_path, [Site(D, Publication.NOTHING)], dns_seconds=1) as rig:
        rig.internet.names.fail(D, fault, "MX")
        assert f"451 4.4.3 [dns/failure] {D}" in await outcome(rig)
        assert not rig.internet.hosts[D].mx.sessions
        assert not skipped(rig)
        assert {lookup.status for lookup in rig.of(DnsLookup) if lookup.rdtype == "MX"} == {status}


@pytest.mark.parametrize(("bogus", "host"), [("MX", ""), ("A", MX)])
async def test_bogus_mx_or_address(tmp_path: Path, bogus: str, host: str) -> None:
    """AF-18, OUT-04, RM-16: nobody knows the host, or where it is; both count as failures without a policy."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        rig.internet.names.judge_as(MX if host else D, bogus, Security.BOGUS)
        assert f"451 4.4.3 [dns/bogus] {host or D}" in await outcome(rig)
        assert skipped(rig) == [(host, "dns/bogus", "no-policy-found", "validation-failure", "ede-6")]
        assert not rig.internet.hosts[D].mx.sessions
        assert "bogus" in {lookup.status for lookup in rig.of(DnsLookup)}


@pytest.mark.parametrize("stripped", [False, True])
async def test_only_unusable_tlsa(tmp_path: Path, stripped: bool) -> None:
    """AF-19, DANE-20, RM-06: TLS is mandatory, authentication is not; that no record is usable is told once."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        if stripped:
            await rig.internet.attack(D, Attack.STRIP_STARTTLS)
        records = ("0 0 1 " + "00" * 32, "4 0 1 " + "11" * 32)
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", *records, ttl=0)
        result = await outcome(rig)
        assert observed(rig) == [UNUSABLE]
        assert sorted(rig.of(PolicyObserved)[0].policy_string) == sorted(records)
        if stripped:
            assert f"451 4.7.4 [tls/no-starttls] {MX}" in result
            assert skipped(rig) == [(MX, "tls/no-starttls", "tlsa", "starttls-not-supported", "")]
        else:
            assert result == "delivered"
            assert rig.of(Delivered)[0].policy == "dane-unusable"
            assert opened(rig) == [(MX, "dane-unusable", "tlsa", "")]


async def test_unusable_tlsa_and_sts(tmp_path: Path) -> None:
    """AF-20, POL-04, OUT-17, RM-04, RM-06: then the MTA-STS policy asks for the certificate."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_AND_STS)]) as rig:
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", "0 0 1 " + "00" * 32, ttl=0)
        self_signed(rig.internet)
        assert f"451 4.7.5 [sts/untrusted] {MX}" in await outcome(rig)
        assert skipped(rig) == [UNTRUSTED]
        assert observed(rig) == [UNUSABLE]


@pytest.mark.parametrize(
    ("publishes", "expected"), [(Publication.DANE_EE, "delivered"), (Publication.DANE_AND_STS, "sts/untrusted")]
)
async def test_untrusted_resolver(tmp_path: Path, publishes: Publication, expected: str) -> None:
    """AF-21: the AD bit of a stub on 127.0.0.53 is not believed: DANE is off, said loudly, MTA-STS still holds."""
    async with open_rig(tmp_path, [Site(D, publishes)], resolver="127.0.0.53") as rig:
        self_signed(rig.internet)
        result = await outcome(rig)
        assert [event.state for event in rig.of(DnssecState)] == ["untrusted", "never-validated"]
        assert not rig.internet.name_server.asked(rig.internet.tlsa_name(MX), "TLSA")
        if expected == "delivered":
            assert result == expected
            assert opened(rig) == [(MX, "may", "no-policy-found", "")]
        else:
            assert f"451 4.7.5 [{expected}] {MX}" in result
            assert skipped(rig) == [UNTRUSTED]


@pytest.mark.parametrize(("publishes", "policy_type"), [(Publication.NOTHING, "tlsa"), (Publication.DANE_EE, "tlsa")])
async def test_dane_only(tmp_path: Path, publishes: Publication, policy_type: str) -> None:
    """OUT-14, RM-09, DANE-24, DANE-40, POL-11: DANE is demanded by a rule, and there is none, or it is not secure."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "dane-only"\n'
    async with open_rig(tmp_path, [Site(D, publishes)], extra=rule) as rig:
        if publishes is Publication.DANE_EE:
            rig.internet.names.judge_as(D, "MX", Security.INSECURE)
        reason = "dane/insecure-mx"  # both zones are unsigned as far as the MX records go
        assert f"451 4.7.5 [{reason}] {MX}" in await outcome(rig)
        assert skipped(rig) == [(MX, reason, policy_type, "dane-required", "")]
        assert not rig.internet.hosts[D].mx.sessions


async def test_shadow_rule_changes_no_reply(tmp_path: Path) -> None:
    """DESIGN §6: a shadow rule is judged and recorded, the mail goes as without it."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "secure"\nmode = "shadow"\n'
    async with open_rig(tmp_path, [Site(D, Publication.NOTHING)], extra=rule) as rig:
        assert await outcome(rig) == "delivered"
        (shadow,) = rig.of(PolicyObserved)
        assert (shadow.kind, shadow.would, shadow.result_type) == ("shadow", "refuse", "certificate-not-trusted")
        assert opened(rig) == [(MX, "may", "no-policy-found", "")]


@pytest.mark.parametrize("override", [False, True])
async def test_weaker_rule_is_not_applied_without_override(tmp_path: Path, override: bool) -> None:
    """POL-01, DANE-41: it warns; with override it is applied, and that is recorded."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "may"\n' + ("override = true\n" if override else "")
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)], extra=rule) as rig:
        await rig.internet.attack(D, Attack.SWAP_CERTIFICATE)
        result = await outcome(rig)
        assert [warning.kind for warning in rig.of(RuleWarning)] == ["override" if override else "weaker"]
        if override:
            assert result == "delivered"
            assert observed(rig) == [("override", "refuse", "tlsa", "certificate-not-trusted", "dane-no-match")]
        else:
            assert f"451 4.7.5 [dane/no-match] {MX}" in result
            assert skipped(rig) == [NO_MATCH]


async def test_routing_verdicts(tmp_path: Path) -> None:
    """AF-32, OUT-01, OUT-02, OUT-05: null MX, no such domain, ourselves; no TLS result is told of them."""
    outbound = 'own_names = ["mx.self.example"]'
    sites = [Site(D, Publication.NOTHING), Site("self.example", Publication.NOTHING)]
    async with open_rig(tmp_path, sites, outbound=outbound) as rig:
        rig.internet.names.put(D, "MX", "0 .", ttl=0)
        assert f"556 5.1.10 [route/null-mx] {D}" in await outcome(rig)
        assert "550 5.1.2 [route/no-such-domain] nowhere.example" in await outcome(rig, "a@nowhere.example")
        assert "554 5.4.6 [route/loop] mx.self.example" in await outcome(rig, "a@self.example")
        assert [(event.reason, event.mx) for event in rig.of(DeliveryRefused)] == [
            ("route/null-mx", ""),
            ("route/no-such-domain", ""),
            ("route/loop", "mx.self.example"),
        ]
        assert not skipped(rig)
