"""The dashboard: every expression parses, and what Grafana needs to provision it is there.

Grafana itself is not packaged by Debian; its file format is held to what its documentation asks.
"""

import json
import re
from pathlib import Path

from tests.deploy.promtool import promtool, rules_of
from tests.support.expressions import DASHBOARD, dashboard_expressions

# What Grafana puts in place of its variables before Prometheus sees the expression.
VARIABLES = {"$__rate_interval": "1m", "$job": "smtpguard", "$instance": "mx1.example.org"}


def interpolated(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def test_every_expression_parses(tmp_path: Path) -> None:
    expressions = {where: interpolated(one) for where, one in dashboard_expressions().items()}
    assert len(expressions) > 50
    assert [one for one in expressions.values() if "$" in one] == []
    promtool("check", "rules", str(rules_of(expressions, tmp_path)))


def test_every_variable_that_is_used_is_defined() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", DASHBOARD.read_text()))
    assert used == defined == {"datasource", "job", "instance"}


def test_it_can_be_provisioned() -> None:
    """No id of another database, no __inputs, which only the import dialog fills; ids and titles once."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["id"] is None
    assert dashboard["uid"] == "smtpguard"
    assert "__inputs" not in dashboard
    panels = dashboard["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    assert [panel["title"] for panel in panels if panel["type"] == "row"][1:3] == ["Outbound", "Inbound"]
    for panel in panels:
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)
