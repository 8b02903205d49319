"""How does the MTA's mail come in?  The outbound session: SMTP or LMTP, groups of commands, a verdict at each RCPT.

RFC 5321, RFC 2033, RFC 2920.  The MTA's queue manager sees one next hop for all mail, so nothing a remote host or our
load does may show anywhere but in a reply to RCPT, DATA or the end of data: no 4xx at greeting, EHLO, MAIL or RSET, no
dropped session, no error limit.  An idle or slow MTA gets `421 4.4.2` (TO-08).
"""

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType

from smtpguard.clock import Clock, Ids
from smtpguard.events import Emit, SessionClosed, SessionOpened, Violation
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.link import ServerLink
from smtpguard.net.original import Original, redirected_from, transparently_from
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import HandshakeFailed, Interrupted, Why, Wire, WireLost
from smtpguard.outbound.intercept import Interception, meet, refused_at_greeting
from smtpguard.outbound.settings import Network, Outbound, OutboundListener
from smtpguard.outbound.transaction import Transaction
from smtpguard.outbound.walk import Services
from smtpguard.reasons import ReasonCode, printable
from smtpguard.smtp.body import BodyReader
from smtpguard.smtp.commands import Data, Ehlo, Helo, Lhlo, Mail, Quit, Rcpt, Rset, StartTls
from smtpguard.smtp.extensions import Offer
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import ServerDialogue, Slot
from smtpguard.smtp.trace import protocol_word, received_line
from smtpguard.tls.outcome import TlsOutcome

ORIGINALS: Mapping[str, Original] = MappingProxyType({"redirect": redirected_from, "tproxy": transparently_from})
_BODY_TURN = 256 * 1024
_LEAST_OCTETS = 4096
"""Content octets that keep an MTA from being slow, in each span of the idle time spent waiting for it (AF-45)."""
_GO_AHEAD = Reply.of(354, "", "End data with <CR><LF>.<CR><LF>")
_SENDER_OK = Reply.of(250, "2.1.0", "Ok")
_NEEDS_TLS = Reply.of(530, "5.7.0", "Must issue a STARTTLS command first")
_NOT_A_CLIENT = Reply.of(554, "5.7.1", "This address may not send through here: see `clients` of the listener")
_NOT_IN_CLEAR = Reply.of(554, "5.7.1", "This address may not send in clear: see `cleartext_from` of the listener")
_IDLE = Reply.of(421, "4.4.2", "Idle for too long, closing")
INTERNAL = Reply.of(421, "4.3.0", "Internal error, closing")
"""What a session says when it dies of a bug."""


class Intake:
    """One outbound listener's sessions.  `settings` is asked once at the start of each session (reload)."""

    def __init__(
        self,
        listener: OutboundListener,
        settings: Callable[[], Outbound],
        services: Services,
        sessions: Sessions,
        ids: Ids,
        originals: Mapping[str, Original] = ORIGINALS,
    ) -> None:
        """`originals`: how a listener with this `intercept` learns where a connection was going."""
        self.listener = listener
        """What new sessions follow; a reload replaces it."""
        self._originals = originals
        self._settings = settings
        self._services = services
        self._sessions = sessions
        self._ids = ids

    async def session(self, wire: Wire) -> None:
        """Serve one connection to its end; whoever accepted it closes it."""
        id_ = self._ids.session()
        original = self._originals.get(self.listener.intercept)
        session = _Session(wire, self.listener, self._settings(), self._services, self._sessions, id_, original)
        await session.run()


