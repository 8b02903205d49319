"""Which rule is found, and which words mean what."""

import pickle
from dataclasses import replace
from datetime import date, timedelta

import pytest

from smtpguard.names import Domain
from smtpguard.policy.model import Level
from smtpguard.policy.rules import (
    AfterExpiry,
    Mode,
    NameWord,
    OnFailure,
    Rule,
    RuleInvalid,
    RuleSet,
    duplicates,
    parse_fingerprints,
    parse_level,
    parse_match_item,
    parse_min_tls,
    parse_pattern,
    parse_servername,
)
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.outcome import TlsVersion
from tests.policy.samples import TODAY


def _first(rules: RuleSet, key: str) -> str:
    return rules.find(key).rules[0].pattern


def test_pf_01_keys_are_the_next_hop_verbatim():
    """PF-01: brackets and port belong to the key."""
    keys = ["example.org", "[example.org]", "[example.org]:587", "example.org:587"]
    rules = RuleSet(tuple(Rule(key, Level.MAY) for key in keys))
    assert [_first(rules, key) for key in keys] == keys
    assert not rules.find("[example.org]:26").rules[0].is_written


def test_pf_02_longest_parent_for_plain_domains_only():
    """PF-02: `.parent` is tried upward; not for bracketed keys, keys with a port or the domain itself."""
    rules = RuleSet((Rule(".example.org", Level.MAY), Rule(".b.example.org", Level.ENCRYPT), Rule("*", Level.AUTO)))
    assert _first(rules, "a.b.example.org") == ".b.example.org"
    assert _first(rules, "x.a.b.example.org") == ".b.example.org"
    assert _first(rules, "b.example.org") == ".example.org"
    assert _first(rules, "example.org") == "*"
    assert _first(rules, "[b.example.org]") == "*"
    assert _first(rules, "b.example.org:26") == "*"
    assert _first(rules, "[192.0.2.1]") == "*"


def test_rules_apply_from_the_most_specific_to_the_level_of_outbound():
    rules = RuleSet(
        (Rule("*", Level.MAY), Rule("a.example", Level.SECURE), Rule(".example", Level.DANE)), Level.ENCRYPT
    )
    found = rules.find("a.example").rules
    assert [rule.pattern for rule in found[:-1]] == ["a.example", ".example", "*"]
    assert (found[-1].level, found[-1].is_written, found[-1].is_default) == (Level.ENCRYPT, False, True)


def test_file_order_means_nothing():
    one, two = Rule(".example", Level.MAY), Rule("*", Level.ENCRYPT)
    assert RuleSet((one, two)).find("a.example") == RuleSet((two, one)).find("a.example")


def test_two_rules_for_one_key_are_an_error():
    rules = (Rule("a.example", Level.MAY), Rule("b.example", Level.MAY), Rule("a.example", Level.NONE))
    assert duplicates(rules) == ("a.example",)
    with pytest.raises(RuleInvalid, match=r"a\.example"):
        RuleSet(rules)


@pytest.mark.parametrize("floor", [level for level in Level if level not in (Level.MAY, Level.ENCRYPT)])
def test_tls_10_the_floor_is_may_or_encrypt(floor):
    with pytest.raises(RuleInvalid, match="auto_floor"):
        RuleSet(auto_floor=floor)


def test_the_level_of_outbound_cannot_need_what_only_a_rule_has():
    with pytest.raises(RuleInvalid, match="fingerprint"):
        RuleSet(level=Level.FINGERPRINT)


