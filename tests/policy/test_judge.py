"""Did the host show it?  Real certificates, every reason code."""

import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smtpguard.dns.records import TlsaRecord
from smtpguard.names import Domain
from smtpguard.policy.engine import auth_label, judge, require
from smtpguard.policy.model import Authentication, Decision, Deliver, Level, Observed, Requirement, TryNextMx
from smtpguard.policy.rules import OnFailure, Rule
from smtpguard.reasons import ReasonCode
from smtpguard.tls.chain import CertChain, chain_of
from smtpguard.tls.dane import UsableTlsa
from smtpguard.tls.outcome import StartTls, TlsOutcome, TlsVersion
from smtpguard.tls.pkix import RootStore
from tests.policy.samples import (
    DOMAIN,
    ENFORCE,
    FACTS,
    INSECURE_MX,
    MX,
    NOW,
    TESTING,
    TODAY,
    UNLISTED,
    UNUSABLE,
    USABLE,
    applied,
)

SUBJECT = "mx1.example.net[192.0.2.1]:25"


class _Authority:
    """A test CA, its store, and chains it signed."""

    def __init__(self, folder) -> None:
        self.ca = trustme.CA()
        path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        self.path = str(path)
        self.roots = RootStore.load(path)

    @property
    def der(self) -> bytes:
        return x509.load_pem_x509_certificate(self.ca.cert_pem.bytes()).public_bytes(Encoding.DER)

    def chain(self, *names: str, **more) -> CertChain:
        leaf = self.ca.issue_cert(*names, **more)
        return chain_of(
            x509.load_pem_x509_certificate(pem.bytes()).public_bytes(Encoding.DER) for pem in leaf.cert_chain_pems
        )


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> _Authority:
    return _Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> _Authority:
    return _Authority(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def good(ours) -> CertChain:
    return ours.chain(MX)


def _shown(chain: CertChain | None, version: TlsVersion = TlsVersion.TLS_1_3) -> TlsOutcome:
    return TlsOutcome(StartTls.ESTABLISHED, version=version, chain=chain)


def _required(facts=FACTS, *rules: Rule, **defaults: object) -> Requirement:
    answer = require(applied(*rules, **defaults), facts, TODAY)
    assert isinstance(answer, Requirement)
    return answer


def _judged(requirement: Requirement, outcome: TlsOutcome, authority: _Authority, now=NOW) -> Decision:
    return judge(requirement, outcome, now, lambda anchors: authority.roots, SUBJECT)


def _code(decision: Decision) -> ReasonCode | None:
    """None for Deliver."""
    return decision.reasons[0].code if isinstance(decision, TryNextMx) else None


@pytest.fixture(scope="module", autouse=True)
def now_is_inside_validity(good):
    assert good.leaf.not_before < NOW < good.leaf.not_after


DANE = _required(replace(FACTS, dane=USABLE))
STS = _required(replace(FACTS, sts=ENFORCE))
MAY = _required()
ENCRYPT = _required(auto_floor=Level.ENCRYPT)
UNUSABLE_DANE = _required(replace(FACTS, dane=UNUSABLE))
NONE = _required(FACTS, Rule(DOMAIN, Level.NONE))
SECURE = _required(FACTS, Rule(DOMAIN, Level.SECURE))
VERIFY = _required(FACTS, Rule(DOMAIN, Level.VERIFY))

NOT_OFFERED = TlsOutcome(StartTls.NOT_OFFERED)
REFUSED = TlsOutcome(StartTls.REFUSED, "454 4.3.0 TLS not available", "smtp-reply-454")
FAILED = TlsOutcome(StartTls.FAILED, "alert handshake failure", "tls-alert-40")
INJECTED = TlsOutcome(StartTls.INJECTED)


@pytest.mark.parametrize(
    ("outcome", "others", "sts"),
    [
        (NOT_OFFERED, ReasonCode.NO_STARTTLS, ReasonCode.STS_NO_STARTTLS),
        (TlsOutcome(StartTls.NOT_TRIED), ReasonCode.NO_STARTTLS, ReasonCode.STS_NO_STARTTLS),
        (REFUSED, ReasonCode.STARTTLS_REFUSED, ReasonCode.STS_NO_STARTTLS),
        (FAILED, ReasonCode.HANDSHAKE, ReasonCode.HANDSHAKE),
        (INJECTED, ReasonCode.INJECTION, ReasonCode.INJECTION),
        (_shown(None, TlsVersion.TLS_1_1), ReasonCode.TLS_TOO_OLD, ReasonCode.TLS_TOO_OLD),
        (TlsOutcome(StartTls.ESTABLISHED), ReasonCode.TLS_TOO_OLD, ReasonCode.TLS_TOO_OLD),
    ],
)
def test_af_01_02_03_07_09_without_tls(ours, outcome, others, sts):
    """AF-01, AF-02, AF-03, AF-07, AF-09, DANE-19, DANE-20, STS-27, STS-28."""
    for requirement in (DANE, UNUSABLE_DANE, ENCRYPT, SECURE, VERIFY):
        assert _code(_judged(requirement, outcome, ours)) is others
    assert _code(_judged(STS, outcome, ours)) is sts


def test_tls_10_may_and_none_go_on_in_clear_but_not_after_injection(ours):
    """PF-04, PF-05, CH-26, AF-09."""
    for requirement in (MAY, NONE):
        for outcome in (NOT_OFFERED, REFUSED, FAILED, TlsOutcome(StartTls.NOT_TRIED)):
            assert _judged(requirement, outcome, ours) == Deliver(Authentication.NONE, encrypted=False)
        assert _code(_judged(requirement, INJECTED, ours)) is ReasonCode.INJECTION


def test_pf_05_06_dane_20_any_certificate_will_do(ours, theirs):
    """PF-05, PF-06, DANE-20: TLS without authentication."""
    for requirement in (MAY, ENCRYPT, UNUSABLE_DANE):
        for chain in (theirs.chain("wrong.example"), None):
            assert _judged(requirement, _shown(chain), ours) == Deliver(Authentication.NONE, encrypted=True)


def test_the_failure_code_stays(ours):
    """RM-01, RM-14: in the reason and in its text."""
    for outcome in (REFUSED, FAILED):
        decision = _judged(DANE, outcome, ours)
        assert isinstance(decision, TryNextMx)
        (reason,) = decision.reasons
        assert (reason.subject, reason.failure_code) == (SUBJECT, outcome.failure_code)
        assert outcome.failure_code in reason.detail
        assert outcome.detail in reason.detail


@pytest.mark.parametrize(
    ("requirement", "untrusted", "expired", "name"),
    [
        (STS, ReasonCode.STS_UNTRUSTED, ReasonCode.STS_EXPIRED, ReasonCode.STS_NAME),
        (VERIFY, ReasonCode.PKIX_UNTRUSTED, ReasonCode.PKIX_EXPIRED, ReasonCode.PKIX_NAME),
    ],
    ids=["sts", "verify"],
)
def test_af_04_05_06_pkix(ours, theirs, good, requirement, untrusted, expired, name):
    """AF-04, AF-05, AF-06, STS-25, STS-28, PF-10."""
    assert _judged(requirement, _shown(good), ours) == Deliver(Authentication.PKIX, encrypted=True)
    assert _code(_judged(requirement, _shown(theirs.chain(MX)), ours)) is untrusted
    assert _code(_judged(requirement, _shown(None), ours)) is untrusted
    wrong = _judged(requirement, _shown(ours.chain("wrong.example")), ours)
    assert _code(wrong) is name
    assert isinstance(wrong, TryNextMx)
    assert "wrong.example" in wrong.reasons[0].detail
    old = ours.chain(MX, not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1))
    decision = _judged(requirement, _shown(old), ours)
    assert _code(decision) is expired
    assert isinstance(decision, TryNextMx)
    assert decision.reasons[0].failure_code.startswith("X509_V_ERR")
    assert not decision.permanent  # STS-31


