"""CONFORMANCE §D1: each attack against each kind of policy, over real sockets and real TLS (AF-01..AF-09, INV-04)."""

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from smtpguard.events import (
    Delivered,
    DeliveryRefused,
    HostOpened,
    HostSkipped,
    InternalError,
    PolicyObserved,
    TlsFacts,
)
from smtpguard.sandbox.behaviour import Handshake
from smtpguard.sandbox.dns import Security
from smtpguard.sandbox.internet import FORGED_NAME, Attack, Internet, Publication, Site
from tests.support.rig import MARKER, Rig, open_rig

DOMAIN = "victim.example"
MX = f"mx.{DOMAIN}"


@dataclass(frozen=True, slots=True)
class Column:
    """What the domain publishes, our own floor, and the RFC 8460 policy type of what happens to it."""

    publishes: Publication
    policy_type: str
    outbound: str = ""


COLUMNS = {
    "dane": Column(Publication.DANE_EE, "tlsa"),
    "dane-ta": Column(Publication.DANE_TA, "tlsa"),
    "sts": Column(Publication.STS_ENFORCE, "sts"),
    "testing": Column(Publication.STS_TESTING, "sts"),
    "may": Column(Publication.NOTHING, "no-policy-found"),
    "encrypt": Column(Publication.NOTHING, "no-policy-found", 'auto_floor = "encrypt"'),
}

Prepare = Callable[[Internet], object]


def behaves(**changes: object) -> Prepare:
    """The MX misbehaves this way."""

    def prepare(internet: Internet) -> None:
        mx = internet.hosts[DOMAIN].mx
        mx.behaviour = replace(mx.behaviour, **changes)  # type: ignore[arg-type]

    return prepare


def attacked(attack: Attack) -> Prepare:
    """This attack goes on."""
    return lambda internet: internet.attack(DOMAIN, attack)


def public_for_another(internet: Internet) -> None:
    """A certificate of the public authority for somebody else, with another key."""
    internet.hosts[DOMAIN].mx.credential = internet.certificates.leaf(internet.public_authority, ["other.example"])


def anchored_for_another(internet: Internet) -> None:
    """A certificate of the very authority that the TLSA record names, for somebody else."""
    internet.hosts[DOMAIN].mx.credential = internet.certificates.leaf(
        internet.private_authority, ["other.example"], send_root=True
    )


@dataclass(frozen=True, slots=True)
class Case:
    """One row.  `expected`: by column the begin of the reply, or `tls` or `clear` where the mail is delivered;
    `codes`: the RFC 8460 failure-reason-code of a reason; `connections`: how often the MX is dialled where the mail
    goes in clear, and where it is refused."""

    prepare: Prepare
    expected: Mapping[str, str]
    codes: Mapping[str, str] = field(default_factory=dict)
    connections: tuple[int, int] = (1, 1)


NO_STARTTLS = {
    "dane": "451 4.7.4 [tls/no-starttls]",
    "dane-ta": "451 4.7.4 [tls/no-starttls]",
    "sts": "451 4.7.4 [sts/no-starttls]",
    "testing": "clear",
    "may": "clear",
    "encrypt": "451 4.7.4 [tls/no-starttls]",
}
REFUSED = {
    column: reply.replace("[tls/no-starttls]", "[tls/starttls-refused]") for column, reply in NO_STARTTLS.items()
}
NO_HANDSHAKE = {
    **dict.fromkeys(COLUMNS, "451 4.7.5 [tls/handshake]"),
    "testing": "clear",
    "may": "clear",
}
BAD_CERTIFICATE = {
    "dane": "451 4.7.5 [dane/no-match]",
    "dane-ta": "451 4.7.5 [dane/no-match]",
    "sts": "451 4.7.5 [sts/untrusted]",
    "testing": "tls",
    "may": "tls",
    "encrypt": "tls",
}

