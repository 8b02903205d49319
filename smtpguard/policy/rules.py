"""Which local rule speaks about this next hop, and what does it say?  (`[[policy]]`; Postfix policy maps)

A rule is found by the next hop as routed, verbatim (PF-01): exact, then the longest `.parent` (plain domains
only, PF-02), then `*`, then `[outbound] level`.  File order means nothing, two rules for one key are an
error.  What a rule means together with what the domain publishes is engine.py.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from enum import Enum

from smtpguard.events import RuleWarning
from smtpguard.names import (
    Domain,
    NameInvalid,
    parents,
    parse_address,
    parse_address_literal,
    parse_domain,
)
from smtpguard.policy.model import Level
from smtpguard.reasons import printable
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.outcome import TlsVersion


class RuleInvalid(ValueError):
    """A value of a rule means nothing; the message says what would be right (PF-03: never a weaker level)."""


class NameWord(Enum):
    """A name that is known only once the host is: in `match` and `servername` (PF-12, PF-14)."""

    HOSTNAME = "hostname"
    """The MX host's name; trusts the MX records, signed or not."""
    NEXTHOP = "nexthop"
    """The next-hop domain."""
    DOT_NEXTHOP = "dot-nexthop"
    """Any name under the next-hop domain."""


MatchItem = NameWord | DnsId | DotDomain
ServerName = NameWord | Domain


class Mode(Enum):
    """Does the rule decide, or is it judged beside the decision and only recorded?"""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class AfterExpiry(Enum):
    """What becomes of a rule that strengthens once `expires` has passed; one that weakens always ends."""

    KEEP = "keep"
    DROP = "drop"


class OnFailure(Enum):
    """4xx, or 5xx for what the rule itself asks; published policy and DNS always stay 4xx."""

    TEMPFAIL = "tempfail"
    PERMFAIL = "permfail"


def has_expired(expires: date | None, today: date) -> bool:
    """Is `today` (UTC) past the last day of a rule, of `[[policy]]` or `[[inbound_policy]]`?"""
    return expires is not None and today > expires


DEFAULT_MATCH: dict[Level, tuple[MatchItem, ...]] = {
    Level.VERIFY: (NameWord.HOSTNAME,),
    Level.SECURE: (NameWord.NEXTHOP, NameWord.DOT_NEXTHOP),
}
"""Postfix's defaults of smtp_tls_verify_cert_match and smtp_tls_secure_cert_match (PF-10, PF-11)."""

PKIX_LEVELS = frozenset(DEFAULT_MATCH)
AUTHENTICATING_LEVELS = PKIX_LEVELS | {Level.FINGERPRINT, Level.DANE_ONLY}
"""Levels that deliver to nobody who did not prove his name: never weaker than what a domain publishes."""

_DANE_LEVELS = frozenset({Level.AUTO, Level.DANE, Level.DANE_ONLY})
_PERMFAIL_LEVELS = AUTHENTICATING_LEVELS | {Level.ENCRYPT}

_DEFAULT_PATTERN = "[outbound] level"
"""Stands as the pattern of the rule behind all rules; no pattern that is parsed can look like it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[policy]]`.

    `pattern` is a key as parse_pattern gives it.  `override`: the rule holds even where it is weaker than
    what the domain publishes.  `expires` is the last day (UTC) of the rule.  `reason` is free text of the
    operator, shown wherever the rule decides.  `ca_file` replaces the public roots.  `fingerprints` are
    SHA-256 or SHA-512 digests of a leaf certificate or its public key.
    """

    pattern: str
    level: Level
    match: tuple[MatchItem, ...] = ()
    min_tls: TlsVersion | None = None
    override: bool = False
    reason: str = ""
    expires: date | None = None
    after_expiry: AfterExpiry = AfterExpiry.KEEP
    mode: Mode = Mode.ENFORCE
    on_failure: OnFailure = OnFailure.TEMPFAIL
    ca_file: str | None = None
    fingerprints: tuple[bytes, ...] = ()
    servername: ServerName | None = None

    @property
    def is_default(self) -> bool:
        """Is it for everything nobody spoke about: `*`, or `[outbound] level`?"""
        return self.pattern in ("*", _DEFAULT_PATTERN)

    @property
    def is_written(self) -> bool:
        """Is it a `[[policy]]`, and not just `[outbound] level`?"""
        return self.pattern != _DEFAULT_PATTERN

    def is_expired(self, today: date) -> bool:
        """Is `today` (UTC) past the last day?"""
        return has_expired(self.expires, today)

    def problems(self) -> tuple[str, ...]:
        """What is wrong with this rule as a whole, each with what would be right (PF-03, PF-04)."""
        level = self.level
        word = f'level "{level.value}"'
        found: list[str] = []
        if self.match and level not in PKIX_LEVELS:
            found.append(f'match has no meaning at {word}: it belongs to "verify" and "secure"')
        if self.ca_file is not None and level not in PKIX_LEVELS:
            found.append(f'ca_file has no meaning at {word}: it belongs to "verify" and "secure"')
        if self.fingerprints and level is not Level.FINGERPRINT:
            found.append(f'fingerprints have no meaning at {word}: they belong to "fingerprint"')
        if not self.fingerprints and level is Level.FINGERPRINT:
            found.append(f"{word} needs at least one entry in fingerprints")
        if self.min_tls is not None and level is Level.NONE:
            found.append(f"min_tls has no meaning at {word}: TLS is not tried")
        if self.servername is not None and level is Level.NONE:
            found.append(f"servername has no meaning at {word}: TLS is not tried")
        if self.servername is not None and level in _DANE_LEVELS:
            found.append(f"servername has no meaning at {word}: the TLSA base domain or the MX name is sent")
        if self.servername is NameWord.DOT_NEXTHOP:
            found.append('servername must be "hostname", "nexthop" or one host name')
        if self.override and level is Level.AUTO:
            found.append(f"override has no meaning at {word}: what the domain publishes is what applies")
        if self.on_failure is OnFailure.PERMFAIL and level not in _PERMFAIL_LEVELS:
            found.append(f'on_failure = "permfail" has no meaning at {word}: the rule itself asks for nothing')
        if self.after_expiry is AfterExpiry.DROP and self.expires is None:
            found.append("after_expiry has no meaning without expires")
        if level in (Level.DANE, Level.DANE_ONLY) and _is_address_key(self.pattern):
            found.append(f"{word} has no meaning for an address: TLSA records belong to names")
        return tuple(found)


