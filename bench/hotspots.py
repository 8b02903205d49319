"""Where does smtpguard's time go?  cProfile by module and function, threads by /proc, libraries by perf if installed.

Run as a program it is the profiled smtpguard: `hotspots.py FILE run --config …`.  Start-up (imports) is left out.
"""

import cProfile
import pstats
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

Function = tuple[str, int, str]


def under_profile(command: Sequence[str], output: Path) -> tuple[str, ...]:
    """`python -m smtpguard …` as the same command, profiled; the figures are written when it ends in good order."""
    python, _, _, *arguments = command
    return (python, str(Path(__file__).resolve()), str(output), *arguments)


def by_function(profile: Path, messages: int, count: int) -> list[str]:
    """Own milliseconds per message by module, what it called in C included, then by function.

    cProfile sees the main thread's CPU time, and slows small functions more than large ones: suspects, no measure.
    """
    stats: dict[Function, tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]]
    stats = pstats.Stats(str(profile)).stats  # type: ignore[attr-defined]
    modules: Counter[str] = Counter()
    for function, (_, _, own, _, callers) in stats.items():
        if _is_waiting(function):
            continue
        if function[1]:
            modules[_short(function[0])] += own  # type: ignore[assignment]
        else:
            for caller, (_, _, part, _) in callers.items():
                modules[_short(caller[0])] += part  # type: ignore[assignment]
    lines = [f"  {'own ms':>8}  per message, by module"]
    lines += [f"  {own / messages * 1e3:8.4f}  {module}" for module, own in modules.most_common(count)]
    lines += ["", f"  {'own ms':>8} {'all ms':>8} {'calls':>7}  per message, by function"]
    rows = sorted((row for row in stats.items() if not _is_waiting(row[0])), key=lambda row: -row[1][2])
    for (file, line, name), (_, calls, own, total, _) in rows[:count]:
        place = f"{_short(file)}:{line} {name}" if line else name
        lines.append(f"  {own / messages * 1e3:8.4f} {total / messages * 1e3:8.4f} {calls / messages:7.1f}  {place}")
    return lines


def thread_seconds(pid: int) -> dict[int, float]:
    """CPU seconds of each thread so far; the main thread has the process's number."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:
            continue
    return found


class LibraryProfile:
    """perf, attached while the load runs; silent where there is no perf or it may not be used."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._data = directory / "perf.data"
        self._process: subprocess.Popen[bytes] | None = None
        if shutil.which("perf"):
            command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "999", "-p", str(pid), "-o", str(self._data)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self, count: int) -> list[str]:
        """Shares of CPU time by library, then by symbol."""
        if self._process is None:
            return []
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        lines = []
        for sort, limit in (("dso", 8), ("dso,symbol", count)):
            command = ["perf", "report", "-i", str(self._data), "--stdio", "--sort", sort, "-g", "none"]
            shown = subprocess.run(command, capture_output=True, text=True, check=False)
            rows = [" ".join(row.split()[:5]) for row in shown.stdout.splitlines() if re.match(r"\s+\d+\.\d+%", row)]
            lines += ["", f"  share by {sort}", *(f"  {row}" for row in rows[:limit])]
        return lines


def _is_waiting(function: Function) -> bool:
    return "select.epoll" in function[2]


def _short(path: str) -> str:
    if found := re.search(r"/(?:site-packages|lib/python3\.\d+(?!/site-packages))/(.*)", path):
        return found[1]
    _, mark, tail = path.rpartition("/smtpguard/")
    return f"smtpguard/{tail}" if mark else path


def _run_profiled(output: str, arguments: Sequence[str]) -> None:
    from smtpguard.cli import main

    sys.argv = ["smtpguard", *arguments]
    profile = cProfile.Profile(time.thread_time)  # a wait for the interpreter lock is nobody's cost
    try:
        profile.runcall(main)
    finally:
        profile.dump_stats(output)


if __name__ == "__main__":
    _run_profiled(sys.argv[1], sys.argv[2:])
