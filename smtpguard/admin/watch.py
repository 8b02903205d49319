"""How does a command follow the events of a running smtpguard?  The client of `/events`.

The only file that knows the client's half of trio-websocket.  A server that goes is waited for, unless the caller wants
to end with it; one that never answered, or that says no, is an error.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

import h11
import msgspec
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError

from smtpguard.admin.client import AdminUnreachable, host_of, no_answer
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.listen import Bind
from smtpguard.reasons import printable

_CONNECT_SECONDS: Final = 10.0
_PING_SECONDS: Final = 20.0
_AGAIN_SECONDS: Final = (1.0, 2.0, 5.0)
"""How long to wait before the first, second, third and each later attempt."""
_TEMPORARY: Final = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Watched:
    """Which events of which process."""

    admin: Bind
    token: str
    query: Sequence[tuple[str, str]]
    recent: int = 0
    """How many earlier ones come first."""


class Refused(AdminUnreachable):
    """It said no; asking again does not help."""


async def follow(
    watched: Watched, hear: Callable[[str], None], notice: Callable[[str], None], *, again: bool = True
) -> None:
    """Give each event, a line of JSON, to `hear`, and each change of the connection to `notice`; until cancelled.

    Raises AdminUnreachable where nobody answers at first or the process says no, and without `again` when it ends.
    """
    attempt = 0
    followed = False

    def opened() -> None:
        nonlocal attempt, followed
        notice("following again; what happened in between is not shown" if followed else f"following {watched.admin}")
        attempt, followed = 0, True

    while True:
        try:
            why = await _connection(watched, 0 if followed else watched.recent, hear, opened)
        except Refused:
            raise
        except AdminUnreachable as error:
            if not followed or not again:
                raise
            why = str(error)
        if not again:
            raise AdminUnreachable(f"the feed ended: {why}")
        if attempt == 0:
            notice(f"the feed is lost: {why}; waiting for it to come back")
        await trio.sleep(_AGAIN_SECONDS[min(attempt, len(_AGAIN_SECONDS) - 1)])
        attempt += 1


async def _connection(watched: Watched, recent: int, hear: Callable[[str], None], opened: Callable[[], None]) -> str:
    """One connection to its end, and why it ended.  Raises AdminUnreachable where there was none."""
    admin = watched.admin
    host = "localhost" if admin.is_unix else str(Endpoint(admin.address, admin.port))
    path = "/events?" + urlencode([*watched.query, *([("recent", str(recent))] if recent else [])])
    fields = [(b"authorization", f"Bearer {watched.token}".encode("ascii"))] if watched.token else []
    failed: AdminUnreachable | None = None
    is_open = False
    why = "it no longer answers"
    async with await _stream(admin) as stream:
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(_CONNECT_SECONDS):
                    socket = await wrap_client_stream(nursery, stream, host, path, extra_headers=fields)
                is_open = True
                opened()
                nursery.start_soon(_take_pulse, socket, nursery.cancel_scope)
                why = await _hear_all(socket, hear)
                nursery.cancel_scope.cancel()
        except* ConnectionRejected as group:
            failed = _refusal(admin, group)
        except* (trio.TooSlowError, ConnectionClosed, LocalProtocolError, h11.ProtocolError, UnicodeError):
            # Octets that are no handshake make the library raise what comes to it, and a ping may meet a close.
            if not is_open:
                failed = AdminUnreachable(f"{admin} does not answer like smtpguard")
    if failed is not None:
        raise failed
    return why


async def _stream(admin: Bind) -> trio.SocketStream:
    try:
        with trio.fail_after(_CONNECT_SECONDS):
            if admin.is_unix:
                return await trio.open_unix_socket(admin.path)
            return await trio.open_tcp_stream(host_of(admin), admin.port)
    except (OSError, trio.TooSlowError) as error:
        raise no_answer(admin, error) from error


async def _hear_all(socket: WebSocketConnection, hear: Callable[[str], None]) -> str:
    """Everything to the end; why it ended."""
    try:
        while True:
            message = await socket.get_message()
            for line in message.splitlines() if isinstance(message, str) else ():
                hear(line)
    except ConnectionClosed as closed:
        said = closed.reason.reason if closed.reason is not None else ""
        return printable(said, 120) if said else "the connection was lost"


async def _take_pulse(socket: WebSocketConnection, scope: trio.CancelScope) -> None:
    """A peer that is gone without a word is only found by asking."""
    with suppress(ConnectionClosed):
        while True:
            await trio.sleep(_PING_SECONDS)
            with trio.move_on_after(_PING_SECONDS) as waiting:
                await socket.ping()
            if waiting.cancelled_caught:
                scope.cancel()


def _refusal(admin: Bind, group: BaseExceptionGroup[ConnectionRejected]) -> AdminUnreachable:
    """What it said instead of events."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionRejected)
    try:
        said = msgspec.json.decode(error.body or b"", type=dict[str, str]).get("error", "")
    except msgspec.DecodeError:
        said = ""
    text = f"{admin} answered {error.status_code}: {printable(said)}"
    return AdminUnreachable(text) if error.status_code in _TEMPORARY else Refused(text)
