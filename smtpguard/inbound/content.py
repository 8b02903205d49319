"""How does a message get from the client to the MTA?  DATA and BDAT, streamed, and answered by the MTA.

RFC 5321 §4.1.1.4, RFC 3030; CONFORMANCE DATA-01..12, EXT-07, AF-38, AF-42, AF-44..47.  The MTA's reply goes to the
client unchanged.  Where the client disappears, breaks the rules or is too slow, the connection to the MTA is closed
without the end of data; where the MTA is lost, the client is still read to its true end, so that both stay in step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from smtpguard.clock import Clock
from smtpguard.inbound.exchange import LOST, Exchange
from smtpguard.inbound.limits import Limits, Times
from smtpguard.inbound.relay import MTA_LOST
from smtpguard.inbound.upstream import Step
from smtpguard.net.wire import TURN_OCTETS, Wire, WireLost
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.body import TERMINATOR, BareNewlines, BodyReader
from smtpguard.smtp.commands import Bdat
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply, reply_of
from smtpguard.smtp.server import ServerDialogue

_CHUNK_REFUSED = Reply.of(503, "5.5.1", "a chunk before was refused: send RSET")
_TOO_BIG = ReasonCode.TOO_BIG


@dataclass(slots=True)
class Told:
    """How a message or chunk ended: what the client hears, and what events need to know.

    `lost`: the MTA was lost after the end of data, so nobody knows whether it took the message.
    """

    reply: Reply
    octets: int
    fault: ReasonCode | None = None
    normalized: int = 0
    lost: bool = False


class Pace:
    """How long the client may be silent in one message: each wait `command` seconds, and all of them together as long
    as what it has brought needs at `octets_per_second`, after that grace (slowloris, AF-45)."""

    __slots__ = ("_clock", "_grace", "_octets", "_rate", "_waited")

    def __init__(self, clock: Clock, times: Times, limits: Limits) -> None:
        self._clock = clock
        self._grace = times.command
        self._rate = limits.octets_per_second
        self._waited = 0.0
        self._octets = 0

    def brought(self, octets: int) -> None:
        """So much of the content has come."""
        self._octets += octets

    @contextmanager
    def waiting(self, wire: Wire) -> Iterator[None]:
        """The client is waited for inside, for as long as it may still be silent."""
        began = self._clock.monotonic()
        left = self._grace + self._octets / self._rate - self._waited
        wire.deadline = began + min(self._grace, max(left, 0.0))
        yield
        wire.deadline = inf
        self._waited += self._clock.monotonic() - began

    async def receive(self, wire: Wire) -> bytes:
        """The next octets of the content.  Raises WireLost where the client is gone, Interrupted where it is slow."""
        with self.waiting(wire):
            octets = await wire.receive(TURN_OCTETS)
        if not octets:
            raise WireLost("the client closed the connection inside the message")
        return octets


async def relay_data(
    exchange: Exchange,
    wire: Wire,
    dialogue: ServerDialogue,
    *,
    received: bytes,
    bare_newlines: BareNewlines,
    max_octets: int,
    times: Times,
    limits: Limits,
    clock: Clock,
) -> Told:
    """The content after a 354, `received` put before it, and what the client hears.

    The dialogue gets back what came behind the end.  Raises WireLost and Interrupted for the client's side; the caller
    then abandons the exchange.
    """
    reader = BodyReader(bare_newlines=bare_newlines, max_octets=max_octets or None)
    pace = Pace(clock, times, limits)
    flow = _Flow(exchange, times)
    exchange.busy = True
    octets = dialogue.take_rest()
    before = received
    while True:
        pace.brought(len(octets))
        spans = reader.feed(octets)
        if reader.ended:
            break
        if spans and reader.fault is None:
            await flow.send(before, spans)
            before = b""
        octets = await pace.receive(wire)
    dialogue.receive(reader.rest)
    told = Told(MTA_LOST, reader.octets, reader.fault, reader.normalized)
    if reader.fault is not None:
        exchange.abandon()
        told.reply = reply_of(Reason(reader.fault, ""), "")
        return told
    await flow.end(before, spans, told)
    exchange.busy = False
    return told


class _Flow:
    """The octets on their way to the MTA, for as long as it takes them."""

    __slots__ = ("_exchange", "_times", "lost", "refusal")

    def __init__(self, exchange: Exchange, times: Times) -> None:
        self._exchange = exchange
        self._times = times
        self.refusal: Reply | None = None
        self.lost = False

    async def send(self, before: bytes, spans: list[bytes]) -> None:
        """Send on; a lost MTA takes nothing more, and its last words are kept."""
        if self.lost:
            return
        link = self._exchange.link
        assert link is not None
        self._exchange.expect(self._times.mta_content)
        try:
            await link.send(b"".join((before, *spans)) if before or len(spans) > 1 else spans[0])
        except LOST as lost:
            self._give_up(str(lost))
        else:
            link.wire.deadline = float("inf")

    async def end(self, before: bytes, spans: list[bytes], told: Told) -> None:
        """The last octets and the end of data in one write, and the MTA's verdict."""
        link = self._exchange.link
        if self.lost or link is None:
            told.reply = self.refusal or MTA_LOST
            return
        self._exchange.expect(self._times.mta_end_of_data)
        try:
            await link.end_of_data(b"".join((before, *spans, TERMINATOR)))
        except LOST as lost:
            self._give_up(str(lost))
            told.reply = self.refusal or MTA_LOST
            return
        await _verdict(self._exchange, told)

    def _give_up(self, detail: str) -> None:
        self.lost = True
        link = self._exchange.link
        assert link is not None
        reply = link.late_reply()
        if reply is not None and reply.severity in (4, 5):
            self.refusal = reply
        self._exchange.lost(Step.LOST, detail)


