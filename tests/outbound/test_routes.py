"""Where does mail for a domain go next?  Postfix next-hop syntax, and the table that is matched as `[[policy]]` is."""

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.names import Domain, NameInvalid
from smtpguard.outbound.routes import NextHop, Routes, parse_next_hop


@pytest.mark.parametrize(
    ("text", "key", "port", "bracketed"),
    [
        ("Example.ORG", "example.org", 25, False),
        ("example.org:25", "example.org", 25, False),
        ("example.org:26", "example.org:26", 26, False),
        ("bücher.example", "xn--bcher-kva.example", 25, False),
        ("[mx.example.org]", "[mx.example.org]", 25, True),
        (" [MX.example.org]:2525 ", "[mx.example.org]:2525", 2525, True),
    ],
)
def test_next_hops_by_name(text: str, key: str, port: int, bracketed: bool) -> None:
    """MX-16, PF-01: brackets suppress the MX look-up; the key keeps brackets and a port that is not the default."""
    found = parse_next_hop(text, 25)
    assert (found.key, found.port, found.bracketed, found.routed) == (key, port, bracketed, True)
    assert found.domain == key.strip("[").partition("]")[0].partition(":")[0]
    assert found.address is None
    assert str(found) == key


@pytest.mark.parametrize(
    ("text", "address", "key"),
    [
        ("[192.0.2.1]", "192.0.2.1", "[192.0.2.1]"),
        ("[192.0.2.1]:26", "192.0.2.1", "[192.0.2.1]:26"),
        ("[2001:DB8::1]:25", "2001:db8::1", "[2001:db8::1]"),
        ("[IPv6:2001:db8::1]", "2001:db8::1", "[2001:db8::1]"),
        ("[::1]", "::1", "[::1]"),
    ],
)
def test_next_hops_by_address(text: str, address: str, key: str) -> None:
    """MX-14, MX-16: addresses stand in brackets, in either form of IPv6."""
    found = parse_next_hop(text, 25)
    assert (found.address, found.domain, found.key) == (ip_address(address), None, key)


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "[mx.example.org", "mx.example.org]", "[mx.example.org]25", "example.org:", "example.org:0",
     "example.org:65536", "example.org:²", "example.org:25:25", "192.0.2.1", "2001:db8::1", "[fe80::1%eth0]",
     "[192.0.2.1]:x", "-x.example", "a b"],
)  # fmt: skip
def test_what_is_no_next_hop(text: str) -> None:
    """MX-16: told at start, not at the first message."""
    with pytest.raises(NameInvalid):
        parse_next_hop(text, 25)


@given(st.text("[]:.0123456789abIPv6-", max_size=20), st.integers(1, 65535))
@settings(max_examples=300)
def test_a_next_hop_read_back_from_its_key_is_the_same(text: str, port: int) -> None:
    """PF-01: the key says all, and exactly one of domain and address is set."""
    try:
        found = parse_next_hop(text, port)
    except NameInvalid:
        return
    assert (found.domain is None) is not (found.address is None)
    assert parse_next_hop(found.key, port) == found


EXACT, PARENT, DEEPER, DEFAULT = (parse_next_hop(f"[{name}.example]", 25) for name in ("e", "p", "d", "relay"))
ROUTES = Routes({"a.example": EXACT, ".a.example": PARENT, ".b.a.example": DEEPER, "*": DEFAULT}, 25)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("a.example", EXACT),
        ("x.a.example", PARENT),
        ("b.a.example", PARENT),
        ("x.b.a.example", DEEPER),
        ("y.x.b.a.example", DEEPER),
        ("aa.example", DEFAULT),
        ("example", DEFAULT),
    ],
)
def test_the_nearest_entry_counts(domain: str, expected: NextHop) -> None:
    """MX-16: exact, longest `.parent`, `*`."""
    assert ROUTES.next_hop(Domain(domain)) == expected


def test_address_literals_follow_the_default_route_only() -> None:
    """MX-14: a smarthost for everything is for literals too, as Postfix's relayhost is."""
    literal = ip_address("192.0.2.1")
    assert ROUTES.next_hop(literal) == DEFAULT
    found = Routes({"a.example": EXACT}, 26).next_hop(literal)
    assert found == NextHop("[192.0.2.1]", None, literal, 26, bracketed=True)


def test_without_a_route_the_domain_is_its_own_next_hop() -> None:
    """MX-01: its MX records decide, on the default port."""
    found = Routes({}, 26).next_hop(Domain("a.example"))
    assert found == NextHop("a.example", Domain("a.example"), None, 26)
    assert not found.routed
