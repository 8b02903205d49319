"""What do this `_mta-sts` TXT record and this policy file say?  (RFC 8461 §3.1, §3.2, §4.1)

In: octets of the network.  Out: values, or why they are not valid.  No I/O, no clock.  The grammar is the
RFC's ABNF with its errata: WSP before `;` (6285), LF beside CRLF (6253), `max_age` cut to one year (7282).

In one point it is wider: blank lines in a policy are skipped.  The ABNF has none, but editors leave them at the end of
files, senders differ (postfix-tlspol skips them, mox and go-mtasts do not), and a
policy that is refused for one protects nobody.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from smtpguard.names import Domain, NameInvalid, parse_domain
from smtpguard.reasons import ReasonCode, ResultType, printable

MAX_POLICY_OCTETS = 65536
"""RFC 8461 §3.3 suggests 64 KiB."""
MAX_AGE_LIMIT_SECONDS = 31557600
"""RFC 8461 §3.2: about a year."""
_MAX_SHOWN_LINES = 128
_MAX_SHOWN_LINE = 512


class Mode(Enum):
    """RFC 8461 §5."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class MxPattern:
    """One `mx` value: a host name, or with `wildcard` exactly one label before `domain` (RFC 8461 §4.1)."""

    domain: Domain
    wildcard: bool = False

    def matches(self, host: Domain) -> bool:
        """Is `host`, the name in the MX record, what this pattern allows?"""
        if self.wildcard:
            # RFC 8461 §4.1: the wildcard is the whole leftmost label, and only that one.
            return host.partition(".")[2] == self.domain
        return host == self.domain

    def __str__(self) -> str:
        return f"*.{self.domain}" if self.wildcard else self.domain


@dataclass(frozen=True, slots=True)
class ParsedPolicy:
    """A valid policy file.  `max_age_seconds` is clamped; `lines` are as served, printable and bounded."""

    mode: Mode
    max_age_seconds: int
    mx: tuple[MxPattern, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyInvalid:
    """The policy file does not follow the grammar; `detail` is printable."""

    detail: str


@dataclass(frozen=True, slots=True)
class StsId:
    """The `id` of the one valid TXT record; compared for equality only (RFC 8461 §3.1)."""

    id: str


@dataclass(frozen=True, slots=True)
class NoStsRecord:
    """The TXT records announce no policy.  `published`: one tried to, and is not valid."""

    why: str
    published: bool = False


@dataclass(frozen=True, slots=True)
class NoSts:
    """MTA-STS does not apply: the domain announces no policy, or its policy has mode `none`."""


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """The unexpired policy of a domain, mode `enforce` or `testing`.

    `stale`: no live policy could be had and the cached one is used (RFC 8461 §3.3, §6); then `result_type`
    and `failure_code` say what failed, as RFC 8460 reports it.
    """

    domain: Domain
    id: str
    mode: Mode
    max_age_seconds: int
    mx: tuple[MxPattern, ...]
    lines: tuple[str, ...] = ()
    stale: bool = False
    result_type: ResultType | None = None
    failure_code: str = ""

    def matches(self, host: Domain) -> bool:
        """Does the policy list this MX host, by its name in the MX record?"""
        return any(pattern.matches(host) for pattern in self.mx)


@dataclass(frozen=True, slots=True)
class StsUnavailable:
    """The domain may have a policy, and it cannot be had: `code` says at which step, `failure_code` how.

    `defer`: nothing may be delivered (the TXT lookup failed, or the failure is ours); else mail goes on as
    without MTA-STS, and the failure is reported (RFC 8461 §3.3).
    """

    code: ReasonCode
    detail: str
    failure_code: str
    defer: bool = False


# RFC 8461 §3.1; erratum 6285 doubts the WSP before ";", which the ABNF allows.
_IS_STS_RECORD = re.compile(rb"v=STSv1[ \t]*;")
_TXT_FIELD = re.compile(rb"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})=([\x21-\x3a\x3c\x3e-\x7e]+)")
_ID = re.compile(rb"[A-Za-z0-9]{1,32}")


def parse_txt(records: Sequence[bytes]) -> StsId | NoStsRecord:
    """The policy id that the TXT records of `_mta-sts.<domain>` announce; strings of a record are joined."""
    candidates = [record for record in records if _IS_STS_RECORD.match(record)]
    if not candidates:
        return NoStsRecord("no TXT record begins with v=STSv1;")
    if len(candidates) > 1:
        # RFC 8461 §3.1: not exactly one means the domain does not implement MTA-STS.
        return NoStsRecord(f"{len(candidates)} TXT records begin with v=STSv1;", published=True)
    *fields, last = candidates[0].split(b";")[1:]
    fields = [field.strip(b" \t") for field in fields]
    if last.lstrip(b" \t"):  # else the optional final delimiter; WSP may follow it, never a field
        fields.append(last.lstrip(b" \t"))
    policy_id: bytes | None = None
    for field in fields:
        parsed = _TXT_FIELD.fullmatch(field)
        if parsed is None:
            return NoStsRecord(f"the TXT record has an invalid field: {printable(field, 80)}", published=True)
        if parsed[1] == b"id" and policy_id is None:
            policy_id = parsed[2]
    if policy_id is None:
        return NoStsRecord("the TXT record has no id", published=True)
    if not _ID.fullmatch(policy_id):
        return NoStsRecord(f"the TXT record has an invalid id: {printable(policy_id, 80)}", published=True)
    return StsId(policy_id.decode("ascii"))


# A HTAB may stand around a value, never inside it (sts-policy-ext-value).
_POLICY_FIELD = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31}):[ \t]*([^\x00-\x20\x7f][^\x00-\x1f\x7f]*)")
_SEPARATOR = re.compile(rb"\r?\n")
_MAX_AGE = re.compile(r"[0-9]{1,10}")
# RFC 5321 §4.1.2 Domain: no underscore, no final dot, A-labels only.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_MX = re.compile(rf"(\*\.)?({_LABEL}(?:\.{_LABEL})*)")


