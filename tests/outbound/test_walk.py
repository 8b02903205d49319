"""Which host takes the recipients?  The walk along scripted mail hosts: order, fallback, budgets, parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from smtpguard.dns.records import FailureKind, RdType
from smtpguard.events import HostOpened, HostSkipped
from smtpguard.names import Domain, parse_domain
from smtpguard.outbound.settings import Outbound
from smtpguard.policy.model import Level
from smtpguard.sandbox.behaviour import Behaviour
from smtpguard.sandbox.internet import Publication, Site
from tests.outbound.scripted import DROP, HANG, World, open_world
from tests.support.rig import MESSAGE, open_rig
from tests.support.zone import Node

SITE = Site("a.example", Publication.DANE_EE)
A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NO_8BIT = "250-mx\r\n250 PIPELINING"


async def one(world: World, *recipients: str, mail: str = "MAIL FROM:<s@s.example>", **options: Any) -> list[str]:
    """RCPT of these, then RSET."""
    transaction = world.transaction(mail)
    replies = await world.rcpt(transaction, *recipients, **options)
    await transaction.reset()
    assert world.is_clean
    return replies


# -- fallback


@pytest.mark.parametrize(
    "answers",
    [
        {"GREETING": "421 4.3.2 busy"},
        {"GREETING": "554 5.7.1 no"},
        {"GREETING": DROP},
        {"GREETING": "hello"},
        {"EHLO": "451 4.3.0 later", "HELO": "451 4.3.0 later"},
        {"EHLO": DROP},
        {"MAIL": "450 4.7.1 later"},
        {"MAIL": "421 4.7.1 later"},
        {"MAIL": "354 what"},
        {"MAIL": DROP},
        {"RCPT": "450 4.2.0 greylisted"},
        {"RCPT": "421 4.2.0 closing"},
        {"RCPT": "354 what"},
        {"RCPT": DROP},
        {"RCPT": "250 ok\r\n250 ok"},
    ],
)
async def test_a_failure_of_one_host_leads_to_the_next(answers: dict[str, str]) -> None:
    """MX-07, MX-13, OUT-07: before the first 2xx to RCPT the next host gets its turn."""
    async with open_world() as world:
        first, second = await world.domain("a.example", A, B, **answers)
        transaction = world.transaction()
        (reply,) = await world.rcpt(transaction, "x@a.example")
        if answers.get("RCPT") == "250 ok\r\n250 ok":  # one reply too many is seen at the next command
            assert reply.startswith("250")
            assert "[host/protocol]" in (await world.data(transaction))[0]
            assert not first.messages
            return
        assert reply.startswith(f"250 2.1.5 ok (mx2.a.example[{B}]:")
        assert (await world.data(transaction))[0].startswith("250")
        assert len(first.sessions) == 1
        assert len(second.messages) == 1
        assert world.is_clean


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"MAIL": "354 what"}, "451 4.5.0 [host/protocol]"),
        ({"RCPT": "354 what"}, "451 4.5.0 [host/protocol]"),
        ({"GREETING": "354 what"}, "451 4.5.0 [host/protocol]"),
        ({"EHLO": "354 what"}, "451 4.5.0 [host/protocol]"),
        ({"MAIL": "421 4.7.0 busy"}, "451 4.7.0 busy (mx1"),
        ({"RCPT": "421-4.7.0 busy\r\n421 4.7.0 come back"}, "451 4.7.0 busy 4.7.0 come back (mx1"),
        ({"MAIL": "550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three"}, "550 5.7.1 one 5.7.1 two 5.7.1 three (mx1"),
        ({"RCPT": "251 2.1.5 will forward"}, "251 2.1.5 will forward (mx1"),
        ({"RCPT": "599 odd"}, "599 odd (mx1"),
        ({"RCPT": "550 5.1.1 " + "x" * 480}, "550 5.1.1 xxx"),
    ],
)
async def test_what_the_mta_hears(answers: dict[str, str], expected: str) -> None:
    """INV-08, SMTP-13, CH-20, OUT-32: the host's own reply with one suffix on the last line; never a 3xx, never 421."""
    async with open_world() as world:
        await world.domain("a.example", A, **answers)
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith(expected), reply
        assert reply.count("(mx1.a.example") == (not reply.startswith(("451 4.5.0", "550 5.1.1 xxx")))


