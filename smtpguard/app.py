"""How does the process live?  Assemble, bind, serve, reload on HUP, drain on TERM.

A nursery of services stands around the nursery of sessions, so that a session never loses what it uses; the sinks
flush last.
"""

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import trio

from smtpguard import __version__
from smtpguard.admin.live import Feed
from smtpguard.admin.server import AdminServer, Live, Status
from smtpguard.clock import SYSTEM_CLOCK, Clock, Ids
from smtpguard.config.build import Settings, load
from smtpguard.config.restart import needs_restart
from smtpguard.config.startup import state_directory_problem, unusable_state_directory
from smtpguard.dns.resolver import Validation
from smtpguard.engine import Engine
from smtpguard.events import (
    Emit,
    Event,
    IdentityWarning,
    InternalError,
    Lifecycle,
    ListenerBound,
    ReloadFailed,
    discard,
)
from smtpguard.inbound.service import Inbound
from smtpguard.inbound.session import serve_client
from smtpguard.mtasts.store import Store
from smtpguard.net.accept import serve
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.listen import (
    Bind,
    InheritedSocket,
    ListenFailed,
    inherited_sockets,
    open_listeners,
    refuse_unused,
    sd_notify,
)
from smtpguard.net.sessions import Sessions
from smtpguard.outbound.identity import identity_problems
from smtpguard.outbound.intake import INTERNAL, Intake
from smtpguard.reasons import printable
from smtpguard.telemetry.history import History
from smtpguard.telemetry.log import LogSink
from smtpguard.telemetry.metrics import Metrics
from smtpguard.telemetry.state import State, with_inbound
from smtpguard.telemetry.totals import Totals

_LOG_FLUSH_SECONDS = 2.0
_DATABASE = "smtpguard.db"
_MTA_SECONDS = 3.0  # how long the start waits for the MTAs behind inbound listeners
_FOLLOWERS_SECONDS = 3.0  # how long the end waits for those who follow the events
_DETAIL = 500
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StartFailed(Exception):
    """The process cannot start; the message is one line with the way out."""


