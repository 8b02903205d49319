"""The image as it is meant to run: read-only, without capabilities, mail through it, drained by TERM.

podman is called from the thread that lives in the test's network namespace, although that stops the sandbox Internet
for a moment: Trio's worker threads may be left from another test, in another namespace.
"""

import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.demo import Ports, configuration
from smtpguard.sandbox.internet import Attack, Internet, Publication, Site, open_internet
from tests.deploy.containers import HARDENED, Container, Engine, Image

PORTS = Ports(smtp=10026, lmtp=10027, admin=9825)
SITES = (
    Site("dane.example", Publication.DANE_EE),
    Site("sts.example", Publication.STS_ENFORCE),
    Site("stripped.example", Publication.DANE_EE, Attack.STRIP_STARTTLS),
)
READY_SECONDS = 30.0


def test_what_it_says_of_itself(image: Image) -> None:
    """Labels, user, health check, ports, stop signal; and its size is printed."""
    config = image.config["Config"]
    assert config["User"] == "10125:10125"
    assert config["Entrypoint"] == ["/opt/smtpguard/bin/smtpguard"]
    assert config["StopSignal"] == "SIGTERM"
    assert {"2525/tcp", "1465/tcp"} <= set(config["ExposedPorts"])
    assert image.config["HealthCheck" if "HealthCheck" in image.config else "Healthcheck"]["Test"][1:] == [
        "/opt/smtpguard/bin/smtpguard",
        "health",
    ]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "smtpguard"
    assert labels["org.opencontainers.image.revision"] == "0123abc"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    size = image.config["Size"] / 1e6
    print(f"\nsize of the image: {size:.0f} MB")
    assert size < 120


def test_there_is_nothing_in_it_to_break_out_with(image: Image) -> None:
    """No shell, no package manager, no setuid file; nothing outside the state directory belongs to its user."""
    with image.mounted() as root:
        programs = {path.name for name in ("bin", "sbin") for path in (root / "usr" / name).iterdir()}
        assert programs == {"python3.11"}
        assert {path.name for path in (root / "opt/smtpguard/bin").iterdir() if not path.name.startswith("python")} >= {
            "smtpguard"
        }
        for directory, names, files in os.walk(root):
            for name in (*names, *files):
                path = Path(directory, name)
                found = path.lstat()
                assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID), path
                if found.st_uid == 10125:
                    assert path.relative_to(root).parts[:3] in (("var", "lib", "smtpguard"), ("run", "smtpguard")), path
        # Bytecode of everything that runs: the root is read-only, so it would be compiled at every start.
        package = root / "opt/smtpguard/lib/python3.11/site-packages/smtpguard"
        assert (package / "__pycache__" / "app.cpython-311.pyc").exists()
        assert (root / "usr/lib/python3.11/__pycache__" / "ssl.cpython-311.pyc").exists()


def test_packages_are_those_of_the_lock(image: Image, engine: Engine) -> None:
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    locked = {line.partition(" ")[0].replace("_", "-").lower() for line in lock.splitlines() if line[:1].isalnum()}
    script = (
        "from importlib.metadata import distributions\n"
        "print(*(f'{d.name}=={d.version}'.replace('_', '-').lower() for d in distributions()))"
    )
    shown = engine.podman(
        "run", "--rm", *HARDENED, "--entrypoint=/opt/smtpguard/bin/python", image.name, "-c", script
    ).split()  # fmt: skip
    assert {one for one in shown if not one.startswith("smtpguard==")} == locked


def test_without_a_name_it_says_what_is_missing(image: Image, engine: Engine, network: None) -> None:
    """The configuration in the image needs one variable, and the error names it."""
    with engine.container(image.name, *HARDENED) as container:
        assert container.wait() == 2
        assert 'hostname = "mx1.example.org", or set SMTPGUARD_HOSTNAME' in container.log


def test_the_configuration_in_the_image_is_a_sidecar(image: Image, engine: Engine, network: None) -> None:
    """One variable, and it serves; the start-up time is printed."""
    began = time.monotonic()  # noqa: TID251
    with engine.container(image.name, *HARDENED, "--env=SMTPGUARD_HOSTNAME=mail.example.org") as container:
        trio.run(partial(healthy, container))
        print(f"\ncontainer created, started and healthy: {time.monotonic() - began:.2f} s")  # noqa: TID251
        for listener in (
            "lmtp address=127.0.0.1:10027",
            "smtp address=127.0.0.1:10026",
            "metrics address=0.0.0.0:9826",
        ):
            assert f"listener={listener}" in container.log


