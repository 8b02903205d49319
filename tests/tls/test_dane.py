"""DANE on generated chains: usability, digest agility, DANE-EE, DANE-TA (CONFORMANCE DANE-19..42,
TLSA-01..19)."""

import hashlib
import random
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.dns.records import TlsaFound, TlsaRecord
from smtpguard.names import Domain
from smtpguard.tls.chain import CertChain, chain_of
from smtpguard.tls.dane import (
    MAX_ANCHORS,
    DaneCause,
    DaneFailed,
    DaneMatched,
    UnusableTlsa,
    UsableTlsa,
    assess_tlsa,
    verify_dane,
)
from smtpguard.tls.identity import DnsId, ReferenceId
from tests.support.certificates import (
    CLIENT_AUTH,
    NOW,
    SERVER_AUTH,
    Issued,
    KeyKind,
    authority,
    issue,
    key_number,
    of_version,
    self_signed,
)

MX = Domain("mx.example.org")
YEAR = timedelta(days=365)
ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", ROOT, path_length=0)
LEAF = issue("mx", INTERMEDIATE, dns=[MX], purposes=[SERVER_AUTH])
OTHER = authority("Other Root")


def tlsa(usage: int, selector: int, matching_type: int, of: Issued) -> TlsaRecord:
    """The record that `of` satisfies."""
    content = of.spki if selector else of.der
    data = {0: lambda: content, 1: hashlib.sha256(content).digest, 2: hashlib.sha512(content).digest}[matching_type]()
    return TlsaRecord(usage, selector, matching_type, data)


def usable(*records: TlsaRecord) -> UsableTlsa:
    assessed = assess_tlsa(TlsaFound(MX, records))
    assert isinstance(assessed, UsableTlsa)
    return assessed


def verify(
    presented: list[bytes] | CertChain,
    *records: TlsaRecord,
    names: tuple[ReferenceId, ...] = (DnsId(MX),),
    now=NOW,
) -> DaneMatched | DaneFailed:
    chain = presented if isinstance(presented, CertChain) else chain_of(presented)
    return verify_dane(chain, usable(*records), names, now)


def cause(result: DaneMatched | DaneFailed) -> DaneCause | None:
    return result.cause if isinstance(result, DaneFailed) else None


# --- which records count
# ---------------------------------------------------------------------------------------

DIGEST = b"d" * 32


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(TlsaRecord(0, 0, 1, DIGEST), id="DANE-37 PKIX-TA"),
        pytest.param(TlsaRecord(1, 1, 1, DIGEST), id="DANE-37 PKIX-EE"),
        pytest.param(TlsaRecord(4, 0, 1, DIGEST), id="TLSA-02 usage 4"),
        pytest.param(TlsaRecord(255, 0, 1, DIGEST), id="TLSA-02 usage 255"),
        pytest.param(TlsaRecord(3, 2, 1, DIGEST), id="TLSA-02 selector"),
        pytest.param(TlsaRecord(3, 1, 9, DIGEST), id="TLSA-02 matching type"),
        pytest.param(TlsaRecord(3, 1, 1, DIGEST[:31]), id="TLSA-03 short SHA-256"),
        pytest.param(TlsaRecord(3, 1, 1, DIGEST * 2), id="TLSA-03 long SHA-256"),
        pytest.param(TlsaRecord(3, 1, 2, DIGEST), id="TLSA-03 short SHA-512"),
        pytest.param(TlsaRecord(3, 0, 0, b"garbage"), id="TLSA-03 not a certificate"),
        pytest.param(TlsaRecord(2, 0, 0, LEAF.spki), id="TLSA-03 a key for a certificate"),
        pytest.param(TlsaRecord(3, 1, 0, LEAF.der), id="TLSA-03 a certificate for a key"),
        pytest.param(TlsaRecord(2, 1, 0, LEAF.spki + b"\0"), id="TLSA-03 trailing octet"),
        pytest.param(TlsaRecord(3, 1, 1, b"", malformed=True), id="TLSA-01 empty"),
        pytest.param(TlsaRecord(3, 1, 1, DIGEST, malformed=True), id="TLSA-01 malformed"),
    ],
)
def test_unusable_records_are_dropped(record: TlsaRecord) -> None:
    """TLSA-01..03, DANE-37; DANE-20: a set without a usable record is told apart from one that has some."""
    alone = assess_tlsa(TlsaFound(MX, (record,)))
    assert alone == UnusableTlsa(MX, (record,))
    good = tlsa(3, 1, 1, LEAF)
    mixed = assess_tlsa(TlsaFound(MX, (record, good)))
    assert mixed == UsableTlsa(MX, (record, good), (good,))


