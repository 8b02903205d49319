"""inbound.relay as dialogues: what the client says, what goes to the MTA, what it answers, what the client hears.

C: a line of the client; lines in a row are one write
>: a line to the MTA (`>?`: only where it went in one group with what came before)
<: the MTA's reply to the next of these lines
S: how the reply begins that the client hears
.: the content was carried over and answered
"""

from collections.abc import Callable, Iterator, Sequence

import pytest

from smtpguard.inbound.relay import MTA_GONE, MTA_LOST, Owed, Relay, Request, hello_line, mail_line, rcpt_line
from smtpguard.smtp.commands import Auth, Bdat, Command, Data, Ehlo, Helo, Mail, Noop, Rcpt, Rset, parse_command
from smtpguard.smtp.extensions import Offer
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import ServerDialogue, Slot

Judge = Callable[[Command, Mail | None], Reply | None]
Script = list[tuple[str, str]]

OFFER = Offer(auth=("PLAIN",), chunking=True, further=(("MT-PRIORITY", ""),))
OK = Reply.of(250, "2.0.0", "Ok")
MAIL, RCPT = b"MAIL FROM:<a@a.example>", b"RCPT TO:<b@b.example>"


def accept(_command: Command, _mail: Mail | None) -> Reply | None:
    """The policy of a listener without rules."""
    return None


def refuse(verb: type[Command]) -> Judge:
    """The policy that refuses one verb."""

    def judge(command: Command, _mail: Mail | None) -> Reply | None:
        return Reply.of(530, "5.7.0", "policy") if isinstance(command, verb) else None

    return judge


