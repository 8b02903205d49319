"""May one more delivery to this destination start now?

Per next hop at most so many connections and so many walks at once.  The routes of one group ask together, before any of
them connects, and get all or wait for all: no two transactions can hold what the other waits for.
"""

from collections import Counter
from collections.abc import Collection

import trio


class DestinationSlots:
    """Counts connections and walks for each next-hop key."""

    __slots__ = ("_connections", "_freed", "_max_connections", "_max_walks", "_walks")

    def __init__(self, max_connections: int, max_walks: int) -> None:
        self._max_connections = max_connections
        self._max_walks = max_walks
        self._connections: Counter[str] = Counter()
        self._walks: Counter[str] = Counter()
        self._freed = trio.Event()

    def __repr__(self) -> str:
        return f"<DestinationSlots connections={dict(self._connections)} walks={dict(self._walks)}>"

    def try_take(self, keys: Collection[str]) -> bool:
        """Take a connection and a walk for every key, or nothing."""
        if any(self._connections[key] >= self._max_connections or self._walks[key] >= self._max_walks for key in keys):
            return False
        for key in keys:
            self._connections[key] += 1
            self._walks[key] += 1
        return True

    async def take(self, keys: Collection[str], seconds: float) -> bool:
        """As `try_take`, waiting up to `seconds` for slots to become free."""
        with trio.move_on_after(seconds):
            while not self.try_take(keys):
                await self._freed.wait()
            return True
        return False

    def resize(self, max_connections: int, max_walks: int) -> None:
        """Other limits from now on (a reload); what is taken above them runs to its end."""
        self._max_connections = max_connections
        self._max_walks = max_walks
        self._wake()

    def walk_ended(self, key: str) -> None:
        """The walk is over; its connection may go on."""
        self._give_back(self._walks, key)

    def connection_ended(self, key: str) -> None:
        """The route is over."""
        self._give_back(self._connections, key)

    def _give_back(self, counter: Counter[str], key: str) -> None:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
        self._wake()

    def _wake(self) -> None:
        self._freed.set()
        self._freed = trio.Event()
