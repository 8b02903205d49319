"""Which certificate do we show to whom, and is it the one that the world expects?  (RFC 6066 §3, RFC 9525 §6.3,
RFC 7671 §5.2, RFC 7672 §3.1 and §8.1; CONFORMANCE DANE-43, DANE-45, TLS-08, TLS-09)

Certificate and key files come in pairs.  The name that a client asks for chooses: exact, then a wildcard, else the
first pair; no client is turned away for a name we do not know.  Files are read at start and at reload only; a pair
that has become bad keeps what was good before.
"""

import hashlib
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import assert_never

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from smtpguard.dns.records import TlsaFound
from smtpguard.names import Domain
from smtpguard.reasons import printable
from smtpguard.tls.chain import CertChain, MalformedCertificateError, chain_of
from smtpguard.tls.context import CONTEXT_SECONDS, Credential, ServerOptions, credential_context, read_credential
from smtpguard.tls.dane import DaneCause, DaneFailed, DaneMatched, UnusableTlsa, UsableTlsa, assess_tlsa, verify_dane
from smtpguard.tls.identity import DnsId, dns_names
from smtpguard.tls.outcome import TlsVersion
from smtpguard.tls.pkix import PkixVerified, RootStore, error_name, verify_pkix

_DANE_TA = 2
_MAX_PROBLEMS = 10
# X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT, ..._LOCALLY, X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE
_ISSUER_UNKNOWN = frozenset(map(error_name, (2, 20, 21)))
_WRONG_UNDER_ANCHOR = MappingProxyType(
    {
        DaneCause.NAME: "the certificate does not name the host",
        DaneCause.EXPIRED: "a certificate is not valid at this time",
        DaneCause.CHAIN: "there is no valid path to the anchor",
    }
)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a certificate with its intermediates and its key stand (PEM; may be one file)."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """One pair, read and ready.

    `names` are the DNS names it is good for, a wildcard with its `*.`.  `chain` is what is served, in order.
    `spki_sha256` is the data of its `3 1 1` TLSA record (hex).  `warnings` are printable sentences that name the
    file and say what to do; none of them keeps the certificate from being served.
    """

    files: CertificateFiles
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    spki_sha256: str
    chain: CertChain = field(repr=False)
    warnings: tuple[str, ...]
    _credential: Credential = field(repr=False)
    _plain: SSL.Context = field(repr=False)
    _requesting: SSL.Context = field(repr=False)

    def context(self, *, request_client_certificate: bool = False) -> SSL.Context:
        """For one connection, or many."""
        return self._requesting if request_client_certificate else self._plain


_Stamp = tuple[int, ...] | None
"""What tells one content of a file from another without reading it; None: there is no such file."""


@dataclass(frozen=True, slots=True)
class ServerCertificates:
    """The certificates of a listener, the default first; never empty and never changed."""

    certificates: tuple[ServerCertificate, ...]
    floor: TlsVersion
    made: datetime
    """When the ticket keys were made (aware UTC)."""
    _roots: RootStore | None = field(repr=False)
    _stamps: tuple[_Stamp, ...] = field(repr=False)

    @classmethod
    def load(
        cls,
        pairs: Sequence[CertificateFiles],
        now: datetime,
        *,
        floor: TlsVersion = TlsVersion.TLS_1_2,
        roots: RootStore | None = None,
    ) -> "ServerCertificates":
        """Reads all pairs; `now` is aware.  `roots` are the authorities that clients will know, to tell a missing
        intermediate from a root that nobody sends; None where there is no saying.

        Raises OSError where a file cannot be read, ValueError where it cannot serve or there is no pair; both name
        the file and what to do.
        """
        if not pairs:
            raise ValueError("at least one certificate with its key is needed")
        stamps = _stamps(pairs)  # before the files are read: what changes meanwhile is a change
        return cls(tuple(_read(files, now, floor, roots) for files in pairs), floor, now, roots, stamps)

    def choose(self, name: Domain | None) -> ServerCertificate:
        """For the host that a client asks for: exact, else by a wildcard for its one label, else the default
        (DANE-43).  Of two that fit alike the one named first."""
        if name is not None:
            wildcard = f"*.{name.partition('.')[2]}"
            for wanted in (name, wildcard):
                for certificate in self.certificates:
                    if wanted in certificate.names:
                        return certificate
        return self.certificates[0]

    def context(self, name: Domain | None, *, request_client_certificate: bool = False) -> SSL.Context:
        """The context of the certificate that `choose` gives."""
        return self.choose(name).context(request_client_certificate=request_client_certificate)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of all certificates."""
        return tuple(warning for certificate in self.certificates for warning in certificate.warnings)

    def changed(self) -> bool:
        """Are the files others than those last looked at?  Follows symbolic links, so that it also sees what
        certbot and Kubernetes do.  True once for each change, where the result of `reload` is used further."""
        return _stamps([certificate.files for certificate in self.certificates]) != self._stamps

    def is_due(self, now: datetime) -> bool:
        """Must the ticket keys be replaced (TLS-08)?"""
        return now - self.made >= timedelta(seconds=CONTEXT_SECONDS)

    def reload(self, now: datetime) -> "Reloaded":
        """Reads all pairs again.  A pair that cannot be read or used keeps what it was, with a problem told; all
        get new ticket keys.  Connections that stand keep their old context."""
        stamps = _stamps([certificate.files for certificate in self.certificates])
        fresh: list[ServerCertificate] = []
        problems: list[str] = []
        for old in self.certificates:
            try:
                fresh.append(_read(old.files, now, self.floor, self._roots))
            except (OSError, ValueError) as error:
                problems.append(printable(str(error), 400))
                fresh.append(_ready(old.files, old._credential, old.warnings, self.floor))
        return Reloaded(ServerCertificates(tuple(fresh), self.floor, now, self._roots, stamps), tuple(problems))


