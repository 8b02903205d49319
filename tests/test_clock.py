"""Session ids: short, ordered by start, and never the same twice."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import trio

from smtpguard.clock import SYSTEM_CLOCK, Ids

START = datetime(2026, 11, 2, 10, 0, tzinfo=UTC)


def test_ids_count_on() -> None:
    ids = Ids(START, nonce=0x1234)
    made = [ids.session() for _ in range(1500)]
    assert len(set(made)) == 1500
    assert made[0] == made[1].removesuffix("2") + "1"
    assert all(re.fullmatch("[0-9a-hjkmnp-tv-z]{11,13}", one) for one in made)


def test_ids_are_the_same_for_the_same_start_worker_and_nonce() -> None:
    assert Ids(START, 3, 7).session() == Ids(START, 3, 7).session()


@pytest.mark.parametrize(
    "other",
    [
        (START, 0, 8),
        (START, 1, 7),
        (START + timedelta(seconds=1), 0, 7),
    ],
)
def test_two_processes_never_share_an_id(other: tuple[datetime, int, int]) -> None:
    """Two containers that start in the same second, with the same pid, differ by the nonce."""
    ids, others = Ids(START, 0, 7), Ids(*other)
    assert not {ids.session() for _ in range(2000)} & {others.session() for _ in range(2000)}


def test_without_a_nonce_it_is_random() -> None:
    assert len({Ids(START).session() for _ in range(50)}) > 40


def test_later_starts_sort_behind() -> None:
    assert Ids(START, nonce=9).session() < Ids(START + timedelta(seconds=1), nonce=0).session()


def test_a_worker_is_one_digit() -> None:
    assert Ids(START, 31, 0).session()[6] == "z"
    for worker in (-1, 32):
        with pytest.raises(ValueError, match="one base32 digit"):
            Ids(START, worker)


async def test_the_system_clock_is_aware_and_trios() -> None:
    assert SYSTEM_CLOCK.now().tzinfo is UTC
    assert SYSTEM_CLOCK.monotonic() == pytest.approx(trio.current_time(), abs=1)
