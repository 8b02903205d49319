"""How is what happened at a host told?  Builds the flat events of one host from plan, opening and verdict.

Every event carries the policy facts an RFC 8460 report will need (RM-01..16): policy type, domain and strings as
published, result type and failure-reason-code.
"""

from collections.abc import Sequence
from typing import TypedDict, assert_never

from smtpguard.dns.records import FailureKind, LookupFailed
from smtpguard.events import HostOpened, HostSkipped, PolicyObserved
from smtpguard.mtasts.parse import StsPolicy
from smtpguard.outbound.gather import Plan
from smtpguard.outbound.host import Candidate, HostFailed, Opened
from smtpguard.outbound.routes import NextHop
from smtpguard.policy.engine import auth_label
from smtpguard.policy.model import HostFacts, TryNextMx
from smtpguard.reasons import Reason, ReasonCode, ResultType, printable
from smtpguard.tls.dane import UnusableTlsa, UsableTlsa
from smtpguard.tls.outcome import StartTls, TlsOutcome


class _Policy(TypedDict):
    policy_type: str
    policy_domain: str
    policy_string: tuple[str, ...]
    mx_patterns: tuple[str, ...]


class _Tls(TypedDict):
    tls_version: str
    cipher: str
    group: str


def host_opened(id_: str, next_hop: NextHop, plan: Plan, opened: Opened, seconds: float) -> HostOpened:
    """A host showed what it must."""
    return HostOpened(
        id=id_,
        domain=next_hop.key,
        mx=plan.name,
        address=str(opened.candidate.address),
        port=opened.candidate.port,
        policy=plan.requirement.policy,
        auth=auth_label(plan.requirement, opened.decision),
        reused=opened.reused,
        seconds=seconds,
        result_type=_shortfall(opened.outcome),
        detail=printable(_opened_detail(opened)),
        source_address=_source(opened.candidate),
        helo=opened.greeting,
        failure_reason_code=opened.outcome.failure_code,
        **_tls(opened.outcome),
        **_policy(plan.facts, plan.requirement.policy),
    )


def _shortfall(outcome: TlsOutcome) -> str:
    """The RFC 8460 result of a session that went on without TLS because its level allows that (RM-01, RM-14)."""
    match outcome.starttls:
        case StartTls.NOT_OFFERED | StartTls.REFUSED:
            return ResultType.STARTTLS_NOT_SUPPORTED.value
        case StartTls.FAILED | StartTls.INJECTED:
            return ResultType.VALIDATION_FAILURE.value
        case StartTls.NOT_TRIED | StartTls.ESTABLISHED:
            return ""
    assert_never(outcome.starttls)


def _opened_detail(opened: Opened) -> str:
    if opened.outcome.encrypted and opened.link.extensions.has("STARTTLS"):
        return "offers STARTTLS inside TLS, ignored"  # RFC 3207 §4.2
    return opened.outcome.detail


def host_skipped(id_: str, next_hop: NextHop, plan: Plan, failed: HostFailed) -> HostSkipped:
    """An address of a host was passed over."""
    reason = failed.reasons[-1]
    return HostSkipped(
        id=id_,
        domain=next_hop.key,
        mx=plan.name,
        address=str(failed.candidate.address),
        port=failed.candidate.port,
        policy=plan.requirement.policy,
        reason=reason.code.token,
        result_type=reason.code.result_type.value if reason.code.result_type else "",
        failure_reason_code=reason.failure_code,
        detail=printable(reason.detail),
        source_address=_source(failed.candidate),
        **_tls(failed.outcome),
        **_policy(plan.facts, plan.requirement.policy),
    )