def test_disabled_digest_is_unusable() -> None:
    """TLSA-04: a digest that local policy does not list does not count."""
    found = TlsaFound(MX, (tlsa(3, 1, 1, LEAF),))
    assert isinstance(assess_tlsa(found, (2,)), UnusableTlsa)
    assert isinstance(assess_tlsa(found, (2, 1)), UsableTlsa)


def test_digest_agility_keeps_full_and_the_strongest_digest() -> None:
    """TLSA-09, DANE-42: per usage and selector."""
    records = (
        tlsa(3, 1, 1, LEAF),
        tlsa(3, 1, 2, OTHER),
        tlsa(3, 1, 0, OTHER),
        tlsa(3, 0, 1, OTHER),
        tlsa(2, 1, 1, OTHER),
    )
    assert usable(*records).usable == records[1:]
    assert cause(verify(LEAF.ders, *records)) is DaneCause.NO_MATCH
    assert verify(LEAF.ders, *records, tlsa(3, 1, 0, LEAF)) == DaneMatched(tlsa(3, 1, 0, LEAF))


def test_digest_agility_comes_after_the_unusable_are_dropped() -> None:
    """TLSA-10: a broken `3 1 2` does not displace a good `3 1 1`."""
    good = tlsa(3, 1, 1, LEAF)
    assert verify(LEAF.ders, TlsaRecord(3, 1, 2, b"x" * 63), good) == DaneMatched(good)


def test_order_of_digest_strength_is_configurable() -> None:
    """TLSA-11."""
    weak, strong = tlsa(3, 1, 1, LEAF), tlsa(3, 1, 2, LEAF)
    found = TlsaFound(MX, (weak, strong))
    assert assess_tlsa(found) == UsableTlsa(MX, (weak, strong), (strong,))
    assert assess_tlsa(found, (1, 2)) == UsableTlsa(MX, (weak, strong), (weak,))


# --- DANE-EE
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matching_type", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_dane_ee_matches_the_leaf(kind: KeyKind, selector: int, matching_type: int) -> None:
    """TLSA-05, TLSA-06: all selectors and matching types, with RSA, EC and Ed25519 keys."""
    leaf = self_signed(MX, key=key_number(90, kind))
    record = tlsa(3, selector, matching_type, leaf)
    assert verify([leaf.der], record) == DaneMatched(record)
    wrong = tlsa(3, selector, matching_type, OTHER)
    assert cause(verify([leaf.der], wrong)) is DaneCause.NO_MATCH


def test_dane_ee_ignores_names_dates_issuers_and_purpose() -> None:
    """DANE-30: wrong name, expired, clientAuth only, from an unknown authority: the key decides."""
    leaf = issue(
        "x",
        ROOT,
        dns=["other.example"],
        not_after=NOW - YEAR,
        not_before=NOW - 2 * YEAR,
        purposes=[CLIENT_AUTH],
    )
    record = tlsa(3, 1, 1, leaf)
    assert verify([leaf.der], record, names=()) == DaneMatched(record)


def test_dane_ee_accepts_a_weak_key_that_is_published() -> None:
    """TLS-09, CH-28: no path is validated, and the domain named exactly this key."""
    leaf = self_signed(MX, key=key_number(0, "rsa1024"))
    record = tlsa(3, 1, 1, leaf)
    assert verify([leaf.der], record) == DaneMatched(record)


