"""What stands around the peers: the tools compiled, the sinks running, one processor for the load and one for the peer.

Whatever way the block is left, no process and no file stays behind.
"""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers
from meter import Server

HERE = Path(__file__).resolve().parent
READY_SECONDS = 20.0
SOURCES = 40
"""Client addresses, 127.0.1.1 and up: no limit per client is what is measured."""


class Talker:
    """A child that answers a line with a JSON line and ends when its standard input does."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}")
        return line

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self.line()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, slots=True)
class Bench:
    """The lab with its tools and sinks."""

    lab: peers.Lab
    sinks: tuple[Talker, ...]
    load_cpu: int | None
    peer_cpu: int | None

    def generator(self, setup: peers.Setup, *arguments: str) -> list[str]:
        command = [str(self.lab.directory / "smtpgen"), "-p", str(setup.port), "-e", setup.encryption]
        return [*_pin(self.load_cpu), *command, "-S", str(SOURCES), *arguments]

    def received(self) -> tuple[int, int]:
        """Messages and octets of all sinks so far."""
        counts = [sink.ask() for sink in self.sinks]
        return sum(one["messages"] for one in counts), sum(one["octets"] for one in counts)


@contextmanager
def open_bench() -> Iterator[Bench]:
    """Compile, make a certificate, start the sinks; at the end nothing is left."""
    processors = sorted(os.sched_getaffinity(0))
    load_cpu, peer_cpu = (processors[0], processors[-1]) if len(processors) > 1 else (None, None)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="smtpguard-bench-", dir="/var/tmp"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        directory.chmod(0o755)  # Postfix's processes are not root
        for tool in ("smtpgen", "smtpsink"):
            flags = ["-O2", "-Wall", "-Wextra", "-o", str(directory / tool), str(HERE / f"{tool}.c")]
            subprocess.run([os.environ.get("CC", "gcc"), *flags, "-lssl", "-lcrypto", "-pthread"], check=True)
        certificate, key = peers.make_certificate(directory)
        tls = ["-c", str(certificate), "-k", str(key)]
        sinks, ports = [], []
        for options in ([], tls, [*tls, "-m", "1"]):
            sink = Talker([*_pin(load_cpu), str(directory / "smtpsink"), *options])
            stack.callback(sink.close)
            sinks.append(sink)
            ports.append(int(sink.line()))
        yield Bench(peers.Lab(directory, certificate, key, *ports), tuple(sinks), load_cpu, peer_cpu)


@contextmanager
def running(bench: Bench, name: str, setup: peers.Setup) -> Iterator[Server]:
    """The peer, greeting its clients; raises Unavailable with its last words."""
    log = bench.lab.directory / f"{name}.log"
    server = Server(name, setup.command, log, cpu=bench.peer_cpu, environment=setup.environment)
    try:
        _wait_for_greeting(server, setup.port)
        yield server
    finally:
        server.stop()


def _wait_for_greeting(server: Server, port: int) -> None:
    end = time.monotonic() + READY_SECONDS
    heard = b""
    while time.monotonic() < end:
        if server.has_ended:
            raise peers.Unavailable(server.last_words())
        try:
            with socket.create_connection(("127.0.0.1", port), 2) as sock:
                if (heard := sock.recv(512)).startswith(b"220"):
                    return
        except OSError:
            heard = b""
        time.sleep(0.1)
    raise peers.Unavailable(f"no 220 within {READY_SECONDS:g} s; it said {heard!r}; {server.last_words()}")


def _pin(cpu: int | None) -> list[str]:
    return ["taskset", "-c", str(cpu)] if cpu is not None and shutil.which("taskset") else []
