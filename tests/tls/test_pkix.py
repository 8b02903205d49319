"""Paths to trusted roots (CONFORMANCE STS-25, RM-03, RM-04, TLS-09)."""

import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto
from OpenSSL._util import lib

from smtpguard.tls.chain import Certificate, chain_of
from smtpguard.tls.context import client_context, server_context
from smtpguard.tls.pkix import (
    PkixCause,
    PkixFailed,
    PkixVerified,
    RootStore,
    error_name,
    verify_pkix,
    verify_under_anchor,
)
from tests.support.certificates import (
    CLIENT_AUTH,
    NOW,
    SERVER_AUTH,
    Issued,
    authority,
    issue,
    key_number,
    self_signed,
)
from tests.tls.handshakes import carry, connected, shake_hands

ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", ROOT, path_length=0)
LEAF = issue("mx", INTERMEDIATE, dns=["mx.example.org"], purposes=[SERVER_AUTH])
YEAR = timedelta(days=365)
PAST = {"not_before": NOW - 2 * YEAR, "not_after": NOW - YEAR}
FUTURE = {"not_before": NOW + YEAR, "not_after": NOW + 2 * YEAR}

# The last octet of the signature is another.
FORGED = [LEAF.der[:-1] + bytes([LEAF.der[-1] ^ 1]), *LEAF.ders[1:]]


def roots(*authorities: Issued) -> RootStore:
    return RootStore("test", tuple(crypto.load_certificate(crypto.FILETYPE_ASN1, one.der) for one in authorities))


ROOTS = roots(ROOT)


def failure(ders: list[bytes], store: RootStore = ROOTS, now: datetime = NOW) -> tuple[PkixCause, str] | None:
    result = verify_pkix(chain_of(ders), store, now)
    if isinstance(result, PkixVerified):
        return None
    assert result.detail.isprintable()
    return result.cause, result.code.removeprefix("X509_V_ERR_")


EXPIRED, UNTRUSTED = PkixCause.EXPIRED, PkixCause.UNTRUSTED


def test_good_chain() -> None:
    """STS-25; with or without the root, in any order, with strangers in between."""
    path = PkixVerified(tuple(Certificate(der) for der in LEAF.ders))
    stranger = authority("Stranger")
    for rest in (
        [INTERMEDIATE],
        [INTERMEDIATE, ROOT],
        [ROOT, INTERMEDIATE],
        [stranger, INTERMEDIATE, stranger],
    ):
        assert verify_pkix(chain_of([LEAF.der, *(one.der for one in rest)]), ROOTS, NOW) == path


@pytest.mark.parametrize(
    ("ders", "expected"),
    [
        pytest.param([LEAF.der], (UNTRUSTED, "UNABLE_TO_GET_ISSUER_CERT_LOCALLY"), id="no intermediate"),
        pytest.param(issue("x", authority("Unknown")).ders, (UNTRUSTED, "SELF_SIGNED_CERT_IN_CHAIN"), id="unknown CA"),
        pytest.param(self_signed().ders, (UNTRUSTED, "DEPTH_ZERO_SELF_SIGNED_CERT"), id="self-signed"),
        pytest.param(issue("x", INTERMEDIATE, **PAST).ders, (EXPIRED, "CERT_HAS_EXPIRED"), id="expired leaf"),
        pytest.param(issue("x", INTERMEDIATE, **FUTURE).ders, (EXPIRED, "CERT_NOT_YET_VALID"), id="future leaf"),
        pytest.param(
            issue("x", authority("Old", ROOT, **PAST)).ders,
            (EXPIRED, "CERT_HAS_EXPIRED"),
            id="expired intermediate",
        ),
        pytest.param(
            issue("x", authority("Second", INTERMEDIATE)).ders,
            (UNTRUSTED, "PATH_LENGTH_EXCEEDED"),
            id="path length",
        ),
        pytest.param(issue("x", LEAF).ders, (UNTRUSTED, "INVALID_CA"), id="issuer is a leaf"),
        pytest.param(
            issue("x", authority("Limited", ROOT, permitted=["example.com"]), dns=["mx.example.org"]).ders,
            (UNTRUSTED, "PERMITTED_VIOLATION"),
            id="name constraints",
        ),
        pytest.param(
            issue("x", replace(ROOT, key=key_number(99))).ders,
            (UNTRUSTED, "UNABLE_TO_GET_ISSUER_CERT_LOCALLY"),
            id="another key of the issuer's name",
        ),
        pytest.param(FORGED, (UNTRUSTED, "CERT_SIGNATURE_FAILURE"), id="forged"),
        pytest.param(
            issue("x", INTERMEDIATE, purposes=[CLIENT_AUTH]).ders,
            (UNTRUSTED, "INVALID_PURPOSE"),
            id="client purpose",
        ),
        pytest.param(
            issue("x", authority("Clients", ROOT, purposes=[CLIENT_AUTH])).ders,
            (UNTRUSTED, "INVALID_PURPOSE"),
            id="issuer for clients",
        ),
        pytest.param(issue("x", ROOT, key_cert_sign=True).ders, (UNTRUSTED, "INVALID_PURPOSE"), id="key usage"),
        pytest.param(
            issue("x", ROOT, key=key_number(0, "rsa1024")).ders,
            (UNTRUSTED, "EE_KEY_TOO_SMALL"),
            id="weak leaf key",
        ),
        pytest.param(
            issue("x", authority("Weak", ROOT, key=key_number(1, "rsa1024"))).ders,
            (UNTRUSTED, "CA_KEY_TOO_SMALL"),
            id="weak issuer key",
        ),
        pytest.param(
            issue("x", ROOT, extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), True)]).ders,
            (UNTRUSTED, "UNHANDLED_CRITICAL_EXTENSION"),
            id="unknown critical extension",
        ),
        pytest.param([b"garbage"], (UNTRUSTED, "UNSPECIFIED"), id="garbage"),
    ],
)
def test_failures(ders: list[bytes], expected: tuple[PkixCause, str]) -> None:
    """STS-25, RM-03, RM-04: each failure has its cause and OpenSSL's name."""
    assert failure(ders) == expected


