"""One line, one command."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.names import Domain
from smtpguard.smtp.commands import (
    Auth,
    BadCommand,
    Bdat,
    Command,
    Data,
    Ehlo,
    Expn,
    Helo,
    Help,
    Lhlo,
    Mail,
    Noop,
    Other,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Vrfy,
    parse_command,
)
from smtpguard.smtp.syntax import ForwardPath, ReversePath

A = ReversePath(b"a@a.example", b"a", Domain("a.example"))
B = ForwardPath(b"b", Domain("b.example"), b"b@b.example")


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"EHLO mta.example", Ehlo(b"mta.example")),
        (b"ehlo [192.0.2.1]", Ehlo(b"[192.0.2.1]")),
        (b"EHLO my_pc", Ehlo(b"my_pc")),
        (b"HELO mta.example", Helo(b"mta.example")),
        (b"LHLO mta.example", Lhlo(b"mta.example")),
        (b"mAiL fRoM:<a@a.example>", Mail(A)),
        (b"MAIL FROM:<a@a.example>   ", Mail(A)),
        (b"MAIL FROM:<a@a.example> SIZE=7 SMTPUTF8", Mail(A, (("SIZE", "7"), ("SMTPUTF8", None)))),
        (b"rcpt to:<b@b.example>\t", Rcpt(B)),
        (b"RCPT TO:<@r.example:b@b.example> NOTIFY=NEVER", Rcpt(B, (("NOTIFY", "NEVER"),))),
        (b"DATA", Data()),
        (b"data  ", Data()),
        (b"RSET", Rset()),
        (b"QUIT\t", Quit()),
        (b"NOOP", Noop()),
        (b"NOOP whatever it says", Noop()),
        (b"HELP", Help()),
        (b"HELP MAIL", Help()),
        (b"VRFY root", Vrfy(b"root")),
        (b"EXPN list", Expn(b"list")),
        (b"STARTTLS", StartTls()),
        (b"auth plain", Auth("PLAIN")),
        (b"AUTH PLAIN =", Auth("PLAIN", b"=")),
        (b"AUTH SCRAM-SHA-256 biws", Auth("SCRAM-SHA-256", b"biws")),
        (b"BDAT 86", Bdat(86, False)),
        (b"bdat 0 last", Bdat(0, True)),
        (b"", Other("")),
        (b"FOO bar", Other("FOO")),
        (b"xclient ADDR=192.0.2.1", Other("XCLIENT")),
        (b"GET / HTTP/1.1", Other("GET")),
        (b"\x16\x03\x01" + b"x" * 90, Other("???" + "X" * 26 + "...")),
    ],
)
def test_commands(line: bytes, command: Command) -> None:
    """SMTP-02, SMTP-07, SMTP-11: any case, trailing white space, every verb of RFC 5321 §4.5.1."""
    assert parse_command(line) == command


@pytest.mark.parametrize(
    ("line", "code", "status"),
    [
        (b"EHLO", 501, "5.5.4"),
        (b"EHLO two names", 501, "5.5.4"),
        (b"EHLO " + b"x" * 256, 501, "5.5.4"),
        (b"EHLO \x1bx", 501, "5.5.4"),
        (b"HELO", 501, "5.5.4"),
        (b"LHLO", 501, "5.5.4"),
        (b"MAIL", 501, "5.5.4"),
        (b"MAIL <a@a.example>", 501, "5.5.4"),
        (b"MAIL FROM :<a@a.example>", 501, "5.5.4"),
        (b"MAIL FROM: <a@a.example>", 501, "5.1.7"),
        (b"MAIL FROM:a@a.example", 501, "5.1.7"),
        (b"MAIL FROM:<root>", 501, "5.1.7"),
        (b"MAIL FROM:<a@a.example>SIZE=1", 501, "5.5.4"),
        (b"MAIL FROM:<a@a.example> SIZE=1 SIZE=1", 501, "5.5.4"),
        (b"RCPT", 501, "5.5.4"),
        (b"RCPT TO:", 501, "5.1.3"),
        (b"RCPT TO: <b@b.example>", 501, "5.1.3"),
        (b"RCPT TO:<>", 501, "5.1.3"),
        (b"RCPT TO:<root>", 501, "5.1.3"),
        (b"RCPT TO:<b@-b.example>", 550, "5.1.3"),
        (b"RCPT TO:<b@b.example> =", 501, "5.5.4"),
        (b"DATA now", 501, "5.5.4"),
        (b"RSET now", 501, "5.5.4"),
        (b"QUIT now", 501, "5.5.4"),
        (b"STARTTLS x", 501, "5.5.4"),
        (b"VRFY", 501, "5.5.4"),
        (b"EXPN", 501, "5.5.4"),
        (b"AUTH", 501, "5.5.4"),
        (b"AUTH PLAIN a b", 501, "5.5.4"),
        (b"AUTH PL\x01AIN", 501, "5.5.4"),
        (b"AUTH PLAIN !!", 501, "5.5.2"),
        (b"BDAT", 501, "5.5.4"),
        (b"BDAT -1", 501, "5.5.4"),
        (b"BDAT 1 FIRST", 501, "5.5.4"),
        (b"BDAT 1 LAST LAST", 501, "5.5.4"),
        (b"BDAT " + b"9" * 21, 501, "5.5.4"),
    ],
)
def test_arguments_that_are_none(line: bytes, code: int, status: str) -> None:
    """SMTP-10 (arguments to DATA, RSET, QUIT), STLS-02 (`STARTTLS x`), SMTP-11 (no space after the colon)."""
    command = parse_command(line)
    assert isinstance(command, BadCommand)
    assert (command.reply.code, command.reply.enhanced_status) == (code, status)


def test_what_mail_announces() -> None:
    plain = parse_command(b"MAIL FROM:<>")
    assert isinstance(plain, Mail)
    assert (plain.size, plain.is_8bit, plain.needs_smtputf8) == (None, False, False)
    full = parse_command(b"MAIL FROM:<> SIZE=12 BODY=8bitmime SMTPUTF8")
    assert isinstance(full, Mail)
    assert (full.size, full.is_8bit, full.needs_smtputf8) == (12, True, True)
    odd = parse_command("MAIL FROM:<> SIZE=١٢ BODY".encode())
    assert isinstance(odd, Mail)
    assert (odd.size, odd.is_8bit) == (None, False)


def test_a_secret_stays_out_of_the_repr() -> None:
    """AUTH-01: credentials reach no log."""
    assert "AGEAYg==" not in repr(parse_command(b"AUTH PLAIN AGEAYg=="))


VERBS = [b"EHLO ", b"MAIL FROM:<", b"RCPT TO:<", b"AUTH ", b"BDAT ", b"STARTTLS", b"VRFY ", b""]


@given(st.sampled_from(VERBS), st.binary(max_size=100))
def test_any_line_is_a_command(verb: bytes, octets: bytes) -> None:
    """Nothing raises; a refusal is typed, printable, 5yz and of one line."""
    command = parse_command(verb + octets)
    if isinstance(command, BadCommand):
        assert command.reply.code in {501, 550}
        assert command.reply.encode().isascii()
        assert command.reply.encode().count(b"\n") == 1
    elif isinstance(command, Other):
        assert len(command.verb) <= 32
        assert command.verb.isprintable()
