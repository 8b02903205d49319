"""Which misdeeds can be asked of a sandbox MX?  Each is a field of `Behaviour`; the default is a good MX.

A scripted reply is a string, or several lines ("250-first", "250 last"), written as they are plus CRLF.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import trio

Lines = str | tuple[str, ...]


class Stage(Enum):
    """Where a session can be held or dropped: before the reply to this is written."""

    GREETING = "greeting"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    HANDSHAKE = "handshake"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BODY = "body"  # after 354: held = nothing is read; dropped = after the first octets
    END = "end of data"  # everything was read, no reply yet
    RSET = "RSET"
    QUIT = "QUIT"
    IDLE = "after end of data"  # the reply was written


class Handshake(Enum):
    """What the MX does after its 220 to STARTTLS and, where it answers at all, the ClientHello."""

    PROPER = "TLS"
    RESET = "a TCP reset"
    CLOSE = "close"
    GARBAGE = "octets that are no TLS"
    ALERT = "a fatal handshake_failure alert"
    HANG = "nothing"


class Drop(Enum):
    """How a connection is cut."""

    CLOSE = "FIN"
    RESET = "RST"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What an MX does; the default is a good one."""

    greeting: Lines = "220 {name} ESMTP"  # {name}: the MX's own
    ehlo: Lines | None = None  # the whole reply; None: made of `extensions`
    helo: Lines = "250 {name}"
    extensions: tuple[str, ...] = (
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
    )
    offers_starttls: bool = True
    starttls: Lines = "220 2.0.0 go ahead"
    injected: bytes = b""  # clear octets in the same segment as the 220 to STARTTLS
    handshake: Handshake = Handshake.PROPER
    minimum_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum_tls: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    requires_tls: bool = False  # MAIL in clear is 530
    mail: Lines | None = None  # None: judged as usual
    rcpt: Lines | None = None
    rcpt_by_address: Mapping[str, Lines] = field(default_factory=dict)
    greylists: bool = False  # the first RCPT of each address is 450
    max_recipients: int | None = None  # more are 452; EHLO says LIMITS RCPTMAX (RFC 9422)
    data: Lines | None = None  # None: 354, or 554 where no RCPT was accepted
    end: Lines = "250 2.0.0 queued"
    rset: Lines = "250 2.0.0 reset"
    quit: Lines = "221 2.0.0 bye"
    drops: frozenset[Stage] = frozenset()
    drop: Drop = Drop.CLOSE
    held: Mapping[Stage, trio.Event] = field(default_factory=dict)  # the stage waits for the event
    body_pause_seconds: float = 0.0  # slow reading: a pause after each 4 KiB of the body
    small_receive_buffer: bool = False  # set with BODY held or a pause, so that the sender feels it


def code_of(lines: Lines) -> int:
    """The reply code of the last line, which is the one that counts."""
    return int((lines if isinstance(lines, str) else lines[-1])[:3])


def encode_lines(lines: Lines, name: str) -> bytes:
    """The octets of a scripted reply of the MX `name`."""
    each = (lines,) if isinstance(lines, str) else lines
    return b"".join(line.replace("{name}", name).encode() + b"\r\n" for line in each)
