"""Replies: form, classes, our own texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.framing import ReplyReader
from smtpguard.smtp.replies import MAX_REPLY_LINE, Reply, reply_of


def test_a_multi_line_reply_has_the_code_and_status_on_each_line() -> None:
    """EXT-06, SMTP-13: one code, the status on each line, '-' on all but the last."""
    reply = Reply.of(550, "5.7.1", "no", "really")
    assert reply.encode() == b"550-5.7.1 no\r\n550 5.7.1 really\r\n"


def test_a_reply_without_text_keeps_its_space() -> None:
    """RFC 5321 §4.2.1: the space is sent even where no text follows."""
    assert Reply(250, (b"",)).encode() == b"250 \r\n"
    assert Reply.of(250, "").encode() == b"250 \r\n"


@pytest.mark.parametrize("code", [199, 600, 0, 99, 1000])
def test_a_code_outside_2_to_5_is_no_reply(code: int) -> None:
    """SMTP-13."""
    with pytest.raises(ValueError, match="reply code"):
        Reply(code, (b"",))


def test_a_reply_has_a_line() -> None:
    with pytest.raises(ValueError, match="one line"):
        Reply(250, ())


@pytest.mark.parametrize(
    ("code", "kind"),
    [(257, "positive"), (299, "positive"), (354, ""), (498, "transient"), (599, "permanent")],
)
def test_unknown_codes_are_judged_by_their_first_digit(code: int, kind: str) -> None:
    """SMTP-13."""
    reply = Reply(code, (b"x",))
    assert reply.severity == code // 100
    assert reply.is_positive is (kind == "positive")
    assert reply.is_transient is (kind == "transient")
    assert reply.is_permanent is (kind == "permanent")


@pytest.mark.parametrize(
    ("code", "lines", "status"),
    [
        (550, (b"5.1.1 no such user",), "5.1.1"),
        (550, (b"5.1.1",), "5.1.1"),
        (550, (b"5.100.999 x",), "5.100.999"),
        (550, (b"no such user",), ""),
        (550, (b"4.1.1 the class contradicts",), ""),
        (550, (b"5.1.1000 x",), ""),
        (550, (b"5.1.1.1 x",), ""),
        (250, (b"hello", b"2.0.0 ok"), "2.0.0"),
    ],
)
def test_the_enhanced_status(code: int, lines: tuple[bytes, ...], status: str) -> None:
    assert Reply(code, lines).enhanced_status == status


def test_text_and_str_are_printable() -> None:
    reply = Reply(550, (b"5.1.1 \x1b[31mred\xff", b"more\r"))
    assert reply.text == "5.1.1 ?[31mred? more?"
    assert str(reply) == "550 5.1.1 ?[31mred? more?"
    assert len(Reply(550, (b"x" * 5000,)).text) == 500


def test_a_suffix_stands_on_the_last_line() -> None:
    reply = Reply(250, (b"2.1.5 first", b"2.1.5 Ok")).with_suffix("(mx1.example.org[192.0.2.1]:25 dane x.1)")
    assert reply.encode() == b"250-2.1.5 first\r\n250 2.1.5 Ok (mx1.example.org[192.0.2.1]:25 dane x.1)\r\n"


def test_a_suffix_is_dropped_where_the_line_would_pass_512() -> None:
    """SMTP-13: 512 octets with code and CRLF are the limit, exactly."""
    fits = Reply(250, (b"x" * (512 - 6 - 4),)).with_suffix("(a)")
    assert len(fits.encode()) == 512
    full = Reply(250, (b"x" * (512 - 6 - 3),))
    assert full.with_suffix("(a)") is full


def test_a_suffix_brings_no_line_end() -> None:
    assert Reply(250, (b"Ok",)).with_suffix("(a\r\n550 b)").encode() == b"250 Ok (a??550 b)\r\n"


def test_another_code_takes_the_status_along() -> None:
    """CH-20: a remote 421 becomes 451."""
    reply = Reply(421, (b"4.3.2 shutting down", b"bye")).with_code(551)
    assert reply == Reply(551, (b"5.3.2 shutting down", b"bye"))


def test_relayed_octets_are_kept_but_no_control_octet() -> None:
    """SMTP-13: UTF-8 of an SMTPUTF8 host passes, what could break the line does not."""
    assert Reply(250, ("grüße\t".encode() + b"\x07\r\n\0\x7f",)).encode() == "250 grüße\t".encode() + b"?????\r\n"


def test_long_lines_are_folded_with_their_status() -> None:
    """SMTP-13, EXT-06: nothing of a long remote reply is lost, and no line passes 512 octets."""
    encoded = Reply(550, (b"5.7.1 " + b"a" * 1200,)).encode()
    lines = encoded.split(b"\r\n")[:-1]
    assert all(len(line) + 2 <= MAX_REPLY_LINE for line in lines)
    assert all(line.startswith(b"550-5.7.1 ") for line in lines[:-1])
    assert lines[-1].startswith(b"550 5.7.1 ")
    assert b"".join(line[10:] for line in lines) == b"a" * 1200


def test_the_reply_of_a_reason() -> None:
    """The form DESIGN §6 shows."""
    reason = Reason(ReasonCode.DANE_NO_MATCH, "mx1.example.org[192.0.2.1]:25")
    assert reply_of(reason, "0k3f9q2a.7").encode() == (
        b"451 4.7.5 [dane/no-match] mx1.example.org[192.0.2.1]:25: "
        b"no TLSA record matches the certificate (id 0k3f9q2a.7)\r\n"
    )


def test_the_detail_is_cut_and_the_id_stays() -> None:
    reason = Reason(ReasonCode.CONNECT_FAILED, "mx[192.0.2.1]:25", "x\r\n" * 400)
    encoded = reply_of(reason, "abc.1").encode()
    assert len(encoded) <= MAX_REPLY_LINE
    assert encoded.startswith(b"451 4.4.1 [host/connect] mx[192.0.2.1]:25: connection failed; x??x??")
    assert encoded.endswith(b"... (id abc.1)\r\n")


def test_a_reason_without_subject_or_id() -> None:
    assert reply_of(Reason(ReasonCode.INTERNAL, ""), "").encode() == b"451 4.3.0 [internal] internal error\r\n"


@pytest.mark.parametrize("code", list(ReasonCode))
def test_every_reason_gives_a_reply_with_a_status_of_its_class(code: ReasonCode) -> None:
    """EXT-06: and with the longest subject and detail it is one line of at most 512 octets."""
    reply = reply_of(Reason(code, "s" * 300, "d" * 900), "i" * 60)
    assert reply.enhanced_status == code.status
    assert reply.code == code.reply_code
    assert reply.encode().count(b"\r\n") == 1
    assert len(reply.encode()) <= MAX_REPLY_LINE


@given(st.integers(200, 599), st.lists(st.binary(max_size=700), min_size=1, max_size=5))
def test_what_is_encoded_reads_back_as_one_reply(code: int, lines: list[bytes]) -> None:
    """INV-07: no text whatever makes two replies of one."""
    encoded = Reply(code, tuple(lines)).encode()
    reader = ReplyReader()
    reader.feed(encoded)
    reply = reader.next_reply()
    assert reply is not None
    assert reply.code == code
    assert reply.encode() == encoded
    assert not reader.pending
    assert all(len(line) <= MAX_REPLY_LINE for line in encoded.splitlines(keepends=True))