def test_dane_ee_does_not_match_an_issuer() -> None:
    """TLSA-12."""
    result = verify(LEAF.ders, tlsa(3, 1, 1, INTERMEDIATE), tlsa(3, 0, 0, ROOT))
    assert isinstance(result, DaneFailed)
    assert (result.cause, result.code) == (DaneCause.NO_MATCH, "dane-no-match")  # RM-05
    assert hashlib.sha256(LEAF.spki).hexdigest() in result.detail


def test_rollover_set_accepts_either_key() -> None:
    """TLSA-18."""
    old, new = self_signed(MX, key=key_number(91)), self_signed(MX, key=key_number(92))
    records = (tlsa(3, 1, 1, old), tlsa(3, 1, 1, new))
    assert verify([old.der], *records) == DaneMatched(records[0])
    assert verify([new.der], *records) == DaneMatched(records[1])


# --- DANE-TA
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matching_type", [0, 1, 2])
@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("anchor", [ROOT, INTERMEDIATE], ids=["root", "intermediate"])
def test_dane_ta_matches_an_issuer_in_the_chain(anchor: Issued, selector: int, matching_type: int) -> None:
    """TLSA-05, TLSA-13: a root or an intermediate, whether or not the chain goes on above it."""
    record = tlsa(2, selector, matching_type, anchor)
    assert verify(LEAF.ders, record) == DaneMatched(record)


def test_dane_ta_never_matches_the_leaf() -> None:
    """TLSA-13, CH-06: not in DNS, not presented twice, and not where it signed itself."""
    leaf = self_signed(MX)
    for selector in (0, 1):
        for matching_type in (0, 1, 2):
            record = tlsa(2, selector, matching_type, leaf)
            assert cause(verify([leaf.der], record)) is DaneCause.NO_MATCH
            assert cause(verify([leaf.der, leaf.der], record)) is DaneCause.NO_MATCH
            assert cause(verify(LEAF.ders, tlsa(2, selector, matching_type, LEAF))) is DaneCause.NO_MATCH


def test_an_authority_as_leaf_is_no_anchor_either() -> None:
    """CH-06: a CA certificate presented as leaf does not vouch for itself."""
    ca = authority("mx", extra=[(x509.SubjectAlternativeName([x509.DNSName(MX)]), False)])
    for selector in (0, 1):
        assert isinstance(verify([ca.der], tlsa(2, selector, 0, ca)), DaneFailed)


def test_dane_ta_needs_the_name() -> None:
    """DANE-31, RM-02."""
    leaf = issue("mx", INTERMEDIATE, dns=["other.example"])
    result = verify(leaf.ders, tlsa(2, 0, 1, ROOT))
    assert isinstance(result, DaneFailed)
    assert result.cause is DaneCause.NAME
    assert "other.example" in result.detail


def test_dane_ta_accepts_any_of_the_reference_ids() -> None:
    """DANE-32..34: which ids count is the caller's requirement; each of them suffices, and no other does."""
    record = tlsa(2, 0, 1, ROOT)
    leaf = issue("mx", INTERMEDIATE, dns=["example.org"])
    ids = (DnsId(MX), DnsId(Domain("example.org")))
    assert verify(leaf.ders, record, names=ids) == DaneMatched(record)
    assert cause(verify(leaf.ders, record, names=ids[:1])) is DaneCause.NAME
    assert cause(verify(leaf.ders, record, names=())) is DaneCause.NAME


def test_dane_ta_ignores_the_common_name() -> None:
    """DANE-35, CH-05: with other DNS ids, and without any."""
    for dns in (["other.example"], []):
        leaf = issue(MX, INTERMEDIATE, dns=dns)
        assert cause(verify(leaf.ders, tlsa(2, 0, 1, ROOT))) is DaneCause.NAME


