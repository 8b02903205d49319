"""telemetry.metrics: events as Prometheus metrics."""

import re
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from smtpguard import events
from smtpguard.clock import Clock
from smtpguard.events import (
    AcceptPaused,
    Delivered,
    DeliveryRefused,
    DnsLookup,
    DnssecState,
    Event,
    FinalReplyLost,
    HostOpened,
    HostSkipped,
    IdentityWarning,
    InternalError,
    Lifecycle,
    ListenerBound,
    PolicyObserved,
    RuleWarning,
    SessionClosed,
    SessionOpened,
    StoreError,
    StsAlert,
    StsEvent,
    Violation,
)
from smtpguard.reasons import ReasonCode
from smtpguard.telemetry.metrics import Metrics

AT = datetime(2026, 11, 30, 10, 0, 0, tzinfo=UTC)
CLOCK = Clock(now=lambda: AT, monotonic=lambda: 0.0)
HOST = {"id": "a.1", "domain": "example.org", "mx": "mx1.example.org", "address": "192.0.2.1", "port": 25}

DELIVERED = Delivered(
    **HOST,  # type: ignore[arg-type]
    policy="auto",
    auth="dane",
    tls_version="1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    group="x25519",
    recipients=2,
    octets=1234,
    seconds=0.7,
    reply="250 2.0.0 ok",
)

BOUND = ListenerBound(listener="l", address="127.0.0.1:1", role="outbound", protocol="lmtp")


def opened(**changes: object) -> HostOpened:
    return HostOpened(**{**HOST, "policy": "dane", "tls_version": "1.3", "group": "x25519", **changes})  # type: ignore[arg-type]


def skipped(**changes: object) -> HostSkipped:
    return HostSkipped(**{**HOST, "policy": "dane", "reason": "dane/no-match", **changes})  # type: ignore[arg-type]


def refused(**changes: object) -> DeliveryRefused:
    return DeliveryRefused(**{"id": "a.1", "domain": "d", "reply": "451 4.7.5", "stage": "rcpt", **changes})  # type: ignore[arg-type]


def counted(*happened: Event) -> Metrics:
    metrics = Metrics(CLOCK, "0.1.0")
    for event in happened:
        metrics.emit(event)
    return metrics


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"smtpguard_{name}", labels)


RELAYED = events.MessageRelayed(
    id="a.1",
    listener="l",
    client="c",
    helo="h",
    sender_domain="d",
    recipients=1,
    octets=99,
    seconds=0.5,
    reply="250 ok",
)
SESSION = {"direction": "outbound", "session": "s", "listener": "l", "peer": "p"}
CLOSED = SessionClosed(**SESSION, cause="quit", seconds=1.0, transactions=1)  # type: ignore[arg-type]
LOOKUP = DnsLookup(qname="q", rdtype="MX", status="secure", seconds=0.02, resolver="r")


