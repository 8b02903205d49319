"""What a host must show: one test per row of CONFORMANCE §B4 and per clause about names."""

from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address

import pytest

from smtpguard.dns.records import NoTlsa, Security
from smtpguard.names import Domain
from smtpguard.policy.engine import require, rule_warnings
from smtpguard.policy.model import (
    Authentication,
    Await,
    Encryption,
    Fact,
    Level,
    Requirement,
    TryNextMx,
    Unknown,
)
from smtpguard.policy.rules import AfterExpiry, Mode, NameWord, OnFailure, Rule
from smtpguard.reasons import ReasonCode, ResultType
from smtpguard.tls.dane import UsableTlsa
from smtpguard.tls.identity import DnsId, DotDomain, IpId
from smtpguard.tls.outcome import TlsVersion
from tests.policy.samples import (
    BOGUS,
    DEFERRED,
    DOMAIN,
    ENFORCE,
    FACTS,
    INSECURE_MX,
    LOST,
    MODE_NONE,
    MX,
    RECORD,
    TESTING,
    TESTING_UNLISTED,
    TIMED_OUT,
    TODAY,
    UNAVAILABLE,
    UNLISTED,
    UNUSABLE,
    USABLE,
    applied,
    codes,
)

AUTO = applied()
STS = (ENFORCE, UNLISTED, TESTING, MODE_NONE, UNAVAILABLE, DEFERRED, FACTS.sts, Unknown())


def _asked(answer: object) -> Requirement:
    assert isinstance(answer, Requirement)
    return answer


def _rule(level: Level, **more: object) -> Rule:
    return Rule(DOMAIN, level, **more)  # type: ignore[arg-type]


# Published


@pytest.mark.parametrize("sts", STS)
@pytest.mark.parametrize(
    ("failed", "code", "result_type"),
    [
        (TIMED_OUT, ReasonCode.TLSA_LOOKUP, ResultType.TLSA_INVALID),
        (BOGUS, ReasonCode.TLSA_BOGUS, ResultType.DNSSEC_INVALID),
        (LOST, ReasonCode.DNSSEC_LOST, ResultType.DNSSEC_INVALID),
    ],
)
@pytest.mark.parametrize("level", [Level.AUTO, Level.DANE, Level.DANE_ONLY, Level.MAY, Level.ENCRYPT, Level.NONE])
def test_pol_02_a_failed_tlsa_lookup_takes_the_host_out(level, failed, code, result_type, sts):
    """POL-02, DANE-07, RM-07, RM-08: MTA-STS does not rescue it, and is not waited for."""
    answer = require(applied(_rule(level)), replace(FACTS, dane=failed, sts=sts), TODAY)
    assert isinstance(answer, TryNextMx)
    assert codes(answer) == [code]
    assert code.result_type is result_type
    assert answer.reasons[0].failure_code in ("dns-timeout", "ede-6", "dns-dnssec-lost")
    assert not answer.permanent


@pytest.mark.parametrize("sts", STS)
def test_pol_03_usable_tlsa_decides(sts):
    """POL-03, DANE-19, DANE-29: DANE authenticates, SNI is the base domain, MTA-STS is not waited for."""
    asked = _asked(require(AUTO, replace(FACTS, dane=USABLE, sts=sts), TODAY))
    assert (asked.encryption, asked.authentication) == (Encryption.REQUIRED, Authentication.DANE)
    assert (asked.policy, asked.sni, asked.tlsa) == ("dane", MX, USABLE)


def test_pol_03_sts_is_observed_beside_dane_where_known():
    """CH-04, STS-36: recorded, never enforced."""
    asked = _asked(require(AUTO, replace(FACTS, dane=USABLE, sts=ENFORCE), TODAY))
    (seen,) = asked.observed
    assert (seen.kind, _asked(seen.requirement).policy) == ("sts", "sts")
    asked = _asked(require(AUTO, replace(FACTS, dane=USABLE, sts=UNLISTED), TODAY))
    assert [reason.code for reason in asked.observed[0].refused] == [ReasonCode.STS_MX]


