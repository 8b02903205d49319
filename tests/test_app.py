"""app: one process from start to stop, inside the test: start failures, reload, drain, what systemd is told."""

import io
import os
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from smtpguard import app
from smtpguard.app import Application, StartFailed
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.config.build import Settings, load
from smtpguard.config.findings import ConfigError
from smtpguard.events import Event, InternalError, Lifecycle, ListenerBound, ReloadFailed, RuleWarning, SessionClosed
from tests.support.follower import following

CONFIG = """
hostname = "mail.example.org"
state_dir = "{directory}/state"
drain_seconds = 20
[[listener]]
role = "outbound"
name = "lmtp"
bind = ["127.0.0.1:0"]
protocol = "lmtp"
[dns]
resolvers = ["127.0.0.1:1"]
timeout_seconds = 0.2
attempts = 1
[admin]
bind = "unix:{directory}/admin.sock"
"""
INBOUND = """
[[listener]]
role = "inbound"
name = "mx"
bind = ["127.0.0.1:0"]
upstream = "127.0.0.1:1"
pass_client = "proxy-v2"
tls = "none"
[[inbound_policy]]
recipient_domain = "bank.example"
require = "tls"
expires = 2020-01-01
"""
OPEN_SECONDS = 4.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "smtpguard.toml"
    path.write_text(CONFIG.format(directory=tmp_path))
    return path


def settings_of(config: Path) -> Settings:
    found = load(config)
    assert isinstance(found, Settings), [str(error) for error in found]
    return found


class Watch:
    """What happened, and a way to wait for more."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = trio.Event()

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._more.set()
        self._more = trio.Event()

    def stages(self) -> list[str]:
        return [event.stage for event in self.events if isinstance(event, Lifecycle)]

    async def until(self, happened: Callable[[], bool]) -> None:
        with trio.fail_after(OPEN_SECONDS):
            while not happened():
                await self._more.wait()

    async def stage(self, stage: str, times: int = 1) -> str:
        """Wait until it was said so often; its last detail."""
        await self.until(lambda: self.stages().count(stage) >= times)
        return [e.detail for e in self.events if isinstance(e, Lifecycle) and e.stage == stage][-1]

    def port(self, listener: str) -> int:
        (address,) = [e.address for e in self.events if isinstance(e, ListenerBound) and e.listener == listener]
        return int(address.rpartition(":")[2])


@asynccontextmanager
async def running(config: Path) -> AsyncIterator[tuple[Application, Watch]]:
    """The process as a task, ready; ended with two TERM if it still runs."""
    watch = Watch()
    application = Application(settings_of(config), stream=io.BytesIO(), watch=watch.emit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(application.run)
        await watch.stage("ready")
        yield application, watch
        if "draining" not in watch.stages():
            os.kill(os.getpid(), signal.SIGTERM)
            await watch.stage("draining")
        if "stopped" not in watch.stages():
            os.kill(os.getpid(), signal.SIGTERM)


async def greeted(port: int) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    assert (await stream.receive_some()).startswith(b"220 mail.example.org")
    await exchanged(stream, b"LHLO mta.example\r\n", b"250 ")
    return stream


async def exchanged(stream: trio.SocketStream, commands: bytes, last: bytes) -> None:
    """Send, and read until this reply came."""
    await stream.send_all(commands)
    replies = b""
    with trio.fail_after(OPEN_SECONDS):
        while last not in replies:
            octets = await stream.receive_some()
            assert octets, replies
            replies += octets


async def rest(stream: trio.SocketStream) -> bytes:
    """All until the end."""
    received = b""
    with trio.fail_after(OPEN_SECONDS):
        while octets := await stream.receive_some():
            received += octets
    return received


async def metrics(directory: Path) -> bytes:
    """One scrape."""
    async with await trio.open_unix_socket(directory / "admin.sock") as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await rest(stream)


# -- start


async def test_life(config: Path, tmp_path: Path) -> None:
    """started, listening, ready, draining, stopped: in this order, and nothing is left behind."""
    async with running(config) as (application, watch):
        assert application.status().ready
        assert (tmp_path / "admin.sock").is_socket()
        assert watch.port("lmtp") > 0
        assert b"smtpguard_ready 1.0" in await metrics(tmp_path)
        os.kill(os.getpid(), signal.SIGTERM)
    assert watch.stages() == ["started", "ready", "draining", "stopped"]
    bound = [index for index, event in enumerate(watch.events) if isinstance(event, ListenerBound)]
    assert watch.events.index(Lifecycle(stage="ready")) > max(bound)
    assert not (tmp_path / "admin.sock").exists()
    assert not application.status().ready


async def test_own_listeners_are_never_dialled(config: Path) -> None:
    """The port the kernel chose is known only once it is bound."""
    async with running(config) as (application, watch):
        addresses = application._engine.outbound.addresses
        assert addresses.forbidden(app.Endpoint.of(socket.AF_INET, ("127.0.0.1", 1)).address, watch.port("lmtp")) == (  # type: ignore[arg-type]
            "is a listener of this process"
        )
        config.write_text(config.read_text() + '[outbound]\nallow_destinations = ["127.0.0.0/8"]\n')
        os.kill(os.getpid(), signal.SIGHUP)
        await watch.stage("reloaded")
        addresses = application._engine.outbound.addresses
        assert addresses.forbidden(app.Endpoint.of(socket.AF_INET, ("127.0.0.1", 1)).address, watch.port("lmtp"))  # type: ignore[arg-type]


async def test_a_busy_address_fails_before_anything_is_served(config: Path, tmp_path: Path) -> None:
    """What was bound before is released, the file of a Unix socket too."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        text = config.read_text().replace('"127.0.0.1:0"', f'"unix:{tmp_path}/lmtp.sock"')
        config.write_text(text.replace(f"unix:{tmp_path}/admin.sock", f"127.0.0.1:{busy.getsockname()[1]}"))
        watch = Watch()
        application = Application(settings_of(config), stream=io.BytesIO(), watch=watch.emit)
        with pytest.raises(StartFailed, match="the port is in use; stop the other program"):
            await application.run()
    assert not (tmp_path / "lmtp.sock").exists()
    assert watch.stages() == []


