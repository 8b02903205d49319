"""policy.inbound and policy.scopes: who must come over TLS, or show a certificate."""

from dataclasses import replace
from datetime import date, timedelta
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.names import Domain
from smtpguard.policy.inbound import (
    Accept,
    CertificateDemand,
    CertificateFails,
    CertificateHolds,
    ClientFacts,
    InboundRule,
    InboundRules,
    RefuseInbound,
    Require,
    judge_client,
)
from smtpguard.policy.rules import AfterExpiry, Mode, OnFailure, RuleInvalid
from smtpguard.policy.scopes import (
    Mailbox,
    RecipientDomain,
    Scope,
    SenderDomain,
    WholeListener,
    parse_client,
    parse_domain_pattern,
    parse_exempt,
)
from smtpguard.reasons import ReasonCode
from smtpguard.smtp.commands import BadCommand, Command, Rcpt, parse_command
from smtpguard.smtp.syntax import parse_reverse_path
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.outcome import TlsVersion

TODAY = date(2026, 11, 24)
SENDER = "someone@partner.example"
SECRET = "user@secret.example"
REPORTS = "tlsrpt@example.org"
EXEMPT = frozenset({parse_exempt(REPORTS)})
DEMAND = CertificateDemand("/etc/ca.pem", (DnsId(Domain("mx.partner.example")),))
OTHER_DEMAND = CertificateDemand(fingerprints=(bytes(32),))

CLEAR = ClientFacts(ip_address("192.0.2.79"))
TLS_12 = replace(CLEAR, encrypted=True, version=TlsVersion.TLS_1_2)
TLS_13 = replace(TLS_12, version=TlsVersion.TLS_1_3)
UNTOLD = replace(TLS_12, version=None)
HOLDS = replace(TLS_13, certificates={DEMAND: CertificateHolds("mx.partner.example")})
FAILS = replace(TLS_13, certificates={DEMAND: CertificateFails("the certificate is not trusted")})
UNJUDGED = replace(TLS_13, certificates={OTHER_DEMAND: CertificateHolds("x")})

RECIPIENT = RecipientDomain("secret.example")
ASKS_TLS = InboundRule(RECIPIENT)
ASKS_13 = replace(ASKS_TLS, min_tls=TlsVersion.TLS_1_3)
ASKS_CERT = replace(ASKS_TLS, require=Require.CLIENT_CERT, demand=DEMAND)


def command(line: str) -> Command:
    return parse_command(line.encode())


def rcpt(
    rules: InboundRules, facts: ClientFacts, recipient: str = SECRET, sender: str = SENDER, today: date = TODAY
) -> Accept | RefuseInbound:
    asked = command(f"RCPT TO:<{recipient}>")
    assert isinstance(asked, Rcpt)
    path, _ = parse_reverse_path(f"<{sender}>".encode())
    return judge_client(rules, facts, asked, sender=path, today=today)


def said(answer: Accept | RefuseInbound) -> str:
    """`ok`, or code and enhanced status."""
    if isinstance(answer, Accept):
        return "ok"
    return " ".join(str(answer.reply()).split(" ")[:2])


# -- the table: what one rule says to each client

OK, TLS_530, CERT_550 = "ok", "530 5.7.0", "550 5.7.1"


