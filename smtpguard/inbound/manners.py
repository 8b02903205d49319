"""Does the client know its manners?  Errors, and commands without a message.  Pure.

RFC 4954 §4 (AUTH-03, 06); OUT-21, AF-43, AF-56.  Runs over each group
before anything of it goes to the MTA; a session that passes a limit hears 421 at that very command, and nothing behind
it is looked at.  Every command but those that bring a message on counts towards a limit, so that none can be repeated
without end: errors once for the session; what is empty, or was refused by whomever, until a message is answered.
"""

from smtpguard.inbound.limits import Limits
from smtpguard.smtp.commands import (
    Auth,
    BadCommand,
    Bdat,
    Data,
    Ehlo,
    Expn,
    Helo,
    Help,
    Mail,
    Noop,
    Other,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Vrfy,
)
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import Slot

TOO_MANY_ERRORS = Reply.of(421, "4.7.0", "Too many errors, closing")
TOO_MANY_COMMANDS = Reply.of(421, "4.7.0", "Too many commands without a message, closing")
AUTHENTICATED_ALREADY = Reply.of(503, "5.5.1", "You are authenticated already")

_IDLE = Noop | Rset | Vrfy | Expn | Help | Ehlo | Helo
_OF_A_MESSAGE = Rcpt | Data | Bdat
_MANY = Rcpt | Bdat
_MANY_ARE_ONE = 100
"""So many refused RCPTs or chunks count as one command: a client may name far more recipients than we take (RFC 5321
§4.5.3.1.10), or have sent all chunks before it hears that the first was refused (RFC 3030 §2)."""
_ERROR_CODES = frozenset({500, 501, 502, 503, 504, 530, 550, 555})


class Manners:
    """The counters of one session."""

    __slots__ = ("_errors", "_idle", "_limits", "_many", "excess")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._errors = 0
        self._idle = 0
        self._many = 0  # of refused RCPTs and chunks
        self.excess = ""
        """The limit that ended the session, as the word of events: errors, idle_commands; empty: none."""

    def refused_by_rule(self) -> None:
        """One of the listener's own rules refused a command: that is an error too, seen at the next group."""
        self._errors += 1

    def answered(self, slot: Slot) -> None:
        """A reply was given: a command that was refused, by us or by the MTA, has brought no message on.  Seen at the
        next group."""
        if slot.reply is None or slot.reply.severity < 4 or isinstance(slot.command, _IDLE):
            return
        if isinstance(slot.command, _MANY):
            self._many += 1
            if self._many % _MANY_ARE_ONE:
                return
        self._idle += 1

    def message_done(self) -> None:
        """A message was answered by the MTA: the commands without one begin anew."""
        self._idle = self._many = 0

    def inspect(self, group: list[Slot], *, authenticated: bool) -> list[Slot]:
        """`group` as it is to be carried out, cut behind the command that passes a limit."""
        refused = False  # the MAIL before: what was pipelined behind it is no further mistake
        for index, slot in enumerate(group):
            if authenticated and isinstance(slot.command, Auth):
                slot.reply = AUTHENTICATED_ALREADY
            if isinstance(slot.command, Mail):
                refused = slot.reply is not None
            if self._passes_a_limit(slot, follows=refused and isinstance(slot.command, _OF_A_MESSAGE)):
                return group[: index + 1]
        return group

    def _passes_a_limit(self, slot: Slot, *, follows: bool) -> bool:
        if isinstance(slot.command, _IDLE) or (isinstance(slot.command, Bdat) and not slot.command.size):
            self._idle += 1
        if slot.reply is not None and slot.reply.code in _ERROR_CODES and not follows:
            self._errors += 1
        if isinstance(slot.command, Quit):
            return False
        if self._idle > self._limits.idle_commands:
            return self._end(slot, "idle_commands", TOO_MANY_COMMANDS)
        if self._errors > self._limits.errors:
            return self._end(slot, "errors", TOO_MANY_ERRORS)
        return False

    def _end(self, slot: Slot, excess: str, reply: Reply) -> bool:
        self.excess = excess
        slot.reply = reply
        slot.starts_tls = False
        slot.closes = True
        return True


def violation_of(slot: Slot) -> str:
    """What a refused command broke, as the word of events; empty where it is an ordinary mistake."""
    match slot.command, slot.reply:
        case BadCommand(fault=fault), _ if fault is not None:
            return fault.value
        case StartTls(), Reply(code=554):
            return "starttls_injection"
        case Auth(), Reply(code=530):
            return "auth_clear"
        case Other(verb="XCLIENT"), Reply(code=550):
            return "xclient"
        case _ if slot.closes and slot.reply is not None and slot.reply.code == 554:
            return "early_talker"
    return ""
