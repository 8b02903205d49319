"""What holds for all rules and all facts."""

from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.dns.records import NoTlsa, Security
from smtpguard.mtasts.parse import NoSts
from smtpguard.policy.engine import is_weaker, judge, require
from smtpguard.policy.model import (
    Authentication,
    Await,
    Deliver,
    Encryption,
    Fact,
    Level,
    Requirement,
    TryNextMx,
    Unknown,
)
from smtpguard.policy.rules import AfterExpiry, AppliedRules, Mode, OnFailure, Rule, RuleSet
from smtpguard.reasons import ReasonCode
from smtpguard.tls.outcome import StartTls, TlsOutcome, TlsVersion
from smtpguard.tls.pkix import RootStore
from tests.policy.samples import (
    BOGUS,
    DEFERRED,
    DOMAIN,
    ENFORCE,
    FACTS,
    LOST,
    MODE_NONE,
    NOW,
    TESTING,
    TESTING_UNLISTED,
    TIMED_OUT,
    TODAY,
    UNAVAILABLE,
    UNLISTED,
    UNUSABLE,
    USABLE,
)

GOOD_DANE = (NoTlsa(), USABLE, UNUSABLE)
BAD_DANE = (TIMED_OUT, BOGUS, LOST)
GOOD_STS = (NoSts(), ENFORCE, UNLISTED, TESTING, TESTING_UNLISTED, MODE_NONE)
AUTO_MAY = RuleSet().find(DOMAIN)


def _rules(pattern: str) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        pattern=st.just(pattern),
        level=st.sampled_from(Level),
        override=st.booleans(),
        min_tls=st.sampled_from([None, TlsVersion.TLS_1_3]),
        expires=st.sampled_from([None, TODAY, TODAY - timedelta(days=1)]),
        after_expiry=st.sampled_from(AfterExpiry),
        mode=st.sampled_from(Mode),
        on_failure=st.sampled_from(OnFailure),
        fingerprints=st.just((bytes(32),)),
    )


@st.composite
def rule_sets(draw: st.DrawFn) -> AppliedRules:
    patterns = draw(st.lists(st.sampled_from([DOMAIN, ".org", "*"]), unique=True, max_size=3))
    rules = tuple(draw(_rules(pattern)) for pattern in patterns)
    level = draw(st.sampled_from([level for level in Level if level is not Level.FINGERPRINT]))
    return RuleSet(rules, level, draw(st.sampled_from([Level.MAY, Level.ENCRYPT]))).find(DOMAIN)


def facts(dane=GOOD_DANE + BAD_DANE, sts=(*GOOD_STS, UNAVAILABLE, DEFERRED)) -> st.SearchStrategy:
    return st.builds(
        lambda security, bracketed, dane, sts: replace(
            FACTS, mx_security=security, bracketed=bracketed, dane=dane, sts=sts
        ),
        st.sampled_from(Security),
        st.booleans(),
        st.sampled_from(dane),
        st.sampled_from(sts),
    )


def _enforced(answer: object) -> object:
    """The answer without what is only recorded."""
    return replace(answer, observed=()) if isinstance(answer, Requirement) else answer


def _override_decides(rules: AppliedRules) -> bool:
    return any(rule.override for rule in rules.rules)


@settings(max_examples=400, deadline=None)
@given(rule_sets(), facts(), st.sets(st.sampled_from(Fact)))
def test_any_subset_of_facts_unknown_gives_await_or_the_same_answer(rules, known, missing):
    """DESIGN §5: one order of judgement, whatever arrives first.  What is awaited is missing."""
    whole = require(rules, known, TODAY)
    assert not isinstance(whole, Await)
    dane = Unknown() if Fact.DANE in missing else known.dane
    sts = Unknown() if Fact.STS in missing else known.sts
    answer = require(rules, replace(known, dane=dane, sts=sts), TODAY)
    if isinstance(answer, Await):
        assert answer.facts
        assert answer.facts <= missing
    else:
        assert _enforced(answer) == _enforced(whole)


