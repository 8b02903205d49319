"""Interception: the original destination speaks first, belongs to a mail host of the domain, or is not used.

(DESIGN §3; MX-17..19, CH-21, OUT-06.)  The sandbox's hosts, with real TLS; tests.support.redirection is the netfilter.
"""

import re
import socket
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trio
import trio.testing
from OpenSSL import SSL

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import (
    Delivered,
    DeliveryRefused,
    HostOpened,
    HostSkipped,
    Intercepted,
    InterceptedElsewhere,
    SessionClosed,
    Violation,
)
from smtpguard.names import parse_domain
from smtpguard.net.wire import Endpoint, Wire
from smtpguard.outbound.routes import parse_next_hop
from smtpguard.sandbox.behaviour import Behaviour, Stage
from smtpguard.sandbox.client import Client
from smtpguard.sandbox.internet import Attack, Publication, Site
from smtpguard.sandbox.policyhost import Page, policy_text
from tests.net.peers import server_context
from tests.support.mta import Mta
from tests.support.redirection import open_redirection
from tests.support.rig import MARKER, MESSAGE, Rig, open_rig

A = Site("a.example", Publication.DANE_EE)
B = Site("b.example", Publication.DANE_EE)
ENFORCE = Site("sts.example", Publication.STS_ENFORCE)
PLAIN = Site("plain.example", Publication.NOTHING)


async def send(client: Client, *recipients: str) -> list[str]:
    """One message, then QUIT: the replies to RCPT, and those to the end of data."""
    sent = await client.send("sender@sender.example", recipients, MESSAGE)
    await client.quit()
    return [str(reply) for reply in (*sent.recipients, *sent.ends)]


async def rcpt(client: Client, recipient: str) -> str:
    assert (await client.command("MAIL FROM:<s@sender.example>")).code == 250
    return str(await client.command(f"RCPT TO:<{recipient}>"))


def shown(reply: object) -> str:
    """A reply without what differs from run to run: the port and the decision id."""
    return re.sub(r"\b[0-9a-z]{8,}\.\d+\b", "ID", re.sub(r":\d{4,5}\b", ":PORT", str(reply)))


def commands(rig: Rig, domain: str) -> list[list[str]]:
    return [[line.split(" ")[0] for line in session.commands] for session in rig.internet.hosts[domain].mx.sessions]


def verdicts(rig: Rig) -> list[tuple[str, str]]:
    """The verdicts on original addresses, each with the host whose address it is."""
    return [(event.verdict, event.mx) for event in rig.events if isinstance(event, Intercepted)]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        return near, server.accept()[0]


async def until_ended(rig: Rig, domain: str) -> None:
    with trio.fail_after(5):
        while not all(session.ended for session in rig.internet.hosts[domain].mx.sessions):
            await trio.sleep(0.005)


def renumber(rig: Rig, name: str, addresses: Iterable[str]) -> None:
    """From now on DNS says that this host has these addresses."""
    rig.internet.names.put(name, "A", *addresses, ttl=0)


# -- the host that the MTA chose


async def test_verified_delivery_over_the_connection_that_greeted(tmp_path: Path) -> None:
    """MX-18, INV-04: the address is an MX host of the domain: its policy holds, and one connection does it all."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        client = await there.client(there.mx(A.domain))
        assert not client.offers("STARTTLS")
        assert "LIMITS RCPTMAX=1000" in client.extensions  # as many domains as one host serves (MX-19)
        assert [shown(reply) for reply in await send(client, "u@a.example")] == [
            "250 2.1.5 ok (mx.a.example[127.10.1.1]:PORT dane ID)",
            "250 2.0.0 queued (mx.a.example[127.10.1.1]:PORT dane ID)",
        ]
        (delivered,) = rig.of(Delivered)
        assert (delivered.mx, delivered.auth, delivered.recipients) == ("mx.a.example", "dane", 1)
        assert commands(rig, A.domain) == [["EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA"]]
        (session,) = rig.internet.hosts[A.domain].mx.sessions
        assert session.sni == "mx.a.example"
        assert rig.no_clear_mail(A.domain)
        assert verdicts(rig) == [("mapped", "mx.a.example")]
        assert rig.is_clean


async def test_our_greeting_follows_theirs(tmp_path: Path) -> None:
    """DESIGN §3: no 220 before the host has greeted and answered EHLO."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        for stage in (Stage.GREETING, Stage.EHLO):
            go = trio.Event()
            rig.behave(A.domain, held={stage: go})
            client = await there.connect(there.mx(A.domain))
            with trio.move_on_after(0.05) as scope:
                await client.reply()
            assert scope.cancelled_caught
            go.set()
            assert (await client.reply()).code == 220
            await client.quit()
        await until_ended(rig, A.domain)
        assert commands(rig, A.domain) == [["EHLO", "QUIT"]] * 2  # nothing is kept of a session without mail


