"""Who takes the message, and whose reply is whose?  Every end of a transaction, with hosts that follow a script."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from smtpguard.events import Delivered, DeliveryRefused, FinalReplyLost
from smtpguard.names import parse_domain
from smtpguard.outbound.settings import Outbound
from smtpguard.reasons import ReasonCode
from tests.outbound.scripted import DROP, HANG, open_world
from tests.support.zone import Node

A, B = "127.0.0.2", "127.0.0.3"


def codes(replies: list[str]) -> list[str]:
    return [reply[:3] for reply in replies]


async def test_final_replies_stand_in_rcpt_order_over_all_routes() -> None:
    """LMTP-02, LMTP-05, INV-09: a group may mix next hops; each recipient gets the word of its own host."""
    async with open_world() as world:
        await world.domain("a.example", A)
        await world.domain("b.example", B, **{".": "452 4.3.1 full"})
        transaction = world.transaction()
        rcpt = await world.rcpt(transaction, "1@a.example", "2@b.example", "3@a.example", "4@b.example")
        assert codes(rcpt) == ["250"] * 4
        assert codes(await world.data(transaction)) == ["250", "452", "250", "452"]
        assert world.is_clean


async def test_the_same_recipient_twice_is_two_recipients() -> None:
    """LMTP-02: duplicates, in any case of letters, are told and answered one by one."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, RCPT=["250 2.1.5 one", "450 4.2.0 two", "250 2.1.5 three"])
        transaction = world.transaction()
        rcpt = await world.rcpt(transaction, "x@a.example", "x@A.example", "x@a.EXAMPLE")
        assert [reply[:14] for reply in rcpt] == ["250 2.1.5 one ", "450 4.2.0 two ", "250 2.1.5 thre"]
        assert len(await world.data(transaction)) == 2
        assert host.told("RCPT") == ["RCPT TO:<x@a.example>", "RCPT TO:<x@A.example>", "RCPT TO:<x@a.EXAMPLE>"]
        assert [event.recipients for event in world.of(Delivered)] == [2]


async def test_one_reply_by_smtp_and_further_recipients_later() -> None:
    """SMTP-23, OUT-23: the next hop is fixed by the first accepted recipient; more of it may follow."""
    async with open_world() as world:
        (a,) = await world.domain("a.example", A)
        (b,) = await world.domain("b.example", B, RCPT="550 5.1.1 no")
        transaction = world.transaction(protocol="smtp")
        rcpt = await world.rcpt(transaction, "1@b.example", "2@a.example", "3@b.example", "4@b.example")
        assert codes(rcpt) == ["550", "250", "550", "550"]
        assert codes(await world.rcpt(transaction, "5@b.example", "6@b.example", "7@a.example")) == [
            "452",
            "452",
            "250",
        ]
        assert [event.recipients for event in world.of(DeliveryRefused) if "other-next-hop" in event.reason] == [2]
        await world.data(transaction)
        assert len(a.messages) == 1
        assert a.told("MAIL") == ["MAIL FROM:<s@s.example>"]
        assert not b.messages
        assert world.is_clean


async def test_a_busy_destination_is_told_once_and_delays_nobody_else(autojump_clock: MockClock) -> None:
    """DESIGN §6: 451 4.3.2 after 5 s for the destination without a slot; the free ones of the group are walked."""
    async with open_world(change=lambda settings: replace(settings, destination_connections=1)) as world:
        await world.domain("a.example", A)
        await world.domain("b.example", B)
        holder = world.transaction()
        await world.rcpt(holder, "x@a.example")
        began = trio.current_time()
        waiting = world.transaction()
        rcpt = await world.rcpt(waiting, "1@a.example", "2@b.example", "3@a.example")
        assert trio.current_time() - began == pytest.approx(5, abs=0.1)
        assert codes(rcpt) == ["451", "250", "451"]
        assert "4.3.2 [load/destination-busy] a.example" in rcpt[0]
        (event,) = world.of(DeliveryRefused)
        assert (event.reason, event.recipients, event.relayed) == ("load/destination-busy", 2, False)
        assert codes(await world.data(waiting)) == ["250"]
        holder.close()
        assert world.is_clean


async def test_waiting_for_slots_is_inside_the_budget(autojump_clock: MockClock) -> None:
    """TO-04: many busy next hops of one SMTP group do not add their 5 s up beyond the group's 240 s."""
    async with open_world(change=lambda settings: replace(settings, destination_walks=1)) as world:
        names = [f"{n}.example" for n in range(60)]
        for name in names:
            assert world.services.slots.try_take([name])
        began = trio.current_time()
        rcpt = await world.rcpt(world.transaction(protocol="smtp"), *(f"x@{name}" for name in names))
        assert set(codes(rcpt)) == {"451"}
        assert trio.current_time() - began <= 240.1