@settings(max_examples=400, deadline=None)
@given(rule_sets(), facts(GOOD_DANE, GOOD_STS), st.sampled_from([None, *BAD_DANE]), st.booleans())
def test_inv_05_an_error_never_asks_for_less_than_a_good_answer(rules, good, bad_dane, bad_sts):
    """INV-05, RFC 7672 §2.1.2; the named exception STS-15 (defer False) is not drawn here."""
    if _override_decides(rules):
        rules = replace(rules, rules=tuple(replace(rule, override=False) for rule in rules.rules))
    bad = replace(good, dane=bad_dane or good.dane, sts=DEFERRED if bad_sts else good.sts)
    best, worst = require(rules, good, TODAY), require(rules, bad, TODAY)
    assert not isinstance(best, Await)
    assert not isinstance(worst, Await)
    assert not is_weaker(worst, best)
    if isinstance(best, Requirement) and isinstance(worst, Requirement):
        assert worst.tls_floor >= best.tls_floor


@settings(max_examples=200, deadline=None)
@given(rule_sets(), facts(GOOD_DANE, GOOD_STS), st.sampled_from(BAD_DANE))
def test_inv_05_an_override_is_the_same_in_good_and_bad_times(rules, good, bad_dane):
    """With an override the operator has decided, and an error changes that only to refuse."""
    best, worst = require(rules, good, TODAY), require(rules, replace(good, dane=bad_dane), TODAY)
    assert not isinstance(best, Await)
    assert not isinstance(worst, Await)
    assert not is_weaker(worst, best)


@settings(max_examples=400, deadline=None)
@given(rule_sets(), facts())
def test_pol_01_no_rule_without_override_lowers_what_is_published(rules, known):
    rules = replace(rules, rules=tuple(replace(rule, override=False) for rule in rules.rules))
    answer = require(rules, known, TODAY)
    published = require(replace(rules, rules=(Rule("*", Level.AUTO),), auto_floor=Level.MAY), known, TODAY)
    assert not isinstance(answer, Await)
    assert not isinstance(published, Await)
    if isinstance(published, TryNextMx):
        # An authenticating rule stands on its own feet (POL-01): it asks for a proof anyway.
        assert isinstance(answer, TryNextMx) or answer.authentication is not Authentication.NONE
    elif published.policy in ("dane", "half-dane", "dane-unusable", "sts"):
        assert not is_weaker(answer, published)


@settings(max_examples=300, deadline=None)
@given(rule_sets(), facts())
def test_a_shadow_changes_no_answer(rules, known):
    rules = replace(rules, rules=(Rule(DOMAIN, Level.SECURE, mode=Mode.SHADOW), *rules.rules))
    without = replace(rules, rules=rules.rules[1:])
    assert _enforced(require(rules, known, TODAY)) == _enforced(require(without, known, TODAY))


OUTCOMES = [TlsOutcome(starttls) for starttls in StartTls] + [
    TlsOutcome(StartTls.ESTABLISHED, version=version) for version in TlsVersion
]


def _no_roots(anchors: str | None) -> RootStore:
    raise AssertionError("without a certificate nobody asks for roots")


@settings(max_examples=400, deadline=None)
@given(rule_sets(), facts(), st.sampled_from(OUTCOMES))
def test_inv_04_judge_never_delivers_in_clear_where_encryption_is_required(rules, known, outcome):
    """INV-04, TLS-10; and without a certificate nobody is authenticated."""
    requirement = require(rules, known, TODAY)
    if not isinstance(requirement, Requirement):
        return
    decision = judge(requirement, outcome, NOW, _no_roots)
    if isinstance(decision, Deliver):
        assert decision.encrypted == outcome.encrypted
        assert decision.encrypted or requirement.encryption is not Encryption.REQUIRED
        assert decision.authenticated_by.value == "none"
        assert outcome.starttls is not StartTls.INJECTED
    else:
        assert len(decision.reasons) == 1
        assert decision.reasons[0].code.reply_code == 451


@settings(max_examples=200, deadline=None)
@given(rule_sets(), facts())
def test_every_answer_says_why(rules, known):
    """DESIGN §2 law 6; what comes from DNS or MTA-STS is never permanent (CH-29)."""
    answer = require(rules, known, TODAY)
    assert isinstance(answer, Requirement | TryNextMx)
    assert answer.reasons
    if isinstance(answer, TryNextMx) and answer.permanent:
        assert answer.reasons[0].code in (ReasonCode.DANE_REQUIRED, ReasonCode.DANE_INSECURE_MX)
