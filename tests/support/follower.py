"""A subscriber of `/events` as a task of the test: a WebSocket client, or raw octets where it must misbehave."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

WAIT_SECONDS = 5.0
MANY = 1_000_000


class Follower:
    """One subscriber; `lines` are the events heard and not yet taken."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self.lines: list[dict[str, Any]] = []

    async def event(self, name: str = "") -> dict[str, Any]:
        """The next event (of this name; others are passed over)."""
        with trio.fail_after(WAIT_SECONDS):
            while True:
                while self.lines:
                    line = self.lines.pop(0)
                    if not name or line["event"] == name:
                        return line
                await self._hear()

    async def closed(self) -> tuple[int, str]:
        """Code and reason with which the server closed; further events stay in `lines`."""
        with trio.fail_after(WAIT_SECONDS), pytest.raises(ConnectionClosed) as closed:
            await self._hear(MANY)
        reason = closed.value.reason
        assert reason is not None
        return reason.code, reason.reason or ""

    async def _hear(self, messages: int = 1) -> None:
        for _ in range(messages):
            message = await self.socket.get_message()
            assert isinstance(message, str)
            self.lines += [json.loads(line) for line in message.splitlines()]


@asynccontextmanager
async def following(
    port: int, query: str = "", *, token: str = "", protocols: tuple[str, ...] = (), host: str = "127.0.0.1"
) -> AsyncIterator[Follower]:
    """A subscriber, until the end of the block."""
    fields = [(b"authorization", f"Bearer {token}".encode())] if token else []
    async with await trio.open_tcp_stream(host, port) as stream, trio.open_nursery() as nursery:
        with trio.fail_after(WAIT_SECONDS):
            socket = await wrap_client_stream(
                nursery, stream, f"{host}:{port}", f"/events?{query}", extra_headers=fields, subprotocols=protocols
            )
        yield Follower(socket)
        with trio.move_on_after(WAIT_SECONDS):
            await socket.aclose()
        nursery.cancel_scope.cancel()


def handshake(query: str = "", **fields: str) -> bytes:
    """The octets of a handshake; `fields` replace ours, an empty one takes it away."""
    given = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    head = [f"GET /events?{query} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value)]
    return "\r\n".join([*head, "", ""]).encode("latin-1")
