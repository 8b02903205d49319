"""What may an operator type?  `smtpguard run | check-config | health | probe | explain | watch | sts | demo`.

Exit codes: 0 well, 1 it failed or a domain would be refused, 2 the configuration or the command line is wrong.
"""

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn
from urllib.parse import quote

import click
import msgspec
import trio

from smtpguard import __version__
from smtpguard.admin.client import AdminUnreachable, ask
from smtpguard.admin.explain import explained
from smtpguard.admin.lines import line_of, words_of
from smtpguard.admin.live import LEVELS, MAX_RECENT, FilterInvalid, parse_filter
from smtpguard.admin.watch import Watched, follow
from smtpguard.app import StartFailed
from smtpguard.app import run as run_app
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.config.build import Settings, load
from smtpguard.config.startup import host_name_problem, state_directory_problem
from smtpguard.dns.canary import CanaryState
from smtpguard.engine import Engine, load_roots
from smtpguard.events import discard
from smtpguard.health import config_option, health
from smtpguard.mtasts.store import Store
from smtpguard.names import Domain, IpAddress, NameInvalid, parse_mail_domain
from smtpguard.net.listen import Bind
from smtpguard.outbound.probe import DomainReport, HostReport, probe
from smtpguard.telemetry.outcomes import DIRECTIONS, OUTCOMES

_CANARY_SECONDS = 15.0
_COLOURS = MappingProxyType(
    {
        "delivered": "green",
        "deferred": "yellow",
        "refused": "red",
        "lost": "magenta",
        "warning": "yellow",
        "error": "red",
    }
)
_PROBES_AT_ONCE = 8


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="smtpguard")
def main() -> None:
    """A proxy in front of your MTA: no mail leaves with less TLS than the other side asked for."""


main.add_command(health)


@main.command()
@config_option
def run(config: Path) -> None:
    """Serve.  HUP reloads, TERM drains, a second TERM ends at once."""
    _settings(config)
    try:
        run_app(config)
    except StartFailed as failed:  # every start-up failure comes before the first nursery
        _fail(str(failed), 1)


@main.command("check-config")
@config_option
def check_config(config: Path) -> None:
    """Read the configuration, certificates and authorities; say everything that is wrong (exit 2)."""
    settings = _settings(config)
    problems = []
    try:
        load_roots(settings)
    except (OSError, ValueError) as error:
        problems.append(str(error))
    if problem := state_directory_problem(settings.state_dir):
        problems.append(problem)
    for warning in settings.rule_warnings(SYSTEM_CLOCK.now().date()):
        table = "policy" if warning.direction == "outbound" else "inbound policy"
        click.echo(f"warning: {table} {warning.rule}: {warning.detail}", err=True)
    served = [one.certificates.warnings for one in settings.inbound if one.certificates is not None]
    for text in dict.fromkeys(text for texts in served for text in texts):
        click.echo(f"warning: {text}", err=True)
    if unresolved := host_name_problem(settings.hostname):
        click.echo(f"warning: hostname: {unresolved}; many hosts refuse such a name in EHLO", err=True)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(2)
    count = len(settings.listeners) + len(settings.inbound)
    rules = len(settings.outbound.rules.rules) + (len(settings.inbound[0].rules.rules) if settings.inbound else 0)
    click.echo(f"{config}: well ({_counted(count, 'listener')}, {_counted(rules, 'rule')})")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@main.command("probe")
