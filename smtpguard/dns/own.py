"""Which TLSA records bind a listener of ours?  (RFC 7672 §2.2, CONFORMANCE DANE-45)

Asked as a mail host on the Internet asks, through the same look-ups: what it would not believe is no record.  Whether
the chain that is served satisfies the answer says `tls.certificates.judge_own_chain`.
"""

from typing import assert_never

from smtpguard.dns.destinations import NoAddresses, find_addresses
from smtpguard.dns.records import HostAddresses, LookupFailed, NoTlsa, TlsaLookup
from smtpguard.dns.resolver import Lookups
from smtpguard.dns.tlsa import find_tlsa
from smtpguard.names import Domain


async def find_own_tlsa(lookups: Lookups, host: Domain, port: int = 25) -> TlsaLookup:
    """The TLSA RRset under which others verify `host`, a name of ours in MX records, at `port`.

    The port is the one that others connect to, whatever we are bound to behind a translation.  NoTlsa too where the
    host has no address, or DNSSEC does not cover it: nobody uses DANE with it then.
    """
    addresses = await find_addresses(lookups, host)
    match addresses:
        case HostAddresses():
            return await find_tlsa(lookups, addresses, port)
        case NoAddresses():
            return NoTlsa()
        case LookupFailed():
            return addresses
        case _:
            assert_never(addresses)
