"""Who is at the door, and in which TLS: load balancers in front, certificates by name, implicit TLS, submission."""

import ssl
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from smtpguard.events import (
    CertificateAlert,
    CertificateEvent,
    DeliveryRefused,
    Event,
    InboundTls,
    InternalError,
    LimitHit,
    MessageRelayed,
    SessionClosed,
    SessionOpened,
    Violation,
)
from smtpguard.inbound.limits import Limits
from smtpguard.outbound.intake import INTERNAL
from smtpguard.policy.inbound import InboundRule, InboundRules
from smtpguard.policy.scopes import RecipientDomain
from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.conversation import Lost
from smtpguard.smtp.proxy_header import crc32c
from smtpguard.tls.certificates import ServerCertificates
from tests.support.certificates import CLIENT_AUTH, authority, issue
from tests.support.front import HOST, Front, changed, open_front, write_pair
from tests.support.mta import OFFER, XCLIENT, Mta

MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"
BALANCERS = (ip_network("127.0.0.0/8"),)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FOUR = bytes((192, 0, 2, 79, 198, 51, 100, 1)) + (40025).to_bytes(2, "big") + (25).to_bytes(2, "big")
SIX = ip_address("2001:db8::79").packed + ip_address("2001:db8::1").packed + FOUR[8:]
V1 = b"PROXY TCP4 192.0.2.79 198.51.100.1 40025 25\r\n"


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def v2(body: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


def with_checksum(body: bytes, *, error: int = 0) -> bytes:
    header = v2(body + tlv(3, bytes(4)))
    return header[:-4] + (crc32c(header) ^ error).to_bytes(4, "big")


TLS_TLV = tlv(0x20, b"\x01" + bytes(4) + tlv(0x21, b"TLSv1.3") + tlv(0x23, b"TLS_AES_128_GCM_SHA256"))


async def through(front: Front, header: bytes) -> Client:
    """A client behind a load balancer that sends this header; nothing is read."""
    client = await front.raw()
    await client.conversation.send(header)
    return client


async def closed(front: Front, count: int = 1) -> SessionClosed:
    """The last of so many sessions that ended."""
    with trio.fail_after(5):
        while len(front.of(SessionClosed)) < count:
            await trio.sleep(0.001)
    return front.of(SessionClosed)[-1]


async def nothing_said(client: Client) -> bool:
    """The connection is closed without an octet."""
    with trio.fail_after(5):
        try:
            return await client.conversation.receive() == b""
        except Lost:  # reset, since what it sent was not read
            return True


def trace(front: Front) -> bytes:
    """The Received line of the one message."""
    (message,) = front.mta.messages
    return message.partition(b"\r\nSubject:")[0].replace(b"\r\n", b"")


# -- the PROXY protocol


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (V1, "192.0.2.79"),
        (b"PROXY TCP6 2001:db8::79 2001:db8::1 40025 25\r\n", "2001:db8::79"),
        (b"PROXY TCP6 ::ffff:192.0.2.79 ::ffff:198.51.100.1 40025 25\r\n", "192.0.2.79"),
        (v2(FOUR), "192.0.2.79"),
        (v2(SIX, family=0x21), "2001:db8::79"),
        (v2(FOUR + tlv(4, bytes(2000)) + tlv(0xEE, b"?")), "192.0.2.79"),
        (with_checksum(FOUR), "192.0.2.79"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "127.0.0.1"),
        (v2(b"", command=0x20, family=0x00), "127.0.0.1"),
        (v2(FOUR, command=0x20), "127.0.0.1"),
    ],
)
async def test_the_client_behind_the_header(tmp_path: Path, header: bytes, address: str) -> None:
    """PXY-01, PXY-03..07, PXY-11: XCLIENT, trace line and events name one client; LOCAL and UNKNOWN the peer itself."""
    mta = Mta((*OFFER, XCLIENT))
    async with open_front(tmp_path, mta, identity_by="xclient", proxy_from=BALANCERS) as front:
        client = await through(front, header)
        assert (await client.reply()).code == 220
        await client.hello("its.own.name")
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
        await client.quit()
        end = await closed(front)
    assert end.peer == address
    (event,) = front.of(MessageRelayed)
    assert event.client == address
    (heard,) = front.mta.clients
    shown = f"IPV6:{address}" if ":" in address else address
    assert heard.of(b"XCLIENT")[0].endswith(f"ADDR={shown}".encode())
    assert f"from its.own.name ([{shown.replace('IPV6', 'IPv6')}])".encode() in trace(front)
    (opened,) = front.of(SessionOpened)
    assert opened.peer.startswith("127.0.0.1:")  # who connected


