"""Where does a command line or a reply end?  All cutting of octets outside message content.

RFC 5321 §2.3.8 (only CRLF ends a line), §4.2 (replies), §4.5.3.1 (limits).  Never lenient: a bare CR or LF, a
NUL and an over-long line are faults of the line they stand in, reported at its true end, so that both sides
stay in step. Memory is bounded by the limit plus what one `feed` brings; discarding an over-long line takes
none.
"""

from dataclasses import dataclass
from enum import Enum

from smtpguard.reasons import printable
from smtpguard.smtp.replies import Reply

MAX_REPLY_LINE_READ = 4096
"""Octets of one line of a remote's reply we read; RFC 5321 §4.5.3.1.5 allows 512, more exist (SMTP-14)."""

MAX_REPLY_OCTETS = 100 * 1024
"""Octets of one whole multi-line reply we read (SMTP-14)."""

_HEAD_OCTETS = 16


class LocalProtocolError(Exception):
    """Our own side called a dialogue out of order: a bug, never the peer's doing."""


class RemoteProtocolError(Exception):
    """The peer broke the protocol so that the dialogue cannot go on; the message is printable and bounded."""


class LineFaultKind(Enum):
    """What is wrong with a line."""

    LINE_TOO_LONG = "line_too_long"
    BARE_NEWLINE = "bare_newline"
    NUL = "nul"


@dataclass(frozen=True, slots=True)
class LineFault:
    """A line that is no line; `head` is how it began (at most 16 octets), to tell an AUTH line from
    others."""

    kind: LineFaultKind
    head: bytes = b""


class LineReader:
    """Cuts lines at CRLF.  `limit` is in octets, CRLF included.

    Feed, then ask for lines until None: what has not been asked for is held.
    """

    __slots__ = ("_buffer", "_discarding", "_limit", "_searched")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._searched = 0  # no CRLF begins before this offset
        self._discarding: LineFault | None = None

    def feed(self, octets: bytes) -> None:
        """Octets came in."""
        self._buffer += octets

    def next_line(self) -> bytes | LineFault | None:
        """The next line without its CRLF, what is wrong with it, or None until its CRLF has come."""
        buffer = self._buffer
        end = buffer.find(b"\r\n", self._searched)
        if end < 0:
            if len(buffer) > self._limit or self._discarding:
                self._discard()
            self._searched = max(0, len(buffer) - 1)  # a final CR may be half of a CRLF
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        self._searched = 0
        if self._discarding:
            fault, self._discarding = self._discarding, None
            return fault
        if end + 2 > self._limit:
            return LineFault(LineFaultKind.LINE_TOO_LONG, line[:_HEAD_OCTETS])
        if b"\n" in line or b"\r" in line:
            return LineFault(LineFaultKind.BARE_NEWLINE, line[:_HEAD_OCTETS])
        if b"\0" in line:
            return LineFault(LineFaultKind.NUL, line[:_HEAD_OCTETS])
        return line

    def take_rest(self) -> bytes:
        """Everything held and not yet returned as a line; the reader is empty afterwards."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        self._discarding = None
        return rest

    @property
    def pending(self) -> bool:
        """Octets have come in that no returned line has used."""
        return bool(self._buffer) or self._discarding is not None

    def _discard(self) -> None:
        """Forget the over-long line so far; only a final CR can still matter."""
        buffer = self._buffer
        if self._discarding is None:
            self._discarding = LineFault(LineFaultKind.LINE_TOO_LONG, bytes(buffer[:_HEAD_OCTETS]))
        keep = 1 if buffer.endswith(b"\r") else 0
        del buffer[: len(buffer) - keep]


class ReplyReader:
    """Puts the replies of a server together.  Codes are three digits, 2yz to 5yz, the same on each line
    (SMTP-13, 14)."""

    __slots__ = ("_code", "_lines", "_octets", "_reader")

    def __init__(self) -> None:
        self._reader = LineReader(MAX_REPLY_LINE_READ)
        self._lines: list[bytes] = []
        self._code = 0
        self._octets = 0

    def feed(self, octets: bytes) -> None:
        """Octets came in."""
        self._reader.feed(octets)

    def next_reply(self) -> Reply | None:
        """The next reply, or None until its last line has come; octets behind it stay held.

        Raises RemoteProtocolError; the connection is then good for nothing but closing.
        """
        while (line := self._reader.next_line()) is not None:
            if isinstance(line, LineFault):
                raise RemoteProtocolError(_FAULTS[line.kind])
            self._octets += len(line) + 2
            if self._octets > MAX_REPLY_OCTETS:
                raise RemoteProtocolError("the reply has more than 100 KiB")
            code, mark = line[:3], line[3:4]
            if len(code) < 3 or not code.isdigit() or not b"2" <= code < b"6" or mark not in {b"", b" ", b"-"}:
                raise RemoteProtocolError(f"not a reply line: {printable(line, 80)}")
            if self._lines and int(code) != self._code:
                raise RemoteProtocolError(f"one reply with the codes {self._code} and {int(code)}")
            self._code = int(code)
            self._lines.append(line[4:])
            if mark != b"-":
                reply = Reply(self._code, tuple(self._lines))
                self._lines, self._octets = [], 0
                return reply
        return None

    def take_rest(self) -> bytes:
        """The octets behind the last whole line; the reader is empty afterwards."""
        self._lines, self._octets = [], 0
        return self._reader.take_rest()

    @property
    def pending(self) -> bool:
        """Octets have come in that no returned reply has used."""
        return self._reader.pending or bool(self._lines)


_FAULTS = {
    LineFaultKind.LINE_TOO_LONG: "a reply line has more than 4 KiB",
    LineFaultKind.BARE_NEWLINE: "a reply line has a bare CR or LF",
    LineFaultKind.NUL: "a reply line has a NUL",
}