@pytest.mark.parametrize(
    ("greeting", "name"),
    [
        ("220 {name} ESMTP", "mx.a.example"),
        ("220 MX.A.example. ready", "mx.a.example"),
        ("220 ***************", "[127.10.1.1]"),
        (("220-hello", "220 there"), "hello"),
        ("220", "[127.10.1.1]"),
    ],
)
async def test_the_mta_hears_the_name_of_the_host_it_called(tmp_path: Path, greeting: str, name: str) -> None:
    """Our name is mostly the MTA's: greeted with it, Postfix would bounce the mail as a loop."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        rig.behave(A.domain, greeting=greeting)
        client = await there.connect(there.mx(A.domain))
        assert str(await client.reply()).startswith(f"220 {name} ")
        assert str(await client.hello("mta.example")).startswith(f"250 {name} ")
        await client.quit()


async def test_the_name_of_a_host_that_was_not_called(tmp_path: Path) -> None:
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        for address, name in (("10.7.7.7", "[10.7.7.7]"), ("fd00::7", "[IPv6:fd00::7]")):
            client = await there.connect(there.at(address))
            assert str(await client.reply()).startswith(f"220 {name} ")
            await client.quit()


@pytest.mark.parametrize(
    ("behaviour", "reply"),
    [
        (
            {"greeting": "554 5.7.1 go away"},
            (
                "421 4.4.1 [host/greeting] 127.10.1.1[127.10.1.1]:PORT: the host refused at its greeting; "
                "5.7.1 go away (id ID)"
            ),
        ),
        (
            {"ehlo": "421 4.3.2 later"},
            "421 4.4.1 [host/ehlo] 127.10.1.1[127.10.1.1]:PORT: EHLO was refused; 4.3.2 later (id ID)",
        ),
        (
            {"drops": frozenset({Stage.GREETING})},
            "421 4.4.1 [host/no-greeting] 127.10.1.1[127.10.1.1]:PORT: no greeting; the connection was closed (id ID)",
        ),
        (
            {"greeting": "220 mail.sender.example ESMTP"},
            (
                "421 4.4.6 [route/loop] 127.10.1.1[127.10.1.1]:PORT: the best mail host is this host: mail would loop; "
                "its greeting is ours: mail.sender.example (id ID)"
            ),
        ),
    ],
    ids=["greeting", "ehlo", "silent", "loop"],
)
async def test_a_host_that_cannot_serve_is_the_mta_s_to_replace(
    tmp_path: Path, behaviour: dict[str, object], reply: str
) -> None:
    """OUT-06: `421 4.4.1` instead of a greeting, so that the MTA tries its next mail host at once."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        rig.behave(A.domain, **behaviour)
        client = await there.connect(there.mx(A.domain))
        assert shown(await client.reply()) == reply
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await client.reply()
        (refused,) = rig.of(DeliveryRefused)
        assert (refused.domain, refused.stage, refused.recipients) == ("[127.10.1.1]", "greeting", 0)
        assert shown(refused.reply) == reply
        client.conversation.close()


@pytest.mark.parametrize("stage", [Stage.GREETING, Stage.EHLO])
async def test_an_mta_that_leaves_before_the_greeting(tmp_path: Path, stage: Stage) -> None:
    """SMTP-17: the host's silence is waited for only as long as somebody waits for us."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        go = trio.Event()
        rig.behave(A.domain, held={stage: go})
        client = await there.connect(there.mx(A.domain))
        with trio.fail_after(5):
            while not rig.internet.hosts[A.domain].mx.sessions:
                await trio.sleep(0.005)
        await trio.sleep(0.05)
        client.conversation.close()
        with trio.fail_after(2):
            while not rig.of(SessionClosed):
                await trio.sleep(0.005)
        assert rig.of(SessionClosed)[0].cause == "lost"
        go.set()
        await until_ended(rig, A.domain)
        assert not rig.of(DeliveryRefused)


async def test_an_mta_that_talks_before_the_greeting(tmp_path: Path) -> None:
    """EXT-24: that is no leaving; what it said is judged when it is greeted."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        go = trio.Event()
        rig.behave(A.domain, held={Stage.GREETING: go})
        client = await there.connect(there.mx(A.domain))
        await client.conversation.send(b"EHLO mta.example\r\n")
        await trio.sleep(0.05)
        go.set()
        assert (await client.reply()).code == 220
        client.conversation.close()


async def test_an_unreachable_host_is_remembered(tmp_path: Path) -> None:
    """OUT-06: the second MTA hears at once what the first found out."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        nobody = there.at("127.10.1.77")
        for word in ("host/connect", "host/remembered"):
            client = await there.connect(nobody)
            assert f"421 4.4.1 [{word}] 127.10.1.77[127.10.1.77]:" in str(await client.reply())
            client.conversation.close()


async def test_a_host_that_hung_up_meanwhile_is_called_again(tmp_path: Path) -> None:
    """A connection that greeted may have died before the first recipient came: one fresh one to the same host."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        client = await there.client(there.mx(A.domain))
        rig.internet.hosts[A.domain].mx.sessions[0].conversation.close()
        await trio.testing.wait_all_tasks_blocked()
        assert [reply[:3] for reply in await send(client, "u@a.example")] == ["250", "250"]
        assert len(rig.internet.hosts[A.domain].mx.sessions) == 2
        assert rig.of(Delivered)[0].auth == "dane"


