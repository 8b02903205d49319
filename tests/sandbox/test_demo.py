"""The command a new user types first, as a process."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from smtpguard.sandbox import demo
from smtpguard.sandbox.conversation import listen
from smtpguard.sandbox.demo import Case, Result, Rounds, Row
from smtpguard.sandbox.guard import held_port
from smtpguard.sandbox.inbound import Attempt, InboundRow, Inside, Outcome
from smtpguard.sandbox.internet import Attack, Publication, Site

DEMO = [sys.executable, "-m", "smtpguard", "demo"]


def test_every_row_is_as_expected() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "22 of 22 rows as expected" in done.stdout
    assert "6 of 6 inbound rows as expected" in done.stdout
    assert done.stdout.count("forged mail taken") == 2  # the careless server itself was fooled
    assert "[dane/no-match]" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_well_when_interrupted(number: int) -> None:
    """It is heard through a pipe at once, and takes its smtpguard with it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*DEMO, "--serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "explain DOMAIN" in line:
                break
        children = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/children")]
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert re.search(r"(\d+) of \1 rounds as expected\n$", output)
    assert "Traceback" not in errors
    (child,) = "".join(children).split()
    assert not Path(f"/proc/{child}").exists()


def row(*, good: bool) -> Row:
    case = Case(Site("a.example", Publication.DANE_EE, Attack.SWAP_CERTIFICATE), delivers=False)
    ours = Result(arrived=False, over_tls=False, intercepted=not good, reply="451 4.7.5 [dane/no-match] x")
    return Row(case, ours, ours, ours)


def inbound_row(*, good: bool) -> InboundRow:
    ours = Outcome("refused" if good else "forged mail taken", "550 5.5.2 [message/bare-newline] x")
    return InboundRow(Attempt.SMUGGLING, ours, ours)


def test_a_wrong_round_is_not_forgotten() -> None:
    """Whatever follows it, the end says so and the exit code is 1."""
    rounds = Rounds()
    assert rounds.exit_code == 1  # nothing was shown yet
    assert rounds.take([row(good=True)])
    assert rounds.exit_code == 0
    assert not rounds.take([row(good=True), inbound_row(good=False)])
    assert rounds.take([row(good=True), inbound_row(good=True)])
    assert (str(rounds), rounds.exit_code) == ("2 of 3 rounds as expected", 1)


async def test_later_rounds_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--serve` tells a row that went wrong in a later round, and that row alone."""
    tries, inbound_tries = iter([True, True, False, True]), iter([True, True, True, False])

    async def try_case(*_: object) -> Row:
        await trio.lowlevel.checkpoint()
        return row(good=next(tries))

    async def try_all(_: object) -> list[InboundRow]:
        await trio.lowlevel.checkpoint()
        return [inbound_row(good=next(inbound_tries))]

    monkeypatch.setattr(demo, "try_case", try_case)
    monkeypatch.setattr(Inside, "try_all", try_all)
    monkeypatch.setattr(demo, "CASES", demo.CASES[:1])
    monkeypatch.setattr(demo, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(demo, "running", nobody)
    rounds, written = Rounds(), []
    with pytest.RaisesGroup(RuntimeError, allow_unwrapped=True, flatten_subgroups=True):  # the tries are used up
        await demo.run(rounds, written.append, serves=True)
    assert (rounds.whole, rounds.wrong) == (4, 2)
    (table, _, third, fourth) = written
    assert "1 of 1 rows as expected" in table
    assert "1 of 1 inbound rows as expected" in table
    assert third.startswith("\nround 3:\n")
    assert "0 of 1 rows as expected" in third
    assert "inbound" not in third
    assert fourth.startswith("\nround 4:\n")
    assert "0 of 1 inbound rows as expected" in fourth


@asynccontextmanager
async def nobody(*_: object) -> AsyncIterator[None]:
    """No smtpguard behind the rounds."""
    yield


async def test_a_held_port_is_for_smtpguard_alone() -> None:
    """The kernel gives it to nobody who asks for any port, and a listener may open on it."""
    with held_port() as port:
        listener = await listen("127.0.0.1", port)
        with pytest.raises(OSError, match="in use"):
            await listen("127.0.0.1", port)
        await listener.aclose()
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))


def test_unknown_option() -> None:
    done = subprocess.run([*DEMO, "--serf"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--serf" in done.stderr


@asynccontextmanager
async def started(directory: Path, *first: str) -> AsyncIterator[trio.Process]:
    """The demo as the leader of a process group, as a terminal runs it; its temporary files are in `directory`."""
    process = await trio.lowlevel.open_process(
        [sys.executable, *first, *DEMO[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(directory)},
    )
    try:
        with trio.fail_after(60):
            yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()


def _children(pid: int) -> list[int]:
    """Whichever of its threads started them."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for children in tasks for child in children.read_text().split()]


@pytest.mark.parametrize("group", [True, False], ids=["Ctrl-C", "kill -INT"])
async def test_interrupted_in_mid_round(tmp_path: Path, group: bool) -> None:
    """Exit 130 without a traceback; the temporary directory and smtpguard itself are gone."""
    async with started(tmp_path) as process:
        while not any(b"delivery_refused" in log.read_bytes() for log in tmp_path.glob("smtpguard-demo-*/log")):
            assert process.poll() is None, await _all_of(process.stdout)
            await trio.sleep(0.02)
        (child,) = _children(process.pid)
        if group:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        said, errors = await _all_of(process.stdout), await _all_of(process.stderr)
        await process.wait()
    assert process.returncode == 130, errors
    assert (said, errors) == (b"", b"")
    assert not list(tmp_path.iterdir())
    assert not Path(f"/proc/{child}").exists()


async def test_interrupted_while_it_loads(tmp_path: Path) -> None:
    """A Ctrl-C before there is a demo ends it like any program: by the signal, without a word."""
    async with started(tmp_path, "-X", "importtime") as process:
        assert process.stderr is not None
        seen = b""
        while b"smtpguard.names" not in seen:
            more = await process.stderr.receive_some()
            assert more, seen
            seen += more
        process.send_signal(signal.SIGINT)
        seen += await _all_of(process.stderr)
        await process.wait()
    assert process.returncode == -signal.SIGINT
    assert all(line.startswith(b"import time:") for line in seen.splitlines()[:-1]), seen[-2000:]
    assert b"Traceback" not in seen
    assert not list(tmp_path.iterdir())


async def _all_of(stream: trio.abc.ReceiveStream | None) -> bytes:
    assert stream is not None
    return b"".join([octets async for octets in stream])
