"""Which facts does a verdict on each mail host need, and when are there enough of them?

The look-ups run side by side: mail hosts beside MTA-STS, the addresses of the first few hosts beside each other (of the
others when it is their turn), TLSA records right after them.  After each arrival `policy.require` is asked again; the
first answer that is not `Await` is the verdict, and nothing more is waited for.  A cold DANE domain costs three
sequential round trips: MX, addresses, TLSA (RFC 7672 §2.2.2: addresses first).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import trio

from smtpguard.clock import Clock
from smtpguard.dns.destinations import (
    Family,
    NoAddresses,
    NoDestination,
    find_addresses,
    find_destination,
    shuffled,
)
from smtpguard.dns.records import (
    Destination,
    FailureKind,
    HostAddresses,
    LookupFailed,
    MxHost,
    NoTlsa,
    Security,
    TlsaFound,
)
from smtpguard.dns.resolver import Lookups
from smtpguard.dns.tlsa import find_tlsa
from smtpguard.mtasts.parse import NoSts
from smtpguard.names import Domain, IpAddress
from smtpguard.outbound.routes import NextHop
from smtpguard.policy.engine import require
from smtpguard.policy.model import (
    Await,
    DaneEvidence,
    Fact,
    HostFacts,
    Requirement,
    StsEvidence,
    TryNextMx,
    Unknown,
)
from smtpguard.policy.rules import AppliedRules
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.tls.dane import assess_tlsa

UNKNOWN = Unknown()

AHEAD = 4
"""Hosts that are looked up beside each other.  Few domains have more, and one with 50 must not take every look-up that
the resolver can have under way."""


class StsLookups(Protocol):
    """What `mtasts.cache.StsCache` is to us."""

    async def find(
        self, domain: Domain, mx_security: Security | Callable[[], Security | None] | None = None
    ) -> StsEvidence:
        """The policy in force for this domain."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """A host that may be tried: where it is and what it must show."""

    name: str
    addresses: tuple[IpAddress, ...]
    requirement: Requirement
    facts: HostFacts


class Gathering:
    """The look-ups for one next hop, running in the caller's nursery until it is cancelled.

    `hosts()` gives the mail hosts in the order to try (shuffled once), `plan(host)` the verdict on one of them.
    """

    def __init__(
        self,
        next_hop: NextHop,
        applied: AppliedRules,
        *,
        lookups: Lookups,
        sts: StsLookups | None,
        clock: Clock,
        family: Family,
        random: Random,
        digests: tuple[int, ...],
    ) -> None:
        self._next_hop = next_hop
        self._applied = applied
        self._lookups = lookups
        self._sts_lookups = sts
        self._clock = clock
        self._family = family
        self._random = random
        self._digests = digests
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._destination: Destination | NoDestination | None = None
        self._order: tuple[MxHost, ...] = ()
        self._begun: set[MxHost] = set()
        self._sts: StsEvidence | Unknown = UNKNOWN
        self._addresses: dict[MxHost, HostAddresses | NoAddresses | LookupFailed] = {}
        self._dane: dict[MxHost, DaneEvidence] = {}

    def start(self, nursery: trio.Nursery) -> None:
        """Begin every look-up the first verdicts can need."""
        self._nursery = nursery
        nursery.start_soon(self._find_hosts)
        if self._sts_lookups is None or self._next_hop.domain is None:
            self._sts = NoSts()
        else:
            nursery.start_soon(self._find_sts, self._sts_lookups, self._next_hop.domain)

    async def hosts(self) -> Sequence[MxHost] | Reason:
        """The mail hosts in the order to try, or why there are none."""
        while self._destination is None:
            await self._changed.wait()
        if isinstance(self._destination, NoDestination):
            failure = self._destination.failure
            code = failure.reason_code if failure is not None else ""
            return Reason(self._destination.code, self._next_hop.key, self._destination.detail, code)
        return self._order

    async def addresses(self, host: MxHost) -> tuple[IpAddress, ...]:
        """The addresses of this host; none where the look-up failed, for `plan` to say why."""
        self._begin(host)
        while (found := self._addresses.get(host)) is None:
            await self._changed.wait()
        return found.addresses if isinstance(found, HostAddresses) else ()

    async def plan(self, host: MxHost) -> Plan | TryNextMx:
        """What this host must show, or why it is out."""
        self._begin(host)
        while True:
            verdict = self._verdict(host)
            if not isinstance(verdict, Await):
                return verdict
            await self._changed.wait()

    def literal(self, address: IpAddress) -> Plan | TryNextMx | Await:
        """The verdict on a next hop that is an address: no look-up has anything to say (DANE-27)."""
        facts = HostFacts(
            next_hop_domain=None,
            expanded=None,
            mx_host=None,
            mx_security=Security.INSECURE,
            port=self._next_hop.port,
            dane=NoTlsa(),
            sts=NoSts(),
            bracketed=self._next_hop.routed,
            address=address,
        )
        verdict = require(self._applied, facts, self._clock.now().date())
        if isinstance(verdict, Requirement):
            return Plan(f"[{address}]", (address,), verdict, facts)
        return verdict

    def _verdict(self, host: MxHost) -> Plan | TryNextMx | Await:
        destination = self._destination
        assert isinstance(destination, Destination)
        found = self._addresses.get(host)
        facts = HostFacts(
            next_hop_domain=destination.next_hop_domain,
            expanded=destination.expanded,
            mx_host=host.name,
            mx_security=destination.security,
            port=self._next_hop.port,
            dane=self._dane.get(host, UNKNOWN),
            sts=self._sts,
            implicit=destination.implicit,
            bracketed=self._next_hop.bracketed,
        )
        match found:
            case NoAddresses():
                return TryNextMx((Reason(ReasonCode.NO_ADDRESS, host.name),), permanent=found.permanent)
            case LookupFailed():
                bogus = found.kind is FailureKind.BOGUS
                code = ReasonCode.DNS_BOGUS if bogus else ReasonCode.DNS_FAILURE
                return TryNextMx((Reason(code, host.name, _failure(found), found.reason_code),))
            case HostAddresses() | None:
                pass
        verdict = require(self._applied, facts, self._clock.now().date())
        if not isinstance(verdict, Requirement):
            return verdict
        if found is None:  # the rule alone decides, but there is nowhere to go yet
            return Await(frozenset({Fact.DANE}))
        return Plan(host.name, found.addresses, verdict, facts)

    async def _find_hosts(self) -> None:
        domain = self._next_hop.domain
        if domain is None:
            return
        if self._next_hop.bracketed:
            # The configuration names the host: its name needs no DNS to be trusted.
            self._destination = Destination(domain, domain, Security.SECURE, (MxHost(domain, 0),))
        else:
            self._destination = await find_destination(self._lookups, domain)
        if isinstance(self._destination, Destination):
            self._order = shuffled(self._destination.hosts, self._random)
            self._begin(self._order[0])
        self._arrived()

    def _begin(self, host: MxHost) -> None:
        """Look up this host and the next few in the order, as far as nobody has asked for them yet."""
        assert self._nursery is not None
        place = self._order.index(host)
        for one in self._order[place : place + AHEAD]:
            if one not in self._begun:
                self._begun.add(one)
                self._nursery.start_soon(self._find_host, one)

    async def _find_host(self, host: MxHost) -> None:
        addresses = await find_addresses(self._lookups, host.name, self._family)
        self._addresses[host] = addresses
        self._arrived()
        if not isinstance(addresses, HostAddresses):
            return
        found = await find_tlsa(self._lookups, addresses, self._next_hop.port)
        self._dane[host] = assess_tlsa(found, self._digests) if isinstance(found, TlsaFound) else found
        self._arrived()

    async def _find_sts(self, lookups: StsLookups, domain: Domain) -> None:
        self._sts = await lookups.find(domain, self._mx_security)
        self._arrived()

    def _mx_security(self) -> Security | None:
        return self._destination.security if isinstance(self._destination, Destination) else None

    def _arrived(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _failure(failed: LookupFailed) -> str:
    return f"{failed.rdtype.value}: {failed.detail or failed.kind.value}"