def test_pf_10_11_a_spoofed_mx_with_its_own_good_certificate(ours, good):
    """PF-10 accepts it (documented weakness), PF-11 does not."""
    assert _code(_judged(VERIFY, _shown(good), ours)) is None
    assert _code(_judged(SECURE, _shown(good), ours)) is ReasonCode.PKIX_NAME
    assert _code(_judged(SECURE, _shown(ours.chain(f"a.b.{DOMAIN}")), ours)) is None
    assert _code(_judged(SECURE, _shown(ours.chain(DOMAIN)), ours)) is None


def test_pf_14_the_rules_own_ca_file_replaces_the_roots(ours, theirs):
    rule = Rule(DOMAIN, Level.VERIFY, ca_file=theirs.path)
    stores = {None: ours.roots, theirs.path: theirs.roots}
    requirement = _required(FACTS, rule)
    assert _code(judge(requirement, _shown(theirs.chain(MX)), NOW, stores.__getitem__)) is None
    assert _code(judge(requirement, _shown(ours.chain(MX)), NOW, stores.__getitem__)) is ReasonCode.PKIX_UNTRUSTED


def test_pf_09_fingerprint_of_certificate_or_key(ours, theirs, good):
    """PF-09: CA, name and dates are ignored."""
    leaf = x509.load_der_x509_certificate(good.leaf.der)
    key = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for digest in (hashlib.sha256(good.leaf.der), hashlib.sha256(key), hashlib.sha512(key)):
        rule = Rule(DOMAIN, Level.FINGERPRINT, fingerprints=(bytes(32), digest.digest()))
        requirement = _required(FACTS, rule)
        decision = _judged(requirement, _shown(good), theirs, NOW + timedelta(days=9999))
        assert decision == Deliver(Authentication.FINGERPRINT, encrypted=True)
        for chain in (ours.chain(MX), None):
            assert _code(_judged(requirement, _shown(chain), ours)) is ReasonCode.FINGERPRINT


