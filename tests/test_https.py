"""https: one GET against a real TLS server on loopback."""

from pathlib import Path

import pytest
import trio
import trio.testing

from smtpguard.dns.records import FailureKind, RdType
from smtpguard.https import HttpFailed, HttpFailure, HttpResponse, HttpsClient
from smtpguard.names import Domain
from tests.support.certificates import NOW, Issued, authority, issue
from tests.support.clock import test_clock
from tests.support.policyhost import POLICY, PolicyHost, https_client, response
from tests.support.waits import Fault, at_every_wait
from tests.support.zone import Node, Zone

NAME = Domain("mta-sts.example.org")
ROOT = authority()
LEAF = issue("x", ROOT, dns=[NAME])


class Web:
    """A policy host, the zone that leads to it, and the client."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        self.host = PolicyHost()
        self.zone = Zone({NAME: Node(a=["127.0.0.1"])})
        self._nursery = nursery
        self._directory = directory

    async def client(self, leaf: Issued = LEAF, **limits: float) -> HttpsClient:
        await self._nursery.start(self.host.serve, leaf)
        return https_client(self.host, self.zone, ROOT, self._directory, test_clock(), **limits)

    async def get(self, leaf: Issued = LEAF, **limits: float) -> HttpResponse | HttpFailed:
        return await (await self.client(leaf, **limits)).get(NAME, "/.well-known/mta-sts.txt")


@pytest.fixture
async def web(nursery: trio.Nursery, tmp_path: Path) -> Web:
    return Web(nursery, tmp_path)


def failed(answer: HttpResponse | HttpFailed) -> tuple[HttpFailure, str]:
    assert isinstance(answer, HttpFailed), answer
    assert answer.detail.isascii()
    return answer.kind, answer.code


async def test_request(web: Web) -> None:
    """STS-08, STS-10: request line, Host and SNI are the policy host's."""
    assert await web.get() == HttpResponse(200, "text/plain", POLICY)
    line, *fields = web.host.requests[0].decode().split("\r\n")
    assert line == "GET /.well-known/mta-sts.txt HTTP/1.1"
    assert f"Host: {NAME}:{web.host.port}" in fields
    assert web.host.names == [NAME]


@pytest.mark.parametrize(
    ("leaf", "code"),
    [
        (issue("mta-sts.example.org", ROOT), "X509_V_ERR_HOSTNAME_MISMATCH"),
        (issue("x", ROOT, dns=["mta-sts.provider.example"]), "X509_V_ERR_HOSTNAME_MISMATCH"),
        (issue("x", ROOT, dns=["*.mta-sts.example.org"]), "X509_V_ERR_HOSTNAME_MISMATCH"),
        (issue("x", dns=[NAME]), "X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT"),
        (issue("x", ROOT, dns=[NAME], not_after=NOW.replace(month=11, day=1)), "X509_V_ERR_CERT_HAS_EXPIRED"),
        (issue("x", authority("Other"), dns=[NAME]), "X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY"),
    ],
    ids=["cn-only", "provider", "wildcard-below", "self-signed", "expired", "other-root"],
)
async def test_certificate(web: Web, leaf: Issued, code: str) -> None:
    """STS-09, RM-12: nothing is asked of a host that did not authenticate."""
    assert failed(await web.get(leaf)) == (HttpFailure.TLS, code)
    assert web.host.requests == []


async def test_wildcard_of_the_leftmost_label(web: Web) -> None:
    """STS-09."""
    assert isinstance(await web.get(issue("x", ROOT, dns=["*.example.org"])), HttpResponse)


async def test_redirect_is_an_answer_like_any_other(web: Web) -> None:
    """STS-11: never followed."""
    web.host.pieces = [response("301 Moved", b"", extra=f"Location: https://{NAME}/.well-known/mta-sts.txt\r\n")]
    answer = await web.get()
    assert isinstance(answer, HttpResponse)
    assert answer.status == 301
    assert web.host.connections == 1


@pytest.mark.parametrize("framed", [True, False])
async def test_too_big(web: Web, framed: bool) -> None:
    """STS-13: 65 536 octets may be, one more may not."""
    web.host.pieces = [response(body=bytes(65536), framed=framed)]
    answer = await web.get()
    assert isinstance(answer, HttpResponse)
    assert len(answer.body) == 65536
    web.host.pieces = [response(body=bytes(65537), framed=framed)]
    assert failed(await web.get()) == (HttpFailure.TOO_BIG, "http-too-big")