@dataclass(frozen=True, slots=True)
class AppliedRules:
    """All rules that speak about one next hop, the most specific first; the last is `[outbound] level`.

    More than the first counts only where that one is a shadow or has expired: then the next one decides.
    """

    rules: tuple[Rule, ...]
    auto_floor: Level = Level.MAY


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The `[[policy]]` table with what applies where it is silent.

    `level` is a rule without override for everything; `auto_floor` (may, encrypt) is what `auto` asks where
    the domain publishes nothing (CH-01).  Raises RuleInvalid where two rules have one key; see `duplicates`.
    """

    rules: tuple[Rule, ...] = ()
    level: Level = Level.AUTO
    auto_floor: Level = Level.MAY
    _table: dict[str, Rule] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if twice := duplicates(self.rules):
            raise RuleInvalid(f"two rules for {', '.join(twice)}: one key has one rule, order means nothing")
        if self.auto_floor not in (Level.MAY, Level.ENCRYPT):
            raise RuleInvalid('auto_floor must be "may" or "encrypt"')
        if self.level is Level.FINGERPRINT:
            raise RuleInvalid('level "fingerprint" needs fingerprints: it is possible in [[policy]] only')
        object.__setattr__(self, "_table", {rule.pattern: rule for rule in self.rules})

    def find(self, key: str) -> AppliedRules:
        """The rules for a key: `example.org`, `example.org:26`, `[mx.example.org]`, `[192.0.2.1]`."""
        keys = [key]
        if not key.startswith("[") and ":" not in key:
            keys += [f".{parent}" for parent in parents(Domain(key))]
        keys.append("*")
        found = [rule for k in keys if (rule := self._table.get(k)) is not None]
        return AppliedRules((*found, Rule(_DEFAULT_PATTERN, self.level)), self.auto_floor)

    def warnings(self, today: date) -> tuple[RuleWarning, ...]:
        """What an operator should know about rules that are allowed and may not do what they seem to."""
        return tuple(
            RuleWarning(direction="outbound", rule=rule.pattern, domain="", kind=kind, detail=detail)
            for rule in self.rules
            for kind, detail in _doubts(rule, today)
        )


def _doubts(rule: Rule, today: date) -> list[tuple[str, str]]:
    doubts: list[tuple[str, str]] = []
    if rule.pattern == "*" and rule.level is not Level.AUTO:
        if rule.override or rule.level in AUTHENTICATING_LEVELS:
            doubts.append(("star", f"* at level {rule.level.value}: recipients' DANE and MTA-STS are not honoured"))
        else:
            doubts.append(("star", f"* at level {rule.level.value}: holds only where a recipient asks for no more"))
    if rule.is_expired(today):
        fate = "has ended" if rule.after_expiry is AfterExpiry.DROP else "ends where it weakens, stays elsewhere"
        doubts.append(("expired", f"expired on {rule.expires}: {fate}"))
    if rule.level is Level.SECURE and NameWord.HOSTNAME in rule.match:
        # RFC 9325 §7.1: a name from unsigned MX records is no reference identifier.
        doubts.append(("hostname", 'match = "hostname" trusts the MX records, which anyone on the path may forge'))
    return doubts


def duplicates(rules: tuple[Rule, ...]) -> tuple[str, ...]:
    """The keys that more than one rule claims, sorted."""
    claims = Counter(rule.pattern for rule in rules)
    return tuple(sorted(pattern for pattern, count in claims.items() if count > 1))


def parse_pattern(text: str, port: int = 25) -> str:
    """The key of a rule: `example.org`, `.example.org`, `*`, `[host]`, `[192.0.2.1]:587`, `example.org:26`.

    `port` is the port of `[outbound]`; naming it is the same as naming none.  Raises RuleInvalid.
    """
    text = text.strip()
    if text == "*":
        return text
    try:
        if text.startswith("."):
            return f".{parse_domain(text[1:])}"
        if text.startswith("["):
            inner, bracket, rest = text[1:].partition("]")
            if not bracket:
                raise RuleInvalid(f"'{printable(text, 80)}': the ']' is missing")
            return f"[{_parse_host(inner)}]{_parse_port(text, rest, port)}"
        name, colon, rest = text.partition(":")
        return f"{parse_domain(name)}{_parse_port(text, colon + rest, port)}"
    except NameInvalid as error:
        raise RuleInvalid(f'{error}; right would be "example.org", ".example.org", "[host]:port" or "*"') from error


def _parse_host(inner: str) -> str:
    if inner[:5].lower() == "ipv6:":
        return str(parse_address_literal(f"[{inner}]"))
    try:
        return str(parse_address(inner))
    except NameInvalid:
        return parse_domain(inner)


def _parse_port(text: str, rest: str, default: int) -> str:
    if not rest:
        return ""
    digits = rest[1:]
    if rest[0] != ":" or not (digits.isascii() and digits.isdigit()) or not 0 < int(digits[:6]) < 65536:
        raise RuleInvalid(f"'{printable(text, 80)}': after the host only ':' and a port from 1 to 65535 may stand")
    return "" if int(digits) == default else f":{int(digits)}"


def _is_address_key(pattern: str) -> bool:
    if not pattern.startswith("["):
        return False
    try:
        parse_address(pattern[1:].partition("]")[0])
    except NameInvalid:
        return False
    return True


def parse_level(text: str) -> Level:
    """A level by its word.  Raises RuleInvalid."""
    try:
        return Level(text)
    except ValueError as error:
        words = ", ".join(level.value for level in Level)
        raise RuleInvalid(f"'{printable(text, 40)}' is not a level; the levels are {words}") from error


def parse_match_item(text: str) -> MatchItem:
    """`nexthop`, `dot-nexthop`, `hostname`, `example.org`, `.example.org` (PF-12).  Raises RuleInvalid."""
    for word in NameWord:
        if text.lower() == word.value:
            return word
    try:
        return DotDomain(parse_domain(text[1:])) if text.startswith(".") else DnsId(parse_domain(text))
    except NameInvalid as error:
        raise RuleInvalid(
            f'{error}; a match item is "nexthop", "dot-nexthop", "hostname", "example.org" or ".example.org"'
        ) from error


def parse_servername(text: str) -> ServerName:
    """`hostname`, `nexthop` or a host name (PF-14).  Raises RuleInvalid."""
    if text.lower() in ("hostname", "nexthop"):
        return NameWord(text.lower())
    if text.lower() == "dot-nexthop":
        raise RuleInvalid('a servername is "hostname", "nexthop" or one host name')
    try:
        return parse_domain(text)
    except NameInvalid as error:
        raise RuleInvalid(f'{error}; a servername is "hostname", "nexthop" or one host name') from error


def parse_min_tls(text: str) -> TlsVersion:
    """`1.2`, `1.3`, also in Postfix's words `TLSv1.3` and `>=TLSv1.3` (PF-13).  Raises RuleInvalid.

    Nothing below 1.2: RFC 8996 §4, §5 and RFC 8461 §7.2.
    """
    number = text.strip().removeprefix(">=").removeprefix("TLSv")
    for version in (TlsVersion.TLS_1_2, TlsVersion.TLS_1_3):
        if number == version.value:
            return version
    raise RuleInvalid(f'\'{printable(text, 40)}\' is not a lowest TLS version; it must be "1.2" or "1.3"')


_DIGEST_OCTETS = (32, 64)  # SHA-256, SHA-512; a length names its algorithm


def parse_fingerprints(text: str) -> tuple[bytes, ...]:
    """Digests in hex, colons or not, any case, several joined by `|` (PF-09).  Raises RuleInvalid."""
    return tuple(_parse_fingerprint(part.strip()) for part in text.split("|"))


def _parse_fingerprint(text: str) -> bytes:
    right = "it must be the SHA-256 or SHA-512 digest of a certificate or public key in hex"
    wrong = f"'{printable(text, 80)}' is not a fingerprint: {right}"
    digits = text.replace(":", "")
    if ":" in text and any(len(pair) != 2 for pair in text.split(":")):
        raise RuleInvalid(wrong)
    try:
        digest = bytes.fromhex(digits)
    except ValueError as error:
        raise RuleInvalid(wrong) from error
    if len(digest) not in _DIGEST_OCTETS or " " in digits:
        raise RuleInvalid(wrong)
    return digest
