"""What does the configuration file say?  One struct for each table, read key by key so that all errors come at once.

TOML by tomllib, types by msgspec; unknown keys are refused.  What the values mean together is build.py.
"""

import difflib
import tomllib
from collections.abc import Mapping
from datetime import date, datetime, time
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from smtpguard.config import environment
from smtpguard.config.findings import ConfigError, item_place
from smtpguard.reasons import printable

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class Log(msgspec.Struct):
    """[log]"""

    format: Literal["logfmt", "json"] = "logfmt"
    level: Literal["debug", "info", "warning", "error"] = "info"


class CertificateTable(msgspec.Struct):
    """[[listener.certificates]]"""

    certificate: str
    key: str


class LimitsTable(msgspec.Struct):
    """[listener.limits]"""

    sessions: Positive = 10_000
    sessions_per_client: Positive = 50
    connections_per_minute: Positive = 300
    handshake_failures_per_minute: Positive = 30
    handshakes: Positive = 1000
    errors: Positive = 20
    idle_commands: Positive = 100
    octets_per_second: Positive = 100
    hello_seconds: Positive = 60
    command_seconds: Positive = 300


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
    intercept: bool = False
    intercept_by: Literal["redirect", "tproxy"] = "redirect"
    intercept_direct: list[str] = []
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    certificates: list[CertificateTable] = []
    min_tls: Literal["1.2", "1.3"] = "1.2"
    upstream: str = ""
    upstream_open: Literal["late", "connect"] = "late"
    upstream_tls: Literal["none", "encrypt", "verify"] = "none"
    upstream_name: str = ""
    upstream_ca_file: str = ""
    pass_client: Literal["", "xclient", "proxy-v2", "none"] = ""
    upstream_has_no_trusted_networks: bool = False
    client_names: bool = True
    submission: bool = False
    require_tls: bool = False
    proxy_from: list[str] = []
    normalize_from: list[str] = []
    unlimited_from: list[str] = []
    received: bool = True
    max_message_size: Natural = 0
    max_recipients: Annotated[int, msgspec.Meta(ge=100)] = 1000
    limits: LimitsTable = msgspec.field(default_factory=LimitsTable)


class InboundTable(msgspec.Struct):
    """[inbound]"""

    rua: list[str] = []


class InboundPolicyTable(msgspec.Struct):
    """[[inbound_policy]]"""

    require: Literal["tls", "client-cert"]
    recipient_domain: str = ""
    sender_domain: str = ""
    client: str = ""
    min_tls: str = ""
    ca_file: str = ""
    names: list[str] = []
    fingerprints: list[str] = []
    reason: str = ""
    expires: date | None = None
    after_expiry: Literal["keep", "drop"] = "keep"
    mode: Literal["enforce", "shadow"] = "enforce"
    on_fail: Literal["permfail", "tempfail"] = "permfail"


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
    address: str = ""
    metrics_bind: str = ""
    token_file: str = ""
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
    inbound: InboundTable = msgspec.field(default_factory=InboundTable)
    inbound_policy: list[InboundPolicyTable] = []
    route: list[RouteTable] = []
    policy: list[PolicyTable] = []
    admin: AdminTable = msgspec.field(default_factory=AdminTable)
    log: Log = msgspec.field(default_factory=Log)


_EXAMPLES: MappingProxyType[str, str] = MappingProxyType(
    {
        "hostname": '"mx1.example.org", or set SMTPGUARD_HOSTNAME',
        "role": '"outbound"',
        "bind": '["127.0.0.1:10027"]',
        "domain": '"example.org"',
        "next_hop": '"[mx.example.org]:25"',
        "level": '"secure"',
        "certificate": '"/etc/smtpguard/tls/fullchain.pem"',
        "key": '"/etc/smtpguard/tls/privkey.pem"',
        "require": '"tls"',
    }
)
"""What a key that has no default could be."""
_ELSEWHERE = "; --config FILE or SMTPGUARD_CONFIG names another"
_NOTHING: Mapping[str, str] = MappingProxyType({})