async def test_a_client_without_an_address(tmp_path: Path) -> None:
    """PXY-11: behind a balancer's unix socket; it must not pass for the balancer."""
    mta = Mta((*OFFER, XCLIENT))
    async with open_front(tmp_path, mta, identity_by="xclient", proxy_from=BALANCERS) as front:
        client = await through(front, v2(bytes(216), family=0x31))
        assert (await client.reply()).code == 220
        await client.hello()
        await client.send("a@a.example", ["b@front.example"], MESSAGE)
    assert not any(b"127.0.0.1" in line for heard in front.mta.clients for line in heard.lines)
    assert not any(b"127.0.0.1" in message for message in front.mta.messages)


async def test_only_listed_peers(tmp_path: Path) -> None:
    """PXY-01: another is closed unread, with or without a header."""
    async with open_front(tmp_path, proxy_from=(ip_network("192.0.2.0/24"), ip_network("::1/128"))) as front:
        for count, octets in enumerate((V1, b"EHLO x\r\n", b""), 1):
            assert await nothing_said(await through(front, octets))
            assert (await closed(front, count)).cause == "refused"
    assert [event.kind for event in front.of(Violation)] == ["proxy_peer"] * 3


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client.example\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PROXY TCP4 192.0.2.79 198.51.100.1 40025 25\n",
        b"PROXY TCP4 192.0.2.79 198.51.100.1 040025 25\r\n",
        b"PROXY TCP4 192.0.2.79  198.51.100.1 40025 25\r\n",
        b"PROXY TCP4 192.0.2.079 198.51.100.1 40025 25\r\n",
        b"PROXY TCP4 192.0.2.79 198.51.100.1 40025 65536\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
        b"PROXY UDP4 192.0.2.79 198.51.100.1 40025 25\r\n",
        b"PROXY UNKNOWN " + b"x" * (108 - 16) + b"\r\n",
        b"PROXY " + b"x" * 200,
        v2(FOUR, command=0x11),
        v2(FOUR, command=0x22),
        v2(FOUR, family=0x12),
        v2(FOUR[:-1]),
        v2(FOUR + tlv(4, b"x")[:-1]),
        with_checksum(FOUR, error=1),
        v2(FOUR + bytes(40000)),
    ],
)
async def test_what_is_no_header(tmp_path: Path, octets: bytes) -> None:
    """PXY-01, PXY-03, PXY-05..07: closed, nothing said, nobody told anything but that."""
    async with open_front(tmp_path, proxy_from=BALANCERS) as front:
        assert await nothing_said(await through(front, octets))
        assert (await closed(front)).cause == "refused"
    assert [event.kind for event in front.of(Violation)] == ["proxy_header"]
    assert front.mta.clients == []


@pytest.mark.parametrize("header", [V1, v2(SIX + TLS_TLV, family=0x21)])
async def test_no_word_before_the_whole_header(tmp_path: Path, header: bytes) -> None:
    """PXY-02: byte by byte; the greeting comes with the last one, and what follows it is the client's."""
    async with open_front(tmp_path, proxy_from=BALANCERS) as front:
        client = await front.raw()
        for octet in header[:-1]:
            await client.conversation.send(bytes((octet,)))
            await trio.testing.wait_all_tasks_blocked()
            assert client.conversation.octets_received == 0
            assert front.of(SessionClosed) == []
        await client.conversation.send(header[-1:])
        assert (await client.reply()).code == 220
        await client.hello()
        assert (await client.command("QUIT")).code == 221


