"""Our DANE verdict against OpenSSL's own: `openssl s_client -dane_tlsa_domain` to `openssl s_server`, on
loopback.

OpenSSL 3 implements RFC 7671 independently of us.  Every generated chain meets single records and random
sets; the verdicts must be equal; where CH-06 and DANE-36 choose otherwise, the difference itself is tested.
"""

import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from smtpguard.dns.records import TlsaFound, TlsaRecord
from smtpguard.names import Domain
from smtpguard.tls.chain import chain_of
from smtpguard.tls.dane import DaneMatched, UnusableTlsa, assess_tlsa, verify_dane
from smtpguard.tls.identity import DnsId
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
from tests.tls.test_dane import tlsa

MX = Domain("mx.example.org")
PAST = {"not_before": NOW - timedelta(days=400), "not_after": NOW - timedelta(days=300)}


@dataclass(frozen=True)
class Case:
    """A server: its leaf, what it sends after it, and whose records are tried against it."""

    leaf: Issued
    sent: tuple[Issued, ...]

    @property
    def ders(self) -> list[bytes]:
        return [self.leaf.der, *(issuer.der for issuer in self.sent)]

    @property
    def owners(self) -> tuple[Issued, ...]:
        return (self.leaf, *self.leaf.issuers, OTHER)


OTHER = authority("Other Root")
ROOT = authority("Root")
INTERMEDIATE = authority("Intermediate", ROOT)
LEAF = issue("mx", INTERMEDIATE, dns=[MX], purposes=[SERVER_AUTH])
SHORT_ROOT = authority("Short Root", path_length=0)
CONSTRAINED = authority("Constrained Root", permitted=["example.com"])
RSA_ROOT = authority("RSA Root", key=key_number(93, "rsa2048"))


def whole(leaf: Issued) -> Case:
    return Case(leaf, leaf.issuers)


def without_root(leaf: Issued) -> Case:
    return Case(leaf, leaf.issuers[:-1])


CASES = {
    "full chain": whole(LEAF),
    "root left out": without_root(LEAF),
    "leaf alone": Case(LEAF, ()),
    "shuffled": Case(LEAF, (ROOT, INTERMEDIATE)),
    "stranger on top": Case(LEAF, (INTERMEDIATE, OTHER)),
    "rsa root left out": without_root(issue("mx", RSA_ROOT, dns=[MX])),
    "wildcard": whole(issue("mx", ROOT, dns=["*.example.org"])),
    "wrong name": whole(issue("mx", INTERMEDIATE, dns=["other.example"])),
    "wildcard too wide": whole(issue("mx", INTERMEDIATE, dns=["*.org", "*.*.org", "mx.*.org", "**.example.org"])),
    "expired leaf": whole(issue("mx", INTERMEDIATE, dns=[MX], **PAST)),
    "expired intermediate": whole(issue("mx", authority("Stale", ROOT, **PAST), dns=[MX])),
    "path length": whole(issue("mx", authority("Intermediate", SHORT_ROOT), dns=[MX])),
    "name constraints": whole(issue("mx", CONSTRAINED, dns=[MX])),
    "issuer is no authority": whole(issue("mx", issue("Leaf", ROOT), dns=[MX])),
    "client purpose": whole(issue("mx", INTERMEDIATE, dns=[MX], purposes=[CLIENT_AUTH])),
    "self-signed": whole(self_signed(MX)),
    "self-signed, expired, misnamed": whole(self_signed("x.example", **PAST)),
}


