"""How much may a client ask of us, and how long may it take?  The defaults of docs/inbound.md.  Pure values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one client, and all of them together, may ask of us.  `docs/inbound.md` has them as a table."""

    sessions: int = 10_000
    sessions_per_client: int = 50
    connections_per_minute: int = 300
    """New connections of one client (an IPv4 address, an IPv6 /64)."""
    handshake_failures_per_minute: int = 30
    handshakes: int = 1000
    """TLS handshakes under way; beyond them STARTTLS hears 454.  Many, since whoever stalls one must not drive the
    others into cleartext: `sessions_per_client` is what bounds one party."""
    errors: int = 20
    """Commands of one session that we refused for what they are: syntax, order, policy."""
    idle_commands: int = 100
    """Commands between two messages that bring none on: NOOP, RSET, VRFY, EHLO and the like, and what was refused; of
    refused RCPTs and chunks a hundred count as one."""
    recipients: int = 1000
    message_octets: int = 0
    """Content octets of a message; 0: what the MTA says."""
    octets_per_second: int = 100
    """What a message must bring on average, after `command` seconds of grace."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds each wait may take (TO-01..08 in the server role)."""

    hello: float = 60.0
    """From accept to the first EHLO, and for a handshake."""
    command: float = 300.0
    proxy_header: float = 5.0
    names: float = 5.0
    connect: float = 10.0
    mta_greeting: float = 60.0
    """Greeting, EHLO, XCLIENT and STARTTLS of the MTA together."""
    mta_reply: float = 300.0
    mta_data: float = 120.0
    mta_content: float = 180.0
    mta_end_of_data: float = 600.0
