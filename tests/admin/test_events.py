"""`/events` over sockets: who may follow, what is heard, and how it ends."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from smtpguard.admin import live, server, stream
from smtpguard.admin.live import Feed
from smtpguard.admin.server import AdminServer, Live, Status
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import Delivered, DeliveryRefused, DnsLookup, Event, Lifecycle
from smtpguard.mtasts.store import Store
from smtpguard.sandbox.internet import Attack, Publication, Site
from smtpguard.telemetry.history import History
from smtpguard.telemetry.metrics import Metrics
from smtpguard.telemetry.totals import Totals
from tests.admin.test_server import exchange, get
from tests.support.follower import following, handshake
from tests.support.rig import open_rig

STATUS = Status("1", True, False, "validating", "trusted", (), 0, "", "x.toml")
TOKEN = "t0ken-of-the-test-0123456789"
DELIVERED = Delivered(
    id="s.1", domain="a.example", mx="mx.a.example", address="192.0.2.1", port=25, policy="dane", auth="dane",
    tls_version="1.3", cipher="c", group="g", recipients=1, octets=9, seconds=0.1, reply="250 2.0.0 ok",
)  # fmt: skip
REFUSED = DeliveryRefused(id="s.2", domain="b.example", reason="dane/no-match", reply="451 4.7.5 x", stage="rcpt")


@dataclass
class Served:
    """A server with its feed."""

    port: int
    live: Live
    events: list[Event]

    def emit(self, event: Event) -> None:
        self.live.totals.emit(event)
        self.live.feed.emit(event)

    async def followers(self, number: int) -> None:
        """Wait until there are so many."""
        with trio.fail_after(5):
            while len(self.live.feed) != number:
                await trio.sleep(0.002)


@asynccontextmanager
async def serving(token: str = "") -> AsyncIterator[Served]:
    events: list[Event] = []
    live_ = Live(Feed(SYSTEM_CLOCK), Totals(SYSTEM_CLOCK), SYSTEM_CLOCK, lambda: token)
    history = History(Store.open(None, events.append), SYSTEM_CLOCK)
    admin = AdminServer(Metrics(SYSTEM_CLOCK, "1"), history, None, lambda: STATUS, events.append, live_)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admin.serve, listener)
        yield Served(listener.socket.getsockname()[1], live_, events)
        nursery.cancel_scope.cancel()


async def test_events_as_they_happen() -> None:
    """One JSON object a line, as in the JSON log, with direction and outcome."""
    async with serving() as served, following(served.port) as follower:
        served.emit(DELIVERED)
        event = await follower.event()
        assert event.pop("ts").endswith("Z")
        assert event == {
            "level": "info", "event": "delivered", "id": "s.1", "domain": "a.example", "mx": "mx.a.example",
            "address": "192.0.2.1", "port": 25, "policy": "dane", "auth": "dane", "tls_version": "1.3", "cipher": "c",
            "group": "g", "recipients": 1, "octets": 9, "seconds": 0.1, "reply": "250 2.0.0 ok",
            "direction": "outbound", "outcome": "delivered",
        }  # fmt: skip
        served.emit(REFUSED)
        served.emit(Lifecycle(stage="reloading"))
        assert [(await follower.event()).get("outcome") for _ in range(2)] == ["deferred", None]
        assert served.events == []


async def test_filters() -> None:
    """Each subscriber hears what it asked for; debug events only where asked for."""
    lookup = DnsLookup(qname="a.example", rdtype="MX", status="secure", seconds=0.1, resolver="r")
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving())
        queries = ("outcome=deferred&outcome=lost", "domain=A.example", "level=debug&direction=outbound", "level=error")
        followers = [await stack.enter_async_context(following(served.port, query)) for query in queries]
        for event in (lookup, DELIVERED, REFUSED):
            served.emit(event)
        await served.live.feed.end()
        heard = []
        for follower in followers:
            await follower.closed()
            heard.append([line["event"] for line in follower.lines])
        assert heard == [
            ["delivery_refused"],
            ["delivered"],
            ["dns_lookup", "delivered", "delivery_refused"],
            [],
        ]


async def test_the_latest_events_first() -> None:
    """`recent` gives those that happened before and pass the filter, oldest first."""
    async with serving() as served:
        for _ in range(3):
            served.emit(REFUSED)
            served.emit(DELIVERED)
        async with following(served.port, "recent=2&outcome=delivered") as follower:
            served.emit(REFUSED)
            served.emit(DELIVERED)
            await served.live.feed.end()
            await follower.closed()
            assert [line["event"] for line in follower.lines] == ["delivered"] * 3


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("outcome=bounced", "none of delivered, deferred, refused, lost"),
        ("direction=up", "none of inbound, outbound"),
        ("level=loud", "none of debug, info, warning, error"),
        ("domain=a..example", "right would be"),
        ("recent=201", "from 0 to 200"),
        ("recent=-1", "from 0 to 200"),
        ("domian=a.example", "the filters are direction, outcome, domain, level and recent"),
        ("&".join(["domain=a.example"] * 33), "at most 32"),
        ("&".join(["domain=a.example"] * 101), "this is no path"),
    ],
)
async def test_a_filter_that_is_none(query: str, text: str) -> None:
    """A typing error must not look like silence."""
    async with serving() as served:
        answer = await exchange(served.port, handshake(query))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert text in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    ("octets", "status", "field"),
    [
        (get("/events"), 426, b"upgrade: websocket"),
        (handshake(Sec_WebSocket_Version="8"), 426, b"sec-websocket-version: 13"),
        (handshake(Sec_WebSocket_Key=""), 426, b"upgrade: websocket"),
        (handshake(Connection="close"), 426, b"upgrade: websocket"),
        (handshake(Origin="https://evil.example"), 403, b"content-type"),
        (handshake(Origin="null"), 403, b"content-type"),
        (handshake(Origin="http://127.0.0.1:1"), 403, b"content-type"),
        (handshake(Origin="http://[::1"), 403, b"content-type"),
        (handshake(Host="rebound.example", Origin="http://rebound.example"), 403, b"content-type"),
        (handshake(Origin="http://127.0.0.1"), 101, b"sec-websocket-accept"),
        (handshake(Host="LOCALHOST:9825", Origin="http://localhost:9825"), 101, b"sec-websocket-accept"),
        (handshake(Host="[::1]:9825"), 101, b"sec-websocket-accept"),
        (handshake(Connection="keep-alive, Upgrade"), 101, b"sec-websocket-accept"),
        (handshake(Sec_WebSocket_Extensions="\u00ff;,="), 101, b"sec-websocket-accept"),
        (
            handshake(Sec_WebSocket_Protocol="\u00ff, smtpguard.events"),
            101,
            b"sec-websocket-protocol: smtpguard.events",
        ),
        (handshake(Sec_WebSocket_Key="\u00ff"), 101, b"sec-websocket-accept"),
    ],
)
async def test_who_may_follow(octets: bytes, status: int, field: bytes) -> None:
    """No plain request, no page of somebody else, no name rebound to this address; programs and our own page may."""
    async with serving() as served:
        answer = await exchange(served.port, octets)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert field in answer.lower()
        assert b"alive" in await exchange(served.port, get("/healthz/live"))
        assert served.events == []


async def test_a_name_rebound_to_us_gets_nothing() -> None:
    """Over loopback only an address or localhost is asked for, but for metrics and health."""
    async with serving() as served:
        for path, status in (("/", 403), ("/api/decisions", 403), ("/api/totals", 403), ("/metrics", 200)):
            request = get(path).replace(b"Host: localhost", b"Host: rebound.example")
            assert (await exchange(served.port, request)).startswith(b"HTTP/1.1 %d " % status), path


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback stands for the network beyond."""
    monkeypatch.setattr(server, "_is_near", lambda sock: False)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize(
    ("path", "shown", "status"),
    [
        ("/api/status", "", 401),
        ("/api/status", "Authorization: Bearer wrong-token-0123456789\r\n", 401),
        ("/api/status", f"Authorization: Basic {TOKEN}\r\n", 401),
        ("/api/status", f"Authorization: bearer {TOKEN}\r\n", 200),
        ("/events", "", 401),
        ("/events", f"Authorization: Bearer {TOKEN}\r\n", 426),
        ("/events", "Sec-WebSocket-Protocol: smtpguard.bearer.\u00ff!\r\n", 401),
        ("/metrics", "", 200),
        ("/healthz/ready", "", 200),
        ("/", "", 200),
        ("/live.js", "", 200),
        ("/api/../metrics", "", 401),
        ("/%61pi/status", "", 401),
    ],
)
async def test_beyond_this_host(path: str, shown: str, status: int) -> None:
    """Metrics, health and the empty page for everybody; the rest for who shows the token."""
    async with serving(TOKEN) as served:
        answer = await exchange(served.port, get(path, fields=shown))
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert (b"www-authenticate: Bearer" in answer) == (status == 401)
        assert TOKEN.encode() not in answer


