"""The name in a ClientHello, from octets as they come (DANE-43; RFC 6066 §3)."""

import ssl
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from smtpguard.names import Domain
from smtpguard.tls.clienthello import MAX_HELLO_OCTETS, Hello, Incomplete, NotTls, Sni, read_hello
from smtpguard.tls.context import client_context


def stdlib_hello(name: str | None, maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What the stdlib's OpenSSL sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = maximum
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def post_quantum_hello(name: str) -> bytes:
    """What our own OpenSSL sends: a key share of X25519MLKEM768."""
    client = SSL.Connection(client_context(), None)
    client.set_connect_state()
    client.set_tlsext_host_name(name.encode())
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content


def server_name(name: bytes, kind: int = 0) -> bytes:
    entry = bytes([kind]) + len(name).to_bytes(2, "big") + name
    return extension(0, len(entry).to_bytes(2, "big") + entry)


def message(extensions: bytes | None, *, session_id: bytes = b"") -> bytes:
    """A ClientHello without its record."""
    body = b"\3\3" + bytes(32) + bytes([len(session_id)]) + session_id + b"\0\2\x13\1" + b"\1\0"
    if extensions is not None:
        body += len(extensions).to_bytes(2, "big") + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


def records(octets: bytes, sizes: Iterable[int] = ()) -> bytes:
    """`octets` in records of these sizes; what is left goes into a last one."""
    out = b""
    for size in [*sizes, 16384]:
        if octets:
            part, octets = octets[:size], octets[size:]
            out += b"\x16\3\1" + len(part).to_bytes(2, "big") + part
    return out


# GREASE (RFC 8701), encrypted_client_hello of the outer kind, a type nobody knows, an empty one.
UNKNOWN = (
    extension(0x0A0A, b"") + extension(0xFE0D, b"\0" + bytes(300)) + extension(0xF123, bytes(50)) + extension(23, b"")
)
NAMED = message(UNKNOWN + server_name(b"mx.example.org") + extension(0x1A1A, b"\0"))
MX = Sni(Domain("mx.example.org"))


def assert_every_cut(octets: bytes, expected: Hello) -> None:
    """Wherever it is cut: not yet, with a bound that holds, and then the same answer for good."""
    answered = False
    for length in range(len(octets) + 1):
        result = read_hello(octets[:length])
        if isinstance(result, Incomplete):
            assert not answered
            assert length < result.needed <= len(octets)
            # `needed` keeps its word: nothing is known one octet before.
            assert isinstance(read_hello(octets[: result.needed - 1]), Incomplete)
        else:
            assert result == expected
            answered = True
    assert answered
    assert read_hello(octets + b"\x17\3\3\0\5hello") == expected


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_real_hellos_cut_everywhere(maximum: ssl.TLSVersion) -> None:
    """DANE-43: with a name, without, and with one that is an address (which OpenSSL does not send)."""
    assert_every_cut(stdlib_hello("mx.example.org", maximum), MX)
    assert_every_cut(stdlib_hello(None, maximum), Sni(None))
    assert_every_cut(stdlib_hello("192.0.2.1", maximum), Sni(None))


def test_post_quantum_hello() -> None:
    """A key share of X25519MLKEM768 makes the hello longer than a segment."""
    octets = post_quantum_hello("mx.example.org")
    assert len(octets) > 1400
    assert_every_cut(octets, MX)


def test_hello_over_many_records() -> None:
    for sizes in ([1] * len(NAMED), [3] * len(NAMED), [4], [5, 1, 1, 200], [len(NAMED) - 1]):
        assert_every_cut(records(NAMED, sizes), MX)


def test_the_name_is_enough() -> None:
    """What follows the name is not waited for: with a key share behind it that saves a round."""
    hello = records(message(server_name(b"mx.example.org") + extension(51, bytes(1200))))
    assert read_hello(hello[:80]) == MX


def test_needed_is_exact() -> None:
    """The fewest octets that tell more: RFC 8446 §4.1.2 up to the length of the session id, 39 octets, and the headers
    of the records on the way."""
    whole = records(NAMED)
    assert read_hello(whole[:1]) == Incomplete(5 + 1)
    assert read_hello(whole[:6]) == Incomplete(5 + 4)
    assert read_hello(whole[:9]) == Incomplete(5 + 39)
    split = records(NAMED, [4])
    for have in range(9, 14):  # behind the first record, and inside the second's header
        assert read_hello(split[:have]) == Incomplete(5 + 4 + 5 + 35)
    assert read_hello(records(NAMED, [10])[:9]) == Incomplete(5 + 39 + 5)


def test_steps_are_few() -> None:
    """A peek for each `needed` ends after a few of them, however long the hello is."""
    octets = post_quantum_hello("mx.example.org")
    length, peeks = 1, 0
    while isinstance(result := read_hello(octets[:length]), Incomplete):
        length, peeks = result.needed, peeks + 1
    assert result == MX
    assert peeks < 40


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"MX.Example.ORG", "mx.example.org"),
        (b"mx.example.org.", "mx.example.org"),
        (b"xn--mller-kva.example", "xn--mller-kva.example"),
        (b"_mx.example.org", "_mx.example.org"),
        (b"localhost", "localhost"),
        ("müller.example".encode(), None),
        (b"192.0.2.1", None),
        (b"2001:db8::1", None),
        (b"[192.0.2.1]", None),
        (b"*.example.org", None),
        (b"mx..example.org", None),
        (b"mx.example.org\0.evil.test", None),
        (b"mx example.org", None),
        (b".", None),
        (b"", None),
        (b"a." * 150, None),
        (b"x" * 64 + b".example", None),
    ],
)
def test_what_is_a_name(name: bytes, expected: str | None) -> None:
    """RFC 6066 §3; what is no host name is no name, and the default certificate serves (DANE-43)."""
    assert read_hello(records(message(server_name(name)))) == Sni(Domain(expected) if expected else None)


