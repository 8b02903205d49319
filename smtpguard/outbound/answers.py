"""What does the MTA hear of the recipients of one next hop, and why?

A recipient's reply is the mail host's, with a suffix that says whose it is, or ours, with the last cause.  A later
host's 5xx never bounces what an earlier one deferred (MX-13, AF-34).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from smtpguard.dns.resolver import Lookups, Validation
from smtpguard.outbound.host import Candidate, Opened
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.smtp.commands import Rcpt
from smtpguard.smtp.replies import Reply, reply_of

_BY_DNSSEC = frozenset({ReasonCode.DANE_REQUIRED, ReasonCode.DANE_INSECURE_MX})


@dataclass(slots=True)
class Addressee:
    """One RCPT of the MTA: its reply, then, if accepted, its part of the final reply."""

    rcpt: Rcpt
    reply: Reply | None = None
    deferred: Reply | None = None
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one host did not take the mail, as the MTA would hear it; `candidate` where it came to an address of it."""

    reply: Reply
    code: ReasonCode | None
    subject: str
    candidate: Candidate | None = None
    policy: str = ""


@dataclass(slots=True)
class Answers:
    """The replies of one walk, whose decision `id` they carry; `key` is its next hop."""

    id: str
    key: str
    annotate: bool
    lookups: Lookups
    failures: list[Failure] = field(default_factory=list)

    def take(self, addressee: Addressee, reply: Reply, opened: Opened) -> None:
        """One RCPT reply of the host (or its MAIL reply, which answers each RCPT)."""
        shown = self.annotated(reply, opened)
        if reply.is_positive:
            addressee.accepted = True
            addressee.reply = shown
        elif reply.is_permanent:
            addressee.reply = addressee.deferred or shown
        else:
            addressee.deferred = shown

    def annotated(self, reply: Reply, opened: Opened) -> Reply:
        """A reply of the host as the MTA sees it: code, status and text kept, one suffix; 421 becomes 451 (CH-20).

        A 3xx has no place where this is asked, and must never reach the MTA: 451 4.5.0 (SMTP-13, OUT-32).
        """
        return self._annotated(reply, opened.candidate, opened.requirement.policy)

    def _annotated(self, reply: Reply, candidate: Candidate, policy: str) -> Reply:
        if reply.severity == 3:
            return reply_of(Reason(ReasonCode.PROTOCOL_ERROR, str(candidate), f"it said {reply}"), self.id)
        if reply.code == 421:
            reply = reply.with_code(451)
        return reply.with_suffix(f" ({candidate} {policy} {self.id})") if self.annotate else reply

    def fail(
        self, reason: Reason, *, permanent: bool = False, candidate: Candidate | None = None, policy: str = ""
    ) -> None:
        """One host, or the whole next hop, is out for this reason.  `permanent`: a rule or the DNS says for good, which
        holds where our resolver can be believed."""
        if reason.code in _BY_DNSSEC and self.lookups.validation is not Validation.TRUSTED:
            permanent = False  # that nothing is secure is then the resolver's fault, not the domain's
        reply = reply_of(reason, self.id)
        if permanent and reply.is_transient and reason.code is not ReasonCode.NO_ADDRESS:
            reply = reply.with_code(550)
        if permanent and reason.code is ReasonCode.NO_ADDRESS and self.lookups.permanent_answers_confirmed():
            reason = Reason(ReasonCode.NO_USABLE_MX, reason.subject, reason.detail)
            reply = reply_of(reason, self.id)
        self.failures.append(Failure(reply, reason.code, reason.subject, candidate, policy))

    def relay_failure(self, reply: Reply, candidate: Candidate, policy: str, reason: Reason | None) -> None:
        """One host is out by its own words."""
        shown = self._annotated(reply, candidate, policy)
        self.failures.append(Failure(shown, reason.code if reason else None, str(candidate), candidate, policy))

    def final_failure(self) -> Failure:
        """What the MTA hears where no host took the mail: the last temporary failure, else the last one."""
        if not self.failures:  # no cause is known, so none is permanent
            self.fail(Reason(ReasonCode.INTERNAL, self.key))
        temporary = [failure for failure in self.failures if failure.reply.is_transient]
        return (temporary or self.failures)[-1]

    def answer_rest(self, addressees: Sequence[Addressee]) -> None:
        """Those who have no reply yet get the one that was put off, or the final failure."""
        for addressee in addressees:
            if addressee.reply is None:
                addressee.reply = addressee.deferred or self.final_failure().reply
