"""What do the `[[policy]]` tables and `[outbound] level` say?  Every error stands at the rule it is about."""

import re
from pathlib import Path

from smtpguard.config.findings import Findings, item_place, quoted
from smtpguard.config.schema import File, PolicyTable
from smtpguard.policy.model import Level
from smtpguard.policy.rules import (
    AfterExpiry,
    Mode,
    OnFailure,
    Rule,
    RuleInvalid,
    RuleSet,
    parse_fingerprints,
    parse_level,
    parse_match_item,
    parse_min_tls,
    parse_pattern,
    parse_servername,
)

_NO_DANE = 'refuses all mail where [dns] dnssec = "off": there is no DANE then; drop one of the two'
_PROBLEM = re.compile(r'(\w+)(?: =)?(?: ("[^"]*"))? (.+)')


def rule_set(found: Findings, file: File) -> RuleSet:
    """All rules, or those that can be read."""
    rules: dict[str, Rule] = {}
    first: dict[str, str] = {}
    for number, table in enumerate(file.policy, 1):
        place = item_place("policy", number, table.domain)
        rule = _rule(found, place, table, file.outbound.port)
        if rule is None:
            continue
        if rule.level is Level.DANE_ONLY and file.dns.dnssec == "off":
            found.wrong(place, "level", quoted(table.level), _NO_DANE)
        if rule.pattern in rules:
            found.wrong(
                place, "domain", quoted(table.domain),
                f"has two rules, the other is {first[rule.pattern]}: one key has one rule, order means nothing",
            )  # fmt: skip
        first.setdefault(rule.pattern, place)
        rules[rule.pattern] = rule
    level = found.parsed("[outbound]", "level", file.outbound.level, parse_level) or Level.AUTO
    if level is Level.DANE_ONLY and file.dns.dnssec == "off":
        found.wrong("[outbound]", "level", quoted(file.outbound.level), _NO_DANE)
    try:
        return RuleSet(tuple(rules.values()), level, parse_level(file.outbound.auto_floor))
    except RuleInvalid as error:  # two of one key were told above: it is the level
        found.wrong("[outbound]", "level", quoted(file.outbound.level), str(error))
        return RuleSet(tuple(rules.values()))


def _rule(found: Findings, place: str, table: PolicyTable, port: int) -> Rule | None:
    pattern = found.parsed(place, "domain", table.domain, lambda text: parse_pattern(text, port))
    level = found.parsed(place, "level", table.level, parse_level)
    match = found.parsed_all(place, "match", table.match, parse_match_item)
    min_tls = found.parsed(place, "min_tls", table.min_tls, parse_min_tls) if table.min_tls else None
    server = found.parsed(place, "servername", table.servername, parse_servername) if table.servername else None
    digests = found.parsed_all(place, "fingerprints", table.fingerprints, parse_fingerprints)
    if table.ca_file:
        found.roots(place, "ca_file", Path(table.ca_file))
    if pattern is None or level is None:
        return None
    rule = Rule(
        pattern=pattern,
        level=level,
        match=match,
        min_tls=min_tls,
        override=table.override,
        reason=table.reason,
        expires=table.expires,
        after_expiry=AfterExpiry(table.after_expiry),
        mode=Mode(table.mode),
        on_failure=OnFailure(table.on_failure),
        ca_file=table.ca_file or None,
        fingerprints=tuple(digest for some in digests for digest in some),
        servername=server,
    )
    for problem in rule.problems():
        _as_a_whole(found, place, table, problem)
    return rule


def _as_a_whole(found: Findings, place: str, table: PolicyTable, problem: str) -> None:
    """Each problem begins with the key it is about, perhaps with its value."""
    parts = _PROBLEM.fullmatch(problem)
    if parts is None or parts[1] not in table.__struct_fields__:
        found.wrong(place, "", "", problem)
        return
    value = getattr(table, parts[1])
    found.wrong(place, parts[1], parts[2] or (quoted(value) if isinstance(value, str) else ""), parts[3])
