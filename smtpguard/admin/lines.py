"""How does an event of `/events` look in a terminal?  One line: when, which way, what became of it, whose, and why.

Pure; every line is printable ASCII and bounded, whatever the process sent.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from smtpguard.admin.explain import authentication_of, where_of
from smtpguard.reasons import printable

_MAX_VALUE: Final = 300
_MAX_LINE: Final = 1000
_WAYS = MappingProxyType({"inbound": "in", "outbound": "out"})
_WORDS = MappingProxyType({"host_skipped": "skipped", "host_opened": "opened", "policy_observed": "observed"})
_SHOWN: Final = frozenset({"ts", "level", "event", "direction", "outcome"})

Record = Mapping[str, Any]


def line_of(record: Record) -> str:
    """The event as one line, without a line end."""
    event = _text(record, "event")
    what = _text(record, "outcome") or _WORDS.get(event, event)
    way = _WAYS.get(_text(record, "direction"), "")
    reply, reason = _text(record, "reply"), _reason(record)
    match event:
        case "delivered":
            told = f"{where_of(record)} {_tls(record)}, {authentication_of(record)}: {reply}"
        case "delivery_refused":
            host = where_of(record)
            told = reply + reason if host in reply or not record.get("mx") else f"{host}: {reply}{reason}"
        case "message_relayed":
            told = f"{_text(record, 'client')} {_tls(record)}: {reply}{reason}"
        case "host_skipped" | "host_opened":
            tls = f" {_tls(record)}" if record.get("tls_version") or event == "host_opened" else ""
            told = f"{where_of(record)}{tls}{reason} {_text(record, 'detail')}"
        case "policy_observed":
            told = f"{_text(record, 'kind')} would {_text(record, 'would')} at {where_of(record)}{reason}"
        case _:
            return _joined(_time(record), f"{way:3}", f"{what:9}", _rest(record))
    domain = _text(record, "domain") or _text(record, "sender_domain") or "-"
    id_ = _text(record, "id")
    named = f"(id {id_})" if id_ and id_ not in reply else ""
    return _joined(_time(record), f"{way:3}", f"{what:9}", f"{domain:24}", told.rstrip(), named)


def _joined(*parts: str) -> str:
    return printable(" ".join(filter(None, parts)).rstrip(), _MAX_LINE)


def _tls(record: Record) -> str:
    version = _text(record, "tls_version")
    return f"TLS {version}" if version else "in clear"


def _reason(record: Record) -> str:
    """The token, unless the reply names it."""
    reason = _text(record, "reason")
    return f" [{reason}]" if reason and f"[{reason}]" not in _text(record, "reply") else ""


def _time(record: Record) -> str:
    """`05:01:31Z`."""
    time = _text(record, "ts")[11:19]
    return f"{time}Z" if time else "-"


def _rest(record: Record) -> str:
    """The facts of an event that has no words of its own here."""
    return " ".join(f"{printable(str(key), 40)}={_quoted(value)}" for key, value in record.items() if key not in _SHOWN)


def _quoted(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = printable(text, _MAX_VALUE)
    return f'"{text}"' if " " in text or not text else text


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    return "" if value is None else printable(str(value), _MAX_VALUE)


def words_of(record: Record) -> Iterable[str]:
    """What a terminal may colour the line by: the outcome, else the severity."""
    return filter(None, (_text(record, "outcome"), _text(record, "level")))
