"""BDAT over sockets: octets are counted, never searched, and a chunk that fails is read to its end.  (EXT-07)"""

from pathlib import Path

import pytest
import trio
import trio.testing

from smtpguard.events import InternalError, MessageRelayed, SessionClosed, Violation
from smtpguard.inbound.limits import Limits
from smtpguard.sandbox.client import Client
from tests.support.front import Front, open_front
from tests.support.mta import CUT, OFFER, Mta

CHUNKING = (*OFFER, b"CHUNKING")
LOCK_STEP = tuple(word for word in CHUNKING if word != b"PIPELINING")
BEGIN = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@front.example>\r\n"


def bdat(content: bytes, *, last: bool = False) -> bytes:
    return b"BDAT %d%s\r\n%s" % (len(content), b" LAST" if last else b"", content)


async def heard(client: Client, count: int) -> list[str]:
    """The next replies."""
    with trio.fail_after(5):
        return [str(await client.reply()) for _ in range(count)]


async def asked(client: Client, octets: bytes, count: int) -> list[int]:
    """The codes of the replies to what is sent at once."""
    await client.conversation.send(octets)
    return [int(reply[:3]) for reply in await heard(client, count)]


def sound(front: Front) -> bool:
    """No bug was met."""
    return front.of(InternalError) == []


async def closed(front: Front) -> SessionClosed:
    with trio.fail_after(5):
        while not front.of(SessionClosed):
            await trio.sleep(0.001)
    return front.of(SessionClosed)[-1]


async def test_a_message_in_chunks_below_one_trace_line(tmp_path: Path) -> None:
    """EXT-07: 250 for each; the trace line goes with the first, and is counted."""
    async with open_front(tmp_path, Mta(CHUNKING)) as front:
        client = await front.client()
        assert client.offers("CHUNKING")
        octets = BEGIN + bdat(b"Subject: x\r\n") + bdat(b"\r\nbody\r\n") + bdat(b"end\r\n", last=True)
        assert await asked(client, octets, 5) == [250] * 5
        await client.quit()
    (message,) = front.mta.messages
    received, _, rest = message.partition(b"\r\nSubject:")
    assert received.startswith(b"Received: from client.example")
    assert rest == b" x\r\n\r\nbody\r\nend\r\n"
    (event,) = front.of(MessageRelayed)
    assert (event.octets, event.recipients) == (25, 1)
    assert [line.split()[2:] for line in front.mta.clients[0].of(b"BDAT")] == [[], [], [b"LAST"]]
    assert sound(front)


@pytest.mark.parametrize("cut", [1, 2, 7, 10, 11, 12, 13, 50])
@pytest.mark.parametrize("offer", [CHUNKING, LOCK_STEP])
async def test_however_it_is_cut(tmp_path: Path, cut: int, offer: tuple[bytes, ...]) -> None:
    """EXT-07: odd offsets; dots, ends of data and commands inside a chunk are content."""
    content = b".\r\n\r\n.\r\nBDAT 5\r\nMAIL FROM:<x@x.example>\r\nQUIT\r\n..\n\r\0\xff"
    octets = BEGIN + bdat(content[:20]) + bdat(content[20:], last=True) + b"NOOP\r\n"
    async with open_front(tmp_path, Mta(offer), received=False) as front:
        client = await front.client()
        for at in range(0, len(octets), cut):
            await client.conversation.send(octets[at : at + cut])
            await trio.testing.wait_all_tasks_blocked()
        assert [reply[:3] for reply in await heard(client, 5)] == ["250"] * 5
        await client.quit()
    assert front.mta.messages == [content]
    assert sound(front)


@pytest.mark.parametrize("content", [b"", b"Subject: x\r\n\r\n"])
async def test_last_zero(tmp_path: Path, content: bytes) -> None:
    """RFC 3030 §2: `BDAT 0 LAST` ends the message; alone it is an empty one."""
    octets = BEGIN + (bdat(content) if content else b"") + b"BDAT 0 LAST\r\n"
    async with open_front(tmp_path, Mta(CHUNKING), received=False) as front:
        client = await front.client()
        assert set(await asked(client, octets, octets.count(b"\r\nBDAT") + 2)) == {250}
        assert (await client.command("RSET")).code == 250
        await client.quit()
    assert front.mta.messages == [content]


