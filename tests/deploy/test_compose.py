"""compose.yaml: its services started as it says, mail in and out through them.

podman-compose reads the file; the containers are started from what it read, because `service_healthy` and networks of
its own need a daemon.  `network_mode: service:pod` is the network of the test, in which the sandbox Internet lives.
"""

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.demo import Ports, configuration
from smtpguard.sandbox.internet import Internet, Publication, Site, open_internet
from tests.deploy.containers import DOCKER_COMPOSE, ROOT, TOOLS, Container, Engine, Failed, Image, output

COMPOSE = ROOT / "deploy" / "compose"
NAME = "mx1.example.org"
READY_SECONDS = 30.0
OUTSIDE = "198.18.0.1"
"""An address of the test's network that is not loopback: who connects to it comes from it, and is a stranger."""


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as podman-compose understands them."""
    text = output([TOOLS / "podman-compose", "-f", COMPOSE / "compose.yaml", "config"], MAIL_HOSTNAME=NAME)
    script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin.read())))"
    services = json.loads(output([TOOLS / "python", "-c", script], stdin=text))["services"]
    assert isinstance(services, dict)
    return services


def test_docker_compose_accepts_it() -> None:
    """By its own schema; and the name is the one thing that it asks for."""
    check = [DOCKER_COMPOSE, "-f", COMPOSE / "compose.yaml", "config", "--quiet"]
    output(check, MAIL_HOSTNAME=NAME)
    with pytest.raises(Failed, match="set MAIL_HOSTNAME, as in mx1"):
        output(check, MAIL_HOSTNAME="")


def options(service: dict[str, Any], volumes: dict[str, Path]) -> list[str]:
    """What the file says of a service, as podman's options; the network is the test's."""
    found = [
        f"--{key.replace('_', '-')}={one}"
        for key in ("cap_drop", "cap_add", "security_opt")
        for one in service.get(key, [])
    ]
    found += [f"--env={name}={value}" for name, value in (service.get("environment") or {}).items()]
    if service.get("read_only"):
        found.append("--read-only")
    for volume in service.get("volumes", []):
        source, _, rest = str(volume).partition(":")
        if source in volumes:
            found.append(f"--volume={volumes[source]}:{rest}")
    return [*found, "--network=host", f"--hostname={NAME}"]


def test_each_of_ours_is_confined(services: dict[str, Any]) -> None:
    for name in ("pod", "unbound", "smtpguard"):
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
    assert {services[name]["network_mode"] for name in ("unbound", "smtpguard", "mta")} == {"service:pod"}
    assert services["pod"]["ports"] == ["25:2525", "465:1465"]
    assert services["mta"]["depends_on"] == {"smtpguard": {"condition": "service_healthy"}}


@pytest.mark.usefixtures("network")
def test_mail_in_and_out(
    services: dict[str, Any], engine: Engine, image: Image, unbound_image: Image, mta_image: Image, tmp_path: Path
) -> None:
    """In: STARTTLS, XCLIENT, the Postfix of the example.  Out: its queue, LMTP, a host with DANE."""

    async def story() -> None:
        async with open_internet(tmp_path, [Site("dane.example", Publication.DANE_EE)]) as internet:
            volumes = mounted(internet, tmp_path)
            with ExitStack() as running:
                for name, made in (("unbound", unbound_image), ("smtpguard", image), ("mta", mta_image)):
                    container = running.enter_context(engine.container(made.name, *options(services[name], volumes)))
                    await healthy(container)
                mta = container
                client = await Client.connect(OUTSIDE, 2525)
                with trio.fail_after(READY_SECONDS):
                    while (await client.reply()).code == 421:  # until the MTA's profile is learnt
                        client.conversation.close()
                        await trio.sleep(0.2)
                        client = await Client.connect(OUTSIDE, 2525)
                await client.hello()
                assert (await client.start_tls(unverifying_context())).code == 220
                await client.hello()
                sent = await client.send("alice@dane.example", [f"root@{NAME}"], b"Subject: in\r\n\r\nin\r\n")
                assert sent.is_delivered, sent.last_reply
                refused = await client.send("alice@dane.example", ["bob@elsewhere.example"], b"Subject: x\r\n\r\nx\r\n")
                assert refused.last_reply.code == 554, refused.last_reply
                client.conversation.close()
                mta.engine.podman(
                    "exec", mta.id, "sh", "-c", "printf 'Subject: out\\n\\nout\\n' | sendmail -f root bob@dane.example"
                )
                with trio.fail_after(READY_SECONDS):
                    while not internet.hosts["dane.example"].mx.messages:
                        await trio.sleep(0.05)
                (message,) = internet.hosts["dane.example"].mx.messages
                assert message.over_tls
                with trio.fail_after(READY_SECONDS):
                    while not re.search(r"relay=127\.0\.0\.1\[127\.0\.0\.1\]:10027.*status=sent \(250 ", mta.log):
                        await trio.sleep(0.1)
                assert "relay=local" in mta.log

    trio.run(story)


def mounted(internet: Internet, directory: Path) -> dict[str, Path]:
    """The file of compose, in the sandbox Internet; the certificates."""
    text = (COMPOSE / "smtpguard.toml").read_text()
    sandbox = configuration(internet, Ports(1, 2, 3), Path("/state"))
    tables = re.findall(r"^\[(?:outbound|dns|dns\.canary|mtasts|tls)\]\n(?:.+\n)+", sandbox, re.MULTILINE)
    text = text.replace('[dns]\nresolvers = ["127.0.0.1:5353"]\n', "\n".join(tables))
    tls = directory / "tls"
    tls.mkdir()
    leaf = internet.certificates.leaf(internet.public_authority, [NAME])
    for name, source in (("fullchain", leaf.pem_file), ("privkey", leaf.pem_file), ("ca", internet.ca_file)):
        shutil.copy(source, tls / f"{name}.pem")
        (tls / f"{name}.pem").chmod(0o644)
    config = directory / "smtpguard.toml"
    config.write_text(text.replace(str(internet.ca_file), "/etc/smtpguard/tls/ca.pem"))
    return {"./smtpguard.toml": config, "./tls": tls}


async def healthy(container: Container) -> None:
    """By its own HEALTHCHECK, in the thread of this network (test_image.py says why)."""
    with trio.move_on_after(READY_SECONDS):
        while not container.is_healthy():
            assert container.state["Running"], container.log
            await trio.sleep(0.05)
        return
    raise AssertionError(f"not healthy within {READY_SECONDS:g} s:\n{container.log}")
