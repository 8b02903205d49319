"""Fixtures for the sandbox's own tests: everything lives in the test's nursery and dies with it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from smtpguard.sandbox.behaviour import Behaviour
from smtpguard.sandbox.certificates import CertificateMaker, Credential
from smtpguard.sandbox.client import Client
from smtpguard.sandbox.mx import Mx


@pytest.fixture
def maker(tmp_path: Path) -> CertificateMaker:
    return CertificateMaker(tmp_path)


@pytest.fixture
def credential(maker: CertificateMaker) -> Credential:
    return maker.leaf(None, ["mx.test.example"])


@dataclass
class Visit:
    """An MX and a client that has read its greeting, if it may."""

    mx: Mx
    client: Client


Open = Callable[..., Awaitable[Visit]]


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[str, int], Awaitable[Client]]]:
    """Client.connect, with a close after the test."""
    clients: list[Client] = []

    async def open_client(address: str, port: int) -> Client:
        clients.append(await Client.connect(address, port))
        return clients[-1]

    yield open_client
    for client in clients:
        client.conversation.close()


@pytest.fixture
def visit(nursery: trio.Nursery, credential: Credential, connect) -> Open:
    async def open_visit(greet: bool = True, **behaviour: object) -> Visit:
        mx = Mx("mx.test.example", credential, behaviour=Behaviour(**behaviour))
        await mx.start(nursery, "127.0.0.1")
        client = await connect("127.0.0.1", mx.port)
        if greet:
            assert (await client.reply()).code == 220
            await client.hello()
        return Visit(mx, client)

    return open_visit
