"""CONFORMANCE §D2: MTA-STS policies that come, go, fail and are cached (AF-22..AF-31).

Each test looks at the reply, at the wire (`outcome` lets no octet of mail pass in clear, INV-04) and at the events
that an RFC 8460 report will be made of.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smtpguard.config.build import Settings
from smtpguard.events import Delivered, HostOpened
from smtpguard.mtasts.store import Store
from smtpguard.sandbox.dns import Fault
from smtpguard.sandbox.internet import Attack, Publication, Site
from smtpguard.sandbox.policyhost import Page, policy_text
from tests.support.rig import Calendar, open_rig
from tests.support.told import (
    MX,
    MX2,
    UNTRUSTED,
    WEBPKI_CACHED,
    D,
    opened,
    outcome,
    self_signed,
    skipped,
    sts,
)

TXT = f"_mta-sts.{D}"
POLICY_HOST = f"mta-sts.{D}"


@pytest.mark.parametrize(
    ("broken", "code"),
    [("refused", "http-connect"), ("no address", "dns-no-address"), ("DNS fails", "dns-servfail")],
)
async def test_policy_host_down_without_cache(tmp_path: Path, broken: str, code: str) -> None:
    """AF-22, STS-15, RM-10: the default level applies, and it is reported."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        match broken:
            case "refused":
                rig.internet.names.put(POLICY_HOST, "A", "127.0.0.81", ttl=0)  # nobody listens there
            case "no address":
                rig.internet.names.put(POLICY_HOST, "A", ttl=0)
            case _:
                rig.internet.names.fail(POLICY_HOST, Fault.SERVFAIL)
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "may", "no-policy-found", "")]
        assert sts(rig) == [("fetch_error", "sts-policy-fetch-error", code)]
        assert f"sts/fetch:{D}" in rig.of(Delivered)[0].why


async def test_silent_policy_host(tmp_path: Path) -> None:
    """AF-22, STS-15: the delivery waits for a bounded time only; why it went without is on record."""

    def impatient(settings: Settings) -> Settings:
        assert settings.sts is not None
        return replace(settings, sts=replace(settings.sts, delivery_wait_seconds=0.2))

    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)], adjust=impatient) as rig:
        pages = rig.internet.policy_hosts.pages
        pages[POLICY_HOST] = replace(pages[POLICY_HOST], hangs=True)
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "may", "no-policy-found", "")]
        assert f"sts/fetch:{D}" in rig.of(Delivered)[0].why


