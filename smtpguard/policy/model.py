"""The words of judgement: what is known, what is demanded, what was decided.  (DESIGN §5; RFC 7672 §2.2, RFC 8461 §5)

Facts -> Requirement -> TlsOutcome -> Decision.  Values only.
"""

from dataclasses import dataclass
from enum import Enum

from smtpguard.dns.records import LookupFailed, NoTlsa, Security
from smtpguard.mtasts.parse import NoSts, StsPolicy, StsUnavailable
from smtpguard.names import Domain, IpAddress
from smtpguard.reasons import Reason
from smtpguard.tls.dane import UnusableTlsa, UsableTlsa
from smtpguard.tls.identity import ReferenceId
from smtpguard.tls.outcome import TlsVersion


class Level(Enum):
    """Postfix's words, plus `auto`: per MX host DANE where usable, else MTA-STS, else `auto_floor`."""

    AUTO = "auto"
    NONE = "none"
    MAY = "may"
    ENCRYPT = "encrypt"
    FINGERPRINT = "fingerprint"
    DANE = "dane"
    DANE_ONLY = "dane-only"
    VERIFY = "verify"
    SECURE = "secure"


class Encryption(Enum):
    """Is TLS wanted?"""

    NEVER = "never"
    IF_OFFERED = "if-offered"
    REQUIRED = "required"


class Authentication(Enum):
    """How must the host prove who it is?"""

    NONE = "none"
    DANE = "dane"
    PKIX = "pkix"
    FINGERPRINT = "fingerprint"


DaneEvidence = NoTlsa | UnusableTlsa | UsableTlsa | LookupFailed
StsEvidence = NoSts | StsPolicy | StsUnavailable


@dataclass(frozen=True, slots=True)
class Unknown:
    """A fact that has not arrived yet."""


class Fact(Enum):
    """The facts that arrive on their own."""

    DANE = "dane"
    STS = "sts"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What is known about one MX host of one next-hop domain.

    `mx_host` is the name as it stands in the MX RRset; None for an address literal or a bracketed address.
    `bracketed`: a `[[route]]` named the host itself, so no MX look-up stands between (its name is as good as
    configured).  `address` is set for literals only.
    """

    next_hop_domain: Domain | None
    expanded: Domain | None
    mx_host: Domain | None
    mx_security: Security
    port: int
    dane: DaneEvidence | Unknown
    sts: StsEvidence | Unknown
    implicit: bool = False
    bracketed: bool = False
    address: IpAddress | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """What this host must show before a message may go to it, and why.

    `policy` is the short label of logs, metrics and reply suffixes: `dane half-dane dane-unusable sts sts-testing may
    encrypt none fingerprint verify secure`.  `match_ids` are what an authenticated certificate must name; with
    Authentication.NONE and FINGERPRINT they are empty.  `anchors` is the rule's own CA file, or None for the shared
    roots.  `permanent`: a failure may be a 5xx (an explicit rule with on_failure = "permfail" asks for what failed).
    `observed` are requirements judged beside this one, reported and never enforced: a testing-mode policy, a shadow
    rule, STS where DANE decides.  `host` is the MX host (or address) for the subject of reasons.
    """

    encryption: Encryption
    authentication: Authentication
    policy: str
    sni: Domain | None
    reasons: tuple[Reason, ...]
    match_ids: tuple[ReferenceId, ...] = ()
    tlsa: UsableTlsa | None = None
    fingerprints: tuple[bytes, ...] = ()
    anchors: str | None = None
    tls_floor: TlsVersion = TlsVersion.TLS_1_2
    permanent: bool = False
    observed: tuple["Observed", ...] = ()
    host: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """A requirement that is judged for the record only.

    `kind`: `sts-testing`, `sts` (DANE decides), `shadow`, `override` (what a rule with override set aside).
    `refused` where the host is already out before any connection (an MX that a policy does not list),
    with those reasons.
    """

    kind: str
    requirement: Requirement | None
    refused: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Await:
    """Undecided: the missing facts that could still change the answer (never empty)."""

    facts: frozenset[Fact]


@dataclass(frozen=True, slots=True)
class TryNextMx:
    """This host is out; the reasons (never empty) are what the MTA hears if it was the last."""

    reasons: tuple[Reason, ...]
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class Deliver:
    """The host showed what was asked.

    `authenticated_by` is what held (`dane`, `pkix`, `fingerprint`, or `none`).  `observed` pairs the kind of each
    Observed with the reasons it failed for (empty: it held).
    """

    authenticated_by: Authentication
    encrypted: bool
    observed: tuple[tuple[str, tuple[Reason, ...]], ...] = ()


Decision = Deliver | TryNextMx
