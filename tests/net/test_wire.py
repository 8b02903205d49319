"""The contract of Wire, the same in clear, under TLS 1.2 and under TLS 1.3.  (STYLE §3c.7)"""

import errno
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio
from OpenSSL import SSL

from smtpguard.names import Domain
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import (
    LINGER_OCTETS,
    LINGER_SECONDS,
    TURN_OCTETS,
    Endpoint,
    HandshakeFailed,
    Interrupted,
    Wait,
    Why,
    Wire,
    WireLost,
)
from smtpguard.tls.outcome import StartTls
from tests.net.peers import MODES, certificate, client_context, secure, server_context, tcp_pair, wires
from tests.support.clock import test_clock
from tests.support.waits import Fault, NthWait, at_every_wait

BULK = bytes(range(256)) * 8192  # 2 MiB: more than all buffers between two ends


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def pair(mode: str) -> AsyncIterator[tuple[Wire, Wire]]:
    with wires() as (client, server):
        if (version := MODES[mode]) is not None:
            await secure(client, server, version)
        yield client, server


async def receive_all(wire: Wire, limit: int = TURN_OCTETS) -> bytes:
    got = bytearray()
    while octets := await wire.receive(limit):
        got += octets
    return bytes(got)


async def send_for_ever(wire: Wire, octets: bytes) -> None:
    while True:
        await wire.send(octets)


async def receive_for_ever(wire: Wire) -> None:
    while True:
        await wire.receive()


async def filled(wire: Wire) -> int:
    """Fill all buffers until a send would wait; gives the octets that went in."""
    sent = 0
    while step := wire.send_nowait(BULK[sent : sent + 65536]):
        sent += step
        await trio.lowlevel.checkpoint()
    return sent


def reset(wire: Wire) -> None:
    """Close as a crash does: the kernel sends RST."""
    wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    trio.lowlevel.notify_closing(wire._sock)
    wire._sock.close()


# -- octets


async def test_a_question_and_an_answer(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"NOOP\r\n")
    assert await server.receive() == b"NOOP\r\n"
    await server.send(memoryview(b"250 2.0.0 Ok\r\n"))
    assert await client.receive() == b"250 2.0.0 Ok\r\n"


