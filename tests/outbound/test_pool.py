"""Which idle connection may serve the next message?  Real wires, the real verdict, Trio's mock clock."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address

import pytest
import trio
from trio.testing import MockClock

from smtpguard.names import Domain
from smtpguard.net.connect import AddressRules
from smtpguard.net.limits import FailureMemory
from smtpguard.net.link import ClientLink
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Why, Wire
from smtpguard.outbound.host import Candidate, Hosts, Opened
from smtpguard.outbound.pool import Pool
from smtpguard.outbound.routes import Routes
from smtpguard.outbound.settings import Outbound
from smtpguard.policy.model import Authentication, Deliver, Encryption, Requirement
from smtpguard.policy.rules import RuleSet
from smtpguard.tls.context import client_context
from smtpguard.tls.outcome import StartTls, TlsOutcome, TlsVersion
from tests.net.peers import wires
from tests.policy.samples import USABLE
from tests.support.clock import test_clock as make_clock

MX = Domain("mx1.example.org")
HERE = Candidate(MX, ip_address("127.0.0.1"), 25, None, Domain("mail.s.example"))
MAY = Requirement(Encryption.IF_OFFERED, Authentication.NONE, "may", MX, ())
NEVER = replace(MAY, encryption=Encryption.NEVER, policy="none")
ENCRYPT = replace(MAY, encryption=Encryption.REQUIRED, policy="encrypt")
TLS_1_3 = replace(ENCRYPT, tls_floor=TlsVersion.TLS_1_3)
DANE = replace(ENCRYPT, authentication=Authentication.DANE, policy="dane", tlsa=USABLE)
PKIX = replace(ENCRYPT, authentication=Authentication.PKIX, policy="sts")

CLEAR = TlsOutcome(StartTls.NOT_OFFERED)
UNTRIED = TlsOutcome(StartTls.NOT_TRIED)
FAILED = TlsOutcome(StartTls.FAILED, "reset")
TLS = TlsOutcome(StartTls.ESTABLISHED, version=TlsVersion.TLS_1_2, cipher="c")


class Kit:
    """A pool, and connections for it; the peers' ends are kept."""

    def __init__(self, stack: ExitStack, capacity: int = 500) -> None:
        self._stack = stack
        self.clock = make_clock()
        self.settings = Outbound(
            Domain("mail.s.example"), RuleSet(), Routes({}, 25), AddressRules(), frozenset(), pool_messages=3
        )
        hosts = Hosts(
            settings=lambda: self.settings,
            roots=lambda _: pytest.fail("no roots are needed"),
            context=client_context,
            memory=FailureMemory(),
            sessions=Sessions(self.clock),
            clock=self.clock,
        )
        self.pool = Pool(lambda: self.settings, hosts, self.clock, capacity)

    def opened(
        self, outcome: TlsOutcome = CLEAR, requirement: Requirement = MAY, candidate: Candidate = HERE
    ) -> tuple[Opened, Wire]:
        """A connection just opened, and the host's end of it."""
        near, far = self._stack.enter_context(wires())
        link = ClientLink(near)
        link._dialogue.owed = 0  # it has greeted
        decision = Deliver(requirement.authentication, outcome.encrypted)
        return Opened(candidate, link, requirement, outcome, decision, "mx", self.clock.monotonic()), far

    def given(self, *args: object, **kwargs: object) -> tuple[Opened, Wire]:
        """The same, in the pool."""
        opened, far = self.opened(*args, **kwargs)  # type: ignore[arg-type]
        self.pool.give(opened)
        return opened, far

    @property
    def count(self) -> str:
        return repr(self.pool)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    with ExitStack() as stack:
        kit = Kit(stack)
        yield kit
        kit.pool.close()


@pytest.fixture
def empty() -> Iterator[str]:
    return "<Pool idle=0 keys=0>"


async def test_what_was_given_is_taken_once(kit: Kit, empty: str) -> None:
    opened, _ = kit.given()
    taken = kit.pool.take(HERE, MAY)
    assert taken is not None
    assert taken.link is opened.link
    assert taken.reused
    assert not taken.link.wire.closed
    assert kit.pool.take(HERE, MAY) is None
    assert kit.count == empty


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, source=ip_address("127.0.0.9")),
        replace(HERE, ehlo=Domain("other.s.example")),
        replace(HERE, address=ip_address("127.0.0.2")),
        replace(HERE, port=26),
        replace(HERE, host=Domain("mx2.example.org")),
    ],
)
async def test_another_key_finds_nothing(kit: Kit, other: Candidate) -> None:
    """DESIGN §6: source, EHLO name, address and port must agree."""
    kit.given()
    assert kit.pool.take(other, MAY) is None
    assert kit.pool.take(HERE, MAY) is not None


async def test_another_server_name_finds_nothing(kit: Kit) -> None:
    """DANE-29: the certificate depends on the SNI."""
    kit.given(TLS, ENCRYPT)
    assert kit.pool.take(HERE, replace(ENCRYPT, sni=Domain("elsewhere.example.org"))) is None
    assert kit.pool.take(HERE, ENCRYPT) is not None


