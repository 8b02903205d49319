"""A pod in front of an Internet: an unmodified Postfix and smtpguard in one network, mail hosts in another.

    client ── in0 [pod: Postfix, smtpguard (another user), unbound] eth0 ── net0 [Internet: knot, receiving Postfix]

The addresses are global ones, so nothing has to be allowed.  The redirection rules are those of deploy/interception, as
they are.  The client's network is for TPROXY: there the pod is its gateway.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from smtpguard.sandbox.certificates import CertificateMaker, Credential, tlsa
from tests.interop import zones
from tests.interop.namespace import Network, own_network
from tests.interop.path import Ear
from tests.interop.processes import Postfix, Smtpguard, end, lab_directory, messages_in, run, wait_for
from tests.interop.zones import UNBOUND, Zone

DEPLOY = Path(__file__).parents[2] / "deploy" / "interception"
DEBIAN = Path("/usr/share/postfix")
USER = "10125"
"""The uid that the shipped rules exempt."""
SUBMISSION = 2500
POD, POD6 = "11.1.0.2", "2a00:1::2"
_KNOT = "11.53.0.1"

SITES = {"dane": "11.25.0.1", "six": "2a00:25::1", "plain": "11.25.0.2", "loop": "11.25.0.3", "bogus": "11.25.0.9"}
"""<name>.test, and the address of its mail host."""
_SIGNED = ("dane", "six", "loop", "bogus")


@dataclass
class Pod:
    """All of it; the calling thread is in the Internet's network."""

    directory: Path
    network: Network
    client: Network
    smtpguard: Smtpguard
    sender: Postfix
    receiver: Postfix
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def delivered(self, marker: str) -> list[bytes]:
        """The messages in the receivers' mailbox that hold `marker`."""
        return messages_in(self.directory, marker.encode())

    @contextmanager
    def heard(self) -> Iterator[Ear]:
        """Every frame between pod and Internet."""
        with Ear("net0").listening() as ear:
            yield ear

    @contextmanager
    def redirected(self, by: str, user: str = USER) -> Iterator[None]:
        """The MTA's connections are redirected `by` the shipped rules, which exempt `user`."""
        with self.network.entered():
            for command, text in _rules(by):
                run("bash", "-c", f'{command} <<< "$0"', text.replace(USER, user))
        try:
            yield
        finally:
            with self.network.entered():
                run("nft", "flush", "ruleset")  # the rules of iptables are nftables' too

    def clean(self) -> None:
        """After each test: no mail on the way, and smtpguard has forgotten which hosts failed."""
        if "Mail queue is empty" not in self.sender.queue():
            self.sender.purge()
        with self.network.entered():
            self.smtpguard.stop()
            self.smtpguard.start()


def _rules(by: str) -> list[tuple[str, str]]:
    """Commands that load rules from their input, and the rules."""
    match by:
        case "nftables":
            return [("nft -f -", (DEPLOY / "redirect.nft").read_text())]
        case "iptables":
            return [
                (f"ip{family}tables-restore --noflush", (DEPLOY / f"ip{family}tables.rules").read_text())
                for family in ("", "6")
            ]
        case "tproxy":
            return [
                ("nft -f -", (DEPLOY / "tproxy.nft").read_text()),
                ("sh", (DEPLOY / "tproxy-routes.sh").read_text()),
            ]
    raise AssertionError(by)


@contextmanager
def open_pod() -> Iterator[Pod]:
    """Build, start and at the end stop everything.  Root only."""
    # The test's Python may stand where only root reads; TPROXY needs CAP_NET_ADMIN.  REDIRECT needs nothing.
    capabilities = "+dac_read_search,+net_admin"
    prefix = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    prefix = (*prefix, f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}")
    with lab_directory("pod") as directory, own_network():
        pod = Pod(
            directory,
            Network(),
            Network(),
            Smtpguard(directory / "smtpguard.toml", directory / "smtpguard.log", prefix),
            Postfix(directory / "sender", "127.0.0.1", UNBOUND, "all"),
            Postfix(directory / "receiver", protocols="all"),
        )
        try:
            _links(pod)
            _start(pod)
            yield pod
        finally:
            _stop(pod)


def _stop(pod: Pod) -> None:
    with suppress(subprocess.TimeoutExpired):
        pod.smtpguard.stop()
    pod.sender.stop()
    pod.receiver.stop()
    end(pod.processes)
    pod.network.close()
    pod.client.close()


def _links(pod: Pod) -> None:
    """Internet ── pod ── client."""
    run("ip", "link", "add", "net0", "type", "veth", "peer", "name", "eth0", "netns", pod.network.path)
    _addresses("net0", "11.1.0.1/24", "2a00:1::1/64")
    _addresses("lo", *(f"{address}/{128 if ':' in address else 32}" for address in (*SITES.values(), _KNOT)))
    run("ip", "route", "add", "11.2.0.0/24", "via", POD)
    run("ip", "route", "add", "2a00:2::/64", "via", POD6)
    with pod.network.entered():
        run("ip", "link", "add", "in0", "type", "veth", "peer", "name", "eth0", "netns", pod.client.path)
        _addresses("eth0", f"{POD}/24", f"{POD6}/64")
        _addresses("in0", "11.2.0.1/24", "2a00:2::1/64")
        run("ip", "route", "add", "default", "via", "11.1.0.1")
        run("ip", "route", "add", "default", "via", "2a00:1::1")
    with pod.client.entered():
        _addresses("eth0", "11.2.0.2/24", "2a00:2::2/64")
        run("ip", "route", "add", "default", "via", "11.2.0.1")
        run("ip", "route", "add", "default", "via", "2a00:2::1")