@click.argument("domains", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each domain.")
@config_option
def probe_command(domains: tuple[str, ...], as_json: bool, config: Path) -> None:
    """Look at every mail host of DOMAINS as a delivery would, without mail.  Exit 1: one would be refused."""
    wanted: list[Domain | IpAddress] = []
    for text in domains:
        try:
            wanted.append(parse_mail_domain(text))
        except NameInvalid as error:
            _fail(str(error), 2)
    settings = _settings(config)
    if not settings.listeners:
        _fail('probe looks as a [[listener]] with role = "outbound" would deliver, and the file has none', 2)
    try:
        reports = trio.run(partial(_probe_all, settings, wanted, as_json))
    except (OSError, ValueError) as error:
        _fail(str(error), 1)
    except BaseExceptionGroup as group:  # the nurseries wrap what their tasks raise
        _fail_with(group)
    sys.exit(0 if all(report.verdict == "deliver" for report in reports) else 1)


async def _probe_all(settings: Settings, domains: list[Domain | IpAddress], as_json: bool) -> list[DomainReport]:
    """Probe a few at a time, printing each as it comes; progress goes to stderr where there are many."""
    engine = Engine(settings, Store.open(None, discard), SYSTEM_CLOCK, discard)
    reports: list[DomainReport] = []
    limit = trio.CapacityLimiter(_PROBES_AT_ONCE)

    async def one(domain: Domain | IpAddress) -> None:
        async with limit:
            report = await probe(domain, engine.services, engine.outbound, settings.listeners[0])
        reports.append(report)
        click.echo(msgspec.json.encode(report.as_json()).decode() if as_json else _shown(report))
        if len(domains) > 1 and not as_json and sys.stderr.isatty():
            click.echo(f"{len(reports)} of {len(domains)} domains", err=True)

    async with trio.open_nursery() as services:
        await services.start(engine.run)
        with trio.move_on_after(_CANARY_SECONDS):
            await engine.canary_asked.wait()
        if not as_json:
            canary = engine.canary.state
            said = "the canary has not answered" if canary is CanaryState.UNKNOWN else canary.value
            click.echo(f"DNSSEC: {engine.resolver.validation.value} ({said})")
        async with trio.open_nursery() as nursery:
            for domain in domains:
                nursery.start_soon(one, domain)
        services.cancel_scope.cancel()
    return reports


def _shown(report: DomainReport) -> str:
    lines = [f"{report.domain}: {report.verdict}" + (f" [{report.reason}] {report.detail}" if report.reason else "")]
    lines += [_shown_host(host) for host in report.hosts]
    return "\n".join(lines)


def _shown_host(host: HostReport) -> str:
    where = f"{host.host}[{host.address}]" if host.address else host.host
    if host.would == "refuse":
        return f"  {where} {host.policy}: refuse [{host.reason}] {host.detail}"
    tls = f"TLS {host.tls} {host.cipher} {host.group}".rstrip() if host.tls else "in clear"
    text = f"  {where} {host.policy}: deliver, {tls}, auth={host.auth}"
    for line in (*host.why, *host.observed):
        text += f"\n    {line}"
    return text


@main.command()
@click.argument("what")
@click.option("--json", "as_json", is_flag=True, help="The decisions as JSON.")
@config_option
def explain(what: str, as_json: bool, config: Path) -> None:
    """Why was it refused or delivered?  WHAT is the id of a reply or log line, or a domain; the newest comes first."""
    decisions = _ask(config, "GET", "/api/decisions", q=what)
    if not isinstance(decisions, list) or not decisions:
        _fail(f"nothing is remembered of {what!r}; `smtpguard probe DOMAIN` shows what would happen now", 1)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(decisions)).decode())
        return
    click.echo("\n\n".join(explained(decision) for decision in decisions if isinstance(decision, dict)))


