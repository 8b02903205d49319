"""Which hosts take the mail of a domain, in which order, and at which addresses?  (RFC 5321 §5.1, RFC 7505,
RFC 3974, RFC 7672 §2.1.2, §2.2.1, §2.2.2)

A permanent verdict (null MX, no such domain, no usable host) is given only while the resolver has proved
that it answers for names that exist; otherwise the same finding is temporary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby, zip_longest
from random import Random
from typing import assert_never

import trio

from smtpguard.dns.records import (
    Answer,
    Destination,
    FailureKind,
    HostAddresses,
    Lookup,
    LookupFailed,
    MxHost,
    MxRecord,
    RdType,
    Security,
)
from smtpguard.dns.resolver import Lookups, Validation
from smtpguard.names import Domain, IpAddress
from smtpguard.reasons import ReasonCode

MAX_HOSTS = 50
"""Hosts of an MX RRset that are kept, best preference first."""

MAX_ADDRESSES = 16
"""Addresses of one host that are kept, both families alike."""


@dataclass(frozen=True, slots=True)
class NoDestination:
    """The domain has no mail host: for good, or as far as DNS would say now (`failure`)."""

    code: ReasonCode
    detail: str = ""
    failure: LookupFailed | None = None


@dataclass(frozen=True, slots=True)
class NoAddresses:
    """The host has no address of the families asked; `permanent` where the resolver is trusted in that."""

    permanent: bool


class Family(Enum):
    """Which addresses we can use."""

    BOTH = "both"
    IPV4 = "ipv4"
    IPV6 = "ipv6"


async def find_destination(lookups: Lookups, domain: Domain) -> Destination | NoDestination:
    """The mail hosts of `domain`, aliases followed, ascending by preference (RFC 5321 §5.1).

    Where MX records exist, the domain's own addresses are never used.
    """
    match await lookups.lookup(domain, RdType.MX):
        case LookupFailed() as failed:  # RFC 7672 §2.1.2: delivery is delayed
            bogus = failed.kind is FailureKind.BOGUS
            code = ReasonCode.DNS_BOGUS if bogus else ReasonCode.DNS_FAILURE
            return NoDestination(code, _described(failed), failed)
        case Answer(nxdomain=True):
            return _final(lookups, ReasonCode.NO_SUCH_DOMAIN, "")
        case Answer() as answer:
            return _destination(lookups, answer)
        case never:
            assert_never(never)


def _destination(lookups: Lookups, answer: Answer) -> Destination | NoDestination:
    domain = answer.name
    records = [record for record in answer.records if isinstance(record, MxRecord)]
    if not records:  # RFC 5321 §5.1: the implicit MX; RFC 7672 §2.2.2: and the TLSA base domain
        return Destination(domain, answer.canonical, answer.security, hosts=(MxHost(domain, 0),), implicit=True)
    if len(records) == 1 and records[0].null:  # RFC 7505 §3; among others `.` is just no host name
        return _final(lookups, ReasonCode.NULL_MX, "")
    preferences: dict[Domain, int] = {}
    for record in sorted(records, key=lambda record: record.preference):
        if record.exchange is not None:
            preferences.setdefault(record.exchange, record.preference)
    if not preferences:
        return _final(lookups, ReasonCode.NO_USABLE_MX, "no MX record holds a host name")
    hosts = tuple(MxHost(name, preference) for name, preference in preferences.items())
    return Destination(domain, answer.canonical, answer.security, hosts[:MAX_HOSTS])


def _final(lookups: Lookups, code: ReasonCode, detail: str) -> NoDestination:
    """A permanent verdict, or its temporary twin while the resolver is not confirmed (DESIGN §6)."""
    if lookups.permanent_answers_confirmed():
        return NoDestination(code, detail)
    return NoDestination(ReasonCode.DNS_UNCONFIRMED, detail or code.text)


def _described(failed: LookupFailed) -> str:
    codes = "".join(f", EDE {code}" for code in failed.ede)
    return f"{failed.rdtype.value} {failed.name}: {failed.detail or failed.kind.value}{codes}"


def shuffled(hosts: Sequence[MxHost], random: Random) -> tuple[MxHost, ...]:
    """The hosts in an order to try: ascending preference, equal ones in random order (RFC 5321 §5.1)."""
    order: list[MxHost] = []
    for _, equals in groupby(sorted(hosts, key=_preference), key=_preference):
        group = list(equals)
        random.shuffle(group)
        order += group
    return tuple(order)


def _preference(host: MxHost) -> int:
    return host.preference


async def find_addresses(
    lookups: Lookups, host: Domain, family: Family = Family.BOTH
) -> HostAddresses | NoAddresses | LookupFailed:
    """The addresses of an MX host, families taking turns, and the DNSSEC verdict on those used.

    One family that answers is enough (CH-27); without an answer of the other, though, "no address" cannot
    be said.
    """
    answers: dict[RdType, Lookup] = {}

    async def find(rdtype: RdType) -> None:
        answers[rdtype] = await lookups.lookup(host, rdtype)

    async with trio.open_nursery() as nursery:
        for rdtype in _RDTYPES[family]:
            nursery.start_soon(find, rdtype)
    # In a fixed order, whichever came first.
    found = [answers[rdtype] for rdtype in _RDTYPES[family]]
    used = [answer for answer in found if isinstance(answer, Answer) and answer.records]
    if not used:
        failures = [answer for answer in found if isinstance(answer, LookupFailed)]
        if failures:
            return min(failures, key=lambda failed: failed.kind is not FailureKind.BOGUS)
        return NoAddresses(permanent=lookups.permanent_answers_confirmed())
    secure = all(answer.security is Security.SECURE for answer in used)
    security = Security.SECURE if secure else Security.INSECURE
    canonical = next((answer.canonical for answer in used if answer.canonical != host), host)
    alias_security = None
    if canonical != host:
        verdict = await _alias_security(lookups, host, security)
        if isinstance(verdict, LookupFailed):
            return verdict
        alias_security = verdict
    return HostAddresses(host, _taking_turns(used), security, canonical, alias_security)


_RDTYPES = {
    Family.BOTH: (RdType.AAAA, RdType.A),
    Family.IPV4: (RdType.A,),
    Family.IPV6: (RdType.AAAA,),
}


async def _alias_security(lookups: Lookups, host: Domain, security: Security) -> Security | LookupFailed:
    """Is the alias itself secure, whatever its target is?  (RFC 7672 §2.1.3, §2.2.2)"""
    if security is Security.SECURE:
        return Security.SECURE  # the chain is, so its first link is
    if lookups.validation is not Validation.TRUSTED:
        return Security.INSECURE  # nothing could be secure: do not trouble the host's name servers
    match await lookups.lookup(host, RdType.CNAME):
        case Answer(security=alias_security):
            return alias_security
        case LookupFailed() as failed:  # it locates TLSA records: the host is unreachable (RFC 7672 §2.1.2)
            return failed
        case never:
            assert_never(never)


def _taking_turns(used: Sequence[Answer]) -> tuple[IpAddress, ...]:
    families = [
        [record for record in answer.records if isinstance(record, IPv4Address | IPv6Address)] for answer in used
    ]
    turns = [address for turn in zip_longest(*families) for address in turn if address is not None]
    return tuple(turns[:MAX_ADDRESSES])