def _addresses(interface: str, *addresses: str) -> None:
    for address in addresses:
        nodad = ["nodad"] if ":" in address else []
        run("ip", "address", "add", address, "dev", interface, *nodad)
    run("ip", "link", "set", interface, "up")


def _start(pod: Pod) -> None:
    certificates = pod.directory / "certificates"
    certificates.mkdir()
    maker = CertificateMaker(certificates)
    shown = {name: maker.leaf(None, [f"mx.{name}.test"]) for name in SITES}
    _dns(pod, shown)
    receive(pod.receiver, SITES, shown)
    state = pod.directory / "state"
    state.mkdir()
    os.chown(state, int(USER), int(USER))
    pod.smtpguard.config.write_text(
        f"""hostname = "out.sender.test"
state_dir = "{state}"
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10025", "[::1]:10025"]
intercept = true
[[listener]]
role = "outbound"
bind = ["127.0.0.1:10024", "[::1]:10024"]
intercept = true
intercept_by = "tproxy"
clients = ["11.2.0.0/24", "2a00:2::/64"]
cleartext_from = ["11.2.0.0/24", "2a00:2::/64"]
[dns]
resolvers = ["{UNBOUND}"]
[dns.canary]
signed = "www.dane.test"
unsigned = "www.plain.test"
broken = "www.bogus.test"
[tls]
ca_file = "{maker.trust_file(maker.root("Lab Root"))}"
[log]
level = "debug"
"""
    )
    with pod.network.entered():
        # Debian's main.cf as its package makes it, and nothing about smtpguard.
        pod.sender.start(
            "myhostname = out.sender.test\nmydestination =\nmynetworks = 127.0.0.0/8\n"
            + (DEBIAN / "main.cf.tls").read_text(),
            f"127.0.0.1:{SUBMISSION} inet n - n - - smtpd\n",
        )
        pod.smtpguard.start()
    wait_for("the canary's verdict", lambda: "state=validating" in pod.smtpguard.log)


def _spawn(pod: Pod, name: str, *command: str | Path, ready: Callable[[], bool]) -> None:
    path = pod.directory / f"{name}.log"
    with path.open("wb") as log:
        pod.processes.append(subprocess.Popen([str(word) for word in command], stdout=log, stderr=log))
    try:
        wait_for(f"{name} is ready", ready)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{path.read_text()[-4000:]}") from error


def _dns(pod: Pod, shown: dict[str, Credential]) -> None:
    directory = pod.directory / "dns"
    config = zones.write_knot(directory, described(SITES, shown), _KNOT)
    _spawn(pod, "knot", "knotd", "-c", config, ready=lambda: "mx." in zones.ask(_KNOT, "plain.test", "MX"))
    config = zones.write_unbound(directory)
    with pod.network.entered():
        _spawn(
            pod, "unbound", "unbound", "-d", "-c", config, ready=lambda: "mx." in zones.ask(UNBOUND, "dane.test", "MX")
        )


def described(sites: Mapping[str, str], shown: Mapping[str, Credential]) -> dict[str, Zone]:
    """The zones of these sites, whose mail hosts show these certificates."""
    found = {}
    for name, address in sites.items():
        records = f"@ MX 10 mx\nmx {'AAAA' if ':' in address else 'A'} {address}\nwww A 192.0.2.1\n"
        if name in _SIGNED:
            records += f"_25._tcp.mx TLSA {tlsa(3, 1, 1, shown[name].der)}\n"
        found[name] = Zone(records, signed=name in _SIGNED, bogus=name == "bogus")
    return found


def receive(receiver: Postfix, sites: Mapping[str, str], shown: Mapping[str, Credential]) -> None:
    """Start the mail hosts of these sites: one Postfix, which puts all mail into the mailbox beside its directory."""
    mail = receiver.directory.with_name("mail")
    mail.mkdir()
    shutil.chown(mail, "nobody", "nogroup")
    users = receiver.directory.with_name("users")
    users.write_text("/^user[0-9]*@/ all/\n")
    services = ""
    for name, address in sites.items():
        where = f"[{address}]:25" if ":" in address else f"{address}:25"
        services += f"{where} inet n - n - - smtpd\n  -o smtpd_tls_chain_files={shown[name].pem_file}\n"
        services += f"  -o myhostname=mx.{name}.test\n"
    receiver.start(
        f"""myhostname = mx.test
mydestination =
virtual_mailbox_domains = {" ".join(f"{name}.test" for name in sites)}
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
