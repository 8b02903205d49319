"""How does a message of this client pass?  From the go-ahead to the answer, and who is told of it.

RFC 5321 §4.1.1.4, RFC 3030; SMTP-30, INV-08.  `content` moves the octets; here a message gets its decision id, its
trace line and its pace, the client its reply in the turn that learnt it, and everybody else theirs after it.
"""

from collections.abc import Awaitable, Callable

from smtpguard.clock import Clock
from smtpguard.inbound.content import Chunks, Pace, Told, relay_data
from smtpguard.inbound.exchange import Exchange
from smtpguard.inbound.manners import Manners
from smtpguard.inbound.record import Record
from smtpguard.inbound.settings import InboundListener
from smtpguard.names import Domain
from smtpguard.net.wire import Interrupted, Wire, WireLost
from smtpguard.smtp.body import BareNewlines
from smtpguard.smtp.commands import Bdat, Mail, Rcpt
from smtpguard.smtp.server import ServerDialogue, Slot
from smtpguard.smtp.trace import received_from


class Messages:
    """The messages of one session, one after the other.  `say` writes to the client."""

    def __init__(
        self,
        record: Record,
        manners: Manners,
        exchange: Exchange,
        wire: Wire,
        dialogue: ServerDialogue,
        listener: InboundListener,
        hostname: Domain,
        max_octets: int,
        clock: Clock,
        say: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._record = record
        self._manners = manners
        self._exchange = exchange
        self._relay = exchange.relay
        self._wire = wire
        self._dialogue = dialogue
        self._listener = listener
        self._hostname = hostname
        self._max_octets = max_octets
        self._clock = clock
        self._say = say
        self._chunks: Chunks | None = None
        self._chunks_id = ""

    @property
    def under_way(self) -> bool:
        """The client owes more of a message, or of its part in AUTH."""
        return self._chunks is not None or self._exchange.busy

    @property
    def pace(self) -> Pace | None:
        """That of a message whose next chunk is waited for."""
        return self._chunks.pace if self._chunks is not None else None

    def forget_chunks(self) -> None:
        """A new transaction, or none: what comes by BDAT now is another message."""
        self._chunks = None

    async def content(self) -> None:
        """A message after a 354.  Raises WireLost, Interrupted: the session is at its end."""
        mail, rcpts = self._relay.mail, self._relay.rcpts
        assert mail is not None
        began = self._clock.monotonic()
        id_ = self._record.decision()
        told = await relay_data(
            self._exchange,
            self._wire,
            self._dialogue,
            received=self._received(id_, mail, rcpts),
            bare_newlines=self._bare_newlines(),
            max_octets=self._max_octets,
            times=self._listener.times,
            limits=self._listener.limits,
            clock=self._clock,
        )
        await self._answer(told, id_, mail, len(rcpts), began)

    async def chunk(self, slot: Slot, bdat: Bdat) -> None:
        """One BDAT, whether it is wanted or not: its octets are on their way already.  Raises as `content`."""
        self._dialogue.recheck(slot)
        mail, rcpts = self._relay.mail, self._relay.rcpts
        if self._chunks is None:
            self._chunks_id = self._record.decision()
            self._chunks = Chunks(
                self._received(self._chunks_id, mail, rcpts) if mail is not None else b"",
                self._max_octets,
                Pace(self._clock, self._listener.times, self._listener.limits),
            )
        began = self._clock.monotonic()
        refused = slot.reply is not None
        told = await self._chunks.relay(
            bdat, slot.reply, self._exchange, self._wire, self._dialogue, self._listener.times
        )
        slot.reply = told.reply
        slot.closes = told.reply.code == 421
        if not bdat.last:
            await self._say(self._dialogue.settle([slot]))
            return
        self._chunks = None
        if mail is not None and self._exchange.link is not None and not told.reply.is_positive:
            self._exchange.abandon()  # the MTA waits for the RSET of a transaction that has ended here
        if mail is not None and not refused:
            await self._answer(told, self._chunks_id, mail, len(rcpts), began, slot)
            return
        await self._say(self._dialogue.settle([slot]))
        self._dialogue.end_transaction()

    async def _answer(
        self, told: Told, id_: str, mail: Mail, recipients: int, began: float, slot: Slot | None = None
    ) -> None:
        """Tell the client its message's fate, in the turn that learnt it (SMTP-30), then everybody else."""
        self._relay.end_transaction()
        try:
            await self._say(self._dialogue.settle([slot]) if slot is not None else told.reply.encode())
        except (WireLost, Interrupted):
            if told.reply.is_positive:
                self._record.final_reply_lost(id_, mail, told.reply, client=True)
            raise
        finally:
            self._record.message(id_, mail, recipients, told, self._clock.monotonic() - began)
        self._dialogue.end_transaction()
        self._manners.message_done()
        if told.reply.code == 421 and slot is None:
            await self._wire.linger()
            raise WireLost("the MTA closed the session")

    def _received(self, id_: str, mail: Mail, rcpts: list[Rcpt]) -> bytes:
        if not self._listener.received:
            return b""
        return received_from(
            self._record.client,
            by=self._hostname,
            id=id_,
            for_=rcpts[0].path.text.decode("utf-8") if len(rcpts) == 1 else None,
            date=self._clock.now(),
            auth=self._relay.authenticated,
            utf8=mail.needs_smtputf8,
        )

    def _bare_newlines(self) -> BareNewlines:
        address = self._record.client.address
        listed = address is not None and any(address in network for network in self._listener.normalize_from)
        return BareNewlines.NORMALIZE if listed else BareNewlines.REJECT
