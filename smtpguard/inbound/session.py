"""How does one client of the Internet side talk to us, from accept to close?

RFC 5321 §3, RFC 3207, RFC 8314; DESIGN §3.  Octets become groups of commands; policy refuses or lets pass; `exchange`
carries what passes to the MTA, `messages` the mail; what the MTA says comes back unchanged.  A limit that is reached
ends the session with a 421 that says which (OUT-20, 21, 28).
"""

from dataclasses import replace

import trio

from smtpguard.inbound.auth import relay_auth
from smtpguard.inbound.clientcert import judge_certificate
from smtpguard.inbound.clientname import find_client_name
from smtpguard.inbound.entrance import Turned, facts_behind, read_client, secured, shake_hands
from smtpguard.inbound.exchange import Exchange
from smtpguard.inbound.gate import Excess
from smtpguard.inbound.manners import Manners, violation_of
from smtpguard.inbound.messages import Messages
from smtpguard.inbound.profile import NOT_READY
from smtpguard.inbound.record import Record
from smtpguard.inbound.relay import MTA_GONE, Relay
from smtpguard.inbound.service import Inbound
from smtpguard.inbound.upstream import MtaFailed, Step
from smtpguard.inbound.verdict import Verdicts
from smtpguard.names import Domain
from smtpguard.net.link import ServerLink
from smtpguard.net.wire import HandshakeFailed, Interrupted, Why, Wire, WireLost
from smtpguard.policy.inbound import ClientFacts
from smtpguard.smtp.commands import Auth, Bdat, Command, Data, Ehlo, Helo, Mail, Quit, Rset, StartTls
from smtpguard.smtp.forwarded import ClientIdentity, NameMissing
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import ServerDialogue, Slot

_IDLE = Reply.of(421, "4.4.2", "Idle for too long, closing")
_TOO_SLOW = Reply.of(421, "4.4.2", "The message comes too slowly, closing")
_SHUTDOWN = Reply.of(421, "4.3.2", "Shutting down, try again later")
_FULL = Reply.of(421, "4.3.2", "Too many connections, try again later")
_TOO_MANY = Reply.of(421, "4.7.0", "Too many connections from your network, try again later")


async def serve_client(service: Inbound, wire: Wire) -> None:
    """Serve one connection of a listener to its end; whoever accepted it closes it."""
    await Session(service, wire, service.ids.session()).run()