def parsed(text: str) -> Script:
    """The transcript as (kind, text)."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return [(kind, rest.lstrip()) for kind, _, rest in (line.partition(":") for line in lines)]


class Playbook:
    """The dialogue and the relay between a client and an MTA that both keep to the script.

    `log` is what happened, in the notation of the script.  What the MTA is asked must be in the script, in order; the
    lines marked `>?` may be missing.
    """

    def __init__(self, script: Script, judge: Judge = accept) -> None:
        self.relay = Relay(judge, OFFER)
        self.log: Script = []
        self._connected = False
        self._server = ServerDialogue(hostname="front.example", lmtp=False, offer=OFFER, tls_active=True)
        self._server.greeting()
        asked = [step for step in script if step[0].startswith(">")]
        self._script = iter(zip(asked, (text for kind, text in script if kind == "<"), strict=True))

    def client(self, octets: bytes) -> None:
        """Octets came from the client: carry out every group they complete."""
        self._server.receive(octets)
        while group := self._server.next_group():
            self._carry_out(group)
            if isinstance(group[-1].command, Data) and self.log[-1][1].startswith("354"):
                break  # what comes now is content

    def content_answered(self) -> None:
        """What the session does after the end of data."""
        self.relay.end_transaction()
        self._server.end_transaction()
        self.log.append((".", ""))

    def _carry_out(self, group: list[Slot]) -> None:
        request = self.relay.request(group, connected=self._connected)
        assert request.last is None
        if request.needs_mta or self._connected:
            self._connected = True
            self.log += [(">", line.decode()) for line in request.lines]
            replies = [self._answer(line.decode()) for line in request.lines]
            self.log += [("<", str(reply)) for reply in replies]
            self.relay.take(request, replies)
        heard = self._server.settle(group).decode()
        self.log += [("S", line) for line in heard.split("\r\n")[:-1] if line[3] == " "]

    def _answer(self, line: str) -> Reply:
        for (kind, expected), reply in self._script:
            if expected == line:
                code, _, text = reply.partition(" ")
                return Reply(int(code), (text.encode(),))
            assert kind == ">?", f"{line} instead of {expected}"
        raise AssertionError(f"nobody expects {line}")


def replay(script: Script, judge: Judge, cut: Callable[[bytes], Iterator[bytes]]) -> Playbook:
    """Play it, each write of the client in the parts that `cut` gives."""
    play = Playbook(script, judge)
    written = b""
    for kind, text in [*script, ("", "")]:
        if kind == "C":
            written += text.encode() + b"\r\n"
            continue
        for part in filter(None, cut(written)):
            play.client(part)
        written = b""
        if kind == ".":
            play.content_answered()
    return play


def same(log: Sequence[tuple[str, str]], script: Sequence[tuple[str, str]]) -> bool:
    return len(log) == len(script) and all(
        one[0] == other[0].rstrip("?") and one[1].startswith(other[1]) for one, other in zip(log, script, strict=True)
    )


def of(steps: Script, kind: str) -> Script:
    return [step for step in steps if step[0] == kind]


TRANSCRIPTS: dict[str, tuple[str, Judge]] = {
    "one message in lock-step, another in one group": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        >: MAIL FROM:<a@a.example>
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        C: RCPT TO:<b@b.example>
        >: RCPT TO:<b@b.example>
        <: 250 2.1.5 Ok
        S: 250 2.1.5 Ok
        C: DATA
        >: DATA
        <: 354 go ahead
        S: 354 go ahead
        .:
        C: MAIL FROM:<> SIZE=10 BODY=8BITMIME RET=HDRS ENVID=a+20b
        C: RCPT TO:<"b c"@b.example> NOTIFY=NEVER ORCPT=rfc822;X+2BY
        C: DATA
        >: MAIL FROM:<> SIZE=10 BODY=8BITMIME RET=HDRS ENVID=a+20b
        >: RCPT TO:<"b c"@b.example> NOTIFY=NEVER ORCPT=rfc822;X+2BY
        >: DATA
        <: 250 2.1.0 Ok
        <: 251 2.1.5 will forward
        <: 354 go ahead
        S: 250 2.1.0 Ok
        S: 251 2.1.5 will forward
        S: 354 go ahead
        .:
        C: QUIT
        S: 221 2.0.0
        """,
        accept,
    ),
    "some recipients are refused": (
        """
        C: HELO client.example
        S: 250 front.example
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<b@b.example>
        C: RCPT TO:<nobody@b.example>
        C: RCPT TO:<later@b.example>
        C: DATA
        >: MAIL FROM:<a@a.example>
        >: RCPT TO:<b@b.example>
        >: RCPT TO:<nobody@b.example>
        >: RCPT TO:<later@b.example>
        >: DATA
        <: 250 2.1.0 Ok
        <: 250 2.1.5 Ok
        <: 550 5.1.1 no such user
        <: 452 4.2.2 full
        <: 354 go ahead
        S: 250 2.1.0 Ok
        S: 250 2.1.5 Ok
        S: 550 5.1.1 no such user
        S: 452 4.2.2 full
        S: 354 go ahead
        .:
        """,
        accept,
    ),
    "nobody is accepted": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<nobody@b.example>
        C: DATA
        >: MAIL FROM:<a@a.example>
        >: RCPT TO:<nobody@b.example>
        >?: DATA
        <: 250 2.1.0 Ok
        <: 550 5.1.1 no such user
        <: 554 5.5.1 no valid recipients
        S: 250 2.1.0 Ok
        S: 550 5.1.1 no such user
        S: 554 5.5.1 no valid recipients
        C: RCPT TO:<b@b.example>
        >: RCPT TO:<b@b.example>
        <: 250 2.1.5 Ok
        S: 250 2.1.5 Ok
        """,
        accept,
    ),
    "MAIL is refused": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<b@b.example>
        C: DATA
        >: MAIL FROM:<a@a.example>
        >?: RCPT TO:<b@b.example>
        >?: DATA
        <: 550 5.7.1 not from you
        <: 503 5.5.1 need MAIL
        <: 503 5.5.1 need MAIL
        S: 550 5.7.1 not from you
        S: 503 5.5.1
        S: 503 5.5.1
        C: MAIL FROM:<c@a.example>
        >: MAIL FROM:<c@a.example>
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        """,
        accept,
    ),
    "RSET ends a transaction at the MTA, and needs none without": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: RSET
        S: 250 2.0.0 Ok
        C: MAIL FROM:<a@a.example>
        >: MAIL FROM:<a@a.example>
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        C: RSET
        >: RSET
        <: 250 2.0.0 Flushed
        S: 250 2.0.0 Ok
        C: RSET
        S: 250 2.0.0 Ok
        C: RCPT TO:<b@b.example>
        S: 503 5.5.1
        C: MAIL FROM:<a@a.example>
        C: RSET
        C: MAIL FROM:<c@a.example>
        >: MAIL FROM:<a@a.example>
        >: RSET
        >: MAIL FROM:<c@a.example>
        <: 250 2.1.0 Ok
        <: 250 2.0.0 Flushed
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        S: 250 2.0.0 Ok
        S: 250 2.1.0 Ok
        """,
        accept,
    ),
    "EHLO anew is told to an MTA that is there": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        >: MAIL FROM:<a@a.example>
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        C: EHLO other.example
        >: EHLO other.example
        <: 250 mta.example
        S: 250 MT-PRIORITY
        C: HELO third.example
        >: HELO third.example
        <: 250 mta.example
        S: 250 front.example
        C: RCPT TO:<b@b.example>
        S: 503 5.5.1
        """,
        accept,
    ),
    "the MTA refuses the new name": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        >: MAIL FROM:<a@a.example>
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        C: EHLO bad.example
        >: EHLO bad.example
        <: 550 5.7.1 not you
        S: 550 5.7.1 not you
        """,
        accept,
    ),
    "what is out of order or not for the MTA never gets there": (
        """
        C: NOOP
        S: 250 2.0.0
        C: MAIL FROM:<a@a.example>
        S: 503 5.5.1
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: RCPT TO:<b@b.example>
        C: DATA
        S: 503 5.5.1
        S: 503 5.5.1
        C: VRFY root
        S: 252 2.5.2
        C: HELP
        S: 214 2.0.0
        C: XCLIENT ADDR=127.0.0.1
        S: 550 5.7.0
        C: MAIL FROM:<a@a.example> FOO=1
        S: 555 5.5.4
        C: QUIT
        S: 221 2.0.0
        """,
        accept,
    ),
    "policy refuses MAIL": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<b@b.example>
        C: DATA
        S: 530 5.7.0 policy
        S: 503 5.5.1
        S: 503 5.5.1
        """,
        refuse(Mail),
    ),
    "policy refuses every RCPT": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<b@b.example>
        C: RCPT TO:<c@b.example>
        C: DATA
        >: MAIL FROM:<a@a.example>
        <: 250 2.1.0 Ok
        S: 250 2.1.0 Ok
        S: 530 5.7.0 policy
        S: 530 5.7.0 policy
        S: 554 5.5.1
        """,
        refuse(Rcpt),
    ),
    "policy refuses DATA": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<b@b.example>
        C: DATA
        >: MAIL FROM:<a@a.example>
        >: RCPT TO:<b@b.example>
        <: 250 2.1.0 Ok
        <: 250 2.1.5 Ok
        S: 250 2.1.0 Ok
        S: 250 2.1.5 Ok
        S: 530 5.7.0 policy
        """,
        refuse(Data),
    ),
    "no 3yz but 354 to DATA": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        >: MAIL FROM:<a@a.example>
        <: 350 more?
        S: 451 4.5.0 [host/protocol]
        """,
        accept,
    ),
    "no recipient hears 3yz": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        C: RCPT TO:<b@b.example>
        >: MAIL FROM:<a@a.example>
        >: RCPT TO:<b@b.example>
        <: 250 2.1.0 Ok
        <: 354 go ahead
        S: 250 2.1.0 Ok
        S: 451 4.5.0 [host/protocol]
        """,
        accept,
    ),
    "the MTA closes": (
        """
        C: EHLO client.example
        S: 250 MT-PRIORITY
        C: MAIL FROM:<a@a.example>
        >: MAIL FROM:<a@a.example>
        <: 421 4.3.2 going down
        S: 421 4.3.2 going down
        """,
        accept,
    ),
}


