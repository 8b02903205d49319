"""What do all listeners have in common?  Where they bind, their certificate, and who may use them.

Two binds that the kernel would refuse together are found here, before any socket is opened; so is a list of clients
that makes the host a relay for everybody, however the list is written.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path

from OpenSSL import SSL

from smtpguard.config.findings import Findings, Network, item_place, quoted, why
from smtpguard.config.schema import Listener
from smtpguard.net.listen import Bind, parse_bind
from smtpguard.tls.context import server_context

_WIDEST_IPV4 = 8
_WIDEST_IPV6 = 16
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
_ADMIN = "admin"
_METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Bound:
    """One bind, and where it is written."""

    bind: Bind
    place: str


def listener_place(number: int, table: Listener) -> str:
    """How errors call the `number`th `[[listener]]`."""
    return item_place("listener", number, table.name or (table.bind[0] if table.bind else ""))


def binds(found: Findings, place: str, table: Listener) -> tuple[Bind, ...]:
    """The addresses of one listener."""
    if not table.bind:
        found.wrong(place, "bind", "[]", 'needs at least one address, as in ["127.0.0.1:10027"]')
    return found.parsed_all(place, "bind", table.bind, lambda text: parse_bind(text, group=table.group))


def certificate(found: Findings, place: str, table: Listener) -> SSL.Context | None:
    """The server side of TLS; None where no certificate is named, or an error says why it cannot be used."""
    if bool(table.certificate) != bool(table.key):
        missing = "key" if table.certificate else "certificate"
        found.wrong(place, missing, "", "is missing: a certificate and its key come together")
        return None
    if not table.certificate:
        return None
    try:
        return server_context(Path(table.certificate), Path(table.key))
    except (OSError, ValueError) as error:
        is_key = isinstance(error, OSError) and error.filename == table.key
        key, file = ("key", table.key) if is_key else ("certificate", table.certificate)
        found.wrong(place, key, quoted(file), why(error))
        return None


def clients(found: Findings, place: str, texts: list[str]) -> tuple[Network, ...]:
    """The networks that may use a listener: `0.0.0.0/0` in any disguise would be an open relay."""
    return own_networks(found, place, "clients", texts, "would make this an open relay")


def own_networks(found: Findings, place: str, key: str, texts: list[str], harm: str) -> tuple[Network, ...]:
    """Networks of the operator; one that is a great part of the Internet does `harm`."""
    networks = found.networks(place, key, texts)
    for network in _collapsed(networks):
        if _is_too_wide(network):
            shown = ", ".join(quoted(text) for text in texts)
            found.wrong(
                place, key, f"[{shown}]",
                f"{network} is a great part of the Internet and {harm}: name your own networks",
            )  # fmt: skip
            break
    return networks


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    """Neighbours joined: two halves are the whole."""
    v4 = [network for network in networks if isinstance(network, IPv4Network)]
    v6 = [network for network in networks if isinstance(network, IPv6Network)]
    return [*collapse_addresses(v4), *collapse_addresses(v6)]


def _is_too_wide(network: Network) -> bool:
    if isinstance(network, IPv4Network):
        return network.prefixlen < _WIDEST_IPV4
    return network.prefixlen < _WIDEST_IPV6 and not network.subnet_of(_UNIQUE_LOCAL)


def names_clash(found: Findings, named: Iterable[tuple[str, str]]) -> None:
    """Logs and metrics tell listeners apart by name; `named` are places and names."""
    seen: dict[str, str] = {_ADMIN: "[admin]", _METRICS: "[admin] metrics_bind"}
    for place, name in named:
        if name in seen:
            found.wrong(place, "name", quoted(name), f"is the name of {seen[name]}: each listener has its own")
        seen.setdefault(name, place)


def binds_clash(found: Findings, bound: Iterable[Bound]) -> None:
    """Each address is bound once; `0.0.0.0:25` contains `127.0.0.1:25`, and `[::]:25` is IPv6 only."""
    seen: list[Bound] = []
    for one in bound:
        other = next((other for other in seen if _overlap(one.bind, other.bind)), None)
        if other is not None:
            where = "" if other.place == one.place else f" of {other.place}"
            found.wrong(
                one.place, "bind", quoted(str(one.bind)),
                f"is bound twice: {other.bind}{where} takes it already; choose another address or port",
            )  # fmt: skip
        seen.append(one)


def _overlap(one: Bind, other: Bind) -> bool:
    """Would the second bind fail?  (Sockets are IPV6_V6ONLY, so the families never meet.)"""
    if one.fd_name or other.fd_name:
        return one.fd_name == other.fd_name
    if one.is_unix or other.is_unix:
        return one.path == other.path
    if one.address is None or other.address is None or one.address.version != other.address.version:
        return False
    if one.port != other.port or not one.port:
        return False
    return one.address == other.address or one.address.is_unspecified or other.address.is_unspecified
