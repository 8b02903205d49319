"""admin.watch: the client of `/events` hears what happens, and says how it ends."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1
from pathlib import Path

import pytest
import trio

from smtpguard.admin import server, watch
from smtpguard.admin.client import AdminUnreachable
from smtpguard.admin.watch import Watched, follow
from smtpguard.net.listen import Bind, parse_bind
from tests.admin.test_events import DELIVERED, REFUSED, TOKEN, Served, serving


class Heard:
    """What a follower was given, and a way to wait for more."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notices: list[str] = []

    def ids(self) -> list[str]:
        return [json.loads(line)["id"] for line in self.lines]

    async def until(self, *, lines: int = 0, notices: int = 0) -> None:
        with trio.fail_after(5):
            while len(self.lines) < lines or len(self.notices) < notices:
                await trio.sleep(0.002)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_AGAIN_SECONDS", (0.001, 0.002))


@asynccontextmanager
async def watching(port: int, token: str = "", recent: int = 0) -> AsyncIterator[Heard]:
    heard = Heard()
    watched = Watched(parse_bind(f"127.0.0.1:{port}"), token, [("level", "info")], recent)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, watched, heard.lines.append, heard.notices.append)
        await heard.until(notices=1)
        yield heard
        nursery.cancel_scope.cancel()


async def refused(port: int | str, query: str = "level", value: str = "info", token: str = "") -> str:
    """What it says where it does not wait."""
    bind = parse_bind(port if isinstance(port, str) else f"127.0.0.1:{port}")
    with trio.fail_after(5), pytest.raises(AdminUnreachable) as failed:
        await follow(Watched(bind, token, [(query, value)]), print, lambda notice: None, again=False)
    return str(failed.value)


async def test_events_in_order() -> None:
    """After the earlier ones that were asked for."""
    async with serving() as served:
        served.emit(REFUSED)
        async with watching(served.port, recent=1) as heard:
            served.emit(DELIVERED)
            await heard.until(lines=2)
            assert heard.ids() == ["s.2", "s.1"]
            assert heard.notices == [f"following 127.0.0.1:{served.port}"]


async def test_a_server_that_goes_is_waited_for() -> None:
    """It says so once, and goes on without the earlier events when it is back."""

    async def ending(served: Served) -> None:
        await served.live.feed.end()
        served.live.feed._is_ended = False  # it is back

    async with serving() as served:
        served.emit(REFUSED)
        async with watching(served.port, recent=10) as heard:
            await ending(served)
            await heard.until(notices=3)
            await served.followers(1)
            served.emit(DELIVERED)
            await heard.until(lines=2)
            assert heard.ids() == ["s.2", "s.1"]
            assert heard.notices[1:] == [
                "the feed is lost: smtpguard was stopped; waiting for it to come back",
                "following again; what happened in between is not shown",
            ]


async def test_while_it_is_away_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One notice when it goes and one when it is back, however often it was tried meanwhile."""
    attempts = 0
    open_stream = watch._stream

    async def away(admin: Bind) -> trio.SocketStream:
        nonlocal attempts
        attempts += 1
        if 1 < attempts < 6:
            raise AdminUnreachable("no answer")
        return await open_stream(admin)

    monkeypatch.setattr(watch, "_stream", away)
    async with serving() as served, watching(served.port) as heard:
        await served.live.feed.end()
        served.live.feed._is_ended = False
        await heard.until(notices=3)
        assert attempts == 6
        assert [notice.partition(":")[0] for notice in heard.notices[1:]] == [
            "the feed is lost",
            "following again; what happened in between is not shown",
        ]


async def test_a_server_that_is_busy_may_be_asked_again() -> None:
    """503 says no for now."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def busy(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.receive_some(65536)
                await stream.send_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 15\r\n\r\n" + b'{"error":"full"}'[:15])

        nursery.start_soon(trio.serve_listeners, busy, [listener])
        watched = Watched(parse_bind(f"127.0.0.1:{listener.socket.getsockname()[1]}"), "", [])
        with trio.fail_after(5), pytest.raises(AdminUnreachable, match="answered 503") as failed:
            await follow(watched, print, lambda notice: None)
        assert not isinstance(failed.value, watch.Refused)
        nursery.cancel_scope.cancel()


async def test_once() -> None:
    """It ends with the server, and says why."""
    async with serving() as served:
        await served.live.feed.end()
        assert await refused(served.port) == "the feed ended: smtpguard was stopped"


async def test_nobody_there(tmp_path: Path) -> None:
    assert "is smtpguard running" in await refused(f"unix:{tmp_path}/none.sock")


async def test_what_the_server_says_no_to() -> None:
    async with serving() as served:
        assert "answered 400: outcome: 'x' is none of" in await refused(served.port, "outcome", "x")


async def test_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown where there is one; without it the server's words are told, and it is not asked again."""
    monkeypatch.setattr(server, "_is_near", lambda sock: False)
    async with serving(TOKEN) as served:
        assert "answered 401: a bearer token is needed" in await refused(served.port)
        async with watching(served.port, TOKEN) as heard:
            served.emit(DELIVERED)
            await heard.until(lines=1)


async def test_a_program_that_is_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A greeting of another protocol, silence, and what is nearly a handshake."""
    monkeypatch.setattr(watch, "_CONNECT_SECONDS", 0.2)
    async with trio.open_nursery() as nursery:
        accepted = b"HTTP/1.1 101 Yes\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n"
        strange = accepted + b"Sec-WebSocket-Extensions: \xff\r\n\r\n"
        for greeting in (b"220 mx ESMTP\r\n", b"", b"\xff\xfe\r\n\r\n", accepted + b"\r\n", strange):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

            async def greet(stream: trio.SocketStream, greeting: bytes = greeting) -> None:
                async with stream:
                    await stream.send_all(greeting)
                    await trio.sleep_forever()

            nursery.start_soon(trio.serve_listeners, greet, [listener])
            port = listener.socket.getsockname()[1]
            assert "does not answer like smtpguard" in await refused(port)
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_gone_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ping is answered."""
    monkeypatch.setattr(watch, "_PING_SECONDS", 0.02)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def mute(stream: trio.SocketStream) -> None:
        """The handshake of RFC 6455 §1.3, with the key that the client sent, and no more."""
        async with stream:
            request = await stream.receive_some(65536)
            (key,) = [line[19:] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")]
            accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324
            fields = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept
            await stream.send_all(b"HTTP/1.1 101 Yes\r\n" + fields + b"\r\n\r\n")
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, mute, [listener])
        assert await refused(listener.socket.getsockname()[1]) == "the feed ended: it no longer answers"
        nursery.cancel_scope.cancel()