async def test_a_second_transaction_of_the_session(tmp_path: Path) -> None:
    """The MTA keeps its connection: the host's is kept too."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        client = await there.client(there.mx(A.domain))
        for _ in range(2):
            assert (await client.send("s@sender.example", ["u@a.example"], MESSAGE)).is_delivered
        await client.quit()
        assert commands(rig, A.domain)[0].count("STARTTLS") == 1
        assert len(commands(rig, A.domain)) == 1


async def test_a_client_that_wants_tls_gets_it_from_a_certificate(tmp_path: Path) -> None:
    """For an MTA that is set to `encrypt`: STARTTLS is offered where the listener has a certificate."""
    tls = server_context(SSL.TLS1_3_VERSION)
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig, tls=tls) as there:
        client = await there.client(there.mx(A.domain))
        assert client.offers("STARTTLS")
        await client.quit()


# -- attacks


@pytest.mark.parametrize(
    ("site", "attack", "reply"),
    [
        (
            A, Attack.STRIP_STARTTLS,
            (
                "451 4.7.4 [tls/no-starttls] mx.a.example[127.10.1.1]:PORT: TLS is required, STARTTLS is not offered "
                "(id ID)"
            ),
        ),
        (
            A, Attack.SWAP_CERTIFICATE,
            "451 4.7.5 [dane/no-match] mx.a.example[127.10.1.1]:PORT: no TLSA record matches the certificate",
        ),
        (
            ENFORCE, Attack.STRIP_STARTTLS,
            (
                "451 4.7.4 [sts/no-starttls] mx.sts.example[127.10.1.1]:PORT: MTA-STS requires TLS, STARTTLS is not "
                "available (id ID)"
            ),
        ),
        (
            ENFORCE, Attack.SWAP_CERTIFICATE,
            "451 4.7.5 [sts/untrusted] mx.sts.example[127.10.1.1]:PORT: the certificate is not trusted",
        ),
        (A, Attack.BOGUS_TLSA, "451 4.7.5 [dane/tlsa-bogus] mx.a.example: DNSSEC validation of the TLSA records"),
        (A, Attack.FORGE_MX, "451 4.4.3 [dns/bogus] a.example: DNSSEC validation failed"),
    ],
    ids=lambda value: value.value if isinstance(value, Attack) else "",
)  # fmt: skip
async def test_attacks_at_the_address(tmp_path: Path, site: Site, attack: Attack, reply: str) -> None:
    """INV-04, AF-01, AF-04: verdict at RCPT, nothing of the mail in clear, and nothing at the attacker's."""
    async with open_rig(tmp_path, [site]) as rig, open_redirection(rig) as there:
        await rig.internet.attack(site.domain, attack)
        client = await there.client(there.mx(site.domain))
        assert shown(await rcpt(client, f"u@{site.domain}")).startswith(reply)
        assert (await client.command("DATA")).code == 554  # nobody was accepted (EXT-21)
        await client.quit()
        assert rig.no_clear_mail(site.domain)
        assert not rig.of(Delivered)
        assert rig.is_clean


async def test_the_mta_was_lied_to(tmp_path: Path) -> None:
    """MX-18, INV-04: a forged answer sent the MTA to a host whose certificate is valid for itself."""
    async with open_rig(tmp_path, [A, B]) as rig, open_redirection(rig) as there:
        client = await there.client(there.mx(B.domain))
        expected = "250 2.1.5 ok (mx.a.example[127.10.1.1]:PORT dane ID)"
        assert shown(await rcpt(client, "u@a.example")) == expected
        await until_ended(rig, B.domain)  # at once: nothing will be said to that host
        assert commands(rig, B.domain) == [["EHLO", "QUIT"]]
        await client.command("RSET")
        assert shown((await send(client, "u@a.example"))[-1]) == (
            "250 2.0.0 queued (mx.a.example[127.10.1.1]:PORT dane ID)"
        )
        event = rig.of(InterceptedElsewhere)[-1]
        assert (event.verdict, event.domain, event.original) == ("rerouted", "a.example", str(there.mx(B.domain)))
        assert (event.name, event.severity) == ("intercepted", "info")
        assert event.id == rig.of(Delivered)[0].id
        assert rig.no_clear_mail(A.domain)


