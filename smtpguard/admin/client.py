"""How do the commands ask a running smtpguard?  One blocking HTTP request to its admin address."""

import http.client
import os
import socket
from typing import Final
from urllib.parse import quote

import msgspec

from smtpguard.net.listen import Bind
from smtpguard.reasons import printable

_SECONDS: Final = 90.0


class AdminUnreachable(Exception):
    """No answer, or not a good one; the message is one line for the user."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def host_of(admin: Bind) -> str:
    """The address to connect to: this host, where the process listens on every address."""
    if admin.address is not None and admin.address.is_unspecified:
        return "127.0.0.1" if admin.address.version == 4 else "::1"
    return str(admin.address)


def no_answer(admin: Bind, error: Exception) -> AdminUnreachable:
    """Why nobody answered, in the system's words, and where to look."""
    causes = error.__cause__.exceptions if isinstance(error.__cause__, BaseExceptionGroup) else ()  # as trio connects
    cause = causes[0] if len(causes) == 1 else error
    number = cause.errno if isinstance(cause, OSError) else None
    why = os.strerror(number) if number is not None and number > 0 else str(cause)  # below: getaddrinfo's
    return AdminUnreachable(
        f"no answer from {admin}: {printable(why)}; is smtpguard running, and with this configuration file?"
    )


def fetch(
    admin: Bind, path: str, method: str = "GET", *, token: str = "", seconds: float = _SECONDS
) -> tuple[int, str]:
    """Status and text of one answer; `token` is shown where it is not empty.  Raises AdminUnreachable."""
    connection: http.client.HTTPConnection
    if admin.is_unix:
        connection = _UnixConnection(admin.path, seconds)
    else:
        connection = http.client.HTTPConnection(host_of(admin), admin.port, timeout=seconds)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise no_answer(admin, error) from error
    finally:
        connection.close()


def ask(admin: Bind, method: str, path: str, token: str = "", **query: str) -> object:
    """The decoded JSON of one answer; `token` is shown where it is not empty.  Raises AdminUnreachable."""
    if query:
        path += "?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())
    status, body = fetch(admin, path, method, token=token)
    try:
        answer: object = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise AdminUnreachable(f"{admin} does not answer like smtpguard") from error
    if status >= 400:
        text = answer.get("error", "") if isinstance(answer, dict) else ""
        raise AdminUnreachable(f"{admin} answered {status}: {printable(str(text))}")
    return answer
