"""How many, how long, in which state?  The events as Prometheus metrics.

Names have the prefix `smtpguard_`, base units, and `_total` for counters.  A label only ever holds a word
of our own (a reason's token, a kind, a level), never a domain, host or address; and each label takes a
limited number of different words, after which it says `other`, so that no peer and no bug can make series
without end.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from smtpguard.clock import Clock
from smtpguard.events import (
    AcceptPaused,
    CertificateAlert,
    CertificateEvent,
    Delivered,
    DeliveryRefused,
    DnsLookup,
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
    PolicyObserved,
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
from smtpguard.reasons import ReasonCode

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,47}")
_WORDS_A_LABEL = 64
_REASONS = frozenset(code.token for code in ReasonCode)
_OTHER = "other"
_NONE = "none"

_DELIVERY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 240, 600)
_DNS_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Whether the configuration in force is the one in the file.
_MTA_STATES = ("starting", "ready", "down", "refused", "open_relay")
_CONFIG_STAGES = MappingProxyType({"started": True, "ready": True, "reloaded": True, "reload_failed": False})


class Metrics:
    """The sink, with a registry of its own.

    `log_lines_dropped` is read at each scrape: those lines cannot be events.
    """

    def __init__(self, clock: Clock, version: str, log_lines_dropped: Callable[[], int] = lambda: 0) -> None:
        self.registry = _Registry(auto_describe=False)
        self._clock = clock
        self._words: dict[str, set[str]] = {}
        self._dnssec_state = ""

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"smtpguard_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"smtpguard_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(f"smtpguard_{name}", text, buckets=tuple(buckets), registry=self.registry)

        self._deliveries = counter("deliveries", "Messages the next hop took responsibility for", "auth", "policy")
        self._octets = counter("message_octets", "Content octets of delivered messages")
        self._delivery_seconds = histogram(
            "delivery_seconds", "Time from the sender's command to the final reply", _DELIVERY_SECONDS
        )
        self._refusals = counter("refusals", "Refusals and deferrals, by reason", "direction", "reason")
        self._skipped = counter("hosts_skipped", "Hosts passed over, by reason", "reason")
        self._opened = counter("hosts_opened", "Hosts that showed what was required", "reused")
        self._tls = counter("tls_connections", "TLS connections made to hosts", "version", "group")
        self._observed = counter(
            "policy_observed", "What policies judged but not enforced would have done", "kind", "would"
        )
        self._intercepted = counter(
            "intercepted", "Deliveries of intercepted connections, by whose the original address is", "verdict"
        )
        self._lost = counter("final_replies_lost", "Messages that may be duplicated by a retry", "side")
        self._sts = counter("sts_events", "What happened to MTA-STS policies", "event")
        self._dns = counter("dns_lookups", "DNS queries sent, by outcome", "status")
        self._dns_seconds = histogram("dns_lookup_seconds", "Time of a DNS query", _DNS_SECONDS)
        self._violations = counter("violations", "Protocol violations by peers", "direction", "kind")
        self._sessions = counter("sessions", "Sessions that ended, by cause", "direction", "cause")
        self._open = gauge("sessions_open", "Sessions open now", "direction")
        self._pauses = counter("accept_pauses", "Times accepting paused for lack of descriptors or slots")
        self._rule_warnings = counter("rule_warnings", "Rules that do not do what they seem to", "kind")
        self._identity_warnings = counter(
            "identity_warnings", "Findings against the names and addresses that mail is sent from"
        )
        self._listeners = gauge("listeners", "Sockets that are listened on", "role", "protocol")
        self._internal_errors = counter("internal_errors", "Bugs: exceptions that reached a boundary")
        self._store_errors = counter("store_errors", "Failures to read or write persistent state", "store")
        self._dnssec = gauge("dnssec_state", "1 for what the canary finds the resolver to be", "state")
        self._relayed = counter("messages_relayed", "Clients' messages, by the class of the reply", "reply")
        self._relayed_octets = counter("relayed_octets", "Content octets of clients' messages")
        self._relay_seconds = histogram(
            "relay_seconds", "Time from the go-ahead to the reply to a client's message", _DELIVERY_SECONDS
        )
        self._client_tls = counter("client_tls_connections", "TLS connections of clients", "version", "cipher", "group")
        self._handshake_failures = counter("client_handshake_failures", "Clients' handshakes that failed", "cause")
        self._limits = counter("limits_hit", "Times a limit of an inbound listener was reached", "limit")
        self._mta_failures = counter("mta_failures", "Times the MTA behind could not be used for a client", "step")
        self._mta_state = gauge("mta_state", "1 for what the MTA behind a listener is", "listener", "state")
        self._shadowed = counter("rules_shadowed", "Inbound rules in shadow, by what they would have done", "would")
        self._certificates = counter("certificate_events", "Certificates loaded, kept, or in need of a look", "event")
        self._not_after = gauge(
            "certificate_not_after_timestamp_seconds", "When a served certificate ends", "listener", "name"
        )
        self._reload_ok = gauge("config_last_reload_successful", "Whether the last reload succeeded")
        self._reload_at = gauge(
            "config_last_reload_success_timestamp_seconds", "When the configuration in force was loaded"
        )
        python = ".".join(map(str, sys.version_info[:3]))
        gauge("build_info", "Constant 1; the labels say what runs", "version", "python").labels(version, python).set(1)
        self.registry.register(_LogLinesDropped(log_lines_dropped))
        # Series that alerts watch exist before the first event, so that `rate` sees the first one.
        for direction in ("inbound", "outbound"):
            self._open.labels(direction)
        for side in ("upstream", "client"):
            self._lost.labels(side)

        # Any: each function takes the type it is listed under.
        self._counters: dict[type[Event], Callable[[Any], None]] = {
            Delivered: self._delivered,
            DeliveryRefused: self._refused,
            HostOpened: self._host_opened,
            HostSkipped: self._host_skipped,
            PolicyObserved: self._policy_observed,
            Intercepted: self._intercepted_as,
            InterceptedElsewhere: self._intercepted_as,
            FinalReplyLost: lambda e: self._lost.labels(self._word("side", e.side)).inc(),
            Violation: lambda e: self._violations.labels(e.direction, self._word("kind", e.kind)).inc(),
            SessionOpened: lambda e: self._open.labels(e.direction).inc(),
            SessionClosed: self._session_closed,
            DnsLookup: self._dns_lookup,
            DnssecState: self._dnssec_changed,
            StsEvent: self._sts_event,
            StsAlert: self._sts_event,
            RuleWarning: lambda e: self._rule_warnings.labels(self._word("rule", e.kind)).inc(),
            ListenerBound: self._listener_bound,
            IdentityWarning: lambda e: self._identity_warnings.inc(),
            AcceptPaused: lambda e: self._pauses.inc(),
            InternalError: lambda e: self._internal_errors.inc(),
            StoreError: lambda e: self._store_errors.labels(self._word("store", e.store)).inc(),
            Lifecycle: self._lifecycle,
            MessageRelayed: self._message_relayed,
            InboundTls: self._inbound_tls,
            LimitHit: lambda e: self._limits.labels(self._word("limit", e.limit)).inc(),
            MtaFailure: lambda e: self._mta_failures.labels(self._word("step", e.step)).inc(),
            MtaState: self._mta_changed,
            MtaAlert: self._mta_changed,
            RuleShadowed: lambda e: self._shadowed.labels(self._word("would", e.would)).inc(),
            CertificateEvent: self._certificate,
            CertificateAlert: self._certificate,
        }

    def emit(self, event: Event) -> None:
        """Counts the event; never blocks and never raises."""
        try:
            if (count := self._counters.get(type(event))) is not None:
                count(event)
        except Exception:  # noqa: BLE001 - the boundary of a sink: counting must not end a session
            self._internal_errors.inc()

    def render(self, accept: str) -> tuple[str, bytes]:
        """`(content type, body)` of a scrape, in the format the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self.registry)

    def _delivered(self, event: Delivered) -> None:
        self._deliveries.labels(self._word("auth", event.auth), self._word("policy", event.policy)).inc()
        self._octets.inc(max(event.octets, 0))
        self._delivery_seconds.observe(event.seconds)

    def _refused(self, event: DeliveryRefused) -> None:
        if event.reason:
            reason = _reason(event.reason)
        elif event.relayed:
            # The next hop's own words are its own; the class says whether the mail comes again.
            reason = "relayed/5xx" if event.reply.startswith("5") else "relayed/4xx"
        else:
            reason = _NONE
        self._refusals.labels(event.direction, reason).inc()

    def _host_opened(self, event: HostOpened) -> None:
        self._opened.labels("true" if event.reused else "false").inc()
        if not event.reused:
            self._tls_connection(event)

    def _host_skipped(self, event: HostSkipped) -> None:
        self._skipped.labels(_reason(event.reason)).inc()
        self._tls_connection(event)

    def _tls_connection(self, event: TlsFacts) -> None:
        if event.tls_version:
            version = self._word("version", event.tls_version)
            self._tls.labels(version, self._word("group", event.group)).inc()

    def _policy_observed(self, event: PolicyObserved) -> None:
        self._observed.labels(self._word("observed", event.kind), self._word("would", event.would)).inc()

    def _intercepted_as(self, event: Intercepted) -> None:
        self._intercepted.labels(self._word("verdict", event.verdict)).inc()

    def _session_closed(self, event: SessionClosed) -> None:
        self._sessions.labels(event.direction, self._word("cause", event.cause)).inc()
        self._open.labels(event.direction).dec()

    def _dns_lookup(self, event: DnsLookup) -> None:
        self._dns.labels(self._word("status", event.status)).inc()
        self._dns_seconds.observe(event.seconds)

    def _dnssec_changed(self, event: DnssecState) -> None:
        state = self._word("state", event.state)
        if self._dnssec_state:
            self._dnssec.labels(self._dnssec_state).set(0)
        self._dnssec.labels(state).set(1)
        self._dnssec_state = state

    def _sts_event(self, event: StsEvent) -> None:
        self._sts.labels(self._word("event", event.event)).inc()

    def _listener_bound(self, event: ListenerBound) -> None:
        self._listeners.labels(self._word("role", event.role), self._word("protocol", event.protocol)).inc()

    def _message_relayed(self, event: MessageRelayed) -> None:
        digit = event.reply[:1]
        self._relayed.labels(f"{digit}xx" if digit in "245" else _OTHER).inc()
        self._relayed_octets.inc(max(event.octets, 0))
        self._relay_seconds.observe(event.seconds)
        if event.reason:
            self._refusals.labels("inbound", _reason(event.reason)).inc()

    def _inbound_tls(self, event: InboundTls) -> None:
        if event.cause:
            self._handshake_failures.labels(self._word("handshake", event.cause)).inc()
            return
        version, cipher = self._word("version", event.tls_version), self._word("cipher", event.cipher)
        self._client_tls.labels(version, cipher, self._word("group", event.group)).inc()

    def _mta_changed(self, event: MtaState) -> None:
        listener = self._word("listener", event.listener)
        for state in _MTA_STATES:
            self._mta_state.labels(listener, state).set(state == event.state)

    def _certificate(self, event: CertificateEvent) -> None:
        self._certificates.labels(self._word("certificate", event.event)).inc()
        if event.not_after and event.names:
            labels = self._word("listener", event.listener), self._word("name", event.names[0])
            self._not_after.labels(*labels).set(datetime.fromisoformat(event.not_after).timestamp())

    def _lifecycle(self, event: Lifecycle) -> None:
        if event.stage == "draining":
            self._listeners.clear()
        if (loaded := _CONFIG_STAGES.get(event.stage)) is None:
            return
        self._reload_ok.set(loaded)
        if event.stage in ("started", "reloaded"):
            self._reload_at.set(self._clock.now().timestamp())

    def _word(self, label: str, word: str) -> str:
        """`word` as a value of `label`: a short plain word, and not more than 64 different ones."""
        if not word:
            return _NONE
        word = word.replace(" ", "-")
        known = self._words.setdefault(label, set())
        if word not in known:
            if len(known) >= _WORDS_A_LABEL or _WORD.fullmatch(word) is None:
                return _OTHER
            known.add(word)
        return word


def _reason(token: str) -> str:
    """A reason's token; anything else would be a series a peer could choose."""
    if token in _REASONS:
        return token
    return _OTHER if token else _NONE


class _Registry(CollectorRegistry):
    """Without the `_created` series, one more for each counter and histogram, which nothing here reads.

    The library's own switch for them is a global of the process.
    """

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _LogLinesDropped(Collector):
    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "smtpguard_log_lines_dropped",
            "Log lines lost to a full queue or a failing stream",
            value=self._read(),
        )
