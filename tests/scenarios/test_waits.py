"""Who waits for whom, and for how long: the budgets of CONFORMANCE §B8 (TO-02..08), and an MTA that is slow or gone."""

from pathlib import Path

import pytest
import trio

from smtpguard.events import Delivered, DeliveryRefused, FinalReplyLost, HostSkipped, SessionClosed
from smtpguard.sandbox.behaviour import Handshake, Stage
from smtpguard.sandbox.internet import Publication, Site
from tests.support.rig import MARKER, MESSAGE, open_rig

A, B = (Site(f"{name}.example", Publication.DANE_EE) for name in "ab")


@pytest.fixture(params=["lmtp", "smtp"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_budget_of_rcpt(tmp_path: Path, protocol: str) -> None:
    """TO-04: the RCPT is answered in time, the session stays."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.budget(rcpt=0.3)
        rig.behave("a.example", held={Stage.GREETING: trio.Event()})
        client = await rig.client(protocol)
        sent = await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=protocol == "lmtp")
        assert "451 4.4.2 [host/budget] a.example" in str(sent.last_reply)
        assert (await client.command("NOOP")).code == 250
        await client.quit()
        assert rig.is_clean


async def test_idle_mta(tmp_path: Path, protocol: str) -> None:
    """TO-08: 421 4.4.2 and close."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.budget(idle=0.1)
        client = await rig.client(protocol)
        with trio.fail_after(5):
            assert str(await client.reply()).startswith("421 4.4.2")
        client.conversation.close()


async def test_budget_of_the_final_reply(tmp_path: Path, protocol: str) -> None:
    """AF-37, TO-07: 451 in time, the late 250 changes nothing."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.budget(end_of_data=0.2)
        rig.behave("a.example", held={Stage.END: trio.Event()})
        sent = await rig.send("x@a.example", protocol=protocol)
        assert "451 4.4.2 [host/budget]" in str(sent.ends[0])
        assert rig.of(FinalReplyLost)
        assert rig.is_clean


async def test_stalled_route_is_dropped(tmp_path: Path) -> None:
    """LMTP-05: a host that reads nothing delays the others for a bounded time, then its recipients hear 451."""
    async with open_rig(tmp_path, [A, B]) as rig:
        rig.budget(stalled_route=0.3)
        rig.behave("b.example", held={Stage.BODY: trio.Event()}, small_receive_buffer=True)
        content = b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 10_000
        sent = await rig.send("x@a.example", "y@b.example", content=content)
        assert [reply.code for reply in sent.ends] == [250, 451]
        assert "[host/stalled] mx.b.example" in str(sent.ends[1])
        assert rig.is_clean


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage.GREETING, "TO-02: no greeting"),
        (Stage.EHLO, "TO-03: no reply to EHLO"),
        (Stage.STARTTLS, "TO-03: no reply to STARTTLS"),
        (Stage.MAIL, "TO-04: no reply to MAIL"),
        (Stage.RCPT, "TO-04: no reply to RCPT"),
    ],
)
async def test_every_wait_before_the_reply_to_rcpt(tmp_path: Path, stage: Stage, said: str) -> None:
    """TO-02, TO-03, TO-04: all of it lies inside the one budget of RCPT, and the session stays."""
    async with open_rig(tmp_path, [A]) as rig:
        rig.budget(rcpt=0.3)
        rig.behave("a.example", held={stage: trio.Event()})
        client = await rig.client()
        sent = await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=True)
        assert "451 4.4.2 [host/budget] a.example" in str(sent.last_reply), said
        assert (await client.command("NOOP")).code == 250
        await client.quit()
        assert rig.is_clean


async def test_budget_of_the_handshake(tmp_path: Path) -> None:
    """TO-03: a host that hangs in the handshake fails after its own 60 s, long before RCPT must be answered."""
    async with open_rig(tmp_path, [A]) as rig:
        assert rig.engine.outbound.budgets.handshake == 60
        rig.budget(handshake=0.2)
        rig.behave("a.example", handshake=Handshake.HANG)
        with trio.fail_after(10):
            sent = await rig.send("x@a.example")
        assert "451 4.7.5 [tls/handshake] mx.a.example" in str(sent.last_reply)
        (skipped,) = rig.of(HostSkipped)
        assert (skipped.result_type, skipped.failure_reason_code) == ("validation-failure", "tls-timeout")
        assert rig.no_clear_mail("a.example")


async def test_budget_of_data(tmp_path: Path, protocol: str) -> None:
    """TO-05: DATA is answered in 100 s, before Postfix's 120; the session stays."""
    async with open_rig(tmp_path, [A]) as rig:
        assert rig.engine.outbound.budgets.data == 100
        rig.budget(data=0.2)
        rig.behave("a.example", held={Stage.DATA: trio.Event()})
        client = await rig.client(protocol)
        with trio.fail_after(10):
            sent = await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=protocol == "lmtp")
        assert str(sent.data).startswith("451 4.4.2 [host/budget] mx.a.example"), sent
        rig.behave("a.example")
        assert (await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=protocol == "lmtp")).is_delivered
        await client.quit()
        assert rig.is_clean