@pytest.mark.parametrize(
    ("event", "name", "labels", "expected"),
    [
        (DELIVERED, "deliveries_total", {"auth": "dane", "policy": "auto"}, 1),
        (DELIVERED, "message_octets_total", {}, 1234),
        (DELIVERED, "delivery_seconds_count", {}, 1),
        (DELIVERED, "delivery_seconds_sum", {}, 0.7),
        (
            refused(reason="dane/no-match"),
            "refusals_total",
            {"direction": "outbound", "reason": "dane/no-match"},
            1,
        ),
        (
            refused(relayed=True, reply="550 5.1.1 no"),
            "refusals_total",
            {"direction": "outbound", "reason": "relayed/5xx"},
            1,
        ),
        (
            refused(relayed=True, reply="450 4.2.0 later"),
            "refusals_total",
            {"direction": "outbound", "reason": "relayed/4xx"},
            1,
        ),
        (
            refused(direction="inbound", reason="internal"),
            "refusals_total",
            {"direction": "inbound", "reason": "internal"},
            1,
        ),
        (skipped(), "hosts_skipped_total", {"reason": "dane/no-match"}, 1),
        (skipped(tls_version="1.2"), "tls_connections_total", {"version": "1.2", "group": "none"}, 1),
        (skipped(), "tls_connections_total", {"version": "none", "group": "none"}, None),
        (opened(), "hosts_opened_total", {"reused": "false"}, 1),
        (opened(), "tls_connections_total", {"version": "1.3", "group": "x25519"}, 1),
        (opened(reused=True), "hosts_opened_total", {"reused": "true"}, 1),
        (opened(reused=True), "tls_connections_total", {"version": "1.3", "group": "x25519"}, None),
        (
            PolicyObserved(**HOST, policy="sts", kind="sts-testing", would="refuse"),  # type: ignore[arg-type]
            "policy_observed_total",
            {"kind": "sts-testing", "would": "refuse"},
            1,
        ),
        (
            events.Intercepted(id="a.1", domain="d", original="192.0.2.1:25", verdict="mapped", mx="m"),
            "intercepted_total",
            {"verdict": "mapped"},
            1,
        ),
        (
            events.InterceptedElsewhere(id="a.1", domain="d", original="192.0.2.1:25", verdict="rerouted"),
            "intercepted_total",
            {"verdict": "rerouted"},
            1,
        ),
        (
            FinalReplyLost(id="a.1", domain="d", mx="m", side="upstream"),
            "final_replies_lost_total",
            {"side": "upstream"},
            1,
        ),
        (
            Violation(direction="inbound", kind="nul", session="s", peer="p"),
            "violations_total",
            {"direction": "inbound", "kind": "nul"},
            1,
        ),
        (SessionOpened(**SESSION), "sessions_open", {"direction": "outbound"}, 1),  # type: ignore[arg-type]
        (CLOSED, "sessions_total", {"direction": "outbound", "cause": "quit"}, 1),
        (LOOKUP, "dns_lookups_total", {"status": "secure"}, 1),
        (LOOKUP, "dns_lookup_seconds_count", {}, 1),
        (StsEvent(event="fetched", domain="d"), "sts_events_total", {"event": "fetched"}, 1),
        (StsAlert(event="refresh_failed", domain="d"), "sts_events_total", {"event": "refresh_failed"}, 1),
        (BOUND, "listeners", {"role": "outbound", "protocol": "lmtp"}, 1),
        (IdentityWarning(listener="l", detail="d"), "identity_warnings_total", {}, 1),
        (RuleWarning(rule="r", domain="d", kind="weaker", detail=""), "rule_warnings_total", {"kind": "weaker"}, 1),
        (RELAYED, "messages_relayed_total", {"reply": "2xx"}, 1),
        (RELAYED, "relayed_octets_total", {}, 99),
        (RELAYED, "relay_seconds_sum", {}, 0.5),
        (
            events.InboundTls(session="s", listener="l", client="c", tls_version="1.3", cipher="C", group="G"),
            "client_tls_connections_total",
            {"version": "1.3", "cipher": "C", "group": "G"},
            1,
        ),
        (
            events.InboundTls(session="s", listener="l", client="c", cause="timeout"),
            "client_handshake_failures_total",
            {"cause": "timeout"},
            1,
        ),
        (
            events.LimitHit(listener="l", limit="errors", session="s", client="c"),
            "limits_hit_total",
            {"limit": "errors"},
            1,
        ),
        (
            events.MtaFailure(listener="l", mta="m", session="s", step="connect", detail=""),
            "mta_failures_total",
            {"step": "connect"},
            1,
        ),
        (events.MtaState(listener="l", mta="m", state="ready"), "mta_state", {"listener": "l", "state": "ready"}, 1),
        (events.MtaAlert(listener="l", mta="m", state="down"), "mta_state", {"listener": "l", "state": "ready"}, 0),
        (events.RuleShadowed(id="a.1", rule="r", would="refuse"), "rules_shadowed_total", {"would": "refuse"}, 1),
        (
            events.CertificateEvent(listener="l", event="loaded", names=("n",), not_after=AT.isoformat()),
            "certificate_not_after_timestamp_seconds",
            {"listener": "l", "name": "n"},
            AT.timestamp(),
        ),
        (events.CertificateAlert(listener="l", event="failed"), "certificate_events_total", {"event": "failed"}, 1),
        (AcceptPaused(listener="l", detail="EMFILE"), "accept_pauses_total", {}, 1),
        (InternalError(where="w", session="s", error="e"), "internal_errors_total", {}, 1),
        (StoreError(store="sts", detail="d"), "store_errors_total", {"store": "sts"}, 1),
        (DnssecState(state="never validated", detail=""), "dnssec_state", {"state": "never-validated"}, 1),
        (Lifecycle(stage="started"), "config_last_reload_successful", {}, 1),
        (Lifecycle(stage="reloaded"), "config_last_reload_success_timestamp_seconds", {}, AT.timestamp()),
    ],
)
def test_each_event_is_counted_under_the_designs_name(
    event: Event, name: str, labels: dict[str, str], expected: float | None
) -> None:
    assert value(counted(event), name, **labels) == expected


def test_every_event_of_the_catalogue_is_counted() -> None:
    catalogue = {
        kind
        for kind in vars(events).values()
        if isinstance(kind, type) and issubclass(kind, Event) and kind not in (Event, events.TlsFacts)
    }
    assert catalogue == set(counted()._counters)


