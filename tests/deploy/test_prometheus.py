"""What deploy/prometheus ships, by Prometheus's own tools."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.telemetry.metrics import Metrics
from tests.deploy.promtool import promtool, rules_of
from tests.interop.processes import wait_for
from tests.structure.test_docs import tool
from tests.support.expressions import ALERT_TESTS, ALERTS, rule_expressions
from tests.telemetry.test_metrics import STATE

SCRAPE = ALERTS.with_name("prometheus.yml")
SECONDS = 60


def test_the_rules_and_the_scrape_configuration_are_valid() -> None:
    promtool("check", "rules", str(ALERTS))
    promtool("check", "config", str(SCRAPE))


def test_the_rules_fire_when_they_must_and_only_then() -> None:
    promtool("test", "rules", str(ALERT_TESTS))


def test_the_questions_of_the_metrics_page_parse(tmp_path: Path) -> None:
    promtool("check", "rules", str(rules_of(tool("metrics").QUESTIONS, tmp_path)))


def test_every_metric_passes_the_lint() -> None:
    """promtool's lint: names, units, help, types; of every metric there is, whether or not it has been counted."""
    content_type, body = Metrics(SYSTEM_CLOCK, "1", lambda: STATE).render("")
    assert content_type.startswith("text/plain")
    assert promtool("check", "metrics", stdin=body) == ""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended by TERM."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(port: int, path: str) -> bytes:
    """The body of a 200, or nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return body if response.status == 200 else b""
    except OSError:
        return b""
    finally:
        connection.close()


@contextmanager
def running_prometheus(admin: int, directory: Path, web: int) -> Iterator[None]:
    """Prometheus with the shipped configuration, but for smtpguard's port and the interval."""
    scrape = directory / "prometheus.yml"
    scrape.write_text(
        SCRAPE.read_text().replace(":9825", f":{admin}").replace("15s", "1s").replace("alerts.yml", str(ALERTS))
    )
    command = [
        "prometheus",
        f"--config.file={scrape}",
        f"--storage.tsdb.path={directory}/tsdb",
        f"--web.listen-address=127.0.0.1:{web}",
    ]
    with running(command, directory / "prometheus.log"):
        yield


def is_up(web: int) -> bool:
    targets = json.loads(ask(web, "/api/v1/targets") or b"{}").get("data", {}).get("activeTargets", [])
    return [(one["health"], one["labels"]["job"]) for one in targets] == [("up", "smtpguard")]


def test_a_real_prometheus_scrapes_us_and_evaluates_every_rule(tmp_path: Path) -> None:
    """The shipped configuration as it stands, but for the port and the interval: the target is up, each rule is
    healthy, and of a process that is well no critical alert fires."""
    admin, web = free_port(), free_port()
    config = tmp_path / "smtpguard.toml"
    config.write_text(
        f"""hostname = "mx.example.org"
state_dir = "{tmp_path}/state"
[admin]
bind = "127.0.0.1:{admin}"
[dns]
resolvers = ["127.0.0.1:{free_port()}"]
[[listener]]
role = "outbound"
protocol = "lmtp"
bind = ["127.0.0.1:0"]
"""
    )
    ours = [sys.executable, "-m", "smtpguard", "run", "--config", str(config)]
    with running(ours, tmp_path / "smtpguard.log"), running_prometheus(admin, tmp_path, web):
        wait_for("smtpguard ready", lambda: b"ready" in ask(admin, "/healthz/ready"), SECONDS)

        wait_for("the target up", lambda: is_up(web), SECONDS)

        def evaluated() -> list[dict[str, Any]]:
            groups = json.loads(ask(web, "/api/v1/rules") or b"{}").get("data", {}).get("groups", [])
            rules = [rule for group in groups for rule in group["rules"]]
            return rules if rules and all(rule["health"] != "unknown" for rule in rules) else []

        rules = wait_for("every rule evaluated", evaluated, SECONDS)
        assert {rule["name"] for rule in rules} == set(rule_expressions())
        assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []
        firing = [r["name"] for r in rules if r["state"] == "firing" and r["labels"]["severity"] == "critical"]
        assert firing == []
        promtool("check", "metrics", stdin=ask(admin, "/metrics"))