async def test_a_421_that_ends_the_dialogue_is_told() -> None:
    """OUT-08: the replies that never come do not hide what the host said last."""
    async with open_world() as world:
        await world.domain("a.example", A, MAIL="421 4.3.2 going down", RCPT=DROP)
        (reply,) = await one(world, "x@a.example")
        assert "[host/lost]" in reply
        assert "it said 421 4.3.2 going down" in reply


async def test_no_fallback_after_the_first_accepted_recipient() -> None:
    """MX-13: who was put off at the host that takes the others is put off, and hears its words."""
    async with open_world() as world:
        _, second = await world.domain("a.example", A, B, RCPT=["450 4.2.0 later", "250 2.1.5 ok", "550 5.1.1 no"])
        replies = await one(world, "1@a.example", "2@a.example", "3@a.example")
        assert [reply[:9] for reply in replies] == ["450 4.2.0", "250 2.1.5", "550 5.1.1"]
        assert not second.sessions


async def test_who_was_refused_for_good_is_not_asked_again_elsewhere() -> None:
    """MX-13: a 5xx is the end for its recipient, the others go on to the next host."""
    async with open_world() as world:
        _, second = await world.domain("a.example", A, B, RCPT=["550 5.1.1 no", "450 4.2.0 later"])
        replies = await one(world, "1@a.example", "2@a.example")
        assert [reply[:3] for reply in replies] == ["550", "250"]
        assert second.told("RCPT") == ["RCPT TO:<2@a.example>"]


async def test_at_most_two_hosts_are_told_mail() -> None:
    """MX-13, DESIGN §3: after two full sessions the last temporary reply stands."""
    async with open_world() as world:
        hosts = await world.domain("a.example", A, B, C)
        for number, host in enumerate(hosts):
            host.answers["RCPT"] = f"450 4.2.0 later {number}"
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith("450 4.2.0 later 1")
        assert not hosts[2].sessions


