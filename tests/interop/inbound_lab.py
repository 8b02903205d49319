"""Real MTAs behind smtpguard, and a client network before it, in a network namespace of its own.

    clients 198.51.100.7, 2001:db8:7::7 -> smtpguard 203.0.113.25 -> Postfix 127.0.0.1:2525
                                           smtpguard 203.0.113.26 -> Exim 127.0.0.1:2535
                                           smtpguard 203.0.113.27 -> OpenSMTPD 127.0.0.1:2545
    a Postfix that sends by DANE        -> smtpguard 203.0.113.25:25

The MTAs behind trust 127.0.0.0/8, from where smtpguard comes: whoever is not told apart from it may relay.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from smtpguard.sandbox.certificates import tlsa
from tests.interop import zones
from tests.interop.namespace import own_network
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
from tests.support.certificates import Issued, authority, issue

DEPLOY = Path(__file__).parents[2] / "deploy"
MX, MX6, EXIM_MX, OPENSMTPD_MX = "203.0.113.25", "2001:db8:25::25", "203.0.113.26", "203.0.113.27"
CLIENT, CLIENT6, CLIENT_NAME = "198.51.100.7", "2001:db8:7::7", "client.clients.test"
SECOND_ADMIN = 9826
HAPROXY_PORT, UNLISTED_PORT = 2526, 2527
TRUSTING = {"postfix": "127.0.0.1:2525", "exim": "127.0.0.1:2536", "opensmtpd": "127.0.0.1:2546"}
"""Where the MTAs behind take connections as they are, and relay for 127.0.0.0/8, as everywhere."""
DISTRUSTING = {"exim": "127.0.0.1:2537", "opensmtpd": "127.0.0.1:2547"}
"""Where they relay for nobody; Postfix is set so by the test."""


@dataclass
class InboundLab:
    """All of it; `postfix` and `exim_log` are the MTAs behind, `sender` is a whole Postfix of the Internet side."""

    directory: Path
    smtpguard: Smtpguard
    postfix: Postfix
    sender: Postfix
    trust_file: Path
    pem_file: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def exim_log(self) -> str:
        return (self.directory / "exim" / "log" / "mainlog").read_text()

    def delivered(self, marker: bytes) -> list[bytes]:
        """The messages in the mailboxes of the MTAs that hold `marker`."""
        return messages_in(self.directory, marker)

    @contextmanager
    def second(self, listeners: str) -> Iterator[Smtpguard]:
        """Another smtpguard beside the lab's, with these listeners; it need not become ready."""
        other = Smtpguard(self.directory / "second.toml", self.directory / "second.log", admin_port=SECOND_ADMIN)
        other.log_path.unlink(missing_ok=True)
        other.config.write_text(
            f'hostname = "mx.in.test"\nstate_dir = "{self.directory}/second"\n[dns]\nresolvers = ["{UNBOUND}"]\n'
            f'[admin]\nbind = "127.0.0.1:{SECOND_ADMIN}"\n' + listeners
        )
        try:
            other.start(ready=False)
            yield other
        finally:
            other.stop()

    def listener(self, bind: str, **keys: str | bool | list[str]) -> str:
        """One inbound [[listener]] in TOML."""
        values: dict[str, str | bool | list[str]] = {
            "certificate": str(self.pem_file),
            "key": str(self.pem_file),
            **keys,
        }
        text = f'[[listener]]\nrole = "inbound"\nbind = ["{bind}"]\n'
        for key, value in values.items():
            shown = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
            text += f"{key} = {shown}\n"
        return text


@contextmanager
def open_inbound_lab() -> Iterator[InboundLab]:
    """Build, start and at the end stop everything.  Root only, as the other lab."""
    addresses = [f"{address}/32" for address in (MX, EXIM_MX, OPENSMTPD_MX, CLIENT)] + [f"{MX6}/128", f"{CLIENT6}/128"]
    with lab_directory("inbound") as directory, own_network(*addresses):
        root, shown = _certificates()
        pem_file, trust_file = directory / "mx.pem", directory / "root.pem"
        pem_file.touch(mode=0o600)
        pem_file.write_bytes(shown.key_pem + shown.chain_pem)
        trust_file.write_bytes(root.pem)
        lab = InboundLab(
            directory,
            Smtpguard(directory / "smtpguard.toml", directory / "smtpguard.log"),
            Postfix(directory / "postfix", protocols="all"),
            Postfix(directory / "sender", "127.25.1.1", UNBOUND),
            trust_file,
            pem_file,
        )
        try:
            _start(lab, shown)
            yield lab
        finally:
            with suppress(subprocess.TimeoutExpired):
                lab.smtpguard.stop()
            for postfix in (lab.sender, lab.postfix):
                postfix.stop()
            end(lab.processes)


