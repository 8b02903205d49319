"""smtp.body: the end of data, bare CR and LF, dots, size, lines, hops."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtpguard.reasons import ReasonCode
from smtpguard.smtp.body import TERMINATOR, BareNewlines, BodyReader

REJECT, NORMALIZE = BareNewlines.REJECT, BareNewlines.NORMALIZE
END = b"\r\n.\r\n"
SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.com>\r\nDATA\r\nX: y\r\n\r\nsmuggled"


def reader(mode: BareNewlines = REJECT, **limits: int) -> BodyReader:
    return BodyReader(bare_newlines=mode, **{"max_octets": None, **limits})  # type: ignore[arg-type]


def read(body: BodyReader, *chunks: bytes) -> bytes:
    """What goes on to the next hop, terminator excluded; the chunks after the end come back in `rest`."""
    spans: list[bytes] = []
    for chunk in chunks:
        if body.ended:
            body.rest += chunk
        else:
            spans += body.feed(chunk)
    return b"".join(spans)


def octetwise(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


def reference(octets: bytes, mode: BareNewlines) -> tuple[bytes, bytes, int] | None:
    """A reader one can see to be right: (un-stuffed content, rest, bare newlines), None without an end.

    One octet at a time, line by line, on the whole input.  Un-stuffs, as a final destination would.
    """
    content, line, bare, doubtful, at = b"", b"", 0, False, 0
    while at < len(octets):
        if octets[at : at + 2] == b"\r\n":
            at += 2
            if line == b"." and not doubtful:
                return content, octets[at:], bare
            content += (line[1:] if line.startswith(b".") and not doubtful else line) + b"\r\n"
            doubtful = mode is REJECT and line.endswith(b"\r")
            line = b""
            continue
        octet = octets[at : at + 1]
        at += 1
        if octet in (b"\r", b"\n"):
            bare += 1
            octet = b" " if mode is NORMALIZE else octet
        line += octet
    return None


def stuff(content: bytes) -> bytes:
    return b"".join(b"." + line if line.startswith(b".") else line for line in re.split(rb"(?<=\r\n)", content))


# ---- the end of data


@pytest.mark.parametrize(
    ("octets", "passed"),
    [
        (b".\r\n", b""),
        (b"\r\n.\r\n", b"\r\n"),
        (b"a: b\r\n\r\nhello\r\n.\r\n", b"a: b\r\n\r\nhello\r\n"),
        (b"..\r\n.\r\n", b"..\r\n"),
        (b"...x\r\n..\r\n.\r\n", b"...x\r\n..\r\n"),
        (b".x\r\n.\r\n", b".x\r\n"),
        (b"a.\r\nb\r\n.\r\n", b"a.\r\nb\r\n"),
        (b"a\r\n. \r\n.\r\n", b"a\r\n. \r\n"),
    ],
)
def test_data_01_end_is_exactly_crlf_dot_crlf_split_at_every_offset(octets: bytes, passed: bytes) -> None:
    """DATA-01, DATA-05: nothing is added before the terminator, an empty message stays empty."""
    splits = [[octets], octetwise(octets)] + [[octets[:i], octets[i:]] for i in range(len(octets))]
    for chunks in splits:
        for mode in BareNewlines:
            body = reader(mode)
            assert read(body, *chunks) == passed
            assert (body.ended, body.rest, body.fault, body.normalized) == (True, b"", None, 0)
            assert passed == b"" or passed.endswith(b"\r\n"), "DATA-05: TERMINATOR can follow as it is"


def test_data_11_octets_after_the_end_are_the_next_commands() -> None:
    octets = b"hello\r\n.\r\nQUIT\r\n.\r\n"
    for i in range(len(octets) + 1):
        body = reader()
        assert read(body, octets[:i], octets[i:]) == b"hello\r\n"
        assert body.rest == b"QUIT\r\n.\r\n"


def test_feeding_after_the_end_is_refused_as_those_octets_are_commands() -> None:
    body = reader()
    body.feed(b".\r\n")
    with pytest.raises(ValueError, match="ended"):
        body.feed(b"QUIT\r\n")


def test_empty_chunks_change_nothing() -> None:
    body = reader()
    assert read(body, b"", b"a\r", b"", b"\n", b"", b".", b"", b"\r", b"", b"\n") == b"a\r\n"
    assert body.ended


# ---- smuggling

_ENDS = (b"\n", b"\r", b"\r\n", b"\r\r\n", b"\n\r", b"\r\0\n", b"\0\r\n")
# What stands before and after the dot, every pair but the true one: <LF>.<LF>, <LF>.<CRLF> (CVE-2023-51764,
# -51765, -51766: Postfix, sendmail, Exim), <CR>.<CR>, <CRLF>.<CR>, <CRLF>.<LF>, <CR><CRLF>.<CRLF>, NULs, ...
FAKE_ENDS = [before + b"." + after for before in _ENDS for after in _ENDS]
FAKE_ENDS = [end for end in FAKE_ENDS if end not in (END, b"\0" + END)]
FAKE_ENDS += [
    b"\n.\r.\n", b"\n\n.\n\n", b"\r\n.\0\r\n", b"\r\n\0.\r\n", b"\r\n. \r\n", b"\r\n .\r\n",
    b"\r\n.\n.\r\n\n", b"\r\n.\r\r", b"\x85.\x85", b"\xc2\x85.\xc2\x85", b"\x0b.\x0b", b"\x0c.\x0c",
]  # fmt: skip


def test_corpus_is_as_large_as_data_02_asks() -> None:
    assert len(set(FAKE_ENDS)) >= 40
    named = (b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r.\n", b"\r\n.\n", b"\r\r\n.\r\n")
    assert set(named) <= set(FAKE_ENDS)


@pytest.mark.parametrize("fake", FAKE_ENDS, ids=repr)
def test_data_02_no_other_sequence_ends_the_message(fake: bytes) -> None:
    """DATA-02, AF-47: however it is cut, smuggled commands stay content; what is bare is refused."""
    octets = b"Subject: x\r\n\r\nbody" + fake + SMUGGLED + END + b"QUIT\r\n"
    bare = re.search(rb"\r(?!\n)|(?<!\r)\n", fake) is not None
    for chunks in [[octets], octetwise(octets)] + [[octets[:i], octets[i:]] for i in range(16, 50)]:
        body = reader(REJECT)
        passed = read(body, *chunks)
        assert body.ended
        assert body.rest == b"QUIT\r\n", "nothing of the smuggled mail is read as a command"
        assert body.fault is (ReasonCode.BARE_NEWLINE if bare else None)
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", passed)


@pytest.mark.parametrize("fake", FAKE_ENDS, ids=repr)
def test_data_03_normalize_writes_no_bare_newline_and_no_second_end(fake: bytes) -> None:
    """DATA-03, AF-48: stray CR and LF arrive as spaces; the next hop sees one transaction."""
    octets = b"Subject: x\r\n\r\nbody" + fake + SMUGGLED + END + b"QUIT\r\n"
    for chunks in ([octets], octetwise(octets)):
        body = reader(NORMALIZE)
        passed = read(body, *chunks)
        assert body.ended
        assert body.fault is None
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n", passed)
        assert END not in b"\r\n" + passed
        if fake.endswith(b"\r\r\n.\r\n"):
            # The CR is a space already when the end is sought; what is left is the exact end of DATA-01.
            assert body.rest == SMUGGLED + END + b"QUIT\r\n"
        else:
            assert body.rest == b"QUIT\r\n"
            assert body.normalized == len(re.findall(rb"\r(?!\n)|(?<!\r)\n", fake))


def test_data_03_reject_drains_to_the_true_end() -> None:
    """DATA-03, DATA-12: after the fault nothing more is handed out, and the input stays in step."""
    body = reader(REJECT)
    assert body.feed(b"good\r\n") == [b"good\r\n"]
    assert body.feed(b"bad\nline\r\n") == []
    assert body.fault is ReasonCode.BARE_NEWLINE
    assert body.feed(b"good again\r\n") == []
    assert body.feed(b".\r\nNOOP\r\n") == []
    assert body.ended
    assert body.rest == b"NOOP\r\n"


def test_data_03_normalize_goes_back_to_spans_after_a_bad_chunk() -> None:
    body = reader(NORMALIZE)
    assert body.feed(b"bad\nline\r\n") == [b"bad line\r\n"]
    good = b"good\r\n"
    assert body.feed(good)[0] is good, "a chunk with proven line ends is passed without a copy"
    assert body.normalized == 1


# ---- content

_pieces = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"\0", b"a", b"\xe9", b"Received:", END, b"\r\n.", b"\r\r\n"]),
    max_size=24,
).map(b"".join)


@given(_pieces, st.lists(st.integers(1, 5), max_size=40), st.sampled_from(BareNewlines))
@example(b"\r\r\n.\r\nX", [], REJECT)
@example(b"\r\n.\r\r\n.", [1, 1, 1, 1], NORMALIZE)
@settings(max_examples=400, deadline=None)
def test_data_04_differential_against_unstuff_and_stuff(octets: bytes, sizes: list[int], mode: BareNewlines) -> None:
    """DATA-04, DATA-08: random splits agree with a reader that works octet by octet on the whole input."""
    octets += b"x" + END + b"NOOP\r\n"
    cuts = [0]
    for size in sizes:
        cuts.append(min(cuts[-1] + size, len(octets)))
    chunks = [octets[a:b] for a, b in pairwise([*cuts, len(octets)])]
    body = reader(mode)
    passed = read(body, *chunks)
    expected = reference(octets, mode)
    assert expected is not None
    content, rest, bare = expected
    assert body.ended
    assert body.rest == rest
    if mode is REJECT and bare:
        assert body.fault is ReasonCode.BARE_NEWLINE
        return
    assert body.fault is None
    assert body.normalized == (bare if mode is NORMALIZE else 0)
    assert body.octets == len(content)
    assert body.eight_bit == any(octet > 127 for octet in content)
    # A dot that needed no stuffing ("\r\n.x") is passed as it came; both forms mean the same content.
    unstuffed = reference(passed + TERMINATOR, mode)
    assert unstuffed is not None
    assert unstuffed[:2] == (content, b"")


@given(st.lists(st.sampled_from([b".", b"..", b"a", b"", b".a", b"\xff\0"]), max_size=8))
def test_data_04_what_was_stuffed_is_passed_octet_for_octet(lines: list[bytes]) -> None:
    content = b"".join(line + b"\r\n" for line in lines)
    stuffed = stuff(content)
    body = reader()
    assert read(body, *octetwise(stuffed + TERMINATOR)) == stuffed
    assert body.octets == len(content)


def test_data_06_nul_and_controls_pass_unchanged() -> None:
    content = b"X-\0: \x01\r\n\r\n" + bytes(set(range(256)) - {10, 13}) + b"\r\n"
    body = reader()
    assert read(body, content + TERMINATOR) == content
    assert body.fault is None


@pytest.mark.parametrize("octet", [0x7F, 0x80, 0xFF])
def test_data_07_eight_bit_is_seen_and_preserved(octet: int) -> None:
    content = b"\r\n" + bytes([octet]) + b"\r\n"
    for chunks in ([content + TERMINATOR], octetwise(content + TERMINATOR)):
        body = reader()
        assert read(body, *chunks) == content
        assert body.eight_bit is (octet > 0x7F)


def test_data_08_size_counts_unstuffed_octets() -> None:
    """DATA-08: the limit passes, limit + 1 drains to the end; nothing is handed out once it is known."""
    octets = b"..\r\n..x\r\n" + b"y" * 20 + END
    size = 3 + 4 + 22
    for limit, fault in ((size, None), (size - 1, ReasonCode.TOO_BIG)):
        for chunks in ([octets + b"QUIT"], octetwise(octets + b"QUIT")):
            body = reader(max_octets=limit)
            read(body, *chunks)
            assert (body.ended, body.rest, body.fault) == (True, b"QUIT", fault)
    body = reader(max_octets=5)
    assert body.feed(b"12345") == [b"12345"]
    assert body.feed(b"6") == []
    assert body.feed(b"7" * 100) == []
    assert body.feed(END) == []
    assert body.ended


def test_data_09_at_most_two_octets_are_held_back() -> None:
    body = reader()
    passed = 0
    octets = b"a\r\n.b\r\n..\r\nc\r\r" * 10
    for i, octet in enumerate(octetwise(octets)[:13]):
        passed += sum(map(len, body.feed(octet)))
        assert i + 1 - passed <= 2


# ---- lines


@pytest.mark.parametrize("length", [998, 999, 1000, 65535, 65536])
def test_smtp_21_long_lines_pass_unaltered_up_to_the_cap(length: int) -> None:
    line = b"x" * (length - 2) + b"\r\n"
    content = b"\r\n" + line + b"." + line + b"z\r\n"  # the second one stuffed: its dot is not counted
    content = content.replace(b".x", b"..", 1)
    for step in (1 << 20, 4096, 7):
        body = reader()
        octets = content + TERMINATOR
        assert read(body, *(octets[i : i + step] for i in range(0, len(octets), step))) == content
        assert body.fault is None


@pytest.mark.parametrize("dot", [b"", b"."])
def test_ch_18_a_line_over_the_cap_is_refused_and_drained(dot: bytes) -> None:
    """CH-18, OUT-31: 64 KiB with CRLF, without the stuffed dot."""
    octets = b"\r\nshort\r\n" + dot + (dot or b"x") + b"x" * (65536 - 2) + b"\r\n.\r\nQUIT\r\n"
    for step in (1 << 20, 65536, 4096, 13):
        body = reader()
        read(body, *(octets[i : i + step] for i in range(0, len(octets), step)))
        assert body.fault is ReasonCode.LINE_TOO_LONG
        assert (body.ended, body.rest) == (True, b"QUIT\r\n")


@given(st.lists(st.integers(0, 12), max_size=20), st.booleans(), st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_ch_18_verdict_does_not_depend_on_the_chunks(lengths: list[int], dots: bool, step: int) -> None:
    octets = b"".join((b".." if dots else b"") + b"x" * n + b"\r\n" for n in lengths) + TERMINATOR
    body = reader(max_line=10)
    read(body, *(octets[i : i + step] for i in range(0, len(octets), step)))
    too_long = any(n + (1 if dots else 0) + 2 > 10 for n in lengths)
    assert body.fault is (ReasonCode.LINE_TOO_LONG if too_long else None)


# ---- hops


def hops(count: int, field: bytes = b"Received: from a by b\r\n\tfor c") -> bytes:
    return (field + b"\r\n") * count


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
def test_smtp_29_a_hundred_received_fields_are_a_loop(step: int) -> None:
    for count, fault in ((99, None), (100, ReasonCode.TOO_MANY_HOPS)):
        octets = hops(count - 1) + b"rEcEiVeD: from a\r\nSubject: x\r\n\r\nhello\r\n.\r\nQUIT\r\n"
        body = reader()
        read(body, *(octets[i : i + step] for i in range(0, len(octets), step)))
        assert body.fault is fault
        assert (body.ended, body.rest) == (True, b"QUIT\r\n")


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
@pytest.mark.parametrize(
    "octets",
    [
        b"Subject: x\r\n\r\n" + hops(200),  # a bounce quotes the header
        b"\r\n" + hops(200),  # no header at all
        hops(50) + b"\r\n" + hops(200),
        hops(200, b"Received-SPF: pass"),
        hops(200, b"X-Received: from a"),
        hops(200, b" Received: folded"),
    ],
)
def test_smtp_29_only_received_fields_of_the_header_count(octets: bytes, step: int) -> None:
    octets += TERMINATOR
    body = reader()
    read(body, *(octets[i : i + step] for i in range(0, len(octets), step)))
    assert body.fault is None
    assert body.ended


def test_smtp_29_a_needlessly_stuffed_field_counts_too() -> None:
    body = reader()
    read(body, hops(100, b".Received: from a"), TERMINATOR)
    assert body.fault is ReasonCode.TOO_MANY_HOPS
