"""Mail hosts that say what a table says, and everything between a transaction and them, without DNS or TLS.

A `Host` answers by verb: `answers["RCPT"] = "450 4.2.0 later"`.  A list is used up one by one, its last for good.
HANG never answers, DROP closes.  "." answers the end of data, "BODY" is said inside it.  `lines` is what it was told.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from random import Random
from typing import Any, TypeVar

import trio

from smtpguard.dns.destinations import Family
from smtpguard.events import Event
from smtpguard.names import Domain, parse_domain
from smtpguard.net.connect import AddressRules
from smtpguard.net.limits import FailureMemory
from smtpguard.net.sessions import Sessions
from smtpguard.outbound.host import Hosts
from smtpguard.outbound.pool import Pool
from smtpguard.outbound.routes import Routes
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.outbound.slots import DestinationSlots
from smtpguard.outbound.transaction import Transaction
from smtpguard.outbound.walk import Services
from smtpguard.policy.model import Level
from smtpguard.policy.rules import RuleSet
from smtpguard.smtp.commands import Mail, Rcpt, parse_command
from smtpguard.tls.context import client_context
from tests.support.clock import test_clock as make_clock
from tests.support.zone import Node, Zone

HANG = "hang"
DROP = "drop"
USUAL = {
    "GREETING": "220 mx ESMTP",
    "EHLO": "250-mx\r\n250-PIPELINING\r\n250 8BITMIME",
    "HELO": "250 mx",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go ahead",
    ".": "250 2.0.0 queued",
    "RSET": "250 2.0.0 reset",
    "QUIT": "221 2.0.0 bye",
}
E = TypeVar("E", bound=Event)


class Dropped(Exception):
    """The script closes here."""


@dataclass
class Host:
    """A mail host at one address; `sessions` holds the lines of each connection, `messages` whole contents."""

    answers: dict[str, str | list[str]] = field(default_factory=dict)
    sessions: list[list[str]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    ended: int = 0

    @property
    def lines(self) -> list[str]:
        """The lines of all connections."""
        return [line for session in self.sessions for line in session]

    def told(self, verb: str) -> list[str]:
        """The lines that begin with this verb."""
        return [line for line in self.lines if line.upper().startswith(verb)]

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        session: list[str] = []
        self.sessions.append(session)
        buffer = bytearray()
        try:
            await self._say(stream, "GREETING")
            while True:
                line = (await _until(stream, buffer, b"\r\n"))[:-2].decode("latin-1")
                session.append(line)
                verb = line.partition(" ")[0].upper()
                said = await self._say(stream, verb)
                if verb == "QUIT":
                    return
                if verb == "DATA" and said.startswith("354"):
                    await self._content(stream, buffer)
        except (trio.BrokenResourceError, trio.ClosedResourceError, Dropped):
            pass
        finally:
            self.ended += 1
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _content(self, stream: trio.SocketStream, buffer: bytearray) -> None:
        if "BODY" in self.answers:
            await self._say(stream, "BODY")
        content = await _until(stream, buffer, b"\r\n.\r\n", start=b"\r\n")
        self.messages.append(content[2:-3])
        await self._say(stream, ".")

    async def _say(self, stream: trio.SocketStream, what: str) -> str:
        answer = self.answers.get(what, USUAL.get(what, "500 5.5.1 what?"))
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer == HANG:
            await trio.sleep_forever()
        if answer == DROP:
            raise Dropped
        await stream.send_all(answer.encode() + b"\r\n")
        return answer


async def _until(stream: trio.SocketStream, buffer: bytearray, mark: bytes, *, start: bytes = b"") -> bytes:
    buffer[:0] = start
    while (end := buffer.find(mark)) < 0:
        octets = await stream.receive_some(65536)
        if not octets:
            raise Dropped
        buffer += octets
    found = bytes(buffer[: end + len(mark)])
    del buffer[: end + len(mark)]
    return found


@dataclass
class World:
    """Hosts, the zone that leads to them, and what a transaction needs."""

    nursery: trio.Nursery
    zone: Zone
    port: int
    settings: Outbound
    services: Services
    memory: FailureMemory[Any]
    events: list[Event] = field(default_factory=list)
    hosts: dict[str, Host] = field(default_factory=dict)

    async def host(self, address: str, **answers: str | list[str]) -> Host:
        """A host that listens at this loopback address."""
        host = self.hosts[address] = Host(dict(answers))
        family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
        sock = trio.socket.socket(family)
        await sock.bind((address, self.port))
        sock.listen(200)
        self.nursery.start_soon(trio.serve_listeners, host.serve, [trio.SocketListener(sock)])
        return host

    async def domain(self, name: str, *addresses: str, **answers: str | list[str]) -> list[Host]:
        """A domain with one MX for each address, the first the best; the answers are those of the first."""
        names = [f"mx{number}.{name}" for number, _ in enumerate(addresses, 1)]
        self.zone.nodes[parse_domain(name)] = Node(mx=[f"{10 * n} {mx}" for n, mx in enumerate(names, 1)])
        for mx, address in zip(names, addresses, strict=True):
            self.zone.nodes[parse_domain(mx)] = Node(aaaa=[address]) if ":" in address else Node(a=[address])
        return [await self.host(address, **(answers if not n else {})) for n, address in enumerate(addresses)]

    def transaction(self, mail: str = "MAIL FROM:<s@s.example>", *, protocol: Any = "lmtp") -> Transaction:
        """A transaction whose MAIL was this."""
        command = parse_command(mail.encode())
        assert isinstance(command, Mail)
        return Transaction(
            command,
            services=self.services,
            settings=self.settings,
            listener=OutboundListener("test", (), protocol, Domain("mail.s.example"), Family.BOTH),
            session="s",
            first_decision=0,
        )

    async def rcpt(self, transaction: Transaction, *recipients: str, seconds: float = 240) -> list[str]:
        """A pipelined group of RCPT, and its replies."""
        replies = await transaction.recipients(rcpts(*recipients), trio.current_time() + seconds)
        return [str(reply) for reply in replies]

    async def data(self, transaction: Transaction, content: bytes = b"Subject: x\r\n\r\nhello\r\n") -> list[str]:
        """DATA, the content, and the final replies."""
        refusal = await transaction.data(trio.current_time() + self.settings.budgets.data)
        if refusal is not None:
            return [str(refusal)]
        await transaction.send([content])
        replies = await transaction.finish(None, len(content), trio.current_time() + self.settings.budgets.end_of_data)
        return [str(reply) for reply in replies]

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def is_clean(self) -> bool:
        """No slot is held."""
        return repr(self.services.slots) == "<DestinationSlots connections={} walks={}>"


def rcpts(*recipients: str) -> Sequence[Rcpt]:
    """RCPT commands."""
    commands = [parse_command(f"RCPT TO:<{recipient}>".encode()) for recipient in recipients]
    return [command for command in commands if isinstance(command, Rcpt)]


@asynccontextmanager
async def open_world(
    *, level: Level = Level.MAY, change: Callable[[Outbound], Outbound] = lambda settings: settings
) -> AsyncIterator[World]:
    """A world without hosts; `change` is applied to its settings.  At its end no slot is held."""
    with trio.socket.socket() as probe:
        await probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    clock = make_clock()
    events: list[Event] = []
    settings = change(
        Outbound(
            hostname=Domain("mail.s.example"),
            rules=RuleSet(level=level),
            routes=Routes({}, port),
            addresses=AddressRules(allow=(ip_network("127.0.0.0/8"), ip_network("::1/128"))),
            own_names=frozenset(),
        )
    )
    memory: FailureMemory[Any] = FailureMemory()
    sessions = Sessions(clock)
    zone = Zone({})
    hosts = Hosts(
        settings=lambda: settings,
        roots=lambda _: (_ for _ in ()).throw(AssertionError("nothing is verified here")),
        context=client_context,
        memory=memory,
        sessions=sessions,
        clock=clock,
    )
    services = Services(
        hosts=hosts,
        pool=Pool(lambda: settings, hosts, clock),
        slots=DestinationSlots(settings.destination_connections, settings.destination_walks),
        lookups=zone,
        sts=None,
        recheck_sts=lambda _: None,
        clock=clock,
        random=Random(7),
        emit=events.append,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sessions.run)
        try:
            yield World(nursery, zone, port, settings, services, memory, events)
        finally:
            services.pool.close()
        nursery.cancel_scope.cancel()
