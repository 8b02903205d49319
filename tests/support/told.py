"""What a scenario looks at: the outcome of one message to `D`, and what the events told of it.

The tuples are what an RFC 8460 report will be made of.
"""

import trio

from smtpguard.events import (
    Delivered,
    DeliveryRefused,
    HostOpened,
    HostSkipped,
    InternalError,
    PolicyObserved,
    StsEvent,
)
from smtpguard.sandbox.internet import Internet
from tests.support.rig import Rig

D = "victim.example"
MX, MX2 = f"mx.{D}", f"mx2.{D}"

UNTRUSTED = (MX, "sts/untrusted", "sts", "certificate-not-trusted", "X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT")
NO_MATCH = (MX, "dane/no-match", "tlsa", "certificate-not-trusted", "dane-no-match")
TLSA_BOGUS = (MX, "dane/tlsa-bogus", "tlsa", "dnssec-invalid", "ede-6")
UNUSABLE = ("dane-unusable", "deliver", "tlsa", "tlsa-invalid", "all-unusable")
WEBPKI_CACHED = ("sts-webpki-invalid", "tls-alert-40+cached-policy")


async def outcome(rig: Rig, recipient: str = f"a@{D}") -> str:
    """`delivered`, or the reply that refused; never in clear, and never without an event that agrees."""
    delivered, refused = len(rig.of(Delivered)), len(rig.of(DeliveryRefused))
    with trio.fail_after(20):
        sent = await rig.send(recipient)
    assert not rig.of(InternalError)
    assert rig.no_clear_mail(D)
    if sent.is_delivered:
        assert (len(rig.of(Delivered)), len(rig.of(DeliveryRefused))) == (delivered + 1, refused)
        return "delivered"
    assert (len(rig.of(Delivered)), len(rig.of(DeliveryRefused))) == (delivered, refused + 1)
    event, reply = rig.of(DeliveryRefused)[-1], str(sent.last_reply)
    assert (event.stage, event.relayed) == ("rcpt", False)
    assert f"[{event.reason}]" in reply, (event, reply)
    assert event.id in reply
    return reply


def skipped(rig: Rig) -> list[tuple[str, str, str, str, str]]:
    """Host, reason, policy type, result type and failure-reason-code of each host passed over."""
    return [
        (one.mx, one.reason, one.policy_type, one.result_type, one.failure_reason_code) for one in rig.of(HostSkipped)
    ]


def opened(rig: Rig) -> list[tuple[str, str, str, str]]:
    """Host, policy, policy type and result type (empty: a success) of each host that was opened."""
    return [(one.mx, one.policy, one.policy_type, one.result_type) for one in rig.of(HostOpened)]


def observed(rig: Rig) -> list[tuple[str, str, str, str, str]]:
    """Kind, verdict, policy type, result type and failure-reason-code of what was only put on record."""
    return [
        (one.kind, one.would, one.policy_type, one.result_type, one.failure_reason_code)
        for one in rig.of(PolicyObserved)
    ]


def sts(rig: Rig) -> list[tuple[str, str, str]]:
    """Event, result type and failure-reason-code of what happened to MTA-STS policies."""
    return [(one.event, one.result_type, one.failure_reason_code) for one in rig.of(StsEvent)]


def self_signed(internet: Internet) -> None:
    """The MX shows a certificate of nobody."""
    internet.hosts[D].mx.credential = internet.certificates.leaf(None, [MX])
