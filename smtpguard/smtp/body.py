"""Where does the message end, may it be passed on, and which octets go on?  (RFC 5321 §4.1.1.4, §4.5.2,
§2.3.8)

In: what the client sends after 354, in chunks of any size.  Out: spans in dot-stuffed form, for the next
hop, without the terminator.  Both sides of the proxy speak the stuffed form, so where every line end is
proven CRLF the octets are passed as they are; only `NORMALIZE` rebuilds a chunk, when it holds a bare CR or
LF.  The first fault stops the spans, but reading goes on to the true end, so that the dialogue stays in
step.

There is no loop over lines: each chunk is looked at by a few C-speed passes.  At most two octets are held
back.
"""

import io
import re
from enum import Enum

from smtpguard.reasons import ReasonCode

TERMINATOR = b".\r\n"
"""What the sender appends after content that ends in CRLF, and after content of zero octets."""

_END = b"\r\n" + TERMINATOR
_CR = 0x0D
_LF = 0x0A
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")
# A line's start is CRLF; the second form is the same field dot-stuffed, which no honest sender writes
# (fields never begin with a dot) but which the next hop would un-stuff into a Received field.
_RECEIVED = (b"\r\nreceived:", b"\r\n.received:")
_LOOKBACK = max(map(len, _RECEIVED)) - 1


class BareNewlines(Enum):
    """What becomes of a CR or LF that is not part of CRLF (RFC 5321 §2.3.8).  None of the values passes it
    on."""

    REJECT = "reject"
    NORMALIZE = "normalize"


