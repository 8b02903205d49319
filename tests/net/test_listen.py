"""Binding, sockets from systemd, and the accept loop."""

import errno
import grp
import os
import resource
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from smtpguard.events import AcceptPaused, Event, InternalError
from smtpguard.net.listen import (
    Bind,
    BindInvalid,
    InheritedSocket,
    ListenFailed,
    inherited_sockets,
    open_listeners,
    parse_bind,
    sd_notify,
    serve,
)
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import Wire, WireLost
from tests.support.clock import test_clock

ANY_PORT = Bind(ip_address("127.0.0.1"), 0)


# -- what may stand in `bind`


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("0.0.0.0:25", Bind(ip_address("0.0.0.0"), 25)),
        ("127.0.0.1:10027", Bind(ip_address("127.0.0.1"), 10027)),
        ("[::]:25", Bind(ip_address("::"), 25)),
        ("[2001:db8::1]:465", Bind(ip_address("2001:db8::1"), 465)),
        ("unix:/run/smtpguard/lmtp.sock", Bind(path="/run/smtpguard/lmtp.sock")),
        ("fd:lmtp", Bind(fd_name="lmtp")),
    ],
)
def test_binds_are_parsed_and_printed_alike(text: str, bind: Bind) -> None:
    assert parse_bind(text) == bind
    assert str(bind) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an address and a port"),
        ("25", "an address and a port"),
        (":25", "an address and a port"),
        ("localhost:25", "not a name"),
        ("::1:25", "in brackets"),
        ("[127.0.0.1]:25", "only an IPv6"),
        ("[::1:25", "in brackets"),
        ("127.0.0.1:65536", "0 to 65535"),
        ("127.0.0.1:smtp", "0 to 65535"),
        ("127.0.0.1:-1", "0 to 65535"),
        ("[fe80::1%eth0]:25", "an IP address"),
        ("unix:run/x", "absolute path"),
        ("unix:/" + "x" * 120, "at most 107"),
        ("fd:", "FileDescriptorName"),
    ],
)
def test_a_wrong_bind_says_what_would_be_right(text: str, told: str) -> None:
    with pytest.raises(BindInvalid, match=told):
        parse_bind(text)


def test_local_is_loopback_or_unix() -> None:
    assert parse_bind("127.0.0.1:1").is_local
    assert parse_bind("[::1]:1").is_local
    assert parse_bind("unix:/x").is_local
    assert not parse_bind("0.0.0.0:1").is_local
    assert not parse_bind("fd:x").is_local


# -- opening


def test_v4_and_v6_of_one_port_are_two_sockets() -> None:
    (v4,) = open_listeners([ANY_PORT])
    port = v4.getsockname()[1]
    (v6,) = open_listeners([Bind(ip_address("::"), port)])  # would collide without V6ONLY
    assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert not v4.getblocking()
    v4.close()
    v6.close()


def test_a_busy_port_says_so_and_closes_the_others() -> None:
    (busy,) = open_listeners([ANY_PORT])
    port = busy.getsockname()[1]
    with pytest.raises(ListenFailed) as caught:
        open_listeners([ANY_PORT, Bind(ip_address("127.0.0.1"), port)])
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: the port is in use; stop the other program "
        f"(`ss -ltnp 'sport = :{port}'` shows it) or change `bind`"
    )
    busy.close()


def test_an_address_of_another_host_says_so() -> None:
    with pytest.raises(ListenFailed, match=r"cannot listen on 192\.0\.2\.1:0: no interface of this host"):
        open_listeners([Bind(ip_address("192.0.2.1"), 0)])


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "CAP_NET_BIND_SERVICE"),
        (errno.EAFNOSUPPORT, "no such address family"),
        (errno.ENOBUFS, os.strerror(errno.ENOBUFS)),
    ],
)
def test_other_failures_name_the_way_out(number: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What root in a container cannot provoke."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ListenFailed, match=told) as caught:
        open_listeners([Bind(ip_address("127.0.0.1"), 25)])
    assert "\n" not in str(caught.value)


def test_a_unix_socket_is_for_owner_and_group(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    path = tmp_path / "s"
    (sock,) = open_listeners([parse_bind(f"unix:{path}", group=group)])
    status = path.lstat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getgid()
    sock.close()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    bind = parse_bind(f"unix:{tmp_path}/s")
    (old,) = open_listeners([bind])
    old.close()
    (new,) = open_listeners([bind])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bind.path)
    new.close()


def test_a_unix_socket_that_lives_is_left_alone(tmp_path: Path) -> None:
    bind = parse_bind(f"unix:{tmp_path}/s")
    (old,) = open_listeners([bind])
    with pytest.raises(ListenFailed, match="another process listens there"):
        open_listeners([bind])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(bind.path)
    old.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ListenFailed, match="not a socket is there"):
        open_listeners([parse_bind(f"unix:{tmp_path}/s")])
    assert (tmp_path / "s").read_text() == "precious"


