"""Writes the Grafana dashboard: `python tools/dashboard.py > deploy/grafana/dashboard.json`.

Rows of panels, each with its expressions; the layout and what all panels share is made here.  Every expression is of
the instances that were chosen (`HERE`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HERE = 'job=~"$job",instance=~"$instance"'
_COLUMNS = 24
_HEIGHT = 8
_STAT_HEIGHT = 4
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; `queries` are pairs of legend and expression.  Below the numbers of `below` a
    stat or table turns orange, then red; below a single one red."""

    title: str
    text: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    below: tuple[float, ...] = ()
    options: Json = field(default_factory=dict)


def rate(metric: str, matchers: str = "") -> str:
    """Per second, of the chosen instances."""
    return f"rate(smtpguard_{metric}{{{HERE}{',' if matchers else ''}{matchers}}}[$__rate_interval])"


def by(labels: str, expression: str) -> str:
    """Summed by these labels, without the series that are idle."""
    return f"sum by ({labels}) ({expression}) > 0"


def hourly(metric: str, matchers: str = "") -> str:
    """Within the last hour."""
    return f"increase(smtpguard_{metric}{{{HERE}{',' if matchers else ''}{matchers}}}[1h])"


def gauge(metric: str, matchers: str = "") -> str:
    """As it is."""
    return f"smtpguard_{metric}{{{HERE}{',' if matchers else ''}{matchers}}}"


def total(expression: str) -> str:
    """Of all chosen instances."""
    return f"sum({expression})"


def share(part: str, whole: str) -> str:
    """Of 1; 0 where there is no such part, no value where there is no whole."""
    return f"(sum({part}) or vector(0)) / (sum({whole}) > 0)"


def quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """Median, 95 % and 99 %."""
    buckets = f"sum by (le) ({rate(f'{histogram}_bucket')})"
    return tuple((f"{q:.0%}", f"histogram_quantile({q}, {buckets})") for q in (0.5, 0.95, 0.99))


def mean(histogram: str) -> tuple[str, str]:
    """The mean."""
    return ("mean", f"sum({rate(f'{histogram}_sum')}) / sum({rate(f'{histogram}_count')})")


