"""inbound.manners: errors, and commands without a message."""

import pytest

from smtpguard.inbound.limits import Limits
from smtpguard.inbound.manners import Manners, violation_of
from smtpguard.smtp.commands import (
    Auth,
    BadCommand,
    Command,
    Data,
    Ehlo,
    Mail,
    Noop,
    Other,
    Rcpt,
    StartTls,
    parse_command,
)
from smtpguard.smtp.framing import LineFaultKind
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import Slot

OK = Reply.of(250, "2.0.0", "Ok")
LIMITS = Limits(errors=2, idle_commands=3)


def slot(line: str, code: int = 0) -> Slot:
    """A command, and the reply that the dialogue has given it."""
    status = f"{code // 100}.0.0" if code else ""
    return Slot(parse_command(line.encode()), Reply.of(code, status, "x") if code else None)


def inspected(manners: Manners, *group: Slot, authenticated: bool = False) -> list[tuple[int, bool]]:
    """Code (0: still open) and whether it closes, of what is carried out."""
    kept = manners.inspect(list(group), authenticated=authenticated)
    return [(one.reply.code if one.reply is not None else 0, one.closes) for one in kept]


def test_authenticated_once() -> None:
    """AUTH-03."""
    assert inspected(Manners(LIMITS), slot("AUTH PLAIN"), authenticated=True) == [(503, False)]
    assert inspected(Manners(LIMITS), slot("AUTH PLAIN")) == [(0, False)]


@pytest.mark.parametrize(
    ("code", "counts"),
    [
        (500, True), (501, True), (502, True), (503, True), (504, True), (530, True), (550, True), (555, True),
        (250, False), (252, False), (452, False), (454, False), (552, False), (553, False), (554, False),
    ],
)  # fmt: skip
def test_which_replies_are_errors(code: int, counts: bool) -> None:
    """OUT-21, AF-43: what is the client's fault; not what is full or too big."""
    manners = Manners(Limits(errors=0))
    assert inspected(manners, slot("MAIL FROM:<a@a.example>", code)) == ([(421, True)] if counts else [(code, False)])
    assert manners.excess == ("errors" if counts else "")


def test_the_error_that_is_one_too_many() -> None:
    """SMTP-09, AF-43, OUT-21: it hears 421 itself, and what is behind it in the group is not looked at."""
    manners = Manners(LIMITS)
    assert inspected(manners, slot("FOO", 500), slot("MAIL FROM:<>"), slot("FOO", 500)) == [
        (500, False), (0, False), (500, False),
    ]  # fmt: skip
    group = [slot("MAIL FROM:<>"), slot("FOO", 500), slot("RCPT TO:<b@b.example>")]
    assert inspected(manners, *group) == [(0, False), (421, True)]
    assert str(group[1].reply) == "421 4.7.0 Too many errors, closing"
    assert (group[2].reply, manners.excess) == (None, "errors")


def test_errors_are_not_forgiven_by_a_message() -> None:
    manners = Manners(LIMITS)
    inspected(manners, slot("FOO", 500), slot("FOO", 500))
    manners.message_done()
    assert inspected(manners, slot("FOO", 500)) == [(421, True)]


@pytest.mark.parametrize("line", ["NOOP", "RSET", "VRFY x", "EXPN x", "HELP", "EHLO x", "HELO x"])
def test_commands_without_a_message(line: str) -> None:
    """OUT-21: the one too many hears 421; an answered message begins anew."""
    manners = Manners(LIMITS)
    assert inspected(manners, *(slot(line, 250) for _ in range(3))) == [(250, False)] * 3
    manners.message_done()
    assert inspected(manners, *(slot(line, 250) for _ in range(5))) == [(250, False)] * 3 + [(421, True)]
    assert manners.excess == "idle_commands"