def test_unix_failures_name_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ListenFailed, match=r"no directory .*RuntimeDirectory="):
        open_listeners([parse_bind(f"unix:{tmp_path}/none/s")])
    with pytest.raises(ListenFailed, match="no group no-such-group; create it or correct `group`"):
        open_listeners([parse_bind(f"unix:{tmp_path}/s", group="no-such-group")])
    assert not (tmp_path / "s").exists()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    group = grp.getgrgid(os.getgid()).gr_name
    with pytest.raises(ListenFailed, match=f"SupplementaryGroups={group}"):
        open_listeners([parse_bind(f"unix:{tmp_path}/s", group=group)])
    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ListenFailed, match="our user may not write"):
        open_listeners([parse_bind(f"unix:{tmp_path}/t")])


# -- sockets from systemd


@pytest.fixture
def passed() -> Iterator[tuple[int, socket.socket]]:
    """A listening socket at a descriptor far up, as systemd would leave it at 3; inheritable, blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        first = 200
        os.dup2(listener.fileno(), first)
        yield first, listener
        with suppress(OSError):  # the socket object owns and closed it
            os.close(first)


def _environ(count: int, **more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "HOME": "/", **more}


def test_sockets_are_inherited_by_name_or_by_address(passed: tuple[int, socket.socket]) -> None:
    first, listener = passed
    environ = _environ(1, LISTEN_FDNAMES="lmtp")
    (one,) = inherited_sockets(environ, first_fd=first)
    assert one.name == "lmtp"
    assert environ == {"HOME": "/"}  # no child may see them
    assert not one.sock.getblocking()
    assert not os.get_inheritable(one.sock.fileno())
    by_name = open_listeners([parse_bind("fd:lmtp")], [one])
    by_address = open_listeners([Bind(ip_address("127.0.0.1"), listener.getsockname()[1])], [one])
    assert by_name == by_address == [one.sock]
    one.sock.close()


def test_sockets_for_another_process_are_not_ours(passed: tuple[int, socket.socket]) -> None:
    assert inherited_sockets(_environ(1, LISTEN_PID="1"), first_fd=passed[0]) == ()
    assert inherited_sockets({}, first_fd=passed[0]) == ()
    assert inherited_sockets(_environ(1, LISTEN_FDS="many"), first_fd=passed[0]) == ()


def test_a_name_nobody_passed_says_what_was_passed(passed: tuple[int, socket.socket]) -> None:
    other = InheritedSocket("smtp", passed[1])
    with pytest.raises(ListenFailed, match=r"fd:lmtp: .*\(passed: smtp\)"):
        open_listeners([parse_bind("fd:lmtp")], [other])
    with pytest.raises(ListenFailed, match=r"passed: none"):
        open_listeners([parse_bind("fd:lmtp")])


def test_a_descriptor_that_does_not_listen_is_refused() -> None:
    with socket.socket() as idle:
        os.dup2(idle.fileno(), 201)
    with pytest.raises(ListenFailed, match="descriptor 201 does not listen"):
        inherited_sockets(_environ(1), first_fd=201)
    with pytest.raises(ListenFailed, match="descriptor 999 is not a socket"):
        inherited_sockets(_environ(1), first_fd=999)


def test_sd_notify_tells_the_socket_in_the_environment(tmp_path: Path) -> None:
    assert not sd_notify("READY=1", {})
    assert not sd_notify("READY=1", {"NOTIFY_SOCKET": "relative"})
    assert not sd_notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "none")})
    abstract = f"\0smtpguard-test-{os.getpid()}"
    for name, shown in ((str(tmp_path / "n"), str(tmp_path / "n")), (abstract, "@" + abstract[1:])):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(name)
            assert sd_notify("READY=1", {"NOTIFY_SOCKET": shown})
            assert systemd.recv(64) == b"READY=1"


# -- accepting


class Served:
    """A running `serve` and what it emitted."""

    def __init__(self, address: tuple[str, int], slots: trio.Semaphore) -> None:
        self.address = address
        self.slots = slots
        self.sessions = Sessions(test_clock())
        self.events: list[Event] = []

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.address)


@asynccontextmanager
async def served(
    session: Callable[[Wire], Awaitable[object]], *, most: int = 10, farewell: bytes = b""
) -> AsyncIterator[Served]:
    (listener,) = open_listeners([ANY_PORT])
    run = Served(listener.getsockname(), trio.Semaphore(most))
    async with trio.open_nursery() as nursery:

        async def accepting() -> None:
            await serve(
                listener,
                session,
                name="outbound",
                slots=run.slots,
                sessions=run.sessions,
                nursery=nursery,
                clock=test_clock(),
                emit=run.events.append,
                farewell=farewell,
            )

        nursery.start_soon(accepting)
        yield run
        nursery.cancel_scope.cancel()
    listener.close()


async def echo(wire: Wire) -> None:
    while octets := await wire.receive():
        await wire.send(octets)


async def test_each_connection_is_a_session_that_need_not_close() -> None:
    async with served(echo) as run:
        async with await run.dial() as a, await run.dial() as b:
            await a.send_all(b"a")
            await b.send_all(b"b")
            assert await a.receive_some() + await b.receive_some() == b"ab"
            assert len(run.sessions) == 2
            assert run.slots.value == 8
            await a.send_eof()
            assert await a.receive_some() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert run.slots.value == 10
        assert len(run.sessions) == 0
        assert run.events == []


async def test_a_bug_ends_its_session_with_a_farewell_and_no_other() -> None:
    async def buggy(wire: Wire) -> None:
        if await wire.receive() == b"bug":
            raise KeyError("what\r\never")
        await wire.send(b"fine")

    async with served(buggy, farewell=b"421 4.3.0 internal error\r\n") as run:
        async with await run.dial() as good, await run.dial() as bad:
            await bad.send_all(b"bug")
            assert await bad.receive_some() == b"421 4.3.0 internal error\r\n"
            assert await bad.receive_some() == b""
            await good.send_all(b"ok")
            assert await good.receive_some() == b"fine"
        (event,) = run.events
        assert isinstance(event, InternalError)
        assert event.where == "session of outbound"
        assert event.session.startswith("127.0.0.1:")
        assert event.error.startswith("KeyError: 'what")
        assert " at test_listen.py:" in event.error


async def test_a_session_cut_off_is_no_bug() -> None:
    async def lost(wire: Wire) -> None:
        await wire.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.receive)
            nursery.cancel_scope.cancel()
        raise ExceptionGroup("walks", [WireLost("gone")])

    async with served(lost) as run:
        async with await run.dial() as client:
            await client.send_all(b"a")
            assert await client.receive_some() == b""
        assert run.events == []


async def test_without_a_free_slot_accepting_pauses_and_says_so_once() -> None:
    async with served(echo, most=1) as run:
        first = await run.dial()
        async with first:
            await first.send_all(b"a")
            await first.receive_some()
            async with await run.dial() as second, await run.dial() as third:
                await second.send_all(b"b")
                await trio.testing.wait_all_tasks_blocked()
                assert len(run.sessions) == 1  # the others wait in the kernel's queue
                await first.aclose()
                assert await second.receive_some() == b"b"
                await second.aclose()
                await third.send_all(b"c")
                assert await third.receive_some() == b"c"
        assert run.events == [AcceptPaused(listener="outbound", detail="the maximum of sessions is reached")]


async def test_without_descriptors_accepting_pauses_100_ms(autojump_clock: trio.testing.MockClock) -> None:
    async with served(echo) as run:
        first = await run.dial()
        async with first:
            await first.send_all(b"a")
            await first.receive_some()
            second = socket.socket()
            second.setblocking(False)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                second.connect_ex(run.address)
                began = trio.current_time()
                await trio.sleep(1)
                assert trio.current_time() - began == 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert run.events == [AcceptPaused(listener="outbound", detail=os.strerror(errno.EMFILE))]
            assert run.slots.value == 9
            await trio.sleep(0.2)
            assert len(run.sessions) == 2  # it goes on by itself
            second.close()


async def test_sessions_outlive_the_accepting() -> None:
    (listener,) = open_listeners([ANY_PORT])
    sessions = Sessions(test_clock())
    async with trio.open_nursery() as outer:
        scope = trio.CancelScope()

        async def accepting() -> None:
            with scope:
                await serve(
                    listener,
                    echo,
                    name="x",
                    slots=trio.Semaphore(5),
                    sessions=sessions,
                    nursery=outer,
                    clock=test_clock(),
                    emit=lambda event: None,
                )

        outer.start_soon(accepting)
        async with await trio.open_tcp_stream(*listener.getsockname()) as client:
            await client.send_all(b"a")
            assert await client.receive_some() == b"a"
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            await client.send_all(b"b")
            assert await client.receive_some() == b"b"
    listener.close()


async def test_a_listener_that_is_gone_is_an_error() -> None:
    """Not a busy loop: somebody ended what we listen on."""
    (listener,) = open_listeners([ANY_PORT])
    async with trio.open_nursery() as nursery:
        listener.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="Invalid argument"):
            await serve(
                listener,
                echo,
                name="x",
                slots=trio.Semaphore(5),
                sessions=Sessions(test_clock()),
                nursery=nursery,
                clock=test_clock(),
                emit=lambda event: None,
            )
    listener.close()
