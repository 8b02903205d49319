"""Any dialogue at all with a random pipelining client: a reply for each command, in order, and only honest ones.

INV-01, INV-02, INV-07, SMTP-06, SMTP-09, EXT-01, EXT-21, LMTP-02, LMTP-05.  Commands valid and not, in any order, cut
into segments anywhere, and cut off anywhere.  Three hosts behind it: `a` and `b` take what is right, `c` refuses every
message at its end.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smtpguard.events import InternalError
from smtpguard.sandbox.behaviour import Behaviour
from smtpguard.sandbox.client import Client, Reply
from smtpguard.sandbox.internet import Publication, Site
from tests.support.rig import Rig, open_rig


class Long(bytes):
    """Octets too many to be shown where an example fails."""

    def __repr__(self) -> str:
        return f"<{self[:10]!r} and {len(self) - 10} octets>"


SITES = [Site(f"{name}.example", Publication.DANE_EE) for name in "abc"]
TOO_LONG = b"x" * 70_000  # longer than a text line may be
NUMBERS = count(1)

HELLOS = (b"EHLO mta.example", b"LHLO mta.example", b"HELO mta.example")
MAILS = (b"MAIL FROM:<s@s.example>", b"mail from:<>", b"MAIL FROM:<s@s.example> SIZE=100")
RCPTS = tuple(b"RCPT TO:<%s@%s.example>" % (box, domain) for domain in (b"a", b"b", b"c") for box in (b"ok", b"two"))
REFUSED_RCPTS = (b"RCPT TO:<no@a.example>", b"RCPT TO:<no@b.example>")
# Whatever the order, these are refused for good.
BAD = (
    b"",
    b"XYZZY",
    b"MAIL FROM:s@s.example",
    b"MAIL FROM:<s@s.example> FOO=1",
    b"RCPT TO:<x@a.example",
    b"RCPT TO:<x@a.example> FOO=1",
    b"RCPT TO:<postmaster>",
    b"MAIL\nRSET",
    b"RSET\rNOOP",
    b"NO\0OP",
    Long(b"NOOP " + b"x" * 20_000),
    b"EXPN list",
    b"AUTH PLAIN AGEAYg==",
    b"BDAT 5 LAST",
    b"STARTTLS",
    b"XCLIENT ADDR=192.0.2.1",
    b"EHLO",
)
GOOD = {b"NOOP": 250, b"noop x": 250, b"HELP": 214, b"VRFY root": 252, b"RSET": 250, b"rset": 250}
BODIES = (
    b"Subject: x\r\n\r\nbody\r\n",
    b"\r\n..\r\n.. dots\r\n",
    b"\r\nbare\n.\nMAIL FROM:<e@e.example>\r\n",
    Long(TOO_LONG + b"\r\n"),
)
LAST_OF_ITS_BURST = (*HELLOS, b"DATA")  # what follows is for after the reply (RFC 2920 §3.1, EXT-24)


@dataclass(frozen=True, slots=True)
class Step:
    """One command; `flush`: its reply is awaited; `body`: the content if the reply is 354."""

    line: bytes
    flush: bool
    body: bytes


# Orders in which mail comes about are more likely than chance would have them.
LINES = st.one_of(
    st.sampled_from(HELLOS),
    st.sampled_from(MAILS),
    st.sampled_from(RCPTS),
    st.sampled_from(RCPTS + REFUSED_RCPTS),
    st.just(b"DATA"),
    st.sampled_from(BAD),
    st.sampled_from(sorted(GOOD)),
)
TRANSACTION = st.tuples(
    st.sampled_from(MAILS),
    st.lists(st.sampled_from(RCPTS + REFUSED_RCPTS), min_size=1, max_size=6),
    st.sampled_from((b"DATA", b"DATA", b"DATA", b"RSET", *HELLOS[:2])),
).map(lambda drawn: [drawn[0], *drawn[1], drawn[2]])
SCRIPTS = st.lists(
    st.one_of(TRANSACTION, TRANSACTION, TRANSACTION, LINES.map(lambda line: [line])), min_size=3, max_size=9
).map(lambda parts: [line for part in parts for line in part])
FRACTIONS = st.floats(0, 1, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Script:
    """What one client does: `greets` first, as most do; `cuts` are where segments end, `end` where it goes away."""

    greets: bool
    steps: tuple[Step, ...]
    cuts: tuple[float, ...]
    end: float | None


def steps(lines: list[bytes]) -> st.SearchStrategy[tuple[Step, ...]]:
    return st.tuples(
        *(
            st.builds(Step, st.just(line), st.sampled_from([False, False, True]), st.sampled_from(BODIES))
            for line in lines
        )
    )


SCRIPT = st.builds(
    Script,
    greets=st.sampled_from([True] * 9 + [False]),
    steps=SCRIPTS.flatmap(steps),
    cuts=st.lists(FRACTIONS, max_size=3).map(tuple),
    end=st.none() | st.none() | FRACTIONS | st.floats(0.9, 1),
)


@dataclass(slots=True)
class Model:
    """What an honest server must say, and which messages it has taken responsibility for."""

    lmtp: bool
    greeted: bool = False
    extended: bool = False
    mail: bool = False
    accepted: list[bytes] = field(default_factory=list)
    taken: list[tuple[bytes, tuple[bytes, ...], bytes]] = field(default_factory=list)

    def hear(self, line: bytes, reply: Reply) -> None:
        """One reply to one command."""
        assert reply.code in self.may_say(line), (line, reply, self)
        if not reply.is_positive:
            return
        if line in HELLOS:
            self.greeted, self.extended, self.mail, self.accepted = True, not line.startswith(b"HELO"), False, []
        elif line.upper() == b"RSET":
            self.mail, self.accepted = False, []
        elif line in MAILS:
            self.mail = True
        elif line in RCPTS:
            self.accepted.append(address(line))

    def may_say(self, line: bytes) -> set[int]:
        if line in HELLOS:
            return {250} if (line[:4] == b"LHLO") is self.lmtp else {500}
        if line in GOOD:
            return {GOOD[line]}
        if line in BAD:
            return set(range(500, 600))
        if line in MAILS:
            if not self.greeted or self.mail:
                return {503}
            return {250} if self.extended or b"=" not in line else {555}
        if line in RCPTS or line in REFUSED_RCPTS:
            if not self.mail:
                return {503}
            if not self.lmtp and any(domain(one) != domain(address(line)) for one in self.accepted):
                return {452}  # SMTP-23: another next hop
            if line in REFUSED_RCPTS:
                return {550} if self.lmtp else {550, 452}
            # SMTP: one of a later command of its group may have fixed the next hop before.
            return {250} if self.lmtp else {250, 452}
        assert line == b"DATA"
        if not self.mail:
            return {503}
        return {354} if self.accepted else {503 if self.lmtp else 554}

    def ends(self, body: bytes) -> list[tuple[bytes, int]]:
        """The replies owed after the content: the address, and the code."""
        owed = self.accepted if self.lmtp else self.accepted[:1]
        code = {b"a": 250, b"b": 250, b"c": 452}
        return [(one, 554 if body.startswith(TOO_LONG[:100]) else code[domain(one)]) for one in owed]

    def hear_ends(self, body: bytes, marker: bytes, replies: Sequence[Reply]) -> None:
        """The replies to the end of the content, each of the host of its recipient (LMTP-05)."""
        for (one, code), reply in zip(self.ends(body), replies, strict=True):
            assert reply.code == code, (one, reply)
            if code != 554:
                assert f"mx.{domain(one).decode()}.example[" in str(reply), (one, reply)
            if reply.is_positive:
                self.take(one, marker)
        self.mail, self.accepted = False, []

    def take(self, one: bytes, marker: bytes) -> None:
        same = tuple(other for other in self.accepted if domain(other) == domain(one))
        entry = (domain(one), same, marker)
        if entry not in self.taken:
            self.taken.append(entry)


def address(line: bytes) -> bytes:
    return line.partition(b"<")[2].partition(b">")[0]


def domain(one: bytes) -> bytes:
    return one.partition(b"@")[2][:1]


@dataclass(slots=True)
class Player:
    """Plays one script against the rig and holds every reply against the model."""

    script: Script
    client: Client
    model: Model
    waiting: list[tuple[bytes, bytes]] = field(
        default_factory=list
    )  # what replies are owed to: line, or body and marker
    octets: bytearray = field(default_factory=bytearray)
    sent: dict[bytes, bytes] = field(default_factory=dict)  # marker to body
    unanswered: tuple[bytes, tuple[bytes, ...]] | None = None  # of a message sent whole, whose replies nobody read

    async def play(self) -> None:
        for step in self.script.steps:
            self.octets += step.line + b"\r\n"
            self.waiting.append((step.line, b""))
            if step.line in LAST_OF_ITS_BURST or step.flush:
                last = await self.flush()
                if last is not None and last.code == 354:
                    marker = b"marker-%d-%d" % (os.getpid(), next(NUMBERS))
                    self.sent[marker] = step.body
                    self.octets += b"X-Marker: " + marker + b"\r\n" + step.body + b".\r\n"
                    self.waiting.append((step.body, marker))
        if self.script.end is not None:
            await self.vanish(self.script.end)
            return
        await self.flush()
        assert (await self.client.command("QUIT")).code == 221
        assert await self.client.conversation.receive() == b""

    async def send(self, octets: bytes) -> None:
        at = 0
        for cut in sorted(int(part * len(octets)) for part in self.script.cuts):
            await self.client.conversation.send(octets[at:cut])
            at = cut
            await trio.lowlevel.checkpoint()
        await self.client.conversation.send(octets[at:])

    async def flush(self) -> Reply | None:
        """Send what has gathered, and read exactly the replies owed.  The last one."""
        await self.send(bytes(self.octets))
        self.octets.clear()
        reply = None
        for line, marker in self.waiting:
            if marker:
                replies = [await self.client.reply() for _ in self.model.ends(line)]
                self.model.hear_ends(line, marker, replies)
            else:
                reply = await self.client.reply()
                self.model.hear(line, reply)
        self.waiting.clear()
        return reply

    async def vanish(self, part: float) -> None:
        """Go away without a word after a part of what was to be sent."""
        gone = int(part * len(self.octets))
        await self.send(bytes(self.octets[:gone]))
        self.client.conversation.close()
        if self.waiting and (marker := self.waiting[0][1]):  # content comes first in its burst
            whole = self.octets.find(b"\r\n.\r\n", self.octets.find(marker)) + 5
            if gone >= whole:  # nobody will know what became of it
                self.unanswered = (marker, tuple(self.model.accepted))


def arrives(body: bytes) -> bytes:
    """The content a host stores: dots unstuffed, a bare LF a space (DATA-03)."""
    return body.replace(b"\r\n", b"\r").replace(b"\n", b" ").replace(b"\r", b"\r\n").replace(b"\r\n.", b"\r\n")


async def play(rig: Rig, protocol: str, script: Script) -> None:
    client = await Client.connect("127.0.0.1", rig.ports[protocol])
    model = Model(lmtp=protocol == "lmtp")
    player = Player(script, client, model)
    try:
        with trio.fail_after(5):
            assert (await client.reply()).code == 220
            if script.greets:
                line = b"LHLO mta.example" if model.lmtp else b"EHLO mta.example"
                model.hear(line, await client.command(line.decode()))
            await player.play()
            while len(rig.sessions):
                await trio.sleep(0.001)
    finally:
        client.conversation.close()
    check(rig, player)


def check(rig: Rig, player: Player) -> None:
    """Delivered is exactly what was answered 2xx; of a message whose replies nobody read, no more than it said."""
    delivered = []
    for name in "abc":
        mx = rig.internet.hosts[f"{name}.example"].mx
        for message in mx.messages:
            marker = message.content.partition(b"X-Marker: ")[2].partition(b"\r\n")[0]
            to = tuple(one.encode() for one in message.recipients)
            if message.reply.startswith("250"):
                delivered.append((name.encode(), to, marker))
            assert message.content.endswith(marker + b"\r\n" + arrives(player.sent[marker]))
        mx.messages.clear()
    if player.unanswered is not None:
        marker, accepted = player.unanswered
        unread = [one for one in delivered if one[2] == marker]
        delivered = [one for one in delivered if one[2] != marker]
        assert len({one[0] for one in unread}) == len(unread)  # once a host
        assert all(set(one[1]) <= set(accepted) for one in unread)
    assert sorted(delivered) == sorted(player.model.taken)
    assert not rig.of(InternalError)
    assert repr(rig.engine.services.slots) == "<DestinationSlots connections={} walks={}>"
    rig.events.clear()


@pytest.mark.parametrize("protocol", ["lmtp", "smtp"])
async def test_any_dialogue(tmp_path: Path, protocol: str) -> None:
    """INV-01, INV-07, LMTP-05, SMTP-09: a reply a command, in order; the session lasts; mail exactly as promised."""
    async with open_rig(tmp_path, SITES) as rig:
        refuse = {f"no@{name}.example": "550 5.1.1 who?" for name in "ab"}
        for name in "abc":
            host = rig.internet.hosts[f"{name}.example"].mx
            host.behaviour = replace(Behaviour(), rcpt_by_address=refuse)
        rig.internet.hosts["c.example"].mx.behaviour = Behaviour(end="452 4.3.1 full")

        @given(SCRIPT)
        @settings(
            max_examples=120,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
        )
        def every(script: Script) -> None:
            trio.from_thread.run(play, rig, protocol, script)

        await trio.to_thread.run_sync(every)
