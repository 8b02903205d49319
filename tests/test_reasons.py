"""reasons: the one table of refusals is complete, consistent, and fit for a reply line."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.reasons import ReasonCode, ResultType, printable

REFUSALS = [code for code in ReasonCode if code.reply_code >= 400]
HELD = [code for code in ReasonCode if code.reply_code < 400]


def test_tokens_are_unique() -> None:
    """Logs, metrics and `explain` find a reason by its token; two rows of equal values would also be one member."""
    tokens = [code.token for code in ReasonCode]
    assert len(set(tokens)) == len(tokens) == len(ReasonCode.__members__)


@pytest.mark.parametrize("code", ReasonCode, ids=lambda code: code.token)
def test_row(code: ReasonCode) -> None:
    """OUT-01 to OUT-17 in form: reply code and RFC 3463 status agree, the text fits a reply line with host and id."""
    assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)?", code.token)
    assert re.fullmatch(r"[245]\.[0-7]\.\d{1,2}", code.status)
    assert code.status[0] == str(code.reply_code)[0]
    assert code.text == printable(code.text)
    assert not code.text.endswith(".")
    assert len(code.text) <= 120


@pytest.mark.parametrize("code", REFUSALS, ids=lambda code: code.token)
def test_every_refusal_has_a_way_out(code: ReasonCode) -> None:
    """What to do, or whom to tell: a sentence that a table cell of docs/refusals.md can hold."""
    assert code.advice.endswith(".")
    assert code.advice == printable(code.advice, 300)
    assert "|" not in code.advice + code.text


@pytest.mark.parametrize("code", HELD, ids=lambda code: code.token)
def test_what_held_asks_for_nothing(code: ReasonCode) -> None:
    assert (code.reply_code, code.advice) == (250, "")


def test_policy_refusals_are_transient() -> None:
    """DANE-01, STS-31: what a domain publishes and fails is always deferred; the operator's rule may say otherwise."""
    for code in REFUSALS:
        if code.token.partition("/")[0] in ("dane", "sts", "tls", "pkix", "fingerprint", "dns", "host", "load"):
            assert code.reply_code == 451, code


def test_result_types_of_tls_refusals() -> None:
    """RM-01: each TLS refusal has the result type of RFC 8460 that a report will carry."""
    for code in REFUSALS:
        is_tls = code.token.partition("/")[0] in ("dane", "sts", "tls", "pkix", "fingerprint")
        assert not is_tls or isinstance(code.result_type, ResultType), code


@given(st.text() | st.binary(), st.integers(min_value=3, max_value=300))
def test_printable_is_printable_ascii_and_bounded(text: str | bytes, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isascii()
    assert all(" " <= character <= "~" for character in shown)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=50))
def test_printable_leaves_what_is_printable(text: str) -> None:
    assert printable(text, 50) == text == printable(text.encode(), 50)


def test_printable_says_that_it_cut() -> None:
    assert printable("x" * 300, 10) == "xxxxxxx..."
    assert printable(b"a\r\nb\x80") == "a??b?"