@pytest.mark.parametrize(
    ("rule", "clear", "untold", "tls_12", "tls_13", "fails", "unjudged", "holds"),
    [
        # rule       clear    untold   TLS 1.2  TLS 1.3  + a certificate that fails, has no verdict, holds
        (None,       OK,      OK,      OK,      OK,       OK,       OK,       OK),
        (ASKS_TLS,   TLS_530, OK,      OK,      OK,       OK,       OK,       OK),
        (ASKS_13,    TLS_530, TLS_530, TLS_530, OK,       OK,       OK,       OK),
        (ASKS_CERT,  TLS_530, CERT_550, CERT_550, CERT_550, CERT_550, CERT_550, OK),
    ],
    ids=["no rule", "tls", "min_tls 1.3", "client-cert"],
)  # fmt: skip
def test_stls_15_what_each_client_hears(
    rule: InboundRule | None, clear: str, untold: str, tls_12: str, tls_13: str, fails: str, unjudged: str, holds: str
) -> None:
    """STLS-15: without a rule cleartext is taken; with one `530 5.7.0`, and `550 5.7.1` for the certificate."""
    rules = InboundRules((rule,) if rule is not None else ())
    facts = (CLEAR, UNTOLD, TLS_12, TLS_13, FAILS, UNJUDGED, HOLDS)
    expected = [clear, untold, tls_12, tls_13, fails, unjudged, holds]
    assert [said(rcpt(rules, fact)) for fact in facts] == expected

    later = InboundRules(tuple(replace(rule, on_fail=OnFailure.TEMPFAIL) for rule in rules.rules))
    soft = {OK: OK, TLS_530: "450 4.7.0", CERT_550: "450 4.7.1"}
    assert [said(rcpt(later, fact)) for fact in facts] == [soft[text] for text in expected]


@pytest.mark.parametrize(
    ("scope", "matching", "others"),
    [
        (RecipientDomain("secret.example"), [(SECRET, SENDER), ("u@SECRET.Example", "")],
         [("user@a.secret.example", SENDER), ("user@example", SENDER), ("user@other.example", "a@secret.example")]),
        (RecipientDomain(".secret.example"), [("user@a.secret.example", SENDER), ("u@b.a.secret.example", SENDER)],
         [(SECRET, SENDER), ("user@xsecret.example", SENDER)]),
        (RecipientDomain("*"), [(SECRET, ""), ("user@[192.0.2.1]", SENDER)], []),
        (SenderDomain("partner.example"), [(SECRET, SENDER)], [(SECRET, ""), (SECRET, "a@b.partner.example")]),
        (SenderDomain(".partner.example"), [(SECRET, "a@b.partner.example")], [(SECRET, SENDER), (SECRET, "")]),
        (SenderDomain("*"), [(SECRET, SENDER), (SECRET, ""), (SECRET, "a@[192.0.2.1]")], []),
        (parse_client("192.0.2.0/24"), [(SECRET, SENDER)], []),
        (parse_client("192.0.2.79"), [(SECRET, SENDER)], []),
        (parse_client("198.51.100.0/24"), [], [(SECRET, SENDER)]),
        (parse_client("2001:db8::/32"), [], [(SECRET, SENDER)]),
    ],
    ids=str,
)  # fmt: skip
def test_which_mail_a_rule_speaks_about(
    scope: Scope, matching: list[tuple[str, str]], others: list[tuple[str, str]]
) -> None:
    rules = InboundRules((InboundRule(scope),))
    assert [said(rcpt(rules, CLEAR, *mail)) for mail in matching] == [TLS_530] * len(matching)
    assert [said(rcpt(rules, CLEAR, *mail)) for mail in others] == [OK] * len(others)


def test_an_ipv4_client_on_an_ipv6_socket_is_of_its_ipv4_network() -> None:
    rules = InboundRules((InboundRule(parse_client("192.0.2.0/24")),))
    assert said(rcpt(rules, replace(CLEAR, address=ip_address("::ffff:192.0.2.79")))) == TLS_530
    assert said(rcpt(rules, replace(CLEAR, address=None))) == OK


# -- who is exempt


@pytest.mark.parametrize(
    "recipient",
    ["postmaster", "Postmaster", "postmaster@secret.example", "POSTMASTER@other.example", '"postmaster"@secret.example',
     '"post\\master"@secret.example', REPORTS, "TLSRPT@Example.ORG"],
)  # fmt: skip
@pytest.mark.parametrize(
    "rule",
    [
        InboundRule(RecipientDomain("*")),
        InboundRule(SenderDomain("*")),
        InboundRule(parse_client("0.0.0.0/0")),
        InboundRule(RecipientDomain("*"), Require.CLIENT_CERT, DEMAND),
        None,
    ],
    ids=["recipient", "sender", "client", "client-cert", "require_tls"],
)
def test_rpt_28_postmaster_and_the_report_address_take_mail_in_clear(recipient: str, rule: InboundRule | None) -> None:
    """STLS-15, RPT-28: whatever is required of others, by a rule or of the whole listener."""
    rules = InboundRules((rule,) if rule is not None else (), require_tls=rule is None, exempt=EXEMPT)
    assert rcpt(rules, CLEAR, recipient) == Accept()
    assert said(rcpt(rules, CLEAR, "user@example.org")) == TLS_530


