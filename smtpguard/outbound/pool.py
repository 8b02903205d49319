"""Which idle connection may serve the next message?  (TLS-RPT and Postfix's `smtp_reuse`: only what would pass today)

An idle session keeps what it showed; it is reused only if `judge(new requirement, that outcome, now)` delivers, and
only for the same source, EHLO name, address, port and SNI.  Idle a few seconds, a bounded count and age.
"""

from collections.abc import Callable
from dataclasses import replace

import trio

from smtpguard.clock import Clock
from smtpguard.outbound.host import Candidate, Hosts, Opened, PoolKey
from smtpguard.outbound.settings import Outbound
from smtpguard.policy.model import Deliver, Encryption, Requirement
from smtpguard.tls.outcome import StartTls


class Pool:
    """Idle connections by key, the youngest first."""

    def __init__(self, settings: Callable[[], Outbound], hosts: Hosts, clock: Clock, capacity: int = 500) -> None:
        self._settings = settings
        self._hosts = hosts
        self._clock = clock
        self._capacity = capacity
        self._idle: dict[PoolKey, list[tuple[float, Opened]]] = {}
        self._count = 0

    @property
    def idle(self) -> int:
        """How many connections wait for the next message."""
        return self._count

    def __repr__(self) -> str:
        return f"<Pool idle={self._count} keys={len(self._idle)}>"

    def take(self, candidate: Candidate, requirement: Requirement) -> Opened | None:
        """A live connection that shows what `requirement` asks, or None."""
        key = PoolKey(candidate, requirement.sni)
        now = self._clock.monotonic()
        while kept := self._idle.get(key):
            since, opened = kept.pop()
            self._count -= 1
            if not kept:
                del self._idle[key]
            if now - since > self._settings().pool_idle_seconds or not opened.link.is_alive:
                opened.link.wire.close()
                continue
            decision = self._hosts.judge(requirement, opened.outcome, str(candidate))
            # In clear because its own requirement wanted no TLS: what wants it if offered has to ask anew.
            untried = opened.outcome.starttls is StartTls.NOT_TRIED
            if not isinstance(decision, Deliver) or (untried and requirement.encryption is not Encryption.NEVER):
                opened.link.quit()
                continue
            return replace(opened, requirement=requirement, decision=decision, reused=True)
        return None

    def give(self, opened: Opened) -> None:
        """A connection is free, its transaction over (RSET done where one was open); it is kept or closed."""
        now = self._clock.monotonic()
        if (
            opened.messages >= self._most_messages(opened)
            or now - opened.opened_at > self._settings().pool_age_seconds
            or self._count >= self._capacity
            or not opened.link.is_alive
        ):
            opened.link.quit()
            return
        opened.link.wire.deadline = float("inf")
        self._idle.setdefault(opened.key, []).append((now, opened))
        self._count += 1

    def _most_messages(self, opened: Opened) -> int:
        """Ours, or what the host says (RFC 9422); each message may bring a recipient domain that is new to it."""
        limits = map(opened.link.extensions.limit, ("MAILMAX", "RCPTDOMAINMAX"))
        return min([self._settings().pool_messages, *(limit for limit in limits if limit is not None)])

    async def run(self) -> None:
        """Close what has been idle too long, once a second; all of it at the end."""
        try:
            while True:
                await trio.sleep(1)
                self.expire()
        finally:
            self.close()

    def expire(self) -> None:
        """Close every connection that is idle for longer than allowed."""
        limit = self._clock.monotonic() - self._settings().pool_idle_seconds
        for key, kept in list(self._idle.items()):
            fresh = [entry for entry in kept if entry[0] > limit]
            for since, opened in kept:
                if since <= limit:
                    opened.link.quit()
            self._count -= len(kept) - len(fresh)
            if fresh:
                self._idle[key] = fresh
            else:
                del self._idle[key]

    def close(self) -> None:
        """Close every idle connection."""
        for kept in self._idle.values():
            for _, opened in kept:
                opened.link.quit()
        self._idle.clear()
        self._count = 0
