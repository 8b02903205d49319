"""inbound.gate: who is let in, by counters alone."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.inbound import gate as gate_module
from smtpguard.inbound.gate import Excess, Gate, client_key
from smtpguard.inbound.limits import Limits
from smtpguard.names import IpAddress

A, B = ip_address("192.0.2.1"), ip_address("192.0.2.2")
MANY = Limits(sessions=1000, sessions_per_client=1000, connections_per_minute=1000)


def enter(gate: Gate, limits: Limits, *clients: IpAddress | None, now: float = 0.0) -> list[Excess | None]:
    return [gate.enter(client, limits, now) for client in clients]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::192.0.2.1", "192.0.2.1", False),
        ("0:0:c000:201::", "192.0.2.1", False),  # the /64 whose bits are those of the IPv4 address
        ("::", "0.0.0.0", False),
    ],
)
def test_who_is_one_client(one: str, other: str, same: bool) -> None:
    """DESIGN §6: an IPv4 address, an IPv6 /64."""
    assert (client_key(ip_address(one)) == client_key(ip_address(other))) is same


@given(st.ip_addresses(v=4), st.ip_addresses(v=6))
def test_families_never_meet(four: IPv4Address, six: IPv6Address) -> None:
    assert client_key(four) != client_key(six) or six.ipv4_mapped == four


def test_all_together() -> None:
    """OUT-20: also those without an address, and those who are not limited."""
    gate = Gate()
    assert enter(gate, Limits(sessions=3), A, B, None, A) == [None, None, None, Excess.SESSIONS]
    assert gate.enter(None, Limits(sessions=3), 0.0) is Excess.SESSIONS
    assert gate.enter(B, Limits(sessions=3), 0.0, unlimited=True) is Excess.SESSIONS
    gate.leave(None)
    assert gate.enter(B, Limits(sessions=3), 0.0) is None
    assert gate.sessions == 3


def test_of_one_client() -> None:
    """AF-50, OUT-21: others are not affected; leaving makes room; what was refused owes nothing."""
    gate, limits = Gate(), Limits(sessions_per_client=2)
    assert enter(gate, limits, A, A, A, B) == [None, None, Excess.PER_CLIENT, None]
    assert gate.sessions == 3
    gate.leave(A)
    assert enter(gate, limits, A, A) == [None, Excess.PER_CLIENT]
    assert gate.enter(A, limits, 0.0, unlimited=True) is None


def test_connections_each_minute() -> None:
    """AF-50: the bucket holds a minute's worth and fills evenly; one that was refused does not take from it."""
    gate, limits = Gate(), Limits(connections_per_minute=6)
    assert enter(gate, limits, *[A] * 8) == [None] * 6 + [Excess.RATE] * 2
    assert enter(gate, limits, B, now=0.0) == [None]
    assert enter(gate, limits, A, now=9.9) == [Excess.RATE]
    assert enter(gate, limits, A, A, now=10.0) == [None, Excess.RATE]
    assert enter(gate, limits, *[A] * 7, now=1000.0) == [None] * 6 + [Excess.RATE]
    assert gate.enter(A, limits, 1000.0, unlimited=True) is None


def test_failed_handshakes() -> None:
    """AF-50: too many, and the client waits; the others do not."""
    gate, limits = Gate(), Limits(handshake_failures_per_minute=2)
    for _ in range(2):
        assert gate.enter(A, limits, 0.0) is None
        gate.handshake_failed(A, limits, 0.0)
    assert enter(gate, limits, A, B, now=29.0) == [Excess.HANDSHAKES, None]
    assert gate.enter(A, limits, 29.0, unlimited=True) is None
    assert enter(gate, limits, A, now=30.0) == [None]
    gate.handshake_failed(None, limits, 30.0)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients seen last are remembered; forgetting one can only be lenient."""
    monkeypatch.setattr(gate_module, "_CLIENTS", 10)
    gate, limits = Gate(), Limits(connections_per_minute=1, handshake_failures_per_minute=1)
    for number in range(1000):
        client = ip_address(0x0A000000 + number)
        assert gate.enter(client, limits, 0.0) is None
        gate.handshake_failed(client, limits, 0.0)
        gate.leave(client)
    assert len(gate._connections) == len(gate._handshakes) == 10
    assert gate._open == {}
    assert gate.enter(ip_address(0x0A000000 + 999), limits, 0.0) is Excess.HANDSHAKES
    assert gate.enter(ip_address(0x0A000000), limits, 0.0) is None


def test_whoever_comes_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "_CLIENTS", 3)
    gate, limits = Gate(), Limits(connections_per_minute=2)
    others = [ip_address(0x0A000000 + number) for number in range(4)]
    enter(gate, limits, A, *others[:2])
    enter(gate, limits, A, *others[2:])
    assert gate.enter(A, limits, 0.0) is Excess.RATE


@given(st.lists(st.tuples(st.sampled_from([A, B, None]), st.booleans()), max_size=60))
def test_counts_are_exact(steps: list[tuple[IpAddress | None, bool]]) -> None:
    """Every `enter` that was granted is undone by one `leave`, whatever the order."""
    gate, limits = Gate(), Limits(sessions=8, sessions_per_client=4)
    inside: list[IpAddress | None] = []
    for client, comes in steps:
        if comes:
            excess = gate.enter(client, limits, 0.0)
            expected = (
                Excess.SESSIONS if len(inside) >= 8
                else Excess.PER_CLIENT if client is not None and inside.count(client) >= 4
                else None
            )  # fmt: skip
            assert excess is expected
            if excess is None:
                inside.append(client)
        elif client in inside:
            gate.leave(client)
            inside.remove(client)
    for client in inside:
        gate.leave(client)
    assert (gate.sessions, gate._open) == (0, {})
