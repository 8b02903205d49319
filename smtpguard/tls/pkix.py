"""Does this chain lead to an authority we trust, now?  (RFC 5280 §6, RFC 8461 §4.2; CONFORMANCE STS-25,
RM-03, RM-04)

OpenSSL builds and checks the path (signatures, dates, constraints); what its store context does not check, we
do: purpose (extended and plain key usage) and key sizes.  Names are identity's business.

`validate_path` is shared with DANE-TA, which brings its own anchor.  Nothing here raises on what a peer
presented.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from OpenSSL import crypto

from smtpguard.reasons import printable
from smtpguard.tls.chain import CertChain, Certificate, MalformedCertificateError
from smtpguard.tls.der import BIT_STRING, SEQUENCE, MalformedDerError, elements, read_one

# X509_V_ERR_*, by number, of OpenSSL's x509_vfy.h; numbers are never reused.
_ERROR_NAMES = """
    OK UNSPECIFIED UNABLE_TO_GET_ISSUER_CERT UNABLE_TO_GET_CRL UNABLE_TO_DECRYPT_CERT_SIGNATURE
    UNABLE_TO_DECRYPT_CRL_SIGNATURE UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY CERT_SIGNATURE_FAILURE
    CRL_SIGNATURE_FAILURE CERT_NOT_YET_VALID CERT_HAS_EXPIRED CRL_NOT_YET_VALID CRL_HAS_EXPIRED
    ERROR_IN_CERT_NOT_BEFORE_FIELD ERROR_IN_CERT_NOT_AFTER_FIELD ERROR_IN_CRL_LAST_UPDATE_FIELD
    ERROR_IN_CRL_NEXT_UPDATE_FIELD OUT_OF_MEM DEPTH_ZERO_SELF_SIGNED_CERT SELF_SIGNED_CERT_IN_CHAIN
    UNABLE_TO_GET_ISSUER_CERT_LOCALLY UNABLE_TO_VERIFY_LEAF_SIGNATURE CERT_CHAIN_TOO_LONG CERT_REVOKED
    NO_ISSUER_PUBLIC_KEY PATH_LENGTH_EXCEEDED INVALID_PURPOSE CERT_UNTRUSTED CERT_REJECTED
    SUBJECT_ISSUER_MISMATCH AKID_SKID_MISMATCH AKID_ISSUER_SERIAL_MISMATCH KEYUSAGE_NO_CERTSIGN
    UNABLE_TO_GET_CRL_ISSUER UNHANDLED_CRITICAL_EXTENSION KEYUSAGE_NO_CRL_SIGN
    UNHANDLED_CRITICAL_CRL_EXTENSION INVALID_NON_CA PROXY_PATH_LENGTH_EXCEEDED
    KEYUSAGE_NO_DIGITAL_SIGNATURE PROXY_CERTIFICATES_NOT_ALLOWED INVALID_EXTENSION
    INVALID_POLICY_EXTENSION NO_EXPLICIT_POLICY DIFFERENT_CRL_SCOPE UNSUPPORTED_EXTENSION_FEATURE
    UNNESTED_RESOURCE PERMITTED_VIOLATION EXCLUDED_VIOLATION SUBTREE_MINMAX APPLICATION_VERIFICATION
    UNSUPPORTED_CONSTRAINT_TYPE UNSUPPORTED_CONSTRAINT_SYNTAX UNSUPPORTED_NAME_SYNTAX
    CRL_PATH_VALIDATION_ERROR PATH_LOOP SUITE_B_INVALID_VERSION SUITE_B_INVALID_ALGORITHM
    SUITE_B_INVALID_CURVE SUITE_B_INVALID_SIGNATURE_ALGORITHM SUITE_B_LOS_NOT_ALLOWED
    SUITE_B_CANNOT_SIGN_P_384_WITH_P_256 HOSTNAME_MISMATCH EMAIL_MISMATCH IP_ADDRESS_MISMATCH
    DANE_NO_MATCH EE_KEY_TOO_SMALL CA_KEY_TOO_SMALL CA_MD_TOO_WEAK INVALID_CALL STORE_LOOKUP
    NO_VALID_SCTS PROXY_SUBJECT_NAME_VIOLATION OCSP_VERIFY_NEEDED OCSP_VERIFY_FAILED
    OCSP_CERT_UNKNOWN UNSUPPORTED_SIGNATURE_ALGORITHM
    SIGNATURE_ALGORITHM_MISMATCH SIGNATURE_ALGORITHM_INCONSISTENCY INVALID_CA PATHLEN_INVALID_FOR_NON_CA
    PATHLEN_WITHOUT_KU_KEY_CERT_SIGN KU_KEY_CERT_SIGN_INVALID_FOR_NON_CA ISSUER_NAME_EMPTY
    SUBJECT_NAME_EMPTY MISSING_AUTHORITY_KEY_IDENTIFIER MISSING_SUBJECT_KEY_IDENTIFIER
    EMPTY_SUBJECT_ALT_NAME EMPTY_SUBJECT_SAN_NOT_CRITICAL CA_BCONS_NOT_CRITICAL
    AUTHORITY_KEY_IDENTIFIER_CRITICAL SUBJECT_KEY_IDENTIFIER_CRITICAL CA_CERT_MISSING_KEY_USAGE
    EXTENSIONS_REQUIRE_VERSION_3 EC_KEY_EXPLICIT_PARAMS RPK_UNTRUSTED
