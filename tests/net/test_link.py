"""How does a dialogue run over a wire?  The client role, against octets that come as they like."""

from collections.abc import Iterator

import pytest
import trio
from OpenSSL import SSL
from trio.testing import MockClock, wait_all_tasks_blocked

from smtpguard.net.link import ClientLink
from smtpguard.net.wire import HandshakeFailed, Interrupted, Why, Wire, WireLost
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.tls.outcome import StartTls
from tests.net.peers import client_context, server_context, wires

EHLO = b"250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n"


class Ends:
    """Our link, and the server's wire."""

    def __init__(self, near: Wire, far: Wire) -> None:
        self.link = ClientLink(near)
        self.far = far

    async def greeted(self, ehlo: bytes = EHLO) -> None:
        """Greeting and EHLO are done."""
        await self.far.send(b"220 mx\r\n" + b"")
        assert (await self.link.reply()).code == 220
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.answer, b"EHLO me\r\n", ehlo)
            assert (await self.link.hello("me", may_fall_back=False)).is_positive

    async def answer(self, expected: bytes, *answers: bytes) -> None:
        """Read exactly these octets, then say the answers, each in its turn."""
        assert await self.read(len(expected)) == expected
        for answer in answers:
            await self.far.send(answer)
            await wait_all_tasks_blocked()

    async def read(self, count: int) -> bytes:
        octets = b""
        while len(octets) < count:
            got = await self.far.receive(count - len(octets))
            assert got, octets
            octets += got
        return octets


@pytest.fixture
async def ends() -> Iterator[Ends]:
    with wires() as (near, far):
        yield Ends(near, far)


# -- replies


async def test_a_pipelined_group_is_one_write(ends: Ends) -> None:
    """EXT-01, EXT-22: written at once, answered in order, whatever the segments."""
    await ends.greeted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            ends.answer, b"MAIL x\r\nRCPT y\r\nRCPT z\r\n", b"250 o", b"k\r\n550 no\r\n4", b"50 later\r\n"
        )
        replies = await ends.link.exchange([b"MAIL x", b"RCPT y", b"RCPT z"])
    assert [reply.code for reply in replies] == [250, 550, 450]


async def test_lock_step_where_pipelining_is_not_offered(ends: Ends) -> None:
    """EXT-01: the next command waits for the reply to the one before."""
    await ends.greeted(b"250 mx\r\n")

    async def server() -> None:
        for command in (b"MAIL x\r\n", b"RCPT y\r\n"):
            assert await ends.read(len(command)) == command
            await wait_all_tasks_blocked()
            assert ends.far.receive_nowait() is None
            await ends.far.send(b"250 ok\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        assert len(await ends.link.exchange([b"MAIL x", b"RCPT y"])) == 2


async def test_many_lines_are_not_written_before_replies_are_read(ends: Ends) -> None:
    """RFC 2920 §3.1: a server that stops reading while nobody reads its replies is never met."""
    await ends.greeted()
    lines = [b"RCPT TO:<%060d@example.org>" % n for n in range(3000)]
    reply = b"250 " + b"x" * 400 + b"\r\n"

    async def server() -> None:
        held = b""
        for _ in lines:
            while b"\r\n" not in held:
                held += await ends.far.receive()
            held = held.partition(b"\r\n")[2]
            await ends.far.send(reply)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            assert len(await ends.link.exchange(lines)) == 3000


async def test_a_reply_too_many_ends_the_dialogue(ends: Ends) -> None:
    """EXT-22, STLS-18: it is never taken for the reply to the next command."""
    await ends.greeted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.answer, b"NOOP\r\n", b"250 one\r\n250 two\r\n")
        await ends.link.exchange([b"NOOP"])
    assert not ends.link.is_alive
    with pytest.raises(RemoteProtocolError):
        await ends.link.exchange([b"DATA"])
    with pytest.raises(RemoteProtocolError):
        await ends.link.end_of_data(b".\r\n")
    await wait_all_tasks_blocked()
    assert ends.far.receive_nowait() is None  # nothing went out


async def test_a_421_before_the_end_is_told(ends: Ends) -> None:
    """OUT-08: what the server said last explains the loss."""
    await ends.greeted()

    async def server() -> None:
        await ends.answer(b"MAIL x\r\nRCPT y\r\n", b"421 4.3.2 going\x01down\r\n")
        ends.far.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        with pytest.raises(WireLost, match=r"^it said 421 4\.3\.2 going\?down$"):
            await ends.link.exchange([b"MAIL x", b"RCPT y"])


