"""What if DNS said this?  A `Lookups` made of a dict, for every test above the resolver.

    zone = Zone({
        "example.org": Node(mx=["10 mx1.example.org"]),
        "mx1.example.org": Node(a=["192.0.2.1"], security=Security.INSECURE),
        "_25._tcp.mx1.example.org": Node(tlsa=["3 1 1 " + "00" * 32]),
        "mx2.example.org": Node(fail=FailureKind.SERVFAIL),
        "mx3.example.org": Node(aaaa=["2001:db8::1"], fail={RdType.A: FailureKind.TIMEOUT}),
        "www.example.org": Node(cname="mx1.example.org"),
    })

Names that are not there do not exist (`nxdomain`), unless a name below them is; their verdict is that of
the nearest name above, else the zone's.  `asked` is the log of the queries.  With `latency_seconds` each
answer takes that long, so that under a MockClock the time gone by counts the sequential round trips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from smtpguard.dns.records import (
    Answer,
    FailureKind,
    Lookup,
    LookupFailed,
    MxRecord,
    RdType,
    Record,
    Security,
    TlsaRecord,
)
from smtpguard.dns.resolver import Validation
from smtpguard.names import Domain, NameInvalid, parents, parse_address, parse_domain


@dataclass(frozen=True)
class Node:
    """The records at a name, in presentation form; `fail` for all types or for some, `ede` beside it.

    MX: `10 mx.example.org`, `0 .`; TLSA: `3 1 1 abcd` (no data: a malformed record); TXT: octets or text.
    """

    mx: Sequence[str] = ()
    a: Sequence[str] = ()
    aaaa: Sequence[str] = ()
    tlsa: Sequence[str] = ()
    txt: Sequence[str | bytes] = ()
    ptr: Sequence[str] = ()
    cname: str = ""
    security: Security | None = None
    fail: FailureKind | Mapping[RdType, FailureKind] = field(default_factory=dict)
    ede: tuple[int, ...] = ()

    def records(self, rdtype: RdType) -> tuple[Record, ...]:
        """The records of one type."""
        match rdtype:
            case RdType.MX:
                return tuple(map(_mx, self.mx))
            case RdType.A:
                return tuple(map(parse_address, self.a))
            case RdType.AAAA:
                return tuple(map(parse_address, self.aaaa))
            case RdType.TLSA:
                return tuple(map(_tlsa, self.tlsa))
            case RdType.TXT:
                return tuple(text.encode() if isinstance(text, str) else text for text in self.txt)
            case RdType.PTR:
                return tuple(map(parse_domain, self.ptr))
            case RdType.CNAME:
                return (parse_domain(self.cname),) if self.cname else ()

    def failure(self, rdtype: RdType) -> FailureKind | None:
        """How a query of this type fails, if it does."""
        return self.fail.get(rdtype) if isinstance(self.fail, Mapping) else self.fail


class Zone:
    """A `Lookups` over a dict; `nodes`, `validation`, `confirmed` and `latency_seconds` may be changed at
    any time.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        *,
        security: Security = Security.SECURE,
        validation: Validation = Validation.TRUSTED,
        confirmed: bool = True,
        latency_seconds: float = 0.0,
    ) -> None:
        self.nodes = {parse_domain(name): node for name, node in nodes.items()}
        self.security = security
        self.validation = validation
        self.confirmed = confirmed
        self.latency_seconds = latency_seconds
        self.asked: list[tuple[str, RdType]] = []
        self._gates: dict[tuple[Domain, RdType], trio.Event] = {}

    def permanent_answers_confirmed(self) -> bool:
        """As `confirmed` says."""
        return self.confirmed

    def asked_for(self, rdtype: RdType) -> list[str]:
        """The names asked for one type, in order."""
        return [name for name, asked in self.asked if asked is rdtype]

    def hold(self, name: str, rdtype: RdType) -> trio.Event:
        """Keep the answer back until the returned event is set."""
        gate = self._gates[parse_domain(name), rdtype] = trio.Event()
        return gate

    async def lookup(self, name: Domain, rdtype: RdType) -> Lookup:
        """The answer out of the dict, aliases followed."""
        self.asked.append((name, rdtype))
        if self.latency_seconds:
            await trio.sleep(self.latency_seconds)
        else:
            await trio.lowlevel.checkpoint()
        gate = self._gates.get((name, rdtype))
        if gate is not None:
            await gate.wait()
        return self._answer(name, rdtype)

    def _answer(self, name: Domain, rdtype: RdType) -> Lookup:
        owner = name
        securities = []
        for _ in range(17):
            securities.append(self._security(owner))
            node = self.nodes.get(owner)
            if node is not None and (kind := node.failure(rdtype)) is not None:
                return LookupFailed(name, rdtype, kind, node.ede)
            if node is None or not node.cname or rdtype is RdType.CNAME:
                break
            owner = parse_domain(node.cname)
        else:
            return LookupFailed(name, rdtype, FailureKind.ALIAS_LOOP)
        records = node.records(rdtype) if node is not None else ()
        secure = all(security is Security.SECURE for security in securities)
        if self.validation is Validation.OFF:
            secure = False
        exists = node is not None or any(known.endswith("." + owner) for known in self.nodes)
        security = Security.SECURE if secure else Security.INSECURE
        return Answer(name, rdtype, records, security, owner, nxdomain=not exists, expires=3600.0)

    def _security(self, name: Domain) -> Security:
        for known in (name, *parents(name)):
            node = self.nodes.get(known)
            if node is not None and node.security is not None:
                return node.security
        return self.security


def _mx(text: str) -> MxRecord:
    preference, exchange = text.split()
    try:
        return MxRecord(int(preference), parse_domain(exchange))
    except NameInvalid:
        return MxRecord(int(preference), None, null=exchange == ".")


def _tlsa(text: str) -> TlsaRecord:
    usage, selector, matching_type, data = (*text.split(" ", 3), "")[:4]
    octets = bytes.fromhex(data)
    return TlsaRecord(int(usage), int(selector), int(matching_type), octets, malformed=not octets)