@pytest.mark.usefixtures("far")
async def test_without_a_token_nobody_beyond_this_host() -> None:
    async with serving() as served:
        for path in ("/", "/api/status", "/events"):
            answer = await exchange(served.port, get(path, fields="Authorization: Bearer \r\n"))
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"token_file" in answer
        assert (await exchange(served.port, get("/metrics"))).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("far")
async def test_following_with_a_token() -> None:
    """In the header field, or as browsers can: in a subprotocol, which is not the one agreed upon."""
    encoded = "smtpguard.bearer.dDBrZW4tb2YtdGhlLXRlc3QtMDEyMzQ1Njc4OQ"
    async with (
        serving(TOKEN) as served,
        following(served.port, token=TOKEN) as program,
        following(served.port, protocols=("smtpguard.events", encoded)) as page,
    ):
        served.emit(DELIVERED)
        assert (await program.event())["id"] == (await page.event())["id"] == "s.1"
        assert page.socket.subprotocol == "smtpguard.events"
        assert program.socket.subprotocol is None


def test_near_is_loopback_and_unix(tmp_path: Path) -> None:
    """Of a connection, whatever address was bound."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as unconnected:
        assert server._is_near(ours)  # type: ignore[arg-type]
        with socket.create_connection(listener.getsockname()) as client:
            assert server._is_near(client)  # type: ignore[arg-type]
        assert not server._is_near(unconnected)  # type: ignore[arg-type]  # gone before we asked: nobody is near


async def test_no_more_subscribers_than_there_may_be() -> None:
    """The next one hears 503, and a place that is left is free."""
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving())
        first = await stack.enter_async_context(following(served.port))
        for _ in range(live.MAX_SUBSCRIBERS - 1):
            await stack.enter_async_context(following(served.port))
        await served.followers(live.MAX_SUBSCRIBERS)
        answer = await exchange(served.port, handshake())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 30" in answer
        await first.socket.aclose()
        await served.followers(live.MAX_SUBSCRIBERS - 1)
        async with following(served.port):
            await served.followers(live.MAX_SUBSCRIBERS)


async def test_a_slow_reader_is_told_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was queued, how many were missed, and the end; others miss nothing."""
    monkeypatch.setattr(live, "_QUEUE_EVENTS", 3)
    async with serving() as served, following(served.port) as slow:
        for _ in range(5):  # without a checkpoint: nobody can read meanwhile
            served.emit(DELIVERED)
        assert await slow.closed() == (1008, "too slow: 2 events were missed")
        assert [line["event"] for line in slow.lines] == ["delivered"] * 3 + ["events_missed"]
        assert slow.lines[-1]["missed"] == 2
        await served.followers(0)