def _tlsa(usage: int, der: bytes) -> UsableTlsa:
    record = TlsaRecord(usage, 0, 1, hashlib.sha256(der).digest())
    return UsableTlsa(MX, (record,), (record,))


def test_dane_19_30_an_ee_match_asks_for_nothing_else(ours, theirs):
    """DANE-19, DANE-30."""
    chain = theirs.chain("wrong.example", not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1))
    requirement = _required(replace(FACTS, dane=_tlsa(3, chain.leaf.der)))
    assert _judged(requirement, _shown(chain), ours) == Deliver(Authentication.DANE, encrypted=True)


def test_dane_39_sts_36_a_failed_dane_check_is_final(ours, good):
    """DANE-39, STS-36: a trusted certificate and a listing policy do not help."""
    requirement = _required(replace(FACTS, dane=USABLE, sts=ENFORCE))
    assert _code(_judged(requirement, _shown(good), ours)) is ReasonCode.DANE_NO_MATCH
    assert _code(_judged(requirement, _shown(None), ours)) is ReasonCode.DANE_NO_MATCH


@pytest.mark.parametrize(
    ("names", "mx_secure", "code"),
    [
        ((MX,), True, None),
        ((DOMAIN,), True, None),
        (("other.example",), True, ReasonCode.DANE_NAME),
        ((MX,), False, None),
        ((DOMAIN,), False, ReasonCode.DANE_NAME),
    ],
)
def test_dane_31_32_33_names_under_a_trust_anchor(ours, theirs, names, mx_secure, code):
    """DANE-31, DANE-32, DANE-33."""
    chain = theirs.chain(*names)
    chain = CertChain(chain.leaf, (*chain.rest, chain_of([theirs.der]).leaf))
    facts = FACTS if mx_secure else INSECURE_MX
    requirement = _required(replace(facts, dane=_tlsa(2, theirs.der)))
    assert _code(_judged(requirement, _shown(chain), ours)) is code


def test_af_06_dane_ta_checks_dates_and_chains(ours, theirs):
    requirement = _required(replace(FACTS, dane=_tlsa(2, theirs.der)))
    anchor = chain_of([theirs.der]).leaf
    old = theirs.chain(MX, not_before=NOW - timedelta(days=9), not_after=NOW - timedelta(days=1))
    decision = _judged(requirement, _shown(CertChain(old.leaf, (anchor,))), ours)
    assert _code(decision) is ReasonCode.DANE_EXPIRED
    stranger = CertChain(ours.chain(MX).leaf, (anchor,))
    assert _code(_judged(requirement, _shown(stranger), ours)) in (
        ReasonCode.DANE_CHAIN,
        ReasonCode.DANE_NO_MATCH,
    )