async def test_a_later_recipient_hears_of_a_busy_destination_at_once(autojump_clock: MockClock) -> None:
    """DESIGN §6: who holds slots never waits for one."""
    async with open_world(change=lambda settings: replace(settings, destination_connections=1)) as world:
        await world.domain("a.example", A)
        transaction = world.transaction()
        await world.rcpt(transaction, "x@a.example")
        assert world.services.slots.try_take(["b.example"])
        began = trio.current_time()
        assert codes(await world.rcpt(transaction, "x@b.example")) == ["451"]
        assert trio.current_time() == began
        transaction.close()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"DATA": "354 go\r\n250 2.0.0 queued already"}, "451 4.5.0 [host/protocol]"),
        ({"BODY": "250 2.0.0 queued already"}, "451 4.5.0 [host/protocol]"),
        ({"BODY": "552 5.3.4 too big"}, "552 5.3.4 too big (mx1.a.example"),
        ({"BODY": "421 4.3.2 going"}, "451 4.3.2 going (mx1.a.example"),
        ({"BODY": "354 go on"}, "451 4.5.0 [host/protocol]"),
        ({"BODY": "55"}, "451 4.5.0 [host/protocol]"),
        ({"BODY": DROP}, "451 4.4.2 [host/lost]"),
        ({".": "354 go on"}, "451 4.5.0 [host/protocol]"),
        ({".": "334 what"}, "451 4.5.0 [host/protocol]"),
        ({".": "421 4.3.2 going"}, "451 4.3.2 going (mx1.a.example"),
        ({".": "421-4.3.2 going\r\n421 4.3.2 soon"}, "451 4.3.2 going 4.3.2 soon (mx1.a.example"),
        ({".": "554-5.7.1 we\r\n554 5.7.1 refuse"}, "554 5.7.1 we 5.7.1 refuse (mx1.a.example"),
        ({".": DROP}, "451 4.4.2 [host/lost]"),
        ({".": "299 fine"}, "299 fine (mx1.a.example"),
    ],
)
async def test_last_words(answers: dict[str, str], expected: str) -> None:
    """INV-01, INV-02, OUT-07, OUT-08, OUT-32, CH-20: only a 2xx after the dot is a 2xx, and no 3xx reaches the MTA."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, **answers)
        transaction = world.transaction()
        assert codes(await world.rcpt(transaction, "x@a.example")) == ["250"]
        assert await transaction.data(trio.current_time() + 10) is None
        await transaction.send([b"Subject: x\r\n\r\nhello\r\n"])
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked(0.02)  # what the host says inside the content has come
        (final,) = await transaction.finish(None, 20, trio.current_time() + 10)
        assert str(final).startswith(expected), final
        assert bool(host.messages) is ("." in answers)
        assert bool(world.of(Delivered)) is final.is_positive
        assert len(world.of(FinalReplyLost)) == (answers.get(".") == DROP)
        transaction.close()
        assert world.is_clean


async def test_an_early_refusal_does_not_shift_later_replies() -> None:
    """EXT-22: a connection on which something was said unasked serves nobody else."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, **{"DATA": ["354 go\r\n552 5.3.4 big", "354 go"], ".": "250 one"})
        first = world.transaction()
        await world.rcpt(first, "x@a.example")
        assert codes(await world.data(first)) == ["552"]
        second = world.transaction()
        await world.rcpt(second, "x@a.example")
        assert codes(await world.data(second)) == ["250"]
        assert len(host.sessions) == 2
        assert len(host.messages) == 1


