"""Is the running smtpguard well?  `smtpguard health`, for HEALTHCHECK, exec probes and scripts.

It is asked every few seconds, so it reads only what names the admin address and loads nothing of the engine.
Exit codes: 0 well, 1 anything else; Docker reserves 2.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from smtpguard.admin.client import AdminUnreachable, fetch
from smtpguard.config.environment import overrides
from smtpguard.config.schema import File, read
from smtpguard.net.listen import Bind, BindInvalid, parse_bind
from smtpguard.reasons import printable

DEFAULT_PATH = Path("/etc/smtpguard/smtpguard.toml")

config_option = click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="SMTPGUARD_CONFIG",
    default=DEFAULT_PATH,
    show_default=True,
    show_envvar=True,
    help="The configuration file.",
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--live", is_flag=True, help="Whether the process serves at all; without it: whether it is ready for mail."
)
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=5.0, show_default=True, help="Seconds to wait.")
@config_option
def health(live: bool, timeout: float, config: Path) -> None:
    """Ask the running smtpguard how it is.  Exit 0: ready for mail (degraded, too); exit 1: not, or no answer."""
    try:
        code, text = fetch(_address(config), "/healthz/live" if live else "/healthz/ready", seconds=timeout)
    except AdminUnreachable as error:
        _unwell(str(error))
    if code != 200:
        _unwell(printable(text.strip()) or f"status {code}")
    click.echo(text.strip())


def _address(config: Path) -> Bind:
    """Where the running process can be asked; ends with 1 where the file does not say."""
    variables, _ = overrides(os.environ)
    file, errors = read(config, variables)
    if file is None:
        _unwell(str(errors[0]))
    address = next((bind for bind in _candidates(file) if bind.is_unix or bind.port), None)
    if address is None:
        _unwell(f"{config}: [admin] names no address that can be asked: set bind, address or metrics_bind")
    return address


def _candidates(file: File) -> Iterator[Bind]:
    admin = file.admin
    for text in [*([admin.address, admin.bind] if admin.enabled else []), admin.metrics_bind]:
        with suppress(BindInvalid):
            yield parse_bind(text)


def _unwell(text: str) -> NoReturn:
    click.echo(f"smtpguard: {text}", err=True)
    sys.exit(1)
