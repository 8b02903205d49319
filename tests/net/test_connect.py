"""Which addresses are dialled, and how an attempt ends.  (TO-01, MX-08)"""

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trio

from smtpguard.net.connect import (
    CONNECT_SECONDS,
    AddressRules,
    ConnectFailed,
    ConnectFailure,
    Verdict,
    connect,
    connect_unix,
)
from smtpguard.net.wire import Endpoint, Wire
from tests.support.clock import test_clock
from tests.support.waits import open_descriptors

LOOPBACK = ip_address("127.0.0.1")


@pytest.mark.parametrize(
    ("address", "verdict"),
    [
        ("8.8.8.8", Verdict.ALLOWED),
        ("2a00:1450::1", Verdict.ALLOWED),
        ("0.0.0.0", Verdict.UNSPECIFIED),
        ("::", Verdict.UNSPECIFIED),
        ("127.0.0.1", Verdict.LOOPBACK),
        ("127.8.9.10", Verdict.LOOPBACK),
        ("::1", Verdict.LOOPBACK),
        ("169.254.1.1", Verdict.LINK_LOCAL),
        ("fe80::1", Verdict.LINK_LOCAL),
        ("224.0.0.5", Verdict.MULTICAST),
        ("ff02::1", Verdict.MULTICAST),
        ("10.0.0.1", Verdict.NOT_GLOBAL),
        ("172.16.0.1", Verdict.NOT_GLOBAL),
        ("192.168.0.1", Verdict.NOT_GLOBAL),
        ("100.64.0.1", Verdict.NOT_GLOBAL),
        ("255.255.255.255", Verdict.NOT_GLOBAL),
        ("240.0.0.1", Verdict.NOT_GLOBAL),
        ("fd00::1", Verdict.NOT_GLOBAL),
        ("fec0::1", Verdict.NOT_GLOBAL),
        ("::127.0.0.1", Verdict.NOT_GLOBAL),
        ("::ffff:127.0.0.1", Verdict.LOOPBACK),
        ("::ffff:10.0.0.1", Verdict.NOT_GLOBAL),
        ("::ffff:8.8.8.8", Verdict.ALLOWED),
        ("64:ff9b::7f00:1", Verdict.LOOPBACK),
        ("64:ff9b::a00:1", Verdict.NOT_GLOBAL),
        ("64:ff9b::808:808", Verdict.ALLOWED),
        ("2002:7f00:1::1", Verdict.LOOPBACK),
        ("2002:a00:1::1", Verdict.NOT_GLOBAL),
        ("2606:4700::1", Verdict.OWN),
        ("9.9.9.9", Verdict.OWN),
        ("::ffff:9.9.9.9", Verdict.OWN),
        ("64:ff9b::909:909", Verdict.OWN),
    ],
)
def test_mx08_each_address_has_its_verdict(address: str, verdict: Verdict) -> None:
    rules = AddressRules(own_addresses=frozenset({ip_address("9.9.9.9"), ip_address("2606:4700::1")}))
    assert rules.verdict(ip_address(address), 25) is verdict
    assert rules.forbidden(ip_address(address), 25) == verdict.value


def test_allow_destinations_opens_networks() -> None:
    rules = AddressRules(allow=(ip_network("127.0.0.0/8"), ip_network("10.1.0.0/16"), ip_network("::1/128")))
    assert rules.forbidden(LOOPBACK, 25) == ""
    assert rules.forbidden(ip_address("::1"), 25) == ""
    assert rules.forbidden(ip_address("::ffff:10.1.2.3"), 25) == ""
    assert rules.forbidden(ip_address("64:ff9b::a01:203"), 25) == ""
    assert rules.verdict(ip_address("10.2.0.1"), 25) is Verdict.NOT_GLOBAL


def test_a_route_opens_private_and_own_addresses_but_never_our_listeners() -> None:
    own = ip_address("10.0.0.7")
    rules = AddressRules(own_addresses=frozenset({own}), own_listeners=frozenset({Endpoint(own, 25)}))
    assert rules.verdict(own, 2525) is Verdict.OWN
    assert rules.verdict(own, 2525, routed=True) is Verdict.ALLOWED
    assert rules.verdict(own, 25, routed=True) is Verdict.OWN_LISTENER
    assert rules.verdict(ip_address("::ffff:10.0.0.7"), 25, routed=True) is Verdict.OWN_LISTENER