@pytest.mark.parametrize("selector", [0, 1])
def test_dane_ta_checks_dates(selector: int) -> None:
    """TLSA-13, CH-06, RM-03: leaf, intermediate and a presented anchor must be valid."""
    past = {"not_before": NOW - 2 * YEAR, "not_after": NOW - YEAR}
    future = {"not_before": NOW + YEAR, "not_after": NOW + 2 * YEAR}
    for when, code in ((past, "X509_V_ERR_CERT_HAS_EXPIRED"), (future, "X509_V_ERR_CERT_NOT_YET_VALID")):
        stale_leaf = issue("mx", INTERMEDIATE, dns=[MX], **when)
        stale_intermediate = authority("Intermediate", ROOT, **when)
        stale_root = authority("Root", **when)
        for leaf in (
            stale_leaf,
            issue("mx", stale_intermediate, dns=[MX]),
            issue("mx", authority("Intermediate", stale_root), dns=[MX]),
        ):
            result = verify(leaf.ders, tlsa(2, selector, 1, leaf.issuers[-1]))
            assert isinstance(result, DaneFailed)
            assert (result.cause, result.code) == (DaneCause.EXPIRED, code)


def test_dates_are_judged_at_the_time_given() -> None:
    """The same instant in another zone gives the same verdict."""
    record = tlsa(2, 0, 1, ROOT)
    import zoneinfo

    edge = LEAF.certificate.not_valid_after_utc
    for zone in ("Asia/Karachi", "America/Lima"):
        local = edge.astimezone(zoneinfo.ZoneInfo(zone))
        assert verify(LEAF.ders, record, now=local - timedelta(seconds=1)) == DaneMatched(record)
        assert cause(verify(LEAF.ders, record, now=local + timedelta(seconds=1))) is DaneCause.EXPIRED


