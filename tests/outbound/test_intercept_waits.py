"""INV-01, INV-02, INV-04: a fault at each wait of an intercepted session, from greeting to QUIT."""

from pathlib import Path

import pytest

from smtpguard.sandbox.client import Sent
from smtpguard.sandbox.conversation import Lost
from smtpguard.sandbox.internet import Publication, Site
from tests.outbound.test_every_wait import check
from tests.support.redirection import Redirection, open_redirection
from tests.support.rig import MESSAGE, open_rig
from tests.support.waits import Fault, at_every_wait

A, B = (Site(f"{name}.example", Publication.DANE_EE) for name in "ab")


async def send(there: Redirection, to: str, sent: list[tuple[tuple[str, ...], Sent]], *recipients: str) -> None:
    """One message to where the MX of domain `to` is; a 421 or a lost session is what the fault may do."""
    client = None
    try:
        client = await there.connect(there.mx(to))
        if (await client.reply()).code == 220:
            await client.hello("mta.example")
            sent.append((recipients, await client.send("s@s.example", recipients, MESSAGE)))
            await client.quit()
    except Lost:
        pass
    finally:
        if client is not None:
            client.conversation.close()


@pytest.mark.parametrize("fault", list(Fault))
async def test_fault_at_every_wait(tmp_path: Path, fault: Fault) -> None:
    """INV-01, INV-02, INV-04: a mail host of the domain, then an address that is not, rerouted."""

    async def story() -> None:
        async with open_rig(tmp_path, [A, B]) as rig, open_redirection(rig) as there:
            sent: list[tuple[tuple[str, ...], Sent]] = []
            await send(there, A.domain, sent, "x@a.example")
            await send(there, B.domain, sent, "y@a.example")
            await check(rig, sent)
            assert rig.no_clear_mail(A.domain)
            assert rig.no_clear_mail(B.domain)

    assert await at_every_wait(story, fault) > 10
