"""What do `run` and `probe` share?  The services that look up, judge and open, assembled from the settings.

One `Engine` is one resolver, canary, MTA-STS cache, host memory and pool.  `outbound` is the one reference a reload
swaps; a session takes its settings once.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import SystemRandom
from types import MappingProxyType, NoneType

import trio
from OpenSSL import SSL

from smtpguard.clock import Clock
from smtpguard.config.build import Settings
from smtpguard.dns.canary import Canary, CanaryState, Contradicts, Unreachable, Validates, Verdict
from smtpguard.dns.resolver import Resolver
from smtpguard.events import Emit
from smtpguard.https import HttpsClient, Refused
from smtpguard.mtasts.cache import StsCache
from smtpguard.mtasts.fetch import fetch_policy
from smtpguard.mtasts.store import Store
from smtpguard.names import Domain, IpAddress
from smtpguard.net.connect import connect
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.limits import FailureMemory
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Wire
from smtpguard.outbound.host import Hosts, MemoryKey
from smtpguard.outbound.pool import Pool
from smtpguard.outbound.settings import Outbound
from smtpguard.outbound.slots import DestinationSlots
from smtpguard.outbound.walk import Services
from smtpguard.telemetry.state import State
from smtpguard.tls.context import client_context
from smtpguard.tls.outcome import TlsVersion
from smtpguard.tls.pkix import RootStore

_CANARY_TABLE = "canary"
_VERDICTS: MappingProxyType[type[Verdict | None], str] = MappingProxyType(
    {NoneType: "none", Validates: "validates", Contradicts: "contradicts", Unreachable: "unreachable"}
)
_POLICY_HOST_CONNECT_SECONDS = 10.0


class Engine:
    """The services behind every delivery and every probe."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, emit: Emit) -> None:
        """Raises OSError or ValueError where roots or a state cannot be read; the message says the way out."""
        self._listeners: frozenset[Endpoint] = frozenset()
        self.outbound = settings.outbound
        self.clock = clock
        self._roots = load_roots(settings)
        self._contexts: dict[TlsVersion, SSL.Context] = {}
        self._rechecks: trio.Nursery | None = None
        self.host_wires = Sessions(clock)
        self.canary_asked = trio.Event()
        """Set after the canary's first round."""
        random = SystemRandom()
        remembered = dict(store.load(_CANARY_TABLE)).get("state")
        self.canary = Canary(
            settings.canary,
            lambda name, rdtype: self.resolver.query_uncached(name, rdtype),
            clock,
            emit,
            remember=lambda state: store.put(_CANARY_TABLE, "state", state.value.encode()),
            remembered=_state(remembered),
        )
        self.resolver = Resolver(
            settings.resolver,
            clock,
            emit,
            lambda: self.canary.validation,
            confirmed=self.canary.answers_confirmed,
        )
        self.sts: StsCache | None = None
        if settings.sts is not None:
            https = HttpsClient(
                lookups=self.resolver,
                open=self._open_policy_host,
                forbidden=lambda address, port: self.outbound.addresses.forbidden(address, port),
                context=self.context(TlsVersion.TLS_1_2),
                roots=lambda: self.roots(None),
                clock=clock,
                port=settings.sts_port,
            )
            self.sts = StsCache(
                settings.sts,
                self.resolver,
                lambda domain: fetch_policy(https, domain),
                store,
                clock,
                emit,
                random,
            )
        self.memory: FailureMemory[MemoryKey] = FailureMemory()
        self.hosts = Hosts(
            settings=lambda: self.outbound,
            roots=self.roots,
            context=self.context,
            memory=self.memory,
            sessions=self.host_wires,
            clock=clock,
        )
        self.pool = Pool(lambda: self.outbound, self.hosts, clock)
        self.services = Services(
            hosts=self.hosts,
            pool=self.pool,
            slots=DestinationSlots(self.outbound.destination_connections, self.outbound.destination_walks),
            lookups=self.resolver,
            sts=self.sts,
            recheck_sts=self._recheck_sts,
            clock=clock,
            random=random,
            emit=emit,
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run every service until cancelled.  Started once look-ups can be answered; the canary's first round may
        still be under way, and until it ends the remembered state counts."""
        async with trio.open_nursery() as nursery:
            self._rechecks = nursery
            try:
                await nursery.start(self.resolver.run)
                nursery.start_soon(self._ask_canary, nursery)
                if self.sts is not None:
                    await nursery.start(self.sts.run)
                nursery.start_soon(self.host_wires.run)
                nursery.start_soon(self.pool.run)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._rechecks = None

    async def _ask_canary(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.canary.run)
        self.canary_asked.set()

    def state(self) -> State:
        """What the metrics read: the part of it that is the engine's."""
        return State(
            dnssec=self.resolver.off_state or self.canary.state.value,
            canary_verdict=_VERDICTS[type(self.canary.verdict)],
            sts_policies=self.sts.count() if self.sts is not None else {},
            sts_refresh_failing=self.sts.refresh_failing if self.sts is not None else 0,
            pool_connections=self.pool.idle,
        )

    def reload(self, settings: Settings) -> None:
        """Take the new rules, routes, limits and roots, or raise OSError or ValueError and change nothing.

        What is under way keeps the old settings, and so may ask for the roots of a rule that is gone: those stay.
        """
        self._roots = self._roots | load_roots(settings)
        self.outbound = self._without_ourselves(settings.outbound)
        self.services.slots.resize(settings.outbound.destination_connections, settings.outbound.destination_walks)

    def listens_on(self, listeners: Iterable[Endpoint]) -> None:
        """What this process really listens on, never dialled: the file does not know the ports that the kernel chose
        and the sockets that systemd passed."""
        self._listeners = frozenset(listeners)
        self.outbound = self._without_ourselves(self.outbound)

    def _without_ourselves(self, outbound: Outbound) -> Outbound:
        addresses = outbound.addresses
        own = addresses.own_listeners | self._listeners
        return replace(outbound, addresses=replace(addresses, own_listeners=own))

    def roots(self, ca_file: str | None) -> RootStore:
        """The authorities in a rule's CA file, or the shared ones."""
        return self._roots[ca_file]

    def context(self, floor: TlsVersion) -> SSL.Context:
        """The client context with this lowest TLS version; made once, never changed."""
        context = self._contexts.get(floor)
        if context is None:
            context = self._contexts[floor] = client_context(floor)
        return context

    def _recheck_sts(self, domain: Domain) -> None:
        """Look for a new policy id after an enforcement failure (RFC 8461 §5.1(3)), beside the delivery."""
        if self._rechecks is not None and self.sts is not None:
            self._rechecks.start_soon(self.sts.recheck, domain)

    async def _open_policy_host(self, address: IpAddress, port: int) -> Wire | Refused:
        return await connect(address, port, timeout=_POLICY_HOST_CONNECT_SECONDS, clock=self.clock)


def load_roots(settings: Settings) -> dict[str | None, RootStore]:
    """The shared authorities under None, those of rules under their path.  Raises OSError, ValueError."""
    roots: dict[str | None, RootStore] = {None: RootStore.load(settings.ca_file)}
    for path in settings.anchors:
        roots[path] = RootStore.load(Path(path))
    return roots


def _state(value: bytes | None) -> CanaryState | None:
    try:
        return CanaryState(value.decode()) if value is not None else None
    except (ValueError, UnicodeDecodeError):
        return None
