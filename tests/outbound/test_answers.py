"""outbound.answers: what the MTA hears of one next hop."""

import pytest

from smtpguard.dns.resolver import Validation
from smtpguard.outbound.answers import Answers
from smtpguard.reasons import Reason, ReasonCode
from tests.support.zone import Zone


@pytest.mark.parametrize(
    ("code", "validation", "reply"),
    [
        (ReasonCode.DANE_REQUIRED, Validation.TRUSTED, 550),
        (ReasonCode.DANE_INSECURE_MX, Validation.TRUSTED, 550),
        (ReasonCode.DANE_REQUIRED, Validation.OFF, 451),
        (ReasonCode.DANE_INSECURE_MX, Validation.OFF, 451),
        (ReasonCode.DANE_REQUIRED, Validation.LOST, 451),
        (ReasonCode.NO_STARTTLS, Validation.OFF, 550),
    ],
)
def test_nothing_bounces_for_want_of_dnssec_here(code: ReasonCode, validation: Validation, reply: int) -> None:
    """`on_failure = "permfail"` is for what the domain lacks: a resolver that does not validate makes every name look
    insecure."""
    answers = Answers("s.1", "a.example", annotate=True, lookups=Zone({}, validation=validation))
    answers.fail(Reason(code, "mx.a.example"), permanent=True)
    assert answers.final_failure().reply.code == reply


@pytest.mark.parametrize(("confirmed", "reply"), [(True, "550 5.4.4"), (False, "451 4.4.3")])
def test_no_address_is_final_where_the_resolver_answers(confirmed: bool, reply: str) -> None:
    answers = Answers("s.1", "a.example", annotate=True, lookups=Zone({}, confirmed=confirmed))
    answers.fail(Reason(ReasonCode.NO_ADDRESS, "mx.a.example"), permanent=True)
    assert str(answers.final_failure().reply).startswith(reply)