@dataclass(frozen=True, slots=True)
class Reloaded:
    """`certificates` are to be used from now on, whatever happened; `problems`, one for each pair that stayed
    as it was, are printable."""

    certificates: ServerCertificates
    problems: tuple[str, ...]


def _stamps(pairs: Iterable[CertificateFiles]) -> tuple[_Stamp, ...]:
    return tuple(_stamp(path) for files in pairs for path in (files.certificate, files.key))


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _read(files: CertificateFiles, now: datetime, floor: TlsVersion, roots: RootStore | None) -> ServerCertificate:
    read = read_credential(files.certificate, files.key)
    path, others = _path(read.chain)
    try:
        warnings = [
            *_order_warnings(files, read.chain, path, others),
            *_end_warnings(files, path, roots, now),
            *_date_warnings(files, path, now),
            *_name_warnings(files, path[0]),
        ]
    except ValueError as error:
        raise ValueError(f"{files.certificate}: a certificate cannot be read: {error}") from error
    if files.key.stat().st_mode & stat.S_IROTH:
        warnings.append(
            f"{files.key}: the private key can be read by every user of this system: chmod o-r it "
            "(Kubernetes: defaultMode 0440)"
        )
    # The order is mended here: TLS 1.2 wants each certificate to be followed by its issuer (RFC 5246 §7.4.2).
    return _ready(files, Credential((*path, *others), read.key), tuple(warnings), floor)


def _ready(
    files: CertificateFiles, credential: Credential, warnings: tuple[str, ...], floor: TlsVersion
) -> ServerCertificate:
    chain = _der_chain(credential.chain)
    try:
        plain, requesting = (
            credential_context(credential, ServerOptions(floor, request_client_certificate=requested))
            for requested in (False, True)
        )
        spki_sha256 = _spki_sha256(chain)
    except (SSL.Error, crypto.Error, MalformedCertificateError) as error:
        raise ValueError(f"{files.certificate}: cannot be used for TLS: {error}") from error
    return ServerCertificate(
        files,
        names=dns_names(chain.leaf),
        not_before=credential.chain[0].not_valid_before_utc,
        not_after=credential.chain[0].not_valid_after_utc,
        spki_sha256=spki_sha256,
        chain=chain,
        warnings=warnings,
        _credential=credential,
        _plain=plain,
        _requesting=requesting,
    )


def _path(chain: Sequence[x509.Certificate]) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """From the leaf upwards, each followed by its issuer, and the certificates that are on no such way."""
    path, others = [chain[0]], [other for other in dict.fromkeys(chain[1:]) if other != chain[0]]
    while not _is_issued_by(path[-1], path[-1]):
        issuer = next((other for other in others if _is_issued_by(path[-1], other)), None)
        if issuer is None:
            break
        others.remove(issuer)
        path.append(issuer)
    return path, others


