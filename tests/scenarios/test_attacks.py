"""CONFORMANCE §D1: each attack against each kind of policy, over real sockets and real TLS (AF-01..AF-09, INV-04)."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from smtpguard.events import Delivered, DeliveryRefused, HostSkipped, InternalError, PolicyObserved
from smtpguard.sandbox.behaviour import Behaviour, Handshake
from smtpguard.sandbox.internet import Attack, Internet, Publication, Site
from tests.support.rig import open_rig

DOMAIN = "victim.example"
POLICIES = {
    "dane": Publication.DANE_EE,
    "dane-ta": Publication.DANE_TA,
    "sts": Publication.STS_ENFORCE,
    "testing": Publication.STS_TESTING,
    "may": Publication.NOTHING,
    "encrypt": Publication.NOTHING,
}

Prepare = Callable[[Internet], object]


def behaves(**changes: object) -> Prepare:
    """The MX misbehaves this way."""

    def prepare(internet: Internet) -> None:
        mx = internet.hosts[DOMAIN].mx
        mx.behaviour = replace(mx.behaviour or Behaviour(), **changes)  # type: ignore[arg-type]

    return prepare


def attacked(attack: Attack) -> Callable[[Internet], object]:
    """This attack goes on."""
    return lambda internet: internet.attack(DOMAIN, attack)


def valid_wrong_name(internet: Internet) -> None:
    """A certificate of the public authority for somebody else, with another key (AF-05)."""
    internet.hosts[DOMAIN].mx.credential = internet.certificates.leaf(internet.public_authority, ["other.example"])


ATTACKS: dict[str, tuple[Prepare, dict[str, str]]] = {
    "AF-01 stripped": (
        attacked(Attack.STRIP_STARTTLS),
        {
            "dane": "451 4.7.4 [tls/no-starttls]",
            "dane-ta": "451 4.7.4 [tls/no-starttls]",
            "sts": "451 4.7.4 [sts/no-starttls]",
            "testing": "clear",
            "may": "clear",
            "encrypt": "451 4.7.4 [tls/no-starttls]",
        },
    ),
    "AF-02 refused 454": (
        behaves(starttls="454 4.7.0 not now"),
        {
            "dane": "451 4.7.4 [tls/starttls-refused]",
            "dane-ta": "451 4.7.4 [tls/starttls-refused]",
            "sts": "451 4.7.4 [sts/no-starttls]",
            "testing": "clear",
            "may": "clear",
            "encrypt": "451 4.7.4 [tls/starttls-refused]",
        },
    ),
    **{
        f"AF-03 handshake {how.name}": (
            behaves(handshake=how),
            {
                "dane": "451 4.7.5 [tls/handshake]",
                "dane-ta": "451 4.7.5 [tls/handshake]",
                "sts": "451 4.7.5 [tls/handshake]",
                "testing": "clear",
                "may": "clear",
                "encrypt": "451 4.7.5 [tls/handshake]",
            },
        )
        for how in (Handshake.RESET, Handshake.CLOSE, Handshake.ALERT)
    },
    "AF-04 self-signed": (
        attacked(Attack.SWAP_CERTIFICATE),
        {
            "dane": "451 4.7.5 [dane/no-match]",
            "dane-ta": "451 4.7.5 [dane/no-match]",
            "sts": "451 4.7.5 [sts/untrusted]",
            "testing": "tls",
            "may": "tls",
            "encrypt": "tls",
        },
    ),
    "AF-05 valid, wrong name": (
        valid_wrong_name,
        {
            "dane": "451 4.7.5 [dane/no-match]",
            "dane-ta": "451 4.7.5 [dane/no-match]",
            "sts": "451 4.7.5 [sts/name]",
            "testing": "tls",
            "may": "tls",
            "encrypt": "tls",
        },
    ),
    "AF-06 expired": (
        attacked(Attack.EXPIRED_CERTIFICATE),
        {
            "dane": "tls",
            "dane-ta": "451 4.7.5 [dane/expired]",
            "sts": "451 4.7.5 [sts/expired]",
            "testing": "tls",
            "may": "tls",
            "encrypt": "tls",
        },
    ),
    "AF-09 injected": (
        behaves(injected=b"250 injected\r\n"),
        dict.fromkeys(POLICIES, "451 4.7.5 [tls/injection]"),
    ),
}
RESULT_TYPES = {
    "tls/no-starttls": "starttls-not-supported",
    "sts/no-starttls": "starttls-not-supported",
    "tls/starttls-refused": "starttls-not-supported",
    "tls/handshake": "validation-failure",
    "tls/version": "validation-failure",
    "tls/injection": "validation-failure",
    "dane/no-match": "certificate-not-trusted",
    "dane/expired": "certificate-expired",
    "sts/untrusted": "certificate-not-trusted",
    "sts/name": "certificate-host-mismatch",
    "sts/expired": "certificate-expired",
}


async def check(directory: Path, policy: str, prepare: Prepare, expected: str) -> None:
    """Send one message under attack, and look at the reply, the wire and the events."""
    outbound = 'auto_floor = "encrypt"' if policy == "encrypt" else ""
    async with open_rig(directory, [Site(DOMAIN, POLICIES[policy])], outbound=outbound) as rig:
        prepared = prepare(rig.internet)
        if prepared is not None:
            await prepared  # type: ignore[misc]
        with trio.fail_after(15):
            sent = await rig.send(f"a@{DOMAIN}")
        assert not rig.of(InternalError)
        if expected in ("clear", "tls"):
            assert sent.is_delivered, sent
            (delivered,) = rig.of(Delivered)
            assert bool(delivered.tls_version) == (expected == "tls")
            assert delivered.auth == ("clear" if expected == "clear" else "dane" if policy == "dane" else "none")
            if policy == "testing":
                (observed,) = rig.of(PolicyObserved)
                assert (observed.kind, observed.would) == ("sts-testing", "refuse")
                assert observed.result_type
            return
        assert str(sent.last_reply).startswith(f"{expected} mx.{DOMAIN}[127.10.1.1]:"), sent.last_reply
        assert rig.no_clear_mail(DOMAIN)
        token = expected.partition("[")[2].rstrip("]")
        (skipped,) = rig.of(HostSkipped)
        assert (skipped.reason, skipped.result_type) == (token, RESULT_TYPES[token])
        assert skipped.policy_type == {"d": "tlsa", "s": "sts"}.get(policy[0], "no-policy-found")
        (refused,) = rig.of(DeliveryRefused)
        assert (refused.reason, refused.stage, refused.relayed) == (token, "rcpt", False)
        assert refused.id in str(sent.last_reply)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attack", [name for name in ATTACKS if name != "AF-09 injected"])
async def test_attack(tmp_path: Path, attack: str, policy: str) -> None:
    """STLS-12, STLS-13, STLS-14; OUT-10, OUT-11, OUT-12, OUT-16, OUT-17; INV-04."""
    prepare, expected = ATTACKS[attack]
    await check(tmp_path, policy, prepare, expected[policy])


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "testing"])
async def test_injection_after_220(tmp_path: Path, policy: str) -> None:
    """AF-09, STLS-11: clear octets behind the 220 are an attack at every level, and there is no retry in clear."""
    prepare, expected = ATTACKS["AF-09 injected"]
    await check(tmp_path, policy, prepare, expected[policy])


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(("policy", "expected"), [("dane", "451 4.7.5 [tls/handshake]"), ("may", "clear")])
async def test_old_tls(tmp_path: Path, policy: str, expected: str) -> None:
    """AF-07, TLSA-19, STS-27: a host that speaks TLS 1.1 only."""
    await check(tmp_path, policy, prepare_old, expected)


def prepare_old(internet: Internet) -> None:
    """The MX's highest version is TLS 1.1."""
    mx = internet.hosts[DOMAIN].mx
    mx.behaviour = Behaviour(minimum_tls=ssl.TLSVersion.TLSv1_1, maximum_tls=ssl.TLSVersion.TLSv1_1)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("dane", "451 4.4.3 [dns/bogus] victim.example"),
        ("sts", "451 4.7.5 [sts/mx] mx.attacker.example"),
        ("testing", "delivered"),
        ("may", "delivered"),
    ],
)
async def test_forged_mx(tmp_path: Path, policy: str, expected: str) -> None:
    """AF-08, OUT-04, OUT-15: the attacker names his own MX, with a valid certificate for it."""
    async with open_rig(tmp_path, [Site(DOMAIN, POLICIES[policy])]) as rig:
        await rig.internet.attack(DOMAIN, Attack.FORGE_MX)
        sent = await rig.send(f"a@{DOMAIN}")
        assert not rig.of(InternalError)
        if expected == "delivered":
            assert sent.is_delivered
            assert rig.internet.forged_mx.messages
        else:
            assert str(sent.last_reply).startswith(expected)
            assert not rig.internet.forged_mx.sessions
