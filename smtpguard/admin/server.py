"""What does the admin address answer?  Metrics, health, decisions, status, totals, the MTA-STS cache, the live page and
its events.

One request a connection is all it needs to serve well: h11 over plain Trio streams, small bodies, every wait bounded.
Who may ask is access.py; answers hold no message content.  What other hosts may reach without a token (`metrics_bind`)
answers metrics and health alone: no names of correspondents, nothing that acts.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import msgspec
import trio

from smtpguard.admin.access import PUBLIC, is_foreign_page, refusal
from smtpguard.admin.answer import JSON, TEXT, Answer, problem
from smtpguard.admin.live import MAX_SUBSCRIBERS, Feed, Filter, FilterInvalid, parse_filter
from smtpguard.admin.page import load_page
from smtpguard.admin.stream import send_events, upgrade_problem
from smtpguard.clock import Clock
from smtpguard.events import Emit, InternalError
from smtpguard.mtasts.cache import StsCache, StsEvidence
from smtpguard.mtasts.entries import Entry
from smtpguard.mtasts.parse import StsPolicy, StsUnavailable
from smtpguard.names import NameInvalid, parse_domain
from smtpguard.net.endpoint import Endpoint
from smtpguard.reasons import printable
from smtpguard.telemetry.history import History, encode_all
from smtpguard.telemetry.metrics import Metrics
from smtpguard.telemetry.totals import Totals

_REQUEST_SECONDS = 30.0
_MAX_DECISIONS = 1000
_MAX_BODY = 4096
_MAX_CONNECTIONS = 64
_LINGER_SECONDS = 1.0
_LINGER_OCTETS = 256 * 1024
_SERVER = b"smtpguard"
_MAX_QUERY = 100


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the process.  `degraded` names what does not stop mail but weakens it."""

    version: str
    ready: bool
    draining: bool
    dnssec: str
    validation: str
    degraded: tuple[str, ...]
    sessions: int
    pool: str
    config: str


@dataclass(frozen=True, slots=True)
class Live:
    """What the live page and `/events` stand on."""

    feed: Feed
    totals: Totals
    clock: Clock
    token: Callable[[], str]
    """The bearer token of now; empty: none is configured."""


@dataclass(frozen=True, slots=True)
class _Subscribe:
    """In place of an answer: events to the end of the connection."""

    request: h11.Request
    wanted: Filter
    recent: int


@dataclass(frozen=True, slots=True)
class _Misread:
    """In place of a request: what to answer; without a body if it was HEAD."""

    answer: Answer
    is_head: bool


