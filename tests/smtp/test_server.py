"""The server role, as dialogues: C: what the client sends, S: what it hears."""

import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.smtp.commands import Auth, Bdat, Data, Ehlo, Mail, Rcpt, Rset, StartTls
from smtpguard.smtp.extensions import Offer
from smtpguard.smtp.framing import LocalProtocolError
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import MAX_GROUP, ServerDialogue, Slot

OK = Reply.of(250, "2.1.0", "Ok")
GO = Reply.of(354, "", "go ahead")


def dialogue(
    *, lmtp: bool = False, offer: Offer | None = None, tls_active: bool = False, reject_early: bool = True
) -> ServerDialogue:
    server = ServerDialogue(
        hostname="guard.example",
        lmtp=lmtp,
        offer=offer or Offer(starttls=True),
        tls_active=tls_active,
        reject_early_talkers=reject_early,
    )
    server.greeting()
    return server


def accept(slot: Slot) -> None:
    """What a caller does that accepts everything."""
    if slot.reply is None:
        slot.reply = GO if isinstance(slot.command, Data) else OK


def refuse_recipients(slot: Slot) -> None:
    if slot.reply is None and isinstance(slot.command, Rcpt):
        slot.reply = Reply.of(550, "5.1.1", "no")


def run(server: ServerDialogue, octets: bytes, answer: Callable[[Slot], None] = accept) -> bytes:
    """Everything the client hears for `octets`, group after group, until a 354 or nothing is left."""
    server.receive(octets)
    heard = b""
    while group := server.next_group():
        for slot in group:
            server.recheck(slot)
            answer(slot)
            heard += server.settle([slot])
            if slot.reply is GO:
                return heard
    return heard


def codes(octets: bytes) -> list[str]:
    """Code and enhanced status of each reply."""
    last = [line for line in octets.decode("latin-1").split("\r\n")[:-1] if line[3:4] == " "]
    return [" ".join(re.match(r"(\d{3}) ?(\d\.\d+\.\d+)?", line).groups("")).strip() for line in last]  # type: ignore[union-attr]


def test_the_greeting() -> None:
    """SMTP-03: our name; EXT-06: no enhanced code."""
    for lmtp, word in ((False, b"ESMTP"), (True, b"LMTP")):
        server = ServerDialogue(hostname="guard.example", lmtp=lmtp, offer=Offer())
        assert server.greeting().encode() == b"220 guard.example " + word + b"\r\n"


def test_a_whole_smtp_dialogue() -> None:
    """SMTP-04..07, EXT-06, EXT-12: EHLO, a pipelined group, content, the next transaction."""
    server = dialogue(offer=Offer(size=500, rcpt_max=100))
    assert run(server, b"EHLO mta.example\r\n") == (
        b"250-guard.example\r\n250-PIPELINING\r\n250-SIZE 500\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
        b"250-ENHANCEDSTATUSCODES\r\n250-DSN\r\n250 LIMITS RCPTMAX=100 RCPTDOMAINMAX=1\r\n"
    )
    assert server.client_name == b"mta.example"
    assert server.greeted
    assert server.extended
    group = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@b.example>\r\nRCPT TO:<c@b.example>\r\nDATA\r\n"
    assert codes(run(server, group)) == ["250 2.1.0", "250 2.1.0", "250 2.1.0", "354"]
    assert server.in_transaction
    assert server.recipients == 2
    server.receive(b"Subject: x\r\n\r\n.\r\nQUIT\r\n")
    body, rest = server.take_rest().split(b".\r\n")
    assert body == b"Subject: x\r\n\r\n"
    server.end_transaction()
    assert not server.in_transaction
    server.receive(rest)
    assert codes(run(server, b"")) == ["221 2.0.0"]


def test_lmtp_wants_lhlo_and_smtp_wants_ehlo() -> None:
    """LMTP-01, LMTP-04."""
    assert codes(run(dialogue(lmtp=True), b"EHLO x\r\n")) == ["500 5.5.1"]
    assert codes(run(dialogue(lmtp=True), b"HELO x\r\n")) == ["500 5.5.1"]
    assert codes(run(dialogue(), b"LHLO x\r\n")) == ["500 5.5.1"]
    server = dialogue(lmtp=True)
    heard = run(server, b"lhlo mta.example\r\n")
    assert heard.startswith(b"250-guard.example\r\n250-PIPELINING\r\n")
    assert b"LIMITS" not in heard
    assert server.greeted


