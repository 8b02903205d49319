"""Which host is tried, in which order, under which name, and what it is told before TLS (CONFORMANCE §B7, §B9)."""

import ssl
from pathlib import Path

import pytest
import trio

from smtpguard.events import Delivered, HostOpened, HostSkipped, InternalError
from smtpguard.names import Domain
from smtpguard.sandbox.behaviour import Behaviour, Stage
from smtpguard.sandbox.internet import Attack, Publication, Site
from tests.support.rig import MESSAGE, open_rig
from tests.support.told import MX, MX2, D, opened, outcome, skipped

SITE = Site(D, Publication.NOTHING)


@pytest.mark.parametrize(
    ("preference", "expected", "tried"),
    [
        (5, "554 5.4.6 [route/loop]", []),
        (10, "554 5.4.6 [route/loop]", []),
        (15, "451 4.4.1 [host/connect] mx.victim.example", [MX]),
        (25, "delivered", [MX, MX2]),
    ],
    ids=["best", "beside the best", "middle", "worst"],
)
async def test_own_name_among_the_mail_hosts(tmp_path: Path, preference: int, expected: str, tried: list[str]) -> None:
    """MX-08, OUT-05: our own name goes, with its preference level and all that is worse; better ones are tried."""
    sites = [SITE, Site("self.example", Publication.NOTHING)]
    async with open_rig(tmp_path, sites, outbound='own_names = ["mx.self.example"]') as rig:
        await rig.internet.add_mx(D, MX2)
        records = [f"10 {MX}.", f"20 {MX2}.", f"{preference} mx.self.example."]
        rig.internet.names.put(D, "MX", *records, ttl=0)
        await rig.internet.hosts[D].mx.stop()
        assert expected in await outcome(rig)
        assert [one[0] for one in skipped(rig)] + [one[0] for one in opened(rig)] == tried
        assert not rig.internet.hosts["self.example"].mx.sessions


async def test_second_address_of_a_host(tmp_path: Path) -> None:
    """MX-07: the address that refuses is passed over, the other one takes the mail."""
    async with open_rig(tmp_path, [SITE]) as rig:
        host = rig.internet.hosts[D]
        rig.internet.names.put(MX, "A", host.address, *(f"127.10.1.{n}" for n in (251, 252, 253, 254)), ttl=0)
        assert await outcome(rig) == "delivered"
        refusing = [event.address for event in rig.of(HostSkipped)]
        assert all(event.reason == "host/connect" for event in rig.of(HostSkipped))
        assert len(refusing) == len(set(refusing)) <= 4
        assert rig.of(Delivered)[0].address == host.address


async def test_no_address_at_all(tmp_path: Path) -> None:
    """OUT-03: DNS says, and may be believed, that the only mail host has no address."""
    async with open_rig(tmp_path, [SITE]) as rig:
        rig.internet.names.put(MX, "A", ttl=0)
        assert "550 5.4.4 [route/no-usable-mx]" in await outcome(rig)


