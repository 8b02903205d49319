"""Which mail does an inbound rule speak about?  (`recipient_domain`, `sender_domain`, `client` of `[[inbound_policy]]`)

Patterns are those of `[[policy]]`: exact, `.parent`, `*`.  Mailboxes are compared as RFC 5321 §2.4 and §4.1.2 allow.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import assert_never

from smtpguard.names import Domain, IpAddress, NameInvalid, parents, parse_domain, parse_mail_domain
from smtpguard.policy.rules import RuleInvalid
from smtpguard.reasons import printable
from smtpguard.smtp.syntax import ForwardPath

Network = IPv4Network | IPv6Network

_ROUTING = re.compile("[%!@]")


@dataclass(frozen=True, slots=True)
class RecipientDomain:
    """Mail to a domain: `example.org`, `.example.org` (its subdomains, not itself), `*`.  An address literal may be of
    any domain, so every such rule holds for it."""

    pattern: str

    def __str__(self) -> str:
        return f"recipient domain {self.pattern}"


@dataclass(frozen=True, slots=True)
class SenderDomain:
    """Mail whose MAIL FROM is of a domain, written alike; `*` holds for `<>` and address literals too."""

    pattern: str

    def __str__(self) -> str:
        return f"sender domain {self.pattern}"


@dataclass(frozen=True, slots=True)
class ClientNetwork:
    """Mail from clients of a network."""

    network: Network

    def __str__(self) -> str:
        return f"client {self.network}"


@dataclass(frozen=True, slots=True)
class WholeListener:
    """Everything that comes in by the listener: its `require_tls`, no `[[inbound_policy]]`."""

    def __str__(self) -> str:
        return "this service"


Scope = RecipientDomain | SenderDomain | ClientNetwork | WholeListener


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address that takes mail in clear whatever is required: local part in lower case, and domain."""

    local_part: bytes
    domain: Domain


def generality(scope: Scope) -> int:
    """How little a scope says about one mail: 0 for an exact name, 4 for the whole listener."""
    match scope:
        case RecipientDomain(pattern) | SenderDomain(pattern):
            return 3 if pattern == "*" else 1 if pattern.startswith(".") else 0
        case ClientNetwork():
            return 2
        case WholeListener():
            return 4
    assert_never(scope)


def patterns(domain: Domain | IpAddress | None) -> Iterator[str]:
    """Every pattern that holds for a domain; `*` alone for what has none."""
    if isinstance(domain, str):
        yield domain
        for parent in parents(domain):
            yield f".{parent}"
    yield "*"


def domains_of(path: ForwardPath) -> Iterator[Domain | IpAddress]:
    """Every domain and literal that an MTA may take a recipient to be of: its own, and those of the old routing forms
    (`x%b.example@`, `b.example!x@`, `"x@b.example"@`), which many still know."""
    if path.domain is not None:
        yield path.domain
    words = _ROUTING.split(fold_local_part(path.local_part).decode("utf-8", "replace"))
    for word in words if len(words) > 1 else ():
        with suppress(NameInvalid):
            yield parse_mail_domain(word)


def is_everything(scope: Scope) -> bool:
    """Does it hold for the mail of the whole world?"""
    match scope:
        case RecipientDomain(pattern) | SenderDomain(pattern):
            return pattern == "*"
        case ClientNetwork(network):
            return network.prefixlen == 0
        case WholeListener():
            return True
    assert_never(scope)


def fold_local_part(octets: bytes) -> bytes:
    """In lower case, without the quotes that change nothing (RFC 5321 §4.1.2)."""
    if len(octets) >= 2 and octets[:1] == octets[-1:] == b'"':
        octets = octets[1:-1].replace(b"\\", b"")
    return octets.lower()


def parse_domain_pattern(text: str) -> str:
    """`example.org`, `.example.org` or `*`, normalised.  Raises RuleInvalid."""
    text = text.strip()
    if text == "*":
        return text
    try:
        return f".{parse_domain(text[1:])}" if text.startswith(".") else parse_domain(text)
    except NameInvalid as error:
        raise RuleInvalid(f'{error}; right would be "example.org", ".example.org" or "*"') from error


def parse_client(text: str) -> ClientNetwork:
    """`192.0.2.0/24`, `2001:db8::/32` or one address.  Raises RuleInvalid."""
    try:
        network = ip_network(text.strip())
    except ValueError as error:
        raise RuleInvalid(
            f"'{printable(text, 80)}' is not a network; right would be \"192.0.2.0/24\", without host bits"
        ) from error
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None and network.prefixlen > 95:
        raise RuleInvalid(f"'{printable(text, 80)}' holds IPv4 addresses: write them as such")
    return ClientNetwork(network)


def parse_exempt(text: str) -> Mailbox:
    """The mailbox of a `rua`: `tlsrpt@example.org`, also with `mailto:`.  Raises RuleInvalid."""
    address = text.strip()
    if address[:7].lower() == "mailto:":
        address = address[7:].partition("?")[0]
    local, at, domain = address.rpartition("@")
    try:
        if not at or not local:
            raise NameInvalid(f"'{printable(text, 80)}' is not a mail address")
        return Mailbox(fold_local_part(local.encode("utf-8")), parse_domain(domain))
    except NameInvalid as error:
        raise RuleInvalid(f'{error}; right would be "tlsrpt@example.org"') from error
