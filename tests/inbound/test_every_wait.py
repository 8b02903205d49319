"""INV-01, INV-02: a fault at each wait of an inbound session, on either side (cancel, interrupt, cut), and a drain.

After each: no 2xx that the MTA did not give, no message completed that the client did not complete, none twice; no
session, connection to the MTA or descriptor left, no bug.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import trio

from smtpguard.events import InternalError
from smtpguard.net.wire import Wire
from smtpguard.sandbox.client import Client, unverifying_context
from smtpguard.sandbox.conversation import Lost
from tests.support.front import HOST, Front, open_front
from tests.support.mta import OFFER, Mta
from tests.support.waits import Fault, NthWait, at_every_wait, open_descriptors

ONE, TWO, THREE = (b"Subject: %b\r\n\r\nbody\r\n" % word for word in (b"one", b"two", b"three"))
QUEUED = b"250 2.0.0 queued as 1"
BEGIN = b"MAIL FROM:<a@a.example>\r\nRCPT TO:<b@front.example>\r\n"


class Unexpected(Exception):
    """The fault has reached the client: a reply that ends its story."""


class Story:
    """One client that sends three messages, and what it may say of them afterwards."""

    def __init__(self) -> None:
        self.front: Front | None = None
        self.completed: list[bytes] = []
        """The messages whose end it has begun to send."""
        self.promised: list[bytes] = []
        """Those that it heard a 2xx for."""

    def concerns(self, _wire: Wire) -> bool:
        """Only waits of the session count, not those of the profile and the probe."""
        return self.front is not None

    async def expect(self, client: Client, *codes: int) -> None:
        for code in codes:
            reply = await client.reply()
            if reply.code != code:
                raise Unexpected(str(reply))

    async def say(self, client: Client, octets: bytes, *codes: int) -> None:
        await client.conversation.send(octets)
        await self.expect(client, *codes)

    async def complete(self, client: Client, message: bytes, octets: bytes) -> None:
        """The octets that end a message, and the promise for it."""
        self.completed.append(message)
        await client.conversation.send(octets)
        reply = await client.reply()
        if reply.code != 250:
            raise Unexpected(str(reply))
        assert str(reply) == QUEUED.decode(), "a promise in other words than the MTA's"
        self.promised.append(message)

    async def secured(self, client: Client) -> None:
        """TLS and AUTH, then a pipelined group with DATA."""
        await self.expect(client, 220)
        await self.say(client, b"EHLO client.example\r\n", 250)
        await self.say(client, b"STARTTLS\r\n", 220)
        await client.conversation.start_tls(unverifying_context(), server_side=False, server_name=HOST)
        await self.say(client, b"EHLO client.example\r\n", 250)
        await self.say(client, b"AUTH LOGIN\r\n", 334)
        await self.say(client, b"dXNlcg==\r\n", 235)
        await self.say(client, BEGIN + b"DATA\r\n", 250, 250, 354)
        await client.conversation.send(ONE[:9])
        await self.complete(client, ONE, ONE[9:] + b".\r\n")
        await self.say(client, b"QUIT\r\n", 221)

    async def in_clear(self, client: Client) -> None:
        """Lock-step; chunks, the first in the group of its MAIL; a transaction that is given up; a new EHLO."""
        await self.expect(client, 220)
        await self.say(client, b"EHLO client.example\r\n", 250)
        await self.say(client, BEGIN + b"BDAT 9\r\n" + TWO[:9], 250, 250, 250)
        await self.complete(client, TWO, b"BDAT %d LAST\r\n" % (len(TWO) - 9) + TWO[9:])
        await self.say(client, BEGIN, 250, 250)
        await self.say(client, b"EHLO other.example\r\n", 250)
        await self.say(client, b"MAIL FROM:<a@a.example>\r\n", 250)
        await self.say(client, b"RSET\r\n", 250)
        await self.say(client, b"MAIL FROM:<a@a.example>\r\n", 250)
        await self.say(client, b"RCPT TO:<b@front.example>\r\n", 250)
        await self.say(client, b"DATA\r\n", 354)
        await client.conversation.send(THREE[:9])
        await self.complete(client, THREE, THREE[9:] + b".\r\n")
        await self.say(client, b"QUIT\r\n", 221)

    async def run(self, directory: Path, offer: tuple[bytes, ...], part: Callable[[Client], Awaitable[None]]) -> None:
        """`part` in front of an MTA with this offer; checks what must hold whatever happens."""
        mta = Mta(offer, script=script)
        try:
            async with open_front(directory, mta, received=False) as front:
                self.front = front
                client = await front.raw()
                try:
                    await part(client)
                except (Unexpected, *Lost):
                    pass
                finally:
                    client.conversation.close()
                with trio.fail_after(5):
                    while len(front.sessions) or len(front.mta_wires):
                        await trio.sleep(0.001)
                while any(not heard.closed for heard in mta.heard):
                    await trio.lowlevel.checkpoint()
                assert front.service.gate.sessions == 0
                assert front.service.handshakes == 0
                assert front.of(InternalError) == []
        finally:
            self.check(mta)

    def check(self, mta: Mta) -> None:
        """INV-01, INV-02."""
        taken = Counter(mta.messages)
        assert taken.keys() <= set(self.completed), "a message was completed that the client did not complete"
        assert set(self.promised) <= taken.keys(), "a promise that the MTA did not give"
        assert all(number == 1 for number in taken.values()), "a message was sent twice"


async def script(line: bytes) -> bytes | None:
    """AUTH LOGIN in one round, and the words of a promise."""
    if line == b"EOD" or line.endswith(b" LAST"):
        return QUEUED
    return {b"AUTH LOGIN": b"334 VXNlcm5hbWU6", b"dXNlcg==": b"235 2.7.0 Ok"}.get(line)


FULL = (*OFFER, b"CHUNKING", b"AUTH LOGIN")
STORIES = {
    "secured": (FULL, Story.secured),
    "in_clear": (FULL, Story.in_clear),
    "lock_step": (tuple(word for word in FULL if word != b"PIPELINING"), Story.in_clear),
}


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("fault", list(Fault))
async def test_fault_at_every_wait(tmp_path: Path, fault: Fault, name: str) -> None:
    """INV-01, INV-02, OUT-09, OUT-20."""
    offer, part = STORIES[name]
    current = Story()

    async def story() -> None:
        nonlocal current
        current = Story()
        await current.run(tmp_path, offer, partial(part, current))

    waits = await at_every_wait(story, fault, concerns=lambda wire: current.concerns(wire))
    assert waits > 10
    assert current.promised == current.completed != []  # the last run had no fault


@pytest.mark.parametrize("name", STORIES)
async def test_drain_at_every_wait(tmp_path: Path, name: str) -> None:
    """SMTP-18, OUT-20: what is under way is finished, and nobody is left."""
    offer, part = STORIES[name]
    finished: set[int] = set()
    for n in count(1):
        one, waits = Story(), 0

        async with trio.open_nursery() as nursery:

            def concerns(wire: Wire, n: int = n, one: Story = one, nursery: trio.Nursery = nursery) -> bool:
                nonlocal waits
                if one.concerns(wire):
                    waits += 1
                    if waits == n and one.front is not None:
                        nursery.start_soon(one.front.sessions.drain, 30.0)
                return False

            before = open_descriptors()
            with NthWait(Fault.CANCEL, 0, concerns).installed(), trio.fail_after(20):
                await one.run(tmp_path, offer, partial(part, one))
            assert open_descriptors() == before
        assert one.completed == one.promised
        finished.add(len(one.promised))
        if waits < n:
            break
    assert n > 10
    assert 0 in finished
