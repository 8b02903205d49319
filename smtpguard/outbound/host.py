"""Does this host, at this address, show what it must?  `open_host`: the one function that connects, upgrades, verifies.

`walk` calls it until a host opens, `probe` calls it for every host; nothing here can write MAIL.  An intercepted
session calls `greet_host` first: the host must have spoken before we do.  A failure belongs to the host and is a value.
RFC 3207 §4, §6; RFC 7672 §2.2; CH-26 (one retry in clear where the level allows it).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from math import inf

import trio
from OpenSSL import SSL

from smtpguard.clock import Clock
from smtpguard.names import Domain, IpAddress
from smtpguard.net.connect import ConnectFailed, Verdict, connect
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.limits import FailureMemory
from smtpguard.net.link import ClientLink
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import HandshakeFailed, Interrupted, WireLost
from smtpguard.outbound.settings import Outbound
from smtpguard.policy.engine import judge
from smtpguard.policy.model import Deliver, Encryption, Requirement, TryNextMx
from smtpguard.reasons import Reason, ReasonCode, printable
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply
from smtpguard.tls.outcome import StartTls, TlsOutcome, TlsVersion
from smtpguard.tls.pkix import RootStore

Roots = Callable[[str | None], RootStore]
MemoryKey = tuple[IpAddress | None, IpAddress, int]
"""Source, address and port: what the host memory remembers."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address of one mail host; `source`, `ehlo`: who we are toward it; `routed`: a `[[route]]` led here."""

    host: str
    address: IpAddress
    port: int
    source: IpAddress | None
    ehlo: Domain
    routed: bool = False

    def __str__(self) -> str:
        return f"{self.host.strip('[]') if self.host.startswith('[') else self.host}[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True)
class PoolKey:
    """What two connections must share to stand for each other."""

    candidate: Candidate
    sni: Domain | None


@dataclass(frozen=True, slots=True)
class Greeted:
    """A host that has greeted us and answered EHLO in clear; nothing is known of its TLS.

    `ehlo` may be a permanent refusal: whether HELO will do depends on what is required (SMTP-04).
    """

    candidate: Candidate
    link: ClientLink
    greeting: str
    ehlo: Reply


@dataclass(slots=True)
class Opened:
    """A host that showed what it must: a dialogue after the last EHLO, ready for MAIL.  `messages` counts each MAIL."""

    candidate: Candidate
    link: ClientLink
    requirement: Requirement
    outcome: TlsOutcome
    decision: Deliver
    greeting: str
    opened_at: float
    messages: int = 0
    reused: bool = False

    @property
    def key(self) -> PoolKey:
        """The key under which others may use this connection."""
        return PoolKey(self.candidate, self.requirement.sni)


@dataclass(frozen=True, slots=True)
class HostFailed:
    """Why this address is out.  `reply`: what the host itself said, where it refused by a reply.

    `unreachable`: nothing was learnt about TLS (connect or greeting), so the address may be remembered as dead; a
    policy result never is.  `own`: the host is this host.  `outcome`: what it showed, where it got that far.
    """

    candidate: Candidate
    reasons: tuple[Reason, ...]
    reply: Reply | None = None
    unreachable: bool = False
    own: bool = False
    permanent: bool = False
    outcome: TlsOutcome | None = None


