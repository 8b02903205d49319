"""Whose is the address that the MTA connected to, and what becomes of its mail?  Interception (MX-17..19, CH-21).

The MTA chose the address by its own look-ups, which nobody has to believe.  So the address must belong to a mail host
of the recipient's domain by our own look-ups, now or within the last day, and that host's policy holds.  An address of
nobody's is never used, unless `intercept_direct` says so: the mail goes to the domain's own mail hosts instead, or is
deferred where the address is not one of the Internet, since then the MTA meant something that DNS does not know.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import Final

import trio

from smtpguard.dns.records import MxHost
from smtpguard.events import DeliveryRefused, Emit, Intercepted, InterceptedElsewhere
from smtpguard.names import NameInvalid, parse_domain
from smtpguard.net.connect import Verdict
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.wire import Interrupted, Wire, WireLost
from smtpguard.outbound.answers import Addressee
from smtpguard.outbound.gather import Gathering, Plan
from smtpguard.outbound.host import Candidate, Greeted, HostFailed, Hosts, Opened
from smtpguard.outbound.report import host_opened, host_skipped, plan_skipped
from smtpguard.outbound.route import reply_line
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.outbound.walk import Walk
from smtpguard.policy.model import Await, Encryption, TryNextMx
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.replies import Reply, reply_of
from smtpguard.tls.outcome import StartTls

_PERMANENT: Final = 500


@dataclass(slots=True)
class Interception:
    """One redirected connection: where it was going, and the host there, which has greeted and waits.

    `direct`: `intercept_direct` holds the address.  `forbidden`: why it was not dialled; empty: it was.
    """

    original: Endpoint
    direct: bool
    forbidden: str = ""
    greeted: Greeted | None = None

    @property
    def name(self) -> str:
        """Whom the MTA hears: the host that it called.  Our own name is mostly the MTA's too, which would bounce all
        mail as a loop if it were greeted with it; and a real loop of its own it should see."""
        greeting = self.greeted.greeting if self.greeted is not None else ""
        try:
            return parse_domain(greeting.partition(" ")[0])
        except NameInvalid:
            address = self.original.address
            return f"[{'IPv6:' if isinstance(address, IPv6Address) else ''}{address}]"

    def take(self, candidate: Candidate) -> Greeted | None:
        """The waiting host under the name that is known by now; once, and only while its connection lives."""
        greeted = self.greeted
        if greeted is None or _key(candidate) != _key(greeted.candidate):
            return None
        self.greeted = None
        if not greeted.link.is_alive:
            greeted.link.wire.close()
            return None
        return replace(greeted, candidate=candidate)

    def close(self) -> None:
        """The host is not needed any more; may be called again."""
        if self.greeted is not None:
            self.greeted.link.quit()
            self.greeted = None


def _key(candidate: Candidate) -> object:
    return candidate.address, candidate.port, candidate.source, candidate.ehlo


async def meet(
    original: Endpoint | None,
    wire: Wire,
    *,
    listener: OutboundListener,
    settings: Outbound,
    hosts: Hosts,
    until: float,
) -> Interception | Reason:
    """Before our own greeting: connect to the original destination and hear its greeting and EHLO.

    A Reason is the end of the session, as 421: the MTA tries its next mail host.  An address that may not be dialled is
    no such end: whose mail it is for is not known yet.  `until` is on the monotonic clock.  Raises WireLost where the
    MTA, at the other end of `wire`, leaves meanwhile.
    """
    if original is None or original.address is None or _is_listener(original, settings):
        return Reason(ReasonCode.NOT_REDIRECTED, str(original or ""))
    if hosts.is_own_connection(wire.peer):
        return Reason(ReasonCode.OWN_TRAFFIC, str(original))
    address = original.address
    direct = any(address in network for network in listener.intercept_direct)
    verdict = settings.addresses.verdict(address, original.port, routed=direct)
    if verdict in (Verdict.OWN, Verdict.OWN_LISTENER):
        return Reason(ReasonCode.LOOP, str(original), verdict.value)
    if verdict is not Verdict.ALLOWED:
        return Interception(original, direct, verdict.value)
    candidate = Candidate(
        f"[{address}]", address, original.port, listener.source(address), listener.ehlo, routed=direct
    )
    greeted: Greeted | HostFailed | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_gone, wire, nursery.cancel_scope)
        greeted = await hosts.greet_host(candidate, until=until)
        nursery.cancel_scope.cancel()
    if greeted is None:
        raise WireLost("the MTA left before it was greeted")
    if isinstance(greeted, HostFailed):
        return greeted.reasons[-1]
    return Interception(original, direct, greeted=greeted)


async def _cancel_when_gone(wire: Wire, scope: trio.CancelScope) -> None:
    """Cancel `scope` at the end of what the peer sends; what it says before its turn is left unread."""
    with suppress(WireLost, Interrupted):
        if await wire.peek(lambda _: False, limit=1):
            return
    scope.cancel()


def _is_listener(end: Endpoint, settings: Outbound) -> bool:
    """TPROXY alone does not tell a connection to the listener from a redirected one; the port of mail hosts does."""
    return end.port != settings.routes.port and settings.addresses.may_be_listener(end)


def refused_at_greeting(reason: Reason, original: Endpoint | None, id_: str, emit: Emit) -> Reply:
    """The 421 instead of a greeting, and its event: there is no recipient yet, so the address stands for the domain."""
    reply = reply_of(reason, id_).with_code(421)
    emit(
        DeliveryRefused(
            id=id_,
            domain=f"[{original.address}]" if original is not None else "",
            port=original.port if original is not None else 0,
            reason=reason.code.token,
            reply=reply_line(reply),
            stage="greeting",
            recipients=0,
        )
    )
    return reply


@dataclass(frozen=True, slots=True)
class _Located:
    """Who is at the original address: `verdict` is the word of the event, `host` the mail host's name."""

    verdict: str
    host: str
    plan: Plan | TryNextMx


