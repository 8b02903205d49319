"""The units: checked by systemd's own tools, and run by a systemd that is the first process of a container.

The container is privileged, as an operating system is; what confines smtpguard in it are the units.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.demo import Ports, configuration
from smtpguard.sandbox.internet import Internet, Publication, Site, open_internet
from tests.deploy.containers import ROOT, Container, Engine, Failed, Image, output
from tests.deploy.documents import blocks
from tests.interop.processes import wait_for

PAGE = "deploy-systemd.md"
UNITS = ROOT / "deploy" / "systemd"
CHECKOUT = (
    "deploy",
    "smtpguard",
    "requirements.lock",
    "requirements-build.lock",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
PORTS = Ports(smtp=10026, lmtp=10027, admin=9825)


@pytest.fixture(scope="module")
def installed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the page's Install makes of a Debian."""
    context = tmp_path_factory.mktemp("context")
    for source in (ROOT / name for name in CHECKOUT):
        name = source.name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, context / name)
    (context / "commands.sh").write_text(blocks(PAGE, "install"))
    dockerfile = str(ROOT / "tests/deploy/systemd.Dockerfile")
    return engine.build("localhost/smtpguard-systemd:test", file=dockerfile, context=context)


@contextmanager
def booted(engine: Engine, installed: Image, directory: Path) -> Iterator[Container]:
    """The container in the test's network, its systemd up; /shared is `directory`."""
    options = ("--privileged", "--systemd=always", "--network=host", f"--volume={directory}:/shared")
    with engine.container(installed.name, *options) as container:
        wait_for("systemd", lambda: is_up(container))
        try:
            yield container
        except Failed as failed:
            raise Failed(f"{failed}\n{container.run('journalctl --no-pager --lines=25')}") from failed


def journal(container: Container) -> str:
    """What the unit said.  smtpguard's log and the journal are written a moment after what they tell of."""
    return container.run("journalctl --sync; journalctl --no-pager -u smtpguard")


def is_up(container: Container) -> bool:
    try:
        return container.run("systemctl is-system-running || true").strip() in ("running", "degraded")
    except Failed:
        return False


async def delivered(internet: Internet, domain: str, *, port: int = PORTS.lmtp) -> str:
    """One message by LMTP; the reply."""
    client = await Client.connect("127.0.0.1", port)
    await client.reply()
    await client.hello(verb="LHLO")
    sent = await client.send("alice@sender.example", [f"bob@{domain}"], b"Subject: x\r\n\r\nx\r\n", lmtp=True)
    await client.quit()
    assert internet.hosts[domain].mx.messages[-1].over_tls
    return str(sent.last_reply)


def configured(internet: Internet, container: Container, directory: Path, *, more: str = "") -> None:
    """The sandbox's configuration in the place of the shipped one."""
    text = configuration(internet, PORTS, Path("/var/lib/smtpguard"))
    text = re.sub("^state_dir.*\n", "", text, flags=re.MULTILINE)
    shutil.copy(internet.ca_file, directory / "ca.pem")
    (directory / "smtpguard.toml").write_text(text.replace(str(internet.ca_file), "/etc/smtpguard/ca.pem") + more)
    container.run("install -m 0644 /shared/ca.pem /shared/smtpguard.toml /etc/smtpguard/")