def test_helo_gets_one_line() -> None:
    """SMTP-04."""
    server = dialogue()
    assert run(server, b"HELO old.example\r\n") == b"250 guard.example\r\n"
    assert server.greeted
    assert not server.extended


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"NOOP", "250 2.0.0"),
        (b"RSET", "250 2.0.0"),
        (b"HELP", "214 2.0.0"),
        (b"VRFY root", "252 2.5.2"),
        (b"EXPN list", "502 5.5.1"),
        (b"QUIT", "221 2.0.0"),
        (b"MAIL FROM:<>", "503 5.5.1"),
        (b"RCPT TO:<b@b.example>", "503 5.5.1"),
        (b"DATA", "503 5.5.1"),
        (b"FOO", "500 5.5.1"),
        (b"", "500 5.5.1"),
        (b"BURL imap://x", "500 5.5.1"),
        (b"ETRN x", "502 5.5.1"),
        (b"ATRN", "502 5.5.1"),
        (b"TURN", "502 5.5.1"),
        (b"AUTH PLAIN", "502 5.5.1"),
        (b"BDAT 5 LAST", "502 5.5.1"),
        (b"XCLIENT ADDR=192.0.2.1", "550 5.7.0"),
        (b"XFORWARD NAME=x", "550 5.7.0"),
        (b"X-FOO", "550 5.7.0"),
        (b"DATA x", "501 5.5.4"),
        (b"STARTTLS x", "501 5.5.4"),
        (b"x" * 20000, "500 5.5.2"),
        (b"auth PLAIN " + b"x" * 20000, "500 5.5.6"),
        (b"NOOP\n", "500 5.5.2"),
        (b"NO\0OP", "500 5.5.2"),
        (b"NO\rOP", "500 5.5.2"),
    ],
)
def test_stimuli_before_ehlo(line: bytes, expected: str) -> None:
    """SMTP-01, 06..10, 20; EXT-07, 10, 15, 17..19; OUT-25: and the session goes on."""
    server = dialogue()
    assert codes(run(server, line + b"\r\n")) == [expected]
    if line != b"QUIT":
        assert codes(run(server, b"NOOP\r\n")) == ["250 2.0.0"]


def test_no_error_ends_the_session() -> None:
    """SMTP-09: any limit of errors is the caller's; outbound has none."""
    server = dialogue()
    for _ in range(200):
        assert codes(run(server, b"FOO\r\n")) == ["500 5.5.1"]
    assert codes(run(server, b"EHLO x\r\n")) == ["250"]


@pytest.mark.parametrize("length", [512, 1036, 12288 + 2])
def test_long_lines_are_taken(length: int) -> None:
    """SMTP-20: 512 for all, 1036 for a DSN RCPT, 12288 for AUTH."""
    line = b"NOOP ".ljust(length - 2, b"x") + b"\r\n"
    assert codes(run(dialogue(), line)) == ["250 2.0.0"]


def test_ehlo_ends_the_transaction() -> None:
    """SMTP-05: MAIL, EHLO, RCPT -> 503."""
    server = dialogue()
    heard = run(server, b"EHLO x\r\n") + run(server, b"MAIL FROM:<>\r\n") + run(server, b"EHLO y\r\n")
    assert codes(heard) == ["250", "250 2.1.0", "250"]
    assert codes(run(server, b"RCPT TO:<b@b.example>\r\n")) == ["503 5.5.1"]
    assert server.client_name == b"y"


def test_a_nested_mail_changes_nothing() -> None:
    """SMTP-06."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    group = b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\nMAIL FROM:<>\r\nLHLO z\r\nDATA\r\n"
    assert codes(run(server, group)) == ["250 2.1.0", "250 2.1.0", "503 5.5.1", "500 5.5.1", "354"]
    assert server.recipients == 1


def test_open_slots_are_the_callers() -> None:
    """MAIL, RCPT and DATA in order come without a reply, RSET in their midst with one."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    server.receive(
        b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<c@b.example>\r\nDATA\r\n"
    )
    group = server.next_group()
    assert [type(slot.command) for slot in group] == [Mail, Rcpt, Rset, Mail, Rcpt, Data]
    assert [slot.reply is None for slot in group] == [True, True, False, True, True, True]