# -- on from there


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"offers_starttls": False}, "tls/no-starttls"),
        ({"rcpt": "450 4.2.0 later"}, ""),
        ({"mail": "451 4.3.0 not now"}, ""),
        ({"drops": frozenset({Stage.STARTTLS})}, "tls/handshake"),
    ],
    ids=["no STARTTLS", "RCPT 450", "MAIL 451", "lost"],
)
async def test_a_host_scoped_failure_goes_on_with_our_own_walk(
    tmp_path: Path, behaviour: dict[str, object], reason: str
) -> None:
    """DESIGN §3, law 5: the MTA's host fails, the domain's others are tried, and it is not tried twice."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        second = await rig.internet.add_mx(A.domain, "mx2.a.example")
        rig.behave(A.domain, **behaviour)
        client = await there.client(there.mx(A.domain))
        replies = await send(client, "u@a.example")
        assert shown(replies[-1]) == "250 2.0.0 queued (mx2.a.example[127.10.1.11]:PORT dane ID)"
        assert len(rig.internet.hosts[A.domain].mx.sessions) == 1
        assert MARKER in second.messages[0].content
        assert [event.reason for event in rig.of(HostSkipped)] == ([reason] if reason else [])
        assert rig.no_clear_mail(A.domain)
        assert rig.is_clean


async def test_the_host_the_mta_chose_comes_first(tmp_path: Path) -> None:
    """The MTA passed the better host over, having tried it: so do we, until the chosen one fails."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        second = await rig.internet.add_mx(A.domain, "mx2.a.example")
        client = await there.client(there.at("127.10.1.11"))
        assert "mx2.a.example[127.10.1.11]" in (await send(client, "u@a.example"))[-1]
        second.behaviour = replace(Behaviour(), offers_starttls=False)
        client = await there.client(there.at("127.10.1.11"))
        assert "mx.a.example[127.10.1.1]" in (await send(client, "v@a.example"))[-1]


async def test_a_host_that_the_policy_does_not_list(tmp_path: Path) -> None:
    """MX-18, STS-26: the address is an MX host's, and the domain's policy does not allow that host."""
    async with open_rig(tmp_path, [ENFORCE]) as rig, open_redirection(rig) as there:
        page = rig.internet.policy_hosts.pages["mta-sts.sts.example"]
        second = await rig.internet.add_mx(ENFORCE.domain, "mx2.sts.example")
        rig.internet.publish_policy(ENFORCE.domain, page, "2")  # as before: the second host is not listed
        client = await there.client(there.at("127.10.1.11"))
        assert "(mx.sts.example[127.10.1.1]:" in (await send(client, "u@sts.example"))[-1]
        assert verdicts(rig) == [("mapped", "mx2.sts.example")]
        assert [session.commands for session in second.sessions] == [["EHLO second.sender.example", "QUIT"]]


@pytest.mark.parametrize("recipient", ["u@a.example", "u@[127.10.1.1]"])
async def test_the_only_host_has_all_the_time(tmp_path: Path, recipient: str) -> None:
    """TO-04: half of the budget is for a host that others come after; this one is slow, and there is no other."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        rig.budget(rcpt=1.5)
        go = trio.Event()
        rig.behave(A.domain, held={Stage.RCPT: go})
        client = await there.client(there.mx(A.domain))
        async with trio.open_nursery() as nursery:
            replies: list[str] = []

            async def ask() -> None:
                replies.append(await rcpt(client, recipient))

            nursery.start_soon(ask)
            await trio.sleep(1.1)
            go.set()
        assert replies[0].startswith("250 2.1.5 ok")
        await client.quit()


# -- whose the address is


async def test_a_day_s_memory(tmp_path: Path) -> None:
    """MX-18: the MTA's cache is older than ours: what our own look-ups saw within a day counts, later no more."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        host, mx_name = rig.internet.hosts[A.domain], "mx.a.example"
        await send(await there.client(there.mx(A.domain)), "u@a.example")
        renumber(rig, mx_name, ["127.10.1.77"])
        assert (await send(await there.client(there.mx(A.domain)), "u@a.example"))[-1].startswith("250")
        assert len(host.mx.messages) == 2
        rig.engine.services.addresses.saw(
            parse_domain(mx_name), [ip_address(host.address)], trio.current_time() - 86_401
        )
        client = await there.client(there.mx(A.domain))
        assert "[host/connect] mx.a.example[127.10.1.77]" in (await send(client, "u@a.example"))[0]
        assert verdicts(rig) == [("mapped", mx_name), ("remembered", mx_name), ("rerouted", "")]
        assert [event.auth for event in rig.of(Delivered)] == ["dane", "dane"]
        assert rig.no_clear_mail(A.domain)


async def test_the_memory_is_of_hosts_the_domain_still_has(tmp_path: Path) -> None:
    """MX-18: an address that was once a mail host's means nothing where that host is the domain's no more."""
    async with open_rig(tmp_path, [A, B]) as rig, open_redirection(rig) as there:
        await send(await there.client(there.mx(A.domain)), "u@a.example")
        rig.internet.names.put("a.example", "MX", "10 mx.b.example.", ttl=0)
        client = await there.client(there.mx(A.domain))
        assert "(mx.b.example[127.10.2.1]:" in (await send(client, "u@a.example"))[-1]
        assert verdicts(rig) == [("mapped", "mx.a.example"), ("rerouted", "")]


