"""smtp.proxy_header: the header of a load balancer in front of us."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.smtp.forwarded import ClientCertificate, ClientIdentity, ClientTls
from smtpguard.smtp.proxy_header import (
    Incomplete,
    LocalHeader,
    Malformed,
    NotProxy,
    ProxyHeader,
    client_behind,
    crc32c,
    read_proxy_header,
)

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
TCP4 = bytes((192, 0, 2, 79, 198, 51, 100, 1)) + (40025).to_bytes(2, "big") + (25).to_bytes(2, "big")
TCP6 = ip_address("2001:db8::1").packed + ip_address("2001:db8::2").packed + TCP4[8:]
V1 = b"PROXY TCP4 192.0.2.79 198.51.100.1 40025 25\r\n"
READ = ProxyHeader(ip_address("192.0.2.79"), 40025, ip_address("198.51.100.1"), 25, 0)


def tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def v2(body: bytes, *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body


def with_checksum(body: bytes) -> bytes:
    """The header with a right CRC32C TLV behind `body`."""
    header = v2(body + tlv(3, bytes(4)))
    return header[:-4] + crc32c(header).to_bytes(4, "big")


TLS_VALUE = (
    b"\x07\x00\x00\x00\x00"
    + tlv(0x21, b"TLSv1.3")
    + tlv(0x22, "Köln".encode())
    + tlv(0x23, b"TLS_AES_128_GCM_SHA256")
    + tlv(0x26, b"x25519")
    + tlv(0x25, b"RSA2048")
)
FULL = TCP4 + tlv(1, b"smtp") + tlv(2, b"mx1.example.org") + tlv(4, bytes(9)) + tlv(5, b"id-7") + tlv(0x20, TLS_VALUE)
FULL_TLS = ClientTls(
    "TLSv1.3",
    "TLS_AES_128_GCM_SHA256",
    group="x25519",
    sni="mx1.example.org",
    alpn="smtp",
    certificate=ClientCertificate("Köln", verified=True),
)


def test_pxy_07_crc32c_is_castagnoli() -> None:
    """RFC 3720 appendix B.4 and the usual check value."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43


@pytest.mark.parametrize(
    "octets",
    [b"E", b"EHLO x\r\n", b"\x16\x03\x01", b"PROXI", b"PROXY\t", b"proxy TCP4", b"\r\n\r\n\x00\r\nQUIT\r", b"\0"],
)
def test_pxy_01_something_else_is_no_header(octets: bytes) -> None:
    assert read_proxy_header(octets) == NotProxy()


# -- version 1


