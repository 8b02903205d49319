"""The outbound session: who is served, what a slow, broken or vanished MTA sees, and how a drain and a bug end it.

(DESIGN §6 "Toward the outbound client", §7; TO-08, AF-45, STLS-07, STLS-09, OUT-27.)
"""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trio
from OpenSSL import SSL

from smtpguard.clock import SYSTEM_CLOCK, Ids
from smtpguard.config.build import Settings
from smtpguard.events import Delivered, DeliveryRefused, InternalError, SessionClosed, Violation
from smtpguard.names import IpAddress
from smtpguard.net.wire import Endpoint, Wait, Why, Wire, WireLost
from smtpguard.outbound.answers import Addressee, Answers
from smtpguard.outbound.host import Opened
from smtpguard.outbound.intake import Intake
from smtpguard.outbound.settings import Budgets, OutboundListener
from smtpguard.outbound.transaction import Transaction
from smtpguard.sandbox.behaviour import Behaviour, Stage
from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.internet import Publication, Site
from smtpguard.smtp.replies import Reply
from tests.net.peers import client_context, server_context
from tests.support.rig import MARKER, MESSAGE, Rig, open_rig

A, B = (Site(f"{name}.example", Publication.DANE_EE) for name in "ab")
OTHER = ip_address("192.0.2.7")
NETWORK = (ip_network("192.0.2.0/24"),)


def budgets(rig: Rig, **changes: float) -> None:
    rig.engine.outbound = replace(rig.engine.outbound, budgets=replace(Budgets(), **changes))


async def gone(rig: Rig) -> list[SessionClosed]:
    """Waits until no session is left."""
    with trio.fail_after(5):
        while len(rig.sessions):
            await trio.sleep(0.005)
    return rig.of(SessionClosed)


async def to_content(client: Client, *recipients: str) -> None:
    await client.command("MAIL FROM:<s@s.example>")
    for recipient in recipients:
        assert (await client.command(f"RCPT TO:<{recipient}>")).code == 250
    assert (await client.command("DATA")).code == 354


def has_dot(rig: Rig, domain: str) -> bool:
    """Did the host of this domain see an end of data?"""
    return any(b"\r\n.\r\n" in session.inside_tls for session in rig.internet.hosts[domain].mx.sessions)


async def closed_hosts(rig: Rig, domain: str) -> None:
    """Waits until the host of this domain has lost its sessions."""
    with trio.fail_after(5):
        while not all(session.ended for session in rig.internet.hosts[domain].mx.sessions):
            await trio.sleep(0.005)


# -- who is served


@asynccontextmanager
async def from_address(rig: Rig, address: IpAddress, listener: OutboundListener) -> AsyncIterator[Wire]:
    """One session of `listener` whose MTA has this address; the MTA's end."""
    near, far = socket.socketpair()
    wire = Wire(far, SYSTEM_CLOCK, peer=Endpoint(address, 40000))
    intake = Intake(listener, lambda: rig.engine.outbound, rig.engine.services, rig.sessions, Ids(SYSTEM_CLOCK.now()))
    async with trio.open_nursery() as nursery:

        async def session() -> None:
            try:
                await intake.session(wire)
            finally:
                wire.close()

        nursery.start_soon(session)
        mta = Wire(near, SYSTEM_CLOCK)
        yield mta
        mta.close()


async def ask(mta: Wire, *lines: bytes) -> list[bytes]:
    """The code and status of the greeting and of each reply, one at a time."""
    said = [await mta.receive()]
    for line in lines:
        await mta.send(line + b"\r\n")
        said.append(await mta.receive())
    return [octets[:9] for octets in said]


def lmtp(rig: Rig) -> OutboundListener:
    return next(listener for listener in rig.settings.listeners if listener.name == "lmtp")


