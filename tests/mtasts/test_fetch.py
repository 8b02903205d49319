"""mtasts.fetch: what counts as a policy, and under which code a failure is reported."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from smtpguard.dns.records import FailureKind
from smtpguard.mtasts.fetch import FetchedPolicy, fetch_policy
from smtpguard.mtasts.parse import Mode, StsUnavailable
from smtpguard.names import Domain, IpAddress
from smtpguard.net.connect import ConnectFailed, ConnectFailure
from smtpguard.reasons import ReasonCode
from tests.support.certificates import Issued, authority, issue
from tests.support.clock import test_clock
from tests.support.policyhost import POLICY, PolicyHost, https_client, response
from tests.support.zone import Node, Zone

ORG = Domain("example.org")
ROOT = authority()
LEAF = issue("x", ROOT, dns=["mta-sts.example.org"])


async def fetch(
    nursery: trio.Nursery, directory: Path, answer: bytes, leaf: Issued = LEAF
) -> FetchedPolicy | StsUnavailable:
    host = PolicyHost([answer])
    await nursery.start(host.serve, leaf)
    zone = Zone({"mta-sts.example.org": Node(a=["127.0.0.1"])})
    found = await fetch_policy(https_client(host, zone, ROOT, directory, test_clock()), ORG)
    if host.requests:
        assert host.requests[0].startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n")  # STS-08
    return found


@pytest.mark.parametrize("media_type", ["text/plain", "text/plain; charset=utf-8", "Text/Plain;foo=bar"])
async def test_policy(nursery: trio.Nursery, tmp_path: Path, media_type: str) -> None:
    """STS-08, STS-12."""
    found = await fetch(nursery, tmp_path, response(media_type=media_type, extra="Cache-Control: no-store\r\n"))
    assert isinstance(found, FetchedPolicy)
    assert found.policy.mode is Mode.ENFORCE
    assert found.octets == POLICY


@pytest.mark.parametrize(
    ("answer", "code", "failure_code"),
    [
        (response("301 Moved", extra="Location: /x\r\n"), ReasonCode.STS_FETCH, "http-301"),
        (response("302 Found", extra="Location: /x\r\n"), ReasonCode.STS_FETCH, "http-302"),
        (response("404 Not Found"), ReasonCode.STS_FETCH, "http-404"),
        (response("206 Partial Content"), ReasonCode.STS_FETCH, "http-206"),
        (response(media_type="text/html"), ReasonCode.STS_FETCH, "http-media-type"),
        (response(media_type=None), ReasonCode.STS_FETCH, "http-media-type"),
        (response(body=POLICY + b"x: " + b"y" * 70000), ReasonCode.STS_FETCH, "http-too-big"),
        (response(body=b"hello: world\n"), ReasonCode.STS_INVALID, "version is missing"),
    ],
)
async def test_no_policy(
    nursery: trio.Nursery, tmp_path: Path, answer: bytes, code: ReasonCode, failure_code: str
) -> None:
    """STS-11, STS-12, STS-13, RM-10, RM-11, AF-28."""
    found = await fetch(nursery, tmp_path, answer)
    assert isinstance(found, StsUnavailable)
    assert (found.code, found.failure_code, found.defer) == (code, failure_code, False)


async def test_wrong_certificate(nursery: trio.Nursery, tmp_path: Path) -> None:
    """RM-12, AF-28."""
    found = await fetch(nursery, tmp_path, response(), issue("x", ROOT, dns=["example.org"]))
    assert isinstance(found, StsUnavailable)
    assert (found.code, found.failure_code) == (ReasonCode.STS_WEBPKI, "X509_V_ERR_HOSTNAME_MISMATCH")


@pytest.mark.parametrize("kind", [FailureKind.BUSY, FailureKind.NETWORK])
async def test_a_look_up_that_failed_here_defers(nursery: trio.Nursery, tmp_path: Path, kind: FailureKind) -> None:
    """Law 2, STS-15: only the domain's own failure may leave it without MTA-STS; ours lowers nothing."""
    zone = Zone({"mta-sts.example.org": Node(fail=kind)})
    found = await fetch_policy(https_client(PolicyHost([]), zone, ROOT, tmp_path, test_clock()), ORG)
    assert isinstance(found, StsUnavailable)
    assert (found.code, found.defer) == (ReasonCode.STS_FETCH, True)


async def test_a_lack_of_descriptors_defers(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Law 2: whoever makes us run out of them must not switch MTA-STS off."""
    zone = Zone({"mta-sts.example.org": Node(a=["127.0.0.1"])})
    for kind, defers in ((ConnectFailure.EXHAUSTED, True), (ConnectFailure.LOCAL, False)):

        async def refuse(address: IpAddress, port: int, kind: ConnectFailure = kind) -> ConnectFailed:
            return ConnectFailed(kind, "no")

        client = replace(https_client(PolicyHost([]), zone, ROOT, tmp_path, test_clock()), open=refuse)
        found = await fetch_policy(client, ORG)
        assert isinstance(found, StsUnavailable)
        assert (found.code, found.defer) == (ReasonCode.STS_FETCH, defers)


async def test_host_name_too_long(tmp_path: Path) -> None:
    client = https_client(PolicyHost(), Zone({}), ROOT, tmp_path, test_clock())
    found = await fetch_policy(client, Domain(".".join(["a" * 49] * 5)))
    assert isinstance(found, StsUnavailable)
    assert found.failure_code == "policy-host-name"
