"""The commands as an operator types them, as processes."""

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtpguard import cli

CONFIG = """
hostname = "mail.example.org"
state_dir = "{directory}/state"
[[listener]]
role = "outbound"
bind = ["unix:{directory}/lmtp.sock"]
protocol = "lmtp"
[dns]
resolvers = ["127.0.0.1:1"]
timeout_seconds = 0.2
attempts = 1
[admin]
bind = "unix:{directory}/admin.sock"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "smtpguard.toml"
    path.write_text(CONFIG.format(directory=tmp_path))
    return path


def smtpguard(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "smtpguard", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[str]]:
    """`smtpguard run`, until its log says that it is ready; TERM at the end."""
    command = [sys.executable, "-m", "smtpguard", "run", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "stage=ready" in line:
                break
        try:
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=30)


def test_check_config(config: Path) -> None:
    done = smtpguard("check-config", "--config", config)
    assert done.returncode == 0
    assert "well (1 listener, 0 rules)" in done.stdout
    assert smtpguard("check-config", SMTPGUARD_CONFIG=str(config)).returncode == 0


@pytest.mark.parametrize("command", ["check-config", "run"])
def test_config_errors_exit_2(config: Path, command: str) -> None:
    config.write_text(config.read_text().replace("lmtp.sock", "").replace('"lmtp"', '"x"'))
    done = smtpguard(command, "--config", config)
    assert done.returncode == 2
    assert f"{config}: [[listener]] 1 (unix:/" in done.stderr
    assert ') protocol = "x": must be one of "smtp", "lmtp"' in done.stderr
    assert "Traceback" not in done.stderr


def test_busy_port_and_unusable_state_directory(config: Path, tmp_path: Path) -> None:
    """One line with the way out, exit 1, no traceback."""
    text = config.read_text()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        config.write_text(text.replace(f"unix:{tmp_path}/lmtp.sock", f"127.0.0.1:{busy.getsockname()[1]}"))
        done = smtpguard("run", "--config", config)
    assert done.returncode == 1
    assert "in use" in done.stderr
    (tmp_path / "file").write_text("")
    config.write_text(text.replace(f'state_dir = "{tmp_path}/state"', f'state_dir = "{tmp_path}/file/state"'))
    again = smtpguard("run", "--config", config)
    assert again.returncode == 1
    assert "name another in state_dir" in again.stderr
    config.write_text(text.replace(f"unix:{tmp_path}/admin.sock", f"unix:{tmp_path}/file/admin.sock"))
    admin = smtpguard("run", "--config", config)
    assert admin.returncode == 1
    assert admin.stderr.count("\n") == 1
    assert "admin.sock" in admin.stderr
    assert "Traceback" not in done.stderr + again.stderr + admin.stderr


def test_a_life(config: Path, tmp_path: Path) -> None:
    """Ready, refuse with an id, explain it, reload well and badly, drain on TERM."""
    with running(config) as process:
        with smtplib.LMTP(f"{tmp_path}/lmtp.sock") as mta:
            with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
                mta.sendmail("a@example.org", ["b@nowhere.example"], b"Subject: x\r\n\r\nx\r\n")
            code, text = refused.value.recipients["b@nowhere.example"]
        assert code == 451
        decision = text.decode().rpartition("(id ")[2].rstrip(")")
        explained = smtpguard("explain", decision, "--config", config)
        assert explained.returncode == 0, explained.stderr
        assert "dns/failure" in explained.stdout
        by_domain = smtpguard("explain", "nowhere.example", "--json", "--config", config)
        assert json.loads(by_domain.stdout)[0]["id"] == decision
        assert smtpguard("explain", "unknown.example", "--config", config).returncode == 1
        listed = smtpguard("sts", "list", "--config", config)
        assert (listed.returncode, listed.stderr) == (0, "0 policies\n")
        fetched = smtpguard("sts", "refresh", "nowhere.example", "--config", config)
        assert fetched.returncode == 1, fetched.stdout
        assert json.loads(fetched.stdout)["result"] == "unavailable"
        good = config.read_text()
        assert process.stdout is not None
        for text_, stage in ((good + "[mtasts]\nenabled = 7\n", "reload_failed"), (good, "reloaded")):
            config.write_text(text_)
            process.send_signal(signal.SIGHUP)
            for line in process.stdout:
                if f"stage={stage}" in line:
                    break
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
        assert "stage=stopped" in output
        assert process.returncode == 0
        assert errors == ""


@contextmanager
def watching(config: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`smtpguard watch`, once it follows; killed at the latest at the end."""
    command = [sys.executable, "-m", "smtpguard", "watch", *options, "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith("smtpguard: following ")
            yield process
        finally:
            process.kill()


def test_watch(config: Path, tmp_path: Path) -> None:
    """Events for people and as JSON; Ctrl-C is the end that is meant; a reader who has enough is none; --once ends with
    the process, the others wait."""
    with (
        running(config) as process,
        watching(config, "--outcome", "deferred") as people,
        watching(config, "--json", "--domain", "nowhere.example", "--outcome", "deferred") as program,
        watching(config, "--json", "--level", "debug") as closed,
        watching(config, "--once", "--level", "error") as once,
    ):
        assert closed.stdout is not None
        closed.stdout.close()
        with smtplib.LMTP(f"{tmp_path}/lmtp.sock") as mta, pytest.raises(smtplib.SMTPRecipientsRefused):
            mta.sendmail("a@example.org", ["b@nowhere.example"], b"Subject: x\r\n\r\nx\r\n")
        assert people.stdout is not None
        assert program.stdout is not None
        assert "out deferred  nowhere.example" in people.stdout.readline()
        assert json.loads(program.stdout.readline())["reason"] == "dns/failure"
        assert closed.wait(20) == 0
        people.send_signal(signal.SIGINT)
        assert people.communicate(timeout=20) == ("", "")
        assert people.returncode == 0
        process.send_signal(signal.SIGTERM)
        assert once.communicate(timeout=20) == ("", "smtpguard: the feed ended: smtpguard was stopped\n")
        assert once.returncode == 1
        assert program.stderr is not None
        assert program.stderr.readline() == (
            "smtpguard: the feed is lost: smtpguard was stopped; waiting for it to come back\n"
        )
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=20)
        assert program.returncode == 0


