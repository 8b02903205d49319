"""Which settings does the environment change?  `SMTPGUARD_*`: the few in which a container differs from its neighbours.

A variable takes the place of one key of the file, is read by the same rules, and is named in the errors about it.  An
unknown `SMTPGUARD_` name is an error, as an unknown key is.  No secret is among them: keys and tokens are files.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from smtpguard.config.findings import ConfigError
from smtpguard.reasons import printable

ENVIRONMENT = "environment"
"""What errors name in place of the file."""

VARIABLES: Mapping[str, tuple[str, str]] = MappingProxyType({
    "SMTPGUARD_HOSTNAME": ("", "hostname"),
    "SMTPGUARD_STATE_DIR": ("", "state_dir"),
    "SMTPGUARD_DRAIN_SECONDS": ("", "drain_seconds"),
    "SMTPGUARD_RESOLVERS": ("dns", "resolvers"),
    "SMTPGUARD_OWN_ADDRESSES": ("outbound", "own_addresses"),
    "SMTPGUARD_ALLOW_DESTINATIONS": ("outbound", "allow_destinations"),
    "SMTPGUARD_ADMIN_BIND": ("admin", "bind"),
    "SMTPGUARD_METRICS_BIND": ("admin", "metrics_bind"),
    "SMTPGUARD_LOG_FORMAT": ("log", "format"),
    "SMTPGUARD_LOG_LEVEL": ("log", "level"),
})  # fmt: skip
"""Each variable: the table and the key whose place it takes."""

_LISTS = frozenset({"SMTPGUARD_RESOLVERS", "SMTPGUARD_OWN_ADDRESSES", "SMTPGUARD_ALLOW_DESTINATIONS"})
_NUMBERS = frozenset({"SMTPGUARD_DRAIN_SECONDS"})
_PREFIX = "SMTPGUARD_"
_CONFIG = "SMTPGUARD_CONFIG"  # read by the command line

_SERVICE_LINK = re.compile(
    r"SMTPGUARD_(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes gives every container of a namespace with a Service called `smtpguard...` (enableServiceLinks)."""


def overrides(environ: Mapping[str, str]) -> tuple[dict[str, str], list[ConfigError]]:
    """The variables that are set, and an error for each name that is none of ours.  An empty one counts as not set."""
    found: dict[str, str] = {}
    errors = []
    for name, value in sorted(environ.items()):
        if not name.startswith(_PREFIX) or name == _CONFIG or _SERVICE_LINK.fullmatch(name):
            continue
        if name in VARIABLES:
            if text := value.strip(" \t\r\n," if name in _LISTS else None):
                found[name] = text
            continue
        close = difflib.get_close_matches(name, VARIABLES, 1, cutoff=0.8)
        known = f"did you mean {close[0]}?" if close else f"they are {_CONFIG}, {', '.join(VARIABLES)}"
        errors.append(ConfigError(ENVIRONMENT, "", printable(name, 60), "", f"is not a variable of smtpguard; {known}"))
    return found, errors


def apply(found: Mapping[str, str], raw: dict[str, Any]) -> None:
    """Put the values where the file has, or could have, its own."""
    for name, text in found.items():
        table, key = VARIABLES[name]
        place = raw.setdefault(table, {}) if table else raw
        if isinstance(place, dict):  # else the file is wrong there, and is told so
            place[key] = _value(name, text)


def named(found: Mapping[str, str], errors: list[ConfigError]) -> list[ConfigError]:
    """The errors, with the variable in place of the key where the value came from it."""
    by_place = {(f"[{table}]" if table else "", key): name for name in found for table, key in [VARIABLES[name]]}
    return [
        replace(error, file=ENVIRONMENT, table="", key=by_place[error.table, error.key])
        if (error.table, error.key) in by_place
        else error
        for error in errors
    ]


def _value(name: str, text: str) -> object:
    if name in _LISTS:
        return [item for item in re.split(r"[\s,]+", text) if item]
    if name in _NUMBERS and len(text) < 10 and text.isascii() and text.isdigit():
        return int(text)
    return text
