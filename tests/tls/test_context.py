"""TLS settings of both roles, seen on the wire (CONFORMANCE TLS-01..09, TLSA-17, TLSA-19)."""

import contextlib
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from OpenSSL import SSL
from OpenSSL._util import lib

from smtpguard.tls.context import TICKET_SECONDS, ServerOptions, client_context, server_context
from smtpguard.tls.outcome import TlsVersion, read_outcome
from tests.support.certificates import (
    NOW,
    SERVER_AUTH,
    Issued,
    KeyKind,
    authority,
    issue,
    key_number,
    self_signed,
)
from tests.tls.handshakes import carry, connected, shake_hands

LEAF = issue("mx", authority("Intermediate", authority("Root")), dns=["mx.example.org"])


def write(directory: Path, issued: Issued = LEAF) -> tuple[Path, Path]:
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(issued.chain_pem)
    key.write_bytes(issued.key_pem)
    return cert, key


def peer(method: int, version: int | None = None, ciphers: bytes = b"ALL:@SECLEVEL=0") -> SSL.Context:
    """The other side, that would do anything."""
    context = SSL.Context(method)
    context.set_min_proto_version(version or SSL.TLS1_VERSION)
    if version is not None:
        context.set_max_proto_version(version)
    context.set_cipher_list(ciphers)
    return context


def old_server(files: tuple[Path, Path], version: int, ciphers: bytes = b"ALL:@SECLEVEL=0") -> SSL.Context:
    context = peer(SSL.TLS_SERVER_METHOD, version, ciphers)
    context.use_certificate_chain_file(str(files[0]))
    context.use_privatekey_file(str(files[1]))
    return context


def agrees(client: SSL.Context, server: SSL.Context) -> TlsVersion | None:
    ends = connected(client, server)
    try:
        shake_hands(*ends)
    except SSL.Error:
        return None
    return read_outcome(ends[0]).version


def test_floor_of_both_roles(tmp_path: Path) -> None:
    """TLS-01, TLSA-19: never below 1.2, and 1.3 where both can."""
    files = write(tmp_path)
    for version, expected in (
        (SSL.TLS1_VERSION, None),
        (SSL.TLS1_1_VERSION, None),
        (SSL.TLS1_2_VERSION, TlsVersion.TLS_1_2),
        (SSL.TLS1_3_VERSION, TlsVersion.TLS_1_3),
    ):
        assert agrees(client_context(), old_server(files, version)) is expected
        assert agrees(peer(SSL.TLS_CLIENT_METHOD, version), server_context(*files)) is expected
    assert agrees(client_context(), server_context(*files)) is TlsVersion.TLS_1_3


def test_floor_of_a_rule(tmp_path: Path) -> None:
    """A rule may raise the floor, and lower it for one destination (PF-13, CH-28)."""
    files = write(tmp_path)
    assert agrees(client_context(TlsVersion.TLS_1_3), old_server(files, SSL.TLS1_2_VERSION)) is None
    assert agrees(client_context(TlsVersion.TLS_1_0), old_server(files, SSL.TLS1_VERSION)) is TlsVersion.TLS_1_0
    assert agrees(client_context(TlsVersion.TLS_1_1), old_server(files, SSL.TLS1_VERSION)) is None
    assert agrees(client_context(TlsVersion.TLS_1_0), server_context(*files)) is TlsVersion.TLS_1_3


@pytest.mark.parametrize("floor", [TlsVersion.TLS_1_2, TlsVersion.TLS_1_3])
def test_suites_offered(floor: TlsVersion) -> None:
    """TLS-03, TLS-04: ECDHE and TLS 1.3 only, AEAD first, nothing weak."""
    suites = SSL.Connection(client_context(floor), None).get_cipher_list()
    assert all(suite.startswith(("TLS_", "ECDHE-")) for suite in suites)
    assert not [suite for suite in suites if re.search("NULL|RC4|DES|EXP|MD5|CCM8|PSK|anon|ADH|AECDH", suite)]
    gcm = [index for index, suite in enumerate(suites) if "GCM" in suite]
    cbc = [index for index, suite in enumerate(suites) if re.search("AES(128|256)-SHA", suite)]
    assert max(gcm) < min(cbc)
    assert {"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"} <= set(suites)


@pytest.mark.parametrize("ciphers", [b"AES128-SHA:AES256-GCM-SHA384", b"DHE:@SECLEVEL=0", b"aNULL:@SECLEVEL=0"])
def test_suites_refused(ciphers: bytes, tmp_path: Path) -> None:
    """TLS-03: static RSA, DHE and anonymous key exchange in TLS 1.2, in both roles."""
    files = write(tmp_path, self_signed(key=key_number(0, "rsa2048")))
    assert agrees(client_context(), old_server(files, SSL.TLS1_2_VERSION, ciphers)) is None
    assert agrees(peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION, ciphers), server_context(*files)) is None