@pytest.mark.parametrize(("fault", "code"), [(Fault.SERVFAIL, "dns-servfail"), (Fault.DROP, "dns-timeout")])
async def test_txt_failure_without_cache(tmp_path: Path, fault: Fault, code: str) -> None:
    """AF-23, CH-25, OUT-04, RM-10: deferred within the grace time."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)], dns_seconds=1) as rig:
        rig.internet.names.fail(TXT, fault, "TXT")
        assert f"451 4.4.3 [sts/txt] {D}" in await outcome(rig)
        assert not rig.internet.hosts[D].mx.sessions
        assert sts(rig) == [("txt_tempfail", "sts-policy-fetch-error", code)]
        assert skipped(rig) == [(MX, "sts/txt", "sts", "sts-policy-fetch-error", code)]


@pytest.mark.parametrize("bad", ["starttls", "certificate", "mx"])
@pytest.mark.parametrize("gone", ["AF-24 host", "AF-25 new id, TLS error", "AF-26 txt"])
async def test_cached_policy_is_enforced(tmp_path: Path, gone: str, bad: str) -> None:
    """AF-24, AF-25, AF-26, STS-04, STS-14, STS-16, RM-12, RM-15: neither a dead policy host nor a vanished record
    undoes an unexpired policy; a good MX is delivered to, a bad one refused."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        assert await outcome(rig) == "delivered"
        internet = rig.internet
        match gone:
            case "AF-24 host":
                await internet.attack(D, Attack.BLOCK_POLICY)
                assert rig.engine.sts is not None
                await rig.engine.sts.refresh(D)  # type: ignore[arg-type]
                told = [("webpki", "sts-webpki-invalid", "tls-alert-40"), ("refresh_failed", *WEBPKI_CACHED)]
                told.append(("cache_stale_used", *WEBPKI_CACHED))
            case "AF-25 new id, TLS error":
                await internet.attack(D, Attack.BLOCK_POLICY)
                internet.names.put(TXT, "TXT", '"v=STSv1; id=another;"', ttl=0)
                told = [("webpki", "sts-webpki-invalid", "tls-alert-40"), ("refresh_failed", *WEBPKI_CACHED)]
                told.append(("cache_stale_used", *WEBPKI_CACHED))
            case _:
                internet.names.put(TXT, "TXT", ttl=0)
                told = [("txt_missing_cached", "sts-policy-fetch-error", "sts-txt-missing+cached-policy")]
        rig.engine.pool.close()  # a pooled connection showed the right certificate, and may be used
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "sts", "sts", "")] * 2
        fetches = internet.policy_hosts.connections
        rig.engine.pool.close()
        match bad:
            case "starttls":
                internet.hosts[D].mx.behaviour = replace(internet.hosts[D].mx.behaviour, offers_starttls=False)
                failure = (MX, "sts/no-starttls", "sts", "starttls-not-supported", "")
            case "certificate":
                self_signed(internet)
                failure = UNTRUSTED
            case _:
                internet.names.put(D, "MX", f"10 elsewhere.{D}.", ttl=0)
                internet.names.put(f"elsewhere.{D}", "A", internet.hosts[D].address, ttl=0)
                failure = (f"elsewhere.{D}", "sts/mx", "sts", "validation-failure", "mtasts-policy-mx-mismatch")
        status = "4.7.4" if bad == "starttls" else "4.7.5"
        assert f"451 {status} [{failure[1]}] {failure[0]}" in await outcome(rig)
        assert skipped(rig) == [failure]
        assert len(internet.hosts[D].mx.messages) == 2
        assert sts(rig) == [("fetched", "", ""), *told]  # each once, however many deliveries
        assert internet.policy_hosts.connections == fetches  # five minutes of patience after a failure


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
        await rig.internet.attack(D, Attack.STRIP_STARTTLS)
        rig.internet.names.put(TXT, "TXT", ttl=0)
        assert f"451 4.7.4 [sts/no-starttls] {MX}" in await outcome(rig)
        assert skipped(rig) == [(MX, "sts/no-starttls", "sts", "starttls-not-supported", "")]
        again.close()


async def test_cached_policy_ends_at_max_age(tmp_path: Path) -> None:
    """AF-27, STS-40: the policy host is down; the alert came long before, the default level only at the end."""
    calendar = Calendar(datetime(2026, 11, 2, 10, 0, tzinfo=UTC))
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)], clock=calendar.clock) as rig:
        assert await outcome(rig) == "delivered"
        rig.internet.names.put(POLICY_HOST, "A", "127.0.0.81", ttl=0)
        assert rig.engine.sts is not None
        await rig.engine.sts.refresh(D)  # type: ignore[arg-type]
        rig.engine.pool.close()
        self_signed(rig.internet)
        calendar.now = datetime(2026, 11, 3, 9, 59, tzinfo=UTC)
        assert f"451 4.7.5 [sts/untrusted] {MX}" in await outcome(rig)
        calendar.now = datetime(2026, 11, 3, 10, 1, tzinfo=UTC)
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "sts", "sts", ""), (MX, "may", "no-policy-found", "")]
        cached = ("sts-policy-fetch-error", "http-connect+cached-policy")
        assert sts(rig) == [
            ("fetched", "", ""),
            ("fetch_error", "sts-policy-fetch-error", "http-connect"),
            ("refresh_failed", *cached),
            ("cache_stale_used", *cached),
            ("expired", "", ""),
        ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"status": "302 Found", "location": "https://elsewhere.example/"},
            ("fetch_error", "sts-policy-fetch-error", "http-302"),
        ),
        ({"content_type": "text/html"}, ("fetch_error", "sts-policy-fetch-error", "http-media-type")),
        ({"body": b"x" * 70_000}, ("fetch_error", "sts-policy-fetch-error", "http-too-big")),
        ({"body": b"version: STSv1\nmode: enforced\n"}, ("invalid", "sts-policy-invalid", None)),
        ({"refuses_tls": True}, ("webpki", "sts-webpki-invalid", "tls-alert-40")),
    ],
    ids=["302", "html", "70 KB", "syntax", "TLS refused"],
)
async def test_unusable_policy_files(
    tmp_path: Path, change: dict[str, object], told: tuple[str, str, str | None]
) -> None:
    """AF-28, STS-11, STS-12, STS-13, STS-18, RM-10, RM-11, RM-12: no policy, and the reason is told."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        pages = rig.internet.policy_hosts.pages
        pages[POLICY_HOST] = replace(pages[POLICY_HOST], **change)  # type: ignore[arg-type]
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "may", "no-policy-found", "")]
        ((event, result_type, code),) = sts(rig)
        assert (event, result_type) == told[:2]
        assert code == told[2] or (told[2] is None and code)


@pytest.mark.parametrize(
    ("certificate", "code"),
    [
        ("wrong name", "X509_V_ERR_HOSTNAME_MISMATCH"),
        ("self-signed", "X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT"),
    ],
)
async def test_policy_host_with_a_wrong_certificate(tmp_path: Path, certificate: str, code: str) -> None:
    """AF-28, STS-09, RM-12: what it serves is never asked for."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        internet = rig.internet
        wrong_name = certificate == "wrong name"
        internet.policy_hosts.credentials[POLICY_HOST] = internet.certificates.leaf(
            internet.public_authority if wrong_name else None, ["other.example" if wrong_name else POLICY_HOST]
        )
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "may", "no-policy-found", "")]
        assert sts(rig) == [("webpki", "sts-webpki-invalid", code)]
        assert not internet.policy_hosts.requests