def _certificates() -> tuple[Issued, Issued]:
    """The root and the server's own, 90 days long as sslyze wants it."""
    now = datetime.now(UTC)
    valid = {"not_before": now - timedelta(days=1), "not_after": now + timedelta(days=89)}
    root = authority("Lab Root", key_cert_sign=True, **valid)
    issuer = authority("Lab Issuer", root, key_cert_sign=True, **valid)
    names = ["mx.in.test", "exim.in.test", "osmtpd.in.test"]
    return root, issue(names[0], issuer, dns=names, purposes=[ExtendedKeyUsageOID.SERVER_AUTH], **valid)


def _start(lab: InboundLab, shown: Issued) -> None:
    _dns(lab, shown)
    _postfix(lab)
    _exim(lab)
    _exim_without_proxy(lab)
    _opensmtpd(lab)
    lab.sender.start(
        "myhostname = out.clients.test\ninet_interfaces = 127.0.0.1\nmydestination =\nmynetworks = 127.0.0.0/8\n"
        "smtp_tls_security_level = dane\nsmtp_dns_support_level = dnssec\nsmtp_tls_loglevel = 1\n"
        f"smtp_bind_address = {CLIENT}\n",
        f"{lab.sender.address}:2500 inet n - n - - smtpd\n",
    )
    unlimited = [CLIENT, CLIENT6, MX]  # a client that binds to no address comes from the one it connects to
    lab.smtpguard.config.write_text(
        f'hostname = "mx.in.test"\nstate_dir = "{lab.directory}/state"\n[dns]\nresolvers = ["{UNBOUND}"]\n'
        '[dns.canary]\nsigned = "www.in.test"\nunsigned = "www.clients.test"\nbroken = "www.broken.test"\n'
        '[[inbound_policy]]\nrecipient_domain = "secret.in.test"\nrequire = "tls"\nreason = "lab"\n'
        + lab.listener(f"{MX}:25", upstream="127.0.0.1:2525", pass_client="xclient", unlimited_from=unlimited)
        + lab.listener(f"[{MX6}]:25", upstream="127.0.0.1:2525", pass_client="xclient")
        + lab.listener(f"{MX}:2525", upstream=f"127.0.0.1:{HAPROXY_PORT}", pass_client="proxy-v2")
        + lab.listener(
            f"{MX}:465", tls="implicit", upstream="127.0.0.1:2525", pass_client="xclient", unlimited_from=unlimited
        )
        + lab.listener(f"{EXIM_MX}:25", upstream="127.0.0.1:2535", pass_client="proxy-v2")
        + lab.listener(f"{OPENSMTPD_MX}:25", upstream="127.0.0.1:2545", pass_client="proxy-v2")
        + lab.listener(f"{EXIM_MX}:587", submission=True, upstream="127.0.0.1:2535", pass_client="proxy-v2")
        + lab.listener(
            f"{EXIM_MX}:465", tls="implicit", submission=True, upstream="127.0.0.1:2535", pass_client="proxy-v2"
        )
    )
    lab.smtpguard.start()


def _dns(lab: InboundLab, shown: Issued) -> None:
    directory = lab.directory / "dns"
    described = {
        "in": Zone(
            f"@ MX 10 mx\nsecret MX 10 mx\nexim MX 10 exim-mx\nexim-mx A {EXIM_MX}\nmx A {MX}\nmx AAAA {MX6}\n"
            f"www A 192.0.2.1\n_25._tcp.mx TLSA {tlsa(3, 1, 1, shown.der)}\n",
            signed=True,
        ),
        "clients": Zone(f"client A {CLIENT}\nclient AAAA {CLIENT6}\nwww A 192.0.2.1\n"),
        "broken": Zone("www A 192.0.2.1\n", signed=True, bogus=True),
    }
    config = zones.write_knot(directory, described)
    knot_ready = lambda: "mx." in zones.ask(KNOT, "in.test", "MX")  # noqa: E731
    spawn(lab.processes, lab.directory / "knot.log", "knotd", "-c", config, ready=knot_ready)
    config = zones.write_unbound(
        directory,
        "".join(f'    local-data-ptr: "{address} {CLIENT_NAME}."\n' for address in (CLIENT, CLIENT6)),
    )
    unbound_ready = lambda: "mx." in zones.ask(UNBOUND, "in.test", "MX")  # noqa: E731
    spawn(lab.processes, lab.directory / "unbound.log", "unbound", "-d", "-c", config, ready=unbound_ready)


