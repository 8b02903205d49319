"""CONFORMANCE §D3: faults on the way, what the MTA and the next hop see of them (AF-34..49, AF-57, INV-01..03)."""

from pathlib import Path

import pytest
import trio

from smtpguard.events import Delivered, DeliveryRefused, FinalReplyLost, InternalError, Violation
from smtpguard.sandbox.behaviour import Behaviour, Stage
from smtpguard.sandbox.client import Client
from smtpguard.sandbox.internet import Publication, Site
from tests.support.rig import MARKER, MESSAGE, open_rig

A, B, C = (Site(f"{name}.example", Publication.DANE_EE) for name in "abc")


async def raw(client: Client, octets: bytes) -> None:
    await client.conversation.send(octets)


@pytest.fixture(params=["lmtp", "smtp"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_all_refuse_tcp(tmp_path: Path, protocol: str) -> None:
    """AF-34, OUT-06; then the host memory answers at once (DESIGN §6)."""
    async with open_rig(tmp_path, [A]) as rig:
        await rig.internet.hosts["a.example"].mx.stop()
        for token in ("host/connect", "host/remembered"):
            sent = await rig.send("x@a.example", protocol=protocol)
            assert f"451 4.4.1 [{token}] mx.a.example[127.10.1.1]" in str(sent.last_reply)
        assert rig.is_clean


async def test_a_later_5xx_never_bounces_what_was_greylisted(tmp_path: Path, protocol: str) -> None:
    """AF-34, MX-13, INV-08: the 450 of the first host is the answer."""
    async with open_rig(tmp_path, [A]) as rig:
        second = await rig.internet.add_mx("a.example", "mx2.a.example")
        rig.behave("a.example", rcpt="450 4.2.0 greylisted")
        second.behaviour = Behaviour(rcpt="550 5.1.1 who?")
        sent = await rig.send("x@a.example", protocol=protocol)
        (reply,) = sent.recipients
        assert str(reply).startswith("450 4.2.0 greylisted (mx.a.example[127.10.1.1]:")
        assert len(second.sessions) == 1
        assert rig.is_clean


async def test_mail_refused_answers_each_rcpt(tmp_path: Path, protocol: str) -> None:
    """DESIGN §3: MAIL is answered here; the host's refusal of it is the answer to RCPT, relayed (OUT-07)."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.behave("a.example", mail="550 5.7.1 not from you")
        sent = await rig.send("x@a.example", "y@a.example", protocol=protocol)
        assert sent.mail.code == 250
        assert [str(reply).partition(" (")[0] for reply in sent.recipients] == ["550 5.7.1 not from you"] * 2


async def test_lost_after_the_dot(tmp_path: Path, protocol: str) -> None:
    """AF-35, INV-02, OUT-08: never a 2xx, never another try; the event says that nobody knows."""
    async with open_rig(tmp_path, [A]) as rig:
        await rig.internet.add_mx("a.example", "mx2.a.example")
        rig.behave("a.example", drops=frozenset({Stage.END}))
        sent = await rig.send("x@a.example", protocol=protocol)
        assert [reply.code for reply in sent.ends] == [451]
        assert "4.4.2 [host/lost] mx.a.example" in str(sent.ends[0])
        assert [event.side for event in rig.of(FinalReplyLost)] == ["upstream"]
        assert not rig.of(Delivered)
        assert not rig.internet.hosts["a.example"].further[0].mx.messages
        assert rig.is_clean


async def test_lost_in_the_body(tmp_path: Path, protocol: str) -> None:
    """AF-36: the rest of the MTA's data is drained, the session stays in step (DATA-12)."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.behave("a.example", drops=frozenset({Stage.BODY}))
        client = await rig.client(protocol)
        content = b"Subject: big\r\n\r\n" + b"x" * 998 + b"\r\n"
        sent = await client.send("s@s.example", ["x@a.example"], content * 3000, lmtp=protocol == "lmtp")
        assert [reply.code for reply in sent.ends] == [451]
        rig.behave("a.example")
        again = await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=protocol == "lmtp")
        assert again.is_delivered, again
        await client.quit()
        assert rig.is_clean


async def test_final_reply_is_awaited(tmp_path: Path, protocol: str) -> None:
    """INV-01, SMTP-30: nothing is said before the next hop said it."""
    async with open_rig(tmp_path, [A]) as rig:
        gate = trio.Event()
        rig.behave("a.example", held={Stage.END: gate})
        client = await rig.client(protocol)
        heard: list[object] = []

        async def send() -> None:
            heard.append(await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=protocol == "lmtp"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(5):
                while not any(s.inside_tls.endswith(b"\r\n.\r\n") for s in rig.internet.hosts["a.example"].mx.sessions):
                    await trio.sleep(0.01)
            await trio.sleep(0.05)
            assert not heard
            gate.set()
        assert len(heard) == 1
        assert rig.of(Delivered)
        await client.quit()


async def test_mta_drops_in_the_body(tmp_path: Path, protocol: str) -> None:
    """AF-38, SMTP-17: the host never sees a dot."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client(protocol)
        await client.command("MAIL FROM:<s@s.example>")
        await client.command("RCPT TO:<x@a.example>")
        assert (await client.command("DATA")).code == 354
        await raw(client, b"Subject: half\r\n\r\n" + MARKER + b"\r\n")
        client.conversation.close()
        mx = rig.internet.hosts["a.example"].mx
        with trio.fail_after(5):
            while not mx.sessions[0].ended:
                await trio.sleep(0.01)
        assert not mx.messages
        assert b"\r\n.\r\n" not in mx.sessions[0].inside_tls
        assert rig.is_clean


async def test_other_next_hop_by_smtp(tmp_path: Path) -> None:
    """AF-40, OUT-23, SMTP-23: one transaction, one next hop."""
    async with open_rig(tmp_path, [A, B]) as rig:
        sent = await rig.send("x@a.example", "y@b.example", protocol="smtp")
        assert [reply.code for reply in sent.recipients] == [250, 452]
        assert "4.5.3 [session/other-next-hop] b.example" in str(sent.recipients[1])
        assert [reply.code for reply in sent.ends] == [250]
        assert not rig.internet.hosts["b.example"].mx.messages


async def test_fan_out_by_lmtp(tmp_path: Path) -> None:
    """AF-40, LMTP-02, LMTP-05, LMTP-06, INV-09: a reply for each accepted recipient, in order, from its host."""
    async with open_rig(tmp_path, [A, B, C]) as rig:
        rig.behave("b.example", end="452 4.3.1 full")
        rig.behave("c.example", rcpt_by_address={"bad@c.example": "550 5.1.1 no"})
        recipients = ("1@a.example", "2@b.example", "bad@c.example", "3@c.example", "1@a.example")
        sent = await rig.send(*recipients)
        assert [reply.code for reply in sent.recipients] == [250, 250, 550, 250, 250]
        assert [reply.code for reply in sent.ends] == [250, 452, 250, 250]
        assert "mx.b.example" in str(sent.ends[1])
        for domain in ("a.example", "c.example"):
            (message,) = rig.internet.hosts[domain].mx.messages
            assert message.content.partition(b"\r\n\tid")[2].endswith(MESSAGE) or message.content.endswith(MESSAGE)
        assert rig.is_clean


async def test_pipelined_group(tmp_path: Path, protocol: str) -> None:
    """EXT-01, INV-07, AF-49, DATA-11: MAIL, RCPT, DATA in one segment, the next transaction behind the dot."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client(protocol)
        head = b"MAIL FROM:<s@s.example>\r\nRCPT TO:<x@a.example>\r\nDATA\r\n"
        await raw(client, head)
        assert [(await client.reply()).code for _ in range(3)] == [250, 250, 354]
        await raw(client, MESSAGE + b".\r\n" + head)
        assert [(await client.reply()).code for _ in range(4)] == [250, 250, 250, 354]
        await raw(client, MESSAGE + b".\r\nQUIT\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 221]
        client.conversation.close()
        mx = rig.internet.hosts["a.example"].mx
        assert len(mx.messages) == 2
        assert len(mx.sessions) == 1  # the second went through the pooled connection


@pytest.mark.parametrize(
    ("line", "code"),
    [(b"x" * 200_000, 500), (b"MAIL FROM:<\0@s.example>", 500), (b"FROBNICATE", 500), (b"VRFY root", 252)],
)
async def test_abuse_never_ends_the_session(tmp_path: Path, line: bytes, code: int) -> None:
    """AF-43: one reply each, no error limit toward the MTA."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client("smtp")
        for _ in range(30):
            await raw(client, line + b"\r\n")
            assert (await client.reply()).code == code
        sent = await client.send("s@s.example", ["x@a.example"], MESSAGE)
        assert sent.is_delivered
        await client.quit()


async def test_over_long_text_line(tmp_path: Path, protocol: str) -> None:
    """AF-44, OUT-31: the host gets no dot, the session stays in step."""
    async with open_rig(tmp_path, [A]) as rig:
        sent = await rig.send("x@a.example", protocol=protocol, content=b"S: x\r\n\r\n" + b"x" * 100_000 + b"\r\n")
        assert "554 5.6.0 [message/line-too-long]" in str(sent.ends[0])
        assert not rig.internet.hosts["a.example"].mx.messages
        assert [event.kind for event in rig.of(Violation)] == ["line_too_long"]


async def test_bare_newlines_become_spaces(tmp_path: Path, protocol: str) -> None:
    """AF-48, DATA-03, CH-14: a smuggled transaction arrives as text of the one message."""
    async with open_rig(tmp_path, [A]) as rig:
        smuggled = b"Subject: x\r\n\r\nfirst\n.\nMAIL FROM:<evil@e.example>\r\nlast\r\r\n"
        client = await rig.client(protocol)
        await client.command("MAIL FROM:<s@s.example>")
        await client.command("RCPT TO:<x@a.example>")
        await client.command("DATA")
        await raw(client, smuggled + b".\r\n")
        assert (await client.reply()).code == 250
        await client.quit()
        (message,) = rig.internet.hosts["a.example"].mx.messages
        content = message.content
        assert content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
        assert b"first . MAIL FROM:<evil@e.example>\r\nlast \r\n" in content


async def test_starttls_injection(tmp_path: Path) -> None:
    """AF-46, STLS-07 as far as it reaches a listener without TLS: STARTTLS is not offered, and is 502."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client("smtp")
        assert not client.offers("STARTTLS")
        assert (await client.command("STARTTLS")).code in (500, 502)
        await client.quit()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": "250 2.0.0 fine"}, "451 4.5.0 [host/protocol] mx.a.example"),
        ({"data": "552 5.3.4 too much"}, "552 5.3.4 too much (mx.a.example"),
        ({"data": "421 4.3.2 going down"}, "451 4.3.2 going down (mx.a.example"),
        ({"rcpt": ("250-one", "550 two")}, "451 4.5.0 [host/protocol] mx.a.example"),
        ({"greeting": "554 5.7.1 go away"}, "554 5.7.1 go away (mx.a.example"),
    ],
)
async def test_protocol_abuse_by_the_host(
    tmp_path: Path, protocol: str, change: dict[str, object], expected: str
) -> None:
    """AF-57, OUT-32, SMTP-14, SMTP-15, MX-11, CH-20: no content is sent, and the MTA hears why."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.behave("a.example", **change)
        sent = await rig.send("x@a.example", protocol=protocol)
        assert str(sent.last_reply).startswith(expected), sent.last_reply
        assert not any(MARKER in session.inside_tls for session in rig.internet.hosts["a.example"].mx.sessions)
        assert not rig.of(InternalError)
        assert rig.is_clean


async def test_dead_pooled_connection_is_replaced_once(tmp_path: Path, protocol: str) -> None:
    """DESIGN §6 pool: loss of a reused connection at MAIL is one fresh connection to the same host."""
    async with open_rig(tmp_path, [A]) as rig:
        assert (await rig.send("x@a.example", protocol=protocol)).is_delivered
        rig.behave("a.example", drops=frozenset({Stage.MAIL}))  # also for the session that is open
        sent = await rig.send("x@a.example", protocol=protocol)
        assert "451 4.4.2 [host/lost]" in str(sent.last_reply)
        assert len(rig.internet.hosts["a.example"].mx.sessions) == 2
        assert rig.is_clean


async def test_drain(tmp_path: Path, protocol: str) -> None:
    """SMTP-18, DESIGN §6: a running transaction is finished, then the session ends silently between transactions."""
    async with open_rig(tmp_path, [A]) as rig:
        client = await rig.client(protocol)
        await client.command("MAIL FROM:<s@s.example>")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.sessions.drain, 5)
            await trio.sleep(0.05)
            assert (await client.command("RCPT TO:<x@a.example>")).code == 250
            assert (await client.command("DATA")).code == 354
            await raw(client, MESSAGE + b".\r\n")
            assert (await client.reply()).code == 250
            assert await client.conversation.receive() == b""
        client.conversation.close()
        assert rig.of(Delivered)


async def test_a_refusal_is_not_remembered(tmp_path: Path, protocol: str) -> None:
    """SMTP-28: what a host said of one message says nothing of the next."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.behave("a.example", mail="550 5.7.1 no")
        assert not (await rig.send("x@a.example", protocol=protocol)).is_delivered
        rig.behave("a.example")
        assert (await rig.send("x@a.example", protocol=protocol)).is_delivered


async def test_extensions_the_host_lacks(tmp_path: Path, protocol: str) -> None:
    """EXT-04, EXT-25, OUT-30: SMTPUTF8 goes to the host that has it; without any it is 553."""
    async with open_rig(tmp_path, [A]) as rig:
        second = await rig.internet.add_mx("a.example", "mx2.a.example")
        rig.behave("a.example", extensions=("PIPELINING", "8BITMIME"))
        client = await rig.client(protocol)
        for expected in ("delivered", "553 5.6.7 [message/smtputf8]"):
            await client.command("MAIL FROM:<s@s.example> SMTPUTF8")
            rcpt = await client.command("RCPT TO:<x@a.example>")
            if expected == "delivered":
                assert rcpt.code == 250
                assert "mx2.a.example" in str(rcpt)
                second.behaviour = Behaviour(extensions=("PIPELINING", "8BITMIME"))
                rig.engine.pool.close()
            else:
                assert str(rcpt).startswith(expected)
            assert (await client.command("RSET")).code == 250
            rig.engine.pool.close()
        await client.quit()
        assert rig.is_clean


@pytest.mark.parametrize(
    "stage",
    [
        "smtpguard.dns.resolver.Resolver._resolve",
        "smtpguard.outbound.gather.find_destination",
        "smtpguard.outbound.gather.find_addresses",
        "smtpguard.outbound.gather.find_tlsa",
        "smtpguard.outbound.gather.assess_tlsa",
        "smtpguard.mtasts.cache.StsCache.find",
        "smtpguard.outbound.gather.require",
        "smtpguard.outbound.host.judge",
        "smtpguard.policy.engine.verify_dane",
    ],
)
async def test_internal_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str, stage: str) -> None:
    """INV-05, OUT-27: a bug in any stage of the judgement is a 4xx and an event, and never clear text."""

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a bug")

    async with open_rig(tmp_path, [A]) as rig:
        monkeypatch.setattr(stage, broken)
        client = await rig.client(protocol)
        await client.command("MAIL FROM:<s@s.example>")
        reply = await client.command("RCPT TO:<x@a.example>")
        assert reply.code in (421, 451), reply
        client.conversation.close()
        assert rig.of(InternalError)
        assert rig.no_clear_mail("a.example")
        assert not rig.internet.hosts["a.example"].mx.messages
        assert not [event for event in rig.of(DeliveryRefused) if event.reply.startswith("5")]
        assert rig.is_clean
