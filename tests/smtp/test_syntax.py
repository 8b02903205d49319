"""Paths, parameters, xtext."""

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.names import Domain
from smtpguard.smtp.syntax import (
    MAX_PARAMS,
    MAX_PATH,
    ArgumentError,
    DomainError,
    ForwardPath,
    ReversePath,
    decode_xtext,
    encode_param,
    encode_xtext,
    is_xtext,
    parse_forward_path,
    parse_params,
    parse_reverse_path,
)


def test_the_null_reverse_path() -> None:
    """SMTP-25: `<>` is its own value."""
    path, rest = parse_reverse_path(b"<> SIZE=1")
    assert path == ReversePath(b"", None, None)
    assert path.is_null
    assert rest == b" SIZE=1"


@pytest.mark.parametrize(
    ("octets", "local_part", "domain", "text"),
    [
        (b"<a@b.example>", b"a", "b.example", b"a@b.example"),
        (b"<Mixed.Case@B.Example>", b"Mixed.Case", "b.example", b"Mixed.Case@B.Example"),
        (b"<a@b.example.>", b"a", "b.example", b"a@b.example."),
        (b"<a+b=c!%x@b.example>", b"a+b=c!%x", "b.example", b"a+b=c!%x@b.example"),
        (b"<.a..b.@b.example>", b".a..b.", "b.example", b".a..b.@b.example"),
        (b'<"a> b@c\\" d"@b.example>', b'"a> b@c\\" d"', "b.example", b'"a> b@c\\" d"@b.example'),
        (b'<""@b.example>', b'""', "b.example", b'""@b.example'),
        (b"<@r1.example:u@d.example>", b"u", "d.example", b"u@d.example"),
        (b"<@r1.example,@[192.0.2.9]:u@d.example>", b"u", "d.example", b"u@d.example"),
        (b"<a@[192.0.2.1]>", b"a", IPv4Address("192.0.2.1"), b"a@[192.0.2.1]"),
        (b"<a@[IPv6:2001:db8::1]>", b"a", IPv6Address("2001:db8::1"), b"a@[IPv6:2001:db8::1]"),
        ("<ü@bücher.example>".encode(), "ü".encode(), "xn--bcher-kva.example", "ü@bücher.example".encode()),
    ],
)
def test_forward_paths(octets: bytes, local_part: bytes, domain: object, text: bytes) -> None:
    """SMTP-02, SMTP-11: local parts untouched, source routes read past, the domain normalised."""
    assert parse_forward_path(octets + b" X") == (ForwardPath(local_part, domain, text), b" X")  # type: ignore[arg-type]
    assert parse_reverse_path(octets + b" X") == (ReversePath(text, local_part, domain), b" X")  # type: ignore[arg-type]


@pytest.mark.parametrize("octets", [b"<postmaster>", b"<Postmaster>", b"<POSTMASTER>"])
def test_postmaster_alone(octets: bytes) -> None:
    """SMTP-24."""
    path, rest = parse_forward_path(octets)
    assert path.domain is None
    assert path.text == octets[1:-1]
    assert rest == b""


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"a@b.example",
        b" <a@b.example>",
        b"<a@b.example",
        b"<a>",
        b"<@b.example>",
        b"<a@>",
        b"<a b@c.example>",
        b"<a@b.example c>",
        b"<a@b@c.example>",
        b"<<a@b.example>>",
        b'<"a@b.example>',
        b'<"a\x01"@b.example>',
        b"<a\x01@b.example>",
        b"<a@b.exam\x7fple>",
        b"<a@[192.0.2.1>",
        b"<@r.example u@d.example>",
        b"<\xff@b.example>",
        b"<a@\xff.example>",
    ],
)
def test_what_is_no_path(octets: bytes) -> None:
    with pytest.raises(ArgumentError):
        parse_forward_path(octets)
    with pytest.raises(ArgumentError):
        parse_reverse_path(octets)