class _Session:
    def __init__(
        self,
        wire: Wire,
        listener: OutboundListener,
        settings: Outbound,
        services: Services,
        sessions: Sessions,
        id_: str,
        original: Original | None,
    ) -> None:
        self._original = original
        self._interception: Interception | None = None
        self._wire = wire
        self._listener = listener
        self._settings = settings
        self._services = services
        self._sessions = sessions
        self._clock: Clock = services.clock
        self._emit: Emit = services.emit
        self._id = wire.session = id_
        self._decisions = 0
        self._transaction: Transaction | None = None
        self._transactions = 0
        self._tls: TlsOutcome | None = None
        self._in_content = False
        self._speak_as(settings.hostname)

    def _speak_as(self, name: str) -> None:
        """The dialogue with the MTA, before its first word; `name` is that of greeting and EHLO reply."""
        offer = Offer(
            size=self._settings.max_octets,
            rcpt_max=self._settings.max_recipients,
            rcpt_domain_max=None if self._listener.intercept else 1,
            dsn=self._settings.dsn == "pass",
            starttls=self._listener.tls is not None,
        )
        self._dialogue = ServerDialogue(hostname=name, lmtp=self._listener.protocol == "lmtp", offer=offer)
        self._link = ServerLink(self._wire, self._dialogue)

    async def run(self) -> None:
        began = self._clock.monotonic()
        peer = str(self._wire.peer)
        name = self._listener.name
        self._emit(SessionOpened(direction="outbound", session=self._id, listener=name, peer=peer))
        cause = "error"
        try:
            cause = await self._serve()
        except Interrupted as interrupted:
            cause = await self._interrupted(interrupted.why)
        except HandshakeFailed as failed:
            cause = "handshake"
            self._violation("handshake", failed.outcome.detail)
            await self._wire.linger()  # so that the MTA reads the alert (STLS-09)
        except WireLost:
            cause = "lost"
        finally:
            if self._transaction is not None:
                self._transaction.close()
            if self._interception is not None:
                self._interception.close()
            self._emit(
                SessionClosed(
                    direction="outbound",
                    session=self._id,
                    listener=name,
                    peer=peer,
                    cause=cause,
                    seconds=self._clock.monotonic() - began,
                    transactions=self._transactions,
                    tls_version=self._tls.version.value if self._tls and self._tls.version else "",
                )
            )

    async def _serve(self) -> str:
        refusal = self._not_served()
        if refusal is None and self._original is not None:
            refusal = await self._intercepted(self._original(self._wire))
        if refusal is not None:
            await self._wire.send(refusal.encode())
            await self._wire.linger()
            return "refused"
        self._wait_for_mta()
        await self._link.greet()
        while True:
            # A fresh connection is about to bring mail: closing it would cost the MTA a retry, so it is served first.
            between = self._transaction is None and self._transactions > 0
            if between and self._sessions.draining and not self._has_more():
                return "shutdown"
            self._wire.idle = between
            self._wait_for_mta()
            group = await self._next_group()
            self._wire.idle = False
            if self._wire.interrupted is not None:  # a drain or the tick came together with these commands
                self._wire.clear_interrupt()
            self._wire.deadline = inf
            if not group:
                return "closed"
            await self._group(group)
            last = group[-1]
            if last.starts_tls:
                assert self._listener.tls is not None
                self._tls = await self._wire.start_tls(
                    self._listener.tls, server_side=True, seconds=self._settings.budgets.handshake
                )
                self._dialogue.tls_started()
            if last.closes:
                if not isinstance(last.command, Quit):
                    injected = isinstance(last.command, StartTls)
                    self._violation("starttls_injection" if injected else "early_talker", "")
                    await self._wire.linger()
                    return "refused"
                return "quit"

    async def _intercepted(self, original: Endpoint | None) -> Reply | None:
        """Hear the greeting of the original destination before ours is sent; a reply: it cannot be (MX-17)."""
        met = await meet(
            original,
            self._wire,
            listener=self._listener,
            settings=self._settings,
            hosts=self._services.hosts,
            until=self._clock.monotonic() + self._settings.budgets.rcpt,
        )
        if isinstance(met, Interception):
            self._interception = met
            self._speak_as(met.name)
            return None
        if met.code in (ReasonCode.NOT_REDIRECTED, ReasonCode.OWN_TRAFFIC):
            self._violation(met.code.token.partition("/")[2].replace("-", "_"), met.subject)
        self._decisions += 1
        return refused_at_greeting(met, original, f"{self._id}.{self._decisions}", self._emit)

    def _wait_for_mta(self) -> None:
        """From here on the MTA is waited for: to talk, or to read what it is told (TO-08)."""
        self._wire.deadline = self._clock.monotonic() + self._settings.budgets.idle

    async def _settle(self, slots: list[Slot]) -> None:
        """Write these replies at once; an MTA that reads nothing is as slow as one that says nothing."""
        self._wait_for_mta()
        await self._link.settle(slots)
        self._wire.deadline = inf

    async def _next_group(self) -> list[Slot]:
        """The next commands.  A drain ends an idle session, but what the MTA has already sent is still served."""
        try:
            return await self._link.next_group()
        except Interrupted as interrupted:
            if interrupted.why is not Why.SHUTDOWN:
                raise
            self._wire.clear_interrupt()
            if self._transaction is None and not self._has_more():
                raise
            self._wait_for_mta()
            return await self._link.next_group()

    def _has_more(self) -> bool:
        """Has the MTA sent something that is not answered yet?"""
        if self._dialogue.pending:
            return True
        octets = self._wire.receive_nowait()
        if octets:
            self._dialogue.receive(octets)
        return bool(octets)

    async def _group(self, group: list[Slot]) -> None:
        """Answer a group of commands in order, in one write unless DATA ends it."""
        deadline = self._clock.monotonic() + self._settings.budgets.rcpt
        rcpts: list[Slot] = []
        for slot in group:
            if isinstance(slot.command, Rcpt) and slot.reply is None:
                rcpts.append(slot)
                continue
            await self._recipients(rcpts, deadline)
            rcpts = []
            if isinstance(slot.command, Mail) and slot.reply is None:
                slot.reply = self._mail(slot.command)
            elif isinstance(slot.command, Data) and slot.reply is None:
                await self._settle(group[:-1])
                await self._data(slot)
                return
            elif isinstance(slot.command, Rset | Ehlo | Lhlo | Helo) and slot.reply and slot.reply.is_positive:
                await self._reset()
        await self._recipients(rcpts, deadline)
        await self._settle(group)

    async def _reset(self) -> None:
        """RSET, or a new hello: the hosts hear it, and the transaction is gone."""
        if self._transaction is not None:
            await self._transaction.reset()
            self._forget(self._transaction)

    def _mail(self, mail: Mail) -> Reply:
        if not self._wire.is_tls and not self._may_be_clear():
            return _NEEDS_TLS
        self._transactions += 1
        self._transaction = Transaction(
            mail,
            services=self._services,
            settings=self._settings,
            listener=self._listener,
            session=self._id,
            first_decision=self._decisions,
            interception=self._interception,
        )
        return _SENDER_OK

    async def _recipients(self, slots: list[Slot], deadline: float) -> None:
        if not slots or self._transaction is None:  # its MAIL was refused in this very group: settle answers
            return
        commands = [slot.command for slot in slots if isinstance(slot.command, Rcpt)]
        replies = await self._transaction.recipients(commands, deadline)
        for slot, reply in zip(slots, replies, strict=True):
            slot.reply = reply

    async def _data(self, slot: Slot) -> None:
        transaction = self._transaction
        self._dialogue.recheck(slot)
        if slot.reply is not None or transaction is None:  # nobody was accepted (EXT-21)
            await self._settle([slot])
            return
        refusal = await transaction.data(self._clock.monotonic() + self._settings.budgets.data)
        if refusal is not None:
            slot.reply = refusal
            await self._settle([slot])
            self._forget(transaction)
            self._dialogue.end_transaction()
            return
        slot.reply = _GO_AHEAD
        await self._settle([slot])
        await self._content(transaction)

    async def _content(self, transaction: Transaction) -> None:
        """Stream the message to every host that waits for it, then tell each recipient's fate."""
        reader = BodyReader(bare_newlines=self._settings.bare_newlines, max_octets=self._settings.max_octets or None)
        await transaction.send([self._received(transaction)])
        await self._stream(transaction, reader)
        if reader.normalized or reader.fault is not None:
            fault = reader.fault or ReasonCode.BARE_NEWLINE
            self._violation(fault.token.partition("/")[2].replace("-", "_"), "")
        replies = await transaction.finish(
            reader.fault, reader.octets, self._clock.monotonic() + self._settings.budgets.end_of_data
        )
        if self._listener.protocol == "smtp":
            replies = replies[:1]
        told = False
        try:
            self._wait_for_mta()
            await self._wire.send(b"".join(reply.encode() for reply in replies))
            told = True
        finally:
            if not told:
                transaction.client_lost()
        self._wire.deadline = inf
        self._forget(transaction)
        self._dialogue.end_transaction()
        self._dialogue.receive(reader.rest)

    async def _stream(self, transaction: Transaction, reader: BodyReader) -> None:
        """The content, to its true end even where nobody takes it any more (DATA-12)."""
        self._in_content = True
        octets = self._dialogue.take_rest()
        patience, since = self._settings.budgets.idle, 0
        while True:
            spans = reader.feed(octets)
            if reader.fault is None and spans and transaction.live:
                await transaction.send(spans)
            if reader.ended:
                break
            # Only the time spent waiting for the MTA counts: a slow host must not make it look slow.
            began = self._clock.monotonic()
            self._wire.deadline = began + patience
            octets = await self._wire.receive(_BODY_TURN)
            self._wire.deadline = inf
            if not octets:
                raise WireLost("the MTA closed the connection inside the message")
            patience -= self._clock.monotonic() - began
            since += len(octets)
            if since >= _LEAST_OCTETS:
                patience, since = self._settings.budgets.idle, 0
        self._in_content = False

    def _forget(self, transaction: Transaction) -> None:
        """The transaction is over; hosts it has not given back are dropped without a dot."""
        transaction.close()
        self._decisions = transaction.decisions
        self._transaction = None

    def _received(self, transaction: Transaction) -> bytes:
        tls = self._tls
        peer = self._wire.peer
        return received_line(
            from_name=self._dialogue.client_name,
            from_address=str(peer.address) if peer.address is not None else "",
            by=self._settings.hostname,
            with_=protocol_word(
                lmtp=self._listener.protocol == "lmtp",
                extended=self._dialogue.extended,
                tls=tls is not None,
                auth=False,
                utf8=transaction.mail.needs_smtputf8,
            ),
            id=transaction.id,
            for_=transaction.sole_recipient,
            tls=tls.cipher if tls else "",
            group=tls.group if tls else "",
            date=self._clock.now(),
        )

    async def _interrupted(self, why: Why) -> str:
        if self._transaction is not None:
            self._transaction.close()  # first: the hosts need not wait for our last words
        if why is Why.TIMEOUT:
            if self._in_content or self._dialogue.pending:
                self._violation("slow", "")
            await self._last_words(_IDLE)
            return "idle"
        return "shutdown"  # an idle session closes silently: the MTA finds a closed connection and reconnects

    async def _last_words(self, reply: Reply) -> None:
        """The owed 421, if the wire still takes it."""
        try:
            self._wire.clear_interrupt()
            await self._wire.send(reply.encode())
            await self._wire.linger()
        except (WireLost, Interrupted):
            return

    def _not_served(self) -> Reply | None:
        """Why this peer may not use us at all; None if it may.  Who comes from this host always may."""
        if self._is_local or self._is_in(self._listener.clients):
            return None if self._listener.tls is not None or self._may_be_clear() else _NOT_IN_CLEAR
        return _NOT_A_CLIENT

    def _may_be_clear(self) -> bool:
        return self._is_local or self._is_in(self._listener.cleartext_from)

    @property
    def _is_local(self) -> bool:
        # What was redirected to loopback began here, though it keeps the address of an interface.
        local = self._wire.local.address if self._listener.intercept == "redirect" else None
        address = self._wire.peer.address
        return address is None or address.is_loopback or (local is not None and local.is_loopback)

    def _is_in(self, networks: tuple[Network, ...]) -> bool:
        address = self._wire.peer.address
        return address is not None and any(address in network for network in networks)

    def _violation(self, kind: str, detail: str) -> None:
        self._emit(
            Violation(
                direction="outbound",
                kind=kind,
                session=self._id,
                peer=str(self._wire.peer),
                detail=printable(detail),
            )
        )