@pytest.mark.parametrize("purposes", [None, [SERVER_AUTH], [CLIENT_AUTH, SERVER_AUTH]])
def test_purpose_counts_where_the_extension_is(purposes: list[x509.ObjectIdentifier] | None) -> None:
    """STYLE §4: OpenSSL's store context checks no purpose by itself."""
    assert failure(issue("x", ROOT, purposes=purposes, key_cert_sign=False).ders) is None


def test_garbage_beside_a_good_chain_does_no_harm() -> None:
    assert failure([LEAF.der, b"junk", LEAF.der[:-3], INTERMEDIATE.der]) is None


def test_leaf_in_the_chain_is_no_anchor() -> None:
    """An intermediate among the roots is an anchor for nobody: PARTIAL_CHAIN is for DANE-TA alone."""
    assert failure(LEAF.ders[:2], roots(INTERMEDIATE)) == (UNTRUSTED, "UNABLE_TO_GET_ISSUER_CERT")
    assert failure([LEAF.der], roots(LEAF)) == (UNTRUSTED, "UNABLE_TO_GET_ISSUER_CERT_LOCALLY")


def test_dane_anchor_is_never_the_leaf() -> None:
    """CH-06: with PARTIAL_CHAIN a leaf in the store would verify itself."""
    leaf = Certificate(LEAF.der)
    assert isinstance(verify_under_anchor(chain_of(LEAF.ders), leaf, NOW, anchor_is_dated=True), PkixFailed)


def test_an_expired_cross_signature_does_not_hide_the_good_path() -> None:
    """RM-03: as with the cross-signed root of 2021, the valid path counts."""
    key = key_number(98)
    cross = authority("New Root", authority("Old Root", **PAST), key=key)
    new_root = authority("New Root", key=key)
    leaf = issue("mx", new_root)
    assert failure([leaf.der, cross.der, cross.issuers[0].der], roots(new_root)) is None


def test_time_is_an_argument_and_its_zone_counts() -> None:
    """`now` in any zone is the same instant, and what was judged before changes nothing: OpenSSL would
    keep the first time that a store is given."""
    ends = LEAF.certificate.not_valid_after_utc
    for hours in (-11, 0, 5):
        zone = timezone(timedelta(hours=hours))
        assert failure(LEAF.ders, now=(ends - timedelta(seconds=1)).astimezone(zone)) is None
        late = failure(LEAF.ders, now=(ends + timedelta(seconds=1)).astimezone(zone))
        assert late == (EXPIRED, "CERT_HAS_EXPIRED")