@pytest.mark.parametrize(
    "domain",
    [b"-a.example", b"a..example", b"x" * 64 + b".example", b"[192.0.2.999]", b"[IPv6:zz]", b"1.2.3.4"],
)
def test_a_domain_that_is_none(domain: bytes) -> None:
    """A recipient's domain is what mail is routed on; a sender's may be odd, and is passed as it is."""
    with pytest.raises(DomainError):
        parse_forward_path(b"<a@%b>" % domain)
    path, _ = parse_reverse_path(b"<a@%b>" % domain)
    assert path.domain is None
    assert not path.is_null
    assert path.text == b"a@" + domain


def test_the_sizes_rfc_5321_asks_for() -> None:
    """SMTP-19: local part 64, domain 253 (255 in the wire form of the DNS), path 256 and more."""
    domain = b".".join([b"a" * 63] * 3 + [b"b" * 61])
    assert len(domain) == 253
    path, _ = parse_forward_path(b"<" + b"l" * 64 + b"@" + domain + b">")
    assert len(path.local_part) == 64
    assert path.domain == Domain(domain.decode())
    local = b"l" * (MAX_PATH - 2 - len(b"@b.example"))
    assert parse_forward_path(b"<" + local + b"@b.example>")[0].local_part == local
    with pytest.raises(ArgumentError):
        parse_forward_path(b"<l" + local + b"@b.example>")


def test_parameters() -> None:
    params = parse_params(b" SIZE=100  body=8bitMIME\tSMTPUTF8")
    assert params == (("SIZE", "100"), ("BODY", "8bitMIME"), ("SMTPUTF8", None))
    assert parse_params(b"") == ()


@pytest.mark.parametrize(
    "octets",
    [
        b"SIZE=1",
        b" =1",
        b" SIZE=",
        b" SIZE==1",
        b" -A=1",
        b" A_B=1",
        b" A=\x01",
        b" A=1 A=2",
        b" a=1 A",
        b" A=\xff",
        b" \xc3\xa9=1",
        b"".join(b" A%d" % n for n in range(MAX_PARAMS + 1)),
    ],
)
def test_what_is_no_parameter(octets: bytes) -> None:
    """SMTP-12, EXT-05: malformed and doubled parameters."""
    with pytest.raises(ArgumentError):
        parse_params(octets)


def test_a_parameter_keeps_its_octets() -> None:
    """EXT-05: byte-exact, UTF-8 too."""
    octets = "ORCPT=utf-8;Ü@Exämple".encode()
    ((keyword, value),) = parse_params(b" " + octets)
    assert encode_param(keyword, value) == octets
    assert encode_param("SMTPUTF8", None) == b"SMTPUTF8"


@given(st.binary(max_size=60))
def test_xtext_round_trip(octets: bytes) -> None:
    text = encode_xtext(octets)
    assert is_xtext(text)
    assert decode_xtext(text) == octets


@pytest.mark.parametrize("text", ["a=b", "a b", "+", "+4", "+4x", "+4f", "é", "\x7f"])
def test_what_is_no_xtext(text: str) -> None:
    assert not is_xtext(text)
    with pytest.raises(ArgumentError):
        decode_xtext(text)


@given(st.binary(max_size=120))
def test_any_octets_are_arguments_or_an_argument_error(octets: bytes) -> None:
    """And the text of a path never holds what could end the line or the brackets early."""
    for parse in (parse_forward_path, parse_reverse_path):
        for given_octets in (octets, b"<" + octets + b">"):
            with suppress(ArgumentError):
                path, rest = parse(given_octets)
                assert given_octets.endswith(path.text + b">" + rest)
                assert not set(path.text) & {0, 10, 13}
    with suppress(ArgumentError):
        parse_params(b" " + octets)


@pytest.mark.parametrize(
    "octets", [b"<" + b"@a," * 4000, b'<"' + b"\\a" * 6000, b"<" + b"a." * 6000, b"<@" + b"a" * 12000]
)
def test_a_path_is_read_in_linear_time(octets: bytes) -> None:
    """Twelve thousand octets of anything end at once: no backtracking."""
    with pytest.raises(ArgumentError):
        parse_forward_path(octets)