def test_pol_04_unusable_tlsa_with_sts_enforce():
    """POL-04, AF-20: TLS and everything MTA-STS asks."""
    asked = _asked(require(AUTO, replace(FACTS, dane=UNUSABLE, sts=ENFORCE), TODAY))
    assert (asked.policy, asked.authentication, asked.match_ids) == ("sts", Authentication.PKIX, (DnsId(MX),))
    assert codes(asked) == [ReasonCode.DANE_UNUSABLE_ENCRYPT, ReasonCode.STS_REQUIRES]
    assert codes(require(AUTO, replace(FACTS, dane=UNUSABLE, sts=UNLISTED), TODAY)) == [ReasonCode.STS_MX]


@pytest.mark.parametrize("sts", [FACTS.sts, MODE_NONE, TESTING, UNAVAILABLE])
def test_pol_05_unusable_tlsa_alone_asks_for_tls(sts):
    """POL-05, DANE-20, DANE-37 (usages 0 and 1 are unusable): never in clear, nothing to authenticate."""
    asked = _asked(require(AUTO, replace(FACTS, dane=UNUSABLE, sts=sts), TODAY))
    assert (asked.policy, asked.sni) == ("dane-unusable", MX)
    assert (asked.encryption, asked.authentication) == (Encryption.REQUIRED, Authentication.NONE)
    assert asked.reasons[0].failure_code == "all-unusable"


@pytest.mark.parametrize("sts", [FACTS.sts, MODE_NONE, TESTING, TESTING_UNLISTED, UNAVAILABLE])
def test_pol_06_half_dane(sts):
    """POL-06, DANE-25: the host must pass, and is not called more than it is (DANE-26)."""
    asked = _asked(require(AUTO, replace(INSECURE_MX, dane=USABLE, sts=sts), TODAY))
    assert (asked.policy, asked.authentication) == ("half-dane", Authentication.DANE)
    assert codes(asked)[0] is ReasonCode.HALF_DANE


def test_pol_07_half_dane_under_sts_enforce():
    """POL-07: DANE and the MX match; MTA-STS is waited for, and its temporary failure defers."""
    facts = replace(INSECURE_MX, dane=USABLE)
    asked = _asked(require(AUTO, replace(facts, sts=ENFORCE), TODAY))
    assert (asked.policy, asked.authentication) == ("half-dane", Authentication.DANE)
    assert codes(asked) == [ReasonCode.HALF_DANE, ReasonCode.STS_REQUIRES]
    assert codes(require(AUTO, replace(facts, sts=UNLISTED), TODAY)) == [ReasonCode.STS_MX]
    assert codes(require(AUTO, replace(facts, sts=DEFERRED), TODAY)) == [ReasonCode.STS_TXT_FAILURE]
    assert require(AUTO, replace(facts, sts=Unknown()), TODAY) == Await(frozenset({Fact.STS}))


@pytest.mark.parametrize("facts", [FACTS, INSECURE_MX])
def test_pol_08_sts_enforce(facts):
    """POL-08, STS-24..28: MX match, then PKIX with the name in the MX record; SNI is that name."""
    asked = _asked(require(AUTO, replace(facts, sts=ENFORCE), TODAY))
    assert (asked.encryption, asked.authentication) == (Encryption.REQUIRED, Authentication.PKIX)
    assert (asked.policy, asked.sni, asked.match_ids, asked.anchors) == ("sts", MX, (DnsId(MX),), None)
    assert asked.tls_floor is TlsVersion.TLS_1_2  # STS-27
    answer = require(AUTO, replace(facts, sts=UNLISTED), TODAY)  # STS-32: skipped in its turn
    assert isinstance(answer, TryNextMx)
    assert codes(answer) == [ReasonCode.STS_MX]
    assert answer.reasons[0].failure_code == "mtasts-policy-mx-mismatch"
    assert not answer.permanent


def test_sts_24_the_name_in_the_mx_record_counts():
    """STS-24: not where it is an alias of; the implicit MX is the domain itself."""
    aliased = replace(FACTS, expanded=MX, mx_host=Domain("alias.example.com"), sts=ENFORCE)
    assert codes(require(AUTO, aliased, TODAY)) == [ReasonCode.STS_MX]
    implicit = replace(FACTS, mx_host=DOMAIN, implicit=True, sts=ENFORCE)
    assert codes(require(AUTO, implicit, TODAY)) == [ReasonCode.STS_MX]


