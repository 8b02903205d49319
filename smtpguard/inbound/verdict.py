"""Which commands of this client do the rules of the listener refuse?  `policy.inbound` for one session."""

from smtpguard.clock import Clock
from smtpguard.inbound.record import Record
from smtpguard.policy.inbound import Accept, ClientFacts, InboundRules, RefuseInbound, judge_client
from smtpguard.smtp.commands import Bdat, Command, Mail
from smtpguard.smtp.replies import Reply


class Verdicts:
    """The rules a session took at its start, and what is known of its client by now."""

    def __init__(self, rules: InboundRules, record: Record, clock: Clock) -> None:
        self.facts = ClientFacts(None)
        self._rules = rules
        self._record = record
        self._clock = clock

    def refusal(self, command: Command, mail: Mail | None) -> Reply | None:
        """The reply to a command that may not pass, given the MAIL in force; None where it may."""
        if isinstance(command, Bdat):  # its octets come in any case; what it belongs to was judged
            return None
        verdict = judge_client(
            self._rules, self.facts, command, sender=mail.path if mail else None, today=self._clock.now().date()
        )
        if isinstance(verdict, Accept) and not verdict.shadowed:
            return None
        id_ = self._record.decision()
        for shadowed in verdict.shadowed:
            self._record.shadowed(id_, shadowed)
        if not isinstance(verdict, RefuseInbound):
            return None
        reply = verdict.reply(id_)
        self._record.refused(id_, command, mail, verdict, reply)
        return reply