class BodyReader:
    """Reads one message's content.  `feed` until `ended`; then `fault` says whether it may be accepted.

    `max_octets` is the limit of RFC 1870 on the un-stuffed content, None for none.  `max_line` counts a
    line with its CRLF, without a stuffed dot.  A message with `max_hops` Received fields or more loops (RFC
    5321 §6.3).

    Where several faults apply, `fault` is the first one noticed.
    """

    __slots__ = (
        "_bare_newlines",
        "_header_end",
        "_held",
        "_hops",
        "_last",
        "_line",
        "_line_ends",
        "_max_hops",
        "_max_line",
        "_max_octets",
        "_starts_line",
        "eight_bit",
        "ended",
        "fault",
        "normalized",
        "octets",
        "rest",
    )

    def __init__(
        self,
        *,
        bare_newlines: BareNewlines,
        max_octets: int | None,
        max_line: int = 65536,
        max_hops: int = 100,
    ) -> None:
        self.ended = False
        """The terminator was read."""
        self.rest = b""
        """The octets after the terminator: the next commands (RFC 2920)."""
        self.fault: ReasonCode | None = None
        """BARE_NEWLINE, TOO_BIG, LINE_TOO_LONG or TOO_MANY_HOPS: the message must not be accepted."""
        self.octets = 0
        """Content octets handed out so far, un-stuffed (RFC 1870 §5)."""
        self.eight_bit = False
        """Some octet had its high bit set (RFC 6152)."""
        self.normalized = 0
        """How many bare CR and LF became spaces."""
        self._bare_newlines = bare_newlines
        self._max_octets = max_octets
        self._max_line = max_line
        self._max_hops = max_hops
        self._held = b""  # a CR whose LF may follow, or a dot that may be the terminator: "", "\r", "." or ".\r"
        self._starts_line = True  # DATA's own CRLF stands before the first octet
        self._last = _LF  # the octet before the next one, held ones not counted
        self._line = 0  # octets of the unfinished line
        self._hops = 0
        self._header_end: bytes | None = b"\r\n"  # the last octets of the header so far; None: the header is over
        self._line_ends = io.IncrementalNewlineDecoder(None, translate=False)

    def feed(self, octets: bytes) -> list[bytes]:
        """The spans to send on, possibly none.  Raises ValueError after the end: those octets are
        commands."""
        if self.ended:
            raise ValueError("the message has ended; what follows are commands")
        data = self._held + octets if self._held else octets
        if not data:
            return []
        # Most chunks have none, which `rfind` says at half the cost: no end, and nothing stuffed to look for.
        dot = data.find(b"\r\n.") if data.rfind(b"\r\n.") >= 0 else -1
        end = self._find_end(data, dot)
        if end >= 0:
            content = data[:end]
            self._held, self.rest, self.ended = b"", data[end + len(TERMINATOR) :], True
        elif undecided := self._undecided(data):
            content, self._held = data[:-undecided], data[-undecided:]
        else:
            content, self._held = data, b""
        if not content:
            return []
        starts_line = self._starts_line
        self._starts_line = self._line_starts_at(content, len(content))
        self._last = content[-1]
        if self.fault is not None:
            return []
        inspected = self._inspect(content, starts_line, dot)
        if isinstance(inspected, ReasonCode):
            self.fault = inspected
            return []
        return [inspected]

    def _find_end(self, data: bytes, dot: int) -> int:
        """Where the terminator's dot stands, or -1; not before `dot`, the first CRLF and dot in `data`."""
        if self._starts_line and data.startswith(TERMINATOR):
            return 0
        at = data.find(_END, dot) if dot >= 0 else -1
        while at >= 0 and not self._line_starts_at(data, at + 2):
            at = data.find(_END, at + 1)
        return at + 2 if at >= 0 else -1

    def _line_starts_at(self, data: bytes, index: int) -> bool:
        """Whether a line begins at `index`, i.e. CRLF stands before it; a CR is never consumed apart from
        its LF."""
        if index == 0:
            return self._starts_line
        if index == 1 or data[index - 2 : index] != b"\r\n":
            return False
        if self._bare_newlines is BareNewlines.NORMALIZE:
            return True
        # CR CR LF: some read one line end, some two, some a line end and a stray CR.  A dot after it must
        # not end a message that is refused anyway, or the rest of it would be taken for commands.  Under
        # NORMALIZE the first CR is a space already, and what is left is exact.
        before = data[index - 3] if index > 2 else self._last
        return before != _CR

    def _undecided(self, data: bytes) -> int:
        """How many octets at the end only mean something together with the next one."""
        size = len(data)
        last = data[-1]
        if last == _CR:
            return 2 if data[-2:-1] == b"." and self._line_starts_at(data, size - 2) else 1
        return 1 if last == TERMINATOR[0] and self._line_starts_at(data, size - 1) else 0

    def _inspect(self, content: bytes, starts_line: bool, dot: int) -> bytes | ReasonCode:
        """`content` as it may be passed on, or the fault for which it may not."""
        text = content.decode("latin-1")
        # Exact, and the cheapest of what was measured (DESIGN §7).  `final`: a CR at the very end is bare,
        # since one that may still get its LF is held back.
        self._line_ends.decode(text, True)
        if self._line_ends.newlines not in (None, "\r\n"):
            if self._bare_newlines is BareNewlines.REJECT:
                return ReasonCode.BARE_NEWLINE
            self._line_ends.reset()
            content, replaced = _BARE.subn(b" ", content)
            self.normalized += replaced
        if not self.eight_bit and not text.isascii():
            self.eight_bit = True
        stuffed = content.count(b"\r\n.", dot) if dot >= 0 else 0
        if starts_line and content.startswith(b"."):
            stuffed += 1
        self.octets += len(content) - stuffed
        if self._max_octets is not None and self.octets > self._max_octets:
            return ReasonCode.TOO_BIG
        if self._has_long_line(content, starts_line):
            return ReasonCode.LINE_TOO_LONG
        if self._header_end is not None and self._loops(content, self._header_end):
            return ReasonCode.TOO_MANY_HOPS
        return content

    def _has_long_line(self, content: bytes, starts_line: bool) -> bool:
        """Whether a line passes `max_line`.  Jumps from the start of a line to the last line end within
        reach, so a chunk costs about two searches per `max_line` octets, however many lines it has."""
        start = -self._line
        while True:
            stuffed = (starts_line if start == 0 else start > 0) and content.startswith(b".", start)
            reach = start + self._max_line + stuffed
            line_end = content.rfind(b"\r\n", max(start, 0), reach)
            if line_end >= 0:
                start = line_end + 2
            elif reach < len(content):
                return True
            else:
                self._line = len(content) - start - stuffed
                return False

    def _loops(self, content: bytes, before: bytes) -> bool:
        """Counts Received fields of the header, and only there (RFC 5321 §6.3)."""
        window = before + content
        end = window.find(b"\r\n\r\n")
        self._header_end = window[-_LOOKBACK:] if end < 0 else None
        header = (window if end < 0 else window[: end + 2]).lower()
        for field in _RECEIVED:
            # Only matches that end in `content`: the others were counted with it.
            self._hops += header.count(field, max(len(before) - len(field) + 1, 0))
        return self._hops >= self._max_hops
