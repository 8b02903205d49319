"""What may the client say now, and what does it hear?  The server role of SMTP and LMTP; LHLO is a parameter.

RFC 5321 §4.1.4 (order), RFC 2920 §3.2 (groups), RFC 2033 §4 (LMTP), RFC 3207 §4 (STARTTLS).  No I/O.

Octets go in by `receive`; `next_group` cuts them into commands, each a `Slot` that waits for exactly one
reply.  What the dialogue can answer it has answered; MAIL, RCPT, DATA (AUTH, BDAT) in order come open, and
the caller answers them.  `settle` takes the slots in order, all at once or the DATA alone behind the rest,
and gives the octets to write.

    hello expected --EHLO--> ready --MAIL--> transaction --DATA, 354--> content --end_transaction--> ready
          ^                  |   ^                |
          +-- tls_started -- STARTTLS             |
                                 +-- RSET, EHLO --+

Order inside a group is judged as if every open slot before were accepted; `settle` judges again by what was.
The dialogue counts no errors and ends no session for them: that is the caller's (SMTP-09).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import assert_never

from smtpguard.smtp.commands import (
    Auth,
    BadCommand,
    Bdat,
    Command,
    Data,
    Ehlo,
    Expn,
    Helo,
    Help,
    Lhlo,
    Mail,
    Noop,
    Other,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Vrfy,
    parse_command,
)
from smtpguard.smtp.extensions import Offer
from smtpguard.smtp.framing import LineFault, LineFaultKind, LineReader, LocalProtocolError
from smtpguard.smtp.order import Progress, Terms, out_of_order, unacceptable
from smtpguard.smtp.replies import Reply

MAX_COMMAND_OCTETS = 12288 + 512
"""Octets of a command line: the longest AUTH line (RFC 4954 §4); RFC 5321 and 3461 ask for less (SMTP-20)."""

MAX_GROUP = 128
"""Commands of one group; what else is buffered stays for the next."""


@dataclass(slots=True)
class Slot:
    """One command waiting for its one reply.

    `closes`: after this reply the connection ends.  `starts_tls`: after this reply, a 220, comes the
    handshake.
    """

    command: Command
    reply: Reply | None = None
    closes: bool = False
    starts_tls: bool = False


class _Phase(Enum):
    COMMANDS = auto()
    CONTENT = auto()  # after 354: octets are the body reader's
    HANDSHAKE = auto()  # after the 220 to STARTTLS: no octet in clear means anything
    CLOSED = auto()


# RFC 2920 §3.1: after these the client waits, so their replies are not held back (EXT-23)
_ENDS_GROUP = Ehlo | Helo | Lhlo | Data | Bdat | Quit | StartTls | Auth | Vrfy | Expn | Noop | Help | Other

_KNOWN_NOT_IMPLEMENTED = frozenset({"ETRN", "ATRN", "TURN", "SEND", "SOML", "SAML"})


class ServerDialogue:
    """One dialogue with a client.

    `client_name` is what it last called itself, `greeted` whether it did, `in_transaction` whether a MAIL
    stands, `tls_active` whether the handshake is done.  The caller may set `tls_unavailable` while it can
    start no TLS (454).
    """

    __slots__ = (
        "_early",
        "_held",
        "_hostname",
        "_issued",
        "_lmtp",
        "_offer",
        "_phase",
        "_progress",
        "_reader",
        "_reject_early",
        "client_name",
        "tls_active",
        "tls_unavailable",
    )

    def __init__(
        self,
        *,
        hostname: str,
        lmtp: bool,
        offer: Offer,
        max_command_octets: int = MAX_COMMAND_OCTETS,
        tls_active: bool = False,
        reject_early_talkers: bool = True,
    ) -> None:
        self.client_name = b""
        self.tls_active = tls_active
        self.tls_unavailable = False
        self._hostname = hostname
        self._lmtp = lmtp
        self._offer = offer
        self._reject_early = reject_early_talkers
        self._reader = LineReader(max_command_octets)
        self._phase = _Phase.COMMANDS
        self._progress = Progress()
        self._issued: deque[Slot] = deque()
        self._held: bytes | LineFault | None = None
        self._early = False

    @property
    def greeted(self) -> bool:
        """EHLO, HELO or LHLO was accepted, since TLS started if it did."""
        return self._progress.greeted

    @property
    def extended(self) -> bool:
        """The client said EHLO or LHLO, not HELO: the Received line says ESMTP."""
        return self._progress.extended

    @property
    def in_transaction(self) -> bool:
        """A MAIL was accepted and nothing has ended its transaction."""
        return self._progress.in_transaction

    @property
    def recipients(self) -> int:
        """RCPTs accepted in this transaction."""
        return self._progress.recipients

    @property
    def pending(self) -> bool:
        """Octets have come in that no slot has used."""
        return self._held is not None or self._reader.pending

    def greeting(self) -> Reply:
        """The 220; a client that talked before it hears 554 at its first command (EXT-24)."""
        self._early = self._reject_early and self.pending
        return Reply.of(220, "", f"{self._hostname} {'LMTP' if self._lmtp else 'ESMTP'}")

    def receive(self, octets: bytes) -> None:
        """Octets came in from the client; behind a closing reply they are dropped."""
        if self._phase is not _Phase.CLOSED:
            self._reader.feed(octets)

    def next_group(self) -> list[Slot]:
        """Every complete command received, at most MAX_GROUP, ending after one that synchronises, and before a MAIL
        that stands on the outcome of another; [] if none.

        The slots before must be settled, content read to its end and a handshake done: LocalProtocolError.
        """
        if self._issued or self._phase in {_Phase.CONTENT, _Phase.HANDSHAKE}:
            raise LocalProtocolError("the next commands are not due yet")
        group: list[Slot] = []
        ahead = self._progress
        while len(group) < MAX_GROUP and self._phase is _Phase.COMMANDS:
            line, self._held = self._held or self._reader.next_line(), None
            if line is None:
                break
            slot = self._slot(line, ahead)
            open_mail = any(isinstance(one.command, Mail) and one.reply is None for one in group)
            if isinstance(slot.command, Mail) and ahead.in_transaction and open_mail:
                self._held = line  # whether this one is nested depends on what the one before hears
                break
            group.append(slot)
            if slot.closes or isinstance(slot.command, _ENDS_GROUP):
                break
            if slot.reply is None or slot.reply.is_positive:
                ahead = ahead.after(slot.command)
        self._issued.extend(group)
        return group

    def settle(self, slots: Iterable[Slot]) -> bytes:
        """The octets to write for these slots, the next ones due, in order; nothing is written behind a
        closing reply.

        A slot still open that what happened before rules out (RCPT after a refused MAIL, DATA without a
        recipient) is answered here.  LocalProtocolError: slots out of order, or one without a reply.
        """
        octets = []
        for slot in slots:
            if not self._issued or self._issued[0] is not slot:
                raise LocalProtocolError("slots are settled once, in order")
            self.recheck(slot)
            if slot.reply is None:
                raise LocalProtocolError(f"no reply to {type(slot.command).__name__}")
            reply = slot.reply
            if slot.starts_tls and self.pending:  # RFC 3207 §6, CVE-2011-0411 (STLS-07, CH-13)
                slot.reply = reply = Reply.of(554, "5.5.0", "octets in clear behind STARTTLS")
                slot.starts_tls, slot.closes = False, True
            self._issued.popleft()
            octets.append(reply.encode())
            self._apply(slot, reply)
            if slot.closes:
                self._phase = _Phase.CLOSED
                self._issued.clear()
                break
        return b"".join(octets)

    def recheck(self, slot: Slot) -> None:
        """Answer an open slot that cannot be carried out, now that those before it are settled; else leave
        it."""
        if slot.reply is None:
            slot.reply = out_of_order(slot.command, self._progress, self._terms())

    def end_transaction(self) -> None:
        """The content was answered, or the transaction given up: MAIL may come."""
        self._progress = self._progress.without_transaction()
        if self._phase is _Phase.CONTENT:
            self._phase = _Phase.COMMANDS

    def take_rest(self) -> bytes:
        """What was received behind the last slot's line: after a 354 (or BDAT) it belongs to the content."""
        return self._reader.take_rest()

    def tls_started(self) -> None:
        """The handshake is done: everything learnt in clear is forgotten, buffered octets too (STLS-04,
        STLS-07)."""
        self._reader.take_rest()
        self._progress = Progress()
        self._issued.clear()
        self.client_name = b""
        self.tls_active = True
        self._phase = _Phase.COMMANDS

    # -- one command

    def _slot(self, line: bytes | LineFault, ahead: Progress) -> Slot:
        if self._early:
            refusal = Reply.of(554, "5.5.0", "the greeting was not awaited")
            return Slot(BadCommand(refusal), refusal, closes=True)
        command = _fault(line) if isinstance(line, LineFault) else parse_command(line)
        slot = Slot(command, self._answer(command, ahead))
        match command:
            case Quit():
                slot.closes = True
            case StartTls() if slot.reply is not None and slot.reply.code == 220:
                slot.starts_tls = True  # unless octets are seen behind it: `settle` judges that
        if self._reject_early and self.pending and _talks_early(slot):
            slot.reply = Reply.of(554, "5.5.0", "octets before the reply they depend on")
            slot.closes = True
        return slot

    def _answer(self, command: Command, ahead: Progress) -> Reply | None:
        """The reply of a command that needs nobody else; None for one in order that is the caller's."""
        refusal = out_of_order(command, ahead, self._terms()) or unacceptable(command, ahead, self._offer)
        if refusal is not None:
            return refusal
        match command:
            case BadCommand(reply):
                return reply
            case Mail() | Rcpt() | Data() | Bdat() | Auth():
                return None
            case Helo():
                return Reply.of(250, "", self._hostname)
            case Ehlo() | Lhlo():
                offered = self._offer.ehlo_lines(lmtp=self._lmtp, tls_active=self.tls_active)
                return Reply.of(250, "", self._hostname, *offered)
            case Rset() | Noop():
                return Reply.of(250, "2.0.0", "Ok")
            case Quit():
                return Reply.of(221, "2.0.0", "Bye")
            case Help():
                return Reply.of(214, "2.0.0", f"smtpguard; see RFC {2033 if self._lmtp else 5321}")
            case Vrfy():
                return Reply.of(252, "2.5.2", "send some mail, and it will be tried")
            case Expn():
                return Reply.of(502, "5.5.1", "EXPN is not implemented")
            case StartTls():
                return Reply.of(220, "2.0.0", "ready to start TLS")
            case Other(verb):
                return _unknown(verb)
        assert_never(command)

    def _terms(self) -> Terms:
        return Terms(self._lmtp, self._offer, self.tls_active, self.tls_unavailable)

    def _apply(self, slot: Slot, reply: Reply) -> None:
        """What this reply, now given, changes."""
        if reply.is_positive:
            self._progress = self._progress.after(slot.command)
        match slot.command:
            case Ehlo(name) | Helo(name) | Lhlo(name) if reply.is_positive:
                self.client_name = name
            case Data() if reply.code == 354:
                self._phase = _Phase.CONTENT
            case StartTls() if slot.starts_tls:
                self._phase = _Phase.HANDSHAKE