@pytest.mark.parametrize("sts", [TESTING, TESTING_UNLISTED])
@pytest.mark.parametrize("floor", [Level.MAY, Level.ENCRYPT])
def test_pol_09_sts_testing_is_observed(sts, floor):
    """POL-09, STS-29: delivered at the floor, judged beside it."""
    asked = _asked(require(applied(auto_floor=floor), replace(FACTS, sts=sts), TODAY))
    assert asked.policy == "sts-testing"
    assert asked.encryption is (Encryption.IF_OFFERED if floor is Level.MAY else Encryption.REQUIRED)
    assert asked.authentication is Authentication.NONE
    (seen,) = asked.observed
    assert seen.kind == "sts-testing"
    assert (seen.requirement is None) == (sts is TESTING_UNLISTED)


@pytest.mark.parametrize("sts", [FACTS.sts, MODE_NONE])
def test_pol_10_nothing_published(sts):
    """POL-10, DANE-21, CH-01, TLS-10: the floor, `may` unless the operator forbids cleartext."""
    asked = _asked(require(AUTO, replace(FACTS, sts=sts), TODAY))
    assert (asked.policy, asked.encryption, asked.sni) == ("may", Encryption.IF_OFFERED, MX)
    assert codes(asked) == [ReasonCode.NOTHING_PUBLISHED]
    asked = _asked(require(applied(auto_floor=Level.ENCRYPT), replace(FACTS, sts=sts), TODAY))
    assert (asked.policy, asked.encryption) == ("encrypt", Encryption.REQUIRED)


def test_sts_15_an_unavailable_policy_is_no_policy_and_is_said():
    asked = _asked(require(AUTO, replace(FACTS, sts=UNAVAILABLE), TODAY))
    assert asked.policy == "may"
    assert codes(asked) == [ReasonCode.NOTHING_PUBLISHED, ReasonCode.STS_FETCH]


def test_ch_25_a_deferring_sts_failure_takes_the_host_out():
    answer = require(AUTO, replace(FACTS, sts=DEFERRED), TODAY)
    assert isinstance(answer, TryNextMx)
    assert codes(answer) == [ReasonCode.STS_TXT_FAILURE]
    assert answer.reasons[0].subject == DOMAIN


def test_dane_22_23_hosts_are_judged_one_by_one():
    """DANE-22, DANE-23: nothing of another host enters; two hosts of one domain get their own answers."""
    one = require(AUTO, replace(FACTS, dane=USABLE), TODAY)
    two = require(AUTO, replace(FACTS, mx_host=Domain("mx2.example.net")), TODAY)
    assert (_asked(one).policy, _asked(two).policy) == ("dane", "may")


def test_unknown_facts_are_awaited():
    facts = replace(FACTS, dane=Unknown(), sts=Unknown())
    assert require(AUTO, facts, TODAY) == Await(frozenset({Fact.DANE, Fact.STS}))
    assert require(AUTO, replace(facts, sts=ENFORCE), TODAY) == Await(frozenset({Fact.DANE}))
    assert require(AUTO, replace(facts, dane=NoTlsa()), TODAY) == Await(frozenset({Fact.STS}))
    assert isinstance(require(applied(_rule(Level.SECURE)), facts, TODAY), Requirement)


# Names


def _ids(**more: object) -> list[str]:
    return [i.domain for i in _asked(require(AUTO, replace(FACTS, **more), TODAY)).match_ids if isinstance(i, DnsId)]


def test_dane_31_32_secure_mx():
    """DANE-31, DANE-32: base domain first, then the next-hop domain and what it expands to."""
    assert _ids(dane=USABLE) == [MX, DOMAIN]
    assert _ids(dane=USABLE, expanded=Domain("real.example")) == [MX, DOMAIN, "real.example"]
    alias = UsableTlsa(Domain("host.example.com"), (RECORD,), (RECORD,))
    assert _ids(dane=alias) == ["host.example.com", DOMAIN]


