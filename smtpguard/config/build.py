"""What do the values of the file mean?  From the tables to each package's frozen settings, or all errors at once.

Each part of the file has its module: listeners (what all have in common), inbound, outbound, rules, resolver.  Here
they are put together, and what no part can see alone is looked at.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from smtpguard.config import environment, listeners
from smtpguard.config.findings import ConfigError, Findings, quoted, why
from smtpguard.config.inbound import foreign_keys, inbound_listener, inbound_rules
from smtpguard.config.listeners import Bound, listener_place
from smtpguard.config.outbound import outbound, outbound_listener
from smtpguard.config.resolver import canary_settings, resolver_settings
from smtpguard.config.rules import rule_set
from smtpguard.config.schema import AdminTable, File, MtaStsTable, read
from smtpguard.config.token import read_token
from smtpguard.dns.canary import CanarySettings
from smtpguard.dns.resolver import ResolverSettings
from smtpguard.events import RuleWarning
from smtpguard.inbound.settings import InboundListener
from smtpguard.mtasts.cache import StsSettings, TxtTempfail
from smtpguard.names import Domain
from smtpguard.net.listen import Bind, parse_bind
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.policy.rules import RuleSet
from smtpguard.telemetry.log import LogSettings

DEFAULT_STATE_DIR = Path("/var/lib/smtpguard")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the file decides."""

    path: Path
    hostname: Domain
    state_dir: Path
    drain_seconds: int
    listeners: tuple[OutboundListener, ...]
    inbound: tuple[InboundListener, ...]
    outbound: Outbound
    resolver: ResolverSettings
    canary: CanarySettings
    sts: StsSettings | None
    sts_port: int
    ca_file: Path | None
    anchors: tuple[str, ...]
    """CA files that rules name; each was readable when the file was read."""
    admin: Bind | None
    admin_address: Bind | None
    """Where the commands find the running process: `admin`, or what the file says where systemd binds it."""
    metrics: Bind | None
    """Where metrics and health alone are served, to whoever reaches it."""
    admin_token: str = field(repr=False)
    """What clients beyond this host must show; empty: there may be none."""
    log: LogSettings

    def rule_warnings(self, today: date) -> tuple[RuleWarning, ...]:
        """What an operator should know about rules that are allowed and may not do what they seem to."""
        inbound = self.inbound[0].rules.warnings(today) if self.inbound else ()  # all listeners have the same rules
        return (*self.outbound.rules.warnings(today), *inbound)


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Settings | list[ConfigError]:
    """The settings of the file at `path` with what `environ` changes, or everything that is wrong with them."""
    variables, unknown = environment.overrides(environ)
    file, errors = read(path, variables)
    if file is None:
        return [*unknown, *errors]
    found = Findings(path, errors)
    settings = _settings(found, path, file, environ)
    return [*unknown, *environment.named(variables, found.errors)] or settings


def _settings(found: Findings, path: Path, file: File, environ: Mapping[str, str]) -> Settings:
    """With errors in `found` the result holds stand-ins and is thrown away."""
    hostname = found.name("", "hostname", file.hostname)
    outbound_listeners, inbound_listeners = _listeners(found, file, hostname)
    both: list[tuple[str, OutboundListener | InboundListener]] = [*outbound_listeners, *inbound_listeners]
    token = _token(found, file.admin)
    admin, admin_address, metrics = _admin(found, file.admin)
    bound = [Bound(bind, place) for place, one in both for bind in one.binds]
    if admin is not None:
        bound.append(Bound(admin, "[admin]"))
    if metrics is not None:
        bound.append(Bound(metrics, "[admin] metrics_bind"))
    listeners.binds_clash(found, bound)
    listeners.names_clash(found, [(place, one.name) for place, one in both])
    ca_file = Path(file.tls.ca_file) if file.tls.ca_file else None
    if ca_file is not None:
        found.roots("[tls]", "ca_file", ca_file)
    rules = rule_set(found, file)
    return Settings(
        path=path,
        hostname=hostname,
        state_dir=Path(file.state_dir or environ.get("STATE_DIRECTORY", "").partition(":")[0] or DEFAULT_STATE_DIR),
        drain_seconds=file.drain_seconds,
        listeners=tuple(one for _, one in outbound_listeners),
        inbound=tuple(one for _, one in inbound_listeners),
        outbound=outbound(
            found,
            file,
            hostname,
            rules,
            [one.ehlo for _, one in outbound_listeners],
            [one.bind for one in bound],
        ),
        resolver=resolver_settings(found, file),
        canary=canary_settings(found, file.dns.canary),
        sts=_sts(file.mtasts),
        sts_port=file.mtasts.port,
        ca_file=ca_file,
        anchors=tuple({path: None for path in _anchors(rules, inbound_listeners) if path is not None}),
        admin=admin,
        admin_address=admin_address,
        metrics=metrics,
        admin_token=token,
        log=LogSettings(format=file.log.format, level=file.log.level),
    )


