"""inbound.clientcert: a verdict for each demand, and what the MTA is told."""

import hashlib
from datetime import timedelta

from OpenSSL import crypto

from smtpguard.inbound.clientcert import judge_certificate
from smtpguard.names import Domain
from smtpguard.policy.inbound import CertificateDemand, CertificateFails, CertificateHolds
from smtpguard.smtp.forwarded import ClientCertificate
from smtpguard.tls.chain import CertChain, chain_of
from smtpguard.tls.identity import DnsId, DotDomain
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import CLIENT_AUTH, NOW, Issued, authority, issue, self_signed

ROOT, OTHER = authority("Root"), authority("Other")
CLIENT = issue("client 7", ROOT, dns=["out.partner.example"], purposes=[CLIENT_AUTH])
STORES = {
    name: RootStore(name, (crypto.X509.from_cryptography(root.certificate),))
    for name, root in (("/ca.pem", ROOT), ("/other.pem", OTHER))
}

ANY = CertificateDemand("/ca.pem")
NAMED = CertificateDemand("/ca.pem", (DnsId(Domain("out.partner.example")),))
BELOW = CertificateDemand("/ca.pem", (DotDomain(Domain("partner.example")),))
MISNAMED = CertificateDemand("/ca.pem", (DnsId(Domain("in.partner.example")),))
FOREIGN = CertificateDemand("/other.pem")
PINNED = CertificateDemand(fingerprints=(hashlib.sha256(CLIENT.der).digest(),))
KEY = CertificateDemand(fingerprints=(bytes(32), hashlib.sha256(CLIENT.spki).digest()))
MISPINNED = CertificateDemand(fingerprints=(bytes(32),))


def roots(ca_file: str | None) -> RootStore:
    assert ca_file is not None
    return STORES[ca_file]


def chain(issued: Issued) -> CertChain:
    return chain_of(issued.ders[:-1] or [issued.der])


def test_nothing_shown() -> None:
    """None, None: not "no demand holds", so that the rule says that a certificate is missing."""
    assert judge_certificate(None, (ANY,), roots, NOW) == (None, None)


def test_each_demand_has_its_own_verdict() -> None:
    """By authority, by name, by fingerprint of the certificate or of its key."""
    demands = (ANY, NAMED, BELOW, MISNAMED, FOREIGN, PINNED, KEY, MISPINNED)
    told, verdicts = judge_certificate(chain(CLIENT), demands, roots, NOW)
    assert verdicts is not None
    assert tuple(verdicts) == demands
    held = [demand for demand, verdict in verdicts.items() if verdict == CertificateHolds("out.partner.example")]
    assert held == [ANY, NAMED, BELOW, PINNED, KEY]
    for demand, word in ((MISNAMED, "out.partner.example"), (FOREIGN, "issuer"), (MISPINNED, "sha256:")):
        verdict = verdicts[demand]
        assert isinstance(verdict, CertificateFails)
        assert word in verdict.detail
    assert told == ClientCertificate("client 7", verified=True)


def test_verified_only_where_some_demand_holds() -> None:
    """What goes to the MTA in the PROXY header (PXY-08, PXY-11)."""
    for demands in ((), (FOREIGN,), (MISNAMED, MISPINNED)):
        told, verdicts = judge_certificate(chain(CLIENT), demands, roots, NOW)
        assert told == ClientCertificate("client 7", verified=False)
        assert verdicts is not None
        assert len(verdicts) == len(demands)


def test_expired_but_pinned() -> None:
    """A fingerprint needs no date."""
    late = NOW + timedelta(days=4000)
    _, verdicts = judge_certificate(chain(CLIENT), (ANY, PINNED), roots, late)
    assert verdicts is not None
    assert isinstance(verdicts[ANY], CertificateFails)
    assert verdicts[PINNED] == CertificateHolds("out.partner.example")


def test_the_common_name_is_strangers_text() -> None:
    """PXY-11: printable and bounded, whoever wrote it."""
    told, _ = judge_certificate(chain(self_signed("x\r\nX: y")), (), roots, NOW)
    assert told is not None
    assert "\r" not in told.common_name
    assert told.common_name.isprintable()
    told, _ = judge_certificate(chain(issue("n" * 64, ROOT)), (), roots, NOW)
    assert told is not None
    assert len(told.common_name) == 64


def test_a_leaf_that_is_no_certificate() -> None:
    """OpenSSL would not hand it on; here it meets no demand."""
    told, verdicts = judge_certificate(chain_of([b"\x30\x00"]), (ANY, MISPINNED), roots, NOW)
    assert told == ClientCertificate("", verified=False)
    assert verdicts is not None
    assert all(isinstance(verdict, CertificateFails) for verdict in verdicts.values())
