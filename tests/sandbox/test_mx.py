import ssl

import pytest
import trio
import trio.testing

from smtpguard.sandbox.behaviour import Behaviour, Drop, Handshake, Stage
from smtpguard.sandbox.client import unverifying_context
from smtpguard.sandbox.mx import Mx

CONTENT = b"Subject: hello\r\n\r\n.dot\r\n..two\r\nend\r\n"
SENDER, RECIPIENT = "a@client.example", "b@test.example"


async def test_a_message_in_clear_is_recorded_whole(visit):
    seen = await visit()
    sent = await seen.client.send(SENDER, [RECIPIENT], CONTENT)
    await seen.client.quit()
    assert sent.is_delivered
    [message] = seen.mx.messages
    assert (message.reverse_path, message.recipients) == (SENDER, (RECIPIENT,))
    assert message.content == CONTENT
    assert not message.over_tls
    [session] = seen.mx.sessions
    assert b"Subject: hello" in session.clear
    assert session.inside_tls == b""
    assert session.commands[0] == "EHLO client.example"


async def test_inside_tls_nothing_is_clear_and_the_sni_is_seen(visit):
    seen = await visit()
    assert (await seen.client.start_tls(unverifying_context(), "mx.test.example")).code == 220
    await seen.client.hello()
    assert not seen.client.offers("STARTTLS")
    assert (await seen.client.send(SENDER, [RECIPIENT], CONTENT)).is_delivered
    [session] = seen.mx.sessions
    assert b"MAIL" not in session.clear
    assert CONTENT.split(b"\r\n")[0] in session.inside_tls
    assert (session.sni, session.tls_version) == ("mx.test.example", "TLSv1.3")
    assert seen.mx.messages[0].over_tls


async def test_no_sni_is_none_and_the_certificate_follows_the_sni(nursery, connect, maker):
    usual, special = maker.leaf(None, ["usual.example"]), maker.leaf(None, ["special.example"])
    mx = Mx("usual.example", usual, by_sni={"special.example": special})
    await mx.start(nursery, "127.0.0.1")
    shown = []
    for name in (None, "special.example"):
        client = await connect("127.0.0.1", mx.port)
        await client.reply()
        await client.hello()
        await client.start_tls(unverifying_context(), name)
        shown.append(client.conversation.tls.getpeercert(binary_form=True))
    assert shown == [usual.der, special.der]
    assert [session.sni for session in mx.sessions] == [None, "special.example"]


async def test_pipelined_commands_are_answered_in_order(visit):
    seen = await visit()
    await seen.client.conversation.send(
        b"MAIL FROM:<a@client.example> SIZE=10\r\nRCPT TO:<b@test.example>\r\nRCPT TO:<c@test.example>\r\nDATA\r\n"
    )
    assert [(await seen.client.reply()).code for _ in range(4)] == [250, 250, 250, 354]
    await seen.client.conversation.send(b".\r\nNOOP\r\n")  # a message without content
    assert [(await seen.client.reply()).code for _ in range(2)] == [250, 250]
    [message] = seen.mx.messages
    assert (message.content, message.mail_parameters, len(message.recipients)) == (b"", "SIZE=10", 2)


async def test_starttls_stripped(visit):
    seen = await visit(offers_starttls=False)
    assert not seen.client.offers("STARTTLS")
    assert (await seen.client.command("STARTTLS")).code == 502


@pytest.mark.parametrize("code", [454, 502, 554])
async def test_starttls_refused_leaves_the_session_usable(visit, code):
    seen = await visit(starttls=f"{code} 5.7.0 no")
    assert (await seen.client.start_tls(unverifying_context())).code == code
    assert (await seen.client.command("NOOP")).code == 250


@pytest.mark.parametrize(
    ("handshake", "says"),
    [
        (Handshake.RESET, ConnectionResetError),
        (Handshake.CLOSE, ssl.SSLEOFError),
        (Handshake.GARBAGE, ssl.SSLError),
        (Handshake.ALERT, ssl.SSLError),
    ],
)
async def test_a_handshake_breaks_as_told(visit, handshake, says):
    seen = await visit(handshake=handshake)
    with pytest.raises(trio.BrokenResourceError) as caught:
        await seen.client.start_tls(unverifying_context())
    assert isinstance(caught.value.__cause__, says)
    if handshake is Handshake.ALERT:
        assert "HANDSHAKE_FAILURE" in str(caught.value.__cause__).upper().replace(" ", "_")