def whole(written: bytes) -> Iterator[bytes]:
    yield written


def byte_by_byte(written: bytes) -> Iterator[bytes]:
    for octet in written:
        yield bytes((octet,))


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript_step_by_step(name: str) -> None:
    """INV-06, INV-07, INV-08, SMTP-05..07, EXT-21, EXT-22: each group as a group, and nobody else's reply."""
    text, judge = TRANSCRIPTS[name]
    script = parsed(text)
    play = replay(script, judge, whole)
    assert same(play.log, [step for step in script if step[0] != "C"]), play.log


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript_however_it_is_cut(name: str) -> None:
    """INV-06: byte by byte and split at every offset the client hears the same, and so does the MTA."""
    text, judge = TRANSCRIPTS[name]
    script = parsed(text)
    longest = max(len(text) for text in name_writes(script))
    cuts: list[Callable[[bytes], Iterator[bytes]]] = [byte_by_byte]
    cuts += [lambda written, at=at: iter((written[:at], written[at:])) for at in range(1, longest)]  # type: ignore[misc]
    for cut in cuts:
        play = replay(script, judge, cut)
        assert same(of(play.log, "S"), of(script, "S")), play.log
        assert {text for _, text in of(script, ">")} <= {text for _, text in of(play.log, ">")}


