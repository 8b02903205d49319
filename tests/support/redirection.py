"""What netfilter does, done by a listener: each connection was going somewhere else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

import trio

from smtpguard.clock import SYSTEM_CLOCK, Ids
from smtpguard.names import parse_address
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.listen import open_listeners, serve
from smtpguard.outbound.intake import INTERNAL, Intake
from smtpguard.sandbox.client import Client
from tests.support.rig import Rig


@dataclass
class Redirection:
    """An intercepting listener; `to` is where connections to it were going."""

    rig: Rig
    port: int
    intake: Intake
    to: Endpoint | None = None

    def at(self, address: str, port: int | None = None) -> Endpoint:
        """This address, and the port of mail hosts."""
        return Endpoint(parse_address(address), port or self.rig.internet.mx_port)

    def mx(self, domain: str) -> Endpoint:
        """Where the first MX of this domain is."""
        return self.at(self.rig.internet.hosts[domain].address)

    async def connect(self, to: Endpoint | None) -> Client:
        """The MTA connects to `to`; nothing is read yet."""
        self.to = to
        return await Client.connect("127.0.0.1", self.port)

    async def client(self, to: Endpoint | None) -> Client:
        """The same, greeted, after EHLO."""
        client = await self.connect(to)
        greeting = await client.reply()
        assert greeting.code == 220, greeting
        await client.hello("mta.example")
        return client


@asynccontextmanager
async def open_redirection(rig: Rig, *, direct: tuple[str, ...] = (), **changes: Any) -> AsyncIterator[Redirection]:
    """A listener beside those of the rig; `changes` are settings of it."""
    (smtp,) = [listener for listener in rig.settings.listeners if listener.name == "smtp"]
    networks = tuple(map(ip_network, direct))
    listener = replace(smtp, name="intercept", intercept="redirect", intercept_direct=networks, **changes)
    (sock,) = open_listeners(listener.binds)
    found: list[Redirection] = []
    intake = Intake(
        listener,
        lambda: rig.engine.outbound,
        rig.engine.services,
        rig.sessions,
        Ids(SYSTEM_CLOCK.now()),
        {"redirect": lambda wire: found[0].to},
    )
    found.append(Redirection(rig, sock.getsockname()[1], intake))
    with sock:
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                await serve(
                    sock,
                    intake.session,
                    name=listener.name,
                    slots=trio.Semaphore(100),
                    sessions=rig.sessions,
                    nursery=nursery,
                    clock=SYSTEM_CLOCK,
                    emit=rig.events.append,
                    farewell=INTERNAL.encode(),
                )

            nursery.start_soon(accept)
            yield found[0]
            nursery.cancel_scope.cancel()
