"""Which end of a connection is this, and how is it printed?  (RFC 4291 §2.5.5.2, unix(7))"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from smtpguard.names import IpAddress, parse_address, unmapped
from smtpguard.reasons import printable


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end: address and port, or a Unix socket (`address` None, `path` maybe empty)."""

    address: IpAddress | None
    port: int = 0
    path: str = ""

    @classmethod
    def of(cls, family: int, name: Any) -> Self:
        """Of what getsockname, getpeername or accept gave.  IPv4-mapped addresses become IPv4."""
        if family == socket.AF_INET6 or family == socket.AF_INET:
            return cls(unmapped(parse_address(str(name[0]).partition("%")[0])), int(name[1]))
        path = name if isinstance(name, str) else bytes(name or b"").decode("latin-1")
        return cls(None, 0, printable(path.replace("\0", "@")))

    @classmethod
    def asked(cls, family: int, ask: Callable[[], Any]) -> Self:
        """Of `sock.getsockname` or `sock.getpeername`; without address if the peer was gone before we
        asked."""
        try:
            return cls.of(family, ask())
        except OSError:
            return cls(None)

    def __str__(self) -> str:
        if self.address is None:
            return f"unix:{self.path}"
        if self.address.version == 6:
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"
