"""Attacks and faults on the inbound side, over real sockets in front of a scripted MTA.  (CONFORMANCE §D)"""

import socket
from ipaddress import ip_network
from pathlib import Path

import pytest
import trio
import trio.testing

from smtpguard.events import (
    DeliveryRefused,
    InternalError,
    LimitHit,
    MessageRelayed,
    MtaAlert,
    SessionClosed,
    Violation,
)
from smtpguard.inbound.limits import Limits
from smtpguard.names import Domain
from smtpguard.policy.inbound import InboundRule, InboundRules
from smtpguard.policy.scopes import Mailbox, RecipientDomain
from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.conversation import EndOfStream
from tests.support.front import HOST, Front, hang_up, open_front
from tests.support.mta import CUT, OFFER, XCLIENT, Mta

MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"
SECRET = InboundRules(
    (InboundRule(RecipientDomain("secret.example")),),
    exempt=frozenset({Mailbox(b"tlsrpt", Domain("secret.example"))}),
)


async def begun(client: Client) -> None:
    """MAIL, RCPT and DATA were accepted."""
    assert (await client.command("MAIL FROM:<a@a.example>")).code == 250
    assert (await client.command("RCPT TO:<b@front.example>")).code == 250
    assert (await client.command("DATA")).code == 354


async def closed(front: Front, count: int = 1) -> list[SessionClosed]:
    """The sessions that ended, once there are so many."""
    with trio.fail_after(5):
        while len(front.of(SessionClosed)) < count:
            await trio.sleep(0.001)
    return front.of(SessionClosed)


async def test_client_dies_inside_its_message(tmp_path: Path) -> None:
    """AF-38, SMTP-17, INV-02: the MTA sees no end, and nothing is delivered."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        await begun(client)
        await client.conversation.send(b"Subject: x\r\n\r\nhalf")
        client.conversation.reset()
        await closed(front)
        while not front.mta.clients[0].closed:
            await trio.lowlevel.checkpoint()
    assert front.mta.messages == []
    assert b"\r\n.\r\n" not in front.mta.clients[0].unfinished
    assert front.of(MessageRelayed) == []


@pytest.mark.parametrize("tls", [False, True])
async def test_truncation_without_close_notify_is_no_end(tmp_path: Path, tls: bool) -> None:
    """STLS-19."""
    async with open_front(tmp_path) as front:
        client = await front.client(tls=tls)
        await begun(client)
        await client.conversation.send(b"Subject: x\r\n\r\nhalf\r\n")
        client.conversation.close()
        await closed(front)
    assert front.mta.messages == []


async def test_mta_down_and_back(tmp_path: Path) -> None:
    """AF-41: MAIL hears 421 4.3.2; after three failures nobody is greeted; recovery needs no restart."""
    async with open_front(tmp_path) as front:
        front.mta.replies[b"GREETING"] = CUT
        for _ in range(3):
            client = await front.client()
            assert str(await client.command("MAIL FROM:<a@a.example>")).startswith("421 4.3.2")
        client = await front.raw()
        assert str(await client.reply()).startswith("421 4.3.2")
        assert [event.state for event in front.of(MtaAlert)] == ["down"]
        del front.mta.replies[b"GREETING"]
        assert await front.service.watch.learn()
        sent = await (await front.client()).send("a@a.example", ["b@front.example"], MESSAGE)
        assert sent.is_delivered


@pytest.mark.parametrize(
    ("step", "replies"),
    [
        (b"MAIL", ["451 4.4.2"]),
        (b"RCPT", ["250 2.1.0", "451 4.4.2"]),
        (b"DATA", ["250 2.1.0", "250 2.1.5", "451 4.4.2"]),
        (b"EOD", ["250 2.1.0", "250 2.1.5", "354", "451 4.4.2"]),
    ],
)
async def test_mta_dies_at_each_step(tmp_path: Path, step: bytes, replies: list[str]) -> None:
    """AF-42, OUT-09: the command it died in hears 451 4.4.2, the next one 421 4.4.2."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        front.mta.replies[step] = CUT
        heard = []
        for line in ("MAIL FROM:<a@a.example>", "RCPT TO:<b@front.example>", "DATA"):
            heard.append(await client.command(line))
            if heard[-1].code == 451:
                break
        else:
            await client.conversation.send(MESSAGE + b".\r\n")
            heard.append(await client.reply())
        assert [str(reply).startswith(start) for reply, start in zip(heard, replies, strict=True)]
        assert all(str(reply).startswith(start) for reply, start in zip(heard, replies, strict=True)), heard
        assert str(await client.command("NOOP")).startswith("421 4.4.2")
        await hang_up(client)
        (end,) = await closed(front)
        assert end.cause == "mta"


