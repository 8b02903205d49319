"""What did DNS say, and with which DNSSEC verdict?  (RFC 1035, 4035, 6698, 7672 §2.1)

An `Answer` is an answer, also an empty one: NODATA and NXDOMAIN are facts.  Everything else (time-out, SERVFAIL,
bogus, malformed) is a `LookupFailed`, never an exception and never an empty answer (RFC 7672 §2.1.1).
"""

from dataclasses import dataclass
from enum import Enum

from smtpguard.names import Domain, IpAddress


class Security(Enum):
    """RFC 4035 §4.3 as far as an answer can have it: a bogus or failed one is a LookupFailed."""

    SECURE = "secure"
    INSECURE = "insecure"


class RdType(Enum):
    """The record types we ask for."""

    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    MX = "MX"
    PTR = "PTR"
    TLSA = "TLSA"
    TXT = "TXT"


class FailureKind(Enum):
    """How a look-up failed."""

    TIMEOUT = "timeout"
    SERVFAIL = "servfail"
    BOGUS = "bogus"
    """SERVFAIL whose RFC 8914 extended error says that DNSSEC validation failed."""
    REFUSED = "refused"
    NETWORK = "network"
    """The resolver cannot be reached."""
    BUSY = "busy"
    """Too many look-ups are under way here."""
    MALFORMED = "malformed"
    ALIAS_LOOP = "alias-loop"
    DNSSEC_LOST = "dnssec-lost"
    """The resolver once validated and does no more (canary): what depends on DNSSEC fails."""


@dataclass(frozen=True, slots=True)
class LookupFailed:
    """No answer.  `ede` holds RFC 8914 codes, `detail` a short text for people."""

    name: Domain
    rdtype: RdType
    kind: FailureKind
    ede: tuple[int, ...] = ()
    detail: str = ""

    @property
    def reason_code(self) -> str:
        """RFC 8460 failure-reason-code: `ede-6`, `dns-timeout`, ..."""
        return f"ede-{self.ede[0]}" if self.ede else f"dns-{self.kind.value}"


@dataclass(frozen=True, slots=True)
class MxRecord:
    """An MX record; `exchange` is None where it is `.` (RFC 7505) or not a usable host name."""

    preference: int
    exchange: Domain | None
    null: bool = False


@dataclass(frozen=True, slots=True)
class TlsaRecord:
    """TLSA RDATA as published; `malformed` where it was shorter than its three fixed octets or had no data."""

    usage: int
    selector: int
    matching_type: int
    data: bytes
    malformed: bool = False

    def __str__(self) -> str:
        """The presentation form that RFC 8460 wants: `3 1 1 86d35383...`."""
        return f"{self.usage} {self.selector} {self.matching_type} {self.data.hex()}"


Record = IpAddress | MxRecord | TlsaRecord | Domain | bytes
"""A/AAAA: IpAddress; MX: MxRecord; TLSA: TlsaRecord; CNAME, PTR: Domain; TXT: all strings of one record joined."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the name holds; `records` is empty for NODATA and NXDOMAIN.

    `canonical` is the owner of the records after following CNAMEs (the name itself where it is no alias).
    `security` covers the whole chain.  `expires` is on the monotonic clock.
    """

    name: Domain
    rdtype: RdType
    records: tuple[Record, ...]
    security: Security
    canonical: Domain
    nxdomain: bool = False
    expires: float = 0.0


Lookup = Answer | LookupFailed


@dataclass(frozen=True, slots=True)
class NoTlsa:
    """DANE does not apply: no TLSA records, an insecure answer, or an insecure host (RFC 7672 §2.2)."""


@dataclass(frozen=True, slots=True)
class TlsaFound:
    """A secure TLSA RRset.  `base_domain` is the name it was found under (RFC 7672 §2.2.3)."""

    base_domain: Domain
    records: tuple[TlsaRecord, ...]


TlsaLookup = NoTlsa | TlsaFound | LookupFailed


@dataclass(frozen=True, slots=True)
class MxHost:
    """A name of the MX RRset, as it stands there, or the implicit MX."""

    name: Domain
    preference: int


@dataclass(frozen=True, slots=True)
class Destination:
    """The ordered mail hosts of a next-hop domain (RFC 5321 §5.1).

    `hosts` ascend by preference.  `expanded` is the domain after CNAMEs.  `security` is that of the MX RRset with its
    aliases.  `implicit`: there is no MX record, the domain itself is the host.
    """

    next_hop_domain: Domain
    expanded: Domain
    security: Security
    hosts: tuple[MxHost, ...]
    implicit: bool = False


@dataclass(frozen=True, slots=True)
class HostAddresses:
    """The addresses of an MX host, never empty.

    `security` is that of every RRset used.  `canonical` is the name after CNAMEs.  `alias_security` is None where the
    name is no alias, else the verdict on its CNAME record itself (RFC 7672 §2.2.2).
    """

    host: Domain
    addresses: tuple[IpAddress, ...]
    security: Security
    canonical: Domain
    alias_security: Security | None = None