class Session:
    """One client.  What may change by a reload is taken once, here."""

    def __init__(self, service: Inbound, wire: Wire, session: str) -> None:
        self._service = service
        self._wire = wire
        self._listener = service.listener
        self._clock = service.clock
        wire.session = session
        wire.tls_is_due = self._listener.tls == "implicit"
        self._record = Record(session, self._listener, str(wire.peer), self._clock, service.emit)
        self._verdicts = Verdicts(self._listener.rules, self._record, self._clock)
        self._entered = False
        self._named = False
        self._saturated = False
        self._exchange: Exchange | None = None
        self._messages: Messages | None = None

    async def run(self) -> None:
        """Serve the client to its end; whoever accepted the connection closes it."""
        self._record.opened()
        cause = "error"
        try:
            cause = await self._serve()
        except Interrupted as interrupted:
            cause = await self._interrupted(interrupted.why)
        except HandshakeFailed as failed:
            cause = "handshake"
            self._service.gate.handshake_failed(self._client.address, self._listener.limits, self._clock.monotonic())
            self._record.handshake_failed(failed)
            await self._wire.linger()  # so that the client reads the alert (STLS-09)
        except WireLost:
            cause = "lost"
        finally:
            if self._exchange is not None:
                self._exchange.finish()
            if self._entered:
                self._service.gate.leave(self._client.address)
            self._record.closed(cause)

    @property
    def _client(self) -> ClientIdentity:
        return self._record.client

    @_client.setter
    def _client(self, client: ClientIdentity) -> None:
        self._record.client = client

    # -- at the door

    async def _serve(self) -> str:
        client = await read_client(self._wire, self._listener, self._clock, self._record.session)
        if isinstance(client, Turned):
            self._record.violation(client.value)
            return "refused"
        self._client = client
        excess = self._enter()
        if excess is not None:
            self._record.limit(excess.value)
            return await self._turn_away(_FULL if excess is Excess.SESSIONS else _TOO_MANY, "limit")
        self._verdicts.facts = facts_behind(client)
        if self._listener.tls == "implicit":
            await self._shake_hands()
        if self._service.watch.refusal is not None:
            return await self._turn_away(self._service.watch.refusal, "mta")
        return await self._converse()

    def _enter(self) -> Excess | None:
        address = self._client.address
        unlimited = address is not None and any(address in network for network in self._listener.unlimited_from)
        excess = self._service.gate.enter(address, self._listener.limits, self._clock.monotonic(), unlimited=unlimited)
        self._entered = excess is None
        return excess

    async def _turn_away(self, reply: Reply, cause: str) -> str:
        """Say why in place of a greeting, where it can be said: on an implicit TLS port nothing is said in clear."""
        if self._wire.may_speak:
            self._wire.deadline = self._clock.monotonic() + self._listener.times.hello
            await self._wire.send(reply.encode())
            await self._wire.linger()
        return cause

    async def _shake_hands(self) -> None:
        # Those of now, which may be newer than this session; where a reload took TLS away, those it began with.
        certificates = self._service.certificates or self._listener.certificates
        assert certificates is not None
        today = self._clock.now().date()
        rules = self._listener.rules
        wanted = rules.wants_client_certificate(self._client.address, today)
        self._service.handshakes += 1
        try:
            outcome, sni = await shake_hands(
                self._wire, certificates, self._listener.times.hello, request_certificate=wanted
            )
        finally:
            self._service.handshakes -= 1
        demands = rules.certificate_demands(self._client.address, today)
        certificate, verdicts = judge_certificate(outcome.chain, demands, self._service.roots, self._clock.now())
        self._client = secured(self._client, self._wire, outcome, sni, certificate)
        self._verdicts.facts = ClientFacts(self._client.address, True, outcome.version, verdicts)
        self._record.secured(outcome)

    # -- the dialogue

    async def _converse(self) -> str:
        listener, service = self._listener, self._service
        profile = service.watch.profile
        assert profile is not None
        offer = profile.offer(listener, starttls=listener.tls == "starttls")
        self._offer = offer
        self._relay = Relay(self._refusal, offer)
        self._exchange = exchange = Exchange(
            self._relay, service.connector, self._who, self._mta_failed, profile.name, listener.times, self._clock
        )
        self._manners = Manners(listener.limits)
        self._dialogue = dialogue = ServerDialogue(
            hostname=profile.name, lmtp=False, offer=offer, tls_active=self._wire.is_tls
        )
        self._messages = Messages(
            self._record,
            self._manners,
            exchange,
            self._wire,
            dialogue,
            listener,
            service.hostname,
            offer.size,
            self._clock,
            self._say,
        )
        self._link = ServerLink(self._wire, dialogue)
        greeting = None
        if listener.open_at_connect:
            opened = await exchange.open()
            if isinstance(opened, MtaFailed):
                if opened.reply is None or opened.step is not Step.GREETING or not opened.reply.is_permanent:
                    return await self._turn_away(
                        opened.reply if opened.step is Step.GREETING and opened.reply else NOT_READY, "mta"
                    )
                greeting = opened.reply
            else:
                greeting = opened.greeting
        early = self._wire.receive_nowait()
        if early:
            dialogue.receive(early)
        own = dialogue.greeting()
        await self._say((greeting or own).encode())
        refused = greeting is not None and not greeting.is_positive
        while True:
            if service.sessions.draining and not self._relay.in_transaction:
                return await self._farewell(_SHUTDOWN, "shutdown")
            group = await self._next_group()
            if not group:
                return "closed"
            if refused:  # RFC 5321 §3.1: after a 554 nothing but QUIT (SMTP-03)
                for slot in group:
                    if not isinstance(slot.command, Quit):
                        slot.reply, slot.starts_tls = Reply.of(503, "5.5.1", "no service here"), False
            group = await self._group(group)
            ended = next((slot for slot in group if slot.closes), None)
            if ended is not None:
                return await self._end(ended)
            if group[-1].starts_tls:
                await self._start_tls()

    async def _next_group(self) -> list[Slot]:
        times = self._listener.times
        self._dialogue.tls_unavailable = self._service.handshakes >= self._listener.limits.handshakes
        self._wire.idle = not self._relay.in_transaction
        pace = self._messages.pace if self._messages is not None else None
        if pace is not None:
            with pace.waiting(self._wire):
                group = await self._link.next_group()
        else:
            self._wire.deadline = self._clock.monotonic() + (times.command if self._dialogue.greeted else times.hello)
            group = await self._link.next_group()
        self._wire.idle = False
        self._wire.deadline = float("inf")
        if group and self._wire.interrupted in (Why.SHUTDOWN, Why.TIMEOUT):
            self._wire.clear_interrupt(float("inf"))  # overtaken by these commands, which are still served
        return group

    async def _group(self, group: list[Slot]) -> list[Slot]:
        """Carry out a group, or its part up to a limit; what was carried out."""
        assert self._exchange is not None
        for slot in group:
            if not slot.closes and (refusal := self._verdicts.before_tls(slot.command)) is not None:
                slot.reply = refusal
        group = self._manners.inspect(group, authenticated=self._relay.authenticated)
        if self._exchange.gone and not isinstance(group[0].command, Quit):
            group[0].reply, group[0].closes, group[0].starts_tls = MTA_GONE, True, False
            group = group[:1]
        request = self._relay.request(group, connected=self._exchange.link is not None)
        if request.lines or request.last is not None:
            await self._exchange.ask(request)
        last = group[-1]
        apart = (isinstance(last.command, Auth) and last is request.last) or (
            isinstance(last.command, Bdat) and self._offer.chunking
        )
        before = group[:-1] if apart else group
        replies = self._dialogue.settle(before)
        self._wire.tls_is_due = self._wire.tls_is_due or last.starts_tls
        await self._say(replies)
        for slot in before:
            self._settled(slot)
        if apart:
            if any(slot.closes for slot in before):
                return before  # the MTA was lost, and so is what was to follow
            await self._carry_out_apart(last)
            self._settled(last)
        elif isinstance(last.command, Data) and last.reply is not None and last.reply.code == 354:
            assert self._messages is not None
            await self._messages.content()
        return group

    async def _say(self, octets: bytes) -> None:
        """Write replies.  A client that does not take them is waited for no longer than one that says nothing."""
        if octets:
            self._wire.deadline = self._clock.monotonic() + self._listener.times.command
            await self._wire.send(octets)
            self._wire.deadline = float("inf")

    def _refusal(self, command: Command, mail: Mail | None) -> Reply | None:
        """What the listener's rules say, counted."""
        if (reply := self._verdicts.refusal(command, mail)) is not None:
            self._manners.refused_by_rule()
        return reply

    async def _carry_out_apart(self, slot: Slot) -> None:
        match slot.command:
            case Auth():
                await self._auth(slot, slot.command)
            case Bdat():
                assert self._messages is not None
                await self._messages.chunk(slot, slot.command)

    def _settled(self, slot: Slot) -> None:
        """What a reply that was given means to the session."""
        if slot.reply is None:
            return
        self._manners.answered(slot)
        if slot.reply.is_positive:
            if isinstance(slot.command, Ehlo | Helo):
                self._client = self._client.named(slot.command.name, extended=isinstance(slot.command, Ehlo))
            if isinstance(slot.command, Ehlo | Helo | Mail | Rset) and self._messages is not None:
                self._messages.forget_chunks()
        elif isinstance(slot.command, StartTls) and slot.reply.code == 454:
            if not self._saturated:
                self._record.limit("handshakes")
            self._saturated = True
        elif kind := violation_of(slot):
            self._record.violation(kind)

    async def _end(self, slot: Slot) -> str:
        """A reply that closes was written: how the session is said to end."""
        if isinstance(slot.command, Quit):
            return "quit"
        if self._manners.excess:
            self._record.limit(self._manners.excess)
        await self._wire.linger()
        if slot.reply is not None and slot.reply.code == 421:
            return "limit" if self._manners.excess else "mta"
        return "refused"

    async def _start_tls(self) -> None:
        assert self._exchange is not None
        self._exchange.finish()  # STLS-05: the MTA learns of this client anew
        await self._shake_hands()
        self._dialogue.tls_started()

    async def _auth(self, slot: Slot, auth: Auth) -> None:
        assert self._exchange is not None
        self._dialogue.recheck(slot)
        if slot.reply is None:
            slot.reply = await relay_auth(
                auth, self._exchange, self._wire, self._dialogue, self._listener.times, self._clock
            )
            slot.closes = slot.reply.code == 421
        await self._say(self._dialogue.settle([slot]))

    # -- the MTA

    async def _who(self) -> ClientIdentity:
        """The client as the MTA is to know it; its name is looked for once."""
        address = self._client.address
        wanted = self._listener.mta.identity_by == "xclient" and self._listener.client_names
        if wanted and address is not None and not self._named:
            self._named = True
            name: Domain | NameMissing = NameMissing.TEMPORARY
            reverse: Domain | NameMissing = NameMissing.TEMPORARY
            with trio.move_on_after(self._listener.times.names):
                name, reverse = await find_client_name(self._service.lookups, address)
            self._client = replace(self._client, name=name, reverse_name=reverse)
        return self._client

    def _mta_failed(self, step: Step, detail: str, reply: Reply | None) -> None:
        # An MTA that wants nothing of this client (its name, a block list) is there for the others.
        if reply is None or not reply.is_permanent:
            self._service.watch.failed(step, detail, answered=reply is not None)
        self._record.mta_failed(step, detail)

    # -- the end

    async def _interrupted(self, why: Why) -> str:
        if not self._entered and why is not Why.CUT:
            return "idle"  # no word before the whole PROXY header (PXY-02)
        if why is Why.SHUTDOWN:
            return await self._farewell(_SHUTDOWN, "shutdown")
        if why is not Why.TIMEOUT:
            return "cut"
        if self._wire.broken:
            return "slow"
        in_message = self._messages is not None and self._messages.under_way
        if in_message:
            self._record.violation("slow")
        return await self._farewell(_TOO_SLOW if in_message else _IDLE, "slow" if in_message else "idle")

    async def _farewell(self, reply: Reply, cause: str) -> str:
        """The owed 421, if the wire still takes it."""
        try:
            self._wire.clear_interrupt()
            if self._wire.may_speak:
                await self._wire.send(reply.encode())
                await self._wire.linger()
        except (WireLost, Interrupted):
            pass
        return cause
