"""Which mail host takes these recipients?  The walk along the hosts of one next hop, up to the first accepted RCPT.

RFC 5321 §5.1 (order, at least two addresses), RFC 7672 §2.2.1 (preference beats security), RFC 8461 §5.1(2): a host
that fails is skipped with its reason; the domain fails when none is left.  Fallback ends with the first 2xx to RCPT,
and after two hosts that were told MAIL.  A 2xx that was lost with its connection before the MTA heard of it counts
for nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random

import trio

from smtpguard.clock import Clock
from smtpguard.dns.records import MxHost
from smtpguard.dns.resolver import Lookups
from smtpguard.events import Emit, InternalError
from smtpguard.names import Domain, IpAddress
from smtpguard.net.limits import AddressMemory
from smtpguard.net.link import ClientLink
from smtpguard.net.wire import Interrupted, WireLost
from smtpguard.outbound.answers import Addressee, Answers
from smtpguard.outbound.gather import Gathering, Plan, StsLookups
from smtpguard.outbound.host import Candidate, Greeted, HostFailed, Hosts, Opened
from smtpguard.outbound.pool import Pool
from smtpguard.outbound.report import host_opened, host_skipped, observed, plan_skipped, unusable_tlsa
from smtpguard.outbound.routes import NextHop
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.outbound.slots import DestinationSlots
from smtpguard.policy.engine import rule_warnings
from smtpguard.policy.model import Await, TryNextMx
from smtpguard.policy.rules import AppliedRules
from smtpguard.reasons import Reason, ReasonCode, printable
from smtpguard.smtp.commands import Mail
from smtpguard.smtp.extensions import forward_mail, forward_rcpt
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply, reply_of


@dataclass(frozen=True, slots=True)
class Services:
    """What every delivery uses, for the life of the process."""

    hosts: Hosts
    pool: Pool
    slots: DestinationSlots
    lookups: Lookups
    sts: StsLookups | None
    recheck_sts: Callable[[Domain], None]
    clock: Clock
    random: Random
    emit: Emit
    addresses: AddressMemory = field(default_factory=AddressMemory)
    """What the mail hosts that intercepted mail went to were seen at."""


@dataclass(slots=True)
class Walk:
    """One route of one transaction.  After `run`, `opened` holds the transaction, or is None where nobody accepted."""

    services: Services
    settings: Outbound
    listener: OutboundListener
    next_hop: NextHop
    mail: Mail
    id: str
    opened: Opened | None = None
    answers: Answers = field(init=False)
    policy: str = ""
    why: list[str] = field(default_factory=list)
    _asked: Opened | None = None  # the host that was told MAIL last
    _full_sessions: int = 0
    _told: int = 0
    _deadline: float = inf

    def __post_init__(self) -> None:
        self.answers = Answers(self.id, self.next_hop.key, self.settings.annotate, self.services.lookups)

    @property
    def applied(self) -> AppliedRules:
        """The rules that speak about this next hop."""
        return self.settings.rules.find(self.next_hop.key)

    async def run(self, addressees: Sequence[Addressee], deadline: float) -> None:
        """Give every addressee its reply.  `deadline` is on the monotonic clock; then `451 4.4.2`."""
        self._deadline = deadline
        await self._gathered(self._walk, addressees, deadline)
        self.answers.answer_rest(addressees)

    async def _gathered(
        self,
        step: Callable[[Gathering, Sequence[Addressee]], Awaitable[None]],
        addressees: Sequence[Addressee],
        deadline: float,
    ) -> None:
        """`step` with the look-ups running beside it, until `deadline`."""
        gathering = Gathering(
            self.next_hop,
            self.applied,
            lookups=self.services.lookups,
            sts=self.services.sts,
            clock=self.services.clock,
            family=self.listener.family,
            random=self.services.random,
            digests=self.settings.tlsa_digests,
        )
        with trio.move_on_at(deadline) as scope:
            async with trio.open_nursery() as nursery:
                gathering.start(nursery)
                await step(gathering, addressees)
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            detail = self.answers.failures[-1].reply.text if self.answers.failures else ""
            self.answers.fail(Reason(ReasonCode.BUDGET, self.next_hop.key, detail))

    async def more(self, addressees: Sequence[Addressee], deadline: float) -> None:
        """Further recipients for the open transaction."""
        assert self.opened is not None
        link = self.opened.link
        told = self._within_limit(addressees, link)
        link.wire.deadline = deadline
        try:
            replies = await link.exchange([self._rcpt_line(one, link) for one in told])
            link.wire.deadline = inf
        except (WireLost, RemoteProtocolError, Interrupted) as error:
            self._lost(self.opened, error)
        else:
            for addressee, reply in zip(told, replies, strict=True):
                self.answers.take(addressee, reply, self.opened)
        self.answers.answer_rest(addressees)

    def abandon(self, addressees: Sequence[Addressee], error: Exception) -> None:
        """A bug ended `run` or `more`: none of these recipients is accepted, whatever the host said, and the host, if
        there is one, is left.  Other next hops go on."""
        self.services.emit(InternalError.of("walk", error, self.id))
        if self._asked is not None:
            self._asked.link.wire.close()
        for one in addressees:
            one.accepted, one.reply, one.deferred = False, None, None
        self.answers.fail(Reason(ReasonCode.INTERNAL, self.next_hop.key))
        self.answers.answer_rest(addressees)

    async def _walk(self, gathering: Gathering, addressees: Sequence[Addressee]) -> None:
        if self.next_hop.address is not None:
            plan = gathering.literal(self.next_hop.address)
            await self._try_plan(plan, f"[{self.next_hop.address}]", addressees, strict=False, last=True)
            return
        hosts = await gathering.hosts()
        if isinstance(hosts, Reason):
            self.answers.fail(hosts)
            if hosts.code.result_type is not None:  # bogus MX records: no host is known, and it counts (RM-16)
                self.services.emit(plan_skipped(self.id, self.next_hop, "", TryNextMx((hosts,))))
            return
        usable = self._better_than_us(hosts)
        if not usable:
            self.answers.fail(Reason(ReasonCode.LOOP, hosts[0].name, "own_names"))
        lacking: list[MxHost] = []
        for number, host in enumerate(usable):
            last = number == len(usable) - 1 and not lacking
            plan = await gathering.plan(host)
            ended = await self._try_plan(plan, host.name, addressees, strict=not last, last=last)
            if ended is None:
                lacking.append(host)
            elif ended:
                return
        for number, host in enumerate(lacking):  # nobody in reach offers 8BITMIME: `eightbit_to_7bit_mx`
            plan = await gathering.plan(host)
            last = number == len(lacking) - 1
            if await self._try_plan(plan, host.name, addressees, strict=False, last=last):
                return

    def _better_than_us(self, hosts: Sequence[MxHost]) -> Sequence[MxHost]:
        """Without our own names and whatever is not better than they are (RFC 5321 §5.1, MX-08)."""
        own = [host.preference for host in hosts if host.name in self.settings.own_names]
        return [host for host in hosts if host.preference < min(own)] if own else hosts

    async def _try_plan(
        self,
        plan: Plan | TryNextMx | Await,
        host: str,
        addressees: Sequence[Addressee],
        *,
        strict: bool,
        last: bool,
    ) -> bool | None:
        """Try the addresses of one host.  True: the walk is over; None: it lacks 8BITMIME, others may have it."""
        assert not isinstance(plan, Await)
        if isinstance(plan, TryNextMx):
            self.answers.fail(plan.reasons[-1], permanent=plan.permanent)
            self.services.emit(plan_skipped(self.id, self.next_hop, host, plan))
            return False
        today = self.services.clock.now().date()
        for warning in rule_warnings(self.applied, plan.requirement, self.next_hop.domain, today):
            self.services.emit(warning)
        if (unusable := unusable_tlsa(self.id, self.next_hop, plan)) is not None:
            self.services.emit(unusable)
        addresses = self._ordered(plan.addresses)
        for number, address in enumerate(addresses):
            candidate = Candidate(
                host,
                address,
                self.next_hop.port,
                self.listener.source(address),
                self.listener.ehlo,
                self.next_hop.routed,
            )
            final = last and number == len(addresses) - 1
            until = inf if final else self._share()
            opened = await self._open(candidate, plan, last=final, until=until)
            if isinstance(opened, HostFailed):
                if opened.own:
                    return True
                continue
            if strict and self._lacks_8bitmime(opened):
                self.services.pool.give(opened)
                return None
            if await self._offer(opened, plan, addressees, last=final, until=until):
                return True
        return False

    def _greeted(self, candidate: Candidate) -> Greeted | None:
        """A host that has greeted already and waits for this very walk (interception)."""
        return None

    def _share(self) -> float:
        """Until when an address that is not the last may keep us waiting: half of what is left, so that one that
        answers nothing leaves time for the next."""
        now = self.services.clock.monotonic()
        return now + (self._deadline - now) / 2

    async def _open(
        self, candidate: Candidate, plan: Plan, *, last: bool, until: float, fresh: bool = False
    ) -> Opened | HostFailed:
        began = self.services.clock.monotonic()
        greeted = None if fresh else self._greeted(candidate)
        pooled = not fresh and greeted is None
        opened: Opened | HostFailed | None = self.services.pool.take(candidate, plan.requirement) if pooled else None
        if opened is None:
            opened = await self.services.hosts.open_host(
                candidate, plan.requirement, last=last, until=until, greeted=greeted
            )
        if isinstance(opened, HostFailed):
            if opened.reply is not None:
                self.answers.relay_failure(opened.reply, candidate, plan.requirement.policy, opened.reasons[-1])
            else:
                reason, policy = opened.reasons[-1], plan.requirement.policy
                self.answers.fail(reason, permanent=opened.permanent, candidate=candidate, policy=policy)
            self.services.emit(host_skipped(self.id, self.next_hop, plan, opened))
            if self.next_hop.domain is not None and plan.requirement.policy.startswith("sts"):
                self.services.recheck_sts(self.next_hop.domain)
            return opened
        self.services.emit(host_opened(self.id, self.next_hop, plan, opened, self.services.clock.monotonic() - began))
        for kind, reasons in opened.decision.observed:
            self.services.emit(observed(self.id, self.next_hop, plan, kind, reasons, opened))
        return opened

    async def _offer(
        self, opened: Opened, plan: Plan, addressees: Sequence[Addressee], *, last: bool, until: float
    ) -> bool:
        """MAIL and every undecided RCPT to this host, in one write where it pipelines.  True: the walk is over."""
        candidate = opened.candidate
        parameters = forward_mail(self.mail, opened.link.extensions, dsn_hide=self.settings.dsn == "hide")
        if isinstance(parameters, ReasonCode):
            self.answers.fail(Reason(parameters, str(candidate)), candidate=candidate, policy=plan.requirement.policy)
            self.services.pool.give(opened)
            return False
        if self._lacks_8bitmime(opened) and self.settings.eightbit_to_7bit_mx == "refuse":
            reason = Reason(ReasonCode.NO_8BITMIME, str(candidate))
            self.answers.fail(reason, candidate=candidate, policy=plan.requirement.policy)
            self.services.pool.give(opened)
            return False
        self._told = 0
        self._asked = opened
        undecided = self._within_limit(addressees, opened.link)
        mail = b"MAIL FROM:<" + self.mail.path.text + b">"
        lines = [b" ".join((mail, *parameters)), *(self._rcpt_line(one, opened.link) for one in undecided)]
        wire = opened.link.wire
        wire.deadline = until
        said: list[Reply] | Exception | None = None
        try:
            said = await opened.link.exchange(lines)
            wire.deadline = inf
        except (WireLost, RemoteProtocolError, Interrupted) as error:
            said = error
        finally:
            if not isinstance(said, list):
                wire.close()
        if opened.reused and _is_gone(said):
            wire.close()
            return await self._offer_afresh(candidate, plan, addressees, last=last, until=until)
        self._full_sessions += 1
        opened.messages += 1
        if isinstance(said, Exception):
            self._lost(opened, said)
            return self._full_sessions >= self.settings.max_full_sessions
        mail_reply, *replies = said
        self.policy = plan.requirement.policy
        self.why = [f"{reason.code.token}:{reason.subject}" for reason in plan.requirement.reasons]
        if not mail_reply.is_positive:
            self.answers.relay_failure(mail_reply, candidate, plan.requirement.policy, None)
            for addressee in undecided:
                self.answers.take(addressee, mail_reply, opened)
        else:
            for addressee, reply in zip(undecided, replies, strict=True):
                self.answers.take(addressee, reply, opened)
        if any(addressee.accepted for addressee in undecided):
            self.opened = opened
            return True
        if any(reply.code == 421 for reply in said):
            opened.link.quit()
        else:
            await self._return(opened, reset=any(reply.is_positive for reply in said))
        if all(addressee.reply is not None for addressee in addressees):
            return True
        return self._full_sessions >= self.settings.max_full_sessions

    async def _offer_afresh(
        self, candidate: Candidate, plan: Plan, addressees: Sequence[Addressee], *, last: bool, until: float
    ) -> bool:
        """A pooled connection had died: one fresh one to the same host."""
        opened = await self._open(candidate, plan, last=last, until=until, fresh=True)
        if isinstance(opened, HostFailed):
            return opened.own
        return await self._offer(opened, plan, addressees, last=last, until=until)

    async def _return(self, opened: Opened, *, reset: bool) -> None:
        """Nothing was accepted here: the connection goes back clean, or is closed."""
        clean = not reset
        try:
            if reset:
                with trio.move_on_after(self.settings.budgets.slot):
                    (reply,) = await opened.link.exchange([b"RSET"])
                    clean = reply.is_positive
        except (WireLost, RemoteProtocolError, Interrupted):
            clean = False
        finally:
            if not clean:
                opened.link.wire.close()
        if clean:
            self.services.pool.give(opened)

    def _rcpt_line(self, addressee: Addressee, link: ClientLink) -> bytes:
        parameters = forward_rcpt(addressee.rcpt, link.extensions, dsn_hide=self.settings.dsn == "hide")
        return b" ".join((b"RCPT TO:<" + addressee.rcpt.path.text + b">", *parameters))

    def _within_limit(self, addressees: Sequence[Addressee], link: ClientLink) -> list[Addressee]:
        """The undecided addressees this host takes in one transaction (RFC 9422 RCPTMAX); the rest are put off."""
        undecided = [one for one in addressees if one.reply is None]
        limit = link.extensions.limit("RCPTMAX")
        if limit is None:
            return undecided
        room = max(limit - self._told, 0)
        for one in undecided[room:]:
            one.reply = reply_of(Reason(ReasonCode.TOO_MANY_RECIPIENTS, self.next_hop.key, "RCPTMAX"), self.id)
        self._told += len(undecided[:room])
        return undecided[:room]

    def _lacks_8bitmime(self, opened: Opened) -> bool:
        return self.mail.is_8bit and not opened.link.extensions.has("8BITMIME")

    def _ordered(self, addresses: Sequence[IpAddress]) -> list[IpAddress]:
        """IPv6 and IPv4 in turn, each shuffled, so that both families are among the first (MX-07)."""
        mixed: list[IpAddress] = []
        families = []
        for version in (6, 4):
            family = [address for address in addresses if address.version == version]
            self.services.random.shuffle(family)
            families.append(family)
        while any(families):
            mixed.extend(family.pop() for family in families if family)
        return mixed[: self.settings.max_addresses]

    def _lost(self, opened: Opened, error: Exception) -> None:
        code = ReasonCode.PROTOCOL_ERROR if isinstance(error, RemoteProtocolError) else ReasonCode.LOST
        if isinstance(error, Interrupted):
            code = ReasonCode.TIMED_OUT
        opened.link.wire.close()
        reason = Reason(code, str(opened.candidate), printable(str(error)))
        self.answers.fail(reason, candidate=opened.candidate, policy=opened.requirement.policy)


def _is_gone(said: Sequence[Reply] | Exception) -> bool:
    """Was the connection dead, or dying (421), before any recipient was accepted on it?"""
    if isinstance(said, Exception):
        return isinstance(said, WireLost)
    accepted = said[0].is_positive and any(reply.is_positive for reply in said[1:])
    return not accepted and any(reply.code == 421 for reply in said)
