"""Which way did it go, what became of it, and why?  The words by which events are counted and filtered for people.

Pure.  An event that says nothing of the kind has the empty word.
"""

from types import MappingProxyType
from typing import Final

from smtpguard.events import (
    CertificateEvent,
    Delivered,
    DeliveryRefused,
    DnsLookup,
    DnssecState,
    Event,
    FinalReplyLost,
    IdentityWarning,
    InboundTls,
    LimitHit,
    MessageRelayed,
    MtaFailure,
    MtaState,
    RuleShadowed,
    StsEvent,
    TlsFacts,
)
from smtpguard.reasons import ReasonCode

DIRECTIONS: Final = ("inbound", "outbound")
OUTCOMES: Final = ("delivered", "deferred", "refused", "lost")
"""`lost`: the final reply was, and nobody knows (FinalReplyLost)."""

OTHER: Final = "other"
"""In place of a word that is none of ours."""
RELAYED_4XX, RELAYED_5XX = "relayed/4xx", "relayed/5xx"
_OUTBOUND = (TlsFacts, Delivered, DnsLookup, DnssecState, StsEvent, IdentityWarning)
_INBOUND = (InboundTls, LimitHit, MtaFailure, MtaState, RuleShadowed, CertificateEvent)
_TEXTS = MappingProxyType({code.token: (code.text, code.advice) for code in ReasonCode})
_RELAYED = MappingProxyType(
    {
        RELAYED_4XX: "deferred by the receiving server itself",
        RELAYED_5XX: "refused by the receiving server itself",
    }
)


def direction(event: Event) -> str:
    """`inbound`, `outbound`, or empty for what concerns the process."""
    if isinstance(event, _OUTBOUND):
        return "outbound"
    if isinstance(event, _INBOUND):
        return "inbound"
    said = getattr(event, "direction", "")
    return said if said in DIRECTIONS else ""


def outcome(event: Event) -> str:
    """One of OUTCOMES; empty where no mail got an answer."""
    match event:
        case Delivered():
            return "delivered"
        case DeliveryRefused():
            return "refused" if event.reply.startswith("5") else "deferred"
        case MessageRelayed():
            digit = event.reply[:1]
            return "delivered" if digit == "2" else "refused" if digit == "5" else "deferred"
        case FinalReplyLost():
            return "lost"
    return ""


def domains(event: Event) -> tuple[str, ...]:
    """The correspondents' domains that an event is about, in lower case."""
    return tuple(
        name.lower() for key in ("domain", "sender_domain") if isinstance(name := getattr(event, key, ""), str) and name
    )


def refusal_reason(event: DeliveryRefused | MessageRelayed) -> str:
    """Why it was refused or deferred: a token of ReasonCode, `relayed/4xx`, `relayed/5xx` or `other`: a bounded set,
    whatever a peer says."""
    if event.reason:
        return event.reason if event.reason in _TEXTS else OTHER
    return RELAYED_5XX if event.reply.startswith("5") else RELAYED_4XX


def explain_reason(token: str) -> tuple[str, str]:
    """The sentence and the way out for what `refusal_reason` gives."""
    return _TEXTS.get(token) or (_RELAYED.get(token, ""), "")
