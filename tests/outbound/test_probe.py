"""What does `probe` say?  The same verdicts as a delivery, and no mail."""

from dataclasses import replace

from smtpguard.dns.destinations import Family
from smtpguard.names import Domain
from smtpguard.net.connect import AddressRules
from smtpguard.outbound.probe import probe
from smtpguard.outbound.routes import Routes, parse_next_hop
from smtpguard.outbound.settings import OutboundListener
from tests.outbound.scripted import open_world

A = "127.0.0.2"
LISTENER = OutboundListener("test", (), "lmtp", Domain("mail.s.example"), Family.BOTH)


async def test_a_route_leads_to_private_addresses_as_it_does_for_mail() -> None:
    """MX-16, DESIGN §6: what a `[[route]]` names may be dialled; nothing else of this host's network."""
    async with open_world(change=lambda settings: replace(settings, addresses=AddressRules())) as world:
        (host,) = await world.domain("a.example", A)
        report = await probe(Domain("a.example"), world.services, world.settings, LISTENER)
        assert report.reason == "route/forbidden-address"
        for hop in (f"[{A}]:{world.port}", f"[mx1.a.example]:{world.port}", f"a.example:{world.port}"):
            routes = Routes({"b.example": parse_next_hop(hop, world.port)}, world.port)
            settings = replace(world.settings, routes=routes)
            report = await probe(Domain("b.example"), world.services, settings, LISTENER)
            assert report.verdict == "deliver", report
        assert not host.told("MAIL")