class Application:
    """One smtpguard process."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock = SYSTEM_CLOCK,
        stream: BinaryIO | None = None,
        watch: Emit = discard,
    ) -> None:
        """`stream` takes the log, stdout by default; `watch` hears every event too.  Raises StartFailed."""
        self.settings = settings
        self._started_with = settings
        self._clock = clock
        self._watch = watch
        self._history: History | None = None
        self._log = LogSink(settings.log, stream or sys.stdout.buffer, clock)
        self._metrics = Metrics(clock, __version__, self._state)
        self._live = Live(Feed(clock), Totals(clock), clock, lambda: self.settings.admin_token)
        try:
            self._store = self._open_store()
            self._history = History(self._store, clock)
            self._engine = Engine(settings, self._store, clock, self.emit)
        except (OSError, ValueError) as error:
            raise StartFailed(str(error)) from error
        self._sessions = Sessions(clock)
        self._ids = Ids(clock.now())
        self._intakes = [
            Intake(listener, lambda: self._engine.outbound, self._engine.services, self._sessions, self._ids)
            for listener in settings.listeners
        ]
        self._inbounds = [
            Inbound(
                listener,
                hostname=settings.hostname,
                lookups=self._engine.resolver,
                roots=self._engine.roots,
                sessions=self._sessions,
                mta_wires=self._engine.host_wires,
                ids=self._ids,
                clock=clock,
                emit=self.emit,
            )
            for listener in settings.inbound
        ]
        self._ready = False

    def emit(self, event: Event) -> None:
        """The one Emit of the process: to every sink; never blocks, never raises."""
        self._log.emit(event)
        self._metrics.emit(event)
        if self._history is not None:
            self._history.emit(event)
        self._live.totals.emit(event)
        self._live.feed.emit(event)
        self._watch(event)

    async def run(self) -> None:
        """Serve until TERM.  Raises StartFailed, before anything is served."""
        with ExitStack() as closing:
            closing.enter_context(_deaf())
            closing.callback(self._close_sinks)
            try:
                inherited = inherited_sockets()
                everything: list[Intake | Inbound] = [*self._intakes, *self._inbounds]
                bound = [(service, _open(closing, service.listener.binds, inherited)) for service in everything]
                admin = _open(closing, [self.settings.admin] if self.settings.admin else [], inherited)
                if not self.settings.admin_token:
                    _only_local(admin)
                metrics = _open(closing, [self.settings.metrics] if self.settings.metrics else [], inherited)
                refuse_unused(inherited, [sock for socks in (admin, metrics, *(s for _, s in bound)) for sock in socks])
            except ListenFailed as failed:
                raise StartFailed(str(failed)) from failed
            self._engine.listens_on(
                _endpoint(sock) for socks in (admin, metrics, *(socks for _, socks in bound)) for sock in socks
            )
            self.emit(Lifecycle(stage="started", detail=f"smtpguard {__version__}"))
            self._warn()
            closing.callback(self.emit, Lifecycle(stage="stopped"))
            with trio.open_signal_receiver(*_SIGNALS) as signals:
                async with trio.open_nursery() as services:
                    services.start_soon(self._store.run)
                    services.start_soon(self._sessions.run)
                    await services.start(self._engine.run)
                    services.start_soon(self._check_identities)
                    for inbound in self._inbounds:
                        services.start_soon(inbound.run)
                    with trio.move_on_after(_MTA_SECONDS):
                        for inbound in self._inbounds:
                            await inbound.watch.attempted.wait()
                    await self._serve(bound, admin, metrics, signals)
                    services.cancel_scope.cancel()

    def _close_sinks(self) -> None:
        """The very end: what was learnt goes to the disk, and the log last of all."""
        self._store.close()
        self._log.close(_LOG_FLUSH_SECONDS)

    def _warn(self) -> None:
        """Of the rules, what check-config warns of."""
        for warning in self.settings.rule_warnings(self._clock.now().date()):
            self.emit(warning)

    async def _check_identities(self) -> None:
        for listener in self.settings.listeners:
            for problem in await identity_problems(self._engine.resolver, listener):
                self.emit(IdentityWarning(listener=listener.name, detail=problem))

    # -- serving

    async def _serve(
        self,
        bound: list[tuple[Intake | Inbound, list[socket.socket]]],
        admin: list[socket.socket],
        metrics: list[socket.socket],
        signals: object,
    ) -> None:
        async with trio.open_nursery() as sessions:
            with trio.CancelScope() as accepting:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._signals, signals, accepting, sessions)
                    for sock in admin:
                        self._start_admin(sessions, sock, "admin")  # answers, and is watched, while sessions drain
                    for sock in metrics:
                        self._start_admin(sessions, sock, "metrics")
                    for service, socks in bound:
                        slots = trio.Semaphore(service.listener.max_connections)
                        for sock in socks:
                            self._announce(service, sock)
                            nursery.start_soon(self._accept, sock, service, slots, sessions)
                    self._ready = True
                    self.emit(Lifecycle(stage="ready"))
                    sd_notify("READY=1")
                    gc.collect()
                    gc.freeze()

    async def _accept(
        self, sock: socket.socket, service: Intake | Inbound, slots: trio.Semaphore, sessions: trio.Nursery
    ) -> None:
        await serve(
            sock,
            service.session if isinstance(service, Intake) else partial(serve_client, service),
            name=service.listener.name,
            slots=slots,
            sessions=self._sessions,
            nursery=sessions,
            clock=self._clock,
            emit=self.emit,
            farewell=INTERNAL.encode(),
        )

    def _announce(self, service: Intake | Inbound, sock: socket.socket) -> None:
        listener = service.listener
        self.emit(
            ListenerBound(
                listener=listener.name,
                address=str(_endpoint(sock)),
                role="outbound" if isinstance(service, Intake) else "inbound",
                protocol=listener.protocol,
            )
        )

    def _start_admin(self, nursery: trio.Nursery, sock: socket.socket, name: str) -> None:
        assert self._history is not None
        is_admin = name == "admin"
        server = AdminServer(
            self._metrics,
            self._history,
            self._engine.sts,
            self.status,
            self.emit,
            self._live if is_admin else None,
            metrics_only=not is_admin,
        )
        self.emit(ListenerBound(listener=name, address=str(_endpoint(sock)), role="admin", protocol="http"))
        # Trio takes plain sockets only, and closes them; ours is closed where it was opened.
        own = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(sock.fileno())))
        nursery.start_soon(server.serve, trio.SocketListener(own))

    def status(self) -> Status:
        """What `/api/status` and the health endpoints show."""
        degraded = []
        if self._engine.resolver.validation is not Validation.TRUSTED:
            degraded.append(f"DNSSEC: {self._engine.canary.state.value}")
        degraded += [
            f"MTA of {inbound.listener.name}: {inbound.watch.state}"
            for inbound in self._inbounds
            if inbound.watch.state != "ready"
        ]
        return Status(
            version=__version__,
            ready=self._ready
            and not self._sessions.draining
            and not any(one.watch.is_refused for one in self._inbounds),
            draining=self._sessions.draining,
            dnssec=self._engine.canary.state.value,
            validation=self._engine.resolver.validation.value,
            degraded=tuple(degraded),
            sessions=len(self._sessions),
            pool=repr(self._engine.pool),
            config=str(self.settings.path),
        )

    def _state(self) -> State:
        """What the metrics read at a scrape."""
        return replace(
            with_inbound(self._engine.state(), self._inbounds),
            ready=self.status().ready,
            restart_needed=bool(needs_restart(self._started_with, self.settings)),
            log_lines_dropped=self._log.dropped,
        )

    # -- signals

    async def _signals(self, signals: object, accepting: trio.CancelScope, sessions: trio.Nursery) -> None:
        draining = False
        async for number in signals:  # type: ignore[attr-defined]
            if number == signal.SIGHUP:
                self._reload()
            elif not draining:
                draining = True
                self._ready = False
                self.emit(Lifecycle(stage="draining", detail=f"at most {self.settings.drain_seconds} s"))
                sd_notify("STOPPING=1")
                sessions.start_soon(self._drain, self.settings.drain_seconds, sessions, signals)
                accepting.cancel()
                return

    async def _drain(self, seconds: int, sessions: trio.Nursery, signals: object) -> None:
        """End the sessions between transactions; a second TERM ends them now."""
        async with trio.open_nursery() as nursery:

            async def hasten() -> None:
                async for number in signals:  # type: ignore[attr-defined]
                    if number != signal.SIGHUP:  # a reload has nothing to change any more
                        await self._sessions.drain(0)

            nursery.start_soon(hasten)
            cut = await self._sessions.drain(seconds)
            if cut:
                self.emit(Lifecycle(stage="draining", detail=f"{cut} sessions were cut"))
                with trio.move_on_after(1):
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        with trio.move_on_after(_FOLLOWERS_SECONDS):
            await self._live.feed.end()
        sessions.cancel_scope.cancel()

    def _reload(self) -> None:
        """HUP: the new settings at once, or none of them."""
        # systemd wants its own clock's time of the notice (sd_notify(3), Type=notify-reload).
        sd_notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        self.emit(Lifecycle(stage="reloading", detail=str(self.settings.path)))
        try:
            found = load(self.settings.path)
            if isinstance(found, Settings):
                self._engine.reload(found)
        except (OSError, ValueError) as error:
            self.emit(ReloadFailed(detail=printable(str(error), _DETAIL)))
        except Exception as error:  # noqa: BLE001  -- a boundary: a bug in reading a new file must not end what runs
            self.emit(InternalError.of("reload", error))
            self.emit(ReloadFailed(detail="internal error"))
        else:
            if isinstance(found, Settings):
                self.emit(Lifecycle(stage="reloaded", detail=self._take_over(found)))
                self._warn()
            else:
                for wrong in found:
                    self.emit(ReloadFailed(detail=printable(str(wrong), _DETAIL)))
        sd_notify("READY=1")

    def _take_over(self, new: Settings) -> str:
        """What needs a restart to change, as text; listeners with the same binds take their new settings."""
        by_binds = {listener.binds: listener for listener in new.listeners}
        for intake in self._intakes:
            intake.listener = by_binds.get(intake.listener.binds, intake.listener)
        inbound_by_binds = {listener.binds: listener for listener in new.inbound}
        for inbound in self._inbounds:
            inbound.hostname = new.hostname
            if (listener := inbound_by_binds.get(inbound.listener.binds)) is not None:
                inbound.reload(listener)
        self.settings = new
        changed = needs_restart(self._started_with, new)
        return f"needs a restart to take effect: {', '.join(changed)}" if changed else ""

    def _open_store(self) -> Store:
        directory = self.settings.state_dir
        if problem := state_directory_problem(directory):
            raise StartFailed(problem)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartFailed(unusable_state_directory(directory, error.strerror or str(error))) from error
        return Store.open(directory / _DATABASE, self.emit)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore signals while nobody receives them: one that comes in the last moment must not cost what is unwritten."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _open(closing: ExitStack, binds: Sequence[Bind], inherited: Sequence[InheritedSocket]) -> list[socket.socket]:
    """Listening sockets, closed with the stack.  Raises ListenFailed."""
    return [closing.enter_context(sock) for sock in open_listeners(binds, inherited)]


def _endpoint(sock: socket.socket) -> Endpoint:
    return Endpoint.of(sock.family, sock.getsockname())


def _only_local(admin: Sequence[socket.socket]) -> None:
    """The file says so of addresses; a socket that systemd passed shows it only here.  Raises ListenFailed."""
    for sock in admin:
        end = _endpoint(sock)
        if end.address is not None and not end.address.is_loopback:
            raise ListenFailed(
                f"the admin socket that systemd passed listens on {end}, where other hosts reach it: "
                "use a loopback address or a Unix socket in its ListenStream=, or set [admin] token_file"
            )


def run(path: Path) -> None:
    """`smtpguard run`.  Raises StartFailed; config errors are the caller's to show."""
    settings = load(path)
    if isinstance(settings, list):
        raise StartFailed("\n".join(str(error) for error in settings))
    application = Application(settings)
    with suppress(KeyboardInterrupt):
        trio.run(application.run)
