"""The command a new user types first, as a process."""

import signal
import subprocess
import sys

DEMO = [sys.executable, "-m", "smtpguard", "demo"]


def test_every_row_is_as_expected() -> None:
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "22 of 22 rows as expected" in done.stdout
    assert "[dane/no-match]" in done.stdout
    assert not done.stderr


def test_serve_ends_well_when_interrupted() -> None:
    with subprocess.Popen([*DEMO, "--serve"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "explain DOMAIN" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_unknown_option() -> None:
    done = subprocess.run([*DEMO, "--serf"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--serf" in done.stderr
