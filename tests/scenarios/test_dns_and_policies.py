"""CONFORMANCE §D2: DNS faults, rollovers and policies that come and go (AF-10..AF-32)."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from smtpguard.events import Delivered, HostSkipped, InternalError, PolicyObserved, RuleWarning, StsEvent
from smtpguard.mtasts.store import Store
from smtpguard.sandbox.certificates import tlsa
from smtpguard.sandbox.dns import Fault, Security
from smtpguard.sandbox.internet import Attack, Publication, Site
from smtpguard.sandbox.policyhost import Page, policy_text
from tests.support.rig import Rig, open_rig

D = "victim.example"
MX = f"mx.{D}"


async def outcome(rig: Rig, recipient: str = f"a@{D}") -> str:
    """`delivered`, or the reply that refused."""
    with trio.fail_after(20):
        sent = await rig.send(recipient)
    assert not rig.of(InternalError)
    return "delivered" if sent.is_delivered else str(sent.last_reply)


async def test_mismatch_on_the_first_match_on_the_second(tmp_path: Path) -> None:
    """AF-10, DANE-19, DANE-22: a failing MX is skipped with its reason, the next one delivers."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        second = await rig.internet.add_mx(D, f"mx2.{D}")
        await rig.internet.attack(D, Attack.STALE_TLSA)
        assert await outcome(rig) == "delivered"
        (skipped,) = rig.of(HostSkipped)
        assert (skipped.mx, skipped.reason, skipped.result_type) == (MX, "dane/no-match", "certificate-not-trusted")
        assert len(second.messages) == 1
        assert rig.of(Delivered)[0].mx == f"mx2.{D}"


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


async def test_botched_rollover(tmp_path: Path) -> None:
    """AF-12: only the new key stands in DNS, the old one is served."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        new = rig.internet.certificates.leaf(None, [MX])
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", tlsa(3, 1, 1, new.der), ttl=0)
        assert "451 4.7.5 [dane/no-match]" in await outcome(rig)


async def test_bogus_tlsa_skips_the_host(tmp_path: Path) -> None:
    """AF-13, DANE-07: the host is never contacted, the next one delivers."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        await rig.internet.add_mx(D, f"mx2.{D}")
        await rig.internet.attack(D, Attack.BOGUS_TLSA)
        assert await outcome(rig) == "delivered"
        assert not rig.internet.hosts[D].mx.sessions
        (skipped,) = rig.of(HostSkipped)
        assert (skipped.reason, skipped.result_type) == ("dane/tlsa-bogus", "dnssec-invalid")


async def test_sts_does_not_rescue_a_bogus_tlsa(tmp_path: Path) -> None:
    """AF-14, DANE-39, STS-36, OUT-13: a valid certificate and an enforce policy change nothing."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_AND_STS)]) as rig:
        await rig.internet.attack(D, Attack.BOGUS_TLSA)
        assert "451 4.7.5 [dane/tlsa-bogus] mx.victim.example" in await outcome(rig)
        assert not rig.internet.hosts[D].mx.sessions


async def test_tlsa_timeout(tmp_path: Path) -> None:
    """AF-15, DANE-07: a signed host whose TLSA query gets no answer."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        rig.internet.names.fail(rig.internet.tlsa_name(MX), Fault.DROP, "TLSA")
        assert "451 4.7.5 [dane/tlsa-lookup] mx.victim.example" in await outcome(rig)
        assert rig.of(HostSkipped)[0].result_type == "tlsa-invalid"


async def test_unsigned_host_is_not_asked_for_tlsa(tmp_path: Path) -> None:
    """AF-16, DANE-11: its name servers may drop such queries."""
    async with open_rig(tmp_path, [Site(D, Publication.NOTHING)]) as rig:
        rig.internet.names.fail(rig.internet.tlsa_name(MX), Fault.DROP, "TLSA")
        assert await outcome(rig) == "delivered"
        assert not rig.internet.name_server.asked(rig.internet.tlsa_name(MX), "TLSA")


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.DROP])
async def test_mx_lookup_fails(tmp_path: Path, fault: Fault) -> None:
    """AF-17, DANE-05, MX-02, OUT-04."""
    async with open_rig(tmp_path, [Site(D, Publication.NOTHING)]) as rig:
        rig.internet.names.fail(D, fault, "MX")
        assert f"451 4.4.3 [dns/failure] {D}" in await outcome(rig)
        assert not rig.internet.hosts[D].mx.sessions


