"""How do events reach a subscriber?  `/events`: one WebSocket (RFC 6455), one way, JSON lines in text messages.

The only file that knows the server's half of trio-websocket.  Every wait has a limit: a reader that takes nothing for
`_SEND_SECONDS`, or no longer answers a ping, is cut; one that reads too slowly is told so and closed (1008), and at the
end of the process all are closed with 1001.
"""

from collections.abc import Mapping
from typing import Final

import h11
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from smtpguard.admin.access import SUBPROTOCOL
from smtpguard.admin.answer import Answer, problem
from smtpguard.admin.live import EventsMissed, Subscription, line_of
from smtpguard.clock import Clock

GOING_AWAY: Final = 1001
TOO_SLOW: Final = 1008
_HANDSHAKE_SECONDS: Final = 10.0
_SEND_SECONDS: Final = 10.0
_PING_SECONDS: Final = 20.0
_CLOSE_SECONDS: Final = 2.0
_MAX_MESSAGE: Final = 1024
_ENDS = (ConnectionClosed, LocalProtocolError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


def upgrade_problem(method: bytes, fields: Mapping[bytes, str]) -> Answer | None:
    """What is wrong with the request for a WebSocket (RFC 6455 §4.2.1); None: nothing."""
    asks = "websocket" in _words(fields.get(b"upgrade", "")) and "upgrade" in _words(fields.get(b"connection", ""))
    if method != b"GET" or not asks or not fields.get(b"sec-websocket-key"):
        return problem(426, "/events is a WebSocket; `smtpguard watch` follows it", (b"upgrade", b"websocket"))
    if fields.get(b"sec-websocket-version") != "13":
        return problem(426, "version 13 of the WebSocket protocol is spoken here", (b"sec-websocket-version", b"13"))
    return None


async def send_events(stream: trio.SocketStream, request: h11.Request, to: Subscription, clock: Clock) -> None:
    """Accept the WebSocket that `request` asks for and serve it to its end."""
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(_HANDSHAKE_SECONDS):
                asked = await wrap_server_stream(
                    nursery, _Pushed(stream, _head(request)), message_queue_size=1, max_message_size=_MAX_MESSAGE
                )
                protocol = SUBPROTOCOL if SUBPROTOCOL in asked.proposed_subprotocols else None
                socket = await asked.accept(subprotocol=protocol)
            nursery.start_soon(_hear, socket, nursery.cancel_scope)
            await _send(socket, to)
            with trio.move_on_after(_CLOSE_SECONDS):
                if to.missed:
                    missed = line_of(clock.now(), EventsMissed(missed=to.missed))
                    await socket.send_message(missed.decode("ascii"))
                    await socket.aclose(TOO_SLOW, f"too slow: {to.missed} events were missed")
                else:
                    await socket.aclose(GOING_AWAY, "smtpguard was stopped")
            nursery.cancel_scope.cancel()
    except* _ENDS:
        pass  # the reader is gone, or does not take what we send: there is nobody to tell


async def _send(socket: WebSocketConnection, subscription: Subscription) -> None:
    """Send what comes, until no more will."""
    while True:
        lines = None
        with trio.move_on_after(_PING_SECONDS):
            lines = await subscription.take()
        with trio.fail_after(_SEND_SECONDS):
            if lines is None:
                await socket.ping()
            elif lines:
                await socket.send_message(lines.decode("ascii"))
            else:
                return


async def _hear(socket: WebSocketConnection, scope: trio.CancelScope) -> None:
    """A subscriber has nothing to say but that he leaves."""
    try:
        await socket.get_message()
        with trio.move_on_after(_CLOSE_SECONDS):
            await socket.aclose(TOO_SLOW, "events go one way")
    except ConnectionClosed:
        pass
    scope.cancel()


def _words(value: str) -> set[str]:
    """The words of a field that is a list (RFC 9110 §5.6.1), in lower case."""
    return {word.strip().lower() for word in value.split(",")}


def _head(request: h11.Request) -> bytes:
    """The request again as octets, for who wants to read it himself: what was judged is said in our words, and of the
    client's own there is only the key, since anything else may be what its reader does not bear."""
    lines = [
        b"GET /events HTTP/1.1",
        b"Host: localhost",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
    ]
    for name, value in request.headers:
        if name == b"sec-websocket-key":
            lines.append(b"Sec-WebSocket-Key: " + value)
        if name == b"sec-websocket-protocol" and SUBPROTOCOL.encode() in map(bytes.strip, value.split(b",")):
            lines.append(b"Sec-WebSocket-Protocol: " + SUBPROTOCOL.encode())
    return b"\r\n".join([*lines, b"", b""])


class _Pushed(trio.abc.Stream):
    """A stream with octets pushed back in front."""

    def __init__(self, stream: trio.SocketStream, octets: bytes) -> None:
        self._stream = stream
        self._octets = octets

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._octets:
            await trio.lowlevel.checkpoint()
            octets, self._octets = self._octets, b""
            return octets
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
