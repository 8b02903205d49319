"""The benchmark's own arithmetic and meters (`pytest bench`); that its tools run is what `run.py --quick` shows."""

import sys
import time
from pathlib import Path

import pytest
from meter import Server, SessionMeter
from report import Idle, Slice, case_table, idle_table, ratios

SPIN = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
PARENT = f"""
import subprocess, sys, time
subprocess.run([sys.executable, "-c", {SPIN!r}])
print("done", flush=True)
time.sleep(60)
"""
LEAVING = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
"""


def _slice(cpu_ms: float, errors: int = 0, error: str = "") -> Slice:
    return Slice(cpu_ms, 100.0, 1.0, 2.0, 50, errors, error)


def _wait_for(path: Path, text: str) -> None:
    end = time.monotonic() + 20
    while text not in path.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ratios_are_taken_round_by_round():
    assert ratios([_slice(2), _slice(9)], [_slice(1), _slice(3)]) == [2.0, 3.0]


def test_a_peer_that_used_no_measurable_time_gives_no_ratio():
    assert ratios([_slice(2)], [_slice(0)]) == []


def test_a_table_names_the_aims_and_whether_they_are_reached():
    slices = {"smtpguard": [_slice(1.3)] * 3, "nginx": [_slice(1.0)] * 3, "postfix": [_slice(1.9)] * 3}
    text = "\n".join(case_table("new", "x", slices))
    assert "smtpguard / nginx" in text
    assert "aim <= 1.4: reached" in text
    assert "aim <= 0.65: NOT reached" in text


def test_a_table_compares_a_tree_with_its_baseline_and_no_aim():
    slices = {"outbound": [_slice(1.0)], "outbound-baseline": [_slice(2.0)]}
    text = "\n".join(case_table("out-kept", "x", slices))
    assert "outbound / outbound-baseline" in text
    assert "0.50 / 0.50 / 0.50" in text
    assert "aim" not in text


def test_errors_and_missing_slices_are_told():
    text = "\n".join(case_table("new", "x", {"smtpguard": [_slice(1.0, 2, "RCPT: 451")], "nginx": []}))
    assert "2 errors in 50 messages: RCPT: 451" in text
    assert "no valid slice" in text


def test_idle_memory_has_its_aim():
    text = "\n".join(
        idle_table({"smtpguard": Idle(1000, 26.5, 1000, 10.0, 1.0, 0), "nginx": Idle(9, 30.0, 9, 1.0, 1.0, 0)})
    )
    assert "aim <= 26: NOT reached" in text
    assert text.count("aim") == 1


@pytest.mark.parametrize("by_session", [False, True])
def test_time_of_children_that_have_ended_counts(tmp_path, monkeypatch, by_session):
    if by_session:
        monkeypatch.setattr("meter.make_meter", lambda _: SessionMeter())
    log = tmp_path / "log"
    server = Server("test", [sys.executable, "-c", PARENT], log, cpu=None)
    try:
        _wait_for(log, "done")
        assert 0.25 < server.cpu_seconds() < 3
        assert server.memory_kib() > 1000
    finally:
        server.stop()
    assert server.has_ended


def test_stopping_ends_what_the_first_process_left(tmp_path):
    log = tmp_path / "log"
    server = Server("test", [sys.executable, "-c", LEAVING], log, cpu=None)
    server.process.wait(20)
    pid = int(log.read_text())
    server.stop()
    assert not _lives(pid)