async def test_budget_of_progress(tmp_path: Path, protocol: str) -> None:
    """TO-06, AF-36: the host reads nothing for 150 s; what the MTA still sends is drained, and it hears 451."""
    async with open_rig(tmp_path, [A]) as rig:
        assert rig.engine.outbound.budgets.progress == 150
        rig.budget(progress=0.2)
        rig.behave("a.example", held={Stage.BODY: trio.Event()}, small_receive_buffer=True)
        content = b"Subject: big\r\n\r\n" + (b"x" * 998 + b"\r\n") * 10_000
        with trio.fail_after(10):
            sent = await rig.send("x@a.example", content=content, protocol=protocol)
        assert [reply.code for reply in sent.ends] == [451]
        assert "4.4.2 [host/stalled] mx.a.example" in str(sent.ends[0])
        assert [event.stage for event in rig.of(DeliveryRefused)] == ["content"]
        assert rig.is_clean


async def test_slow_mta_in_the_content(tmp_path: Path, protocol: str) -> None:
    """AF-45, TO-08: an MTA that stops inside DATA hears 421 4.4.2, and the host never sees a dot."""
    async with open_rig(tmp_path, [A]) as rig:
        assert rig.engine.outbound.budgets.idle == 300
        rig.budget(idle=0.2)
        client = await rig.client(protocol)
        await client.command("MAIL FROM:<s@s.example>")
        assert (await client.command("RCPT TO:<x@a.example>")).code == 250
        assert (await client.command("DATA")).code == 354
        await client.conversation.send(b"Subject: slow\r\n\r\n" + MARKER)
        with trio.fail_after(10):
            assert str(await client.reply()).startswith("421 4.4.2")
            assert await client.conversation.receive() == b""
            client.conversation.close()
            mx = rig.internet.hosts["a.example"].mx
            while not (mx.sessions[0].ended and rig.of(SessionClosed)):
                await trio.sleep(0.01)
        assert not mx.messages
        assert MARKER in mx.sessions[0].inside_tls
        assert b"\r\n.\r\n" not in mx.sessions[0].inside_tls
        assert not rig.of(Delivered)
        assert [event.cause for event in rig.of(SessionClosed)] == ["idle"]
        assert rig.is_clean


async def test_mta_drops_after_its_dot(tmp_path: Path, protocol: str) -> None:
    """AF-39: what the host says then is read and told; it was delivered once, and the MTA may send it again."""
    async with open_rig(tmp_path, [A]) as rig:
        gate = trio.Event()
        rig.behave("a.example", held={Stage.END: gate})
        client = await rig.client(protocol)
        await client.command("MAIL FROM:<s@s.example>")
        assert (await client.command("RCPT TO:<x@a.example>")).code == 250
        assert (await client.command("DATA")).code == 354
        await client.conversation.send(MESSAGE + b".\r\n")
        mx = rig.internet.hosts["a.example"].mx
        with trio.fail_after(10):
            while not mx.messages:
                await trio.sleep(0.01)
            client.conversation.reset()
            await trio.sleep(0.05)
            assert not rig.of(Delivered)
            gate.set()
            while not rig.of(SessionClosed):
                await trio.sleep(0.01)
        assert len(mx.messages) == 1
        assert len(rig.of(Delivered)) == 1
        (lost,) = rig.of(FinalReplyLost)
        assert (lost.side, lost.mx) == ("client", "mx.a.example")
        assert lost.id == rig.of(Delivered)[0].id
        assert not rig.of(DeliveryRefused)
        assert rig.is_clean
