"""What did the peer present?  (RFC 5246 §7.4.2, RFC 8446 §4.4.2; fingerprints: Postfix TLS_README)

A `Certificate` is its DER octets; everything else is read from them when it is asked for, so that garbage
from the network does no harm before a judgement needs it, and there it is a typed failure
(`MalformedCertificateError`).
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from OpenSSL import SSL, crypto

from smtpguard.tls.der import CertificateFields, Extension, MalformedDerError, read_certificate

MAX_CERTIFICATES = 32
"""Certificates of one chain that we look at.  Real chains have two to four; more only costs work."""


class MalformedCertificateError(ValueError):
    """The octets are not a certificate that can be read."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate, as it came.  Every property may raise MalformedCertificateError."""

    der: bytes

    @property
    def x509(self) -> x509.Certificate:
        """The certificate as `cryptography` reads it."""
        try:
            return x509.load_der_x509_certificate(self.der)
        except (ValueError, x509.InvalidVersion) as error:  # the second is no ValueError
            raise MalformedCertificateError(f"not an X.509 certificate: {error}") from error

    @property
    def fields(self) -> CertificateFields:
        """The octets of its parts."""
        try:
            return read_certificate(self.der)
        except MalformedDerError as error:
            raise MalformedCertificateError(f"not an X.509 certificate: {error}") from error

    @property
    def spki_der(self) -> bytes:
        """The SubjectPublicKeyInfo, octet by octet as it stands in the certificate (RFC 6698 §2.1.2)."""
        return self.fields.spki

    @property
    def not_before(self) -> datetime:
        """Start of validity, aware UTC."""
        certificate = self.x509
        try:
            return certificate.not_valid_before_utc
        except (ValueError, OverflowError) as error:
            raise MalformedCertificateError(f"notBefore cannot be read: {error}") from error

    @property
    def not_after(self) -> datetime:
        """End of validity, aware UTC."""
        certificate = self.x509
        try:
            return certificate.not_valid_after_utc
        except (ValueError, OverflowError) as error:
            raise MalformedCertificateError(f"notAfter cannot be read: {error}") from error

    def extension(self, oid: bytes) -> Extension | None:
        """The extension with this object identifier (DER content); None where it is absent.

        Raises MalformedCertificateError where it stands there twice (RFC 5280 §4.2).
        """
        found = [extension for extension in self.fields.extensions if extension.oid == oid]
        if len(found) > 1:
            raise MalformedCertificateError("an extension occurs twice")
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class CertChain:
    """The certificates in the order presented: the peer's own, then whatever else it sent."""

    leaf: Certificate
    rest: tuple[Certificate, ...] = ()


def chain_of(ders: Iterable[bytes]) -> CertChain:
    """The chain of these DER certificates, the leaf first; bounded to MAX_CERTIFICATES.  ValueError if there
    is none."""
    certificates = [Certificate(der) for _, der in zip(range(MAX_CERTIFICATES), ders, strict=False)]
    if not certificates:
        raise ValueError("a chain needs a certificate")
    return CertChain(certificates[0], tuple(certificates[1:]))


def peer_chain(connection: SSL.Connection) -> CertChain | None:
    """What the peer presented in the handshake; None where it presented nothing."""
    leaf = connection.get_peer_certificate()
    if leaf is None:
        return None
    ders = [_der(leaf)]
    # On the client's side the chain begins with the leaf, on the server's side it does not.
    ders += [der for der in map(_der, connection.get_peer_cert_chain() or ()) if der != ders[0]]
    return chain_of(ders)


def matches_fingerprint(leaf: Certificate, fingerprints: Sequence[bytes]) -> bool:
    """Is one of `fingerprints` a digest of the certificate or of its public key?  (CONFORMANCE PF-09)

    A fingerprint of 32 octets is SHA-256, one of 64 octets SHA-512; any other length matches nothing.
    Authorities, names and dates play no part.
    """
    contents = [leaf.der]
    with suppress(MalformedCertificateError):
        contents.append(leaf.spki_der)
    digests = [digest(content).digest() for content in contents for digest in (hashlib.sha256, hashlib.sha512)]
    return any(hmac.compare_digest(digest, wanted) for digest in digests for wanted in fingerprints)


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
