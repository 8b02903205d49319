"""inbound.verdict: the rules asked for one session, and what is told of their answers."""

from dataclasses import dataclass, field
from ipaddress import ip_address

from smtpguard.clock import Ids
from smtpguard.events import DeliveryRefused, Event, RuleShadowed
from smtpguard.inbound.record import Record
from smtpguard.inbound.settings import InboundListener, Mta
from smtpguard.inbound.verdict import Verdicts
from smtpguard.names import Domain
from smtpguard.policy.inbound import ClientFacts, InboundRule, InboundRules
from smtpguard.policy.rules import Mode, OnFailure
from smtpguard.policy.scopes import RecipientDomain, Scope, SenderDomain
from smtpguard.smtp.commands import Bdat, Data, Mail, Noop, parse_command
from smtpguard.smtp.forwarded import ClientIdentity
from smtpguard.smtp.replies import Reply
from smtpguard.tls.outcome import TlsVersion
from tests.support.clock import test_clock

ADDRESS = ip_address("192.0.2.79")
SECURED = ClientFacts(ADDRESS, encrypted=True, version=TlsVersion.TLS_1_3)
SECRET = RecipientDomain("secret.example")


def mail(sender: str = "a@a.example") -> Mail:
    command = parse_command(f"MAIL FROM:<{sender}>".encode())
    assert isinstance(command, Mail)
    return command


@dataclass
class Asked:
    """One session's verdicts, at the clock's start, and what they told."""

    rules: InboundRules
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock = test_clock()
        listener = InboundListener("mx", (), "starttls", Mta("127.0.0.1"))
        record = Record(Ids(clock.now(), nonce=1).session(), listener, "192.0.2.79:1000", clock, self.events.append)
        record.client = ClientIdentity(address=ADDRESS)
        self.session = record.session
        self.verdicts = Verdicts(self.rules, record, clock)
        self.verdicts.facts = ClientFacts(ADDRESS)

    def rcpt(self, recipient: str = "x@secret.example", sender: str = "a@a.example") -> Reply | None:
        return self.verdicts.refusal(parse_command(f"RCPT TO:<{recipient}>".encode()), mail(sender))


def rules(scope: Scope = SECRET, *, mode: Mode = Mode.ENFORCE, on_fail: OnFailure = OnFailure.PERMFAIL) -> InboundRules:
    return InboundRules((InboundRule(scope, mode=mode, on_fail=on_fail),))


async def test_a_refusal_is_told_once_with_the_id_of_the_reply() -> None:
    """DESIGN §2 law 6; STLS-15, OUT-29."""
    asked = Asked(rules())
    reply = asked.rcpt()
    assert reply is not None
    assert str(reply).startswith("530 5.7.0 [inbound/tls-required] recipient domain secret.example")
    (event,) = asked.events
    assert isinstance(event, DeliveryRefused)
    assert event.id == f"{asked.session}.1"
    assert event.id in str(reply)
    assert event.reply == str(reply)
    assert (event.direction, event.domain, event.client, event.stage) == (
        "inbound", "secret.example", "192.0.2.79", "rcpt",
    )  # fmt: skip
    assert asked.rcpt() is not None
    assert [getattr(event, "id", "") for event in asked.events] == [f"{asked.session}.1", f"{asked.session}.2"]


async def test_what_may_pass_is_not_told() -> None:
    """Nor does it use up an id."""
    asked = Asked(rules())
    assert asked.rcpt("b@open.example") is None
    assert asked.rcpt("postmaster@secret.example") is None
    for command in (Noop(), Data(), mail()):
        assert asked.verdicts.refusal(command, mail()) is None
    asked.verdicts.facts = SECURED
    assert asked.rcpt() is None
    assert asked.events == []


async def test_submission_in_clear() -> None:
    """SUB-02, DESIGN §2 law 6: told once a session, with the id that every such reply has."""
    asked = Asked(InboundRules(submission=True))
    assert asked.verdicts.before_tls(Noop()) is None
    reply = asked.verdicts.before_tls(mail())
    assert str(reply) == (
        f"530 5.7.0 [inbound/tls-required] submission: TLS is required, issue STARTTLS first (id {asked.session}.1)"
    )
    assert asked.verdicts.before_tls(Data()) is reply
    assert asked.verdicts.before_tls(Bdat(5, last=True)) is reply
    (event,) = asked.events
    assert isinstance(event, DeliveryRefused)
    assert (event.id, event.domain, event.reason, event.stage) == (
        f"{asked.session}.1", "a.example", "inbound/tls-required", "mail",
    )  # fmt: skip
    asked.verdicts.facts = SECURED
    assert asked.verdicts.before_tls(mail()) is None


async def test_a_rule_has_no_say_before_the_recipient() -> None:
    """STLS-15."""
    asked = Asked(rules(RecipientDomain("*")))
    assert asked.verdicts.before_tls(mail()) is None
    assert asked.verdicts.before_tls(parse_command(b"RCPT TO:<x@secret.example>")) is None
    assert asked.events == []


async def test_temporary() -> None:
    """`on_fail = "tempfail"`."""
    reply = Asked(rules(on_fail=OnFailure.TEMPFAIL)).rcpt()
    assert reply is not None
    assert (reply.code, reply.enhanced_status) == (450, "4.7.0")


async def test_a_shadow_is_told_and_refuses_nobody() -> None:
    """What it would have done, met or not."""
    asked = Asked(rules(mode=Mode.SHADOW))
    assert asked.rcpt() is None
    asked.verdicts.facts = SECURED
    assert asked.rcpt() is None
    told = [(event.would, event.rule) for event in asked.events if isinstance(event, RuleShadowed)]
    assert told == [("refuse", "recipient domain secret.example"), ("accept", "recipient domain secret.example")]
    assert len(asked.events) == 2


async def test_a_shadow_beside_a_rule_that_refuses() -> None:
    """One id ties both to the reply."""
    both = InboundRules((InboundRule(SECRET), InboundRule(SenderDomain("a.example"), mode=Mode.SHADOW)))
    asked = Asked(both)
    reply = asked.rcpt()
    assert reply is not None
    assert [type(event) for event in asked.events] == [RuleShadowed, DeliveryRefused]
    assert {getattr(event, "id", "") for event in asked.events} == {f"{asked.session}.1"}


async def test_names_are_bounded_and_printable() -> None:
    """The recipient's domain may be an address literal; nothing of it is raw."""
    asked = Asked(InboundRules(require_tls=True))
    reply = asked.rcpt("x@[192.0.2.1]", sender="")
    assert reply is not None
    event = asked.events[-1]
    assert isinstance(event, DeliveryRefused)
    assert event.domain == "192.0.2.1"
    assert Domain("a.example") not in event.domain
