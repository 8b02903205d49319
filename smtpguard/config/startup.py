"""What can be wrong around the file?  The state directory and the host's name, looked at by `run` and `check-config`.

Answers are sentences with the way out; nothing here raises or waits without end.
"""

import os
import pwd
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from smtpguard.names import Domain

_RESOLVE_SECONDS = 5.0


def state_directory_problem(directory: Path) -> str:
    """Why state cannot be kept in `directory`, with the way out; empty: it can, or can be made there."""
    nearest = directory
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            why = "a file is there" if nearest == directory else f"{nearest} is a file"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            why = (
                "this user may not write to it" if nearest == directory else f"this user may not create it in {nearest}"
            )
        else:
            return ""
    except OSError as error:
        why = f"it cannot be looked at: {error.strerror}"
    return unusable_state_directory(directory, why)


def unusable_state_directory(directory: Path, why: str) -> str:
    """The sentence for it, with the ways out."""
    return (
        f"the state directory {directory} cannot be used: {why}; create it for this user "
        f"(`install -d -m 0750 -o {_user()} {directory}`; systemd: StateDirectory=smtpguard) "
        "or name another in state_dir"
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def host_name_problem(
    hostname: Domain,
    resolve: Callable[[str, None], object] = socket.getaddrinfo,
    seconds: float = _RESOLVE_SECONDS,
) -> str:
    """What receiving hosts may hold against the name we give in EHLO (SMTP-26); empty: nothing is known.

    The system's resolver has no time limit of ours, so it is asked in a thread that nobody waits for longer than
    `seconds`.
    """
    if "." not in hostname:
        return f"{hostname} is not a fully qualified name (RFC 5321 §2.3.5), as mx1.example.org is"
    said: list[str] = []

    def ask() -> None:
        try:
            resolve(hostname, None)
        except OSError as error:
            said.append(f"{hostname} does not resolve: {error.strerror}")
        else:
            said.append("")

    thread = threading.Thread(target=ask, name="hostname", daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0] if said else f"{hostname} could not be looked up within {seconds:g} s"