@contextmanager
def server(case: Case, directory: Path) -> Iterator[int]:
    """`openssl s_server` on a free port of loopback."""
    (directory / "cert.pem").write_bytes(case.leaf.pem)
    (directory / "key.pem").write_bytes(case.leaf.key_pem)
    command = [
        "openssl",
        "s_server",
        "-accept",
        "127.0.0.1:0",
        "-cert",
        "cert.pem",
        "-key",
        "key.pem",
        "-www",
    ]
    command += ["-no-CAfile", "-no-CApath", "-no-CAstore"]
    if case.sent:
        (directory / "chain.pem").write_bytes(b"".join(issuer.pem for issuer in case.sent))
        command += ["-cert_chain", "chain.pem"]
    process = subprocess.Popen(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if accepting := re.match(rb"ACCEPT 127\.0\.0\.1:(\d+)", line):
                yield int(accepting[1])
                return
        pytest.fail("openssl s_server did not start")
    finally:
        process.kill()
        process.communicate()


def openssl_accepts(port: int, records: list[TlsaRecord]) -> bool:
    """The verdict of `openssl s_client` with SMTP's rules (no name checks for DANE-EE) at NOW."""
    command = [
        "openssl",
        "s_client",
        "-connect",
        f"127.0.0.1:{port}",
        "-brief",
        "-attime",
        str(int(NOW.timestamp())),
    ]
    command += ["-no-CAfile", "-no-CApath", "-no-CAstore"]
    command += ["-servername", MX, "-dane_tlsa_domain", MX, "-dane_ee_no_namechecks"]
    for record in records:
        command += ["-dane_tlsa_rrdata", str(record)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    output = done.stderr + done.stdout
    assert b"Verification" in output, output
    return b"Verification: OK" in output


def we_accept(case: Case, records: list[TlsaRecord]) -> bool:
    assessed = assess_tlsa(TlsaFound(MX, tuple(records)))
    assert not isinstance(assessed, UnusableTlsa)
    return isinstance(verify_dane(chain_of(case.ders), assessed, (DnsId(MX),), NOW), DaneMatched)


def is_ours_to_choose(case: Case, record: TlsaRecord) -> bool:
    """Records where CH-06 differs from OpenSSL: the dates of an anchor, and the bare key of the leaf
    itself."""
    stale = [issuer for issuer in case.leaf.issuers if issuer.certificate.not_valid_after_utc < NOW]
    anchored = [tlsa(2, selector, kind, issuer) for issuer in stale for selector in (0, 1) for kind in (0, 1, 2)]
    return record in anchored or record == tlsa(2, 1, 0, case.leaf)


def record_sets(case: Case, rng: random.Random) -> list[list[TlsaRecord]]:
    """One random record of each usage, a bare key, and sets that digest agility and rollovers would meet."""
    every = [
        tlsa(usage, selector, matching_type, owner)
        for owner in case.owners
        for usage in (2, 3)
        for selector in (0, 1)
        for matching_type in (0, 1, 2)
    ]
    every = [record for record in every if not is_ours_to_choose(case, record)]
    anchors = [record for record in every if record.usage == 2]
    top = case.leaf.issuers[-1] if case.leaf.issuers else OTHER
    sets = [[tlsa(2, 0, 1, top)], [tlsa(2, 0, 0, top)], [tlsa(2, 1, 0, top)], [tlsa(3, 1, 1, case.leaf)]]
    sets += [[rng.choice(anchors)] for _ in range(2)]
    sets += [rng.sample(every, rng.randint(2, 4)) for _ in range(3)]
    return sets


@pytest.mark.parametrize("name", CASES)
def test_same_verdict_as_openssl(name: str, tmp_path: Path) -> None:
    """DANE-30..38, TLSA-05..16, TLSA-18: one chain, nine TLSA RRsets."""
    case = CASES[name]
    differences = []
    with server(case, tmp_path) as port:
        for records in record_sets(case, random.Random(name)):
            theirs, ours = openssl_accepts(port, records), we_accept(case, records)
            if theirs != ours:
                differences.append((f"openssl: {theirs}, smtpguard: {ours}", [str(record)[:40] for record in records]))
    assert differences == []


STALE_ROOT = authority("Stale Root", **PAST)
STALE_INTERMEDIATE = authority("Stale Intermediate", ROOT, **PAST)


@pytest.mark.parametrize(
    ("case", "record", "openssl", "ours"),
    [
        # OpenSSL checks the dates of a self-signed anchor only, we those of every anchor that the peer
        # presents, and not those of one that the signed zone holds in full.
        pytest.param(
            without_root(issue("mx", STALE_ROOT, dns=[MX])),
            tlsa(2, 0, 0, STALE_ROOT),
            False,
            True,
            id="expired anchor in DNS",
        ),
        pytest.param(
            whole(issue("mx", STALE_INTERMEDIATE, dns=[MX])),
            tlsa(2, 0, 1, STALE_INTERMEDIATE),
            True,
            False,
            id="expired anchor presented",
        ),
        # A leaf that signed itself is its own issuer for OpenSSL where its bare key is published.
        pytest.param(CASES["self-signed"], tlsa(2, 1, 0, CASES["self-signed"].leaf), True, False, id="own key"),
        # RFC 7672 §3.2.3: no partial wildcards; s_client allows them.
        pytest.param(
            whole(issue("mx", ROOT, dns=["m*.example.org"])),
            tlsa(2, 0, 1, ROOT),
            True,
            False,
            id="partial wildcard",
        ),
    ],
)
def test_where_we_choose_otherwise(case: Case, record: TlsaRecord, openssl: bool, ours: bool, tmp_path: Path) -> None:
    """CH-06, DANE-36: the differences are these, and they are meant."""
    with server(case, tmp_path) as port:
        assert (openssl_accepts(port, [record]), we_accept(case, [record])) == (openssl, ours)