@pytest.mark.parametrize(
    "extensions",
    [
        None,
        b"",
        server_name(b"mx.example.org", kind=1),
        extension(0, b""),  # as in a ServerHello
        extension(0, b"\0\0"),
        extension(0, b"\0\5\0\0\1"),  # ends early
        extension(0, b"\0\5\0\0\1a"),  # the list is longer than it is
        extension(0, b"\0\x09\0\0\1a\0\0\1b"),  # two names
        extension(0, b"\0\4\0\0\1aX"),  # something behind the list
        extension(0, b"\0\4\0\0\2a"),  # the list is shorter than the name
        server_name(b"mx.example.org")[:-1],  # runs out of its extensions
        b"\0\0\0",
    ],
)
def test_no_name(extensions: bytes | None) -> None:
    assert read_hello(records(message(extensions))) == Sni(None)


def test_first_name_counts() -> None:
    """A second server_name extension is a fault that OpenSSL refuses; it hides no name from us."""
    assert read_hello(records(message(server_name(b"mx.example.org") + server_name(b"evil.test")))) == MX


@pytest.mark.parametrize("at", [1, 38, 39, 40, 43, 44, 46, 47])
def test_lengths_that_lie(at: int) -> None:
    """A length that points out of the message ends the search; nothing is waited for that cannot come."""
    whole = bytearray(message(server_name(b"mx.example.org"), session_id=b"12"))
    whole[at] ^= 0x7F
    result = read_hello(records(bytes(whole)) + bytes(MAX_HELLO_OCTETS))
    assert isinstance(result, Sni | NotTls)


def test_message_that_ends_early() -> None:
    """Its length cuts the message before the session id, or inside the extensions: what follows is not of it."""
    body = message(server_name(b"mx.example.org"))[4:]
    for length in (34, 35, 36, 40, len(body) - 1):
        assert read_hello(records(b"\1" + length.to_bytes(3, "big") + body[:length])) == Sni(None)
        assert read_hello(records(b"\1" + length.to_bytes(3, "big") + body)) == Sni(None)


