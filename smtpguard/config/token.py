"""Which secret stands in this file?  (RFC 6750 §2.1)"""

import re
from pathlib import Path
from typing import Final

_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_MIN: Final = 20
_MAX: Final = 512


def read_token(path: Path) -> str:
    """The bearer token in a file, without white space around it.

    Raises OSError, and ValueError with what would be right; the message never holds what the file holds.
    """
    with path.open("rb") as file:
        octets = file.read(_MAX + 100)
    text = octets.decode("latin-1").strip()
    if not _MIN <= len(text) <= _MAX or _B64TOKEN.fullmatch(text) is None:
        raise ValueError(
            f"must hold one token of {_MIN} to {_MAX} letters, digits and -._~+/, as `openssl rand -hex 32` makes it"
        )
    return text