_CERTIFICATE = gauge("certificate_not_after_timestamp_seconds")

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Ready", "Does every instance take mail?", (("", f"min({gauge('ready')})"),),
              "bool_yes_no", "stat", 3, below=(1,)),
        Panel("Outbound over TLS", "Share of the last hour's delivered messages that left over TLS.",
              (("", "1 - " + share(hourly("deliveries_total", 'auth="clear"'), hourly("deliveries_total"))),),
              "percentunit", "stat", 3),
        Panel("Outbound to a proven host", "Share of them whose host proved who it is, by DANE, MTA-STS or a rule.",
              (("", share(hourly("deliveries_total", 'auth=~"dane|pkix|fingerprint"'), hourly("deliveries_total"))),),
              "percentunit", "stat", 3),
        Panel("Inbound over TLS", "Share of the last hour's clients' messages that came over TLS.",
              (("", "1 - " + share(hourly("messages_relayed_total", 'tls_version="none"'),
                                   hourly("messages_relayed_total"))),),
              "percentunit", "stat", 3),
        Panel("Refusals in an hour", "smtpguard's own, in both directions; the mail hosts' own replies are left out.",
              (("", total(hourly("refusals_total", 'reason!~"relayed/.*"'))),), "short", "stat", 3),
        Panel("Resolver", "What the canary found the resolver to be.",
              (("{{state}}", f"{gauge('dnssec_state')} == 1"),),
              "short", "stat", 3, options={"textMode": "name", "colorMode": "none"}),
        Panel("MTA behind", "What the MTA behind each inbound listener is.",
              (("{{listener}}: {{state}}", f"{gauge('mta_state')} == 1"),),
              "short", "stat", 3, options={"textMode": "name", "colorMode": "none"}),
        Panel("First certificate ends", "Until the first served certificate ends.",
              (("", f"min({_CERTIFICATE} - time())"),), "s", "stat", 3, below=(14 * 86400, 2 * 86400)),
    ),
    "Outbound": (
        Panel("Deliveries by proof", "Messages a second, by how the mail host proved who it is.",
              (("{{auth}}", by("auth", rate("deliveries_total"))),), "mps", stacked=True),
        Panel("Deliveries by policy", "Messages a second, by the level that was required.",
              (("{{policy}}", by("policy", rate("deliveries_total"))),), "mps", stacked=True),
        Panel("Outbound refusals by reason", "Within the last hour; docs/refusals.md has each with its way out.",
              (("{{reason}}", by("reason", hourly("refusals_total", 'direction="outbound"'))),), stacked=True),
        Panel("Hosts skipped by reason", "Within the last hour; the mail may have gone to another host of the domain.",
              (("{{reason}}", by("reason", hourly("hosts_skipped_total"))),), stacked=True),
        Panel("Delivery takes", "From a next hop's first recipient to its reply to the end of data.",
              quantiles("delivery_duration_seconds"), "s"),
        Panel("A new connection takes", "Connect, greeting, EHLO, TLS and verification.",
              (*quantiles("host_open_duration_seconds"), mean("host_open_duration_seconds")), "s"),
        Panel("Connections to mail hosts", "New and reused ones a second, and those that wait for a message.",
              (("reused: {{reused}}", by("reused", rate("hosts_opened_total"))),
               ("idle", total(gauge("pool_connections"))))),
        Panel("TLS with mail hosts", "Handshakes a second.",
              (("{{tls_version}} {{cipher}} {{group}}",
                by("tls_version, cipher, group", rate("tls_connections_total", 'direction="outbound"'))),),
              "ops", stacked=True),
        Panel("Intercepted connections", "Within the last hour, by whose the address is that the MTA connected to.",
              (("{{verdict}}", by("verdict", hourly("intercepted_total"))),)),
        Panel("Policies only observed", "Within the last hour: what policies that are not enforced would have done.",
              (("{{kind}}: {{would}}", by("kind, would", hourly("policies_observed_total"))),)),
        Panel("Octets delivered", "Content of delivered messages.",
              (("outbound", total(rate("delivered_bytes_total"))),), "Bps"),
    ),
    "Inbound": (
        Panel("Messages by reply", "Clients' messages a second, by the class of the reply at their end.",
              (("{{reply}}", by("reply", rate("messages_relayed_total"))),), "mps", stacked=True),
        Panel("Messages by TLS", "Clients' messages a second; none came in clear.",
              (("{{tls_version}}", by("tls_version", rate("messages_relayed_total"))),), "mps", stacked=True),
        Panel("Inbound refusals by reason", "smtpguard's own within the last hour.",
              (("{{reason}}", by("reason", hourly("refusals_total", 'direction="inbound"'))),), stacked=True),
        Panel("A message takes", "From the go-ahead to the reply at its end.",
              quantiles("relay_duration_seconds"), "s"),
        Panel("TLS with clients", "Handshakes a second.",
              (("{{tls_version}} {{cipher}} {{group}}",
                by("tls_version, cipher, group", rate("tls_connections_total", 'direction="inbound"'))),),
              "ops", stacked=True),
        Panel("Handshakes that failed", "With clients, within the last hour.",
              (("{{cause}}", by("cause", hourly("client_handshake_failures_total"))),), stacked=True),
        Panel("Limits reached", "Within the last hour.", (("{{limit}}", by("limit", hourly("limits_hit_total"))),),
              stacked=True),
        Panel("MTA behind, over time", "Coloured while the MTA is in the state; clients hear 421 in all but ready.",
              (("{{instance}} {{listener}}: {{state}}", f"{gauge('mta_state')} == 1"),), "short", "state-timeline"),
        Panel("MTA not usable for a client", "Within the last hour, by how far it came.",
              (("{{step}}", by("step", hourly("mta_failures_total"))),), stacked=True),
        Panel("Certificates", "Days until each served certificate ends.", (("", f"({_CERTIFICATE} - time()) / 86400"),),
              "d", "table", 12, below=(14, 2)),
        Panel("Certificates and our own TLSA records", "Events of the last hour, and what the self-check finds wrong.",
              (("{{event}}", by("event", hourly("certificate_events_total"))),
               ("self-check of {{listener}}", gauge("dane_self_check_problems"))), width=4),
        Panel("Rules in shadow", "What inbound rules in shadow would have done within the last hour.",
              (("{{would}}", by("would", hourly("rules_shadowed_total"))),), width=4),
        Panel("Octets relayed", "Content of clients' messages.",
              (("inbound", total(rate("relayed_bytes_total"))),), "Bps", width=4),
    ),
    "DNS and published policies": (
        Panel("Resolver, over time", "Coloured while it is in the state; lost defers what may be DANE.",
              (("{{instance}}: {{state}}", f"{gauge('dnssec_state')} == 1"),), "short", "state-timeline"),
        Panel("Canary, over time", "What its last round proved; unreachable proves nothing.",
              (("{{instance}}: {{verdict}}", f"{gauge('canary_verdict')} == 1"),), "short", "state-timeline"),
        Panel("DNS queries", "A second, by what came of them; the cache's answers are not counted.",
              (("{{status}}", by("status", rate("dns_lookups_total"))),), "ops", stacked=True),
        Panel("A DNS query takes", "One query to one resolver.", quantiles("dns_lookup_duration_seconds"), "s"),
        Panel("MTA-STS events", "Within the last hour.", (("{{event}}", by("event", hourly("sts_events_total"))),)),
        Panel("MTA-STS policies", "In the cache, and those that could not be renewed.",
              (("{{mode}}", f"sum by (mode) ({gauge('sts_policies')})"),
               ("renewal fails", total(gauge("sts_refresh_failing"))))),
    ),
    "Sessions and process": (
        Panel("Sessions", "Open now.", (("{{direction}}", f"sum by (direction) ({gauge('sessions_open')})"),)),
        Panel("Sessions that ended", "A second, by cause.",
              (("{{direction}} {{cause}}", by("direction, cause", rate("sessions_total"))),), "ops", stacked=True),
        Panel("Violations of the protocol", "By peers, within the last hour.",
              (("{{direction}} {{kind}}", by("direction, kind", hourly("violations_total"))),)),
        Panel("Replies lost, accepting paused", "Within the last hour: possible duplicates, and full listeners.",
              (("lost: {{direction}} {{side}}", by("direction, side", hourly("final_replies_lost_total"))),
               ("paused", total(hourly("accept_pauses_total"))))),
        Panel("Own errors", "Within the last hour: bugs, state that could not be kept, log lines lost.",
              (("internal errors", total(hourly("internal_errors_total"))),
               ("store errors", total(hourly("store_errors_total"))),
               ("log lines dropped", total(hourly("log_lines_dropped_total"))))),
        Panel("Warnings of rules and names", "Within the last hour; the log has each.",
              (("rule: {{kind}}", by("kind", hourly("rule_warnings_total"))),
               ("sending identity", total(hourly("identity_warnings_total"))))),
        Panel("CPU", "Of one core.",
              (("{{instance}}", f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])"),), "percentunit"),
        Panel("Memory", "Resident.", (("{{instance}}", f"process_resident_memory_bytes{{{HERE}}}"),), "bytes"),
        Panel("Descriptors", "Open, and how many there may be.",
              (("{{instance}}", f"process_open_fds{{{HERE}}}"),
               ("{{instance}} limit", f"process_max_fds{{{HERE}}}"))),
        Panel("What runs", "Versions.", (("", gauge("build_info")),), "short", "table", 12),
        Panel("Since start", "Uptime.", (("{{instance}}", f"time() - process_start_time_seconds{{{HERE}}}"),),
              "s", "stat", 4),
        Panel("Configuration", "Was the last reload taken over, and does it wait for a restart?",
              (("taken over", f"min({gauge('config_last_reload_successful')})"),
               ("restart needed", f"max({gauge('config_restart_needed')})")), "bool_yes_no", "stat", 4),
        Panel("Configuration loaded", "How long ago the configuration in force was loaded.",
              (("{{instance}}", f"time() - {gauge('config_last_reload_success_timestamp_seconds')}"),),
              "s", "stat", 4),
        Panel("Sockets", "That are listened on.",
              (("{{role}} {{protocol}}", f"sum by (role, protocol) ({gauge('listeners')})"),), "short", "stat", 24),
    ),
}  # fmt: skip


