"""What is the client's address called?  Forward-confirmed reverse DNS, for XCLIENT NAME (RFC 1912 §2.1).

The MTA would ask itself if the client came to it directly; behind XCLIENT it believes what we say, so we say a name
only where it leads back to the address, and tell "there is none" from "could not be asked".
"""

from smtpguard.dns.records import LookupFailed, RdType
from smtpguard.dns.resolver import Lookups
from smtpguard.names import Domain, IpAddress, NameInvalid, parse_domain
from smtpguard.smtp.forwarded import NameMissing

_PTR_RECORDS = 3


async def find_client_name(lookups: Lookups, address: IpAddress) -> tuple[Domain | NameMissing, Domain | NameMissing]:
    """The confirmed name, and the PTR name whether confirmed or not."""
    answer = await lookups.lookup(Domain(address.reverse_pointer), RdType.PTR)
    if isinstance(answer, LookupFailed):
        return NameMissing.TEMPORARY, NameMissing.TEMPORARY
    names = [name for record in answer.records if (name := _host_name(record)) is not None][:_PTR_RECORDS]
    if not names:
        return NameMissing.UNAVAILABLE, NameMissing.UNAVAILABLE
    missing = NameMissing.UNAVAILABLE
    for name in names:
        found = await lookups.lookup(name, RdType.A if address.version == 4 else RdType.AAAA)
        if isinstance(found, LookupFailed):
            missing = NameMissing.TEMPORARY
        elif address in found.records:
            return name, name
    return missing, names[0]


def _host_name(record: object) -> Domain | None:
    try:
        return parse_domain(record) if isinstance(record, str) else None
    except NameInvalid:
        return None