@pytest.mark.parametrize("recipient", ["postmaster1@secret.example", "tlsrpt@other.example", "tlsrpt2@example.org"])
def test_rpt_28_nobody_else_is_exempt(recipient: str) -> None:
    assert said(rcpt(InboundRules(require_tls=True, exempt=EXEMPT), CLEAR, recipient)) == TLS_530


# -- stages: which command hears it


@pytest.mark.parametrize("line", ["EHLO c.example", "MAIL FROM:<a@b.example>", "RSET", "VRFY a", "DATA", "HELP"])
@pytest.mark.parametrize(
    "rule", [InboundRule(SenderDomain("*")), InboundRule(parse_client("0.0.0.0/0")), InboundRule(RecipientDomain("*"))]
)
def test_stls_15_rules_speak_at_rcpt_alone(line: str, rule: InboundRule) -> None:
    """STLS-15: MAIL in clear is answered 250 by the MTA, or postmaster could not be reached."""
    rules = InboundRules((rule,), require_tls=True)
    assert judge_client(rules, CLEAR, command(line), sender=None, today=TODAY) == Accept()


@pytest.mark.parametrize(
    ("line", "clear"),
    [
        ("EHLO c.example", OK),
        ("NOOP", OK),
        ("STARTTLS", OK),
        ("QUIT", OK),
        ("HELO c.example", TLS_530),
        ("MAIL FROM:<a@b.example>", TLS_530),
        ("RCPT TO:<postmaster>", TLS_530),
        ("DATA", TLS_530),
        ("BDAT 3 LAST", TLS_530),
        ("RSET", TLS_530),
        ("VRFY a", TLS_530),
        ("EXPN a", TLS_530),
        ("HELP", TLS_530),
        ("XCLIENT ADDR=1.2.3.4", TLS_530),
        ("AUTH PLAIN AGEAYg==", TLS_530),
    ],
)
def test_sub_02_submission_serves_four_commands_in_clear(line: str, clear: str) -> None:
    """SUB-02, AF-56: all else is 530 5.7.0 and goes nowhere; inside TLS nothing is in the way."""
    rules = InboundRules(submission=True, exempt=EXEMPT)
    assert said(judge_client(rules, CLEAR, command(line), sender=None, today=TODAY)) == clear
    assert said(judge_client(rules, TLS_12, command(line), sender=None, today=TODAY)) == OK


def test_a_command_refused_for_its_form_keeps_its_reply() -> None:
    bad = command("MAIL FROM a")
    assert isinstance(bad, BadCommand)
    assert judge_client(InboundRules(submission=True), CLEAR, bad, sender=None, today=TODAY) == Accept()


def test_rules_hold_on_a_submission_listener_too() -> None:
    assert said(rcpt(InboundRules((ASKS_13,), submission=True), TLS_12)) == TLS_530


# -- whose recipient is it?


@pytest.mark.parametrize(
    ("recipient", "holds"),
    [
        ("x@secret.example", True),
        ("@relay.example,@other.example:x@secret.example", True),
        ("@secret.example:x@open.example", False),  # the route is not passed on
        ("x@[192.0.2.25]", True),
        ("x@[IPv6:2001:db8::25]", True),
        ("x%secret.example@open.example", True),
        ("x%SECRET.example%other.example@open.example", True),
        ("secret.example!x@open.example", True),
        ("other.example!secret.example!x@open.example", True),
        ('"x@secret.example"@open.example', True),
        ('"x@[IPv6:::1]"@open.example', True),
        ('"x@[127.0.0.1]"@open.example', True),
        ("x%sub.secret.example@open.example", False),
        ("bounces+x=secret.example@open.example", False),
        ("100%@open.example", False),
        ('"what a day!"@open.example', False),
        ("postmaster@[192.0.2.25]", False),
    ],
)
def test_no_other_spelling_of_a_recipient_passes_a_rule(recipient: str, holds: bool) -> None:
    """DESIGN §2 law 2: a literal may be any domain of the MTA, and many an MTA knows the old routing forms."""
    assert said(rcpt(InboundRules((ASKS_TLS,)), CLEAR, recipient)) == (TLS_530 if holds else OK)


