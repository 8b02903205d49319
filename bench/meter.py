"""What does a server cost: CPU time and memory of all its processes, those that have ended included?

A cgroup (version 2, beside version 1 too) counts exactly.  Where none can be made (no root, read-only container),
`/proc` is summed over the session's processes: 10 ms ticks, and a child's share arrives when its parent reaps it.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

CGROUP_ROOTS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


class Meter(Protocol):
    """Knows which processes belong to one server, and what they used."""

    kind: str

    def join(self, command: Sequence[str]) -> list[str]:
        """The command that starts `command` as the first of the processes."""

    def adopt(self, pid: int) -> None:
        """`pid` is the process that was started."""

    def processes(self) -> list[int]:
        """Those that live."""

    def cpu_seconds(self) -> float:
        """User and system time of all of them so far."""

    def close(self) -> None:
        """All processes have ended."""


class CgroupMeter:
    """Counts by a cgroup of its own."""

    kind = "cgroup"

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._path = path

    def join(self, command: Sequence[str]) -> list[str]:
        return ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._path), *command]

    def adopt(self, pid: int) -> None:
        """It joined by itself."""

    def processes(self) -> list[int]:
        return [int(line) for line in (self._path / "cgroup.procs").read_text().split()]

    def cpu_seconds(self) -> float:
        for line in (self._path / "cpu.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "usage_usec":
                return int(value) / 1e6
        raise RuntimeError(f"{self._path}/cpu.stat has no usage_usec")

    def close(self) -> None:
        self._path.rmdir()


class SessionMeter:
    """Counts by /proc, over the session that the first process leads."""

    kind = "/proc, 10 ms ticks"

    def __init__(self) -> None:
        self._session = -1
        self._tick = os.sysconf("SC_CLK_TCK")

    def join(self, command: Sequence[str]) -> list[str]:
        return list(command)

    def adopt(self, pid: int) -> None:
        self._session = pid

    def processes(self) -> list[int]:
        return list(self._stats())

    def cpu_seconds(self) -> float:
        # utime, stime, and those of children already reaped.
        return sum(sum(int(field) for field in fields[11:15]) for fields in self._stats().values()) / self._tick

    def close(self) -> None:
        """Nothing was made."""

    def _stats(self) -> dict[int, list[str]]:
        """The fields of /proc/<pid>/stat behind the name, of every process of the session."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._session and fields[0] != "Z":
                found[int(entry.name)] = fields
        return found


def make_meter(name: str) -> Meter:
    """The best meter to be had here."""
    for root in CGROUP_ROOTS:
        if (root / "cgroup.controllers").exists():
            try:
                return CgroupMeter(root / f"smtpguard-bench-{os.getpid()}-{name}")
            except OSError:
                continue
    return SessionMeter()


class Server:
    """A running server, on a processor of its own, measured by its own meter."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        *,
        cpu: int | None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.meter = make_meter(name)
        pin = ["taskset", "-c", str(cpu)] if cpu is not None and shutil.which("taskset") else []
        try:
            with log.open("wb") as output:
                self.process = subprocess.Popen(
                    self.meter.join([*pin, *command]),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                    cwd=log.parent,  # `python -m` looks there first: not at a checkout
                )
        except OSError:
            self.meter.close()
            raise
        self.meter.adopt(self.process.pid)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def last_words(self) -> str:
        """The last line it wrote."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with status {self.process.poll()} and said nothing"

    def cpu_seconds(self) -> float:
        return self.meter.cpu_seconds()

    def memory_kib(self) -> float:
        """Proportional set size of all processes: shared pages are counted once."""
        total = 0
        for pid in self.meter.processes():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        return float(total)

    def stop(self, patience: float = 15.0) -> None:
        """Ask the first process, then end whatever is left."""
        if not self.has_ended:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + 5
        while (left := self.meter.processes()) and time.monotonic() < deadline:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        self.meter.close()
