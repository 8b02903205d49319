"""Writes docs/conformance.md: each clause id, and the test that names it or the reason it is open.

`python tools/conformance.py > docs/conformance.md`.  A test names an id in its function name, its docstring or its
parametrization (strings there, and in the module's table it takes the cases from), ranges such as AF-01..09 and lists
such as AF-24, AF-26 included.  A module docstring or a comment proves nothing.  What no test names must stand in
docs/conformance-open.txt with a reason.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "INV": 9, "DANE": 45, "TLSA": 20, "STS": 42, "POL": 11, "STLS": 20, "SMTP": 30, "TO": 8, "MX": 19, "DATA": 12,
    "TRC": 7, "EXT": 25, "LMTP": 6, "PF": 14, "ID": 5, "TLS": 11, "RM": 16, "OUT": 32, "AF": 57,
    "PXY": 11, "SUB": 5, "AUTH": 6, "RPT": 28,
}  # fmt: skip
_FIRST = re.compile(r"\b(" + "|".join(FAMILIES) + r")-(\d\d)((?:(?:\.\.|, ?|/)\d\d\b)*)")
_IN_NAME = re.compile(r"_(" + "|".join(FAMILIES).lower() + r")_?(\d\d)(?=_|\b)")

HEAD = """# Conformance

Made by `python tools/conformance.py`.  The clauses are those of RFC 5321, 2033, 2920, 3207, 7672, 6698, 7671, 8461,
8460 and 9525 that a queue-less, TLS-enforcing proxy must keep; `AF` are attack and fault scenarios, `OUT` our own
replies, `INV` what holds always.  A clause is proven by the tests named, or open for the reason given.

| id | proven by, or open because |
|---|---|
"""


def mentioned(text: str) -> set[str]:
    """The ids in a text."""
    found = {f"{family.upper()}-{number}" for family, number in _IN_NAME.findall(text)}
    for match in _FIRST.finditer(text):
        family, last = match[1], int(match[2])
        found.add(f"{family}-{last:02}")
        for sign, digits in re.findall(r"(\.\.|, ?|/)(\d\d)\b", match[3]):
            number = int(digits)
            found.update(f"{family}-{n:02}" for n in (range(last, number + 1) if sign == ".." else (number,)))
            last = number
    return found


def proofs() -> dict[str, list[str]]:
    """Id to the tests that name it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for test, clauses in named_by_tests(path.read_text("utf-8")).items():
            for clause in clauses:
                found[clause].append(f"{path.relative_to(ROOT)}::{test}")
    return found


def named_by_tests(source: str) -> dict[str, set[str]]:
    """Each test function of a module, and the ids it names itself."""
    module = ast.parse(source)
    tables = {
        target.id: statement.value
        for statement in module.body
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None
        for target in (statement.targets if isinstance(statement, ast.Assign) else (statement.target,))
        if isinstance(target, ast.Name)
    }
    found = {}
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            cases = [text for decorator in node.decorator_list for text in _strings(decorator, tables)]
            found[node.name] = mentioned("\n".join((node.name, ast.get_docstring(node) or "", *cases)))
    return found


def _strings(expression: ast.expr, tables: dict[str, ast.expr]) -> Iterator[str]:
    """The string constants of an expression and of the module's tables it uses."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.Name) and node.id in tables:
            yield from _strings(tables[node.id], {name: tables[name] for name in tables if name != node.id})


def reasons() -> dict[str, str]:
    """Id to the reason it is open."""
    found = {}
    for line in (ROOT / "docs" / "conformance-open.txt").read_text("utf-8").splitlines():
        ids, _, reason = line.partition(":")
        for clause in mentioned(ids):
            found[clause] = reason.strip()
    return found


def every_id() -> list[str]:
    """All ids of the catalogue that this release speaks about."""
    return [f"{family}-{number:02}" for family, last in FAMILIES.items() for number in range(1, last + 1)]


def _listed(proofs: list[str]) -> str:
    return ", ".join(f"`{proof}`" for proof in proofs[:3])


def text() -> str:
    """The whole page."""
    proven, open_ = proofs(), reasons()
    rows = []
    for clause in every_id():
        if clause in open_:
            part = f"; in part {_listed(proven[clause])}" if proven[clause] else ""
            rows.append(f"| {clause} | open: {open_[clause]}{part} |")
        else:
            rows.append(f"| {clause} | {_listed(proven[clause])} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(text(), end="")