async def test_a_reader_that_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is full, so that not even the notice goes out: the place is free all the same."""
    monkeypatch.setattr(stream, "_SEND_SECONDS", 0.2)
    large = DeliveryRefused(id="s.2", domain="b.example", reply="4" * 2000, stage="rcpt")
    async with serving() as served:
        client = await trio.open_tcp_stream("127.0.0.1", served.port)
        await client.send_all(handshake())
        await served.followers(1)
        with trio.fail_after(10):
            while len(served.live.feed):
                served.emit(large)
                await trio.lowlevel.checkpoint()
        await client.aclose()


async def test_a_dead_peer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers no ping is gone."""
    monkeypatch.setattr(stream, "_PING_SECONDS", 0.01)
    monkeypatch.setattr(stream, "_SEND_SECONDS", 0.1)
    async with serving() as served:
        client = await trio.open_tcp_stream("127.0.0.1", served.port)
        await client.send_all(handshake())
        await served.followers(1)
        await served.followers(0)
        await client.aclose()


async def test_a_living_peer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long nothing happens."""
    monkeypatch.setattr(stream, "_PING_SECONDS", 0.01)
    async with serving() as served, following(served.port) as follower:
        await trio.sleep(0.1)
        served.emit(DELIVERED)
        assert (await follower.event())["id"] == "s.1"


@pytest.mark.parametrize("message", ["hello", "x" * 5000])
async def test_a_subscriber_who_speaks(message: str) -> None:
    async with serving() as served, following(served.port) as follower:
        await follower.socket.send_message(message)
        assert (await follower.closed())[0] in (1008, 1009)
        await served.followers(0)
        assert served.events == []


@pytest.mark.parametrize("octets", [b"", b"\xff" * 100, b"\x81\x05hello", bytes(2000)], ids=len)
async def test_octets_that_are_no_frames(octets: bytes) -> None:
    """Unmasked, reserved, or the connection is closed: one subscriber less, and the server goes on."""
    async with serving() as served, await trio.open_tcp_stream("127.0.0.1", served.port) as client:
        await client.send_all(handshake())
        assert (await client.receive_some()).startswith(b"HTTP/1.1 101 ")
        await served.followers(1)
        await client.send_all(octets)
        await client.send_eof()
        await served.followers(0)
        assert b"alive" in await exchange(served.port, get("/healthz/live"))
        assert served.events == []


async def test_octets_right_behind_the_handshake() -> None:
    """A client must wait for the answer (RFC 6455 §4.1): what came too early is not taken for frames."""
    async with serving() as served:
        assert (await exchange(served.port, handshake() + b"\x89\x80" + bytes(4))).startswith(b"HTTP/1.1 400 ")


async def test_the_end_of_the_process() -> None:
    """What waits is sent, then 1001 (RFC 6455 §7.4.1); who comes later hears the same."""
    async with serving() as served, following(served.port) as follower:
        served.emit(DELIVERED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.live.feed.end)
            assert await follower.closed() == (1001, "smtpguard was stopped")
        assert [line["id"] for line in follower.lines] == ["s.1"]
        async with following(served.port) as late:
            assert (await late.closed())[0] == 1001


async def test_another_path_is_no_websocket() -> None:
    """The upgrade is not taken, the request answered."""
    async with serving() as served:
        request = handshake().replace(b"/events?", b"/healthz/live")
        assert b"alive" in await exchange(served.port, request)


async def test_totals_and_page() -> None:
    async with serving() as served:
        for event in (DELIVERED, DELIVERED, REFUSED):
            served.emit(event)
        totals = json.loads((await exchange(served.port, get("/api/totals"))).partition(b"\r\n\r\n")[2])
        assert totals["outbound"]["delivered"] == totals["outbound"]["over_tls"] == 2
        assert [row["reason"] for row in totals["refusals"]] == ["dane/no-match"]
        page = await exchange(served.port, get("/"))
        assert b"default-src 'none'; script-src 'self'" in page
        assert b"content-type: text/html" in page


SITES = [
    Site("good.example", Publication.DANE_EE),
    Site("bad.example", Publication.DANE_EE, Attack.SWAP_CERTIFICATE),
]


async def test_events_of_real_mail(tmp_path: Path) -> None:
    """What a follower hears is what became of the messages."""
    async with serving() as served, open_rig(tmp_path, SITES, watch=served.emit) as rig:
        async with (
            following(served.port, "domain=good.example") as good,
            following(served.port, "outcome=deferred&outcome=refused") as refused,
        ):
            await rig.send("bob@good.example")
            await rig.send("bob@bad.example")
            delivered = await good.event("delivered")
            assert (delivered["auth"], delivered["outcome"]) == ("dane", "delivered")
            deferred = await refused.event()
            assert (deferred["domain"], deferred["reason"]) == ("bad.example", "dane/no-match")
        totals = served.live.totals.as_json()
        assert totals["outbound"].authenticated == 1  # type: ignore[attr-defined]
