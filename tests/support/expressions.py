"""The metrics that a text of PromQL names: which, and with what label matchers."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
ALERT_TESTS = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"

_NAMED = re.compile(r"\b(?P<name>(?:smtpguard|process)_[a-z_]+|up)\b\s*(?P<matchers>\{[^}]*\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPED = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


@dataclass(frozen=True, slots=True)
class Named:
    """One metric in an expression, with its matchers: label, operator, value."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]


def named_in(expression: str) -> list[Named]:
    """The metrics of ours, and `process_...` and `up`, in the order they stand."""
    return [
        Named(found["name"], tuple(_MATCHER.findall(found["matchers"] or ""))) for found in _NAMED.finditer(expression)
    ]


def grouped_by(expression: str) -> set[str]:
    """The labels in its `by (...)` and the like."""
    return {label for found in _GROUPED.findall(expression) for label in re.findall(r"\w+", found)}


def rule_expressions() -> dict[str, str]:
    """Of each alert rule; the file's own layout is what is read, since YAML is no dependency of ours."""
    found: dict[str, str] = {}
    for rule in re.split(r"^      - alert: ", ALERTS.read_text(), flags=re.MULTILINE)[1:]:
        [expression] = re.findall(r"^        expr: (.*?)\n        [a-z]", rule, re.DOTALL | re.MULTILINE)
        found[rule.split("\n")[0]] = " ".join(expression.removeprefix(">-").split())
    return found


def panels() -> Iterator[dict[str, Any]]:
    """Each panel of the dashboard that shows something."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def dashboard_expressions() -> dict[str, str]:
    """Of each query of each panel, by panel title and query letter; and of the variables."""
    found = {f"{panel['title']} {one['refId']}": one["expr"] for panel in panels() for one in panel["targets"]}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            assert query is not None
            found[f"variable {variable['name']}"] = query[1]
    return found
