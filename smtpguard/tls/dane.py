"""Does this certificate chain satisfy these TLSA records?  (RFC 6698 §2.1, RFC 7671 §5 and §9, RFC 7672 §3.1)

In: the chain presented, the TLSA RRset, reference ids, `now`.  Out: a match with the record that decided, or
a failure.  No I/O and no clock.  DANE-EE (3) looks at the leaf only: no names, no dates, no issuers.  DANE-TA
(2) validates a path with the matched certificate or key as its only anchor, then the name.  PKIX-TA and
PKIX-EE (0, 1) are unusable with SMTP (RFC 7672 §3.1.3).  A failure is final for the host: nobody tries
another way afterwards (DANE-39).
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from smtpguard.dns.records import TlsaFound, TlsaRecord
from smtpguard.names import Domain
from smtpguard.reasons import printable
from smtpguard.tls.chain import CertChain, Certificate, MalformedCertificateError
from smtpguard.tls.der import MalformedDerError, check_spki, read_certificate
from smtpguard.tls.identity import ReferenceId, names_match, presented_names
from smtpguard.tls.pkix import PkixCause, PkixFailed, PkixVerified, verify_leaf_under_key, verify_under_anchor

_DANE_TA, _DANE_EE = 2, 3
_CERT, _SPKI = 0, 1
_FULL = 0
_DIGEST_OCTETS = MappingProxyType({1: 32, 2: 64})

STRONGEST_FIRST = (2, 1)
"""Matching types that are digests, the strongest first: SHA2-512, SHA2-256 (RFC 7671 §9)."""

MAX_ANCHORS = 32
"""Trust anchors tried for one chain.  Honest RRsets lead to one or two."""


@dataclass(frozen=True, slots=True)
class UsableTlsa:
    """`records` is the RRset as published, `usable` what is left of it after unusable records and weaker
    digests are dropped, never empty.  TLS and authentication are mandatory (DANE-19)."""

    base_domain: Domain
    records: tuple[TlsaRecord, ...]
    usable: tuple[TlsaRecord, ...]


@dataclass(frozen=True, slots=True)
class UnusableTlsa:
    """An RRset without a usable record: TLS is mandatory, authentication is not possible (DANE-20)."""

    base_domain: Domain
    records: tuple[TlsaRecord, ...]


class DaneCause(Enum):
    """What failed, the nearest to success where several anchors were tried."""

    NO_MATCH = "no-match"
    NAME = "name"
    EXPIRED = "expired"
    CHAIN = "chain"


@dataclass(frozen=True, slots=True)
class DaneMatched:
    """The chain is authenticated; `record` is one that did it."""

    record: TlsaRecord


@dataclass(frozen=True, slots=True)
class DaneFailed:
    """`code` is the RFC 8460 failure-reason-code, `detail` a printable sentence."""

    cause: DaneCause
    code: str
    detail: str


def assess_tlsa(found: TlsaFound, digests: tuple[int, ...] = STRONGEST_FIRST) -> UsableTlsa | UnusableTlsa:
    """Which of the published records count?

    Unusable ones are dropped first, then digest agility (RFC 7671 §9) keeps, for each usage and selector, the
    Full records and those of the strongest digest.  `digests`: the accepted digest types, the strongest
    first; a type that is not listed is unusable (TLSA-04).
    """
    candidates = [record for record in found.records if _is_usable(record, digests)]
    strongest: dict[tuple[int, int], int] = {}
    for record in candidates:
        if record.matching_type != _FULL:
            group = (record.usage, record.selector)
            strongest[group] = min(strongest.get(group, len(digests)), digests.index(record.matching_type))
    usable = tuple(
        record
        for record in candidates
        if record.matching_type == _FULL
        or digests.index(record.matching_type) == strongest[record.usage, record.selector]
    )
    if usable:
        return UsableTlsa(found.base_domain, found.records, usable)
    return UnusableTlsa(found.base_domain, found.records)


def verify_dane(
    chain: CertChain, tlsa: UsableTlsa, reference_ids: Sequence[ReferenceId], now: datetime
) -> DaneMatched | DaneFailed:
    """Does one usable record authenticate `chain` at `now` (aware)?  The order of the records plays no part.

    `reference_ids` count for usage 2 only; the TLSA base domain is the first of them (RFC 7672 §3.2.2).
    """
    # DANE-EE first: its match needs nothing else to hold.
    records = sorted(tlsa.usable, key=lambda r: (-r.usage, r.selector, r.matching_type, r.data))
    own = _associations(chain.leaf)
    for record in records:
        if record.usage == _DANE_EE and _matches(record, own):
            return DaneMatched(record)
    failures: list[DaneFailed] = []
    for record, result in _paths(chain, [r for r in records if r.usage == _DANE_TA], now):
        match result:
            case PkixVerified() if names_match(chain.leaf, reference_ids):
                return DaneMatched(record)
            case PkixVerified():
                failures.append(_wrong_name(chain.leaf))
            case PkixFailed(cause, code, detail):
                kind = DaneCause.EXPIRED if cause is PkixCause.EXPIRED else DaneCause.CHAIN
                failures.append(DaneFailed(kind, code, printable(f"{_shown(record)}: {detail}")))
    for kind in (DaneCause.NAME, DaneCause.EXPIRED, DaneCause.CHAIN):
        for failure in failures:
            if failure.cause is kind:
                return failure
    return _no_match(chain, records)


def _is_usable(record: TlsaRecord, digests: tuple[int, ...]) -> bool:
    """RFC 6698 §4.1: usage, selector and matching type are known, and the data can be what they say."""
    if record.malformed or record.usage not in (_DANE_TA, _DANE_EE) or record.selector not in (_CERT, _SPKI):
        return False
    if record.matching_type == _FULL:
        # The form decides, not whether a library knows the algorithm: a record that could match is not
        # dropped.
        try:
            if record.selector == _CERT:
                read_certificate(record.data)
            else:
                check_spki(record.data)
        except MalformedDerError:
            return False
        return True
    return record.matching_type in digests and len(record.data) == _DIGEST_OCTETS.get(record.matching_type)


Associations = frozenset[tuple[int, int, bytes]]
"""Selector, matching type and data of every record that a certificate satisfies."""


def _associations(certificate: Certificate) -> Associations:
    """RFC 6698 §2.1: the selected content as it is and its digests, taken once however many records there are."""
    contents = [(_CERT, certificate.der)]
    with suppress(MalformedCertificateError):
        contents.append((_SPKI, certificate.spki_der))
    kinds: tuple[tuple[int, Callable[[bytes], bytes]], ...] = (
        (_FULL, bytes),
        (1, lambda content: hashlib.sha256(content).digest()),
        (2, lambda content: hashlib.sha512(content).digest()),
    )
    return frozenset((selector, kind, digest(content)) for selector, content in contents for kind, digest in kinds)


def _matches(record: TlsaRecord, associations: Associations) -> bool:
    return (record.selector, record.matching_type, record.data) in associations


def _paths(
    chain: CertChain, records: Sequence[TlsaRecord], now: datetime
) -> Iterator[tuple[TlsaRecord, PkixVerified | PkixFailed]]:
    """The paths from the leaf to each trust anchor that `records` name, with the record that named it.

    The leaf is nobody's issuer: a usage 2 record that matches it alone matches nothing (TLSA-13, CH-06).
    """
    issuers = {other: _associations(other) for other in chain.rest if other != chain.leaf}
    tried = 0
    for record in records:
        anchors = [issuer for issuer, its in issuers.items() if _matches(record, its)]
        dated = True
        if record.matching_type == _FULL and record.selector == _CERT and record.data != chain.leaf.der:
            # RFC 7671 §5.2.2: `2 0 0` is an anchor also where the peer leaves it out.  It comes from the
            # signed zone, and an anchor is a name and a key (RFC 5280 §6.1.1 d), so that its dates do not
            # count.
            anchors, dated = [Certificate(record.data)], False
        for anchor in anchors:
            yield record, verify_under_anchor(chain, anchor, now, anchor_is_dated=dated)
            tried += 1
            if tried == MAX_ANCHORS:
                return
        if not anchors and record.matching_type == _FULL and record.selector == _SPKI:
            for result in _paths_to_key(chain, tuple(issuers), record.data, now):
                yield record, result
            tried += 1
            if tried == MAX_ANCHORS:
                return


def _paths_to_key(
    chain: CertChain, issuers: Sequence[Certificate], spki: bytes, now: datetime
) -> Iterator[PkixVerified | PkixFailed]:
    """RFC 7671 §5.2.3: no certificate carries the key of a `2 1 0` record; what it signed is trusted by it.

    The topmost certificate (or one further down, where what lies above is of no use) stands in for the
    missing one.
    """
    try:
        if spki == chain.leaf.spki_der:
            return  # self-signed: the leaf would be its own issuer
    except MalformedCertificateError:
        return
    for issuer in issuers:
        if _is_signed_by(issuer, spki):
            yield verify_under_anchor(chain, issuer, now, anchor_is_dated=True)
    if _is_signed_by(chain.leaf, spki):
        yield verify_leaf_under_key(chain.leaf, now)


def _is_signed_by(certificate: Certificate, spki: bytes) -> bool:
    """Did the key in `spki` sign `certificate`, with a digest that is not broken (MD5, SHA-1)?"""
    try:
        signed = certificate.x509
        key = load_der_public_key(spki)
        digest = signed.signature_hash_algorithm
        parameters = signed.signature_algorithm_parameters
        content, signature = signed.tbs_certificate_bytes, signed.signature
        if digest is not None and digest.name in ("md5", "sha1"):
            return False
        match key:
            case rsa.RSAPublicKey() if digest is not None and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
                if key.key_size < 2048:
                    return False
                key.verify(signature, content, parameters, digest)
            case ec.EllipticCurvePublicKey() if digest is not None:
                key.verify(signature, content, ec.ECDSA(digest))
            case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey() if digest is None:
                key.verify(signature, content)
            case _:
                return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _wrong_name(leaf: Certificate) -> DaneFailed:
    names = ", ".join(presented_names(leaf)) or "no DNS name (common names are not used)"
    return DaneFailed(DaneCause.NAME, "X509_V_ERR_HOSTNAME_MISMATCH", printable(f"the certificate names {names}", 400))


def _no_match(chain: CertChain, records: Sequence[TlsaRecord]) -> DaneFailed:
    """Says what would have matched: the operator of the host compares it with what is published."""
    try:
        own = f"; the certificate is 3 1 1 {hashlib.sha256(chain.leaf.spki_der).hexdigest()}"
    except MalformedCertificateError:
        own = "; the certificate cannot be read"
    return DaneFailed(DaneCause.NO_MATCH, "dane-no-match", f"none of {len(records)} usable TLSA records matches{own}")


def _shown(record: TlsaRecord) -> str:
    text = str(record)
    return text if len(text) <= 24 else f"{text[:22]}..."