def test_a_rule_in_shadow_says_nothing_about_literals() -> None:
    rules = InboundRules((replace(ASKS_TLS, mode=Mode.SHADOW),))
    assert rcpt(rules, CLEAR, "x@[192.0.2.25]") == Accept()
    everything = replace(ASKS_TLS, scope=RecipientDomain("*"), mode=Mode.SHADOW)
    assert len(rcpt(InboundRules((everything,)), CLEAR, "x@[192.0.2.25]").shadowed) == 1


def test_a_rule_is_found_once() -> None:
    rules = InboundRules((replace(ASKS_TLS, scope=RecipientDomain("*")),))
    answer = rcpt(rules, CLEAR, "x%a.example@b.example")
    assert isinstance(answer, RefuseInbound)
    assert len(answer.reasons) == 1


# -- several rules

THREE_RULES = (
    ASKS_TLS,
    replace(ASKS_13, scope=SenderDomain("*")),
    replace(ASKS_CERT, scope=parse_client("192.0.2.79")),
)


def test_several_rules_the_strictest_is_told_and_all_are_named() -> None:
    rules = InboundRules(
        (
            ASKS_CERT,
            InboundRule(SenderDomain(".example"), min_tls=TlsVersion.TLS_1_3),
            InboundRule(parse_client("192.0.2.0/24"), reason="contract 2026-11"),
        ),
        require_tls=True,
    )
    refused = rcpt(rules, CLEAR)
    assert isinstance(refused, RefuseInbound)
    assert [reason.subject for reason in refused.reasons] == [
        "recipient domain secret.example",
        "sender domain .example",
        "client 192.0.2.0/24",
        "this service",
    ]
    assert {reason.code for reason in refused.reasons} == {ReasonCode.INBOUND_TLS_REQUIRED}
    assert [reason.detail for reason in refused.reasons] == [
        "with a client certificate",
        "with TLS 1.3 or later",
        "contract 2026-11",
        "",
    ]


@pytest.mark.parametrize("facts", [CLEAR, TLS_12, TLS_13, FAILS, HOLDS], ids=["clear", "1.2", "1.3", "fails", "holds"])
@given(chosen=st.permutations(THREE_RULES), count=st.integers(0, 3))
def test_a_further_rule_never_helps_a_client_and_order_means_nothing(
    facts: ClientFacts, chosen: list[InboundRule], count: int
) -> None:
    some = rcpt(InboundRules(tuple(chosen[:count])), facts)
    all_ = rcpt(InboundRules(tuple(chosen)), facts)
    assert isinstance(all_, RefuseInbound) or isinstance(some, Accept)
    again = rcpt(InboundRules(tuple(reversed(chosen))), facts)
    if isinstance(all_, RefuseInbound):
        assert all_ == again
    assert isinstance(all_, RefuseInbound) is any(
        isinstance(rcpt(InboundRules((rule,)), facts), RefuseInbound) for rule in chosen
    )


def test_one_permanent_refusal_decides_over_temporary_ones() -> None:
    soft = replace(ASKS_CERT, on_fail=OnFailure.TEMPFAIL)
    hard = InboundRule(SenderDomain("*"))
    refused = rcpt(InboundRules((soft, hard)), CLEAR)
    assert said(refused) == TLS_530
    assert isinstance(refused, RefuseInbound)
    assert [reason.subject for reason in refused.reasons] == ["sender domain *", "recipient domain secret.example"]
    assert said(rcpt(InboundRules((soft, hard)), FAILS)) == "450 4.7.1", "the hard rule is met"