CASES = {
    "AF-01 stripped": Case(attacked(Attack.STRIP_STARTTLS), NO_STARTTLS),
    **{
        f"AF-02 answered {code}": Case(
            behaves(starttls=f"{code} 5.7.0 not now"),
            REFUSED,
            {"tls/starttls-refused": f"smtp-reply-{code}", "sts/no-starttls": f"smtp-reply-{code}"},
        )
        for code in (454, 502, 554)
    },
    **{
        f"AF-03 handshake {how.name}": Case(behaves(handshake=how), NO_HANDSHAKE, {"tls/handshake": code}, (2, 1))
        for how, code in (
            (Handshake.RESET, "reset"),
            (Handshake.CLOSE, "eof"),
            (Handshake.ALERT, "tls-alert-40"),
            (Handshake.GARBAGE, "not-tls"),
        )
    },
    "AF-04 self-signed": Case(
        attacked(Attack.SWAP_CERTIFICATE),
        BAD_CERTIFICATE,
        {"dane/no-match": "dane-no-match", "sts/untrusted": "X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT"},
    ),
    "AF-05 public authority, wrong name": Case(
        public_for_another,
        {**BAD_CERTIFICATE, "sts": "451 4.7.5 [sts/name]"},
        {"dane/no-match": "dane-no-match"},
    ),
    "AF-05 right anchor, wrong name": Case(
        anchored_for_another,
        {"dane-ta": "451 4.7.5 [dane/name]"},
        {"dane/name": "X509_V_ERR_HOSTNAME_MISMATCH"},
    ),
    "AF-06 expired": Case(
        attacked(Attack.EXPIRED_CERTIFICATE),
        {
            "dane": "tls",  # RFC 7671 §5.1: usage 3 knows no dates
            "dane-ta": "451 4.7.5 [dane/expired]",
            "sts": "451 4.7.5 [sts/expired]",
            "testing": "tls",
            "may": "tls",
            "encrypt": "tls",
        },
        {
            "dane/expired": "X509_V_ERR_CERT_HAS_EXPIRED",
            "sts/expired": "X509_V_ERR_CERT_HAS_EXPIRED",
        },
    ),
    "AF-07 TLS 1.1 only": Case(
        behaves(minimum_tls=ssl.TLSVersion.TLSv1_1, maximum_tls=ssl.TLSVersion.TLSv1_1),
        NO_HANDSHAKE,
        {"tls/handshake": "tls-alert-70"},
        (2, 1),
    ),
    "AF-09 injected": Case(
        behaves(injected=b"250 injected\r\n"),
        dict.fromkeys(COLUMNS, "451 4.7.5 [tls/injection]"),
        {"tls/injection": "starttls-injection"},
    ),
}
RESULT_TYPES = {
    "tls/no-starttls": "starttls-not-supported",
    "sts/no-starttls": "starttls-not-supported",
    "tls/starttls-refused": "starttls-not-supported",
    "tls/handshake": "validation-failure",
    "tls/injection": "validation-failure",
    "dane/no-match": "certificate-not-trusted",
    "dane/name": "certificate-host-mismatch",
    "dane/expired": "certificate-expired",
    "sts/untrusted": "certificate-not-trusted",
    "sts/name": "certificate-host-mismatch",
    "sts/expired": "certificate-expired",
}


def token_of(reply: str) -> str:
    """The reason between the brackets."""
    return reply.partition("[")[2].partition("]")[0]


def told(event: TlsFacts) -> tuple[str, str, str, str]:
    """Host, policy type, result type and failure-reason-code, as an RFC 8460 report will want them."""
    return event.mx, event.policy_type, event.result_type, event.failure_reason_code


def failure(case: Case, token: str, policy_type: str) -> tuple[str, str, str, str]:
    """What must be told of a failure for this reason."""
    return MX, policy_type, RESULT_TYPES[token], case.codes.get(token, "")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(
    ("attack", "column"), [(name, column) for name, case in CASES.items() for column in case.expected]
)
async def test_attack(tmp_path: Path, attack: str, column: str) -> None:
    """The reply, the wire and the events: STLS-11..14, TLSA-19, STS-27; OUT-10, OUT-11, OUT-12, OUT-16, OUT-17;
    RM-01..05, RM-14; INV-04; CH-26.  After injected octets there is no second try in clear, at any level."""
    case, kind = CASES[attack], COLUMNS[column]
    expected = case.expected[column]
    async with open_rig(tmp_path, [Site(DOMAIN, kind.publishes)], outbound=kind.outbound) as rig:
        prepared = case.prepare(rig.internet)
        if prepared is not None:
            await prepared  # type: ignore[misc]
        with trio.fail_after(15):
            sent = await rig.send(f"a@{DOMAIN}")
        assert not rig.of(InternalError)
        if expected in ("clear", "tls"):
            assert sent.is_delivered, sent
            check_delivered(rig, case, column, in_clear=expected == "clear")
            return
        assert str(sent.last_reply).startswith(f"{expected} {MX}[127.10.1.1]:"), sent.last_reply
        assert rig.no_clear_mail(DOMAIN)
        assert connections(rig) == case.connections[1]
        token = token_of(expected)
        (skipped,) = rig.of(HostSkipped)
        assert skipped.reason == token
        assert told(skipped) == failure(case, token, kind.policy_type)
        assert not rig.of(HostOpened)
        (refused,) = rig.of(DeliveryRefused)
        assert (refused.reason, refused.stage, refused.relayed) == (token, "rcpt", False)
        assert refused.id in str(sent.last_reply)
        # The keys of the log mean the same in every line: host, address, policy.
        assert (refused.mx, refused.address, refused.policy) == (skipped.mx, skipped.address, skipped.policy)