async def test_bogus_mx(tmp_path: Path) -> None:
    """AF-18, RM-16."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        rig.internet.names.judge_as(D, "MX", Security.BOGUS)
        assert f"451 4.4.3 [dns/bogus] {D}" in await outcome(rig)


@pytest.mark.parametrize("stripped", [False, True])
async def test_only_unusable_tlsa(tmp_path: Path, stripped: bool) -> None:
    """AF-19, DANE-20: TLS is mandatory, authentication is not."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        if stripped:
            await rig.internet.attack(D, Attack.STRIP_STARTTLS)
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", "0 0 1 " + "00" * 32, "4 0 1 " + "11" * 32, ttl=0)
        result = await outcome(rig)
        if stripped:
            assert "451 4.7.4 [tls/no-starttls]" in result
            assert rig.no_clear_mail(D)
        else:
            assert result == "delivered"
            assert rig.of(Delivered)[0].policy == "dane-unusable"


async def test_unusable_tlsa_and_sts(tmp_path: Path) -> None:
    """AF-20, POL-04: then the MTA-STS policy asks for the certificate."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_AND_STS)]) as rig:
        rig.internet.names.put(rig.internet.tlsa_name(MX), "TLSA", "0 0 1 " + "00" * 32, ttl=0)
        rig.internet.hosts[D].mx.credential = rig.internet.certificates.leaf(None, [MX])
        assert "451 4.7.5 [sts/untrusted]" in await outcome(rig)


async def test_policy_host_down_without_cache(tmp_path: Path) -> None:
    """AF-22, STS-15: the default level applies, and it is reported."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        await rig.internet.attack(D, Attack.BLOCK_POLICY)
        assert await outcome(rig) == "delivered"
        assert rig.of(Delivered)[0].policy == "may"
        assert [event.event for event in rig.of(StsEvent)] == ["webpki"]
        assert rig.of(StsEvent)[0].result_type == "sts-webpki-invalid"


async def test_txt_failure_without_cache(tmp_path: Path) -> None:
    """AF-23, CH-25: deferred within the grace time."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        rig.internet.names.fail(f"_mta-sts.{D}", Fault.SERVFAIL, "TXT")
        assert "451 4.4.3 [sts/txt]" in await outcome(rig)
        assert not rig.internet.hosts[D].mx.messages


@pytest.mark.parametrize("gone", ["host", "txt"])
async def test_cached_policy_is_enforced(tmp_path: Path, gone: str) -> None:
    """AF-24, AF-26, STS-04, STS-16: neither a dead policy host nor a vanished record undoes an unexpired policy."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        assert await outcome(rig) == "delivered"
        if gone == "host":
            await rig.internet.attack(D, Attack.BLOCK_POLICY)
            rig.internet.names.put(f"_mta-sts.{D}", "TXT", '"v=STSv1; id=another;"', ttl=0)
        else:
            rig.internet.names.put(f"_mta-sts.{D}", "TXT", ttl=0)
        rig.engine.pool.close()  # a pooled connection showed the right certificate, and may be used
        rig.internet.hosts[D].mx.credential = rig.internet.certificates.leaf(None, [MX])
        assert "451 4.7.5 [sts/untrusted]" in await outcome(rig)
        assert len(rig.internet.hosts[D].mx.messages) == 1


async def test_cache_survives_a_restart(tmp_path: Path) -> None:
    """STS-41: restart, then the attacker takes the record away."""
    database = tmp_path / "state.db"
    site = Site(D, Publication.STS_ENFORCE)
    store = Store.open(database, lambda event: None)
    async with open_rig(tmp_path, [site], store=store) as rig:
        assert await outcome(rig) == "delivered"
        store.close()
    again = Store.open(database, lambda event: None)
    async with open_rig(tmp_path, [site], store=again) as rig:
        rig.internet.names.put(f"_mta-sts.{D}", "TXT", ttl=0)
        await rig.internet.attack(D, Attack.STRIP_STARTTLS)
        rig.internet.names.put(f"_mta-sts.{D}", "TXT", ttl=0)
        assert "451 4.7.4 [sts/no-starttls]" in await outcome(rig)
        again.close()


