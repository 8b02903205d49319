"""Is this client one that the rule means?  (RFC 5280 §4.2.1.12 clientAuth, RFC 9525 §6; CONFORMANCE PF-09)

In: the chain that a client showed, what a rule accepts, `now`.  Out: who it is, or why not.  The handshake has proven
that the client has the key of the certificate; everything else is judged here.

A fingerprint, of the certificate or of its key, is enough by itself: no authority, no name, no date.  Otherwise the
certificate must lead to an authority of the rule, be meant for clients, be valid now, and name a host that the rule
lists, if it lists any.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import assert_never

from cryptography.x509.oid import NameOID

from smtpguard.reasons import printable
from smtpguard.tls.chain import CertChain, Certificate, MalformedCertificateError, matches_fingerprint
from smtpguard.tls.identity import DnsId, DotDomain, IpId, ReferenceId, dns_names, names_match, presented_names
from smtpguard.tls.pkix import PkixCause, PkixFailed, PkixVerified, Purpose, RootStore, error_name, verify_pkix

_INVALID_PURPOSE = error_name(26)


@dataclass(frozen=True, slots=True)
class AcceptedClients:
    """What a rule accepts.  `fingerprints` are SHA-256 or SHA-512 digests; `authorities` vouch for the others, and
    `names` narrow those down (empty: whomever the authorities vouch for).  ValueError where nothing could be
    accepted, or where names stand alone, which anybody can write into a certificate."""

    authorities: RootStore | None = None
    names: tuple[ReferenceId, ...] = ()
    fingerprints: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.authorities is None and self.names:
            raise ValueError("names of client certificates need the authorities that vouch for them")
        if self.authorities is None and not self.fingerprints:
            raise ValueError("client certificates need authorities or fingerprints to be judged by")
        if any(len(fingerprint) not in (32, 64) for fingerprint in self.fingerprints):
            raise ValueError("a fingerprint is SHA-256 (64 hexadecimal digits) or SHA-512 (128)")


@dataclass(frozen=True, slots=True)
class ClientVerified:
    """`identity` is who it is, for logs and trace lines, printable: the name that the rule lists, else the first
    of the certificate, else its common name, else its fingerprint."""

    identity: str


class ClientCause(Enum):
    """What kind of failure."""

    ABSENT = "absent"
    """The client showed no certificate, or does not speak TLS."""
    EXPIRED = "expired"
    UNTRUSTED = "untrusted"
    PURPOSE = "purpose"
    """The certificate is not meant for clients."""
    NAME = "name"


@dataclass(frozen=True, slots=True)
class ClientRefused:
    """`detail` is a printable sentence for the client's operator, with the way out where there is one."""

    cause: ClientCause
    detail: str


def verify_client(chain: CertChain | None, accepted: AcceptedClients, now: datetime) -> ClientVerified | ClientRefused:
    """Judges what a client showed; None: nothing.  `now` is aware."""
    if chain is None:
        return ClientRefused(ClientCause.ABSENT, "no client certificate was shown")
    if matches_fingerprint(chain.leaf, accepted.fingerprints):
        return ClientVerified(_identity(chain.leaf))
    if accepted.authorities is None:
        return _refused(
            ClientCause.UNTRUSTED, f"the certificate is not one of those expected; it is {_digest(chain.leaf)}"
        )
    result = verify_pkix(chain, accepted.authorities, now, Purpose.CLIENT)
    match result:
        case PkixVerified():
            pass
        case PkixFailed(code=code) if code == _INVALID_PURPOSE:
            return _refused(
                ClientCause.PURPOSE,
                f"the certificate is not meant for TLS clients (extended key usage clientAuth); {result.detail}",
            )
        case PkixFailed(cause=PkixCause.EXPIRED):
            return _refused(ClientCause.EXPIRED, result.detail)
        case PkixFailed():
            return _refused(ClientCause.UNTRUSTED, result.detail)
        case _:
            assert_never(result)
    if not accepted.names:
        return ClientVerified(_identity(chain.leaf))
    for reference in accepted.names:
        if names_match(chain.leaf, [reference]):
            return ClientVerified(_matched_name(chain.leaf, reference))
    names = ", ".join(presented_names(chain.leaf)) or "no host"
    return _refused(ClientCause.NAME, f"the certificate names {names}")


def _refused(cause: ClientCause, detail: str) -> ClientRefused:
    return ClientRefused(cause, printable(detail, 300))


def _matched_name(leaf: Certificate, reference: ReferenceId) -> str:
    match reference:
        case DnsId(domain):
            return domain
        case IpId(address):
            return str(address)
        case DotDomain(suffix):
            return printable(next(n for n in (*dns_names(leaf), f".{suffix}") if n.endswith(f".{suffix}")), 80)
        case _:
            assert_never(reference)


def _identity(leaf: Certificate) -> str:
    for name in presented_names(leaf):
        return name
    try:
        common = leaf.x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (MalformedCertificateError, ValueError):
        common = []
    for attribute in common:
        if attribute.value:
            return printable(attribute.value, 80)
    return _digest(leaf)


def _digest(leaf: Certificate) -> str:
    return f"sha256:{hashlib.sha256(leaf.der).hexdigest()}"
