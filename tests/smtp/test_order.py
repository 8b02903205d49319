"""The table of order, printed once: rows are commands, columns are states."""

import pytest

from smtpguard.smtp.commands import parse_command
from smtpguard.smtp.extensions import Offer
from smtpguard.smtp.order import Progress, Terms, out_of_order, unacceptable

STATES = {
    "start": Progress(),
    "helo": Progress(greeted=True),
    "ehlo": Progress(greeted=True, extended=True),
    "mail": Progress(greeted=True, extended=True, in_transaction=True),
    "rcpt": Progress(greeted=True, extended=True, in_transaction=True, recipients=1),
}

SMTP = """
command                   start helo ehlo mail rcpt
EHLO x                    -     -    -    -    -
HELO x                    -     -    -    -    -
LHLO x                    500   500  500  500  500
MAIL FROM:<>              503   -    -    503  503
RCPT TO:<b@b.example>     503   503  503  -    -
DATA                      503   503  503  554  -
RSET                      -     -    -    -    -
NOOP                      -     -    -    -    -
QUIT                      -     -    -    -    -
HELP                      -     -    -    -    -
VRFY x                    -     -    -    -    -
EXPN x                    -     -    -    -    -
STARTTLS                  503   503  -    -    -
AUTH PLAIN                502   502  502  502  502
BDAT 1 LAST               502   502  502  502  502
FOO                       -     -    -    -    -
"""

LMTP = """
command                   start ehlo mail rcpt
EHLO x                    500   500  500  500
HELO x                    500   500  500  500
LHLO x                    -     -    -    -
MAIL FROM:<>              503   -    503  503
RCPT TO:<b@b.example>     503   503  -    -
DATA                      503   503  503  -
STARTTLS                  503   -    -    -
"""

INBOUND_IN_TLS = """
command                   start helo ehlo mail rcpt
AUTH PLAIN                503   503  -    503  503
BDAT 1 LAST               503   503  503  554  -
STARTTLS                  503   503  503  503  503
"""

INBOUND_IN_CLEAR = """
command                   start helo ehlo mail rcpt
AUTH PLAIN                530   530  530  530  530
"""

TLS_UNAVAILABLE = """
command                   start helo ehlo mail rcpt
STARTTLS                  503   503  454  454  454
"""

NO_TLS_OFFERED = """
command                   start helo ehlo mail rcpt
STARTTLS                  502   502  502  502  502
"""

FULL = Offer(starttls=True, auth=("PLAIN",), chunking=True)


@pytest.mark.parametrize(
    ("table", "terms"),
    [
        (SMTP, Terms(False, Offer(starttls=True), False)),
        (LMTP, Terms(True, Offer(starttls=True), False)),
        (INBOUND_IN_TLS, Terms(False, FULL, True)),
        (INBOUND_IN_CLEAR, Terms(False, FULL, False)),
        (TLS_UNAVAILABLE, Terms(False, FULL, False, tls_unavailable=True)),
        (NO_TLS_OFFERED, Terms(False, Offer(), False)),
    ],
    ids=["smtp", "lmtp", "inbound-tls", "inbound-clear", "tls-unavailable", "no-tls"],
)
def test_the_table(table: str, terms: Terms) -> None:
    """SMTP-06, SMTP-07, EXT-07, EXT-10, EXT-21, LMTP-01, STLS-02, STLS-03, STLS-06, AUTH-01, AUTH-03."""
    head, *rows = table.strip().split("\n")
    for row in rows:
        line, cells = row[:26].strip(), row[26:].split()
        for state, cell in zip(head.split()[1:], cells, strict=True):
            reply = out_of_order(parse_command(line.encode()), STATES[state], terms)
            assert (str(reply.code) if reply else "-") == cell, (line, state)
            if reply is not None:
                assert reply.enhanced_status  # EXT-06


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("EHLO x", STATES["ehlo"]),
        ("LHLO x", STATES["ehlo"]),
        ("HELO x", STATES["helo"]),
        ("MAIL FROM:<>", STATES["mail"]),
        ("RCPT TO:<b@b.example>", Progress(True, True, True, False, 2)),
        ("RSET", STATES["ehlo"]),
        ("NOOP", STATES["rcpt"]),
        ("DATA", STATES["rcpt"]),
    ],
)
def test_what_an_accepted_command_changes(line: str, expected: Progress) -> None:
    """SMTP-05: EHLO ends a transaction as RSET does."""
    assert STATES["rcpt"].after(parse_command(line.encode())) == expected


def test_the_last_recipient_and_one_more() -> None:
    """SMTP-22, OUT-22."""
    rcpt = parse_command(b"RCPT TO:<b@b.example>")
    assert unacceptable(rcpt, Progress(True, True, True, False, 99), Offer(rcpt_max=100)) is None
    reply = unacceptable(rcpt, Progress(True, True, True, False, 100), Offer(rcpt_max=100))
    assert reply is not None
    assert (reply.code, reply.enhanced_status) == (452, "4.5.3")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("MAIL FROM:<a@a.example>", None),
        ("MAIL FROM:<a@a.example> SIZE=1", 555),
        ("MAIL FROM:<ü@a.example>", 553),
        ("RCPT TO:<b@b.example>", None),
        ("RCPT TO:<b@b.example> NOTIFY=NEVER", 555),
        ("RCPT TO:<ü@b.example>", 553),
    ],
)
def test_after_helo_there_are_no_extensions(line: str, code: int | None) -> None:
    """SMTP-04."""
    reply = unacceptable(parse_command(line.encode()), STATES["helo"], Offer())
    assert (reply and reply.code) == code