async def test_address_literal(tmp_path: Path) -> None:
    """MX-14, DANE-27: mail to an address goes there, without any MX, TLSA or MTA-STS look-up."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_AND_STS)]) as rig:
        rig.internet.hosts[D].mx.credential = rig.internet.certificates.leaf(None, ["anybody.example"])
        asked = len(rig.internet.name_server.queries)
        sent = await rig.send("a@[127.10.1.1]")
        assert sent.is_delivered, sent
        assert rig.internet.hosts[D].mx.messages[0].recipients == ("a@[127.10.1.1]",)
        assert opened(rig) == [("[127.10.1.1]", "may", "no-policy-found", "")]
        assert len(rig.internet.name_server.queries) == asked
        assert not rig.internet.hosts[D].mx.sessions[0].sni


@pytest.mark.parametrize(
    ("literals", "recipient", "expected"),
    [
        ("deliver", "a@[IPv6:::1]", "451 4.4.1 [route/forbidden-address] ::1[::1]:"),
        ("deliver", "a@[192.0.2]", "550 5.1.3 [route/bad-domain]"),
        ("refuse", "a@[127.10.1.1]", "550 5.1.2 [route/literal] 127.10.1.1:"),
        ("refuse", "a@[IPv6:2001:db8::1]", "550 5.1.2 [route/literal] 2001:db8::1:"),
    ],
)
async def test_address_literals_that_go_nowhere(tmp_path: Path, literals: str, recipient: str, expected: str) -> None:
    """MX-14: both forms are read; loopback is never dialled by itself, and the configuration may refuse them all."""
    async with open_rig(tmp_path, [SITE], outbound=f'literals = "{literals}"') as rig:
        sent = await rig.send(recipient)
        assert str(sent.last_reply).startswith(expected), sent.last_reply
        assert not rig.internet.hosts[D].mx.sessions


async def test_domain_in_unicode(tmp_path: Path) -> None:
    """MX-15: DNS, policy, SNI and certificate see the A-labels; the host gets the address as it was written."""
    ascii_domain = "xn--bcher-kva.example"
    async with open_rig(tmp_path, [Site(ascii_domain, Publication.STS_ENFORCE)]) as rig:
        client = await rig.client()
        assert (await client.command("MAIL FROM:<s@s.example> SMTPUTF8")).code == 250
        reply = await client.command("RCPT TO:<jos\u00e9@b\u00fccher.example>")
        assert reply.code == 250, reply
        assert (await client.command("DATA")).code == 354
        await client.conversation.send(MESSAGE + b".\r\n")
        assert (await client.reply()).code == 250
        await client.quit()
        mx = rig.internet.hosts[ascii_domain].mx
        assert mx.messages[0].recipients == ("jos\u00e9@b\u00fccher.example",)
        assert mx.sessions[0].sni == f"mx.{ascii_domain}"
        assert opened(rig) == [(f"mx.{ascii_domain}", "sts", "sts", "")]
        assert rig.of(HostOpened)[0].policy_domain == ascii_domain


async def test_the_name_in_ehlo(tmp_path: Path) -> None:
    """SMTP-26: a listener has its own name and source address; a client may call itself what it likes."""
    async with open_rig(tmp_path, [SITE]) as rig:
        lmtp, smtp = (listener for listener in rig.settings.listeners)
        assert (lmtp.ehlo, smtp.ehlo) == (Domain("mail.sender.example"), Domain("second.sender.example"))
        for protocol, name in (("lmtp", "mail.sender.example"), ("smtp", "second.sender.example")):
            client = await rig.client(protocol)
            assert (await client.hello("[192.0.2.99]", "LHLO" if protocol == "lmtp" else "EHLO")).is_positive
            sent = await client.send("s@s.example", [f"a@{D}"], MESSAGE, lmtp=protocol == "lmtp")
            assert sent.is_delivered
            await client.quit()
            session = rig.internet.hosts[D].mx.sessions[-1]
            assert {line for line in session.commands if line.startswith("EHLO")} == {f"EHLO {name}"}


async def test_starttls_stands_alone(tmp_path: Path) -> None:
    """STLS-08: nothing follows STARTTLS before its reply, though the host offers PIPELINING."""
    async with open_rig(tmp_path, [SITE]) as rig:
        gate = trio.Event()
        rig.behave(D, held={Stage.STARTTLS: gate})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.send, f"a@{D}")
            mx = rig.internet.hosts[D].mx
            with trio.fail_after(10):
                while not (mx.sessions and mx.sessions[0].clear.endswith(b"STARTTLS\r\n")):
                    await trio.sleep(0.01)
            await trio.sleep(0.05)
            assert mx.sessions[0].clear.endswith(b"\r\nSTARTTLS\r\n")
            gate.set()
        assert mx.sessions[0].injected_by_client == b""
        assert len(mx.messages) == 1


async def test_starttls_inside_tls(tmp_path: Path) -> None:
    """STLS-16: a host that offers STARTTLS again inside TLS is not taken at its word, and it is told."""
    async with open_rig(tmp_path, [SITE]) as rig:
        rig.behave(D, extensions=(*Behaviour().extensions, "STARTTLS"))
        assert await outcome(rig) == "delivered"
        (session,) = rig.internet.hosts[D].mx.sessions
        assert session.commands.count("STARTTLS") == 1
        assert b"STARTTLS" not in session.inside_tls
        assert rig.of(HostOpened)[0].detail == "offers STARTTLS inside TLS, ignored"


@pytest.mark.parametrize("change", ["TLSA", "MX", "certificate"])
async def test_policy_changes_in_mid_transaction(tmp_path: Path, change: str) -> None:
    """INV-06: the verdict of a transaction stands; the next one is judged by what is published then."""
    async with open_rig(tmp_path, [Site(D, Publication.DANE_EE)]) as rig:
        client = await rig.client()
        await client.command("MAIL FROM:<s@s.example>")
        assert (await client.command(f"RCPT TO:<a@{D}>")).code == 250
        internet = rig.internet
        match change:
            case "TLSA":
                internet.names.put(internet.tlsa_name(MX), "TLSA", "3 1 1 " + "00" * 32, ttl=0)
                reason = "dane/no-match"
            case "MX":
                await internet.attack(D, Attack.FORGE_MX)
                reason = "dns/bogus"
            case _:
                internet.hosts[D].mx.credential = internet.certificates.leaf(None, [MX])
                reason = "dane/no-match"
        assert (await client.command(f"RCPT TO:<b@{D}>")).code == 250
        assert (await client.command("DATA")).code == 354
        await client.conversation.send(MESSAGE + b".\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 250]
        await client.quit()
        if change == "certificate":
            rig.engine.pool.close()  # the idle connection showed the old one, which the records still name
        assert f"[{reason}]" in await outcome(rig)
        assert [event.recipients for event in rig.of(Delivered)] == [2]
        assert rig.of(Delivered)[0].policy == "dane"
        assert [one[1] for one in skipped(rig)] == [reason]
        assert not rig.of(InternalError)


@pytest.mark.parametrize("level", ["auto", "may"])
async def test_a_lowest_version_never_leads_to_clear_text(tmp_path: Path, level: str) -> None:
    """PF-13, CH-26: where TLS is not required, the mail goes by the TLS the host has."""
    rule = f'[[policy]]\ndomain = "{D}"\nlevel = "{level}"\nmin_tls = "1.3"\n'
    async with open_rig(tmp_path, [SITE], extra=rule) as rig:
        rig.behave(D, maximum_tls=ssl.TLSVersion.TLSv1_2)
        assert await outcome(rig) == "delivered"
        assert rig.of(Delivered)[0].tls_version == "1.2"
        assert rig.no_clear_mail(D)