async def test_endless_interim_responses(web: Web) -> None:
    """STS-13: what is no body is bounded too."""
    web.host.pieces = [b"HTTP/1.1 100 Continue\r\n\r\n" * 10000]
    assert failed(await web.get())[0] is HttpFailure.TOO_BIG


async def test_endless_head(web: Web) -> None:
    web.host.pieces = [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60000]
    assert failed(await web.get()) == (HttpFailure.PROTOCOL, "http-protocol")


async def test_slow_drip(autojump_clock: object, web: Web) -> None:
    """STS-13: sixty seconds for everything."""
    web.host.pieces = [bytes([octet]) for octet in response()]
    web.host.pause_seconds = 2
    begun = trio.current_time()
    assert failed(await web.get()) == (HttpFailure.TIMEOUT, "http-timeout")
    assert trio.current_time() - begun == pytest.approx(60)


async def test_interim_chunked_and_split(autojump_clock: object, web: Web) -> None:
    head = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: TEXT/Plain; charset=utf-8\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    octets = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(POLICY), POLICY)
    web.host.pieces = [octets[i : i + 1] for i in range(len(octets))]
    web.host.pause_seconds = 0.01
    assert await web.get() == HttpResponse(200, "text/plain", POLICY)


@pytest.mark.parametrize("framed", [True, False])
async def test_cut_off(web: Web, framed: bool) -> None:
    """INV-05: who can cut the connection cannot shorten a policy."""
    octets = response(framed=framed)
    web.host.pieces = [octets[:-6]]  # max_age: 86
    web.host.close_notify = False
    kind, code = failed(await web.get())
    assert (kind, code) == ((HttpFailure.PROTOCOL, "http-protocol") if framed else (HttpFailure.LOST, "http-truncated"))


async def test_unframed_with_close_notify(web: Web) -> None:
    web.host.pieces = [response(framed=False)]
    assert await web.get() == HttpResponse(200, "text/plain", POLICY)


@pytest.mark.parametrize("octets", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200\r\nContent-Length: x\r\n\r\n"])
async def test_not_http(web: Web, octets: bytes) -> None:
    web.host.pieces = [octets]
    assert failed(await web.get())[0] in {HttpFailure.PROTOCOL, HttpFailure.LOST}


async def test_forbidden_address(web: Web) -> None:
    """STS-42: the guard judges the address, and nothing is dialled."""
    web.zone.nodes[NAME] = Node(a=["169.254.169.254"])
    assert failed(await web.get()) == (HttpFailure.FORBIDDEN, "forbidden-address")
    web.zone.nodes[NAME] = Node(a=["169.254.169.254", "127.0.0.1"])
    assert isinstance(await web.get(), HttpResponse)


async def test_no_address(web: Web) -> None:
    web.zone.nodes[NAME] = Node()
    assert failed(await web.get()) == (HttpFailure.DNS, "dns-no-address")
    web.zone.nodes[NAME] = Node(fail=FailureKind.SERVFAIL)
    assert failed(await web.get()) == (HttpFailure.DNS, "dns-servfail")
    web.zone.nodes[NAME] = Node(a=["127.0.0.1"], fail={RdType.AAAA: FailureKind.TIMEOUT})
    assert isinstance(await web.get(), HttpResponse)


async def test_dead_addresses(web: Web) -> None:
    """The next address is tried, and only a few of them."""
    web.zone.nodes[NAME] = Node(a=["192.0.2.1", "192.0.2.2", "127.0.0.1"])
    assert isinstance(await web.get(), HttpResponse)
    web.zone.nodes[NAME] = Node(a=[f"192.0.2.{n}" for n in range(1, 9)] + ["127.0.0.1"])
    assert failed(await web.get()) == (HttpFailure.CONNECT, "http-connect")


@pytest.mark.parametrize("fault", list(Fault))
async def test_every_wait(web: Web, fault: Fault) -> None:
    """Whatever happens at whichever wait: a value or Cancelled, and no socket is left open."""
    client = await web.client()

    async def story() -> None:
        answer = await client.get(NAME, "/")
        assert isinstance(answer, HttpFailed | HttpResponse)
        # The server's end must be closed too before descriptors are counted.
        await trio.testing.wait_all_tasks_blocked()

    async def shielded() -> None:
        try:
            await story()
        finally:
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked(0.01)

    assert await at_every_wait(shielded, fault) >= 2
