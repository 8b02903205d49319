"""What does one HTTP response hold?"""

from dataclasses import dataclass

import msgspec

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP response; `fields` are header fields beside those that every response has."""

    status: int
    content_type: str
    body: bytes
    fields: tuple[tuple[bytes, bytes], ...] = ()


def problem(status: int, text: str, *fields: tuple[bytes, bytes]) -> Answer:
    """`{"error": text}`."""
    return Answer(status, JSON, msgspec.json.encode({"error": text}), fields)
