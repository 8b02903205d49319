"""Reference ids against presented ids (CONFORMANCE ID-01..05, DANE-35, DANE-36, STS-25, PF-12)."""

from ipaddress import ip_address

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.names import Domain, parse_domain
from smtpguard.tls.chain import Certificate
from smtpguard.tls.identity import DnsId, DotDomain, IpId, ReferenceId, names_match, presented_names
from tests.support.certificates import issue, self_signed

SAN = x509.ObjectIdentifier("2.5.29.17")


def leaf(*dns: str, addresses: tuple[str, ...] = ()) -> Certificate:
    return Certificate(issue("mx.example.org", dns=dns, addresses=addresses).der)


def leaf_with_san(octets: bytes) -> Certificate:
    """A certificate with these octets as the value of its subjectAltName."""
    return Certificate(issue("mx", extra=[(x509.UnrecognizedExtension(SAN, octets), False)]).der)


def tlv(tag: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


def dns_id(name: str) -> DnsId:
    return DnsId(parse_domain(name))


@pytest.mark.parametrize(
    ("presented", "reference", "matches"),
    [
        ("mx.example.org", "mx.example.org", True),
        ("MX.Example.ORG", "mx.example.org", True),  # ID-02
        ("mx.example.org.", "mx.example.org", True),  # ID-02
        ("xn--bcher-kva.example.org", "bücher.example.org", True),  # ID-02
        ("mx.example.org", "mx2.example.org", False),
        ("example.org", "mx.example.org", False),
        ("mx.example.org", "example.org", False),
        ("*.example.org", "mx.example.org", True),  # DANE-36
        ("*.EXAMPLE.org.", "mx.example.org", True),
        ("*.example.org", "xn--bcher-kva.example.org", True),
        ("*.example.org", "a.mx.example.org", False),  # DANE-36: one label
        ("*.example.org", "example.org", False),
        ("m*.example.org", "mx.example.org", False),  # ID-03
        ("*x.example.org", "mx.example.org", False),
        ("mx.*.org", "mx.example.org", False),
        ("*.*.org", "mx.example.org", False),
        ("**.example.org", "mx.example.org", False),
        ("*", "org", False),
        ("*.org", "example.org", False),
        ("*.", "example.org", False),
        (".example.org", "mx.example.org", False),
        ("", "mx.example.org", False),
    ],
)
def test_dns_ids(presented: str, reference: str, matches: bool) -> None:
    """ID-02, ID-03, DANE-36."""
    certificate = leaf_with_san(tlv(0x30, tlv(0x82, presented.encode())))
    assert names_match(certificate, [dns_id(reference)]) is matches


@pytest.mark.parametrize(
    ("presented", "matches"),
    [
        ("mx.example.org", True),
        ("a.b.example.org", True),
        ("*.example.org", True),
        ("*.mx.example.org", True),
        ("example.org", False),
        ("badexample.org", False),
        (".example.org", False),
        ("m*.example.org", False),
        ("*.*.example.org", False),
        ("-.example.org", False),
        ("*.org", False),
    ],
)
def test_dot_domain_needs_one_more_label(presented: str, matches: bool) -> None:
    """PF-12: `.example.org` is any host below it, at any depth."""
    certificate = leaf_with_san(tlv(0x30, tlv(0x82, presented.encode())))
    assert names_match(certificate, [DotDomain(Domain("example.org"))]) is matches


def test_any_pair_suffices() -> None:
    certificate = leaf("a.example", "b.example")
    assert names_match(certificate, [dns_id("x.example"), dns_id("b.example")])
    assert not names_match(certificate, [dns_id("x.example")])
    assert not names_match(certificate, [])


def test_common_name_is_never_used() -> None:
    """ID-04, DANE-35, CH-05: neither without DNS ids nor beside others."""
    assert not names_match(leaf(), [dns_id("mx.example.org")])
    assert not names_match(leaf("other.example"), [dns_id("mx.example.org")])


def test_addresses_match_addresses_only() -> None:
    """ID-05: octet-equal iPAddress; never a dNSName that looks like one."""
    certificate = leaf(addresses=("192.0.2.1", "2001:db8::1"))
    assert names_match(certificate, [IpId(ip_address("192.0.2.1"))])
    assert names_match(certificate, [IpId(ip_address("2001:db8::1"))])
    assert not names_match(certificate, [IpId(ip_address("192.0.2.2"))])
    assert not names_match(certificate, [IpId(ip_address("::ffff:192.0.2.1"))])
    assert not names_match(leaf("192.0.2.1"), [IpId(ip_address("192.0.2.1"))])
    in_bytes = leaf_with_san(tlv(0x30, tlv(0x82, ip_address("192.0.2.1").packed)))
    assert not names_match(in_bytes, [IpId(ip_address("192.0.2.1"))])


def test_a_malformed_entry_spoils_no_other() -> None:
    """ID-03: it is skipped; the certificate libraries would refuse the whole extension."""
    odd = [b"\xff\xfe.example", b"mx.example.org\0.evil.example", b"*.com", b" ", b"a..b"]
    entries = b"".join(tlv(0x82, entry) for entry in odd)
    entries += tlv(0x87, b"\1\2\3") + tlv(0x81, b"not an address") + tlv(0xA4, b"junk")
    certificate = leaf_with_san(tlv(0x30, entries + tlv(0x82, b"mx.ok.example")))
    assert names_match(certificate, [dns_id("mx.ok.example")])
    assert not names_match(certificate, [dns_id("mx.example.org")])


def test_what_stands_before_a_fault_counts() -> None:
    entries = tlv(0x82, b"mx.example.org") + b"\x82\x7fcut"
    assert names_match(leaf_with_san(tlv(0x30, entries)), [dns_id("mx.example.org")])


@pytest.mark.parametrize("octets", [b"", b"\x30", b"\x30\x80", b"garbage", b"\x04\x02hi"])
def test_garbage_names_nothing(octets: bytes) -> None:
    assert not names_match(leaf_with_san(octets), [dns_id("mx.example.org")])
    assert not names_match(Certificate(octets), [dns_id("mx.example.org")])
    assert presented_names(Certificate(octets)) == ()


def test_presented_names_are_printable_and_bounded() -> None:
    shown = presented_names(leaf(*(f"host{n}.example" for n in range(30)), addresses=()))
    assert shown == tuple(f"host{n}.example" for n in range(10))
    assert presented_names(leaf(addresses=("192.0.2.1", "2001:db8::1"))) == ("192.0.2.1", "2001:db8::1")
    hostile = leaf_with_san(tlv(0x30, tlv(0x82, b"a\r\n250 ok\xff" + b"x" * 90)))
    (name,) = presented_names(hostile)
    assert name.isascii()
    assert name.isprintable()
    assert len(name) <= 80


REFERENCES: list[ReferenceId] = [
    dns_id("mx.example.org"),
    DotDomain(Domain("example.org")),
    IpId(ip_address("192.0.2.1")),
]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(REFERENCES))
def test_hostile_names_never_raise(octets: bytes, reference: ReferenceId) -> None:
    certificate = leaf_with_san(octets)
    names_match(certificate, [reference])
    presented_names(certificate)


def test_the_certificate_adds_no_reference_id() -> None:
    """ID-01: what is compared is what the caller asked for."""
    certificate = Certificate(self_signed("evil.example").der)
    assert not names_match(certificate, [dns_id("mx.example.org")])