async def test_garbage_in_the_segment_of_the_220_breaks_the_handshake_too(visit):
    """It waits in the line buffer; a client that forgets it there would wait for ever."""
    seen = await visit(injected=b"\x00\x01 no TLS here\r\n", handshake=Handshake.HANG)
    with pytest.raises(trio.BrokenResourceError):
        await seen.client.start_tls(unverifying_context())


async def test_a_hanging_handshake_hangs(visit, autojump_clock):
    seen = await visit(handshake=Handshake.HANG)
    with trio.move_on_after(60) as scope:
        await seen.client.start_tls(unverifying_context())
    assert scope.cancelled_caught


async def test_injected_octets_follow_the_220(visit):
    """STLS-04 and CVE-2011-0411 need such a server."""
    seen = await visit(injected=b"250 2.0.0 injected\r\n")
    assert (await seen.client.command("STARTTLS")).code == 220
    assert seen.client.conversation.take_buffered() == b"250 2.0.0 injected\r\n"


async def test_what_a_client_injects_is_recorded(visit):
    seen = await visit()
    await seen.client.conversation.send(b"STARTTLS\r\nMAIL FROM:<x@evil.example>\r\n")
    assert (await seen.client.reply()).code == 220
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert seen.mx.sessions[0].injected_by_client == b"MAIL FROM:<x@evil.example>\r\n"


async def test_an_old_server_speaks_tls_1_1_only(visit):
    old = ssl.TLSVersion.TLSv1_1
    seen = await visit(minimum_tls=old, maximum_tls=old)
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises(trio.BrokenResourceError) as caught,
    ):
        await seen.client.start_tls(unverifying_context())
    assert "VERSION" in str(caught.value.__cause__).upper()


@pytest.mark.parametrize(
    ("behaviour", "mail", "recipient", "data", "end"),
    [
        ({"mail": "451 4.3.0 later"}, 451, None, None, None),
        ({"rcpt": "450 4.2.0 greylisted"}, 250, 450, None, None),
        ({"rcpt_by_address": {RECIPIENT: "550 5.1.1 nobody"}}, 250, 550, None, None),
        ({"data": "250 2.0.0 what"}, 250, 250, 250, None),
        ({"data": "451 4.3.0 no"}, 250, 250, 451, None),
        ({"end": "554 5.7.1 spam"}, 250, 250, 354, 554),
        ({"requires_tls": True}, 530, None, None, None),
    ],
)
async def test_each_stage_can_refuse(visit, behaviour, mail, recipient, data, end):
    seen = await visit(**behaviour)
    sent = await seen.client.send(SENDER, [RECIPIENT], CONTENT)
    assert sent.mail.code == mail
    assert [reply.code for reply in sent.recipients] == ([recipient] if recipient else [])
    assert (sent.data.code if sent.data else None) == data
    assert [reply.code for reply in sent.ends] == ([end] if end else [])
    assert not sent.is_delivered


async def test_greylisting_lets_the_second_attempt_in(visit):
    seen = await visit(greylists=True)
    assert (await seen.client.send(SENDER, [RECIPIENT], CONTENT)).last_reply.code == 450
    assert (await seen.client.send(SENDER, [RECIPIENT], CONTENT)).is_delivered


async def test_a_limit_of_recipients_is_announced_and_kept(visit):
    seen = await visit(max_recipients=1)
    assert "LIMITS RCPTMAX=1" in seen.client.extensions
    sent = await seen.client.send(SENDER, [RECIPIENT, "c@test.example"], CONTENT)
    assert [reply.code for reply in sent.recipients] == [250, 452]
    assert seen.mx.messages[0].recipients == (RECIPIENT,)