def test_weak_peer_keys_do_not_stop_a_handshake(tmp_path: Path) -> None:
    """CH-28, TLS-09: whether a key of 1024 bits is enough is judged later, where something is verified."""
    files = write(tmp_path, self_signed(key=key_number(0, "rsa1024")))
    for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
        assert agrees(client_context(), old_server(files, version)) is not None


def hello(context: SSL.Context) -> bytes:
    """The ClientHello that a context sends."""
    client = SSL.Connection(context, None)
    client.set_connect_state()
    client.set_tlsext_host_name(b"mx.example.org")
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    return client.bio_read(65536)


def extensions(octets: bytes) -> dict[int, bytes]:
    """The extensions of a ClientHello in one record (RFC 8446 §4.1.2)."""
    offset = 5 + 4 + 2 + 32
    offset += 1 + octets[offset]  # session id
    offset += 2 + int.from_bytes(octets[offset : offset + 2], "big")  # cipher suites
    assert octets[offset : offset + 2] == b"\1\0"  # TLS-05: no compression
    offset += 4
    found = {}
    while offset < len(octets):
        kind, length = (int.from_bytes(octets[at : at + 2], "big") for at in (offset, offset + 2))
        found[kind] = octets[offset + 4 : offset + 4 + length]
        offset += 4 + length
    return found


def test_what_a_client_hello_says() -> None:
    """TLS-05, TLS-06, TLS-07, TLSA-17, TLSA-19: SNI, extended master secret, X25519 and P-256; no session to
    resume, no early data, no raw public keys."""
    sent = extensions(hello(client_context()))
    assert b"mx.example.org" in sent[0]
    assert 23 in sent  # extended_master_secret
    groups = [sent[10][at : at + 2] for at in range(2, len(sent[10]), 2)]
    assert b"\0\x1d" in groups
    assert b"\0\x17" in groups
    # server_certificate_type, session_ticket, pre_shared_key, early_data
    assert not {20, 35, 41, 42} & set(sent)


def test_no_session_is_resumed(tmp_path: Path) -> None:
    """A resumed session shows no certificate to judge."""
    server = server_context(*write(tmp_path))
    context = client_context()
    for _ in range(2):
        ends = connected(context, server)
        shake_hands(*ends)
        assert read_outcome(ends[0]).chain is not None
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF


def test_no_renegotiation(tmp_path: Path) -> None:
    """TLS-06: neither asked for nor granted."""
    client, server = connected(peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION), server_context(*write(tmp_path)))
    shake_hands(client, server)
    client.renegotiate()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    carry(client, server)
    with pytest.raises(SSL.WantReadError):
        server.recv(10)
    carry(server, client)
    with pytest.raises(SSL.Error, match="no renegotiation"):
        client.do_handshake()


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_tickets_are_short_lived(version: int, tmp_path: Path) -> None:
    """TLS-08; a client may resume with them.  No early data (TLS-07): OpenSSL's default."""
    context = peer(SSL.TLS_CLIENT_METHOD, version)
    client, server = connected(context, server_context(*write(tmp_path)))
    shake_hands(client, server)
    with pytest.raises(SSL.WantReadError):
        client.recv(1)
    session = client.get_session()
    assert session is not None
    assert server.get_context().get_timeout() == TICKET_SECONDS <= 7 * 86400
    again, server_again = connected(context, server.get_context())
    again.set_session(session)
    shake_hands(again, server_again)


@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_keys_that_serve(kind: KeyKind, tmp_path: Path) -> None:
    files = write(tmp_path, self_signed(key=key_number(0, kind)))
    assert agrees(client_context(), server_context(*files)) is TlsVersion.TLS_1_3


# --- a listener


def test_no_old_version_for_clients() -> None:
    """TLS-01: TLS 1.0 and 1.1 are not to be had, whatever a configuration says."""
    for floor in (TlsVersion.TLS_1_0, TlsVersion.TLS_1_1):
        with pytest.raises(ValueError, match="lowest version is 1"):
            ServerOptions(floor)


def test_floor_of_a_listener(tmp_path: Path) -> None:
    context = server_context(*write(tmp_path), ServerOptions(TlsVersion.TLS_1_3))
    assert agrees(peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION), context) is None
    assert agrees(client_context(), context) is TlsVersion.TLS_1_3


def test_suites_of_a_listener(tmp_path: Path) -> None:
    """TLS-03, TLS-04: ECDHE with AEAD only, nothing that Internet.nl phases out."""
    suites = SSL.Connection(server_context(*write(tmp_path)), None).get_cipher_list()
    assert all(re.fullmatch("TLS_.*_(GCM|POLY1305)_.*|ECDHE-(ECDSA|RSA)-.*(GCM|CHACHA20).*", suite) for suite in suites)
    assert len(suites) == 9