class Hosts:
    """Opens hosts: holds what every opening needs."""

    def __init__(
        self,
        *,
        settings: Callable[[], Outbound],
        roots: Roots,
        context: Callable[[TlsVersion], SSL.Context],
        memory: FailureMemory[MemoryKey],
        sessions: Sessions,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._roots = roots
        self._context = context
        self._memory = memory
        self._sessions = sessions
        self._clock = clock

    def judge(self, requirement: Requirement, outcome: TlsOutcome, subject: str) -> Deliver | TryNextMx:
        """The verdict on what a host showed, now."""
        return judge(requirement, outcome, self._now(), self._roots, subject)

    async def open_host(
        self,
        candidate: Candidate,
        requirement: Requirement,
        *,
        last: bool,
        until: float = inf,
        remember: bool = True,
        greeted: Greeted | None = None,
    ) -> Opened | HostFailed:
        """Connect, greet, upgrade, verify.  The caller's cancel scope bounds the whole; `last`: no other address is
        left, so connecting may take longer.  `until` (monotonic, looked at once a second): a host that has not
        answered by then has failed, and others get their turn.  `remember=False` (probe) neither asks nor tells the
        host memory.  `greeted`: what `greet_host` gave for this candidate; it is used up."""
        if greeted is None:
            failed = self._not_dialled(candidate, remember)
            if failed is not None:
                return failed
        opened = await self._attempt(candidate, requirement, last, until, greeted, clear=False)
        if isinstance(opened, TlsOutcome):  # the handshake failed where clear text is allowed: once more, without it
            first = opened
            opened = await self._attempt(candidate, requirement, last, until, None, clear=True)
            if isinstance(opened, Opened):  # what was observed is the handshake, not that none was tried again
                decision = self.judge(requirement, first, str(candidate))
                assert isinstance(decision, Deliver)
                opened.outcome, opened.decision = first, decision
        assert not isinstance(opened, TlsOutcome)
        if remember:
            self._remember(candidate, opened)
        return opened

    async def greet_host(self, candidate: Candidate, *, until: float) -> Greeted | HostFailed:
        """Connect, read the greeting, say EHLO, and no more: whose mail comes is not known yet (interception)."""
        failed = self._not_dialled(candidate, remember=True)
        if failed is not None:
            return failed
        greeted = await self._greet(candidate, last=True, until=until)
        self._remember(candidate, greeted)
        return greeted

    def is_own_connection(self, end: Endpoint) -> bool:
        """Is this the near end of one of our own connections to a host?"""
        return self._sessions.has_local(end)

    def _remember(self, candidate: Candidate, result: Opened | Greeted | HostFailed) -> None:
        key = (candidate.source, candidate.address, candidate.port)
        if isinstance(result, HostFailed) and result.unreachable:
            self._memory.failed(key, self._clock.monotonic())
        else:
            self._memory.succeeded(key)

    def _not_dialled(self, candidate: Candidate, remember: bool) -> HostFailed | None:
        subject = str(candidate)
        verdict = self._settings().addresses.verdict(candidate.address, candidate.port, routed=candidate.routed)
        if verdict in (Verdict.OWN, Verdict.OWN_LISTENER):
            return HostFailed(candidate, (Reason(ReasonCode.LOOP, subject, verdict.value),), own=True)
        if verdict is not Verdict.ALLOWED:
            return HostFailed(candidate, (Reason(ReasonCode.FORBIDDEN_ADDRESS, subject, verdict.value),))
        key = (candidate.source, candidate.address, candidate.port)
        if remember and self._memory.is_remembered(key, self._clock.monotonic()):
            return HostFailed(candidate, (Reason(ReasonCode.REMEMBERED, subject),))
        return None

    async def _attempt(
        self,
        candidate: Candidate,
        requirement: Requirement,
        last: bool,
        until: float,
        greeted: Greeted | None,
        *,
        clear: bool,
    ) -> Opened | HostFailed | TlsOutcome:
        found = greeted or await self._greet(candidate, last=last, until=until)
        if isinstance(found, HostFailed):
            return found
        found.link.wire.deadline = until
        kept = False
        try:
            result = await self._secure(found, requirement, clear=clear)
            kept = isinstance(result, Opened)
        except (WireLost, RemoteProtocolError, Interrupted) as error:
            return _broken(candidate, error, ReasonCode.LOST)
        finally:
            if not kept:
                found.link.wire.close()
        return result

    async def _greet(self, candidate: Candidate, *, last: bool, until: float) -> Greeted | HostFailed:
        subject = str(candidate)
        budgets = self._settings().budgets
        wire = await connect(
            candidate.address,
            candidate.port,
            source=candidate.source,
            timeout=budgets.connect if last else budgets.connect_not_last,
            clock=self._clock,
        )
        if isinstance(wire, ConnectFailed):
            return HostFailed(
                candidate,
                (Reason(ReasonCode.CONNECT_FAILED, subject, wire.detail),),
                unreachable=not wire.is_ours,
            )
        self._sessions.add(wire)
        if self._settings().addresses.reached_ourselves(wire.local, wire.peer):
            wire.close()
            return HostFailed(candidate, (Reason(ReasonCode.LOOP, subject, "it is our own listener"),), own=True)
        wire.deadline = until
        link = ClientLink(wire)
        kept = False
        stage = ReasonCode.NO_GREETING
        try:
            greeting = await link.reply()
            if (refused := self._greeting_refused(candidate, greeting)) is not None:
                link.quit()
                return refused
            stage = ReasonCode.LOST
            ehlo = await link.hello(candidate.ehlo, may_fall_back=False)
            if not (ehlo.is_positive or ehlo.is_permanent):
                link.quit()
                return HostFailed(candidate, (Reason(ReasonCode.EHLO_REFUSED, subject, ehlo.text),), reply=ehlo)
            wire.deadline = inf
            kept = True
            return Greeted(candidate, link, printable(greeting.text, 100), ehlo)
        except (WireLost, RemoteProtocolError, Interrupted) as error:
            return _broken(candidate, error, stage)
        finally:
            if not kept:
                wire.close()

    async def _secure(
        self, greeted: Greeted, requirement: Requirement, *, clear: bool
    ) -> Opened | HostFailed | TlsOutcome:
        """From EHLO on: HELO where it is needed and enough, STARTTLS, the verdict, EHLO again."""
        candidate, link, ehlo = greeted.candidate, greeted.link, greeted.ehlo
        subject = str(candidate)
        required = requirement.encryption is Encryption.REQUIRED
        if not ehlo.is_positive and not required:
            ehlo = await link.hello(candidate.ehlo, may_fall_back=False, extended=False)
        if not ehlo.is_positive:
            link.quit()
            if required and ehlo.is_permanent:  # no EHLO, no STARTTLS (SMTP-04)
                decision = self.judge(requirement, TlsOutcome(StartTls.NOT_OFFERED, "EHLO was refused"), subject)
                if isinstance(decision, TryNextMx):
                    return HostFailed(candidate, decision.reasons, permanent=decision.permanent)
            return HostFailed(candidate, (Reason(ReasonCode.EHLO_REFUSED, subject, ehlo.text),), reply=ehlo)
        outcome = await self._upgrade(link, requirement, clear=clear)
        decision = self.judge(requirement, outcome, subject)
        if isinstance(decision, TryNextMx):
            return HostFailed(candidate, decision.reasons, permanent=decision.permanent, outcome=outcome)
        if outcome.starttls is StartTls.FAILED:
            return outcome
        if outcome.encrypted:
            ehlo = await link.hello(candidate.ehlo, may_fall_back=False)
            if not ehlo.is_positive:
                reason = Reason(ReasonCode.EHLO_REFUSED, subject, ehlo.text)
                return HostFailed(candidate, (reason,), reply=ehlo, outcome=outcome)
        link.wire.deadline = inf
        return Opened(candidate, link, requirement, outcome, decision, greeted.greeting, self._clock.monotonic())

    def _greeting_refused(self, candidate: Candidate, greeting: Reply) -> HostFailed | None:
        subject = str(candidate)
        if not greeting.is_positive:
            reason = Reason(ReasonCode.GREETING_REFUSED, subject, greeting.text)
            return HostFailed(candidate, (reason,), reply=greeting, unreachable=True)
        name = greeting.text.partition(" ")[0].lower().rstrip(".")
        if name in self._settings().own_names:
            detail = f"its greeting is ours: {printable(name, 80)}"
            return HostFailed(candidate, (Reason(ReasonCode.LOOP, subject, detail),), own=True)
        return None

    async def _upgrade(self, link: ClientLink, requirement: Requirement, *, clear: bool) -> TlsOutcome:
        """STARTTLS where the requirement wants it and the host offers it: what came of it."""
        if requirement.encryption is Encryption.NEVER or clear:
            return TlsOutcome(StartTls.NOT_TRIED)
        if not link.extensions.has("STARTTLS"):
            return TlsOutcome(StartTls.NOT_OFFERED)
        try:
            with trio.fail_after(self._settings().budgets.handshake):
                return await link.start_tls(self._context(requirement.tls_floor), requirement.sni)
        except HandshakeFailed as failed:
            return failed.outcome
        except trio.TooSlowError:
            return TlsOutcome(StartTls.FAILED, detail="the handshake timed out", failure_code="tls-timeout")
        except WireLost as lost:
            return TlsOutcome(StartTls.FAILED, detail=printable(str(lost)), failure_code="tls-connection-lost")

    def _now(self) -> datetime:
        return self._clock.now()


def _broken(candidate: Candidate, error: Exception, stage: ReasonCode) -> HostFailed:
    """The connection ended before the host was open; `stage` is NO_GREETING until it has greeted, then LOST."""
    subject = str(candidate)
    silent = stage is ReasonCode.NO_GREETING
    match error:
        case RemoteProtocolError():
            return HostFailed(candidate, (Reason(ReasonCode.PROTOCOL_ERROR, subject, printable(str(error))),))
        case Interrupted() if silent:
            return HostFailed(candidate, (Reason(stage, subject, "timed out"),), unreachable=True)
        case Interrupted():
            return HostFailed(candidate, (Reason(ReasonCode.TIMED_OUT, subject),))
        case _:
            return HostFailed(candidate, (Reason(stage, subject, printable(str(error))),), unreachable=silent)