def test_anchor_published_in_full_needs_no_dates() -> None:
    """CH-06: the dates of a `2 0 0` anchor taken from DNS do not count, those below it do."""
    root = authority("Root", not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
    record = tlsa(2, 0, 0, root)
    for presented in (slice(None), slice(-1)):
        intermediate = authority("Intermediate", root)
        assert verify(issue("mx", intermediate, dns=[MX]).ders[presented], record) == DaneMatched(record)
        stale = issue("mx", intermediate, dns=[MX], not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
        assert cause(verify(stale.ders[presented], record)) is DaneCause.EXPIRED
        between = authority("Intermediate", root, not_before=NOW - 2 * YEAR, not_after=NOW - YEAR)
        assert cause(verify(issue("mx", between, dns=[MX]).ders[presented], record)) is DaneCause.EXPIRED


def test_digest_of_an_anchor_that_is_not_presented() -> None:
    """TLSA-14: nothing completes the chain, no local store either."""
    assert cause(verify(LEAF.ders[:-1], tlsa(2, 0, 1, ROOT), tlsa(2, 1, 1, ROOT))) is DaneCause.NO_MATCH


@pytest.mark.parametrize("anchor", [ROOT, INTERMEDIATE], ids=["root", "intermediate"])
def test_certificate_of_the_anchor_only_in_dns(anchor: Issued) -> None:
    """TLSA-15: `2 0 0` completes the chain."""
    below = LEAF.ders[: LEAF.ders.index(anchor.der)]
    record = tlsa(2, 0, 0, anchor)
    assert verify(below, record) == DaneMatched(record)
    assert cause(verify(below, tlsa(2, 0, 0, OTHER))) is DaneCause.CHAIN  # RM-04


@pytest.mark.parametrize("kind", ["p256", "ed25519", "rsa2048"])
def test_key_of_the_anchor_only_in_dns(kind: KeyKind) -> None:
    """TLSA-16: `2 1 0`; the topmost certificate, intermediate or leaf, must be signed by that key."""
    root = authority("Root", key=key_number(93, kind))
    record = tlsa(2, 1, 0, root)
    for leaf in (issue("mx", authority("Intermediate", root), dns=[MX]), issue("mx", root, dns=[MX])):
        assert verify(leaf.ders[:-1], record) == DaneMatched(record)
        assert verify(leaf.ders, record) == DaneMatched(record)
        assert cause(verify(leaf.ders[:-1], record, names=(DnsId(Domain("x.example")),))) is DaneCause.NAME
        wrong = authority("Root", key=key_number(94, kind))
        assert cause(verify(leaf.ders[:-1], tlsa(2, 1, 0, wrong))) is DaneCause.NO_MATCH


def test_what_a_bare_key_signed_must_be_valid() -> None:
    """TLSA-16: topmost and leaf unexpired, fit for TLS servers, and without unknown critical extensions."""
    record = tlsa(2, 1, 0, ROOT)
    past = {"not_before": NOW - 2 * YEAR, "not_after": NOW - YEAR}
    topmost = issue("mx", authority("Intermediate", ROOT, **past), dns=[MX])
    assert cause(verify(topmost.ders[:-1], record)) is DaneCause.EXPIRED
    assert cause(verify([issue("mx", ROOT, dns=[MX], **past).der], record)) is DaneCause.EXPIRED
    assert cause(verify([issue("mx", ROOT, dns=[MX], purposes=[CLIENT_AUTH]).der], record)) is DaneCause.CHAIN
    odd = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)
    assert cause(verify([issue("mx", ROOT, dns=[MX], extra=[odd]).der], record)) is DaneCause.CHAIN
    no_ca = issue("mx", issue("No Authority", ROOT), dns=[MX])
    assert cause(verify(no_ca.ders[:-1], record)) is DaneCause.CHAIN


@pytest.mark.parametrize("version", [1, 2, 4, 128])
def test_an_odd_version_is_a_failure_like_others(version: int) -> None:
    """INV-05: whoever can choose the certificate must not be able to end the MTA's session with it."""
    leaf = of_version(issue("mx", ROOT, dns=[MX]).der, version)
    assert cause(verify([leaf], tlsa(2, 1, 0, ROOT))) is DaneCause.NO_MATCH
    assert cause(verify([leaf, ROOT.der], tlsa(2, 1, 0, ROOT))) is DaneCause.CHAIN


def test_path_length_of_the_anchor_counts() -> None:
    """DANE-38: pathlen:0 with an extra intermediate."""
    root = authority("Root", path_length=0)
    leaf = issue("mx", authority("Intermediate", root), dns=[MX])
    for matching_type in (0, 1, 2):
        result = verify(leaf.ders, tlsa(2, 0, matching_type, root))
        assert isinstance(result, DaneFailed)
        assert (result.cause, result.code) == (DaneCause.CHAIN, "X509_V_ERR_PATH_LENGTH_EXCEEDED")
    assert cause(verify(leaf.ders[:-1], tlsa(2, 0, 0, root))) is DaneCause.CHAIN
    direct = issue("mx", root, dns=[MX])
    assert cause(verify(direct.ders, tlsa(2, 0, 1, root))) is None


def test_name_constraints_of_the_anchor_count() -> None:
    """DANE-38."""
    for constraints, code in (
        ({"permitted": ["example.com"]}, "X509_V_ERR_PERMITTED_VIOLATION"),
        ({"excluded": ["example.org"]}, "X509_V_ERR_EXCLUDED_VIOLATION"),
    ):
        root = authority("Root", **constraints)
        result = verify(issue("mx", root, dns=[MX]).ders, tlsa(2, 0, 1, root))
        assert isinstance(result, DaneFailed)
        assert (result.cause, result.code) == (DaneCause.CHAIN, code)
    root = authority("Root", permitted=["example.org"])
    assert cause(verify(issue("mx", root, dns=[MX]).ders, tlsa(2, 0, 1, root))) is None


def test_every_link_must_be_signed_by_an_authority() -> None:
    """TLSA-13: signatures, basicConstraints, key usage."""
    forged = replace(ROOT, key=key_number(95))  # right name, wrong key
    assert cause(verify([*issue("mx", forged, dns=[MX]).ders], tlsa(2, 0, 1, ROOT))) is DaneCause.CHAIN
    no_ca = issue("mx", issue("No Authority", ROOT), dns=[MX])
    assert cause(verify(no_ca.ders, tlsa(2, 0, 1, ROOT))) is DaneCause.CHAIN
    no_sign = issue("mx", authority("No Certificates", ROOT, key_cert_sign=False), dns=[MX])
    assert cause(verify(no_sign.ders, tlsa(2, 0, 1, ROOT))) is DaneCause.CHAIN


def test_leaf_of_another_authority_beside_the_anchor() -> None:
    """An attacker may append the published anchor to a chain of its own: no path leads to it."""
    evil = issue("mx", OTHER, dns=[MX])
    for record in (
        tlsa(2, 0, 1, ROOT),
        tlsa(2, 1, 1, INTERMEDIATE),
        tlsa(2, 0, 0, ROOT),
        tlsa(2, 1, 0, ROOT),
    ):
        result = verify([*evil.ders, INTERMEDIATE.der, ROOT.der], record)
        assert cause(result) is DaneCause.CHAIN


def test_purpose_is_checked_where_the_extension_is() -> None:
    """DANE-TA path validation is for a TLS server: leaf and intermediates."""
    record = tlsa(2, 0, 1, ROOT)
    assert cause(verify(issue("mx", INTERMEDIATE, dns=[MX], purposes=[CLIENT_AUTH]).ders, record)) is DaneCause.CHAIN
    assert cause(verify(issue("mx", INTERMEDIATE, dns=[MX]).ders, record)) is None
    limited = authority("Clients", ROOT, purposes=[CLIENT_AUTH])
    assert cause(verify(issue("mx", limited, dns=[MX]).ders, record)) is DaneCause.CHAIN


def test_weak_keys_fail_on_a_path() -> None:
    """TLS-09, CH-28: key sizes count where a path is validated."""
    leaf = issue("mx", INTERMEDIATE, dns=[MX], key=key_number(0, "rsa1024"))
    result = verify(leaf.ders, tlsa(2, 0, 1, ROOT))
    assert isinstance(result, DaneFailed)
    assert result.code == "X509_V_ERR_EE_KEY_TOO_SMALL"


def test_one_good_anchor_suffices() -> None:
    """TLSA-07, and the failure told is the one nearest to success."""
    good = tlsa(2, 0, 1, ROOT)
    assert verify([*LEAF.ders, OTHER.der], tlsa(2, 0, 1, OTHER), good) == DaneMatched(good)
    misnamed = issue("mx", INTERMEDIATE, dns=["other.example"])
    assert cause(verify([*misnamed.ders, OTHER.der], tlsa(2, 0, 1, OTHER), good)) is DaneCause.NAME


def test_the_work_is_bounded() -> None:
    """More anchors than MAX_ANCHORS are not tried; a leaf match needs no anchor and still counts."""
    anchors = [authority(f"Root {n}", key=key_number(96)) for n in range(MAX_ANCHORS + 20)]
    records = [tlsa(2, 0, 0, anchor) for anchor in anchors]
    assert cause(verify([LEAF.der], *records)) is DaneCause.CHAIN
    assert verify([LEAF.der], *records, tlsa(3, 1, 1, LEAF)) == DaneMatched(tlsa(3, 1, 1, LEAF))


# --- properties
# ------------------------------------------------------------------------------------------------

POOL = [
    tlsa(usage, selector, matching_type, of)
    for usage in (0, 1, 2, 3)
    for selector in (0, 1)
    for matching_type in (0, 1, 2)
    for of in (LEAF, INTERMEDIATE, ROOT, OTHER)
] + [TlsaRecord(3, 1, 2, b"short"), TlsaRecord(9, 9, 9, b"")]
CHAINS = [
    LEAF.ders,
    LEAF.ders[:2],
    LEAF.ders[:1],
    [LEAF.der, ROOT.der, INTERMEDIATE.der],
    [*issue("mx", OTHER, dns=[MX]).ders, ROOT.der],
    issue("mx", INTERMEDIATE, dns=["wrong.example"]).ders,
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=6), st.sampled_from(CHAINS), st.randoms())
def test_order_of_records_plays_no_part(records: list[TlsaRecord], ders: list[bytes], rng: random.Random) -> None:
    """TLSA-07."""
    shuffled = records.copy()
    rng.shuffle(shuffled)
    one, other = (assess_tlsa(TlsaFound(MX, tuple(r))) for r in (records, shuffled))
    if isinstance(one, UnusableTlsa) or isinstance(other, UnusableTlsa):
        assert type(one) is type(other)
        return
    chain = chain_of(ders)
    assert verify_dane(chain, one, (DnsId(MX),), NOW) == verify_dane(chain, other, (DnsId(MX),), NOW)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(POOL), min_size=1, max_size=6), st.sampled_from(POOL), st.sampled_from(CHAINS))