def unusable_tlsa(id_: str, next_hop: NextHop, plan: Plan) -> PolicyObserved | None:
    """For the record (RM-06): the host has TLSA records, DANE was asked of them, and none is usable."""
    for reason in plan.requirement.reasons:
        if reason.code is ReasonCode.DANE_UNUSABLE_ENCRYPT:
            return PolicyObserved(
                id=id_,
                domain=next_hop.key,
                mx=plan.name,
                address="",
                port=next_hop.port,
                policy=plan.requirement.policy,
                kind="dane-unusable",
                would="deliver",
                reason=ReasonCode.DANE_UNUSABLE.token,
                result_type=ResultType.TLSA_INVALID.value,
                failure_reason_code=reason.failure_code,
                detail=printable(reason.detail),
                **_policy(plan.facts, "dane-unusable"),
            )
    return None


def plan_skipped(id_: str, next_hop: NextHop, host: str, plan: TryNextMx) -> HostSkipped:
    """A host was out before any connection to it; `host` is empty where the domain's hosts are not known."""
    reason = plan.reasons[-1]
    return HostSkipped(
        id=id_,
        domain=next_hop.key,
        mx=host,
        address="",
        port=next_hop.port,
        policy=reason.code.token.partition("/")[0],
        policy_type={"dane": "tlsa", "sts": "sts"}.get(reason.code.token.partition("/")[0], "no-policy-found"),
        policy_domain=host if reason.code.token.startswith("dane/") else next_hop.key,
        reason=reason.code.token,
        result_type=reason.code.result_type.value if reason.code.result_type else "",
        detail=printable(reason.detail),
        failure_reason_code=reason.failure_code,
    )


def observed(
    id_: str, next_hop: NextHop, plan: Plan, kind: str, reasons: Sequence[Reason], opened: Opened | None = None
) -> PolicyObserved:
    """What a policy that is judged and not enforced would have done."""
    reason = reasons[-1] if reasons else None
    result_type = reason.code.result_type if reason else None
    return PolicyObserved(
        id=id_,
        domain=next_hop.key,
        mx=plan.name,
        address=str(opened.candidate.address) if opened else "",
        port=next_hop.port,
        policy=plan.requirement.policy,
        kind=kind,
        would="refuse" if reason else "deliver",
        reason=reason.code.token if reason else "",
        result_type=result_type.value if result_type else "",
        detail=printable(reason.detail) if reason else "",
        failure_reason_code=reason.failure_code if reason else "",
        **_tls(opened.outcome if opened else None),
        **_policy(plan.facts, _observed_policy(plan, kind)),
    )


def _observed_policy(plan: Plan, kind: str) -> str:
    """The label of what was only observed: what an override sets aside is the domain's own policy."""
    for seen in plan.requirement.observed:
        if seen.kind == kind:
            return seen.requirement.policy if seen.requirement else seen.refused[-1].code.token.partition("/")[0]
    return kind


def _policy(facts: HostFacts, policy: str) -> _Policy:
    """The published policy that the label names, in the words of RFC 8460 §4.4."""
    dane, sts = facts.dane, facts.sts
    if "dane" in policy and isinstance(dane, UsableTlsa | UnusableTlsa):
        return _Policy(
            policy_type="tlsa",
            policy_domain=dane.base_domain,
            policy_string=tuple(printable(str(record), 300) for record in dane.records[:20]),
            mx_patterns=(),
        )
    if "dane" in policy and isinstance(dane, LookupFailed) and dane.kind is not FailureKind.DNSSEC_LOST:
        return _Policy(policy_type="tlsa", policy_domain=facts.mx_host or "", policy_string=(), mx_patterns=())
    if policy.startswith("sts") and isinstance(sts, StsPolicy):
        return _Policy(
            policy_type="sts",
            policy_domain=sts.domain,
            policy_string=sts.lines,
            mx_patterns=tuple(str(pattern) for pattern in sts.mx),
        )
    return _Policy(
        policy_type="no-policy-found", policy_domain=facts.next_hop_domain or "", policy_string=(), mx_patterns=()
    )


def _tls(outcome: TlsOutcome | None) -> _Tls:
    if outcome is None or outcome.version is None:
        return _Tls(tls_version="", cipher="", group="")
    return _Tls(tls_version=outcome.version.value, cipher=outcome.cipher, group=outcome.group)


def _source(candidate: Candidate) -> str:
    return str(candidate.source) if candidate.source else ""
