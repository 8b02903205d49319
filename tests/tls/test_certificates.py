"""Certificates of a listener: files, choice by name, reload, and our own TLSA (DANE-43, DANE-45, TLS-08)."""

import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL, crypto

from smtpguard.dns.records import TlsaFound, TlsaRecord
from smtpguard.names import Domain
from smtpguard.tls.certificates import CertificateFiles, ServerCertificates, judge_own_chain
from smtpguard.tls.chain import chain_of
from smtpguard.tls.context import CONTEXT_SECONDS, client_context
from smtpguard.tls.outcome import TlsVersion, read_outcome
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import NOW, Issued, authority, issue, self_signed
from tests.tls.handshakes import connected, shake_hands

ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", ROOT)
MX = issue("mx", INTERMEDIATE, dns=["mx.example.org", "*.mail.example.org", "*.org"])
OTHER = issue("other", INTERMEDIATE, dns=["mx.example.net", "a.mail.example.org"])
ROOTS = RootStore("roots", (crypto.X509.from_cryptography(ROOT.certificate),))
YEAR = timedelta(days=365)


def write(directory: Path, issued: Issued, name: str = "mx") -> CertificateFiles:
    files = CertificateFiles(directory / f"{name}.pem", directory / f"{name}.key")
    files.certificate.write_bytes(issued.chain_pem)
    files.key.write_bytes(issued.key_pem)
    files.key.chmod(0o600)
    return files


def load(*pairs: CertificateFiles) -> ServerCertificates:
    return ServerCertificates.load(pairs, NOW, roots=ROOTS)


def shown(certificates: ServerCertificates, name: str | None) -> bytes:
    """What a client sees that asks for `name`."""
    client, server = connected(client_context(), certificates.context(Domain(name) if name else None))
    shake_hands(client, server)
    chain = read_outcome(client).chain
    assert chain is not None
    return chain.leaf.der


# --- choice


def test_default_for_unknown_names_and_for_none(tmp_path: Path) -> None:
    """DANE-43: a client that names no host, or one that we do not know, sees the first certificate; the handshake
    completes."""
    certificates = load(write(tmp_path, MX), write(tmp_path, OTHER, "other"))
    for name in (None, "bogus.test", "localhost"):
        assert shown(certificates, name) == MX.der


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mx.example.org", MX),
        ("mx.example.net", OTHER),
        ("b.mail.example.org", MX),
        ("a.mail.example.org", OTHER),  # exact before wildcard, whichever pair comes first
        ("x.b.mail.example.org", MX),  # default: a wildcard stands for one label
        ("mail.example.org", MX),  # default: and for no less than one
        ("example.org", MX),
    ],
)
def test_choice_by_name(name: str, expected: Issued, tmp_path: Path) -> None:
    """RFC 9525 §6.3."""
    certificates = load(write(tmp_path, MX), write(tmp_path, OTHER, "other"))
    assert shown(certificates, name) == expected.der


def test_wildcard_is_one_whole_label(tmp_path: Path) -> None:
    """`*.org`, `m*.example` and a name without DNS form are no names; the second pair tells what was chosen."""
    wild = issue("w", INTERMEDIATE, dns=["*.example.org", "*.com", "m*.example.net", "a.*.example.net"])
    certificates = load(write(tmp_path, OTHER, "other"), write(tmp_path, wild))
    assert certificates.certificates[1].names == ("*.example.org",)
    chosen = {n: certificates.choose(Domain(n)).files.key.stem for n in ("a.example.org", "a.b.example.org", "a.com")}
    assert chosen == {"a.example.org": "mx", "a.b.example.org": "other", "a.com": "other"}


def test_first_of_two_alike(tmp_path: Path) -> None:
    again = issue("again", INTERMEDIATE, dns=["mx.example.org"])
    certificates = load(write(tmp_path, OTHER, "other"), write(tmp_path, MX), write(tmp_path, again, "again"))
    assert shown(certificates, "mx.example.org") == MX.der


def test_facts(tmp_path: Path) -> None:
    """What events and gauges tell."""
    (certificate,) = load(write(tmp_path, MX)).certificates
    assert certificate.names == ("mx.example.org", "*.mail.example.org")
    assert certificate.not_after == NOW + timedelta(days=60)
    assert certificate.spki_sha256 == hashlib.sha256(MX.spki).hexdigest()
    assert [c.der for c in (certificate.chain.leaf, *certificate.chain.rest)] == [MX.der, INTERMEDIATE.der]
    assert certificate.warnings == ()
    assert "RSAPrivateKey" not in repr(certificate)