async def test_who_may_send_and_who_in_clear(tmp_path: Path) -> None:
    """DESIGN §6 "Who may use us": `clients`, and TLS or `cleartext_from`, whether the listener has TLS or not."""
    tls = server_context(SSL.TLS1_3_VERSION)
    hello, mail = b"LHLO mta.example", b"MAIL FROM:<s@s.example>"
    async with open_rig(tmp_path, [A]) as rig:
        plain = lmtp(rig)
        for listener, address, expected in (
            (plain, OTHER, b"554 5.7.1"),  # no client of ours
            (replace(plain, clients=NETWORK), OTHER, b"554 5.7.1"),  # a client, but it cannot come by TLS
            (replace(plain, clients=NETWORK, cleartext_from=NETWORK), OTHER, b"250 2.1.0"),
            (replace(plain, clients=NETWORK, tls=tls), OTHER, b"530 5.7.0"),
            (replace(plain, clients=NETWORK, cleartext_from=NETWORK, tls=tls), OTHER, b"250 2.1.0"),
            (replace(plain, tls=tls), ip_address("127.0.0.1"), b"250 2.1.0"),
            (plain, ip_address("::1"), b"250 2.1.0"),
        ):
            async with from_address(rig, address, listener) as mta:
                if expected.startswith(b"554"):
                    assert await ask(mta) == [expected]
                    assert await mta.receive() == b""
                else:
                    assert (await ask(mta, hello, mail))[-1] == expected, listener


# -- STARTTLS


def with_tls(settings: Settings) -> Settings:
    tls = server_context(SSL.TLS1_3_VERSION)
    return replace(settings, listeners=tuple(replace(listener, tls=tls) for listener in settings.listeners))


async def test_mail_by_tls(tmp_path: Path) -> None:
    """STLS-04: after the handshake the dialogue begins anew; the trace line says LMTPS."""
    async with open_rig(tmp_path, [A], adjust=with_tls) as rig:
        client = await rig.client()
        assert client.offers("STARTTLS")
        assert (await client.start_tls(unverifying_context())).code == 220
        assert (await client.command("MAIL FROM:<s@s.example>")).code == 503
        await client.hello("mta.example", "LHLO")
        assert not client.offers("STARTTLS")
        assert (await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=True)).is_delivered
        await client.quit()
        (message,) = rig.internet.hosts["a.example"].mx.messages
        assert b"with LMTPS" in message.content
        assert [(one.cause, one.tls_version) for one in await gone(rig)] == [("quit", "1.3")]


async def test_stls_07_injection(tmp_path: Path) -> None:
    """STLS-07: 554 and the end; the injected command is never carried out."""
    async with open_rig(tmp_path, [A], adjust=with_tls) as rig:
        client = await rig.client()
        await client.conversation.send(b"STARTTLS\r\nMAIL FROM:<evil@e.example>\r\n")
        assert str(await client.reply()).startswith("554 5.5.0")
        assert await client.conversation.receive() == b""
        client.conversation.close()
        assert [one.kind for one in rig.of(Violation)] == ["starttls_injection"]


async def test_stls_09_a_failed_handshake_ends_it(tmp_path: Path) -> None:
    """STLS-09: no clear text after the 220, and the MTA reads the alert although it had sent more."""
    tls = SSL.Connection(client_context(SSL.TLS1_2_VERSION), None)
    tls.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        tls.do_handshake()
    async with open_rig(tmp_path, [A], adjust=with_tls) as rig:
        wire = Wire(socket.create_connection(("127.0.0.1", rig.ports["lmtp"])), SYSTEM_CLOCK)
        assert await ask(wire, b"LHLO mta.example", b"STARTTLS") == [b"220 mail.", b"250-mail.", b"220 2.0.0"]
        await wire.send(tls.bio_read(65536) + b"and more" * 1000)
        while octets := await wire.receive():
            tls.bio_write(octets)
        with pytest.raises(SSL.Error, match="alert protocol version"):
            tls.do_handshake()
        wire.close()
        assert [one.cause for one in await gone(rig)] == ["handshake"]
        assert [one.kind for one in rig.of(Violation)] == ["handshake"]


async def test_a_stalled_handshake_ends(tmp_path: Path) -> None:
    """AF-45: the handshake has its own limit."""
    async with open_rig(tmp_path, [A], adjust=with_tls) as rig:
        budgets(rig, handshake=0.05)
        client = await rig.client()
        assert (await client.command("STARTTLS")).code == 220
        assert await client.conversation.receive() == b""
        client.conversation.close()
        assert [one.cause for one in await gone(rig)] == ["handshake"]


# -- a slow MTA