def test_dane_33_insecure_mx():
    """DANE-33, TLS-11: the host's own names only."""
    assert _ids(dane=USABLE, mx_security=Security.INSECURE, expanded=Domain("real.example")) == [MX]


def test_dane_34_no_mx():
    """DANE-34: the original domain beside its expansion, where the records stand there."""
    real = Domain("real.example")
    implicit = {"mx_host": DOMAIN, "implicit": True, "expanded": real}
    assert _ids(dane=UsableTlsa(real, (RECORD,), (RECORD,)), **implicit) == [real, DOMAIN]
    assert _ids(dane=UsableTlsa(DOMAIN, (RECORD,), (RECORD,)), **implicit) == [DOMAIN]


def test_dane_29_sni_is_the_base_domain_also_where_the_host_is_an_alias():
    alias = UsableTlsa(Domain("host.example.com"), (RECORD,), (RECORD,))
    asked = _asked(require(AUTO, replace(FACTS, dane=alias, sts=ENFORCE), TODAY))
    assert asked.sni == "host.example.com"  # STS-26 yields (CH-04)


def test_a_host_that_a_route_names_is_as_good_as_signed():
    asked = _asked(require(AUTO, replace(INSECURE_MX, bracketed=True, next_hop_domain=MX, dane=USABLE), TODAY))
    assert (asked.policy, asked.match_ids) == ("dane", (DnsId(MX),))


@pytest.mark.parametrize(
    ("rule", "ids"),
    [
        (_rule(Level.VERIFY), (DnsId(MX),)),
        (_rule(Level.SECURE), (DnsId(DOMAIN), DotDomain(DOMAIN))),
        (_rule(Level.SECURE, match=(NameWord.HOSTNAME,)), (DnsId(MX),)),
        (_rule(Level.VERIFY, match=(NameWord.NEXTHOP, DotDomain(MX))), (DnsId(DOMAIN), DotDomain(MX))),
        (_rule(Level.SECURE, match=(NameWord.NEXTHOP, DnsId(DOMAIN))), (DnsId(DOMAIN),)),
    ],
)  # fmt: skip
def test_pf_10_11_12_what_a_certificate_must_name(rule, ids):
    """PF-10, PF-11, PF-12: `verify` trusts the MX name, `secure` does not; nothing is waited for."""
    asked = _asked(require(applied(rule), replace(INSECURE_MX, dane=Unknown(), sts=Unknown()), TODAY))
    assert (asked.encryption, asked.authentication) == (Encryption.REQUIRED, Authentication.PKIX)
    assert (asked.policy, asked.match_ids) == (rule.level.value, ids)


@pytest.mark.parametrize(
    ("servername", "sni"),
    [(None, MX), (NameWord.HOSTNAME, MX), (NameWord.NEXTHOP, DOMAIN), (Domain("x.example"), "x.example")],
)
def test_pf_14_server_name_and_ca_file(servername, sni):
    rule = _rule(Level.SECURE, servername=servername, ca_file="/etc/ca.pem")
    asked = _asked(require(applied(rule), FACTS, TODAY))
    assert (asked.sni, asked.anchors) == (sni, "/etc/ca.pem")


# Rules


def test_pf_04_05_06_levels_without_authentication():
    """PF-04, PF-05, PF-06, POL-01."""
    for level, encryption in [
        (Level.NONE, Encryption.NEVER),
        (Level.MAY, Encryption.IF_OFFERED),
        (Level.ENCRYPT, Encryption.REQUIRED),
    ]:
        asked = _asked(require(applied(_rule(level), auto_floor=Level.ENCRYPT), FACTS, TODAY))
        assert (asked.policy, asked.encryption, asked.authentication) == (
            level.value,
            encryption,
            Authentication.NONE,
        )
        assert codes(asked) == [ReasonCode.RULE_REQUIRES]