def test_two_rules_may_each_demand_a_certificate() -> None:
    rules = InboundRules((ASKS_CERT, InboundRule(SenderDomain("*"), Require.CLIENT_CERT, OTHER_DEMAND)))
    assert said(rcpt(rules, HOLDS)) == CERT_550
    both = replace(HOLDS, certificates={DEMAND: CertificateHolds("a"), OTHER_DEMAND: CertificateHolds("b")})
    assert rcpt(rules, both) == Accept(rules.rules, "a")


# -- the words


@pytest.mark.parametrize(
    ("rule", "facts", "code", "words"),
    [
        (ASKS_TLS, CLEAR, "530 5.7.0 [inbound/tls-required]", "TLS is required, issue STARTTLS first"),
        (
            replace(ASKS_CERT, min_tls=TlsVersion.TLS_1_3, reason="contract"),
            CLEAR,
            "530 5.7.0 [inbound/tls-required]",
            "TLS is required, issue STARTTLS first; with TLS 1.3 or later and a client certificate; contract",
        ),
        (
            ASKS_13,
            TLS_12,
            "530 5.7.0 [inbound/tls-version]",
            "a newer TLS version is required; TLS 1.3 is required, this is TLS 1.2",
        ),
        (
            ASKS_13,
            UNTOLD,
            "530 5.7.0 [inbound/tls-version]",
            "a newer TLS version is required; TLS 1.3 is required, this is an unknown version",
        ),
        (
            ASKS_CERT,
            TLS_13,
            "550 5.7.1 [inbound/no-client-certificate]",
            "a client certificate is required, and none was presented",
        ),
        (
            ASKS_CERT,
            FAILS,
            "550 5.7.1 [inbound/client-certificate]",
            "the client certificate is not the one required; the certificate is not trusted",
        ),
        (
            ASKS_CERT,
            UNJUDGED,
            "550 5.7.1 [inbound/client-certificate]",
            "the client certificate is not the one required; it was not verified",
        ),
    ],
)
def test_the_reply_says_what_is_required_and_why(rule: InboundRule, facts: ClientFacts, code: str, words: str) -> None:
    refused = rcpt(InboundRules((rule,)), facts)
    assert isinstance(refused, RefuseInbound)
    assert str(refused.reply("3f9q.7")) == f"{code} recipient domain secret.example: {words} (id 3f9q.7)"


def test_text_of_the_network_stays_printable_and_short() -> None:
    facts = replace(TLS_13, certificates={DEMAND: CertificateFails("CN=\r\n250 ok" + "x" * 1000)})
    refused = rcpt(InboundRules((ASKS_CERT,)), facts)
    assert isinstance(refused, RefuseInbound)
    (line,) = refused.reply("i").encode().splitlines()
    assert len(line) <= 510


def test_an_accepted_client_is_named_by_its_certificate() -> None:
    assert rcpt(InboundRules((ASKS_CERT,)), HOLDS) == Accept((ASKS_CERT,), "mx.partner.example")
    assert rcpt(InboundRules((ASKS_TLS,)), HOLDS) == Accept((ASKS_TLS,), "")


# -- expiry


@pytest.mark.parametrize(
    ("after_expiry", "mode", "last_day", "next_day"),
    [
        (AfterExpiry.KEEP, Mode.ENFORCE, TLS_530, TLS_530),
        (AfterExpiry.DROP, Mode.ENFORCE, TLS_530, OK),
        (AfterExpiry.KEEP, Mode.SHADOW, OK, OK),
    ],
)
def test_a_rule_holds_through_its_last_day_and_outlives_it_where_it_protects(
    after_expiry: AfterExpiry, mode: Mode, last_day: str, next_day: str
) -> None:
    rule = replace(ASKS_TLS, expires=TODAY, after_expiry=after_expiry, mode=mode)
    rules = InboundRules((rule,))
    assert said(rcpt(rules, CLEAR, today=TODAY - timedelta(1))) == last_day
    assert said(rcpt(rules, CLEAR, today=TODAY)) == last_day
    assert said(rcpt(rules, CLEAR, today=TODAY + timedelta(1))) == next_day