async def test_to_08_a_trickle_is_slow(tmp_path: Path) -> None:
    """AF-45, TO-08: an octet now and then inside DATA does not keep the host for ever: 421 4.4.2, no dot."""
    async with open_rig(tmp_path, [A]) as rig:
        budgets(rig, idle=0.3)
        client = await rig.client()
        await to_content(client, "x@a.example")
        heard: list[str] = []
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                while True:
                    await client.conversation.send(b"x")
                    await trio.sleep(0.05)

            nursery.start_soon(trickle)
            with trio.fail_after(5):
                heard.append(str(await client.reply()))
            nursery.cancel_scope.cancel()
        client.conversation.close()
        assert heard[0].startswith("421 4.4.2")
        await closed_hosts(rig, "a.example")
        assert not has_dot(rig, "a.example")
        assert [one.kind for one in rig.of(Violation)] == ["slow"]
        assert [one.cause for one in await gone(rig)] == ["idle"]


async def test_a_host_that_is_slow_does_not_make_the_mta_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TO-08: time that the content waits for the host is not the MTA's."""
    original = Transaction.send

    async def slowly(transaction: Transaction, spans: Sequence[bytes | memoryview]) -> None:
        if MARKER in b"".join(spans):
            await trio.sleep(0.4)  # the tick looks, and `idle` is over
        await original(transaction, spans)

    async with open_rig(tmp_path, [A]) as rig:
        budgets(rig, idle=0.2)
        client = await rig.client()
        await to_content(client, "x@a.example")
        monkeypatch.setattr(Transaction, "send", slowly)
        await client.conversation.send(MESSAGE)
        await trio.sleep(0.5)
        await client.conversation.send(b".\r\n")
        assert (await client.reply()).code == 250
        await client.quit()
        assert not rig.of(Violation)


async def test_a_half_command_is_slow(tmp_path: Path) -> None:
    """TO-08: 300 s are for a whole command, not for each octet."""
    async with open_rig(tmp_path, [A]) as rig:
        budgets(rig, idle=0.1)
        client = await rig.client()
        await client.conversation.send(b"MAIL FR")
        with trio.fail_after(5):
            assert str(await client.reply()).startswith("421 4.4.2")
        client.conversation.close()
        assert [one.kind for one in rig.of(Violation)] == ["slow"]


async def test_an_mta_that_reads_nothing_is_slow(tmp_path: Path) -> None:
    """AF-45: replies nobody reads do not hold the session for ever."""
    async with open_rig(tmp_path, [A]) as rig:
        budgets(rig, idle=0.2)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", rig.ports["lmtp"]))
        wire = Wire(sock, SYSTEM_CLOCK)
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                try:
                    while True:
                        await wire.send(b"HELP\r\n" * 1000)
                except WireLost:
                    return

            nursery.start_soon(talk)
            with trio.fail_after(10):
                while not rig.of(SessionClosed):
                    await trio.sleep(0.01)
            wire.close()
        assert [one.cause for one in rig.of(SessionClosed)] == ["idle"]


# -- ends


async def test_a_drain_that_comes_with_a_command_waits_for_its_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DESIGN §6: a MAIL already read is served.  The interrupt must not fall into the transaction that it met."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client()
        assert (await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=True)).is_delivered
        (wire,) = rig.sessions._wires
        original = Wire._wait
        met: list[bool] = []

        async def wait(self: Wire, what: Wait) -> None:
            await original(self, what)
            if self is wire and not met:  # the MAIL is there, and the session has not run yet: then the drain looks
                met.append(wire.idle)
                wire.interrupt(Why.SHUTDOWN)

        monkeypatch.setattr(Wire, "_wait", wait)
        assert (await client.command("NOOP")).code == 250  # from here on it waits through the wrapper
        await client.conversation.send(b"MAIL FROM:<s@s.example>\r\nRCPT TO:<x@a.example>\r\nDATA\r\n")
        assert [(await client.reply()).code for _ in range(3)] == [250, 250, 354]
        await client.conversation.send(MESSAGE + b".\r\n")
        assert (await client.reply()).code == 250
        await client.quit()
        assert met == [True]
        assert len(rig.of(Delivered)) == 2


