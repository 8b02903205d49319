"""What is told of one session, to whoever listens?  Every event of the inbound side but those of the MTA's state.

Strings of the client are made printable and bounded here, and nowhere else.
"""

from smtpguard.clock import Clock
from smtpguard.events import (
    DeliveryRefused,
    Emit,
    FinalReplyLost,
    InboundTls,
    LimitHit,
    MessageRelayed,
    MtaFailure,
    RuleShadowed,
    SessionClosed,
    SessionOpened,
    Violation,
)
from smtpguard.inbound.content import Told
from smtpguard.inbound.settings import InboundListener
from smtpguard.inbound.upstream import Step
from smtpguard.names import Domain, IpAddress
from smtpguard.net.wire import HandshakeFailed
from smtpguard.policy.inbound import RefuseInbound, Shadowed
from smtpguard.reasons import printable
from smtpguard.smtp.commands import Command, Mail, Rcpt
from smtpguard.smtp.forwarded import ClientIdentity
from smtpguard.smtp.replies import Reply
from smtpguard.tls.outcome import TlsOutcome

_REASONS = 10  # told of one refusal: at an address literal every rule may have one


class Record:
    """One session's teller.  `client` is whom it speaks of, `peer` who is connected, until the client is known."""

    def __init__(self, session: str, listener: InboundListener, peer: str, clock: Clock, emit: Emit) -> None:
        self.session = session
        self.client = ClientIdentity(address=None)
        self.tls: TlsOutcome | None = None
        self.messages = 0
        self._listener = listener
        self._peer = peer
        self._clock = clock
        self._emit = emit
        self._began = clock.monotonic()
        self._decisions = 0

    def decision(self) -> str:
        """The next decision id of this session."""
        self._decisions += 1
        return f"{self.session}.{self._decisions}"

    @property
    def _who(self) -> str:
        return str(self.client.address) if self.client.address is not None else self._peer

    @property
    def _tls_version(self) -> str:
        return self.tls.version.value if self.tls is not None and self.tls.version is not None else ""

    def opened(self) -> None:
        """The connection was accepted."""
        name = self._listener.name
        self._emit(SessionOpened(direction="inbound", session=self.session, listener=name, peer=self._peer))

    def closed(self, cause: str) -> None:
        """The session has ended."""
        self._emit(
            SessionClosed(
                direction="inbound",
                session=self.session,
                listener=self._listener.name,
                peer=self._who,
                cause=cause,
                seconds=self._clock.monotonic() - self._began,
                transactions=self.messages,
                tls_version=self._tls_version,
            )
        )

    def violation(self, kind: str) -> None:
        """The client broke the protocol."""
        self._emit(Violation(direction="inbound", kind=kind, session=self.session, peer=self._who))

    def limit(self, limit: str) -> None:
        """A limit was reached."""
        self._emit(LimitHit(listener=self._listener.name, limit=limit, session=self.session, client=self._who))

    def secured(self, outcome: TlsOutcome) -> None:
        """The handshake was done; `client` is the one that speaks TLS."""
        self.tls = outcome
        tls = self.client.tls
        certificate = tls.certificate if tls is not None else None
        self._emit(
            InboundTls(
                session=self.session,
                listener=self._listener.name,
                client=self._who,
                tls_version=self._tls_version,
                cipher=outcome.cipher,
                group=outcome.group,
                sni=tls.sni if tls is not None else "",
                certificate=certificate.common_name if certificate is not None else "",
            )
        )

    def handshake_failed(self, failed: HandshakeFailed) -> None:
        """The handshake failed."""
        self._emit(
            InboundTls(
                session=self.session,
                listener=self._listener.name,
                client=self._who,
                cause=failed.outcome.failure_code or "failed",
                detail=printable(failed.outcome.detail),
            )
        )

    def mta_failed(self, step: Step, detail: str) -> None:
        """The MTA could not be used for this client."""
        self._emit(
            MtaFailure(
                listener=self._listener.name,
                mta=str(self._listener.mta),
                session=self.session,
                step=step.value,
                detail=printable(detail),
            )
        )

    def shadowed(self, id_: str, shadowed: Shadowed) -> None:
        """What a rule in shadow would have done."""
        self._emit(
            RuleShadowed(
                id=id_,
                rule=str(shadowed.rule.scope),
                would="refuse" if shadowed.reasons else "accept",
                detail=printable("; ".join(f"{one.code.token} {one.detail}".rstrip() for one in shadowed.reasons)),
            )
        )

    def refused(self, id_: str, command: Command, verdict: RefuseInbound, reply: Reply) -> None:
        """A rule refused a command."""
        path = command.path if isinstance(command, Rcpt | Mail) else None
        self._emit(
            DeliveryRefused(
                direction="inbound",
                id=id_,
                domain=_shown(path.domain if path is not None else None),
                listener=self._listener.name,
                client=self._who,
                policy="inbound",
                reason=verdict.reasons[0].code.token,
                reply=str(reply),
                stage=type(command).__name__.lower(),
                why=tuple(
                    printable(f"{reason.code.token} {reason.subject}: {reason.detail}")
                    for reason in verdict.reasons[:_REASONS]
                ),
            )
        )

    def message(self, id_: str, mail: Mail, recipients: int, told: Told, seconds: float) -> None:
        """A message was answered."""
        self.messages += 1
        if told.normalized or told.fault is not None:
            token = told.fault.token if told.fault is not None else "message/bare-newline"
            self.violation(token.partition("/")[2].replace("-", "_"))
        if told.lost:
            self.final_reply_lost(id_, mail, told.reply, client=False)
        tls = self.tls
        self._emit(
            MessageRelayed(
                id=id_,
                listener=self._listener.name,
                client=self._who,
                helo=printable(self.client.helo, 255),
                sender_domain=_shown(mail.path.domain),
                recipients=recipients,
                octets=told.octets,
                seconds=seconds,
                reply=str(told.reply),
                reason=told.fault.token if told.fault is not None else "",
                tls_version=self._tls_version,
                cipher=tls.cipher if tls is not None else "",
                group=tls.group if tls is not None else "",
            )
        )

    def final_reply_lost(self, id_: str, mail: Mail, reply: Reply, *, client: bool) -> None:
        """Nobody knows whether the MTA took it, or the client does not know that it did."""
        self._emit(
            FinalReplyLost(
                direction="inbound",
                id=id_,
                domain=_shown(mail.path.domain),
                mx=str(self._listener.mta),
                side="client" if client else "upstream",
                reply=reply.text,
            )
        )


def _shown(domain: Domain | IpAddress | None) -> str:
    return printable(str(domain), 255) if domain is not None else ""
