"""What does the MTA behind a listener offer, is it there, and would it relay for anybody who comes through us?

DESIGN §3 and §6.  The profile is learnt as an untrusted client (192.0.2.1, RFC 5737), so that nothing is shown to the
Internet that the MTA shows only to its friends.  With it goes the open-relay probe: an MTA that trusts our address must
never take us for the client.  Until both are done, and while the MTA fails, clients hear 421.  A probe without a clear
answer (the MTA refuses its MAIL, or puts a recipient off) proves nothing: it is told, and the last clear one holds.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

import trio

from smtpguard.clock import Clock
from smtpguard.events import Emit, MtaAlert, MtaState, MtaUnproven
from smtpguard.inbound.settings import InboundListener
from smtpguard.inbound.upstream import MtaConnector, MtaFailed, MtaOpened, Step
from smtpguard.net.wire import Interrupted, WireLost
from smtpguard.reasons import printable
from smtpguard.smtp.extensions import PASSED_INBOUND, Extensions, Offer
from smtpguard.smtp.forwarded import ClientIdentity
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply

UNTRUSTED_CLIENT = IPv4Address("192.0.2.1")
"""The documentation address no MTA has a reason to trust (RFC 5737)."""
PROBE_HELLO = b"probe.example.com"
_PROBE_RECIPIENTS = (b"probe@example.com", b"probe@[192.0.2.1]")
"""Nobody's mailboxes (RFC 2606, RFC 5737).  example.com has a null MX, for which an MTA may refuse it before it asks
whether it would relay; the literal needs no DNS, but many MTAs refuse literals.  So both are asked for."""

NOT_READY = Reply.of(421, "4.3.2", "The mail server is not available, try again later")
REFUSED_IDENTITY = Reply.of(421, "4.3.0", "The mail server is misconfigured, try again later")

_EVENTS = {"starting": MtaState, "ready": MtaState, "unproven": MtaUnproven}
_FAILURES = 3
_FAILURE_SECONDS = 30.0
_RETRY_SECONDS = (1.0, 2.0, 5.0, 10.0)
_REFRESH_SECONDS = 60.0

# AUTH mechanisms that do not survive a proxy that ends TLS, or wrap the session in a layer of their own (AUTH-04).
_PASSED_MECHANISMS = frozenset({
    "PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512", "XOAUTH2", "OAUTHBEARER",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Profile:
    """What the MTA showed to an untrusted client: its name, its greeting, its extensions."""

    name: str
    greeting: Reply
    extensions: Extensions

    def offer(self, listener: InboundListener, *, starttls: bool) -> Offer:
        """What a client is offered: the allow-list of EXT-01..25 and what the MTA offers, the tighter of both."""
        offered = self.extensions
        limits = listener.limits
        sizes = [size for size in (limits.message_octets, offered.size or 0) if size]
        recipients = min(limits.recipients, max(100, offered.limit("RCPTMAX") or limits.recipients))
        mechanisms = offered.offered.get("AUTH", "").upper().split()
        return Offer(
            size=min(sizes, default=0),
            rcpt_max=recipients,
            rcpt_domain_max=None,
            dsn=offered.has("DSN"),
            starttls=starttls,
            auth=tuple(word for word in mechanisms if word in _PASSED_MECHANISMS),
            chunking=offered.has("CHUNKING"),
            eight_bit=offered.has("8BITMIME"),
            smtputf8=offered.has("SMTPUTF8") and offered.has("8BITMIME"),
            further=tuple(
                (keyword, offered.offered[keyword])
                for keyword in PASSED_INBOUND
                if offered.has(keyword) and (keyword != "FUTURERELEASE" or listener.submission)
            ),
        )


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probe found: does the MTA relay for strangers?  None: nobody knows.  `reply` is the one that decided."""

    relays: bool | None
    reply: Reply


def judge_probe(mail: Reply, recipients: list[Reply]) -> Probed:
    """`recipients` are the replies to those asked for, after a MAIL that was taken."""
    if not mail.is_positive:
        # 530 asks whoever comes to authenticate; any other refusal may be of this sender, or for today.
        return Probed(False if mail.code == 530 else None, mail)
    taken = next((reply for reply in recipients if reply.is_positive), None)
    if taken is not None:
        return Probed(True, taken)
    unclear = next((reply for reply in recipients if not reply.is_permanent), None)
    return Probed(None, unclear) if unclear is not None else Probed(False, recipients[-1])


