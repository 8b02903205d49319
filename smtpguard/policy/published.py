"""What does the domain publish for this host, and what must the host show for it?  (CONFORMANCE POL-02..10)

RFC 7672 §2.2 (opportunistic DANE), §2.2.1 (insecure MX), §3.2.2 (names); RFC 8461 §4, §5.  DANE goes first
and is final: MTA-STS cannot rescue a host that fails it (RFC 8461 §2).
"""

from dataclasses import replace
from typing import assert_never

from smtpguard.dns.records import FailureKind, LookupFailed, NoTlsa, Security
from smtpguard.mtasts.parse import Mode, NoSts, StsPolicy, StsUnavailable
from smtpguard.names import Domain
from smtpguard.policy.model import (
    Authentication,
    Await,
    Encryption,
    Fact,
    HostFacts,
    Level,
    Observed,
    Requirement,
    TryNextMx,
    Unknown,
)
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.tls.dane import UnusableTlsa, UsableTlsa
from smtpguard.tls.identity import DnsId, ReferenceId

Answer = Requirement | TryNextMx | Await


def published(facts: HostFacts, floor: Requirement) -> Answer:
    """POL-02..10: DANE where usable, else MTA-STS, else `floor`."""
    if facts.mx_host is None:  # DANE-27, STS-33: an address publishes nothing
        return floor
    match facts.dane:
        case Unknown():
            return Await(_unknown(facts))
        case LookupFailed() as failed:  # POL-02
            return tlsa_failed(failed, facts)
        case UsableTlsa() as tlsa if mx_secure(facts):  # POL-03: STS is not waited for
            return replace(dane_requirement(tlsa, facts), observed=sts_beside(facts))
        case UsableTlsa() as tlsa:
            return _half_dane(tlsa, facts)
        case UnusableTlsa() as unusable:  # POL-04, POL-05; DANE-20: never in clear
            return _sts_or(unusable_requirement(unusable, facts), facts)
        case NoTlsa():  # POL-08..10
            return _sts_or(floor, facts)
    assert_never(facts.dane)


def _half_dane(tlsa: UsableTlsa, facts: HostFacts) -> Answer:
    """POL-06, POL-07: the host proves itself; that the domain named it, only MTA-STS can say."""
    requirement = dane_requirement(tlsa, facts)
    match facts.sts:
        case Unknown():
            return Await(frozenset({Fact.STS}))
        case StsUnavailable(defer=True) as unavailable:
            return TryNextMx((_unavailable(unavailable, facts),))
        case StsPolicy(mode=Mode.ENFORCE) as policy:
            if not _lists(policy, facts):
                return _unlisted(policy, facts)
            listed = Reason(ReasonCode.STS_REQUIRES, policy.domain, "the MX is listed")
            requirement = replace(requirement, reasons=(*requirement.reasons, listed))
        case StsUnavailable() as unavailable:
            requirement = replace(requirement, reasons=(*requirement.reasons, _unavailable(unavailable, facts)))
        case StsPolicy() | NoSts():
            pass
        case _:
            assert_never(facts.sts)
    return replace(requirement, observed=sts_beside(facts))


def _sts_or(otherwise: Requirement, facts: HostFacts) -> Answer:
    """What an enforced MTA-STS policy asks, else `otherwise`."""
    match facts.sts:
        case Unknown():
            return Await(frozenset({Fact.STS}))
        case StsPolicy(mode=Mode.ENFORCE) as policy:
            answer = _sts(policy, facts)
            if isinstance(answer, Requirement) and otherwise.policy == "dane-unusable":
                answer = replace(answer, reasons=(*otherwise.reasons, *answer.reasons))
            return answer
        case StsPolicy(mode=Mode.TESTING):  # POL-09, STS-29
            label = otherwise.policy if otherwise.policy == "dane-unusable" else "sts-testing"
            return replace(otherwise, policy=label, observed=sts_beside(facts))
        case StsUnavailable(defer=True) as unavailable:
            return TryNextMx((_unavailable(unavailable, facts),))
        case StsUnavailable(defer=False) as unavailable:  # STS-15, the named exception
            return replace(otherwise, reasons=(*otherwise.reasons, _unavailable(unavailable, facts)))
        case StsPolicy() | NoSts() | StsUnavailable():
            return otherwise
    assert_never(facts.sts)


def sts_beside(facts: HostFacts) -> tuple[Observed, ...]:
    """MTA-STS for the record: where DANE decides (CH-04), and in testing mode."""
    match facts.sts:
        case _ if facts.mx_host is None:
            return ()
        case StsPolicy(mode=Mode.ENFORCE) as policy:
            return (observed("sts", _sts(policy, facts)),)
        case StsPolicy(mode=Mode.TESTING) as policy:
            return (observed("sts-testing", _sts(policy, facts)),)
        case _:
            return ()


def _sts(policy: StsPolicy, facts: HostFacts) -> Requirement | TryNextMx:
    """RFC 8461 §4: the name in the MX record is listed (STS-24) and the certificate names it (STS-25)."""
    if facts.mx_host is None or not _lists(policy, facts):
        return _unlisted(policy, facts)
    return Requirement(
        encryption=Encryption.REQUIRED,
        authentication=Authentication.PKIX,
        policy="sts",
        sni=facts.mx_host,
        reasons=(Reason(ReasonCode.STS_REQUIRES, policy.domain),),
        match_ids=(DnsId(facts.mx_host),),
        host=host_of(facts),
    )