def name_writes(script: Script) -> list[str]:
    """What the client writes at once, each as one text."""
    writes = [""]
    for kind, text in script:
        writes = [*writes[:-1], writes[-1] + text + "\r\n"] if kind == "C" else [*writes, ""]
    return writes


# -- one step


def slots(*lines: bytes) -> list[Slot]:
    """Commands in order, as the dialogue hands them on: what it answers is answered."""
    server = ServerDialogue(hostname="front.example", lmtp=False, offer=OFFER, tls_active=True)
    server.greeting()
    server.receive(b"EHLO x\r\n")
    server.settle(server.next_group())
    server.receive(b"".join(line + b"\r\n" for line in lines))
    return server.next_group()


def standing(*rcpts: bytes) -> Relay:
    """A MAIL stands at the MTA, and these recipients."""
    relay = Relay(accept, OFFER)
    group = slots(MAIL, *rcpts)
    request = relay.request(group, connected=True)
    relay.take(request, [OK] * len(request.lines))
    assert relay.in_transaction
    return relay


def test_nobody_is_needed_for_what_we_answer() -> None:
    """DESIGN §3: the MTA is opened late."""
    for lines in ((b"NOOP",), (b"RSET",), (b"EHLO x",), (b"RSET", b"RSET", b"QUIT")):
        assert not Relay(accept, OFFER).request(slots(*lines), connected=False).needs_mta
    relay = Relay(accept, OFFER)
    assert not relay.request(slots(b"EHLO x"), connected=True).needs_mta  # told, but never connected for
    assert relay.request(slots(MAIL), connected=False).needs_mta
    assert relay.request(slots(b"AUTH PLAIN"), connected=False).needs_mta


def test_no_go_ahead_for_a_message_without_recipients() -> None:
    """EXT-22, SMTP-15: an MTA that says 354 though it refused everybody gets neither dot nor content."""
    relay = Relay(accept, OFFER)
    group = slots(MAIL, RCPT, b"DATA")
    relay.take(relay.request(group, connected=True), [OK, Reply.of(550, "5.1.1", "no"), Reply.of(354, "", "go")])
    assert group[2].reply is not None
    assert group[2].reply.code == 554
    assert relay.broken


@pytest.mark.parametrize(
    ("lines", "replies"),
    [
        ((b"RSET", MAIL, RCPT, b"DATA"), (500, 250, 250, 354)),
        ((MAIL, RCPT, RCPT, b"DATA"), (250, 250, 354, 354)),
    ],
)
def test_no_go_ahead_from_an_mta_that_is_given_up(lines: tuple[bytes, ...], replies: tuple[int, ...]) -> None:
    """SMTP-15: after nonsense in the same group its 354 would ask the client for what has nowhere to go."""
    relay = standing(RCPT) if lines[0] == b"RSET" else Relay(accept, OFFER)
    group = slots(*lines)
    relay.take(relay.request(group, connected=True), [Reply.of(code, "", "x") for code in replies])
    assert group[-1].reply is not None
    assert (group[-1].reply.code, relay.broken) == (451, True)


@pytest.mark.parametrize("code", [250, 251, 334, 350, 399])
def test_data_takes_no_other_go_ahead(code: int) -> None:
    """SMTP-15."""
    relay = standing(RCPT)
    (slot,) = [Slot(Data())]
    request = relay.request([slot], connected=True)
    relay.take(request, [Reply.of(code, "", "hm")])
    assert slot.reply is not None
    assert (slot.reply.code, relay.broken) == (451, True)