@pytest.mark.parametrize("last", ["554 5.7.1 go away", "450 4.7.1 later"])
async def test_a_host_out_of_reach_makes_no_refusal_permanent(last: str) -> None:
    """AF-34, MX-13: a 5xx greeting after a host that was down is a 451; one alone is relayed (MX-11)."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", B, GREETING=last)
        world.zone.nodes[parse_domain("a.example")] = Node(mx=["5 dead.a.example", "10 mx1.a.example"])
        world.zone.nodes[parse_domain("dead.a.example")] = Node(a=[C])
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith("4")
        world.zone.nodes[parse_domain("a.example")] = Node(mx=["10 mx1.a.example"])
        world.memory.succeeded(
            (None, next(iter(world.zone.nodes[parse_domain("mx1.a.example")].records(RdType.A))), world.port)
        )
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith(last)
        assert len(host.sessions) == 2


# -- time


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT"])
async def test_a_host_that_says_nothing_leaves_time_for_the_next(autojump_clock: MockClock, stage: str) -> None:
    """TO-02, TO-03, TO-04: half of the budget, then the next host's turn; the whole stays under 240 s."""
    async with open_world() as world:
        _, second = await world.domain("a.example", A, B, **{stage: HANG})
        began = trio.current_time()
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith("250"), reply
        assert "mx2.a.example" in reply
        assert 120 <= trio.current_time() - began <= 122
        assert second.told("RCPT")
        (skipped, *_) = [*world.of(HostSkipped), None]
        if stage == "GREETING":
            assert skipped is not None
            assert skipped.reason == "host/no-greeting"


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT"])
async def test_the_last_host_has_all_that_is_left(autojump_clock: MockClock, stage: str) -> None:
    """TO-02, TO-03, OUT-06, OUT-08: 451 4.4.2 at 240 s, whatever the host waits for; nothing is left open."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, **{stage: HANG})
        transaction = world.transaction()
        began = trio.current_time()
        (reply,) = await world.rcpt(transaction, "x@a.example")
        assert trio.current_time() - began == 240
        assert reply.startswith("451 4.4.2 [host/budget] a.example")
        assert world.is_clean
        assert len(host.sessions) == 1


async def test_handshakes_that_stall_are_in_nobodys_way(autojump_clock: MockClock) -> None:
    """TO-03: a path that swallows large packets stalls every handshake of a big provider; others still get theirs."""
    async with open_world() as world:
        await world.domain("a0.example", A, EHLO="250-mx\r\n250 STARTTLS", STARTTLS="220 2.0.0 and no more")
        for number in range(1, 100):
            world.zone.nodes[parse_domain(f"a{number}.example")] = Node(mx=["10 mx1.a0.example"])
        transactions = [world.transaction() for _ in range(100)]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number, transaction in enumerate(transactions):
                nursery.start_soon(world.rcpt, transaction, f"x@a{number}.example")
        assert trio.current_time() - began <= 62
        for transaction in transactions:
            transaction.close()


async def test_a_host_that_did_not_greet_is_remembered(autojump_clock: MockClock) -> None:
    """DESIGN §6 host memory: the next message does not wait for it again; a refused EHLO is not remembered."""
    async with open_world() as world:
        silent, _polite = await world.domain("a.example", A, B, GREETING=HANG)
        await one(world, "x@a.example")
        began = trio.current_time()
        assert (await one(world, "x@a.example"))[0].startswith("250")
        assert trio.current_time() == began
        assert len(silent.sessions) == 1
        (host,) = await world.domain("c.example", C, EHLO="550 5.7.1 bad name", HELO="550 5.7.1 bad name")
        assert (await one(world, "x@c.example"))[0].startswith("550 5.7.1 bad name")
        assert (await one(world, "x@c.example"))[0].startswith("550 5.7.1 bad name")
        assert len(host.sessions) == 2


async def test_a_budget_that_is_used_up_answers_every_recipient(autojump_clock: MockClock) -> None:
    """TO-04: those put off by an earlier host keep its words, the rest hear of the budget."""
    async with open_world() as world:
        await world.domain("a.example", A, B, RCPT=["450 4.2.0 later", HANG])
        world.hosts[B].answers["MAIL"] = HANG
        replies = await one(world, "1@a.example", "2@a.example", seconds=10)
        assert [reply[:3] for reply in replies] == ["451", "451"]


async def test_a_host_that_does_not_answer_rset_takes_no_more_time(autojump_clock: MockClock) -> None:
    """DESIGN §6: a refused recipient is answered 5 s later at most."""
    async with open_world() as world:
        await world.domain("a.example", A, RCPT="550 5.1.1 no", RSET=HANG)
        began = trio.current_time()
        assert (await one(world, "x@a.example"))[0].startswith("550")
        assert trio.current_time() - began == 5
        assert repr(world.services.pool) == "<Pool idle=0 keys=0>"


# -- the pool


@pytest.mark.parametrize(
    "answers",
    [
        {"MAIL": ["250 ok", DROP, "250 ok"]},
        {"MAIL": ["250 ok", "421 4.3.2 idle", "250 ok"]},
        {"RCPT": ["250 ok", "421 4.3.2 idle", "250 2.1.5 ok"]},
        {"RCPT": ["250 ok", DROP, "250 2.1.5 ok"]},
    ],
)
async def test_a_reused_connection_that_is_gone_is_replaced_once(answers: dict[str, Any]) -> None:
    """DESIGN §6 pool: loss or 421 before the first 2xx to RCPT costs one fresh connection to the same host."""
    async with open_world() as world:
        first, second = await world.domain("a.example", A, B, **answers)
        assert (await one(world, "x@a.example"))[0].startswith("250")
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith("250")
        assert "mx1.a.example" in reply
        assert len(first.sessions) == 2
        assert not second.sessions
        assert [event.reused for event in world.of(HostOpened)] == [False, True, False]


async def test_what_a_host_says_when_it_is_replaced_is_told() -> None:
    """OUT-07, OUT-08: the fresh connection is refused at the greeting: its words, not our own."""
    async with open_world() as world:
        await world.domain("a.example", A, MAIL=["250 ok", DROP], GREETING=["220 mx", "450 4.3.2 too many"])
        await one(world, "x@a.example")
        assert (await one(world, "x@a.example"))[0].startswith("450 4.3.2 too many (mx1.a.example")


async def test_an_interrupt_that_came_too_late_harms_nobody_else(autojump_clock: MockClock) -> None:
    """DESIGN §6: a connection whose time ran out is not kept, and a session is never lost by it."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A)
        await one(world, "x@a.example")
        (kept,) = world.services.pool._idle.values()
        kept[0][1].link.wire.deadline = trio.current_time()
        await trio.sleep(2)
        assert (await one(world, "x@a.example"))[0].startswith("250")
        assert len(host.sessions) == 2