"""
_NOT_YET_VALID, _EXPIRED = 9, 10
_INVALID_PURPOSE = 26
_UNHANDLED_CRITICAL = 34
_EE_KEY_TOO_SMALL, _CA_KEY_TOO_SMALL, _CA_MD_TOO_WEAK = 66, 67, 68

# What X509StoreFlags does not name.
_NO_CHECK_TIME = 0x200000

_KEY_USAGE = b"\x55\x1d\x0f"  # 2.5.29.15
_EXTENDED_KEY_USAGE = b"\x55\x1d\x25"  # 2.5.29.37
# RFC 5280 extensions that may be critical: key usage, alternative names, basic and name constraints, CRL
# points, policies (mappings, constraints, inhibitAnyPolicy), extended key usage.
_UNDERSTOOD = frozenset(b"\x55\x1d" + bytes([n]) for n in (15, 17, 18, 19, 30, 31, 32, 33, 36, 37, 54))
# Bits of keyUsage.
_DIGITAL_SIGNATURE, _KEY_ENCIPHERMENT, _KEY_AGREEMENT = 0x80, 0x20, 0x08

_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",  # BSD
)


def error_name(code: int) -> str:
    """`X509_V_ERR_CERT_HAS_EXPIRED` for 10, and so on: the failure-reason-code of RFC 8460."""
    names = _ERROR_NAMES.split()
    return f"X509_V_ERR_{names[code] if 0 < code < len(names) else code}"


class Purpose(Enum):
    """What the leaf is for: its extended key usage, and the bits of which its key usage must have one (RFC 5280
    §4.2.1.3, §4.2.1.12; as OpenSSL's `sslserver` and `sslclient`)."""

    SERVER = (b"\x2b\x06\x01\x05\x05\x07\x03\x01", _DIGITAL_SIGNATURE | _KEY_ENCIPHERMENT | _KEY_AGREEMENT)
    """1.3.6.1.5.5.7.3.1"""
    CLIENT = (b"\x2b\x06\x01\x05\x05\x07\x03\x02", _DIGITAL_SIGNATURE | _KEY_AGREEMENT)
    """1.3.6.1.5.5.7.3.2"""


class PkixCause(Enum):
    """What kind of failure: RM-03 or RM-04."""

    EXPIRED = "expired"
    """Some certificate of the path is not valid at this time: not any more, or not yet."""
    UNTRUSTED = "untrusted"


@dataclass(frozen=True, slots=True)
class PkixVerified:
    """The chain is good; `path` leads from the leaf to the anchor."""

    path: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class PkixFailed:
    """`code` is OpenSSL's name of the error (RFC 8460 failure-reason-code), `detail` a printable sentence."""

    cause: PkixCause
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class RootStore:
    """The authorities of one PEM file, parsed once and shared by every verification."""

    source: str
    authorities: tuple[crypto.X509, ...]

    @property
    def size(self) -> int:
        """How many authorities there are."""
        return len(self.authorities)

    def at(self, now: datetime) -> crypto.X509Store:
        """An OpenSSL store that judges at `now`.

        A new one each time (130 µs for the Web's roots): OpenSSL keeps the first time a store is given, and a
        shared one would go on judging at the time of its first verification.
        """
        store = crypto.X509Store()
        for authority in self.authorities:
            store.add_cert(authority)
        store.set_time(now.astimezone(UTC))  # set_time reads the fields and drops the zone
        return store

    @classmethod
    def load(cls, path: Path | None) -> "RootStore":
        """The certificates in `path`, or those of the operating system for None.

        Raises OSError where the file cannot be read and ValueError where it does not hold what it should;
        both name the file and say what to do.
        """
        if path is None:
            path = _system_bundle()
        octets = path.read_bytes()
        begin = b"-----BEGIN CERTIFICATE-----"
        blocks = octets.split(begin)[1:]
        authorities = []
        for number, block in enumerate(blocks, 1):
            try:
                authorities.append(crypto.load_certificate(crypto.FILETYPE_PEM, begin + block))
            except crypto.Error as error:
                raise ValueError(f"{path}: certificate {number} of {len(blocks)} cannot be read") from error
        if not authorities:
            raise ValueError(f"{path}: holds no PEM certificate ({begin.decode()})")
        return cls(str(path), tuple(authorities))


def _system_bundle() -> Path:
    for candidate in _SYSTEM_BUNDLES:
        if Path(candidate).is_file():
            return Path(candidate)
    raise FileNotFoundError(
        "no certificate authorities found on this system (looked for "
        + ", ".join(_SYSTEM_BUNDLES)
        + "); install the package ca-certificates or name a PEM file in [tls] ca_file"
    )


def verify_pkix(
    chain: CertChain, roots: RootStore, now: datetime, purpose: Purpose = Purpose.SERVER
) -> PkixVerified | PkixFailed:
    """Is there a path from the leaf to one of `roots`, good for a TLS server (or client) at `now` (aware)?"""
    return validate_path(chain.leaf, chain.rest, roots.at(now), purpose)


def verify_under_anchor(
    chain: CertChain, anchor: Certificate, now: datetime, *, anchor_is_dated: bool
) -> PkixVerified | PkixFailed:
    """The same with `anchor` as the only authority, root or not (RFC 7671 §5.2).

    `anchor` must not be the leaf.  Without `anchor_is_dated` its own validity does not count, only that of
    the certificates below it (CH-06).
    """
    if anchor == chain.leaf:  # under PARTIAL_CHAIN a leaf in the store would vouch for itself
        return _failed(1, "the certificate cannot be its own trust anchor")
    store = crypto.X509Store()
    try:
        store.add_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, anchor.der))
    except crypto.Error:
        return _failed(1, "the trust anchor cannot be read")
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    undated = not anchor_is_dated and date_fault(anchor, now) is not None
    if undated:
        store.set_flags(_NO_CHECK_TIME)
    else:
        store.set_time(now.astimezone(UTC))
    result = validate_path(chain.leaf, [other for other in chain.rest if other != anchor], store)
    if undated and isinstance(result, PkixVerified):
        for depth, certificate in enumerate(result.path[:-1]):
            fault = date_fault(certificate, now)
            if fault is not None:
                return _failed(fault, _at(depth, certificate))
    return result