@pytest.mark.parametrize(("code", "broken"), [(250, False), (500, True), (451, True)])
def test_an_mta_that_refuses_rset_is_given_up(code: int, broken: bool) -> None:
    """The client hears our 250, and what stood at the MTA must not stay there."""
    relay = standing(RCPT)
    (slot,) = slots(b"RSET")
    relay.take(relay.request([slot], connected=True), [Reply.of(code, "", "x")])
    assert slot.reply is not None
    assert slot.reply.code == 250
    assert (relay.broken, relay.in_transaction, relay.rcpts) == (broken, False, [])


def test_bdat_and_data_do_not_mix() -> None:
    """EXT-07, RFC 3030 §2: 503, and DATA is not sent; a new MAIL begins anew, in the same group too."""
    relay = standing(RCPT)
    (chunk,) = [Slot(Bdat(5, last=False))]
    assert relay.request([chunk], connected=True) == Request((), (), chunk)
    relay.chunked = True
    (data,) = [Slot(Data())]
    assert relay.request([data], connected=True) == Request()
    assert data.reply is not None
    assert (data.reply.code, data.reply.enhanced_status) == (503, "5.5.1")
    group = [Slot(Rset(), OK), *slots(MAIL, RCPT, b"DATA")]
    assert relay.request(group, connected=True).lines == (b"RSET", MAIL, RCPT, b"DATA")


def test_auth_comes_last() -> None:
    """RFC 4954 §4: carried out once the replies before it are there; its secrets are in no line of the group."""
    relay = Relay(accept, OFFER)
    group = slots(b"RSET", b"AUTH PLAIN AGEAYg==")
    request = relay.request(group, connected=False)
    assert isinstance(group[1].command, Auth)
    assert request == Request((), (), group[1])


def test_a_refused_command_is_not_carried_out() -> None:
    """A judge that refuses AUTH or BDAT: neither is `last`."""
    for line in (b"AUTH PLAIN AGEAYg==", b"BDAT 5"):
        (slot,) = [Slot(parse_command(line))]
        assert Relay(refuse(type(slot.command)), OFFER).request([slot], connected=True) == Request()
        assert slot.reply is not None
        assert slot.reply.code == 530


def test_the_judge_knows_the_mail_in_force() -> None:
    """STLS-15: a rule about senders judges RCPT by the MAIL of the same group, and none after RSET."""
    asked: list[tuple[str, bytes | None]] = []

    def judge(command: Command, mail: Mail | None) -> Reply | None:
        asked.append((type(command).__name__, mail.path.text if mail is not None else None))
        return None

    relay = Relay(judge, OFFER)
    relay.request(slots(MAIL, RCPT, b"RSET", b"MAIL FROM:<c@a.example>", RCPT), connected=True)
    assert asked == [
        ("Mail", None), ("Rcpt", b"a@a.example"), ("Mail", None), ("Rcpt", b"c@a.example"),
    ]  # fmt: skip


# -- the MTA is lost


def heard(group: Sequence[Slot]) -> list[tuple[int, bool]]:
    """Code and whether it closes, 0 where the slot is still open."""
    return [(slot.reply.code if slot.reply is not None else 0, slot.closes) for slot in group]


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (0, [(451, False), (421, True), (421, True)]),
        (1, [(250, False), (451, False), (421, True)]),
        (2, [(250, False), (250, False), (451, False)]),
    ],
)
def test_lost_after_so_many_replies(answered: int, expected: list[tuple[int, bool]]) -> None:
    """OUT-09: 451 for the command it was lost in, then 421; what was answered stays."""
    relay = Relay(accept, OFFER)
    group = slots(MAIL, RCPT, b"DATA")
    request = relay.request(group, connected=True)
    relay.take(Request(request.lines[:answered], request.owed[:answered]), [OK] * answered)
    relay.lost(request, answered)
    assert heard(group) == expected
    assert relay.broken
    assert not relay.in_transaction


