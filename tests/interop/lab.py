"""A small Internet of real servers: knot signs, unbound validates, three kinds of MTA receive, nginx serves policies.

    knot 127.53.0.1:53 -> unbound 127.0.0.1:53 -> smtpguard -> Postfix 127.25.0.x:25, one address a certificate
    three Postfix, Exim and OpenSMTPD send, with files of deploy/ verbatim -> smtpguard 127.0.0.1:10027, :10026

All of it lives in a network namespace of its own and in one temporary directory.
"""

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from smtpguard.sandbox.certificates import CertificateMaker, Credential, tlsa
from tests.interop import zones
from tests.interop.hosts import receiving_exim, receiving_opensmtpd, receiving_postfix, serve_policies, smtpd
from tests.interop.namespace import BLACK_HOLE, own_network
from tests.interop.processes import (
    Postfix,
    Smtpguard,
    end,
    lab_directory,
    messages_in,
    spawn,
    spawn_exim,
    spawn_opensmtpd,
)
from tests.interop.zones import KNOT, UNBOUND, Zone

DEPLOY = Path(__file__).parents[2] / "deploy" / "postfix"
POLICY_HOST, SCRIPTED = "127.25.0.80", "127.25.0.81"
SUBMISSION, VERIFIED = 2500, 2501
MANY = 20

SENDING = {"exim": "127.25.1.8", "opensmtpd": "127.25.1.9"}
"""Where the other sending MTAs take mail, on port 2500."""

VARIANTS = {"lmtp": "smtpguard", "smtp": "smtpguard-smtp", "domains": "smtpguard-domains"}
"""The sending instances, and which main.cf.* and master.cf.* of deploy/postfix each has, as they are."""


@dataclass(frozen=True, slots=True)
class Site:
    """One recipient domain: its MX host's address and what it shows."""

    domain: str
    address: str
    signed: bool


_SIGNED = {"dane", "swap", "exim", "bogus"}
SITES = {
    name: Site(f"{name}.test", f"127.25.0.{number}", name in _SIGNED)
    for number, name in enumerate(("dane", "swap", "sts", "stsbad", "plain", "bogus", "mute", "exim", "osmtpd"), 1)
}
_ELSEWHERE = {"mute", "exim", "osmtpd"}
"""Sites whose host is not the receiving Postfix."""


def many_host(number: int) -> str:
    """The address of the MX host of d<number>.many.test."""
    return f"127.26.0.{number + 1}"


@dataclass
class Lab:
    """All of it."""

    directory: Path
    smtpguard: Smtpguard
    receiver: Postfix
    senders: dict[str, Postfix]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def delivered(self, marker: bytes) -> list[bytes]:
        """The messages in the receivers' mailboxes that hold `marker`."""
        return messages_in(self.directory, marker)

    def clean(self) -> None:
        """After each test: no mail on the way, smtpguard as at the start."""
        busy = [postfix for postfix in self.senders.values() if "Mail queue is empty" not in postfix.queue()]
        for postfix in busy:
            postfix.purge()
        if busy:  # deliveries may still wait for a host
            self.smtpguard.stop(signal.SIGKILL)
        self.smtpguard.ensure()
        for postfix in busy:
            postfix.flush()  # Postfix forgets that sessions were cut, and suspends nothing


@contextmanager
def open_lab() -> Iterator[Lab]:
    """Build, start and at the end stop everything.  Root only: namespaces, port 25 and Postfix need it."""
    with lab_directory("lab") as directory, own_network():
        senders = {
            name: Postfix(directory / f"sender-{name}", f"127.25.1.{number}", UNBOUND)
            for number, name in enumerate(VARIANTS, 1)
        }
        guard = Smtpguard(directory / "smtpguard.toml", directory / "smtpguard.log")
        lab = Lab(directory, guard, Postfix(directory / "receiver"), senders)
        try:
            _start(lab)
            yield lab
        finally:
            _stop(lab)


def _stop(lab: Lab) -> None:
    with suppress(subprocess.TimeoutExpired):
        lab.smtpguard.stop()
    for postfix in (*lab.senders.values(), lab.receiver):
        postfix.stop()
    end(lab.processes)


def _start(lab: Lab) -> None:
    certificates = lab.directory / "certificates"
    certificates.mkdir()
    maker = CertificateMaker(certificates)
    root = maker.root("Lab Root")
    public = maker.intermediate(root, "Lab Issuer")
    shown = {
        name: maker.leaf(public if name in {"swap", "sts", "stsbad"} else None, [f"mx.{site.domain}"])
        for name, site in SITES.items()
    }
    published = {**shown, "swap": maker.leaf(None, ["mx.swap.test"])}
    shown["stsbad"] = maker.leaf(None, ["mx.stsbad.test"])
    trust = maker.trust_file(root)
    _dns(lab, published)
    policy_host = maker.leaf(public, ["mta-sts.sts.test", "mta-sts.stsbad.test"])
    serve_policies(lab.processes, lab.directory / "nginx", POLICY_HOST, ["sts", "stsbad"], policy_host)
    _receiver(lab, shown)
    receiving_exim(lab.processes, lab.directory / "exim", SITES["exim"].address, shown["exim"])
    receiving_opensmtpd(lab.processes, lab.directory / "osmtpd", SITES["osmtpd"].address)
    _exim(lab)
    _opensmtpd(lab)
    for name in VARIANTS:
        _sender(lab.senders[name], name)
    lab.smtpguard.config.write_text(
        f"""hostname = "out.sender.test"
state_dir = "{lab.directory}/state"
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10027"]
protocol = "lmtp"
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10026"]
protocol = "smtp"
[outbound]
allow_destinations = ["127.25.0.0/16", "127.26.0.0/16", "{BLACK_HOLE}/32"]
[dns]
resolvers = ["{UNBOUND}"]
[dns.canary]
signed = "www.dane.test"
unsigned = "www.plain.test"
broken = "www.bogus.test"
[tls]
ca_file = "{trust}"
"""
    )
    lab.smtpguard.start()
    lab.smtpguard.logged("state=validating")


