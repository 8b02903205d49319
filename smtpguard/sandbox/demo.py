"""Does smtpguard keep its promises?  `smtpguard demo`: real mail and real attacks, beside an ordinary sender.

The miniature Internet runs here; `python -m smtpguard run` is a subprocess whose configuration differs from a
production one only in addresses.  Each case is sent three times: by the opportunistic sender, and through
smtpguard by SMTP and by LMTP.  The result is what was measured at the receiving side, not what anyone claims.
The inbound half is inbound.py.
"""

import argparse
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten

import trio

from smtpguard.sandbox import inbound
from smtpguard.sandbox.client import Client
from smtpguard.sandbox.conversation import Lost
from smtpguard.sandbox.guard import NotReady, held_port, running
from smtpguard.sandbox.internet import (
    BROKEN,
    SIGNED,
    UNSIGNED,
    Attack,
    Host,
    Internet,
    Publication,
    Site,
    open_internet,
)

SENDER = "alice@sender.example"
SEND_SECONDS = 60.0
REPLY_COLUMNS = 116
PAUSE_SECONDS = 5.0  # between two rounds of --serve


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a domain, and what smtpguard must make of it."""

    site: Site
    delivers: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one message: arrived at the true MX, read by the attacker, the reply."""

    arrived: bool
    over_tls: bool
    intercepted: bool
    reply: str

    def __str__(self) -> str:
        if self.intercepted:
            return "read by the attacker"
        if not self.arrived:
            return "refused"
        return "delivered, TLS" if self.over_tls else "delivered, CLEAR"


@dataclass(frozen=True, slots=True)
class Row:
    """A case and its three results."""

    case: Case
    ordinary: Result
    by_smtp: Result
    by_lmtp: Result

    @property
    def is_as_expected(self) -> bool:
        """Both ways through smtpguard ended as the case says; a refusal let nobody read anything."""
        ours = (self.by_smtp, self.by_lmtp)
        if self.case.delivers:
            # Only where the domain asks for nothing enforceable may an attacker have read along.
            may_leak = self.case.site.publishes in (Publication.NOTHING, Publication.STS_TESTING)
            return all(each.arrived and each.over_tls and (may_leak or not each.intercepted) for each in ours)
        return all(not result.arrived and not result.intercepted for result in ours)


def _case(name: str, publishes: Publication, attack: Attack, delivers: bool) -> Case:
    return Case(Site(f"{name}.example", publishes, attack), delivers)


CASES = (
    _case("dane", Publication.DANE_EE, Attack.NONE, True),
    _case("dane-strip", Publication.DANE_EE, Attack.STRIP_STARTTLS, False),
    _case("dane-swap", Publication.DANE_EE, Attack.SWAP_CERTIFICATE, False),
    _case("dane-forge", Publication.DANE_EE, Attack.FORGE_MX, False),
    _case("dane-bogus", Publication.DANE_EE, Attack.BOGUS_TLSA, False),
    _case("dane-stale", Publication.DANE_EE, Attack.STALE_TLSA, False),
    _case("dane-expired", Publication.DANE_EE, Attack.EXPIRED_CERTIFICATE, True),  # RFC 7671 §5.1: no dates
    _case("dane-ta", Publication.DANE_TA, Attack.NONE, True),
    _case("dane-ta-swap", Publication.DANE_TA, Attack.SWAP_CERTIFICATE, False),
    _case("dane-ta-expired", Publication.DANE_TA, Attack.EXPIRED_CERTIFICATE, False),
    _case("sts", Publication.STS_ENFORCE, Attack.NONE, True),
    _case("sts-strip", Publication.STS_ENFORCE, Attack.STRIP_STARTTLS, False),
    _case("sts-swap", Publication.STS_ENFORCE, Attack.SWAP_CERTIFICATE, False),
    _case("sts-forge", Publication.STS_ENFORCE, Attack.FORGE_MX, False),
    _case("sts-expired", Publication.STS_ENFORCE, Attack.EXPIRED_CERTIFICATE, False),
    _case("both", Publication.DANE_AND_STS, Attack.NONE, True),
    _case("both-bogus", Publication.DANE_AND_STS, Attack.BOGUS_TLSA, False),
    _case("both-block", Publication.DANE_AND_STS, Attack.BLOCK_POLICY, True),  # DANE needs no policy
    _case("testing", Publication.STS_TESTING, Attack.NONE, True),
    _case("testing-strip", Publication.STS_TESTING, Attack.STRIP_STARTTLS, True),  # testing only reports
    _case("plain", Publication.NOTHING, Attack.NONE, True),
    _case("plain-strip", Publication.NOTHING, Attack.STRIP_STARTTLS, True),  # nothing was asked for
)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where smtpguard listens, all on 127.0.0.1; `inbound` 0: not at all."""

    smtp: int
    lmtp: int
    admin: int
    inbound: int = 0


def configuration(internet: Internet, ports: Ports, state_dir: Path) -> str:
    """The TOML file for smtpguard in this Internet."""
    resolver = "{}:{}".format(*internet.resolver)
    return f"""\