@pytest.mark.parametrize(
    ("lines", "answered", "expected"),
    [
        ((b"RSET", MAIL), 0, [(250, False), (451, False)]),  # whoever asked for RSET has got it
        ((MAIL, b"EHLO y"), 0, [(451, False), (421, True)]),
        ((MAIL, RCPT, b"BDAT 5"), 0, [(451, False), (421, True), (421, True)]),
        ((MAIL, RCPT, b"BDAT 5"), 2, [(250, False), (250, False), (451, False)]),
    ],
)
def test_lost_with_what_is_ours(lines: tuple[bytes, ...], answered: int, expected: list[tuple[int, bool]]) -> None:
    """OUT-09."""
    relay = standing(RCPT) if lines[0] == b"RSET" else Relay(accept, OFFER)
    group = slots(*lines)
    request = relay.request(group, connected=True)
    relay.take(Request(request.lines[:answered], request.owed[:answered]), [OK] * answered)
    relay.lost(request, answered)
    assert heard(group) == expected


def test_the_words_of_a_lost_mta() -> None:
    """OUT-09."""
    assert str(MTA_LOST).startswith("451 4.4.2 ")
    assert str(MTA_GONE).startswith("421 4.4.2 ")


def test_a_421_ends_the_group() -> None:
    """CH-20: relayed as it is; nothing behind it is dealt out, and the connection is not used again."""
    relay = Relay(accept, OFFER)
    group = slots(MAIL, RCPT, b"DATA")
    request = relay.request(group, connected=True)
    relay.take(Request(request.lines[:2], request.owed[:2]), [OK, Reply.of(421, "4.3.2", "down")])
    assert heard(group) == [(250, False), (421, True), (0, False)]
    assert relay.broken
    assert not relay.in_transaction


def test_one_reply_a_line() -> None:
    """EXT-22: replies are counted, never guessed."""
    relay = Relay(accept, OFFER)
    request = relay.request(slots(MAIL, RCPT), connected=True)
    with pytest.raises(ValueError, match="shorter"):
        relay.take(request, [OK])


def test_forget() -> None:
    """STLS-05: a new connection knows nothing of the old one."""
    relay = standing(RCPT)
    relay.authenticated = relay.broken = relay.chunked = True
    relay.forget()
    assert (relay.in_transaction, relay.rcpts, relay.authenticated, relay.broken, relay.chunked) == (
        False, [], False, False, False,
    )  # fmt: skip


# -- in which words


@pytest.mark.parametrize(
    ("line", "stranger", "friend"),
    [
        (b"MAIL FROM:<a@a.example> AUTH=a+40b", b"MAIL FROM:<a@a.example>", None),
        (b"MAIL FROM:<a@a.example> AUTH=<> SIZE=5", b"MAIL FROM:<a@a.example> SIZE=5", None),
        (b"MAIL FROM:<> MT-PRIORITY=9", b"MAIL FROM:<> MT-PRIORITY=0", None),
        (b"MAIL FROM:<> MT-PRIORITY=0", b"MAIL FROM:<> MT-PRIORITY=0", None),
        (b"MAIL FROM:<> MT-PRIORITY=-3", b"MAIL FROM:<> MT-PRIORITY=-3", None),
        (b"mail from:<A@a.Example> size=5 Body=8bitmime", b"MAIL FROM:<A@a.Example> SIZE=5 BODY=8bitmime", b""),
        ("MAIL FROM:<ä@a.example> SMTPUTF8".encode(), "MAIL FROM:<ä@a.example> SMTPUTF8".encode(), None),
    ],
)
def test_what_only_a_trusted_client_may_say(line: bytes, stranger: bytes, friend: bytes | None) -> None:
    """AUTH-05 (RFC 4954 §5), EXT-13 (RFC 6710 §4): dropped or put down for a client that has not authenticated."""
    mail = parse_command(line)
    assert isinstance(mail, Mail)
    assert mail_line(mail, OFFER, authenticated=False) == stranger
    assert mail_line(mail, OFFER, authenticated=True) == (line if friend is None else stranger)


def test_the_other_lines() -> None:
    assert hello_line(Ehlo(b"[192.0.2.1]")) == b"EHLO [192.0.2.1]"
    assert hello_line(Helo(b"x")) == b"HELO x"
    rcpt = parse_command(b"rcpt to:<B@b.example> notify=SUCCESS,delay orcpt=rfc822;b")
    assert isinstance(rcpt, Rcpt)
    assert rcpt_line(rcpt) == b"RCPT TO:<B@b.example> NOTIFY=SUCCESS,delay ORCPT=rfc822;b"
    assert Owed(Slot(Noop())).relayed
