"""How does the process live?  Assemble, bind, serve, reload on HUP, drain on TERM.

A nursery of services stands around the nursery of sessions, so that a session never loses what it uses; the sinks
flush last.
"""

import gc
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import trio

from smtpguard import __version__
from smtpguard.admin.server import AdminServer, Status
from smtpguard.clock import SYSTEM_CLOCK, Clock, Ids
from smtpguard.config.build import Settings, load
from smtpguard.engine import Engine
from smtpguard.events import Event, IdentityWarning, Lifecycle, ListenerBound
from smtpguard.mtasts.store import Store
from smtpguard.net.listen import (
    InheritedSocket,
    ListenFailed,
    inherited_sockets,
    open_listeners,
    sd_notify,
    serve,
)
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Endpoint
from smtpguard.outbound.identity import identity_problems
from smtpguard.outbound.intake import INTERNAL, Intake
from smtpguard.telemetry.history import History
from smtpguard.telemetry.log import LogSink
from smtpguard.telemetry.metrics import Metrics

_LOG_FLUSH_SECONDS = 2.0
_DATABASE = "smtpguard.db"


class StartFailed(Exception):
    """The process cannot start; the message is one line with the way out."""


class Application:
    """One smtpguard process."""

    def __init__(self, settings: Settings, clock: Clock = SYSTEM_CLOCK, stream: BinaryIO | None = None) -> None:
        """Raises StartFailed."""
        self.settings = settings
        self._clock = clock
        self._log = LogSink(settings.log, stream or sys.stdout.buffer, clock)
        self._metrics = Metrics(clock, __version__, lambda: self._log.dropped)
        self._history: History | None = None
        self._store = self._open_store()
        self._history = History(self._store, clock)
        try:
            self._engine = Engine(settings, self._store, clock, self.emit)
        except (OSError, ValueError) as error:
            raise StartFailed(str(error)) from error
        self._sessions = Sessions(clock)
        self._ids = Ids(clock.now())
        self._intakes = [
            Intake(listener, lambda: self._engine.outbound, self._engine.services, self._sessions, self._ids)
            for listener in settings.listeners
        ]
        self._ready = False

    def emit(self, event: Event) -> None:
        """The one Emit of the process: to every sink; never blocks, never raises."""
        self._log.emit(event)
        self._metrics.emit(event)
        if self._history is not None:
            self._history.emit(event)

    async def run(self) -> None:
        """Serve until TERM.  Raises StartFailed."""
        try:
            inherited = inherited_sockets()
            bound = self._bind(inherited)
            admin = open_listeners([self.settings.admin], inherited) if self.settings.admin else []
        except ListenFailed as failed:
            raise StartFailed(str(failed)) from failed
        self.emit(Lifecycle(stage="started", detail=f"smtpguard {__version__}"))
        try:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                async with trio.open_nursery() as services:
                    services.start_soon(self._store.run)
                    services.start_soon(self._sessions.run)
                    await services.start(self._engine.run)
                    services.start_soon(self._check_identities)
                    await self._serve(bound, admin, signals)
                    services.cancel_scope.cancel()
        finally:
            self.emit(Lifecycle(stage="stopped"))
            self._store.close()
            self._log.close(_LOG_FLUSH_SECONDS)
            for _, socks in bound:
                for sock in socks:
                    sock.close()

    async def _check_identities(self) -> None:
        for listener in self.settings.listeners:
            for problem in await identity_problems(self._engine.resolver, listener):
                self.emit(IdentityWarning(listener=listener.name, detail=problem))

    # -- serving

    def _bind(self, inherited: Sequence[InheritedSocket]) -> list[tuple[Intake, list[socket.socket]]]:
        bound = []
        for intake in self._intakes:
            listener = intake.listener
            socks = open_listeners(listener.binds, inherited)
            bound.append((intake, socks))
        return bound

    async def _serve(
        self,
        bound: list[tuple[Intake, list[socket.socket]]],
        admin: list[socket.socket],
        signals: object,
    ) -> None:
        async with trio.open_nursery() as sessions:
            with trio.CancelScope() as accepting:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._signals, signals, accepting, sessions)
                    for sock in admin:
                        self._start_admin(nursery, sock)
                    for intake, socks in bound:
                        slots = trio.Semaphore(intake.listener.max_sessions)
                        for sock in socks:
                            self._announce(intake, sock)
                            nursery.start_soon(self._accept, sock, intake, slots, sessions)
                    self._ready = True
                    self.emit(Lifecycle(stage="ready"))
                    sd_notify("READY=1")
                    gc.collect()
                    gc.freeze()

    async def _accept(self, sock: socket.socket, intake: Intake, slots: trio.Semaphore, sessions: trio.Nursery) -> None:
        await serve(
            sock,
            intake.session,
            name=intake.listener.name,
            slots=slots,
            sessions=self._sessions,
            nursery=sessions,
            clock=self._clock,
            emit=self.emit,
            farewell=INTERNAL.encode(),
        )

    def _announce(self, intake: Intake, sock: socket.socket) -> None:
        listener = intake.listener
        self.emit(
            ListenerBound(
                listener=listener.name,
                address=str(Endpoint.of(sock.family, sock.getsockname())),
                role="outbound",
                protocol=listener.protocol,
            )
        )

    def _start_admin(self, nursery: trio.Nursery, sock: socket.socket) -> None:
        assert self._history is not None
        server = AdminServer(self._metrics, self._history, self._engine.sts, self.status, self.emit)
        self.emit(
            ListenerBound(
                listener="admin",
                address=str(Endpoint.of(sock.family, sock.getsockname())),
                role="admin",
                protocol="http",
            )
        )
        nursery.start_soon(server.serve, trio.SocketListener(trio.socket.from_stdlib_socket(sock)))

    def status(self) -> Status:
        """What `/api/status` and the health endpoints show."""
        degraded = []
        if self._engine.resolver.validation.name != "TRUSTED":
            degraded.append(f"DNSSEC: {self._engine.canary.state.value}")
        return Status(
            version=__version__,
            ready=self._ready and not self._sessions.draining,
            draining=self._sessions.draining,
            dnssec=self._engine.canary.state.value,
            validation=self._engine.resolver.validation.value,
            degraded=tuple(degraded),
            sessions=len(self._sessions),
            pool=repr(self._engine.pool),
            config=str(self.settings.path),
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
        sessions.cancel_scope.cancel()

    def _reload(self) -> None:
        """HUP: the new settings at once, or none of them."""
        sd_notify("RELOADING=1")
        self.emit(Lifecycle(stage="reloading", detail=str(self.settings.path)))
        found = load(self.settings.path)
        if isinstance(found, list):
            for error in found:
                self.emit(Lifecycle(stage="reload_failed", detail=str(error)))
        else:
            try:
                self._engine.reload(found)
            except (OSError, ValueError) as error:
                self.emit(Lifecycle(stage="reload_failed", detail=str(error)))
            else:
                self.emit(Lifecycle(stage="reloaded", detail=self._take_over(found)))
        sd_notify("READY=1")

    def _take_over(self, new: Settings) -> str:
        """What needs a restart to change, as text; listeners with the same binds take their new settings."""
        old = self.settings
        by_binds = {listener.binds: listener for listener in new.listeners}
        for intake in self._intakes:
            intake.listener = by_binds.get(intake.listener.binds, intake.listener)
        changed = [
            name
            for name, same in (
                ("the binds of [[listener]]", {one.binds for one in old.listeners} == set(by_binds)),
                ("[dns]", old.resolver == new.resolver and old.canary == new.canary),
                ("[mtasts]", old.sts == new.sts and old.sts_port == new.sts_port),
                ("[admin]", old.admin == new.admin),
                ("[log]", old.log == new.log),
                ("state_dir", old.state_dir == new.state_dir),
            )
            if not same
        ]
        self.settings = new
        return f"needs a restart to take effect: {', '.join(changed)}" if changed else ""

    def _open_store(self) -> Store:
        directory = self.settings.state_dir
        try:
            directory.mkdir(parents=True, exist_ok=True)
            return Store.open(directory / _DATABASE, self.emit)
        except OSError as error:
            raise StartFailed(
                f"the state directory {directory} cannot be used: {error.strerror or error}; "
                "make it writable for this user or name another in state_dir"
            ) from error


def run(path: Path) -> None:
    """`smtpguard run`.  Raises StartFailed; config errors are the caller's to show."""
    settings = load(path)
    if isinstance(settings, list):
        raise StartFailed("\n".join(str(error) for error in settings))
    application = Application(settings)
    with suppress(KeyboardInterrupt):
        trio.run(application.run)
