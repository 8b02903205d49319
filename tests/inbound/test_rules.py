"""Rules of the way in, end to end: client certificates by authority and name, by fingerprint, and rules in shadow."""

import hashlib
import ssl
from pathlib import Path

import pytest
from OpenSSL import crypto

from smtpguard.events import DeliveryRefused, InboundTls, InternalError, LimitHit, RuleShadowed
from smtpguard.inbound.limits import Limits
from smtpguard.names import Domain
from smtpguard.policy.inbound import CertificateDemand, InboundRule, InboundRules, Require
from smtpguard.policy.rules import Mode, OnFailure
from smtpguard.policy.scopes import RecipientDomain, Scope, parse_client
from smtpguard.sandbox.client import Client, Reply, unverifying_context
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import CLIENT_AUTH, SERVER_AUTH, Issued, authority, issue, self_signed
from tests.support.front import HOST, Front, open_front, write_pair
from tests.support.mta import Mta

ROOT = authority("Partner CA")
PARTNER = issue("mx.partner.example", ROOT, dns=["mx.partner.example"], purposes=[CLIENT_AUTH])
STRANGER = issue("mx.partner.example", authority("Other CA"), dns=["mx.partner.example"], purposes=[CLIENT_AUTH])
OTHER_HOST = issue("www.else.example", ROOT, dns=["www.else.example"], purposes=[CLIENT_AUTH])
SERVER_ONLY = issue("mx.partner.example", ROOT, dns=["mx.partner.example"], purposes=[SERVER_AUTH])
ALONE = self_signed("alone.example")

SECRET = RecipientDomain("secret.example")
BY_NAME = CertificateDemand("/ca.pem", (DnsId(Domain("mx.partner.example")), DotDomain(Domain("out.example"))))
BY_FINGERPRINT = CertificateDemand(fingerprints=(hashlib.sha256(ALONE.der).digest(),))
BY_KEY = CertificateDemand(fingerprints=(hashlib.sha256(ALONE.spki).digest(),))


def roots(ca_file: str | None) -> RootStore:
    assert ca_file == "/ca.pem"
    return RootStore("partner", (crypto.X509.from_cryptography(ROOT.certificate),))


def asks(
    demand: CertificateDemand,
    scope: Scope = SECRET,
    *,
    mode: Mode = Mode.ENFORCE,
    on_fail: OnFailure = OnFailure.PERMFAIL,
) -> InboundRules:
    return InboundRules((InboundRule(scope, Require.CLIENT_CERT, demand, mode=mode, on_fail=on_fail),))


def context(directory: Path, shown: Issued | None, version: ssl.TLSVersion) -> ssl.SSLContext:
    """The client's side, with its certificate."""
    made = unverifying_context()
    made.minimum_version = made.maximum_version = version
    if shown is not None:
        pair = write_pair(directory, "client", shown)
        made.load_cert_chain(pair.certificate, pair.key)
    return made


async def connected(front: Front, tls: ssl.SSLContext) -> Client:
    client = await front.client()
    assert (await client.start_tls(tls, HOST)).code == 220
    await client.hello()
    return client


async def rcpt(client: Client, recipient: str = "x@secret.example") -> Reply:
    """The reply to RCPT in a transaction of its own."""
    await client.command("MAIL FROM:<a@a.example>")
    reply = await client.command(f"RCPT TO:<{recipient}>")
    await client.command("RSET")
    return reply


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("demand", "shown", "reply"),
    [
        (BY_NAME, PARTNER, "250 2.1.5 Ok"),
        (BY_NAME, None, "550 5.7.1 [inbound/no-client-certificate]"),
        (BY_NAME, STRANGER, "550 5.7.1 [inbound/client-certificate]"),
        (BY_NAME, OTHER_HOST, "550 5.7.1 [inbound/client-certificate]"),
        (BY_NAME, SERVER_ONLY, "550 5.7.1 [inbound/client-certificate]"),
        (BY_NAME, ALONE, "550 5.7.1 [inbound/client-certificate]"),
        (BY_FINGERPRINT, ALONE, "250 2.1.5 Ok"),
        (BY_KEY, ALONE, "250 2.1.5 Ok"),
        (BY_FINGERPRINT, PARTNER, "550 5.7.1 [inbound/client-certificate]"),
        (BY_FINGERPRINT, None, "550 5.7.1 [inbound/no-client-certificate]"),
    ],
)
async def test_who_may_write_to_the_domain(
    tmp_path: Path, version: ssl.TLSVersion, demand: CertificateDemand, shown: Issued | None, reply: str
) -> None:
    """CH-30, SUB-04: nobody's handshake fails for a certificate; the rule speaks at RCPT, and of its domain only."""
    async with open_front(tmp_path, rules=asks(demand), roots=roots) as front:
        client = await connected(front, context(tmp_path, shown, version))
        heard = await rcpt(client)
        assert str(heard).startswith(reply), heard
        assert (await rcpt(client, "b@front.example")).code == 250
        assert (await rcpt(client, "postmaster@secret.example")).code == 250
        clear = await front.client()
        assert str(await rcpt(clear)).startswith("530 5.7.0 [inbound/tls-required]")
        assert "a client certificate" in str(await rcpt(clear))
    refused = [event.reason for event in front.of(DeliveryRefused)]
    own = [] if reply.startswith("250") else [reply.partition("[")[2].rstrip("]")]
    assert refused == [*own, "inbound/tls-required", "inbound/tls-required"]
    (tls,) = front.of(InboundTls)
    assert bool(tls.certificate) is (shown is not None)
    assert front.of(InternalError) == []


