"""A small Internet of real servers: knot signs, unbound validates, three kinds of MTA receive, nginx serves policies.

    knot 127.53.0.1:53 -> unbound 127.0.0.1:53 -> smtpguard -> Postfix 127.25.0.x:25, one address a certificate
    three Postfix, Exim and OpenSMTPD send, with files of deploy/ verbatim -> smtpguard 127.0.0.1:10027, :10026

All of it lives in a network namespace of its own and in one temporary directory.
"""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from smtpguard.sandbox.certificates import CertificateMaker, Credential, tlsa
from tests.interop import zones
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
    wait_for,
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
    _policies(lab, maker.leaf(public, ["mta-sts.sts.test", "mta-sts.stsbad.test"]))
    _receiver(lab, shown)
    _exim(lab, shown["exim"])
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
    wait_for("the canary's verdict", lambda: "state=validating" in lab.smtpguard.log)


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


def _policies(lab: Lab, credential: Credential) -> None:
    directory = lab.directory / "nginx"
    for name in ("sts", "stsbad"):
        root = directory / f"mta-sts.{name}.test" / ".well-known"
        root.mkdir(parents=True)
        (root / "mta-sts.txt").write_text(f"version: STSv1\nmode: enforce\nmx: mx.{name}.test\nmax_age: 86400\n")
    config = directory / "nginx.conf"
    config.write_text(
        f"""daemon off; pid {directory}/pid; error_log stderr; user root;
events {{}}
http {{
  access_log off; default_type text/plain; types {{ }}
  server {{
    listen {POLICY_HOST}:443 ssl; root {directory}/$host;
    ssl_certificate {credential.pem_file}; ssl_certificate_key {credential.pem_file};
  }}
}}
"""
    )
    _spawn(lab, "nginx", "nginx", "-c", config, ready=(directory / "pid").exists)


def _receiver(lab: Lab, shown: dict[str, Credential]) -> None:
    mail = lab.directory / "mail"
    mail.mkdir()
    shutil.chown(mail, "nobody", "nogroup")
    users = lab.directory / "users"
    users.write_text("/^user[0-9]*@/ all/\n")
    domains = [site.domain for site in SITES.values()] + [f"d{number}.many.test" for number in range(MANY)]
    services = ""
    for name, site in SITES.items():
        if name not in _ELSEWHERE:
            services += _receiving(site.address, f"mx.{site.domain}", shown[name])
    for number in range(MANY):
        services += _receiving(many_host(number), f"mx{number}.many.test", shown["plain"])
    lab.receiver.start(
        f"""myhostname = mx.test
mydestination =
virtual_mailbox_domains = {" ".join(domains)}
virtual_mailbox_base = {mail}
virtual_mailbox_maps = regexp:{users}
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_tls_security_level = may
smtpd_recipient_restrictions = reject_unauth_destination
smtpd_client_connection_count_limit = 0
""",
        services,
    )


def _receiving(address: str, name: str, shown: Credential) -> str:
    return f"{address}:25 inet n - n - - smtpd\n  -o smtpd_tls_chain_files={shown.pem_file}\n  -o myhostname={name}\n"


def _exim(lab: Lab, shown: Credential) -> None:
    """Exim as the mail host of exim.test, and as an MTA that sends with the files of deploy/exim as they are."""
    address = SITES["exim"].address
    directory = lab.directory / "exim"
    directory.mkdir()
    pem = directory / "exim.pem"
    shutil.copy(shown.pem_file, pem)
    shutil.chown(pem, "Debian-exim")
    spawn_exim(
        lab.processes,
        directory,
        f"""primary_hostname = mx.exim.test
domainlist local_domains = exim.test
daemon_smtp_ports = 25
local_interfaces = {address}
tls_advertise_hosts = *
tls_certificate = {pem}
tls_privatekey = {pem}
acl_smtp_rcpt = rcpt
""",
        f"""begin acl
rcpt:
  accept domains = +local_domains
         local_parts = ^user[0-9]*\\$
  deny
begin routers
local:
  driver = accept
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {directory}/mail
  maildir_format
  user = Debian-exim
""",
    )
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
    """OpenSMTPD as the mail host of osmtpd.test, and as an MTA that sends with the file of deploy/opensmtpd.

    In clear: Debian 12's version 6.8 fails every TLS handshake ("EVP lib"), as it was not made for OpenSSL 3.
    """
    address, sending = SITES["osmtpd"].address, SENDING["opensmtpd"]
    directory = lab.directory / "osmtpd"
    spawn_opensmtpd(
        lab.processes,
        directory,
        f"""table users {{ "@" = "nobody" }}
listen on {address} port 25 hostname mx.osmtpd.test
action "in" maildir "{directory}/mail" virtual <users>
match from any for domain "osmtpd.test" action "in"
""",
        (address, 25),
    )
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
