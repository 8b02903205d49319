"""What may an operator decide about the way in?  Frozen values, built by `config`, taken once by each session."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from OpenSSL import SSL

from smtpguard.inbound.limits import Limits, Times
from smtpguard.names import Domain, IpAddress
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.listen import Bind
from smtpguard.policy.inbound import InboundRules
from smtpguard.tls.certificates import ServerCertificates
from smtpguard.tls.pkix import RootStore

Network = IPv4Network | IPv6Network

_TURNED_AWAY = 100  # connections at once that may hear a 421


@dataclass(frozen=True, slots=True)
class Mta:
    """The MTA behind a listener, and how it is spoken to."""

    host: str
    """A host name for the system's resolver, an address, or empty for a unix socket."""
    port: int = 0
    path: str = ""
    address: IpAddress | None = None
    """`host`, where that is an address."""
    tls: Literal["none", "encrypt", "verify"] = "none"
    tls_name: Domain | None = None
    context: SSL.Context | None = None
    roots: RootStore | None = None
    identity_by: Literal["xclient", "proxy-v2", "none"] = "none"
    """`pass_client`: how the MTA learns who the client is."""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return str(Endpoint(self.address, self.port)) if self.address else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class InboundListener:
    """One `[[listener]]` with `role = "inbound"`."""

    name: str
    binds: tuple[Bind, ...]
    tls: Literal["starttls", "implicit", "none"]
    mta: Mta
    certificates: ServerCertificates | None = None
    open_at_connect: bool = False
    """`upstream_open = "connect"`: the MTA greets each client itself."""
    proxy_from: tuple[Network, ...] = ()
    """Peers that must begin with a PROXY header; nobody else may connect then."""
    normalize_from: tuple[Network, ...] = ()
    """Clients whose bare CR and LF become spaces instead of a refusal."""
    unlimited_from: tuple[Network, ...] = ()
    """Clients the per-client limits do not hold for."""
    received: bool = True
    client_names: bool = True
    """Look for the verified name of the client's address, for XCLIENT NAME."""
    rules: InboundRules = field(default_factory=InboundRules)
    limits: Limits = field(default_factory=Limits)
    times: Times = field(default_factory=Times)

    @property
    def submission(self) -> bool:
        """For the users of this site (587, 465): nothing in clear."""
        return self.rules.submission

    @property
    def max_connections(self) -> int:
        """Connections that are accepted at once: some more than are served, so that the others hear why not."""
        return self.limits.sessions + _TURNED_AWAY

    @property
    def protocol(self) -> str:
        """What is spoken, for people."""
        return {"starttls": "smtp+starttls", "implicit": "smtps", "none": "smtp"}[self.tls]
