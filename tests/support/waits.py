"""What if exactly the n-th wait is cancelled, interrupted or cut?  The harness over `Wire._wait`, the one
seam.

`at_every_wait` runs a story once for each of its waits, n = 1, 2, ..., with the fault at the n-th, and checks
after each run that no descriptor is left open.  The story checks everything else: pool, registry, nursery.

    async def story() -> None:
        ...  # build both ends, run them, catch what the fault may raise, close

    waits = await at_every_wait(story, Fault.CANCEL)
"""

import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Final

import trio

from smtpguard.net.wire import Wait, Why, Wire

MOST_WAITS: Final = 500


class Fault(Enum):
    """What happens at the chosen wait: the task's scope is cancelled, the wire is interrupted (TIMEOUT or
    CUT), or the network fails under it: both directions of the socket end."""

    CANCEL = "cancel"
    INTERRUPT = "interrupt"
    INTERRUPT_CUT = "interrupt-cut"
    CUT = "cut"


class NthWait:
    """Counts the waits of the wires that `concerns` and puts `fault` at number `n` (0: only count).

    `fired` says whether it came so far; `wire` is the one that was hit.
    """

    def __init__(self, fault: Fault, n: int, concerns: Callable[[Wire], bool] | None = None) -> None:
        self.fault = fault
        self.n = n
        self.concerns = concerns
        self.count = 0
        self.fired = False
        self.wire: Wire | None = None
        self.scope = trio.CancelScope()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """For the time of the block all wires go through this harness; the block is what CANCEL cancels."""
        original = Wire._wait

        async def wait(wire: Wire, what: Wait) -> None:
            if self.concerns is None or self.concerns(wire):
                self.count += 1
                if self.count == self.n:
                    self._fire(wire)
            await original(wire, what)

        Wire._wait = wait  # type: ignore[method-assign, assignment]
        try:
            with self.scope:
                yield
        finally:
            Wire._wait = original  # type: ignore[method-assign]

    def _fire(self, wire: Wire) -> None:
        self.fired = True
        self.wire = wire
        match self.fault:
            case Fault.CANCEL:
                self.scope.cancel()
            case Fault.INTERRUPT:
                wire.interrupt(Why.TIMEOUT)
            case Fault.INTERRUPT_CUT:
                wire.interrupt(Why.CUT)
            case Fault.CUT:
                with suppress(OSError):  # the peer was faster
                    wire._sock.shutdown(socket.SHUT_RDWR)


def open_descriptors() -> set[int]:
    """The open file descriptors of this process."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            os.stat(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        found.add(int(name))
    return found


async def at_every_wait(
    story: Callable[[], Awaitable[object]],
    fault: Fault,
    *,
    concerns: Callable[[Wire], bool] | None = None,
    allowed: tuple[type[Exception], ...] = (),
    story_seconds: float = 60.0,
) -> int:
    """Run `story` with `fault` at its n-th wait for n = 1, 2, ... until a run has fewer waits; gives their
    number.

    Exceptions of `allowed` may leave the story (alone or in groups); any other fails the test, with n in its
    notes.
    """
    for n in range(1, MOST_WAITS + 1):
        before = open_descriptors()
        harness = NthWait(fault, n, concerns)
        try:
            with trio.fail_after(story_seconds):
                await _run(story, harness, allowed)
            left = open_descriptors() - before
            assert not left, f"descriptors left open: {sorted(left)}"
        except BaseException as error:
            error.add_note(f"{fault.value} at wait {n} ({harness.wire!r})")
            raise
        if not harness.fired:
            return n - 1
    raise AssertionError(f"the story has more than {MOST_WAITS} waits")


async def _run(story: Callable[[], Awaitable[object]], harness: NthWait, allowed: tuple[type[Exception], ...]) -> None:
    with harness.installed():
        try:
            await story()
        except ExceptionGroup as group:
            if group.split(allowed or _Never)[1] is not None:
                raise
        except allowed:
            pass


class _Never(Exception):
    """Nobody raises it."""