@pytest.mark.parametrize(
    ("line", "code", "free"),
    [
        ("MAIL FROM:<>", 552, 3), ("MAIL FROM:<>", 553, 3), ("MAIL FROM:<>", 450, 3), ("STARTTLS", 454, 3),
        ("DATA", 554, 3), ("AUTH PLAIN", 535, 3), ("AUTH PLAIN", 501, 3),
        ("RCPT TO:<b@b.example>", 452, 399), ("RCPT TO:<b@b.example>", 550, 399), ("BDAT 1", 503, 399),
    ],
)  # fmt: skip
def test_what_was_refused_has_brought_no_message_on(line: str, code: int, free: int) -> None:
    """OUT-21, OUT-22 (RFC 5321 §4.5.3.1.10): by whomever; the limit is seen at the next command, and QUIT is served."""
    manners = Manners(LIMITS)
    for _ in range(2):
        for _ in range(free):
            manners.answered(slot(line, code))
        assert inspected(manners, slot(line)) == [(0, False)]
        manners.message_done()
    for _ in range(free + 100):
        manners.answered(slot(line, code))
    assert inspected(manners, slot("QUIT", 221)) == [(221, False)]
    assert inspected(manners, slot(line), slot(line)) == [(421, True)]
    assert manners.excess == "idle_commands"


def test_what_was_done_is_not_counted() -> None:
    manners = Manners(Limits(idle_commands=0))
    for line, code in (("MAIL FROM:<>", 250), ("RCPT TO:<b@b.example>", 250), ("DATA", 354), ("AUTH PLAIN", 235)):
        manners.answered(slot(line, code))
    assert inspected(manners, slot("MAIL FROM:<>")) == [(0, False)]


def test_empty_chunks() -> None:
    """OUT-21: the size of a message bounds every other chunk."""
    manners = Manners(LIMITS)
    assert inspected(manners, *(slot("BDAT 0") for _ in range(5))) == [(0, False)] * 3 + [(421, True)]


def test_what_is_pipelined_behind_a_refused_mail_is_one_mistake() -> None:
    """OUT-21: the client could not know."""
    manners = Manners(LIMITS)
    behind = [slot("RCPT TO:<b@b.example>", 503) for _ in range(100)]
    group = [slot("MAIL FROM:<> SIZE=9", 552), *behind, slot("DATA", 503)]
    assert len(inspected(manners, *group)) == 102
    assert inspected(manners, slot("MAIL FROM:<>"), *behind) == [(0, False), (503, False), (503, False), (421, True)]


@pytest.mark.parametrize("line", ["MAIL FROM:<>", "RCPT TO:<b@b.example>", "DATA", "BDAT 1", "AUTH PLAIN", "QUIT"])
def test_commands_of_a_message_are_not_empty(line: str) -> None:
    manners = Manners(LIMITS)
    assert len(inspected(manners, *(slot(line) for _ in range(50)))) == 50
    assert manners.excess == ""


def test_no_handshake_after_a_limit() -> None:
    """The STARTTLS that is one error too many does not go on to TLS."""
    one = slot("STARTTLS", 503)
    one.starts_tls = True
    assert inspected(Manners(Limits(errors=0)), one) == [(421, True)]
    assert not one.starts_tls


@pytest.mark.parametrize(
    ("command", "code", "closes", "kind"),
    [
        (BadCommand(OK, LineFaultKind.LINE_TOO_LONG), 500, False, "line_too_long"),
        (BadCommand(OK, LineFaultKind.NUL), 500, False, "nul"),
        (BadCommand(OK, LineFaultKind.BARE_NEWLINE), 500, False, "bare_newline"),
        (BadCommand(OK), 501, False, ""),
        (BadCommand(OK), 554, True, "early_talker"),
        (StartTls(), 554, True, "starttls_injection"),
        (StartTls(), 454, False, ""),
        (Auth("PLAIN"), 530, False, "auth_clear"),
        (Auth("PLAIN"), 535, False, ""),
        (Other("XCLIENT"), 550, False, "xclient"),
        (Other("XFORWARD"), 550, False, ""),
        (Other("FOO"), 500, False, ""),
        (Data(), 554, True, "early_talker"),
        (Data(), 554, False, ""),
        (Ehlo(b"x"), 554, True, "early_talker"),
        (Noop(), 421, True, ""),
    ],
)
def test_violations(command: Command, code: int, closes: bool, kind: str) -> None:
    """AF-43, AF-46, AF-56, EXT-24: the word of the event; none for a mistake."""
    assert violation_of(Slot(command, Reply.of(code, "", "x"), closes)) == kind


def test_no_violation_in_what_is_open() -> None:
    for line in ("MAIL FROM:<>", "RCPT TO:<b@b.example>"):
        one = slot(line)
        assert isinstance(one.command, Mail | Rcpt)
        assert violation_of(one) == ""
