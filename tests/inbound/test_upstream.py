"""The way to the MTA behind: a unix socket, STARTTLS with and without verification, a name, and nobody there."""

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from OpenSSL import crypto

from smtpguard.events import InternalError, MtaAlert, MtaFailure, MtaState
from smtpguard.inbound.limits import Times
from smtpguard.names import Domain
from smtpguard.tls.context import client_context
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import NOW, Issued, authority, issue
from tests.support.clock import START
from tests.support.front import Front, open_front, write_pair
from tests.support.mta import CUT, OFFER, XCLIENT, Mta

MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"
ROOT = authority("Root")
NAME = Domain("mta.example")
GOOD = issue("mta", ROOT, dns=[NAME])
WITH_TLS = (*OFFER, b"STARTTLS")
NOT_READY = "421 4.3.2 The mail server is not available, try again later"


def server(directory: Path, issued: Issued) -> ssl.SSLContext:
    files = write_pair(directory, "mta", issued)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    return context


def verified(tls: str = "verify") -> dict[str, Any]:
    """The settings that `upstream_tls` makes."""
    roots = RootStore("roots", (crypto.X509.from_cryptography(ROOT.certificate),))
    return {"tls": tls, "tls_name": NAME, "context": client_context(), "roots": roots if tls == "verify" else None}


async def delivered(front: Front) -> bool:
    client = await front.client()
    sent = await client.send("a@a.example", ["b@front.example"], MESSAGE)
    await client.quit()
    return sent.is_delivered


async def refused(front: Front) -> str:
    """What a client hears in place of a greeting."""
    return str(await (await front.raw()).reply())


async def test_a_unix_socket(tmp_path: Path) -> None:
    """As Docker and one-host set-ups have it; XCLIENT goes the same way."""
    mta = Mta((*OFFER, XCLIENT), path=str(tmp_path / "mta.sock"))
    async with open_front(tmp_path, mta, identity_by="xclient") as front:
        assert await delivered(front)
        assert [event.mta for event in front.of(MtaState)] == [f"unix:{mta.path}"]
    assert len(mta.messages) == 1
    assert mta.clients[0].of(b"XCLIENT")[0].endswith(b"ADDR=127.0.0.1")


async def test_a_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    mta = Mta(path=str(tmp_path / "mta.sock"))
    async with open_front(tmp_path, mta, mta_settings={"path": str(tmp_path / "other.sock")}) as front:
        assert await refused(front) == NOT_READY
        (alert,) = front.of(MtaAlert)
    assert (alert.state, alert.step) == ("down", "connect")
    assert alert.mta == f"unix:{tmp_path}/other.sock"


@pytest.mark.parametrize("tls", ["encrypt", "verify"])
async def test_starttls_toward_the_mta(tmp_path: Path, tls: str) -> None:
    """EXT-09: its STARTTLS is ours to use; EHLO again inside, then XCLIENT; nothing of a mail in clear."""
    mta = Mta((*WITH_TLS, XCLIENT), tls=server(tmp_path, GOOD))
    async with open_front(tmp_path, mta, identity_by="xclient", mta_settings=verified(tls)) as front:
        assert await delivered(front)
    assert all(heard.tls for heard in mta.heard)
    (heard,) = mta.clients
    assert heard.verbs()[:6] == [b"EHLO", b"STARTTLS", b"EHLO", b"XCLIENT", b"EHLO", b"MAIL"]


@pytest.mark.parametrize(
    ("issued", "detail"),
    [
        (issue("mta", ROOT, dns=["other.example"]), "the certificate does not name mta.example"),
        (issue("mta", authority("Other"), dns=[NAME]), "unable to get local issuer certificate at depth 0"),
        (issue("mta", ROOT, dns=[NAME], not_before=NOW - timedelta(400), not_after=START - timedelta(1)), "expired"),
    ],
)
async def test_a_wrong_certificate(tmp_path: Path, issued: Issued, detail: str) -> None:
    """Fail-closed: not a word of a client goes there; `encrypt` takes any certificate."""
    mta = Mta(WITH_TLS, tls=server(tmp_path, issued))
    async with open_front(tmp_path, mta, mta_settings=verified()) as front:
        assert await refused(front) == NOT_READY
        (alert,) = front.of(MtaAlert)
        assert (alert.state, alert.step) == ("down", "verify")
        assert detail in alert.detail
    assert not any(heard.of(b"MAIL") for heard in mta.heard)
    async with open_front(tmp_path, Mta(WITH_TLS, tls=mta.tls), mta_settings=verified("encrypt")) as front:
        assert await delivered(front)


