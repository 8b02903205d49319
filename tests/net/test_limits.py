"""The memories of failures and of addresses.  (DESIGN §6)"""

from ipaddress import ip_address

from smtpguard.names import parse_domain
from smtpguard.net.limits import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, AddressMemory, FailureMemory


def test_a_failed_address_is_skipped_60_s_doubling_to_10_min() -> None:
    memory: FailureMemory[str] = FailureMemory()
    now = 1000.0
    pauses = []
    for _ in range(6):
        pause = memory.failed("a", now)
        pauses.append(pause)
        assert memory.is_remembered("a", now + pause - 0.1)
        assert not memory.is_remembered("a", now + pause)
        now += pause
    assert pauses == [60, 120, 240, 480, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]


def test_failures_of_parallel_attempts_count_once() -> None:
    memory: FailureMemory[str] = FailureMemory()
    assert memory.failed("a", 0) == 60
    assert memory.failed("a", 10) == 50
    assert memory.seconds_left("a", 10) == 50


def test_success_forgets() -> None:
    memory: FailureMemory[str] = FailureMemory()
    memory.failed("a", 0)
    memory.succeeded("a")
    memory.succeeded("never failed")
    assert not memory.is_remembered("a", 1)
    assert memory.failed("a", 2) == FIRST_PAUSE_SECONDS


def test_long_good_behaviour_begins_anew() -> None:
    memory: FailureMemory[str] = FailureMemory()
    memory.failed("a", 0)
    assert memory.failed("a", 60 + LONGEST_PAUSE_SECONDS) == FIRST_PAUSE_SECONDS


def test_the_memory_is_bounded() -> None:
    memory: FailureMemory[int] = FailureMemory(capacity=3)
    for key in range(5):
        memory.failed(key, 0)
    assert len(memory) == 3
    assert [memory.is_remembered(key, 1) for key in range(5)] == [False, False, True, True, True]


def test_address_memory_of_a_day() -> None:
    """MX-18: what a look-up saw counts for 24 hours, and seeing it again begins anew."""
    memory = AddressMemory()
    host, other = parse_domain("mx.example.org"), parse_domain("mx2.example.org")
    one, two = ip_address("192.0.2.1"), ip_address("2001:db8::1")
    memory.saw(host, [one, two], 0)
    assert memory.had(host, one, 86_400)
    assert not memory.had(host, one, 86_401)
    assert not memory.had(other, one, 1)
    memory.saw(host, [two], 86_400)
    assert memory.had(host, two, 100_000)
    assert not memory.had(host, one, 100_000)


def test_address_memory_is_bounded() -> None:
    memory = AddressMemory(capacity=3)
    host = parse_domain("mx.example.org")
    for number in range(5):
        memory.saw(host, [ip_address(number)], float(number))
    memory.saw(host, [ip_address(2)], 9.0)
    memory.saw(host, [ip_address(7)], 10.0)
    assert len(memory) == 3
    assert [number for number in range(8) if memory.had(host, ip_address(number), 10.0)] == [2, 4, 7]