def test_pf_07_dane():
    """PF-07: usable authenticates, unusable encrypts, none is `may`, insecure MX is half-dane."""
    rules = applied(_rule(Level.DANE), auto_floor=Level.ENCRYPT)
    policies = [
        _asked(require(rules, replace(facts, dane=dane), TODAY)).policy
        for facts in (FACTS, INSECURE_MX)
        for dane in (USABLE, UNUSABLE, NoTlsa())
    ]
    assert policies == ["dane", "dane-unusable", "may", "half-dane", "dane-unusable", "may"]


@pytest.mark.parametrize("sts", STS)
@pytest.mark.parametrize("permanent", [False, True])
def test_pol_11_dane_only(sts, permanent):
    """POL-11, PF-08, DANE-24, DANE-40: usable and secure, or not this host; 4xx unless the rule says else."""
    rule = _rule(Level.DANE_ONLY, on_failure=OnFailure.PERMFAIL if permanent else OnFailure.TEMPFAIL)
    rules = applied(rule)
    asked = _asked(require(rules, replace(FACTS, dane=USABLE, sts=sts), TODAY))
    assert (asked.policy, asked.authentication, asked.permanent) == ("dane", Authentication.DANE, permanent)
    for dane in (UNUSABLE, NoTlsa()):
        answer = require(rules, replace(FACTS, dane=dane, sts=sts), TODAY)
        assert isinstance(answer, TryNextMx)
        assert (codes(answer), answer.permanent) == ([ReasonCode.DANE_REQUIRED], permanent)
    for dane in (USABLE, NoTlsa(), TIMED_OUT):
        answer = require(rules, replace(INSECURE_MX, dane=dane, sts=sts), TODAY)
        assert codes(answer) == [ReasonCode.DANE_INSECURE_MX]
    unknown = require(rules, replace(INSECURE_MX, dane=Unknown(), sts=sts), TODAY)
    assert unknown == Await(frozenset({Fact.DANE}))
    failed = require(rules, replace(FACTS, dane=TIMED_OUT, sts=sts), TODAY)
    assert isinstance(failed, TryNextMx)
    assert not failed.permanent  # DNS stays 4xx


@pytest.mark.parametrize("facts", [FACTS, INSECURE_MX])
def test_dane_only_refuses_nothing_for_good_while_the_resolver_does_not_validate(facts):
    """DESIGN §6 DNSSEC, CH-29: all MX records look insecure then, which says nothing about the domain."""
    rules = applied(_rule(Level.DANE_ONLY, on_failure=OnFailure.PERMFAIL))
    answer = require(rules, replace(facts, dane=LOST), TODAY)
    assert isinstance(answer, TryNextMx)
    assert (codes(answer), answer.permanent) == ([ReasonCode.DNSSEC_LOST], False)


def test_pf_09_fingerprint():
    asked = _asked(require(applied(_rule(Level.FINGERPRINT, fingerprints=(bytes(32),))), FACTS, TODAY))
    assert (asked.authentication, asked.fingerprints, asked.match_ids) == (
        Authentication.FINGERPRINT,
        (bytes(32),),
        (),
    )


@pytest.mark.parametrize("level", [Level.NONE, Level.MAY, Level.ENCRYPT])
def test_pol_01_a_weaker_rule_without_override_is_not_applied(level):
    """POL-01: what the domain publishes applies, and a warning can say so."""
    for facts, policy in [
        (replace(FACTS, dane=USABLE), "dane"),
        (replace(INSECURE_MX, dane=USABLE), "half-dane"),
        (replace(FACTS, sts=ENFORCE), "sts"),
        (replace(FACTS, dane=UNUSABLE, sts=ENFORCE), "sts"),
    ]:
        rules = applied(_rule(level))
        asked = _asked(require(rules, facts, TODAY))
        assert asked.policy == policy
        assert codes(asked)[-1] is ReasonCode.RULE_WEAKER
        (warning,) = rule_warnings(rules, asked, DOMAIN, TODAY)
        assert (warning.rule, warning.domain, warning.kind) == (DOMAIN, DOMAIN, "weaker")


def test_pol_01_dane_under_sts_enforce_without_tlsa_is_weaker():
    rules = applied(_rule(Level.DANE))
    asked = _asked(require(rules, replace(FACTS, sts=ENFORCE), TODAY))
    assert (asked.policy, codes(asked)[-1]) == ("sts", ReasonCode.RULE_WEAKER)
    asked = _asked(require(applied(_rule(Level.DANE, override=True)), replace(FACTS, sts=ENFORCE), TODAY))
    assert asked.policy == "may"


