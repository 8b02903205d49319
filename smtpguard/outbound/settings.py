"""What may an operator decide about the way out?  Frozen values, built by `config`, taken once by each session."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from OpenSSL import SSL

from smtpguard.dns.destinations import Family
from smtpguard.names import Domain, IpAddress
from smtpguard.net.connect import AddressRules
from smtpguard.net.listen import Bind
from smtpguard.outbound.routes import Routes
from smtpguard.policy.rules import RuleSet
from smtpguard.smtp.body import BareNewlines

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Budgets:
    """Seconds each step may take; every wait an MTA can see ends before the MTA's own timer (TO-01..08)."""

    rcpt: float = 240.0
    data: float = 100.0
    progress: float = 150.0
    end_of_data: float = 570.0
    idle: float = 300.0
    connect: float = 30.0
    connect_not_last: float = 10.0
    handshake: float = 60.0
    slot: float = 5.0
    stalled_route: float = 20.0


@dataclass(frozen=True, slots=True)
class Outbound:
    """`[outbound]`, `[[route]]`, `[[policy]]`: the same for every listener."""

    hostname: Domain
    rules: RuleSet
    routes: Routes
    addresses: AddressRules
    own_names: frozenset[Domain]
    annotate: bool = True
    eightbit_to_7bit_mx: Literal["send", "refuse"] = "send"
    dsn: Literal["pass", "hide"] = "pass"
    bare_newlines: BareNewlines = BareNewlines.NORMALIZE
    literals: Literal["refuse", "deliver"] = "deliver"
    max_octets: int = 0
    """Content octets a message may have; 0: no limit of ours."""
    max_recipients: int = 1000
    max_addresses: int = 5
    max_full_sessions: int = 2
    destination_connections: int = 20
    destination_walks: int = 5
    pool_idle_seconds: float = 5.0
    pool_messages: int = 100
    pool_age_seconds: float = 300.0
    tlsa_digests: tuple[int, ...] = (2, 1)
    budgets: Budgets = field(default_factory=Budgets)


@dataclass(frozen=True, slots=True)
class OutboundListener:
    """One `[[listener]]` with `role = "outbound"`."""

    name: str
    binds: tuple[Bind, ...]
    protocol: Literal["smtp", "lmtp"]
    ehlo: Domain
    family: Family = Family.BOTH
    source_ipv4: IpAddress | None = None
    source_ipv6: IpAddress | None = None
    clients: tuple[Network, ...] = ()
    cleartext_from: tuple[Network, ...] = ()
    tls: SSL.Context | None = None
    max_sessions: int = 1000
    intercept: Literal["", "redirect", "tproxy"] = ""
    """Connections are not made to this listener but redirected to it, by these means; protocol is "smtp"."""
    intercept_direct: tuple[Network, ...] = ()
    """Where an intercepted connection may go on to although no mail host of the recipient's domain is there."""

    @property
    def max_connections(self) -> int:
        """Connections that are accepted at once; more wait in the kernel's queue."""
        return self.max_sessions

    def source(self, address: IpAddress) -> IpAddress | None:
        """The local address to connect from, for this remote address."""
        return self.source_ipv4 if address.version == 4 else self.source_ipv6
