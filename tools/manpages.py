"""Writes deploy/man: smtpguard(1) from the command line itself, smtpguard.toml(5) from docs/configuration.md.

    python tools/manpages.py

tests/structure/test_manpages.py holds the files against the code, so neither can be forgotten.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import click

from smtpguard import __version__, cli

ROOT = Path(__file__).parents[1]
MAN = ROOT / "deploy" / "man"

SIGNALS = (
    ("HUP", "Read the configuration again: all of it, or nothing. What needs a restart is said in the log."),
    (
        "TERM, INT",
        "Accept nothing more, let running transactions end for drain_seconds, end. A second one: end at once.",
    ),
)
EXIT = (
    ("0", "Well."),
    ("1", "It failed, or a domain would be refused."),
    ("2", "The configuration or the command line is wrong (never from health, whose caller may be Docker)."),
)
FILES = (
    ("/etc/smtpguard/smtpguard.toml", "The configuration, smtpguard.toml(5)."),
    ("/var/lib/smtpguard/smtpguard.db", "MTA-STS policies, the history of decisions, the state of DNSSEC."),
)


def main_page() -> str:
    """smtpguard(1)."""
    context = click.Context(cli.main, info_name="smtpguard", **cli.main.context_settings)
    lines = [
        head("SMTPGUARD", 1, "smtpguard", "a proxy in front of your MTA that keeps mail inside TLS"),
        ".SH SYNOPSIS",
        ".B smtpguard",
        r"\fICOMMAND\fR [\fIOPTIONS\fR]",
        ".SH DESCRIPTION",
        roff(
            "smtpguard takes the mail of an MTA by LMTP or SMTP, works out what each recipient domain demands (DANE, "
            "RFC 7672; MTA-STS, RFC 8461; rules of your own), connects, upgrades to TLS, verifies, and delivers or "
            "refuses with a reply that says why. In the other direction it terminates port 25, 587 or 465 in front of "
            "the MTA. It has no queue: a 250 is given only after the next hop gave it."
        ),
        ".SH OPTIONS",
        *options(cli.main, context),
        ".SH COMMANDS",
        *(line for name in cli.main.list_commands(context) for line in command(cli.main.commands[name], context, name)),
        *section("SIGNALS", SIGNALS),
        ".SH ENVIRONMENT",
        ".TP",
        ".B SMTPGUARD_CONFIG",
        "In place of \\fB\\-\\-config\\fR.  The others stand in",
        ".BR smtpguard.toml (5).",
        *section("FILES", FILES),
        *section("EXIT STATUS", EXIT),
        ".SH SEE ALSO",
        ".BR smtpguard.toml (5),",
        ".BR systemd.socket (5),",
        "RFC 3207, RFC 7672, RFC 8461.",
    ]
    return "\n".join(lines) + "\n"


def command(what: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    """One command, or all of a group."""
    context = click.Context(what, info_name=name, parent=parent)
    if isinstance(what, click.Group):
        for inner in what.list_commands(context):
            yield from command(what.commands[inner], context, f"{name} {inner}")
        return
    arguments = " ".join(rf"\fI{argument(each)}\fR" for each in what.params if isinstance(each, click.Argument))
    yield f".SS {roff(name)} {arguments}".rstrip()
    yield roff(" ".join((what.help or "").split()))
    yield from options(what, context)


def argument(what: click.Argument) -> str:
    return (what.name or "").upper() + ("..." if what.nargs == -1 else "")


def options(what: click.Command, context: click.Context) -> Iterator[str]:
    """The options of a command; `--help` stands once, at the top."""
    for each in what.get_params(context):
        record = each.get_help_record(context)
        if isinstance(each, click.Option) and record is not None and (each.name != "help" or what is cli.main):
            yield ".TP"
            yield rf"\fB{roff(record[0])}\fR"
            yield roff(" ".join(record[1].split()))


def file_page() -> str:
    """smtpguard.toml(5): docs/configuration.md, its tables as lists."""
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    lines = [
        head("SMTPGUARD.TOML", 5, "smtpguard.toml", "configuration of smtpguard"),
        ".SH DESCRIPTION",
    ]
    table, previous, labels = "", False, 0
    for line in text.splitlines()[1:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if not cells:
            previous = False
            if line.startswith("## "):
                lines.append(f".SH {roff(line[3:].upper())}")
            elif line:
                lines.append(roff(line))
            elif lines[-1] != ".PP" and not lines[-1].startswith(".SH"):
                lines.append(".PP")
            continue
        if not previous:  # the header of a table; "table | key | default | meaning" has one label more
            previous, table, labels = True, cells[0], len(cells)
            if labels < 4 and table.startswith("`["):
                lines.append(f".SS {roff(table.strip('`'))}")
            continue
        if set(cells[0]) <= set("-") and set(cells[-1]) == {"-"}:
            continue
        if labels == 4 and table == "table":
            if cells[0]:
                lines.append(f".SS {roff(cells[0].split(':')[0].strip('`'))}")
            cells = cells[1:]
        lines += [".TP", roff(cells[0]), roff("; ".join(filter(None, described(cells[1:], labels))))]
    while lines[-1] == ".PP":
        lines.pop()
    lines += [".SH SEE ALSO", ".BR smtpguard (1),", "https://toml.io."]
    return "\n".join(merged(lines)) + "\n"


def described(cells: list[str], labels: int) -> Iterator[str]:
    """Default and meaning, as a sentence would have them."""
    if labels >= 3 and len(cells) > 1:
        yield cells[-1] or "switches it on"
        yield {"": "", "required": "required"}.get(cells[0], f"default {cells[0]}")
        yield from cells[1:-1]
    else:
        yield from cells


def merged(lines: list[str]) -> Iterator[str]:
    """No paragraph before a heading, none twice."""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line != ".PP" or not following.startswith((".SH", ".SS", ".PP", ".TP")):
            yield line


def section(title: str, entries: tuple[tuple[str, str], ...]) -> list[str]:
    return [f".SH {title}", *(line for name, text in entries for line in (".TP", rf"\fB{roff(name)}\fR", roff(text)))]


def head(title: str, number: int, name: str, purpose: str) -> str:
    return "\n".join(
        [
            r".\" Written by tools/manpages.py; do not edit.",
            f'.TH "{title}" {number} "" "smtpguard {__version__}" "smtpguard"',
            ".SH NAME",
            rf"{name} \- {purpose}",
        ]
    )


def roff(text: str) -> str:
    """Markdown within a line as roff: `code` is bold, a link its text; nothing else is special to roff."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text).replace(r"\|", "|")
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("–", r"\(en").replace("§", r"\(sc")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    return "\\&" + text if text[:1] in (".", "'") else text


def main() -> None:
    """Write both."""
    MAN.mkdir(exist_ok=True)
    (MAN / "smtpguard.1").write_text(main_page(), "utf-8")
    (MAN / "smtpguard.toml.5").write_text(file_page(), "utf-8")


if __name__ == "__main__":
    main()