def parse_policy(octets: bytes) -> ParsedPolicy | PolicyInvalid:
    """The policy in the body of `https://mta-sts.<domain>/.well-known/mta-sts.txt`."""
    if len(octets) > MAX_POLICY_OCTETS:
        return PolicyInvalid("the policy has more than 65536 octets")
    try:
        lines = [line.decode("utf-8") for line in _SEPARATOR.split(octets)]
    except UnicodeDecodeError:
        return PolicyInvalid("the policy is not UTF-8")
    first: dict[str, str] = {}
    patterns: list[MxPattern] = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip(" \t")
        if not line:
            continue
        field = _POLICY_FIELD.fullmatch(line)
        if field is None:
            return PolicyInvalid(f"line {number} is not `key: value`: {printable(line, 80)}")
        key, value = field[1], field[2]
        if key == "mx":
            pattern = _parse_mx(value)
            if pattern is None:
                return PolicyInvalid(f"line {number}: mx is not a host name: {printable(value, 80)}")
            patterns.append(pattern)
        else:
            first.setdefault(key, value)  # RFC 8461 §3.2: of a repeated field all but the first are ignored
    fault = _fault(first, patterns)
    if fault:
        return PolicyInvalid(fault)
    return ParsedPolicy(
        mode=Mode(first["mode"]),
        max_age_seconds=min(int(first["max_age"]), MAX_AGE_LIMIT_SECONDS),
        mx=tuple(patterns),
        lines=tuple(printable(line, _MAX_SHOWN_LINE) for line in filter(str.strip, lines[:_MAX_SHOWN_LINES])),
    )


def _fault(fields: dict[str, str], patterns: Sequence[MxPattern]) -> str:
    """What is missing or wrong in the fields that a policy must have; empty where nothing is."""
    for key in ("version", "mode", "max_age"):
        if key not in fields:
            return f"{key} is missing"
    if fields["version"] != "STSv1":
        return f"version is not STSv1: {printable(fields['version'], 40)}"
    mode = fields["mode"]
    if mode not in {"enforce", "testing", "none"}:
        return f"mode is not enforce, testing or none: {printable(mode, 40)}"
    if not _MAX_AGE.fullmatch(fields["max_age"]):
        return f"max_age is not a number of 1 to 10 digits: {printable(fields['max_age'], 40)}"
    if mode != "none" and not patterns:
        return f"mode is {mode} and there is no mx"
    return ""


def _parse_mx(value: str) -> MxPattern | None:
    parsed = _MX.fullmatch(value) if len(value) <= 255 else None
    if parsed is None:
        return None
    try:
        return MxPattern(parse_domain(parsed[2]), wildcard=parsed[1] is not None)
    except NameInvalid:
        return None