async def test_a_close_before_the_reply_is_a_loss(ends: Ends) -> None:
    """SMTP-17, INV-02: half a reply is none."""
    await ends.far.send(b"220-mx\r\n220")
    ends.far.close()
    with pytest.raises(WireLost, match="closed"):
        await ends.link.reply()


@pytest.mark.parametrize(
    "octets", [b"hello\r\n", b"250-a\r\n550 b\r\n", b"150 x\r\n", b"250 x\nend\r\n", b"220 \0\r\n"]
)
async def test_what_is_no_reply(ends: Ends, octets: bytes) -> None:
    """SMTP-14: a protocol error, never a guess."""
    await ends.far.send(octets)
    with pytest.raises(RemoteProtocolError):
        await ends.link.reply()


async def test_an_interrupt_ends_the_wait(ends: Ends) -> None:
    """TO-02, DESIGN §7: the deadline of the wire is the deadline of the greeting."""
    async with trio.open_nursery() as nursery:

        async def tick() -> None:
            await wait_all_tasks_blocked()
            ends.link.wire.interrupt(Why.TIMEOUT)

        nursery.start_soon(tick)
        with pytest.raises(Interrupted):
            await ends.link.reply()


# -- hello


async def test_helo_where_ehlo_is_refused_for_good(ends: Ends) -> None:
    """SMTP-04: no extension is believed then."""
    ends.link._dialogue.owed = 0
    async with trio.open_nursery() as nursery:

        async def server() -> None:
            await ends.answer(b"EHLO me\r\n", b"502-no\r\n502-PIPELINING\r\n502 STARTTLS\r\n")
            await ends.answer(b"HELO me\r\n", b"250-mx\r\n250 PIPELINING\r\n")

        nursery.start_soon(server)
        assert (await ends.link.hello("me", may_fall_back=True)).code == 250
    assert not ends.link.esmtp
    assert not ends.link.extensions.has("PIPELINING")
    assert not ends.link.extensions.has("STARTTLS")


async def test_helo_after_an_ehlo(ends: Ends) -> None:
    """EXT-01: what EHLO offered is over with HELO, so that nothing is pipelined to a server that speaks SMTP now."""
    ends.link._dialogue.owed = 0
    async with trio.open_nursery() as nursery:

        async def server() -> None:
            await ends.answer(b"EHLO me\r\n", b"250-mx\r\n250 PIPELINING\r\n")
            await ends.answer(b"HELO me\r\n", b"250 mx\r\n")

        nursery.start_soon(server)
        await ends.link.hello("me", may_fall_back=True)
        assert ends.link.extensions.has("PIPELINING")
        await ends.link.hello("me", may_fall_back=True, extended=False)
    assert not ends.link.extensions.has("PIPELINING")


@pytest.mark.parametrize(("answer", "may"), [(b"502 no\r\n", False), (b"421 later\r\n", True), (b"334 x\r\n", True)])
async def test_no_helo_otherwise(ends: Ends, answer: bytes, may: bool) -> None:
    """SMTP-04: not where TLS is required, nor for a passing refusal."""
    ends.link._dialogue.owed = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.answer, b"EHLO me\r\n", answer)
        assert not (await ends.link.hello("me", may_fall_back=may)).is_positive
    await wait_all_tasks_blocked()
    assert ends.far.receive_nowait() is None


# -- STARTTLS


