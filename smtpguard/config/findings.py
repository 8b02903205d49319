"""What is wrong with the file, and where?  Collected, so that an operator sees everything at once.

Each part of the configuration reads its tables with the same `Findings`: what cannot be read becomes an error that
names file, table, key, value and what would be right, and a stand-in takes its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TypeVar

from smtpguard.names import Domain, parse_domain
from smtpguard.reasons import printable
from smtpguard.tls.pkix import RootStore

T = TypeVar("T")
Network = IPv4Network | IPv6Network

STAND_IN = Domain("invalid")
"""Where a name should be and is none: only good for finding further errors."""


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong: where, what stands there, and what would be right.

    `table` is as one would write it: `[outbound]`, or `[[policy]] 3 (a.example)` for the third of a list; empty at
    the top of the file.
    """

    file: str
    table: str
    key: str
    value: str
    expected: str

    def __str__(self) -> str:
        place = " ".join(part for part in (self.table, self.key) if part)
        if self.value:
            place += f" = {self.value}"
        return f"{self.file}: {place}: {self.expected}" if place else f"{self.file}: {self.expected}"


def item_place(table: str, number: int, name: object) -> str:
    """How errors call one of a list of tables: by its number, and by what the operator knows it by."""
    known = f" ({printable(name, 60)})" if isinstance(name, str) and name else ""
    return f"[[{table}]] {number}{known}"


class Findings:
    """The errors of one file."""

    def __init__(self, path: Path, errors: list[ConfigError] | None = None) -> None:
        self.errors = errors if errors is not None else []
        self._file = str(path)

    def wrong(self, table: str, key: str, value: str, expected: str) -> None:
        """Note one error; of several about one value the first stays, being nearest to what was written."""
        if not (key and self._is_told(table, key)):
            self.errors.append(ConfigError(self._file, table, key, value, expected))

    def _is_told(self, table: str, key: str) -> bool:
        return any((error.table, error.key) == (table, key) for error in self.errors)

    def parsed(self, table: str, key: str, text: str, parse: Callable[[str], T]) -> T | None:
        """What `parse` makes of a text; None and an error where it raises ValueError, as all our parsers do."""
        try:
            return parse(text)
        except ValueError as error:
            self.wrong(table, key, quoted(text), str(error))
            return None

    def parsed_all(self, table: str, key: str, texts: list[str], parse: Callable[[str], T]) -> tuple[T, ...]:
        """What `parse` makes of each text; each one that it refuses is an error of its own."""
        told = self._is_told(table, key)
        values: list[T] = []
        for text in texts:
            try:
                values.append(parse(text))
            except ValueError as error:
                if not told:
                    self.errors.append(ConfigError(self._file, table, key, quoted(text), str(error)))
        return tuple(values)

    def name(self, table: str, key: str, text: str) -> Domain:
        """A domain name, or STAND_IN."""
        return self.parsed(table, key, text, parse_domain) or STAND_IN

    def networks(self, table: str, key: str, texts: list[str]) -> tuple[Network, ...]:
        """Networks in CIDR notation."""
        return self.parsed_all(table, key, texts, _network)

    def roots(self, table: str, key: str, path: Path) -> None:
        """Look whether authorities can be read from this file."""
        try:
            RootStore.load(path)
        except (OSError, ValueError) as error:
            self.wrong(table, key, quoted(str(path)), why(error))


def why(error: OSError | ValueError) -> str:
    """What is wrong with the file that a value names, without Python's words; our ValueErrors say it themselves."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return str(error)


def quoted(text: str) -> str:
    """A text as it stands in the file, bounded."""
    return f'"{printable(text, 120)}"'


def _network(text: str) -> Network:
    """Raises ValueError."""
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"must be a network such as 192.0.2.0/24 or 2001:db8::/32: {error}") from error
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
        raise ValueError("is IPv4 in IPv6: write the IPv4 network, as in 192.0.2.0/24")
    return network
