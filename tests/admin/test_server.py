"""The admin address answers whatever is sent to it, and nothing sent to it ends it."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import cast

import pytest
import trio
import trio.testing

from smtpguard.admin import server
from smtpguard.admin.server import AdminServer, Status
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import DeliveryRefused, Event, InternalError, discard
from smtpguard.mtasts.cache import StsCache, StsEvidence
from smtpguard.mtasts.parse import Mode, NoSts, StsPolicy, StsUnavailable
from smtpguard.mtasts.store import Store
from smtpguard.names import Domain, parse_domain
from smtpguard.reasons import ReasonCode
from smtpguard.telemetry.history import History
from smtpguard.telemetry.metrics import Metrics

STATUS = Status("1", True, False, "validating", "trusted", (), 0, "", "x.toml")
REFUSED = DeliveryRefused(id="s.1", domain="a.example", reason="dane/no-match", reply="451 x", stage="rcpt")


@asynccontextmanager
async def serving(status: Status = STATUS, *, metrics_only: bool = False) -> AsyncIterator[tuple[int, list[Event]]]:
    events: list[Event] = []
    history = History(Store.open(None, events.append), SYSTEM_CLOCK)
    history.emit(REFUSED)
    metrics = Metrics(SYSTEM_CLOCK, "1")
    admin = AdminServer(metrics, history, None, lambda: status, events.append, metrics_only=metrics_only)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admin.serve, listener)
        yield listener.socket.getsockname()[1], events
        nursery.cancel_scope.cancel()


async def exchange(port: int, octets: bytes) -> bytes:
    """All that comes back until the server closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(octets)
        await stream.send_eof()
        received = b""
        with trio.fail_after(5):
            while chunk := await stream.receive_some(65536):
                received += chunk
    return received


def get(target: str, method: str = "GET", fields: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n".encode("latin-1")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("//["), 400),
        (get("/api/decisions?limit=" + "9" * 5000), 400),
        (get("/api/decisions?limit=0"), 400),
        (get("/nowhere"), 404),
        (get("/metrics", "POST"), 405),
        (get("/metrics", "POST", f"Content-Length: {5000}\r\n") + b"x" * 5000, 413),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01 no HTTP\r\n\r\n", 400),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (get("/api/sts"), 404),
    ],
    ids=["bad URL", "huge number", "zero", "no page", "POST", "big body", "no Host", "no HTTP", "long line", "no STS"],
)
async def test_bad_requests_are_answered_and_end_nothing(request_: bytes, status: int) -> None:
    async with serving() as (port, events):
        assert (await exchange(port, request_)).startswith(b"HTTP/1.1 %d " % status)
        assert b"alive" in await exchange(port, get("/healthz/live"))
        assert not events


async def test_a_bug_costs_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Metrics, accept: str) -> tuple[str, bytes]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Metrics, "render", broken)
    async with serving() as (port, events):
        assert (await exchange(port, get("/metrics"))).startswith(b"HTTP/1.1 500 ")
        assert [type(event) for event in events] == [InternalError]
        assert b"alive" in await exchange(port, get("/healthz/live"))