def test_pol_01_an_authenticating_rule_is_never_weaker():
    for level in (Level.VERIFY, Level.SECURE):
        asked = _asked(require(applied(_rule(level)), replace(FACTS, dane=USABLE, sts=ENFORCE), TODAY))
        assert asked.policy == level.value
        assert rule_warnings(applied(_rule(level)), asked, DOMAIN, TODAY) == ()


def test_dane_41_override_applies_and_what_it_sets_aside_is_recorded():
    """DANE-41, POL-01: audit only, by explicit local policy, and it is a deviation that is said."""
    rules = applied(_rule(Level.MAY, override=True, reason="their key roll-over"))
    asked = _asked(require(rules, replace(FACTS, dane=USABLE), TODAY))
    assert (asked.policy, asked.encryption) == ("may", Encryption.IF_OFFERED)
    (seen,) = asked.observed
    assert (seen.kind, _asked(seen.requirement).policy) == ("override", "dane")
    (warning,) = rule_warnings(rules, asked, DOMAIN, TODAY)
    assert warning.kind == "override"
    assert "their key roll-over" in asked.reasons[0].detail
    assert require(rules, replace(FACTS, dane=Unknown()), TODAY) == Await(frozenset({Fact.DANE}))
    failed = _asked(require(rules, replace(FACTS, dane=BOGUS), TODAY))
    assert [reason.code for reason in failed.observed[0].refused] == [ReasonCode.TLSA_BOGUS]


def test_sts_29_testing_is_observed_beside_any_rule():
    for rule in (
        _rule(Level.MAY),
        _rule(Level.MAY, override=True),
        _rule(Level.SECURE),
        _rule(Level.ENCRYPT),
    ):
        asked = _asked(require(applied(rule), replace(FACTS, sts=TESTING), TODAY))
        assert [seen.kind for seen in asked.observed] == ["sts-testing"]
        assert asked.policy == rule.level.value


def test_min_tls_holds_also_where_the_domain_decides():
    """PF-13: a floor can only ask for more; where TLS is not required it would ask for clear text."""
    for level, facts in [
        (Level.ENCRYPT, FACTS),
        (Level.AUTO, replace(FACTS, dane=USABLE)),
        (Level.MAY, replace(FACTS, sts=ENFORCE)),
        (Level.DANE, replace(FACTS, dane=USABLE)),
        (Level.SECURE, FACTS),
    ]:
        asked = _asked(require(applied(_rule(level, min_tls=TlsVersion.TLS_1_3)), facts, TODAY))
        assert asked.tls_floor is TlsVersion.TLS_1_3
    for level in (Level.AUTO, Level.MAY, Level.DANE):
        asked = _asked(require(applied(_rule(level, min_tls=TlsVersion.TLS_1_3)), FACTS, TODAY))
        assert asked.tls_floor is TlsVersion.TLS_1_2


def test_on_failure_permfail_is_for_what_the_rule_itself_asks():
    rule = _rule(Level.ENCRYPT, on_failure=OnFailure.PERMFAIL)
    assert _asked(require(applied(rule), FACTS, TODAY)).permanent
    assert not _asked(require(applied(rule), replace(FACTS, sts=ENFORCE), TODAY)).permanent


def test_the_level_of_outbound_is_a_rule_without_override():
    rules = applied(level=Level.ENCRYPT)
    assert _asked(require(rules, FACTS, TODAY)).policy == "encrypt"
    assert _asked(require(rules, replace(FACTS, dane=USABLE), TODAY)).policy == "dane"


def test_a_rule_at_auto_returns_to_what_is_published():
    rules = applied(_rule(Level.AUTO), Rule("*", Level.SECURE))
    assert _asked(require(rules, replace(FACTS, dane=USABLE), TODAY)).policy == "dane"


# Expiry and shadow

YESTERDAY = TODAY - timedelta(days=1)


