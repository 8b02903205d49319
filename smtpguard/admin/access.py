"""Who may ask the admin address what?  (RFC 6750 §2.1, RFC 6454 §7, RFC 6455 §10.2)

Metrics and health are for everybody who reaches the address.  For the rest a client is *local* if its connection came
over loopback or a Unix socket and its Host is an address or `localhost`; any other needs the bearer token.  A Host that
is a name would be how a web page reaches us over loopback by DNS rebinding, or a reverse proxy that serves other hosts.
Pure.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from smtpguard.admin.answer import Answer, problem
from smtpguard.admin.page import PAGES

Fields = Mapping[bytes, str]
"""Header fields of a request, the names in lower case."""

PUBLIC: Final = frozenset({"/metrics", "/healthz/live", "/healthz/ready"})
SUBPROTOCOL: Final = "smtpguard.events"
_TOKEN_PROTOCOL: Final = "smtpguard.bearer."  # noqa: S105 - a word before the token


def refusal(path: str, fields: Fields, token: str, *, is_near: bool) -> Answer | None:
    """Why this client may not have `path`; None: it may.  `token` is empty where none is configured; `is_near`: the
    connection came over loopback or a Unix socket."""
    if path in PUBLIC:
        return None
    if is_near and _is_local_name(fields.get(b"host", "")):
        return None
    if not token:
        if is_near:
            return problem(403, "Host names no address of this host: ask for 127.0.0.1, [::1] or localhost")
        return problem(403, "other hosts need a bearer token, and none is configured: [admin] token_file")
    # The page itself says nothing: it asks its reader for the token, and then us.
    if path in PAGES or _has_token(fields, token):
        return None
    return problem(401, "a bearer token is needed: that of [admin] token_file", (b"www-authenticate", b"Bearer"))


def is_foreign_page(fields: Fields) -> bool:
    """Does a browser ask for a page of somebody else?  (RFC 6454 §7: browsers name it, programs do not.)"""
    origin = fields.get(b"origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != fields.get(b"host", "").lower() or "://" not in origin
    except ValueError:
        return True


def _has_token(fields: Fields, token: str) -> bool:
    scheme, _, shown = fields.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and _same(shown.strip(), token):
        return True
    # A browser can give a WebSocket no header field but this one.
    for protocol in fields.get(b"sec-websocket-protocol", "").split(","):
        name = protocol.strip()
        if name.startswith(_TOKEN_PROTOCOL) and _same(_decoded(name.removeprefix(_TOKEN_PROTOCOL)), token):
            return True
    return False


def _decoded(text: str) -> str:
    """Of base64url without padding (RFC 4648 §5); a subprotocol may hold neither `/` nor `=`."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("latin-1")
    except (binascii.Error, ValueError):
        return ""


def _same(shown: str, token: str) -> bool:
    """In a time that says nothing of where they differ."""
    return hmac.compare_digest(shown.encode("latin-1", "replace"), token.encode("latin-1"))


def _is_local_name(host: str) -> bool:
    """`127.0.0.1:9825`, `[::1]`, `localhost`; no Host at all is no browser."""
    if not host:
        return True
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    else:
        name = name.partition(":")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