async def test_an_mta_that_talks_nonsense_before_its_go_ahead(tmp_path: Path) -> None:
    """SMTP-14, OUT-32: no 354 for the client, and no bug."""

    async def odd(line: bytes) -> bytes | None:
        return b"354 what" if b"odd@" in line else None

    async with open_front(tmp_path, Mta(script=odd)) as front:
        client = await front.client()
        group = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@front.example>\r\nRCPT TO:<odd@front.example>\r\nDATA\r\n"
        await client.conversation.send(group)
        assert [(await client.reply()).code for _ in range(4)] == [250, 250, 451, 451]
        assert (await client.command("NOOP")).code == 421
    assert front.of(InternalError) == []


async def test_long_lines_and_nul_then_the_error_limit(tmp_path: Path) -> None:
    """AF-43, SMTP-20, OUT-21: 500 once each; the 21st error ends the session."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        await client.conversation.send(b"NOOP " + b"x" * 1_000_000 + b"\r\nNO\0OP\r\nNOOP\n\r\n")
        assert [str(await client.reply()).split(" [")[0][:9] for _ in range(3)] == ["500 5.5.2"] * 3
        for _ in range(17):
            assert (await client.command("FOO")).code == 500
        assert str(await client.command("FOO")).startswith("421 4.7.0")
        await hang_up(client)
        (end,) = await closed(front)
    assert end.cause == "limit"
    assert [event.limit for event in front.of(LimitHit)] == ["errors"]
    assert [event.kind for event in front.of(Violation)] == ["line_too_long", "nul", "bare_newline"]


async def test_commands_without_a_message_have_a_limit(tmp_path: Path) -> None:
    """OUT-21: the 101st."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        for _ in range(99):
            assert (await client.command("NOOP")).code == 250
        assert str(await client.command("NOOP")).startswith("421 4.7.0")
        await hang_up(client)
        await closed(front)
    assert [event.limit for event in front.of(LimitHit)] == ["idle_commands"]


@pytest.mark.parametrize(
    ("before", "line", "code"),
    [
        ((), "MAIL FROM:<a@a.example> SIZE=99999999999", 552),
        ((), "STARTTLS", 454),
        (("MAIL FROM:<a@a.example>",), "DATA", 554),
        ((), "MAIL FROM:<bad@a.example>", 550),
    ],
)
async def test_no_refused_command_can_be_repeated_without_end(
    tmp_path: Path, before: tuple[str, ...], line: str, code: int
) -> None:
    """OUT-21, STLS-03: whoever refused it; of the MTA's refusals of MAIL, each may be a connection to it."""

    async def script(line: bytes) -> bytes | None:
        return b"550 5.7.1 no" if b"bad@" in line else None

    async with open_front(tmp_path, Mta(script=script), limits=Limits(handshakes=0)) as front:
        client = await front.client()
        for command in before:
            assert (await client.command(command)).code == 250
        for _ in range(100):
            assert (await client.command(line)).code == code
        assert str(await client.command(line)).startswith("421 4.7.0")
        await hang_up(client)
        await closed(front)
    told = [event.limit for event in front.of(LimitHit)]
    assert told == (["handshakes", "idle_commands"] if code == 454 else ["idle_commands"])


