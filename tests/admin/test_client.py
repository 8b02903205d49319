"""admin.client: one request to the running process, and one line where there is no good answer."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from smtpguard.admin.client import AdminUnreachable, ask, no_answer
from smtpguard.net.listen import Bind, parse_bind


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@contextmanager
def serving(reply: bytes, path: Path | None = None) -> Iterator[tuple[Bind, list[bytes]]]:
    """One connection, one request read, `reply` written."""
    family = socket.AF_UNIX if path else socket.AF_INET
    requests: list[bytes] = []
    with socket.socket(family) as listener:
        listener.settimeout(10)
        listener.bind(str(path) if path else ("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                requests.append(connection.recv(65536))
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield parse_bind(f"unix:{path}" if path else f"127.0.0.1:{listener.getsockname()[1]}"), requests
        finally:
            thread.join(10)


@pytest.mark.parametrize("unix", [False, True])
def test_an_answer(tmp_path: Path, unix: bool) -> None:
    """Over TCP and a Unix socket; query values are escaped."""
    with serving(answer(b'[{"id":"s.1"}]'), tmp_path / "a.sock" if unix else None) as (bind, requests):
        assert ask(bind, "GET", "/api/decisions", q="a&b=c d") == [{"id": "s.1"}]
    assert requests[0].startswith(b"GET /api/decisions?q=a%26b%3Dc%20d HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (answer(b'{"error": "no such policy"}', "404 Not Found"), "answered 404: no such policy"),
        (answer(b"[]", "500 Oops"), "answered 500: "),
        (answer(b"<html>"), "does not answer like smtpguard"),
        (b"220 mx\x1b[31m ESMTP\r\n", "no answer from"),
        (b"", "is smtpguard running, and with this configuration file"),
    ],
    ids=["404", "500", "no JSON", "no HTTP", "nothing"],
)
def test_no_good_answer(reply: bytes, message: str) -> None:
    with serving(reply) as (bind, _), pytest.raises(AdminUnreachable) as failed:
        ask(bind, "GET", "/api/status")
    assert message in str(failed.value)
    assert str(failed.value).isprintable()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(AdminUnreachable, match=r"no answer from unix:.*is smtpguard running"):
        ask(parse_bind(f"unix:{tmp_path}/none.sock"), "GET", "/api/status")


def test_nobody_listens_in_the_words_of_the_system() -> None:
    """Asked plainly and as trio asks, which wraps what went wrong."""
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        admin = parse_bind(f"127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(AdminUnreachable, match=r"no answer from 127\.0\.0\.1:\d+: Connection refused; is"):
            ask(admin, "GET", "/api/status")
        with pytest.raises(OSError, match="all attempts") as failed:
            trio.run(trio.open_tcp_stream, "127.0.0.1", admin.port)
    assert str(no_answer(admin, failed.value)).startswith(f"no answer from {admin}: Connection refused; is")
