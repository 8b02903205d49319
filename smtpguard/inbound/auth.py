"""How does a client authenticate to the MTA through us?  Challenges and responses, one to one.

RFC 4954 §4 (AUTH-01..04).  The secrets pass, in TLS only, and are neither kept nor logged.
"""

import re

from smtpguard.clock import Clock
from smtpguard.inbound.exchange import LOST, Exchange
from smtpguard.inbound.limits import Times
from smtpguard.inbound.relay import MTA_LOST
from smtpguard.inbound.upstream import Step
from smtpguard.net.wire import Wire, WireLost
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.commands import Auth
from smtpguard.smtp.framing import LineFault, LineReader
from smtpguard.smtp.replies import Reply, reply_of
from smtpguard.smtp.server import ServerDialogue

MAX_LINE = 12288
"""Octets of one response, CRLF included (RFC 4954 §4)."""
_MAX_ROUNDS = 20

_CANCEL = b"*"
_BASE64 = re.compile(rb"=|[A-Za-z0-9+/]*={0,2}")
_NOT_BASE64 = Reply.of(501, "5.5.2", "the response is not base64")
_TOO_LONG = Reply.of(500, "5.5.6", "the response is too long")


async def relay_auth(
    auth: Auth, exchange: Exchange, wire: Wire, dialogue: ServerDialogue, times: Times, clock: Clock
) -> Reply:
    """The MTA's last word on this AUTH.  Raises WireLost, Interrupted for the client's side."""
    link = exchange.link
    if link is None:
        return MTA_LOST
    line = b"AUTH " + auth.mechanism.encode("ascii") + (b" " + auth.initial if auth.initial is not None else b"")
    reader = LineReader(MAX_LINE)
    reader.feed(dialogue.take_rest())
    refusal: Reply | None = None
    try:
        for _ in range(_MAX_ROUNDS):
            exchange.expect(times.mta_reply)
            try:
                (reply,) = await link.exchange([line])
            except LOST as lost:
                exchange.lost(Step.LOST, str(lost))
                return MTA_LOST
            link.wire.deadline = float("inf")
            if reply.severity != 3:
                exchange.relay.authenticated = reply.is_positive and refusal is None
                return refusal or reply
            if reply.code != 334 or refusal is not None:
                break
            exchange.busy = True
            wire.deadline = clock.monotonic() + times.command  # for the challenge and the response to it
            await wire.send(reply.encode())
            line = await _response(reader, wire)
            wire.deadline = float("inf")
            exchange.busy = False
            if line != _CANCEL and not _BASE64.fullmatch(line):
                refusal = _TOO_LONG if line == b"\0" else _NOT_BASE64
                line = _CANCEL  # the MTA gives up as well, and stays in step
    finally:
        dialogue.receive(reader.take_rest())
    exchange.lost(Step.PROTOCOL, "AUTH does not end")
    return reply_of(Reason(ReasonCode.PROTOCOL_ERROR, "", "AUTH does not end"), "")


async def _response(reader: LineReader, wire: Wire) -> bytes:
    """One line of the client; NUL for one that is too long or no line."""
    while (line := reader.next_line()) is None:
        octets = await wire.receive()
        if not octets:
            raise WireLost("the client closed the connection inside AUTH")
        reader.feed(octets)
    return b"\0" if isinstance(line, LineFault) else line