async def test_recipients_over_the_limit_in_their_hundreds(tmp_path: Path) -> None:
    """OUT-22 (RFC 5321 §4.5.3.1.10): those that were taken get the message; those over and over again end it."""
    async with open_front(tmp_path, limits=Limits(recipients=100)) as front:
        client = await front.client()
        rcpt = b"RCPT TO:<b@front.example>\r\n"
        await client.conversation.send(b"MAIL FROM:<a@a.example>\r\n" + rcpt * 800)
        assert [(await client.reply()).code for _ in range(801)] == [250] * 101 + [452] * 700
        assert (await client.command("DATA")).code == 354
        assert (await client.command("Subject: x\r\n\r\n.")).code == 250
        await client.conversation.send(b"MAIL FROM:<a@a.example>\r\n" + rcpt * 12_000)
        with trio.fail_after(20):
            codes = [(await client.reply()).code]
            while codes[-1] != 421:
                codes.append((await client.reply()).code)
        assert 10_000 < codes.count(452) < 10_400
        client.conversation.close()
        await closed(front)
    assert [event.limit for event in front.of(LimitHit)] == ["idle_commands"]


async def test_too_big_for_many(tmp_path: Path) -> None:
    """OUT-24: who pipelines recipients behind SIZE= hears 552 and may go on."""
    async with open_front(tmp_path, limits=Limits(message_octets=1000)) as front:
        client = await front.client()
        await client.conversation.send(
            b"MAIL FROM:<a@a.example> SIZE=1001\r\n" + b"RCPT TO:<b@front.example>\r\n" * 50 + b"DATA\r\n"
        )
        assert [(await client.reply()).code for _ in range(52)] == [552] + [503] * 51
        assert (await client.command("RSET")).code == 250


async def test_nobody_says_ehlo(tmp_path: Path, autojump_clock: object) -> None:
    """AF-45, TO-08, OUT-28."""
    async with open_front(tmp_path) as front:
        client = await front.raw()
        await client.reply()
        began = trio.current_time()
        assert str(await client.reply()).startswith("421 4.4.2")
        assert 60 <= trio.current_time() - began < 65
        (end,) = await closed(front)
        assert end.cause == "idle"


async def _drip(client: Client) -> None:
    for _ in range(200):
        await client.conversation.send(b"x")
        await trio.sleep(10)


