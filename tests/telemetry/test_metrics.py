"""telemetry.metrics: events as Prometheus metrics."""

import platform
import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography.hazmat.backends.openssl.backend import backend
from prometheus_client.parser import text_string_to_metric_families

from smtpguard import events
from smtpguard.clock import Clock
from smtpguard.events import (
    AcceptPaused,
    Delivered,
    DeliveryRefused,
    DnsLookup,
    Event,
    FinalReplyLost,
    HostOpened,
    HostSkipped,
    IdentityWarning,
    InternalError,
    Lifecycle,
    ListenerBound,
    PolicyObserved,
    ReloadFailed,
    RuleWarning,
    SessionClosed,
    SessionOpened,
    StoreError,
    StsAlert,
    StsEvent,
    Violation,
)
from smtpguard.inbound.settings import InboundListener
from smtpguard.mtasts.parse import Mode
from smtpguard.reasons import ReasonCode
from smtpguard.telemetry.families import Family
from smtpguard.telemetry.metrics import READ, Metrics
from smtpguard.telemetry.state import ServedCertificate, State

PROCESS = (
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_cpu_seconds_total",
)
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

TLS = {"direction": "outbound", "tls_version": "1.3", "cipher": "none", "group": "x25519"}
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
        (DELIVERED, "delivered_bytes_total", {}, 1234),
        (DELIVERED, "delivery_duration_seconds_count", {}, 1),
        (DELIVERED, "delivery_duration_seconds_sum", {}, 0.7),
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
        (skipped(tls_version="1.2"), "tls_connections_total", {**TLS, "tls_version": "1.2", "group": "none"}, 1),
        (skipped(), "tls_connections_total", {**TLS, "tls_version": "none", "group": "none"}, None),
        (opened(), "hosts_opened_total", {"reused": "false"}, 1),
        (opened(seconds=0.5), "host_open_duration_seconds_sum", {}, 0.5),
        (opened(), "tls_connections_total", TLS, 1),
        (opened(reused=True), "hosts_opened_total", {"reused": "true"}, 1),
        (opened(reused=True, seconds=0.5), "host_open_duration_seconds_count", {}, 0),
        (opened(reused=True), "tls_connections_total", TLS, None),
        (
            PolicyObserved(**HOST, policy="sts", kind="sts-testing", would="refuse"),  # type: ignore[arg-type]
            "policies_observed_total",
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
            {"direction": "outbound", "side": "upstream"},
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
        (LOOKUP, "dns_lookup_duration_seconds_count", {}, 1),
        (StsEvent(event="fetched", domain="d"), "sts_events_total", {"event": "fetched"}, 1),
        (StsAlert(event="refresh_failed", domain="d"), "sts_events_total", {"event": "refresh_failed"}, 1),
        (BOUND, "listeners", {"role": "outbound", "protocol": "lmtp"}, 1),
        (IdentityWarning(listener="l", detail="d"), "identity_warnings_total", {}, 1),
        (
            RuleWarning(direction="outbound", rule="r", domain="d", kind="weaker", detail=""),
            "rule_warnings_total",
            {"kind": "weaker"},
            1,
        ),
        (RELAYED, "messages_relayed_total", {"reply": "2xx", "tls_version": "none"}, 1),
        (RELAYED, "relayed_bytes_total", {}, 99),
        (RELAYED, "relay_duration_seconds_sum", {}, 0.5),
        (
            events.InboundTls(session="s", listener="l", client="c", tls_version="1.3", cipher="C", group="G"),
            "tls_connections_total",
            {"direction": "inbound", "tls_version": "1.3", "cipher": "C", "group": "G"},
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
        (events.RuleShadowed(id="a.1", rule="r", would="refuse"), "rules_shadowed_total", {"would": "refuse"}, 1),
        (events.CertificateEvent(listener="l", event="loaded"), "certificate_events_total", {"event": "loaded"}, 1),
        (events.CertificateAlert(listener="l", event="failed"), "certificate_events_total", {"event": "failed"}, 1),
        (AcceptPaused(listener="l", detail="EMFILE"), "accept_pauses_total", {}, 1),
        (InternalError(where="w", session="s", error="e"), "internal_errors_total", {}, 1),
        (StoreError(store="/var/lib/x", detail="d"), "store_errors_total", {}, 1),
        (Lifecycle(stage="started"), "config_last_reload_successful", {}, 1),
        (ReloadFailed(), "config_last_reload_successful", {}, 0),
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
    assert catalogue == set(counted()._counting) | set(READ)


def test_listeners_are_gone_when_draining() -> None:
    metrics = counted(BOUND, BOUND)
    assert value(metrics, "listeners", role="outbound", protocol="lmtp") == 2
    metrics.emit(Lifecycle(stage="draining"))
    assert value(metrics, "listeners", role="outbound", protocol="lmtp") is None


@pytest.mark.parametrize("tls", ["starttls", "implicit", "none"])
def test_every_inbound_listener_is_shown_by_its_protocol(tls: str) -> None:
    protocol = InboundListener.protocol.fget(SimpleNamespace(tls=tls))  # type: ignore[attr-defined]
    metrics = counted(ListenerBound(listener="l", address="127.0.0.1:1", role="inbound", protocol=protocol))
    assert value(metrics, "listeners", role="inbound", protocol=protocol) == 1


def test_sessions_open_goes_up_and_down() -> None:
    start = SessionOpened(**SESSION)  # type: ignore[arg-type]
    metrics = counted(start, start, CLOSED)
    assert value(metrics, "sessions_open", direction="outbound") == 1


def test_a_failed_reload_keeps_the_time_of_the_configuration_in_force() -> None:
    times = iter([AT, AT.replace(hour=11), AT.replace(hour=12)])
    metrics = Metrics(Clock(now=lambda: next(times), monotonic=lambda: 0.0), "0.1.0")
    metrics.emit(Lifecycle(stage="started"))
    metrics.emit(ReloadFailed(detail="x"))
    metrics.emit(Lifecycle(stage="draining"))
    assert value(metrics, "config_last_reload_successful") == 0
    assert value(metrics, "config_last_reload_success_timestamp_seconds") == AT.timestamp()


def test_every_reason_is_a_label_and_nothing_else_is() -> None:
    refusing = [code for code in ReasonCode if code.reply_code >= 400]
    metrics = counted(*(refused(reason=code.token) for code in refusing))
    for code in refusing:
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
    assert all(name.startswith("smtpguard_") or name in (*PROCESS, "process_cpu_seconds") for name in families)
    assert all(family.documentation for family in families.values())
    assert b"_created" not in body
    content_type, body = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("accept", ["text/plain; version=abc", "application/openmetrics-text; version=1.x", ",;="])
def test_an_accept_header_that_makes_no_sense(accept: str) -> None:
    """Whoever reaches the address may send any: it is no bug of ours."""
    content_type, body = counted().render(accept)
    assert content_type.startswith("text/plain")
    assert b"smtpguard_build_info{" in body


def test_build_info_says_what_runs() -> None:
    """The OpenSSL is the one that speaks TLS with the world; the interpreter has one of its own."""
    [info] = re.findall(rb"^smtpguard_build_info\{.*", Metrics(CLOCK, "9.8.7").render("")[1], re.MULTILINE)
    assert b'version="9.8.7"' in info
    assert f'python="{platform.python_version()}"'.encode() in info
    assert f'openssl="{backend.openssl_version_text().split()[1]}"'.encode() in info


STATE = State(
    ready=True,
    restart_needed=True,
    log_lines_dropped=3,
    dnssec="lost",
    canary_verdict="unreachable",
    sts_policies={Mode.ENFORCE: 7},
    sts_refresh_failing=2,
    pool_connections=5,
    mta_states={"mx": "down"},
    certificates=(ServedCertificate("mx", "/etc/tls.pem", "mx.example.org", AT),),
    self_check_problems={"mx": 1},
)


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("ready", {}, 1),
        ("config_restart_needed", {}, 1),
        ("log_lines_dropped_total", {}, 3),
        ("dnssec_state", {"state": "lost"}, 1),
        ("dnssec_state", {"state": "validating"}, 0),
        ("dnssec_state", {"state": "untrusted"}, 0),
        ("canary_verdict", {"verdict": "unreachable"}, 1),
        ("canary_verdict", {"verdict": "none"}, 0),
        ("sts_policies", {"mode": "enforce"}, 7),
        ("sts_policies", {"mode": "testing"}, 0),
        ("sts_refresh_failing", {}, 2),
        ("pool_connections", {}, 5),
        ("mta_state", {"listener": "mx", "state": "down"}, 1),
        ("mta_state", {"listener": "mx", "state": "ready"}, 0),
        (
            "certificate_not_after_timestamp_seconds",
            {"listener": "mx", "file": "/etc/tls.pem", "name": "mx.example.org"},
            AT.timestamp(),
        ),
        ("dane_self_check_problems", {"listener": "mx"}, 1),
    ],
)
def test_state_is_read_at_the_scrape(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(Metrics(CLOCK, "1", lambda: STATE), name, **labels) == expected


def test_what_a_reload_took_away_is_gone_at_the_next_scrape() -> None:
    states = iter([STATE, State()])
    metrics = Metrics(CLOCK, "1", lambda: next(states))
    assert b"/etc/tls.pem" in metrics.render("")[1]
    assert b"/etc/tls.pem" not in metrics.render("")[1]


def test_certificates_are_bounded_and_those_that_end_first_are_shown() -> None:
    many = [ServedCertificate("l", f"/{day}/{'x' * 500}", "n", AT + timedelta(days=day)) for day in range(2000)]
    _, body = Metrics(CLOCK, "1", lambda: State(certificates=tuple(reversed(many)))).render("")
    shown = re.findall(rb'^smtpguard_certificate_not_after_timestamp_seconds{.*file="/(\d+)/.*', body, re.MULTILINE)
    assert [int(day) for day in shown] == list(range(500))
    assert max(map(len, body.splitlines())) < 400


def test_a_certificate_named_twice_is_one_series_with_the_sooner_end() -> None:
    twice = tuple(ServedCertificate("l", "f", "n", AT + timedelta(days=days)) for days in (9, 2))
    metrics = Metrics(CLOCK, "1", lambda: State(certificates=twice))
    _, body = metrics.render("")
    assert body.count(b"\nsmtpguard_certificate_not_after_timestamp_seconds{") == 1
    end = value(metrics, "certificate_not_after_timestamp_seconds", listener="l", file="f", name="n")
    assert end == (AT + timedelta(days=2)).timestamp()


def test_every_metric_of_the_table_is_exposed_with_its_labels() -> None:
    """Each family is made once, by the sink or by the state: help, type and label names are the table's."""
    metrics = Metrics(CLOCK, "1", lambda: STATE)
    exposed = {family.name: family for family in metrics.registry.collect()}
    for family in Family:
        found = exposed[family.metric.removesuffix("_total")]
        assert (found.type, found.documentation) == (family.kind, family.text)
        for sample in found.samples:
            assert set(sample.labels) - {"le"} == {label.name for label in family.labels}
    ours = {family.metric.removesuffix("_total") for family in Family}
    assert {name for name in exposed if name.startswith("smtpguard_")} == ours


def test_names_follow_prometheus() -> None:
    """Counters end in _total, times in seconds, sizes in bytes; no label repeats the metric's name."""
    for family in Family:
        assert re.fullmatch(r"smtpguard_[a-z]+(_[a-z]+)*", family.metric)
        assert family.metric.endswith("_total") == (family.kind == "counter")
        assert (family.kind == "histogram") == bool(family.buckets)
        assert family.kind != "histogram" or family.metric.endswith("_duration_seconds")
        assert family.text.endswith(".")
        assert not re.search("octets|millis|minutes", family.metric)


def test_the_process_shows_its_start_and_its_descriptors() -> None:
    _, body = counted().render("")
    for name in PROCESS:
        assert f"\n{name} ".encode() in body


def test_two_instances_share_nothing() -> None:
    one, two = counted(DELIVERED), counted()
    assert value(one, "delivered_bytes_total") == 1234
    assert value(two, "delivered_bytes_total") == 0


def test_series_that_alerts_watch_exist_from_the_start() -> None:
    metrics = counted()
    assert value(metrics, "final_replies_lost_total", direction="inbound", side="client") == 0
    assert value(metrics, "internal_errors_total") == 0
    assert value(metrics, "refusals_total", direction="outbound", reason="dane/no-match") == 0
    assert value(metrics, "refusals_total", direction="outbound", reason="relayed/5xx") == 0
    assert value(metrics, "refusals_total", direction="inbound", reason="inbound/tls-required") == 0
    assert value(metrics, "refusals_total", direction="inbound", reason="dane/no-match") is None
    assert value(metrics, "limits_hit_total", limit="sessions_per_client") == 0
    assert value(metrics, "certificate_events_total", event="failed") == 0
    assert value(metrics, "sessions_open", direction="outbound") == 0


def test_emit_never_raises() -> None:
    metrics = counted()
    metrics.emit(None)  # type: ignore[arg-type]
    metrics.emit(StsEvent(event=None, domain="d"))  # type: ignore[arg-type]
    metrics.emit(DnsLookup(qname="q", rdtype="MX", status="secure", seconds="x", resolver="r"))  # type: ignore[arg-type]
    assert value(metrics, "internal_errors_total") == 1