def test_listeners_are_gone_when_draining() -> None:
    metrics = counted(BOUND, BOUND)
    assert value(metrics, "listeners", role="outbound", protocol="lmtp") == 2
    metrics.emit(Lifecycle(stage="draining"))
    assert value(metrics, "listeners", role="outbound", protocol="lmtp") is None


def test_sessions_open_goes_up_and_down() -> None:
    start = SessionOpened(**SESSION)  # type: ignore[arg-type]
    metrics = counted(start, start, CLOSED)
    assert value(metrics, "sessions_open", direction="outbound") == 1


def test_only_the_current_dnssec_state_is_one() -> None:
    metrics = counted(DnssecState(state="validating", detail=""), DnssecState(state="lost", detail="x"))
    assert value(metrics, "dnssec_state", state="lost") == 1
    assert value(metrics, "dnssec_state", state="validating") == 0


def test_a_failed_reload_keeps_the_time_of_the_configuration_in_force() -> None:
    times = iter([AT, AT.replace(hour=11), AT.replace(hour=12)])
    metrics = Metrics(Clock(now=lambda: next(times), monotonic=lambda: 0.0), "0.1.0")
    metrics.emit(Lifecycle(stage="started"))
    metrics.emit(Lifecycle(stage="reload_failed"))
    metrics.emit(Lifecycle(stage="draining"))
    assert value(metrics, "config_last_reload_successful") == 0
    assert value(metrics, "config_last_reload_success_timestamp_seconds") == AT.timestamp()


def test_every_reason_is_a_label_and_nothing_else_is() -> None:
    metrics = counted(*(refused(reason=code.token) for code in ReasonCode))
    for code in ReasonCode:
        assert value(metrics, "refusals_total", direction="outbound", reason=code.token) == 1
    for i in range(500):
        metrics.emit(refused(reason=f"dane/no-match{i}"))
        metrics.emit(skipped(reason=f"host{i}.example.org"))
    assert value(metrics, "refusals_total", direction="outbound", reason="other") == 500
    assert value(metrics, "hosts_skipped_total", reason="other") == 500


def test_labels_take_a_limited_number_of_short_plain_words() -> None:
    metrics = counted()
    for i in range(500):
        metrics.emit(StsEvent(event=f"word{i}", domain="d"))
    metrics.emit(StsEvent(event="word1", domain="d"))
    for word in ("x" * 100, 'a"b', "line\nbreak", "é"):
        metrics.emit(Violation(direction="inbound", kind=word, session="s", peer="p"))
    assert value(metrics, "sts_events_total", event="word1") == 2
    assert value(metrics, "sts_events_total", event="other") == 500 - 64
    assert value(metrics, "violations_total", direction="inbound", kind="other") == 4
    assert len(re.findall(rb"^smtpguard_sts_events_total{", metrics.render("")[1], re.MULTILINE)) == 65


def test_no_domain_host_address_or_session_becomes_a_label() -> None:
    _, body = counted(DELIVERED, opened(), skipped(), refused(mx="mx1.example.org"), LOOKUP, CLOSED).render("")
    for text in (b"example.org", b"192.0.2.1", b'"s"'):
        assert text not in body


def test_render_speaks_both_formats_and_both_parse() -> None:
    metrics = counted(DELIVERED, opened(), skipped())
    content_type, body = metrics.render("")
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert all(name.startswith("smtpguard_") for name in families)
    assert all(family.documentation for family in families.values())
    assert b"_created" not in body
    content_type, body = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_build_info_and_log_drops_are_read_at_the_scrape() -> None:
    dropped = 0
    metrics = Metrics(CLOCK, "9.8.7", log_lines_dropped=lambda: dropped)
    dropped = 3
    assert value(metrics, "log_lines_dropped_total") == 3
    assert b'smtpguard_build_info{python="3.' in metrics.render("")[1]
    assert b'version="9.8.7"} 1.0' in metrics.render("")[1]


def test_two_instances_share_nothing() -> None:
    one, two = counted(DELIVERED), counted()
    assert value(one, "message_octets_total") == 1234
    assert value(two, "message_octets_total") == 0


def test_series_that_alerts_watch_exist_from_the_start() -> None:
    metrics = counted()
    assert value(metrics, "final_replies_lost_total", side="client") == 0
    assert value(metrics, "internal_errors_total") == 0
    assert value(metrics, "sessions_open", direction="outbound") == 0


def test_emit_never_raises() -> None:
    metrics = counted()
    metrics.emit(None)  # type: ignore[arg-type]
    metrics.emit(StsEvent(event=None, domain="d"))  # type: ignore[arg-type]
    metrics.emit(DnsLookup(qname="q", rdtype="MX", status="secure", seconds="x", resolver="r"))  # type: ignore[arg-type]
    assert value(metrics, "internal_errors_total") == 1
