"""Events as Prometheus metrics, rendered for a scrape.

What the metrics are stands in `families`.  Every label is bounded: listed words, or a limited number of short plain
ones; what does not fit is "other", what is missing "none".  No domain, host, address or mail address is ever a label.
Counters count events, and what has no end that an event would tell is read at the scrape (`state`).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any, assert_never, get_args

from OpenSSL import SSL
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from smtpguard.clock import Clock
from smtpguard.events import (
    AcceptPaused,
    CertificateAlert,
    CertificateEvent,
    Delivered,
    DeliveryRefused,
    Direction,
    DnsLookup,
    DnssecAlert,
    DnssecState,
    Event,
    FinalReplyLost,
    HostOpened,
    HostSkipped,
    IdentityWarning,
    InboundTls,
    Intercepted,
    InterceptedElsewhere,
    InternalError,
    Lifecycle,
    LimitHit,
    ListenerBound,
    MessageRelayed,
    MtaAlert,
    MtaFailure,
    MtaState,
    MtaUnproven,
    PolicyObserved,
    ReloadFailed,
    RuleShadowed,
    RuleWarning,
    SessionClosed,
    SessionOpened,
    StoreError,
    StsAlert,
    StsEvent,
    TlsFacts,
    Violation,
)
from smtpguard.telemetry.families import REFUSING, Family, Label
from smtpguard.telemetry.outcomes import RELAYED_4XX, RELAYED_5XX, refusal_reason
from smtpguard.telemetry.state import READ_FAMILIES, State, StateCollector

# Whether the configuration in force is the one in the file.
_CONFIG_STAGES = MappingProxyType({"started": True, "ready": True, "reloaded": True, "reload_failed": False})

_INBOUND_REASONS = ("inbound/", "message/", "internal")

READ = (DnssecState, DnssecAlert, MtaState, MtaUnproven, MtaAlert)
"""Events that change what is read at the scrape, and are not counted."""


class Metrics:
    """The sink, with a registry of its own.

    `read` gives the state at each scrape.
    """

    def __init__(self, clock: Clock, version: str, read: Callable[[], State] = State) -> None:
        self.registry = _Registry(auto_describe=False)
        self._clock = clock
        self._known: dict[tuple[Family, Label], set[str]] = {}
        self._counters: dict[Family, Counter] = {}
        self._gauges: dict[Family, Gauge] = {}
        self._histograms: dict[Family, Histogram] = {}
        for family in Family:
            if family not in READ_FAMILIES:
                self._make(family)
        self.registry.register(StateCollector(read))
        self._set(Family.BUILD_INFO, 1, version, ".".join(map(str, sys.version_info[:3])), _openssl_version())
        self._begin_at_zero()
        ProcessCollector(registry=self.registry)

        # Any: each function takes the type it is listed under.
        self._counting: dict[type[Event], Callable[[Any], None]] = {
            Delivered: self._delivered,
            DeliveryRefused: self._refused,
            HostOpened: self._host_opened,
            HostSkipped: self._host_skipped,
            PolicyObserved: lambda e: self._count(Family.POLICIES_OBSERVED, e.kind, e.would),
            Intercepted: lambda e: self._count(Family.INTERCEPTED, e.verdict),
            InterceptedElsewhere: lambda e: self._count(Family.INTERCEPTED, e.verdict),
            FinalReplyLost: lambda e: self._count(Family.FINAL_REPLIES_LOST, e.direction, e.side),
            Violation: lambda e: self._count(Family.VIOLATIONS, e.direction, e.kind),
            SessionOpened: lambda e: self._add(Family.SESSIONS_OPEN, 1, e.direction),
            SessionClosed: self._session_closed,
            DnsLookup: self._dns_lookup,
            StsEvent: lambda e: self._count(Family.STS_EVENTS, e.event),
            StsAlert: lambda e: self._count(Family.STS_EVENTS, e.event),
            RuleWarning: lambda e: self._count(Family.RULE_WARNINGS, e.kind),
            ListenerBound: lambda e: self._add(Family.LISTENERS, 1, e.role, e.protocol),
            IdentityWarning: lambda e: self._count(Family.IDENTITY_WARNINGS),
            AcceptPaused: lambda e: self._count(Family.ACCEPT_PAUSES),
            InternalError: lambda e: self._count(Family.INTERNAL_ERRORS),
            StoreError: lambda e: self._count(Family.STORE_ERRORS),
            Lifecycle: self._lifecycle,
            ReloadFailed: self._lifecycle,
            MessageRelayed: self._message_relayed,
            InboundTls: self._inbound_tls,
            LimitHit: lambda e: self._count(Family.LIMITS_HIT, e.limit),
            MtaFailure: lambda e: self._count(Family.MTA_FAILURES, e.step),
            RuleShadowed: lambda e: self._count(Family.RULES_SHADOWED, e.would),
            CertificateEvent: lambda e: self._count(Family.CERTIFICATE_EVENTS, e.event),
            CertificateAlert: lambda e: self._count(Family.CERTIFICATE_EVENTS, e.event),
        }

    def emit(self, event: Event) -> None:
        """Counts the event; never blocks and never raises."""
        try:
            if (count := self._counting.get(type(event))) is not None:
                count(event)
        except Exception:  # noqa: BLE001 - the boundary of a sink: counting must not end a session
            self._counters[Family.INTERNAL_ERRORS].inc()

    def render(self, accept: str) -> tuple[str, bytes]:
        """`(content type, body)` of a scrape, in the format that `Accept` asks for; text where it makes no sense."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the library compares a version with what is none
            encode, content_type = choose_encoder("")
        return content_type, encode(self.registry)

    # -- what an event means

    def _delivered(self, event: Delivered) -> None:
        self._count(Family.DELIVERIES, event.auth, event.policy)
        self._count(Family.DELIVERED_BYTES, by=max(event.octets, 0))
        self._observe(Family.DELIVERY_DURATION, event.seconds)

    def _refused(self, event: DeliveryRefused) -> None:
        self._count(Family.REFUSALS, event.direction, refusal_reason(event))

    def _host_opened(self, event: HostOpened) -> None:
        self._count(Family.HOSTS_OPENED, "true" if event.reused else "false")
        if not event.reused:
            self._observe(Family.HOST_OPEN_DURATION, event.seconds)
            self._host_tls(event)

    def _host_skipped(self, event: HostSkipped) -> None:
        self._count(Family.HOSTS_SKIPPED, event.reason)
        self._host_tls(event)

    def _host_tls(self, event: TlsFacts) -> None:
        if event.tls_version:
            self._count(Family.TLS_CONNECTIONS, "outbound", event.tls_version, event.cipher, event.group)

    def _session_closed(self, event: SessionClosed) -> None:
        self._count(Family.SESSIONS, event.direction, event.cause)
        self._add(Family.SESSIONS_OPEN, -1, event.direction)

    def _dns_lookup(self, event: DnsLookup) -> None:
        self._count(Family.DNS_LOOKUPS, event.status)
        self._observe(Family.DNS_LOOKUP_DURATION, event.seconds)

    def _message_relayed(self, event: MessageRelayed) -> None:
        self._count(Family.MESSAGES_RELAYED, f"{event.reply[:1]}xx", event.tls_version)
        self._count(Family.RELAYED_BYTES, by=max(event.octets, 0))
        self._observe(Family.RELAY_DURATION, event.seconds)
        if event.reason:
            self._count(Family.REFUSALS, "inbound", event.reason)

    def _inbound_tls(self, event: InboundTls) -> None:
        if event.cause:
            self._count(Family.CLIENT_HANDSHAKE_FAILURES, event.cause)
        else:
            self._count(Family.TLS_CONNECTIONS, "inbound", event.tls_version, event.cipher, event.group)

    def _lifecycle(self, event: Lifecycle) -> None:
        if event.stage == "draining":
            self._gauges[Family.LISTENERS].clear()
        if (loaded := _CONFIG_STAGES.get(event.stage)) is None:
            return
        self._set(Family.CONFIG_LAST_RELOAD_SUCCESSFUL, loaded)
        if event.stage in ("started", "reloaded"):
            self._set(Family.CONFIG_LAST_RELOAD_SUCCESS, self._clock.now().timestamp())

    # -- the metrics

    def _make(self, family: Family) -> None:
        labels = [label.name for label in family.labels]
        match family.kind:
            case "counter":
                self._counters[family] = Counter(family.metric, family.text, labels, registry=self.registry)
            case "gauge":
                self._gauges[family] = Gauge(family.metric, family.text, labels, registry=self.registry)
            case "histogram":
                self._histograms[family] = Histogram(
                    family.metric, family.text, labels, buckets=family.buckets, registry=self.registry
                )
            case _:
                assert_never(family.kind)

    def _begin_at_zero(self) -> None:
        """Series that are known beforehand exist before the first event, so that `rate` sees the first one."""
        for family, counter in self._counters.items():
            if family is Family.REFUSALS:
                for direction, reason in _refusals():
                    counter.labels(direction, reason)
            elif family.labels and family.is_closed:
                for words in product(*(label.values for label in family.labels)):
                    counter.labels(*words)
        for direction in get_args(Direction):
            self._add(Family.SESSIONS_OPEN, 0, direction)

    def _count(self, family: Family, *words: str, by: float = 1) -> None:
        counter = self._counters[family]
        (counter.labels(*self._words(family, words)) if words else counter).inc(by)

    def _add(self, family: Family, amount: float, *words: str) -> None:
        self._gauges[family].labels(*self._words(family, words)).inc(amount)

    def _set(self, family: Family, value: float, *words: str) -> None:
        gauge = self._gauges[family]
        (gauge.labels(*self._words(family, words)) if words else gauge).set(value)

    def _observe(self, family: Family, value: float) -> None:
        self._histograms[family].observe(value)

    def _words(self, family: Family, words: Sequence[str]) -> list[str]:
        """`words` as values of the family's labels."""
        return [
            label.word(word, self._known.setdefault((family, label), set()))
            for label, word in zip(family.labels, words, strict=True)
        ]


def _refusals() -> Iterator[tuple[str, str]]:
    """Direction and reason of the refusals there can be."""
    for reason in REFUSING:
        if reason.startswith(_INBOUND_REASONS):
            yield "inbound", reason
        if not reason.startswith("inbound/"):
            yield "outbound", reason
    yield "outbound", RELAYED_4XX
    yield "outbound", RELAYED_5XX


def _openssl_version() -> str:
    """`3.5.1` of `OpenSSL 3.5.1 1 Jul 2025`: the library below pyOpenSSL, not the interpreter's own."""
    words = SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "replace").split()
    return words[1] if len(words) > 1 else "unknown"


class _Registry(CollectorRegistry):
    """Without the `_created` series, one more for each counter and histogram, which nothing here reads.

    The library's own switch for them is a global of the process.
    """

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