def test_a_record_of_nobody_changes_no_verdict(records: list[TlsaRecord], extra: TlsaRecord, ders: list[bytes]) -> None:
    """An unusable record beside usable ones changes nothing (TLSA-02, TLSA-03)."""
    before = assess_tlsa(TlsaFound(MX, tuple(records)))
    unusable = replace(extra, usage=1)
    after = assess_tlsa(TlsaFound(MX, (unusable, *records)))
    if isinstance(before, UnusableTlsa):
        assert isinstance(after, UnusableTlsa)
        return
    assert isinstance(after, UsableTlsa)
    assert after.usable == before.usable


def mutated(octets: bytes) -> st.SearchStrategy[bytes]:
    """`octets` with up to three octets changed, or cut short."""
    edits = st.lists(st.tuples(st.integers(0, len(octets) - 1), st.integers(0, 255)), min_size=1, max_size=3)

    def apply(changes: list[tuple[int, int]], cut: int) -> bytes:
        changed = bytearray(octets)
        for position, value in changes:
            changed[position] = value
        return bytes(changed[: len(changed) - cut])

    return st.builds(apply, edits, st.sampled_from([0, 0, 0, 1, 20]))


garbage = st.one_of(mutated(LEAF.der), mutated(INTERMEDIATE.der), mutated(ROOT.der), st.binary(max_size=64))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(garbage, st.sampled_from(LEAF.ders)), min_size=1, max_size=4), st.data())
def test_hostile_certificates_never_raise(ders: list[bytes], data: st.DataObject) -> None:
    """Mutated DER gives a verdict; what matches is the published octets and nothing else."""
    records = data.draw(st.lists(st.sampled_from([r for r in POOL if r.usage in (2, 3)]), min_size=1, max_size=4))
    assessed = assess_tlsa(TlsaFound(MX, tuple(records)))
    if isinstance(assessed, UsableTlsa):
        result = verify_dane(chain_of(ders), assessed, (DnsId(MX),), NOW)
        if isinstance(result, DaneMatched) and result.record.usage == 3 and result.record.selector == 0:
            assert ders[0] in (LEAF.der, INTERMEDIATE.der, ROOT.der, OTHER.der)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.builds(
            TlsaRecord,
            st.integers(0, 4),
            st.integers(0, 2),
            st.integers(0, 3),
            st.one_of(garbage, mutated(ROOT.spki), st.binary(min_size=32, max_size=32)),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(CHAINS),
)
def test_hostile_records_never_raise(records: list[TlsaRecord], ders: list[bytes]) -> None:
    """TLSA-03: any RDATA is usable or not, and then matches or not."""
    assessed = assess_tlsa(TlsaFound(MX, tuple(records)))
    if isinstance(assessed, UsableTlsa):
        verify_dane(chain_of(ders), assessed, (DnsId(MX),), NOW)
