"""What happened, as flat values: the one catalogue that logs, metrics, history and reports are rendered from.

Events are frozen, hold only text, numbers and tuples, and are emitted once, where the fact is known.  `emit` never
awaits, blocks or raises.  Strings from the network are bounded and escaped by `reasons.printable` before they enter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from smtpguard.reasons import printable

Direction = Literal["inbound", "outbound"]
Severity = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; `name` and `severity` are the log's `event=` and `level=`."""

    name: ClassVar[str] = "event"
    severity: ClassVar[Severity] = "info"


Emit = Callable[[Any], None]


def discard(event: Event) -> None:
    """An Emit that nobody listens to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFacts(Event):
    """The policy facts every outcome at a host carries, enough for an RFC 8460 report.

    `policy_type` is `tlsa`, `sts` or `no-policy-found`; `policy_string` the TLSA records or policy lines; `result_type`
    empty for success.  A session that was let go on in clear for lack of TLS has a result type too.
    """

    id: str
    domain: str
    mx: str
    address: str
    port: int
    policy: str
    policy_type: str = "no-policy-found"
    policy_domain: str = ""
    policy_string: tuple[str, ...] = ()
    mx_patterns: tuple[str, ...] = ()
    tls_version: str = ""
    cipher: str = ""
    group: str = ""
    auth: str = ""
    reason: str = ""
    result_type: str = ""
    failure_reason_code: str = ""
    detail: str = ""
    source_address: str = ""
    helo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOpened(TlsFacts):
    """A host was connected and showed what its requirement asks."""

    name: ClassVar[str] = "host_opened"
    severity: ClassVar[Severity] = "debug"
    reused: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSkipped(TlsFacts):
    """A host was passed over: unreachable, or it failed its requirement."""

    name: ClassVar[str] = "host_skipped"
    severity: ClassVar[Severity] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObserved(TlsFacts):
    """What a policy that is judged and not enforced would have done: `kind` sts-testing, sts, shadow, override; or
    dane-unusable, TLSA records of which none is usable."""

    name: ClassVar[str] = "policy_observed"
    severity: ClassVar[Severity] = "info"
    kind: str = ""
    would: Literal["deliver", "refuse"] = "deliver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered(Event):
    """The next hop took responsibility for the message (2xx to end-of-data)."""

    name: ClassVar[str] = "delivered"
    id: str
    domain: str
    mx: str
    address: str
    port: int
    policy: str
    auth: str
    tls_version: str
    cipher: str
    group: str
    recipients: int
    octets: int
    seconds: float
    reply: str
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRefused(Event):
    """Recipients were refused or deferred: by us (`reason` set) or by the next hop (`relayed`).

    Outbound `mx`, `address` and `port` are the mail host's, and `why` is what other hosts of the domain said before
    `reply`; inbound `listener` and `client` say who was refused.
    """

    name: ClassVar[str] = "delivery_refused"
    severity: ClassVar[Severity] = "warning"
    id: str
    domain: str
    mx: str = ""
    address: str = ""
    port: int = 0
    policy: str = ""
    reason: str = ""
    reply: str
    stage: str
    relayed: bool = False
    recipients: int = 1
    why: tuple[str, ...] = ()
    direction: Direction = "outbound"
    listener: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intercepted(Event):
    """Whose the address is that the MTA connected to.  `verdict`: mapped (`mx` has it), remembered (`mx` had it within
    a day), direct (nobody's, and `intercept_direct` allows it)."""

    name: ClassVar[str] = "intercepted"
    severity: ClassVar[Severity] = "debug"
    id: str
    domain: str
    original: str
    verdict: str
    mx: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterceptedElsewhere(Intercepted):
    """The mail does not go where the MTA connected to.  `verdict`: rerouted (to the domain's mail hosts), refused."""

    severity: ClassVar[Severity] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalReplyLost(Event):
    """Whether the message was delivered is not known: where it goes (`side="upstream"`) or whoever sent it
    (`side="client"`) was lost between end-of-data and the reply; the sender's retry may make a duplicate."""

    name: ClassVar[str] = "final_reply_lost"
    severity: ClassVar[Severity] = "warning"
    id: str
    domain: str
    mx: str
    side: Literal["upstream", "client"]
    reply: str = ""
    direction: Direction = "outbound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation(Event):
    """A peer broke the protocol; `kind` is bounded: line_too_long, nul, bare_newline, starttls_injection,
    not_redirected, own_traffic, ..."""

    name: ClassVar[str] = "violation"
    severity: ClassVar[Severity] = "warning"
    direction: Direction
    kind: str
    session: str
    peer: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened(Event):
    """An MTA or client connected."""

    name: ClassVar[str] = "session_opened"
    severity: ClassVar[Severity] = "debug"
    direction: Direction
    session: str
    listener: str
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed(Event):
    """A session ended; `cause` is bounded: quit, closed, idle, shutdown, lost, error, refused."""

    name: ClassVar[str] = "session_closed"
    severity: ClassVar[Severity] = "debug"
    direction: Direction
    session: str
    listener: str
    peer: str
    cause: str
    seconds: float
    transactions: int
    tls_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsLookup(Event):
    """One query went out (not a cache hit); `status`: secure insecure timeout servfail bogus ..."""

    name: ClassVar[str] = "dns_lookup"
    severity: ClassVar[Severity] = "debug"
    qname: str
    rdtype: str
    status: str
    seconds: float
    resolver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DnssecState(Event):
    """The canary's verdict on the resolver changed, or was found at start: `state` is validating."""

    name: ClassVar[str] = "dnssec_state"
    state: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DnssecAlert(DnssecState):
    """The resolver does not validate or does not answer: untrusted, never-validated, lost, or a round of the canary
    that proved nothing."""

    severity: ClassVar[Severity] = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class StsEvent(Event):
    """MTA-STS: `event` is bounded: fetched, fetch_error, invalid, webpki, txt_tempfail, txt_missing_cached,
    cache_stale_used, expired, mode_none, refreshed, refresh_failed, forgotten, grace."""

    name: ClassVar[str] = "sts"
    severity: ClassVar[Severity] = "info"
    event: str
    domain: str
    result_type: str = ""
    failure_reason_code: str = ""
    detail: str = ""
    policy_string: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StsAlert(StsEvent):
    """MTA-STS needs somebody's attention: a policy ends, or mail goes without one (RFC 8461 §3.3, §10.2).  `event`:
    refresh_failed, expired, txt_missing_cached, grace, forgotten (the cache is full)."""

    severity: ClassVar[Severity] = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleWarning(Event):
    """A rule of the configuration does not do what it may be thought to do: weaker than published, expired."""

    name: ClassVar[str] = "rule_warning"
    severity: ClassVar[Severity] = "warning"
    direction: Direction
    rule: str
    domain: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerBound(Event):
    """A listener is ready."""

    name: ClassVar[str] = "listening"
    listener: str
    address: str
    role: str
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityWarning(Event):
    """Receiving hosts may distrust the name or address a listener sends from."""

    name: ClassVar[str] = "identity_warning"
    severity: ClassVar[Severity] = "warning"
    listener: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptPaused(Event):
    """Accepting paused: no descriptor or session slot is free."""

    name: ClassVar[str] = "accept_paused"
    severity: ClassVar[Severity] = "error"
    listener: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle(Event):
    """The process itself: `stage` is started, ready, reloading, reloaded, draining, stopped."""

    name: ClassVar[str] = "lifecycle"
    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadFailed(Lifecycle):
    """The file could not be taken over, and the old settings stay: `stage` is reload_failed."""

    severity: ClassVar[Severity] = "error"
    stage: str = "reload_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalError(Event):
    """A bug: an exception reached the boundary of a session, a walk or a service."""

    name: ClassVar[str] = "internal_error"
    severity: ClassVar[Severity] = "error"
    where: str
    session: str
    error: str

    @classmethod
    def of(cls, where: str, error: Exception, session: str = "") -> "InternalError":
        """With type, text and innermost place of the bug; of a group, its first."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        file = trace.tb_frame.f_code.co_filename.rpartition("/")[2] if trace is not None else ""
        place = f" at {file}:{trace.tb_lineno}" if trace is not None else ""
        return cls(where=where, session=session, error=printable(f"{type(error).__name__}: {error}") + place)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreError(Event):
    """Persistent state could not be read or written; what is kept in memory goes on."""

    name: ClassVar[str] = "store_error"
    severity: ClassVar[Severity] = "error"
    store: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRelayed(Event):
    """A client's message was answered by the MTA behind us (`reply`), or refused by us at its end (`reason` set)."""

    name: ClassVar[str] = "message_relayed"
    direction: ClassVar[Direction] = "inbound"
    id: str
    listener: str
    client: str
    helo: str
    sender_domain: str
    recipients: int
    octets: int
    seconds: float
    reply: str
    reason: str = ""
    tls_version: str = ""
    cipher: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTls(Event):
    """A client's TLS handshake was done, or failed (`cause` set, bounded words: see tls.outcome)."""

    name: ClassVar[str] = "inbound_tls"
    severity: ClassVar[Severity] = "debug"
    session: str
    listener: str
    client: str
    tls_version: str = ""
    cipher: str = ""
    group: str = ""
    sni: str = ""
    certificate: str = ""
    cause: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleShadowed(Event):
    """An inbound rule in shadow would have refused, or been met."""

    name: ClassVar[str] = "rule_shadowed"
    id: str
    rule: str
    would: Literal["accept", "refuse"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitHit(Event):
    """A client, or all together, reached a limit of an inbound listener; `limit` is the setting's word."""

    name: ClassVar[str] = "limit_hit"
    severity: ClassVar[Severity] = "warning"
    listener: str
    limit: str
    session: str
    client: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaFailure(Event):
    """The MTA behind an inbound listener could not be used for one client; `step` is where."""

    name: ClassVar[str] = "mta_failure"
    severity: ClassVar[Severity] = "warning"
    listener: str
    mta: str
    session: str
    step: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaState(Event):
    """What is known of the MTA behind an inbound listener changed: starting, ready."""

    name: ClassVar[str] = "mta_state"
    listener: str
    mta: str
    state: str
    step: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaUnproven(MtaState):
    """Clients are served, and nobody knows whether the MTA would relay for strangers: the probe had no clear answer."""

    severity: ClassVar[Severity] = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class MtaAlert(MtaState):
    """Clients are turned away: the MTA is down, refused (it does not take the client's identity) or open_relay (it
    would relay for strangers)."""

    severity: ClassVar[Severity] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateEvent(Event):
    """A listener's certificates: `event` is loaded, reloaded."""

    name: ClassVar[str] = "certificate"
    listener: str
    event: str
    file: str = ""
    names: tuple[str, ...] = ()
    not_after: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateAlert(CertificateEvent):
    """Something is wrong with them: `event` is failed (the old ones are kept), warning, or tlsa (mail hosts that honour
    DANE would refuse them)."""

    severity: ClassVar[Severity] = "warning"