@pytest.mark.parametrize(
    "ciphers", [b"ECDHE+AES+SHA256:ECDHE+AES+SHA1:@SECLEVEL=0", b"DHE+AESGCM:@SECLEVEL=0", b"ECDHE+CAMELLIA"]
)
def test_suites_a_listener_refuses(ciphers: bytes, tmp_path: Path) -> None:
    """TLS-03: CBC and DHE."""
    files = write(tmp_path, self_signed(key=key_number(0, "rsa2048")))
    assert agrees(peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION, ciphers), server_context(*files)) is None


def group(client: SSL.Context, server: SSL.Context, groups: bytes) -> str | None:
    """The group agreed on with a client that offers these (`*`: with a key share)."""
    assert lib.SSL_CTX_set1_curves_list(client._context, groups) == 1
    ends = connected(client, server)
    try:
        shake_hands(*ends)
    except SSL.Error:
        return None
    return read_outcome(ends[1]).group


def test_groups_of_a_listener(tmp_path: Path) -> None:
    """TLS-04: P-256 and X25519; the hybrid group is preferred even where it costs a second hello.  No finite fields, no
    Brainpool, no P-521."""
    server = server_context(*write(tmp_path))
    for offered, expected in (
        (b"*X25519:*X25519MLKEM768", "X25519MLKEM768"),
        (b"*X25519:X25519MLKEM768", "X25519MLKEM768"),
        (b"secp384r1:secp256r1:X25519", "secp384r1"),  # no second hello among the classical ones
        (b"*secp384r1:*X25519", "x25519"),
        (b"*secp256r1:X25519", "secp256r1"),
        (b"secp384r1", "secp384r1"),
        (b"secp521r1", None),
        (b"ffdhe2048:ffdhe3072:ffdhe4096", None),
        (b"X448:brainpoolP256r1tls13", None),
    ):
        assert group(peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_3_VERSION), server, offered) == expected
    old = peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION)
    assert group(old, server, b"secp256r1:secp521r1") == "secp256r1"


@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
@pytest.mark.parametrize("digest", ["SHA1", "SHA224"])
def test_signatures_of_a_listener(kind: KeyKind, digest: str, tmp_path: Path) -> None:
    """TLS-09: no handshake is signed with SHA-1 or SHA-224."""
    server = server_context(*write(tmp_path, self_signed(key=key_number(0, kind))))
    client = peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION)
    assert lib.SSL_CTX_set1_sigalgs_list(client._context, f"RSA+{digest}:ECDSA+{digest}".encode()) == 1
    assert agrees(client, server) is None
    assert agrees(peer(SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION), server) is TlsVersion.TLS_1_2


def test_server_chooses_the_suite(tmp_path: Path) -> None:
    client = peer(
        SSL.TLS_CLIENT_METHOD, SSL.TLS1_2_VERSION, b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384"
    )
    ends = connected(client, server_context(*write(tmp_path)))
    shake_hands(*ends)
    assert read_outcome(ends[0]).cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_settings_leave_no_error_behind(tmp_path: Path) -> None:
    """An entry in OpenSSL's queue would be taken for the failure of some other connection."""
    server_context(*write(tmp_path), ServerOptions(request_client_certificate=True))
    assert lib.ERR_peek_error() == 0