def test_an_expired_shadow_is_judged_no_more() -> None:
    rules = InboundRules((replace(ASKS_TLS, expires=TODAY, mode=Mode.SHADOW),))
    assert rcpt(rules, CLEAR).shadowed
    assert rcpt(rules, CLEAR, today=TODAY + timedelta(1)) == Accept()


def test_warnings_say_what_a_rule_does_not_do() -> None:
    tomorrow = TODAY + timedelta(1)
    rules = InboundRules(
        (
            replace(ASKS_TLS, expires=TODAY),
            InboundRule(SenderDomain("a.example"), expires=TODAY, after_expiry=AfterExpiry.DROP),
            InboundRule(RecipientDomain("*")),
            InboundRule(parse_client("::/0"), mode=Mode.SHADOW),
            InboundRule(parse_client("0.0.0.0/0")),
        )
    )
    assert [(w.rule, w.kind) for w in rules.warnings(TODAY)] == [
        ("recipient domain *", "star"),
        ("client 0.0.0.0/0", "star"),
    ]
    expired = [(w.rule, w.detail) for w in rules.warnings(tomorrow) if w.kind == "expired"]
    assert expired == [
        ("recipient domain secret.example", "expired on 2026-11-24: still applied"),
        ("sender domain a.example", "expired on 2026-11-24: has ended"),
    ]


# -- shadow


@pytest.mark.parametrize("facts", [CLEAR, TLS_12, TLS_13, FAILS, HOLDS], ids=["clear", "1.2", "1.3", "fails", "holds"])
@pytest.mark.parametrize("enforced", [(), (ASKS_TLS,), (replace(ASKS_TLS, on_fail=OnFailure.TEMPFAIL),)])
@pytest.mark.parametrize("shadow", [ASKS_TLS, ASKS_13, ASKS_CERT])
def test_a_shadow_changes_no_reply(facts: ClientFacts, enforced: tuple[InboundRule, ...], shadow: InboundRule) -> None:
    without = rcpt(InboundRules(enforced), facts)
    beside = rcpt(InboundRules((*enforced, replace(shadow, mode=Mode.SHADOW))), facts)
    assert replace(beside, shadowed=()) == without
    (seen,) = beside.shadowed
    assert bool(seen.reasons) is isinstance(rcpt(InboundRules((shadow,)), facts), RefuseInbound)


# -- who is asked for a certificate


@pytest.mark.parametrize(
    ("rules", "asked", "not_asked"),
    [
        ((), [], ["192.0.2.79"]),
        ((ASKS_TLS, replace(ASKS_13, scope=SenderDomain("*"))), [], ["192.0.2.79"]),
        ((ASKS_CERT,), ["192.0.2.79", "2001:db8::1"], []),
        ((replace(ASKS_CERT, mode=Mode.SHADOW),), ["192.0.2.79"], []),
        ((replace(ASKS_CERT, scope=parse_client("192.0.2.0/24")),), ["192.0.2.79", "::ffff:192.0.2.1"],
         ["198.51.100.1", "2001:db8::1"]),
        ((replace(ASKS_CERT, expires=TODAY - timedelta(1)),), ["192.0.2.79"], []),
        ((replace(ASKS_CERT, expires=TODAY - timedelta(1), after_expiry=AfterExpiry.DROP),), [], ["192.0.2.79"]),
    ],
)  # fmt: skip
def test_sub_04_a_certificate_is_requested_only_where_a_rule_needs_it(
    rules: tuple[InboundRule, ...], asked: list[str], not_asked: list[str]
) -> None:
    """SUB-04."""
    table = InboundRules(rules, submission=True)
    assert all(table.wants_client_certificate(ip_address(text), TODAY) for text in asked)
    assert not any(table.wants_client_certificate(ip_address(text), TODAY) for text in not_asked)
    assert not any(InboundRules(require_tls=True).wants_client_certificate(ip_address(text), TODAY) for text in asked)