def test_mail_through_it(image: Image, engine: Engine, network: None, tmp_path: Path) -> None:
    """DANE and MTA-STS verified, a stripped STARTTLS refused, with TLS on the way in as well as out."""

    async def mail() -> None:
        async with running(image, engine, tmp_path) as (internet, container):
            for domain in ("dane.example", "sts.example"):
                reply = await submitted(f"bob@{domain}")
                assert reply.startswith("250 "), reply
                (message,) = internet.hosts[domain].mx.messages
                assert message.over_tls
            refused = await submitted("bob@stripped.example")
            assert refused.startswith("451 4.7.4 [tls/no-starttls]"), refused
            with trio.fail_after(5):
                while "event=delivery_refused" not in container.log:  # lines are written ten times a second
                    await trio.sleep(0.05)
            asked = engine.podman("exec", container.id, "/opt/smtpguard/bin/smtpguard", "explain", "stripped.example")
            assert "STARTTLS" in asked

    trio.run(mail)


def test_term_lets_a_message_end(image: Image, engine: Engine, network: None, tmp_path: Path) -> None:
    """Stopped in the middle of a message: it is delivered, no new session begins, the exit code is 0."""

    async def drain() -> int:
        async with running(image, engine, tmp_path) as (internet, container):
            client = await Client.connect("127.0.0.1", PORTS.smtp)
            await client.reply()
            await client.hello()
            for command in ("MAIL FROM:<a@sender.example>", "RCPT TO:<bob@dane.example>", "DATA"):
                assert (await client.command(command)).is_positive
            container.kill("TERM")
            await until("stage=draining", container)
            await client.conversation.send(b"Subject: last\r\n\r\nlast\r\n.\r\n")
            assert (await client.reply()).code == 250
            client.conversation.close()
            assert [message.over_tls for message in internet.hosts["dane.example"].mx.messages] == [True]
            return container.wait()

    assert trio.run(drain) == 0


def test_it_renews_its_certificate_from_a_mounted_file(
    image: Image, engine: Engine, network: None, tmp_path: Path
) -> None:
    """A secret is a file; HUP takes a new one over."""

    async def renewed() -> None:
        async with running(image, engine, tmp_path, secured=True) as (internet, container):
            first = await shown_certificate()
            write_pair(internet, tmp_path)
            container.kill("HUP")
            await until("stage=reloaded", container)
            assert await shown_certificate() != first

    trio.run(renewed)


# -- helpers


@asynccontextmanager
async def running(
    image: Image, engine: Engine, directory: Path, *, secured: bool = False
) -> AsyncIterator[tuple[Internet, Container]]:
    """The sandbox Internet, and the container in it, healthy."""
    mounted = directory / "etc"
    mounted.mkdir()
    async with open_internet(directory, SITES) as internet:
        text = configuration(internet, PORTS, Path("/var/lib/smtpguard"))
        (mounted / "ca.pem").write_bytes(internet.ca_file.read_bytes())
        text = text.replace(str(internet.ca_file), "/etc/smtpguard/ca.pem")
        if secured:
            write_pair(internet, directory)
            pair = 'certificate = "/etc/smtpguard/pair.pem"\nkey = "/etc/smtpguard/pair.pem"\n'
            text = text.replace('protocol = "smtp"\n', f'protocol = "smtp"\n{pair}')
        (mounted / "smtpguard.toml").write_text(text)
        mounted.chmod(0o755)
        with engine.container(image.name, *HARDENED, f"--volume={mounted}:/etc/smtpguard:ro") as container:
            await healthy(container)
            yield internet, container


def write_pair(internet: Internet, directory: Path) -> None:
    leaf = internet.certificates.leaf(internet.public_authority, ["mail.example.org"])
    path = directory / "etc" / "pair.pem"
    path.write_bytes(leaf.pem_file.read_bytes())
    path.chmod(0o644)


async def healthy(container: Container) -> None:
    """Another process: there is no event to wait for, only the health check to run."""
    with trio.move_on_after(READY_SECONDS):
        while not container.is_healthy():
            assert container.state["Running"], container.log
            await trio.sleep(0.05)
        return
    raise AssertionError(f"not healthy within {READY_SECONDS:g} s:\n{container.log}")


async def until(words: str, container: Container) -> None:
    with trio.fail_after(READY_SECONDS):
        while words not in container.log:
            await trio.sleep(0.05)


async def submitted(recipient: str) -> str:
    client = await Client.connect("127.0.0.1", PORTS.lmtp)
    await client.reply()
    await client.hello(verb="LHLO")
    sent = await client.send("alice@sender.example", [recipient], b"Subject: x\r\n\r\nx\r\n", lmtp=True)
    await client.quit()
    return str(sent.last_reply)


async def shown_certificate() -> bytes:
    client = await Client.connect("127.0.0.1", PORTS.smtp)
    await client.reply()
    await client.hello()
    assert (await client.start_tls(unverifying_context())).code == 220
    assert client.conversation.tls is not None
    shown = client.conversation.tls.getpeercert(binary_form=True)
    client.conversation.close()
    assert shown is not None
    return shown
