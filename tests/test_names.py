"""Names and addresses have one spelling (MX-14, MX-15, ID-02)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.names import NameInvalid, parents, parse_address, parse_domain, parse_mail_domain, unmapped


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Example.ORG.", "example.org"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("_25._tcp.mx.example", "_25._tcp.mx.example"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_domain(text: str, expected: str) -> None:
    assert parse_domain(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ".", "a..b", "-a.example", "a-.example", "a" * 64 + ".x", "a b", "192.0.2.1", "a\r\nb", "x." * 127 + "xx"],
)
def test_no_domain(text: str) -> None:
    with pytest.raises(NameInvalid):
        parse_domain(text)


@given(st.text(max_size=80))
def test_domain_is_idempotent_or_refused(text: str) -> None:
    try:
        domain = parse_domain(text)
    except NameInvalid:
        return
    assert parse_domain(domain) == domain
    assert domain.isascii()
    assert len(domain) <= 253


@pytest.mark.parametrize(
    ("text", "expected"), [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("[ipv6:::1]", "::1")]
)
def test_literal(text: str, expected: str) -> None:
    assert parse_mail_domain(text) == parse_address(expected)


@pytest.mark.parametrize(
    "text", ["[192.0.2]", "[2001:db8::1]", "[IPv6:fe80::1%eth0]", "[IPv6:]", "[]", "[x", "[IPv6:192.0.2.1]"]
)
def test_no_literal(text: str) -> None:
    with pytest.raises(NameInvalid):
        parse_mail_domain(text)


def test_mapped_and_parents() -> None:
    assert unmapped(parse_address("::ffff:192.0.2.1")) == parse_address("192.0.2.1")
    assert list(parents(parse_domain("a.b.example"))) == ["b.example", "example"]
