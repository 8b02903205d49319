"""compose.yaml by docker compose: its services up as it says, mail in and out through them, watched by a Prometheus.

services: bridge of podman ── the host, a network of its own: eth0 ── net0: the Internet of outside.py, the test
"""

import json
import re
import shutil
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from smtpguard.sandbox.certificates import CertificateMaker
from smtpguard.sandbox.client import unverifying_context
from tests.deploy.containers import DOCKER_COMPOSE, ROOT, Engine, Failed, Image, output
from tests.deploy.documents import blocks
from tests.deploy.outside import CANARY, DEPLOYED, INTERNET, SECONDS, greeted, link, local_conf, open_internet
from tests.deploy.project import Project, open_project
from tests.deploy.test_prometheus import ask
from tests.interop.namespace import Network
from tests.interop.processes import lab_directory, messages_in, wait_for
from tests.support.expressions import rule_expressions

PAGE = "deploy-compose.md"
COMPOSE = ROOT / "deploy" / "compose"
NAME = "mx1.example.org"
PROMETHEUS = "docker.io/library/prometheus:test"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as compose understands them."""
    command = [DOCKER_COMPOSE, "-f", COMPOSE / "compose.yaml", "config", "--format=json"]
    found = json.loads(output(command, MAIL_HOSTNAME=NAME))["services"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def images(engine: Engine, image: Image, unbound_image: Image, mta_image: Image) -> None:
    """Under the names that compose.yaml has; and a Prometheus of Debian's in the shape of the registry's."""
    for made in (image, unbound_image, mta_image):
        name = made.name.removeprefix("localhost/").removesuffix(":test")
        engine.podman("tag", made.name, f"docker.io/library/{name}:0.1.0")
    engine.build(PROMETHEUS, file=str(ROOT / "tests/deploy/prometheus.Dockerfile"), context=Path("/usr/bin"))


def test_it_asks_for_a_name() -> None:
    """The one thing that nobody else knows."""
    with pytest.raises(Failed, match="set MAIL_HOSTNAME, as in mx1"):
        output([DOCKER_COMPOSE, "-f", COMPOSE / "compose.yaml", "config", "--quiet"], MAIL_HOSTNAME="")


def test_each_of_ours_is_confined(services: dict[str, Any]) -> None:
    for name in ("pod", "unbound", "smtpguard"):
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert {services[name]["network_mode"] for name in ("unbound", "smtpguard", "mta")} == {"service:pod"}
    assert [(one["published"], one["target"]) for one in services["pod"]["ports"]] == [("25", 2525), ("465", 1465)]
    assert services["mta"]["depends_on"]["smtpguard"]["condition"] == "service_healthy"


@contextmanager
def prepared(engine: Engine) -> Iterator[tuple[Project, Path]]:
    """deploy/ with the operator's files in it, on a host that the Internet sees."""
    host = Network()
    try:
        with lab_directory("compose") as directory, open_internet(directory) as anchor:
            link(host.path)
            deploy = directory / "deploy"
            shutil.copytree(ROOT / "deploy", deploy)
            compose = deploy / "compose"
            leaf = CertificateMaker(directory).leaf(None, [NAME])
            for name in ("fullchain", "privkey"):
                shutil.copy(leaf.pem_file, compose / "tls" / f"{name}.pem")
                shutil.chown(compose / "tls" / f"{name}.pem", 10125)
            with (compose / "smtpguard.toml").open("a") as config:
                config.write(CANARY)
            (compose / "local.conf").write_text(local_conf(anchor))
            # Docker gives the host name of `pod` to all that join its network; podman gives them their ids.
            override = blocks(PAGE, "override", "yaml") + f"  mta: {{hostname: {NAME}}}\n"
            (compose / "compose.override.yaml").write_text(override)
            variables = {"MAIL_HOSTNAME": NAME, "MAIL_ADDRESSES": DEPLOYED, "PROMETHEUS_IMAGE": PROMETHEUS}
            with open_project(engine, compose, host, **variables) as project:
                yield project, directory
    finally:
        host.close()


