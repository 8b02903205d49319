"""Alert rules and dashboard name metrics, labels and words that there are; no Prometheus is needed to see that."""

import json
import re
from pathlib import Path

import pytest

from smtpguard.telemetry.families import Family
from tests.support.expressions import (
    ALERT_TESTS,
    ALERTS,
    DASHBOARD,
    dashboard_expressions,
    grouped_by,
    named_in,
    panels,
    rule_expressions,
)
from tests.telemetry.test_metrics import PROCESS

ROOT = Path(__file__).parents[2]
EXPRESSIONS = {**rule_expressions(), **dashboard_expressions()}
FROM_THE_SCRAPE = {"job", "instance", "le", "alertname", "alertstate"}


@pytest.mark.parametrize("directory", ["prometheus", "compose"])
def test_prometheus_loads_the_alert_rules_and_not_their_tests(directory: str) -> None:
    """compose mounts deploy/prometheus as /etc/prometheus/rules."""
    text = (ROOT / "deploy" / directory / "prometheus.yml").read_text()
    patterns = re.findall(r"[\w*./-]+\.yml", text.partition("rule_files:")[2].partition("scrape_configs:")[0])
    loaded = [path for one in patterns for path in ALERTS.parent.glob(one.removeprefix("/etc/prometheus/rules/"))]
    assert loaded == [ALERTS]


def family_of(metric: str) -> Family | None:
    for family in Family:
        names = {family.metric}
        if family.kind == "histogram":
            names = {f"{family.metric}_{end}" for end in ("bucket", "sum", "count")}
        if metric in names:
            return family
    return None


def matched(operator: str, value: str, words: tuple[str, ...]) -> bool:
    """Does a matcher mean words that there are?"""
    if operator in ("=", "!="):
        return value in words
    return all(any(re.fullmatch(one, word) for word in words) for one in value.split("|"))


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_label_and_word_exists(where: str) -> None:
    expression = EXPRESSIONS[where]
    found = named_in(expression)
    assert found
    labels: set[str] = set()
    for named in found:
        if named.metric in (*PROCESS, "up"):
            assert {label for label, _, _ in named.matchers} <= FROM_THE_SCRAPE
            continue
        family = family_of(named.metric)
        assert family is not None, named.metric
        labels |= {label.name for label in family.labels}
        for name, operator, value in named.matchers:
            if name in FROM_THE_SCRAPE:
                continue
            [label] = [label for label in family.labels if label.name == name]
            assert not label.values or matched(operator, value, label.values), (named.metric, name, value)
    assert grouped_by(expression) <= labels | FROM_THE_SCRAPE


def test_every_alert_says_what_to_do() -> None:
    """Severity, summary, description, and a section of docs/alerts.md; and that page has no other sections."""
    sections = set(re.findall(r"^### (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE))
    named = set()
    for rule in re.split(r"^      - alert: ", ALERTS.read_text(), flags=re.MULTILINE)[1:]:
        alert = rule.split("\n")[0]
        assert re.search(r"\n          severity: (critical|warning|info)\n", rule), alert
        for annotation in ("summary", "description"):
            assert re.search(rf"\n          {annotation}: \S", rule), alert
        [anchor] = re.findall(r"\n          runbook: docs/alerts\.md#(\w+)\n", rule)
        [section] = [one for one in sections if one.lower() == anchor]
        named.add(section)
        assert alert.startswith(section)
    assert named == sections


def test_every_alert_is_tested_firing_and_silent() -> None:
    """What promtool then runs (tests/deploy)."""
    checks = re.split(r"^      - eval_time: .*\n        alertname: ", ALERT_TESTS.read_text(), flags=re.MULTILINE)[1:]
    firing = {check.split("\n")[0] for check in checks if "exp_labels:" in check}
    silent = {check.split("\n")[0] for check in checks if "exp_alerts: []" in check}
    assert firing == silent == set(rule_expressions())


def test_every_panel_has_a_description_and_a_unit() -> None:
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_metric_is_shown_or_alerted_on() -> None:
    shown = {family_of(named.metric) for expression in EXPRESSIONS.values() for named in named_in(expression)}
    assert [family.metric for family in Family if family not in shown] == []


def test_panels_stand_beside_each_other_and_within_the_page() -> None:
    squares = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & squares, panel["title"]
        squares |= covered
