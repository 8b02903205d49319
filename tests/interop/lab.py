"""A small Internet of real servers on loopback: knot signs, unbound validates, Postfix receives, nginx serves policies.

    knot 127.53.0.1:53 -> unbound 127.53.0.53:53 -> smtpguard -> Postfix 127.25.0.x:25, one address a certificate
    Postfix 127.25.1.1:2500 (the sending MTA, with deploy/postfix verbatim) -> smtpguard 127.0.0.1:10027 and :10026

Everything is a child process of the tests; nothing outside the lab's directory is written.
"""

import http.client
import os
import re
import shlex
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smtpguard.sandbox.certificates import CertificateMaker, Credential, tlsa

REPOSITORY = Path(__file__).parents[2]
KNOT, UNBOUND, POLICY_HOST, SENDER = "127.53.0.1", "127.53.0.53", "127.25.0.80", "127.25.1.1"
SUBMISSION, VERIFIED, BY_SMTP = 2500, 2501, 2502
MANY = 20
EXIM = "/var/lib/smtpguard-interop/exim/usr/sbin/exim4"

SOA = "$TTL 5\n@ SOA ns.test. hostmaster.test. 1 3600 600 86400 5\n@ NS ns.test.\n"


@dataclass(frozen=True, slots=True)
class Site:
    """One recipient domain: its MX host's address and what it shows."""

    domain: str
    address: str
    signed: bool


SITES = {
    name: Site(f"{name}.test", f"127.25.0.{number}", name in {"dane", "swap", "exim"})
    for number, name in enumerate(("dane", "swap", "sts", "stsbad", "plain", "bogus", "hole", "exim"), 1)
}


def wait_for(what: str, condition, seconds: float = 20.0):  # type: ignore[no-untyped-def]
    """Poll until `condition()` is true and give its value; the servers are other processes."""
    end = time.monotonic() + seconds  # noqa: TID251
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:  # noqa: TID251
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def run(*command: str | Path, **options: object) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return str(done.stdout)