hostname = "sender.example"
state_dir = {json.dumps(str(state_dir))}

[[listener]]
role = "outbound"
bind = ["127.0.0.1:{ports.smtp}"]
protocol = "smtp"

[[listener]]
role = "outbound"
bind = ["127.0.0.1:{ports.lmtp}"]
protocol = "lmtp"

[outbound]
port = {internet.mx_port}
allow_destinations = ["127.0.0.0/8"]

[dns]
resolvers = ["{resolver}"]

[dns.canary]
signed = "{SIGNED}"
unsigned = "{UNSIGNED}"
broken = "{BROKEN}"

[mtasts]
port = {internet.policy_port}

[tls]
ca_file = {json.dumps(str(internet.ca_file))}

[admin]
bind = "127.0.0.1:{ports.admin}"
"""


def main(arguments: Sequence[str]) -> int:
    """`smtpguard demo`: the exit code.  1: a row was not as expected, with --serve in any round.  2: unknown option.
    An interrupt, or TERM: 130, with --serve the end that is meant."""
    parser = argparse.ArgumentParser(prog="smtpguard demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--serve", action="store_true", help="keep it all running, with traffic, until interrupted")
    options = parser.parse_args(arguments)
    rounds = Rounds()
    try:
        # Only at a checkpoint: raised inside dnspython or an OpenSSL callback, an interrupt is wrapped or swallowed.
        return trio.run(partial(_interruptible, rounds, options.serve), restrict_keyboard_interrupt_to_checkpoints=True)
    except KeyboardInterrupt:
        pass
    except BaseExceptionGroup as group:
        interrupts, rest = group.split(KeyboardInterrupt)
        if interrupts is None or rest is not None:
            raise
    if not options.serve:
        return 128 + signal.SIGINT
    print(rounds)
    return rounds.exit_code


@dataclass(slots=True)
class Rounds:
    """How the rounds of mail went; outlives the interrupt that ends them."""

    whole: int = 0
    wrong: int = 0

    def take(self, rows: Sequence[Row | inbound.InboundRow]) -> bool:
        """Count one round; was every row as expected?"""
        good = all(row.is_as_expected for row in rows)
        self.whole += 1
        self.wrong += not good
        return good

    @property
    def exit_code(self) -> int:
        """0 only where at least one round ended, and each as expected."""
        return 0 if self.whole and not self.wrong else 1

    def __str__(self) -> str:
        return f"{self.whole - self.wrong} of {self.whole} rounds as expected"


async def _interruptible(rounds: Rounds, serves: bool) -> int:
    """`run`, with TERM as an interrupt: else smtpguard would go on without its Internet."""

    async def hear(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            raise KeyboardInterrupt

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear, signals)
            code = await run(rounds, serves=serves)
            nursery.cancel_scope.cancel()
    return code


_write = partial(print, flush=True)
"""Into a pipe, too, at once: who waits for what `--serve` says waits for long."""


async def run(rounds: Rounds, write: Callable[[str], object] = _write, *, serves: bool = False) -> int:
    """The demo; `serves`: go on with traffic until interrupted.  0: every row of every round is as expected."""
    with tempfile.TemporaryDirectory(prefix="smtpguard-demo-") as name, ExitStack() as held:
        directory = Path(name)
        async with open_internet(directory, [case.site for case in CASES]) as internet:
            ports = Ports(*[held.enter_context(held_port()) for _ in range(4)])
            inside = await inbound.Inside.start(internet.nursery, internet.certificates, ports.inbound)
            state_dir = directory / "state"
            state_dir.mkdir()
            config = directory / "smtpguard.toml"
            config.write_text(configuration(internet, ports, state_dir) + inside.configuration(), "utf-8")
            try:
                async with running(config, directory / "log", ports.admin):
                    rows, inbound_rows = await _round(internet, ports, inside)
                    rounds.take([*rows, *inbound_rows])
                    write(f"{table(rows)}\n\n{inbound.table(inbound_rows)}")
                    if serves:
                        write(
                            f"\nserving until interrupted, a round of mail every {PAUSE_SECONDS:g} s:\n"
                            f"  SMTP 127.0.0.1:{ports.smtp}, LMTP 127.0.0.1:{ports.lmtp}\n"
                            f"  inbound 127.0.0.1:{ports.inbound}\n"
                            f"  live page http://127.0.0.1:{ports.admin}/, metrics http://127.0.0.1:{ports.admin}/metrics\n"
                            f"  log {directory / 'log'}\n"
                            f"  smtpguard explain DOMAIN --config {config}"
                        )
                    while serves:
                        await trio.sleep(PAUSE_SECONDS)
                        rows, inbound_rows = await _round(internet, ports, inside)
                        if not rounds.take([*rows, *inbound_rows]):
                            wrong = [row for row in rows if not row.is_as_expected]
                            wrong_inbound = [row for row in inbound_rows if not row.is_as_expected]
                            parts = [table(wrong)] * bool(wrong) + [inbound.table(wrong_inbound)] * bool(wrong_inbound)
                            write("\n".join([f"\nround {rounds.whole}:", *parts]))
            except NotReady as error:
                write(str(error))
                return 1
    return rounds.exit_code


async def _round(
    internet: Internet, ports: Ports, inside: inbound.Inside
) -> tuple[list[Row], list[inbound.InboundRow]]:
    """Every case once, both ways."""
    return [await try_case(internet, ports, case) for case in CASES], await inside.try_all()


async def try_case(internet: Internet, ports: Ports, case: Case) -> Row:
    """Send the three messages of one row."""
    host = internet.hosts[case.site.domain]
    recipient = f"bob@{case.site.domain}"

    async def ordinary(content: bytes) -> str:
        return (await internet.opportunistic_sender.send(SENDER, [recipient], content)).detail

    async def by_smtp(content: bytes) -> str:
        return await _submit(ports.smtp, recipient, content, lmtp=False)

    async def by_lmtp(content: bytes) -> str:
        return await _submit(ports.lmtp, recipient, content, lmtp=True)

    return Row(
        case,
        await _measure(internet, host, "ordinary", ordinary),
        await _measure(internet, host, "smtp", by_smtp),
        await _measure(internet, host, "lmtp", by_lmtp),
    )


async def _measure(internet: Internet, host: Host, way: str, send: Callable[[bytes], Awaitable[str]]) -> Result:
    """Send a message that no other resembles, and look where it came out."""
    mark = f"{way}.{next(internet.serials)}.{host.domain}".encode()
    reply = await send(b"Subject: demo\r\n\r\n" + mark + b"\r\n")
    arrived = [message for message in host.mx.messages if mark in message.content]
    read = host.attacker is not None and host.attacker.has_read(mark)
    forged = any(mark in message.content for message in internet.forged_mx.messages)
    return Result(bool(arrived), any(message.over_tls for message in arrived), read or forged, reply)


async def _submit(port: int, recipient: str, content: bytes, *, lmtp: bool) -> str:
    """Give smtpguard one message; the reply that decided, or how the session was lost."""
    client = await Client.connect("127.0.0.1", port)
    try:
        with trio.fail_after(SEND_SECONDS):
            await client.reply()
            await client.hello("mta.sender.example", "LHLO" if lmtp else "EHLO")
            sent = await client.send(SENDER, [recipient], content, lmtp=lmtp)
            await client.quit()
            return str(sent.last_reply)
    except (*Lost, trio.TooSlowError) as error:
        return f"session lost: {error!r}"
    finally:
        client.conversation.close()


def table(rows: Sequence[Row]) -> str:
    """The rows as text, the reply under each, and a last line that counts."""
    lines = [("domain", "publishes", "attack", "an ordinary sender", "smtpguard", "")]
    replies = [""]
    for row in rows:
        site = row.case.site
        ours = str(row.by_smtp)
        if str(row.by_lmtp) != ours:
            ours = f"{ours} / LMTP: {row.by_lmtp}"
        mark = "ok" if row.is_as_expected else "WRONG"
        lines.append(
            (
                site.domain,
                site.publishes.value,
                site.attack.value,
                str(row.ordinary),
                ours,
                mark,
            )
        )
        replies.append(shorten(row.by_smtp.reply, REPLY_COLUMNS, placeholder=" ..."))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = []
    for line, reply in zip(lines, replies, strict=True):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if reply:
            text.append(f"    {reply}")
    good = sum(row.is_as_expected for row in rows)
    return "\n".join([*text, f"{good} of {len(rows)} rows as expected"])
