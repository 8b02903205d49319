"""The live page: static files of the package, read once and served from memory.

The page may load and ask nothing but this address, runs no script of its text, and cannot make HTML of a string
(`require-trusted-types-for`), so that nothing a peer says can become more than text in it.
"""

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from smtpguard.admin.answer import Answer

_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_FIELDS: Final = (
    (b"content-security-policy", _POLICY),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
_FILES: Final = MappingProxyType(
    {
        "/": ("index.html", "text/html; charset=utf-8"),
        "/live.css": ("live.css", "text/css; charset=utf-8"),
        "/live.js": ("live.js", "text/javascript; charset=utf-8"),
        "/icon.svg": ("icon.svg", "image/svg+xml"),
    }
)
PAGES: Final = frozenset(_FILES)


def load_page() -> Mapping[str, Answer]:
    """The answers by path.  Raises OSError where the package is not whole."""
    folder = files("smtpguard.admin") / "static"
    return {
        path: Answer(200, content_type, (folder / name).read_bytes(), _FIELDS)
        for path, (name, content_type) in _FILES.items()
    }
