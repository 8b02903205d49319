"""The man pages say what the code does: every command, every option, every key, every variable."""

from pathlib import Path

import click
import msgspec

from smtpguard import cli
from smtpguard.config import schema
from smtpguard.config.environment import VARIABLES
from tests.structure.test_docs import tool

MAN = Path(__file__).parents[2] / "deploy" / "man"


def plain(page: str) -> str:
    """Without what roff needs."""
    return (MAN / page).read_text().replace(r"\-", "-").replace(r"\fB", "").replace(r"\fR", "")


def test_the_pages_are_current() -> None:
    """`python tools/manpages.py` writes them."""
    pages = tool("manpages")
    assert (MAN / "smtpguard.1").read_text() == pages.main_page()
    assert (MAN / "smtpguard.toml.5").read_text() == pages.file_page()


def test_every_command_and_option() -> None:
    text = plain("smtpguard.1")

    def look(command: click.Command, name: str) -> None:
        if isinstance(command, click.Group):
            for inner, each in command.commands.items():
                look(each, f"{name} {inner}".strip())
            return
        start = text.index(f"\n.SS {name}")
        section = text[start : text.find("\n.S", start + 1)]
        for option in command.params:
            if isinstance(option, click.Option):
                assert all(each in section for each in option.opts), (name, option.opts)

    look(cli.main, "")


def test_every_key_and_variable() -> None:
    text = plain("smtpguard.toml.5")
    for table in vars(schema).values():
        if isinstance(table, type) and issubclass(table, msgspec.Struct):
            for key in table.__struct_fields__:
                assert key in text, key
    assert [name for name in VARIABLES if name not in text] == []