def _spawn(lab: Lab, name: str, *command: str | Path, ready: Callable[[], bool]) -> None:
    spawn(lab.processes, lab.directory / f"{name}.log", *command, ready=ready)


def _dns(lab: Lab, published: dict[str, Credential]) -> None:
    described = {}
    for name, site in SITES.items():
        records = f"@ MX 10 mx\nmx A {site.address}\nwww A 192.0.2.1\n"
        if site.signed and name != "bogus":
            records += f"_25._tcp.mx TLSA {tlsa(3, 1, 1, published[name].der)}\n"
        if name.startswith("sts"):
            records += f'_mta-sts TXT "v=STSv1; id=1;"\nmta-sts A {POLICY_HOST}\n'
        described[name] = Zone(records, signed=site.signed, bogus=name == "bogus")
    described["scripted"] = Zone(f"@ MX 10 mx\nmx A {SCRIPTED}\n")
    described["hole"] = Zone(f"@ MX 10 mx\nmx A {BLACK_HOLE}\n")
    described["many"] = Zone(
        "".join(f"d{number} MX 10 mx{number}\nmx{number} A {many_host(number)}\n" for number in range(MANY))
    )
    directory = lab.directory / "dns"
    config = zones.write_knot(directory, described)
    _spawn(lab, "knot", "knotd", "-c", config, ready=lambda: "mx." in zones.ask(KNOT, "plain.test", "MX"))
    config = zones.write_unbound(directory)
    _spawn(lab, "unbound", "unbound", "-d", "-c", config, ready=lambda: "mx." in zones.ask(UNBOUND, "dane.test", "MX"))


def _receiver(lab: Lab, shown: dict[str, Credential]) -> None:
    domains = [site.domain for site in SITES.values()] + [f"d{number}.many.test" for number in range(MANY)]
    services = "".join(
        smtpd(site.address, f"mx.{site.domain}", shown[name]) for name, site in SITES.items() if name not in _ELSEWHERE
    )
    for number in range(MANY):
        services += smtpd(many_host(number), f"mx{number}.many.test", shown["plain"])
    receiving_postfix(lab.receiver, lab.directory, domains, services)


def _exim(lab: Lab) -> None:
    """Exim as an MTA that sends with the files of deploy/exim as they are."""
    shipped = DEPLOY.parent / "exim"
    spawn_exim(
        lab.processes,
        lab.directory / "sender-exim",
        f"""primary_hostname = out.sender.test
domainlist local_domains =
domainlist relay_to_domains =
daemon_smtp_ports = 2500
local_interfaces = {SENDING["exim"]}
tls_advertise_hosts =
acl_smtp_rcpt = rcpt
""",
        f"""begin acl
rcpt:
  accept
{(shipped / "smtpguard.conf").read_text()}
begin retry
* * F,1h,15m
""",
    )


def _opensmtpd(lab: Lab) -> None:
    """OpenSMTPD as an MTA that sends with the file of deploy/opensmtpd."""
    sending = SENDING["opensmtpd"]
    spawn_opensmtpd(
        lab.processes,
        lab.directory / "sender-opensmtpd",
        f"listen on {sending} port 2500 hostname out.sender.test\n"
        + (DEPLOY.parent / "opensmtpd" / "smtpguard.conf").read_text(),
        (sending, 2500),
    )


def _sender(postfix: Postfix, variant: str) -> None:
    """A sending MTA: the shipped files as they are, and what makes tests fast and clear."""
    postfix.start(
        """myhostname = out.sender.test
mydestination =
mynetworks = 127.0.0.0/8
minimal_backoff_time = 300s
queue_run_delay = 300s
unverified_recipient_reject_code = 550
address_verify_map =
address_verify_poll_delay = 1s
smtpd_client_connection_count_limit = 0
"""
        + (DEPLOY / f"main.cf.{VARIANTS[variant]}").read_text(),
        f"{postfix.address}:{SUBMISSION} inet n - n - - smtpd\n"
        f"{postfix.address}:{VERIFIED} inet n - n - - smtpd\n"
        "  -o smtpd_recipient_restrictions=reject_unverified_recipient,permit_mynetworks,reject\n"
        + (DEPLOY / f"master.cf.{VARIANTS[variant]}").read_text(),
        copied=[*DEPLOY.glob("smtpguard-domains.*")],
    )