@pytest.mark.parametrize("octets", [b"", V1[:20], v2(FOUR)[:14]])
async def test_a_header_that_does_not_come(tmp_path: Path, octets: bytes, autojump_clock: object) -> None:
    """PXY-02: five seconds, and no word."""
    async with open_front(tmp_path, proxy_from=BALANCERS) as front:
        began = trio.current_time()
        client = await through(front, octets)
        with trio.fail_after(60):
            assert await client.conversation.receive() == b""
        assert 5 <= trio.current_time() - began < 9
        assert (await closed(front)).cause == "idle"
    assert front.mta.clients == []


async def test_a_header_cut_short(tmp_path: Path) -> None:
    """PXY-02."""
    async with open_front(tmp_path, proxy_from=BALANCERS) as front:
        client = await through(front, V1[:20])
        client.conversation.close()
        assert (await closed(front)).cause == "lost"


async def test_a_header_where_none_is_parsed(tmp_path: Path) -> None:
    """PXY-01: to a listener without `proxy_from` it is a client that talks too early, and nobody else."""
    async with open_front(tmp_path) as front:
        client = await front.raw()
        await client.conversation.send(V1 + b"EHLO x\r\n")
        replies = [await client.reply() for _ in range(2)]
        assert replies[0].code == 220
        assert replies[1].code in (500, 554)
    assert not any("192.0.2.79" in str(event) for event in front.events)


@pytest.mark.parametrize("glued", [False, True])
async def test_header_then_implicit_tls(tmp_path: Path, glued: bool) -> None:
    """PXY-02 with RFC 8314 §3: the ClientHello may come in the header's segment."""
    async with open_front(tmp_path, tls="implicit", proxy_from=BALANCERS) as front:
        client = await front.raw()
        if glued:
            first = [V1]
            stream = client.conversation._stream
            original = stream.send_all

            async def send_all(octets: bytes) -> None:
                await original((first.pop() if first else b"") + octets)

            stream.send_all = send_all  # type: ignore[method-assign, assignment]
        else:
            await client.conversation.send(V1)
        await client.conversation.start_tls(unverifying_context(), server_side=False, server_name=HOST)
        assert (await client.reply()).code == 220
        await client.hello()
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    assert b"([192.0.2.79])" in trace(front)
    assert b"with ESMTPS" in trace(front)


async def test_tls_that_the_balancer_ended(tmp_path: Path) -> None:
    """STLS-15: it counts for rules, and is in the trace line; without the TLV nothing is assumed."""
    rules = InboundRules((InboundRule(RecipientDomain("secret.example")),))
    settings = {"tls": "none", "certificates": None, "proxy_from": BALANCERS, "rules": rules}
    async with open_front(tmp_path, **settings) as front:  # type: ignore[arg-type]
        client = await through(front, v2(FOUR + TLS_TLV))
        assert (await client.reply()).code == 220
        await client.hello()
        assert not client.offers("STARTTLS")
        assert (await client.send("a@a.example", ["x@secret.example"], MESSAGE)).is_delivered
        client = await through(front, v2(FOUR))
        await client.reply()
        await client.hello()
        sent = await client.send("a@a.example", ["x@secret.example"], MESSAGE)
        assert str(sent.last_reply).startswith("530 5.7.0 [inbound/tls-required]")
    assert b"with ESMTPS" in trace(front)
    assert len(front.of(DeliveryRefused)) == 1