@dataclass
class InterceptedWalk(Walk):
    """A walk that begins where the MTA connected to, if that is right, and goes on like any other."""

    interception: Interception = field(kw_only=True)
    _tried: str = ""

    async def join(self, other: Walk, addressees: Sequence[Addressee], deadline: float) -> None:
        """These recipients have another next hop than the open transaction of `other`: where it leads to the same host,
        and what that host showed is enough for theirs too, they are its recipients (MX-19)."""
        assert other.opened is not None
        opened = other.opened
        joins = False

        async def compare(gathering: Gathering, _: Sequence[Addressee]) -> None:
            nonlocal joins
            joins = await self._suffices(gathering, opened)

        await self._gathered(compare, addressees, deadline)
        if joins:
            await other.more(addressees, deadline)
        else:
            self.answers.answer_rest(addressees)

    async def _suffices(self, gathering: Gathering, opened: Opened) -> bool:
        located = await self._locate(gathering)
        candidate = opened.candidate
        if isinstance(located, Reason):
            self.answers.fail(located)
            return False
        there = Endpoint(candidate.address, candidate.port)
        if located is None or located.host != candidate.host or there != self.interception.original:
            self.answers.fail(Reason(ReasonCode.OTHER_NEXT_HOP, self.next_hop.key))
            return False
        plan = located.plan
        if isinstance(plan, TryNextMx):
            self.answers.fail(plan.reasons[-1], permanent=plan.permanent)
            self.services.emit(plan_skipped(self.id, self.next_hop, located.host, plan))
            return False
        decision = self.services.hosts.judge(plan.requirement, opened.outcome, str(candidate))
        if isinstance(decision, TryNextMx):
            reason, policy = decision.reasons[-1], plan.requirement.policy
            self.answers.fail(reason, permanent=decision.permanent, candidate=candidate, policy=policy)
            failed = HostFailed(candidate, decision.reasons, outcome=opened.outcome)
            self.services.emit(host_skipped(self.id, self.next_hop, plan, failed))
            return False
        if opened.outcome.starttls is StartTls.NOT_TRIED and plan.requirement.encryption is not Encryption.NEVER:
            self.answers.fail(Reason(ReasonCode.OTHER_NEXT_HOP, self.next_hop.key))  # it is in clear by another's rule
            return False
        shown = replace(opened, requirement=plan.requirement, decision=decision, reused=True)
        self._tell(located.verdict, located.host)
        self.services.emit(host_opened(self.id, self.next_hop, plan, shown, 0.0))
        return True

    async def _walk(self, gathering: Gathering, addressees: Sequence[Addressee]) -> None:
        located = await self._locate(gathering)
        if isinstance(located, Reason):  # the domain has no mail hosts to compare with: the walk says so
            await super()._walk(gathering, addressees)
        elif located is None:
            await self._elsewhere(gathering, addressees)
        elif located.verdict == "direct":
            self._tell(located.verdict, "")
            original = self.interception.original
            # What the operator allowed is as good as a route; and there is nowhere else to go on to.
            self.next_hop = replace(self.next_hop, port=original.port, routed=True)
            await self._try_plan(located.plan, located.host, addressees, strict=False, last=True)
        else:
            self._tell(located.verdict, located.host)
            await self._begin_there(located, gathering, addressees)

    async def _begin_there(self, located: _Located, gathering: Gathering, addressees: Sequence[Addressee]) -> None:
        plan, address = located.plan, self.interception.original.address
        assert address is not None
        if isinstance(plan, Plan):  # else the walk says why the host is out
            there, hop = replace(plan, addresses=(address,)), self.next_hop
            # The leave that `intercept_direct` gave the first connection to this address holds for each further one.
            self.next_hop = replace(hop, routed=hop.routed or self.interception.direct)
            last = set(plan.addresses) <= {address} and not await self._has_others(located.host, gathering)
            try:
                if await self._try_plan(there, located.host, addressees, strict=False, last=last):
                    return
            finally:
                self.next_hop = hop
            self._tried = located.host
        await super()._walk(gathering, addressees)

    async def _has_others(self, name: str, gathering: Gathering) -> bool:
        """Does the next hop have mail hosts beside this one?"""
        hosts = await gathering.hosts() if self.next_hop.address is None else ()
        return not isinstance(hosts, Reason) and any(host.name != name for host in self._better_than_us(hosts))

    async def _elsewhere(self, gathering: Gathering, addressees: Sequence[Addressee]) -> None:
        """The address is nobody's: the MTA may have been lied to, or means a relay that we were not told of."""
        original = self.interception.original
        unknown = self.next_hop.address is not None and not self.next_hop.routed
        if unknown or self.interception.forbidden or original.port != self.settings.routes.port:
            self._tell("refused", "")
            self.answers.fail(Reason(ReasonCode.UNMAPPED, str(original), self.interception.forbidden))
            return
        self._tell("rerouted", "")
        self.interception.close()
        await super()._walk(gathering, addressees)

    async def _locate(self, gathering: Gathering) -> _Located | Reason | None:
        """Who is at the original address; a Reason: that cannot be known; None: nobody of this domain."""
        original, hop = self.interception.original, self.next_hop
        assert original.address is not None
        if hop.address is not None:
            if Endpoint(hop.address, hop.port) == original:
                return _Located("mapped", f"[{hop.address}]", _decided(gathering.literal(hop.address)))
            return None if hop.routed else self._directly(gathering)
        hosts = await gathering.hosts()
        if isinstance(hosts, Reason):
            gone = hosts.code.reply_code >= _PERMANENT  # no such domain, and the like: nothing is unknown about it
            return (self._directly(gathering) if gone else None) or hosts
        if original.port == hop.port:
            host, verdict = await self._host_there(gathering, self._better_than_us(hosts))
            if host is not None:
                return _Located(verdict, host.name, await gathering.plan(host))
        return self._directly(gathering)

    async def _host_there(self, gathering: Gathering, hosts: Sequence[MxHost]) -> tuple[MxHost | None, str]:
        """The best of `hosts` that has the original address, else the best that had it of late."""
        memory, now = self.services.addresses, self.services.clock.monotonic()
        address = self.interception.original.address
        assert address is not None
        for host in hosts:
            addresses = await gathering.addresses(host)
            memory.saw(host.name, addresses, now)
            if address in addresses:
                return host, "mapped"
        return next((host for host in hosts if memory.had(host.name, address, now)), None), "remembered"

    def _directly(self, gathering: Gathering) -> _Located | None:
        """The address itself, judged by the domain's rules: DNS says nothing about it."""
        address = self.interception.original.address
        assert address is not None
        if not self.interception.direct:
            return None
        return _Located("direct", f"[{address}]", _decided(gathering.literal(address)))

    async def _try_plan(
        self,
        plan: Plan | TryNextMx | Await,
        host: str,
        addressees: Sequence[Addressee],
        *,
        strict: bool,
        last: bool,
    ) -> bool | None:
        """As of any walk, but what was tried first is not tried again."""
        if isinstance(plan, Plan) and host == self._tried:
            rest = tuple(one for one in plan.addresses if one != self.interception.original.address)
            if not rest:
                return False
            plan = replace(plan, addresses=rest)
        return await super()._try_plan(plan, host, addressees, strict=strict, last=last)

    def _greeted(self, candidate: Candidate) -> Greeted | None:
        return self.interception.take(candidate)

    def _tell(self, verdict: str, host: str) -> None:
        kind = InterceptedElsewhere if verdict in ("rerouted", "refused") else Intercepted
        original = str(self.interception.original)
        self.services.emit(kind(id=self.id, domain=self.next_hop.key, original=original, verdict=verdict, mx=host))


def _decided(plan: Plan | TryNextMx | Await) -> Plan | TryNextMx:
    assert not isinstance(plan, Await)  # nothing about an address has to be looked up
    return plan