@pytest.mark.usefixtures("network", "images")
def test_mail_in_and_out(engine: Engine) -> None:
    """In: STARTTLS, XCLIENT, the Postfix of the example.  Out: its queue, LMTP, a host with DANE.  Prometheus tells."""
    with prepared(engine) as (project, directory):
        project.up()
        mta = project.container("mta")
        wait_for("the canary's verdict", lambda: "state=validating" in project.log("smtpguard"), SECONDS)
        mta.run("printf 'Subject: out\\n\\nout-marker\\n' | sendmail -f root user1@dane.test")
        (received,) = wait_for("the mail", lambda: messages_in(directory, b"out-marker"), SECONDS)
        assert b"with ESMTPS" in received
        sent = re.compile(r"to=<user1@dane\.test>, relay=127\.0\.0\.1\[127\.0\.0\.1\]:10027.*status=sent \(250 ")
        wait_for("Postfix's word", lambda: sent.search(mta.log), SECONDS)
        assert re.search(r"event=delivered .*domain=dane\.test .*auth=dane ", project.log("smtpguard"))
        come_in()
        wait_for("local delivery", lambda: "relay=local" in mta.log, SECONDS)
        assert f"client=unknown[{INTERNET}]" in mta.log  # XCLIENT: the client, not the proxy and not the bridge
        with project.host.entered():
            watched()


@pytest.mark.usefixtures("network", "images")
def test_an_upgrade_refuses_nobody(engine: Engine) -> None:
    """While smtpguard is replaced, as the page says, each client is greeted and the MTA's mail goes out at once."""
    with prepared(engine) as (project, directory):
        project.up()
        wait_for("a greeting", lambda: greeted(25), SECONDS).close()
        before, mta = project.container("smtpguard").id, project.container("mta")
        with Callers() as callers:
            mta.run(
                "for i in $(seq 40); do\n"
                "printf 'Subject: x\\n\\nx\\n' | sendmail -f root user1@dane.test; sleep 0.2\n"
                "done > /dev/null 2>&1 &"
            )
            project.up("--no-deps", "--force-recreate", "smtpguard")
        assert project.container("smtpguard").id != before
        print(f"\n{len(callers.greetings)} connections while smtpguard was replaced")
        assert [one for one in callers.greetings if not one.startswith(b"220 ")] == []
        wait_for("all mail", lambda: len(messages_in(directory, b"user1@dane.test")) == 40, SECONDS)
        assert "status=deferred" not in mta.log


class Callers:
    """Clients of the Internet, ten in a second, in threads; each stays until it is greeted, and leaves."""

    def __init__(self) -> None:
        self._heard: list[bytes] = []
        self._calls: list[threading.Thread] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._begin)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in (self._thread, *self._calls):
            thread.join()

    def _begin(self) -> None:
        while not self._ended.wait(0.1):
            call = threading.Thread(target=self._call)
            call.start()
            self._calls.append(call)

    def _call(self) -> None:
        try:
            with socket.create_connection((DEPLOYED, 25), timeout=SECONDS) as client:
                self._heard.append(client.recv(1000))
        except OSError as error:
            self._heard.append(str(error).encode())

    @property
    def greetings(self) -> list[bytes]:
        """What each heard, or the error instead; when all have left."""
        assert len(self._heard) == len(self._calls)
        return self._heard


def come_in() -> None:
    """A client of the Internet at port 25 of the host; it is no relay for it."""
    with wait_for("a greeting", lambda: greeted(25), SECONDS) as client:
        client.starttls(context=unverifying_context())
        client.sendmail("alice@dane.test", [f"root@{NAME}"], b"Subject: in\r\n\r\nin\r\n")
        client.ehlo()
        client.mail("alice@dane.test")
        assert client.rcpt("bob@elsewhere.example")[0] == 554


def watched() -> None:
    """Prometheus, with the file as it is: it found us by name, read the rules, and has what was counted."""

    def answered(path: str) -> Any:
        return json.loads(ask(9090, path) or b'{"data": {}}')["data"]

    def up() -> bool:
        targets = answered("/api/v1/targets").get("activeTargets", [])
        return [(one["health"], one["scrapeUrl"]) for one in targets] == [("up", "http://pod:9826/metrics")]

    wait_for("the target up", up, SECONDS)
    groups = answered("/api/v1/rules")["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} == set(rule_expressions())
    query = "/api/v1/query?query=" + urllib.parse.quote('smtpguard_deliveries_total{job="smtpguard",auth="dane"}')
    wait_for("the delivery counted", lambda: [one["value"][1] for one in answered(query)["result"]] == ["1"], SECONDS)