@pytest.mark.parametrize(
    ("outcome", "was", "wanted", "served"),
    [
        (CLEAR, MAY, MAY, True),
        (CLEAR, MAY, NEVER, True),
        (CLEAR, MAY, ENCRYPT, False),
        (CLEAR, MAY, DANE, False),
        (FAILED, MAY, MAY, True),
        (FAILED, MAY, ENCRYPT, False),
        (UNTRIED, NEVER, NEVER, True),
        (UNTRIED, NEVER, MAY, False),
        (UNTRIED, NEVER, ENCRYPT, False),
        (TLS, MAY, MAY, True),
        (TLS, MAY, ENCRYPT, True),
        (TLS, ENCRYPT, NEVER, True),
        (TLS, ENCRYPT, TLS_1_3, False),
        (TLS, ENCRYPT, DANE, False),
        (TLS, MAY, PKIX, False),
    ],
)
async def test_only_what_would_pass_today(
    kit: Kit, empty: str, outcome: TlsOutcome, was: Requirement, wanted: Requirement, served: bool
) -> None:
    """INV-04, INV-05, DESIGN §6: reuse never shows less than a fresh connection would have to."""
    opened, _ = kit.given(outcome, was)
    taken = kit.pool.take(HERE, wanted)
    assert (taken is not None) is served
    assert opened.link.wire.closed is not served
    assert kit.count == empty
    if taken is not None:
        assert taken.requirement is wanted
        assert taken.decision.authenticated_by is wanted.authentication
        assert taken.outcome is outcome


async def test_what_does_not_serve_gives_way_to_what_does(kit: Kit) -> None:
    clear, _ = kit.given(CLEAR, MAY)
    secure, _ = kit.given(TLS, MAY)
    kit.given(CLEAR, MAY)
    taken = kit.pool.take(HERE, ENCRYPT)
    assert taken is not None
    assert taken.link is secure.link
    assert not clear.link.wire.closed


async def test_the_youngest_is_taken_first(kit: Kit, autojump_clock: MockClock) -> None:
    kit.given()
    await trio.sleep(1)
    young, _ = kit.given()
    taken = kit.pool.take(HERE, MAY)
    assert taken is not None
    assert taken.link is young.link


@pytest.mark.parametrize("what", ["closed", "talks", "held", "interrupted", "broken"])
async def test_a_connection_that_is_not_silent_is_not_reused(
    kit: Kit, autojump_clock: MockClock, empty: str, what: str
) -> None:
    """EXT-22, STLS-18, DESIGN §6: only silence is life, also in what was read and not asked for."""
    opened, far = kit.given()
    match what:
        case "closed":
            far.close()
        case "talks":
            await far.send(b"421 4.4.2 idle\r\n")
        case "held":
            opened.link._dialogue.owed = 1
            opened.link._dialogue.receive(b"250 one\r\n250 two\r\n")
            assert opened.link._dialogue.next_reply() is not None
        case "interrupted":
            opened.link.wire.interrupt(Why.TIMEOUT)
        case "broken":
            with trio.move_on_after(1):
                await opened.link.send(b"x" * 10_000_000)
    assert kit.pool.take(HERE, MAY) is None
    assert opened.link.wire.closed
    assert kit.count == empty

    again, far = kit.opened()
    again.link.wire.interrupt(Why.TIMEOUT)
    kit.pool.give(again)
    assert again.link.wire.closed
    assert kit.count == empty


async def test_too_long_idle(kit: Kit, autojump_clock: MockClock, empty: str) -> None:
    """DESIGN §6: 5 s, whether the sweep came by or not."""
    opened, _ = kit.given()
    await trio.sleep(5.5)
    assert kit.pool.take(HERE, MAY) is None
    assert opened.link.wire.closed
    assert kit.count == empty


async def test_the_sweep_says_quit(kit: Kit, autojump_clock: MockClock, empty: str) -> None:
    """SMTP-16: an idle connection ends with QUIT; `run` closes the rest at its end."""
    _, far = kit.given()
    await trio.sleep(3)
    late, late_far = kit.given()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.pool.run)
        await trio.sleep(3.5)
        assert await far.receive() == b"QUIT\r\n"
        assert await far.receive() == b""
        assert kit.count == "<Pool idle=1 keys=1>"
        nursery.cancel_scope.cancel()
    assert late.link.wire.closed
    assert await late_far.receive() == b"QUIT\r\n"
    assert kit.count == empty


async def test_messages_have_a_limit(kit: Kit, empty: str) -> None:
    """DESIGN §6: 100 messages (3 here); the end is QUIT (SMTP-16)."""
    opened, far = kit.opened()
    opened.messages = 3
    kit.pool.give(opened)
    assert opened.link.wire.closed
    assert await far.receive() == b"QUIT\r\n"
    assert kit.count == empty


async def test_age_has_a_limit(kit: Kit, autojump_clock: MockClock, empty: str) -> None:
    """DESIGN §6: 5 minutes."""
    old, _ = kit.opened()
    await trio.sleep(301)
    kit.pool.give(old)
    assert old.link.wire.closed
    assert kit.count == empty


async def test_the_pool_is_bounded(autojump_clock: MockClock) -> None:
    """DESIGN §2(7)."""
    with ExitStack() as stack:
        kit = Kit(stack, capacity=2)
        kept = [kit.given()[0] for _ in range(3)]
        assert [opened.link.wire.closed for opened in kept] == [False, False, True]
        assert kit.count == "<Pool idle=2 keys=1>"
        kit.pool.close()
        assert all(opened.link.wire.closed for opened in kept)


async def test_an_old_deadline_does_not_reach_into_idleness(kit: Kit) -> None:
    """DESIGN §7: the deadline holds while somebody waits, no longer."""
    opened, _ = kit.opened()
    opened.link.wire.deadline = trio.current_time() + 1
    kit.pool.give(opened)
    assert opened.link.wire.deadline == float("inf")
