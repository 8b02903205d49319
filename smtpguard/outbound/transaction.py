"""What becomes of one message: who takes it, and what each recipient's last word is?

The first law lives here: a 2xx to end-of-data is given only after the next hop gave it for the same octets; nothing is
kept, nothing is sent twice.  One transaction has a route for each next hop; LMTP may open several (RFC 2033 §4.2, one
reply for each accepted recipient), SMTP keeps to the first that accepted (one reply, RFC 5321 §4.2.5).
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from math import inf
from typing import Final

import trio

from smtpguard.events import DeliveryRefused, FinalReplyLost
from smtpguard.net.wire import Interrupted, Why, WireLost
from smtpguard.outbound.answers import Addressee
from smtpguard.outbound.intercept import InterceptedWalk, Interception
from smtpguard.outbound.route import Route, reply_line
from smtpguard.outbound.routes import NextHop
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.outbound.walk import Services, Walk
from smtpguard.reasons import Reason, ReasonCode, printable
from smtpguard.smtp.body import TERMINATOR
from smtpguard.smtp.commands import Mail, Rcpt
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply, reply_of

_PIECE_OCTETS: Final = 16 * 1024  # of a fan-out: one such piece in `stalled_route` seconds is progress


class Transaction:
    """From MAIL to the last reply.  `close()` may be called at any time, and drops what is open without a dot."""

    def __init__(
        self,
        mail: Mail,
        *,
        services: Services,
        settings: Outbound,
        listener: OutboundListener,
        session: str,
        first_decision: int,
        interception: Interception | None = None,
    ) -> None:
        """`interception`: the MTA's connection was not meant for us, but for where that leads."""
        self.mail = mail
        self.decisions = first_decision
        self._services = services
        self._settings = settings
        self._listener = listener
        self._session = session
        self._interception = interception
        self._routes: dict[NextHop, Route] = {}
        self._joined: dict[NextHop, NextHop] = {}
        self._order: list[tuple[Route, Addressee]] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<Transaction routes={len(self._routes)} recipients={self._count}>"

    # -- RCPT

    async def recipients(self, group: Sequence[Rcpt], deadline: float) -> list[Reply]:
        """The replies to a pipelined group of RCPT, in order; each is the verdict and the host's own reply."""
        addressees: list[tuple[Addressee, NextHop | None]] = []
        for rcpt in group:
            addressee = Addressee(rcpt)
            addressees.append((addressee, self._next_hop(addressee)))
        if self._listener.protocol == "lmtp":
            await self._fan_out(addressees, deadline)
        else:
            await self._one_route(addressees, deadline)
        replies = []
        for addressee, next_hop in addressees:
            assert addressee.reply is not None
            replies.append(addressee.reply)
            if addressee.accepted:  # in RCPT order over all routes: so the final replies are told apart (LMTP-02)
                assert next_hop is not None
                self._order.append((self._routes[self._joined.get(next_hop, next_hop)], addressee))
        return replies

    def _next_hop(self, addressee: Addressee) -> NextHop | None:
        """Where this recipient goes; None where it is answered already."""
        domain = addressee.rcpt.path.domain
        self._count += 1
        if self._count > self._settings.max_recipients:
            addressee.reply = self._own(ReasonCode.TOO_MANY_RECIPIENTS, "")
        elif domain is None:  # <postmaster> has no domain, and nobody here (SMTP-24)
            addressee.reply = self._own(ReasonCode.BAD_DOMAIN, "postmaster")
        elif not isinstance(domain, str) and self._settings.literals == "refuse":
            addressee.reply = self._own(ReasonCode.LITERAL_REFUSED, str(domain))
        else:
            return self._settings.routes.next_hop(domain)
        return None

    async def _one_route(self, addressees: Sequence[tuple[Addressee, NextHop | None]], deadline: float) -> None:
        """SMTP: the next route starts only where the one before accepted nobody (EXT-12, OUT-23)."""
        by_hop: dict[NextHop, list[Addressee]] = {}
        for addressee, next_hop in addressees:
            if next_hop is not None:
                by_hop.setdefault(next_hop, []).append(addressee)
        for next_hop, group in by_hop.items():
            chosen = next((hop for hop, route in self._routes.items() if route.accepted), None)
            if chosen is not None and chosen != next_hop:
                await self._join(chosen, next_hop, group, deadline)
                continue
            await self._serve({next_hop: group}, deadline, wait=True)

    async def _join(self, chosen: NextHop, next_hop: NextHop, group: list[Addressee], deadline: float) -> None:
        """Another next hop is another transaction, unless it leads to the very host that an intercepted one has."""
        if self._interception is None:
            self._refuse(group, ReasonCode.OTHER_NEXT_HOP, next_hop.key)
            return
        route, walk = self._routes[chosen], self._walk(next_hop)
        assert isinstance(walk, InterceptedWalk)
        await walk.join(route.walk, group, deadline)
        self._joined[next_hop] = chosen
        joined = [one for one in group if one.accepted]
        route.addressees.extend(joined)
        Route(walk).refused([one for one in group if not one.accepted], "rcpt")

    async def _fan_out(self, addressees: Sequence[tuple[Addressee, NextHop | None]], deadline: float) -> None:
        by_hop: dict[NextHop, list[Addressee]] = {}
        for addressee, next_hop in addressees:
            if next_hop is not None:
                by_hop.setdefault(next_hop, []).append(addressee)
        await self._serve(by_hop, deadline, wait=not any(route.live for route in self._routes.values()))

    async def _serve(self, by_hop: dict[NextHop, list[Addressee]], deadline: float, *, wait: bool) -> None:
        """Walk or extend each route; routes of one group ask for their slots together (no deadlock)."""
        fresh = [hop for hop in by_hop if hop not in self._routes or not self._routes[hop].live]
        granted = await self._slots(fresh, deadline, wait=wait)
        walks: list[tuple[Route, list[Addressee], bool]] = []
        for hop, group in by_hop.items():
            if hop not in fresh:
                walks.append((self._routes[hop], group, False))
            elif hop in granted:
                walks.append((self._route(hop), group, True))
            else:
                self._refuse(group, ReasonCode.BUSY, hop.key)
        if len(walks) == 1:
            await self._run(*walks[0], deadline)
        elif walks:
            async with trio.open_nursery() as nursery:
                for route, group, new in walks:
                    nursery.start_soon(self._run, route, group, new, deadline)
        for route, group, _ in walks:
            route.addressees.extend(group)
            route.refused([one for one in group if not one.accepted], "rcpt")

    async def _slots(self, hops: Sequence[NextHop], deadline: float, *, wait: bool) -> Collection[NextHop]:
        """Those of `hops` that may be walked now: all where all are free or become so soon, else each that is."""
        slots = self._services.slots
        keys = [hop.key for hop in hops]
        seconds = min(self._settings.budgets.slot, deadline - self._services.clock.monotonic()) if wait else 0.0
        if await slots.take(keys, max(seconds, 0.0)):
            return hops
        return [hop for hop in hops if slots.try_take([hop.key])]

    async def _run(self, route: Route, group: list[Addressee], new: bool, deadline: float) -> None:
        walk, slots = route.walk, self._services.slots
        key = walk.next_hop.key
        try:
            await (walk.run if new else walk.more)(group, deadline)
        except Exception as error:  # noqa: BLE001  -- a boundary: a bug costs this next hop, not the MTA's session
            walk.abandon(group, error)
            if new:
                walk.opened = None
        finally:
            if new:
                slots.walk_ended(key)
                if walk.opened is None:
                    slots.connection_ended(key)

    def _route(self, next_hop: NextHop) -> Route:
        """A route with a fresh walk for this next hop."""
        route = Route(self._walk(next_hop), began=self._services.clock.monotonic())
        before = self._routes.get(next_hop)
        if before is not None:
            route.addressees = before.addressees
        self._routes[next_hop] = route
        return route

    def _walk(self, next_hop: NextHop) -> Walk:
        """With its own decision id."""
        self.decisions += 1
        id_ = f"{self._session}.{self.decisions}"
        common = (self._services, self._settings, self._listener, next_hop, self.mail, id_)
        if self._interception is not None:
            return InterceptedWalk(*common, interception=self._interception)
        return Walk(*common)

    # -- DATA

    @property
    def id(self) -> str:
        """The decision id of the first route that goes on: what the trace line shows."""
        return self.live[0].walk.id if self.live else self._session

    @property
    def sole_recipient(self) -> str | None:
        """The only recipient, for the trace line's `for`, which never tells one recipient of another (TRC-02)."""
        if len(self._order) != 1:
            return None
        return self._order[0][1].rcpt.path.text.decode("utf-8", "replace")

    @property
    def live(self) -> list[Route]:
        return [route for route in self._routes.values() if route.live]

    async def data(self, deadline: float) -> Reply | None:
        """Ask every host for its 354.  None: at least one goes ahead; else the reply to DATA."""
        routes = self.live
        await _each(routes, self._ask_data, deadline)
        if self.live:
            return None
        final = routes[-1].final
        for route in routes:
            if route.final is not None and route.final.is_transient:
                final = route.final
        return final

    async def _ask_data(self, route: Route, deadline: float) -> None:
        opened = route.opened
        done = False
        try:
            with trio.move_on_at(deadline):
                (reply,) = await opened.link.exchange([b"DATA"])
                done = True
                if reply.code == 354:
                    return
                if not (reply.is_transient or reply.is_permanent):  # only 354 is a go-ahead (SMTP-15, OUT-32)
                    route.break_off(ReasonCode.PROTOCOL_ERROR, f"DATA answered {reply.code}", "data")
                    return
                await self._relay_refusal(route, reply)
                return
            route.break_off(ReasonCode.BUDGET, "no reply to DATA", "data")
        except WireLost as lost:
            route.break_off(ReasonCode.LOST, printable(str(lost)), "data")
        except RemoteProtocolError as error:
            route.break_off(ReasonCode.PROTOCOL_ERROR, printable(str(error)), "data")
        except Interrupted:
            route.break_off(ReasonCode.TIMED_OUT, "", "data")
        finally:
            if not done:
                opened.link.wire.close()

    async def _relay_refusal(self, route: Route, reply: Reply) -> None:
        route.final = route.walk.answers.annotated(reply, route.opened)
        route.refused(route.accepted, "data", relayed=True)
        await route.release(reply)

    async def send(self, spans: Sequence[bytes | memoryview]) -> None:
        """Content to every live route: one streamed pass, nothing kept."""
        octets = spans[0] if len(spans) == 1 else b"".join(spans)
        routes = self.live
        if len(routes) == 1:
            await self._send(routes[0], octets)
            return
        # Each route may lag by what its socket buffers hold and this one turn; the slowest sets the pace, and one that
        # takes nothing for `stalled_route` seconds while others could is dropped (451 4.4.2 at its turn).
        async with trio.open_nursery() as nursery:
            for route in routes:
                nursery.start_soon(self._send_or_drop, route, octets)

    async def _send_or_drop(self, route: Route, octets: bytes | memoryview) -> None:
        """Piece by piece: a slow host is not a stalled one, but the whole turn has its limit for the MTA's sake."""
        budgets, now = self._settings.budgets, self._services.clock.monotonic
        end = now() + budgets.progress
        view = memoryview(octets)
        with trio.CancelScope() as scope:
            for start in range(0, len(view), _PIECE_OCTETS):
                scope.deadline = min(now() + budgets.stalled_route, end)
                await self._send(route, view[start : start + _PIECE_OCTETS])
                if not route.live:
                    return
        if scope.cancelled_caught:
            route.break_off(ReasonCode.STALLED, "", "content")

    async def _send(self, route: Route, octets: bytes | memoryview) -> None:
        wire = route.opened.link.wire
        wire.deadline = self._services.clock.monotonic() + self._settings.budgets.progress
        try:
            await route.opened.link.send(octets)
            wire.deadline = inf
        except WireLost as lost:
            route.lost_before_the_dot(lost)
        except Interrupted as interrupted:
            if interrupted.why is not Why.TIMEOUT:
                raise
            route.break_off(ReasonCode.STALLED, "", "content")

    async def finish(self, fault: ReasonCode | None, octets: int, deadline: float) -> list[Reply]:
        """End of data.  One reply for each accepted recipient in RCPT order (LMTP); their first is SMTP's only one.

        `fault`: the content must not be delivered; every host is dropped without a dot."""
        if fault is not None:
            for route in self.live:
                route.break_off(fault, "", "content")
        else:
            await _each(self.live, lambda route, until: self._finish(route, octets, until), deadline)
        replies = []
        for route, _ in self._order:
            assert route.final is not None
            replies.append(route.final)
        return replies

    async def _finish(self, route: Route, octets: int, deadline: float) -> None:
        if not route.is_silent():
            return
        link = route.opened.link
        sent = done = False
        try:
            with trio.move_on_at(deadline):
                await link.end_of_data(TERMINATOR)
                sent = True
                reply = await link.reply()
                done = True
                await self._take_final(route, reply, octets)
                return
            route.unknown(ReasonCode.BUDGET, "no reply to the end of data")
        except WireLost as lost:
            if sent:
                route.unknown(ReasonCode.LOST, printable(str(lost)))
            else:
                route.lost_before_the_dot(lost)
        except RemoteProtocolError as error:
            route.unknown(ReasonCode.PROTOCOL_ERROR, printable(str(error)))
        except Interrupted:
            route.unknown(ReasonCode.TIMED_OUT, "")
        finally:
            if not done:
                link.wire.close()

    async def _take_final(self, route: Route, reply: Reply, octets: int) -> None:
        """The host's last word."""
        if reply.severity == 3:
            route.break_off(ReasonCode.PROTOCOL_ERROR, f"end of data answered {reply.code}", "final")
            return
        route.final = route.walk.answers.annotated(reply, route.opened)
        if reply.is_positive:
            route.delivered(reply, octets)
            route.hand_back()
        else:
            route.refused(route.accepted, "final", relayed=True)
            await route.release(reply)

    # -- ends

    def client_lost(self) -> None:
        """The MTA went before it had its final replies: it will send again what was delivered (AF-39)."""
        for route in self._routes.values():
            if route.final is not None and route.final.is_positive:
                self._services.emit(
                    FinalReplyLost(
                        id=route.walk.id,
                        domain=route.walk.next_hop.key,
                        mx=route.opened.candidate.host,
                        side="client",
                        reply=route.final.text,
                    )
                )

    async def reset(self) -> None:
        """RSET, a new MAIL or a refused DATA: hosts that were told MAIL are told RSET and may serve again."""
        try:
            await _each(self.live, lambda route, _: route.release(None), inf)
        finally:
            self.close()

    def close(self) -> None:
        """Drop every open host without a dot (SMTP-17); never raises, never waits."""
        for route in self._routes.values():
            if route.live:
                route.final = reply_of(Reason(ReasonCode.INTERNAL, ""), route.walk.id)
                route.drop()

    def _own(self, code: ReasonCode, subject: str, recipients: int = 1) -> Reply:
        self.decisions += 1
        id_ = f"{self._session}.{self.decisions}"
        reply = reply_of(Reason(code, subject), id_)
        self._services.emit(
            DeliveryRefused(
                id=id_,
                domain=printable(subject),
                reason=code.token,
                reply=reply_line(reply),
                stage="rcpt",
                recipients=recipients,
            )
        )
        return reply

    def _refuse(self, group: Sequence[Addressee], code: ReasonCode, subject: str) -> None:
        reply = self._own(code, subject, len(group))
        for addressee in group:
            addressee.reply = reply


async def _each(routes: Sequence[Route], step: Callable[[Route, float], Awaitable[None]], deadline: float) -> None:
    """`step` for every route, side by side."""
    if len(routes) == 1:
        await step(routes[0], deadline)
        return
    async with trio.open_nursery() as nursery:
        for route in routes:
            nursery.start_soon(step, route, deadline)
