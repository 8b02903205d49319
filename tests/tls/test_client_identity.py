"""Which clients a rule means (issue 3 §1.5; PF-09 for fingerprints)."""

import hashlib
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import crypto

from smtpguard.names import Domain
from smtpguard.tls.chain import CertChain, Certificate, chain_of
from smtpguard.tls.client_identity import AcceptedClients, ClientCause, ClientRefused, ClientVerified, verify_client
from smtpguard.tls.identity import DnsId, DotDomain, IpId
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import CLIENT_AUTH, NOW, SERVER_AUTH, Issued, authority, issue, key_number, self_signed

ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", ROOT)
CLIENT = issue("client", INTERMEDIATE, dns=["out.partner.example"], addresses=["192.0.2.7"], purposes=[CLIENT_AUTH])
YEAR = timedelta(days=365)
ROOTS = RootStore("roots", (crypto.X509.from_cryptography(ROOT.certificate),))
ANY = AcceptedClients(ROOTS)


def chain(issued: Issued, *, alone: bool = False) -> CertChain:
    return chain_of([issued.der] if alone else issued.ders[:-1] or [issued.der])


def cause(shown: CertChain | None, accepted: AcceptedClients = ANY, now: datetime = NOW) -> ClientCause:
    result = verify_client(shown, accepted, now)
    assert isinstance(result, ClientRefused)
    return result.cause


def named(*names: DnsId | DotDomain | IpId) -> AcceptedClients:
    return AcceptedClients(ROOTS, names)


def test_nothing_shown() -> None:
    assert cause(None) is ClientCause.ABSENT


def test_authority_is_enough() -> None:
    assert verify_client(chain(CLIENT), ANY, NOW) == ClientVerified("out.partner.example")


@pytest.mark.parametrize(
    ("names", "identity"),
    [
        ([DnsId(Domain("out.partner.example"))], "out.partner.example"),
        ([DnsId(Domain("other.example")), DnsId(Domain("out.partner.example"))], "out.partner.example"),
        ([DotDomain(Domain("partner.example"))], "out.partner.example"),
        ([IpId(ip_address("192.0.2.7"))], "192.0.2.7"),
        ([DnsId(Domain("partner.example"))], None),
        ([DotDomain(Domain("out.partner.example"))], None),
        ([IpId(ip_address("192.0.2.8"))], None),
    ],
)
def test_names(names: list[DnsId | DotDomain | IpId], identity: str | None) -> None:
    """RFC 9525 §6: of the names listed one must be in the certificate; it is who the client is."""
    result = verify_client(chain(CLIENT), named(*names), NOW)
    if identity is None:
        assert result == ClientRefused(ClientCause.NAME, "the certificate names out.partner.example, 192.0.2.7")
    else:
        assert result == ClientVerified(identity)


def test_common_name_names_nobody() -> None:
    """RFC 9525 §6.3: it is shown, and never compared."""
    nameless = issue("out.partner.example", INTERMEDIATE, purposes=[CLIENT_AUTH])
    result = verify_client(chain(nameless), named(DnsId(Domain("out.partner.example"))), NOW)
    assert result == ClientRefused(ClientCause.NAME, "the certificate names no host")
    assert verify_client(chain(nameless), ANY, NOW) == ClientVerified("out.partner.example")


def test_wildcard_below_a_suffix() -> None:
    wild = issue("w", INTERMEDIATE, dns=["*.partner.example"], purposes=[CLIENT_AUTH])
    assert verify_client(chain(wild), named(DotDomain(Domain("partner.example"))), NOW) == ClientVerified(
        "*.partner.example"
    )


@pytest.mark.parametrize(
    ("purposes", "accepted"),
    [(None, True), ([CLIENT_AUTH], True), ([SERVER_AUTH, CLIENT_AUTH], True), ([SERVER_AUTH], False)],
)
def test_purpose(purposes: list[object] | None, accepted: bool) -> None:
    """RFC 5280 §4.2.1.12: clientAuth, or no extended key usage at all."""
    leaf = issue("c", INTERMEDIATE, dns=["c.example"], purposes=purposes)  # type: ignore[arg-type]
    if accepted:
        assert verify_client(chain(leaf), ANY, NOW) == ClientVerified("c.example")
    else:
        result = verify_client(chain(leaf), ANY, NOW)
        assert isinstance(result, ClientRefused)
        assert result.cause is ClientCause.PURPOSE
        assert "clientAuth" in result.detail


def test_purpose_of_the_issuer_limits_its_leaves() -> None:
    servers_only = authority("Servers", ROOT, purposes=[SERVER_AUTH])
    assert cause(chain(issue("c", servers_only, dns=["c.example"], purposes=[CLIENT_AUTH]))) is ClientCause.PURPOSE