async def test_a_certificate_that_becomes_wrong(tmp_path: Path) -> None:
    """A client that was greeted hears it at the command that needs the MTA, and the failure is told with its step."""
    mta = Mta(WITH_TLS, tls=server(tmp_path, GOOD))
    async with open_front(tmp_path, mta, mta_settings=verified()) as front:
        client = await front.client()
        mta.tls = server(tmp_path, issue("mta", ROOT, dns=["other.example"]))
        assert str(await client.command("MAIL FROM:<a@a.example>")) == NOT_READY
        (failure,) = front.of(MtaFailure)
    assert (failure.step, failure.detail) == ("verify", "the certificate does not name mta.example")
    assert front.of(InternalError) == []


@pytest.mark.parametrize("tls", ["encrypt", "verify"])
async def test_an_mta_that_does_not_offer_it(tmp_path: Path, tls: str) -> None:
    """Never in clear instead."""
    mta = Mta(OFFER)
    async with open_front(tmp_path, mta, mta_settings=verified(tls)) as front:
        assert await refused(front) == NOT_READY
        (alert,) = front.of(MtaAlert)
    assert (alert.step, alert.detail) == ("starttls", "STARTTLS is not offered")
    assert not any(heard.of(b"MAIL") for heard in mta.heard)


@pytest.mark.parametrize(
    ("reply", "step"),
    [(b"454 4.7.0 not now", "starttls"), (CUT, "lost")],
)
async def test_starttls_that_fails(tmp_path: Path, reply: bytes, step: str) -> None:
    mta = Mta(WITH_TLS, replies={b"STARTTLS": reply})
    async with open_front(tmp_path, mta, mta_settings=verified()) as front:
        mta.replies[b"STARTTLS"] = reply
        assert await refused(front) == NOT_READY
        (alert,) = front.of(MtaAlert)
    assert alert.step == step
    assert not any(heard.of(b"MAIL") for heard in mta.heard)


@pytest.mark.parametrize(
    ("verb", "reply", "step", "heard"),
    [
        (b"GREETING", b"554 5.7.1 not you", "greeting", "554 5.7.1 not you"),
        (b"GREETING", b"421 4.3.2 busy", "greeting", "421 4.3.2 busy"),
        (b"GREETING", CUT, "lost", NOT_READY),
        (b"GREETING", b"250 hello", "greeting", NOT_READY),
        (b"GREETING", b"hello", "protocol", NOT_READY),
        (b"EHLO", b"421 4.3.2 busy", "ehlo", "421 4.3.2 busy"),
        (b"EHLO", CUT, "lost", NOT_READY),
    ],
)
async def test_what_the_command_hears_that_needs_it(
    tmp_path: Path, verb: bytes, reply: bytes, step: str, heard: str
) -> None:
    """SMTP-03, AF-41: the MTA's own refusal, as it said it; else 421 4.3.2; each told with its step."""
    mta = Mta()
    async with open_front(tmp_path, mta) as front:
        client = await front.client()
        mta.replies[verb] = reply
        assert str(await client.command("MAIL FROM:<a@a.example>")) == heard
        (failure,) = front.of(MtaFailure)
        assert failure.step == step
    assert front.of(InternalError) == []


@pytest.mark.parametrize("refusal", ["550 5.7.1 not you", "421 4.7.0 too many of you"])
async def test_whom_the_mta_refuses_is_no_reason_to_refuse_others(tmp_path: Path, refusal: str) -> None:
    """AF-41 is of an MTA that is down: clients that it wants nothing of must not make everybody else hear 421."""

    async def picky(line: bytes) -> bytes | None:
        return refusal.encode() if b"listed.example" in line else None

    async with open_front(tmp_path, Mta(script=picky)) as front:
        for _ in range(4):
            client = await front.raw()
            assert (await client.reply()).code == 220
            await client.hello("listed.example")
            assert str(await client.command("MAIL FROM:<a@a.example>")) == refusal
            client.conversation.close()
        assert [event.step for event in front.of(MtaFailure)] == ["ehlo"] * 4
        assert front.of(MtaAlert) == []
        assert await delivered(front)