@main.command("watch")
@click.option("--direction", type=click.Choice(DIRECTIONS), help="Only mail that goes this way.")
@click.option("--domain", "domains", multiple=True, help="Only this one; .example.org: those below it. Repeatable.")
@click.option("--outcome", "outcomes", type=click.Choice(OUTCOMES), multiple=True, help="Only these. Repeatable.")
@click.option("--level", type=click.Choice(LEVELS), default="info", show_default=True, help="The lowest severity.")
@click.option("--recent", type=click.IntRange(0, MAX_RECENT), default=0, help="Begin with so many earlier events.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, as in the JSON log.")
@click.option("--once", is_flag=True, help="End (exit 1) when the feed ends, instead of waiting for it to come back.")
@config_option
def watch_command(
    direction: str | None,
    domains: tuple[str, ...],
    outcomes: tuple[str, ...],
    level: str,
    recent: int,
    as_json: bool,
    once: bool,
    config: Path,
) -> None:
    """Follow the events of the running smtpguard until Ctrl-C (exit 0)."""
    query = [("direction", direction)] if direction else []
    query += [*(("domain", one) for one in domains), *(("outcome", one) for one in outcomes), ("level", level)]
    try:
        parse_filter({"domain": domains})
    except FilterInvalid as error:
        _fail(str(error), 2)
    watched = Watched(*_admin(config), query, recent)

    def notice(text: str) -> None:
        click.echo(f"smtpguard: {text}", err=True)

    try:
        # Only at a checkpoint: raised in the middle of a line, an interrupt would cut it.
        trio.run(
            partial(follow, watched, _print_raw if as_json else _print_line, notice, again=not once),
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    except KeyboardInterrupt:
        pass  # the end that is meant
    except AdminUnreachable as error:
        _fail(str(error), 1)
    except BaseExceptionGroup as group:
        interrupts, rest = group.split((KeyboardInterrupt, BrokenPipeError))
        if rest is not None or interrupts is None:
            raise
        if interrupts.subgroup(BrokenPipeError) is not None:
            # The reader of a pipe has enough; the interpreter must not try to flush into it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_raw(line: str) -> None:
    click.echo(line)


def _print_line(line: str) -> None:
    try:
        record = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:  # another version, or another program
        record = {"event": line}
    colour = next((_COLOURS[word] for word in words_of(record) if word in _COLOURS), None)
    click.echo(click.style(line_of(record), fg=colour) if colour else line_of(record))


@main.group()
def sts() -> None:
    """The MTA-STS policies of the running smtpguard."""


@sts.command("list")
@config_option
def sts_list(config: Path) -> None:
    """All cached policies."""
    policies = _ask(config, "GET", "/api/sts")
    assert isinstance(policies, list)
    for policy in policies:
        click.echo(f"{policy['domain']:40} {policy['mode']:8} until {policy['expires']} {policy['last_failure']}")
    click.echo(f"{len(policies)} policies", err=True)


@sts.command("show")
@click.argument("domain")
@config_option
def sts_show(domain: str, config: Path) -> None:
    """One cached policy."""
    click.echo(
        msgspec.json.format(msgspec.json.encode(_ask(config, "GET", f"/api/sts/{quote(domain, safe='')}"))).decode()
    )


@sts.command("refresh")
@click.argument("domain")
@config_option
def sts_refresh(domain: str, config: Path) -> None:
    """Fetch the policy of DOMAIN now.  Exit 1: it could not be fetched; a cached one still holds."""
    result = _ask(config, "POST", f"/api/sts/{quote(domain, safe='')}/refresh")
    click.echo(msgspec.json.encode(result).decode())
    if isinstance(result, dict) and result.get("result") in ("cached", "unavailable"):
        sys.exit(1)


@sts.command("forget")
@click.argument("domain")
@config_option
def sts_forget(domain: str, config: Path) -> None:
    """Drop the cached policy of DOMAIN: until the next fetch its mail is not protected by it."""
    click.echo(msgspec.json.encode(_ask(config, "POST", f"/api/sts/{quote(domain, safe='')}/forget")).decode())


@main.command()
@click.option("--serve", is_flag=True, help="Keep it running, with a round of mail every few seconds.")
def demo(serve: bool) -> None:
    """The sandbox internet on loopback: who publishes what, who attacks, what happens."""
    from smtpguard.sandbox.demo import main as demo_main

    sys.exit(demo_main(["--serve"] if serve else []))


def _fail_with(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """End as the plain errors inside would have ended; raises the group where one of them is a bug."""
    errors, rest = group.split((OSError, ValueError, KeyboardInterrupt))
    if rest is not None or errors is None:
        raise group
    if errors.subgroup(KeyboardInterrupt) is not None:
        sys.exit(128 + signal.SIGINT)
    _fail("; ".join(dict.fromkeys(str(error) for error in _leaves(errors))), 1)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _settings(config: Path) -> Settings:
    settings = load(config)
    if isinstance(settings, list):
        for error in settings:
            click.echo(str(error), err=True)
        sys.exit(2)
    return settings


def _ask(config: Path, method: str, path: str, **query: str) -> object:
    admin, token = _admin(config)
    try:
        return ask(admin, method, path, token, **query)
    except AdminUnreachable as error:
        _fail(str(error), 1)


def _admin(config: Path) -> tuple[Bind, str]:
    """Where the running process can be asked, and the token to show."""
    settings = _settings(config)
    if settings.admin is None:
        _fail("[admin] enabled = false: there is nothing to ask", 2)
    if settings.admin_address is None:
        _fail(f'[admin] bind = "{settings.admin}": name in [admin] address where its socket unit listens', 2)
    return settings.admin_address, settings.admin_token


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"smtpguard: {text}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
