"""MTAs that send and were told nothing of smtpguard: defaults as they come, each delivering by MX itself."""

import smtplib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.interop.namespace import Network
from tests.interop.processes import EXIM, OPENSMTPD, Postfix, run, spawn_exim, spawn_opensmtpd

SUBMISSION = 2500
NAME = "out.sender.test"
_MAIN_CF_TLS = Path("/usr/share/postfix/main.cf.tls")
"""What Debian's package puts into main.cf about TLS; the rest of the file is not about sending."""


@dataclass(frozen=True, slots=True)
class Unmodified:
    """One of them, where it lives; `retry`: it tries all mail in its queue now."""

    network: Network
    address: str
    log_path: Path
    retry: Callable[[], object]

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def send(self, recipient: str, content: bytes) -> None:
        """Hand a message over, as a mail client of this MTA would."""
        with (
            self.network.entered(),
            smtplib.SMTP(self.address, SUBMISSION, local_hostname="client.sender.test", timeout=60) as client,
        ):
            assert not client.sendmail("user@sender.test", [recipient], content, ["BODY=8BITMIME"])


def debian_postfix(postfix: Postfix, network: Network) -> Unmodified:
    """Debian's main.cf as its package makes it."""
    with network.entered():
        postfix.start(
            f"myhostname = {NAME}\nmydestination =\nmynetworks = 127.0.0.0/8\n" + _MAIN_CF_TLS.read_text(),
            f"{postfix.address}:{SUBMISSION} inet n - n - - smtpd\n",
        )
    return Unmodified(network, postfix.address, postfix.directory / "log", postfix.flush)


def default_exim(
    processes: list[subprocess.Popen[bytes]], directory: Path, network: Network, address: str, resolver: str
) -> Unmodified:
    """Exim with the router and the transport of Debian's "internet site", nothing about TLS in them."""
    with network.entered():
        process = spawn_exim(
            processes,
            directory,
            f"""primary_hostname = {NAME}
domainlist local_domains =
daemon_smtp_ports = {SUBMISSION}
local_interfaces = {address}
acl_smtp_rcpt = rcpt
""",
            """begin acl
rcpt:
  accept
begin routers
dnslookup:
  driver = dnslookup
  domains = ! +local_domains
  transport = remote_smtp
  same_domain_copy_routing = yes
  ignore_target_hosts = <; 0.0.0.0 ; 127.0.0.0/8 ; 192.168.0.0/16 ; 172.16.0.0/12 ; 10.0.0.0/8 ; fc00::/7 ; ::1/128
  no_more
begin transports
remote_smtp:
  driver = smtp
begin retry
* * F,2h,15m; G,16h,1h,1.5; F,4d,6h
""",
            resolver,
        )
    again = ("nsenter", "--mount", "--net", "--target", str(process.pid), EXIM, "-C", directory / "exim.conf", "-qff")
    return Unmodified(network, address, directory / "log" / "mainlog", lambda: run(*again))


def default_opensmtpd(
    processes: list[subprocess.Popen[bytes]], directory: Path, network: Network, address: str, resolver: str
) -> Unmodified:
    """OpenSMTPD with the action `relay` of the file that it comes with."""
    with network.entered():
        process = spawn_opensmtpd(
            processes,
            directory,
            f"""listen on {address} port {SUBMISSION} hostname {NAME}
action "relay" relay
match from local for any action "relay"
""",
            (address, SUBMISSION),
            resolver,
        )
    # Its program insists on the group that its package's installation would have given the file.
    control = ("setpriv", "--regid=opensmtpq", "--clear-groups", OPENSMTPD.with_name("smtpctl"), "schedule", "all")
    again = ("nsenter", "--mount", "--net", "--target", str(process.pid), *control)
    return Unmodified(network, address, directory.with_name(f"{directory.name}.log"), lambda: run(*again))
