import ssl

import pytest
import trio

from smtpguard.sandbox.conversation import open_conversation
from smtpguard.sandbox.policyhost import PATH, Page, PolicyHosts, policy_text

HOST = "mta-sts.test.example"
POLICY = policy_text("enforce", "mx.test.example", "*.test.example")


@pytest.fixture
async def hosts(maker, nursery):
    root = maker.root("Root")
    hosts = PolicyHosts(maker.leaf(None, ["unknown.example"]))
    hosts.credentials[HOST] = maker.leaf(root, [HOST])
    hosts.pages[HOST] = Page(POLICY)
    await hosts.start(nursery, "127.0.0.80")
    return hosts, ssl.create_default_context(cafile=str(maker.trust_file(root)))


async def fetch(hosts, context, host=HOST, target=PATH):
    conversation = await open_conversation(hosts.address, hosts.port)
    try:
        await conversation.start_tls(context, server_side=False, server_name=host)
        await conversation.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = b""
        while octets := await conversation.receive():
            answer += octets
    finally:
        conversation.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body


def test_policy_text_is_rfc_8461():
    assert policy_text("none", max_age_seconds=5) == b"version: STSv1\r\nmode: none\r\nmax_age: 5\r\n"


async def test_the_policy_comes_under_its_own_certificate(hosts):
    server, context = hosts
    head, body = await fetch(server, context)
    assert head.startswith("HTTP/1.1 200 OK")
    assert "Content-Type: text/plain" in head
    assert body == POLICY
    [request] = server.requests
    assert (request.sni, request.host, request.target) == (HOST, HOST, PATH)


async def test_an_unknown_host_gets_the_fallback_certificate(hosts):
    server, context = hosts
    with pytest.raises(trio.BrokenResourceError) as caught:
        await fetch(server, context, "mta-sts.other.example")
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_other_targets_are_404(hosts):
    head, _ = await fetch(*hosts, target="/")
    assert head.startswith("HTTP/1.1 404")


async def test_status_redirect_type_and_fields(hosts):
    server, context = hosts
    server.pages[HOST] = Page(
        b"", status="301 Moved", content_type=None, location="https://x.example/", fields=(("A", "b"),)
    )
    head, body = await fetch(server, context)
    assert head.split("\r\n") == [
        "HTTP/1.1 301 Moved",
        "Connection: close",
        "Location: https://x.example/",
        "A: b",
        "Content-Length: 0",
    ]
    assert body == b""


@pytest.mark.parametrize("declares_length", [True, False])
async def test_size_with_and_without_length(hosts, declares_length):
    server, context = hosts
    server.pages[HOST] = Page(b"x" * 100_000, declares_length=declares_length)
    head, body = await fetch(server, context)
    assert len(body) == 100_000
    assert ("Content-Length" in head) is declares_length


async def test_chunked(hosts):
    server, context = hosts
    server.pages[HOST] = Page(b"x" * 1500, chunked=True)
    _, body = await fetch(server, context)
    assert body == b"3e8\r\n" + b"x" * 1000 + b"\r\n1f4\r\n" + b"x" * 500 + b"\r\n0\r\n\r\n"


async def test_hang(hosts, autojump_clock):
    server, context = hosts
    server.pages[HOST] = Page(POLICY, hangs=True)
    with trio.move_on_after(60) as scope:
        await fetch(server, context)
    assert scope.cancelled_caught
    assert len(server.requests) == 1


async def test_refused_tls(hosts):
    server, context = hosts
    server.pages[HOST] = Page(POLICY, refuses_tls=True)
    with pytest.raises(trio.BrokenResourceError):
        await fetch(server, context)
    assert server.connections == 1
    assert not server.requests