@pytest.mark.parametrize("limit", ["MAILMAX=2", "RCPTDOMAINMAX=2"])
@pytest.mark.parametrize("rcpt", ["250 2.1.5 ok", "550 5.1.1 no"])
async def test_a_host_names_how_often_it_is_used(limit: str, rcpt: str) -> None:
    """EXT-12, RFC 9422: MAILMAX counts each MAIL, refused recipients or not; a message may bring a domain more."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, EHLO=f"250-mx\r\n250 LIMITS {limit}", RCPT=rcpt)
        for _ in range(5):
            await one(world, "x@a.example")
        assert [sum(line.startswith("MAIL") for line in session) for session in host.sessions] == [2, 2, 1]


async def test_a_host_that_says_421_is_not_kept() -> None:
    async with open_world() as world:
        await world.domain("a.example", A, MAIL="421 4.3.2 going")
        await one(world, "x@a.example")
        assert repr(world.services.pool) == "<Pool idle=0 keys=0>"


# -- which hosts, in which order


async def test_both_families_are_tried_in_turn() -> None:
    """MX-07, MX-12: five addresses at most, IPv6 and IPv4 among the first; IPv6 is spoken where it answers."""
    async with open_world() as world:
        await world.domain("a.example", "::1")
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith(f"250 2.1.5 ok (mx1.a.example[::1]:{world.port} may ")

        world.zone.nodes[parse_domain("mx1.a.example")] = Node(
            aaaa=[f"2001:db8::{n}" for n in range(9)], a=[f"10.0.0.{n}" for n in range(9)]
        )
        world.services.pool.close()
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith("451 4.4.1 [route/forbidden-address]")
        tried = [event.address for event in world.of(HostSkipped)]
        assert ["6" if ":" in address else "4" for address in tried] == ["6", "4", "6", "4", "6"]
        assert len(set(tried)) == 5


async def test_a_dead_family_leads_to_the_other(autojump_clock: MockClock) -> None:
    """MX-07: the first address refuses, the second is used; nothing but that address is remembered."""
    async with open_world() as world:
        await world.domain("a.example", A)
        world.zone.nodes[parse_domain("mx1.a.example")] = Node(aaaa=["::1"], a=[A])  # nobody listens at ::1
        for _ in range(2):
            assert f"mx1.a.example[{A}]" in (await one(world, "x@a.example"))[0]
            world.services.pool.close()
        assert [event.reason for event in world.of(HostSkipped)] == ["host/connect", "host/remembered"]


async def test_hosts_without_any_address() -> None:
    """OUT-03, MX-05, MX-12: 550 5.4.4 where every answer is definite and confirmed, else 451."""
    async with open_world() as world:
        nodes = world.zone.nodes
        nodes[parse_domain("a.example")] = Node(mx=["10 mx1.a.example", "20 mx2.a.example"])
        nodes[parse_domain("mx1.a.example")] = Node(txt=["nothing here"])
        assert (await one(world, "x@a.example"))[0].startswith("550 5.4.4 [route/no-usable-mx]")
        world.zone.confirmed = False
        assert (await one(world, "x@a.example"))[0].startswith("451 4.4.3")
        world.zone.confirmed = True
        nodes[parse_domain("mx2.a.example")] = Node(fail=FailureKind.SERVFAIL)
        assert (await one(world, "x@a.example"))[0].startswith("451 4.4.3 [dns/failure]")
        nodes[parse_domain("mx2.a.example")] = Node(a=[C])
        assert (await one(world, "x@a.example"))[0].startswith("451 4.4.1 [host/connect]")


@pytest.mark.parametrize(
    ("mx", "expected"),
    [
        (["10 mx1.a.example", "20 us.example"], "250 2.1.5 ok (mx1.a.example"),
        (["20 mx1.a.example", "10 us.example"], "554 5.4.6 [route/loop] us.example"),
        (["10 mx1.a.example", "10 us.example"], "554 5.4.6 [route/loop]"),
        (["10 us.example"], "554 5.4.6 [route/loop] us.example"),
        (["10 dead.a.example", "20 us.example", "30 mx1.a.example"], "451 4.4.1 [host/connect]"),
    ],
)
async def test_our_own_name_among_the_hosts(mx: list[str], expected: str) -> None:
    """MX-08, OUT-05, AF-32: it and all hosts that are not better are dropped, in whatever order equals come."""

    def ours(settings: Outbound) -> Outbound:
        return replace(settings, own_names=frozenset({Domain("us.example")}))

    async with open_world(change=ours) as world:
        await world.domain("a.example", A)
        world.zone.nodes[parse_domain("a.example")] = Node(mx=mx)
        world.zone.nodes[parse_domain("us.example")] = Node(a=[B])
        world.zone.nodes[parse_domain("dead.a.example")] = Node(a=[C])
        for _ in range(5):  # equal preferences are shuffled
            assert (await one(world, "x@a.example"))[0].startswith(expected)
            world.memory.__init__()  # type: ignore[misc]


async def test_a_greeting_with_our_name_is_a_loop() -> None:
    """OUT-05, SMTP-29."""

    def ours(settings: Outbound) -> Outbound:
        return replace(settings, own_names=frozenset({Domain("us.example")}))

    async with open_world(change=ours) as world:
        await world.domain("a.example", A, GREETING="220 US.example. ESMTP")
        (reply,) = await one(world, "x@a.example")
        assert reply.startswith("554 5.4.6 [route/loop] mx1.a.example")


# -- parameters for each next hop


@pytest.mark.parametrize(
    ("mail", "ehlo", "expected"),
    [
        (" SIZE=100 BODY=8BITMIME", "250-mx\r\n250-SIZE 1000\r\n250 8BITMIME", " SIZE=100 BODY=8BITMIME"),
        (" SIZE=100 RET=HDRS ENVID=q", "250 mx", ""),
        (" RET=HDRS ENVID=q+2B", "250-mx\r\n250 DSN", " RET=HDRS ENVID=q+2B"),
        (" BODY=7BIT", "250 mx", ""),
        (" SMTPUTF8", "250-mx\r\n250-8BITMIME\r\n250 SMTPUTF8", " SMTPUTF8"),
    ],
)
async def test_mail_parameters_are_what_the_host_offers(mail: str, ehlo: str, expected: str) -> None:
    """EXT-02, EXT-03, EXT-04, EXT-05: each host gets what it knows, in its own route."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, EHLO=ehlo)
        assert (await one(world, "x@a.example", mail=f"MAIL FROM:<s@s.example>{mail}"))[0].startswith("250")
        assert host.told("MAIL") == [f"MAIL FROM:<s@s.example>{expected}"]


