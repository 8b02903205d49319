"""Which certificates do the sandbox's servers show, which TLSA records match?  (RFC 5280, 6698 §2.1, 7671 §5)

Made with `cryptography`, in memory and in one directory (stdlib `ssl` loads keys from files only).
Dates are constants, so nothing here reads a clock: "valid" is 2020-2049 and "expired" ended in 2021.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Dates(Enum):
    """The validity periods on offer."""

    VALID = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC))
    EXPIRED = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC))
    NOT_YET = (datetime(2049, 1, 1, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Credential:
    """A private key and the chain a server sends: its certificate first, then `rest` in order."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    rest: tuple[x509.Certificate, ...]
    pem_file: Path  # key and whole chain, for ssl.SSLContext.load_cert_chain

    @property
    def der(self) -> bytes:
        """The server's own certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """Every certificate sent, the server's own first."""
        return (self.der, *(each.public_bytes(Encoding.DER) for each in self.rest))


@dataclass(frozen=True, slots=True)
class Authority:
    """A certification authority.  `above`: what lies above it, its root last; () for a root."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    above: tuple[x509.Certificate, ...]

    @property
    def der(self) -> bytes:
        """The authority's own certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The authority's own certificate, as a trust store file holds it."""
        return self.certificate.public_bytes(Encoding.PEM)


class CertificateMaker:
    """Makes authorities and server credentials; the PEM files go to `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = 0

    def root(self, name: str) -> Authority:
        """A self-signed authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Authority(key, _sign(key, name, (), None, Dates.VALID, is_authority=True), ())

    def intermediate(self, parent: Authority, name: str, dates: Dates = Dates.VALID) -> Authority:
        """An authority certified by `parent`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(key, name, (), parent, dates, is_authority=True)
        return Authority(key, certificate, (parent.certificate, *parent.above))

    def leaf(
        self,
        parent: Authority | None,
        names: Sequence[str],
        *,
        dates: Dates = Dates.VALID,
        key: ec.EllipticCurvePrivateKey | None = None,
        send_root: bool = False,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> Credential:
        """A server certificate for `names` (DNS names or IP literals); `parent` None means self-signed.

        `key` keeps the key of an earlier certificate (a renewal).  The root is sent only with `send_root`, as
        a server must where a TLSA record of usage 2 names its root (RFC 7671 §5.2.2).
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = _sign(key, names[0], names, parent, dates, purpose=purpose)
        rest: tuple[x509.Certificate, ...] = ()
        if parent is not None:
            rest = (parent.certificate, *parent.above)
            if not send_root:
                rest = rest[:-1]
        return self._store(key, certificate, rest)

    def trust_file(self, *authorities: Authority) -> Path:
        """A file of trust anchors, for `[tls] ca_file`."""
        self._files += 1
        path = self._directory / f"roots-{self._files}.pem"
        path.write_bytes(b"".join(each.pem for each in authorities))
        return path

    def _store(
        self,
        key: ec.EllipticCurvePrivateKey,
        certificate: x509.Certificate,
        rest: tuple[x509.Certificate, ...],
    ) -> Credential:
        self._files += 1
        path = self._directory / f"server-{self._files}.pem"
        parts = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())]
        parts += [each.public_bytes(Encoding.PEM) for each in (certificate, *rest)]
        path.touch(mode=0o600)
        path.write_bytes(b"".join(parts))
        return Credential(key, certificate, rest, path)


def _sign(
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    names: Sequence[str],
    parent: Authority | None,
    dates: Dates,
    *,
    is_authority: bool = False,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signing_key = parent.key if parent else key
    not_before, not_after = dates.value
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.certificate.subject if parent else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not is_authority:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
        ).add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.sign(signing_key, hashes.SHA256())


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def spki(der: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate."""
    public_key = x509.load_der_x509_certificate(der).public_key()
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tlsa(usage: int, selector: int, matching_type: int, der: bytes) -> str:
    """The TLSA record, in presentation form, that matches the DER certificate `der` (RFC 6698 §2.1).

    `selector` 0 whole certificate, 1 SubjectPublicKeyInfo; `matching_type` 0 exact, 1 SHA-256, 2 SHA-512.
    """
    selected = {0: lambda: der, 1: lambda: spki(der)}[selector]()
    association = {
        0: lambda: selected,
        1: lambda: hashlib.sha256(selected).digest(),
        2: lambda: hashlib.sha512(selected).digest(),
    }[matching_type]()
    return f"{usage} {selector} {matching_type} {association.hex()}"
