"""How does a wait or a connection end before its time?  The vocabulary of `net.wire`; RFC 5321 §4.5.3.2, §3.8.

`Interrupted` is our doing, `WireLost` the peer's or the network's, `HandshakeFailed` either's.  Texts are printable.
"""

from enum import Enum

from OpenSSL import SSL

from smtpguard.reasons import printable
from smtpguard.tls.outcome import TlsOutcome


class Why(Enum):
    """Why a wait was interrupted.  TIMEOUT and SHUTDOWN leave time for a last reply, CUT does not."""

    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    CUT = "cut"


class Interrupted(Exception):
    """A wait ended because of `Wire.interrupt(why)`, not because of the peer."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value)
        self.why = why


class WireLost(Exception):
    """The connection is of no use: reset, TLS failure, or ended by us.  `detail` is printable, bounded."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class HandshakeFailed(Exception):
    """The TLS handshake failed; `outcome` says how, in the words of RFC 8460."""

    def __init__(self, outcome: TlsOutcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


class Wait(Enum):
    """What a wait is for: the socket, or the turn of the other tasks."""

    READABLE = "readable"
    WRITABLE = "writable"
    TURN = "turn"


def lost_by(error: OSError | SSL.Error) -> WireLost:
    """The loss that an error of the kernel or of OpenSSL means, in their own words."""
    match error:
        case SSL.SysCallError():
            return WireLost(printable(f"connection lost: {error.args[-1]}"))
        case OSError():
            return WireLost(printable(f"connection lost: {error.strerror or error}"))
        case _:
            queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
            reasons = [str(entry[-1]) for entry in queue if entry]
            return WireLost(printable("TLS failed: " + ("; ".join(reasons) or type(error).__name__)))
