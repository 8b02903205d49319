"""Which TLSA records, if any, bind this host at this port?  (RFC 7672 §2.1.2, §2.2.2, §2.2.3)

A failure to find out is a LookupFailed, and the host is out: only a proven absence, or a host that DNSSEC
does not cover, is NoTlsa.  The records come back as published; `tls.dane` says which are usable.
"""

from typing import assert_never

from smtpguard.dns.records import (
    Answer,
    FailureKind,
    HostAddresses,
    LookupFailed,
    NoTlsa,
    RdType,
    Security,
    TlsaFound,
    TlsaLookup,
    TlsaRecord,
)
from smtpguard.dns.resolver import Lookups, Validation
from smtpguard.names import Domain, NameInvalid, parse_domain


async def find_tlsa(lookups: Lookups, addresses: HostAddresses, port: int) -> TlsaLookup:
    """The TLSA RRset of the host with these addresses, at the port that is really used.

    Its owner may be an alias; the base domain is the name it was asked under all the same (RFC 7672 §2.2.3).
    """
    if lookups.validation is Validation.LOST:
        # Every host: the lost resolver's word that this one is insecure is worth nothing.
        detail = "the resolver stopped validating"
        return LookupFailed(addresses.host, RdType.TLSA, FailureKind.DNSSEC_LOST, detail=detail)
    for base_domain in _candidates(addresses):
        try:
            owner = parse_domain(f"_{port}._tcp.{base_domain}")
        except NameInvalid:
            continue  # longer than a name can be, so it does not exist
        match await lookups.lookup(owner, RdType.TLSA):
            case LookupFailed() as failed:
                # Not even the next candidate: absence at this one was not proved (RFC 7672 §2.2.3).
                return failed
            case Answer(security=Security.SECURE) as answer if answer.records:
                records = tuple(record for record in answer.records if isinstance(record, TlsaRecord))
                return TlsaFound(base_domain, records)
            case Answer():
                continue
            case never:
                assert_never(never)
    return NoTlsa()


def _candidates(addresses: HostAddresses) -> tuple[Domain, ...]:
    """Base domains to try, best first; none where DANE does not apply (RFC 7672 §2.2.2, §2.2.3).

    Names in the middle of an alias chain are never candidates.
    """
    if addresses.alias_security is None:
        return (addresses.host,) if addresses.security is Security.SECURE else ()
    if addresses.security is Security.SECURE:
        return addresses.canonical, addresses.host
    return (addresses.host,) if addresses.alias_security is Security.SECURE else ()
