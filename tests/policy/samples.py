"""Facts, rules and outcomes that the tests of policy share."""

from dataclasses import replace
from datetime import UTC, date, datetime

from smtpguard.dns.records import FailureKind, LookupFailed, NoTlsa, RdType, Security, TlsaRecord
from smtpguard.mtasts.parse import Mode, MxPattern, NoSts, StsPolicy, StsUnavailable
from smtpguard.names import Domain
from smtpguard.policy.model import HostFacts, Requirement, TryNextMx
from smtpguard.policy.rules import AppliedRules, Rule, RuleSet
from smtpguard.reasons import ReasonCode
from smtpguard.tls.dane import UnusableTlsa, UsableTlsa

TODAY = date(2026, 11, 24)
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
DOMAIN = Domain("example.org")
MX = Domain("mx1.example.net")
RECORD = TlsaRecord(3, 1, 1, bytes(32))

USABLE = UsableTlsa(MX, (RECORD,), (RECORD,))
UNUSABLE = UnusableTlsa(MX, (TlsaRecord(0, 0, 1, bytes(32)),))
TIMED_OUT = LookupFailed(Domain("_25._tcp.mx1.example.net"), RdType.TLSA, FailureKind.TIMEOUT)
BOGUS = replace(TIMED_OUT, kind=FailureKind.BOGUS, ede=(6,))
LOST = replace(TIMED_OUT, kind=FailureKind.DNSSEC_LOST)

ENFORCE = StsPolicy(DOMAIN, "1", Mode.ENFORCE, 86400, (MxPattern(MX),))
UNLISTED = replace(ENFORCE, mx=(MxPattern(Domain("other.example.net")),))
TESTING = replace(ENFORCE, mode=Mode.TESTING)
TESTING_UNLISTED = replace(UNLISTED, mode=Mode.TESTING)
MODE_NONE = replace(ENFORCE, mode=Mode.NONE, mx=())
UNAVAILABLE = StsUnavailable(ReasonCode.STS_FETCH, "503", "http-503")
DEFERRED = StsUnavailable(ReasonCode.STS_TXT_FAILURE, "time-out", "dns-timeout", defer=True)

FACTS = HostFacts(
    next_hop_domain=DOMAIN,
    expanded=DOMAIN,
    mx_host=MX,
    mx_security=Security.SECURE,
    port=25,
    dane=NoTlsa(),
    sts=NoSts(),
)
INSECURE_MX = replace(FACTS, mx_security=Security.INSECURE)


def applied(*rules: Rule, **defaults: object) -> AppliedRules:
    """The rules that speak about DOMAIN."""
    return RuleSet(rules, **defaults).find(DOMAIN)  # type: ignore[arg-type]


def codes(answer: object) -> list[ReasonCode]:
    """The reason codes of an answer."""
    assert isinstance(answer, Requirement | TryNextMx)
    return [reason.code for reason in answer.reasons]
