"""What does a level of Postfix ask of a host?  (CONFORMANCE PF-04..14; postconf(5) smtp_tls_security_level)

The rule alone, whatever the domain publishes; engine.py weighs the two.
"""

from dataclasses import replace
from typing import assert_never

from smtpguard.dns.records import FailureKind, LookupFailed, NoTlsa
from smtpguard.names import Domain
from smtpguard.policy.model import (
    Authentication,
    Await,
    Encryption,
    Fact,
    HostFacts,
    Level,
    Requirement,
    TryNextMx,
    Unknown,
)
from smtpguard.policy.published import (
    Answer,
    dane_requirement,
    floor,
    host_of,
    mx_secure,
    tlsa_failed,
    unusable_requirement,
)
from smtpguard.policy.rules import DEFAULT_MATCH, NameWord, OnFailure, Rule
from smtpguard.reasons import Reason, ReasonCode
from smtpguard.tls.dane import UnusableTlsa, UsableTlsa
from smtpguard.tls.identity import DnsId, DotDomain, IpId, ReferenceId


def explicit(rule: Rule, facts: HostFacts) -> Answer:
    """Exactly what the rule's level asks, whatever the domain publishes."""
    match rule.level:
        case Level.NONE | Level.MAY | Level.ENCRYPT:
            return _ruled(floor(rule.level, facts), rule, facts)
        case Level.DANE:
            return _dane_level(rule, facts)
        case Level.DANE_ONLY:
            return _dane_only(rule, facts)
        case Level.FINGERPRINT:
            base = floor(Level.ENCRYPT, facts)
            asked = replace(base, authentication=Authentication.FINGERPRINT, fingerprints=rule.fingerprints)
            return _ruled(asked, rule, facts)
        case Level.VERIFY | Level.SECURE:
            base = floor(Level.ENCRYPT, facts)
            ids = _match_ids(rule, facts)
            asked = replace(base, authentication=Authentication.PKIX, match_ids=ids, anchors=rule.ca_file)
            return _ruled(asked, rule, facts)
        case Level.AUTO:
            raise ValueError("auto is no explicit level")
    assert_never(rule.level)


def _dane_level(rule: Rule, facts: HostFacts) -> Answer:
    """PF-07: DANE where usable, TLS where not, `may` without TLSA, the next host after an error."""
    if facts.mx_host is None:
        return _ruled(floor(Level.MAY, facts), rule, facts)
    match facts.dane:
        case Unknown():
            return Await(frozenset({Fact.DANE}))
        case LookupFailed() as failed:
            return tlsa_failed(failed, facts)
        case UsableTlsa() as tlsa:
            return _named(dane_requirement(tlsa, facts), rule)
        case UnusableTlsa() as unusable:
            return _named(unusable_requirement(unusable, facts), rule)
        case NoTlsa():
            return _ruled(floor(Level.MAY, facts), rule, facts)
    assert_never(facts.dane)


def _dane_only(rule: Rule, facts: HostFacts) -> Answer:
    """PF-08, POL-11: usable secure TLSA behind secure MX records, or not this host."""
    if facts.mx_host is None:  # DANE-27
        return _refused(ReasonCode.DANE_REQUIRED, rule, facts, "an address has no TLSA records")
    match facts.dane:
        case Unknown():
            return Await(frozenset({Fact.DANE}))
        case (
            LookupFailed(kind=FailureKind.DNSSEC_LOST) as lost
        ):  # "insecure" is this resolver's word, and worth nothing
            return tlsa_failed(lost, facts)
        case _ if not mx_secure(facts):  # DANE-24
            return _refused(ReasonCode.DANE_INSECURE_MX, rule, facts)
        case LookupFailed() as failed:
            return tlsa_failed(failed, facts)
        case UsableTlsa() as tlsa:
            return replace(_named(dane_requirement(tlsa, facts), rule), permanent=rule.on_failure is OnFailure.PERMFAIL)
        case UnusableTlsa() | NoTlsa():  # DANE-40
            return _refused(ReasonCode.DANE_REQUIRED, rule, facts)
    assert_never(facts.dane)


def _ruled(asked: Requirement, rule: Rule, facts: HostFacts) -> Requirement:
    """`asked` in the rule's name, with its label, server name, floor and on_failure."""
    asked = replace(
        asked,
        policy=asked.policy if rule.level is Level.DANE else rule.level.value,
        sni=_server_name(rule, facts),
        reasons=(Reason(ReasonCode.RULE_REQUIRES, rule.pattern, rule_detail(rule)),),
        permanent=rule.on_failure is OnFailure.PERMFAIL,
    )
    return tightened(asked, rule)


def _named(asked: Requirement, rule: Rule) -> Requirement:
    """The domain's own requirement, asked in the rule's name too."""
    reason = Reason(ReasonCode.RULE_REQUIRES, rule.pattern, rule_detail(rule))
    return tightened(replace(asked, reasons=(*asked.reasons, reason)), rule)


def tightened(asked: Requirement, rule: Rule) -> Requirement:
    """With the rule's min_tls, which holds also where the domain decides: it can only ask for more.  So it holds where
    TLS is required: elsewhere a host with an older one would get the mail in clear (CH-26)."""
    if rule.min_tls is None or asked.encryption is not Encryption.REQUIRED or asked.tls_floor >= rule.min_tls:
        return asked
    return replace(asked, tls_floor=rule.min_tls)


def rule_detail(rule: Rule) -> str:
    """The rule in a few words, for a reason."""
    return f"level {rule.level.value}" + (f", {rule.reason}" if rule.reason else "")


def _refused(code: ReasonCode, rule: Rule, facts: HostFacts, detail: str = "") -> TryNextMx:
    """The rule itself refuses the host, so on_failure is its own (CH-29)."""
    said = f"rule {rule.pattern}: {rule_detail(rule)}" + (f"; {detail}" if detail else "")
    return TryNextMx((Reason(code, host_of(facts), said),), permanent=rule.on_failure is OnFailure.PERMFAIL)


def _server_name(rule: Rule, facts: HostFacts) -> Domain | None:
    """The SNI a rule sends (PF-14): the MX host where it says nothing; an address has none (RFC 6066 §3)."""
    match rule.servername:
        case None | NameWord.HOSTNAME:
            return facts.mx_host
        case NameWord.NEXTHOP | NameWord.DOT_NEXTHOP:
            return facts.next_hop_domain
        case name:
            return name


def _match_ids(rule: Rule, facts: HostFacts) -> tuple[ReferenceId, ...]:
    """The names a certificate may show (PF-10..12); an address is matched as an address (RFC 9525 §6.4)."""
    ids: list[ReferenceId] = []
    for item in rule.match or DEFAULT_MATCH[rule.level]:
        match item:
            case DnsId() | DotDomain():
                ids.append(item)
            case NameWord.DOT_NEXTHOP:
                if facts.next_hop_domain is not None:
                    ids.append(DotDomain(facts.next_hop_domain))
            case NameWord.HOSTNAME | NameWord.NEXTHOP:
                name = facts.mx_host if item is NameWord.HOSTNAME else facts.next_hop_domain
                if name is not None:
                    ids.append(DnsId(name))
                elif facts.address is not None:
                    ids.append(IpId(facts.address))
            case _:
                assert_never(item)
    return tuple(dict.fromkeys(ids))
