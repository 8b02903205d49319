"""What of the client's commands goes to the MTA, in which words, and whose reply does each get?

RFC 5321 §4.1, RFC 2920 §3 (a group goes as a group; replies are matched by counting), RFC 4954 §5, RFC 6710.
No I/O: `request` says what to send for a group, `take` deals the MTA's replies out, `lost` what is left when the MTA
is gone.  A command that policy refuses is never sent; one that cannot be in order is not sent either, the dialogue
answers it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.commands import Auth, Bdat, Command, Data, Ehlo, Helo, Mail, Rcpt, Rset
from smtpguard.smtp.extensions import Offer
from smtpguard.smtp.replies import Reply, reply_of
from smtpguard.smtp.server import Slot
from smtpguard.smtp.syntax import Params, encode_param

MTA_LOST = Reply.of(451, "4.4.2", "The mail server was lost")
MTA_GONE = Reply.of(421, "4.4.2", "The mail server was lost, closing")
"""OUT-09: what the command hears during which the MTA was lost, and what the next one hears."""

NO_MIX = Reply.of(503, "5.5.1", "BDAT and DATA do not mix")
NO_RECIPIENTS = Reply.of(554, "5.5.1", "no valid recipients")


@dataclass(frozen=True, slots=True)
class Owed:
    """One line sent to the MTA: which slot its reply belongs to, and whether the client hears it.

    `relayed` False: the slot has our own reply (RSET, EHLO), the MTA is only kept in step.
    """

    slot: Slot
    relayed: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """What one group asks of the MTA: `lines` without CRLF, and for each what is owed.

    `last` is the command that ends the group in another mode, DATA apart, which is a line like others: BDAT or AUTH,
    to be carried out once the replies are taken.
    """

    lines: tuple[bytes, ...] = ()
    owed: tuple[Owed, ...] = ()
    last: Slot | None = None

    @property
    def needs_mta(self) -> bool:
        """Must the MTA be connected for this?  RSET and EHLO alone need nobody."""
        return self.last is not None or any(owed.relayed for owed in self.owed)


class Relay:
    """The state of one relayed dialogue: what stands at the MTA.

    `judge` is policy: the refusal of a command that may not pass, given the MAIL in force, or None.  `broken` is set
    when the MTA's replies make no sense any more or a message must not be completed: the connection to it is to be
    closed, never ended properly.  `chunked`: a chunk of this transaction went, so DATA must not (RFC 3030 §2).
    """

    __slots__ = ("_judge", "_offer", "authenticated", "broken", "chunked", "mail", "rcpts")

    def __init__(self, judge: Callable[[Command, Mail | None], Reply | None], offer: Offer) -> None:
        self._judge = judge
        self._offer = offer
        self.authenticated = False
        self.broken = False
        self.chunked = False
        self.mail: Mail | None = None
        """The MAIL that stands at the MTA."""
        self.rcpts: list[Rcpt] = []
        """The recipients the MTA accepted for it."""

    @property
    def in_transaction(self) -> bool:
        """A MAIL stands at the MTA."""
        return self.mail is not None

    def forget(self) -> None:
        """The MTA's side is new: a fresh connection, or none."""
        self.broken = False
        self.end_transaction()
        self.authenticated = False

    def end_transaction(self) -> None:
        """The content was answered, or the transaction given up."""
        self.mail = None
        self.rcpts = []
        self.chunked = False

    # -- what to send

    def request(self, group: Sequence[Slot], *, connected: bool) -> Request:
        """What `group` asks of the MTA.  Slots that policy refuses are answered here.

        `connected`: there is a connection to it now, which RSET and EHLO must be told of.
        """
        lines: list[bytes] = []
        owed: list[Owed] = []
        last: Slot | None = None
        mail, recipients = self.mail, len(self.rcpts)
        for slot in group:
            command = slot.command
            if slot.reply is not None:
                if slot.reply.is_positive and isinstance(command, Rset | Ehlo | Helo):
                    if connected and not isinstance(command, Rset):
                        lines.append(hello_line(command))
                        owed.append(Owed(slot, relayed=False))
                    elif mail is not None:
                        lines.append(b"RSET")
                        owed.append(Owed(slot, relayed=False))
                    mail, recipients = None, 0
                continue
            slot.reply = self._judge(command, mail)
            if slot.reply is not None:
                continue
            match command:
                case Mail():
                    lines.append(mail_line(command, self._offer, authenticated=self.authenticated))
                    mail, recipients = command, 0
                case Rcpt():
                    if mail is None:
                        continue  # its MAIL was refused here: the dialogue answers
                    lines.append(rcpt_line(command))
                    recipients += 1
                case Data():
                    if self.chunked and mail is self.mail:
                        slot.reply = NO_MIX
                        continue
                    if not recipients:
                        continue
                    lines.append(b"DATA")
                case Auth() | Bdat():
                    last = slot
                    continue
                case _:
                    continue
            owed.append(Owed(slot))
        return Request(tuple(lines), tuple(owed), last)

    # -- what came back

    def take(self, request: Request, replies: Sequence[Reply]) -> None:
        """Deal out the replies to `request`, one for each line, in order."""
        for owed, reply in zip(request.owed, replies, strict=True):
            if reply.code == 421:  # the MTA closes: relayed, and then we do (CH-20)
                self.broken = True
                owed.slot.reply = reply
                owed.slot.closes = True
                self.end_transaction()
                return
            self._take(owed, reply)

    def _take(self, owed: Owed, reply: Reply) -> None:
        slot, command = owed.slot, owed.slot.command
        match command:
            case Mail():
                slot.reply = reply = self._two_to_five(reply)
                if reply.is_positive:
                    self.mail, self.rcpts, self.chunked = command, [], False
                else:
                    self.end_transaction()
            case Rcpt():
                slot.reply = reply = self._two_to_five(reply)
                if reply.is_positive and self.mail is not None:
                    self.rcpts.append(command)
            case Data():
                slot.reply = self._go_ahead(reply)
            case Rset() | Ehlo() | Helo():
                self.end_transaction()
                if isinstance(command, Rset):
                    self.broken = self.broken or not reply.is_positive
                elif not reply.is_positive:
                    slot.reply = self._two_to_five(reply)

    def _two_to_five(self, reply: Reply) -> Reply:
        """`reply`, unless it is a 3yz where none can be (RFC 5321 §4.2.1)."""
        return reply if reply.severity != 3 else self._protocol_error(f"{reply.code} where none belongs")

    def _go_ahead(self, reply: Reply) -> Reply:
        if reply.is_positive or (reply.severity == 3 and reply.code != 354):
            return self._protocol_error(f"{reply.code} in answer to DATA")  # SMTP-15: no go-ahead
        if reply.code == 354 and self.broken:
            return MTA_LOST  # given up for what it said before, and so without content
        if reply.code == 354 and not self.rcpts:
            self.broken = True  # nobody to send to, and the MTA waits for content (EXT-21, 22)
            return NO_RECIPIENTS
        return reply

    def _protocol_error(self, detail: str) -> Reply:
        self.broken = True
        return reply_of(Reason(ReasonCode.PROTOCOL_ERROR, "", detail), "")

    def lost(self, request: Request, answered: int) -> None:
        """The MTA was lost after it had answered `answered` lines of `request`: the command it was lost in hears
        451, what comes behind it 421 (OUT-09)."""
        self.broken = True
        told = False
        for owed in request.owed[answered:]:
            if told:
                owed.slot.reply = MTA_GONE
                owed.slot.closes = True
            elif owed.relayed:
                owed.slot.reply = MTA_LOST
                told = True
        if request.last is not None:
            request.last.reply = MTA_GONE if told else MTA_LOST
            request.last.closes = told
        self.end_transaction()


def hello_line(command: Ehlo | Helo) -> bytes:
    """The greeting of the client as it gave it."""
    return (b"EHLO " if isinstance(command, Ehlo) else b"HELO ") + command.name


def mail_line(mail: Mail, offer: Offer, *, authenticated: bool) -> bytes:
    """MAIL with its parameters octet by octet, but what only a trusted client may say (AUTH-05, EXT-13)."""
    return b"MAIL FROM:<%b>%b" % (mail.path.text, _params(_trusted(mail.params, authenticated=authenticated)))


def rcpt_line(rcpt: Rcpt) -> bytes:
    """RCPT with its parameters octet by octet."""
    return b"RCPT TO:<%b>%b" % (rcpt.path.text, _params(rcpt.params))


def _params(params: Params) -> bytes:
    return b"".join(b" " + encode_param(keyword, value) for keyword, value in params)


def _trusted(params: Params, *, authenticated: bool) -> Params:
    """Without AUTH= and raised priorities where the client has not authenticated (RFC 4954 §5, RFC 6710 §4)."""
    if authenticated:
        return params
    return tuple(
        (keyword, "0" if keyword == "MT-PRIORITY" and not (value or "").startswith("-") else value)
        for keyword, value in params
        if keyword != "AUTH"
    )