def test_broken_off_by_another_record() -> None:
    """An alert, an empty or an over-long record inside the hello: OpenSSL says what is wrong with it."""
    start = b"\x16\3\1\0\x20" + NAMED[:32]
    for broken in (b"\x15\3\1\0\2\1\0", b"\x16\3\1\0\0", b"\x16\3\1\x40\1", b"\x16\2\0\0\5", b"GET /"):
        assert read_hello(start + broken) == Sni(None)
        assert read_hello(b"\x16\3\1\0\0" + broken) == NotTls()


def test_bounded() -> None:
    """No more than MAX_HELLO_OCTETS is ever asked for or looked at."""
    long = message(b"".join(extension(21, bytes(4000)) for _ in range(8)) + server_name(b"mx.example.org"))
    octets = records(long, [16384])
    assert read_hello(octets) == Sni(None)
    last = read_hello(octets[: MAX_HELLO_OCTETS - 1])
    assert last == Incomplete(MAX_HELLO_OCTETS)
    assert read_hello(b"\x16\3\1\x40\0\1\xff\xff\xff" + bytes(MAX_HELLO_OCTETS)) == Sni(None)
    assert read_hello(octets[:10]) == Incomplete(5 + 39)


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO mx.example.org\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\0",
        b"\x15\3\1\0\2\2\x28",
        b"\x16\2\0",
        b"\x16\3\1\0\4\2\0\0\0",
    ],
)
def test_not_tls(octets: bytes) -> None:
    """AF-45's garbage in place of a hello, an alert, SSL 2 in a record, a ServerHello."""
    assert read_hello(octets) == NotTls()
    assert isinstance(read_hello(b""), Incomplete)


def test_hello_in_the_form_of_ssl_2() -> None:
    """It can name no host (RFC 5246 App. E.2)."""
    assert_every_cut(b"\x80\x2e\1\3\1\0\x15\0\0\0\x10" + bytes(37), Sni(None))
    assert_every_cut(b"\x80\x2e\1\0\2\0\x15\0\0\0\x10" + bytes(37), Sni(None))
    assert read_hello(b"\x80\x2e\4") == NotTls()
    assert read_hello(b"\x80\x2e\1\5") == NotTls()


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\x16\3\1" + tail))
@settings(max_examples=200)
@example(b"\xff" * 20)
def test_garbage(octets: bytes) -> None:
    """Nothing raises, and more octets never change an answer."""
    answer: Hello | None = None
    for length in range(len(octets) + 1):
        result = read_hello(octets[:length])
        if isinstance(result, Incomplete):
            assert answer is None
            assert length < result.needed <= MAX_HELLO_OCTETS
        else:
            assert answer in (None, result)
            answer = result


@given(
    st.lists(st.tuples(st.integers(1, 70), st.binary(max_size=40)), max_size=6),
    st.lists(st.integers(1, 60), max_size=12),
    st.binary(max_size=32),
    st.booleans(),
)
@settings(max_examples=60)
def test_any_hello(others: list[tuple[int, bytes]], sizes: list[int], session_id: bytes, named: bool) -> None:
    """Any extensions around the name, any session id, any records."""
    before = b"".join(extension(kind, content) for kind, content in others)
    name = server_name(b"mx.example.org") if named else b""
    octets = records(message(before + name + UNKNOWN, session_id=session_id), sizes)
    assert_every_cut(octets, MX if named else Sni(None))


@given(st.data())
@settings(max_examples=200)
def test_damaged_hello(data: st.DataObject) -> None:
    """One octet changed anywhere: still no exception, and an answer within the bound."""
    octets = bytearray(records(NAMED, [100]))
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] = data.draw(st.integers(0, 255))
    assert isinstance(read_hello(bytes(octets)), Sni | NotTls | Incomplete)
    assert not isinstance(read_hello(bytes(octets) + bytes(MAX_HELLO_OCTETS)), Incomplete)
