"""The sandbox assembled: domains that publish DANE, MTA-STS, both or nothing, their MX hosts, and attacks.

Everything listens on 127.0.0.0/8 and runs as tasks of the caller's nursery:
    resolver      127.0.0.1, one port for UDP and TCP
    policy hosts  127.0.0.80, one port; the host is chosen by SNI
    MX hosts      127.10.<n>.1, all on one port, as MX hosts share port 25
    forged MX     127.66.6.6, the same port; its certificate is valid for its own name
Attacks begin and end at run time: `await internet.attack("dane.example", Attack.STRIP_STARTTLS)`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import count
from pathlib import Path
from typing import assert_never

import trio

from smtpguard.sandbox.attacker import Attacker, Trick
from smtpguard.sandbox.certificates import Authority, CertificateMaker, Credential, Dates, tlsa
from smtpguard.sandbox.dns import Names, NameServer, Security
from smtpguard.sandbox.mx import Mx
from smtpguard.sandbox.opportunistic import OpportunisticSender
from smtpguard.sandbox.policyhost import Page, PolicyHosts, policy_text

RESOLVER = "127.0.0.1"
POLICY_HOST = "127.0.0.80"
FORGED_MX = "127.66.6.6"
FORGED_NAME = "mx.attacker.example"
SIGNED, UNSIGNED, BROKEN = "signed.canary", "unsigned.canary", "broken.canary"


class Publication(Enum):
    """What a domain asks of senders."""

    NOTHING = "nothing"
    DANE_EE = "DANE-EE"
    DANE_TA = "DANE-TA"
    STS_ENFORCE = "MTA-STS enforce"
    STS_TESTING = "MTA-STS testing"
    DANE_AND_STS = "DANE-EE, MTA-STS enforce"

    @property
    def has_dane(self) -> bool:
        """TLSA records in a signed zone."""
        return self in (Publication.DANE_EE, Publication.DANE_TA, Publication.DANE_AND_STS)

    @property
    def sts_mode(self) -> str | None:
        """The mode of its MTA-STS policy."""
        return {
            Publication.STS_ENFORCE: "enforce",
            Publication.STS_TESTING: "testing",
            Publication.DANE_AND_STS: "enforce",
        }.get(self)


class Attack(Enum):
    """What goes wrong on the way to a domain, by malice or by neglect."""

    NONE = "none"
    STRIP_STARTTLS = "STARTTLS stripped"
    SWAP_CERTIFICATE = "certificate swapped"
    FORGE_MX = "MX record forged"
    BOGUS_TLSA = "TLSA record forged"
    STALE_TLSA = "key changed, TLSA not"
    EXPIRED_CERTIFICATE = "certificate expired"
    WRONG_NAME = "certificate for another name"
    BLOCK_POLICY = "policy fetch blocked"


@dataclass(frozen=True, slots=True)
class Site:
    """One domain to build."""

    domain: str
    publishes: Publication
    attack: Attack = Attack.NONE


DEFAULT_SITES = (
    Site("dane.example", Publication.DANE_EE),
    Site("dane-ta.example", Publication.DANE_TA),
    Site("sts.example", Publication.STS_ENFORCE),
    Site("both.example", Publication.DANE_AND_STS),
    Site("testing.example", Publication.STS_TESTING),
    Site("plain.example", Publication.NOTHING),
)


@dataclass(frozen=True, slots=True)
class FurtherMx:
    """A second, third ... MX of a domain."""

    preference: int
    mx: Mx
    honest: Credential


@dataclass(slots=True)
class Host:
    """A domain in operation: its first MX (preference 10), and who stands in front of it."""

    site: Site
    mx: Mx
    honest: Credential  # what the MX shows when nobody interferes
    address: str  # what DNS says of the MX
    behind: str  # where the MX moves when an attacker takes its address
    attack: Attack = Attack.NONE
    attacker: Attacker | None = None
    further: list[FurtherMx] = field(default_factory=list)  # never attacked

    @property
    def domain(self) -> str:
        """The recipient domain."""
        return self.site.domain

    @property
    def mx_name(self) -> str:
        """The name of its first MX host."""
        return self.mx.name

    @property
    def is_signed(self) -> bool:
        """DANE needs a signed zone; the others have none here."""
        return self.site.publishes.has_dane


class Internet:
    """Made by `start` or `open_internet`; tests may change `names`, `hosts`, `policy_hosts`, `forged_mx`."""

    def __init__(self, nursery: trio.Nursery, directory: Path, ttl_seconds: int) -> None:
        self.nursery = nursery
        self._ttl = ttl_seconds
        self.certificates = CertificateMaker(directory)
        self._root = self.certificates.root("Sandbox Public Root")
        self.public_authority = self.certificates.intermediate(self._root, "Sandbox Public Issuer")
        self.private_authority = self.certificates.root("Sandbox Private Root")
        self.ca_file = self.certificates.trust_file(self._root)
        self.names = Names()
        self.name_server = NameServer(self.names)
        self.policy_hosts = PolicyHosts(self.certificates.leaf(None, ["unknown.example"]))
        self.forged_mx = Mx(FORGED_NAME, self.certificates.leaf(self.public_authority, [FORGED_NAME]))
        self.hosts: dict[str, Host] = {}
        self.mx_port = 0
        self.serials = count(1)  # to tell one test message from another

    @property
    def resolver(self) -> tuple[str, int]:
        """Address and port of the resolver, UDP and TCP."""
        return self.name_server.address, self.name_server.port

    @property
    def policy_port(self) -> int:
        """The port of every policy host."""
        return self.policy_hosts.port

    @property
    def opportunistic_sender(self) -> OpportunisticSender:
        """The ordinary sender that lives here too."""
        return OpportunisticSender(self.resolver, self.mx_port)

    async def add(self, site: Site) -> Host:
        """Build one more domain.  Raises OSError where its addresses are taken."""
        number = len(self.hosts) + 1
        mx_name = f"mx.{site.domain}"
        honest = self._honest_credential(site.publishes, mx_name)
        host = Host(site, Mx(mx_name, honest), honest, f"127.10.{number}.1", f"127.10.{number}.2")
        await host.mx.start(self.nursery, host.address, self.mx_port)
        self.hosts[site.domain] = host
        self._publish(host)
        await self.attack(site.domain, site.attack)
        return host

    async def add_mx(self, domain: str, name: str, preference: int = 20) -> Mx:
        """Give `domain` a further MX, published as the first is.  Raises OSError."""
        host = self.hosts[domain]
        honest = self._honest_credential(host.site.publishes, name)
        mx = Mx(name, honest)
        network = host.address.rpartition(".")[0]
        await mx.start(self.nursery, f"{network}.{len(host.further) + 11}", self.mx_port)
        host.further.append(FurtherMx(preference, mx, honest))
        self._publish(host)
        return mx

    async def attack(self, domain: str, attack: Attack) -> None:
        """End the present attack on `domain` and begin this one."""
        host = self.hosts[domain]
        await self._end_attack(host)
        host.attack = attack
        match attack:
            case Attack.NONE:
                pass
            case Attack.STRIP_STARTTLS:
                await self._intercept(host, Trick.STRIP)
            case Attack.SWAP_CERTIFICATE:
                await self._intercept(host, Trick.SWAP)
            case Attack.FORGE_MX:
                self.names.put(domain, "MX", f"10 {FORGED_NAME}.", ttl=self._ttl)
                if host.is_signed:
                    self.names.judge_as(domain, "MX", Security.BOGUS)
            case Attack.BOGUS_TLSA:
                self.names.put(self.tlsa_name(host.mx_name), "TLSA", "3 1 1 " + "00" * 32, ttl=self._ttl)
                self.names.judge_as(self.tlsa_name(host.mx_name), "TLSA", Security.BOGUS)
            case Attack.STALE_TLSA:
                stranger = self.certificates.root("Another Private Root")
                host.mx.credential = self.certificates.leaf(stranger, [host.mx_name], send_root=True)
            case Attack.EXPIRED_CERTIFICATE:
                host.mx.credential = self._renewed(host, [host.mx_name], Dates.EXPIRED)
            case Attack.WRONG_NAME:
                host.mx.credential = self._renewed(host, ["elsewhere.example"], Dates.VALID)
            case Attack.BLOCK_POLICY:
                pages, policy_host = self.policy_hosts.pages, f"mta-sts.{domain}"
                if policy_host in pages:
                    pages[policy_host] = replace(pages[policy_host], refuses_tls=True)
            case _:
                assert_never(attack)

    def tlsa_name(self, mx_name: str) -> str:
        """Where the TLSA RRset of this MX lives."""
        return f"_{self.mx_port}._tcp.{mx_name}"

    def publish_policy(self, domain: str, page: Page, policy_id: str = "20260101") -> None:
        """Publish an MTA-STS policy: TXT record, address of the policy host, certificate, page."""
        policy_host = f"mta-sts.{domain}"
        self.names.put(f"_mta-sts.{domain}", "TXT", f'"v=STSv1; id={policy_id};"', ttl=self._ttl)
        self.names.put(policy_host, "A", POLICY_HOST, ttl=self._ttl)
        if policy_host not in self.policy_hosts.credentials:
            leaf = self.certificates.leaf(self.public_authority, [policy_host])
            self.policy_hosts.credentials[policy_host] = leaf
        self.policy_hosts.pages[policy_host] = page

    async def _end_attack(self, host: Host) -> None:
        if host.attacker is not None:
            await host.attacker.stop()
            await host.mx.stop()
            host.attacker = None
            await host.mx.start(self.nursery, host.address, self.mx_port)
        host.mx.credential = host.honest
        self.names.judge_as(host.domain, "MX", None)
        self.names.judge_as(self.tlsa_name(host.mx_name), "TLSA", None)
        self._publish(host)

    async def _intercept(self, host: Host, trick: Trick) -> None:
        await host.mx.stop()
        await host.mx.start(self.nursery, host.behind, self.mx_port)
        swapped = self.certificates.leaf(None, [host.mx_name])
        host.attacker = Attacker(trick, (host.behind, self.mx_port), swapped)
        await host.attacker.start(self.nursery, host.address, self.mx_port)

    def _publish(self, host: Host) -> None:
        domain, publishes, ttl = host.domain, host.site.publishes, self._ttl
        self.names.zone(domain, Security.SECURE if host.is_signed else Security.INSECURE)
        exchanges = [f"10 {host.mx_name}.", *(f"{each.preference} {each.mx.name}." for each in host.further)]
        self.names.put(domain, "MX", *exchanges, ttl=ttl)
        self._publish_mx(publishes, host.mx_name, host.address, host.honest)
        for each in host.further:
            self._publish_mx(publishes, each.mx.name, each.mx.address, each.honest)
        if publishes.sts_mode is not None:
            mx_names = [host.mx_name, *(each.mx.name for each in host.further)]
            self.publish_policy(domain, Page(policy_text(publishes.sts_mode, *mx_names)))

    def _publish_mx(self, publishes: Publication, mx_name: str, address: str, shown: Credential) -> None:
        self.names.put(mx_name, "A", address, ttl=self._ttl)
        self.names.put(self.tlsa_name(mx_name), "TLSA", *self._tlsa_records(publishes, shown), ttl=self._ttl)

    def _tlsa_records(self, publishes: Publication, shown: Credential) -> list[str]:
        match publishes:
            case Publication.DANE_EE | Publication.DANE_AND_STS:
                return [tlsa(3, 1, 1, shown.der)]
            case Publication.DANE_TA:
                return [tlsa(2, 0, 1, self.private_authority.der)]
            case Publication.NOTHING | Publication.STS_ENFORCE | Publication.STS_TESTING:
                return []
            case _:
                assert_never(publishes)

    def _authority_for(self, publishes: Publication) -> Authority | None:
        """Who certifies an MX: DANE-EE and "nothing" do without an authority, as most such MX hosts do."""
        match publishes:
            case Publication.DANE_EE | Publication.NOTHING:
                return None
            case Publication.DANE_TA:
                return self.private_authority
            case Publication.STS_ENFORCE | Publication.STS_TESTING | Publication.DANE_AND_STS:
                return self.public_authority
            case _:
                assert_never(publishes)

    def _honest_credential(self, publishes: Publication, mx_name: str) -> Credential:
        authority = self._authority_for(publishes)
        sends_root = publishes is Publication.DANE_TA
        return self.certificates.leaf(authority, [mx_name], send_root=sends_root)

    def _renewed(self, host: Host, names: Sequence[str], dates: Dates) -> Credential:
        """Another certificate over the same key, by the same authority."""
        return self.certificates.leaf(
            self._authority_for(host.site.publishes),
            names,
            dates=dates,
            key=host.honest.key,
            send_root=host.site.publishes is Publication.DANE_TA,
        )

    async def _start(self, sites: Sequence[Site], resolver: str) -> None:
        await self.name_server.start(self.nursery, resolver)
        await self.policy_hosts.start(self.nursery, POLICY_HOST)
        await self.forged_mx.start(self.nursery, FORGED_MX)
        self.mx_port = self.forged_mx.port
        self.names.zone(FORGED_NAME.partition(".")[2], Security.INSECURE)
        self.names.put(FORGED_NAME, "A", FORGED_MX, ttl=self._ttl)
        canaries = {SIGNED: Security.SECURE, UNSIGNED: Security.INSECURE, BROKEN: Security.BOGUS}
        for name, security in canaries.items():
            self.names.zone(name, security)
            self.names.put(name, "A", "192.0.2.53", ttl=self._ttl)
            self.names.put(name, "TXT", '"canary"', ttl=self._ttl)
        for site in sites:
            await self.add(site)


async def start(
    nursery: trio.Nursery,
    directory: Path,
    sites: Sequence[Site] = DEFAULT_SITES,
    *,
    ttl_seconds: int = 1,
    resolver: str = RESOLVER,
) -> Internet:
    """Start everything in the caller's nursery; key files go to `directory`.

    `ttl_seconds` is the TTL of positive answers; small, since attacks begin and end.  `resolver`: its address, which
    decides whether smtpguard believes its AD bit.  Raises OSError.
    """
    internet = Internet(nursery, directory, ttl_seconds)
    await internet._start(sites, resolver)
    return internet


@asynccontextmanager
async def open_internet(
    directory: Path, sites: Sequence[Site] = DEFAULT_SITES, *, ttl_seconds: int = 1
) -> AsyncIterator[Internet]:
    """`start` with a nursery of its own, cancelled at the end of the block."""
    async with trio.open_nursery() as nursery:
        yield await start(nursery, directory, sites, ttl_seconds=ttl_seconds)
        nursery.cancel_scope.cancel()