@pytest.mark.parametrize(
    ("mail", "ehlo", "expected"),
    [
        (" SIZE=2000", "250-mx\r\n250 SIZE 1000", "552 5.3.4 [message/size]"),
        (" SMTPUTF8", "250-mx\r\n250 SMTPUTF8", "553 5.6.7 [message/smtputf8]"),
    ],
)
async def test_what_no_host_can_take(mail: str, ehlo: str, expected: str) -> None:
    """EXT-02, EXT-04, EXT-25: the next host is asked; a host out of reach makes it temporary."""
    async with open_world() as world:
        first, second = await world.domain("a.example", A, B, EHLO=ehlo)
        line = f"MAIL FROM:<s@s.example>{mail}"
        second.answers["EHLO"] = "250-mx\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 3000"
        assert "mx2.a.example" in (await one(world, "x@a.example", mail=line))[0]
        world.services.pool.close()
        second.answers["EHLO"] = ehlo
        assert (await one(world, "x@a.example", mail=line))[0].startswith(expected)
        world.services.pool.close()
        second.answers["GREETING"] = DROP
        assert (await one(world, "x@a.example", mail=line))[0].startswith("451")
        assert not first.told("MAIL")


async def test_an_8_bit_message_prefers_a_host_that_takes_it() -> None:
    """EXT-03, DATA-07: the next MX if any offers 8BITMIME; if none does, the best one (`send`), or 554 (`refuse`)."""
    async with open_world() as world:
        first, second = await world.domain("a.example", A, B, EHLO=NO_8BIT)
        line = "MAIL FROM:<s@s.example> BODY=8BITMIME"
        assert "mx2.a.example" in (await one(world, "x@a.example", mail=line))[0]
        world.services.pool.close()
        second.answers["EHLO"] = NO_8BIT
        assert "mx1.a.example" in (await one(world, "x@a.example", mail=line))[0]
        assert first.told("MAIL") == ["MAIL FROM:<s@s.example>"]
        world.services.pool.close()
        world.settings = replace(world.settings, eightbit_to_7bit_mx="refuse")
        assert (await one(world, "x@a.example", mail=line))[0].startswith("554 5.6.3")
        world.services.pool.close()
        second.answers["GREETING"] = DROP  # it might have offered it
        assert (await one(world, "x@a.example", mail=line))[0].startswith("451")