def _lists(policy: StsPolicy, facts: HostFacts) -> bool:
    return facts.mx_host is not None and policy.matches(facts.mx_host)


def _unlisted(policy: StsPolicy, facts: HostFacts) -> TryNextMx:
    """RFC 8461 §5.1(2), STS-32: the host is skipped in its turn, as an unreachable one is."""
    reason = Reason(ReasonCode.STS_MX, host_of(facts), f"policy of {policy.domain}", "mtasts-policy-mx-mismatch")
    return TryNextMx((reason,))


def _unavailable(unavailable: StsUnavailable, facts: HostFacts) -> Reason:
    return Reason(unavailable.code, _domain(facts), unavailable.detail, unavailable.failure_code)


def tlsa_failed(failed: LookupFailed, facts: HostFacts) -> TryNextMx:
    """RFC 7672 §2.1.2: nobody knows whether TLSA records exist, so the host is not contacted (DANE-07)."""
    match failed.kind:
        case FailureKind.DNSSEC_LOST:
            code = ReasonCode.DNSSEC_LOST
        case FailureKind.BOGUS:
            code = ReasonCode.TLSA_BOGUS
        case _:
            code = ReasonCode.TLSA_LOOKUP
    seen = f"{failed.name} {failed.rdtype.value}: {failed.detail or failed.reason_code}"
    return TryNextMx((Reason(code, host_of(facts), seen, failed.reason_code),))


def dane_requirement(tlsa: UsableTlsa, facts: HostFacts) -> Requirement:
    """RFC 7672 §2.2: TLS, and a certificate that a usable record matches (DANE-19)."""
    secure = mx_secure(facts)
    return Requirement(
        encryption=Encryption.REQUIRED,
        authentication=Authentication.DANE,
        policy="dane" if secure else "half-dane",
        sni=tlsa.base_domain,  # DANE-29
        reasons=(
            Reason(
                ReasonCode.DANE_REQUIRES if secure else ReasonCode.HALF_DANE,
                tlsa.base_domain,
                f"{len(tlsa.usable)} of {len(tlsa.records)} records usable",
            ),
        ),
        match_ids=_dane_ids(tlsa, facts),
        tlsa=tlsa,
        host=host_of(facts),
    )


def _dane_ids(tlsa: UsableTlsa, facts: HostFacts) -> tuple[ReferenceId, ...]:
    """RFC 7672 §3.2.2, for usage 2: the base domain first, then what leads to it securely."""
    names: list[Domain | None] = [tlsa.base_domain]
    if not mx_secure(facts):
        # The host's own name only (DANE-33): the base domain may be its secure alias.
        names.append(facts.mx_host)
    elif facts.implicit or facts.bracketed:
        names.append(facts.next_hop_domain)  # DANE-34: the base domain may be what it expands to
    else:
        names += [facts.next_hop_domain, facts.expanded]  # DANE-32
    return tuple(DnsId(name) for name in dict.fromkeys(names) if name is not None)


def unusable_requirement(tlsa: UnusableTlsa, facts: HostFacts) -> Requirement:
    """RFC 7672 §2.2: the host promised TLS; nothing of what it published can be checked (DANE-20)."""
    return Requirement(
        encryption=Encryption.REQUIRED,
        authentication=Authentication.NONE,
        policy="dane-unusable",
        sni=tlsa.base_domain,
        reasons=(
            Reason(
                ReasonCode.DANE_UNUSABLE_ENCRYPT,
                tlsa.base_domain,
                f"{len(tlsa.records)} records",
                "all-unusable",
            ),
        ),
        host=host_of(facts),
    )


_OPPORTUNISTIC = {
    Level.NONE: Encryption.NEVER,
    Level.MAY: Encryption.IF_OFFERED,
    Level.ENCRYPT: Encryption.REQUIRED,
}


def floor(level: Level, facts: HostFacts) -> Requirement:
    """A level without authentication, as what is left where the domain publishes nothing (POL-10)."""
    return Requirement(
        encryption=_OPPORTUNISTIC[level],
        authentication=Authentication.NONE,
        policy=level.value,
        sni=facts.mx_host,
        reasons=(Reason(ReasonCode.NOTHING_PUBLISHED, _domain(facts)),),
        host=host_of(facts),
    )


def observed(kind: str, answer: Requirement | TryNextMx) -> Observed:
    """An answer put on record."""
    if isinstance(answer, TryNextMx):
        return Observed(kind, None, answer.reasons)
    return Observed(kind, replace(answer, observed=()))


def mx_secure(facts: HostFacts) -> bool:
    """Is the host's name as good as signed: by DNSSEC, or because the configuration names it?"""
    return facts.bracketed or facts.mx_security is Security.SECURE


def host_of(facts: HostFacts) -> str:
    """The host as reasons name it."""
    return facts.mx_host or f"[{facts.address}]"


def _domain(facts: HostFacts) -> str:
    return facts.next_hop_domain or host_of(facts)


def _unknown(facts: HostFacts) -> frozenset[Fact]:
    missing = ((Fact.DANE, facts.dane), (Fact.STS, facts.sts))
    return frozenset(fact for fact, value in missing if isinstance(value, Unknown))
