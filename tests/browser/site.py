"""A real smtpguard process between the sandbox internet and a scripted MTA: what the page is tried with."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from smtpguard.sandbox.behaviour import Behaviour
from smtpguard.sandbox.certificates import CertificateMaker
from smtpguard.sandbox.client import Client, Sent, unverifying_context
from smtpguard.sandbox.internet import (
    BROKEN,
    SIGNED,
    UNSIGNED,
    Attack,
    Internet,
    Publication,
    Site,
    open_internet,
)
from tests.support.mta import Mta

SITES = (
    Site("dane.example", Publication.DANE_EE),
    Site("sts.example", Publication.STS_ENFORCE),
    Site("plain.example", Publication.NOTHING),
    Site("clear.example", Publication.NOTHING, Attack.STRIP_STARTTLS),
    Site("swapped.example", Publication.DANE_EE, Attack.SWAP_CERTIFICATE),
    Site("stripped.example", Publication.STS_ENFORCE, Attack.STRIP_STARTTLS),
    Site("hostile.example", Publication.NOTHING),
)
HOST = "mx.front.example"
CONTENT = b"Subject: hello\r\n\r\nhello\r\n"
HOSTILE = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
SECONDS = 20.0

CONFIG = """
hostname = "mail.sender.example"
state_dir = "{directory}/state"
drain_seconds = 5
[[listener]]
role = "outbound"
name = "lmtp"
bind = ["127.0.0.1:0"]
protocol = "lmtp"
[[listener]]
role = "inbound"
name = "mx"
bind = ["127.0.0.1:0"]
certificate = "{certificate}"
key = "{certificate}"
upstream = "127.0.0.1:{mta}"
pass_client = "none"
upstream_has_no_trusted_networks = true
client_names = false
[[inbound_policy]]
recipient_domain = "secret.example"
require = "tls"
[outbound]
port = {port}
allow_destinations = ["127.0.0.0/8"]
[dns]
resolvers = ["{resolver}"]
[dns.canary]
signed = "{signed}"
unsigned = "{unsigned}"
broken = "{broken}"
[mtasts]
port = {policy_port}
[tls]
ca_file = "{ca_file}"
[admin]
bind = "{admin}"
{more}
"""


@dataclass
class Guard:
    """The process, and those it speaks with."""

    internet: Internet
    mta: Mta
    config: Path
    log: Path
    process: trio.Process
    started: int = 1

    async def port(self, listener: str) -> int:
        """Where it listens now."""
        found = await self.said(rf"event=listening listener={listener} address=\S+:(\d+)")
        return int(found[-1])

    async def said(self, pattern: str) -> list[str]:
        """What its log says, once it does; of the life before only what it says again."""
        with trio.fail_after(SECONDS):
            while True:
                life = self.log.read_text().split("stage=started")[-1]
                if found := re.findall(pattern, life):
                    return found
                assert self.process.poll() is None, self.log.read_text()[-4000:]
                await trio.sleep(0.02)

    async def send(self, *recipients: str) -> Sent:
        """Outbound, from the MTA."""
        client = await Client.connect("127.0.0.1", await self.port("lmtp"))
        try:
            await client.reply()
            await client.hello("mta.example", "LHLO")
            return await client.send("sender@sender.example", recipients, CONTENT, lmtp=True)
        finally:
            client.conversation.close()

    async def receive(self, recipient: str, *, tls: bool) -> Sent:
        """Inbound, from a host of the Internet."""
        client = await Client.connect("127.0.0.1", await self.port("mx"))
        try:
            await client.reply()
            await client.hello("client.example", "EHLO")
            if tls:
                await client.start_tls(unverifying_context(), HOST)
                await client.hello("client.example", "EHLO")
            return await client.send("someone@remote.example", [recipient], CONTENT, lmtp=False)
        finally:
            client.conversation.close()

    async def traffic(self) -> None:
        """Mail of every kind: 3 delivered over TLS (1 by DANE, 1 by MTA-STS), 1 in clear, 2 deferred, 1 refused by its
        host; 2 received over TLS, 1 in clear, 1 refused."""
        self.say(
            "hostile.example", rcpt="550 5.1.1 <img src=x onerror=document.title='hacked'><script>alert(1)</script>"
        )
        for domain in ("dane", "sts", "plain", "clear", "swapped", "stripped", "hostile"):
            await self.send(f"bob@{domain}.example")
        for recipient, tls in (("a", True), ("b", True), ("c", False)):
            await self.receive(f"{recipient}@front.example", tls=tls)
        await self.receive("a@secret.example", tls=False)

    def say(self, domain: str, **changes: object) -> None:
        """The MX of this domain is a good one but for these changes."""
        self.internet.hosts[domain].mx.behaviour = replace(Behaviour(), **changes)  # type: ignore[arg-type]

    async def stop(self) -> None:
        """As systemd would, and then as a power cut would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with trio.move_on_after(15):
                await self.process.wait()
        if self.process.poll() is None:
            self.process.kill()
        await self.process.wait()

    async def restart(self, admin: str) -> None:
        """Again, with the admin address at `admin`."""
        self.config.write_text(re.sub(r'(\[admin\]\nbind = )"[^"]*"', rf'\1"{admin}"', self.config.read_text()))
        self.process = await _start(self.config, self.log)
        await self.said("(stage=ready)")


@asynccontextmanager
async def open_guard(directory: Path, *, admin: str = "127.0.0.1:0", more: str = "") -> AsyncIterator[Guard]:
    """All of it, ready; `more` are lines of [admin]."""
    (directory / "front").mkdir()
    maker = CertificateMaker(directory / "front")
    credential = maker.leaf(maker.root("Front"), [HOST])
    mta = Mta()
    async with open_internet(directory, SITES) as internet, trio.open_nursery() as nursery:
        await mta.start(nursery)
        config, log = directory / "smtpguard.toml", directory / "smtpguard.log"
        config.write_text(
            CONFIG.format(
                directory=directory,
                certificate=credential.pem_file,
                mta=mta.port,
                port=internet.mx_port,
                resolver="{}:{}".format(*internet.resolver),
                signed=SIGNED,
                unsigned=UNSIGNED,
                broken=BROKEN,
                policy_port=internet.policy_port,
                ca_file=internet.ca_file,
                admin=admin,
                more=more,
            )
        )
        guard = Guard(internet, mta, config, log, await _start(config, log))
        try:
            await guard.said("(stage=ready)")
            yield guard
        finally:
            with trio.CancelScope(shield=True):
                await guard.stop()
            nursery.cancel_scope.cancel()


async def _start(config: Path, log: Path) -> trio.Process:
    command = [sys.executable, "-m", "smtpguard", "run", "--config", str(config)]
    with log.open("ab") as output:
        return await trio.lowlevel.open_process(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))