async def test_two_messages_and_data_after_chunks(tmp_path: Path) -> None:
    """EXT-07: after LAST the next transaction is free to use either."""
    async with open_front(tmp_path, Mta(CHUNKING), received=False) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"one\r\n", last=True), 3) == [250] * 3
        assert await asked(client, BEGIN + b"DATA\r\n", 3) == [250, 250, 354]
        assert await asked(client, b"two\r\n.\r\n", 1) == [250]
        assert await asked(client, BEGIN + bdat(b"three\r\n", last=True), 3) == [250] * 3
    assert front.mta.messages == [b"one\r\n", b"two\r\n", b"three\r\n"]


@pytest.mark.parametrize("offer", [CHUNKING, LOCK_STEP])
async def test_they_do_not_mix(tmp_path: Path, offer: tuple[bytes, ...]) -> None:
    """EXT-07: DATA after a chunk hears 503, and the chunks go on."""
    async with open_front(tmp_path, Mta(offer), received=False) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"one\r\n"), 3) == [250] * 3
        assert await asked(client, b"DATA\r\n", 1) == [503]
        assert await asked(client, bdat(b"two\r\n", last=True), 1) == [250]
    assert front.mta.messages == [b"one\r\ntwo\r\n"]
    assert sound(front)


@pytest.mark.parametrize(
    ("before", "codes"),
    [
        (b"", [503]),
        (b"MAIL FROM:<a@a.example>\r\n", [250, 554]),
        (b"MAIL FROM:<a@a.example>\r\nRCPT TO:<nobody@front.example>\r\n", [250, 550, 554]),
    ],
)
async def test_a_chunk_that_is_not_wanted_is_read_past(tmp_path: Path, before: bytes, codes: list[int]) -> None:
    """EXT-07: its octets are no commands; nothing of it goes to the MTA."""

    async def script(line: bytes) -> bytes | None:
        return b"550 5.1.1 no such user" if b"nobody" in line else None

    async with open_front(tmp_path, Mta(CHUNKING, script=script)) as front:
        client = await front.client()
        evil = b"MAIL FROM:<evil@a.example>\r\n"
        assert await asked(client, before + bdat(evil * 1000) + b"RSET\r\nNOOP\r\n", len(codes) + 2) == [
            *codes, 250, 250,
        ]  # fmt: skip
        assert await asked(client, BEGIN + bdat(b"x\r\n", last=True), 3) == [250] * 3
    assert len(front.mta.messages) == 1
    assert not any(b"evil" in line for one in front.mta.heard for line in one.lines)
    assert sound(front)


async def test_after_a_refused_chunk_all_are_refused_until_rset(tmp_path: Path) -> None:
    """RFC 3030 §2: no message is completed that lacks a part."""
    refused = [b"452 4.3.1 no room"]

    async def script(line: bytes) -> bytes | None:
        return refused.pop() if line == b"BDAT 4" and refused else None

    async with open_front(tmp_path, Mta(CHUNKING, script=script), received=False) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"one\r\n") + bdat(b"xy\r\n"), 4) == [250, 250, 250, 452]
        assert await asked(client, bdat(b"3\r\n"), 1) == [503]
        assert await asked(client, bdat(b"4\r\n", last=True), 1) == [503]
        assert front.mta.messages == []
        assert await asked(client, b"RSET\r\n" + BEGIN + bdat(b"new\r\n", last=True), 4) == [250] * 4
    assert front.mta.messages == [b"new\r\n"]
    assert sound(front)


@pytest.mark.parametrize("behind", [b"RCPT TO:<c@front.example>\r\n", b"DATA\r\n", b"VRFY x\r\n", b"NOOP\r\n"])
async def test_any_command_may_follow_a_chunk_that_is_too_big(tmp_path: Path, behind: bytes) -> None:
    """EXT-02, EXT-07: 552 at the chunk that passes the limit, read to its end; what comes next is answered."""
    async with open_front(tmp_path, Mta(CHUNKING), limits=Limits(message_octets=1000), received=False) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"x" * 600), 3) == [250] * 3
        assert await asked(client, bdat(b"y" * 401), 1) == [552]
        (code,) = await asked(client, behind, 1)
        assert code // 100 in (2, 5)
        assert await asked(client, bdat(b"z", last=True), 1) in ([503], [554])
        assert await asked(client, b"RSET\r\n" + BEGIN + bdat(b"x" * 1000, last=True), 4) == [250] * 4
    assert front.mta.messages == [b"x" * 1000]
    assert sound(front)