@pytest.mark.parametrize(
    ("line", "source", "destination", "ports"),
    [
        (V1, "192.0.2.79", "198.51.100.1", (40025, 25)),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", "0.0.0.0", "255.255.255.255", (0, 65535)),
        (b"PROXY TCP6 2001:DB8::1 2001:db8::2 1 25\r\n", "2001:db8::1", "2001:db8::2", (1, 25)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 25\r\n", "192.0.2.1", "192.0.2.2", (1, 25)),
        (
            b"PROXY TCP6 " + b" ".join([b"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2) + b" 65535 65535\r\n",
            *["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] * 2,
            (65535, 65535),
        ),
    ],
)
def test_pxy_03_version_1(line: bytes, source: str, destination: str, ports: tuple[int, int]) -> None:
    expected = ProxyHeader(ip_address(source), ports[0], ip_address(destination), ports[1], len(line))
    assert read_proxy_header(line) == expected
    assert read_proxy_header(line + b"EHLO x\r\n") == expected, "what follows is not touched"


@pytest.mark.parametrize(
    "line",
    [
        V1.replace(b"\r\n", b"\n"),
        V1.replace(b"\r\n", b"\r\r\n"),
        V1.replace(b"\r\n", b"\rEHLO"),
        V1.replace(b"\r\n", b" \r\n"),
        V1.replace(b" 192", b"  192"),
        V1.replace(b" ", b"\t").replace(b"PROXY\t", b"PROXY "),
        V1.replace(b"192.0.2.79", b"192.0.2.079"),
        V1.replace(b"192.0.2.79", b"192.0.2.256"),
        V1.replace(b"192.0.2.79", b"192.0.2"),
        V1.replace(b"192.0.2.79", b"2001:db8::1"),
        V1.replace(b"TCP4", b"TCP6"),
        V1.replace(b"TCP4", b"UDP4"),
        V1.replace(b"TCP4", b"tcp4"),
        V1.replace(b"40025", b"040025"),
        V1.replace(b"40025", b"65536"),
        V1.replace(b"40025", b"+1"),
        V1.replace(b"40025", b""),
        V1.replace(b" 25", b""),
        V1.replace(b" 25", b" 25 26"),
        b"PROXY TCP6 fe80::1%eth0 2001:db8::2 1 25\r\n",
        b"PROXY TCP6 2001:db8:::1 2001:db8::2 1 25\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY \r\nEHLO x",
    ],
)
def test_pxy_03_anything_else_aborts(line: bytes) -> None:
    assert isinstance(read_proxy_header(line), Malformed)


@pytest.mark.parametrize("tail", [b"", b" ", b" ff 0x7 :: 1 2", b" " + b"x" * 91])
def test_pxy_04_unknown_means_the_real_endpoints(tail: bytes) -> None:
    line = b"PROXY UNKNOWN" + tail + b"\r\n"
    assert read_proxy_header(line + b"EHLO") == LocalHeader(len(line))


def test_pxy_03_107_octets_and_not_one_more() -> None:
    longest = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(longest) == 107
    assert read_proxy_header(longest) == LocalHeader(107)
    too_long = b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n"
    assert isinstance(read_proxy_header(too_long), Malformed)
    assert isinstance(read_proxy_header(too_long[:107]), Malformed), "no need to wait for more"
    assert read_proxy_header(too_long[:106]) == Incomplete(2)


# -- version 2


def test_pxy_05_version_2_over_ipv4_and_ipv6() -> None:
    header = v2(TCP4)
    assert read_proxy_header(header + b"EHLO x\r\n") == replace(READ, consumed=28)
    assert read_proxy_header(v2(TCP6, family=0x21)) == replace(
        READ, source=ip_address("2001:db8::1"), destination=ip_address("2001:db8::2"), consumed=52
    )
    mapped = ip_address("::ffff:192.0.2.79").packed + ip_address("::ffff:198.51.100.1").packed + TCP4[8:]
    assert read_proxy_header(v2(mapped, family=0x21)) == replace(READ, consumed=52)


def test_pxy_05_known_tlvs_are_read_and_unknown_ones_skipped() -> None:
    header = v2(FULL + tlv(0xEA, b"\x01vpce-1") + tlv(0x30, b"ns"))
    assert read_proxy_header(header + b"x") == replace(
        READ, consumed=len(header), tls=FULL_TLS, authority="mx1.example.org", unique_id=b"id-7"
    )


@pytest.mark.parametrize(
    ("client", "verify", "tls"),
    [
        (0, 1, None),
        (1, 1, ClientTls("TLSv1.2")),
        (1, 0, ClientTls("TLSv1.2")),
        (3, 0, ClientTls("TLSv1.2", certificate=ClientCertificate("", verified=True))),
        (5, 0, ClientTls("TLSv1.2", certificate=ClientCertificate("", verified=True))),
        (3, 0x01000000, ClientTls("TLSv1.2", certificate=ClientCertificate("", verified=False))),
        (0xF9, 1, ClientTls("TLSv1.2")),
    ],
)
def test_pxy_05_the_bits_of_tls(client: int, verify: int, tls: ClientTls | None) -> None:
    value = bytes((client,)) + verify.to_bytes(4, "big") + tlv(0x21, b"TLSv1.2")
    read = read_proxy_header(v2(TCP4 + tlv(0x20, value)))
    assert isinstance(read, ProxyHeader)
    assert read.tls == tls


def test_pxy_05_text_of_the_peer_is_bounded_and_printable() -> None:
    value = b"\x03\0\0\0\0" + tlv(0x21, b"TLS\r\n" * 100) + tlv(0x22, b"\xff" * 600) + tlv(0x23, b"\x1b[2J")
    read = read_proxy_header(v2(TCP4 + tlv(2, b"a\r\n" * 300) + tlv(0x20, value)))
    assert isinstance(read, ProxyHeader)
    assert read.tls is not None
    assert read.tls.certificate is not None
    assert len(read.tls.certificate.common_name) <= 255
    for text in (read.tls.version, read.tls.cipher, read.authority):
        assert text.isprintable()
        assert len(text) <= 255


@pytest.mark.parametrize("family", [0x00, 0x11, 0x31, 0xFF])
def test_pxy_06_local_means_the_real_endpoints_whatever_it_holds(family: int) -> None:
    for body in (b"", TCP4, b"\x99" * 40):
        header = v2(body, command=0x20, family=family)
        assert read_proxy_header(header + b"EHLO") == LocalHeader(len(header))


def test_pxy_06_an_unspecified_family_means_the_real_endpoints() -> None:
    assert read_proxy_header(v2(b"\xff" * 30, family=0)) == LocalHeader(46)


def test_pxy_06_a_client_by_unix_socket_has_no_address() -> None:
    read = read_proxy_header(v2(bytes(216) + tlv(5, b"id"), family=0x31))
    assert read == ProxyHeader(None, 0, None, 0, 16 + 216 + 5, unique_id=b"id")


@pytest.mark.parametrize(
    ("octets", "detail"),
    [
        (SIGNATURE + b"\x11", "version 1 is not known"),
        (SIGNATURE + b"\x31\x11\x00\x0c", "version 3 is not known"),
        (SIGNATURE + b"\x22", "command 2 is not known"),
        (SIGNATURE + b"\x2f\x11\x00\x00", "command 15 is not known"),
        (v2(TCP4, family=0x12), "family 0x12 is not known"),
        (v2(TCP4, family=0x01), "family 0x01 is not known"),
        (v2(TCP4, family=0x41), "family 0x41 is not known"),
        (v2(TCP4[:-1]), "11 octets are too few"),
        (v2(TCP6[:-1], family=0x21), "35 octets are too few"),
        (SIGNATURE + b"\x21\x11\xff\xff", "65535 octets"),
        (SIGNATURE + b"\x20\x00\x08\xd9", "2265 octets"),
        (v2(TCP4 + b"\x04"), "a TLV runs past the end"),
        (v2(TCP4 + b"\x04\x00"), "a TLV runs past the end"),
        (v2(TCP4 + b"\x04\x00\x02x"), "a TLV runs past the end"),
        (v2(TCP4 + tlv(0x20, b"\x01\0\0\0")), "a TLS TLV under 5 octets"),
        (v2(TCP4 + tlv(0x20, b"\x01\0\0\0\0\x21\x00\x09T")), "a TLV runs past the end"),
        (v2(TCP4 + tlv(5, bytes(129))), "a unique id over 128 octets"),
    ],
)
def test_pxy_06_what_is_not_known_or_not_whole_aborts(octets: bytes, detail: str) -> None:
    """PXY-05, PXY-06."""
    read = read_proxy_header(octets)
    assert isinstance(read, Malformed)
    assert detail in read.detail


def test_pxy_05_the_most_that_is_read() -> None:
    header = v2(bytes(216) + tlv(4, bytes(2045)), family=0x31)
    assert isinstance(read_proxy_header(header), ProxyHeader)


def test_pxy_07_a_right_checksum_passes_wherever_it_stands() -> None:
    assert isinstance(read_proxy_header(with_checksum(FULL)), ProxyHeader)
    header = v2(TCP4 + tlv(3, bytes(4)) + tlv(5, b"id"))
    right = header[:31] + crc32c(header).to_bytes(4, "big") + header[35:]
    assert isinstance(read_proxy_header(right), ProxyHeader)


@pytest.mark.parametrize("place", [16, 20, 27, 28, -1, -5])
def test_pxy_07_a_wrong_checksum_aborts(place: int) -> None:
    header = bytearray(with_checksum(TCP4 + tlv(0xEA, b"abc")))
    header[place] ^= 0x40
    assert isinstance(read_proxy_header(bytes(header)), Malformed)


@pytest.mark.parametrize("value", [b"", bytes(3), bytes(5)])
def test_pxy_07_a_checksum_of_another_length_or_a_second_one_aborts(value: bytes) -> None:
    refused = Malformed("a checksum that is not one of 4 octets")
    assert read_proxy_header(v2(TCP4 + tlv(3, value))) == refused
    twice = v2(TCP4 + tlv(3, bytes(4)) * 2)
    right = twice[:31] + crc32c(twice[:31] + bytes(11)).to_bytes(4, "big") + twice[35:]
    assert read_proxy_header(right) == Malformed(
        "the checksum is wrong"
    )  # of the first: the second counts as it stands


# -- cut anywhere


@pytest.mark.parametrize(
    "header", [V1, b"PROXY UNKNOWN\r\n", v2(TCP4), v2(b"", command=0x20, family=0), with_checksum(FULL)]
)
def test_pxy_02_cut_at_each_offset_it_waits_and_never_reads_past_the_header(header: bytes) -> None:
    """PXY-02, PXY-05: a reader that takes `needed` octets at a time ends exactly at the header."""
    whole = read_proxy_header(header)
    assert isinstance(whole, ProxyHeader | LocalHeader)
    for cut in range(len(header)):
        read = read_proxy_header(header[:cut])
        assert isinstance(read, Incomplete), cut
        assert 0 < read.needed <= len(header) - cut
    octets, stream = b"", header + b"EHLO x\r\n"
    while isinstance(read := read_proxy_header(octets), Incomplete):
        octets += stream[len(octets) : len(octets) + read.needed]
    assert (octets, read) == (header, whole)


HEADERS = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=120).map(lambda rest: b"PROXY " + rest),
    st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
    st.builds(
        lambda body, command, family: v2(body, command=command, family=family),
        st.binary(max_size=300),
        st.sampled_from([0x20, 0x21]),
        st.sampled_from([0, 0x11, 0x21, 0x31]),
    ),
    st.binary(max_size=200).map(lambda tlvs: v2(TCP4 + tlvs)),
    st.binary(max_size=60).map(lambda sub: v2(TCP4 + tlv(0x20, sub))),
)


@given(octets=HEADERS, tail=st.binary(max_size=40))
def test_pxy_03_any_octets_give_a_value(octets: bytes, tail: bytes) -> None:
    """PXY-03, PXY-05: nothing raises; a header found is the same header whatever follows, and refusal is final."""
    read = read_proxy_header(octets)
    match read:
        case ProxyHeader(consumed=consumed) | LocalHeader(consumed):
            assert 0 < consumed <= len(octets)
            assert read_proxy_header(octets[:consumed]) == read
            assert read_proxy_header(octets[:consumed] + tail) == read
        case Incomplete(needed):
            assert needed > 0
        case Malformed(detail):
            assert detail.isprintable()
            assert isinstance(read_proxy_header(octets + tail), Malformed)
        case NotProxy():
            assert read_proxy_header(octets + tail) == NotProxy()


# -- whom it makes of the connection


def test_pxy_11_the_client_replaces_the_balancer_everywhere() -> None:
    balancer = ClientIdentity(
        address=ip_address("10.0.0.1"),
        port=5,
        server_address=ip_address("10.0.0.2"),
        server_port=2525,
        tls=ClientTls("TLSv1.2"),
        session="s1",
    )
    header = read_proxy_header(v2(FULL))
    assert isinstance(header, ProxyHeader)
    assert client_behind(header, balancer) == ClientIdentity(
        address=IPv4Address("192.0.2.79"),
        port=40025,
        server_address=IPv4Address("198.51.100.1"),
        server_port=25,
        tls=FULL_TLS,
        session="s1",
    )
    assert client_behind(LocalHeader(16), balancer) == balancer
    unix = client_behind(ProxyHeader(None, 0, None, 0, 232), balancer)
    assert (unix.address, unix.server_address, unix.tls) == (None, None, None), "above all not the balancer's"