async def test_first_mx_not_listed(tmp_path: Path) -> None:
    """AF-29, STS-28, STS-32, RM-13, OUT-15: it is skipped like a dead one; the listed MX delivers."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        await rig.internet.add_mx(D, MX2)
        rig.internet.publish_policy(D, Page(policy_text("enforce", MX2)), policy_id="2")
        assert await outcome(rig) == "delivered"
        assert skipped(rig) == [(MX, "sts/mx", "sts", "validation-failure", "mtasts-policy-mx-mismatch")]
        assert opened(rig) == [(MX2, "sts", "sts", "")]
        assert rig.of(HostOpened)[0].mx_patterns == (MX2,)
        assert not rig.internet.hosts[D].mx.sessions


@pytest.mark.parametrize(
    ("name", "delivers"), [(f"mail.{D}", True), (D, False), (f"a.b.{D}", False)], ids=["one label", "none", "two"]
)
async def test_wildcard_pattern(tmp_path: Path, name: str, delivers: bool) -> None:
    """AF-30, STS-23, RM-13: `*` is exactly one label."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        host = rig.internet.hosts[D]
        rig.internet.publish_policy(D, Page(policy_text("enforce", f"*.{D}")), policy_id="2")
        rig.internet.names.put(D, "MX", f"10 {name}.", ttl=0)
        rig.internet.names.put(name, "A", host.address, ttl=0)
        host.mx.credential = rig.internet.certificates.leaf(rig.internet.public_authority, [name])
        result = await outcome(rig)
        if delivers:
            assert result == "delivered"
            assert opened(rig) == [(name, "sts", "sts", "")]
        else:
            assert f"451 4.7.5 [sts/mx] {name}" in result
            assert skipped(rig) == [(name, "sts/mx", "sts", "validation-failure", "mtasts-policy-mx-mismatch")]
            assert not host.mx.sessions


async def test_mode_none_ends_enforcement(tmp_path: Path) -> None:
    """AF-31, STS-30: published while the MX is broken."""
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)]) as rig:
        self_signed(rig.internet)
        assert f"451 4.7.5 [sts/untrusted] {MX}" in await outcome(rig)
        assert skipped(rig) == [UNTRUSTED]
        rig.internet.publish_policy(D, Page(policy_text("none")), policy_id="2")
        assert await outcome(rig) == "delivered"
        assert opened(rig) == [(MX, "may", "no-policy-found", "")]
        assert [event for event, _, _ in sts(rig)] == ["fetched", "fetched", "mode_none"]