async def test_the_only_chunk_is_too_big(tmp_path: Path) -> None:
    """EXT-02: at the limit it passes, above it not."""
    async with open_front(tmp_path, Mta(CHUNKING), limits=Limits(message_octets=1000), received=False) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"x" * 1001, last=True), 3) == [250, 250, 552]
        assert await asked(client, BEGIN + bdat(b"x" * 1000, last=True), 3) == [250] * 3
    assert front.mta.messages == [b"x" * 1000]
    assert [event.reason for event in front.of(MessageRelayed)] == ["message/size", ""]
    assert sound(front)


async def test_the_client_dies_inside_a_chunk(tmp_path: Path) -> None:
    """AF-38, INV-02: the MTA gets neither the rest nor anything for it."""
    async with open_front(tmp_path, Mta(CHUNKING)) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"one\r\n"), 3) == [250] * 3
        await client.conversation.send(b"BDAT 1000 LAST\r\nhalf")
        await trio.testing.wait_all_tasks_blocked()
        client.conversation.close()
        assert (await closed(front)).cause == "lost"
        while not front.mta.clients[0].closed:
            await trio.lowlevel.checkpoint()
    assert front.mta.messages == []
    assert sound(front)


@pytest.mark.parametrize("last", [False, True])
async def test_the_mta_is_lost_at_a_chunk(tmp_path: Path, last: bool) -> None:
    """AF-42, OUT-09: 451 once the chunk is read, then 421."""
    async with open_front(tmp_path, Mta(CHUNKING, replies={b"BDAT": CUT})) as front:
        client = await front.client()
        assert await asked(client, BEGIN + bdat(b"x" * 100_000, last=last), 3) == [250, 250, 451]
        assert await asked(client, b"NOOP\r\n", 1) == [421]
        client.conversation.close()
        assert (await closed(front)).cause == "mta"
    assert front.mta.messages == []
    assert sound(front)


