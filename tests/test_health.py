"""`smtpguard health`: its exit codes, and whom it asks."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtpguard import cli
from smtpguard.health import health

REPLY = "HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"


@contextmanager
def admin(status: int, body: str) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server that answers one request; its port, and the first line of what it was asked."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096).decode().partition("\r\n")[0])
                connection.sendall(REPLY.format(status, len(body), body).encode())

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1], asked
        thread.join(10)


def asked(directory: Path, admin_table: str, *arguments: str) -> Result:
    path = directory / "x.toml"
    path.write_text(f'hostname = "mail.example.org"\n[admin]\n{admin_table}\n')
    return CliRunner().invoke(health, ["--config", str(path), *arguments])


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [(200, "ready\n", 0), (200, "ready\ndegraded: DNSSEC: never validated\n", 0), (503, "draining\n", 1)],
)
def test_readiness(tmp_path: Path, status: int, body: str, code: int) -> None:
    with admin(status, body) as (port, requests):
        done = asked(tmp_path, f'bind = "127.0.0.1:{port}"')
    assert (done.exit_code, requests) == (code, ["GET /healthz/ready HTTP/1.1"])
    assert body.strip() in done.output


def test_liveness_through_the_metrics_address(tmp_path: Path) -> None:
    """It is the only one here, and bound to every address: this host is asked."""
    with admin(200, "alive\n") as (port, requests):
        done = asked(tmp_path, f'enabled = false\nmetrics_bind = "0.0.0.0:{port}"', "--live")
    assert (done.exit_code, done.output, requests) == (0, "alive\n", ["GET /healthz/live HTTP/1.1"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("enabled = false", "names no address that can be asked"),
        ('bind = "fd:admin"', "names no address that can be asked"),
        ('bind = "unix:/nowhere/admin.sock"', "no answer from unix:/nowhere/admin.sock"),
        ("bind = ", "is not TOML"),
    ],
)
def test_nobody_to_ask_is_unwell(tmp_path: Path, table: str, said: str) -> None:
    """Exit 1, never 2, which Docker reserves."""
    done = asked(tmp_path, table)
    assert done.exit_code == 1
    assert said in done.output


def test_it_is_a_command_that_loads_no_engine(tmp_path: Path) -> None:
    assert cli.main.commands["health"] is health
    script = (
        "import sys; sys.argv = ['smtpguard', 'health', '-c', '/nowhere']\n"
        "import smtpguard.__main__ as m\n"
        "try: m.main()\n"
        "except SystemExit as end: print(end.code, 'smtpguard.engine' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, env=dict(os.environ)
    )
    assert done.stdout == "1 False\n"
    assert "/nowhere: cannot be read" in done.stderr