def test_floor_and_request(tmp_path: Path) -> None:
    """Each pair has a context for each way of asking; both keep the floor."""
    pairs = [write(tmp_path, MX)]
    certificates = ServerCertificates.load(pairs, NOW, floor=TlsVersion.TLS_1_3)
    old = SSL.Context(SSL.TLS_CLIENT_METHOD)
    old.set_max_proto_version(SSL.TLS1_2_VERSION)
    for request, mode in ((False, SSL.VERIFY_NONE), (True, SSL.VERIFY_PEER)):
        context = certificates.context(None, request_client_certificate=request)
        assert context.get_verify_mode() == mode
        with pytest.raises(SSL.Error):
            shake_hands(*connected(old, context))


# --- what can be wrong with files


def test_one_file_for_both(tmp_path: Path) -> None:
    path = tmp_path / "both.pem"
    for octets in (MX.key_pem + MX.chain_pem, MX.chain_pem + MX.key_pem):
        path.write_bytes(octets)
        assert shown(load(CertificateFiles(path, path)), None) == MX.der


def test_no_pair() -> None:
    with pytest.raises(ValueError, match="at least one certificate"):
        load()


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        (MX.chain_pem, OTHER.key_pem, r"mx\.key: is not the key of the first certificate in .*mx\.pem"),
        (INTERMEDIATE.pem + MX.pem, MX.key_pem, r"mx\.pem: certificate 2 is the one of the key in .*mx\.key; it must"),
        (
            MX.chain_pem,
            MX.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
            r"mx\.key: the private key is encrypted; .*openssl pkey",
        ),
        (b"", MX.key_pem, r"mx\.pem: holds no PEM certificate"),
        (b"#" * (1 << 20) + MX.chain_pem, MX.key_pem, r"mx\.pem: is longer than"),
        (MX.chain_pem, b"#" * (1 << 20) + MX.key_pem, r"mx\.key: is longer than"),
    ],
)
def test_bad_pairs_are_named(certificate: bytes, key: bytes, message: str, tmp_path: Path) -> None:
    """An error names the file and the way out, also where a good pair stands before it."""
    good, bad = write(tmp_path, OTHER, "other"), write(tmp_path, MX)
    bad.certificate.write_bytes(certificate)
    bad.key.write_bytes(key)
    with pytest.raises(ValueError, match=message):
        load(good, bad)


def test_missing_file_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, MX)
    files.key.unlink()
    with pytest.raises(FileNotFoundError, match=r"mx\.key"):
        load(files)


def warnings_of(tmp_path: Path, pem: bytes, key: bytes = MX.key_pem, roots: RootStore | None = ROOTS) -> list[str]:
    files = write(tmp_path, MX)
    files.certificate.write_bytes(pem)
    files.key.write_bytes(key)
    certificates = ServerCertificates.load([files], NOW, roots=roots)
    assert shown(certificates, None)  # it serves all the same
    assert all(warning.startswith(str(tmp_path)) for warning in certificates.warnings)
    return [warning.partition(": ")[2] for warning in certificates.warnings]


