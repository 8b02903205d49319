"""One message, one DANE domain, end to end."""

from pathlib import Path

import trio

from smtpguard.events import Delivered, InternalError
from smtpguard.sandbox.internet import Attack, Publication, Site
from tests.support.rig import MARKER, open_rig

DANE = Site("dane.example", Publication.DANE_EE)


async def test_dane_delivery(tmp_path: Path) -> None:
    async with open_rig(tmp_path, [DANE]) as rig:
        with trio.fail_after(10):
            sent = await rig.send("a@dane.example")
        print(sent)
        for event in rig.events:
            print(event)
        assert not rig.of(InternalError)
        assert sent.is_delivered
        (message,) = rig.internet.hosts["dane.example"].mx.messages
        assert MARKER in message.content
        (delivered,) = rig.of(Delivered)
        assert delivered.auth == "dane"
        assert rig.no_clear_mail("dane.example")


async def test_dane_stripped(tmp_path: Path) -> None:
    async with open_rig(tmp_path, [DANE]) as rig:
        await rig.internet.attack("dane.example", Attack.STRIP_STARTTLS)
        with trio.fail_after(10):
            sent = await rig.send("a@dane.example")
        print(sent)
        assert not rig.of(InternalError)
        assert "451 4.7.4 [tls/no-starttls] mx.dane.example[127.10.1.1]" in str(sent.last_reply)
        assert rig.no_clear_mail("dane.example")