def validate_path(
    leaf: Certificate, others: Sequence[Certificate], store: crypto.X509Store, purpose: Purpose = Purpose.SERVER
) -> PkixVerified | PkixFailed:
    """A path from `leaf` over `others` into `store`, then purpose and strength of each certificate on it."""
    try:
        own = crypto.load_certificate(crypto.FILETYPE_ASN1, leaf.der)
    except crypto.Error:
        return _failed(1, "the certificate cannot be read")
    context = crypto.X509StoreContext(store, own, _readable(others, leaf))
    try:
        path = tuple(
            Certificate(crypto.dump_certificate(crypto.FILETYPE_ASN1, link)) for link in context.get_verified_chain()
        )
    except crypto.X509StoreContextError as error:
        _forget_library_errors()
        code, depth, text = error.errors
        return _failed(code, f"{text} at depth {depth}")
    except crypto.Error:
        return _failed(1, "the path could not be built")
    for depth, certificate in enumerate(path):
        try:
            fault = _purpose_fault(certificate, depth, purpose) or _strength_fault(certificate, depth, len(path))
        except (MalformedCertificateError, MalformedDerError) as error:
            return _failed(1, f"{error} at depth {depth}")
        if fault is not None:
            return _failed(fault, _at(depth, certificate))
    return PkixVerified(path)