async def test_one_octet_each_ten_seconds(tmp_path: Path, autojump_clock: object) -> None:
    """AF-45, OUT-28: the MTA is left without an end."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        await begun(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drip, client)
            assert str(await client.reply()).startswith("421 4.4.2")
            nursery.cancel_scope.cancel()
        (end,) = await closed(front)
        assert end.cause == "slow"
    assert front.mta.messages == []
    assert "slow" in [event.kind for event in front.of(Violation)]


async def test_a_client_that_takes_no_replies(tmp_path: Path, autojump_clock: object) -> None:
    """AF-45: replies that nobody reads are waited for as long as commands that nobody sends, not without end."""
    async with open_front(tmp_path, limits=Limits(idle_commands=10**9)) as front:
        with trio.socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", front.port))
            stream = trio.SocketStream(sock)
            await stream.receive_some()
            with trio.move_on_after(100):
                await stream.send_all(b"EHLO client.example\r\n")
                await stream.receive_some()
                while True:  # with a reply to each
                    await stream.send_all(b"NOOP\r\n" * 1000)
            await trio.sleep(400)
            (end,) = front.of(SessionClosed)
    assert end.cause == "slow"


@pytest.mark.parametrize("names", [(HOST,), (HOST, "mx.other.example")])
async def test_stalled_handshake(tmp_path: Path, names: tuple[str, ...], autojump_clock: object) -> None:
    """AF-45: it is cut after 60 s, and told and counted as a failed handshake, also where the name is waited for."""
    async with open_front(
        tmp_path, tls="implicit", names=names, limits=Limits(handshake_failures_per_minute=1)
    ) as front:
        client = await front.raw()
        with pytest.raises(EndOfStream):
            await client.reply()
        (end,) = await closed(front)
        assert end.cause == "handshake"
        with pytest.raises(EndOfStream):
            await (await front.raw()).reply()
        assert [event.limit for event in front.of(LimitHit)] == ["handshake_failures"]


@pytest.mark.parametrize("names", [(HOST,), (HOST, "mx.other.example")])
async def test_a_handshake_that_stalls_after_starttls(
    tmp_path: Path, names: tuple[str, ...], autojump_clock: object
) -> None:
    """STLS-09: behind the 220 not another word in clear."""
    async with open_front(tmp_path, names=names) as front:
        client = await front.client()
        assert (await client.command("STARTTLS")).code == 220
        assert await client.conversation.receive() == b""
        (end,) = await closed(front)
        assert end.cause == "handshake"


@pytest.mark.parametrize("cut", [1, 5, 9, 10, 11, 100])
async def test_commands_behind_starttls_are_never_executed(tmp_path: Path, cut: int) -> None:
    """AF-46, STLS-07: 554 where they came with it, and never inside TLS."""
    octets = b"STARTTLS\r\nMAIL FROM:<evil@a.example>\r\n"
    async with open_front(tmp_path) as front:
        client = await front.client()
        await client.conversation.send(octets[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await client.conversation.send(octets[cut:])
        reply = await client.reply()
        assert reply.code in (220, 554)
        if cut < 10:
            assert str(reply).startswith("554 5.5.0")
        await hang_up(client)
        (end,) = await closed(front)
        assert end.cause in ("refused", "handshake")
    assert front.mta.clients == []


ENDS = (b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\r\n.\n", b"\r.\r\n", b"\n.\r", b"\r\n\0.\r\n")


# Once the first CR of CR CR LF is a space, what follows is a true end, and nobody behind us reads it otherwise.
@pytest.mark.parametrize(
    ("end", "normalize"), [*((end, normalize) for end in ENDS for normalize in (False, True)), (b"\r\r\n.\r\n", False)]
)
async def test_no_other_end_of_data(tmp_path: Path, end: bytes, normalize: bool) -> None:
    """AF-47, DATA-02, DATA-03: one reply, and no smuggled transaction at the MTA."""
    listed = (ip_network("127.0.0.0/8"),) if normalize else ()
    smuggled = b"MAIL FROM:<evil@a.example>\r\nRCPT TO:<x@front.example>\r\nDATA\r\nevil\r\n"
    async with open_front(tmp_path, normalize_from=listed) as front:
        client = await front.client()
        await begun(client)
        await client.conversation.send(b"Subject: x\r\n\r\nhello" + end + smuggled + b".\r\n")
        reply = await client.reply()
        bare = end != b"\r\n\0.\r\n"
        assert str(reply).startswith("550 5.5.2" if bare and not normalize else "250"), reply
        assert (await client.command("NOOP")).code == 250
        await client.quit()
    assert all(len(heard.of(b"MAIL")) <= 1 for heard in front.mta.clients)
    for message in front.mta.messages:
        assert b"\n" not in message.replace(b"\r\n", b"")
        assert b"\r" not in message.replace(b"\r\n", b"")
    assert len(front.mta.messages) == (0 if bare and not normalize else 1)
    assert "bare_newline" in [event.kind for event in front.of(Violation)] or not bare


async def test_a_true_end_and_a_second_message(tmp_path: Path) -> None:
    """AF-49, DATA-11."""
    one = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@front.example>\r\nDATA\r\n"
    async with open_front(tmp_path, received=False) as front:
        client = await front.client()
        await client.conversation.send(one)
        assert [(await client.reply()).code for _ in range(3)] == [250, 250, 354]
        await client.conversation.send(b"first\r\n.\r\n" + one)
        assert [(await client.reply()).code for _ in range(4)] == [250, 250, 250, 354]
        await client.conversation.send(b"second\r\n.\r\nQUIT\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 221]
    assert front.mta.messages == [b"first\r\n", b"second\r\n"]


@pytest.mark.parametrize(
    ("limits", "reply", "limit"),
    [
        (Limits(sessions_per_client=2), "421 4.7.0", "sessions_per_client"),
        (Limits(sessions=2), "421 4.3.2", "sessions"),
        (Limits(connections_per_minute=2), "421 4.7.0", "connection_rate"),
    ],
)
async def test_too_many_connections(tmp_path: Path, limits: Limits, reply: str, limit: str) -> None:
    """AF-50, OUT-20, OUT-21: the excess hears why; those inside are not touched."""
    async with open_front(tmp_path, limits=limits) as front:
        first, _second = await front.client(), await front.client()
        third = await front.raw()
        assert str(await third.reply()).startswith(reply)
        assert (await first.command("NOOP")).code == 250
    assert [event.limit for event in front.of(LimitHit)] == [limit]


async def test_the_alert_of_a_failed_handshake_is_read(tmp_path: Path) -> None:
    """STLS-09: also by a client that had sent more than the broken handshake, which a close would answer by a reset."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        assert (await client.command("STARTTLS")).code == 220
        await client.conversation.send(b"\x16\x03\x01\x00\x04junk" + bytes(200_000))
        heard = b""
        with trio.fail_after(5):
            while octets := await client.conversation.receive():
                heard += octets
        client.conversation.close()
        await closed(front)
    assert heard.startswith(b"\x15\x03")
    assert heard[5:6] == b"\x02"  # fatal