class MtaWatch:
    """Keeps the profile of one listener's MTA, and says whether clients may be greeted."""

    def __init__(
        self, listener: Callable[[], InboundListener], connector: Callable[[], MtaConnector], clock: Clock, emit: Emit
    ) -> None:
        self._listener = listener
        self._connector = connector
        self._clock = clock
        self._emit = emit
        self._failures: deque[float] = deque(maxlen=_FAILURES)
        self._wake = trio.Event()
        self._state = ""
        self._relays: bool | None = None  # what the last probe with a clear answer found
        self._generation = 0  # counts reloads: what was learnt by an older way does not count
        self.attempted = trio.Event()
        """Set after the first attempt to learn the profile."""
        self.profile: Profile | None = None
        self.refusal: Reply | None = NOT_READY
        """What clients hear instead of a greeting; None: they are served."""

    @property
    def state(self) -> str:
        """`starting`, `ready`, `unproven` (served, but no probe had a clear answer), `down`, `refused` (the MTA does
        not take the client's identity) or `open_relay`."""
        return self._state or "starting"

    @property
    def is_refused(self) -> bool:
        """Is there something that only the operator can mend?"""
        return self._state in ("refused", "open_relay")

    def failed(self, step: Step, detail: str, *, answered: bool) -> None:
        """A session could not open the MTA; three times in 30 s, and clients hear 421 until it is back (AF-41).

        `answered`: by a 4xx of the MTA, which may be of this client alone (its rate): then we ask it ourselves first.
        """
        now = self._clock.monotonic()
        self._failures.append(now)
        if len(self._failures) == _FAILURES and now - self._failures[0] <= _FAILURE_SECONDS:
            if not answered:
                self._to("down", NOT_READY, step, detail)
            self.wake()

    def wake(self) -> None:
        """Learn again now: settings changed, or the MTA seems to be down."""
        self._wake.set()

    def restart(self) -> None:
        """After a reload: nobody is greeted until the new way was probed."""
        self._generation += 1
        self._relays = None
        self._to("starting", NOT_READY, None, "settings were reloaded")
        self.wake()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Learn and probe, then again from time to time; runs until cancelled."""
        task_status.started()
        attempt = 0
        while True:
            self._wake = trio.Event()
            if await self.learn():
                attempt = 0
                pause = _REFRESH_SECONDS
            else:
                pause = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                attempt += 1
            self.attempted.set()
            if pause != _REFRESH_SECONDS:
                await trio.sleep(pause)  # not shortened: an MTA that is down is not asked in a loop
                continue
            with trio.move_on_after(pause):
                await self._wake.wait()

    async def learn(self) -> bool:
        """One attempt: profile and probe.  True: clients are served."""
        listener, generation = self._listener(), self._generation
        connector = self._connector()
        opened = await connector.open(untrusted_client(), PROBE_HELLO)
        if isinstance(opened, MtaFailed):
            if opened.step is Step.XCLIENT:
                self._to("refused", REFUSED_IDENTITY, opened.step, opened.detail)
            else:
                said = f"; said to {UNTRUSTED_CLIENT}, the stranger as whom we ask" if opened.reply is not None else ""
                self._to("down", NOT_READY, opened.step, opened.detail + said)
            return False
        probed = await self._probe(opened, connector)
        if generation != self._generation:
            return False
        if isinstance(probed, MtaFailed):
            self._to("down", NOT_READY, probed.step, probed.detail)
            return False
        self._relays = probed.relays if probed.relays is not None else self._relays
        if self._relays:
            self._to(
                "open_relay",
                REFUSED_IDENTITY,
                None,
                f"a client at {UNTRUSTED_CLIENT} may send to anybody through {listener.mta}: {probed.reply.text}; "
                "take our address out of the MTA's trusted networks or change pass_client",
            )
            return False
        self.profile = Profile(_name(opened.hello), opened.greeting, opened.link.extensions)
        self._failures.clear()
        if self._relays is None:
            self._to("unproven", None, None, f"whether it relays for strangers is unknown, it said {probed.reply}")
        else:
            self._to("ready", None, None, f"{self.profile.name}: {', '.join(opened.link.extensions.offered)}")
        return True

    async def _probe(self, opened: MtaOpened, connector: MtaConnector) -> Probed | MtaFailed:
        """Ask for recipients that are nobody's; it ends before DATA."""
        wire = opened.link.wire
        wire.deadline = self._clock.monotonic() + self._listener().times.mta_greeting
        try:
            (mail,) = await opened.link.exchange([b"MAIL FROM:<>"])
            replies: list[Reply] = []
            if mail.is_positive:
                for recipient in _PROBE_RECIPIENTS:
                    replies += await opened.link.exchange([b"RCPT TO:<%b>" % recipient])
                    if replies[-1].is_positive:
                        break
                await opened.link.exchange([b"RSET"])
            opened.link.quit()
        except WireLost as lost:
            return MtaFailed(Step.LOST, lost.detail)
        except Interrupted as interrupted:
            return MtaFailed(Step.TIMEOUT, interrupted.why.value)
        except RemoteProtocolError as error:
            return MtaFailed(Step.PROTOCOL, str(error))
        finally:
            connector.close(wire)
        return judge_probe(mail, replies)

    def _to(self, state: str, refusal: Reply | None, step: Step | None, detail: str) -> None:
        self.refusal = refusal
        if state != self._state:
            self._state = state
            listener = self._listener()
            kind = _EVENTS.get(state, MtaAlert)
            self._emit(
                kind(
                    listener=listener.name,
                    mta=str(listener.mta),
                    state=state,
                    step=step.value if step else "",
                    detail=printable(detail, 400),
                )
            )


def untrusted_client() -> ClientIdentity:
    """The client as whom the MTA is asked what it shows to strangers."""
    return ClientIdentity(address=UNTRUSTED_CLIENT, port=25, helo=PROBE_HELLO)


def _name(hello: Reply) -> str:
    """How the MTA calls itself: the first word of its reply to EHLO."""
    return printable(hello.lines[0].split(b" ")[0], 255) or "localhost"
