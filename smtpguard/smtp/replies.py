"""What does a server say?  One reply: a code, its lines, and how it is read and written.

RFC 5321 §4.2 (form, first digit, 512 octets a line), RFC 2034 and RFC 3463 (enhanced status codes).  Text
keeps its octets, so that a relayed reply is the reply; only what could not stand in a reply line is replaced
on the way out.
"""

import re
from dataclasses import dataclass
from typing import Self

from smtpguard.reasons import Reason, printable

MAX_REPLY_LINE = 512
"""Octets of one reply line, code and CRLF included (RFC 5321 §4.5.3.1.5)."""

_MAX_TEXT = MAX_REPLY_LINE - len("250 ") - len("\r\n")

_STATUS = re.compile(rb"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")

# RFC 5321 §4.2: a textstring is HTAB and printable ASCII; RFC 6531 §3.7.4.2 adds UTF-8: passed unjudged.
_CONTROLS = bytes((*range(9), *range(10, 32), 127))
_SHOWN = bytes.maketrans(_CONTROLS, b"?" * len(_CONTROLS))


@dataclass(frozen=True, slots=True)
class Reply:
    """`code` is 200 to 599; `lines` is the text of each line, enhanced status included, never empty as a
    tuple."""

    code: int
    lines: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"{self.code} is not a reply code (RFC 5321 §4.2.1)")
        if not self.lines:
            raise ValueError("a reply has at least one line")

    @classmethod
    def of(cls, code: int, status: str, *texts: str) -> Self:
        """One of our own replies: `status` (RFC 3463; '' where none belongs) stands on each line (RFC 2034
        §4).

        The texts are made printable and cut, so that no line passes 512 octets.
        """
        prefix = f"{status} " if status else ""
        return cls(
            code,
            tuple((prefix + printable(text, _MAX_TEXT - len(prefix))).encode("ascii") for text in texts or ("",)),
        )

    @property
    def severity(self) -> int:
        """The first digit, by which a code not otherwise known is judged (RFC 5321 §4.3.2): 2 to 5."""
        return self.code // 100

    @property
    def is_positive(self) -> bool:
        """2yz: done."""
        return self.severity == 2

    @property
    def is_transient(self) -> bool:
        """4yz: try again later."""
        return self.severity == 4

    @property
    def is_permanent(self) -> bool:
        """5yz: do not try again."""
        return self.severity == 5

    @property
    def enhanced_status(self) -> str:
        """The RFC 3463 code that opens the text, such as '5.7.1'; '' where none does or its class contradicts
        the code."""
        for line in self.lines:
            found = _STATUS.match(line)
            if found and found[1][0] - ord("0") == self.severity:
                return found[1].decode("ascii")
        return ""

    @property
    def text(self) -> str:
        """The lines as one, without the code: printable ASCII, at most 500 characters."""
        return printable(b" ".join(self.lines), 500)

    def __str__(self) -> str:
        return f"{self.code} {self.text}".rstrip()

    def with_suffix(self, suffix: str) -> "Reply":
        """This reply with ` suffix` at the end of its last line, or unchanged where that would pass 512
        octets."""
        last = self.lines[-1].rstrip(b" ") + b" " + printable(suffix, MAX_REPLY_LINE).strip().encode("ascii")
        return self if len(last) > _MAX_TEXT else Reply(self.code, (*self.lines[:-1], last))

    def with_code(self, code: int) -> "Reply":
        """This text under another code, the class of a leading enhanced status following it (CH-20: 421 ->
        451)."""
        digit = str(code // 100).encode("ascii")
        return Reply(code, tuple(digit + line[1:] if _STATUS.match(line) else line for line in self.lines))

    def encode(self) -> bytes:
        """The octets to send.  Lines over 512 octets are folded, control octets become '?' (SMTP-13)."""
        folded = [part for line in self.lines for part in _fold(line.translate(_SHOWN))]
        code = b"%d" % self.code
        # RFC 5321 §4.2.1: a space even where no text follows.
        return b"".join(code + b"-" + line + b"\r\n" for line in folded[:-1]) + code + b" " + folded[-1] + b"\r\n"


def reply_of(reason: Reason, decision_id: str) -> Reply:
    """The reply that tells `reason` to the MTA:

    `451 4.7.5 [dane/no-match] mx1.example.org[192.0.2.1]:25: no TLSA record matches the certificate (id
    0k3f9q2a.7)`.

    The detail follows the sentence after '; ' and is what is cut where the line would pass 512 octets; the id
    stays.
    """
    code = reason.code
    subject = printable(reason.subject, 200)
    head = f"[{code.token}] {subject}: {code.text}" if subject else f"[{code.token}] {code.text}"
    tail = f" (id {printable(decision_id, 40)})" if decision_id else ""
    room = _MAX_TEXT - len(code.status) - 1 - len(head) - len(tail) - len("; ")
    detail = f"; {printable(reason.detail, room)}" if reason.detail and room > len("...") else ""
    return Reply.of(code.reply_code, code.status, head + detail + tail)


def _fold(line: bytes) -> list[bytes]:
    """`line` in pieces that fit, each with the enhanced status of the whole (RFC 2034 §4)."""
    if len(line) <= _MAX_TEXT:
        return [line]
    found = _STATUS.match(line)
    prefix = found[1] + b" " if found else b""
    body = line[len(prefix) :]
    room = _MAX_TEXT - len(prefix)
    return [prefix + body[start : start + room] for start in range(0, len(body), room)]