async def test_rset_is_answered_in_time(tmp_path: Path) -> None:
    """DESIGN §2.7: hosts that do not answer RSET delay the MTA once, not each in turn."""
    async with open_rig(tmp_path, [A, B]) as rig:
        budgets(rig, slot=0.3)
        for name in ("a.example", "b.example"):
            rig.internet.hosts[name].mx.behaviour = Behaviour(held={Stage.RSET: trio.Event()})
        client = await rig.client()
        await client.command("MAIL FROM:<s@s.example>")
        for name in ("x@a.example", "x@b.example"):
            assert (await client.command(f"RCPT TO:<{name}>")).code == 250
        began = trio.current_time()
        assert (await client.command("RSET")).code == 250
        assert trio.current_time() - began < 0.5
        await client.quit()
        await gone(rig)
        assert repr(rig.engine.services.slots) == "<DestinationSlots connections={} walks={}>"


@pytest.mark.parametrize("method", ["send", "finish", "data", "reset"])
async def test_out_27_a_bug_in_a_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """OUT-27, DESIGN §7: 421 4.3.0 is read although the MTA still sends; no dot; nothing is left open."""

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Transaction, method, broken)
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client()
        await client.command("MAIL FROM:<s@s.example>")
        await client.command("RCPT TO:<x@a.example>")
        if method == "reset":
            await client.conversation.send(b"RSET\r\n")
        else:
            await client.conversation.send(b"DATA\r\n")
            if method != "data":
                assert (await client.reply()).code == 354
                await client.conversation.send(MESSAGE * 100 + b".\r\n")
        assert str(await client.reply()).startswith("421 4.3.0")
        client.conversation.close()
        await gone(rig)
        await closed_hosts(rig, "a.example")
        assert not has_dot(rig, "a.example")
        (bug,) = rig.of(InternalError)
        assert bug.error.startswith("RuntimeError: a bug at ")
        assert [bug.session] == [closed.session for closed in rig.of(SessionClosed)]
        assert repr(rig.engine.services.slots) == "<DestinationSlots connections={} walks={}>"


@pytest.mark.parametrize("further", [False, True], ids=["first", "further"])
async def test_a_bug_in_one_walk_costs_its_next_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, further: bool
) -> None:
    """OUT-27: 451 4.3.0 for these recipients and no dot for their host; the other next hop's mail is delivered, and the
    session goes on."""
    take = Answers.take

    def broken(self: Answers, addressee: Addressee, reply: Reply, opened: Opened) -> None:
        if addressee.rcpt.path.local_part == b"bug":
            raise RuntimeError("a bug")
        take(self, addressee, reply, opened)

    monkeypatch.setattr(Answers, "take", broken)
    async with open_rig(tmp_path, [A, B]) as rig:
        client = await rig.client("lmtp")
        await client.command("MAIL FROM:<s@s.example>")
        if further:
            assert (await client.command("RCPT TO:<x@a.example>")).code == 250
        assert str(await client.command("RCPT TO:<bug@a.example>")).startswith("451 4.3.0 ")
        assert (await client.command("RCPT TO:<y@b.example>")).code == 250
        await client.command("DATA")
        await client.conversation.send(MESSAGE + b".\r\n")
        replies = [await client.reply() for _ in range(1 + further)]
        assert [reply.code for reply in replies] == [451, 250] if further else [250]
        assert [one.reason for one in rig.of(DeliveryRefused)] == ["internal", *["host/lost"] * further]
        assert [one.error.split(" at ")[0] for one in rig.of(InternalError)] == ["RuntimeError: a bug"]
        assert (await client.command("NOOP")).code == 250
        await client.quit()
        await closed_hosts(rig, "a.example")
        assert not has_dot(rig, "a.example")
        assert len(rig.internet.hosts["b.example"].mx.messages) == 1
        assert rig.is_clean
        assert repr(rig.engine.services.slots) == "<DestinationSlots connections={} walks={}>"


async def test_a_cut_in_the_content_ends_without_a_dot(tmp_path: Path) -> None:
    """SMTP-18: the end of a drain's patience; the host's half message is never completed."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client()
        await to_content(client, "x@a.example")
        await client.conversation.send(b"Subject: half\r\n\r\n" + MARKER + b"\r\n")
        await trio.sleep(0.05)
        assert await rig.sessions.drain(0.1) == 1
        assert await client.conversation.receive() == b""
        client.conversation.close()
        await closed_hosts(rig, "a.example")
        assert not has_dot(rig, "a.example")
        assert [one.cause for one in await gone(rig)] == ["shutdown"]
