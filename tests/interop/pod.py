"""A pod in front of an Internet: unmodified MTAs and smtpguard in one network, mail hosts in another.

    client ── in0 [pod: sending MTAs, smtpguard (its own user), unbound] eth0 ── net0 [Internet: knot, MTAs, nginx]

The addresses are global ones, so nothing has to be allowed.  The redirection rules are those of deploy/interception, as
they are.  The client's network is for TPROXY: there the pod is its gateway and its resolver.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from smtpguard.sandbox.certificates import CertificateMaker, Credential, tlsa
from tests.interop import zones
from tests.interop.hosts import receiving_exim, receiving_opensmtpd, receiving_postfix, serve_policies, site, smtpd
from tests.interop.namespace import Network, own_network
from tests.interop.path import Ear
from tests.interop.processes import Postfix, Smtpguard, end, lab_directory, messages_in, run, spawn
from tests.interop.unmodified import Unmodified, debian_postfix, default_exim, default_opensmtpd
from tests.interop.zones import TRUSTED, UNBOUND

DEPLOY = Path(__file__).parents[2] / "deploy" / "interception"
USER = "10125"
"""The uid that the shipped rules exempt."""
REDIRECTED, WITH_CERTIFICATE = 10025, 10022
"""Listeners for redirected connections: the one of the shipped rules, and one that offers the MTA STARTTLS."""
POD, POD6 = "11.1.0.2", "2a00:1::2"
_KNOT = "11.53.0.1"

SITES = {
    "dane": "11.25.0.1",
    "six": "2a00:25::1",
    "plain": "11.25.0.2",
    "loop": "11.25.0.3",
    "exim": "11.25.0.4",
    "osmtpd": "11.25.0.5",
    "sts": "11.25.0.6",
    "swap": "11.25.0.7",
    "away": "11.25.0.8",
    "bogus": "11.25.0.9",
}
"""<name>.test, and the address of its mail host.  `swap` shows another certificate than its TLSA record says, at `away`
nobody listens."""
SECOND = {"swap": "11.25.0.17", "away": "11.25.0.18"}
"""Domains with a second mail host, and its address; nothing is wrong with it."""
_ELSEWHERE = ("exim", "osmtpd", "away")
"""Sites whose host is not the receiving Postfix."""
_SIGNED = ("dane", "six", "loop", "exim", "swap", "away", "bogus")
_POLICY_HOST = "11.25.0.80"


@dataclass
class Pod:
    """All of it; the calling thread is in the Internet's network."""

    directory: Path
    network: Network
    client: Network
    smtpguard: Smtpguard
    sender: Postfix
    routed: Postfix
    """The one in the client's network."""
    receiver: Postfix
    unmodified: dict[str, Unmodified] = field(default_factory=dict)
    """Every sending MTA: postfix and routed (the Postfix above), exim, exim-trust-ad (TRUSTED), opensmtpd."""
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
    def redirected(self, by: str, user: str = USER, port: int = REDIRECTED) -> Iterator[None]:
        """The MTA's connections are redirected `by` the shipped rules, which exempt `user`, to this port."""
        with self.network.entered():
            for command, text in _rules(by):
                run("bash", "-c", f'{command} <<< "$0"', text.replace(USER, user).replace(str(REDIRECTED), str(port)))
        try:
            yield
        finally:
            with self.network.entered():
                run("nft", "flush", "ruleset")  # the rules of iptables are nftables' too

    def clean(self) -> None:
        """After each test: no mail on the way, no connection kept, no failed host remembered by smtpguard."""
        for postfix in (self.sender, self.routed):
            if "Mail queue is empty" not in postfix.queue():
                postfix.purge()
            postfix.hang_up()
        with self.network.entered():
            if any(self.smtpguard.counted(f"smtpguard_{what}_total") for what in ("hosts_skipped", "refusals")):
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
            Postfix(directory / "routed", "127.0.0.1", "11.2.0.1", "all"),
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
    for postfix in (pod.sender, pod.routed, pod.receiver):
        postfix.stop()
    end(pod.processes)
    pod.network.close()
    pod.client.close()


