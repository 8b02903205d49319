"""mtasts.cache, entries and flights: which policy holds, when everything around it fails."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from smtpguard.dns.records import FailureKind, RdType, Security
from smtpguard.events import InternalError, StsAlert, discard
from smtpguard.mtasts.cache import StsCache, StsSettings, TxtTempfail
from smtpguard.mtasts.fetch import FetchedPolicy
from smtpguard.mtasts.parse import Mode, NoSts, ParsedPolicy, StsPolicy, StsUnavailable, parse_policy
from smtpguard.mtasts.store import Store
from smtpguard.names import Domain
from smtpguard.reasons import ReasonCode, ResultType
from tests.support.clock import START, test_clock
from tests.support.zone import Node, Zone

DAY = 86400
ORG = Domain("example.org")
DOWN = StsUnavailable(ReasonCode.STS_FETCH, "connection refused", "http-connect")
WEBPKI = StsUnavailable(ReasonCode.STS_WEBPKI, "expired", "X509_V_ERR_CERT_HAS_EXPIRED")
INVALID = StsUnavailable(ReasonCode.STS_INVALID, "mode is missing", "mode is missing")

ALERTS = {"refresh_failed", "expired", "txt_missing_cached", "grace"}
"""What is said at warning (STS-39)."""


def served(mode: str = "enforce", max_age: int = 7 * DAY, mx: str = "*.example.org") -> FetchedPolicy:
    octets = f"version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {max_age}\n".encode()
    policy = parse_policy(octets)
    assert isinstance(policy, ParsedPolicy)
    return FetchedPolicy(policy, octets)


class World:
    """One cache, the zone and the policy hosts around it."""

    def __init__(self, store: Store | None = None, start: datetime = START, **settings: Any) -> None:
        self.zone = Zone({})
        self.hosts: dict[str, FetchedPolicy | StsUnavailable] = {}
        self.fetched: list[str] = []
        self.fetch_seconds = 0.0
        self.bug = False
        self.most_at_once = self._now = 0
        self.events: list[Any] = []
        self.store = store or Store.open(None, discard)
        self.cache = StsCache(
            StsSettings(**settings),
            self.zone,
            self.fetch,
            self.store,
            test_clock(start),
            self.events.append,
            Random(1),
        )

    async def fetch(self, domain: Domain) -> FetchedPolicy | StsUnavailable:
        self.fetched.append(domain)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await trio.sleep(self.fetch_seconds)
        finally:
            self._now -= 1
        if self.bug:
            raise RuntimeError("bug")
        return self.hosts[domain]

    def txt(self, text: str | None, domain: str = "example.org") -> None:
        self.zone.nodes[Domain(f"_mta-sts.{domain}")] = Node(txt=[] if text is None else [f"v=STSv1; id={text}"])

    def fail_txt(self, domain: str = "example.org") -> None:
        self.zone.nodes[Domain(f"_mta-sts.{domain}")] = Node(fail=FailureKind.SERVFAIL)

    def said(self) -> list[str]:
        names = [event.event for event in self.events]
        assert {event.event for event in self.events if isinstance(event, StsAlert)} == ALERTS.intersection(names)
        self.events.clear()
        return names

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.cache.run)
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.running():
        yield world


async def cached(world: World, mode: str = "enforce", max_age: int = 7 * DAY) -> None:
    """The policy of example.org is cached under id 1, and its host is down from now on."""
    world.txt("1")
    world.hosts["example.org"] = served(mode, max_age)
    await world.cache.find(ORG)
    world.hosts["example.org"] = DOWN
    world.said()


async def test_same_id_needs_no_fetch_changed_id_does(autojump_clock: object, world: World) -> None:
    """STS-37, STS-06: equality only, `9` -> `10` and `b` -> `a` both fetch."""
    world.hosts["example.org"] = served()
    for count, policy_id in enumerate(("9", "10", "b", "a"), 1):
        world.txt(policy_id)
        for _ in range(3):
            found = await world.cache.find(ORG)
            assert isinstance(found, StsPolicy)
            assert (found.id, found.mode, found.stale) == (policy_id, Mode.ENFORCE, False)
        assert len(world.fetched) == count
    assert world.said() == ["fetched"] * 4


async def test_asks_only_the_domain_itself(autojump_clock: object, world: World) -> None:
    """STS-33, STS-34, STS-35: no parent walk; the name given is the name asked."""
    world.hosts["a.example.org"] = served()
    world.txt("1", "example.org")
    assert await world.cache.find(Domain("a.example.org")) == NoSts()
    assert world.zone.asked == [("_mta-sts.a.example.org", RdType.TXT)]


async def test_txt_alias_and_joined_strings(autojump_clock: object, world: World) -> None:
    """STS-01: an alias is followed by the resolver; STS-02: it hands over joined strings."""
    world.zone.nodes[Domain("_mta-sts.example.org")] = Node(cname="sts.provider.example")
    world.zone.nodes[Domain("sts.provider.example")] = Node(txt=["v=STSv1; id=20" + "24"])
    world.hosts["example.org"] = served()
    found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert (found.id, found.domain) == ("2024", ORG)


async def test_domain_too_long_for_a_record(autojump_clock: object, world: World) -> None:
    long = Domain(".".join(["a" * 49] * 5))
    assert await world.cache.find(long) == NoSts()
    assert world.zone.asked == []


@pytest.mark.parametrize(("failure", "event"), [(DOWN, "fetch_error"), (WEBPKI, "webpki"), (INVALID, "invalid")])
async def test_fetch_fails_nothing_cached(
    autojump_clock: object, world: World, failure: StsUnavailable, event: str
) -> None:
    """STS-15, AF-22, AF-28, RM-10, RM-11, RM-12."""
    world.txt("1")
    world.hosts["example.org"] = failure
    assert await world.cache.find(ORG) == failure
    (said,) = world.events
    assert (said.event, said.result_type) == (event, failure.code.result_type.value)  # type: ignore[union-attr]
    assert said.failure_reason_code == failure.failure_code


async def test_back_off(autojump_clock: object, world: World) -> None:
    """STS-14: ten messages in a minute are one GET; a new id or five minutes are another."""
    world.txt("1")
    world.hosts["example.org"] = DOWN
    for _ in range(10):
        assert await world.cache.find(ORG) == DOWN
        await trio.sleep(6)
    assert len(world.fetched) == 1
    world.txt("2")
    await world.cache.find(ORG)
    assert len(world.fetched) == 2
    await trio.sleep(301)
    await world.cache.find(ORG)
    assert len(world.fetched) == 3


@pytest.mark.parametrize("txt", ["same", "new", "gone", "invalid", "fails"])
async def test_cached_policy_holds_whatever_fails(autojump_clock: object, world: World, txt: str) -> None:
    """STS-04, STS-16, AF-24, AF-25, AF-26, RM-15: unexpired enforce is enforced, and the failure reported."""
    await cached(world)
    owner = Domain("_mta-sts.example.org")
    match txt:
        case "new":
            world.txt("2")
        case "gone":
            world.txt(None)
        case "invalid":
            world.zone.nodes[owner] = Node(txt=["v=STSv1; id=-"])
        case "fails":
            world.fail_txt()
        case "same":
            await trio.sleep(1.2 * DAY)  # the daily refresh fails
    found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert (found.id, found.mode, found.stale) == ("1", Mode.ENFORCE, True)
    assert found.result_type is ResultType.STS_POLICY_FETCH_ERROR
    assert found.failure_code.endswith("+cached-policy")
    said = world.said()
    assert ("txt_missing_cached" if txt in {"gone", "invalid"} else "cache_stale_used") in said
    assert ("refresh_failed" in said) is (txt in {"same", "new"})
    await world.cache.find(ORG)
    assert world.said() == []  # said once, not per message
    world.txt("1")
    if txt not in {"same", "new"}:
        found = await world.cache.find(ORG)
        assert isinstance(found, StsPolicy)
        assert not found.stale


async def test_webpki_failure_is_kept_apart(autojump_clock: object, world: World) -> None:
    """AF-25: TLS fails for the new id: RM-12 beside the old policy."""
    await cached(world)
    world.txt("2")
    world.hosts["example.org"] = WEBPKI
    found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert found.result_type is ResultType.STS_WEBPKI_INVALID
    assert world.said() == ["webpki", "refresh_failed", "cache_stale_used"]
    assert world.cache.refresh_failing == 1


async def test_expiry(autojump_clock: object, world: World) -> None:
    """STS-40, AF-27: at max_age it applies, after it not; alerts came before."""
    await cached(world, max_age=3 * DAY)
    await trio.sleep(3 * DAY - 1)
    found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert "refresh_failed" in world.said()
    await trio.sleep(2)
    assert await world.cache.find(ORG) == DOWN
    assert world.said() in (["expired", "fetch_error"], ["expired"])
    assert world.cache.list() == ()


async def test_mode_none_replaces_at_once(autojump_clock: object, world: World) -> None:
    """STS-30, AF-31: a new id with mode none ends enforcement; no alerts for it afterwards (STS-39)."""
    await cached(world)
    world.txt("2")
    world.hosts["example.org"] = served("none")
    assert await world.cache.find(ORG) == NoSts()
    assert world.said() == ["fetched", "mode_none"]
    world.hosts["example.org"] = DOWN
    await trio.sleep(1.2 * DAY)
    assert "refresh_failed" not in world.said()
    world.fail_txt()
    assert await world.cache.find(ORG) == NoSts()
    assert world.cache.refresh_failing == 0


async def test_testing_mode_is_handed_on(autojump_clock: object, world: World) -> None:
    """STS-29: the judge must see it to report it."""
    world.txt("1")
    world.hosts["example.org"] = served("testing")
    found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert found.mode is Mode.TESTING


async def test_refresh_restarts_the_lifetime(autojump_clock: object, world: World) -> None:
    """STS-38: daily, also while the TXT record is gone; success counts max_age anew."""
    await cached(world, max_age=3 * DAY)
    world.hosts["example.org"] = served(max_age=3 * DAY)
    world.txt(None)
    await trio.sleep(10 * DAY)
    assert 9 <= world.said().count("refreshed") <= 11
    found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert found.mode is Mode.ENFORCE


async def test_txt_fails_defer(autojump_clock: object) -> None:
    """AF-23: nothing is delivered on a failed look-up."""
    world = World(txt_tempfail=TxtTempfail.DEFER)
    world.fail_txt()
    found = await world.cache.find(ORG, Security.INSECURE)
    assert isinstance(found, StsUnavailable)
    assert (found.code, found.defer) == (ReasonCode.STS_TXT_FAILURE, True)
    assert found.failure_code == "dns-servfail"
    assert world.said() == ["txt_tempfail"]


async def test_txt_fails_ignore(autojump_clock: object) -> None:
    world = World(txt_tempfail=TxtTempfail.IGNORE)
    world.fail_txt()
    found = await world.cache.find(ORG)
    assert isinstance(found, StsUnavailable)
    assert not found.defer


@pytest.mark.parametrize("security", [Security.INSECURE, Security.SECURE, None])
async def test_txt_fails_grace(autojump_clock: object, security: Security | None) -> None:
    """AF-23 under `grace`: after an hour of failures an insecure zone, and only that, goes on without."""
    world = World()
    world.fail_txt()
    for _ in range(6):
        found = await world.cache.find(ORG, lambda: security)
        assert isinstance(found, StsUnavailable)
        assert found.defer
        await trio.sleep(601)
    found = await world.cache.find(ORG, security)
    assert isinstance(found, StsUnavailable)
    assert found.defer is (security is not Security.INSECURE)
    assert ("grace" in world.said()) is (security is Security.INSECURE)
    world.txt(None)
    assert await world.cache.find(ORG) == NoSts()
    world.fail_txt()
    found = await world.cache.find(ORG, security)
    assert isinstance(found, StsUnavailable)
    assert found.defer  # the outage was over: the hour begins anew


async def test_two_failures_far_apart_are_no_outage(autojump_clock: object) -> None:
    world = World()
    world.fail_txt()
    for _ in range(3):
        found = await world.cache.find(ORG, Security.INSECURE)
        assert isinstance(found, StsUnavailable)
        assert found.defer
        await trio.sleep(DAY)


async def test_five_hundred_mails_one_get(autojump_clock: object, world: World) -> None:
    """STS-42."""
    world.txt("1")
    world.hosts["example.org"] = served()
    world.fetch_seconds = 1
    found: list[object] = []

    async def deliver() -> None:
        found.append(await world.cache.find(ORG))

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(deliver)
    assert world.fetched == ["example.org"]
    assert len(found) == 500
    assert all(isinstance(policy, StsPolicy) for policy in found)


async def test_global_caps(autojump_clock: object) -> None:
    """STS-42: at most so many at once; what we could not even begin defers, and arrives later."""
    world = World(max_fetches=2)
    world.fetch_seconds = 15
    found: dict[str, object] = {}

    async def deliver(name: str) -> None:
        found[name] = await world.cache.find(Domain(name))

    names = [f"d{number}.example" for number in range(6)]
    async with world.running():
        async with trio.open_nursery() as nursery:
            for name in names:
                world.txt("1", name)
                world.hosts[name] = served()
                nursery.start_soon(deliver, name)
        assert world.most_at_once == 2
        kinds = [type(policy) for policy in found.values()]
        assert kinds.count(StsPolicy) == 2
        unavailable = [policy for policy in found.values() if isinstance(policy, StsUnavailable)]
        assert sorted(failure.defer for failure in unavailable) == [False, False, True, True]
        await trio.sleep(60)
        assert len(world.cache.list()) == 6


async def test_flood_of_domains_is_bounded(autojump_clock: object) -> None:
    world = World(max_fetches=1)
    world.fetch_seconds = math.inf
    async with world.running(), trio.open_nursery() as nursery:
        for number in range(40):
            world.txt("1", f"d{number}.example")
            nursery.start_soon(world.cache.find, Domain(f"d{number}.example"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(world.cache._flights) == 32
        nursery.cancel_scope.cancel()


async def test_a_delivery_waits_twenty_seconds_the_fetch_goes_on(autojump_clock: object, world: World) -> None:
    """STS-13: the delivery goes on without, the next one has the policy."""
    world.txt("1")
    world.hosts["example.org"] = served()
    world.fetch_seconds = 50
    begun = trio.current_time()
    found = await world.cache.find(ORG)
    assert trio.current_time() - begun == pytest.approx(20)
    assert isinstance(found, StsUnavailable)
    assert not found.defer
    await trio.sleep(31)
    assert isinstance(await world.cache.find(ORG), StsPolicy)
    assert len(world.fetched) == 1


async def test_id_changes_while_fetching(autojump_clock: object, world: World) -> None:
    """STS-37: who saw the new id does not settle for what set out under the old one."""
    world.txt("1")
    world.hosts["example.org"] = served()
    world.fetch_seconds = 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.cache.find, ORG)
        await trio.sleep(1)
        world.txt("2")
        found = await world.cache.find(ORG)
    assert isinstance(found, StsPolicy)
    assert found.id == "2"
    assert len(world.fetched) == 2


async def test_max_age_zero_applies_to_this_delivery(autojump_clock: object, world: World) -> None:
    """STS-20: nothing to cache, yet it is the live policy."""
    world.txt("1")
    world.hosts["example.org"] = served(max_age=0)
    world.fetch_seconds = 1
    for count in (1, 2):
        assert isinstance(await world.cache.find(ORG), StsPolicy)
        assert len(world.fetched) == count
        await trio.sleep(5)


async def test_a_bug_defers(autojump_clock: object, world: World) -> None:
    """INV-05: an exception of ours never means less protection."""
    world.txt("1")
    world.bug = True
    found = await world.cache.find(ORG)
    assert isinstance(found, StsUnavailable)
    assert found.defer
    assert isinstance(world.events[0], InternalError)


async def test_shutdown_defers(autojump_clock: object) -> None:
    world = World()
    world.txt("1")
    world.fetch_seconds = math.inf
    found: list[object] = []

    async def deliver() -> None:
        found.append(await world.cache.find(ORG))

    async with trio.open_nursery() as sessions, world.running():
        sessions.start_soon(deliver)
        await trio.testing.wait_all_tasks_blocked()
    found.append(await world.cache.find(ORG))  # and after it
    assert [isinstance(policy, StsUnavailable) and policy.defer for policy in found] == [True, True]


async def test_restart(tmp_path: Path, autojump_clock: object) -> None:
    """STS-41: a restart, then the record and the host are gone: still enforced, and refreshed before long."""
    path = tmp_path / "state.db"
    world = World(Store.open(path, discard))
    async with world.running():
        await cached(world)
    world.store.close()
    again = World(Store.open(path, discard))
    again.txt(None)
    again.hosts["example.org"] = DOWN
    async with again.running():
        found = await again.cache.find(ORG)
        assert isinstance(found, StsPolicy)
        assert (found.id, found.mode, found.mx[0].matches(Domain("mx.example.org"))) == (
            "1",
            Mode.ENFORCE,
            True,
        )
        await trio.sleep(1.2 * DAY)
        assert "refresh_failed" in again.said()
    again.store.close()


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"[]", b"null", b'{"id": "1"}', b'{"id": "1", "fetched": "x", "policy": ""}',
     b'{"id": "1", "fetched": 1e300, "policy": "version: STSv1\\nmode: none\\nmax_age: 1"}'],
)  # fmt: skip
async def test_damaged_entry_is_dropped(value: bytes) -> None:
    store = Store.open(None, discard)
    store.put("sts", "example.org", value)
    assert World(store).cache.list() == ()
    assert store.load("sts") == []


async def test_eviction(autojump_clock: object) -> None:
    """STS-41: none and testing leave before enforce; an enforce that must leave is not silent."""
    world = World(max_policies=4)
    modes = ["enforce", "enforce", "testing", "none", "enforce", "enforce", "enforce"]
    async with world.running():
        for number, mode in enumerate(modes):
            domain = Domain(f"d{number}.example")
            world.txt("1", domain)
            world.hosts[domain] = served(mode)
            await world.cache.find(domain)
            await trio.sleep(1)
            await world.cache.find(Domain("d0.example"))  # in use
    assert [entry.domain for entry in world.cache.list()] == [f"d{n}.example" for n in (0, 4, 5, 6)]
    forgotten = [event.domain for event in world.events if event.event == "forgotten"]
    assert forgotten == ["d1.example"]


async def test_octets_are_bounded(autojump_clock: object) -> None:
    """STS-41: big policies count for many."""
    world = World(max_policies=40)
    big = b"version: STSv1\nmode: enforce\nmx: a.org\nmax_age: 999\nx: " + b"y" * 60000
    policy = parse_policy(big)
    assert isinstance(policy, ParsedPolicy)
    async with world.running():
        for number in range(4):
            world.txt("1", f"d{number}.example")
            world.hosts[f"d{number}.example"] = FetchedPolicy(policy, big)
            await world.cache.find(Domain(f"d{number}.example"))
    assert len(world.cache.list()) == 1


async def test_recheck_looks_for_a_new_id(autojump_clock: object, world: World) -> None:
    """STS-31: after an enforce failure one TXT query; a new id is fetched for the retry."""
    await cached(world)
    world.zone.asked.clear()
    assert not await world.cache.recheck(ORG)
    # By `lookup`, so from the resolver's cache while it lives: RFC 8461 §8.1 waits for the TTL of the TXT record.
    assert world.zone.asked == [("_mta-sts.example.org", RdType.TXT)]
    world.txt("2")
    world.hosts["example.org"] = served("none")
    assert await world.cache.recheck(ORG)
    await trio.sleep(1)
    assert world.fetched == ["example.org"] * 2
    assert await world.cache.find(ORG) == NoSts()


async def test_operator(autojump_clock: object, world: World) -> None:
    """list, show, forget, refresh; a forced refresh ignores the back-off and the cached id."""
    await cached(world)
    (entry,) = world.cache.list()
    assert world.cache.show(ORG) == entry
    assert (entry.expires - entry.fetched).days == 7
    assert isinstance(await world.cache.refresh(ORG), StsPolicy)  # stale: the host is down
    assert world.cache.refresh_failing == 1
    world.hosts["example.org"] = served(max_age=DAY)
    found = await world.cache.refresh(ORG)
    assert isinstance(found, StsPolicy)
    assert not found.stale
    assert world.fetched == ["example.org"] * 3
    assert world.cache.forget(ORG)
    assert not world.cache.forget(ORG)
    assert world.cache.show(ORG) is None
    world.txt(None)
    assert await world.cache.refresh(ORG) == NoSts()
    assert world.store.load("sts") == []


async def test_overdue_refreshes_are_spread(autojump_clock: object) -> None:
    """STS-38: a restart after days of standstill is no stampede on the policy hosts."""
    store = Store.open(None, discard)
    world = World(store)
    names = [f"d{number}.example" for number in range(20)]
    async with world.running():
        for name in names:
            world.txt("1", name)
            world.hosts[name] = served()
            await world.cache.find(Domain(name))
    again = World(store, start=START + timedelta(days=3))
    again.hosts = world.hosts
    async with again.running():
        await trio.sleep(61)
        assert len(again.fetched) < 10
        await trio.sleep(660)
        assert sorted(again.fetched) == sorted(names)


async def test_rate_cap(autojump_clock: object) -> None:
    """STS-42: a slot is held for a second, however fast the hosts answer."""
    world = World(max_fetches=2)
    async with world.running():
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(6):
                world.txt("1", f"d{number}.example")
                world.hosts[f"d{number}.example"] = served()
                nursery.start_soon(world.cache.find, Domain(f"d{number}.example"))
        assert trio.current_time() - begun == pytest.approx(2)


async def test_testing_leaves_before_an_older_enforce(autojump_clock: object) -> None:
    """STS-41: what a policy protects counts before when it was used."""
    world = World(max_policies=2)
    async with world.running():
        for name, mode in (("old.example", "enforce"), ("new.example", "testing"), ("third.example", "enforce")):
            world.txt("1", name)
            world.hosts[name] = served(mode)
            await world.cache.find(Domain(name))
            await trio.sleep(1)
    assert [entry.domain for entry in world.cache.list()] == ["old.example", "third.example"]


async def test_clock_set_back_prolongs_nothing(autojump_clock: object) -> None:
    """STS-40: a fetch in the future counts from now."""
    store = Store.open(None, discard)
    world = World(store, start=START + timedelta(days=300))
    async with world.running():
        await cached(world, max_age=DAY)
    again = World(store)
    (entry,) = again.cache.list()
    assert entry.expires <= START + timedelta(seconds=DAY + 1)
