"""Writes docs/conformance.md: each clause id, and the test that names it or the reason it is open.

`python tools/conformance.py > docs/conformance.md`.  Ids are found in test names, docstrings and comments, ranges such
as AF-01..09 and lists such as AF-24, AF-26 included; what no test names must stand in docs/conformance-open.txt with
a reason.
"""

import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = {
    "INV": 9, "DANE": 45, "TLSA": 20, "STS": 42, "POL": 11, "STLS": 20, "SMTP": 30, "TO": 8, "MX": 19, "DATA": 12,
    "TRC": 7, "EXT": 25, "LMTP": 6, "PF": 14, "ID": 5, "TLS": 11, "RM": 16, "OUT": 32, "AF": 57,
}  # fmt: skip
_FIRST = re.compile(r"\b(" + "|".join(FAMILIES) + r")-(\d\d)((?:(?:\.\.|, ?|/)\d\d\b)*)")
_IN_NAME = re.compile(r"_(" + "|".join(FAMILIES).lower() + r")_(\d\d)(?=_|\b)")
_TEST = re.compile(r"^\s*(?:async )?def (test_\w+)|^class (Test\w+)", re.MULTILINE)

HEAD = """# Conformance

Made by `python tools/conformance.py`.  The clauses are those of RFC 5321, 2033, 2920, 3207, 7672, 6698, 7671, 8461,
8460 and 9525 that a queue-less, TLS-enforcing proxy must keep; `AF` are attack and fault scenarios, `OUT` our own
replies, `INV` what holds always.  A clause is proven by the tests named, or open for the reason given.

| id | proven by, or open because |
|---|---|
"""


def mentioned(line: str) -> set[str]:
    """The ids in one line of text."""
    found = {f"{family.upper()}-{number}" for family, number in _IN_NAME.findall(line)}
    for match in _FIRST.finditer(line):
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
        test = ""
        for line in path.read_text("utf-8").splitlines():
            if named := _TEST.match(line):
                test = named[1] or named[2]
            for clause in mentioned(line):
                proof = f"{path.relative_to(ROOT)}" + (f"::{test}" if test else "")
                if proof not in found[clause]:
                    found[clause].append(proof)
    return found


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


def text() -> str:
    """The whole page."""
    proven, open_ = proofs(), reasons()
    rows = []
    for clause in every_id():
        if clause in open_:
            rows.append(f"| {clause} | open: {open_[clause]} |")
        else:
            rows.append(f"| {clause} | " + ", ".join(f"`{proof}`" for proof in proven[clause][:3]) + " |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(text(), end="")
