"""How do the commands ask a running smtpguard?  One blocking HTTP request to its admin address."""

import http.client
import socket
from urllib.parse import quote

import msgspec

from smtpguard.net.listen import Bind
from smtpguard.reasons import printable

_SECONDS = 90.0


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


def ask(admin: Bind, method: str, path: str, token: str = "", **query: str) -> object:
    """The decoded JSON of one answer; `token` is shown where it is not empty.  Raises AdminUnreachable."""
    if query:
        path += "?" + "&".join(f"{name}={quote(value)}" for name, value in query.items())
    connection: http.client.HTTPConnection
    if admin.is_unix:
        connection = _UnixConnection(admin.path, _SECONDS)
    else:
        connection = http.client.HTTPConnection(host_of(admin), admin.port, timeout=_SECONDS)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise AdminUnreachable(
            f"no answer from {admin}: {printable(str(error))}; is smtpguard running, and with this configuration file?"
        ) from error
    finally:
        connection.close()
    try:
        answer: object = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise AdminUnreachable(f"{admin} does not answer like smtpguard") from error
    if response.status >= 400:
        text = answer.get("error", "") if isinstance(answer, dict) else ""
        raise AdminUnreachable(f"{admin} answered {response.status}: {printable(str(text))}")
    return answer
