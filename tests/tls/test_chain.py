"""Certificates as octets: what can be read, what fails how, fingerprints (CONFORMANCE PF-09, TLSA-06)."""

import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.tls.chain import (
    MAX_CERTIFICATES,
    CertChain,
    Certificate,
    MalformedCertificateError,
    chain_of,
    matches_fingerprint,
    peer_chain,
)
from smtpguard.tls.context import client_context, server_context
from smtpguard.tls.der import MalformedDerError, elements, read_certificate
from tests.support.certificates import NOW, Issued, KeyKind, authority, issue, key_number, of_version, self_signed
from tests.tls.handshakes import connected, shake_hands

ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", ROOT)
LEAF = issue("mx", INTERMEDIATE, dns=["mx.example.org"])


@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048", "rsa1024"])
def test_parts_of_a_certificate(kind: KeyKind) -> None:
    """TLSA-06: the SubjectPublicKeyInfo, for each kind of key, weak ones too."""
    issued = self_signed(key=key_number(0, kind))
    certificate = Certificate(issued.der)
    assert certificate.spki_der == issued.spki
    assert certificate.x509 == issued.certificate
    assert certificate.not_before < NOW < certificate.not_after


def test_key_is_taken_octet_by_octet() -> None:
    """TLSA-06: an encoding no library would write (RSA without NULL parameters) is digested as it stands."""
    issued = self_signed(key=key_number(0, "rsa2048"))
    null = bytes.fromhex("300d06092a864886f70d0101010500")
    assert null in issued.spki
    odd = issued.der.replace(null, bytes.fromhex("300d06092a864886f70d010101") + b"\x0c\x00")
    assert Certificate(odd).spki_der == issued.spki.replace(null, null[:-2] + b"\x0c\x00")


def test_extension_found_and_duplicate_refused() -> None:
    certificate = Certificate(LEAF.der)
    basic = certificate.extension(b"\x55\x1d\x13")
    assert basic is not None
    assert basic.critical
    assert certificate.extension(b"\x55\x1d\x55") is None
    oid = x509.ObjectIdentifier("1.2.3.4")
    twice = issue("mx", extra=[(x509.UnrecognizedExtension(oid, b"a"), False)]).der
    twice = twice.replace(bytes.fromhex("551d0e"), bytes.fromhex("551d23"))  # two key identifiers of the authority
    with pytest.raises(MalformedCertificateError, match="twice"):
        Certificate(twice).extension(b"\x55\x1d\x23")


@pytest.mark.parametrize(
    "octets",
    [b"", b"\x30", b"garbage", LEAF.der[:-1], LEAF.der + b"\0", LEAF.spki, b"\x30\x80\0\0"],
    ids=["nothing", "half a header", "text", "cut off", "longer", "another structure", "no length"],
)
def test_garbage_is_a_typed_failure(octets: bytes) -> None:
    certificate = Certificate(octets)
    for read in ("x509", "spki_der", "not_before", "not_after", "fields"):
        with pytest.raises(MalformedCertificateError):
            getattr(certificate, read)


def test_an_unknown_version_is_a_typed_failure() -> None:
    """OpenSSL shakes hands with X.509 version 4, and `cryptography` refuses it with a class of its own."""
    odd = Certificate(of_version(LEAF.der, 4))
    assert odd.spki_der == LEAF.spki
    for read in ("x509", "not_before", "not_after"):
        with pytest.raises(MalformedCertificateError, match="version"):
            getattr(odd, read)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_der_reader_fails_in_one_way(octets: bytes) -> None:
    try:
        parts = list(elements(octets))
    except MalformedDerError:
        return
    assert b"".join(part.whole for part in parts) == octets
    with pytest.raises(MalformedDerError):
        read_certificate(octets)


def test_chain_is_bounded() -> None:
    """Whatever a peer sends, we look at MAX_CERTIFICATES."""
    chain = chain_of([LEAF.der, *[ROOT.der] * 100])
    assert len(chain.rest) == MAX_CERTIFICATES - 1
    assert chain_of([LEAF.der]) == CertChain(Certificate(LEAF.der))
    with pytest.raises(ValueError, match="needs a certificate"):
        chain_of([])


def test_peer_chain_of_a_handshake(tmp_path: Path) -> None:
    """The leaf first, then the rest as sent; a client without a certificate has no chain."""
    client, server = connected(client_context(), server_context(*written(LEAF, tmp_path)))
    shake_hands(client, server)
    assert peer_chain(client) == chain_of([LEAF.der, INTERMEDIATE.der])
    assert peer_chain(server) is None


def written(issued: Issued, directory: Path) -> tuple[Path, Path]:
    cert, key = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(issued.chain_pem)
    key.write_bytes(issued.key_pem)
    return cert, key


@pytest.mark.parametrize("digest", [hashlib.sha256, hashlib.sha512])
def test_fingerprints(digest) -> None:
    """PF-09: certificate or public key, one of several; names, dates and authorities play no part."""
    certificate = Certificate(LEAF.der)
    wrong = digest(b"").digest()
    assert matches_fingerprint(certificate, [wrong, digest(LEAF.der).digest()])
    assert matches_fingerprint(certificate, [digest(LEAF.spki).digest(), wrong])
    assert not matches_fingerprint(certificate, [wrong, digest(ROOT.der).digest()])
    assert not matches_fingerprint(certificate, [])
    assert not matches_fingerprint(
        certificate, [digest(LEAF.der).digest()[:20], hashlib.md5(LEAF.der, usedforsecurity=False).digest()]
    )


def test_fingerprint_of_garbage() -> None:
    """PF-09: a certificate that cannot be read still has a digest."""
    assert matches_fingerprint(Certificate(b"junk"), [hashlib.sha256(b"junk").digest()])
    assert not matches_fingerprint(Certificate(b"junk"), [hashlib.sha256(b"").digest()])