async def test_a_big_send_is_written_in_parts_and_arrives_whole(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    counting = NthWait(Fault.CANCEL, 0, lambda wire: wire is client)
    with counting.installed():
        async with trio.open_nursery() as nursery:

            async def sender() -> None:
                await client.send(memoryview(BULK))
                client.close()

            nursery.start_soon(sender)
            assert await receive_all(server) == BULK
    assert counting.count > 3  # it had to wait: the parts were parts


async def test_sending_nothing_is_nothing(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"")
    assert not client.broken
    assert server.is_alive()


async def test_receive_gives_no_more_than_asked_and_keeps_the_rest(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"abcdef")
    assert [await server.receive(2), await server.receive(2), await server.receive(9)] == [
        b"ab",
        b"cd",
        b"ef",
    ]


async def test_receive_drains_many_records_in_one_turn(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    for _ in range(10):
        await client.send(b"x" * 100)
    await trio.lowlevel.checkpoint()
    assert await server.receive(TURN_OCTETS) == b"x" * 1000


async def test_the_end_is_empty_for_good(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"QUIT\r\n")
    client.close()
    assert await server.receive() == b"QUIT\r\n"
    assert await server.receive() == b""
    assert await server.receive() == b""


async def test_a_missing_close_notify_is_an_end_like_any_other(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"QUIT\r\n")
    client._sock.shutdown(socket.SHUT_WR)
    assert await server.receive(TURN_OCTETS) == b"QUIT\r\n"
    assert await server.receive() == b""


async def test_close_says_close_notify() -> None:
    with wires() as (client, server):
        await secure(client, server, SSL.TLS1_3_VERSION)
        client.close()
        await server._wait(Wait.READABLE)
        assert server.tls is not None
        with pytest.raises(SSL.ZeroReturnError):
            server.tls.recv(1)


async def test_receive_nowait_is_none_where_it_would_wait(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    assert server.receive_nowait() is None
    await client.send(b"a")
    await server._wait(Wait.READABLE)
    assert server.receive_nowait() == b"a"
    client.close()
    await server._wait(Wait.READABLE)
    assert server.receive_nowait() == b""


async def test_send_nowait_says_how_much_went_and_goes_on_where_it_stopped(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    sent = await filled(client)
    assert 0 < sent < len(BULK)
    assert client.send_nowait(BULK[sent:]) == 0
    async with trio.open_nursery() as nursery:

        async def rest() -> None:
            await client.send(memoryview(BULK)[sent:])
            client.close()

        nursery.start_soon(rest)
        assert await receive_all(server) == BULK


async def test_a_reset_is_a_loss_and_stays_one(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    reset(client)
    for _ in range(2):
        with pytest.raises(WireLost, match="connection lost"):
            await server.receive()


async def test_garbage_under_tls_is_a_loss() -> None:
    with wires() as (client, server):
        await secure(client, server, SSL.TLS1_3_VERSION)
        client._sock.send(b"MAIL FROM:<mallory@example.org>\r\n")
        with pytest.raises(WireLost, match="TLS failed"):
            await server.receive()


# -- alive


async def test_silence_is_life_octets_or_an_end_are_not(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    assert client.is_alive()
    await server.send(b"421 4.4.2 idle\r\n")
    await client._wait(Wait.READABLE)
    assert not client.is_alive()


async def test_an_end_is_not_life(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    server.close()
    await client._wait(Wait.READABLE)
    assert not client.is_alive()
    client.close()
    assert not client.is_alive()


# -- interrupts


async def test_interrupt_ends_a_wait_and_the_wire_is_good_for_the_last_words(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    async with trio.open_nursery() as nursery:

        async def session() -> None:
            with pytest.raises(Interrupted) as caught:
                await server.receive()
            assert caught.value.why is Why.TIMEOUT
            assert not server.broken
            server.clear_interrupt(10)
            assert trio.current_time() < server.deadline <= trio.current_time() + 10
            await server.send(b"421 4.4.2 idle too long\r\n")
            server.close()

        nursery.start_soon(session)
        await trio.testing.wait_all_tasks_blocked()
        server.interrupt(Why.TIMEOUT)
        assert await receive_all(client) == b"421 4.4.2 idle too long\r\n"


async def test_an_interrupt_that_comes_first_is_seen_by_the_next_wait(pair: tuple[Wire, Wire]) -> None:
    client, server = pair
    await client.send(b"ab")
    assert await server.receive(1) == b"a"
    server.interrupt(Why.SHUTDOWN)
    assert await server.receive() == b"b"  # no wait is needed
    with pytest.raises(Interrupted):
        await server.receive()


async def test_the_first_reason_stays_and_cut_wins(pair: tuple[Wire, Wire]) -> None:
    _, server = pair
    server.interrupt(Why.SHUTDOWN)
    server.interrupt(Why.TIMEOUT)
    assert server.interrupted is Why.SHUTDOWN
    server.interrupt(Why.CUT)
    server.clear_interrupt()
    with pytest.raises(Interrupted) as caught:
        await server.receive()
    assert caught.value.why is Why.CUT


async def test_a_flood_does_not_outlive_an_interrupt(pair: tuple[Wire, Wire]) -> None:
    """A peer that always has octets ready never makes us wait: the turn looks at the flag too."""
    client, server = pair
    async with trio.open_nursery() as nursery:

        async def flood() -> None:
            with pytest.raises(WireLost):
                await send_for_ever(client, BULK)

        nursery.start_soon(flood)
        await server.receive()
        server.interrupt(Why.TIMEOUT)
        with pytest.raises(Interrupted):
            await receive_for_ever(server)
        server.close()


@pytest.mark.parametrize("fault", [Fault.CANCEL, Fault.INTERRUPT])
async def test_a_send_that_was_cancelled_or_interrupted_breaks_the_wire(pair: tuple[Wire, Wire], fault: Fault) -> None:
    client, _ = pair
    await filled(client)
    harness = NthWait(fault, 1)
    with harness.installed():
        try:
            await client.send(BULK)
        except Interrupted:
            assert fault is Fault.INTERRUPT
    assert harness.fired
    client.clear_interrupt()
    assert client.broken
    with pytest.raises(WireLost, match="unfinished"):
        await client.send(b"a")
    with pytest.raises(WireLost, match="unfinished"):
        client.send_nowait(b"a")
    with pytest.raises(WireLost, match="unfinished"):
        await client.receive()
    with pytest.raises(WireLost, match="unfinished"):
        await client.start_tls(client_context(SSL.TLS1_3_VERSION), server_side=False)
    assert not client.is_alive()


async def test_a_failed_send_lets_us_read_what_the_peer_said(pair: tuple[Wire, Wire]) -> None:
    """The peer says 421 and closes with our octets unread: the kernel resets, our next send fails."""
    client, server = pair
    await client.send(b"unread")
    await server._wait(Wait.READABLE)
    await server.send(b"421 4.3.0 going down\r\n")
    server.close()
    with pytest.raises(WireLost, match="connection lost"):
        await send_for_ever(client, b"MAIL FROM:<>\r\n")
    assert client.broken
    assert not client.is_alive()
    assert await client.receive() == b"421 4.3.0 going down\r\n"
    with pytest.raises(WireLost):
        await client.send(b"a")


# -- close


async def test_close_wakes_the_waiter(pair: tuple[Wire, Wire]) -> None:
    _, server = pair
    async with trio.open_nursery() as nursery:

        async def waits() -> None:
            with pytest.raises(WireLost, match="closed"):
                await server.receive()

        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        server.close()


async def test_a_closed_wire_refuses_everything_and_closes_again(pair: tuple[Wire, Wire]) -> None:
    client, _ = pair
    client.close()
    client.close()
    client.interrupt(Why.CUT)
    await client.linger()
    assert client.closed
    assert client.broken
    assert client.tls is None
    for operation in (client.receive(), client.send(b"a")):
        with pytest.raises(WireLost, match="closed"):
            await operation
    with pytest.raises(WireLost, match="closed"):
        client.receive_nowait()


# -- linger


async def test_linger_discards_what_the_peer_still_sends_so_that_it_can_read_the_refusal(
    pair: tuple[Wire, Wire],
) -> None:
    client, server = pair
    await client.send(b"DATA that nobody wants\r\n" * 100)
    await server.send(b"554 5.7.1 no\r\n")
    async with trio.open_nursery() as nursery:

        async def end() -> None:
            await server.linger()
            server.close()

        nursery.start_soon(end)
        assert await receive_all(client) == b"554 5.7.1 no\r\n"
        client.close()


async def test_linger_ends_after_two_seconds(pair: tuple[Wire, Wire], autojump_clock: trio.testing.MockClock) -> None:
    client, server = pair
    began = trio.current_time()
    await server.linger()
    assert trio.current_time() - began == pytest.approx(LINGER_SECONDS)
    assert not client.broken
    with pytest.raises(WireLost):
        await server.send(b"a")


async def test_linger_ends_after_256_kib() -> None:
    with wires() as (client, server):
        sent = 0
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                nonlocal sent
                while True:
                    await client.send(b"x" * 4096)
                    sent += 4096

            nursery.start_soon(flood)
            with trio.fail_after(LINGER_SECONDS / 2):
                await server.linger()
            nursery.cancel_scope.cancel()
        assert sent >= LINGER_OCTETS


async def test_linger_ends_with_an_interrupt(pair: tuple[Wire, Wire]) -> None:
    _, server = pair
    server.interrupt(Why.CUT)
    with trio.fail_after(LINGER_SECONDS / 2):
        await server.linger()


# -- fairness


async def test_bulk_lets_the_others_run() -> None:
    """256 KiB, or 64 small calls, without a wait is a turn."""
    near, far = socket.socketpair()
    client, server = Wire(near, test_clock()), Wire(far, test_clock())
    turns = NthWait(Fault.CANCEL, 0)
    with turns.installed():
        for _ in range(200):
            await client.send(b"a")
            await server.receive(1)
    assert 2 <= turns.count <= 8
    client.close()
    server.close()


async def test_small_octets_that_are_always_there_are_a_turn_too_and_see_the_interrupt() -> None:
    """A peer that never lets us wait still cannot hold the others up, nor outlive an interrupt."""
    with wires() as (client, server):
        await client.send(b"x" * 1000)
        await server._wait(Wait.READABLE)
        server.interrupt(Why.TIMEOUT)
        counted = [await server.receive(1) for _ in range(64)]
        assert counted == [b"x"] * 64
        with pytest.raises(Interrupted):
            await server.receive(1)


async def test_what_openssl_holds_already_is_not_waited_for() -> None:
    """The rest of a record is in OpenSSL: the socket will never become readable for it."""
    with wires() as (client, server):
        await secure(client, server, SSL.TLS1_3_VERSION)
        await client.send(b"RSET\r\nNOOP\r\n")
        assert await server.receive(6) == b"RSET\r\n"
        await server.send(b"250 2.0.0 Ok\r\n")
        with trio.fail_after(2):
            assert await server.receive() == b"NOOP\r\n"


async def test_after_a_send_it_waits_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is a round trip away: no recv that can only say EAGAIN."""
    with wires() as (client, server):
        waits: list[Wait] = []
        original = Wire._wait

        async def wait(wire: Wire, what: Wait) -> None:
            if wire is client:
                waits.append(what)
            await original(wire, what)

        monkeypatch.setattr(Wire, "_wait", wait)
        await server.send(b"220 hi\r\n")
        await server._wait(Wait.WRITABLE)
        assert await client.receive() == b"220 hi\r\n"
        assert waits == []
        await client.send(b"EHLO\r\n")
        await server.send(b"250 hi\r\n")
        assert await client.receive() == b"250 hi\r\n"
        assert waits == [Wait.READABLE]


# -- start_tls


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
async def test_start_tls_gives_the_outcome_and_sends_the_sni(version: int) -> None:
    with wires() as (client, server):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await server.start_tls(server_context(version), server_side=True)

            nursery.start_soon(serve)
            outcome = await client.start_tls(client_context(version), server_side=False, sni=Domain("mx1.example.org"))
        assert outcome.starttls is StartTls.ESTABLISHED
        assert client.is_tls
        assert server.tls is not None
        assert server.tls.get_servername() == b"mx1.example.org"
        with pytest.raises(WireLost, match="already"):
            await client.start_tls(client_context(version), server_side=False)


@pytest.mark.parametrize("injecting", ["client", "server"])
async def test_stls07_octets_behind_starttls_cannot_be_read_under_tls(injecting: str) -> None:
    """STLS-07, STLS-09, STLS-11: clear octets behind STARTTLS or its 220 end the connection, unread."""
    with wires() as (client, server):
        attacker, victim = (client, server) if injecting == "client" else (server, client)
        await attacker.send(b"RCPT TO:<mallory@example.org>\r\n250 2.1.5 Ok\r\n")
        context = server_context(SSL.TLS1_3_VERSION) if victim is server else client_context(SSL.TLS1_3_VERSION)
        with pytest.raises(HandshakeFailed) as caught:
            await victim.start_tls(context, server_side=victim is server)
        assert caught.value.outcome.starttls is StartTls.FAILED
        assert victim.broken
        assert not victim.is_tls
        with pytest.raises(WireLost):
            await victim.receive()
        with pytest.raises(WireLost):
            await victim.send(b"250 Ok\r\n")


async def test_a_peer_that_hangs_up_in_the_handshake_is_a_failed_handshake() -> None:
    with wires() as (client, server):
        server.close()
        with pytest.raises(HandshakeFailed) as caught:
            await client.start_tls(client_context(SSL.TLS1_3_VERSION), server_side=False)
        assert caught.value.outcome.starttls is StartTls.FAILED
        assert client.broken


async def test_no_common_version_is_a_failed_handshake_on_both_sides() -> None:
    with wires() as (client, server):
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                with pytest.raises(HandshakeFailed):
                    await server.start_tls(server_context(SSL.TLS1_3_VERSION), server_side=True)

            nursery.start_soon(serve)
            with pytest.raises(HandshakeFailed):
                await client.start_tls(client_context(SSL.TLS1_2_VERSION), server_side=False)


async def test_the_callers_scope_limits_the_handshake(autojump_clock: trio.testing.MockClock) -> None:
    with wires() as (client, _server):
        with trio.move_on_after(60) as scope:
            await client.start_tls(client_context(SSL.TLS1_3_VERSION), server_side=False)
        assert scope.cancelled_caught
        assert client.broken


# -- deadlines, with the tick


async def test_a_passed_deadline_interrupts_with_timeout(
    pair: tuple[Wire, Wire], autojump_clock: trio.testing.MockClock
) -> None:
    _, server = pair
    sessions = Sessions(test_clock())
    sessions.add(server)
    began = trio.current_time()
    server.deadline = began + 300
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run)
        with pytest.raises(Interrupted) as caught:
            await server.receive()
        nursery.cancel_scope.cancel()
    assert caught.value.why is Why.TIMEOUT
    assert 300 <= trio.current_time() - began <= 301.1


# -- every wait of a whole conversation


@pytest.mark.parametrize("fault", list(Fault))
async def test_every_wait_of_a_conversation_survives_every_fault(mode: str, fault: Fault) -> None:
    """No descriptor leaks, nothing hangs, and the victim's end is one of the known exceptions."""

    async def story() -> None:
        with wires() as (client, server):
            async with trio.open_nursery() as nursery:

                async def serve() -> None:
                    with server_ends(server):
                        await server.send(b"220\r\n")
                        if (version := MODES[mode]) is not None:
                            await server.receive()
                            await server.send(b"220 go\r\n")
                            await server.start_tls(server_context(version), server_side=True)
                        await server.receive()
                        await server.send(b"354\r\n")
                        while await server.receive(TURN_OCTETS):
                            pass

                nursery.start_soon(serve)
                with server_ends(client):
                    await client.receive()
                    if (version := MODES[mode]) is not None:
                        await client.send(b"STARTTLS\r\n")
                        await client.receive()
                        await client.start_tls(client_context(version), server_side=False)
                    await client.send(b"DATA\r\n")
                    await client.receive()
                    await client.send(BULK[: 256 * 1024])
                    await client.linger()

    waits = await at_every_wait(story, fault, allowed=(Interrupted, WireLost, HandshakeFailed))
    assert waits >= 5


class server_ends:  # noqa: N801
    """Whatever ends the block, the wire is closed without an await."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> bool:
        self.wire.close()
        return False


# -- endpoints


@pytest.mark.parametrize(
    ("family", "name", "shown"),
    [
        (socket.AF_INET, ("192.0.2.1", 25), "192.0.2.1:25"),
        (socket.AF_INET6, ("2001:db8::1", 25, 0, 0), "[2001:db8::1]:25"),
        (socket.AF_INET6, ("fe80::1%eth0", 25, 0, 2), "[fe80::1]:25"),
        (socket.AF_INET6, ("::ffff:192.0.2.1", 25, 0, 0), "192.0.2.1:25"),
        (socket.AF_UNIX, "/run/smtpguard/lmtp.sock", "unix:/run/smtpguard/lmtp.sock"),
        (socket.AF_UNIX, "", "unix:"),
        (socket.AF_UNIX, b"\0abstract\n", "unix:@abstract?"),
    ],
)
def test_endpoints_are_printable(family: int, name: object, shown: str) -> None:
    assert str(Endpoint.of(family, name)) == shown


async def test_both_ends_know_each_other() -> None:
    with wires() as (client, server):
        assert client.peer == server.local
        assert client.local == server.peer
        assert client.peer.address == IPv4Address("127.0.0.1")
        assert client._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert "plain open" in repr(client)


async def test_a_peer_that_is_gone_already_has_no_address() -> None:
    near, far = tcp_pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    with pytest.raises(OSError) as caught:
        near.getpeername()
    assert caught.value.errno == errno.ENOTCONN
    wire = Wire(near, test_clock())
    assert wire.peer == Endpoint(None)
    given = Wire(socket.socket(), test_clock(), peer=Endpoint(IPv6Address("2001:db8::1"), 9))
    assert given.peer.port == 9
    wire.close()
    given.close()


def test_the_test_certificate_is_made_once() -> None:
    assert certificate() is certificate()