class AdminServer:
    """Serves the admin address until cancelled."""

    def __init__(
        self,
        metrics: Metrics,
        history: History,
        sts: StsCache | None,
        status: Callable[[], Status],
        emit: Emit,
        live: Live | None = None,
        *,
        metrics_only: bool = False,
    ) -> None:
        """`live`: without it there is no page, no feed and no token.  `metrics_only`: other hosts may ask, and hear of
        metrics and health alone."""
        self._emit = emit
        self._metrics_only = metrics_only
        self._live = live
        self._pages = load_page() if live is not None else {}
        self._connections = 0
        self._patience: dict[trio.CancelScope, None] = {}  # of each request under way, the oldest first
        self._metrics = metrics
        self._history = history
        self._sts = sts
        self._status = status

    async def serve(self, listener: trio.abc.Listener[trio.SocketStream]) -> None:
        """Accept and answer."""
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        """One connection; whatever is sent on it ends no other and not the server: a bug ends here, as an event."""
        self._connections += 1
        try:
            if self._connections <= _MAX_CONNECTIONS or self._oldest_gives_way():
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._requests(stream)
        except Exception as error:  # noqa: BLE001  -- the boundary named above
            self._emit(InternalError.of("admin", error))
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    def _oldest_gives_way(self) -> bool:
        """Where other hosts can fill the address with connections that ask nothing, a probe must still be answered."""
        for patience in self._patience:
            del self._patience[patience]
            patience.cancel()
            return True
        return False

    async def _requests(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16384)
        is_near = _is_near(stream.socket)
        subscribe: _Subscribe | None = None
        goes_on = True
        while goes_on:
            goes_on = False
            with trio.move_on_after(_REQUEST_SECONDS) as patience, self._under_way(patience):
                read = await self._request(connection, stream)
                if read is None:
                    return
                answer = read.answer if isinstance(read, _Misread) else await self._answer_safely(read, is_near)
                if isinstance(answer, _Subscribe) and connection.trailing_data[0]:
                    answer = problem(400, "a client waits for the answer to its handshake (RFC 6455 section 4.1)")
                if isinstance(answer, _Subscribe):
                    subscribe = answer
                else:
                    is_head = read.is_head if isinstance(read, _Misread) else read.method == b"HEAD"
                    await stream.send_all(_encode(connection, answer, is_head=is_head))
                    goes_on = connection.our_state is h11.DONE and connection.their_state is h11.DONE
            if patience.cancelled_caught:
                return
            if goes_on:
                connection.start_next_cycle()
        if subscribe is None:
            await _linger(stream)
        else:
            await self._follow(stream, subscribe)

    @contextmanager
    def _under_way(self, patience: trio.CancelScope) -> Iterator[None]:
        self._patience[patience] = None
        try:
            yield
        finally:
            self._patience.pop(patience, None)

    async def _follow(self, stream: trio.SocketStream, subscribe: _Subscribe) -> None:
        assert self._live is not None
        with self._live.feed.subscribe(subscribe.wanted, subscribe.recent) as subscription:
            await send_events(stream, subscribe.request, subscription, self._live.clock)

    async def _request(self, connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | _Misread | None:
        """The next request, read to its end; what to answer where it is none; None when the client is gone."""
        request: h11.Request | None = None
        is_head, size = False, 0
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                return _Misread(problem(error.error_status_hint, "this is no HTTP request we understand"), is_head)
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(16384))
            elif isinstance(event, h11.Request):
                request, is_head = event, event.method == b"HEAD"
            elif isinstance(event, h11.Data):
                size += len(event.data)
                if size > _MAX_BODY:
                    return _Misread(problem(413, f"a body has at most {_MAX_BODY} octets"), is_head)
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:
                return None

    async def _answer_safely(self, request: h11.Request, is_near: bool) -> Answer | _Subscribe:
        """The boundary of one answer: a bug is a 500 and an event."""
        fields = {name: value.decode("latin-1") for name, value in request.headers}
        method, target = request.method.decode("ascii"), request.target.decode("latin-1")
        try:
            parts = urlsplit(target)
            path, query = unquote(parts.path), parse_qs(parts.query, max_num_fields=_MAX_QUERY)
        except ValueError:
            return problem(400, "this is no path")
        if self._metrics_only and path not in PUBLIC:
            return problem(404, "only /metrics, /healthz/live and /healthz/ready are served on this address")
        token = self._live.token() if self._live is not None else ""
        if (refused := refusal(path, fields, token, is_near=is_near)) is not None:
            return refused
        if method not in ("GET", "HEAD") and b"origin" in fields:
            return problem(403, "a web page may not do this")
        try:
            if path == "/events" and self._live is not None:
                return self._subscribe(self._live.feed, request, query, fields)
            return await self.answer(method, path, query, fields.get(b"accept", ""))
        except Exception as error:  # noqa: BLE001  -- the boundary named above
            self._emit(InternalError.of("admin", error))
            return problem(500, "internal error; the log says more")

    def _subscribe(
        self, feed: Feed, request: h11.Request, query: dict[str, list[str]], fields: dict[bytes, str]
    ) -> Answer | _Subscribe:
        """What `/events` comes to."""
        if is_foreign_page(fields):
            return problem(403, "Origin is not this address: the page of another site may not follow the events")
        try:
            wanted, recent = parse_filter(query)
        except FilterInvalid as error:
            return problem(400, str(error))
        if feed.is_full:
            return problem(
                503, f"there are {MAX_SUBSCRIBERS} subscribers, and there may be no more", (b"retry-after", b"30")
            )
        # Last, so that a plain request hears what is wrong: a browser tells no page why its WebSocket was refused.
        if (wrong := upgrade_problem(request.method, fields)) is not None:
            return wrong
        return _Subscribe(request, wanted, recent)

    async def answer(self, method: str, path: str, query: dict[str, list[str]], accept: str = "") -> Answer:
        """The answer to one request that may be asked."""
        if path.startswith("/api/sts"):
            return await self._sts_answer(method, path.removeprefix("/api/sts").strip("/"))
        if method not in ("GET", "HEAD"):
            return problem(405, "only GET here")
        match path:
            case "/metrics":
                content_type, body = self._metrics.render(accept)
                return Answer(200, content_type, body)
            case "/healthz/live":
                return Answer(200, TEXT, b"alive\n")
            case "/healthz/ready":
                status = self._status()
                words = "ready" if status.ready else "draining" if status.draining else "starting"
                lines = [words, *(f"degraded: {what}" for what in status.degraded)]
                return Answer(200 if status.ready else 503, TEXT, "\n".join(lines).encode() + b"\n")
            case "/api/status":
                return Answer(200, JSON, msgspec.json.encode(asdict(self._status())))
            case "/api/decisions":
                return self._decisions(query)
            case "/api/totals" if self._live is not None:
                return Answer(200, JSON, msgspec.json.encode(self._live.totals.as_json()))
            case _ if path in self._pages:
                return self._pages[path]
            case _:
                return problem(404, "there is no such page; see docs/admin.md")

    def _decisions(self, query: dict[str, list[str]]) -> Answer:
        """`?q=ID|DOMAIN` finds, `?limit=N` shows the latest."""
        wanted = query.get("q", [""])[0]
        if wanted:
            return Answer(200, JSON, encode_all(self._history.find(wanted)[-_MAX_DECISIONS:]))
        limit = query.get("limit", ["100"])[0]
        if not (limit.isascii() and limit.isdigit() and len(limit) < 5) or not 0 < int(limit) <= _MAX_DECISIONS:
            return problem(400, f"limit must be a number from 1 to {_MAX_DECISIONS}")
        return Answer(200, JSON, encode_all(self._history.recent(int(limit))))

    async def _sts_answer(self, method: str, rest: str) -> Answer:
        """GET list or show; POST `DOMAIN?` refresh or forget: `/api/sts/example.org/refresh`."""
        if self._sts is None:
            return problem(404, "MTA-STS is switched off: [mtasts] enabled = false")
        if not rest:
            return Answer(200, JSON, msgspec.json.encode([_policy(entry) for entry in self._sts.list()]))
        name, _, action = rest.partition("/")
        try:
            domain = parse_domain(name)
        except NameInvalid as error:
            return problem(400, str(error))
        if method == "POST" and action == "refresh":
            return Answer(200, JSON, msgspec.json.encode(_refreshed(await self._sts.refresh(domain))))
        if method == "POST" and action == "forget":
            return Answer(200, JSON, msgspec.json.encode({"forgotten": self._sts.forget(domain)}))
        if method in ("GET", "HEAD") and not action:
            shown = self._sts.show(domain)
            if shown is None:
                return problem(404, f"no policy of {domain} is cached")
            return Answer(200, JSON, msgspec.json.encode(_policy(shown)))
        return problem(405, "POST /api/sts/DOMAIN/refresh or /forget, GET /api/sts/DOMAIN")


