"""The server's side of a handshake as the Internet plays it: slow, endless, wrong, gone; and the peeked ClientHello."""

import select
import socket
from collections.abc import AsyncIterator
from contextlib import contextmanager

import pytest
import trio
from OpenSSL import SSL

from smtpguard.net.handshake import HANDSHAKE_OCTETS, unread
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import HandshakeFailed, Interrupted, Wait, Why, Wire, WireLost
from smtpguard.tls.outcome import StartTls, TlsOutcome
from tests.net.peers import client_context, server_context, wires
from tests.support.clock import test_clock
from tests.support.waits import Fault, NthWait

TLS13 = SSL.TLS1_3_VERSION


def client_hello(sni: bytes = b"mx1.example.org") -> bytes:
    """What a real client sends first."""
    client = SSL.Connection(client_context(TLS13), None)
    client.set_connect_state()
    client.set_tlsext_host_name(sni)
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


HELLO = client_hello()


def is_partial(octets: bytes) -> bool:
    """Does the first TLS record need more octets?  RFC 8446 §5.1."""
    return len(octets) < 5 or len(octets) < 5 + int.from_bytes(octets[3:5], "big")


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Wire, Wire]]:
    with wires() as (client, server):
        yield client, server


async def failure(server: Wire, context: SSL.Context | None = None, seconds: float = 60.0) -> TlsOutcome:
    with pytest.raises(HandshakeFailed) as caught:
        await server.start_tls(context or server_context(TLS13), server_side=True, seconds=seconds)
    assert caught.value.outcome.starttls is StartTls.FAILED
    assert server.broken
    assert not server.is_tls
    return caught.value.outcome


# -- how it fails


async def test_a_silent_client_times_out(pair: tuple[Wire, Wire], autojump_clock: trio.testing.MockClock) -> None:
    """TO-08 before the greeting of TLS: the handshake has its own limit."""
    began = trio.current_time()
    outcome = await failure(pair[1], seconds=30)
    assert outcome.failure_code == "timeout"
    assert trio.current_time() - began == 30


async def test_the_tick_ends_a_handshake_too(pair: tuple[Wire, Wire], autojump_clock: trio.testing.MockClock) -> None:
    """AF-45: a stalled handshake under a `deadline` is Interrupted, and the wire is good for nothing."""
    server = pair[1]
    sessions = Sessions(test_clock())
    sessions.add(server)
    server.deadline = trio.current_time() + 30
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run)
        with pytest.raises(Interrupted) as caught:
            await server.start_tls(server_context(TLS13), server_side=True)
        nursery.cancel_scope.cancel()
    assert caught.value.why is Why.TIMEOUT
    server.clear_interrupt()
    with pytest.raises(WireLost):
        await server.send(b"421 4.4.2 in clear\r\n")


