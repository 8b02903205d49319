"""How much mail, how much of it over TLS, and what was refused?  Totals since the process began, for the live page.

The same facts as the metrics, but added up and put into words; bounded, for reasons are a bounded set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from smtpguard.clock import Clock
from smtpguard.events import Delivered, DeliveryRefused, Event, FinalReplyLost, MessageRelayed
from smtpguard.telemetry.outcomes import DIRECTIONS, direction, explain_reason, outcome, refusal_reason

_AUTHENTICATED = frozenset({"dane", "pkix", "fingerprint"})  # not host-only: RFC 7672 §2.2.1 (DANE-26)
_MAX_DOMAIN = 255


@dataclass(slots=True)
class Direction:
    """The mail of one direction: messages, but for `deferred` and `refused`, which count replies."""

    delivered: int = 0
    over_tls: int = 0
    """Of those delivered."""
    authenticated: int = 0
    """Of those delivered: the receiving host was authenticated for the domain.  Always 0 inbound."""
    deferred: int = 0
    refused: int = 0
    lost: int = 0


@dataclass(slots=True)
class Refusals:
    """One reason in one direction."""

    count: int
    domain: str
    """The latest one that it hit; empty if none is known."""
    at: datetime


@dataclass(slots=True)
class Totals:
    """The sink."""

    clock: Clock
    failures: int = 0
    """Events lost to a bug."""
    _since: datetime = field(init=False)
    _directions: dict[str, Direction] = field(init=False)
    _refusals: dict[tuple[str, str], Refusals] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._since = self.clock.now()
        self._directions = {name: Direction() for name in DIRECTIONS}

    def emit(self, event: Event) -> None:
        """Counts the event; never blocks and never raises."""
        try:
            if isinstance(event, Delivered | DeliveryRefused | MessageRelayed | FinalReplyLost):
                self._count(event)
        except Exception:  # noqa: BLE001 - the boundary of a sink: counting must not end a session
            self.failures += 1

    def as_json(self) -> Mapping[str, object]:
        """`{"since", "inbound": {…}, "outbound": {…}, "refusals": [{…}, most frequent first]}`."""
        refusals = sorted(self._refusals.items(), key=lambda item: (-item[1].count, item[0]))
        rows = []
        for (way, reason), found in refusals:
            text, advice = explain_reason(reason)
            rows.append(
                {
                    "direction": way,
                    "reason": reason,
                    "text": text,
                    "advice": advice,
                    "count": found.count,
                    "last_domain": found.domain,
                    "last": found.at,
                }
            )
        return {"since": self._since, **self._directions, "refusals": rows}

    def _count(self, event: Delivered | DeliveryRefused | MessageRelayed | FinalReplyLost) -> None:
        way, became = direction(event) or "outbound", outcome(event)
        totals = self._directions[way]
        setattr(totals, became, getattr(totals, became) + 1)
        if isinstance(event, Delivered | MessageRelayed) and became == "delivered":
            totals.over_tls += bool(event.tls_version)
            totals.authenticated += isinstance(event, Delivered) and event.auth in _AUTHENTICATED
        elif isinstance(event, DeliveryRefused | MessageRelayed):
            domain = event.domain if isinstance(event, DeliveryRefused) else event.sender_domain
            key = (way, refusal_reason(event))
            before = self._refusals.get(key)
            count = before.count + 1 if before is not None else 1
            self._refusals[key] = Refusals(count, domain[:_MAX_DOMAIN], self.clock.now())
