"""config.startup: what is wrong around the file is told with the way out, and within a bounded time."""

import os
import threading
from pathlib import Path

import pytest

from smtpguard.config.startup import host_name_problem, state_directory_problem
from smtpguard.names import Domain

NAME = Domain("mx.example.org")


def test_a_state_directory_that_can_be_made(tmp_path: Path) -> None:
    assert state_directory_problem(tmp_path) == ""
    assert state_directory_problem(tmp_path / "not" / "there" / "yet") == ""


def test_a_file_in_the_way(tmp_path: Path) -> None:
    """The sentence says what is there and how to mend it."""
    (tmp_path / "file").write_text("")
    problem = state_directory_problem(tmp_path / "file")
    assert problem.startswith(f"the state directory {tmp_path}/file cannot be used: a file is there; create it")
    assert "StateDirectory=smtpguard" in problem
    assert problem.endswith("or name another in state_dir")
    below = state_directory_problem(tmp_path / "file" / "state")
    assert f"cannot be used: {tmp_path}/file is a file;" in below


def test_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no mode stops: the kernel's answer is what is replaced here."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be used: this user may not write to it; create" in state_directory_problem(tmp_path)
    missing = state_directory_problem(tmp_path / "missing" / "state")
    assert f"cannot be used: this user may not create it in {tmp_path};" in missing
    assert "install -d -m 0750 -o " in missing


def test_a_name_that_resolves() -> None:
    assert host_name_problem(NAME, lambda name, port: [(name, port)]) == ""


def test_a_name_of_one_label() -> None:
    """It may resolve by a search list; nobody else knows it."""
    assert host_name_problem(Domain("mx1"), lambda name, port: [(name, port)]).startswith(
        "mx1 is not a fully qualified"
    )


def test_a_name_that_does_not_resolve() -> None:
    """SMTP-26."""

    def fails(name: str, port: None) -> object:
        raise OSError(-2, "Name or service not known")

    assert host_name_problem(NAME, fails) == "mx.example.org does not resolve: Name or service not known"


def test_a_resolver_that_never_answers_is_not_waited_for() -> None:
    """SMTP-26: a start-up check has an end."""
    never = threading.Event()
    try:
        problem = host_name_problem(NAME, lambda name, port: never.wait(3), seconds=0.01)
    finally:
        never.set()
    assert problem == "mx.example.org could not be looked up within 0.01 s"