def test_watch_says_what_is_wrong(config: Path) -> None:
    for options, code, said in (
        (["--domain", "a..b"], 2, "right would be"),
        (["--outcome", "bounced"], 2, "is not one of"),
        ([], 1, "is smtpguard running"),
    ):
        done = CliRunner().invoke(cli.main, ["watch", *options, "--config", str(config)])
        assert done.exit_code == code
        assert said in done.output


def test_nobody_to_ask(config: Path) -> None:
    done = smtpguard("explain", "x", "--config", config)
    assert done.returncode == 1
    assert "is smtpguard running" in done.stderr


def test_probe_says_what_fails(config: Path) -> None:
    done = smtpguard("probe", "nowhere.example", "--json", "--config", config)
    assert done.returncode == 1
    assert json.loads(done.stdout)["reason"] == "dns/failure"
    assert smtpguard("probe", "not a domain", "--config", config).returncode == 2


def test_probe_without_an_outbound_listener(config: Path) -> None:
    config.write_text(
        'hostname = "mx1.example.org"\n[[listener]]\nrole = "inbound"\nbind = ["127.0.0.1:2525"]\ntls = "none"\n'
        'upstream = "127.0.0.1:2526"\npass_client = "xclient"\n'
    )
    done = smtpguard("probe", "a.example", "--config", config)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        'smtpguard: probe looks as a [[listener]] with role = "outbound" would deliver, and the file has none\n'
    )


@pytest.mark.parametrize(
    ("errors", "code", "said"),
    [
        (
            [OSError("disk full"), ExceptionGroup("", [ValueError("no roots"), OSError("disk full")])],
            1,
            "disk full; no roots",
        ),
        ([KeyboardInterrupt(), OSError("x")], 130, ""),
    ],
)
def test_probe_ends_like_a_plain_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, errors: list[BaseException], code: int, said: str
) -> None:
    """Nurseries wrap errors in groups; the user sees one line, or at an interrupt none."""

    async def failing(*_: object) -> None:
        raise BaseExceptionGroup("", errors)

    monkeypatch.setattr(cli, "_probe_all", failing)
    done = CliRunner().invoke(cli.main, ["probe", "a.example", "--config", str(config)])
    assert (done.exit_code, done.output) == (code, f"smtpguard: {said}\n" if said else "")


def test_a_bug_in_probe_is_not_hidden(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(*_: object) -> None:
        raise ExceptionGroup("", [OSError("x"), KeyError("a bug")])

    monkeypatch.setattr(cli, "_probe_all", failing)
    done = CliRunner().invoke(cli.main, ["probe", "a.example", "--config", str(config)])
    assert isinstance(done.exception, ExceptionGroup)


def test_a_socket_of_systemd_needs_an_address_to_ask(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace(f"unix:{tmp_path}/admin.sock", "fd:admin"))
    done = CliRunner().invoke(cli.main, ["explain", "x", "--config", str(config)])
    assert done.exit_code == 2
    assert "name in [admin] address where its socket unit listens" in done.output
