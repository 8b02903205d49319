"""How is one client's dialogue carried on with the MTA?  Opened late, in step with the client, and given up safely.

DESIGN §3; CONFORMANCE AF-41, AF-42, OUT-09, STLS-05.  Whatever happens to the MTA becomes replies in the client's
slots: nothing here raises but Cancelled, and no message is ever completed that the client did not complete.
"""

from collections.abc import Awaitable, Callable

from smtpguard.clock import Clock
from smtpguard.inbound.limits import Times
from smtpguard.inbound.profile import NOT_READY, REFUSED_IDENTITY
from smtpguard.inbound.relay import Relay, Request
from smtpguard.inbound.upstream import MtaConnector, MtaFailed, MtaOpened, Step
from smtpguard.net.link import ClientLink
from smtpguard.net.wire import Interrupted, WireLost
from smtpguard.smtp.commands import Data
from smtpguard.smtp.forwarded import ClientIdentity
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply

LOST = (WireLost, Interrupted, RemoteProtocolError)
"""How the MTA's side ends of itself: each means that the connection to it is of no use."""


class Exchange:
    """One client's side at the MTA: at most one connection, and what stands there is in `relay`.

    `who` tells the client's identity when a connection is opened in its name; `failed` hears of every failure to, and
    the MTA's own refusal, where it gave one.
    `hostname` is what the MTA hears in EHLO from a client that has not said its own yet.
    """

    def __init__(
        self,
        relay: Relay,
        connector: MtaConnector,
        who: Callable[[], Awaitable[ClientIdentity]],
        failed: Callable[[Step, str, Reply | None], None],
        hostname: str,
        times: Times,
        clock: Clock,
    ) -> None:
        self.relay = relay
        self.link: ClientLink | None = None
        self.busy = False
        """The MTA reads content or waits for a response: QUIT would be taken for a part of it."""
        self.gone = False
        """The MTA was lost with something of this client: the session cannot go on (OUT-09)."""
        self._connector = connector
        self._who = who
        self._failed = failed
        self._hostname = hostname
        self._times = times
        self._clock = clock

    async def open(self) -> MtaOpened | MtaFailed:
        """Connect, in the client's name."""
        client = await self._who()
        opened = await self._connector.open(
            client, client.helo or self._hostname.encode(), extended=client.extended or not client.helo
        )
        if isinstance(opened, MtaFailed):
            self._failed(opened.step, opened.detail, opened.reply)
        else:
            self.link = opened.link
            self.relay.forget()
        return opened

    async def ask(self, request: Request) -> None:
        """Send what `request` holds and deal out the replies; opens the connection where one is needed."""
        if self.link is not None and self._is_stale():
            self.abandon()
        if self.link is None:
            if not request.needs_mta:
                return
            opened = await self.open()
            if isinstance(opened, MtaFailed):
                self._refuse(request, opened)
                return
        link = self.link
        assert link is not None
        count = len(request.lines)
        if link.extensions.has("PIPELINING"):
            await self._converse(link, request, 0, count)
        else:
            for index in range(count):
                if isinstance(request.owed[index].slot.command, Data) and not self.relay.rcpts:
                    break  # nobody was accepted: the dialogue says so
                await self._converse(link, request, index, index + 1)
                if self.gone:
                    break
                if self.relay.broken:
                    self.relay.lost(request, index + 1)  # given up, with what was still to be asked
                    break
        if self.relay.broken:
            self.gone = self.gone or self.relay.in_transaction  # of which the client knows
            self.abandon()

    async def _converse(self, link: ClientLink, request: Request, start: int, stop: int) -> None:
        """One write, of these lines of `request`, and their replies."""
        if start == stop:
            return
        lines, owed = request.lines[start:stop], request.owed[start:stop]
        has_data = isinstance(owed[-1].slot.command, Data)
        self.expect(self._times.mta_data if has_data else self._times.mta_reply)
        replies: list[Reply] = []
        lost = ""
        try:
            await link.request(lines)
            for _ in lines:
                replies.append(await link.reply())
                if replies[-1].code == 421:
                    break
        except LOST as error:
            lost = str(error) or type(error).__name__
        heard = len(replies)
        self.relay.take(Request(lines[:heard], owed[:heard]), replies)
        if lost:
            self.relay.lost(request, start + heard)
            self.gone = True
            self._failed(Step.LOST, lost, None)
        link.wire.deadline = float("inf")

    def expect(self, seconds: float) -> None:
        """The MTA may take this long from now."""
        assert self.link is not None
        self.link.wire.deadline = self._clock.monotonic() + seconds

    def _is_stale(self) -> bool:
        """Has an MTA that holds nothing of this client ended an idle connection?  Then a new one does as well."""
        assert self.link is not None
        return not self.relay.in_transaction and not self.relay.authenticated and not self.link.wire.is_alive()

    def _refuse(self, request: Request, failed: MtaFailed) -> None:
        """The command that needed the MTA hears why there is none; the dialogue answers what is behind it."""
        slot = next((owed.slot for owed in request.owed if owed.relayed), request.last)
        assert slot is not None
        if failed.reply is not None and failed.step in (Step.GREETING, Step.EHLO) and failed.reply.severity in (4, 5):
            slot.reply = failed.reply  # SMTP-03: as the MTA said it
        else:
            slot.reply = REFUSED_IDENTITY if failed.step is Step.XCLIENT else NOT_READY
        slot.closes = slot.reply.code == 421

    def lost(self, step: Step, detail: str) -> None:
        """The MTA was lost inside a message: give it up, and tell."""
        self._failed(step, detail, None)
        self.gone = True
        self.abandon()

    # -- the end

    def finish(self) -> None:
        """The client is done, or begins anew: QUIT, if nothing is under way there, and close."""
        if self.link is None:
            return
        if not self.relay.broken and not self.busy:
            self.link.quit()
        self.abandon()

    def abandon(self) -> None:
        """Close without another word: a message that was begun is not completed (INV-02)."""
        link, self.link = self.link, None
        if link is not None:
            self._connector.close(link.wire)
        self.gone = self.gone or self.relay.authenticated  # nobody else can authenticate for the client
        self.busy = False
        self.relay.forget()