def test_each_demand_is_judged_once() -> None:
    rules = InboundRules(
        (
            ASKS_CERT,
            replace(ASKS_CERT, scope=SenderDomain("a.example")),
            InboundRule(SenderDomain("b.example"), Require.CLIENT_CERT, OTHER_DEMAND),
        )
    )
    assert rules.certificate_demands(None, TODAY) == (DEMAND, OTHER_DEMAND)


# -- what the file may say


def test_one_scope_has_one_rule_of_each_mode() -> None:
    InboundRules((ASKS_TLS, replace(ASKS_CERT, mode=Mode.SHADOW), replace(ASKS_TLS, scope=SenderDomain("*"))))
    with pytest.raises(RuleInvalid, match=r"two rules for recipient domain secret\.example"):
        InboundRules((ASKS_TLS, ASKS_CERT))


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (ASKS_CERT, ""),
        (replace(ASKS_CERT, demand=OTHER_DEMAND), ""),
        (replace(ASKS_TLS, expires=TODAY, after_expiry=AfterExpiry.DROP), ""),
        (replace(ASKS_CERT, demand=CertificateDemand()), "needs ca_file"),
        (replace(ASKS_CERT, demand=replace(DEMAND, fingerprints=(bytes(32),))), "exclude each other"),
        (replace(ASKS_CERT, demand=replace(OTHER_DEMAND, names=DEMAND.names)), "names need ca_file"),
        (replace(ASKS_TLS, demand=DEMAND), 'belong to require = "client-cert"'),
        (replace(ASKS_TLS, after_expiry=AfterExpiry.DROP), "without expires"),
    ],
)
def test_a_rule_that_means_nothing_is_told(rule: InboundRule, problem: str) -> None:
    problems = rule.problems()
    assert len(problems) == bool(problem)
    assert all(problem in text for text in problems)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("Example.ORG.", "example.org"), (" .bücher.example", ".xn--bcher-kva.example"), ("*", "*")],
)
def test_domain_patterns(text: str, pattern: str) -> None:
    assert parse_domain_pattern(text) == pattern


@pytest.mark.parametrize("text", ["", ".", "*.example.org", "[192.0.2.1]", "a b", "example.org:25"])
def test_a_domain_pattern_that_is_none(text: str) -> None:
    with pytest.raises(RuleInvalid, match=r'right would be "example\.org"'):
        parse_domain_pattern(text)


@pytest.mark.parametrize("text", ["192.0.2.1/24", "192.0.2.0/33", "mx.example.org", "", "::ffff:192.0.2.0/120"])
def test_a_client_network_that_is_none(text: str) -> None:
    with pytest.raises(RuleInvalid):
        parse_client(text)


@pytest.mark.parametrize(
    ("text", "mailbox"),
    [
        ("TLSRPT@Example.org", Mailbox(b"tlsrpt", Domain("example.org"))),
        ("mailto:tlsrpt@example.org?subject=x", Mailbox(b"tlsrpt", Domain("example.org"))),
    ],
)
def test_an_exempt_address(text: str, mailbox: Mailbox) -> None:
    assert parse_exempt(text) == mailbox


@pytest.mark.parametrize("text", ["", "tlsrpt", "@example.org", "https://example.org/report", "a@[192.0.2.1]"])
def test_an_exempt_address_that_is_none(text: str) -> None:
    with pytest.raises(RuleInvalid, match=r"tlsrpt@example\.org"):
        parse_exempt(text)


def test_a_dotted_name_may_stand_in_a_demand() -> None:
    demand = CertificateDemand("/etc/ca.pem", (DotDomain(Domain("partner.example")),))
    facts = replace(TLS_13, certificates={demand: CertificateHolds("a.partner.example")})
    assert said(rcpt(InboundRules((replace(ASKS_CERT, demand=demand),)), facts)) == OK


def test_the_whole_listener_is_no_rule_of_the_file() -> None:
    assert str(WholeListener()) == "this service"
    assert InboundRules(require_tls=True).warnings(TODAY) == ()