@pytest.mark.parametrize(
    ("change", "event"),
    [
        ({"status": "302 Found", "location": "https://elsewhere.example/"}, "fetch_error"),
        ({"content_type": "text/html"}, "fetch_error"),
        ({"body": b"x" * 70_000}, "fetch_error"),
        ({"body": b"version: STSv1\nmode: enforced\n"}, "invalid"),
    ],
)
async def test_unusable_policy_files(tmp_path: Path, change: dict[str, object], event: str) -> None:
    """AF-28, STS-11, STS-12, STS-13, STS-18: no policy, and the reason is told."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        pages = rig.internet.policy_hosts.pages
        pages[f"mta-sts.{D}"] = replace(pages[f"mta-sts.{D}"], **change)  # type: ignore[arg-type]
        assert await outcome(rig) == "delivered"
        assert rig.of(Delivered)[0].policy == "may"
        assert [one.event for one in rig.of(StsEvent)] == [event]


async def test_first_mx_not_listed(tmp_path: Path) -> None:
    """AF-29, STS-28, STS-32, RM-13, OUT-15: it is skipped like a dead one; the listed MX delivers."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        await rig.internet.add_mx(D, f"mx2.{D}")
        rig.internet.publish_policy(D, Page(policy_text("enforce", f"mx2.{D}")), policy_id="2")
        assert await outcome(rig) == "delivered"
        (skipped,) = rig.of(HostSkipped)
        assert (skipped.mx, skipped.reason, skipped.result_type) == (MX, "sts/mx", "validation-failure")
        assert not rig.internet.hosts[D].mx.sessions


@pytest.mark.parametrize(
    ("name", "delivers"), [(f"mail.{D}", True), (D, False), (f"a.b.{D}", False)], ids=["one label", "none", "two"]
)
async def test_wildcard_pattern(tmp_path: Path, name: str, delivers: bool) -> None:
    """AF-30, STS-23: `*` is exactly one label."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        host = rig.internet.hosts[D]
        rig.internet.publish_policy(D, Page(policy_text("enforce", f"*.{D}")), policy_id="2")
        rig.internet.names.put(D, "MX", f"10 {name}.", ttl=0)
        rig.internet.names.put(name, "A", host.address, ttl=0)
        host.mx.credential = rig.internet.certificates.leaf(rig.internet.public_authority, [name])
        result = await outcome(rig)
        assert result == "delivered" if delivers else f"451 4.7.5 [sts/mx] {name}" in result


async def test_dane_only(tmp_path: Path) -> None:
    """OUT-14, RM-09, DANE-40, POL-11: DANE is demanded by a rule, and there is none."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "dane-only"\n'
    async with open_rig(tmp_path, [Site(D, Publication.NOTHING)], extra=rule) as rig:
        result = await outcome(rig)
        assert result.startswith("451 4.7.5 [dane/")
        assert rig.of(HostSkipped)[0].result_type == "dane-required"
        assert not rig.internet.hosts[D].mx.sessions


async def test_shadow_rule_changes_no_reply(tmp_path: Path) -> None:
    """DESIGN §6: a shadow rule is judged and recorded, the mail goes as without it."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "secure"\nmode = "shadow"\n'
    async with open_rig(tmp_path, [Site(D, Publication.NOTHING)], extra=rule) as rig:
        assert await outcome(rig) == "delivered"
        (observed,) = rig.of(PolicyObserved)
        assert (observed.kind, observed.would) == ("shadow", "refuse")


async def test_weaker_rule_is_not_applied_without_override(tmp_path: Path) -> None:
    """POL-01, DANE-41: it warns; with override it is applied, and that is recorded."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "may"\n'
    for extra, delivers in ((rule, False), (rule + "override = true\n", True)):
        async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)], extra=extra) as rig:
            await rig.internet.attack(D, Attack.SWAP_CERTIFICATE)
            result = await outcome(rig)
            assert (result == "delivered") is delivers, result
            assert [warning.kind for warning in rig.of(RuleWarning)] == ["override" if delivers else "weaker"]


async def test_mode_none_ends_enforcement(tmp_path: Path) -> None:
    """AF-31, STS-30: published while the MX is broken."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        rig.internet.hosts[D].mx.credential = rig.internet.certificates.leaf(None, [MX])
        assert "451 4.7.5 [sts/untrusted]" in await outcome(rig)
        rig.internet.publish_policy(D, Page(policy_text("none")), policy_id="2")
        assert await outcome(rig) == "delivered"


async def test_routing_verdicts(tmp_path: Path) -> None:
    """AF-32, OUT-01, OUT-02, OUT-05: null MX, no such domain, ourselves."""
    outbound = 'own_names = ["mx.self.example"]'
    sites = [Site(D, Publication.NOTHING), Site("self.example", Publication.NOTHING)]
    async with open_rig(tmp_path, sites, outbound=outbound) as rig:
        rig.internet.names.put(D, "MX", "0 .", ttl=0)
        assert f"556 5.1.10 [route/null-mx] {D}" in await outcome(rig)
        assert "550 5.1.2 [route/no-such-domain] nowhere.example" in await outcome(rig, "a@nowhere.example")
        assert "554 5.4.6 [route/loop] mx.self.example" in await outcome(rig, "a@self.example")