def _listeners(
    found: Findings, file: File, hostname: Domain
) -> tuple[list[tuple[str, OutboundListener]], list[tuple[str, InboundListener]]]:
    """Outbound and inbound ones, each with the place where it is written."""
    outbound_ones: list[tuple[str, OutboundListener]] = []
    inbound_ones: list[tuple[str, InboundListener]] = []
    rules = inbound_rules(found, file)
    for number, table in enumerate(file.listener, 1):
        place = listener_place(number, table)
        foreign_keys(found, place, table)
        match table.role:
            case "outbound":
                outbound_ones.append((place, outbound_listener(found, place, table, hostname, file.outbound.port)))
            case "inbound":
                inbound_ones.append((place, inbound_listener(found, place, table, rules)))
    if not file.listener:
        found.wrong("", "listener", "", "is missing: write at least one [[listener]]")
    return outbound_ones, inbound_ones


def _anchors(rules: RuleSet, inbound_ones: list[tuple[str, InboundListener]]) -> Iterator[str | None]:
    """The CA files that rules of either direction name."""
    yield from (rule.ca_file for rule in rules.rules)
    yield from (rule.demand.ca_file for _, one in inbound_ones for rule in one.rules.rules)


def _admin(found: Findings, table: AdminTable) -> tuple[Bind | None, Bind | None, Bind | None]:
    """Where the admin address is bound, where the commands find it, and where metrics and health alone are served."""
    metrics = found.parsed("[admin]", "metrics_bind", table.metrics_bind, parse_bind) if table.metrics_bind else None
    if not table.enabled:
        return None, None, metrics
    bind = found.parsed("[admin]", "bind", table.bind, parse_bind)
    if bind is not None and not (bind.is_local or bind.fd_name or table.token_file):  # a passed socket: see app.py
        found.wrong(
            "[admin]", "bind", quoted(table.bind),
            "must be a loopback address or a unix socket, or token_file must name the file of a bearer token; metrics "
            "and health alone can be served beyond this host by metrics_bind",
        )  # fmt: skip
    if not table.address:
        return bind, None if bind is None or bind.fd_name else bind, metrics
    address = found.parsed("[admin]", "address", table.address, parse_bind)
    if address is not None and (address.fd_name or not (address.is_unix or address.port)):
        found.wrong("[admin]", "address", quoted(table.address), "must be where a client connects: address and port")
    return bind, address, metrics


def _token(found: Findings, table: AdminTable) -> str:
    """The bearer token; a file of its own keeps it out of what people show each other."""
    if not table.token_file:
        return ""
    try:
        return read_token(Path(table.token_file))
    except (OSError, ValueError) as error:
        found.wrong("[admin]", "token_file", quoted(table.token_file), why(error))
    return ""


def _sts(table: MtaStsTable) -> StsSettings | None:
    if not table.enabled:
        return None
    return StsSettings(txt_tempfail=TxtTempfail(table.sts_txt_tempfail), max_policies=table.max_policies)
