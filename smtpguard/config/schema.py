"""What does the configuration file say?  One struct for each table, read key by key so that all errors come at once.

TOML by tomllib, types by msgspec; unknown keys are refused.  What the values mean together is build.py.
"""

import difflib
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from smtpguard.reasons import printable

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One thing that is wrong: where, what stands there, and what would be right."""

    file: str
    table: str
    key: str
    value: str
    expected: str

    def __str__(self) -> str:
        place = " ".join(part for part in (f"[{self.table}]" if self.table else "", self.key) if part)
        if self.value:
            place += f" = {self.value}"
        return f"{self.file}: {place}: {self.expected}" if place else f"{self.file}: {self.expected}"


class Log(msgspec.Struct, forbid_unknown_fields=True):
    """[log]"""

    format: Literal["logfmt", "json"] = "logfmt"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Listener(msgspec.Struct):
    """[[listener]]"""

    role: Literal["inbound", "outbound"]
    bind: list[str]
    protocol: Literal["smtp", "lmtp"] = "smtp"
    name: str = ""
    group: str = ""
    clients: list[str] = []
    cleartext_from: list[str] = []
    ehlo: str = ""
    family: Literal["both", "ipv4", "ipv6"] = "both"
    source_ipv4: str = ""
    source_ipv6: str = ""
    certificate: str = ""
    key: str = ""
    max_sessions: Positive = 1000


class OutboundTable(msgspec.Struct):
    """[outbound]"""

    port: Port = 25
    level: str = "auto"
    auto_floor: Literal["may", "encrypt"] = "may"
    allow_destinations: list[str] = []
    own_addresses: list[str] = []
    own_names: list[str] = []
    annotate: bool = True
    eightbit_to_7bit_mx: Literal["send", "refuse"] = "send"
    dsn: Literal["pass", "hide"] = "pass"
    bare_newlines: Literal["normalize", "reject"] = "normalize"
    literals: Literal["deliver", "refuse"] = "deliver"
    max_message_size: Natural = 0
    max_recipients: Positive = 1000
    destination_connections: Positive = 20
    destination_walks: Positive = 5


class CanaryTable(msgspec.Struct):
    """[dns.canary]"""

    signed: str = "nic.cz"
    unsigned: str = "google.com"
    broken: str = "dnssec-failed.org"
    interval_seconds: Positive = 300


class DnsTable(msgspec.Struct):
    """[dns]"""

    resolvers: list[str] = []
    trust_ad: bool = False
    dnssec: Literal["auto", "off"] = "auto"
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=30)] = 5.0
    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 2
    cache_entries: Positive = 20000
    canary: CanaryTable = msgspec.field(default_factory=CanaryTable)


class MtaStsTable(msgspec.Struct):
    """[mtasts]"""

    enabled: bool = True
    port: Port = 443
    sts_txt_tempfail: Literal["defer", "grace", "ignore"] = "grace"
    max_policies: Positive = 10000


class TlsTable(msgspec.Struct):
    """[tls]"""

    ca_file: str = ""
    dane_digests: list[Annotated[int, msgspec.Meta(ge=1, le=2)]] = msgspec.field(default_factory=lambda: [2, 1])


class RouteTable(msgspec.Struct):
    """[[route]]"""

    domain: str
    next_hop: str


class PolicyTable(msgspec.Struct):
    """[[policy]]"""

    domain: str
    level: str
    match: list[str] = []
    min_tls: str = ""
    override: bool = False
    reason: str = ""
    expires: date | None = None
    after_expiry: Literal["keep", "drop"] = "keep"
    mode: Literal["enforce", "shadow"] = "enforce"
    on_failure: Literal["tempfail", "permfail"] = "tempfail"
    ca_file: str = ""
    fingerprints: list[str] = []
    servername: str = ""


class AdminTable(msgspec.Struct):
    """[admin]"""

    bind: str = "127.0.0.1:9825"
    enabled: bool = True


class File(msgspec.Struct):
    """The whole file."""

    hostname: str
    state_dir: str = ""
    drain_seconds: Positive = 30
    listener: list[Listener] = []
    outbound: OutboundTable = msgspec.field(default_factory=OutboundTable)
    dns: DnsTable = msgspec.field(default_factory=DnsTable)
    mtasts: MtaStsTable = msgspec.field(default_factory=MtaStsTable)
    tls: TlsTable = msgspec.field(default_factory=TlsTable)
    route: list[RouteTable] = []
    policy: list[PolicyTable] = []
    admin: AdminTable = msgspec.field(default_factory=AdminTable)
    log: Log = msgspec.field(default_factory=Log)


def read(path: Path) -> tuple[File | None, list[ConfigError]]:
    """The file as written, and everything that is wrong with its form; None where nothing could be read.

    With errors the file holds defaults in place of what was wrong: good only for finding further errors.
    """
    name = str(path)
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        return None, [ConfigError(name, "", "", "", f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return None, [ConfigError(name, "", "", "", f"must be UTF-8: octet {error.start} is not")]
    except tomllib.TOMLDecodeError as error:
        return None, [ConfigError(name, "", "", "", f"is not TOML: {error}")]
    errors: list[ConfigError] = []
    return _table(File, raw, name, "", errors), errors


def _table(kind: type[Any], raw: dict[str, Any], file: str, table: str, errors: list[ConfigError]) -> Any:
    """One table as its struct; what is wrong goes to `errors`, and a stand-in to the result."""
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in raw.items():
        field = fields.get(key)
        if field is None:
            close = difflib.get_close_matches(key, fields, 1)
            known = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(fields)}"
            errors.append(ConfigError(file, table, key, "", f"is not a key of this table; {known}"))
            continue
        place = f"{table}.{key}" if table else key
        inner = _struct_of(field.type)
        if inner is None:
            try:
                values[key] = msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                errors.append(ConfigError(file, table, key, _shown(value), _plain(str(error), field.type)))
        elif get_origin(field.type) is list:
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                errors.append(ConfigError(file, place, "", "", f"is a list of tables: write [[{place}]]"))
                continue
            values[key] = [
                _table(inner, item, file, f"{place} {number}", errors) for number, item in enumerate(value, 1)
            ]
        elif not isinstance(value, dict):
            errors.append(ConfigError(file, table, key, _shown(value), f"is a table: write [{place}]"))
        else:
            values[key] = _table(inner, value, file, place, errors)
    missing = [name for name, field in fields.items() if field.required and name not in raw]
    errors.extend(ConfigError(file, table, name, "", "is missing and has no default") for name in missing)
    for name in fields:
        if fields[name].required and name not in values:
            values[name] = [] if get_origin(fields[name].type) is list else ""
    return kind(**values)


def _struct_of(kind: Any) -> type[Any] | None:
    """The struct behind a field type: itself, or that of a list."""
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _plain(message: str, kind: Any) -> str:
    """msgspec's message in an operator's words."""
    if get_origin(kind) is Literal:
        return "must be one of " + ", ".join(f'"{word}"' for word in get_args(kind))
    words = message.partition(" - at ")[0]
    return words[:1].lower() + words[1:].replace("`", "").replace("str", "a text").replace("bool", "true or false")


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode() if not isinstance(value, date) else value.isoformat()
    return printable(text, 80)
