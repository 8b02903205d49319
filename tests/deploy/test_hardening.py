"""Mail with verified TLS in a process that can never make memory executable: what MemoryDenyWriteExecute= asks.

systemd of Debian 12 enforces it by a system call filter (test_systemd.py runs that), later ones by prctl(PR_SET_MDWE),
as here; the kernel then refuses every mapping that is, or becomes, writable and executable.
"""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.demo import Ports, configuration
from smtpguard.sandbox.internet import Attack, Publication, Site, open_internet

PORTS = Ports(smtp=10026, lmtp=10027, admin=9825)
SITES = (
    Site("dane.example", Publication.DANE_EE),
    Site("sts.example", Publication.STS_ENFORCE),
    Site("swapped.example", Publication.DANE_EE, Attack.SWAP_CERTIFICATE),
)
READY_SECONDS = 30.0
CONFINED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_MDWE, PR_GET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 66, 1
if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) != 0:
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"""
PROBE = """
import mmap
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    print("refused")
"""


def confined(*arguments: str) -> list[str]:
    """The command that runs Python with these arguments, and never executable memory."""
    return [sys.executable, "-c", CONFINED, sys.executable, *arguments]


def test_the_kernel_refuses() -> None:
    """Else the next test would prove nothing."""
    done = subprocess.run(confined("-c", PROBE), capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "refused\n", done.stderr


@pytest.mark.usefixtures("network")
def test_mail_without_executable_memory(tmp_path: Path) -> None:
    """STARTTLS on the way in, DANE and MTA-STS on the way out, a swapped certificate refused, a clean end."""
    trio.run(partial(story, tmp_path))


async def story(directory: Path) -> None:
    async with open_internet(directory, SITES) as internet:
        pair = internet.certificates.leaf(internet.public_authority, ["mail.example.org"]).pem_file
        text = configuration(internet, PORTS, directory / "state").replace(
            'protocol = "lmtp"\n', f'protocol = "lmtp"\ncertificate = "{pair}"\nkey = "{pair}"\n'
        )
        config = directory / "smtpguard.toml"
        config.write_text(text)
        log = directory / "log"
        # From this very thread, which lives in the test's network namespace; not from one of Trio's.
        with log.open("wb") as stream:
            process = subprocess.Popen(
                confined("-m", "smtpguard", "run", "--config", str(config)),
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(os.environ),
            )
        try:
            with trio.fail_after(READY_SECONDS):
                while "stage=ready" not in log.read_text():
                    assert process.poll() is None, log.read_text()
                    await trio.sleep(0.05)
            for domain in ("dane.example", "sts.example"):
                assert (await submitted(f"bob@{domain}")).startswith("250 "), log.read_text()
                assert [message.over_tls for message in internet.hosts[domain].mx.messages] == [True]
            assert (await submitted("bob@swapped.example")).startswith("451 4.7.5 [dane/"), log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(30)
        assert code == 0, log.read_text()
        assert "event=internal_error" not in log.read_text()


async def submitted(recipient: str) -> str:
    """One message by LMTP inside TLS; the reply that decided."""
    client = await Client.connect("127.0.0.1", PORTS.lmtp)
    await client.reply()
    await client.hello(verb="LHLO")
    assert (await client.start_tls(unverifying_context())).code == 220
    await client.hello(verb="LHLO")
    sent = await client.send("alice@sender.example", [recipient], b"Subject: x\r\n\r\nx\r\n", lmtp=True)
    await client.quit()
    return str(sent.last_reply)