async def test_the_mta_is_lost_inside_a_chunk(tmp_path: Path) -> None:
    """AF-42: the client is read to the end of the chunk all the same, so that both stay in step."""
    mta = Mta(CHUNKING)
    async with open_front(tmp_path, mta) as front:
        client = await front.client()
        assert await asked(client, BEGIN, 2) == [250] * 2
        await client.conversation.send(b"BDAT 1000000 LAST\r\n" + b"x" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        (dialogue,) = mta.streams
        await dialogue.aclose()
        await client.conversation.send(b"MAIL FROM:<evil@a.example>\r\n".ljust(1000) * 999)
        assert [reply[:9] for reply in await heard(client, 1)] == ["451 4.4.2"]
        assert await asked(client, b"NOOP\r\n", 1) == [421]
    assert sound(front)


@pytest.mark.parametrize("offer", [CHUNKING, LOCK_STEP])
@pytest.mark.parametrize(
    ("verb", "reply", "codes"),
    [
        (b"MAIL", CUT, [451, 421]),
        (b"RCPT", CUT, [250, 451]),
        (b"MAIL", b"421 4.3.2 down", [421]),
        (b"RCPT", b"421 4.3.2 down", [250, 421]),
    ],
)
async def test_the_mta_is_lost_before_the_chunk_of_the_same_group(
    tmp_path: Path, offer: tuple[bytes, ...], verb: bytes, reply: bytes, codes: list[int]
) -> None:
    """OUT-09, CH-20: what is owed is said, and the session ends without a bug."""
    async with open_front(tmp_path, Mta(offer)) as front:
        client = await front.client()
        front.mta.replies[verb] = reply
        assert await asked(client, BEGIN + bdat(b"x\r\n", last=True), len(codes)) == codes
        await client.conversation.drain()
        client.conversation.close()
        await closed(front)
    assert front.mta.messages == []
    assert sound(front)


@pytest.mark.parametrize(
    ("reply", "codes"), [(CUT, [250, 451, 421]), (b"421 4.3.2 down", [250, 421]), (b"354 what", [250, 451, 451, 421])]
)
async def test_lock_step_mta_is_lost_before_the_end_of_a_group(tmp_path: Path, reply: bytes, codes: list[int]) -> None:
    """OUT-09, EXT-01: an MTA without PIPELINING, a client with: each command of the group is answered."""
    async with open_front(tmp_path, Mta(LOCK_STEP)) as front:
        client = await front.client()
        front.mta.replies[b"RCPT"] = reply
        await client.conversation.send(BEGIN + b"RCPT TO:<c@front.example>\r\nRCPT TO:<d@front.example>\r\nDATA\r\n")
        assert [int(one[:3]) for one in await heard(client, len(codes))] == codes
        await client.conversation.drain()
        client.conversation.close()
        await closed(front)
    assert sound(front)


async def test_bdat_is_not_offered_where_the_mta_has_it_not(tmp_path: Path) -> None:
    """EXT-07: 502, and its octets are commands, as RFC 3030 leaves it to who does not know BDAT."""
    async with open_front(tmp_path) as front:
        client = await front.client()
        assert not client.offers("CHUNKING")
        assert await asked(client, BEGIN + b"BDAT 6\r\nNOOP\r\n", 4) == [250, 250, 502, 250]
    assert sound(front)


@pytest.mark.parametrize("chunks", [1, 2])
async def test_a_refused_last_chunk_ends_its_transaction(tmp_path: Path, chunks: int) -> None:
    """EXT-07, as Postfix: nothing of the next message is taken for more of one whose end was refused."""
    async with open_front(tmp_path, Mta(CHUNKING)) as front:
        client = await front.client()
        refused = b"MAIL FROM:<a@a.example>\r\n" + bdat(b"x") * (chunks - 1) + bdat(b"x", last=True)
        assert await asked(client, refused, 1 + chunks) == [250] + [554] * chunks
        assert await asked(client, b"RCPT TO:<b@front.example>\r\n", 1) == [503]
        assert await asked(client, BEGIN + bdat(b"Subject: y\r\n", last=True), 3) == [250] * 3
        await client.quit()
    (message,) = front.mta.messages
    assert message.endswith(b"\r\nSubject: y\r\n")
    assert sound(front)


async def _chunk_each(client: Client, content: bytes, seconds: float, count: int) -> None:
    for _ in range(count):
        await client.conversation.send(bdat(content))
        await trio.sleep(seconds)


async def test_a_message_of_small_chunks_is_as_slow_as_one_of_small_writes(
    tmp_path: Path, autojump_clock: object
) -> None:
    """AF-45, OUT-28: the pace is the whole message's; the waits between its chunks count too."""
    async with open_front(tmp_path, Mta(CHUNKING)) as front:
        client = await front.client()
        assert await asked(client, BEGIN, 2) == [250] * 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_chunk_each, client, b"x", 50, 20)
            replies = [str(await client.reply())[:9]]
            while replies[-1][:3] == "250":
                replies.append(str(await client.reply())[:9])
            nursery.cancel_scope.cancel()
        assert (await closed(front)).cause == "slow"
    assert replies[-1] == "421 4.4.2"
    assert 6 <= len(replies) <= 9
    assert [event.kind for event in front.of(Violation)] == ["slow"]
    assert front.mta.messages == []


async def test_chunks_at_the_rate_that_is_asked_for(tmp_path: Path, autojump_clock: object) -> None:
    """AF-45: what comes with its BDAT in one segment is counted too; a message may take as long as it is big."""
    async with open_front(tmp_path, Mta(CHUNKING)) as front:
        client = await front.client()
        assert await asked(client, BEGIN, 2) == [250] * 2
        await _chunk_each(client, b"x" * 6000, 50, 20)
        assert [reply[:3] for reply in await heard(client, 20)] == ["250"] * 20
        assert await asked(client, bdat(b"", last=True), 1) == [250]
    assert len(front.mta.messages) == 1


async def test_rset_ends_the_pace_of_a_message(tmp_path: Path, autojump_clock: object) -> None:
    """A chunk that nobody wanted, or a message given up, does not make the session slow."""
    async with open_front(tmp_path, Mta(CHUNKING)) as front:
        client = await front.client()
        assert await asked(client, bdat(b"x") + b"RSET\r\n", 2) == [503, 250]
        for _ in range(4):
            await trio.sleep(200)
            assert await asked(client, b"NOOP\r\n", 1) == [250]
        assert await asked(client, BEGIN + bdat(b"x\r\n", last=True), 3) == [250] * 3