def test_expired_is_a_warning(tmp_path: Path) -> None:
    """DANE-EE does not look at dates: better an expired certificate than no TLS."""
    old = issue("old", INTERMEDIATE, dns=["mx.example.org"], not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
    (warning,) = warnings_of(tmp_path, old.chain_pem, old.key_pem)
    assert warning == "the certificate expired on 2025-11-30: renew it"
    new = issue("new", INTERMEDIATE, dns=["mx.example.org"], not_before=NOW + YEAR, not_after=NOW + 2 * YEAR)
    (warning,) = warnings_of(tmp_path, new.chain_pem, new.key_pem)
    assert warning.startswith("the certificate is not valid before 2027-11-30 12:00 UTC: check")
    issuer = authority("Old", ROOT, not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
    leaf = issue("mx", issuer, dns=["mx.example.org"])
    (warning,) = warnings_of(tmp_path, leaf.chain_pem, leaf.key_pem)
    assert warning == "the certificate of CN=Old expired on 2025-11-30: renew it"


def test_missing_intermediate_is_a_warning(tmp_path: Path) -> None:
    for roots in (ROOTS, None):
        (warning,) = warnings_of(tmp_path, MX.pem, roots=roots)
        assert warning.startswith("CN=Intermediate, the issuer of its last certificate, is missing: append")
    # No warning: the rest is a root of the clients, or a leaf that signed itself, or the root is sent too.
    assert warnings_of(tmp_path, MX.chain_pem, roots=None) == []
    assert warnings_of(tmp_path, MX.chain_pem + ROOT.pem) == []
    alone = self_signed()
    assert warnings_of(tmp_path, alone.pem, alone.key_pem) == []
    direct = issue("direct", ROOT, dns=["mx.example.org"])
    assert warnings_of(tmp_path, direct.pem, direct.key_pem) == []
    # A chain that ends below an authority nobody has.
    foreign = issue("mx", authority("Sub", authority("Foreign")), dns=["mx.example.org"])
    (warning,) = warnings_of(tmp_path, foreign.chain_pem, foreign.key_pem)
    assert warning.startswith("CN=Foreign, the issuer of its last certificate, is missing")


def test_wrong_order_is_mended_and_told(tmp_path: Path) -> None:
    """RFC 5246 §7.4.2: each certificate certifies the one before it."""
    upper = authority("Upper", ROOT)
    lower = authority("Lower", upper)
    leaf = issue("mx", lower, dns=["mx.example.org"])
    (warning,) = warnings_of(tmp_path, leaf.pem + upper.pem + lower.pem, leaf.key_pem)
    assert warning.startswith("the certificates stand in the wrong order and are served in the right one")
    (certificate,) = load(CertificateFiles(tmp_path / "mx.pem", tmp_path / "mx.key")).certificates
    assert [c.der for c in certificate.chain.rest] == [lower.der, upper.der]


def test_certificates_that_do_not_belong(tmp_path: Path) -> None:
    """They are sent behind the others; one that stands there twice is sent once."""
    stray = authority("Stray")
    (warning,) = warnings_of(tmp_path, MX.pem + stray.pem + INTERMEDIATE.pem + INTERMEDIATE.pem)
    assert warning == "1 of its certificates issued none of the others: CN=Stray"
    (certificate,) = load(CertificateFiles(tmp_path / "mx.pem", tmp_path / "mx.key")).certificates
    assert [c.der for c in certificate.chain.rest] == [INTERMEDIATE.der, stray.der]


def test_key_that_everybody_can_read(tmp_path: Path) -> None:
    files = write(tmp_path, MX)
    for mode, count in ((0o600, 0), (0o640, 0), (0o644, 1)):
        files.key.chmod(mode)
        assert len(load(files).warnings) == count
    assert load(files).warnings[0].startswith(f"{files.key}: the private key can be read by every user")


def test_certificate_without_a_name(tmp_path: Path) -> None:
    nameless = issue("mx.example.org", INTERMEDIATE)
    (warning,) = warnings_of(tmp_path, nameless.chain_pem, nameless.key_pem)
    assert warning.startswith("has no DNS name (subjectAltName)")


# --- change and reload


def test_change_is_seen_once(tmp_path: Path) -> None:
    files = write(tmp_path, MX)
    certificates = load(files)
    assert not certificates.changed()
    write(tmp_path, OTHER)
    assert certificates.changed()
    result = certificates.reload(NOW)
    assert result.problems == ()
    assert shown(result.certificates, None) == OTHER.der
    assert not result.certificates.changed()
    assert shown(certificates, None) == MX.der  # connections that stand, and who still holds it


def test_same_size_and_time_in_another_file(tmp_path: Path) -> None:
    """A renamed file is another one by its inode, whatever its size and time."""
    files = write(tmp_path, MX)
    certificates = load(files)
    kept = files.key.stat()
    fresh = tmp_path / "fresh"
    fresh.write_bytes(files.key.read_bytes())
    os.utime(fresh, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    fresh.rename(files.key)
    assert certificates.changed()


def test_change_through_links(tmp_path: Path) -> None:
    """certbot renews a link to a file; Kubernetes swaps `..data`, a link to a directory, under links that stay."""
    for number, issued in ((1, MX), (2, OTHER)):
        (tmp_path / f"..{number}").mkdir()
        write(tmp_path / f"..{number}", issued)
    data = tmp_path / "..data"
    data.symlink_to("..1")
    files = CertificateFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.certificate.symlink_to("..data/mx.pem")
    files.key.symlink_to("..data/mx.key")
    certificates = load(files)
    assert not certificates.changed()
    swapped = tmp_path / "..swapped"
    swapped.symlink_to("..2")
    swapped.rename(data)
    assert certificates.changed()
    assert shown(certificates.reload(NOW).certificates, None) == OTHER.der
    files.key.unlink()
    files.key.symlink_to("..1/mx.key")
    assert certificates.reload(NOW).certificates.reload(NOW).problems != ()


def test_bad_pair_keeps_the_old_one(tmp_path: Path) -> None:
    """One pair goes bad, the other is renewed: the first stays as it was, the second changes; told once for each
    change of the files."""
    first, second = write(tmp_path, MX), write(tmp_path, OTHER, "other")
    certificates = load(first, second)
    renewed = issue("renewed", INTERMEDIATE, dns=["mx.example.net"])
    first.key.write_bytes(renewed.key_pem)  # certbot wrote the key, not yet the certificate
    write(tmp_path, renewed, "other")
    result = certificates.reload(NOW)
    (problem,) = result.problems
    assert problem.startswith(f"{first.key}: is not the key")
    assert shown(result.certificates, None) == MX.der
    assert shown(result.certificates, "mx.example.net") == renewed.der
    assert not result.certificates.changed()
    write(tmp_path, renewed)
    assert result.certificates.changed()
    mended = result.certificates.reload(NOW)
    assert mended.problems == ()
    assert shown(mended.certificates, None) == renewed.der


def test_missing_file_keeps_the_old_one(tmp_path: Path) -> None:
    files = write(tmp_path, MX)
    certificates = load(files)
    files.certificate.unlink()
    assert certificates.changed()
    result = certificates.reload(NOW)
    assert "mx.pem" in result.problems[0]
    assert shown(result.certificates, "mx.example.org") == MX.der
    assert not result.certificates.changed()


def resumes(client: SSL.Context, first: SSL.Context, second: SSL.Context) -> bool:
    """Does `second` take the ticket that `first` gave?"""
    ends = connected(client, first)
    shake_hands(*ends)
    with pytest.raises(SSL.WantReadError):
        ends[0].recv(1)
    session = ends[0].get_session()
    assert session is not None
    again = connected(client, second)
    again[0].set_session(session)
    shake_hands(*again)
    return again[0].master_key() == ends[0].master_key()


def test_ticket_keys_are_replaced(tmp_path: Path) -> None:
    """TLS-08: due within a week; a reload makes new ones, also for a pair that has gone bad.  STLS-20: no context
    takes another's ticket, neither that of the other certificate nor that with client certificates."""
    files = [write(tmp_path, MX), write(tmp_path, OTHER, "other")]
    certificates = load(*files)
    assert not certificates.is_due(NOW + timedelta(days=5))
    assert certificates.is_due(NOW + timedelta(seconds=CONTEXT_SECONDS))
    assert CONTEXT_SECONDS < 7 * 86400
    files[0].certificate.unlink()
    later = NOW + timedelta(days=7)
    result = certificates.reload(later)
    assert result.problems
    assert result.certificates.made == later
    client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client.set_max_proto_version(SSL.TLS1_2_VERSION)  # where a resumed session keeps its master key
    own = certificates.context(None)
    assert resumes(client, own, own)
    assert not resumes(client, own, result.certificates.context(None))
    assert not resumes(client, own, certificates.context(Domain("mx.example.net")))
    asking = certificates.context(None, request_client_certificate=True)
    assert not resumes(client, own, asking)
    assert not resumes(client, asking, asking)


# --- our own TLSA records

BASE = Domain("mx.example.org")
SERVED = chain_of([MX.der, INTERMEDIATE.der])


def record(usage: int, selector: int, matching: int, of: Issued) -> TlsaRecord:
    content = of.spki if selector else of.der
    digests = {0: lambda c: c, 1: lambda c: hashlib.sha256(c).digest(), 2: lambda c: hashlib.sha512(c).digest()}
    return TlsaRecord(usage, selector, matching, digests[matching](content))


def judged(*records: TlsaRecord, base: Domain = BASE, names: tuple[Domain, ...] = ()) -> tuple[str, ...]:
    return judge_own_chain(SERVED, TlsaFound(base, records), names, NOW)


PUBLISH = f"publish 3 1 1 {hashlib.sha256(MX.spki).hexdigest()}"


@pytest.mark.parametrize(
    "records",
    [
        [record(3, 1, 1, MX)],
        [record(3, 1, 1, OTHER), record(3, 1, 1, MX)],  # a rollover
        [record(3, 1, 1, MX), record(2, 1, 1, ROOT)],
        [record(2, 1, 1, INTERMEDIATE)],
        [record(2, 0, 0, ROOT)],  # RFC 7671 §5.2.2: the one that need not be served
        [record(2, 1, 0, ROOT)],
        [record(1, 1, 1, OTHER), record(3, 0, 2, MX)],
    ],
)
def test_chain_that_matches(records: list[TlsaRecord]) -> None:
    """DANE-45: one record that authenticates the chain is enough."""
    assert judged(*records) == ()


def test_no_record_matches() -> None:
    """DANE-45: the lint says what to publish."""
    assert judged(record(3, 1, 1, OTHER)) == (
        f"mx.example.org: no TLSA record matches the certificate that is served: {PUBLISH}",
    )


@pytest.mark.parametrize("record_", [record(2, 0, 1, ROOT), record(2, 1, 1, ROOT), record(2, 1, 2, ROOT)])
def test_anchor_that_is_not_served(record_: TlsaRecord) -> None:
    """DANE-45: with `2 x x` the anchor, even a root, is in the served chain."""
    first, second = judged(record_)
    assert first.endswith(PUBLISH)
    assert second.startswith(
        f"mx.example.org: TLSA 2 {record_.selector} {record_.matching_type} {record_.data.hex()[:16]}..."
    )
    assert "append it to the certificate file, a root too" in second
    whole = chain_of([MX.der, INTERMEDIATE.der, ROOT.der])
    assert judge_own_chain(whole, TlsaFound(BASE, (record_,)), (), NOW) == ()


def test_none_is_usable() -> None:
    (problem,) = judged(record(1, 1, 1, MX), record(0, 1, 1, ROOT))
    assert problem == (
        f"mx.example.org: none of its 2 TLSA records is usable with SMTP (RFC 7672 section 3.1): {PUBLISH}"
    )


def test_usage_2_needs_the_name_and_the_dates() -> None:
    """RFC 7672 §3.1.2: with an anchor, names and dates count; the mail domain is another name."""
    anchor = record(2, 1, 1, INTERMEDIATE)
    other = Domain("mx2.example.org")
    (problem,) = judged(anchor, base=other)
    assert problem.startswith("mx2.example.org: TLSA usage 2 matches, but the certificate does not name the host: ")
    assert judged(anchor, base=other, names=(BASE,)) == ()
    (problem,) = judge_own_chain(SERVED, TlsaFound(BASE, (anchor,)), (), NOW + YEAR)
    assert "but a certificate is not valid at this time" in problem
    assert problem.endswith(PUBLISH)


def test_stronger_digest_of_another_certificate() -> None:
    """RFC 7671 §9: digest agility hides the record that would match."""
    problems = judged(record(3, 1, 1, MX), record(3, 1, 2, OTHER))
    assert len(problems) == 2
    assert "would match and is passed over" in problems[1]


def test_many_records_are_few_problems() -> None:
    assert len(judged(*(TlsaRecord(2, 1, 1, bytes([n]) * 32) for n in range(40)))) == 10


@given(
    st.lists(
        st.builds(TlsaRecord, st.integers(0, 255), st.integers(0, 3), st.integers(0, 3), st.binary(max_size=80)),
        max_size=30,
    )
)
def test_any_records(records: list[TlsaRecord]) -> None:
    """Bounded and printable, whatever is published."""
    problems = judged(*records)
    assert 1 <= len(problems) <= 10
    assert all(p.isascii() and p.isprintable() and len(p) <= 400 for p in problems)


def test_chosen_chain_is_what_is_judged(tmp_path: Path) -> None:
    """DANE-43 and DANE-45 together: under SNI each name is judged by the certificate its clients see."""
    certificates = load(write(tmp_path, OTHER, "other"), write(tmp_path, MX))
    found = TlsaFound(BASE, (record(3, 1, 1, MX),))
    assert judge_own_chain(certificates.choose(BASE).chain, found, (), NOW) == ()
    assert judge_own_chain(certificates.choose(None).chain, found, (), NOW) != ()
