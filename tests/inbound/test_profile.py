"""Is the MTA there, what does it offer, and would it relay for strangers?  (DESIGN §6, PXY-09, PXY-10)"""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from smtpguard.events import MtaAlert, MtaState, MtaUnproven
from smtpguard.inbound.profile import judge_probe
from smtpguard.smtp.replies import Reply
from tests.support.front import changed, open_front
from tests.support.mta import OFFER, XCLIENT, Mta

MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"


async def anybody(line: bytes) -> bytes | None:
    """An MTA that relays for whoever comes from our address."""
    return b"250 2.1.5 Ok" if line.upper().startswith(b"RCPT") else None


async def test_an_open_relay_is_not_served(tmp_path: Path) -> None:
    """Nobody is greeted until the MTA refuses the outside recipient; then without a restart."""
    async with open_front(tmp_path, Mta(script=anybody)) as front:
        client = await front.raw()
        assert str(await client.reply()).startswith("421 4.3.0")
        (alert,) = front.of(MtaAlert)
        assert alert.state == "open_relay"
        assert "192.0.2.1" in alert.detail
        assert front.service.watch.is_refused
        front.mta.script = None
        assert await front.service.watch.learn()
        assert (await (await front.client()).send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered


async def test_the_mta_learns_the_client_by_xclient(tmp_path: Path) -> None:
    """PXY-10: only what it lists, ADDR last, each of our sessions in its own client's name; LOGIN never."""
    async with open_front(tmp_path, Mta((*OFFER, XCLIENT)), identity_by="xclient") as front:
        client = await front.client(hello="its.own.name")
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    (heard,) = front.mta.clients
    (line,) = heard.of(b"XCLIENT")
    assert line.endswith(b"ADDR=127.0.0.1")
    assert b"HELO=its.own.name" in line
    assert b"LOGIN" not in line
    assert heard.verbs()[:4] == [b"EHLO", b"XCLIENT", b"EHLO", b"MAIL"]


async def test_a_client_that_says_helo_is_told_too(tmp_path: Path) -> None:
    """SMTP-03: EHLO of our own finds XCLIENT; the MTA then hears HELO, as the client said it."""
    async with open_front(tmp_path, Mta((*OFFER, XCLIENT)), identity_by="xclient") as front:
        client = await front.raw()
        await client.reply()
        assert (await client.command("HELO old.example")).code == 250
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    (heard,) = front.mta.clients
    assert heard.verbs()[:4] == [b"EHLO", b"XCLIENT", b"HELO", b"MAIL"]
    assert b"PROTO=SMTP" in heard.of(b"XCLIENT")[0]


async def test_an_mta_that_refuses_xclient_gets_nothing(tmp_path: Path) -> None:
    """PXY-09: fail-closed, whether it is not offered or not accepted."""
    for mta in (Mta(OFFER), Mta((*OFFER, XCLIENT), replies={b"XCLIENT": b"550 5.7.0 no"})):
        async with open_front(tmp_path, mta, identity_by="xclient") as front:
            client = await front.raw()
            assert str(await client.reply()).startswith("421 4.3.0")
            assert [alert.state for alert in front.of(MtaAlert)] == ["refused"]
        assert front.mta.messages == []
        assert not any(heard.of(b"MAIL") for heard in front.mta.heard)


async def test_the_header_comes_first_toward_the_mta(tmp_path: Path) -> None:
    """PXY-08: PROXY v2, never LOCAL, before anything is said."""
    async with open_front(tmp_path, Mta(proxy=True), identity_by="proxy-v2") as front:
        client = await front.client(tls=True)
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    headers = [heard.proxy for heard in front.mta.heard]
    assert all(header[:13] == b"\r\n\r\n\0\r\nQUIT\n\x21" for header in headers)


async def test_a_reload_to_another_mta_is_probed_first(tmp_path: Path) -> None:
    """DESIGN §6: at start and reload."""
    other = Mta(script=anybody)
    async with trio.open_nursery() as nursery:
        await other.start(nursery)
        async with open_front(tmp_path) as front:
            listener = front.service.listener
            front.service.reload(changed(listener, mta=replace(listener.mta, port=other.port)))
            assert front.service.watch.refusal is not None
            with trio.fail_after(5):
                while front.service.watch.state == "starting":
                    await trio.sleep(0.001)
            client = await front.raw()
            assert str(await client.reply()).startswith("421 4.3.0")
        nursery.cancel_scope.cancel()
    assert [event.state for event in front.of(MtaState)] == ["ready", "starting", "open_relay"]


async def literals(line: bytes) -> bytes | None:
    """An open relay that looks a recipient's domain up before it asks who the client is: example.com has a null MX."""
    if not line.upper().startswith(b"RCPT"):
        return None
    return b"556 5.1.10 null MX" if line.endswith(b"@example.com>") else b"250 2.1.5 Ok"


async def test_an_open_relay_that_knows_of_null_mx(tmp_path: Path) -> None:
    """DESIGN §6: a literal is asked for too, which has no DNS to fail."""
    async with open_front(tmp_path, Mta(script=literals)) as front:
        assert str(await (await front.raw()).reply()).startswith("421 4.3.0")
        assert front.service.watch.state == "open_relay"


@pytest.mark.parametrize(
    ("mail", "recipients", "relays"),
    [
        (250, (250,), True),
        (250, (556, 250), True),
        (250, (450, 250), True),
        (250, (554, 554), False),
        (250, (450, 554), None),
        (250, (554, 451), None),
        (550, (), None),
        (450, (), None),
        (530, (), False),
    ],
)
def test_what_a_probe_proves(mail: int, recipients: tuple[int, ...], relays: bool | None) -> None:
    """DESIGN §6: only a recipient refused for good, or a demand to authenticate, says that strangers may not relay."""
    replies = [Reply.of(code, "", "x") for code in recipients]
    assert judge_probe(Reply.of(mail, "", "x"), replies).relays is relays


async def test_no_clear_answer(tmp_path: Path) -> None:
    """Clients are served, and it is told until the probe is answered; a reload forgets what was known."""
    mta = Mta(replies={b"MAIL": b"450 4.7.1 later"})
    async with open_front(tmp_path, mta) as front:
        watch = front.service.watch
        assert (watch.state, watch.refusal, watch.is_refused) == ("unproven", None, False)
        (event,) = front.of(MtaUnproven)
        assert "450 4.7.1 later" in event.detail
        await front.client()
        assert await watch.learn()
        assert len(front.of(MtaUnproven)) == 1
        mta.replies.clear()
        assert await watch.learn()
        assert watch.state == "ready"
        mta.replies[b"MAIL"] = b"450 4.7.1 later"
        assert await watch.learn()
        assert watch.state == "ready"
    assert front.of(MtaAlert) == []


async def test_an_open_relay_is_not_trusted_for_what_it_does_not_say(tmp_path: Path) -> None:
    """DESIGN §2 law 2: once found, it is one until it refuses a recipient."""
    async with open_front(tmp_path, Mta(script=anybody)) as front:
        front.mta.script = None
        front.mta.replies[b"RCPT"] = b"451 4.3.0 later"
        assert not await front.service.watch.learn()
        assert front.service.watch.state == "open_relay"
        front.mta.replies.clear()
        assert await front.service.watch.learn()
        assert front.service.watch.state == "ready"