async def test_silent_connections_do_not_keep_a_probe_out() -> None:
    """Anybody may reach `metrics_bind`: at most so many connections, and the oldest that asks nothing gives way."""
    silent = 3 * server._MAX_CONNECTIONS
    async with serving(metrics_only=True) as (port, events), AsyncExitStack() as stack:
        streams = []
        for _ in range(silent):
            streams.append(await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port)))
            await trio.testing.wait_all_tasks_blocked()
        assert b"alive" in await exchange(port, get("/healthz/live"))
        for stream in streams[: silent - server._MAX_CONNECTIONS]:
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some(1) == b""
        await streams[-1].send_all(get("/healthz/live"))
        assert b"alive" in await streams[-1].receive_some(65536)
        assert events == []


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/metrics", "HEAD", "Content-Length: 5000\r\n") + b"x" * 5000, 413),
        (get("/metrics", "HEAD", "Transfer-Encoding: chunked\r\n") + b"no chunk\r\n", 400),
    ],
    ids=["too big", "no chunk"],
)
async def test_a_head_that_cannot_be_read(request_: bytes, status: int) -> None:
    """No body follows the answer to HEAD, whatever is wrong with it; anybody may send this to `metrics_bind`."""
    async with serving(metrics_only=True) as (port, events):
        head, _, body = (await exchange(port, request_)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert body == b""
        assert b"alive" in await exchange(port, get("/healthz/live"))
        assert events == []


async def test_a_bug_beside_the_answer_costs_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on, and so does the mail: its tasks are the process's."""

    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("a bug")

    async with serving() as (port, events):
        with monkeypatch.context() as patch:
            patch.setattr(server, "_encode", broken)
            assert await exchange(port, get("/metrics")) == b""
        assert [one.error.split(" at ")[0] for one in events if isinstance(one, InternalError)] == [
            "RuntimeError: a bug"
        ]
        assert b"alive" in await exchange(port, get("/healthz/live"))


async def test_a_web_page_cannot_change_anything() -> None:
    """A browser names the page's origin in every POST it makes for it."""
    async with serving() as (port, _):
        fields = "Origin: https://evil.example\r\nContent-Length: 0\r\n"
        assert (await exchange(port, get("/api/sts/a.example/forget", "POST", fields))).startswith(b"HTTP/1.1 403 ")


async def test_pages() -> None:
    async with serving() as (port, _):
        found = await exchange(port, get("/api/decisions?q=a.example"))
        assert json.loads(found.partition(b"\r\n\r\n")[2])[0]["id"] == "s.1"
        assert b"smtpguard_build_info" in await exchange(port, get("/metrics"))
        head = await exchange(port, get("/healthz/live", "HEAD"))
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")
        two = get("/healthz/live").replace(b"Connection: close\r\n", b"") + get("/api/status")
        assert (await exchange(port, two)).count(b"HTTP/1.1 200 ") == 2


async def test_not_ready_while_draining() -> None:
    status = Status("1", False, True, "lost", "lost", ("DNSSEC: lost",), 1, "", "x.toml")
    async with serving(status) as (port, _):
        answer = await exchange(port, get("/healthz/ready"))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"draining\ndegraded: DNSSEC: lost\n")


async def test_what_other_hosts_reach_is_metrics_and_health_alone() -> None:
    """No correspondents, nothing that acts, in whatever spelling."""
    async with serving(metrics_only=True) as (port, _):
        for target in ("/metrics", "/healthz/live", "/healthz/ready"):
            assert (await exchange(port, get(target))).startswith(b"HTTP/1.1 200 "), target
        for target in (
            "/api/decisions",
            "/api/status",
            "/api/sts",
            "/",
            "/events",
            "//api/decisions",
            "/metrics/../api",
        ):
            answer = await exchange(port, get(target))
            assert answer.startswith(b"HTTP/1.1 404 "), target
            assert b"a.example" not in answer
        assert (await exchange(port, get("/metrics", "POST"))).startswith(b"HTTP/1.1 405 ")
        assert (await exchange(port, get("/api/sts/a.example/forget", "POST"))).startswith(b"HTTP/1.1 404 ")


STS = StsPolicy(parse_domain("a.example"), "1", Mode.ENFORCE, 86400, ())


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (STS, {"result": "fetched", "mode": "enforce", "detail": ""}),
        (
            replace(STS, stale=True, failure_code="http-500"),
            {"result": "cached", "mode": "enforce", "detail": "http-500"},
        ),
        (NoSts(), {"result": "none"}),
        (
            StsUnavailable(ReasonCode.DNS_FAILURE, "no answer\x1b", "dns"),
            {"result": "unavailable", "reason": "dns/failure", "detail": "no answer?"},
        ),
    ],
)
async def test_what_a_refresh_came_to(found: StsEvidence, told: dict[str, str]) -> None:
    """In words of our own, so that `sts refresh` knows whether it failed."""

    class Cache:
        async def refresh(self, domain: Domain) -> StsEvidence:
            assert domain == "a.example"
            return found

    history = History(Store.open(None, discard), SYSTEM_CLOCK)
    admin = AdminServer(Metrics(SYSTEM_CLOCK, "1"), history, cast("StsCache", Cache()), lambda: STATUS, discard)
    answer = await admin.answer("POST", "/api/sts/a.example/refresh", {})
    assert (answer.status, json.loads(answer.body)) == (200, told)
