"""config.schema: the form of the file, and that no error speaks a programmer's language."""

from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smtpguard.config import schema
from smtpguard.config.findings import ConfigError
from smtpguard.config.schema import File, read

GOOD = 'hostname = "mx.example.org"\n[[listener]]\nrole = "outbound"\nbind = ["127.0.0.1:10027"]\n'
RULE = '[[policy]]\ndomain = "a.example"\nlevel = "may"\n'


def errors(directory: Path, text: str) -> list[str]:
    path = directory / "x.toml"
    path.write_text(text)
    return [str(error).removeprefix(f"{path}: ") for error in read(path)[1]]


def test_minimal_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(GOOD + RULE + "expires = 2027-12-31\n")
    file, found = read(path)
    assert found == []
    assert file is not None
    assert file.outbound.level == "auto"
    assert file.policy[0].expires == date(2027, 12, 31)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hostname = 5", "hostname = 5: must be a text in quotes"),
        ("drain_seconds = 0", "drain_seconds = 0: must be a whole number without quotes, at least 1"),
        ('drain_seconds = "30"', 'drain_seconds = "30": must be a whole number without quotes, at least 1'),
        ("drain_seconds = true", "drain_seconds = true: must be a whole number without quotes, at least 1"),
        ("drain_seconds = 1.5", "drain_seconds = 1.5: must be a whole number without quotes, at least 1"),
        ("[outbound]\nport = 0", "[outbound] port = 0: must be a whole number without quotes from 1 to 65535"),
        ("[outbound]\nannotate = 1", "[outbound] annotate = 1: must be true or false, without quotes"),
        (
            '[outbound]\nown_names = "a"',
            '[outbound] own_names = "a": must be a list of texts in quotes, as in ["a", "b"]',
        ),
        (
            "[outbound]\nown_names = [1]",
            '[outbound] own_names = [1]: must be a list of texts in quotes, as in ["a", "b"]',
        ),
        (
            "[tls]\ndane_digests = [3]",
            "[tls] dane_digests = [3]: must be a list of whole numbers from 1 to 2, as in [1, 2]",
        ),
        (
            "[dns]\ntimeout_seconds = nan",
            "[dns] timeout_seconds = nan: must be a number without quotes above 0, at most 30",
        ),
        (
            '[log]\nlevel = "loud"',
            '[log] level = "loud": must be one of "debug", "info", "warning", "error"',
        ),
        (
            RULE + 'expires = "end of 2027"',
            '[[policy]] 1 (a.example) expires = "end of 2027": must be a day without quotes, as in 2027-12-31',
        ),
        (
            RULE + "expires = 2027-12-31T12:00:00Z",
            (
                "[[policy]] 1 (a.example) expires = 2027-12-31T12:00:00+00:00: "
                "must be a day without quotes, as in 2027-12-31"
            ),
        ),
        ("[policy]\ndomain = 1", 'policy = {"domain":1}: is a list of tables: write [[policy]]'),
        ("[[outbound]]\nport = 1", 'outbound = [{"port":1}]: is a table: write [outbound]'),
        ("[dns]\ncanary = 5", "[dns] canary = 5: is a table: write [dns.canary]"),
        ("[dns.canary]\nsigned = 5", "[dns.canary] signed = 5: must be a text in quotes"),
        ("[dns]\nresolver = []", "[dns] resolver: is not a key of this table; did you mean 'resolvers'?"),
        ("[log]\nx = 1", "[log] x: is not a key of this table; the keys here are format, level"),
        (
            "[[policy]]\nmode = 5",
            '[[policy]] 1 mode = 5: must be one of "enforce", "shadow"',
        ),
        (
            "[[policy]]\nmode = 5",
            '[[policy]] 1 domain: is missing and has no default; write for example domain = "example.org"',
        ),
    ],
)
def test_errors_in_our_words(tmp_path: Path, text: str, error: str) -> None:
    """File, table, key, value, and what would be right."""
    text = text if text.startswith("hostname") else f'hostname = "mx.example.org"\n{text}'
    assert error in errors(tmp_path, text)


def test_a_value_of_any_size_and_script_is_told_on_one_short_line(tmp_path: Path) -> None:
    text = 'hostname = "mx.example.org"\ndrain_seconds = "' + "ü" * 5000 + '"\n"a\\u001bb' + "x" * 500 + '" = 1\n'
    found = errors(tmp_path, text)
    assert len(found) == 2
    assert all(error.isascii() and error.isprintable() and len(error) < 300 for error in found), found


WRONG: dict[str, list[object]] = {
    "text": [7, True, [], {"a": 1}],
    "number": ["7", True, [], -(10**30)],
    "list": ["x", 7, {"a": 1}],
}


def _tables(kind: Any, table: str = "") -> list[tuple[Any, str]]:
    found = [(kind, table)]
    for field in msgspec.structs.fields(kind):
        inner = schema._struct_of(field.type)
        if inner is not None:
            found += _tables(inner, field.name)
    return found


@pytest.mark.parametrize(("kind", "table"), _tables(File))
def test_no_word_of_the_library_is_heard(kind: Any, table: str) -> None:
    """Whatever is written for whichever key of whichever table."""
    for field in msgspec.structs.fields(kind):
        for value in (value for some in WRONG.values() for value in some):
            found: list[ConfigError] = []
            schema._table(kind, {field.name: value}, "x.toml", table, table, found)
            for error in found:
                text = str(error)
                assert not any(word in text for word in ("Expected", "expected", "`", " str", "int ", "got")), text
                assert error.expected


def test_every_required_key_has_an_example() -> None:
    required = {f.name for kind, _ in _tables(File) for f in msgspec.structs.fields(kind) if f.required}
    assert required == set(schema._EXAMPLES)