def _refreshed(result: StsEvidence) -> dict[str, object]:
    """What a refresh came to: fetched; cached (the fetch failed, and the policy we have holds); none (nothing is
    announced); unavailable."""
    match result:
        case StsPolicy():
            word = "cached" if result.stale else "fetched"
            return {"result": word, "mode": result.mode.value, "detail": result.failure_code}
        case StsUnavailable():
            return {"result": "unavailable", "reason": result.code.token, "detail": printable(result.detail)}
    return {"result": "none"}


def _policy(entry: Entry) -> dict[str, object]:
    """A cached policy as the operator sees it."""
    return {
        "domain": entry.domain,
        "id": entry.id,
        "mode": entry.mode.value,
        "max_age_seconds": entry.policy.max_age_seconds,
        "mx": [str(pattern) for pattern in entry.policy.mx],
        "fetched": entry.fetched,
        "expires": entry.expires,
        "last_failure": entry.failure.detail if entry.failure is not None else "",
    }


def _is_near(sock: trio.socket.SocketType) -> bool:
    """Did the connection come over loopback or a Unix socket?"""
    if sock.family == socket.AF_UNIX:
        return True
    peer = Endpoint.asked(sock.family, sock.getpeername)
    return peer.address is not None and peer.address.is_loopback


async def _linger(stream: trio.SocketStream) -> None:
    """Let the client read our last words: closing with unread input would reset the connection."""
    with trio.move_on_after(_LINGER_SECONDS):
        await stream.send_eof()
        left = _LINGER_OCTETS
        while left > 0 and (octets := await stream.receive_some(65536)):
            left -= len(octets)


def _encode(connection: h11.Connection, answer: Answer, *, is_head: bool) -> bytes:
    response = h11.Response(
        status_code=answer.status,
        headers=[
            (b"content-type", answer.content_type.encode("ascii")),
            (b"content-length", str(len(answer.body)).encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"server", _SERVER),
            *answer.fields,
        ],
    )
    body = b"" if is_head else answer.body
    parts = [connection.send(response), connection.send(h11.Data(data=body)), connection.send(h11.EndOfMessage())]
    return b"".join(part for part in parts if part)