async def test_limits_count_clients_not_balancers(tmp_path: Path) -> None:
    """AF-50, OUT-21."""
    async with open_front(tmp_path, proxy_from=BALANCERS, limits=Limits(sessions_per_client=1)) as front:
        replies = []
        for number in (79, 80, 79):
            client = await through(front, V1.replace(b".79", b".%d" % number))
            replies.append((await client.reply()).code)
    assert replies == [220, 220, 421]
    (hit,) = front.of(LimitHit)
    assert (hit.limit, hit.client) == ("sessions_per_client", "192.0.2.79")


# -- certificates by name


def shown(client: Client) -> list[str]:
    """The DNS names of the certificate that the client sees."""
    assert client.conversation.tls is not None
    der = client.conversation.tls.getpeercert(binary_form=True)
    assert der is not None
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.DNSName)


def context_of(version: ssl.TLSVersion) -> ssl.SSLContext:
    context = unverifying_context()
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_the_certificate_that_is_asked_for(tmp_path: Path, version: ssl.TLSVersion, tls: str) -> None:
    """DANE-43: exact, then a wildcard, else the first; nobody is turned away for a name, or for none."""
    names = (HOST, "two.example", "wild.example")
    async with open_front(tmp_path, names=names, tls=tls) as front:
        certificates = front.service.certificates
        assert certificates is not None
        wild = write_pair(tmp_path, "wild", issue("wild", authority(), dns=["*.wild.example"]))
        files = [one.files for one in certificates.certificates]
        front.service.certificates = ServerCertificates.load([*files, wild], front.clock.now())
        for asked, expected in (
            (HOST, HOST),
            ("two.example", "two.example"),
            ("TWO.Example", "two.example"),
            ("wild.example", "wild.example"),
            ("a.wild.example", "*.wild.example"),
            ("a.b.wild.example", HOST),
            ("unknown.example", HOST),
            (None, HOST),
        ):
            client = await front.raw()
            if tls == "starttls":
                await client.reply()
                await client.hello()
                await client.start_tls(context_of(version), asked)
            else:
                await client.conversation.start_tls(context_of(version), server_side=False, server_name=asked)
                assert (await client.reply()).code == 220
            await client.hello()
            assert shown(client) == [expected]
            assert (await client.command("QUIT")).code == 221
    assert [event.sni for event in front.of(InboundTls)] == [
        HOST, "two.example", "two.example", "wild.example", "a.wild.example", "a.b.wild.example", "unknown.example", "",
    ]  # fmt: skip