async def _verdict(exchange: Exchange, told: Told) -> None:
    """The MTA's reply to the end of data, or of a chunk; unchanged to the client (INV-08)."""
    link = exchange.link
    assert link is not None
    try:
        reply = await link.reply()
        if reply.severity == 3:
            raise RemoteProtocolError(f"{reply.code} where none belongs")
    except RemoteProtocolError as error:
        exchange.lost(Step.PROTOCOL, str(error))
        told.reply = reply_of(Reason(ReasonCode.PROTOCOL_ERROR, "", str(error)), "")
        told.lost = True
        return
    except LOST as lost:
        exchange.lost(Step.LOST, str(lost))
        told.reply = MTA_LOST
        told.lost = True
        return
    told.reply = reply
    link.wire.deadline = float("inf")


class Chunks:
    """The message of one transaction that comes by BDAT (RFC 3030 §2).

    Octets are counted, never searched: what looks like an end of data inside a chunk is content.  After a chunk that
    failed every further one is read and refused until RSET.  `pace` is that of the message: the waits for the next BDAT
    count as those inside a chunk.
    """

    __slots__ = ("_limit", "_received", "failed", "octets", "pace", "started")

    def __init__(self, received: bytes, max_octets: int, pace: Pace) -> None:
        self._received = received
        self._limit = max_octets
        self.pace = pace
        self.started = False
        self.failed = False
        self.octets = 0

    async def relay(
        self,
        bdat: Bdat,
        refusal: Reply | None,
        exchange: Exchange,
        wire: Wire,
        dialogue: ServerDialogue,
        times: Times,
    ) -> Told:
        """One chunk.  `refusal`: it is not wanted, only read past.  Raises WireLost, Interrupted (client's side)."""
        self.octets += bdat.size
        if refusal is None and self.failed:
            refusal = _CHUNK_REFUSED
        if refusal is None and 0 < self._limit < self.octets:
            refusal = reply_of(Reason(_TOO_BIG, ""), "")
            exchange.relay.chunked = True  # DATA must not complete what lacks this chunk
        told = Told(refusal or MTA_LOST, self.octets, _TOO_BIG if refusal and refusal.code == 552 else None)
        flow = _Flow(exchange, times)
        before = b""
        if refusal is None:
            before = b"BDAT %d%s\r\n" % (
                bdat.size + (0 if self.started else len(self._received)),
                b" LAST" if bdat.last else b"",
            ) + (b"" if self.started else self._received)
            self.started = exchange.relay.chunked = True
            link = exchange.link
            if link is None:
                flow.lost = True
            else:
                link.expect_reply()
                exchange.busy = True
        left = bdat.size
        octets = dialogue.take_rest()
        while True:
            part, rest = octets[:left], octets[left:]
            left -= len(part)
            self.pace.brought(len(part))
            if refusal is None and (before or part):
                await flow.send(before, [part] if part else [])
                before = b""
            if not left:
                break
            octets = await self.pace.receive(wire)
        dialogue.receive(rest)
        if refusal is None:
            if flow.lost:
                told.reply = flow.refusal or MTA_LOST
            else:
                exchange.expect(times.mta_end_of_data)
                await _verdict(exchange, told)
        exchange.busy = False
        self.failed = self.failed or not told.reply.is_positive
        return told