@pytest.mark.parametrize("answer", ["250 2.0.0 fine", "334 odd", "221 bye"])
async def test_only_354_is_a_go_ahead(answer: str) -> None:
    """SMTP-15, OUT-32: neither a 2xx nor another 3xx to DATA lets content out, nor reaches the MTA."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, DATA=answer)
        transaction = world.transaction()
        await world.rcpt(transaction, "x@a.example")
        (reply,) = await world.data(transaction)
        assert reply.startswith(f"451 4.5.0 [host/protocol] mx1.a.example[{A}]")
        assert not host.messages
        assert world.is_clean


async def test_data_refused_by_all_is_the_reply_to_data() -> None:
    """DATA-12, INV-08: a 4xx among them stands for all; the connections are reset and serve again."""
    async with open_world() as world:
        (a,) = await world.domain("a.example", A, DATA=["554 5.7.1 no", "354 go"])
        await world.domain("b.example", B, DATA="451 4.3.0 later")
        transaction = world.transaction()
        await world.rcpt(transaction, "x@b.example", "x@a.example")
        assert codes(await world.data(transaction)) == ["451"]
        assert world.is_clean
        again = world.transaction()
        await world.rcpt(again, "x@a.example")
        assert codes(await world.data(again)) == ["250"]
        assert a.lines.count("RSET") == 1
        assert len(a.sessions) == 1


async def test_data_refused_by_one_goes_on_with_the_others() -> None:
    """LMTP-05: its recipients hear its reply at the end, at their turn."""
    async with open_world() as world:
        await world.domain("a.example", A, DATA="554 5.7.1 no")
        await world.domain("b.example", B)
        transaction = world.transaction()
        await world.rcpt(transaction, "1@b.example", "2@a.example", "3@b.example")
        assert codes(await world.data(transaction)) == ["250", "554", "250"]
        assert world.is_clean


async def test_no_reply_to_data_in_100_seconds(autojump_clock: MockClock) -> None:
    """TO-05: 451 4.4.2 before the MTA's own 120 s."""
    async with open_world() as world:
        await world.domain("a.example", A, DATA=HANG)
        transaction = world.transaction()
        await world.rcpt(transaction, "x@a.example")
        began = trio.current_time()
        (reply,) = await world.data(transaction)
        assert "451 4.4.2 [host/budget]" in reply
        assert trio.current_time() - began == 100
        assert world.is_clean


async def test_no_progress_for_150_seconds(autojump_clock: MockClock) -> None:
    """TO-06: a host that reads nothing ends with 451 4.4.2 before the MTA's own 180 s."""
    async with open_world() as world:
        await world.domain("a.example", A, BODY=HANG)
        transaction = world.transaction()
        await world.rcpt(transaction, "x@a.example")
        assert await transaction.data(trio.current_time() + 100) is None
        began = trio.current_time()
        while transaction.live:
            assert trio.current_time() == began
            await transaction.send([b"x" * 998 + b"\r\n"] * 1000)
        assert 150 <= trio.current_time() - began <= 152
        (reply,) = await transaction.finish(None, 1, trio.current_time() + 570)
        assert str(reply).startswith(f"451 4.4.2 [host/stalled] mx1.a.example[{A}]")
        assert world.is_clean


async def test_end_of_data_has_one_clock_for_all(autojump_clock: MockClock) -> None:
    """TO-07, LMTP-05: 570 s for all routes together; who answered is not lost by who did not."""
    async with open_world() as world:
        await world.domain("a.example", A, **{".": HANG})
        await world.domain("b.example", B)
        transaction = world.transaction()
        await world.rcpt(transaction, "1@a.example", "2@b.example")
        began = trio.current_time()
        assert codes(await world.data(transaction)) == ["451", "250"]
        assert trio.current_time() - began == 570
        assert [event.mx for event in world.of(FinalReplyLost)] == ["mx1.a.example"]


async def test_a_slow_route_is_not_a_stalled_one(autojump_clock: MockClock) -> None:
    """LMTP-05: only a route that takes no octet for 20 s is dropped; slow ones set the pace."""

    async with open_world() as world:
        await world.domain("a.example", A)
        await world.domain("b.example", B)
        transaction = world.transaction()
        await world.rcpt(transaction, "1@a.example", "2@b.example")
        assert await transaction.data(trio.current_time() + 100) is None
        slow = next(route for route in transaction.live if route.walk.next_hop.key == "b.example")
        link, sent = slow.opened.link, []
        original = type(link).send

        async def send(self: object, octets: bytes) -> None:
            if self is link:
                await trio.sleep(15)
                sent.append(len(octets))
            await original(self, octets)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(link), "send", send)
            await transaction.send([b"x" * 998 + b"\r\n"] * 100)
        assert len(sent) == 7
        replies = await transaction.finish(None, 1, trio.current_time() + 570)
        assert [reply.code for reply in replies] == [250, 250]


async def test_a_host_idle_for_long_between_rcpt_and_data_is_not_timed_out(autojump_clock: MockClock) -> None:
    """TO-04: the RCPT budget ends with its reply, and does not bite the DATA that comes later."""
    async with open_world() as world:
        await world.domain("a.example", A)
        transaction = world.transaction()
        await world.rcpt(transaction, "1@a.example")
        await world.rcpt(transaction, "2@a.example")
        await trio.sleep(290)
        assert codes(await world.data(transaction)) == ["250", "250"]