async def test_ourselves_among_the_mail_hosts(tmp_path: Path) -> None:
    """MX-08: the MTA passed our own better name over, and would send in a circle."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        rig.internet.names.put("a.example", "MX", "5 mail.sender.example.", "10 mx.a.example.", ttl=0)
        client = await there.client(there.mx(A.domain))
        assert shown(await rcpt(client, "u@a.example")).startswith("554 5.4.6 [route/loop] mail.sender.example:")
        await client.quit()


async def test_a_private_address_that_is_nobody_s(tmp_path: Path) -> None:
    """MX-18, CH-21: not dialled, greeted by ourselves, and refused at RCPT with the way out."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        client = await there.client(there.at("10.7.7.7"))
        assert shown(await rcpt(client, "u@a.example")) == (
            "451 4.7.5 [intercept/unmapped] 10.7.7.7:PORT: no mail host of the domain has the address the MTA "
            "connected to; is not a global address (id ID)"
        )
        await client.quit()
        assert verdicts(rig) == [("refused", "")]
        (refused,) = rig.of(DeliveryRefused)
        assert (refused.domain, refused.reason, refused.stage) == ("a.example", "intercept/unmapped", "rcpt")
        assert commands(rig, A.domain) == []


async def test_a_private_address_that_dns_gives_is_forbidden_all_the_same(tmp_path: Path) -> None:
    """DESIGN §6: what is never dialled is not dialled for an MX record's sake; other hosts are."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        rig.internet.names.put("a.example", "MX", "5 inside.a.example.", "10 mx.a.example.", ttl=0)
        renumber(rig, "inside.a.example", ["10.7.7.7"])
        client = await there.client(there.at("10.7.7.7"))
        assert "(mx.a.example[127.10.1.1]:" in (await send(client, "u@a.example"))[-1]
        assert [event.reason for event in rig.of(HostSkipped)] == ["route/forbidden-address"]


async def test_another_port_is_no_mail_host_s(tmp_path: Path) -> None:
    """Port 25 is routing; a submission service is not to be replaced by the domain's MX hosts."""
    async with trio.open_nursery() as nursery, open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        submission = Mta()
        await submission.start(nursery)
        client = await there.client(there.at("127.0.0.1", submission.port))
        assert (await rcpt(client, "u@a.example")).startswith("451 4.7.5 [intercept/unmapped] 127.0.0.1:")
        await client.quit()
        assert commands(rig, A.domain) == []
        nursery.cancel_scope.cancel()


async def test_intercept_direct(tmp_path: Path) -> None:
    """MX-18: a relay that the operator named, for a domain that DNS does not know or gives to others."""
    async with open_rig(tmp_path, [A, PLAIN]) as rig, open_redirection(rig, direct=("127.10.2.1/32",)) as there:
        relay = there.mx(PLAIN.domain)
        for domain in ("nowhere.example", "a.example"):
            client = await there.client(relay)
            assert [shown(reply) for reply in await send(client, f"u@{domain}")] == [
                "250 2.1.5 ok (127.10.2.1[127.10.2.1]:PORT may ID)",
                "250 2.0.0 queued (127.10.2.1[127.10.2.1]:PORT may ID)",
            ]
        assert verdicts(rig) == [("direct", ""), ("direct", "")]
        assert commands(rig, A.domain) == []
        assert [event.domain for event in rig.of(Delivered)] == ["nowhere.example", "a.example"]
        client = await there.client(relay)  # and where it is a mail host of the domain, that domain's policy holds
        assert "mx.plain.example[" in (await send(client, "u@plain.example"))[-1]
        assert verdicts(rig)[2] == ("mapped", "mx.plain.example")


async def test_intercept_direct_never_for_lack_of_an_answer(tmp_path: Path) -> None:
    """INV-05: while DNS fails it is not known whose the address is, and mail waits."""
    async with open_rig(tmp_path, [A, PLAIN]) as rig, open_redirection(rig, direct=("127.10.2.1/32",)) as there:
        await rig.internet.attack(A.domain, Attack.FORGE_MX)  # bogus
        client = await there.client(there.mx(PLAIN.domain))
        assert shown(await rcpt(client, "u@a.example")).startswith("451 4.4.3 [dns/bogus] a.example:")
        await client.quit()
        await until_ended(rig, PLAIN.domain)
        assert commands(rig, PLAIN.domain) == [["EHLO", "QUIT"]]