async def test_the_certificate_is_told_to_the_mta(tmp_path: Path) -> None:
    """PXY-08, PXY-11: its name, and that it held."""
    async with open_front(tmp_path, Mta(proxy=True), identity_by="proxy-v2", rules=asks(BY_NAME), roots=roots) as front:
        client = await connected(front, context(tmp_path, PARTNER, ssl.TLSVersion.TLSv1_3))
        assert (await client.send("a@a.example", ["x@secret.example"], b"Subject: x\r\n\r\n")).is_delivered
    header = front.mta.clients[-1].proxy
    assert b"mx.partner.example" in header


async def test_a_rule_about_a_network(tmp_path: Path) -> None:
    """Clients of another network are not even asked for a certificate (SUB-04)."""
    shown = context(tmp_path, PARTNER, ssl.TLSVersion.TLSv1_3)
    for network, certificate in (("127.0.0.0/8", "mx.partner.example"), ("192.0.2.0/24", "")):
        async with open_front(tmp_path, rules=asks(BY_NAME, parse_client(network)), roots=roots) as front:
            assert (await rcpt(await connected(front, shown))).code == 250
        assert [event.certificate for event in front.of(InboundTls)] == [certificate]


async def test_temporary_refusal(tmp_path: Path) -> None:
    """`on_fail = "tempfail"`."""
    async with open_front(tmp_path, rules=asks(BY_NAME, on_fail=OnFailure.TEMPFAIL), roots=roots) as front:
        client = await connected(front, context(tmp_path, STRANGER, ssl.TLSVersion.TLSv1_3))
        heard = await rcpt(client)
        assert str(heard).startswith("450 4.7.1 [inbound/client-certificate]"), heard


@pytest.mark.parametrize(
    ("shown", "would", "word"), [(PARTNER, "accept", ""), (STRANGER, "refuse", "inbound/client-certificate"),
                                 (None, "refuse", "inbound/no-client-certificate")]
)  # fmt: skip
async def test_a_rule_in_shadow(tmp_path: Path, shown: Issued | None, would: str, word: str) -> None:
    """`mode = "shadow"`: the certificate is asked for and judged, told, and changes no reply."""
    async with open_front(tmp_path, rules=asks(BY_NAME, mode=Mode.SHADOW), roots=roots) as front:
        client = await connected(front, context(tmp_path, shown, ssl.TLSVersion.TLSv1_3))
        assert str(await rcpt(client)) == "250 2.1.5 Ok"
    (event,) = front.of(RuleShadowed)
    assert (event.would, event.rule) == (would, "recipient domain secret.example")
    assert word in event.detail
    assert front.of(DeliveryRefused) == []


async def test_refusals_by_a_rule_are_errors(tmp_path: Path) -> None:
    """AF-43: whoever asks on and on for what a rule refuses hears 421; a pipelined group is answered whole."""
    rules = InboundRules((InboundRule(SECRET),))
    async with open_front(tmp_path, rules=rules, limits=Limits(errors=3)) as front:
        client = await front.client()
        await client.command("MAIL FROM:<a@a.example>")
        await client.conversation.send(b"RCPT TO:<b@secret.example>\r\n" * 5)
        assert [(await client.reply()).code for _ in range(5)] == [530] * 5
        assert str(await client.command("RCPT TO:<b@secret.example>")).startswith("421 4.7.0 Too many errors")
    assert [event.limit for event in front.of(LimitHit)] == ["errors"]
    assert len(front.of(DeliveryRefused)) == 5
