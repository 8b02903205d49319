"""smtpguard in front of a scripted MTA, and clients of the Internet side: what the inbound tests stand on."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import trio

from smtpguard.clock import Clock, Ids
from smtpguard.events import Event
from smtpguard.inbound.service import Inbound
from smtpguard.inbound.session import serve_client
from smtpguard.inbound.settings import InboundListener
from smtpguard.inbound.settings import Mta as MtaSettings
from smtpguard.names import Domain
from smtpguard.net.accept import serve
from smtpguard.net.listen import open_listeners, parse_bind
from smtpguard.net.sessions import Sessions
from smtpguard.outbound.intake import INTERNAL
from smtpguard.policy.inbound import InboundRules
from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.tls.certificates import CertificateFiles, ServerCertificates
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import Issued, authority, issue
from tests.support.clock import test_clock
from tests.support.mta import Mta
from tests.support.zone import Zone

E = TypeVar("E", bound=Event)
HOST = "mx.front.example"


@dataclass(slots=True)
class Front:
    """Everything an inbound test touches."""

    service: Inbound
    mta: Mta
    sessions: Sessions
    mta_wires: Sessions
    port: int
    clock: Clock
    events: list[Event] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def raw(self) -> Client:
        """A connection; the greeting is not read.  It is closed with the rig at the latest."""
        client = await Client.connect("127.0.0.1", self.port)
        self.clients.append(client)
        return client

    async def client(self, *, tls: bool = False, hello: str = "client.example") -> Client:
        """Greeted, EHLO said, and inside TLS if so wished."""
        client = await self.raw()
        reply = await client.reply()
        assert reply.code == 220, reply
        await client.hello(hello)
        if tls:
            assert (await client.start_tls(unverifying_context(), HOST)).code == 220
            await client.hello(hello)
        return client

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]


async def hang_up(client: Client) -> None:
    """Read to the end, which the server must have said, then close, as clients do: nobody has to wait for them."""
    await client.conversation.drain()
    client.conversation.close()


def write_pair(directory: Path, name: str, issued: Issued) -> CertificateFiles:
    """The certificate with its chain, and its key, as files."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    certificate.write_bytes(issued.chain_pem)
    key.write_bytes(issued.key_pem)
    key.chmod(0o600)
    return CertificateFiles(certificate, key)


@asynccontextmanager
async def open_front(
    directory: Path,
    mta: Mta | None = None,
    *,
    identity_by: str = "none",
    zone: Zone | None = None,
    roots: Callable[[str | None], RootStore] | None = None,
    names: tuple[str, ...] = (HOST,),
    mta_settings: dict[str, Any] | None = None,
    bind: str = "127.0.0.1:0",
    ready: bool = True,
    submission: bool = False,
    **listener: Any,
) -> AsyncIterator[Front]:
    """A listener with these settings before `mta` (one is started).  `ready`: wait until the MTA's profile is known."""
    mta = mta if mta is not None else Mta()
    clock = test_clock()
    events: list[Event] = []
    pairs = [write_pair(directory, name, issue(name, authority(), dns=[name])) for name in names]
    async with trio.open_nursery() as nursery:
        if not mta.started:
            await mta.start(nursery)
        way: dict[str, Any] = {"host": "127.0.0.1", "port": mta.port, "address": ip_address("127.0.0.1")}
        if mta.path:
            way = {"host": "", "path": mta.path}
        given: dict[str, Any] = {
            "name": "mx",
            "binds": (parse_bind(bind),),
            "tls": "starttls",
            "mta": MtaSettings(**(way | {"identity_by": identity_by} | (mta_settings or {}))),
            "certificates": ServerCertificates.load(pairs, clock.now()),
            "client_names": False,
            "rules": InboundRules(submission=submission),
        }
        settings = InboundListener(**(given | listener))
        sessions, mta_wires = Sessions(clock), Sessions(clock)
        service = Inbound(
            settings,
            hostname=Domain(HOST),
            lookups=zone if zone is not None else Zone({}),
            roots=roots if roots is not None else _no_roots,
            sessions=sessions,
            mta_wires=mta_wires,
            ids=Ids(clock.now(), nonce=1),
            clock=clock,
            emit=events.append,
        )
        nursery.start_soon(sessions.run)
        nursery.start_soon(mta_wires.run)
        nursery.start_soon(service.run)
        if ready:
            await service.watch.attempted.wait()
        (sock,) = open_listeners(settings.binds, [])
        nursery.start_soon(_serve, sock, service, sessions, nursery, clock, events)
        front = Front(
            service, mta, sessions, mta_wires, sock.getsockname()[1] if sock.family != 1 else 0, clock, events
        )
        try:
            yield front
        finally:
            for client in front.clients:
                client.conversation.close()
            sock.close()
            nursery.cancel_scope.cancel()


async def _serve(
    sock: Any, service: Inbound, sessions: Sessions, nursery: trio.Nursery, clock: Clock, events: list[Event]
) -> None:
    await serve(
        sock,
        partial(serve_client, service),
        name="mx",
        slots=trio.Semaphore(10_000),
        sessions=sessions,
        nursery=nursery,
        clock=clock,
        emit=events.append,
        farewell=INTERNAL.encode(),
    )


def changed(listener: InboundListener, **changes: Any) -> InboundListener:
    """The listener with other settings, for a reload."""
    return replace(listener, **changes)


def _no_roots(ca_file: str | None) -> RootStore:
    raise AssertionError(f"nobody should ask for {ca_file}")