@dataclass
class Postfix:
    """One Postfix instance of its own directories."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "etc"

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def start(self, main: str, services: str) -> None:
        for name in ("etc", "queue", "data"):
            (self.directory / name).mkdir(parents=True)
        shutil.chown(self.directory / "data", "postfix")
        (self.config / "main.cf").write_text(
            f"compatibility_level = 3.6\nqueue_directory = {self.directory}/queue\n"
            f"data_directory = {self.directory}/data\nmaillog_file = {self.directory}/log\n"
            f"maillog_file_prefixes = {self.directory}\ninet_protocols = ipv4\nalias_maps =\nalias_database =\n"
            "biff = no\nsmtputf8_enable = yes\nlocal_recipient_maps =\n" + main
        )
        master = Path("/etc/postfix/master.cf.proto").read_text()
        master = re.sub(r"(?m)^smtp +inet .*\n", "", master)
        master = re.sub(r"(?m)^(\S+ +(?:inet|unix|unix-dgram|fifo) +\S+ +\S+ +)y", r"\1n", master)
        (self.config / "master.cf").write_text(master + services)
        shutil.copy("/etc/postfix/dynamicmaps.cf", self.config)
        shutil.copy("/etc/postfix/postfix-files", self.config)
        try:
            run("postfix", "-c", self.config, "start")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from error

    def stop(self) -> None:
        subprocess.run(["postfix", "-c", str(self.config), "stop"], capture_output=True, check=False)

    def flush(self) -> None:
        run("postqueue", "-c", self.config, "-f")

    def queue(self) -> str:
        return run("postqueue", "-c", self.config, "-p")


@dataclass
class Smtpguard:
    """The proxy as a process."""

    config: Path
    log_path: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, sockets: Sequence[socket.socket] = ()) -> None:
        """Run it; `sockets` are handed over as systemd would (LISTEN_FDS), the first as descriptor 3."""
        command = [sys.executable, "-m", "smtpguard", "run", "--config", str(self.config)]
        if sockets:
            moves = " ".join(f"{number}<&{sock.fileno()}" for number, sock in enumerate(sockets, 3))
            script = f"exec {moves}; export LISTEN_FDS={len(sockets)} LISTEN_PID=$$; exec {shlex.join(command)}"
            command = ["bash", "-c", script]
        with self.log_path.open("ab") as log:
            handed = [sock.fileno() for sock in sockets]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=handed)
        wait_for("smtpguard is ready", self.is_ready)

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        connection = http.client.HTTPConnection("127.0.0.1", 9825, timeout=2)
        try:
            connection.request("GET", "/healthz/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(40)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another smtpguard command with this configuration."""
        command = [sys.executable, "-m", "smtpguard", *arguments, "--config", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass
class Lab:
    """All of it."""

    directory: Path
    smtpguard: Smtpguard
    receiver: Postfix
    sender: Postfix
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def send(self, *recipients: str, content: bytes, port: int = SUBMISSION) -> None:
        """Hand a message to the sending Postfix, as a mail client would."""
        with smtplib.SMTP(SENDER, port, timeout=30) as client:
            refused = client.sendmail("user@sender.test", recipients, content)
            assert not refused, refused

    def delivered(self, marker: bytes) -> list[bytes]:
        """The messages in the receivers' mailboxes that hold `marker`."""
        found = []
        paths = [*(self.directory / "mail").glob("all/new/*"), *(self.directory / "exim" / "mail").glob("new/*")]
        for path in paths:
            octets = path.read_bytes()
            if marker in octets:
                found.append(octets)
        return found

    def deferral(self, recipient: str) -> str:
        """The sending Postfix's last log line about this recipient."""
        lines = [line for line in self.sender.log.splitlines() if f"to=<{recipient}>" in line]
        return lines[-1] if lines else ""


@contextmanager
def open_lab() -> Iterator[Lab]:
    """Build, start and at the end stop everything.  Root only: port 25 and Postfix need it."""
    assert os.geteuid() == 0, "the interop tests start Postfix on port 25 of loopback addresses: run them as root"
    directory = Path(run("mktemp", "-d", "/var/tmp/smtpguard-lab.XXXXXX").strip())
    directory.chmod(0o755)
    lab = Lab(
        directory,
        Smtpguard(directory / "smtpguard.toml", directory / "smtpguard.log"),
        Postfix(directory / "receiver"),
        Postfix(directory / "sender"),
    )
    try:
        _start(lab)
        yield lab
    finally:
        lab.smtpguard.stop()
        lab.sender.stop()
        lab.receiver.stop()
        for process in lab.processes:
            process.terminate()
            process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def _start(lab: Lab) -> None:
    certificates = lab.directory / "certificates"
    certificates.mkdir()
    maker = CertificateMaker(certificates)
    root = maker.root("Lab Root")
    public = maker.intermediate(root, "Lab Issuer")
    shown = {
        name: maker.leaf(None if name in {"dane", "plain", "bogus", "hole", "exim"} else public, [f"mx.{site.domain}"])
        for name, site in SITES.items()
    }
    published = {**shown, "swap": maker.leaf(None, ["mx.swap.test"])}
    shown["stsbad"] = maker.leaf(None, ["mx.stsbad.test"])
    trust = maker.trust_file(root)
    _dns(lab, published)
    _policies(lab, maker.leaf(public, ["mta-sts.sts.test", "mta-sts.stsbad.test"]))
    _receiver(lab, shown)
    _exim(lab, shown["exim"])
    _sender(lab)
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
allow_destinations = ["127.25.0.0/16"]
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


def _spawn(lab: Lab, name: str, *command: str | Path) -> None:
    with (lab.directory / f"{name}.log").open("wb") as log:
        lab.processes.append(subprocess.Popen([str(word) for word in command], stdout=log, stderr=log))


def _dns(lab: Lab, published: dict[str, Credential]) -> None:
    run_dir = lab.directory / "dns"
    zones = run_dir / "zones"
    zones.mkdir(parents=True)
    signed = [".", "test.", "dane.test.", "swap.test.", "exim.test.", "bogus.test."]
    unsigned = [f"{name}.test." for name in ("sts", "stsbad", "plain", "hole", "many")]
    text = [
        f'server:\n    rundir: "{run_dir}"\n    listen: [ "{KNOT}@53" ]',
        f'database:\n    storage: "{run_dir}"\n    kasp-db: "keys"\n    journal-db: "journal"\n    timer-db: "timers"',
        "log:\n  - target: stderr\n    any: info",
        "policy:\n  - id: lab\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n    manual: on",
        f'template:\n  - id: default\n    storage: "{zones}"\n    zonefile-sync: -1\n    zonefile-load: whole',
        f'    journal-content: none\n  - id: signed\n    storage: "{zones}"\n    zonefile-sync: -1',
        "    zonefile-load: whole\n    dnssec-signing: on\n    dnssec-policy: lab",
        "zone:",
    ]
    text += [f'  - domain: "{zone}"\n    template: signed\n    file: "{zone}zone"' for zone in signed]
    text += [f'  - domain: "{zone}"\n    file: "{zone}zone"' for zone in unsigned]
    config = run_dir / "knot.conf"
    config.write_text("\n".join(text) + "\n")
    ds = {}
    for zone in signed:
        run("keymgr", "-c", config, zone, "generate", "algorithm=ecdsap256sha256", "ksk=yes", "zsk=yes")
        lines = run("keymgr", "-c", config, zone, "ds").splitlines()
        ds[zone] = next(" ".join(w[2:]) for line in lines if (w := line.split())[4] == "2")
    (zones / ".zone").write_text(f"{SOA}test. NS ns.test.\ntest. DS {ds['test.']}\nns.test. A {KNOT}\n")
    parent = f"{SOA}ns A {KNOT}\n"
    for zone in (*signed[2:], *unsigned):
        parent += f"{zone} NS ns.test.\n"
    parent += "".join(f"{name} DS {ds[f'{name}.test.']}\n" for name in ("dane", "swap", "exim"))
    parent += f"bogus DS {ds['dane.test.']}\n"  # the wrong one
    (zones / "test.zone").write_text(parent)
    for name, site in SITES.items():
        lines = f"{SOA}@ MX 10 mx\nmx A {site.address}\nwww A 192.0.2.1\n"
        if site.signed:
            lines += f"_25._tcp.mx TLSA {tlsa(3, 1, 1, published[name].der)}\n"
        if name.startswith("sts"):
            lines += f'_mta-sts TXT "v=STSv1; id=1;"\nmta-sts A {POLICY_HOST}\n'
        (zones / f"{name}.test.zone").write_text(lines)
    many = f"{SOA}mx A {SITES['plain'].address}\n" + "".join(f"d{number} MX 10 mx\n" for number in range(MANY))
    (zones / "many.test.zone").write_text(many)
    _spawn(lab, "knot", "knotd", "-c", config)
    (run_dir / "root.anchor").write_text(f". DS {ds['.']}\n")
    (run_dir / "root.hints").write_text(f". NS ns.test.\nns.test. A {KNOT}\n")
    unbound = run_dir / "unbound.conf"
    unbound.write_text(
        f"""server:
    directory: "{run_dir}"
    pidfile: ""
    chroot: ""
    username: ""
    use-syslog: no
    interface: {UNBOUND}
    access-control: 127.0.0.0/8 allow
    do-ip6: no
    do-not-query-localhost: no
    root-hints: "{run_dir}/root.hints"
    trust-anchor-file: "{run_dir}/root.anchor"
    module-config: "validator iterator"
    ede: yes
    local-zone: "test." nodefault
remote-control:
    control-enable: no
"""
    )
    wait_for("knot answers", lambda: _answers(KNOT, "plain.test"))
    _spawn(lab, "unbound", "unbound", "-d", "-c", unbound)
    wait_for("unbound answers", lambda: _answers(UNBOUND, "dane.test"))


def _answers(server: str, name: str) -> bool:
    done = subprocess.run(
        ["kdig", f"@{server}", "+short", "+timeout=1", "+retry=0", name, "MX"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 and "mx." in done.stdout


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
    _spawn(lab, "nginx", "nginx", "-c", config)


def _receiver(lab: Lab, shown: dict[str, Credential]) -> None:
    mail = lab.directory / "mail"
    mail.mkdir()
    shutil.chown(mail, "nobody", "nogroup")
    users = lab.directory / "users"
    users.write_text("/^user[0-9]*@/ all/\n")
    domains = [site.domain for site in SITES.values()] + [f"d{number}.many.test" for number in range(MANY)]
    services = ""
    for name, site in SITES.items():
        if name in ("hole", "exim"):
            continue
        services += (
            f"{site.address}:25 inet n - n - - smtpd\n  -o smtpd_tls_chain_files={shown[name].pem_file}\n"
            f"  -o myhostname=mx.{site.domain}\n"
        )
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


def _exim(lab: Lab, shown: Credential) -> None:
    """Exim as the mail host of exim.test; unpacked by install.sh, with a configuration of our own."""
    directory = lab.directory / "exim"
    for name in ("spool", "log", "mail"):
        (directory / name).mkdir(parents=True)
        shutil.chown(directory / name, "Debian-exim", "Debian-exim")
    pem = directory / "exim.pem"
    shutil.copy(shown.pem_file, pem)
    shutil.chown(pem, "Debian-exim")
    config = directory / "exim.conf"
    config.write_text(
        f"""primary_hostname = mx.exim.test
exim_path = {EXIM}
domainlist local_domains = exim.test
daemon_smtp_ports = 25
local_interfaces = {SITES["exim"].address}
spool_directory = {directory}/spool
log_file_path = {directory}/log/%slog
pid_file_path = {directory}/spool/pid
tls_advertise_hosts = *
tls_certificate = {pem}
tls_privatekey = {pem}
acl_smtp_rcpt = rcpt
keep_environment =
begin acl
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
"""
    )
    _spawn(lab, "exim", EXIM, "-C", config, "-bdf", "-q1m")


def _sender(lab: Lab) -> None:
    deploy = REPOSITORY / "deploy" / "postfix"
    lab.sender.start(
        """myhostname = out.sender.test
mydestination =
mynetworks = 127.0.0.0/8
minimal_backoff_time = 300s
queue_run_delay = 300s
unverified_recipient_reject_code = 550
address_verify_map =
"""
        + (deploy / "main.cf.smtpguard").read_text(),
        f"{SENDER}:{SUBMISSION} inet n - n - - smtpd\n"
        f"{SENDER}:{VERIFIED} inet n - n - - smtpd\n"
        "  -o smtpd_recipient_restrictions=reject_unverified_recipient,permit_mynetworks,reject\n"
        # The same Postfix by SMTP: a second transport with a smarthost in place of LMTP.
        f"{SENDER}:{BY_SMTP} inet n - n - - smtpd\n  -o cleanup_service_name=bysmtp\n"
        "bysmtp unix n - n - 0 cleanup\n  -o content_filter=smarthost:[127.0.0.1]:10026\n"
        "smarthost unix - - n - 50 smtp\n  -o smtp_tls_security_level=none\n"
        + (deploy / "master.cf.smtpguard").read_text(),
    )