def test_error_names_are_those_of_openssl() -> None:
    """RM-04: the table agrees with the header of the OpenSSL installed, where there is one."""
    assert error_name(10) == "X509_V_ERR_CERT_HAS_EXPIRED"
    assert error_name(62) == "X509_V_ERR_HOSTNAME_MISMATCH"
    assert error_name(79) == "X509_V_ERR_INVALID_CA"
    assert error_name(95) == "X509_V_ERR_RPK_UNTRUSTED"
    assert error_name(4711) == "X509_V_ERR_4711"
    assert error_name(-1) == "X509_V_ERR_-1"
    header = Path("/usr/include/openssl/x509_vfy.h")
    defined = re.findall(r"define (X509_V_ERR_\w+)\s+(\d+)\b", header.read_text()) if header.exists() else []
    for name, number in defined:
        assert error_name(int(number)) == name


def test_a_failed_verification_leaves_no_trace_for_other_connections(tmp_path: Path) -> None:
    """An entry left in OpenSSL's error queue would break the next read of a connection in the same thread."""
    (tmp_path / "cert.pem").write_bytes(LEAF.chain_pem)
    (tmp_path / "key.pem").write_bytes(LEAF.key_pem)
    client, server = connected(client_context(), server_context(tmp_path / "cert.pem", tmp_path / "key.pem"))
    shake_hands(client, server)
    for ders in (FORGED, issue("x", INTERMEDIATE, **PAST).ders, [b"junk"]):
        assert failure(ders) is not None
        assert lib.ERR_peek_error() == 0
        with pytest.raises(SSL.WantReadError):
            client.recv(10)
    server.send(b"still here")
    carry(server, client)
    assert client.recv(20) == b"still here"


# --- root stores
# -----------------------------------------------------------------------------------------------


def test_roots_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "roots.pem"
    file.write_bytes(b"# two authorities\n" + authority("Other").pem + ROOT.pem)
    store = RootStore.load(file)
    assert (store.source, store.size) == (str(file), 2)
    assert failure(LEAF.ders, store) is None


def test_roots_of_the_system() -> None:
    """None is the bundle of the operating system; what a private authority signed is not trusted by it."""
    store = RootStore.load(None)
    assert store.size > 50
    assert failure(LEAF.ders[:2], store) == (UNTRUSTED, "UNABLE_TO_GET_ISSUER_CERT_LOCALLY")


def test_bad_root_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    with pytest.raises(OSError, match=re.escape(str(missing))):
        RootStore.load(missing)
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        RootStore.load(tmp_path)
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"empty\.pem: holds no PEM certificate"):
        RootStore.load(empty)
    broken = tmp_path / "broken.pem"
    broken.write_bytes(ROOT.pem + ROOT.pem.replace(b"MII", b"AAA", 1))
    with pytest.raises(ValueError, match=r"broken\.pem: certificate 2 of 2"):
        RootStore.load(broken)


# --- hostile input
# ---------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_octet_is_never_trusted(which: int, edits: list[tuple[int, int]]) -> None:
    """No exception, and no path over a leaf or intermediate that differs from what its issuer signed."""
    ders = LEAF.ders[:2]
    index = min(which, 1)
    changed = bytearray(ders[index])
    for position, value in edits:
        changed[position % len(changed)] = value
    mutated = bytes(changed)
    result = failure([mutated, ders[1]] if index == 0 else [ders[0], mutated])
    if mutated != ders[index]:
        assert result is not None


def test_sha1_signatures_fail() -> None:
    """TLS-09: a certificate of the path signed with SHA-1; an anchor's own signature does not matter."""
    old = issue("x", ROOT, digest=hashes.SHA224())
    assert failure(old.ders) is None  # 112 bits
    sha1 = sha1_signed(old)
    assert failure([sha1]) in [(UNTRUSTED, "CA_MD_TOO_WEAK"), (UNTRUSTED, "CERT_SIGNATURE_FAILURE")]


def sha1_signed(issued: Issued) -> bytes:
    """The certificate with its algorithm set to ecdsa-with-SHA1 and signed by the root's key accordingly."""
    from cryptography.hazmat.primitives.asymmetric import ec

    with_sha224 = bytes.fromhex("300a06082a8648ce3d040301")
    with_sha1 = bytes.fromhex("300906072a8648ce3d0401")
    tbs = issued.certificate.tbs_certificate_bytes.replace(with_sha224, with_sha1)
    body = tbs[4:]
    tbs = b"\x30\x82" + len(body).to_bytes(2, "big") + body
    assert isinstance(ROOT.key, ec.EllipticCurvePrivateKey)
    signature = b"\0" + ROOT.key.sign(tbs, ec.ECDSA(hashes.SHA1()))  # noqa: S303
    whole = tbs + with_sha1 + bytes([3, len(signature)]) + signature
    return b"\x30\x82" + len(whole).to_bytes(2, "big") + whole
