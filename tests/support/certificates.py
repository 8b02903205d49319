"""Certificates for tests: authorities, intermediates and leaves with any name, date, usage and key.

Deterministic in everything but keys and serial numbers.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
"""The time at which certificates are valid unless a test says otherwise."""

SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
KeyKind = Literal["p256", "ed25519", "rsa2048", "rsa1024"]
_serials = itertools.count(1000)


@functools.cache
def key_number(number: int, kind: KeyKind = "p256") -> PrivateKey:
    """The n-th key of the pool, the same throughout a test session."""
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "rsa2048":
            return rsa.generate_private_key(65537, 2048)
        case "rsa1024":
            return rsa.generate_private_key(65537, 1024)  # noqa: S505 (weak on purpose)


@dataclass(frozen=True)
class Issued:
    """A certificate with its private key; `issuers` lead upwards, the root last."""

    certificate: x509.Certificate
    key: PrivateKey
    issuers: tuple["Issued", ...] = field(default=(), repr=False)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def spki(self) -> bytes:
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def ders(self) -> list[bytes]:
        """The full chain, the leaf first and the root last."""
        return [self.der, *(issuer.der for issuer in self.issuers)]

    @property
    def chain_pem(self) -> bytes:
        """What a server's fullchain.pem holds: everything but the root."""
        return self.pem + b"".join(issuer.pem for issuer in self.issuers[:-1])


def issue(
    common_name: str,
    issuer: Issued | None = None,
    *,
    key: PrivateKey | None = None,
    dns: Sequence[str] = (),
    addresses: Sequence[str] = (),
    not_before: datetime = NOW - timedelta(days=30),
    not_after: datetime = NOW + timedelta(days=60),
    ca: bool = False,
    path_length: int | None = None,
    permitted: Sequence[str] = (),
    excluded: Sequence[str] = (),
    purposes: Sequence[x509.ObjectIdentifier] | None = None,
    key_cert_sign: bool | None = None,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    digest: hashes.HashAlgorithm | None = None,
) -> Issued:
    """A certificate signed by `issuer` (None: by itself).

    `purposes` is the extended key usage (None: no such extension).  `key_cert_sign`: the key usage extension
    with or without that bit (None: no such extension).  `extra`: further extensions with their criticality.
    """
    key = key if key is not None else _fresh_key()
    signer = issuer.key if issuer is not None else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(next(_serials))
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns]
    names += [x509.IPAddress(_address(address)) for address in addresses]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if permitted or excluded:
        constraints = x509.NameConstraints(
            [x509.DNSName(name) for name in permitted] or None,
            [x509.DNSName(name) for name in excluded] or None,
        )
        builder = builder.add_extension(constraints, critical=True)
    if purposes is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if key_cert_sign is not None:
        builder = builder.add_extension(_key_usage(key_cert_sign), critical=True)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    if digest is None and not isinstance(signer, ed25519.Ed25519PrivateKey):
        digest = hashes.SHA256()
    certificate = builder.sign(signer, digest)  # type: ignore[arg-type]
    return Issued(certificate, key, () if issuer is None else (issuer, *issuer.issuers))


def authority(common_name: str = "Test Root", issuer: Issued | None = None, **options: object) -> Issued:
    """A root, or with `issuer` an intermediate; options as for `issue`."""
    return issue(common_name, issuer, ca=True, **options)  # type: ignore[arg-type]


def self_signed(name: str = "mx.example.org", **options: object) -> Issued:
    """What many mail hosts have: a leaf that signed itself."""
    return issue(name, dns=[name], **options)  # type: ignore[arg-type]


_fresh = itertools.count()


def _fresh_key() -> PrivateKey:
    return key_number(next(_fresh))  # never one twice: two roles with one key would be one issuer


def _address(text: str) -> IPv4Address | IPv6Address:
    return IPv6Address(text) if ":" in text else IPv4Address(text)


def _key_usage(key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def of_version(der: bytes, version: int) -> bytes:
    """The certificate `der`, of X.509 version 3, saying that it is of another one; its signature does not hold then."""
    third = b"\xa0\x03\x02\x01\x02"
    assert der.count(third) == 1
    return der.replace(third, third[:-1] + bytes([version - 1]))
