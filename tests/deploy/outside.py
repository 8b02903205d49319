"""The Internet around what is deployed: signed zones and mail hosts with DANE, in the network of the test.

what is deployed: eth0 ── net0: knot, a receiving Postfix
"""

import re
import smtplib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smtpguard.sandbox.certificates import CertificateMaker
from tests.interop import zones
from tests.interop.hosts import receiving_postfix, site, smtpd
from tests.interop.processes import Postfix, end, run, spawn

INTERNET, DEPLOYED = "11.1.0.1", "11.1.0.2"
DANE = "11.25.0.1"
SITES = {"dane": DANE, "plain": "11.25.0.2", "bogus": "11.25.0.9"}
SECONDS = 60.0
CANARY = """
[dns.canary]
signed = "www.dane.test"
unsigned = "www.plain.test"
broken = "www.bogus.test"
"""


@contextmanager
def open_internet(directory: Path) -> Iterator[str]:
    """Name server and mail hosts in the network of the test; the trust anchor of test."""
    for address in (INTERNET, *SITES.values()):
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    certificates = directory / "certificates"
    certificates.mkdir()
    maker = CertificateMaker(certificates)
    shown = {name: maker.leaf(None, [f"mx.{name}.test"]) for name in SITES}
    described = {
        name: site(address, None if name == "plain" else shown[name], bogus=name == "bogus")
        for name, address in SITES.items()
    }
    config = zones.write_knot(directory / "dns", described, INTERNET)
    (anchor,) = re.findall(r"^test\. DS .*$", (directory / "dns/zones/.zone").read_text(), re.MULTILINE)
    receiver = Postfix(directory / "receiver")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        spawn(processes, directory / "knot.log", "knotd", "-c", config, ready=has_names)
        services = "".join(smtpd(address, f"mx.{name}.test", shown[name]) for name, address in SITES.items())
        receiving_postfix(receiver, directory, [f"{name}.test" for name in SITES], services)
        yield anchor
    finally:
        receiver.stop()
        end(processes)


def has_names() -> bool:
    return "mx." in zones.ask(INTERNET, "plain.test", "MX")


def local_conf(anchor: str) -> str:
    """What the companion resolver is told of test.: whom to ask, and what it is signed with."""
    return (
        f'server:\n  trust-anchor: "{anchor}"\n  local-zone: "test." nodefault\n'
        f'stub-zone:\n  name: "test."\n  stub-addr: {INTERNET}\n'
    )


def link(network: str) -> None:
    """The Internet and another network, given by its path, see each other."""
    inside = ("nsenter", f"--net={network}", "ip")
    run("ip", "link", "add", "net0", "type", "veth", "peer", "name", "eth0", "netns", network)
    run("ip", "address", "add", f"{INTERNET}/24", "dev", "net0")
    run("ip", "link", "set", "net0", "up")
    run(*inside, "address", "add", f"{DEPLOYED}/24", "dev", "eth0")
    run(*inside, "link", "set", "eth0", "up")
    run(*inside, "route", "add", "default", "via", INTERNET)


def greeted(port: int) -> smtplib.SMTP | None:
    """A client of the Internet; None while there is nobody, or a 421 because the MTA's profile is not learnt."""
    try:
        return smtplib.SMTP(DEPLOYED, port, local_hostname="mta.client.test", timeout=20)
    except (smtplib.SMTPConnectError, ConnectionRefusedError):
        return None
