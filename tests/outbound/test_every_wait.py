"""INV-01, INV-02: a fault at each wait of a delivery, a fan-out and a reused connection (cancel, interrupt, cut).

After each: no 2xx that the host did not give, no message twice, no slot, session or descriptor left, no bug.
"""

from pathlib import Path

import pytest
import trio

from smtpguard.events import Event, InternalError
from smtpguard.sandbox.client import Sent
from smtpguard.sandbox.conversation import Lost
from smtpguard.sandbox.internet import Publication, Site
from tests.support.rig import MESSAGE, Rig, open_rig
from tests.support.waits import Fault, at_every_wait

A, B = (Site(f"{name}.example", Publication.DANE_EE) for name in "ab")


async def send(rig: Rig, sent: list[tuple[tuple[str, ...], Sent]], *recipients: str) -> None:
    """One message; a lost session is what the fault may do."""
    client = None
    try:
        client = await rig.client("lmtp")
        sent.append((recipients, await client.send("s@s.example", recipients, MESSAGE, lmtp=True)))
        await client.quit()
    except Lost:
        pass
    finally:
        if client is not None:
            client.conversation.close()


async def give_up(rig: Rig) -> None:
    """RCPT, then RSET: the MTA only asked."""
    client = None
    try:
        client = await rig.client("lmtp")
        for command in ("MAIL FROM:<s@s.example>", "RCPT TO:<x@a.example>", "RSET", "QUIT"):
            await client.command(command)
    except Lost:
        pass
    finally:
        if client is not None:
            client.conversation.close()


async def check(rig: Rig, sent: list[tuple[tuple[str, ...], Sent]]) -> None:
    """What must hold whatever happened."""
    with trio.fail_after(5):
        while len(rig.sessions):
            await trio.sleep(0.005)
    promised = dict.fromkeys(rig.internet.hosts, 0)
    for recipients, one in sent:
        accepted = [name for name, reply in zip(recipients, one.recipients, strict=False) if reply.is_positive]
        for name, end in zip(accepted, one.ends, strict=False):
            promised[name.partition("@")[2]] += end.is_positive
    for domain, count in promised.items():
        received = len(rig.internet.hosts[domain].mx.messages)
        assert count <= received <= 2, (domain, count, received)
    assert repr(rig.engine.services.slots) == "<DestinationSlots connections={} walks={}>"
    bugs: list[Event] = [event for event in rig.events if isinstance(event, InternalError)]
    assert not bugs


@pytest.mark.parametrize("fault", list(Fault))
async def test_fault_at_every_wait(tmp_path: Path, fault: Fault) -> None:
    """A fan-out to two hosts, then one of them again over the pooled connection."""

    async def story() -> None:
        async with open_rig(tmp_path, [A, B]) as rig:
            sent: list[tuple[tuple[str, ...], Sent]] = []
            await send(rig, sent, "x@a.example", "y@b.example")
            await send(rig, sent, "z@a.example")
            await give_up(rig)
            await check(rig, sent)

    waits = await at_every_wait(story, fault)
    assert waits > 10
