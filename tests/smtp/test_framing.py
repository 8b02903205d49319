"""Lines and replies, each case fed whole, octet by octet, and with octets behind it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.smtp.framing import (
    MAX_REPLY_LINE_READ,
    MAX_REPLY_OCTETS,
    LineFault,
    LineFaultKind,
    LineReader,
    RemoteProtocolError,
    ReplyReader,
)
from smtpguard.smtp.replies import Reply

BARE = LineFaultKind.BARE_NEWLINE
LONG = LineFaultKind.LINE_TOO_LONG
NUL = LineFaultKind.NUL
LIMIT = 32


def shape(line: bytes | LineFault | None) -> object:
    return line.kind if isinstance(line, LineFault) else line


def lines_of(reader: LineReader) -> list[object]:
    found = []
    while (line := reader.next_line()) is not None:
        found.append(shape(line))
    return found


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"NOOP\r\n", [b"NOOP"]),
        (b"\r\n", [b""]),
        (b"A\r\nB\r\n", [b"A", b"B"]),
        (b"NOOP\nQUIT\r\n", [BARE]),
        (b"NOOP\rQUIT\r\n", [BARE]),
        (b"NOOP\r\r\n", [BARE]),
        (b"NOOP\n\r\n", [BARE]),
        (b"\n\r\nX\r\n", [BARE, b"X"]),
        (b"NO\0OP\r\n", [NUL]),
        (b"x" * (LIMIT - 2) + b"\r\n", [b"x" * (LIMIT - 2)]),
        (b"x" * (LIMIT - 1) + b"\r\nY\r\n", [LONG, b"Y"]),
        (b"x" * 500 + b"\n" * 9 + b"\r\nY\r\n", [LONG, b"Y"]),
        (b"x" * 500 + b"\r\r\nY\r\n", [LONG, b"Y"]),
        (b"\xff\xfe\r\n", [b"\xff\xfe"]),
    ],
)
def test_lines_in_three_feeds(octets: bytes, expected: list[object]) -> None:
    """SMTP-01, SMTP-20: only CRLF ends a line, a fault is told at its true end, the next line is whole."""
    whole = LineReader(LIMIT)
    whole.feed(octets)
    assert lines_of(whole) == expected
    assert not whole.pending

    single = LineReader(LIMIT)
    found = []
    for octet in octets:
        single.feed(bytes([octet]))
        found += lines_of(single)
    assert found == expected
    assert not single.pending

    trailed = LineReader(LIMIT)
    trailed.feed(octets + b"rest")
    assert lines_of(trailed) == expected
    assert trailed.pending
    assert trailed.take_rest() == b"rest"
    assert not trailed.pending


def test_no_answer_until_the_crlf_has_come() -> None:
    """SMTP-01: `NOOP` and a bare LF is no line, however long one waits."""
    reader = LineReader(LIMIT)
    reader.feed(b"NOOP\n")
    assert reader.next_line() is None
    reader.feed(b"\r")
    assert reader.next_line() is None
    reader.feed(b"\n")
    assert reader.next_line() == LineFault(BARE, b"NOOP\n")


def test_an_endless_line_takes_no_memory() -> None:
    """SMTP-20: the line is discarded in constant memory, to its end."""
    reader = LineReader(LIMIT)
    for _ in range(2000):
        reader.feed(b"AUTH PLAIN " + b"x" * 65536)
        assert reader.next_line() is None
        assert reader.pending
        assert len(reader._buffer) <= 1
    reader.feed(b"\r\nNOOP\r\n")
    assert reader.next_line() == LineFault(LONG, b"AUTH PLAIN xxxxx")
    assert reader.next_line() == b"NOOP"


def test_a_cr_at_the_cut_of_a_discarded_line_counts() -> None:
    reader = LineReader(LIMIT)
    reader.feed(b"x" * 100 + b"\r")
    assert reader.next_line() is None
    reader.feed(b"\nNOOP\r\n")
    assert shape(reader.next_line()) == LONG
    assert reader.next_line() == b"NOOP"


def test_the_rest_can_be_taken_between_lines() -> None:
    """The octets behind DATA's CRLF go to the body reader, none lost, none read as a line."""
    reader = LineReader(LIMIT)
    reader.feed(b"DATA\r\nSubject: x\r\n\r\n.\r\n")
    assert reader.next_line() == b"DATA"
    assert reader.take_rest() == b"Subject: x\r\n\r\n.\r\n"
    assert reader.next_line() is None
    reader.feed(b"QUIT\r\n")
    assert reader.next_line() == b"QUIT"