async def test_intercept_direct_keeps_the_rule_of_the_domain(tmp_path: Path) -> None:
    """A `[[policy]]` for the recipient's domain holds at the relay too, and there is no way around the relay."""
    rule = '[[policy]]\ndomain = "a.example"\nlevel = "encrypt"\n'
    async with (
        open_rig(tmp_path, [A, PLAIN], extra=rule) as rig,
        open_redirection(rig, direct=("127.10.2.1/32",)) as there,
    ):
        rig.behave(PLAIN.domain, offers_starttls=False)
        client = await there.client(there.mx(PLAIN.domain))
        assert shown(await rcpt(client, "u@a.example")).startswith(
            "451 4.7.4 [tls/no-starttls] 127.10.2.1[127.10.2.1]:"
        )
        await client.quit()
        assert commands(rig, A.domain) == []
        assert rig.no_clear_mail(PLAIN.domain)


async def test_intercept_direct_needs_no_other_leave(tmp_path: Path) -> None:
    """DESIGN §6: the operator named the network, and need not name it again in allow_destinations."""
    async with open_rig(tmp_path, [PLAIN]) as rig, open_redirection(rig, direct=("127.10.1.1/32",)) as there:
        addresses = replace(rig.engine.outbound.addresses, allow=())
        rig.engine.outbound = replace(rig.engine.outbound, addresses=addresses)
        client = await there.client(there.mx(PLAIN.domain))
        rig.internet.hosts[PLAIN.domain].mx.sessions[0].conversation.close()
        await trio.testing.wait_all_tasks_blocked()
        assert (await send(client, "u@nowhere.example"))[-1].startswith("250 2.0.0 queued (127.10.1.1[127.10.1.1]:")
        assert len(rig.internet.hosts[PLAIN.domain].mx.sessions) == 2


async def test_a_relay_that_is_a_mail_host_too_stays_allowed(tmp_path: Path) -> None:
    """Split DNS names the operator's own relay: each connection to it has the leave that the first had."""
    async with open_rig(tmp_path, [PLAIN]) as rig, open_redirection(rig, direct=("127.10.1.1/32",)) as there:
        addresses = replace(rig.engine.outbound.addresses, allow=())
        rig.engine.outbound = replace(rig.engine.outbound, addresses=addresses)
        client = await there.client(there.mx(PLAIN.domain))
        rig.internet.hosts[PLAIN.domain].mx.sessions[0].conversation.close()
        await trio.testing.wait_all_tasks_blocked()
        assert (await send(client, "u@plain.example"))[-1].startswith("250 2.0.0 queued (mx.plain.example[127.10.1.1]:")
        assert verdicts(rig) == [("mapped", "mx.plain.example")]
        assert len(rig.internet.hosts[PLAIN.domain].mx.sessions) == 2


async def test_many_domains_at_one_relay(tmp_path: Path) -> None:
    """MX-19: an MTA with a relayhost sends recipients of many domains in one transaction."""
    async with open_rig(tmp_path, [PLAIN]) as rig, open_redirection(rig, direct=("127.10.1.1/32",)) as there:
        client = await there.client(there.mx(PLAIN.domain))
        replies = await send(client, "u@one.example", "u@two.example", "u@three.example")
        assert [reply[:3] for reply in replies] == ["250"] * 4
        (delivered,) = rig.of(Delivered)
        assert delivered.recipients == 3
        assert len(rig.internet.hosts[PLAIN.domain].mx.messages) == 1


async def test_literals(tmp_path: Path) -> None:
    """MX-18, CH-21: a literal is its own mail host, and no other's."""
    async with open_rig(tmp_path, [A, PLAIN]) as rig, open_redirection(rig) as there:
        client = await there.client(there.mx(PLAIN.domain))
        assert (await send(client, "u@[127.10.2.1]"))[-1].startswith("250 2.0.0 queued (127.10.2.1[127.10.2.1]:")
        client = await there.client(there.mx(PLAIN.domain))
        assert shown(await rcpt(client, "u@[127.10.1.1]")) == (
            "451 4.7.5 [intercept/unmapped] 127.10.2.1:PORT: no mail host of the domain has the address the MTA "
            "connected to (id ID)"
        )
        await client.quit()
        assert verdicts(rig) == [("mapped", "[127.10.2.1]"), ("refused", "")]


async def test_a_route_of_ours_is_where_the_address_must_be(tmp_path: Path) -> None:
    """`[[route]]` says where the domain's mail goes: the MTA's connection is to there, or goes there."""
    async with open_rig(tmp_path, [A, B]) as rig, open_redirection(rig) as there:
        hop = parse_next_hop("[127.10.2.1]", rig.internet.mx_port)
        routes = replace(rig.engine.outbound.routes, table={"inner.example": hop})
        rig.engine.outbound = replace(rig.engine.outbound, routes=routes)
        for domain in (A.domain, B.domain):
            client = await there.client(there.mx(domain))
            assert "127.10.2.1[127.10.2.1]" in (await send(client, "u@inner.example"))[-1]
        assert [verdict for verdict, _ in verdicts(rig)] == ["rerouted", "mapped"]
        networks = (ip_network("127.10.1.1/32"),)  # the route is of this domain alone: it goes before
        there.intake.listener = replace(there.intake.listener, intercept_direct=networks)
        client = await there.client(there.mx(A.domain))
        assert "127.10.2.1[127.10.2.1]" in (await send(client, "u@inner.example"))[-1]