async def test_failed_handshakes_have_a_limit(tmp_path: Path) -> None:
    """AF-50: garbage in place of a ClientHello; STLS-09: never back to SMTP in clear."""
    async with open_front(tmp_path, limits=Limits(handshake_failures_per_minute=2)) as front:
        for count in (1, 2):
            client = await front.client()
            assert (await client.command("STARTTLS")).code == 220
            await client.conversation.send(b"EHLO again\r\n" * 50)
            assert (await closed(front, count))[-1].cause == "handshake"
        client = await front.raw()
        assert str(await client.reply()).startswith("421 4.7.0")
    assert [event.limit for event in front.of(LimitHit)] == ["handshake_failures"]


async def test_submission_in_clear(tmp_path: Path) -> None:
    """AF-56, SUB-02, OUT-29: nothing but EHLO, NOOP, STARTTLS, QUIT; nothing reaches the MTA; told once."""
    async with open_front(tmp_path, Mta((*OFFER, b"AUTH PLAIN")), submission=True) as front:
        client = await front.client()
        for line in ("MAIL FROM:<a@a.example>", "AUTH PLAIN AGEAYg==", "RSET", "VRFY x", "HELP", "HELO x"):
            reply = str(await client.command(line))
            assert reply.startswith("530 5.7.0 [inbound/tls-required] submission: "), line
        assert (await client.command("NOOP")).code == 250
        assert (await client.command("QUIT")).code == 221
    assert front.mta.clients == []
    (event,) = front.of(DeliveryRefused)
    assert (event.reason, event.stage, event.reply) == ("inbound/tls-required", "mail", reply)
    assert "auth_clear" in [event.kind for event in front.of(Violation)]


async def test_xclient_from_the_internet(tmp_path: Path) -> None:
    """AF-56, PXY-09, EXT-18: nobody may be somebody else, though the MTA offers it."""
    async with open_front(tmp_path, Mta((*OFFER, XCLIENT)), identity_by="xclient") as front:
        client = await front.client()
        assert not client.offers("XCLIENT")
        assert str(await client.command("XCLIENT ADDR=127.0.0.1")).startswith("550 5.7.0")
    assert "xclient" in [event.kind for event in front.of(Violation)]


async def test_clear_is_refused_for_a_protected_domain_only(tmp_path: Path) -> None:
    """STLS-15, RPT-28, OUT-29: postmaster and our report address are exempt, and TLS is enough."""
    async with open_front(tmp_path, rules=SECRET) as front:
        client = await front.client()
        await client.command("MAIL FROM:<a@a.example>")
        assert str(await client.command("RCPT TO:<x@secret.example>")).startswith("530 5.7.0 [inbound/tls-required]")
        for exempt in ("postmaster", "postmaster@secret.example", "tlsrpt@secret.example", "b@front.example"):
            assert (await client.command(f"RCPT TO:<{exempt}>")).code == 250
        await client.command("RSET")
        secured = await front.client(tls=True)
        assert (await secured.send("a@a.example", ["x@secret.example"], MESSAGE)).is_delivered
    (refused,) = front.of(DeliveryRefused)
    assert (refused.direction, refused.reason, refused.stage) == ("inbound", "inbound/tls-required", "rcpt")
    assert (refused.listener, refused.client, refused.address) == ("mx", "127.0.0.1", "")
    assert [b"x@secret.example" in line for heard in front.mta.clients[:1] for line in heard.lines].count(True) == 0


