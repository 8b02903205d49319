"""mtasts.parse: the grammars of RFC 8461 §3.1 and §3.2, and the matching of §4.1."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.mtasts.parse import (
    MAX_POLICY_OCTETS,
    Mode,
    MxPattern,
    NoStsRecord,
    ParsedPolicy,
    PolicyInvalid,
    StsId,
    StsPolicy,
    parse_policy,
    parse_txt,
)
from smtpguard.names import Domain

GOOD = b"version: STSv1\nmode: enforce\nmx: mx1.example.org\nmax_age: 86400\n"


@pytest.mark.parametrize(
    ("record", "policy_id"),
    [
        (b"v=STSv1; id=2024", "2024"),
        (b"v=STSv1; id=2024;", "2024"),
        (b"v=STSv1;id=2024", "2024"),
        (b"v=STSv1 ; id=2024 ; ", "2024"),
        (b"v=STSv1\t;\tid=2024\t;", "2024"),
        (b"v=STSv1; x=1; id=a; y=2", "a"),
        (b"v=STSv1; id=a; id=b", "a"),
        (b"v=STSv1; id=a; id=not-an-id!", "a"),
        (b"v=STSv1; id=" + b"Z" * 32, "Z" * 32),
        (b"v=STSv1; x-y.z_1=<>!~; id=a", "a"),
    ],
)
def test_txt_valid(record: bytes, policy_id: str) -> None:
    """STS-05, STS-06, STS-07."""
    assert parse_txt([record]) == StsId(policy_id)


@pytest.mark.parametrize(
    "record",
    [
        b"v=STSv1;",
        b"v=STSv1; x=1",
        b"v=STSv1; ID=1",
        b"v=STSv1; id=",
        b"v=STSv1; id=" + b"1" * 33,
        b"v=STSv1; id=a-b",
        b"v=STSv1; id=a b",
        b"v=STSv1; id=a ",
        b"v=STSv1; id=a;;",
        b"v=STSv1;; id=a",
        b"v=STSv1; id =a",
        b"v=STSv1; id=a; x",
        b"v=STSv1; id=a; x=y=z",
        b"v=STSv1; id=a; =z",
        b"v=STSv1; id=a; " + b"n" * 33 + b"=1",
        b"v=STSv1; id=a\x00",
        b"v=STSv1; id=a; x=\xff",
        b"v=STSv1; id=a\n",
    ],
)
def test_txt_invalid(record: bytes) -> None:
    """STS-05, STS-06: one candidate, not valid: no live policy."""
    found = parse_txt([record])
    assert isinstance(found, NoStsRecord)
    assert found.published


@pytest.mark.parametrize(
    "record", [b"v=spf1 -all", b"V=STSv1; id=1", b" v=STSv1; id=1", b"v=STSv1", b"v=STSv12; id=1", b""]
)
def test_txt_of_others_is_dropped(record: bytes) -> None:
    """STS-03: what does not begin with v=STSv1; is not a candidate."""
    assert parse_txt([record, b"v=STSv1; id=1"]) == StsId("1")
    found = parse_txt([record])
    assert isinstance(found, NoStsRecord)
    assert not found.published


def test_two_candidates_are_none() -> None:
    """STS-03."""
    assert isinstance(parse_txt([b"v=STSv1; id=1", b"v=STSv1; id=1"]), NoStsRecord)
    assert isinstance(parse_txt([]), NoStsRecord)


def policy_of(octets: bytes) -> ParsedPolicy:
    parsed = parse_policy(octets)
    assert isinstance(parsed, ParsedPolicy), parsed
    return parsed


@pytest.mark.parametrize(
    "octets",
    [
        GOOD,
        GOOD[:-1],
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\r\n")[:-2],
        GOOD.replace(b"\n", b"\r\n", 2),
        GOOD.replace(b"\n", b" \n"),
        GOOD.replace(b"\n", b" \t\r\n"),
        GOOD.replace(b": ", b":"),
        GOOD.replace(b": ", b":\t  "),
        GOOD + b"\n",
        GOOD + b"\r\n \t\r\n\n",
        GOOD.replace(b"\nmode", b"\n\nmode"),
        b"\n" + GOOD,
        GOOD + b"mode: none\n",
        GOOD + b"max_age: bogus\n",
        GOOD + "x-note: grüße, 日本\n".encode(),
        b"max_age: 86400\nmx: mx1.example.org\nmode: enforce\nversion: STSv1",
    ],
)
def test_policy_valid(octets: bytes) -> None:
    """STS-07, STS-17, STS-21: all spellings of one policy; blank lines, which the ABNF has not, cost nobody his."""
    parsed = policy_of(octets)
    assert parsed.mode is Mode.ENFORCE
    assert parsed.max_age_seconds == 86400
    assert parsed.mx == (MxPattern(Domain("mx1.example.org")),)


@pytest.mark.parametrize(
    ("octets", "fault"),
    [
        (b"", "version is missing"),
        (b"\n\n", "version is missing"),
        (GOOD.replace(b"version: STSv1\n", b""), "version is missing"),
        (GOOD.replace(b"STSv1", b"STSv2"), "version"),
        (GOOD.replace(b"version", b"Version"), "version is missing"),
        (GOOD.replace(b"mode: enforce\n", b""), "mode is missing"),
        (GOOD.replace(b"enforce", b"Enforce"), "mode"),
        (GOOD.replace(b"enforce", b"report"), "mode"),
        (GOOD.replace(b"max_age: 86400\n", b""), "max_age is missing"),
        (GOOD.replace(b"86400", b"-1"), "max_age"),
        (GOOD.replace(b"86400", b"1d"), "max_age"),
        (GOOD.replace(b"86400", b"12345678901"), "max_age"),
        (GOOD.replace(b"86400", "٣".encode()), "max_age"),
        (GOOD.replace(b"mx: mx1.example.org\n", b""), "no mx"),
        (GOOD.replace(b"\nmode", b"\n mode"), "line 2"),
        (GOOD + b"\n x: 1\n", "line 6"),
        (GOOD.replace(b"mode:", b"mode :"), "line 2"),
        (GOOD.replace(b"\n", b"\r"), "line 1"),
        (GOOD[:-1] + b"\r", "line 4"),
        (GOOD + b"x: \x01\n", "line 5"),
        (GOOD + b"x: a\tb\n", "line 5"),
        (GOOD + b"x:\n", "line 5"),
        (GOOD + b"n" * 33 + b": 1\n", "line 5"),
        (GOOD + b"x: \xc3\x28\n", "UTF-8"),
        (b"\xef\xbb\xbf" + GOOD, "line 1"),
        (GOOD + b"x: " + b"y" * MAX_POLICY_OCTETS, "65536"),
    ],
)
def test_policy_invalid(octets: bytes, fault: str) -> None:
    """STS-17 to STS-21, RM-11: the message says which line or key."""
    parsed = parse_policy(octets)
    assert isinstance(parsed, PolicyInvalid)
    assert fault in parsed.detail


@pytest.mark.parametrize(
    "mx",
    [
        "*",
        "*.",
        "m*.example.org",
        "*.*.example.org",
        "müx.example.org",
        "mx_1.example.org",
        "mx1.example.org.",
        "-a.example.org",
        "a..example.org",
        ".example.org",
        "192.0.2.1",
        "[192.0.2.1]",
        "a.example.org b",
        "a" * 64 + ".org",
    ],
)
def test_mx_invalid(mx: str) -> None:
    """STS-22: anything but a host name spoils the policy, beside a good one too."""
    assert isinstance(parse_policy(GOOD + f"mx: {mx}\n".encode()), PolicyInvalid)


def test_none_needs_no_mx() -> None:
    """STS-19."""
    parsed = policy_of(b"version: STSv1\nmode: none\nmax_age: 86400\n")
    assert parsed.mode is Mode.NONE
    assert parsed.mx == ()


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("31557600", 31557600), ("4000000000", 31557600)])
def test_max_age(text: str, seconds: int) -> None:
    """STS-20: clamped to a year."""
    assert policy_of(GOOD.replace(b"86400", text.encode())).max_age_seconds == seconds


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("*.example.com", "mail.example.com", True),
        ("*.Example.COM", "mail.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "mailexample.com", False),
        ("mail.example.com", "mail.example.com", True),
        ("mail.example.com", "a.mail.example.com", False),
    ],
)
def test_matching(pattern: str, host: str, expected: bool) -> None:
    """STS-23, STS-24: the name of the MX record, one label for the wildcard."""
    parsed = policy_of(GOOD.replace(b"mx1.example.org", pattern.encode()))
    policy = StsPolicy(Domain("example.com"), "1", parsed.mode, 1, parsed.mx)
    assert policy.matches(Domain(host)) is expected


def test_lines_are_printable_and_bounded() -> None:
    """RFC 8460 policy-string: as served, and no way to flood a report."""
    parsed = policy_of(GOOD + ("x: é" + "y" * 2000 + "\n").encode() * 20)
    assert parsed.lines[:2] == ("version: STSv1", "mode: enforce")
    assert all(line.isascii() and len(line) <= 512 for line in parsed.lines)


PIECES = [b"version", b"mode", b"mx", b"max_age", b":", b" ", b"\t", b"\n", b"\r\n", b"STSv1", b"enforce"]
PIECES += [b"none", b"*.", b"a.org", b"0", b"\xff", b"\x00", "é".encode()]
LINES = [b"version: STSv1\n", b"mode: none\r\n", b"mode: enforce\n", b"mx: a.org\n", b"max_age: 5\n"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES + LINES), max_size=30))
def test_policy_fuzz(pieces: list[bytes]) -> None:
    """STS-21: whatever arrives, a value comes back; only UTF-8 without controls can be valid."""
    octets = b"".join(pieces)
    parsed = parse_policy(octets)
    if isinstance(parsed, ParsedPolicy):
        assert b"\x00" not in octets
        octets.decode("utf-8")
        assert parsed.mx or parsed.mode is Mode.NONE


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_txt_fuzz(octets: bytes) -> None:
    found = parse_txt([b"v=STSv1;" + octets])
    if isinstance(found, StsId):
        assert found.id.isalnum()
        assert len(found.id) <= 32