@pytest.mark.parametrize(("code", "second"), [(250, 503), (550, None)])
def test_a_mail_that_stands_on_an_open_one_waits_for_its_reply(code: int, second: int | None) -> None:
    """SMTP-06: a refused MAIL changes nothing, so the next is no nested one, in one segment as in two."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    server.receive(b"MAIL FROM:<>\r\nMAIL FROM:<>\r\n")
    (first,) = server.next_group()
    assert server.pending
    first.reply = Reply.of(code, "", "said")
    server.settle([first])
    (nested,) = server.next_group()
    assert (nested.reply.code if nested.reply else None) == second
    assert not server.pending


def test_a_refused_mail_refuses_what_stood_on_it() -> None:
    """INV-07: the group was judged in hope; the replies are by what was."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    server.receive(b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n")
    mail, rcpt, data = group = server.next_group()
    mail.reply = Reply.of(451, "4.3.0", "no")
    assert codes(server.settle(group)) == ["451 4.3.0", "503 5.5.1", "503 5.5.1"]
    assert not server.in_transaction
    assert rcpt.reply is not None
    assert data.reply is not None


@pytest.mark.parametrize(("lmtp", "expected"), [(False, "554 5.5.1"), (True, "503 5.5.1")])
def test_data_without_an_accepted_recipient(lmtp: bool, expected: str) -> None:
    """EXT-21: 554, 503 in LMTP, in one group and in the next."""
    server = dialogue(lmtp=lmtp)
    run(server, b"LHLO x\r\n" if lmtp else b"EHLO x\r\n")
    server.receive(b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n")
    mail, rcpt, data = server.next_group()
    accept(mail)
    refuse_recipients(rcpt)
    assert codes(server.settle([mail, rcpt])) == ["250 2.1.0", "550 5.1.1"]
    assert data.reply is None
    server.recheck(data)
    assert codes(server.settle([data])) == [expected]
    assert codes(run(server, b"DATA\r\n")) == [expected]
    assert server.in_transaction


def test_one_recipient_too_many() -> None:
    """SMTP-22: the 101st RCPT hears 452, the 100 stay."""
    server = dialogue(offer=Offer(rcpt_max=100))
    run(server, b"EHLO x\r\n")
    heard = run(server, b"MAIL FROM:<>\r\n" + b"RCPT TO:<b@b.example>\r\n" * 102)
    assert codes(heard)[1:] == ["250 2.1.0"] * 100 + ["452 4.5.3"] * 2
    assert server.recipients == 100


def test_parameters_are_judged() -> None:
    """SMTP-12, EXT-04: SMTPUTF8 of the MAIL in the same group counts for its RCPT."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    assert codes(run(server, b"MAIL FROM:<> FOO=1\r\n")) == ["555 5.5.4"]
    group = "MAIL FROM:<> SMTPUTF8\r\nRCPT TO:<ü@b.example>\r\nRSET\r\nMAIL FROM:<>\r\nRCPT TO:<ü@b.example>\r\n"
    assert codes(run(server, group.encode())) == ["250 2.1.0"] * 2 + ["250 2.0.0", "250 2.1.0", "553 5.6.7"]


def test_groups_end_where_the_client_waits() -> None:
    """EXT-23: replies are not held back behind NOOP, VRFY, EXPN, HELP, QUIT, unknown verbs and DATA."""
    for line in (b"NOOP", b"VRFY x", b"EXPN x", b"HELP", b"FOO", b"DATA", b"QUIT", b"STARTTLS"):
        server = dialogue(reject_early=False)
        server.receive(b"RSET\r\n" + line + b"\r\nRSET\r\n")
        assert len(server.next_group()) == 2
    assert dialogue().next_group() == []


def test_a_group_is_bounded() -> None:
    server = dialogue()
    server.receive(b"RSET\r\n" * (MAX_GROUP + 5))
    group = server.next_group()
    assert len(group) == MAX_GROUP
    server.settle(group)
    assert len(server.next_group()) == 5


# -- STARTTLS


def test_starttls() -> None:
    """STLS-04, STLS-06: all is forgotten, and STARTTLS is neither offered nor taken again."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    run(server, b"MAIL FROM:<>\r\n")
    server.receive(b"starttls\r\n")
    (slot,) = server.next_group()
    assert isinstance(slot.command, StartTls)
    assert slot.starts_tls
    assert codes(server.settle([slot])) == ["220 2.0.0"]
    with pytest.raises(LocalProtocolError):
        server.next_group()
    server.receive(b"MAIL FROM:<evil@a.example>\r\n")  # in clear, behind the 220: never read
    server.tls_started()
    assert server.next_group() == []
    assert (server.tls_active, server.greeted, server.in_transaction, server.client_name) == (
        True,
        False,
        False,
        b"",
    )
    assert codes(run(server, b"RCPT TO:<b@b.example>\r\n")) == ["503 5.5.1"]
    assert codes(run(server, b"MAIL FROM:<>\r\n")) == ["503 5.5.1"]
    assert b"STARTTLS" not in run(server, b"EHLO x\r\n")
    assert codes(run(server, b"STARTTLS\r\n")) == ["503 5.5.1"]


def test_implicit_tls() -> None:
    """STLS-06: also on 465."""
    server = dialogue(tls_active=True)
    assert b"STARTTLS" not in run(server, b"EHLO x\r\n")
    assert codes(run(server, b"STARTTLS\r\n")) == ["503 5.5.1"]


def test_starttls_after_helo_is_out_of_order() -> None:
    """STLS-02."""
    server = dialogue()
    run(server, b"HELO x\r\n")
    assert codes(run(server, b"STARTTLS\r\n")) == ["503 5.5.1"]


def test_starttls_that_cannot_be_done_now() -> None:
    """STLS-03: 454, and the session goes on in clear."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    server.tls_unavailable = True
    assert codes(run(server, b"STARTTLS\r\n")) == ["454 4.7.0"]
    assert codes(run(server, b"MAIL FROM:<>\r\n")) == ["250 2.1.0"]


INJECTION = b"STARTTLS\r\nMAIL FROM:<evil@a.example>\r\n"


@pytest.mark.parametrize("offset", range(1, len(INJECTION)))
def test_octets_behind_starttls(offset: int) -> None:
    """STLS-07, OUT-26: wherever the segment is cut, nothing behind STARTTLS is ever a command."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    heard = b""
    slots: list[Slot] = []
    for part in (INJECTION[:offset], INJECTION[offset:]):
        server.receive(part)
        if not slots:
            slots = server.next_group()
            heard += server.settle(slots)
    (slot,) = slots
    assert isinstance(slot.command, StartTls)
    if slot.closes:
        assert codes(heard) == ["554 5.5.0"]
        assert not slot.starts_tls
        assert server.next_group() == []
    else:  # the second segment came after our 220: it meets the handshake, and is dropped from the buffer
        assert offset == len(b"STARTTLS\r\n")
        assert codes(heard) == ["220 2.0.0"]
        server.tls_started()
        assert server.next_group() == []
        assert not server.pending


def test_octets_that_come_between_reading_starttls_and_answering_it() -> None:
    """STLS-07."""
    server = dialogue()
    run(server, b"EHLO x\r\n")
    server.receive(b"STARTTLS\r\n")
    group = server.next_group()
    server.receive(b"N")
    assert codes(server.settle(group)) == ["554 5.5.0"]
    assert group[0].closes


# -- early talkers


@pytest.mark.parametrize("line", [b"EHLO x", b"DATA"])
@pytest.mark.parametrize("reject", [True, False])
def test_octets_before_the_reply_they_depend_on(line: bytes, reject: bool) -> None:
    """EXT-24: behind EHLO and DATA; 554 and close, or tolerated."""
    server = dialogue(reject_early=reject)
    run(server, b"EHLO x\r\n")
    run(server, b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\n")
    server.receive(line + b"\r\nNOOP\r\n")
    group = server.next_group()
    assert group[-1].closes is reject
    for slot in group:
        accept(slot)
    assert codes(server.settle(group)) == [
        "554 5.5.0" if reject else "354" if line == b"DATA" else "250",
    ]


def test_content_behind_a_refused_data_is_never_commands() -> None:
    """EXT-24: DATA out of order with content at its heels ends the session."""
    server = dialogue()
    assert codes(run(server, b"DATA\r\nRSET\r\nNOOP\r\n.\r\n")) == ["554 5.5.0"]


def test_a_client_that_talks_before_the_greeting() -> None:
    """EXT-24."""
    server = ServerDialogue(hostname="guard.example", lmtp=False, offer=Offer())
    server.receive(b"NOOP\r\n")
    assert server.greeting().code == 220
    assert codes(run(server, b"NOOP\r\n")) == ["554 5.5.0"]
    assert server.next_group() == []


# -- the contract with the caller


def test_nothing_is_written_behind_a_closing_reply() -> None:
    """SMTP-16: 221 and 421 are last words; what still comes is dropped."""
    server = dialogue()
    server.receive(b"RSET\r\nRSET\r\n")
    group = server.next_group()
    group[0].reply, group[0].closes = Reply.of(421, "4.4.2", "idle"), True
    assert codes(server.settle(group)) == ["421 4.4.2"]
    server.receive(b"NOOP\r\n" * 1000)
    assert not server.pending
    assert server.next_group() == []


def test_slots_are_settled_once_and_in_order() -> None:
    """INV-07: one reply per command, in order, is not left to the caller's care."""
    server = dialogue()
    server.receive(b"RSET\r\nRSET\r\n")
    first, second = server.next_group()
    with pytest.raises(LocalProtocolError):
        server.settle([second])
    with pytest.raises(LocalProtocolError):
        server.next_group()
    assert codes(server.settle([first])) == ["250 2.0.0"]
    with pytest.raises(LocalProtocolError):
        server.settle([first])
    server.settle([second])


def test_a_slot_without_a_reply_is_a_bug_of_the_caller() -> None:
    server = dialogue()
    run(server, b"EHLO x\r\n")
    server.receive(b"MAIL FROM:<>\r\n")
    with pytest.raises(LocalProtocolError, match="Mail"):
        server.settle(server.next_group())


def test_no_commands_while_content_is_read() -> None:
    server = dialogue()
    run(server, b"EHLO x\r\n")
    run(server, b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\nDATA\r\n")
    with pytest.raises(LocalProtocolError):
        server.next_group()


def test_a_data_refused_by_the_routes_leaves_commands_to_come() -> None:
    server = dialogue()
    run(server, b"EHLO x\r\n")
    run(server, b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\n")
    server.receive(b"DATA\r\n")
    (data,) = group = server.next_group()
    data.reply = Reply.of(451, "4.4.2", "lost")
    assert codes(server.settle(group)) == ["451 4.4.2"]
    server.end_transaction()
    assert codes(run(server, b"DATA\r\n")) == ["503 5.5.1"]


def test_auth_and_bdat_are_open_slots_where_offered() -> None:
    """EXT-07, EXT-10: ready for inbound."""
    server = dialogue(offer=Offer(auth=("PLAIN",), chunking=True), tls_active=True)
    run(server, b"EHLO x\r\n")
    server.receive(b"AUTH PLAIN AGEAYg==\r\n")
    (auth,) = group = server.next_group()
    assert auth.command == Auth("PLAIN", b"AGEAYg==")
    assert auth.reply is None
    auth.reply = Reply.of(235, "2.7.0", "Ok")
    server.settle(group)
    run(server, b"MAIL FROM:<>\r\nRCPT TO:<b@b.example>\r\n")
    server.receive(b"BDAT 3 LAST\r\nabc")
    (bdat,) = server.next_group()
    assert bdat.command == Bdat(3, True)
    assert bdat.reply is None
    assert server.take_rest() == b"abc"


def test_ehlo_is_a_command_with_its_reply() -> None:
    server = dialogue()
    server.receive(b"EHLO x\r\n")
    (slot,) = server.next_group()
    assert slot.command == Ehlo(b"x")
    assert not server.greeted  # not before it was settled
    server.settle([slot])
    assert server.greeted


# -- fuzz

LINES = [
    b"EHLO x",
    b"HELO x",
    b"LHLO x",
    b"MAIL FROM:<a@a.example>",
    b"MAIL FROM:<> SIZE=5 FOO",
    b"RCPT TO:<b@b.example>",
    b"RCPT TO:<b>",
    b"DATA",
    b"RSET",
    b"NOOP",
    b"HELP",
    b"VRFY x",
    b"AUTH PLAIN",
    b"BDAT 0",
    b"STARTTLS",
    b"\x80\0",
    b"a\nb",
    b"",
]


def reference(lines: list[bytes], verdicts: Iterator[bool]) -> list[str]:
    """A lock-step server of a few lines: the first digit of each reply."""
    greeted = transaction = False
    recipients = 0
    heard = []
    for line in lines:
        match line.split(b" ")[0].split(b":")[0]:
            case b"EHLO" | b"HELO":
                greeted, transaction, recipients, digit = True, False, 0, "2"
            case b"MAIL" if greeted and not transaction and b"FOO" not in line:
                transaction = next(verdicts)
                recipients, digit = 0, "2" if transaction else "5"
            case b"RCPT" if transaction and b"@" in line:
                accepted = next(verdicts)
                recipients += accepted
                digit = "2" if accepted else "5"
            case b"RSET":
                transaction, recipients, digit = False, 0, "2"
            case b"DATA" if transaction and recipients:
                digit = "4"
            case b"NOOP" | b"HELP" | b"VRFY":
                digit = "2"
            case _:
                digit = "5"
        heard.append(digit)
    return heard


@settings(max_examples=200)
@given(st.lists(st.sampled_from([line for line in LINES if line != b"STARTTLS"]), max_size=40), st.data())
def test_pipelined_groups_answer_as_a_lock_step_server(lines: list[bytes], data: st.DataObject) -> None:
    """INV-07: whatever the cuts, the same replies in the same order as a server that takes one by one.

    RCPT verdicts are drawn; MAIL is accepted, as outbound does (a refused one is judged by hope, see above).
    """
    verdict_of = data.draw(st.lists(st.booleans(), min_size=40, max_size=40))
    server = dialogue(offer=Offer(), reject_early=False)
    octets = b"".join(line + b"\r\n" for line in lines)
    heard = b""
    asked: list[bool] = []
    remaining = iter(verdict_of)

    def answer(slot: Slot) -> None:
        if slot.reply is not None:
            return
        match slot.command:
            case Mail():
                asked.append(True)
                slot.reply = OK
            case Rcpt():
                asked.append(next(remaining))
                slot.reply = OK if asked[-1] else Reply.of(550, "5.1.1", "no")
            case _:
                slot.reply = Reply.of(451, "4.4.2", "later")

    while octets:
        step = data.draw(st.integers(1, len(octets)))
        heard += run(server, octets[:step], answer)
        octets = octets[step:]
    assert [code[0] for code in codes(heard)] == reference(lines, iter(asked))


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(st.binary(max_size=60), st.sampled_from(LINES).map(lambda line: line + b"\r\n")),
        max_size=30,
    )
)
def test_any_octets_get_one_reply_a_line(parts: list[bytes]) -> None:
    """INV-07, SMTP-01, EXT-06: nothing raises, one reply a line, in form, in bounded memory."""
    server = dialogue(offer=Offer(), reject_early=False)
    heard = b""
    for part in parts:
        heard += run(server, part, lambda slot: setattr(slot, "reply", slot.reply or OK))
    lines = b"".join(parts).count(b"\r\n")
    told = codes(heard)
    assert len(told) == lines or (told[-1].startswith("221") and len(told) < lines)  # nothing is answered behind QUIT
    assert not any(code.startswith("221") for code in told[:-1])
    assert not heard.translate(None, bytes(range(32, 127)) + b"\r\n")
    assert all(len(line) <= 510 for line in heard.split(b"\r\n"))


def test_an_endless_line_is_bounded() -> None:
    """SMTP-20."""
    server = dialogue()
    for _ in range(1000):
        server.receive(b"x" * 65536)
        assert server.next_group() == []
    assert len(server._reader._buffer) <= 1
    assert codes(run(server, b"\r\nNOOP\r\n")) == ["500 5.5.2", "250 2.0.0"]