async def test_an_endless_handshake_is_cut(pair: tuple[Wire, Wire]) -> None:
    """Octet after octet of a ClientHello, each in a record of its own: OpenSSL would take 128 KiB of it, sixfold."""
    client, server = pair
    record = b"\x16\x03\x01\x00\x01"
    head = b"\x01\x01\xff\xff"  # a ClientHello of 131071 octets
    flood = b"".join(record + bytes([octet]) for octet in head + bytes(HANDSHAKE_OCTETS // 6 + 1000))
    async with trio.open_nursery() as nursery:

        async def talk() -> None:
            for start in range(0, len(flood), 4096):
                await client.send(flood[start : start + 4096])
                await trio.lowlevel.checkpoint()

        nursery.start_soon(talk)
        outcome = await failure(server)
        nursery.cancel_scope.cancel()
    assert outcome.failure_code == "handshake-too-long"


@pytest.mark.parametrize(
    ("octets", "code", "detail"),
    [
        (b"EHLO client.example\r\n", "not-tls", "wrong version number"),
        (b"GET / HTTP/1.1\r\nHost: mx1.example.org\r\n\r\n", "not-tls", "http request"),
    ],
)
async def test_what_is_no_tls(pair: tuple[Wire, Wire], octets: bytes, code: str, detail: str) -> None:
    """STLS-09: garbage instead of a ClientHello ends it, named."""
    client, server = pair
    await client.send(octets)
    outcome = await failure(server)
    assert (outcome.failure_code, detail in outcome.detail) == (code, True), outcome


async def test_a_client_that_goes(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(HELLO[:100])
    client.close()
    assert (await failure(server)).failure_code == "eof"


async def against(server: Wire, client: Wire, context: SSL.Context) -> tuple[TlsOutcome, TlsOutcome]:
    """Both ends' failures; the server lingers and closes after its own, as a session does."""
    found: list[TlsOutcome] = []
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            found.append(await failure(server, server_context(TLS13)))
            await server.linger()
            server.close()

        nursery.start_soon(serve)
        with pytest.raises(HandshakeFailed) as caught:
            await client.start_tls(context, server_side=False)
        client.close()
    return found[0], caught.value.outcome


async def test_no_common_version_and_the_client_hears_the_alert(pair: tuple[Wire, Wire]) -> None:
    """The alert is out before the close, even where the client had sent more that nobody read."""
    client, server = pair
    ours, theirs = await against(server, client, client_context(SSL.TLS1_2_VERSION))
    assert ours.failure_code == "protocol-version"
    assert theirs.failure_code == "tls-alert-70"


async def test_no_common_cipher(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    context = client_context(SSL.TLS1_2_VERSION)
    context.set_cipher_list(b"ECDHE-ECDSA-AES128-GCM-SHA256")
    only = server_context(SSL.TLS1_2_VERSION)
    only.set_cipher_list(b"AES128-SHA256")
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(HandshakeFailed) as caught:
                await client.start_tls(context, server_side=False)
            assert caught.value.outcome.failure_code == "tls-alert-40"
            client.close()

        nursery.start_soon(ask)
        outcome = await failure(server, only)
        await server.linger()
    assert outcome.failure_code == "no-shared-cipher"


async def test_a_client_that_does_not_trust_us(pair: tuple[Wire, Wire]) -> None:
    """The certificate alert of the client is told apart from every failure of our own."""
    client, server = pair
    context = client_context(TLS13)
    context.set_verify(SSL.VERIFY_PEER)
    ours, _ = await against(server, client, context)
    assert ours.failure_code == "tls-alert-48"
    assert "unknown ca" in ours.detail


async def test_stls07_nothing_is_read_before_its_time(pair: tuple[Wire, Wire]) -> None:
    """STLS-07: octets behind STARTTLS are the caller's to find; nothing of them is lost or decrypted before."""
    client, server = pair
    await client.send(b"STARTTLS\r\n" + HELLO)
    assert await server.receive(10) == b"STARTTLS\r\n"
    assert unread(server._sock) == len(HELLO)
    assert server.receive_nowait() == HELLO


# -- the peeked ClientHello


def low_water(wire: Wire) -> int:
    return wire._sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.mark.parametrize("start", range(1, len(HELLO), 60))
async def test_a_hello_cut_at_every_offset(start: int) -> None:
    """DANE-43's means: the server name is known before OpenSSL reads, wherever TCP cuts; no octet is polled twice."""
    for cut in range(start, min(start + 60, len(HELLO))):
        with wires() as (client, server):
            counting = NthWait(Fault.CANCEL, 0, lambda wire, server=server: wire is server)
            await client.send(HELLO[:cut])
            await server._wait(Wait.READABLE)
            async with trio.open_nursery() as nursery:

                async def peek(server: Wire = server) -> None:
                    assert await server.peek(is_partial) == HELLO

                with counting.installed():
                    nursery.start_soon(peek)
                    await trio.testing.wait_all_tasks_blocked()
                    assert low_water(server) == cut + 1
                    await client.send(HELLO[cut:])
                    with trio.fail_after(5):
                        while nursery.child_tasks:
                            await trio.lowlevel.checkpoint()
            assert counting.count <= 2
            assert low_water(server) == 1
            assert server.receive_nowait() == HELLO  # peeked, not taken


async def test_a_hello_octet_by_octet_then_the_handshake(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    tls = SSL.Connection(client_context(TLS13), None)
    tls.set_connect_state()
    tls.set_tlsext_host_name(b"mx1.example.org")
    with pytest.raises(SSL.WantReadError):
        tls.do_handshake()
    hello = tls.bio_read(65536)
    async with trio.open_nursery() as nursery:

        async def talk() -> None:
            for octet in hello:
                await client.send(bytes([octet]))
                await trio.testing.wait_all_tasks_blocked()
            done = False
            while not done:
                tls.bio_write(await client.receive())
                try:
                    tls.do_handshake()
                    done = True
                except SSL.WantReadError:
                    pass
            await client.send(tls.bio_read(65536))

        nursery.start_soon(talk)
        assert await server.peek(is_partial) == hello
        outcome = await server.start_tls(server_context(TLS13), server_side=True, seconds=10)
    assert outcome.encrypted
    assert server.tls is not None
    assert server.tls.get_servername() == b"mx1.example.org"


async def test_a_hello_that_ends_early_is_given_as_it_is(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(HELLO[:50])
    client.close()
    with trio.fail_after(5):
        assert await server.peek(is_partial) == HELLO[:50]
    assert (await failure(server)).failure_code == "eof"


async def test_an_end_before_the_hello(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    client.close()
    assert await server.peek(is_partial) == b""


async def test_no_more_than_the_limit_is_looked_at(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"x" * 500)
    assert await server.peek(lambda octets: True, limit=300) == b"x" * 300
    assert low_water(server) == 1


async def test_an_interrupt_ends_the_peek_and_the_low_water_mark_is_back(pair: tuple[Wire, Wire]) -> None:
    """AF-45: a client that stops in its hello."""
    client, server = pair
    await client.send(HELLO[:50])
    async with trio.open_nursery() as nursery:

        async def peek() -> None:
            with pytest.raises(Interrupted):
                await server.peek(is_partial)

        nursery.start_soon(peek)
        await trio.testing.wait_all_tasks_blocked()
        server.interrupt(Why.TIMEOUT)
    assert low_water(server) == 1


async def test_a_close_ends_the_peek(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(HELLO[:50])
    async with trio.open_nursery() as nursery:

        async def peek() -> None:
            with pytest.raises(WireLost, match="closed"):
                await server.peek(is_partial)

        nursery.start_soon(peek)
        await trio.testing.wait_all_tasks_blocked()
        server.close()


@contextmanager
def unix_wires():  # type: ignore[no-untyped-def]
    near, far = socket.socketpair()
    client, server = Wire(near, test_clock()), Wire(far, test_clock())
    try:
        yield client, server
    finally:
        client.close()
        server.close()


async def test_a_unix_socket_is_not_polled() -> None:
    """The kernel knows no low water mark there: what has come is given, and there is no busy loop."""
    with unix_wires() as (client, server):
        await client.send(HELLO[:50])
        with trio.fail_after(5):
            assert await server.peek(is_partial) == HELLO[:50]


async def test_the_kernel_keeps_the_low_water_mark() -> None:
    """What the peek stands on: poll is silent below SO_RCVLOWAT."""
    with wires() as (client, server):
        server._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 11)
        await client.send(b"x" * 10)
        poll = select.poll()
        poll.register(server._sock, select.POLLIN)
        assert poll.poll(0) == []
        await client.send(b"x")
        assert poll.poll(1000) != []