def test_key_usage() -> None:
    """RFC 5280 §4.2.1.3: a client signs."""
    signing = issue("c", INTERMEDIATE, dns=["c.example"], key_cert_sign=False)
    assert isinstance(verify_client(chain(signing), ANY, NOW), ClientVerified)
    certifying = issue("c", INTERMEDIATE, dns=["c.example"], key_cert_sign=True)
    assert cause(chain(certifying)) is ClientCause.PURPOSE


def test_dates() -> None:
    """At `now`, in whichever zone it is given."""
    assert cause(chain(CLIENT), now=NOW + YEAR) is ClientCause.EXPIRED
    assert cause(chain(CLIENT), now=NOW - YEAR) is ClientCause.EXPIRED
    edge = CLIENT.certificate.not_valid_after_utc
    assert isinstance(verify_client(chain(CLIENT), ANY, edge.astimezone(timezone(timedelta(hours=5)))), ClientVerified)
    assert cause(chain(CLIENT), now=edge + timedelta(seconds=1)) is ClientCause.EXPIRED


def test_untrusted() -> None:
    """Unknown authority, missing intermediate, self-signed, a weak key, garbage."""
    foreign = issue("c", authority("Sub", authority("Foreign")), dns=["out.partner.example"])
    weak = issue("c", INTERMEDIATE, dns=["c.example"], key=key_number(0, "rsa1024"))
    for shown in (
        chain(foreign),
        chain(CLIENT, alone=True),
        chain(self_signed()),
        chain(weak),
        CertChain(Certificate(b"x")),
    ):
        assert cause(shown) is ClientCause.UNTRUSTED
        assert cause(shown, named(DnsId(Domain("out.partner.example")))) is ClientCause.UNTRUSTED


@pytest.mark.parametrize("content", ["certificate", "key"])
@pytest.mark.parametrize("digest", [hashlib.sha256, hashlib.sha512])
def test_fingerprint(content: str, digest: type) -> None:
    """PF-09: of the certificate or its key; no authority, name, purpose or date plays a part."""
    old = self_signed("pinned.example", not_before=NOW - 2 * YEAR, not_after=NOW - YEAR, purposes=[SERVER_AUTH])
    fingerprint = digest(old.der if content == "certificate" else old.spki).digest()
    for accepted in (
        AcceptedClients(fingerprints=(bytes(32), fingerprint)),
        AcceptedClients(ROOTS, (DnsId(Domain("x.example")),), (fingerprint,)),
    ):
        assert verify_client(chain(old), accepted, NOW) == ClientVerified("pinned.example")


def test_no_fingerprint_matches() -> None:
    """The refusal tells what would have matched; authorities beside fingerprints are another way in."""
    pinned = AcceptedClients(fingerprints=(bytes(32),))
    result = verify_client(chain(CLIENT), pinned, NOW)
    assert isinstance(result, ClientRefused)
    assert result.cause is ClientCause.UNTRUSTED
    assert result.detail.endswith(f"sha256:{hashlib.sha256(CLIENT.der).hexdigest()}")
    assert verify_client(chain(CLIENT), AcceptedClients(ROOTS, (), (bytes(32),)), NOW) == ClientVerified(
        "out.partner.example"
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "need authorities or fingerprints"),
        ({"names": (DnsId(Domain("a.example")),), "fingerprints": (bytes(32),)}, "need the authorities"),
        ({"fingerprints": (bytes(20),)}, "SHA-256"),
    ],
)
def test_rules_that_mean_nothing(rule: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AcceptedClients(**rule)  # type: ignore[arg-type]


def test_identity_is_printable_and_bounded() -> None:
    """What the client wrote into its certificate reaches logs and trace lines."""
    hostile = issue("evil\r\nX: y", INTERMEDIATE)
    assert verify_client(chain(hostile), ANY, NOW) == ClientVerified("evil??X: y")
    fingerprint = hashlib.sha256(hostile.der).digest()
    assert verify_client(chain(hostile), AcceptedClients(fingerprints=(fingerprint,)), NOW) == ClientVerified(
        "evil??X: y"
    )
    garbage = CertChain(Certificate(b"garbage"))
    digest = hashlib.sha256(b"garbage")
    assert verify_client(garbage, AcceptedClients(fingerprints=(digest.digest(),)), NOW) == ClientVerified(
        f"sha256:{digest.hexdigest()}"
    )


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(0, 3000))
def test_any_chain(ders: list[bytes], at: int) -> None:
    """Nothing raises, whatever is shown: garbage, or a certificate damaged at one octet."""
    accepted = AcceptedClients(ROOTS, (DnsId(Domain("out.partner.example")),), (bytes(32),))
    assert isinstance(verify_client(chain_of(ders), accepted, NOW), ClientRefused)
    damaged = bytearray(CLIENT.der)
    damaged[at % len(damaged)] ^= 0x55
    result = verify_client(chain_of([bytes(damaged), INTERMEDIATE.der]), accepted, NOW)
    assert isinstance(result, ClientRefused)
    assert result.detail.isprintable()