@pytest.mark.parametrize("cut", [1, 5, 43, 60])
async def test_a_client_hello_in_pieces(tmp_path: Path, cut: int) -> None:
    """DANE-43: the name is waited for, wherever TCP cuts."""
    async with open_front(tmp_path, names=(HOST, "two.example")) as front:
        client = await front.client()
        assert (await client.command("STARTTLS")).code == 220
        stream = client.conversation._stream
        original = stream.send_all

        async def send_all(octets: bytes) -> None:
            await original(octets[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await original(octets[cut:])

        stream.send_all = send_all  # type: ignore[method-assign, assignment]
        await client.conversation.start_tls(unverifying_context(), server_side=False, server_name="two.example")
        await client.hello()
        assert shown(client) == ["two.example"]


# -- implicit TLS and submission


async def implicit(front: Front, context: ssl.SSLContext | None = None) -> Client:
    """Greeted inside TLS, EHLO said."""
    client = await front.raw()
    await client.conversation.start_tls(context or unverifying_context(), server_side=False, server_name=HOST)
    assert (await client.reply()).code == 220
    await client.hello()
    return client


async def test_implicit_tls(tmp_path: Path) -> None:
    """SUB-01, STLS-06: TLS from the first octet, and no STARTTLS inside."""
    async with open_front(tmp_path, Mta((*OFFER, b"AUTH PLAIN")), tls="implicit", submission=True) as front:
        client = await implicit(front)
        assert client.conversation.received_clear == b""
        assert not client.offers("STARTTLS")
        assert client.offers("AUTH")
        assert (await client.command("STARTTLS")).code == 503
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
        await client.quit()
        assert (await closed(front)).cause == "quit"
    assert b"with ESMTPS" in trace(front)


async def test_clear_text_on_the_port_of_implicit_tls(tmp_path: Path) -> None:
    """SUB-01: closed; what is heard is no SMTP, at most an alert."""
    async with open_front(tmp_path, tls="implicit") as front:
        client = await front.raw()
        await client.conversation.send(b"EHLO client.example\r\n")
        heard = b""
        with trio.fail_after(5):
            try:
                while octets := await client.conversation.receive():
                    heard += octets
            except Lost:
                pass
        assert heard == b"" or heard[:1] == b"\x15"  # a TLS alert
        assert (await closed(front)).cause == "handshake"
    (failed,) = front.of(InboundTls)
    assert failed.cause


@pytest.mark.parametrize("state", ["down", "full", "drain"])
async def test_nobody_is_turned_away_in_clear_there(tmp_path: Path, state: str) -> None:
    """SUB-01, OUT-20: a 421 is said inside TLS, or not at all."""
    mta = Mta(replies={b"GREETING": b"421 4.3.2 down"}) if state == "down" else Mta()
    limits = Limits(sessions=1) if state == "full" else Limits()
    async with open_front(tmp_path, mta, tls="implicit", limits=limits) as front, trio.open_nursery() as nursery:
        client = await front.raw()
        if state == "down":
            await client.conversation.start_tls(unverifying_context(), server_side=False)
            assert str(await client.reply()).startswith("421 4.3.2")
        elif state == "full":
            assert await nothing_said(await front.raw())
        else:
            await trio.testing.wait_all_tasks_blocked()  # its session has begun
            nursery.start_soon(front.sessions.drain, 0.0)
            assert await nothing_said(client)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("tls", "said"), [("starttls", b"220 2.0.0 ready to start TLS\r\n"), ("implicit", b"")])
async def test_a_bug_says_nothing_in_clear_where_tls_is_awaited(
    tmp_path: Path, tls: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SUB-01, STLS-09, OUT-27: neither before the handshake of 465 nor behind a 220 to STARTTLS."""

    async def buggy(*_args: object, **_kwargs: object) -> None:
        raise KeyError("what")

    monkeypatch.setattr("smtpguard.inbound.session.shake_hands", buggy)
    async with open_front(tmp_path, tls=tls) as front:
        client = await front.client() if tls == "starttls" else await front.raw()
        if tls == "starttls":
            await client.conversation.send(b"STARTTLS\r\n")
        heard = b""
        with trio.fail_after(5):
            while octets := await client.conversation.receive():
                heard += octets
        assert heard == said
        end = await closed(front)
        assert [(bug.session, end.cause) for bug in front.of(InternalError)] == [(end.session, "error")]


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
async def test_a_bug_is_owned_up_to_where_the_client_listens(
    tmp_path: Path, tls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUT-27: in clear before STARTTLS, and inside TLS."""

    def buggy(*_args: object) -> None:
        raise KeyError("what")

    monkeypatch.setattr("smtpguard.inbound.session.Relay", buggy)
    async with open_front(tmp_path, tls=tls) as front:
        client = await front.raw()
        if tls == "implicit":
            await client.conversation.start_tls(unverifying_context(), server_side=False, server_name=HOST)
        assert str(await client.reply()) == str(INTERNAL)


async def test_submission_is_for_tls_only(tmp_path: Path) -> None:
    """SUB-01, SUB-02: STARTTLS is offered on 587; then everything is served, and AUTH offered."""
    mta = Mta((*OFFER, b"AUTH PLAIN"), replies={b"AUTH": b"235 2.7.0 Ok"})
    async with open_front(tmp_path, mta, submission=True) as front:
        client = await front.client()
        assert client.offers("STARTTLS")
        assert not client.offers("AUTH")
        assert str(await client.command("MAIL FROM:<a@a.example>")).startswith("530 5.7.0")
        client = await front.client(tls=True)
        assert client.offers("AUTH")
        assert (await client.command("AUTH PLAIN AGEAYg==")).code == 235
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    assert b"with ESMTPSA" in trace(front)


async def test_the_cipher_is_told(tmp_path: Path) -> None:
    """SUB-03: with the handshake and with the message."""
    async with open_front(tmp_path, tls="implicit", submission=True) as front:
        client = await implicit(front, context_of(ssl.TLSVersion.TLSv1_2))
        await client.send("a@a.example", ["b@front.example"], MESSAGE)
    (tls,) = front.of(InboundTls)
    (message,) = front.of(MessageRelayed)
    assert tls.tls_version == message.tls_version == "1.2"
    assert tls.cipher == message.cipher
    assert "GCM" in tls.cipher or "CHACHA20" in tls.cipher


async def test_tls_below_1_2_is_refused(tmp_path: Path) -> None:
    """SUB-03: by an alert; and STLS-09: not even QUIT is heard in clear after it."""
    async with open_front(tmp_path, submission=True) as front:
        client = await front.client()
        assert (await client.command("STARTTLS")).code == 220
        hello = bytes.fromhex("16030100310100002d0302") + bytes(32) + bytes.fromhex("000006c013002f000a0100")
        await client.conversation.send(hello)
        heard = await client.conversation.receive()
        assert heard[:1] == b"\x15"
        assert (await closed(front)).cause == "handshake"
    (failed,) = front.of(InboundTls)
    assert failed.cause


async def test_no_certificate_is_asked_for(tmp_path: Path) -> None:
    """SUB-04: a client that has one does not get to show it."""
    pair = write_pair(tmp_path, "client", issue("client", authority(), purposes=[CLIENT_AUTH]))
    context = unverifying_context()
    context.load_cert_chain(pair.certificate, pair.key)
    async with open_front(tmp_path, tls="implicit", submission=True) as front:
        client = await implicit(front, context)
        await client.command("NOOP")
    (tls,) = front.of(InboundTls)
    assert tls.certificate == ""


# -- what can be offered


async def test_starttls_is_offered_only_where_it_can_be_done(tmp_path: Path) -> None:
    """STLS-01: without a certificate it is not."""
    async with open_front(tmp_path, tls="none", certificates=None) as front:
        client = await front.client()
        assert not client.offers("STARTTLS")
        assert (await client.command("STARTTLS")).code == 502
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
    assert front.of(CertificateEvent) == []


async def test_too_many_handshakes_at_once(tmp_path: Path) -> None:
    """STLS-03: 454, and the session goes on in clear; later it is there again."""
    async with open_front(tmp_path, limits=Limits(handshakes=1)) as front:
        stalled, client = await front.client(), await front.client()
        assert (await stalled.command("STARTTLS")).code == 220
        await trio.testing.wait_all_tasks_blocked()
        assert str(await client.command("NOOP")).startswith("250")
        assert str(await client.command("STARTTLS")).startswith("454 4.7.0")
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
        stalled.conversation.reset()
        await closed(front)
        await client.command("NOOP")
        assert (await client.start_tls(unverifying_context())).code == 220


# -- changed certificates


async def test_a_changed_pair_is_taken_over_while_sessions_run(tmp_path: Path) -> None:
    """SUB-05: those that stand are not touched, new ones see the new certificate, and it is told."""
    async with open_front(tmp_path) as front:
        standing = await front.client(tls=True)
        assert shown(standing) == [HOST]
        front.service.look_at_certificates()
        write_pair(tmp_path, HOST, issue("new", authority(), dns=["new.example"]))
        assert shown(await front.client(tls=True)) == [HOST]  # nobody has looked yet
        front.service.look_at_certificates()
        assert shown(await front.client(tls=True)) == ["new.example"]
        assert (await standing.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
        front.service.look_at_certificates()
    assert [(event.event, event.names) for event in certificate_events(front)] == [
        ("loaded", (HOST,)), ("reloaded", ("new.example",)),
    ]  # fmt: skip


async def test_a_reload_that_takes_tls_away_is_for_new_sessions(tmp_path: Path) -> None:
    """A session keeps what it began with: whoever was offered STARTTLS may use it."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        front.service.reload(changed(front.service.listener, tls="none", certificates=None))
        assert (await client.start_tls(unverifying_context(), HOST)).code == 220
        await client.hello()
        assert not (await front.client()).offers("STARTTLS")
    assert front.of(InternalError) == []


@pytest.mark.parametrize("bad", ["certificate", "key", "missing"])
async def test_a_bad_pair_keeps_the_old_one(tmp_path: Path, bad: str) -> None:
    """SUB-05: told once, with the file; served as before until it is mended."""
    async with open_front(tmp_path) as front:
        certificates = front.service.certificates
        assert certificates is not None
        files = certificates.certificates[0].files
        match bad:
            case "certificate":
                files.certificate.write_text("half a certif")
            case "key":
                files.key.write_bytes(issue("x", authority()).key_pem)
            case _:
                files.certificate.unlink()
        for _ in range(3):
            front.service.look_at_certificates()
        client = await front.client(tls=True)
        assert shown(client) == [HOST]
        assert (await client.send("a@a.example", ["b@front.example"], MESSAGE)).is_delivered
        (alert,) = [event for event in front.of(CertificateAlert) if event.event == "failed"]
        assert (alert.listener, str(tmp_path) in alert.detail) == ("mx", True)
        write_pair(tmp_path, HOST, issue("new", authority(), dns=["new.example"]))
        front.service.look_at_certificates()
        assert shown(await front.client(tls=True)) == ["new.example"]
    assert [event.event for event in certificate_events(front)] == ["loaded", "failed", "reloaded"]


async def test_one_of_two_is_bad(tmp_path: Path) -> None:
    """SUB-05: the other is taken over."""
    async with open_front(tmp_path, names=(HOST, "two.example")) as front:
        write_pair(tmp_path, HOST, issue("new", authority(), dns=[HOST, "new.example"]))
        (tmp_path / "two.example.pem").write_text("")
        front.service.look_at_certificates()
        client = await front.client()
        await client.start_tls(unverifying_context(), "new.example")
        assert shown(client) == [HOST, "new.example"]
        client = await front.client()
        await client.start_tls(unverifying_context(), "two.example")
        assert shown(client) == ["two.example"]
    told = [(event.event, event.names) for event in certificate_events(front)]
    assert told[2:] == [("failed", ()), ("reloaded", (HOST, "new.example"))]


async def test_changes_are_looked_for_each_minute(tmp_path: Path, autojump_clock: object) -> None:
    """SUB-05: certbot and Kubernetes tell nobody."""
    async with open_front(tmp_path) as front:
        write_pair(tmp_path, HOST, issue("new", authority(), dns=["new.example"]))
        await trio.sleep(67)
        assert shown(await front.client(tls=True)) == ["new.example"]


async def test_ticket_keys_are_replaced(tmp_path: Path) -> None:
    """TLS-08: a week after they were made, without a change of the files, and without an event."""
    async with open_front(tmp_path) as front:
        certificates = front.service.certificates
        assert certificates is not None
        front.service.look_at_certificates()
        assert front.service.certificates is certificates
        files = [one.files for one in certificates.certificates]
        front.service.certificates = ServerCertificates.load(files, front.clock.now() - timedelta(days=8))
        front.service.look_at_certificates()
        assert front.service.certificates.made >= certificates.made
        assert shown(await front.client(tls=True)) == [HOST]
    assert [event.event for event in certificate_events(front)] == ["loaded"]


def certificate_events(front: Front) -> list[CertificateEvent]:
    """What was told of the files, but for warnings."""
    found: list[Event] = [event for event in front.events if isinstance(event, CertificateEvent)]
    return [event for event in found if isinstance(event, CertificateEvent) and event.event not in ("warning", "tlsa")]
