"""The whole decision table of CONFORMANCE §B4 and §B14, printed; a change shows as a diff of policy.ref.

Write it anew with `SMTPGUARD_WRITE_TABLES=1 pytest tests/tables/test_policy_table.py`, and read the diff.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from smtpguard.dns.records import NoTlsa, Security
from smtpguard.mtasts.parse import NoSts
from smtpguard.policy.engine import require
from smtpguard.policy.model import Await, Level, Observed, Requirement, TryNextMx
from smtpguard.policy.rules import Rule, RuleSet
from tests.policy.samples import (
    DEFERRED,
    DOMAIN,
    ENFORCE,
    FACTS,
    LOST,
    TESTING,
    TIMED_OUT,
    TODAY,
    UNAVAILABLE,
    UNLISTED,
    UNUSABLE,
    USABLE,
)

REFERENCE = Path(__file__).with_name("policy.ref")

TLSA = {"none": NoTlsa(), "usable": USABLE, "unusable": UNUSABLE, "failed": TIMED_OUT, "lost": LOST}
STS = {
    "none": NoSts(),
    "enforce": ENFORCE,
    "unlisted": UNLISTED,
    "testing": TESTING,
    "unavailable": UNAVAILABLE,
    "deferred": DEFERRED,
}
MX = {"secure": Security.SECURE, "insecure": Security.INSECURE}
COLUMNS = "{:<18} {:<9} {:<9} {:<12} {}"
HEADER = """\
# What an MX host must show (POL-01..11, PF-04..11), one row per combination; by test_policy_table.py.
# rule: the level, + with override; auto/may and auto/encrypt: auto with its floor.
# tlsa: failed = the lookup failed, lost = the resolver stopped validating.  mx: the security of the MX RRset.
# sts: enforce = the MX is listed, unlisted = enforce and it is not, unavailable = no policy to be had
#      (STS-15), deferred = TXT failed for a time (CH-25).
# demands: encryption, authentication, (label), what is observed beside it; or why the host is skipped.
"""


def _rule_sets() -> Iterator[tuple[str, RuleSet]]:
    for floor in (Level.MAY, Level.ENCRYPT):
        yield f"auto/{floor.value}", RuleSet(auto_floor=floor)
    for level, override in product((lv for lv in Level if lv is not Level.AUTO), (False, True)):
        rule = Rule(DOMAIN, level, override=override, fingerprints=(bytes(32),))
        yield level.value + "+" * override, RuleSet((rule,))


def _demands(answer: Requirement | TryNextMx | Await) -> str:
    match answer:
        case TryNextMx(reasons):
            return "skip " + " ".join(reason.code.token for reason in reasons)
        case Requirement():
            notes = [reason.code.token for reason in answer.reasons if reason.code.token == "rule/weaker"]
            beside = [_beside(seen) for seen in answer.observed]
            head = f"{answer.encryption.value:<11} {answer.authentication.value:<11} ({answer.policy})"
            return " ".join([head, *notes, *beside])
        case Await():
            raise AssertionError("every fact is known here")


def _beside(seen: Observed) -> str:
    what = seen.requirement.policy if seen.requirement else "skip " + seen.refused[0].code.token
    return f"[{seen.kind}: {what}]"


def _table() -> str:
    lines = [COLUMNS.format("rule", "tlsa", "mx", "sts", "demands")]
    for (name, rules), tlsa, mx, sts in product(_rule_sets(), TLSA, MX, STS):
        facts = replace(FACTS, dane=TLSA[tlsa], mx_security=MX[mx], sts=STS[sts])
        lines.append(COLUMNS.format(name, tlsa, mx, sts, _demands(require(rules.find(DOMAIN), facts, TODAY))))
    return HEADER + "\n".join(lines) + "\n"


def test_pol_01_to_11_the_whole_table():
    """POL-01..11, PF-04..11: as it stands in policy.ref."""
    table = _table()
    if os.environ.get("SMTPGUARD_WRITE_TABLES"):
        REFERENCE.write_text(table)
    assert table.splitlines() == REFERENCE.read_text().splitlines()
