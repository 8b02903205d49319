"""Two ends of one connection, and contexts for TLS between them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import trio
import trustme
from OpenSSL import SSL

from smtpguard.net.wire import Wire
from tests.support.clock import test_clock

MODES = {"plain": None, "tls1.2": SSL.TLS1_2_VERSION, "tls1.3": SSL.TLS1_3_VERSION}


@cache
def certificate() -> trustme.LeafCert:
    """One certificate for all tests: nothing here judges it."""
    return trustme.CA().issue_cert("mx1.example.org")


def client_context(version: int) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_verify(SSL.VERIFY_NONE)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    return context


def server_context(version: int) -> SSL.Context:
    context = client_context(version)
    context.use_certificate(_x509())
    context.use_privatekey(_key())
    return context


def _x509():
    from cryptography import x509

    return x509.load_pem_x509_certificate(certificate().cert_chain_pems[0].bytes())


def _key():
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(certificate().private_key_pem.bytes(), None)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """A connected TCP pair over loopback, with small buffers, so that sends become partial soon."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    return near, far


@contextmanager
def wires() -> Iterator[tuple[Wire, Wire]]:
    """Client and server end, in clear; closed at the end."""
    near, far = tcp_pair()
    client, server = Wire(near, test_clock()), Wire(far, test_clock())
    try:
        yield client, server
    finally:
        client.close()
        server.close()


async def secure(client: Wire, server: Wire, version: int) -> None:
    """TLS on both ends, and what TLS 1.3 sends after its handshake out of the way."""
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await server.start_tls(server_context(version), server_side=True)
            await server.send(b"x")

        nursery.start_soon(serve)
        await client.start_tls(client_context(version), server_side=False)
        assert await client.receive() == b"x"