def check_delivered(rig: Rig, case: Case, column: str, *, in_clear: bool) -> None:
    """The level let it go: that is told too, with what would have been the failure."""
    kind = COLUMNS[column]
    (delivered,) = rig.of(Delivered)
    (opened,) = rig.of(HostOpened)
    assert not rig.of(HostSkipped)
    assert bool(delivered.tls_version) is not in_clear
    assert rig.no_clear_mail(DOMAIN) is not in_clear
    assert delivered.auth == ("clear" if in_clear else "dane" if column == "dane" else "none")
    if in_clear:
        token = token_of(case.expected["encrypt"])
        assert told(opened) == failure(case, token, kind.policy_type)
        assert connections(rig) == case.connections[0]
    else:
        assert told(opened) == (MX, kind.policy_type, "", "")
    if column == "testing":
        token = token_of(case.expected["sts"])
        (observed,) = rig.of(PolicyObserved)
        assert (observed.kind, observed.would, observed.reason) == ("sts-testing", "refuse", token)
        assert told(observed) == failure(case, token, "sts")
    else:
        assert not rig.of(PolicyObserved)


def connections(rig: Rig) -> int:
    """How often the MX's address was dialled."""
    host = rig.internet.hosts[DOMAIN]
    return host.attacker.connections if host.attacker is not None else len(host.mx.sessions)


FORGED = {
    "dane": "451 4.4.3 [dns/bogus] victim.example",
    "dane-ta": "451 4.4.3 [dns/bogus] victim.example",
    "sts": f"451 4.7.5 [sts/mx] {FORGED_NAME}",
    "testing": "delivered",
    "may": "delivered",
    "encrypt": "delivered",
}


@pytest.mark.parametrize("column", FORGED)
async def test_forged_mx(tmp_path: Path, column: str) -> None:
    """AF-08, OUT-04, OUT-15, RM-13, RM-16, INV-04: the attacker names his own MX, with a valid certificate for it."""
    kind, expected = COLUMNS[column], FORGED[column]
    async with open_rig(tmp_path, [Site(DOMAIN, kind.publishes)], outbound=kind.outbound) as rig:
        await rig.internet.attack(DOMAIN, Attack.FORGE_MX)
        sent = await rig.send(f"a@{DOMAIN}")
        assert not rig.of(InternalError)
        assert rig.no_clear_mail(DOMAIN)
        assert not rig.internet.hosts[DOMAIN].mx.sessions
        if expected != "delivered":
            assert str(sent.last_reply).startswith(expected), sent.last_reply
            assert not rig.internet.forged_mx.sessions
            (refused,) = rig.of(DeliveryRefused)
            assert (refused.reason, refused.stage) == (token_of(expected), "rcpt")
            assert (refused.mx, refused.address) == (FORGED_NAME if column == "sts" else "", "")
            told_once = {
                "dane": ("", "no-policy-found", "validation-failure", "ede-6"),
                "dane-ta": ("", "no-policy-found", "validation-failure", "ede-6"),
                "sts": (FORGED_NAME, "sts", "validation-failure", "mtasts-policy-mx-mismatch"),
            }
            assert [told(event) for event in rig.of(HostSkipped)] == [told_once[column]]
            return
        assert sent.is_delivered
        assert MARKER in rig.internet.forged_mx.messages[0].content
        assert not rig.of(HostSkipped)
        (opened,) = rig.of(HostOpened)
        assert told(opened) == (FORGED_NAME, kind.policy_type, "", "")  # the documented limit of these levels
        observed = [(one.kind, one.would, told(one)) for one in rig.of(PolicyObserved)]
        mismatch = (FORGED_NAME, "sts", "validation-failure", "mtasts-policy-mx-mismatch")
        assert observed == ([("sts-testing", "refuse", mismatch)] if column == "testing" else [])


async def test_forged_mx_of_an_unsigned_domain(tmp_path: Path) -> None:
    """AF-08: TLSA records of the true MX help nobody whose MX records are not signed."""
    async with open_rig(tmp_path, [Site(DOMAIN, Publication.DANE_EE)]) as rig:
        await rig.internet.attack(DOMAIN, Attack.FORGE_MX)
        rig.internet.names.judge_as(DOMAIN, "MX", Security.INSECURE)
        assert (await rig.send(f"a@{DOMAIN}")).is_delivered
        assert len(rig.internet.forged_mx.messages) == 1
        assert told(rig.of(HostOpened)[0]) == (FORGED_NAME, "no-policy-found", "", "")
