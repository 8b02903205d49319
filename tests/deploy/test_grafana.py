"""The dashboard: every expression parses and finds what is counted, and what Grafana needs to provision it is there.

Grafana itself is not packaged by Debian; its file format is held to what its documentation asks.
"""

import json
import re
import sys
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.deploy.promtool import promtool, rules_of
from tests.deploy.test_prometheus import SECONDS, ask, free_port, is_up, running, running_prometheus
from tests.interop.processes import wait_for
from tests.support.expressions import DASHBOARD, dashboard_expressions

# What Grafana puts in place of its variables before Prometheus sees the expression.
VARIABLES = {"$__rate_interval": "1m", "$job": "smtpguard", "$instance": "mx1.example.org"}

QUIET = {
    # Nothing of the kind happens in the demo, or only before the first scrape.
    "Certificates and our own TLSA records A",
    "Handshakes that failed A",
    "Intercepted connections A",
    "Limits reached A",
    "MTA not usable for a client A",
    "MTA-STS events A",
    "Replies lost, accepting paused A",
    "Rules in shadow A",
    "Warnings of rules and names A",
}


def interpolated(expression: str, variables: Mapping[str, str] = VARIABLES) -> str:
    for name, value in variables.items():
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


def test_every_expression_finds_what_is_counted(tmp_path: Path) -> None:
    """Asked of a Prometheus that watches the demo's mail and attacks, with its variables looked up as Grafana does."""
    log, web = tmp_path / "demo.log", free_port()
    demo = [sys.executable, "-u", "-m", "smtpguard", "demo", "--serve"]
    with running(demo, log):
        found = wait_for("the demo", lambda: re.search(r"http://127\.0\.0\.1:(\d+)/metrics", log.read_text()), SECONDS)
        with running_prometheus(int(found[1]), tmp_path, web):
            wait_for("the target up", lambda: is_up(web), SECONDS)
            variables = {"$__rate_interval": "1m", **chosen(web)}
            expressions = {where: interpolated(one, variables) for where, one in dashboard_expressions().items()}

            def empty() -> set[str]:
                return {where for where, one in expressions.items() if not queried(web, one)}

            with suppress(AssertionError):  # which of them, is told below
                wait_for("data", lambda: empty() <= QUIET, SECONDS)
            assert empty() - QUIET == set()


def chosen(web: int) -> dict[str, str]:
    """Each variable of the dashboard that is a query: all of its values."""
    found: dict[str, str] = {}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert query is not None
            match = urllib.parse.urlencode({"match[]": interpolated(query[1], found)})
            values = json.loads(ask(web, f"/api/v1/label/{query[2]}/values?{match}"))["data"]
            assert values, variable["name"]
            found[f"${variable['name']}"] = f"({'|'.join(values)})"
    return found


def queried(web: int, expression: str) -> list[Any]:
    """What Prometheus answers; not every expression has a result, but none may be an error."""
    answer = ask(web, f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    assert answer, f"an error: {expression}"
    result = json.loads(answer)["data"]["result"]
    assert isinstance(result, list)
    return result