def text() -> str:
    """The whole file."""
    return json.dumps(_dashboard(), indent=2) + "\n"


def _dashboard() -> Json:
    return {
        "id": None,
        "uid": "smtpguard",
        "title": "smtpguard",
        "description": "Made by tools/dashboard.py; the metrics are explained in docs/metrics.md.",
        "tags": ["mail", "smtpguard"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [_restarts()]},
        "templating": {"list": list(_variables())},
        "panels": list(_panels()),
    }


def _restarts() -> Json:
    return {
        "name": "Restarts",
        "datasource": _DATASOURCE,
        "enable": True,
        "iconColor": "orange",
        "expr": f"changes(process_start_time_seconds{{{HERE}}}[2m]) > 0",
        "titleFormat": "restart",
        "textFormat": "{{instance}}",
    }


def _variables() -> Iterator[Json]:
    yield {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    for name, matchers in (("job", ""), ("instance", '{job=~"$job"}')):
        yield {
            "name": name,
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": f"label_values(smtpguard_build_info{matchers}, {name})", "refId": name},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        }


def _panels() -> Iterator[Json]:
    """Rows one below the other; in a row from left to right, as many beside each other as fit."""
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}}  # fmt: skip
        y, x, line = y + 1, 0, 0
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y, line = 0, y + line, 0
            number += 1
            height = _STAT_HEIGHT if panel.kind == "stat" else _HEIGHT
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height})
            x, line = x + panel.width, max(line, height)
        y += line


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "gridPos": place,
        "datasource": _DATASOURCE,
        "targets": [
            {
                "refId": "ABCDEF"[index],
                "datasource": _DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "instant": panel.kind in ("stat", "table"),
                "range": panel.kind not in ("stat", "table"),
                **({"format": "table"} if panel.kind == "table" else {}),
            }
            for index, (legend, expression) in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "thresholds": _thresholds(panel), **_look(panel)},
            "overrides": [],
        },
        "options": _options(panel),
        **({"transformations": [_columns()]} if panel.kind == "table" else {}),
    }


def _thresholds(panel: Panel) -> Json:
    """Green, or what is worse: `below` names the bounds from orange to red."""
    steps = [{"color": "green", "value": None}]
    if len(panel.below) == 1:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.below[0]}]
    elif panel.below:
        orange, red = panel.below
        steps = [
            {"color": "red", "value": None},
            {"color": "orange", "value": red},
            {"color": "green", "value": orange},
        ]
    return {"mode": "absolute", "steps": steps}


def _look(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
            return {"custom": {"fillOpacity": 20 if panel.stacked else 0, "lineWidth": 1, "stacking": stacking}}
        case "table":
            return {"custom": {"align": "auto", "cellOptions": {"type": "color-text"}}}
        case "state-timeline":
            return {"mappings": [{"type": "value", "options": {"1": {"text": "yes", "color": "blue"}}}]}
        case _:
            return {}


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
            return {"reduceOptions": reduced, "colorMode": "value", "graphMode": "none", **panel.options}
        case "state-timeline":
            return {"showValue": "never", "mergeValues": True, "legend": {"showLegend": False}}
        case _:
            return {"showHeader": True}


def _columns() -> Json:
    return {"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True, "job": True}}}


if __name__ == "__main__":
    print(text(), end="")