@pytest.mark.parametrize(("data", "code"), [(None, 554), ("354 go on", 354)])
async def test_data_after_all_recipients_were_refused(visit, data, code):
    """RFC 2920 §3.1: some servers say 354 even then."""
    seen = await visit(rcpt="550 5.1.1 nobody", data=data)
    await seen.client.command("MAIL FROM:<>")
    await seen.client.command(f"RCPT TO:<{RECIPIENT}>")
    assert (await seen.client.command("DATA")).code == code


@pytest.mark.parametrize("greeting", ["554 5.3.2 no mail here", "521 5.3.2 no mail here"])
async def test_a_refusing_greeting_waits_for_quit(visit, greeting):
    seen = await visit(greet=False, greeting=greeting)
    assert str((await seen.client.reply()).code) == greeting[:3]
    assert (await seen.client.command("EHLO x")).code == 503
    assert (await seen.client.command("QUIT")).code == 221


async def test_replies_may_be_long_or_contradict_themselves(visit):
    banner = (*(f"220-{number} " + "x" * 400 for number in range(50)), "220 {name}")
    seen = await visit(greet=False, greeting=banner, ehlo=("250-mx", "220 odd"))
    assert (await seen.client.reply()).lines[-1] == "mx.test.example"
    await seen.client.conversation.send(b"EHLO x\r\n")
    assert await seen.client.conversation.receive_line() == b"250-mx"
    assert await seen.client.conversation.receive_line() == b"220 odd"


@pytest.mark.parametrize(
    "stage", [Stage.GREETING, Stage.EHLO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.END]
)
@pytest.mark.parametrize("drop", list(Drop))
async def test_drops_at_each_stage(visit, stage, drop):
    seen = await visit(greet=False, drops=frozenset({stage}), drop=drop)

    async def whole_session() -> None:
        await seen.client.reply()
        await seen.client.hello()
        await seen.client.send(SENDER, [RECIPIENT], CONTENT)

    with pytest.raises(trio.BrokenResourceError):
        await whole_session()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert seen.mx.sessions[0].ended
    assert len(seen.mx.messages) == (stage is Stage.END)


async def test_the_final_reply_waits_for_an_event(visit, autojump_clock):
    go = trio.Event()
    seen = await visit(held={Stage.END: go})
    with trio.move_on_after(300) as scope:
        await seen.client.send(SENDER, [RECIPIENT], CONTENT)
    assert scope.cancelled_caught
    assert len(seen.mx.messages) == 1
    go.set()
    assert (await seen.client.reply()).code == 250


async def test_a_server_that_never_reads_the_body_blocks_the_sender(visit, autojump_clock):
    seen = await visit(held={Stage.BODY: trio.Event()}, small_receive_buffer=True)
    with trio.move_on_after(60) as scope:
        await seen.client.send(SENDER, [RECIPIENT], b"x" * 78 + b"\r\n" + b"y" * 16_000_000 + b"\r\n")
    assert scope.cancelled_caught
    assert seen.mx.sessions[0].conversation.octets_received < 1000


async def test_a_slow_reader_takes_its_time(visit, autojump_clock):
    seen = await visit(body_pause_seconds=1.0)
    before = trio.current_time()
    assert (await seen.client.send(SENDER, [RECIPIENT], b"x" * 40_000 + b"\r\n")).is_delivered
    assert trio.current_time() - before >= 9
    assert len(seen.mx.messages[0].content) == 40_002


async def test_stop_refuses_new_connections_and_start_takes_the_port_back(visit, connect, nursery):
    seen = await visit()
    port = seen.mx.port
    await seen.mx.stop()
    with pytest.raises(OSError, match="refused"):
        await connect("127.0.0.1", port)
    assert (await seen.client.command("NOOP")).code == 250
    await seen.mx.start(nursery, "127.0.0.1", port)
    await connect("127.0.0.1", port)


async def test_behaviour_may_change_in_mid_session(visit):
    seen = await visit()
    await seen.client.command("MAIL FROM:<>")
    seen.mx.behaviour = Behaviour(rcpt="451 4.3.0 changed my mind")
    assert (await seen.client.command(f"RCPT TO:<{RECIPIENT}>")).code == 451


async def test_nothing_listens_outside_loopback(credential, nursery):
    with pytest.raises(ValueError, match="127"):
        await Mx("x.example", credential).start(nursery, "0.0.0.0")
