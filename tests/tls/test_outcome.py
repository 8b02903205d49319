"""What a handshake showed, and codes for those that failed (CONFORMANCE RM-14, RM-01, TLS-01)."""

import errno
import itertools
from pathlib import Path

import pytest
from OpenSSL import SSL

from smtpguard.tls.chain import chain_of
from smtpguard.tls.context import client_context
from smtpguard.tls.outcome import OTHER, StartTls, TlsOutcome, TlsVersion, handshake_failed, read_outcome
from tests.support.certificates import self_signed
from tests.tls.handshakes import carry, connected, shake_hands

LEAF = self_signed()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(LEAF.pem)
    key.write_bytes(LEAF.key_pem)
    return cert, key


def plain_server(files: tuple[Path, Path], version: int | None = None, ciphers: bytes | None = None) -> SSL.Context:
    """A peer's server, with none of our settings."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(str(files[0]))
    context.use_privatekey_file(str(files[1]))
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if ciphers is not None:
        context.set_cipher_list(ciphers)
    return context


def failed_handshake(client: SSL.Context, server: SSL.Context) -> tuple[TlsOutcome, TlsOutcome]:
    """What each end makes of a handshake that cannot succeed (the second one hears of it by an alert)."""
    ends = connected(client, server)
    outcomes: dict[int, TlsOutcome] = {}
    for turn in itertools.cycle((0, 1)):
        if turn in outcomes:
            break
        end, other = ends[turn], ends[1 - turn]
        try:
            end.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            outcomes[turn] = handshake_failed(error)
        carry(end, other)
        if len(outcomes) == 2:
            break
    return outcomes[0], outcomes[1]


def test_versions_are_ordered() -> None:
    """TLS-01: a floor is compared with `>=`."""
    assert sorted(TlsVersion, reverse=True) == list(reversed(TlsVersion))
    assert TlsVersion.TLS_1_3 >= TlsVersion.TLS_1_2 > TlsVersion.TLS_1_1 >= TlsVersion.TLS_1_0
    assert not TlsVersion.TLS_1_1 >= TlsVersion.TLS_1_2
    assert TlsVersion.TLS_1_1 < TlsVersion.TLS_1_2 <= TlsVersion.TLS_1_2
    assert TlsVersion("1.2") is TlsVersion.TLS_1_2


@pytest.mark.parametrize(
    ("version", "expected"),
    [(SSL.TLS1_2_VERSION, TlsVersion.TLS_1_2), (SSL.TLS1_3_VERSION, TlsVersion.TLS_1_3)],
)
def test_outcome_of_a_handshake(files: tuple[Path, Path], version: int, expected: TlsVersion) -> None:
    client, server = connected(client_context(), plain_server(files, version))
    shake_hands(client, server)
    outcome = read_outcome(client)
    assert outcome.encrypted
    assert outcome.version is expected
    assert outcome.cipher in (client.get_cipher_name(), "TLS_AES_256_GCM_SHA384")
    assert outcome.group
    assert outcome.chain == chain_of([LEAF.der])
    assert (outcome.failure_code, outcome.detail) == ("", "")


@pytest.mark.parametrize("step", [step for step in StartTls if step is not StartTls.ESTABLISHED])
def test_without_tls(step: StartTls) -> None:
    """RM-01: the reply code arrives from whoever read it."""
    outcome = TlsOutcome(step, detail="454 no", failure_code="smtp-reply-454")
    assert not outcome.encrypted
    assert outcome.chain is None


def test_protocol_version(files: tuple[Path, Path]) -> None:
    """RM-14, TLS-02: the peer knows TLS 1.2 only, a rule asks for 1.3."""
    ours, theirs = failed_handshake(client_context(TlsVersion.TLS_1_3), plain_server(files, SSL.TLS1_2_VERSION))
    assert ours.starttls is StartTls.FAILED
    assert ours.failure_code == "tls-alert-70"
    assert "protocol version" in ours.detail
    assert theirs.failure_code == "protocol-version"


def test_no_shared_cipher(files: tuple[Path, Path]) -> None:
    """RM-14: `tls-alert-40`."""
    server = plain_server(files, SSL.TLS1_2_VERSION, b"AES128-SHA")
    ours, theirs = failed_handshake(client_context(), server)
    assert ours.failure_code == "tls-alert-40"
    assert theirs.failure_code == "no-shared-cipher"


def test_alert_about_our_certificate(files: tuple[Path, Path]) -> None:
    """RM-14: a peer that asks for a client certificate, as seen by us."""
    server = plain_server(files, SSL.TLS1_2_VERSION)
    server.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    ours, _ = failed_handshake(client_context(), server)
    assert ours.failure_code in ("tls-alert-40", "tls-alert-116")


@pytest.mark.parametrize(
    "octets",
    [b"220 mx.example.org ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b"500 what?\r\n" * 50],
)
def test_peer_that_speaks_no_tls(octets: bytes) -> None:
    """RM-14: cleartext where a ServerHello should come."""
    client = SSL.Connection(client_context(), None)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    client.bio_write(octets)
    with pytest.raises(SSL.Error) as caught:
        client.do_handshake()
    assert handshake_failed(caught.value).failure_code == "not-tls"


def test_end_and_reset() -> None:
    """RM-14."""
    client = SSL.Connection(client_context(), None)
    client.set_connect_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    client.bio_shutdown()
    with pytest.raises(SSL.Error) as caught:
        client.do_handshake()
    assert handshake_failed(caught.value).failure_code == "eof"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SSL.SysCallError(-1, "Unexpected EOF"), "eof"),
        (SSL.SysCallError(errno.ECONNRESET, "ECONNRESET"), "reset"),
        (SSL.SysCallError(errno.EPIPE, "EPIPE"), "reset"),
        (SSL.SysCallError(errno.EHOSTUNREACH, "EHOSTUNREACH"), OTHER),
        (SSL.ZeroReturnError(), "eof"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "reset"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "reset"),
        (TimeoutError(), "timeout"),
        (EOFError(), "eof"),
        (SSL.Error([("SSL routines", "", "tlsv1 alert unrecognized name")]), "tls-alert-112"),
        (SSL.Error([("SSL routines", "", "tlsv1 unrecognized name")]), "tls-alert-112"),
        (SSL.Error([("SSL routines", "", "sslv3 alert handshake failure")]), "tls-alert-40"),
        (SSL.Error([("SSL routines", "", "ssl/tls alert handshake failure")]), "tls-alert-40"),
        (SSL.Error([("SSL routines", "", "tlsv13 alert certificate required")]), "tls-alert-116"),
        (SSL.Error([("SSL routines", "", "tlsv1 alert internal error")]), "tls-alert-80"),
        (SSL.Error([("a", "", "odd"), ("SSL routines", "", "unsupported protocol")]), "protocol-version"),
        (SSL.Error([("SSL routines", "", "something new")]), OTHER),
        (SSL.Error([]), OTHER),
        (SSL.Error(), OTHER),
        (SSL.Error("text"), OTHER),
        (RuntimeError("bug"), OTHER),
    ],
)
def test_every_error_has_a_code(error: Exception, code: str) -> None:
    """RM-14: one table with an OTHER row."""
    outcome = handshake_failed(error)
    assert outcome.starttls is StartTls.FAILED
    assert outcome.failure_code == code
    assert outcome.detail.isprintable()
    assert outcome.detail


def test_other_keeps_the_text_bounded_and_printable() -> None:
    outcome = handshake_failed(SSL.Error([("lib", "", "weird\r\n" + "x" * 500)]))
    assert outcome.failure_code == OTHER
    assert outcome.detail.startswith("weird??x")
    assert len(outcome.detail) <= 200
