"""Writes docs/metrics.md from the one table of metrics: `python tools/metrics.py > docs/metrics.md`."""

from smtpguard.telemetry.families import WORDS_A_LABEL, Family, Label

HEAD = f"""# Metrics

Made by `python tools/metrics.py` from `smtpguard/telemetry/families.py`.  The [admin address](admin.md) serves them
under `/metrics`, as Prometheus text or OpenMetrics.  `deploy/prometheus/` has a scrape configuration and the alert
rules that [alerts.md](alerts.md) explains, `deploy/grafana/` a dashboard.

No domain, mail host, address or mail address is ever a label: the log and `smtpguard explain` have them.  A label takes
the words listed below, or where none are listed at most {WORDS_A_LABEL} short ones; any other word is `other`, none is
`none`.  Where all words are listed the series exist from the start, so that `increase()` sees the first event.

Beside these stand the usual `process_*` metrics of Prometheus clients: `process_start_time_seconds`,
`process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`, `process_open_fds` and
`process_max_fds`.

Questions, and the expressions that answer them:

"""

_DELIVERED = "sum(rate(smtpguard_deliveries_total[1h]))"
_RELAYED = "sum(rate(smtpguard_messages_relayed_total[1h]))"
QUESTIONS = {
    "The share of outbound mail that left over TLS": (
        f'1 - (sum(rate(smtpguard_deliveries_total{{auth="clear"}}[1h])) or vector(0)) / {_DELIVERED}'
    ),
    "The share of it whose host proved who it is": (
        f'(sum(rate(smtpguard_deliveries_total{{auth=~"dane|pkix|fingerprint"}}[1h])) or vector(0)) / {_DELIVERED}'
    ),
    "The share of inbound mail that came over TLS": (
        f'1 - (sum(rate(smtpguard_messages_relayed_total{{tls_version="none"}}[1h])) or vector(0)) / {_RELAYED}'
    ),
    "What was refused in the last hour, and why": (
        "sum by (direction, reason) (increase(smtpguard_refusals_total[1h])) > 0"
    ),
    "95 % of the deliveries took less than": (
        "histogram_quantile(0.95, sum by (le) (rate(smtpguard_delivery_duration_seconds_bucket[1h])))"
    ),
    "Days until the first certificate ends": (
        "min(smtpguard_certificate_not_after_timestamp_seconds - time()) / 86400"
    ),
}


def text() -> str:
    """The whole page."""
    metrics = [
        f"| `{family.metric}` | {family.kind} | {', '.join(f'`{label.name}`' for label in family.labels)} "
        f"| {family.text} |"
        for family in Family
    ]
    labels = [f"| `{label.name}` of {_metrics(label)} | {label.text} | {_words(label)} |" for label in _labels()]
    return "\n".join(
        [
            HEAD + "\n".join(f"- {question}: `{expression}`" for question, expression in QUESTIONS.items()),
            "",
            "## The metrics",
            "",
            "| metric | type | labels | meaning |",
            "|---|---|---|---|",
            *metrics,
            "",
            "## The labels",
            "",
            "| label | meaning | words |",
            "|---|---|---|",
            *labels,
            "",
        ]
    )


def _labels() -> list[Label]:
    """Each once, in the table's order."""
    return list(dict.fromkeys(label for family in Family for label in family.labels))


def _metrics(label: Label) -> str:
    return ", ".join(f"`{_short(family)}`" for family in Family if label in family.labels)


def _short(family: Family) -> str:
    return family.metric.removeprefix("smtpguard_").removesuffix("_total")


def _words(label: Label) -> str:
    if label.name == "reason":
        return "every token of a refusal, `relayed/4xx`, `relayed/5xx`"
    if label.values:
        return ", ".join(f"`{word}`" for word in label.values)
    return "what is configured" if label.configured else f"at most {WORDS_A_LABEL}"


if __name__ == "__main__":
    print(text(), end="")
