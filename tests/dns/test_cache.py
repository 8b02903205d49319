"""tests for dns/cache.py"""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.dns.cache import (
    FAILURE_SECONDS,
    MAX_NEGATIVE_TTL_SECONDS,
    MAX_TTL_SECONDS,
    LookupCache,
    answer_ttl,
)
from smtpguard.dns.records import Answer, FailureKind, LookupFailed, RdType, Security
from smtpguard.names import Domain

NAME = Domain("mx.example")
ANSWER = Answer(NAME, RdType.A, (), Security.SECURE, NAME, expires=100.0)
FAILED = LookupFailed(NAME, RdType.A, FailureKind.SERVFAIL)


def test_an_answer_comes_back_with_its_verdict_until_it_expires() -> None:
    cache = LookupCache(10)
    cache.keep(ANSWER, now=0.0)
    assert cache.find(NAME, RdType.A, now=99.9) == ANSWER
    assert cache.find(NAME, RdType.AAAA, now=99.9) is None
    assert cache.find(NAME, RdType.A, now=100.0) is None
    assert len(cache) == 0


def test_a_failure_is_kept_for_moments_only() -> None:
    cache = LookupCache(10)
    cache.keep(FAILED, now=50.0)
    assert cache.find(NAME, RdType.A, now=50.0 + FAILURE_SECONDS - 0.1) == FAILED
    assert cache.find(NAME, RdType.A, now=50.0 + FAILURE_SECONDS) is None


def test_a_ttl_of_zero_is_not_kept_and_a_later_answer_replaces_a_failure() -> None:
    cache = LookupCache(10)
    cache.keep(replace(ANSWER, expires=5.0), now=5.0)
    assert len(cache) == 0
    cache.keep(FAILED, now=5.0)
    cache.keep(ANSWER, now=6.0)
    assert cache.find(NAME, RdType.A, now=7.0) == ANSWER


def test_the_least_recently_used_makes_room() -> None:
    cache = LookupCache(2)
    one, two, three = (replace(ANSWER, name=Domain(f"{n}.example")) for n in ("one", "two", "three"))
    cache.keep(one, now=0.0)
    cache.keep(two, now=0.0)
    assert cache.find(one.name, RdType.A, now=1.0) == one
    cache.keep(three, now=1.0)
    assert cache.find(two.name, RdType.A, now=1.0) is None
    assert cache.find(one.name, RdType.A, now=1.0) == one
    cache.clear()
    assert len(cache) == 0


def test_no_entries_keeps_nothing() -> None:
    cache = LookupCache(0)
    cache.keep(ANSWER, now=0.0)
    assert cache.find(NAME, RdType.A, now=0.0) is None


def test_negative_answers_live_as_long_as_the_soa_says() -> None:
    """RFC 2308 §5"""
    assert answer_ttl(0x7FFFFFFF, 300, negative=True) == 300
    assert answer_ttl(60, 300, negative=True) == 60  # an alias on the way
    assert answer_ttl(0x7FFFFFFF, 10**6, negative=True) == MAX_NEGATIVE_TTL_SECONDS
    assert answer_ttl(0x7FFFFFFF, None, negative=True) == FAILURE_SECONDS


def test_positive_ttls_are_bounded_and_the_top_bit_means_zero() -> None:
    """RFC 2181 §8"""
    assert answer_ttl(60, 5, negative=False) == 60
    assert answer_ttl(10**8, None, negative=False) == MAX_TTL_SECONDS
    assert answer_ttl(0x80000000, None, negative=False) == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 20)), max_size=40))
def test_never_more_than_its_bound_and_never_past_its_time(puts: list[tuple[str, int]]) -> None:
    cache = LookupCache(3)
    for now, (label, ttl) in enumerate(puts):
        cache.keep(replace(ANSWER, name=Domain(label), expires=float(now + ttl)), now=float(now))
        assert len(cache) <= 3
        found = cache.find(Domain(label), RdType.A, now=now + ttl - 0.5)
        assert (found is not None) == (ttl > 0)