def test_dane_26_half_dane_is_host_only(ours, good):
    """DANE-26: never called verified delivery to the domain."""
    half = _required(replace(INSECURE_MX, dane=_tlsa(3, good.leaf.der)))
    decision = _judged(half, _shown(good), ours)
    assert isinstance(decision, Deliver)
    assert auth_label(half, decision) == "host-only"
    whole = _required(replace(FACTS, dane=_tlsa(3, good.leaf.der)))
    decision = _judged(whole, _shown(good), ours)
    assert isinstance(decision, Deliver)
    assert auth_label(whole, decision) == "dane"


def test_min_tls_is_judged(ours, good):
    """PF-13, and a pooled session is held against the new floor."""
    requirement = replace(VERIFY, tls_floor=TlsVersion.TLS_1_3)
    assert _code(_judged(requirement, _shown(good, TlsVersion.TLS_1_2), ours)) is ReasonCode.TLS_TOO_OLD
    assert _code(_judged(requirement, _shown(good), ours)) is None


def test_sts_29_testing_fails_beside_the_delivery(ours, theirs, good):
    """STS-29, CH-04: what was observed comes with the delivery."""
    testing = _required(replace(FACTS, sts=TESTING))
    for outcome, seen in [
        (_shown(good), ()),
        (_shown(theirs.chain(MX)), (ReasonCode.STS_UNTRUSTED,)),
        (NOT_OFFERED, (ReasonCode.STS_NO_STARTTLS,)),
    ]:
        decision = _judged(testing, outcome, ours)
        assert isinstance(decision, Deliver)
        ((kind, reasons),) = decision.observed
        assert (kind, tuple(reason.code for reason in reasons)) == ("sts-testing", seen)


def test_an_unlisted_mx_is_observed_as_refused(ours, good):
    facts = replace(FACTS, dane=_tlsa(3, good.leaf.der), sts=UNLISTED)
    decision = _judged(_required(facts), _shown(good), ours)
    assert isinstance(decision, Deliver)
    ((kind, reasons),) = decision.observed
    assert (kind, reasons[0].code) == ("sts", ReasonCode.STS_MX)


def test_dane_41_the_dane_verdict_stands_beside_an_override(ours, good):
    """DANE-41."""
    rule = Rule(DOMAIN, Level.MAY, override=True)
    decision = _judged(_required(replace(FACTS, dane=USABLE), rule), _shown(good), ours)
    assert isinstance(decision, Deliver)
    ((kind, reasons),) = decision.observed
    assert (kind, reasons[0].code) == ("override", ReasonCode.DANE_NO_MATCH)


def test_observation_never_refuses(ours, theirs):
    watched = replace(MAY, observed=tuple(Observed("shadow", r) for r in (DANE, STS, SECURE, ENCRYPT)))
    for outcome in (NOT_OFFERED, REFUSED, FAILED, _shown(theirs.chain("wrong.example"))):
        assert isinstance(_judged(watched, outcome, ours), Deliver)


def test_the_operators_words_stand_in_the_refusal(ours, theirs):
    rule = Rule(DOMAIN, Level.SECURE, reason="contract 2026-11")
    decision = _judged(_required(FACTS, rule), _shown(theirs.chain(DOMAIN)), ours)
    assert isinstance(decision, TryNextMx)
    assert "rule example.org: level secure, contract 2026-11" in decision.reasons[0].detail


def test_permfail_is_for_what_the_host_says_of_itself(ours, theirs):
    """CH-29 with on_failure: not for what anybody on the path can cause, nor for what says that it passes."""
    requirement = _required(FACTS, Rule(DOMAIN, Level.SECURE, on_failure=OnFailure.PERMFAIL))
    final = TlsOutcome(StartTls.REFUSED, "554 no", "smtp-reply-554")
    for outcome, permanent in [
        (NOT_OFFERED, True),
        (final, True),
        (_shown(theirs.chain(DOMAIN)), True),
        (REFUSED, False),
        (FAILED, False),
        (INJECTED, False),
    ]:
        decision = _judged(requirement, outcome, ours)
        assert isinstance(decision, TryNextMx)
        assert decision.permanent is permanent
    assert not _judged(DANE, NOT_OFFERED, ours).permanent  # type: ignore[union-attr]


def test_the_host_names_itself_where_the_caller_does_not(ours):
    decision = judge(DANE, NOT_OFFERED, NOW, lambda anchors: ours.roots)
    assert isinstance(decision, TryNextMx)
    assert decision.reasons[0].subject == Domain(MX)
