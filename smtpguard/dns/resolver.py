"""What does DNS say about this name, and may its DNSSEC verdict be believed?  (RFC 7672 §2.1, RFC 4035
§4.9.3)

The service behind every look-up of mail routing: cached with the AD bit, coalesced, bounded in number and
time. The verdict is the resolver's AD bit, and is believed only over a channel nobody else can write to:
loopback or TLS with a verified name (`is_trusted`), or where the operator vouches for it.  Otherwise every
answer is INSECURE, and DANE is off.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, Protocol, assert_never

import trio

from smtpguard.clock import Clock
from smtpguard.dns.cache import LookupCache, answer_ttl
from smtpguard.dns.message import (
    MalformedResponseError,
    Reading,
    interpret,
    make_question,
)
from smtpguard.dns.records import Answer, FailureKind, Lookup, LookupFailed, RdType, Security
from smtpguard.dns.transport import ResolverAddress, Transport, TransportError
from smtpguard.events import DnsLookup, DnssecAlert, Emit, InternalError
from smtpguard.names import Domain, NameInvalid, parse_address, unmapped
from smtpguard.reasons import printable

__all__ = [
    "Lookups",
    "Resolver",
    "ResolverAddress",
    "ResolverSettings",
    "Validation",
    "is_trusted",
    "resolvers_from_resolv_conf",
]

MAX_ALIASES = 16
"""Links of a CNAME chain, however many answers they come in; more count as a loop (RFC 7672 §2.1.3)."""

_SHARED_STUBS = frozenset(map(IPv4Address, ("127.0.0.11", "127.0.0.53", "127.0.0.54")))
"""Docker's and systemd-resolved's stubs: on loopback, yet they pass on what a resolver elsewhere said."""

_HOST_TYPES = frozenset({RdType.A, RdType.AAAA, RdType.MX})
"""Types whose owner becomes a host name we use, so the end of the alias chain must be one."""


class Validation(Enum):
    """What the AD bit is worth now."""

    OFF = "off"
    """Never validated, not trusted, or the operator said so: every answer is INSECURE."""
    TRUSTED = "trusted"
    LOST = "lost"
    """The resolver once validated and contradicts itself now: what depends on DNSSEC must fail, not fall
    back.
    """


@dataclass(frozen=True, slots=True)
class ResolverSettings:
    """Whom to ask and how long.

    `timeout_seconds` is for one try at one resolver, its TCP retry included; each resolver is tried
    `attempts` times. `max_parallel` bounds the look-ups in flight.  `ca_file` replaces the system's roots
    for DNS over TLS.
    """

    resolvers: tuple[ResolverAddress, ...]
    trust_ad: bool = False
    dnssec: Literal["auto", "off"] = "auto"
    timeout_seconds: float = 5.0
    attempts: int = 2
    cache_entries: int = 20_000
    max_parallel: int = 256
    ca_file: Path | None = None


class Lookups(Protocol):
    """What the finders of this package need of a resolver."""

    async def lookup(self, name: Domain, rdtype: RdType) -> Lookup:
        """The answer or the failure; raises nothing but Cancelled."""

    @property
    def validation(self) -> Validation:
        """What `Security.SECURE` is worth now."""

    def permanent_answers_confirmed(self) -> bool:
        """Has the resolver lately answered for a name that exists, so that "does not exist" may be final?"""


def is_trusted(resolver: ResolverAddress, *, trust_ad: bool) -> bool:
    """May the AD bit of this resolver be believed?  (RFC 7672 §2.1.1, RFC 6698 §4.1)"""
    if not resolver.vouched:
        return False
    address = unmapped(resolver.address)
    return trust_ad or resolver.tls_name is not None or (address.is_loopback and address not in _SHARED_STUBS)


def resolvers_from_resolv_conf(text: str) -> tuple[tuple[ResolverAddress, ...], bool]:
    """The name servers of a resolv.conf(5), at most three, and whether it has `options trust-ad`.

    Without that option the addresses carry `vouched=False`.  Lines that name no plain address are skipped.
    """
    addresses = []
    trust_ad = False
    for line in text.split("\n"):
        words = line.split()
        match words:
            case ["nameserver", address, *_]:
                try:
                    addresses.append(parse_address(address))
                except NameInvalid:
                    continue
            case ["options", *options]:
                trust_ad = trust_ad or "trust-ad" in options
            case _:
                continue
    return tuple(ResolverAddress(address, vouched=trust_ad) for address in addresses[:3]), trust_ad


class _Pending:
    """A look-up under way, and those who wait for it."""

    __slots__ = ("_done", "_lookup")

    def __init__(self, name: Domain, rdtype: RdType) -> None:
        self._done = trio.Event()
        # What the waiters get where the service ends before the answer came.
        self._lookup: Lookup = LookupFailed(name, rdtype, FailureKind.NETWORK, detail="the resolver stopped")

    async def wait(self) -> Lookup:
        await self._done.wait()
        return self._lookup

    def answer(self, lookup: Lookup) -> None:
        self._lookup = lookup

    def end(self) -> None:
        self._done.set()


class Resolver:
    """The resolver service; `run` must be running, its nursery owns the look-ups that callers share.

    `validation` is the canary's verdict, `confirmed` its word on permanent answers.
    """

    def __init__(
        self,
        settings: ResolverSettings,
        clock: Clock,
        emit: Emit,
        validation: Callable[[], Validation],
        *,
        confirmed: Callable[[], bool],
    ) -> None:
        """Raises OSError or ssl.SSLError where `ca_file` cannot be loaded."""
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._canary_validation = validation
        self._confirmed = confirmed
        context = _tls_context(settings)
        self._transports = tuple(Transport(resolver, context) for resolver in settings.resolvers)
        # One untrusted resolver in the list spoils it: else its answers would replace, as INSECURE, those
        # that a trusted one failed to give, and an error would lower protection.
        self._trusted = bool(settings.resolvers) and all(
            is_trusted(resolver, trust_ad=settings.trust_ad) for resolver in settings.resolvers
        )
        self._cache = LookupCache(settings.cache_entries)
        self._cached_under: Validation | None = None
        self._pending: dict[tuple[Domain, RdType], _Pending] = {}
        self._slots = trio.CapacityLimiter(settings.max_parallel)
        self._nursery: trio.Nursery | None = None

    @property
    def trusted(self) -> bool:
        """May the AD bit of every configured resolver be believed?"""
        return self._trusted

    @property
    def validation(self) -> Validation:
        """What `Security.SECURE` is worth now.

        LOST stays LOST under an untrusted resolver: a changed configuration must not drop DANE without a
        word.
        """
        if self._settings.dnssec == "off":
            return Validation.OFF
        validation = self._canary_validation()
        return validation if self._trusted or validation is Validation.LOST else Validation.OFF

    @property
    def off_state(self) -> str:
        """Why DANE is off whatever the canary finds: `off` by configuration, `untrusted`; else empty."""
        if self._settings.dnssec == "off":
            return "off"
        return "untrusted" if not self._trusted and self.validation is not Validation.LOST else ""

    def permanent_answers_confirmed(self) -> bool:
        """Has the canary's unsigned name been answered lately?"""
        return self._confirmed()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        if not self._trusted and self._settings.dnssec != "off":
            self._emit(DnssecAlert(state="untrusted", detail=_untrusted(self._settings)))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                for transport in self._transports:
                    transport.close()

    async def lookup(self, name: Domain, rdtype: RdType) -> Lookup:
        """The answer or the failure: from the cache, from a look-up under way, or from the network.

        A cancelled caller does not cancel the look-up for the others.  Raises nothing but Cancelled.
        """
        self._forget_other_times()
        cached = self._cache.find(name, rdtype, self._clock.monotonic())
        if cached is not None:
            await trio.lowlevel.checkpoint()
            return self._believed(cached)
        pending = self._pending.get((name, rdtype))
        if pending is None:
            if self._nursery is None:
                await trio.lowlevel.checkpoint()
                return LookupFailed(name, rdtype, FailureKind.NETWORK, detail="the resolver is not running")
            pending = self._pending[name, rdtype] = _Pending(name, rdtype)
            self._nursery.start_soon(self._share, name, rdtype, pending)
        return self._believed(await pending.wait())

    async def query_uncached(self, name: Domain, rdtype: RdType) -> Lookup:
        """What the network says now, with the AD bit of a trusted resolver as it came: for the canary."""
        try:
            return await self._resolve(name, rdtype)
        except Exception as error:  # noqa: BLE001  boundary of a look-up: a bug costs this answer only
            self._emit(InternalError.of("dns", error))
            return LookupFailed(name, rdtype, FailureKind.MALFORMED, detail="internal error")

    def _forget_other_times(self) -> None:
        """Drop what was cached under another validation state.

        Answers of a resolver that had stopped validating look INSECURE, and would outlive its recovery.
        """
        validation = self.validation
        if validation is not self._cached_under:
            self._cached_under = validation
            self._cache.clear()
            # Who waits keeps waiting; who comes now asks anew.
            self._pending.clear()

    def _believed(self, lookup: Lookup) -> Lookup:
        if isinstance(lookup, Answer) and self.validation is Validation.OFF:
            return replace(lookup, security=Security.INSECURE)
        return lookup

    async def _share(self, name: Domain, rdtype: RdType, pending: _Pending) -> None:
        """Resolve for everybody who waits, and keep the answer."""
        asked_under = self.validation
        try:
            lookup = await self.query_uncached(name, rdtype)
            pending.answer(lookup)
            if asked_under is self.validation is self._cached_under:
                self._cache.keep(lookup, self._clock.monotonic())
        finally:
            if self._pending.get((name, rdtype)) is pending:
                del self._pending[name, rdtype]
            pending.end()

    async def _resolve(self, name: Domain, rdtype: RdType) -> Lookup:
        """Ask, and go on at the target where a resolver leaves an alias unfinished (RFC 5321 §5.1)."""
        target = name
        links = 0
        ttl = 0x7FFFFFFF
        authenticated = True
        while True:
            reading = await self._ask(target, rdtype)
            if isinstance(reading, LookupFailed):
                return replace(reading, name=name)
            links += reading.links
            if links > MAX_ALIASES:
                return LookupFailed(name, rdtype, FailureKind.ALIAS_LOOP, detail="too many aliases")
            ttl = min(ttl, reading.ttl)
            # One insecure link makes all that follows insecure (RFC 7672 §2.1.3).
            authenticated = authenticated and reading.authenticated
            if not reading.unfinished:
                return self._answer(name, rdtype, reading, links, ttl, authenticated=authenticated)
            if reading.canonical is None:  # neither followed nor followable: no proof that nothing is there
                return _odd_alias(name, rdtype, reading)
            target = reading.canonical

    def _answer(
        self, name: Domain, rdtype: RdType, reading: Reading, links: int, ttl: int, *, authenticated: bool
    ) -> Lookup:
        canonical = name if not links else reading.canonical
        if canonical is None:
            if rdtype in _HOST_TYPES:
                return _odd_alias(name, rdtype, reading)
            canonical = name  # classless reverse zones, RFC 2317: the name of the owner does not matter
        keep = answer_ttl(ttl, reading.soa_ttl, negative=reading.nxdomain or not reading.records)
        return Answer(
            name,
            rdtype,
            reading.records,
            Security.SECURE if authenticated and self._trusted else Security.INSECURE,
            canonical,
            nxdomain=reading.nxdomain,
            expires=self._clock.monotonic() + keep,
        )

    async def _ask(self, name: Domain, rdtype: RdType) -> Reading | LookupFailed:
        """One query with its retransmissions: each resolver in turn, `attempts` times, until one answers.

        BOGUS is final: another resolver's opinion is not worth an attacker's second try.  A resolver that
        refused or failed is not asked again; where all fail, the first failure that is more than silence is
        reported.
        """
        with trio.move_on_after(self._settings.timeout_seconds) as waiting:
            await self._slots.acquire()
        if waiting.cancelled_caught:
            return LookupFailed(name, rdtype, FailureKind.BUSY, detail="too many look-ups in flight")
        try:
            return await self._ask_each(name, rdtype)
        finally:
            self._slots.release()

    async def _ask_each(self, name: Domain, rdtype: RdType) -> Reading | LookupFailed:
        failure: LookupFailed | None = None
        willing = list(self._transports)
        for _ in range(self._settings.attempts):
            for transport in tuple(willing):
                tried = await self._try(transport, name, rdtype)
                if isinstance(tried, Reading) or tried.kind in (FailureKind.BOGUS, FailureKind.ALIAS_LOOP):
                    return tried
                if failure is None or failure.kind is FailureKind.TIMEOUT:
                    failure = tried
                if tried.kind in (FailureKind.SERVFAIL, FailureKind.REFUSED):
                    willing.remove(transport)
        return failure or LookupFailed(name, rdtype, FailureKind.NETWORK, detail="no resolver is configured")

    async def _try(self, transport: Transport, name: Domain, rdtype: RdType) -> Reading | LookupFailed:
        """One query to one resolver, with a fresh id and port."""
        started = self._clock.monotonic()
        question = make_question(name, rdtype)
        result: Reading | LookupFailed = LookupFailed(name, rdtype, FailureKind.TIMEOUT, detail="no answer")
        with trio.move_on_after(self._settings.timeout_seconds):
            try:
                result = interpret(await transport.exchange(question), question)
            except MalformedResponseError as error:
                result = LookupFailed(name, rdtype, FailureKind.MALFORMED, detail=printable(str(error)))
            except TransportError as error:
                result = LookupFailed(name, rdtype, FailureKind.NETWORK, detail=str(error))
        match result:
            case Reading():
                status = "secure" if result.authenticated and self._trusted else "insecure"
            case LookupFailed():
                status = result.kind.value
            case _:
                assert_never(result)
        self._emit(
            DnsLookup(
                qname=printable(name),
                rdtype=rdtype.value,
                status=status,
                seconds=self._clock.monotonic() - started,
                resolver=str(transport.resolver),
            )
        )
        return result


def _odd_alias(name: Domain, rdtype: RdType, reading: Reading) -> LookupFailed:
    detail = f"an alias of {printable(str(reading.end))}, which is no host name"
    return LookupFailed(name, rdtype, FailureKind.MALFORMED, detail=detail)


def _tls_context(settings: ResolverSettings) -> ssl.SSLContext:
    """Certificate and name are verified (RFC 8310 §8: the strict profile); roots are read where needed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if any(resolver.tls_name is not None for resolver in settings.resolvers):
        if settings.ca_file is not None:
            context.load_verify_locations(settings.ca_file)
        else:
            context.load_default_certs()
    return context


def _untrusted(settings: ResolverSettings) -> str:
    """Which resolvers keep DANE off, and the way out."""
    names = [str(r) for r in settings.resolvers if not is_trusted(r, trust_ad=settings.trust_ad)]
    return (
        f"the AD bit of {', '.join(names[:3]) or 'no resolver'} cannot be believed, DANE is off:"
        " use a validating resolver on 127.0.0.1 or ::1, DNS over TLS with a name, or trust_ad = true"
    )