def verify_leaf_under_key(leaf: Certificate, now: datetime) -> PkixVerified | PkixFailed:
    """The same for a leaf whose signature by a bare trust anchor key is already proven (RFC 7671 §5.2.3): no
    store can hold a key alone, so that what OpenSSL checks of a leaf is checked here."""
    try:
        crypto.load_certificate(crypto.FILETYPE_ASN1, leaf.der)
        unknown = any(e.critical and e.oid not in _UNDERSTOOD for e in leaf.fields.extensions)
        fault = _UNHANDLED_CRITICAL if unknown else date_fault(leaf, now)
        fault = fault or _purpose_fault(leaf, 0, Purpose.SERVER) or _strength_fault(leaf, 0, 2)
    except (crypto.Error, MalformedCertificateError, MalformedDerError):
        return _failed(1, "the certificate cannot be read")
    return PkixVerified((leaf,)) if fault is None else _failed(fault, _at(0, leaf))


def date_fault(certificate: Certificate, now: datetime) -> int | None:
    """OpenSSL's error number where `now` is outside the validity of `certificate`."""
    try:
        if now < certificate.not_before:
            return _NOT_YET_VALID
        return _EXPIRED if now > certificate.not_after else None
    except MalformedCertificateError:
        return _EXPIRED


def _purpose_fault(certificate: Certificate, depth: int, purpose: Purpose) -> int | None:
    """RFC 5280 §4.2.1.3, §4.2.1.12, as OpenSSL reads them: an extended key usage limits every certificate of
    the path, not the leaf alone."""
    wanted, bits = purpose.value
    extended = certificate.extension(_EXTENDED_KEY_USAGE)
    if extended is not None:
        purposes = {element.content for element in elements(read_one(extended.value, SEQUENCE).content)}
        if wanted not in purposes:
            return _INVALID_PURPOSE
    usage = certificate.extension(_KEY_USAGE) if depth == 0 else None
    if usage is not None and not _first_bits(read_one(usage.value, BIT_STRING).content) & bits:
        return _INVALID_PURPOSE
    return None


def _strength_fault(certificate: Certificate, depth: int, length: int) -> int | None:
    """At least 112 bits, as OpenSSL's security level 2 (RFC 9325 §4.5; CH-28: only where verification
    applies)."""
    read = certificate.x509
    try:
        key = read.public_key()
    except UnsupportedAlgorithm:
        key = None  # OpenSSL verified with it, and knows no weak one that `cryptography` lacks
    except ValueError:
        return _key_too_small(depth)
    match key:
        case rsa.RSAPublicKey() | dsa.DSAPublicKey():
            if key.key_size < 2048:
                return _key_too_small(depth)
        case ec.EllipticCurvePublicKey():
            if key.key_size < 224:
                return _key_too_small(depth)
        case _:
            pass
    if depth == length - 1:
        return None  # nobody relies on an anchor's own signature
    try:
        digest = read.signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        return None
    return _CA_MD_TOO_WEAK if digest is not None and digest.name in ("md5", "sha1") else None


def _key_too_small(depth: int) -> int:
    return _CA_KEY_TOO_SMALL if depth else _EE_KEY_TOO_SMALL


def _first_bits(bit_string: bytes) -> int:
    return bit_string[1] if len(bit_string) > 1 else 0


def _readable(others: Sequence[Certificate], leaf: Certificate) -> list[crypto.X509]:
    """The presented issuers that can be parsed; garbage among them helps and harms nobody."""
    readable = []
    for other in others:
        if other == leaf:
            continue
        try:
            readable.append(crypto.load_certificate(crypto.FILETYPE_ASN1, other.der))
        except crypto.Error:
            continue
    return readable


def _forget_library_errors() -> None:
    """Empties OpenSSL's error queue of this thread: an entry left there would be taken for the failure of the
    next read of some TLS connection (SSL_get_error).  pyOpenSSL empties it whenever it reports an error
    itself."""
    with suppress(crypto.Error):
        crypto.load_certificate(crypto.FILETYPE_ASN1, b"")


def _at(depth: int, certificate: Certificate) -> str:
    try:
        subject = certificate.x509.subject.rfc4514_string()
    except ValueError:
        subject = ""
    return f"at depth {depth} ({printable(subject, 80)})"


def _failed(code: int, detail: str) -> PkixFailed:
    cause = PkixCause.EXPIRED if code in (_NOT_YET_VALID, _EXPIRED) else PkixCause.UNTRUSTED
    return PkixFailed(cause, error_name(code), printable(detail))
