"""What becomes of the recipients of one next hop, from the accepted RCPT to the last word?

A route ends exactly once: with the host's final reply, or broken off with ours; then its slot is free and its
connection is pooled or closed.  Events of deliveries and refusals are told here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from smtpguard.events import Delivered, DeliveryRefused, FinalReplyLost
from smtpguard.net.wire import Interrupted, WireLost
from smtpguard.outbound.answers import Addressee, Failure
from smtpguard.outbound.host import Opened
from smtpguard.outbound.walk import Walk
from smtpguard.policy.engine import auth_label
from smtpguard.reasons import Reason, ReasonCode, printable
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply, reply_of


@dataclass(slots=True)
class Route:
    """The recipients of one next hop, and the host that takes them."""

    walk: Walk
    addressees: list[Addressee] = field(default_factory=list)
    final: Reply | None = None
    broken: Reason | None = None
    began: float = 0.0
    _slot_given_back: bool = False
    _handed_back: bool = False

    @property
    def accepted(self) -> list[Addressee]:
        """Those whose RCPT the host took, in order."""
        return [one for one in self.addressees if one.accepted]

    @property
    def opened(self) -> Opened:
        """The host; only where somebody was accepted."""
        opened = self.walk.opened
        assert opened is not None
        return opened

    @property
    def live(self) -> bool:
        """The host still takes part: it accepted somebody and nothing has ended it."""
        return self.walk.opened is not None and self.final is None

    async def release(self, reply: Reply | None) -> None:
        """The host refused or the MTA gave up; after RSET the connection may serve again."""
        link = self.opened.link
        if reply is not None and reply.code == 421:
            self.drop()
            return
        clean = False
        try:
            with trio.move_on_after(self.walk.settings.budgets.slot):
                (said,) = await link.exchange([b"RSET"])
                clean = said.is_positive
        except (WireLost, RemoteProtocolError, Interrupted):
            clean = False
        finally:
            if not clean:
                self.drop()
        if clean:
            self.hand_back()

    def hand_back(self) -> None:
        """The connection is clean and may serve others; this route never touches it again."""
        self._handed_back = True
        self._give_back_slot()
        self.walk.services.pool.give(self.opened)

    def drop(self) -> None:
        """Close the connection, without a dot where one is due; may be called again."""
        if self._handed_back:
            return
        self._give_back_slot()
        self.opened.link.wire.close()

    def _give_back_slot(self) -> None:
        if not self._slot_given_back:
            self._slot_given_back = True
            self.walk.services.slots.connection_ended(self.walk.next_hop.key)

    def is_silent(self) -> bool:
        """Has the host said nothing inside the content, where it owes nothing?  Else the route ends and no dot is sent:
        a refusal is the last word, but a 2xx would be a promise for a message it has not seen the end of (law 1)."""
        try:
            said = self.opened.link.early_reply()
        except WireLost as lost:
            self.break_off(ReasonCode.LOST, printable(str(lost)), "content")
        except RemoteProtocolError as error:
            self.break_off(ReasonCode.PROTOCOL_ERROR, printable(str(error)), "content")
        else:
            if said is None:
                return True
            self._refused_early(said)
        return False

    def lost_before_the_dot(self, lost: WireLost) -> None:
        """The host cannot have the whole message; what it said last, often a 421 or 552, is the answer."""
        said = self.opened.link.late_reply()
        if said is None:
            self.break_off(ReasonCode.LOST, printable(str(lost)), "content")
        else:
            self._refused_early(said)

    def _refused_early(self, said: Reply) -> None:
        if not (said.is_transient or said.is_permanent):
            self.break_off(ReasonCode.PROTOCOL_ERROR, f"{said.code} before the end of data", "content")
            return
        self.final = self.walk.answers.annotated(said, self.opened)
        self.refused(self.accepted, "content", relayed=True)
        self.drop()

    def break_off(self, code: ReasonCode, detail: str, stage: str) -> None:
        """This route ends here with our own reply; its connection is closed."""
        if self.final is not None:
            return
        reason = Reason(code, str(self.opened.candidate), detail)
        self.broken = reason
        self.final = reply_of(reason, self.walk.id)
        self.refused(self.accepted, stage)
        self.drop()

    def unknown(self, code: ReasonCode, detail: str) -> None:
        """The dot was sent and no reply came: 4xx, though the host may have taken the message (AF-35, AF-37)."""
        if self.final is not None:
            return
        self.walk.services.emit(
            FinalReplyLost(
                id=self.walk.id, domain=self.walk.next_hop.key, mx=self.opened.candidate.host, side="upstream"
            )
        )
        self.break_off(code, detail, "final")

    def delivered(self, reply: Reply, octets: int) -> None:
        """Tell of the host's 2xx to the end of data."""
        opened, outcome = self.opened, self.opened.outcome
        self.walk.services.emit(
            Delivered(
                id=self.walk.id,
                domain=self.walk.next_hop.key,
                mx=opened.candidate.host,
                address=str(opened.candidate.address),
                port=opened.candidate.port,
                policy=opened.requirement.policy,
                auth=auth_label(opened.requirement, opened.decision) if outcome.encrypted else "clear",
                tls_version=outcome.version.value if outcome.version is not None else "",
                cipher=outcome.cipher,
                group=outcome.group,
                recipients=len(self.accepted),
                octets=octets,
                seconds=self.walk.services.clock.monotonic() - self.began,
                reply=reply_line(reply),
                why=tuple(self.walk.why),
            )
        )

    def refused(self, addressees: Sequence[Addressee], stage: str, *, relayed: bool | None = None) -> None:
        """One event for each distinct reply the addressees got."""
        if not addressees:
            return
        counts: dict[Reply, int] = {}
        for one in addressees:
            reply = self.final if stage != "rcpt" else one.reply
            assert reply is not None
            counts[reply] = counts.get(reply, 0) + 1
        walk = self.walk
        opened = walk.opened
        for reply, count in counts.items():
            failure = next((one for one in reversed(walk.answers.failures) if one.reply == reply), None)
            code = self.broken.code if self.broken is not None and stage != "rcpt" else None
            if code is None and failure is not None:
                code = failure.code
            candidate = failure.candidate if failure else opened.candidate if opened else None
            self.walk.services.emit(
                DeliveryRefused(
                    id=walk.id,
                    domain=walk.next_hop.key,
                    mx=candidate.host if candidate else _host_in(failure, walk.next_hop.key),
                    address=str(candidate.address) if candidate else "",
                    port=walk.next_hop.port,
                    policy=(failure.policy if failure else "") or walk.policy,
                    reason=code.token if code is not None else "",
                    reply=reply_line(reply),
                    stage=stage,
                    relayed=relayed if relayed is not None else code is None,
                    recipients=count,
                    why=tuple(printable(one.reply.text) for one in walk.answers.failures if one.reply != reply)[-5:],
                )
            )


def _host_in(failure: Failure | None, domain: str) -> str:
    """The host a failure speaks of that came before any address of it: MTA-STS does not list it, its TLSA failed."""
    return failure.subject if failure is not None and failure.subject != domain else ""


def reply_line(reply: Reply) -> str:
    """Code and text on one bounded line."""
    return printable(f"{reply.code} {reply.text}", 300)