@pytest.mark.parametrize(
    ("refusal", "heard", "step"),
    [
        ("554 5.7.1 <unknown[127.0.0.1]>: Client host rejected", None, "greeting"),
        ("450 4.7.1 <unknown[127.0.0.1]>: Client host rejected", None, "greeting"),
        ("501 5.5.4 Bad HELO syntax", "421 4.3.0 The mail server is misconfigured, try again later", "xclient"),
    ],
)
async def test_nor_whom_it_refuses_once_it_was_told_who_it_is(
    tmp_path: Path, refusal: str, heard: str | None, step: str
) -> None:
    """PXY-09: Postfix with smtpd_delay_reject = no answers XCLIENT with what it would have greeted the client with."""

    async def picky(line: bytes) -> bytes | None:
        return refusal.encode() if line.startswith(b"XCLIENT") and b"HELO=listed.example" in line else None

    async with open_front(tmp_path, Mta((*OFFER, XCLIENT), script=picky), identity_by="xclient") as front:
        for _ in range(4):
            client = await front.client(hello="listed.example")
            assert str(await client.command("MAIL FROM:<a@a.example>")) == (heard or refusal)
            client.conversation.close()
        assert [event.step for event in front.of(MtaFailure)] == [step] * 4
        assert front.of(MtaAlert) == []
        assert await delivered(front)


async def test_a_stranger_whom_the_mta_does_not_greet(tmp_path: Path) -> None:
    """Whoever reads the log learns to whom it was said."""
    mta = Mta((*OFFER, XCLIENT), replies={b"XCLIENT": b"554 5.7.1 Client host rejected"})
    async with open_front(tmp_path, mta, identity_by="xclient") as front:
        assert await refused(front) == NOT_READY
        (alert,) = front.of(MtaAlert)
    assert (alert.state, alert.step) == ("down", "greeting")
    assert alert.detail == "5.7.1 Client host rejected; said to 192.0.2.1, the stranger as whom we ask"


async def test_an_mta_that_has_no_time_for_anybody(tmp_path: Path) -> None:
    """AF-41: three times 421 make us ask, and then nobody is greeted."""
    mta = Mta()
    async with open_front(tmp_path, mta) as front:
        clients = [await front.client() for _ in range(3)]
        mta.replies[b"EHLO"] = b"421 4.3.2 busy"
        for client in clients:
            assert str(await client.command("MAIL FROM:<a@a.example>")) == "421 4.3.2 busy"
        with trio.fail_after(5):
            while not front.of(MtaAlert):
                await trio.sleep(0.002)
        assert await refused(front) == NOT_READY


async def test_an_mta_that_is_silent(tmp_path: Path, autojump_clock: object) -> None:
    """TO-01: the whole of greeting, EHLO, STARTTLS and XCLIENT has one limit."""

    async def never(line: bytes) -> bytes | None:
        if line == b"GREETING" and silent:
            await trio.sleep_forever()
        return None

    silent: list[bool] = []
    async with open_front(tmp_path, Mta(script=never), times=Times(mta_greeting=7.0)) as front:
        client = await front.client()
        silent.append(True)
        began = trio.current_time()
        assert str(await client.command("MAIL FROM:<a@a.example>")) == NOT_READY
        assert 7 <= trio.current_time() - began < 9
        (failure,) = front.of(MtaFailure)
    assert failure.step == "timeout"


async def test_an_mta_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system's resolver, kept for 10 s; the next address where one refuses."""
    mta = Mta()
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]

    async with trio.open_nursery() as nursery:
        await mta.start(nursery)
        monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
        async with open_front(tmp_path, mta, mta_settings={"host": "mta.internal", "address": None}) as front:
            assert await delivered(front)
            assert [event.mta for event in front.of(MtaState)] == [f"mta.internal:{mta.port}"]
        nursery.cancel_scope.cancel()
    assert asked == ["mta.internal"]


async def test_a_name_that_does_not_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    async with trio.open_nursery() as nursery:
        mta = Mta(path=str(tmp_path / "x.sock"))
        await mta.start(nursery)
        settings = {"host": "mta.internal", "path": "", "port": 25}
        async with open_front(tmp_path, mta, mta_settings=settings) as front:
            assert await refused(front) == NOT_READY
            (alert,) = front.of(MtaAlert)
        nursery.cancel_scope.cancel()
    assert (alert.step, alert.detail) == ("resolve", "mta.internal: Name or service not known")