async def test_content_that_must_not_be_delivered_gets_no_dot() -> None:
    """DATA-08, OUT-24: every host is dropped, every recipient hears why."""
    async with open_world() as world:
        (a,) = await world.domain("a.example", A)
        (b,) = await world.domain("b.example", B)
        transaction = world.transaction()
        await world.rcpt(transaction, "1@a.example", "2@b.example")
        assert await transaction.data(trio.current_time() + 100) is None
        await transaction.send([b"Subject: x\r\n"])
        replies = await transaction.finish(ReasonCode.TOO_BIG, 12, trio.current_time() + 570)
        assert [str(reply)[:9] for reply in replies] == ["552 5.3.4"] * 2
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not a.messages
        assert not b.messages
        assert a.ended == b.ended == 1
        assert world.is_clean


async def test_reset_resets_all_hosts_at_once_and_leaks_nothing_when_cancelled(autojump_clock: MockClock) -> None:
    """DESIGN §6: a host that does not answer RSET costs 5 s, however many there are; a cut session holds no slot."""
    async with open_world() as world:
        for n in range(2, 8):
            await world.domain(f"{n}.example", f"127.0.0.{n}", RSET=HANG)
        recipients = [f"x@{n}.example" for n in range(2, 8)]
        transaction = world.transaction()
        await world.rcpt(transaction, *recipients)
        began = trio.current_time()
        await transaction.reset()
        assert trio.current_time() - began == 5
        assert world.is_clean

        cut = world.transaction()
        await world.rcpt(cut, *recipients)
        wires = [route.opened.link.wire for route in cut.live]
        with trio.move_on_after(1):
            await cut.reset()
        assert world.is_clean
        assert [wire.closed for wire in wires] == [True] * 6


async def test_reset_of_one_host_that_fails_frees_the_others() -> None:
    async with open_world() as world:
        await world.domain("a.example", A, RSET=DROP)
        await world.domain("b.example", B)
        transaction = world.transaction()
        await world.rcpt(transaction, "x@a.example", "x@b.example")
        await transaction.reset()
        assert world.is_clean
        assert repr(world.services.pool) == "<Pool idle=1 keys=1>"


async def test_recipients_have_a_limit() -> None:
    """OUT-22, SMTP-22: 452 4.5.3, and the message goes to those accepted."""

    def few(settings: Outbound) -> Outbound:
        return replace(settings, max_recipients=2)

    async with open_world(change=few) as world:
        (host,) = await world.domain("a.example", A)
        transaction = world.transaction()
        rcpt = await world.rcpt(transaction, "1@a.example", "2@a.example", "3@a.example")
        assert [reply[:9] for reply in rcpt][2] == "452 4.5.3"
        assert len(await world.data(transaction)) == 2
        assert len(host.told("RCPT")) == 2


async def test_recipients_that_lead_nowhere() -> None:
    """SMTP-24, MX-14: `postmaster` has no domain; literals may be refused by the configuration."""
    async with open_world(change=lambda settings: replace(settings, literals="refuse")) as world:
        rcpt = await world.rcpt(world.transaction(), "postmaster", "x@[127.0.0.2]", "x@nowhere.example")
        assert [reply[:9] for reply in rcpt] == ["550 5.1.3", "550 5.1.2", "550 5.1.2"]
        assert world.is_clean


async def test_more_recipients_than_fit_in_one_window() -> None:
    """RFC 2920 §3.1: a thousand pipelined RCPT never leave both sides writing."""
    async with open_world() as world:
        answer = "250-2.1.5 " + "x" * 450
        (host,) = await world.domain("a.example", A, RCPT="\r\n".join([answer] * 9 + ["250 2.1.5 ok"]))
        transaction = world.transaction()
        with trio.fail_after(20):
            rcpt = await world.rcpt(transaction, *(f"{'r' * 60}{n}@a.example" for n in range(1000)))
        assert set(codes(rcpt)) == {"250"}
        assert len(host.told("RCPT")) == 1000
        transaction.close()


async def test_a_refusal_tells_what_the_other_hosts_said() -> None:
    """Law 6: the last word stands in `reply`, and in `why` what came before it, never the same twice."""
    async with open_world() as world:
        (host,) = await world.domain("a.example", A, GREETING="450 4.3.2 first")
        assert (await world.rcpt(world.transaction(), "x@a.example"))[0].startswith("450 4.3.2 first")
        assert [event.why for event in world.of(DeliveryRefused)] == [()]
        host.answers["GREETING"] = "220 mx"
        second = await world.host(B, RCPT="450 4.2.0 second")
        world.zone.nodes[parse_domain("mx2.a.example")] = Node(a=[B])
        world.zone.nodes[parse_domain("a.example")] = Node(mx=["10 mx1.a.example", "20 mx2.a.example"])
        assert (await world.rcpt(world.transaction(), "x@a.example"))[0].startswith("450 4.2.0 second")
        (why,) = world.of(DeliveryRefused)[-1].why
        assert "[host/remembered]" in why
        assert second.told("RCPT")