@given(st.lists(st.binary(max_size=80), max_size=12), st.data())
def test_any_cut_of_any_octets_gives_the_same_lines(parts: list[bytes], data: st.DataObject) -> None:
    """SMTP-01: where the network cuts makes no difference."""
    octets = b"\r\n".join(parts)
    whole = LineReader(LIMIT)
    whole.feed(octets)
    expected = lines_of(whole)
    cut = LineReader(LIMIT)
    found = []
    position = 0
    while position < len(octets):
        step = data.draw(st.integers(1, 20))
        cut.feed(octets[position : position + step])
        found += lines_of(cut)
        position += step
        assert len(cut._buffer) <= LIMIT + 1
    assert found == expected
    # A line is what stands between CRLFs, whatever is in it.
    assert len(expected) == octets.count(b"\r\n")
    assert cut.pending is whole.pending


# -- replies


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"250 Ok\r\n", Reply(250, (b"Ok",))),
        (b"250\r\n", Reply(250, (b"",))),
        (b"250 \r\n", Reply(250, (b"",))),
        (b"257 odd\r\n", Reply(257, (b"odd",))),
        (b"299 odder\r\n", Reply(299, (b"odder",))),
        (b"599 odder\r\n", Reply(599, (b"odder",))),
        (b"250-a\r\n250-b\r\n250 c\r\n", Reply(250, (b"a", b"b", b"c"))),
        (b"250-a\r\n250\r\n", Reply(250, (b"a", b""))),
        (b"250-\r\n250 \xc3\xa9\r\n", Reply(250, (b"", b"\xc3\xa9"))),
        (b"250-x\r\n" * 298 + b"250 x\r\n", Reply(250, (b"x",) * 299)),
        (
            b"250 " + b"x" * (MAX_REPLY_LINE_READ - 6) + b"\r\n",
            Reply(250, (b"x" * (MAX_REPLY_LINE_READ - 6),)),
        ),
    ],
)
def test_replies_in_three_feeds(octets: bytes, expected: Reply) -> None:
    """SMTP-13: a bare code, unknown codes and many lines are replies."""
    whole = ReplyReader()
    whole.feed(octets)
    assert whole.next_reply() == expected
    assert not whole.pending

    single = ReplyReader()
    for octet in octets[:-1]:
        single.feed(bytes([octet]))
        assert single.next_reply() is None
        assert single.pending
    single.feed(octets[-1:])
    assert single.next_reply() == expected
    assert not single.pending

    trailed = ReplyReader()
    trailed.feed(octets + b"250-evil\r\n")
    assert trailed.next_reply() == expected
    assert trailed.pending  # STLS-11: the caller sees octets behind a reply
    assert trailed.take_rest() == b"250-evil\r\n"
    assert not trailed.pending


@pytest.mark.parametrize(
    "octets",
    [
        b"150 x\r\n",
        b"650 x\r\n",
        b"000 x\r\n",
        b"25 x\r\n",
        b"25\r\n",
        b"\r\n",
        b"2500 x\r\n",
        b"250x\r\n",
        b"250\tx\r\n",
        b"abc x\r\n",
        b"+50 x\r\n",
        b"\xb2\xb5\xb0 x\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"250-a\r\n251 b\r\n",
        b"250-a\r\n550 b\r\n",
        b"250-a\r\nhello\r\n",
        b"250 a\n250 b\r\n",
        b"250 a\rb\r\n",
        b"250 a\0b\r\n",
        b"250 " + b"x" * (MAX_REPLY_LINE_READ - 5) + b"\r\n",
        b"250-" + b"x" * 94 + b"\r\n" + (b"250-" + b"x" * 94 + b"\r\n") * (MAX_REPLY_OCTETS // 100),
    ],
)
def test_what_is_no_reply_is_a_protocol_error(octets: bytes) -> None:
    """SMTP-14: other codes in one reply, first digit not 2 to 5, over 4 KiB a line, over 100 KiB."""
    whole = ReplyReader()
    whole.feed(octets)
    with pytest.raises(RemoteProtocolError):
        whole.next_reply()
    single = ReplyReader()
    with pytest.raises(RemoteProtocolError):  # noqa: PT012
        for octet in octets:
            single.feed(bytes([octet]))
            assert single.next_reply() is None


def test_the_message_of_a_protocol_error_is_printable_and_bounded() -> None:
    reader = ReplyReader()
    reader.feed(b"\x1b[2J" + b"x" * 3000 + b"\r\n")
    with pytest.raises(RemoteProtocolError) as caught:
        reader.next_reply()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


@given(st.binary(max_size=300))
def test_any_octets_are_replies_or_a_protocol_error(octets: bytes) -> None:
    """SMTP-14: and nothing else is ever raised."""
    reader = ReplyReader()
    reader.feed(octets)
    try:
        while (reply := reader.next_reply()) is not None:
            assert 200 <= reply.code <= 599
    except RemoteProtocolError:
        pass