def _links(pod: Pod) -> None:
    """Internet ── pod ── client."""
    run("ip", "link", "add", "net0", "type", "veth", "peer", "name", "eth0", "netns", pod.network.path)
    _addresses("net0", "11.1.0.1/24", "2a00:1::1/64")
    there = (*SITES.values(), *SECOND.values(), _KNOT, _POLICY_HOST)
    _addresses("lo", *(f"{address}/{128 if ':' in address else 32}" for address in there))
    run("ip", "route", "add", "11.2.0.0/24", "via", POD)
    run("ip", "route", "add", "2a00:2::/64", "via", POD6)
    with pod.network.entered():
        run("ip", "link", "add", "in0", "type", "veth", "peer", "name", "eth0", "netns", pod.client.path)
        _addresses("eth0", f"{POD}/24", f"{POD6}/64")
        _addresses("in0", "11.2.0.1/24", "2a00:2::1/64")
        run("ip", "route", "add", "default", "via", "11.1.0.1")
        run("ip", "route", "add", "default", "via", "2a00:1::1")
        for forwarding in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):  # what is not redirected goes on in clear
            Path("/proc/sys/net", forwarding).write_text("1")
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
    root = maker.root("Lab Root")
    shown = {name: maker.leaf(root if name == "sts" else None, [f"mx.{name}.test"]) for name in SITES}
    second = {name: maker.leaf(None, [f"second.{name}.test"]) for name in SECOND}
    _dns(pod, {**shown, "swap": maker.leaf(None, ["mx.swap.test"])}, second)
    _receivers(pod, shown, second)
    policy_host = maker.leaf(root, ["mta-sts.sts.test"])
    serve_policies(pod.processes, pod.directory / "nginx", _POLICY_HOST, ["sts"], policy_host)
    _smtpguard(pod, maker.leaf(None, ["out.sender.test"]), maker.trust_file(root))
    pod.unmodified = {
        "postfix": debian_postfix(pod.sender, pod.network),
        "exim": _exim(pod, "sender-exim", "127.0.0.2", UNBOUND),
        "exim-trust-ad": _exim(pod, "sender-trust-ad", "127.0.0.3", TRUSTED),
        "opensmtpd": default_opensmtpd(
            pod.processes, pod.directory / "sender-osmtpd", pod.network, "127.0.0.4", UNBOUND
        ),
        "routed": debian_postfix(pod.routed, pod.client),
    }


def _exim(pod: Pod, name: str, address: str, resolver: str) -> Unmodified:
    return default_exim(pod.processes, pod.directory / name, pod.network, address, resolver)


def _smtpguard(pod: Pod, shown: Credential, trust: Path) -> None:
    state = pod.directory / "state"
    state.mkdir()
    os.chown(state, int(USER), int(USER))
    pod.smtpguard.config.write_text(
        f"""hostname = "out.sender.test"
state_dir = "{state}"
[[listener]]
role = "outbound"
bind = ["127.0.0.1:{REDIRECTED}", "[::1]:{REDIRECTED}"]
intercept = true
[[listener]]
role = "outbound"
bind = ["127.0.0.1:{WITH_CERTIFICATE}", "[::1]:{WITH_CERTIFICATE}"]
intercept = true
certificate = "{shown.pem_file}"
key = "{shown.pem_file}"
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
ca_file = "{trust}"
[log]
level = "debug"
"""
    )
    with pod.network.entered():
        pod.smtpguard.start()
    pod.smtpguard.logged("state=validating")


def _spawn(pod: Pod, name: str, *command: str | Path, ready: Callable[[], bool]) -> None:
    spawn(pod.processes, pod.directory / f"{name}.log", *command, ready=ready)


def _dns(pod: Pod, published: dict[str, Credential], second: dict[str, Credential]) -> None:
    described = {}
    for name, address in SITES.items():
        more = ""
        if name in SECOND:
            more += f"@ MX 20 second\nsecond A {SECOND[name]}\n"
            more += f"_25._tcp.second TLSA {tlsa(3, 1, 1, second[name].der)}\n"
        if name == "sts":
            more += f'_mta-sts TXT "v=STSv1; id=1;"\nmta-sts A {_POLICY_HOST}\n'
        described[name] = site(address, published[name] if name in _SIGNED else None, more, bogus=name == "bogus")
    directory = pod.directory / "dns"
    config = zones.write_knot(directory, described, _KNOT)
    _spawn(pod, "knot", "knotd", "-c", config, ready=lambda: "mx." in zones.ask(_KNOT, "plain.test", "MX"))
    config = zones.write_unbound(directory, "    interface: 11.2.0.1\n    access-control: 11.2.0.0/24 allow\n")
    with pod.network.entered():
        _spawn(
            pod, "unbound", "unbound", "-d", "-c", config, ready=lambda: "mx." in zones.ask(UNBOUND, "dane.test", "MX")
        )


def _receivers(pod: Pod, shown: dict[str, Credential], second: dict[str, Credential]) -> None:
    hosts = {f"mx.{name}.test": (SITES[name], shown[name]) for name in SITES if name not in _ELSEWHERE}
    hosts |= {f"second.{name}.test": (address, second[name]) for name, address in SECOND.items()}
    services = "".join(smtpd(address, name, credential) for name, (address, credential) in hosts.items())
    receiving_postfix(pod.receiver, pod.directory, [f"{name}.test" for name in SITES], services)
    receiving_exim(pod.processes, pod.directory / "exim", SITES["exim"], shown["exim"])
    receiving_opensmtpd(pod.processes, pod.directory / "osmtpd", SITES["osmtpd"])