async def test_a_route_with_a_port_of_its_own(tmp_path: Path) -> None:
    """It is the port that the MTA called that says whether a mail host was meant, not the route's."""
    async with trio.open_nursery() as nursery, open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        relay = Mta()
        await relay.start(nursery)
        hop = parse_next_hop(f"[127.0.0.1]:{relay.port}", rig.internet.mx_port)
        routes = replace(rig.engine.outbound.routes, table={"inner.example": hop})
        rig.engine.outbound = replace(rig.engine.outbound, routes=routes)
        client = await there.client(there.mx(A.domain))
        assert f"127.0.0.1[127.0.0.1]:{relay.port} " in (await send(client, "u@inner.example"))[-1]
        assert len(relay.messages) == 1
        assert [verdict for verdict, _ in verdicts(rig)] == ["rerouted"]
        nursery.cancel_scope.cancel()


# -- several domains (MX-19)


def served_by_a(rig: Rig, domain: str) -> None:
    """The mail host of a.example serves this domain too."""
    rig.internet.names.put(domain, "MX", "10 mx.a.example.", ttl=0)


async def test_domains_of_one_host_share_a_transaction(tmp_path: Path) -> None:
    """MX-19: all map to the same host, and what it showed is enough for each."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        served_by_a(rig, "second.example")
        client = await there.client(there.mx(A.domain))
        assert [shown(reply) for reply in await send(client, "u@a.example", "v@second.example", "w@a.example")] == [
            "250 2.1.5 ok (mx.a.example[127.10.1.1]:PORT dane ID)",
            "250 2.1.5 ok (mx.a.example[127.10.1.1]:PORT dane ID)",
            "250 2.1.5 ok (mx.a.example[127.10.1.1]:PORT dane ID)",
            "250 2.0.0 queued (mx.a.example[127.10.1.1]:PORT dane ID)",
        ]
        assert commands(rig, A.domain)[0].count("DATA") == 1
        assert [(event.domain, event.reused) for event in rig.of(HostOpened)] == [
            ("a.example", False),
            ("second.example", True),
        ]
        assert rig.of(Delivered)[0].recipients == 3
        assert rig.is_clean


async def test_each_domain_s_policy_must_be_satisfied(tmp_path: Path) -> None:
    """MX-19: `enforce` of the second domain does not list the host: its recipient is refused, the other goes on."""
    async with open_rig(tmp_path, [ENFORCE]) as rig, open_redirection(rig) as there:
        rig.internet.names.put("second.example", "MX", "10 mx.sts.example.", ttl=0)
        rig.internet.publish_policy("second.example", Page(policy_text("enforce", "mx.elsewhere.example")))
        client = await there.client(there.mx(ENFORCE.domain))
        first, second, end = await send(client, "u@sts.example", "v@second.example")
        assert first.startswith("250")
        assert shown(second).startswith("451 4.7.5 [sts/mx] mx.sts.example: the MTA-STS policy does not list this MX")
        assert end.startswith("250")
        assert rig.of(Delivered)[0].recipients == 1
        assert [(event.domain, event.reason) for event in rig.of(HostSkipped)] == [("second.example", "sts/mx")]
        assert [event.domain for event in rig.of(DeliveryRefused)] == ["second.example"]


async def test_the_strictest_wins(tmp_path: Path) -> None:
    """MX-19, INV-04: what the first domain was content with does not do for the second."""
    rules = '[[policy]]\ndomain = "second.example"\nlevel = "encrypt"\n'
    async with open_rig(tmp_path, [PLAIN], extra=rules) as rig, open_redirection(rig) as there:
        rig.internet.names.put("second.example", "MX", "10 mx.plain.example.", ttl=0)
        rig.behave(PLAIN.domain, offers_starttls=False)
        client = await there.client(there.mx(PLAIN.domain))
        first, second, end = await send(client, "u@plain.example", "v@second.example")
        assert first.startswith("250 2.1.5 ok (mx.plain.example")
        assert shown(second).startswith("451 4.7.4 [tls/no-starttls] mx.plain.example[127.10.1.1]:PORT:")
        assert end.startswith("250")
        (session,) = rig.internet.hosts[PLAIN.domain].mx.sessions
        assert not any("v@second.example" in line for line in session.commands)


async def test_a_domain_of_another_host_is_for_another_transaction(tmp_path: Path) -> None:
    """MX-19, OUT-23."""
    async with open_rig(tmp_path, [A, B]) as rig, open_redirection(rig) as there:
        client = await there.client(there.mx(A.domain))
        first, second, end = await send(client, "u@a.example", "v@b.example")
        assert (first[:3], end[:3]) == ("250", "250")
        assert shown(second) == (
            "452 4.5.3 [session/other-next-hop] b.example: this recipient goes to another next hop; send it in another "
            "transaction (id ID)"
        )
        assert commands(rig, B.domain) == []


async def test_another_name_of_the_same_address_is_another_host(tmp_path: Path) -> None:
    """MX-19: each host is asked for its own certificate."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        rig.internet.names.put("second.example", "MX", "10 mx.second.example.", ttl=0)
        renumber(rig, "mx.second.example", ["127.10.1.1"])
        client = await there.client(there.mx(A.domain))
        first, second, _ = await send(client, "u@a.example", "v@second.example")
        assert (first[:3], second[:9]) == ("250", "452 4.5.3")