def presenting(client: Issued | None, version: int) -> SSL.Context:
    context = peer(SSL.TLS_CLIENT_METHOD, version)
    if client is not None:
        context.use_certificate(client.certificate)
        context.use_privatekey(client.key)
        for issuer in client.issuers[:-1]:
            context.add_extra_chain_cert(issuer.certificate)
    return context


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize(
    "client",
    [
        None,
        LEAF,
        self_signed("client.example"),
        self_signed("old.example", not_before=NOW - timedelta(days=800), not_after=NOW - timedelta(days=400)),
        self_signed("weak.example", key=key_number(0, "rsa1024")),
        issue("client", authority("Root"), dns=["client.example"], purposes=[SERVER_AUTH]),
    ],
)
def test_any_client_certificate_passes_the_handshake(client: Issued | None, version: int, tmp_path: Path) -> None:
    """What a client shows never breaks the handshake, and it arrives with its issuers; who does not ask is shown
    nothing."""
    files = write(tmp_path)
    ends = connected(
        presenting(client, version), server_context(*files, ServerOptions(request_client_certificate=True))
    )
    shake_hands(*ends)
    chain = read_outcome(ends[1]).chain
    presented = [] if chain is None else [certificate.der for certificate in (chain.leaf, *chain.rest)]
    assert presented == ([] if client is None else [client.der, *(issuer.der for issuer in client.issuers[:-1])])
    ends = connected(presenting(client, version), server_context(*files))
    shake_hands(*ends)
    assert read_outcome(ends[1]).chain is None


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest.mark.parametrize("requested", [False, True])
def test_client_certificate_is_shown_each_time(requested: bool, version: int, tmp_path: Path) -> None:
    """STLS-20: a resumed session would bring back the certificate alone; with client certificates none is resumed,
    so that each handshake is judged anew on the whole chain."""
    server = server_context(*write(tmp_path), ServerOptions(request_client_certificate=requested))
    client = presenting(LEAF, version)
    first = connected(client, server)
    shake_hands(*first)
    with pytest.raises(SSL.WantReadError):
        first[0].recv(1)
    session = first[0].get_session()
    assert session is not None
    again = connected(client, server)
    again[0].set_session(session)
    shake_hands(*again)
    assert lib.SSL_session_reused(again[1]._ssl) == (0 if requested else 1)
    chain = read_outcome(again[1]).chain
    assert ([] if chain is None else [c.der for c in (chain.leaf, *chain.rest)]) == (
        LEAF.ders[:-1] if requested else []
    )


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_client_must_have_the_key(version: int, tmp_path: Path) -> None:
    """The handshake still proves possession: a signature that is damaged on its way ends it."""
    client, server = connected(
        presenting(self_signed("client.example"), version),
        server_context(*write(tmp_path), ServerOptions(request_client_certificate=True)),
    )
    for end, other in ((client, server), (server, client)):
        with pytest.raises(SSL.WantReadError):
            end.do_handshake()
        carry(end, other)
    with contextlib.suppress(SSL.WantReadError):
        client.do_handshake()
    flight = bytearray(client.bio_read(65536))
    # TLS 1.2: inside the signature of CertificateVerify, which is in clear; 1.3: anywhere in the protected flight.
    at = flight.index(b"\x0f\0\0") + 20 if version == SSL.TLS1_2_VERSION else len(flight) - 80
    flight[at] ^= 1
    server.bio_write(bytes(flight))
    with pytest.raises(SSL.Error, match=r"signature|decrypt|bad record mac|asn1"):
        server.do_handshake()


def test_client_certificates_under_memory_protection(tmp_path: Path) -> None:
    """No callback: all works where memory is never writable and executable (systemd MemoryDenyWriteExecute;
    PR_SET_MDWE, where the kernel has it)."""
    write(tmp_path)
    code = f"""
import ctypes
from pathlib import Path
from OpenSSL import SSL
from smtpguard.tls.context import ServerOptions, client_context, server_context
from tests.tls.handshakes import connected, shake_hands
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
files = Path({str(tmp_path)!r}) / "cert.pem", Path({str(tmp_path)!r}) / "key.pem"
client = SSL.Context(SSL.TLS_CLIENT_METHOD)
client.use_certificate_chain_file(str(files[0]))
client.use_privatekey_file(str(files[1]))
ends = connected(client, server_context(*files, ServerOptions(request_client_certificate=True)))
shake_hands(*ends)
print(ends[1].get_peer_certificate() is not None)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"


# --- errors
# ----------------------------------------------------------------------------------------------------


def test_missing_files_are_named(tmp_path: Path) -> None:
    cert, key = write(tmp_path)
    for files in ((tmp_path / "no.pem", key), (cert, tmp_path / "no.pem")):
        with pytest.raises(FileNotFoundError, match=r"no\.pem"):
            server_context(*files)


@pytest.mark.parametrize(
    ("cert", "key", "message"),
    [
        (b"junk", LEAF.key_pem, r"cert\.pem: holds no PEM certificate .* must stand first"),
        (LEAF.key_pem, LEAF.key_pem, r"cert\.pem: holds no PEM certificate"),
        (LEAF.chain_pem, b"junk", r"key\.pem: holds no PEM private key"),
        (LEAF.chain_pem, LEAF.pem, r"key\.pem: holds no PEM private key"),
        (
            LEAF.chain_pem,
            self_signed(key=key_number(97)).key_pem,
            r"key\.pem: is not the key of .*cert\.pem; .* first",
        ),
        (
            LEAF.issuers[0].pem + LEAF.pem,
            LEAF.key_pem,
            r"cert\.pem: certificate 2 is the one of the key in .*key\.pem; it must stand first",
        ),
        (
            self_signed(key=key_number(0, "rsa1024")).pem,
            key_number(0, "rsa1024").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
            r"cert\.pem: the RSA key has 1024 bits; get a certificate for a key of 2048",
        ),
        (
            LEAF.chain_pem,
            LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
            r"key\.pem: the private key is encrypted; .*openssl pkey",
        ),
    ],
)
def test_files_that_cannot_serve(cert: bytes, key: bytes, message: str, tmp_path: Path) -> None:
    """TLS-09 and the way out: every error names the file and says what would be right."""
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    with pytest.raises(ValueError, match=message):
        server_context(tmp_path / "cert.pem", tmp_path / "key.pem")
