"""Binding, and sockets from systemd."""

import errno
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from smtpguard.net.listen import (
    Bind,
    BindInvalid,
    InheritedSocket,
    ListenFailed,
    inherited_sockets,
    open_listeners,
    parse_bind,
    sd_notify,
)

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


def test_a_transparent_listener_needs_a_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    """MX-17: without it, the line says what to do; all other listeners do without."""
    options: list[tuple[int, int]] = []

    def refuse(self: socket.socket, level: int, option: int, value: int) -> None:
        options.append((level, option))
        if (level, option) in ((0, 19), (41, 75)):
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    for address in ("127.0.0.1", "::1"):
        with pytest.raises(ListenFailed, match=r"for TPROXY: Operation not permitted; it needs CAP_NET_ADMIN"):
            open_listeners([Bind(ip_address(address), 0, transparent=True)])
    assert {(0, 19), (41, 75)} <= set(options)


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


# -- the file of a Unix socket


def test_the_file_goes_with_its_socket(tmp_path: Path) -> None:
    bind = Bind(path=str(tmp_path / "lmtp.sock"))
    (listener,) = open_listeners([bind])
    assert (tmp_path / "lmtp.sock").is_socket()
    listener.close()
    assert not (tmp_path / "lmtp.sock").exists()
    listener.close()


def test_the_file_of_a_successor_stays(tmp_path: Path) -> None:
    bind = Bind(path=str(tmp_path / "lmtp.sock"))
    (ours,) = open_listeners([bind])
    os.unlink(bind.path)
    (successors,) = open_listeners([bind])
    ours.close()
    assert (tmp_path / "lmtp.sock").is_socket()
    successors.close()
    assert not (tmp_path / "lmtp.sock").exists()


def test_a_file_moved_away_or_replaced_stays(tmp_path: Path) -> None:
    bind = Bind(path=str(tmp_path / "lmtp.sock"))
    (listener,) = open_listeners([bind])
    os.rename(bind.path, tmp_path / "moved")
    (tmp_path / "lmtp.sock").write_text("not ours")
    listener.close()
    assert (tmp_path / "lmtp.sock").read_text() == "not ours"
    assert (tmp_path / "moved").exists()


def test_the_file_of_an_inherited_socket_is_systemds(tmp_path: Path) -> None:
    path = tmp_path / "lmtp.sock"
    systemds = socket.socket(socket.AF_UNIX)
    systemds.bind(str(path))
    systemds.listen()
    (listener,) = open_listeners([Bind(path=str(path))], [InheritedSocket("lmtp", systemds)])
    listener.close()
    assert path.is_socket()


def test_what_was_bound_before_a_failure_leaves_no_file(tmp_path: Path) -> None:
    good, bad = Bind(path=str(tmp_path / "lmtp.sock")), Bind(path=str(tmp_path / "none" / "lmtp.sock"))
    with pytest.raises(ListenFailed, match="no directory"):
        open_listeners([good, bad])
    assert list(tmp_path.iterdir()) == []