def _der_chain(certificates: Iterable[x509.Certificate]) -> CertChain:
    return chain_of(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _order_warnings(
    files: CertificateFiles,
    read: Sequence[x509.Certificate],
    path: Sequence[x509.Certificate],
    others: Sequence[x509.Certificate],
) -> list[str]:
    warnings = []
    if [certificate for certificate in dict.fromkeys(read) if certificate in path] != list(path):
        warnings.append(
            f"{files.certificate}: the certificates stand in the wrong order and are served in the right one: ours "
            "first, then each issuer after what it issued"
        )
    if others:
        subjects = ", ".join(_name(other.subject) for other in others[:3])
        warnings.append(f"{files.certificate}: {len(others)} of its certificates issued none of the others: {subjects}")
    return warnings


def _end_warnings(
    files: CertificateFiles, path: Sequence[x509.Certificate], roots: RootStore | None, now: datetime
) -> list[str]:
    """The issuer of the last one must be an authority that clients have."""
    last = path[-1]
    if last.issuer == last.subject:
        return []
    if roots is None:
        known = len(path) > 1  # an authority's intermediates are there, and their root need not be
    else:
        result = verify_pkix(_der_chain(path), roots, now)
        known = isinstance(result, PkixVerified) or result.code not in _ISSUER_UNKNOWN
    if known:
        return []
    issuer_name = _name(last.issuer)
    missing = f"{files.certificate}: {issuer_name}, the issuer of its last certificate, is missing"
    return [f"{missing}: append the authority's intermediate certificate (often chain.pem), or use fullchain.pem"]


def _date_warnings(files: CertificateFiles, path: Sequence[x509.Certificate], now: datetime) -> list[str]:
    warnings = []
    for certificate in path:
        who = "the certificate" if certificate is path[0] else f"the certificate of {_name(certificate.subject)}"
        if now > certificate.not_valid_after_utc:
            warnings.append(
                f"{files.certificate}: {who} expired on {certificate.not_valid_after_utc:%Y-%m-%d}: renew it"
            )
        elif now < certificate.not_valid_before_utc:
            warnings.append(
                f"{files.certificate}: {who} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} "
                "UTC: check this system's clock"
            )
    return warnings


def _name_warnings(files: CertificateFiles, leaf: x509.Certificate) -> list[str]:
    if dns_names(_der_chain([leaf]).leaf):
        return []
    return [f"{files.certificate}: has no DNS name (subjectAltName); hosts that verify names (MTA-STS) will refuse it"]


def _name(name: x509.Name) -> str:
    return printable(name.rfc4514_string(), 80)


# --- the served chain and our own TLSA records --------------------------------------------------------------------


def judge_own_chain(chain: CertChain, found: TlsaFound, names: Sequence[Domain], now: datetime) -> tuple[str, ...]:
    """What will go wrong where mail hosts verify `chain`, which we serve, against `found`, which we publish?

    `names`: further names that clients accept beside the TLSA base domain, as the mail domain (RFC 7672 §3.2.2).
    Empty where some record authenticates the chain at `now`: others may stand there for a certificate to come.
    Sentences are printable and say what to publish or to serve (DANE-45).
    """
    base, way_out = found.base_domain, f"publish 3 1 1 {_spki_sha256(chain)}"
    references = [DnsId(name) for name in (base, *names)]
    result = _verdict(chain, found, references, now)
    if isinstance(result, DaneMatched):
        return ()
    if result is None:
        problems = [
            f"none of its {len(found.records)} TLSA records is usable with SMTP (RFC 7672 section 3.1): {way_out}"
        ]
    elif result.cause is DaneCause.NO_MATCH:
        problems = [f"no TLSA record matches the certificate that is served: {way_out}"]
    else:
        problems = [f"TLSA usage 2 matches, but {_WRONG_UNDER_ANCHOR[result.cause]}: {result.detail}; or {way_out}"]
    for record in found.records:
        shown = f"TLSA {record.usage} {record.selector} {record.matching_type} {record.data.hex()[:16]}..."
        match _verdict(chain, TlsaFound(base, (record,)), references, now):
            case DaneMatched():
                problems.append(
                    f"{shown} would match and is passed over: a stronger digest beside it is of another certificate "
                    "(RFC 7671 section 9)"
                )
            case DaneFailed(cause=DaneCause.NO_MATCH) if record.usage == _DANE_TA:
                problems.append(
                    f"{shown}: its anchor is not in the chain that is served: append it to the certificate file, a "
                    "root too (RFC 7671 section 5.2)"
                )
            case _:
                pass
    return tuple(printable(f"{base}: {problem}", 400) for problem in problems[:_MAX_PROBLEMS])


def _verdict(
    chain: CertChain, found: TlsaFound, references: Sequence[DnsId], now: datetime
) -> DaneMatched | DaneFailed | None:
    """None where no record is usable."""
    match assess_tlsa(found):
        case UnusableTlsa():
            return None
        case UsableTlsa() as tlsa:
            return verify_dane(chain, tlsa, references, now)
        case other:
            assert_never(other)


def _spki_sha256(chain: CertChain) -> str:
    return hashlib.sha256(chain.leaf.spki_der).hexdigest()
