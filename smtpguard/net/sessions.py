"""Which connections live, which of them are overdue, and how do they end when we stop?  (RFC 5321 §4.5.3.2,
§3.8)

One task looks at every deadline once a second, so that no wait needs a timer of its own.
"""

import trio

from smtpguard.clock import Clock
from smtpguard.net.endpoint import Endpoint
from smtpguard.net.wire import Why, Wire

TICK_SECONDS = 1.0
_DRAIN_STEP_SECONDS = 0.25  # how soon a session that became idle during a drain is told


class Sessions:
    """The registry of wires whose deadlines are watched: those of clients and those to upstreams and MX
    hosts.  `run` looks every `tick_seconds`.
    """

    __slots__ = ("_clock", "_draining", "_gone", "_wires", "tick_seconds")

    def __init__(self, clock: Clock, *, tick_seconds: float = TICK_SECONDS) -> None:
        self._clock = clock
        self.tick_seconds = tick_seconds
        self._wires: set[Wire] = set()
        self._draining: Why | None = None
        self._gone = trio.Event()

    def __len__(self) -> int:
        return len(self._wires)

    def __repr__(self) -> str:
        return f"<Sessions {len(self._wires)}{' draining' if self._draining else ''}>"

    @property
    def draining(self) -> bool:
        """True from the first `drain` on: a session that sees it ends after its transaction."""
        return self._draining is not None

    def add(self, wire: Wire) -> None:
        """Watch the deadline of `wire` from now on."""
        self._wires.add(wire)

    def has_local(self, end: Endpoint) -> bool:
        """Is `end` the near end of a wire that lives here?"""
        return any(wire.local == end and not wire.closed for wire in self._wires)

    def remove(self, wire: Wire) -> None:
        """Forget `wire`; to be called when it is closed.  A second call does nothing."""
        self._wires.discard(wire)
        if not self._wires:
            self._gone.set()

    async def run(self) -> None:
        """The tick: forget what is closed, interrupt what is overdue with TIMEOUT.  Runs until it is cancelled."""
        while True:
            await trio.sleep(self.tick_seconds)
            self._wires = {wire for wire in self._wires if not wire.closed}
            now = self._clock.monotonic()
            for wire in self._wires:
                if wire.deadline <= now and wire.interrupted is None:
                    wire.interrupt(Why.TIMEOUT)

    async def drain(self, seconds: float, why: Why = Why.SHUTDOWN) -> int:
        """End all sessions: the idle ones now, the others as they become idle, and the rest after `seconds`
        with CUT.

        Returns how many had to be cut.  A second call with fewer seconds overtakes the first.
        """
        self._draining = why
        await trio.lowlevel.checkpoint()  # an accept that is under way registers its session first
        with trio.move_on_after(seconds):
            while self._wires:
                for wire in self._wires:
                    if wire.idle and wire.interrupted is None:
                        wire.interrupt(why)
                self._gone = trio.Event() if self._gone.is_set() else self._gone
                with trio.move_on_after(_DRAIN_STEP_SECONDS):
                    await self._gone.wait()
        rest = list(self._wires)
        for wire in rest:
            wire.interrupt(Why.CUT)
        return len(rest)