def test_a_wildcard_listener_is_every_address_that_is_known_as_ours() -> None:
    rules = AddressRules(
        allow=(ip_network("127.0.0.0/8"),),
        own_addresses=frozenset({ip_address("9.9.9.9")}),
        own_listeners=frozenset({Endpoint(ip_address("0.0.0.0"), 25), Endpoint(None, 0, "/run/x")}),
    )
    assert rules.verdict(ip_address("127.0.0.5"), 25) is Verdict.OWN_LISTENER
    assert rules.verdict(ip_address("9.9.9.9"), 25, routed=True) is Verdict.OWN_LISTENER
    assert rules.verdict(ip_address("127.0.0.5"), 26) is Verdict.ALLOWED
    here = Endpoint(ip_address("192.168.7.7"), 25)
    assert rules.reached_ourselves(Endpoint(here.address, 43210), here)
    assert not rules.reached_ourselves(Endpoint(ip_address("192.168.7.8"), 43210), here)
    assert not rules.reached_ourselves(Endpoint(here.address, 43210), Endpoint(here.address, 26))


@contextmanager
def listening(family: int = socket.AF_INET, backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        listener.listen(backlog)
        yield listener


@pytest.mark.parametrize("mapped", [False, True])
async def test_connect_gives_a_wire(mapped: bool) -> None:
    with listening() as listener:
        address = ip_address("::ffff:127.0.0.1") if mapped else LOOPBACK
        wire = await connect(address, listener.getsockname()[1], source=ip_address("127.0.0.2"), clock=test_clock())
        assert isinstance(wire, Wire)
        accepted, (host, _port) = listener.accept()
        with accepted:
            assert host == "127.0.0.2"
            assert str(wire.peer) == f"127.0.0.1:{listener.getsockname()[1]}"
            assert wire._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        wire.close()


async def test_a_closed_port_is_refused_and_nothing_leaks() -> None:
    with listening() as listener:
        port = listener.getsockname()[1]
    before = open_descriptors()
    failed = await connect(LOOPBACK, port, clock=test_clock())
    assert failed == ConnectFailed(ConnectFailure.REFUSED, "connection refused")
    assert open_descriptors() == before


async def _full_listener(listener: socket.socket) -> list[socket.socket]:
    """Fill the queue: the kernel then drops SYNs, as a dead host does."""
    waiting = []
    for _ in range(8):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.connect_ex(listener.getsockname())
        waiting.append(sock)
    return waiting


async def test_to01_no_answer_ends_after_30_s(autojump_clock: trio.testing.MockClock) -> None:
    """TO-01: one address gets 30 s unless the caller has less."""
    assert CONNECT_SECONDS == 30.0
    with listening(backlog=0) as listener:
        waiting = await _full_listener(listener)
        before = open_descriptors()
        for timeout in (CONNECT_SECONDS, 10.0):
            began = trio.current_time()
            failed = await connect(LOOPBACK, listener.getsockname()[1], timeout=timeout, clock=test_clock())
            assert failed == ConnectFailed(ConnectFailure.TIMEOUT, f"no answer within {timeout:g} s")
            assert trio.current_time() - began == pytest.approx(timeout)
        assert open_descriptors() == before
        for sock in waiting:
            sock.close()


async def test_a_cancelled_connect_leaves_nothing_open() -> None:
    with listening(backlog=0) as listener:
        waiting = await _full_listener(listener)
        before = open_descriptors()
        async with trio.open_nursery() as nursery:

            async def attempt() -> None:
                await connect(LOOPBACK, listener.getsockname()[1], clock=test_clock())

            nursery.start_soon(attempt)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert open_descriptors() == before
        for sock in waiting:
            sock.close()


async def test_our_own_faults_are_not_the_hosts() -> None:
    """A source address that is not here, or of the other family, is LOCAL: the host is not dead."""
    absent = await connect(LOOPBACK, 25, source=ip_address("192.0.2.77"), clock=test_clock())
    assert isinstance(absent, ConnectFailed)
    assert absent.kind is ConnectFailure.LOCAL
    assert "source address 192.0.2.77" in absent.detail
    family = await connect(ip_address("::1"), 25, source=LOOPBACK, clock=test_clock())
    assert family == ConnectFailed(ConnectFailure.LOCAL, "no IPv6 source address is configured")


async def test_without_descriptors_the_failure_is_local() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clock = test_clock()
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        tcp = await connect(LOOPBACK, 25, clock=clock)
        unix = await connect_unix("/nonexistent", clock=clock)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    expected = ConnectFailed(ConnectFailure.EXHAUSTED, os.strerror(errno.EMFILE).lower())
    assert tcp == unix == expected


async def test_connect_unix(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    missing = await connect_unix(path, clock=test_clock())
    assert missing == ConnectFailed(ConnectFailure.REFUSED, "no such file or directory")
    too_long = await connect_unix("/" + "x" * 200, clock=test_clock())
    assert isinstance(too_long, ConnectFailed)
    assert too_long.kind is ConnectFailure.OTHER
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        wire = await connect_unix(path, clock=test_clock())
        assert isinstance(wire, Wire)
        assert wire.peer == Endpoint(None, 0, path)
        wire.close()