def read(path: Path, found: Mapping[str, str] = _NOTHING) -> tuple[File | None, list[ConfigError]]:
    """The file as written, and everything that is wrong with its form; None where nothing could be read.

    `found` are variables of the environment that take the place of keys.  With errors the file holds defaults in place
    of what was wrong: good only for finding further errors.
    """
    name = str(path)
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        return None, [ConfigError(name, "", "", "", f"cannot be read: {error.strerror}{_ELSEWHERE}")]
    except UnicodeDecodeError as error:
        return None, [ConfigError(name, "", "", "", f"must be UTF-8: octet {error.start} is not")]
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or thousands of brackets
        return None, [ConfigError(name, "", "", "", f"is not TOML: {printable(str(error))}")]
    environment.apply(found, raw)
    errors: list[ConfigError] = []
    return _table(File, raw, name, "", "", errors), errors


def _table(kind: type[Any], raw: dict[str, Any], file: str, table: str, place: str, errors: list[ConfigError]) -> Any:
    """One table as its struct; what is wrong goes to `errors`, and a stand-in to the result.

    `table` is its dotted name, `place` what errors call it.
    """
    of_listener = f"{place} " if place.startswith("[[") else ""  # which of them has the inner table
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}

    def wrong(key: str, value: str, expected: str) -> None:
        errors.append(ConfigError(file, place, key, value, expected))

    for key, value in raw.items():
        field = fields.get(key)
        if field is None:
            close = difflib.get_close_matches(key, fields, 1)
            known = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(fields)}"
            wrong(printable(key, 60), "", f"is not a key of this table; {known}")
            continue
        inner_table = f"{table}.{key}" if table else key
        inner = _struct_of(field.type)
        if inner is None:
            try:
                values[key] = msgspec.convert(value, field.type)
            except msgspec.ValidationError:  # its words are a programmer's
                wrong(key, _shown(value), f"must be {expected(field.type)}")
        elif get_origin(field.type) is list:
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                wrong(key, _shown(value), f"is a list of tables: write [[{inner_table}]]")
                continue
            values[key] = [
                _table(inner, item, file, inner_table, of_listener + place_of(inner_table, number, item), errors)
                for number, item in enumerate(value, 1)
            ]
        elif not isinstance(value, dict):
            wrong(key, _shown(value), f"is a table: write [{inner_table}]")
        else:
            values[key] = _table(inner, value, file, inner_table, of_listener + f"[{inner_table}]", errors)
    for name, field in fields.items():
        if not field.required:
            continue
        if name not in raw:
            wrong(name, "", f"is missing and has no default; write for example {name} = {_EXAMPLES.get(name, '...')}")
        if name not in values:
            values[name] = [] if get_origin(field.type) is list else ""
    return kind(**values)


def place_of(table: str, number: int, item: dict[str, Any]) -> str:
    """What errors call the `number`th table of a list: by its name, its domain or its first address."""
    bind = item.get("bind")
    first = bind[0] if isinstance(bind, list) and bind else ""
    return item_place(table, number, item.get("name") or item.get("domain") or first)


def _struct_of(kind: Any) -> type[Any] | None:
    """The struct behind a field type: itself, or that of a list."""
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def expected(kind: Any, *, several: bool = False) -> str:
    """What a value of this type looks like, in an operator's words; `several`: in a list."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = next(one for one in arguments[1:] if isinstance(one, msgspec.Meta))
        return expected(arguments[0], several=several) + _bounds(bounds)
    if origin is Literal:
        words = ", ".join(f'"{word}"' for word in arguments)
        return f"words out of {words}" if several else f"one of {words}"
    if origin is list:
        inner = expected(arguments[0], several=True)
        example = '["a", "b"]' if arguments[0] is str else "[1, 2]"
        return f"a list of {inner}, as in {example}"
    if origin in (Union, UnionType):
        return expected(next(one for one in arguments if one is not NoneType), several=several)
    match kind:
        case _ if kind is bool:
            return "true or false, without quotes"
        case _ if kind is int:
            return "whole numbers" if several else "a whole number without quotes"
        case _ if kind is float:
            return "numbers" if several else "a number without quotes"
        case _ if kind is date:
            return "a day without quotes, as in 2027-12-31"
        case _:
            return "texts in quotes" if several else "a text in quotes"


def _bounds(meta: msgspec.Meta) -> str:
    match meta.ge, meta.gt, meta.le:
        case None, None, None:
            return ""
        case None, low, None:
            return f" above {low:g}"
        case None, low, high:
            return f" above {low:g}, at most {high:g}"
        case low, _, None:
            return f", at least {low:g}"
        case low, _, high:
            return f" from {low:g} to {high:g}"


def _shown(value: object) -> str:
    """A value as it stands in the file, bounded."""
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case float():
            return repr(value)
    return printable(msgspec.json.encode(value, enc_hook=str), 80)