def test_a_rule_set_can_be_pickled():
    rules = RuleSet((Rule("a.example", Level.MAY),))
    assert pickle.loads(pickle.dumps(rules)).find("a.example") == rules.find("a.example")  # noqa: S301


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Example.ORG.", "example.org"),
        (".Example.org", ".example.org"),
        ("*", "*"),
        ("[MX.example.org]", "[mx.example.org]"),
        ("[mx.example.org]:25", "[mx.example.org]"),
        ("[mx.example.org]:587", "[mx.example.org]:587"),
        ("example.org:026", "example.org:26"),
        ("[192.0.2.1]:2525", "[192.0.2.1]:2525"),
        ("[2001:DB8:0::1]", "[2001:db8::1]"),
        ("[IPv6:2001:db8::1]:26", "[2001:db8::1]:26"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_pf_01_patterns_have_one_spelling(text, key):
    assert parse_pattern(text) == key


@pytest.mark.parametrize(
    "text",
    ["", ".", "*.example.org", "[mx.example.org", "[mx]:0", "[mx]:65536", "[mx]25", "a.example:smtp",
     "192.0.2.1", "[]", "a b.example", "a.example:" + "9" * 5000],
)  # fmt: skip
def test_pf_03_a_pattern_that_means_nothing_is_an_error(text):
    with pytest.raises(RuleInvalid) as error:
        parse_pattern(text)
    assert len(str(error.value)) < 400


def test_pf_03_an_unknown_level_is_an_error_that_lists_the_levels():
    assert parse_level("dane-only") is Level.DANE_ONLY
    with pytest.raises(RuleInvalid, match="none, may, encrypt"):
        parse_level("secured")


def test_pf_12_match_items():
    assert parse_match_item("nexthop") is NameWord.NEXTHOP
    assert parse_match_item("Dot-Nexthop") is NameWord.DOT_NEXTHOP
    assert parse_match_item("hostname") is NameWord.HOSTNAME
    assert parse_match_item("MX.Example.org") == DnsId(Domain("mx.example.org"))
    assert parse_match_item(".Example.org") == DotDomain(Domain("example.org"))
    with pytest.raises(RuleInvalid):
        parse_match_item("*.example.org")


def test_pf_13_lowest_tls_versions():
    for text in ("1.3", "TLSv1.3", ">=TLSv1.3"):
        assert parse_min_tls(text) is TlsVersion.TLS_1_3
    assert parse_min_tls("1.2") is TlsVersion.TLS_1_2
    for text in ("1.1", "1.0", "<=TLSv1.3", "!TLSv1", "1.4", ""):
        with pytest.raises(RuleInvalid):
            parse_min_tls(text)


def test_pf_14_server_names():
    assert parse_servername("nexthop") is NameWord.NEXTHOP
    assert parse_servername("HOSTNAME") is NameWord.HOSTNAME
    assert parse_servername("mx.example.org") == "mx.example.org"
    for text in ("dot-nexthop", ".example.org", "192.0.2.1"):
        with pytest.raises(RuleInvalid):
            parse_servername(text)


def test_pf_09_fingerprints():
    digest = bytes(range(32))
    assert parse_fingerprints(digest.hex()) == (digest,)
    assert parse_fingerprints(digest.hex(":").upper()) == (digest,)
    assert parse_fingerprints(f"{digest.hex()} | {bytes(64).hex()}") == (digest, bytes(64))
    for text in (
        "",
        "zz",
        bytes(20).hex(),
        digest.hex()[:-1],
        digest.hex(" "),
        digest.hex() + "|",
        "0:" * 32,
    ):
        with pytest.raises(RuleInvalid):
            parse_fingerprints(text)


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        (Rule("a.example", Level.NONE, min_tls=TlsVersion.TLS_1_3), "min_tls"),
        (Rule("a.example", Level.NONE, match=(NameWord.NEXTHOP,)), "match"),
        (Rule("a.example", Level.NONE, servername=NameWord.NEXTHOP), "servername"),
        (Rule("a.example", Level.ENCRYPT, match=(NameWord.NEXTHOP,)), "match"),
        (Rule("a.example", Level.ENCRYPT, ca_file="/ca.pem"), "ca_file"),
        (Rule("a.example", Level.SECURE, fingerprints=(bytes(32),)), "fingerprints"),
        (Rule("a.example", Level.FINGERPRINT), "fingerprints"),
        (Rule("a.example", Level.DANE, servername=Domain("x.example")), "servername"),
        (Rule("a.example", Level.SECURE, servername=NameWord.DOT_NEXTHOP), "servername"),
        (Rule("a.example", Level.AUTO, override=True), "override"),
        (Rule("a.example", Level.DANE, on_failure=OnFailure.PERMFAIL), "permfail"),
        (Rule("a.example", Level.MAY, after_expiry=AfterExpiry.DROP), "after_expiry"),
        (Rule("[192.0.2.1]", Level.DANE_ONLY), "address"),
    ],
)
def test_pf_04_attributes_that_mean_nothing_at_a_level_are_problems(rule, word):
    """PF-03, PF-04: no attribute is silently ignored."""
    assert len(rule.problems()) == 1
    assert word in rule.problems()[0]


def test_a_rule_as_the_manual_shows_it_has_no_problem():
    rule = Rule(
        "partner.example",
        Level.SECURE,
        match=(NameWord.NEXTHOP, DotDomain(Domain("partner-mx.example"))),
        min_tls=TlsVersion.TLS_1_3,
        reason="contract 2026-11",
        expires=TODAY,
        after_expiry=AfterExpiry.DROP,
        on_failure=OnFailure.PERMFAIL,
        ca_file="/ca.pem",
        servername=NameWord.HOSTNAME,
    )
    assert rule.problems() == ()
    assert Rule("[mx.example]", Level.DANE_ONLY, on_failure=OnFailure.PERMFAIL).problems() == ()


def test_expires_is_the_last_day():
    rule = Rule("a.example", Level.MAY, expires=date(2026, 11, 24))
    assert not rule.is_expired(date(2026, 11, 24))
    assert rule.is_expired(date(2026, 11, 25))
    assert not replace(rule, expires=None).is_expired(date.max)


def test_a_star_rule_other_than_auto_is_warned_about():
    def kinds(*rules: Rule) -> list[str]:
        return [warning.kind for warning in RuleSet(rules).warnings(TODAY)]

    assert kinds(Rule("*", Level.AUTO)) == []
    assert kinds(Rule("*", Level.SECURE)) == ["star"]
    assert kinds(Rule("*", Level.MAY)) == ["star"]
    assert kinds(Rule("a.example", Level.MAY, mode=Mode.SHADOW)) == []


def test_pf_11_secure_with_hostname_and_old_rules_are_warned_about():
    """TLS-11: a name from unsigned MX records is no reference identifier."""
    rule = Rule("a.example", Level.SECURE, match=(NameWord.HOSTNAME,), expires=TODAY - timedelta(days=1))
    assert [warning.kind for warning in RuleSet((rule,)).warnings(TODAY)] == ["expired", "hostname"]