def test_state_directory_in_the_way(config: Path, tmp_path: Path) -> None:
    """The way out is named, whatever is wrong with it."""
    (tmp_path / "state").write_text("")
    with pytest.raises(StartFailed, match=r"a file is there; create it for this user .* or name another in state_dir"):
        Application(settings_of(config), stream=io.BytesIO())


def test_state_directory_that_cannot_be_made(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look and the deed may differ: a mandatory access control shows itself only here."""

    def refused(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StartFailed, match="cannot be used: Permission denied; create it for this user"):
        Application(settings_of(config), stream=io.BytesIO())


def test_a_database_of_a_newer_version(config: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "smtpguard.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StartFailed, match="written by a newer smtpguard"):
        Application(settings_of(config), stream=io.BytesIO())


def test_run_tells_all_errors_of_the_file(config: Path) -> None:
    config.write_text(config.read_text().replace('"lmtp"\nbind', '"lmtp"\nbint') + "drain = 1\n")
    with pytest.raises(StartFailed) as failed:
        app.run(config)
    assert "did you mean 'bind'?" in str(failed.value)
    assert "[admin] drain" in str(failed.value)


async def test_an_admin_socket_of_systemd_must_be_local(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only when it is passed does it show where it listens."""
    config.write_text(config.read_text().replace(f"unix:{tmp_path}/admin.sock", "fd:admin"))
    with socket.socket() as passed:
        passed.bind(("0.0.0.0", 0))
        passed.listen()
        monkeypatch.setattr(app, "inherited_sockets", lambda: (app.InheritedSocket("admin", passed),))
        with (
            pytest.raises(StartFailed, match=r"listens on 0.0.0.0:.*, where other hosts reach it"),
            trio.fail_after(OPEN_SECONDS),
        ):
            await Application(settings_of(config), stream=io.BytesIO()).run()


async def test_an_admin_socket_of_systemd_beyond_this_host(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a token it may listen there; HUP takes a new token."""
    (tmp_path / "token").write_text("first-token-0123456789")
    text = config.read_text().replace(f"unix:{tmp_path}/admin.sock", "fd:admin")
    config.write_text(text + f'token_file = "{tmp_path}/token"\n')
    with socket.socket() as passed:
        passed.bind(("0.0.0.0", 0))
        passed.listen()
        passed.setblocking(False)
        monkeypatch.setattr(app, "inherited_sockets", lambda: (app.InheritedSocket("admin", passed),))
        async with running(config) as (application, watch):
            assert application._live.token() == "first-token-0123456789"
            (tmp_path / "token").write_text("second-token-0123456789")
            os.kill(os.getpid(), signal.SIGHUP)
            assert await watch.stage("reloaded") == ""
            assert application._live.token() == "second-token-0123456789"


async def test_an_admin_socket_of_systemd(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(config.read_text().replace(f"unix:{tmp_path}/admin.sock", "fd:admin"))
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        passed.listen()
        passed.setblocking(False)
        port = passed.getsockname()[1]
        monkeypatch.setattr(app, "inherited_sockets", lambda: (app.InheritedSocket("admin", passed),))
        async with running(config):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"alive" in await rest(stream)
            await stream.aclose()


async def test_a_socket_of_systemd_that_no_listener_binds(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients would hang: the start says so instead."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        monkeypatch.setattr(app, "inherited_sockets", lambda: (app.InheritedSocket("mx", passed),))
        with (
            pytest.raises(StartFailed, match=r"the socket mx \(127.0.0.1:\d+\) and no \[\[listener\]\] binds it"),
            trio.fail_after(OPEN_SECONDS),
        ):
            await Application(settings_of(config), stream=io.BytesIO()).run()


# -- reload


async def test_a_bad_file_changes_nothing(config: Path, tmp_path: Path) -> None:
    """Each of its errors is told; the old settings go on."""
    async with running(config) as (application, watch):
        before, outbound = application.settings, application._engine.outbound
        config.write_text(config.read_text() + "drain = 1\nbint = 2\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await watch.stage("reload_failed", times=2)
        assert application.settings is before
        assert application._engine.outbound is outbound
        assert "reloaded" not in watch.stages()
        assert application.status().ready
        alerts = [event for event in watch.events if isinstance(event, ReloadFailed)]
        assert [event.severity for event in alerts] == ["error", "error"]
        assert b"smtpguard_config_last_reload_successful 0.0" in await metrics(tmp_path)


async def test_a_good_file_is_taken_over_at_once(config: Path) -> None:
    """Rules, limits and caps; a listener of the same binds takes its new settings."""
    async with running(config) as (application, watch):
        text = config.read_text().replace('protocol = "lmtp"', 'protocol = "lmtp"\nehlo = "other.example.org"')
        config.write_text(text + "[outbound]\ndestination_connections = 1\ndestination_walks = 1\n")
        os.kill(os.getpid(), signal.SIGHUP)
        assert await watch.stage("reloaded") == ""
        assert application._intakes[0].listener.ehlo == "other.example.org"
        assert application._engine.outbound.destination_connections == 1
        slots = application._engine.services.slots
        assert slots.try_take(["a.example"])
        assert not slots.try_take(["a.example"])


async def test_another_name_and_more_sessions_for_the_way_in(config: Path) -> None:
    """The name stands in the next trace line, inbound as outbound; what waits for a restart is told by its own key."""
    text = config.read_text() + INBOUND
    config.write_text(text)
    async with running(config) as (application, watch):
        more = text.replace('tls = "none"', 'tls = "none"\nlimits = { sessions = 7 }')
        config.write_text(more.replace("mail.example.org", "other.example.org"))
        os.kill(os.getpid(), signal.SIGHUP)
        assert await watch.stage("reloaded") == "needs a restart to take effect: sessions of [listener.limits]"
        assert application._inbounds[0].hostname == application._engine.outbound.hostname == "other.example.org"


async def test_doubtful_rules_are_told_at_the_start_and_after_a_reload(config: Path) -> None:
    """What check-config warns of, in the log, too: who mounts a file into a container never calls check-config."""
    expired = '[[policy]]\ndomain = "old.example"\nlevel = "encrypt"\nexpires = 2020-01-01\n'
    config.write_text(config.read_text() + expired + INBOUND)
    async with running(config) as (_, watch):

        def told() -> list[tuple[str, str, str]]:
            return [(e.direction, e.rule, e.kind) for e in watch.events if isinstance(e, RuleWarning)]

        assert told() == [
            ("outbound", "old.example", "expired"),
            ("inbound", "recipient domain bank.example", "expired"),
        ]
        config.write_text(config.read_text().replace(expired, ""))
        os.kill(os.getpid(), signal.SIGHUP)
        await watch.stage("reloaded")
        assert len(told()) == 3


async def test_what_needs_a_restart_is_told_until_it_comes(config: Path, tmp_path: Path) -> None:
    """Compared with what runs, not with the file before: a second HUP does not make it true."""
    async with running(config) as (_, watch):
        text = config.read_text()
        changed = text.replace('["127.0.0.1:1"]', '["127.0.0.1:2"]').replace('name = "lmtp"', "max_sessions = 7")
        changed = changed.replace("/state", "/other").replace("admin.sock", "admin2.sock")
        config.write_text(changed + "[log]\nlevel = 'debug'\n[mtasts]\nport = 444\n")
        expected = (
            "needs a restart to take effect: max_sessions of [[listener]], [dns], [mtasts], [admin], [log], state_dir"
        )
        for times in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            assert await watch.stage("reloaded", times) == expected
        assert b"smtpguard_config_restart_needed 1.0" in await metrics(tmp_path)
        config.write_text(text.replace("127.0.0.1:0", "127.0.0.2:0"))
        os.kill(os.getpid(), signal.SIGHUP)
        assert await watch.stage("reloaded", 3) == "needs a restart to take effect: the binds of [[listener]]"
        config.write_text(text)
        os.kill(os.getpid(), signal.SIGHUP)
        assert await watch.stage("reloaded", 4) == ""
        assert b"smtpguard_config_restart_needed 0.0" in await metrics(tmp_path)


async def test_authorities_that_vanish_in_between(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(config) as (application, watch):
        before = application.settings

        def gone(settings: Settings) -> None:
            raise OSError("cannot read /x.pem")

        monkeypatch.setattr(application._engine, "reload", gone)
        os.kill(os.getpid(), signal.SIGHUP)
        assert await watch.stage("reload_failed") == "cannot read /x.pem"
        assert application.settings is before


async def test_a_bug_in_reading_does_not_end_the_process(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(config) as (application, watch):

        def bug(path: Path) -> list[ConfigError]:
            raise RuntimeError("a bug")

        monkeypatch.setattr(app, "load", bug)
        os.kill(os.getpid(), signal.SIGHUP)
        await watch.stage("reload_failed")
        assert [event.where for event in watch.events if isinstance(event, InternalError)] == ["reload"]
        assert application.status().ready


# -- end


async def test_drain_ends_idle_sessions_refuses_new_ones_and_flushes_last(config: Path) -> None:
    """DESIGN §6: a session that became idle closes silently; sinks flush after the sessions."""
    async with running(config) as (_, watch):
        port = watch.port("lmtp")
        stream = await greeted(port)
        await exchanged(stream, b"MAIL FROM:<a@example.org>\r\nRSET\r\n", b"250 2.0.0")
        os.kill(os.getpid(), signal.SIGTERM)
        await rest(stream)
        await stream.aclose()
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", port)
    assert watch.stages()[-2:] == ["draining", "stopped"]
    (closed,) = [event for event in watch.events if isinstance(event, SessionClosed)]
    assert watch.events.index(closed) < watch.events.index(Lifecycle(stage="stopped"))


async def test_a_second_term_ends_at_once(config: Path) -> None:
    """A transaction under way is waited for, until somebody says TERM again."""
    async with running(config) as (application, watch):
        stream = await greeted(watch.port("lmtp"))
        await exchanged(stream, b"MAIL FROM:<a@example.org>\r\n", b"250 2.1.0")
        os.kill(os.getpid(), signal.SIGTERM)
        await watch.stage("draining")
        assert application.status().draining or not application.status().ready
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(OPEN_SECONDS / 2):  # drain_seconds are 20
            await rest(stream)
        await stream.aclose()
        await watch.stage("stopped")


async def test_the_end_is_followed_to_the_end(config: Path, tmp_path: Path) -> None:
    """While sessions drain the admin address answers, and who follows the events hears of it; then 1001."""
    config.write_text(config.read_text().replace(f"unix:{tmp_path}/admin.sock", "127.0.0.1:0"))
    async with running(config) as (_, watch):
        mta = await greeted(watch.port("lmtp"))
        await exchanged(mta, b"MAIL FROM:<a@example.org>\r\n", b"250 2.1.0")
        async with following(watch.port("admin")) as follower:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (await follower.event("lifecycle"))["stage"] == "draining"
            stream = await trio.open_tcp_stream("127.0.0.1", watch.port("admin"))
            await stream.send_all(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await rest(stream)).startswith(b"HTTP/1.1 503 ")
            await stream.aclose()
            await mta.aclose()
            assert await follower.closed() == (1001, "smtpguard was stopped")


async def test_what_systemd_is_told(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd_notify(3): READY, RELOADING with the monotonic time that Type=notify-reload needs, READY, STOPPING."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with running(config) as (_, watch):
            assert systemd.recv(100) == b"READY=1"
            os.kill(os.getpid(), signal.SIGHUP)
            await watch.stage("reloaded")
            state, stamp = systemd.recv(100).decode().split("\n")
            assert state == "RELOADING=1"
            name, _, number = stamp.partition("=")
            assert name == "MONOTONIC_USEC"
            assert 0 <= time.clock_gettime(time.CLOCK_MONOTONIC) - int(number) / 1e6 < OPEN_SECONDS
            assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"STOPPING=1"


async def test_the_log_ends_with_stopped(config: Path) -> None:
    """Flushed before the process ends."""
    stream = io.BytesIO()
    application = Application(settings_of(config), SYSTEM_CLOCK, stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(application.run)
        with trio.fail_after(OPEN_SECONDS):
            while not application._ready:
                await trio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stream.getvalue().rstrip().endswith(b"event=lifecycle stage=stopped")


async def test_the_metrics_address_serves_metrics_alone(config: Path) -> None:
    """Beside the admin address, and named in the log."""
    config.write_text(config.read_text() + 'metrics_bind = "127.0.0.1:0"\n')
    async with running(config) as (_, watch):
        for target, status in ((b"/metrics", b"200"), (b"/healthz/ready", b"200"), (b"/api/decisions", b"404")):
            async with await trio.open_tcp_stream("127.0.0.1", watch.port("metrics")) as stream:
                await stream.send_all(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await stream.receive_some(65536)).split()[1] == status