async def test_in_clear_by_the_rule_of_another_domain(tmp_path: Path) -> None:
    """MX-19: TLS was never tried, and the second domain would have it if it is offered."""
    rule = '[[policy]]\ndomain = "plain.example"\nlevel = "none"\n'
    async with open_rig(tmp_path, [PLAIN], extra=rule) as rig, open_redirection(rig) as there:
        rig.internet.names.put("second.example", "MX", "10 mx.plain.example.", ttl=0)
        client = await there.client(there.mx(PLAIN.domain))
        first, second, _ = await send(client, "u@plain.example", "v@second.example")
        assert (first[:3], second[:9]) == ("250", "452 4.5.3")
        client = await there.client(there.mx(PLAIN.domain))
        assert (await send(client, "v@second.example"))[-1].startswith("250")
        assert rig.of(Delivered)[-1].tls_version == "1.3"


# -- who may come


async def test_a_direct_connection_is_refused(tmp_path: Path) -> None:
    """MX-17: connect straight to the listener's port."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        client = await there.connect(None)
        assert shown(await client.reply()) == (
            "421 4.3.5 [intercept/not-redirected] this listener serves redirected connections only (id ID)"
        )
        client.conversation.close()
        (violation,) = rig.of(Violation)
        assert violation.kind == "not_redirected"


async def test_a_direct_connection_behind_tproxy(tmp_path: Path) -> None:
    """MX-17: there the socket's own address is the destination: our own listener's is none."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        for listener in (Endpoint(ip_address("192.0.2.9"), 10025), Endpoint(ip_address("0.0.0.0"), 10025)):
            addresses = replace(rig.engine.outbound.addresses, own_listeners=frozenset({listener}))
            rig.engine.outbound = replace(rig.engine.outbound, addresses=addresses)
            client = await there.connect(there.at("192.0.2.9", 10025))
            assert "421 4.3.5 [intercept/not-redirected] 192.0.2.9:10025:" in str(await client.reply())
            client.conversation.close()


async def test_our_own_connection_comes_back(tmp_path: Path) -> None:
    """MX-17: without an exemption for our user each connection would make another one, without end."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        client = await there.connect(Endpoint(ip_address("127.0.0.1"), there.port))
        assert "421 4.4.1 [host/greeting]" in (said := str(await client.reply()))
        assert "4.4.6 [intercept/own-traffic]" in said
        client.conversation.close()
        assert [event.kind for event in rig.of(Violation)] == ["own_traffic"]
        assert len(rig.of(DeliveryRefused)) == 2  # and no third session


@pytest.mark.parametrize(
    ("own", "why"), [("own_addresses", "is an address of this host"), ("own_listeners", "listener")]
)
async def test_our_own_address_is_a_loop(tmp_path: Path, own: str, why: str) -> None:
    """MX-17, MX-08: the MTA connected to this very host."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        original = there.mx(A.domain)
        value = original.address if own == "own_addresses" else original
        addresses = replace(rig.engine.outbound.addresses, **{own: frozenset({value})})
        rig.engine.outbound = replace(rig.engine.outbound, addresses=addresses)
        client = await there.connect(original)
        assert (said := str(await client.reply())).startswith("421 4.4.6 [route/loop] 127.10.1.1:")
        assert why in said
        client.conversation.close()
        assert commands(rig, A.domain) == []


@pytest.mark.parametrize(
    ("intercept", "clients", "code"),
    [("redirect", (), b"220"), ("tproxy", (), b"554"), ("tproxy", (ip_network("192.0.2.0/24"),), b"220")],
)
async def test_who_is_of_this_host(tmp_path: Path, intercept: str, clients: tuple[object, ...], code: bytes) -> None:
    """What was redirected to loopback began on this host, though its address is an interface's; behind TPROXY the
    socket's own address says nothing of that."""
    async with open_rig(tmp_path, [A]) as rig, open_redirection(rig) as there:
        there.to = there.mx(A.domain)
        there.intake.listener = replace(
            there.intake.listener, intercept=intercept, clients=clients, cleartext_from=clients
        )
        there.intake._originals = {intercept: lambda wire: there.to}
        near, far = pair()
        wire = Wire(far, SYSTEM_CLOCK, peer=Endpoint(ip_address("192.0.2.7"), 40000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.intake.session, wire)
            mta = Wire(near, SYSTEM_CLOCK)
            assert (await mta.receive())[:3] == code
            mta.close()
        wire.close()
