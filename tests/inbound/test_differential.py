"""Does a client hear the same from the MTA through us as from the MTA itself, and does the same mail arrive?

A random pipelined client talks to the scripted MTA twice: directly, and through smtpguard.  (INV-06..09, SMTP-06,
EXT-07)
"""

from collections.abc import Sequence
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtpguard.sandbox.client import Client
from tests.support.front import open_front
from tests.support.mta import OFFER, Mta

REPLIES = {
    b"MAIL FROM:<refused@a.example>": b"550 5.7.1 no mail from you\nsecond line",
    b"MAIL FROM:<later@a.example>": b"451 4.7.1 later",
    b"RCPT TO:<nobody@front.example>": b"550 5.1.1 no such user",
    b"RCPT TO:<full@front.example>": b"452 4.2.2 full",
    b"RCPT TO:<moved@front.example>": b"251 2.1.5 will forward",
}
COMMANDS = (
    b"MAIL FROM:<a@a.example>", b"MAIL FROM:<>", b"MAIL FROM:<b@a.example> SIZE=100 BODY=8BITMIME", *REPLIES,
    b"RCPT TO:<one@front.example>", b"RCPT TO:<two@front.example> NOTIFY=NEVER", b"RCPT TO:<postmaster>",
    b"NOOP", b"RSET", b"VRFY one", b"EHLO client.example",
)  # fmt: skip
BODIES = (
    b"", b"Subject: x\r\n\r\nhello\r\n", b"..stuffed\r\n", b"a\r\n..\r\n", b"x" * 300 + b"\r\n",
    b"8 bit \xff\x00\x80\r\n", b"MAIL FROM:<smuggled@a.example>\r\nDATA\r\n",
)  # fmt: skip

Step = bytes | tuple[str, bytes, bool]

steps = st.lists(
    st.one_of(
        st.sampled_from(COMMANDS),
        st.tuples(st.just("DATA"), st.sampled_from(BODIES), st.just(True)),
        st.tuples(st.just("BDAT"), st.sampled_from(BODIES), st.booleans()),
    ),
    max_size=14,
)
PREFIX = (b"MAIL FROM:<a@a.example>", b"RCPT TO:<one@front.example>")


async def answer(line: bytes) -> bytes | None:
    return REPLIES.get(line)


async def talk(client: Client, script: Sequence[Step], cut: int) -> list[str]:
    """Pipelined as far as may be; octets are written `cut` at a time."""
    heard: list[str] = []
    out, owed = b"", 0

    async def flush() -> None:
        nonlocal out, owed
        for at in range(0, len(out), cut):
            await client.conversation.send(out[at : at + cut])
        for _ in range(owed):
            reply = await client.reply()
            heard.append(f"{reply.code} {reply.lines[0] if len(reply.lines) < 4 else ''}")
        out, owed = b"", 0

    for step in script:
        if isinstance(step, bytes):
            out, owed = out + step + b"\r\n", owed + 1
            if step.startswith((b"EHLO", b"VRFY", b"NOOP")):
                await flush()
        elif step[0] == "DATA":
            out, owed = out + b"DATA\r\n", owed + 1
            await flush()
            if heard[-1].startswith("354"):
                heard[-1] = "354"
                out, owed = step[1] + b".\r\n", 1
        else:
            _, body, last = step
            out, owed = out + b"BDAT %d%s\r\n%s" % (len(body), b" LAST" if last else b"", body), owed + 1
    await flush()
    return heard


def own(reply: str) -> str:
    """Where we answer ourselves the words are our own, and out of order is 503 or 554 (RFC 5321 §4.1.4, 2920 §3.2)."""
    if reply[:3] in ("503", "554"):
        return "out of order"
    return reply[:3] if reply[:3] in ("250", "252", "354") else reply


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=steps, cut=st.sampled_from([1, 7, 1000]), pipelining=st.booleans(), started=st.booleans())
def test_same_replies_and_same_mail(
    tmp_path: Path, script: list[Step], cut: int, pipelining: bool, started: bool
) -> None:
    """INV-06, INV-07, INV-08, INV-09."""
    script = [b"EHLO client.example", *(PREFIX if started else ()), *script]

    async def both() -> None:
        offer = tuple(word for word in (*OFFER, b"CHUNKING") if pipelining or word != b"PIPELINING")
        direct = Mta(offer, script=answer)
        async with trio.open_nursery() as nursery:
            await direct.start(nursery)
            client = await Client.connect("127.0.0.1", direct.port)
            await client.reply()
            expected = await talk(client, script, cut)
            await client.quit()
            nursery.cancel_scope.cancel()
        async with open_front(tmp_path, Mta(offer, script=answer), received=False) as front:
            client = await front.client()
            heard = await talk(client, script, cut)
            await client.quit()
        assert [own(reply) for reply in heard] == [own(reply) for reply in expected]
        assert front.mta.messages == direct.messages
        assert not any("InternalError" in type(event).__name__ for event in front.events)

    trio.run(both)
