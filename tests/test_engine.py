"""engine: what is assembled for `run` and `probe`, and that a reload takes all or nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.config.build import Settings, load
from smtpguard.dns.canary import CanaryState
from smtpguard.dns.resolver import ResolverAddress, Validation
from smtpguard.engine import Engine
from smtpguard.events import discard
from smtpguard.mtasts.parse import Mode
from smtpguard.mtasts.store import Store
from smtpguard.names import parse_address
from smtpguard.net.endpoint import Endpoint
from smtpguard.tls.outcome import TlsVersion
from tests.support.certificates import authority

CONFIG = """
hostname = "mail.example.org"
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10027"]
protocol = "lmtp"
[dns]
resolvers = ["127.0.0.1:1"]
timeout_seconds = 0.2
attempts = 1
[tls]
ca_file = "{directory}/roots.pem"
"""
RULE = '[[policy]]\ndomain = "a.example"\nlevel = "secure"\nca_file = "{}"\n'
ROOTS = authority().pem
HOST = parse_address("127.0.0.1")


def settings_of(directory: Path, extra: str = "") -> Settings:
    path = directory / "x.toml"
    path.write_text(CONFIG.format(directory=directory) + extra)
    found = load(path)
    assert isinstance(found, Settings), [str(error) for error in found]
    return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name in ("roots.pem", "rule.pem"):
        (tmp_path / name).write_bytes(ROOTS)
    return tmp_path


@pytest.fixture
def engine(directory: Path) -> Engine:
    return engine_of(settings_of(directory))


def engine_of(settings: Settings, store: Store | None = None) -> Engine:
    return Engine(settings, store or Store.open(None, discard), SYSTEM_CLOCK, discard)


def test_reload_swaps_rules_routes_limits_and_roots(directory: Path, engine: Engine) -> None:
    """One reference, read anew by each session."""
    before, roots = engine.outbound, engine.roots(None)
    extra = RULE.format(directory / "rule.pem") + "[outbound]\ndestination_connections = 1\n"
    settings = settings_of(directory, extra)
    engine.reload(settings)
    assert engine.outbound is not before
    assert engine.outbound.rules.find("a.example").rules[0].ca_file == str(directory / "rule.pem")
    assert engine.roots(None) is not roots
    assert engine.roots(str(directory / "rule.pem")) is not None
    assert engine.services.slots.try_take(["a.example"])
    assert not engine.services.slots.try_take(["a.example"])


def test_reload_is_all_or_nothing(directory: Path, engine: Engine) -> None:
    """A CA file that vanished between reading and taking over leaves the old settings whole."""
    before, roots = engine.outbound, engine.roots(None)
    settings = settings_of(directory, RULE.format(directory / "rule.pem"))
    (directory / "rule.pem").unlink()
    with pytest.raises(OSError, match=r"rule\.pem"):
        engine.reload(settings)
    assert engine.outbound is before
    assert engine.roots(None) is roots


def test_a_session_under_way_finds_the_roots_of_a_rule_that_is_gone(directory: Path) -> None:
    """It keeps the settings it began with; a KeyError here would be a refusal of good mail."""
    name = str(directory / "rule.pem")
    engine = engine_of(settings_of(directory, RULE.format(name)))
    engine.reload(settings_of(directory))
    assert engine.roots(name) is not None


async def test_smaller_and_larger_caps(directory: Path, engine: Engine) -> None:
    """What is taken runs to its end; who waits for a slot gets one that a reload brings."""
    slots = engine.services.slots
    engine.reload(settings_of(directory, "[outbound]\ndestination_connections = 1\n"))
    assert slots.try_take(["a.example"])
    async with trio.open_nursery() as nursery:
        taken: list[bool] = []

        async def wait() -> None:
            taken.append(await slots.take(["a.example"], 4.0))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        engine.reload(settings_of(directory, "[outbound]\ndestination_connections = 2\n"))
    assert taken == [True]
    engine.reload(settings_of(directory, "[outbound]\ndestination_connections = 1\n"))
    slots.walk_ended("a.example")
    slots.connection_ended("a.example")
    assert not slots.try_take(["a.example"])
    slots.walk_ended("a.example")
    slots.connection_ended("a.example")
    assert slots.try_take(["a.example"])


def test_own_listeners_stay_forbidden_after_a_reload(directory: Path, engine: Engine) -> None:
    """DESIGN §6: never dialled, whatever the file allows."""
    engine.listens_on([Endpoint(HOST, 4711)])
    assert engine.outbound.addresses.forbidden(HOST, 4711) == "is a listener of this process"
    engine.reload(settings_of(directory, '[outbound]\nallow_destinations = ["127.0.0.0/8"]\n'))
    assert engine.outbound.addresses.forbidden(HOST, 4711) == "is a listener of this process"
    assert engine.outbound.addresses.forbidden(HOST, 10027) == "is a listener of this process"
    assert engine.outbound.addresses.forbidden(HOST, 4712) == ""


def test_roots_that_cannot_be_read_stop_the_start(directory: Path) -> None:
    settings = settings_of(directory)
    (directory / "roots.pem").write_text("nothing")
    with pytest.raises(ValueError, match=r"roots\.pem"):
        engine_of(settings)


@pytest.mark.parametrize(
    ("remembered", "validation"),
    [(None, Validation.TRUSTED), (b"lost", Validation.LOST), (b"\xff", Validation.TRUSTED), (b"x", Validation.TRUSTED)],
)
def test_the_remembered_state_of_the_resolver_counts(
    directory: Path, remembered: bytes | None, validation: Validation
) -> None:
    """INV-05: a restart forgets no alarm; what cannot be read is as nothing."""
    store = Store.open(None, discard)
    if remembered is not None:
        store.put("canary", "state", remembered)
    assert engine_of(settings_of(directory), store).resolver.validation is validation
    assert CanaryState.LOST.value == "lost"


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ("unknown", {}),
        ("off", {"dnssec": "off"}),
        ("untrusted", {"resolvers": (ResolverAddress(parse_address("192.0.2.53")),)}),
    ],
)
def test_the_state_of_the_resolver_for_the_metrics(directory: Path, state: str, change: dict[str, Any]) -> None:
    """AF-21: what the configuration says comes before what the canary found; but a resolver that was lost is lost."""
    settings = settings_of(directory)
    settings = replace(settings, resolver=replace(settings.resolver, **change))
    found = engine_of(settings).state()
    assert (found.dnssec, found.canary_verdict, found.pool_connections) == (state, "none", 0)
    lost = Store.open(None, discard)
    lost.put("canary", "state", b"lost")
    assert engine_of(settings, lost).state().dnssec == ("off" if state == "off" else "lost")


async def test_the_verdict_of_the_canary_for_the_metrics(engine: Engine) -> None:
    """Nobody answers: the state stays, and the verdict says why."""
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.resolver.run)
        await engine.canary.ask()
        nursery.cancel_scope.cancel()
    assert (engine.state().dnssec, engine.state().canary_verdict) == ("unknown", "unreachable")


def test_cached_policies_for_the_metrics(directory: Path) -> None:
    """Counted by mode, from the moment the store was read."""
    store = Store.open(None, discard)
    for number, mode in enumerate(("enforce", "enforce", "testing", "none")):
        text = f"version: STSv1\nmode: {mode}\nmx: mx.a.example\nmax_age: 86400\n"
        entry = {"id": "1", "fetched": SYSTEM_CLOCK.now().timestamp(), "policy": text}
        store.put("sts", f"a{number}.example", json.dumps(entry).encode())
    state = engine_of(settings_of(directory), store).state()
    assert state.sts_policies == {Mode.ENFORCE: 2, Mode.TESTING: 1, Mode.NONE: 1}
    assert state.sts_refresh_failing == 0
    assert engine_of(settings_of(directory, "[mtasts]\nenabled = false\n"), store).state().sts_policies == {}


def test_one_context_for_each_lowest_version(engine: Engine) -> None:
    first = engine.context(TlsVersion.TLS_1_2)
    assert engine.context(TlsVersion.TLS_1_2) is first
    assert engine.context(TlsVersion.TLS_1_3) is not first


async def test_nothing_runs_after_the_end(directory: Path, engine: Engine) -> None:
    """`recheck` asked for by the last session of a drain has nowhere to run, and is no error."""
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        nursery.cancel_scope.cancel()
    engine.services.recheck_sts(settings_of(directory).hostname)


def test_without_sts(directory: Path) -> None:
    assert engine_of(settings_of(directory, "[mtasts]\nenabled = false\n")).sts is None
