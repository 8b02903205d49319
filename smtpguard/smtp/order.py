"""May this command come now, with these parameters?  The table of order, for SMTP and LMTP.

RFC 5321 §4.1.4, RFC 2033 §4, RFC 2920 §3.2(3), RFC 3207 §4, RFC 4954 §4.
A refusal changes nothing (SMTP-06).
"""

from dataclasses import dataclass

from smtpguard.smtp.commands import Auth, Bdat, Command, Data, Ehlo, Helo, Lhlo, Mail, Rcpt, Rset, StartTls
from smtpguard.smtp.extensions import Offer, check_mail_params, check_rcpt_params
from smtpguard.smtp.replies import Reply


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a session stands, by replies given or, inside a group, by replies hoped for."""

    greeted: bool = False
    extended: bool = False
    in_transaction: bool = False
    smtputf8: bool = False
    recipients: int = 0

    def without_transaction(self) -> "Progress":
        """The same session with no MAIL standing."""
        return Progress(self.greeted, self.extended)

    def after(self, command: Command) -> "Progress":
        """Where it stands once `command` was accepted."""
        match command:
            case Ehlo() | Lhlo():  # ends the transaction too: RFC 5321 §4.1.4 (SMTP-05)
                return Progress(greeted=True, extended=True)
            case Helo():
                return Progress(greeted=True)
            case Mail():
                return Progress(self.greeted, self.extended, in_transaction=True, smtputf8=command.needs_smtputf8)
            case Rcpt():
                return Progress(self.greeted, self.extended, self.in_transaction, self.smtputf8, self.recipients + 1)
            case Rset():
                return self.without_transaction()
        return self


@dataclass(frozen=True, slots=True)
class Terms:
    """What order is judged by, besides progress: the protocol, the offer, and TLS now."""

    lmtp: bool
    offer: Offer
    tls_active: bool
    tls_unavailable: bool = False


def out_of_order(command: Command, progress: Progress, terms: Terms) -> Reply | None:
    """The refusal of a command that cannot come here, whatever its arguments; None where it can."""
    lmtp, offer = terms.lmtp, terms.offer
    match command:
        case Ehlo() | Helo() | Lhlo():
            if isinstance(command, Lhlo) is not lmtp:  # RFC 2033 §4.1 (LMTP-01)
                return Reply.of(500, "5.5.1", "this is LMTP: send LHLO" if lmtp else "this is SMTP: send EHLO")
        case Mail():
            if not progress.greeted:
                return _hello_first(lmtp)
            if progress.in_transaction:
                return Reply.of(503, "5.5.1", "MAIL within a transaction")
        case Rcpt():
            if not progress.in_transaction:
                return Reply.of(503, "5.5.1", "send MAIL first")
        case Data() | Bdat():
            if isinstance(command, Bdat) and not offer.chunking:
                return Reply.of(502, "5.5.1", "BDAT is not offered")
            if not progress.in_transaction:
                return Reply.of(503, "5.5.1", "send MAIL first")
            if not progress.recipients:  # RFC 2920 §3.2(3), RFC 2033 §4.2 (EXT-21)
                return Reply.of(503 if lmtp else 554, "5.5.1", "no valid recipients")
        case StartTls():
            if terms.tls_active:
                return Reply.of(503, "5.5.1", "TLS is active already")
            if not offer.starttls:
                return Reply.of(502, "5.5.1", "STARTTLS is not offered")
            if not progress.extended:  # after HELO nothing was offered (STLS-02)
                return _hello_first(lmtp)
            if terms.tls_unavailable:
                return Reply.of(454, "4.7.0", "TLS is not available at the moment")
        case Auth(mechanism):
            if not offer.auth:
                return Reply.of(502, "5.5.1", "AUTH is not offered")
            if not terms.tls_active:  # the same for good and bad credentials (AUTH-01)
                return Reply.of(530, "5.7.0", "must issue a STARTTLS command first")
            if not progress.extended or progress.in_transaction:
                return Reply.of(503, "5.5.1", "AUTH is not allowed here")
            if mechanism not in offer.auth:  # what was hidden is not taken either (AUTH-04)
                return Reply.of(504, "5.5.4", "this mechanism is not offered")
    return None


def unacceptable(command: Command, progress: Progress, offer: Offer) -> Reply | None:
    """The refusal of a MAIL or RCPT in order for its parameters, or for one recipient too many (SMTP-22)."""
    match command:
        case Mail():
            return check_mail_params(command, offer) if progress.extended else _without_ehlo(command)
        case Rcpt():
            if progress.recipients >= offer.rcpt_max:
                return Reply.of(452, "4.5.3", "too many recipients")
            if not progress.extended:
                return _without_ehlo(command)
            return check_rcpt_params(command, offer, smtputf8=progress.smtputf8)
    return None


def _hello_first(lmtp: bool) -> Reply:
    return Reply.of(503, "5.5.1", "send LHLO first" if lmtp else "send EHLO first")


def _without_ehlo(command: Mail | Rcpt) -> Reply | None:
    """After HELO there are no extensions: no parameter, no UTF-8."""
    if command.params:
        return Reply.of(555, "5.5.4", "parameters need EHLO")
    if not command.path.text.isascii():
        return Reply.of(553, "5.6.7", "a non-ASCII address needs SMTPUTF8")
    return None