def test_an_expired_rule_that_weakens_has_ended():
    rules = applied(_rule(Level.NONE, override=True, expires=YESTERDAY))
    assert _asked(require(rules, FACTS, TODAY)).policy == "may"
    assert _asked(require(rules, replace(FACTS, dane=USABLE), TODAY)).policy == "dane"
    assert isinstance(require(rules, replace(FACTS, dane=TIMED_OUT), TODAY), TryNextMx)
    assert _asked(require(rules, FACTS, YESTERDAY)).policy == "none"  # through that day


def test_an_expired_rule_gives_way_to_the_next_one():
    rules = applied(_rule(Level.MAY, expires=YESTERDAY), Rule("*", Level.SECURE))
    assert _asked(require(rules, FACTS, TODAY)).policy == "secure"


def test_an_expired_rule_that_strengthens_stays_and_warns():
    rules = applied(_rule(Level.SECURE, expires=YESTERDAY))
    asked = _asked(require(rules, FACTS, TODAY))
    assert asked.policy == "secure"
    (warning,) = rule_warnings(rules, asked, DOMAIN, TODAY)
    assert warning.kind == "expired"
    dropped = applied(_rule(Level.SECURE, expires=YESTERDAY, after_expiry=AfterExpiry.DROP))
    assert _asked(require(dropped, FACTS, TODAY)).policy == "may"


def test_an_expired_rule_does_not_lower_the_tls_version():
    rules = applied(_rule(Level.ENCRYPT, expires=YESTERDAY), Rule("*", Level.ENCRYPT, min_tls=TlsVersion.TLS_1_3))
    assert _asked(require(rules, FACTS, TODAY)).tls_floor is TlsVersion.TLS_1_3


def test_a_shadow_rule_is_recorded_and_changes_nothing():
    shadow = _rule(Level.DANE_ONLY, mode=Mode.SHADOW)
    without = _asked(require(AUTO, FACTS, TODAY))
    asked = _asked(require(applied(shadow), FACTS, TODAY))
    assert replace(asked, observed=()) == without
    (seen,) = asked.observed
    assert (seen.kind, seen.requirement) == ("shadow", None)
    assert [reason.code for reason in seen.refused] == [ReasonCode.DANE_REQUIRED]
    beneath = applied(replace(shadow, level=Level.NONE, override=True), Rule("*", Level.SECURE))
    asked = _asked(require(beneath, FACTS, TODAY))
    assert asked.policy == "secure"
    assert _asked(asked.observed[0].requirement).policy == "none"
    assert _asked(require(applied(replace(shadow, expires=YESTERDAY)), FACTS, TODAY)).observed == ()


# Address literals

LITERAL = replace(
    INSECURE_MX, next_hop_domain=None, expanded=None, mx_host=None, address=IPv4Address("192.0.2.1"),
    dane=Unknown(), sts=Unknown(),
)  # fmt: skip


def test_dane_27_an_address_publishes_nothing():
    """DANE-27, STS-33, CH-19: the floor at once, no SNI."""
    asked = _asked(require(AUTO, LITERAL, TODAY))
    assert (asked.policy, asked.sni, asked.host) == ("may", None, "[192.0.2.1]")
    assert _asked(require(applied(level=Level.DANE), LITERAL, TODAY)).policy == "may"
    assert codes(require(applied(level=Level.DANE_ONLY), LITERAL, TODAY)) == [ReasonCode.DANE_REQUIRED]


def test_ch_19_secure_by_default_refuses_addresses_of_the_envelope():
    for rules in (applied(level=Level.SECURE), applied(Rule("*", Level.SECURE))):
        answer = require(rules, LITERAL, TODAY)
        assert isinstance(answer, TryNextMx)
        assert (codes(answer), answer.permanent) == ([ReasonCode.LITERAL_REFUSED], True)
    routed = _asked(require(applied(level=Level.SECURE), replace(LITERAL, bracketed=True), TODAY))
    assert routed.match_ids == (IpId(IPv4Address("192.0.2.1")),)  # ID-05
    written = _asked(require(applied(_rule(Level.SECURE)), LITERAL, TODAY))
    assert written.policy == "secure"