@pytest.mark.parametrize("stage", ["GREETING", "EHLO"])
async def test_a_silent_last_host_leaves_time_for_one_without_8bitmime(autojump_clock: MockClock, stage: str) -> None:
    """EXT-03, TO-04: the last of the list is not the last to be tried where a better one is to be asked again."""
    async with open_world() as world:
        _, second = await world.domain("a.example", A, B, EHLO=NO_8BIT)
        second.answers[stage] = HANG
        (reply,) = await one(world, "x@a.example", mail="MAIL FROM:<s@s.example> BODY=8BITMIME")
        assert reply.startswith("250"), reply
        assert "mx1.a.example" in reply


async def test_recipients_beyond_the_limit_of_the_host_are_put_off() -> None:
    """EXT-12: RCPTMAX counts over the groups of one transaction; 452 4.5.3 for the rest."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, EHLO="250-mx\r\n250 LIMITS RCPTMAX=2")
        transaction = world.transaction()
        assert (await world.rcpt(transaction, "1@a.example"))[0].startswith("250")
        replies = await world.rcpt(transaction, "2@a.example", "3@a.example")
        assert [reply[:9] for reply in replies] == ["250 2.1.5", "452 4.5.3"]
        assert len(host.told("RCPT")) == 2
        transaction.close()


async def test_a_host_lost_in_a_later_group() -> None:
    """OUT-08: the later recipients hear it, the earlier ones at DATA; nothing is told to another host."""
    async with open_world() as world:
        _, second = await world.domain("a.example", A, B, RCPT=["250 2.1.5 ok", DROP])
        transaction = world.transaction()
        await world.rcpt(transaction, "1@a.example")
        for _ in range(2):
            (reply,) = await world.rcpt(transaction, "2@a.example")
            assert reply.startswith("451 4.4.2 [host/lost] mx1.a.example")
        assert "451 4.4.2 [host/lost]" in (await world.data(transaction))[0]
        assert not second.sessions
        assert world.is_clean


# -- the verdict


@pytest.mark.parametrize("level", [Level.ENCRYPT, Level.MAY, Level.NONE])
async def test_what_a_host_in_clear_is_good_for(level: Level) -> None:
    """INV-04, OUT-10, EXT-17: no envelope octet in clear where TLS is required."""
    async with open_world(level=level) as world:
        (host,) = await world.domain("a.example", A)
        (reply,) = await one(world, "x@a.example")
        if level is Level.ENCRYPT:
            assert reply.startswith("451 4.7.4 [tls/no-starttls] mx1.a.example")
            assert not host.told("MAIL")
        else:
            assert reply.startswith("250")


async def test_zone_changes_do_not_reach_a_running_transaction() -> None:
    """INV-06: the requirement is taken once; later recipients and the content follow it, the next transaction the
    new zone."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A)
        transaction = world.transaction()
        (first,) = await world.rcpt(transaction, "1@a.example")
        assert " may " in first
        world.zone.nodes[parse_domain(f"_{world.port}._tcp.mx1.a.example")] = Node(tlsa=["3 1 1 " + "ab" * 32])
        world.zone.nodes[parse_domain("mx1.a.example")] = Node(a=[C])
        (later,) = await world.rcpt(transaction, "2@a.example")
        assert later.startswith(f"250 2.1.5 ok (mx1.a.example[{A}]:{world.port} may ")
        assert [reply[:3] for reply in await world.data(transaction)] == ["250", "250"]
        assert len(host.messages) == 1
        world.zone.nodes[parse_domain("mx1.a.example")] = Node(a=[A])
        rules = world.settings.rules
        world.settings = replace(world.settings, rules=type(rules)(level=Level.AUTO))
        (refused,) = await one(world, "3@a.example")
        assert refused.startswith("451 4.7.4 [tls/no-starttls]")


