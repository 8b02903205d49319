"""Which commands of this client do the rules of the listener refuse?  `policy.inbound` for one session."""

from smtpguard.clock import Clock
from smtpguard.inbound.record import Record
from smtpguard.policy.inbound import Accept, ClientFacts, InboundRules, RefuseInbound, judge_client
from smtpguard.smtp.commands import Command, Mail
from smtpguard.smtp.replies import Reply


class Verdicts:
    """The rules a session took at its start, and what is known of its client by now."""

    def __init__(self, rules: InboundRules, record: Record, clock: Clock) -> None:
        self.facts = ClientFacts(None)
        self._rules = rules
        self._record = record
        self._clock = clock
        self._needs_tls: Reply | None = None

    def before_tls(self, command: Command) -> Reply | None:
        """The reply to a command for which TLS must come first, whoever the mail is for; None where it need not.

        Told with the first such command of a session: all of them hear that one decision.
        """
        if self.facts.encrypted or not self._rules.submission:
            return None
        verdict = self._judge(command, None)
        if isinstance(verdict, Accept):
            return None
        if self._needs_tls is None:
            self._needs_tls = self._refuse(self._record.decision(), command, verdict)
        return self._needs_tls

    def refusal(self, command: Command, mail: Mail | None) -> Reply | None:
        """The reply to a command that may not pass, given the MAIL in force; None where it may."""
        verdict = self._judge(command, mail)
        if isinstance(verdict, Accept) and not verdict.shadowed:
            return None
        id_ = self._record.decision()
        for shadowed in verdict.shadowed:
            self._record.shadowed(id_, shadowed)
        return self._refuse(id_, command, verdict) if isinstance(verdict, RefuseInbound) else None

    def _judge(self, command: Command, mail: Mail | None) -> Accept | RefuseInbound:
        today = self._clock.now().date()
        return judge_client(self._rules, self.facts, command, sender=mail.path if mail else None, today=today)

    def _refuse(self, id_: str, command: Command, verdict: RefuseInbound) -> Reply:
        reply = verdict.reply(id_)
        self._record.refused(id_, command, verdict, reply)
        return reply