async def test_starttls_forgets_and_the_mta_begins_anew(tmp_path: Path) -> None:
    """STLS-04, STLS-05, STLS-06, DANE-43, DANE-44: offered in the first EHLO to anybody, with any SNI."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        assert client.offers("STARTTLS")
        assert (await client.command("MAIL FROM:<clear@a.example>")).code == 250
        assert (await client.start_tls(unverifying_context(), "unknown.example")).code == 220
        assert (await client.command("RCPT TO:<b@front.example>")).code == 503
        await client.hello()
        assert not client.offers("STARTTLS")
        assert (await client.command("STARTTLS")).code == 503
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    first, second = front.mta.clients
    assert first.of(b"MAIL") == [b"MAIL FROM:<clear@a.example>"]
    assert second.of(b"MAIL") == [b"MAIL FROM:<a@a.example>"]
    assert HOST


async def test_drain(tmp_path: Path) -> None:
    """SMTP-18, OUT-20: an idle session hears 421 4.3.2, a running message finishes."""
    async with open_front(tmp_path) as front, trio.open_nursery() as nursery:
        idle, busy = await front.client(), await front.client()
        await begun(busy)
        nursery.start_soon(front.sessions.drain, 30.0)
        assert str(await idle.reply()).startswith("421 4.3.2")
        await hang_up(idle)
        await busy.conversation.send(MESSAGE + b".\r\n")
        assert (await busy.reply()).code == 250
        assert str(await busy.reply()).startswith("421 4.3.2")
        await hang_up(busy)
    assert len(front.mta.messages) == 1


@pytest.mark.parametrize("refusal", ["554 5.7.1 not you", "421 4.7.0 later"])
async def test_the_mta_greets_itself(tmp_path: Path, refusal: str) -> None:
    """SMTP-03: its greeting is relayed; after a 554 only QUIT is served."""
    async with open_front(tmp_path, open_at_connect=True) as front:
        client = await front.raw()
        assert str(await client.reply()) == "220 mta.example ESMTP"
        front.mta.replies[b"GREETING"] = refusal.encode()
        client = await front.raw()
        assert str(await client.reply()) == refusal
        if refusal.startswith("554"):
            assert (await client.command("EHLO x")).code == 503
            assert (await client.command("QUIT")).code == 221


async def test_early_talker(tmp_path: Path) -> None:
    """EXT-24."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        await client.conversation.send(b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@front.example>\r\nDATA\r\nbody\r\n.\r\n")
        assert [(await client.reply()).code for _ in range(3)] == [250, 250, 554]
        await hang_up(client)
        await closed(front)
    assert front.mta.messages == []
    assert [event.kind for event in front.of(Violation)] == ["early_talker"]


async def test_starttls_while_too_many_handshakes_are_under_way(tmp_path: Path) -> None:
    """STLS-03: 454 and on in clear; it is told, since mail may now come without TLS."""
    async with open_front(tmp_path, limits=Limits(handshakes=0)) as front:
        client = await front.client()
        assert (await client.command("STARTTLS")).code == 454
        assert (await client.command("NOOP")).code == 250
    assert [(event.limit, event.client) for event in front.of(LimitHit)] == [("handshakes", "127.0.0.1")]


async def test_an_over_long_text_line(tmp_path: Path) -> None:
    """AF-44, OUT-31: 554 5.6.0 at the true end, no end for the MTA; the next message goes."""
    async with open_front(tmp_path, Mta(tuple(word for word in OFFER if not word.startswith(b"SIZE")))) as front:
        client = await front.client()
        await begun(client)
        for _ in range(64):
            await client.conversation.send(b"x" * 131072)
        await client.conversation.send(b"\r\n.\r\n")
        assert str(await client.reply()).startswith("554 5.6.0 [message/line-too-long]")
        assert front.mta.messages == []
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    assert [event.reason for event in front.of(MessageRelayed)] == ["message/line-too-long", ""]
    assert [event.kind for event in front.of(Violation)] == ["line_too_long"]


async def test_nul_in_a_message_is_content(tmp_path: Path) -> None:
    """AF-44: relayed unchanged."""
    content = b"Subject: x\r\n\r\na\0b\r\n\0\r\n"
    async with open_front(tmp_path, received=False) as front:
        assert (await (await front.client()).send("a@a.example", ["b@front.example"], content)).is_delivered
    assert front.mta.messages == [content]
    assert front.of(Violation) == []
