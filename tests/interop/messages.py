"""Mail with every trap of transparency, and how to find it again."""

import re


def message(marker: str, lines: int = 20) -> bytes:
    """A message with dots, long lines, 8-bit text and blank lines at the end."""
    body = [f"Subject: {marker}", "From: user@sender.test", "To: somebody@test", "Message-ID: <1@sender.test>"]
    body += ["Date: Tue, 24 Nov 2026 00:00:00 +0000", "", ".", "..two", "caf\u00e9", "x" * 990, ""]
    body += [f"line {number} {marker}" for number in range(lines)] + ["", "."]
    return "\r\n".join(body).encode("utf-8") + b"\r\n"


def below_trace(octets: bytes) -> bytes:
    """The message without the lines that MTAs prepend."""
    return octets[octets.index(b"Subject:") :]


def transaction_ids(messages: list[bytes]) -> set[bytes]:
    """The ids of the transactions in which smtpguard took these messages: its own trace line holds it."""
    found = set()
    for octets in messages:
        head = re.sub(rb"\r?\n[ \t]+", b" ", octets[: octets.index(b"Subject:")])
        (id_,) = re.findall(rb"by out\.sender\.test with (?:UTF8)?E?[LS]MTPA? id ([0-9a-z]+\.[0-9a-z.]+)", head)
        found.add(id_)
    return found