async def test_starttls_stands_alone(ends: Ends) -> None:
    """STLS-08: nothing follows it before its reply, and what comes then is a ClientHello; TLS starts it all anew."""
    await ends.greeted()

    async def server() -> None:
        assert await ends.read(10) == b"STARTTLS\r\n"
        await wait_all_tasks_blocked()
        assert ends.far.receive_nowait() is None
        await ends.far.send(b"220 go")
        await wait_all_tasks_blocked()
        assert ends.far.receive_nowait() is None  # half a reply is not a reply
        await ends.far.send(b" ahead\r\n")
        await ends.far.start_tls(server_context(SSL.TLS1_3_VERSION), server_side=True)
        await ends.answer(b"EHLO me\r\n", b"250-mx\r\n250-STARTTLS\r\n250 8BITMIME\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        outcome = await ends.link.start_tls(client_context(SSL.TLS1_3_VERSION), None)
        assert outcome.starttls is StartTls.ESTABLISHED
        assert not ends.link.extensions.offered  # STLS-10
        assert (await ends.link.hello("me", may_fall_back=False)).is_positive
    assert ends.link.extensions.has("8BITMIME")


async def test_the_octets_after_the_220_are_a_handshake(ends: Ends) -> None:
    """STLS-08: the first octet behind STARTTLS is that of a TLS record."""
    await ends.greeted()

    async def server() -> None:
        await ends.answer(b"STARTTLS\r\n", b"220 go\r\n")
        assert (await ends.read(3))[:2] == b"\x16\x03"
        ends.far.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        with pytest.raises((HandshakeFailed, WireLost)):
            await ends.link.start_tls(client_context(SSL.TLS1_3_VERSION), None)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"454 4.7.0 not now\r\n", StartTls.REFUSED),
        (b"554 5.7.3 no\r\n", StartTls.REFUSED),
        (b"250 what\r\n", StartTls.REFUSED),
        (b"354 what\r\n", StartTls.REFUSED),
        (b"220 go\r\n250-mx\r\n250 AUTH\r\n", StartTls.INJECTED),
        (b"220 go\r\nx", StartTls.INJECTED),
    ],
)
async def test_starttls_that_comes_to_nothing(ends: Ends, answer: bytes, expected: StartTls) -> None:
    """STLS-11, STLS-12, AF-02, AF-09: only 220 starts TLS, and octets in clear behind it are an attack."""
    await ends.greeted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.answer, b"STARTTLS\r\n", answer)
        outcome = await ends.link.start_tls(client_context(SSL.TLS1_3_VERSION), None)
    assert outcome.starttls is expected
    assert not ends.link.wire.is_tls
    await wait_all_tasks_blocked()
    assert ends.far.receive_nowait() is None  # no ClientHello went out


# -- content


async def test_silence_inside_the_content(ends: Ends) -> None:
    await ends.greeted()
    assert ends.link.early_reply() is None
    assert ends.link.is_alive
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends.answer, b"text\r\n.\r\n", b"250 queued\r\n")
        await ends.link.send(b"text\r\n")
        await ends.link.end_of_data(b".\r\n")
        assert (await ends.link.reply()).code == 250
    assert ends.link.is_alive


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"552 5.3.4 big\r\n", 552),
        (b"250 early\r\n", 250),
        (b"421-a\r\n421 b\r\n", 421),
        (b"55", None),
        (b"552-a\r\n", None),
    ],
)
async def test_what_is_said_inside_the_content(ends: Ends, said: bytes, expected: int | None) -> None:
    """INV-01, EXT-22: it is seen before the dot, and not taken for the reply to it."""
    await ends.greeted()
    await ends.far.send(said)
    await wait_all_tasks_blocked()
    if expected is None:
        with pytest.raises(RemoteProtocolError):
            ends.link.early_reply()
        return
    reply = ends.link.early_reply()
    assert reply is not None
    assert reply.code == expected


async def test_a_close_inside_the_content(ends: Ends) -> None:
    """AF-36: seen before the dot, and late words are still read."""
    await ends.greeted()
    await ends.far.send(b"421 4.3.2 going\r\n")
    ends.far.close()
    await wait_all_tasks_blocked()
    reply = ends.link.late_reply()
    assert reply is not None
    assert reply.code == 421
    with pytest.raises(WireLost):
        ends.link.early_reply()
    assert ends.link.late_reply() is None


# -- the end


async def test_quit_does_not_wait(ends: Ends) -> None:
    """SMTP-16: QUIT goes out before the close."""
    await ends.greeted()
    ends.link.quit()
    assert ends.link.wire.closed
    assert await ends.far.receive() == b"QUIT\r\n"
    assert await ends.far.receive() == b""
    ends.link.quit()  # again: nothing


async def test_a_cancelled_exchange_leaves_nothing_to_reuse(ends: Ends, autojump_clock: MockClock) -> None:
    """DESIGN §7: replies are owed, so the next command's reply would be another's."""
    await ends.greeted()
    with trio.move_on_after(1):
        await ends.link.exchange([b"RSET"])
    assert ends.link._dialogue.owed == 1
    assert not ends.link.is_alive