def test_the_page_leads_to_mail(engine: Engine, installed: Image, network: None, tmp_path: Path) -> None:
    """Install and run as the page says; mail with verified TLS; what confines the process; a restart nobody sees."""
    directory = tmp_path / "shared"
    directory.mkdir()

    async def story() -> None:
        async with open_internet(tmp_path, [Site("dane.example", Publication.DANE_EE)]) as internet:
            with booted(engine, installed, directory) as container:
                configured(internet, container, directory)
                container.run("smtpguard check-config")
                container.run(blocks(PAGE, "run"))
                assert (await delivered(internet, "dane.example")).startswith("250 ")
                confined(container)
                # The socket outlives the process, and a connection to it is enough to start the next one.
                before = container.run("systemctl show -p MainPID --value smtpguard")
                container.run("systemctl stop smtpguard")
                assert (await delivered(internet, "dane.example")).startswith("250 ")
                assert container.run("systemctl show -p MainPID --value smtpguard") != before
                container.run("systemctl reload smtpguard")
                wait_for("its word of the reload", lambda: "stage=reloaded" in journal(container))
                # Watched by nobody else: state is kept where StateDirectory says, and owned by the user of the unit.
                assert "smtpguard.db" in container.run("ls /var/lib/private/smtpguard")
                container.run("systemctl stop smtpguard")
                wait_for("its last word", lambda: journal(container).count("stage=stopped") == 2)
                assert "Failed" not in journal(container)
                assert "Stopped smtpguard.service" in journal(container)

    trio.run(story)


def confined(container: Container) -> None:
    """What the kernel holds of the running process."""
    status = container.run("cat /proc/$(systemctl show -p MainPID --value smtpguard)/status")
    found = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
    assert int(found["CapEff"], 16) == int(found["CapBnd"], 16) == int(found["CapPrm"], 16) == 0
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert not found["Uid"].startswith("0\t")


def test_the_way_in(engine: Engine, installed: Image, network: None, tmp_path: Path) -> None:
    """A key that only root can read comes as a credential, and port 25 as a socket; TLS is spoken with it."""
    directory = tmp_path / "shared"
    directory.mkdir()

    async def story() -> None:
        async with open_internet(tmp_path, [Site("dane.example", Publication.DANE_EE)]) as internet:
            leaf = internet.certificates.leaf(internet.public_authority, ["mx1.example.org"])
            shutil.copy(leaf.pem_file, directory / "pair.pem")
            with booted(engine, installed, directory) as container:
                # TLS at once, since without an MTA behind there is only a 421 to be heard in clear.
                listener = blocks(PAGE, "inbound", "toml").replace('name = "mx"', 'name = "mx"\ntls = "implicit"')
                configured(internet, container, directory)
                container.run(blocks(PAGE, "run"))
                configured(internet, container, directory, more=listener)
                container.run(
                    "for name in fullchain privkey; do\n"
                    "install -D -m 0600 /shared/pair.pem /etc/smtpguard/tls/$name.pem\n"
                    "done"
                )
                container.run(blocks(PAGE, "inbound"))
                client = await Client.connect("127.0.0.1", 25)
                await client.conversation.start_tls(unverifying_context(), server_side=False)
                assert (await client.reply()).code == 421
                assert client.conversation.tls is not None
                shown = client.conversation.tls.getpeercert(binary_form=True)
                assert shown == leaf.der
                client.conversation.close()
                # The way out went on meanwhile.
                assert (await delivered(internet, "dane.example")).startswith("250 ")

    trio.run(story)


# -- systemd's own checks


def test_verify(tmp_path: Path) -> None:
    """No unknown key, no missing file; the executable and the pages are where the page installs them."""
    for path in UNITS.glob("smtpguard*.s*"):
        if path.suffix in (".service", ".socket"):
            text = path.read_text().replace("/opt/smtpguard/bin/smtpguard", "/bin/true")
            text = re.sub("^Documentation=.*\n", "", text, flags=re.MULTILINE)
            (tmp_path / path.name).write_text(text)
    dropin = tmp_path / "smtpguard.service.d"
    shutil.copytree(UNITS / "smtpguard.service.d", dropin)
    units = sorted(path for path in tmp_path.iterdir() if path.is_file())
    assert len(units) == 6
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_security() -> None:
    """The exposure that systemd counts: of 10, and docs/deploy-systemd.md says how much."""
    said = output(["systemd-analyze", "security", "--offline=true", "--threshold=15", UNITS / "smtpguard.service"])
    (level,) = re.findall(r"Overall exposure level for smtpguard.service: (\S+)", said)
    assert f"`systemd-analyze security smtpguard` says {level}" in (ROOT / "docs" / PAGE).read_text()