def _postfix(lab: InboundLab) -> None:
    """Debian's Postfix with the lines of docs/inbound.md, and one smtpd that does not list us for XCLIENT."""
    mail = lab.directory / "mail"
    mail.mkdir()
    shutil.chown(mail, "nobody", "nogroup")
    users = lab.directory / "users"
    users.write_text("/^user[0-9]*@/ all/\n")
    lab.postfix.start(
        f"""myhostname = inner.in.test
mydestination =
mynetworks = 127.0.0.0/8
virtual_mailbox_domains = in.test secret.in.test
virtual_mailbox_base = {mail}
virtual_mailbox_maps = regexp:{users}
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
smtpd_client_connection_count_limit = 0
default_transport = discard:
"""
        + (DEPLOY / "postfix" / "main.cf.inbound").read_text(),
        (DEPLOY / "postfix" / "master.cf.inbound").read_text()
        + f"127.0.0.1:{UNLISTED_PORT} inet n - n - - smtpd\n  -o smtpd_authorized_xclient_hosts=\n",
    )


def _exim(lab: InboundLab) -> None:
    """Exim with the lines of docs/inbound.md (deploy/exim/inbound.conf), and one user who may log in."""
    directory = lab.directory / "exim"
    spawn_exim(
        lab.processes,
        directory,
        f"""primary_hostname = exim.in.test
domainlist local_domains = exim.in.test
hostlist relay_from_hosts = 127.0.0.0/8
{(DEPLOY / "exim" / "inbound.conf").read_text()}
log_selector = +incoming_port +proxy
acl_smtp_rcpt = rcpt
""",
        f"""begin acl
rcpt:
  accept domains = +local_domains
         local_parts = ^user[0-9]*\\$
  accept hosts = +relay_from_hosts
  accept authenticated = *
  deny message = relay not permitted
begin routers
local:
  driver = accept
  domains = +local_domains
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = {directory}/mail
  maildir_format
  user = Debian-exim
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if and{{{{eq{{$auth2}}{{user}}}}{{eq{{$auth3}}{{secret}}}}}}}}
  server_set_id = $auth2
""",
    )


def _exim_without_proxy(lab: InboundLab) -> None:
    """Exim that waits for no PROXY header: it trusts 127.0.0.0/8 at one of its ports, and nobody at the other."""
    trusting, distrusting = (where["exim"].replace(":", ".") for where in (TRUSTING, DISTRUSTING))
    spawn_exim(
        lab.processes,
        lab.directory / "exim-without-proxy",
        f"""primary_hostname = exim.in.test
local_interfaces = {trusting} : {distrusting}
tls_advertise_hosts =
acl_smtp_rcpt = rcpt
""",
        f"""begin acl
rcpt:
  accept domains = exim.in.test
  accept condition = ${{if eq{{$received_port}}{{{trusting.rpartition(".")[2]}}}}}
         hosts = 127.0.0.0/8
  deny message = relay not permitted
""",
    )


def _opensmtpd(lab: InboundLab) -> None:
    """OpenSMTPD with the line of deploy/opensmtpd/inbound.conf; it relays for 127.0.0.0/8 (not `local`: to OpenSMTPD
    that is every address of this host, and the lab's clients have such)."""
    directory = lab.directory / "osmtpd"
    spawn_opensmtpd(
        lab.processes,
        directory,
        (DEPLOY / "opensmtpd" / "inbound.conf").read_text()
        + f"""listen on 127.0.0.1 port {TRUSTING["opensmtpd"].rpartition(":")[2]}
listen on 127.0.0.1 port {DISTRUSTING["opensmtpd"].rpartition(":")[2]} tag DISTRUSTING
table users {{ "@" = "nobody" }}
action "in" maildir "{directory}/mail" virtual <users>
action "out" relay
match from any for domain "osmtpd.in.test" action "in"
match !tag DISTRUSTING from src "127.0.0.0/8" for any action "out"
""",
        ("127.0.0.1", 2545),
    )


def wait_for_delivery(lab: InboundLab, marker: str) -> bytes:
    """The one delivered message that holds `marker`."""
    (message,) = wait_for(f"mail {marker}", lambda: lab.delivered(marker.encode()))
    return message