# -- end to end: real look-ups, TLS and sessions


async def test_out_03_end_to_end(tmp_path: Path) -> None:
    """OUT-03, MX-05: a mail host without any address is 550 5.4.4 at RCPT, and the session stays."""
    async with open_rig(tmp_path, [SITE]) as rig:
        rig.internet.names.put("mx.a.example", "A")
        sent = await rig.send("x@a.example", protocol="smtp")
        assert str(sent.last_reply).startswith("550 5.4.4 [route/no-usable-mx] mx.a.example")
        assert not rig.internet.hosts["a.example"].mx.sessions


async def test_no_starttls_inside_tls(tmp_path: Path) -> None:
    """STLS-16: offered again inside TLS, it is not used."""
    async with open_rig(tmp_path, [SITE]) as rig:
        mx = rig.internet.hosts["a.example"].mx
        mx.behaviour = Behaviour(extensions=("PIPELINING", "STARTTLS"))
        assert (await rig.send("x@a.example")).is_delivered
        assert [command.partition(" ")[0] for command in mx.sessions[0].commands].count("STARTTLS") == 1


async def test_inv_06_end_to_end(tmp_path: Path) -> None:
    """INV-06: TLSA records that change between RCPT and DATA concern the next one; no pooled connection helps."""
    async with open_rig(tmp_path, [SITE]) as rig:
        client = await rig.client()
        await client.command("MAIL FROM:<s@s.example>")
        assert (await client.command("RCPT TO:<x@a.example>")).code == 250
        rig.internet.names.put(rig.internet.tlsa_name("mx.a.example"), "TLSA", "3 1 1 " + "00" * 32, ttl=0)
        assert (await client.command("RCPT TO:<y@a.example>")).code == 250
        assert (await client.command("DATA")).code == 354
        await client.conversation.send(MESSAGE + b".\r\n")
        assert [(await client.reply()).code for _ in range(2)] == [250, 250]
        sent = await client.send("s@s.example", ["x@a.example"], MESSAGE, lmtp=True)
        assert str(sent.last_reply).startswith("451 4.7.5 [dane/no-match] mx.a.example")
        assert len(rig.internet.hosts["a.example"].mx.messages) == 1
        await client.quit()
