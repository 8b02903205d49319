"""smtpguard between a client and the sandbox internet, all tasks of one trio.run: what the scenario tests stand on."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import trio

from smtpguard.clock import SYSTEM_CLOCK, Clock, Ids
from smtpguard.config.build import Settings, load
from smtpguard.engine import Engine
from smtpguard.events import Emit, Event, discard
from smtpguard.mtasts.store import Store
from smtpguard.net.listen import open_listeners, serve
from smtpguard.net.sessions import Sessions
from smtpguard.outbound.intake import INTERNAL, Intake
from smtpguard.sandbox.behaviour import Behaviour
from smtpguard.sandbox.client import Client, Sent
from smtpguard.sandbox.internet import BROKEN, RESOLVER, SIGNED, UNSIGNED, Internet, Site, start

E = TypeVar("E", bound=Event)

MESSAGE = b"Subject: hello\r\n\r\nthe-secret-marker\r\n.a line with a dot\r\n"
MARKER = b"the-secret-marker"
TICK_SECONDS = 0.05  # how often deadlines are looked at: the budgets of the tests are tenths of a second


@dataclass(slots=True)
class Rig:
    """Everything a scenario touches."""

    internet: Internet
    engine: Engine
    settings: Settings
    sessions: Sessions
    ports: dict[str, int]
    events: list[Event] = field(default_factory=list)

    async def client(self, protocol: str = "lmtp") -> Client:
        """A connection of the MTA, greeted."""
        client = await Client.connect("127.0.0.1", self.ports[protocol])
        try:
            await client.reply()
            await client.hello("mta.example", "LHLO" if protocol == "lmtp" else "EHLO")
        except BaseException:
            client.conversation.close()
            raise
        return client

    async def send(self, *recipients: str, protocol: str = "lmtp", content: bytes = MESSAGE) -> Sent:
        """One message from a fresh connection."""
        client = await self.client(protocol)
        try:
            return await client.send("sender@sender.example", recipients, content, lmtp=protocol == "lmtp")
        finally:
            await client.quit()

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def behave(self, domain: str, **changes: object) -> None:
        """The first MX of this domain is a good one, but for these changes, from its next step on."""
        mx = self.internet.hosts[domain].mx
        mx.behaviour = replace(Behaviour(), **changes)  # type: ignore[arg-type]

    def budget(self, **seconds: float) -> None:
        """Sessions that begin from now on have these budgets."""
        settings = self.engine.outbound
        self.engine.outbound = replace(settings, budgets=replace(settings.budgets, **seconds))

    @property
    def is_clean(self) -> bool:
        """Nothing is left open but idle connections (their number is the pool's own affair)."""
        return repr(self.engine.services.slots) == "<DestinationSlots connections={} walks={}>"

    def no_clear_mail(self, domain: str) -> bool:
        """INV-04: no envelope and no body octet of mail to this domain was on the wire in clear."""
        host = self.internet.hosts[domain]
        seen = [host.mx.clear, self.internet.forged_mx.clear, *(further.mx.clear for further in host.further)]
        if host.attacker is not None:  # he stands where the wire is, the MX only hears what he passes on
            seen.append(host.attacker.clear)
        return not any(word in octets.upper() for octets in seen for word in (b"MAIL FROM", b"RCPT TO", MARKER.upper()))


@dataclass(slots=True)
class Calendar:
    """A date that stands still, and jumps where a test sets `now`; the monotonic clock goes on."""

    now: datetime

    @property
    def clock(self) -> Clock:
        """For `open_rig`."""
        return Clock(now=lambda: self.now, monotonic=trio.current_time)


CONFIG = """
hostname = "mail.sender.example"
state_dir = "{directory}"
[[listener]]
role = "outbound"
name = "lmtp"
bind = ["127.0.0.1:0"]
protocol = "lmtp"
[[listener]]
role = "outbound"
name = "smtp"
ehlo = "second.sender.example"
bind = ["127.0.0.1:0"]
protocol = "smtp"
[outbound]
port = {port}
allow_destinations = ["127.0.0.0/8"]
{outbound}
[dns]
resolvers = ["{resolver}"]
timeout_seconds = {dns_seconds}
attempts = 1
[dns.canary]
signed = "{signed}"
unsigned = "{unsigned}"
broken = "{broken}"
[mtasts]
port = {policy_port}
[tls]
ca_file = "{ca_file}"
[admin]
enabled = false
{extra}
"""


@asynccontextmanager
async def open_rig(
    directory: Path,
    sites: Sequence[Site],
    *,
    outbound: str = "",
    extra: str = "",
    store: Store | None = None,
    clock: Clock = SYSTEM_CLOCK,
    resolver: str = RESOLVER,
    dns_seconds: float = 5.0,
    adjust: Callable[[Settings], Settings] = lambda settings: settings,
    watch: Emit = discard,
) -> AsyncIterator[Rig]:
    """The rig with these domains; `outbound` are lines of [outbound], `extra` further tables; `clock` is what
    smtpguard takes for the time (monotonic: Trio's); `adjust` changes what has no key in the file;
    `dns_seconds` is how long an answer may take, much for all but who waits it out; `watch` hears every event too."""
    async with trio.open_nursery() as nursery:
        internet = await start(nursery, directory, sites, ttl_seconds=0, resolver=resolver)
        address, port = internet.resolver
        path = directory / "smtpguard.toml"
        path.write_text(
            CONFIG.format(
                directory=directory,
                port=internet.mx_port,
                resolver=f"{address}:{port}",
                signed=SIGNED,
                unsigned=UNSIGNED,
                dns_seconds=dns_seconds,
                broken=BROKEN,
                policy_port=internet.policy_port,
                ca_file=internet.ca_file,
                outbound=outbound,
                extra=extra,
            )
        )
        settings = load(path)
        assert isinstance(settings, Settings), settings
        settings = adjust(settings)
        events: list[Event] = []

        def emit(event: Event) -> None:
            events.append(event)
            watch(event)

        engine = Engine(settings, store or Store.open(None, emit), clock, emit)
        engine.host_wires.tick_seconds = TICK_SECONDS
        await nursery.start(engine.run)
        with trio.fail_after(5):
            while engine.canary.verdict is None:
                await trio.sleep(0.005)
        sessions = Sessions(clock, tick_seconds=TICK_SECONDS)
        nursery.start_soon(sessions.run)
        ids = Ids(clock.now())
        ports = {}
        for listener in settings.listeners:
            (sock,) = open_listeners(listener.binds)
            ports[listener.name] = sock.getsockname()[1]
            intake = Intake(listener, lambda: engine.outbound, engine.services, sessions, ids)
            nursery.start_soon(_serve, sock, intake, sessions, nursery, events)
        yield Rig(internet, engine, settings, sessions, ports, events)
        nursery.cancel_scope.cancel()


async def _serve(sock, intake, sessions, nursery, events) -> None:  # type: ignore[no-untyped-def]
    try:
        await serve(
            sock,
            intake.session,
            name=intake.listener.name,
            slots=trio.Semaphore(100),
            sessions=sessions,
            nursery=nursery,
            clock=SYSTEM_CLOCK,
            emit=events.append,
            farewell=INTERNAL.encode(),
        )
    finally:
        sock.close()
