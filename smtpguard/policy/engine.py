"""What must this host show, and did it?  `require` before the connection, `judge` after it.

CONFORMANCE §B4 is the table, tests/tables/policy.ref its print.  published.py says what the domain asks,
levels.py what a rule asks; here the two are weighed (POL-01), and the outcome is held against the result.

An error never asks for less than a good answer could have asked (RFC 7672 §2.1.2): it takes the host out.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from hashlib import sha256
from typing import assert_never

from smtpguard.events import RuleWarning
from smtpguard.names import Domain
from smtpguard.policy.levels import explicit, rule_detail, tightened
from smtpguard.policy.model import (
    Authentication,
    Await,
    Decision,
    Deliver,
    Encryption,
    Fact,
    HostFacts,
    Level,
    Observed,
    Requirement,
    TryNextMx,
    Unknown,
)
from smtpguard.policy.published import Answer, floor, host_of, observed, published, sts_beside
from smtpguard.policy.rules import AUTHENTICATING_LEVELS, AfterExpiry, AppliedRules, Mode, Rule
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.tls.chain import CertChain, matches_fingerprint
from smtpguard.tls.dane import DaneCause, DaneFailed, DaneMatched, verify_dane
from smtpguard.tls.identity import names_match, presented_names
from smtpguard.tls.outcome import StartTls, TlsOutcome
from smtpguard.tls.pkix import PkixCause, PkixFailed, PkixVerified, RootStore, verify_pkix


def require(applied: AppliedRules, facts: HostFacts, today: date) -> Answer:
    """What `facts.mx_host` must show under these rules on `today` (UTC).

    With some facts Unknown the answer is Await, or the one that any value of those facts would give; only
    `observed` may then lack what was not known (nothing waits for the record's sake, but DANE-41).
    """
    rule, rest = applied.rules[0], applied.rules[1:]
    if not rest:
        return _by_rule(rule, applied.auto_floor, facts)
    others = replace(applied, rules=rest)
    answer = _by_rule(rule, applied.auto_floor, facts)
    if rule.mode is Mode.SHADOW:
        without = require(others, facts, today)
        return without if rule.is_expired(today) else _with_shadow(without, answer)
    if not rule.is_expired(today):
        return answer
    return _after_expiry(rule, answer, require(others, facts, today))


def _after_expiry(rule: Rule, answer: Answer, without: Answer) -> Answer:
    """A rule that weakens has ended; one that strengthens stays, unless it says otherwise."""
    if rule.after_expiry is AfterExpiry.DROP:
        return without
    if isinstance(answer, Await) or isinstance(without, Await):
        return Await(_awaited(answer) | _awaited(without))
    if is_weaker(answer, without):
        return without
    if isinstance(answer, Requirement) and isinstance(without, Requirement):
        return replace(answer, tls_floor=max(answer.tls_floor, without.tls_floor))
    return answer


def is_weaker(one: Requirement | TryNextMx, other: Requirement | TryNextMx) -> bool:
    """Does `one` drop encryption or authentication that `other` asks for?  Refusing a host asks for most."""
    if isinstance(one, TryNextMx):
        return False
    if isinstance(other, TryNextMx):
        return True
    if _ENCRYPTION_RANK[one.encryption] < _ENCRYPTION_RANK[other.encryption]:
        return True
    return one.authentication is Authentication.NONE and other.authentication is not Authentication.NONE


_ENCRYPTION_RANK = {Encryption.NEVER: 0, Encryption.IF_OFFERED: 1, Encryption.REQUIRED: 2}


def rule_warnings(
    applied: AppliedRules, answer: Requirement | TryNextMx, domain: Domain | None, today: date
) -> tuple[RuleWarning, ...]:
    """What the rules did to this answer that their author may not expect, for the caller to emit.

    Kinds: `weaker` (not applied, what the domain publishes is), `override` (applied although it is weaker,
    DANE-41), `expired` (applied although its time is over, because it strengthens).
    """
    if isinstance(answer, TryNextMx):
        return ()
    warnings = []
    for rule in applied.rules:
        kinds = {reason.code for reason in answer.reasons if reason.subject == rule.pattern}
        told = [
            (
                "weaker",
                ReasonCode.RULE_WEAKER in kinds,
                f"{ReasonCode.RULE_WEAKER.text}: {answer.policy} applies",
            ),
            (
                "override",
                ReasonCode.RULE_REQUIRES in kinds and any(o.kind == "override" for o in answer.observed),
                f"level {rule.level.value} is applied although the domain asks for more",
            ),
            (
                "expired",
                ReasonCode.RULE_REQUIRES in kinds and rule.is_expired(today),
                f"expired on {rule.expires}, still applied because it strengthens",
            ),
        ]
        warnings += [
            RuleWarning(direction="outbound", rule=rule.pattern, domain=domain or "", kind=kind, detail=detail)
            for kind, true, detail in told
            if true
        ]
    return tuple(warnings)


def _awaited(answer: Answer) -> frozenset[Fact]:
    return answer.facts if isinstance(answer, Await) else frozenset()


def _with_shadow(answer: Answer, shadow: Answer) -> Answer:
    """The enforced answer, with the rule beside it; a shadow is never waited for."""
    if not isinstance(answer, Requirement) or isinstance(shadow, Await):
        return answer
    return replace(answer, observed=(*answer.observed, observed("shadow", shadow)))


def _by_rule(rule: Rule, auto_floor: Level, facts: HostFacts) -> Answer:
    """What one rule asks, after what the domain publishes had its say (POL-01)."""
    if facts.mx_host is None and rule.level is Level.SECURE and rule.is_default and not facts.bracketed:
        # CH-19: nobody can say what certificate an address from an envelope should have.
        return TryNextMx((Reason(ReasonCode.LITERAL_REFUSED, host_of(facts)),), permanent=True)
    if rule.level is Level.AUTO:
        answer = published(facts, floor(auto_floor, facts))
        return tightened(answer, rule) if isinstance(answer, Requirement) else answer
    own = explicit(rule, facts)
    if rule.level in AUTHENTICATING_LEVELS:
        return replace(own, observed=sts_beside(facts)) if isinstance(own, Requirement) else own
    if rule.override:
        return _overridden(own, rule, facts)
    # The floor NONE leaves exactly what the domain asks for, and nothing of ours.
    theirs = published(facts, floor(Level.NONE, facts))
    if isinstance(own, Await) or isinstance(theirs, Await):
        return Await(_awaited(own) | _awaited(theirs))
    if not is_weaker(own, theirs):
        return replace(own, observed=_observations(theirs)) if isinstance(own, Requirement) else own
    if isinstance(theirs, Requirement):
        note = Reason(ReasonCode.RULE_WEAKER, rule.pattern, rule_detail(rule))
        return tightened(replace(theirs, reasons=(*theirs.reasons, note)), rule)
    return theirs


def _observations(answer: Requirement | TryNextMx) -> tuple[Observed, ...]:
    return answer.observed if isinstance(answer, Requirement) else ()


def _overridden(own: Answer, rule: Rule, facts: HostFacts) -> Answer:
    """The rule as it stands, what it sets aside on record (DANE-41): DANE is waited for, and may fail."""
    if isinstance(facts.dane, Unknown) and facts.mx_host is not None:
        return Await(frozenset({Fact.DANE}))
    theirs = published(facts, floor(Level.NONE, facts))
    if not isinstance(own, Requirement):
        return own
    if isinstance(theirs, Await) or not is_weaker(own, theirs):
        return replace(own, observed=sts_beside(facts))
    return replace(own, observed=(observed("override", theirs), *_observations(theirs)))


# --- judge


def judge(
    requirement: Requirement,
    outcome: TlsOutcome,
    now: datetime,
    roots: Callable[[str | None], RootStore],
    subject: str = "",
) -> Decision:
    """Did the host show what was required?

    `now` is aware UTC; `roots` gives the store of a CA file, or the shared one for None.  `subject` names the
    host in reasons (`mx1.example.org[192.0.2.1]:25`); without it, the requirement's own name.  Deliver with
    `encrypted` False after a failed handshake is leave to come again in clear (CH-26), on a new connection.
    """
    failed = _failure(requirement, outcome, now, roots, subject or requirement.host)
    if failed is not None:
        return TryNextMx((_with_rule(failed, requirement),), permanent=_is_permanent(requirement, failed))
    return Deliver(
        authenticated_by=requirement.authentication,
        encrypted=outcome.encrypted,
        observed=tuple(
            (seen.kind, _observed_failure(seen, outcome, now, roots, subject or requirement.host))
            for seen in requirement.observed
        ),
    )


def auth_label(requirement: Requirement, decision: Deliver) -> str:
    """`auth=` of logs and metrics: a half-dane host proved itself, not that the domain named it (DANE-26)."""
    if requirement.policy == "half-dane" and decision.authenticated_by is Authentication.DANE:
        return "host-only"
    return decision.authenticated_by.value


def _observed_failure(
    seen: Observed, outcome: TlsOutcome, now: datetime, roots: Callable[[str | None], RootStore], subject: str
) -> tuple[Reason, ...]:
    if seen.requirement is None:
        return seen.refused
    failed = _failure(seen.requirement, outcome, now, roots, subject)
    return () if failed is None else (failed,)


def _failure(
    requirement: Requirement,
    outcome: TlsOutcome,
    now: datetime,
    roots: Callable[[str | None], RootStore],
    subject: str,
) -> Reason | None:
    """What is missing, or None."""
    if outcome.starttls is StartTls.INJECTED:  # an attack, at every level (AF-09)
        return _seen(ReasonCode.INJECTION, outcome, subject)
    if requirement.encryption is not Encryption.REQUIRED:
        return None
    is_sts = requirement.policy == "sts"
    match outcome.starttls:
        case StartTls.NOT_TRIED | StartTls.NOT_OFFERED:
            return _seen(ReasonCode.STS_NO_STARTTLS if is_sts else ReasonCode.NO_STARTTLS, outcome, subject)
        case StartTls.REFUSED:
            return _seen(ReasonCode.STS_NO_STARTTLS if is_sts else ReasonCode.STARTTLS_REFUSED, outcome, subject)
        case StartTls.FAILED:
            return _seen(ReasonCode.HANDSHAKE, outcome, subject)
        case StartTls.ESTABLISHED:
            pass
        case _:
            assert_never(outcome.starttls)
    if outcome.version is None or not outcome.version >= requirement.tls_floor:
        version = "unknown" if outcome.version is None else outcome.version.value
        detail = f"TLS {version}, at least {requirement.tls_floor.value} is required"
        return Reason(ReasonCode.TLS_TOO_OLD, subject, detail, outcome.failure_code)
    return _unauthenticated(requirement, outcome.chain, now, roots, subject)


def _unauthenticated(
    requirement: Requirement,
    chain: CertChain | None,
    now: datetime,
    roots: Callable[[str | None], RootStore],
    subject: str,
) -> Reason | None:
    match requirement.authentication:
        case Authentication.NONE:
            return None
        case Authentication.DANE:
            if chain is None or requirement.tlsa is None:
                return Reason(ReasonCode.DANE_NO_MATCH, subject, _NO_CERTIFICATE)
            return _dane_failure(verify_dane(chain, requirement.tlsa, requirement.match_ids, now), subject)
        case Authentication.PKIX:
            codes = _STS_CODES if requirement.policy == "sts" else _PKIX_CODES
            if chain is None:
                return Reason(codes[PkixCause.UNTRUSTED], subject, _NO_CERTIFICATE)
            match verify_pkix(chain, roots(requirement.anchors), now):
                case PkixFailed(cause, code, detail):
                    return Reason(codes[cause], subject, detail or code, code)
                case PkixVerified():
                    pass
            if names_match(chain.leaf, requirement.match_ids):
                return None
            shown = ", ".join(presented_names(chain.leaf)) or "no DNS name"
            return Reason(codes["name"], subject, f"the certificate names {shown}")
        case Authentication.FINGERPRINT:
            if chain is None:
                return Reason(ReasonCode.FINGERPRINT, subject, _NO_CERTIFICATE)
            return _fingerprint_failure(requirement, chain, subject)
    assert_never(requirement.authentication)


_NO_CERTIFICATE = "the host sent no certificate"

_STS_CODES: dict[PkixCause | str, ReasonCode] = {
    PkixCause.EXPIRED: ReasonCode.STS_EXPIRED,
    PkixCause.UNTRUSTED: ReasonCode.STS_UNTRUSTED,
    "name": ReasonCode.STS_NAME,
}
_PKIX_CODES: dict[PkixCause | str, ReasonCode] = {
    PkixCause.EXPIRED: ReasonCode.PKIX_EXPIRED,
    PkixCause.UNTRUSTED: ReasonCode.PKIX_UNTRUSTED,
    "name": ReasonCode.PKIX_NAME,
}
_DANE_CODES = {
    DaneCause.NO_MATCH: ReasonCode.DANE_NO_MATCH,
    DaneCause.NAME: ReasonCode.DANE_NAME,
    DaneCause.EXPIRED: ReasonCode.DANE_EXPIRED,
    DaneCause.CHAIN: ReasonCode.DANE_CHAIN,
}


def _dane_failure(verdict: DaneMatched | DaneFailed, subject: str) -> Reason | None:
    """A failed DANE check is final: nothing else is tried (DANE-39)."""
    match verdict:
        case DaneMatched():
            return None
        case DaneFailed(cause, code, detail):
            return Reason(_DANE_CODES[cause], subject, detail, code)
    assert_never(verdict)


def _fingerprint_failure(requirement: Requirement, chain: CertChain, subject: str) -> Reason | None:
    """PF-09: the leaf or its public key; CA, name and dates do not matter."""
    if matches_fingerprint(chain.leaf, requirement.fingerprints):
        return None
    return Reason(ReasonCode.FINGERPRINT, subject, f"its SHA-256 is {sha256(chain.leaf.der).hexdigest()}")


def _seen(code: ReasonCode, outcome: TlsOutcome, subject: str) -> Reason:
    """What the host did, with the RFC 8460 failure code (`smtp-reply-454`) in the text too."""
    parts = [outcome.failure_code] if outcome.failure_code not in outcome.detail else []
    return Reason(code, subject, ": ".join(p for p in (*parts, outcome.detail) if p), outcome.failure_code)


def _with_rule(failed: Reason, requirement: Requirement) -> Reason:
    """The operator's own words stand wherever his rule refuses."""
    for reason in requirement.reasons:
        if reason.code is ReasonCode.RULE_REQUIRES:
            said = f"rule {reason.subject}: {reason.detail}"
            return replace(failed, detail=f"{failed.detail}; {said}" if failed.detail else said)
    return failed


_NEVER_PERMANENT = frozenset({ReasonCode.HANDSHAKE, ReasonCode.INJECTION})


def _is_permanent(requirement: Requirement, failed: Reason) -> bool:
    """on_failure = "permfail" is for what the host says of itself: a broken handshake or injected octets may
    be anybody's on the path, and 454 says itself that it passes."""
    passes = failed.code in _NEVER_PERMANENT or failed.failure_code.startswith("smtp-reply-4")
    return requirement.permanent and not passes