def _talks_early(slot: Slot) -> bool:
    """May nothing follow this command before its reply was seen?  (EXT-24)

    Behind DATA not even where it is refused: what follows would be content read as commands.
    """
    if isinstance(slot.command, Data):
        return True
    return isinstance(slot.command, Ehlo | Lhlo) and slot.reply is not None and slot.reply.is_positive


def _unknown(verb: str) -> Reply:
    if verb in _KNOWN_NOT_IMPLEMENTED:
        return Reply.of(502, "5.5.1", f"{verb} is not implemented")
    if verb.startswith("X"):  # XCLIENT, XFORWARD and their like are for listed proxies (EXT-18)
        return Reply.of(550, "5.7.0", f"{verb} is not allowed")
    return Reply.of(500, "5.5.1", "unknown command")


def _fault(fault: LineFault) -> BadCommand:
    match fault.kind:
        case LineFaultKind.LINE_TOO_LONG:
            if fault.head[:5].upper() == b"AUTH ":  # RFC 4954 §4
                return BadCommand(Reply.of(500, "5.5.6", "the AUTH line is too long"), fault.kind)
            return BadCommand(Reply.of(500, "5.5.2", "the line is too long"), fault.kind)
        case LineFaultKind.BARE_NEWLINE:
            return BadCommand(Reply.of(500, "5.5.2", "a bare CR or LF is in the line"), fault.kind)
        case LineFaultKind.NUL:
            return BadCommand(Reply.of(500, "5.5.2", "a NUL is in the line"), fault.kind)
