"""Where do we listen?  (systemd sd_listen_fds(3), sd_notify(3), unix(7))

Binding fails with one line that names the address and the way out.  What is bound here is left clean: the file of a
Unix socket goes with it, unless somebody else's stands there by then.  Inherited sockets are systemd's to remove.
"""

import errno
import grp
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from smtpguard.names import IpAddress, NameInvalid, parse_address
from smtpguard.net.accept import serve as serve  # what one does with a listener
from smtpguard.net.endpoint import Endpoint
from smtpguard.reasons import printable

BACKLOG: Final = 1024
_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_PATH_OCTETS: Final = 107  # unix(7): sun_path with its final NUL
# ip(7) IP_TRANSPARENT, and IPV6_TRANSPARENT of linux/in6.h: not in the socket module
_TRANSPARENT: Final = {socket.AF_INET: (socket.IPPROTO_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}


class BindInvalid(ValueError):
    """The text is not an address to listen on; the message says what would be."""


class ListenFailed(Exception):
    """A listener cannot be opened; the message is one line: which one, why, and the way out."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Where to listen: TCP (`address`, `port`; port 0 lets the kernel choose), a Unix socket (`path`, given
    to `group` with `mode`), or a socket that systemd passes under `fd_name`.  `transparent`: TPROXY leads here.
    """

    address: IpAddress | None = None
    port: int = 0
    path: str = ""
    fd_name: str = ""
    group: str = ""
    mode: int = 0o660
    transparent: bool = False

    @property
    def is_unix(self) -> bool:
        return bool(self.path)

    @property
    def is_local(self) -> bool:
        """Only this host can connect (a passed socket may be anything: not known to be local)."""
        return self.is_unix or (self.address is not None and self.address.is_loopback)

    def __str__(self) -> str:
        return f"fd:{self.fd_name}" if self.fd_name else str(Endpoint(self.address, self.port, self.path))


def parse_bind(text: str, *, group: str = "") -> Bind:
    """`192.0.2.1:25`, `[2001:db8::1]:25`, `unix:/run/x.sock` (opened for `group`) or `fd:NAME`.  Raises
    BindInvalid.
    """
    shown = printable(text, 120)
    if text.startswith("fd:"):
        if not text[3:]:
            raise BindInvalid("fd: needs the FileDescriptorName= of the systemd socket unit, as in fd:lmtp")
        return Bind(fd_name=text[3:])
    if text.startswith("unix:"):
        path = text[5:]
        if not path.startswith("/") or "\0" in path:
            raise BindInvalid(f"{shown}: unix: needs an absolute path, as in unix:/run/smtpguard/lmtp.sock")
        if len(os.fsencode(path)) > _PATH_OCTETS:
            raise BindInvalid(f"{shown}: the path of a Unix socket has at most {_PATH_OCTETS} octets")
        return Bind(path=path, group=group)
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise BindInvalid(f"{shown}: an address and a port are needed, as in 127.0.0.1:10027 or [::1]:10027")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise BindInvalid(f"{shown}: an IPv6 address stands in brackets, as in [::1]:10027")
    if host.startswith("[") and (":" not in host or not host.endswith("]")):
        raise BindInvalid(f"{shown}: only an IPv6 address stands in brackets")
    try:
        address = parse_address(host.strip("[]"))
    except NameInvalid as error:
        raise BindInvalid(f"{shown}: an IP address is needed, not a name (0.0.0.0 or [::] for all)") from error
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text) > 65535:
        raise BindInvalid(f"{shown}: the port must be a number from 0 to 65535")
    return Bind(address, int(port_text))


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """A listening socket systemd passed to us; `name` is its FileDescriptorName=."""

    name: str
    sock: socket.socket


def inherited_sockets(
    environ: MutableMapping[str, str] | None = None, *, first_fd: int = _FIRST_FD
) -> tuple[InheritedSocket, ...]:
    """The sockets of LISTEN_FDS, if LISTEN_PID says they are for us.  Removes the variables: no child may
    see them.

    Raises ListenFailed where a descriptor is not a listening stream socket.
    """
    environ = os.environ if environ is None else environ
    count, pid, names = (environ.pop(key, "") for key in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return ()
    given = names.split(":") if names else []
    found: list[InheritedSocket] = []
    for index in range(int(count)):
        descriptor = first_fd + index
        try:
            sock = socket.socket(fileno=descriptor)
            listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise ListenFailed(f"LISTEN_FDS: descriptor {descriptor} is not a socket: {error.strerror}") from error
        if not listens:
            sock.close()
            raise ListenFailed(f"LISTEN_FDS: descriptor {descriptor} does not listen (ListenStream=, Accept=no)")
        sock.setblocking(False)
        os.set_inheritable(descriptor, False)
        found.append(InheritedSocket(given[index] if index < len(given) else "unknown", sock))
    return tuple(found)


def open_listeners(binds: Sequence[Bind], inherited: Sequence[InheritedSocket] = ()) -> list[socket.socket]:
    """One listening socket per Bind, in order; inherited ones are used where name or address fits.

    All or nothing: on failure those opened here are closed again.  Raises ListenFailed.
    """
    sockets: list[socket.socket] = []
    opened: list[socket.socket] = []
    try:
        for bind in binds:
            sock = _inherited(bind, inherited)
            if sock is None:
                sock = _open(bind)
                opened.append(sock)
            sockets.append(sock)
    except ListenFailed:
        for sock in opened:
            sock.close()
        raise
    return sockets


def refuse_unused(inherited: Sequence[InheritedSocket], used: Sequence[socket.socket]) -> None:
    """Clients of a passed socket that nobody accepts from would wait without end.  Raises ListenFailed."""
    for passed in inherited:
        if passed.sock not in used:
            where = Endpoint.of(passed.sock.family, passed.sock.getsockname())
            raise ListenFailed(
                f"systemd passed the socket {printable(passed.name, 40)} ({where}) and no [[listener]] binds it: "
                f'write bind = ["{where}"], or disable its socket unit'
            )


def _inherited(bind: Bind, inherited: Sequence[InheritedSocket]) -> socket.socket | None:
    for passed in inherited:
        if bind.fd_name:
            if passed.name == bind.fd_name:
                return passed.sock
        elif Endpoint.of(passed.sock.family, passed.sock.getsockname()) == Endpoint(bind.address, bind.port, bind.path):
            return passed.sock
    if bind.fd_name:
        known = ", ".join(sorted({passed.name for passed in inherited})) or "none"
        raise ListenFailed(f"cannot listen on {bind}: systemd passed no socket of this name (passed: {known})")
    return None


def _open(bind: Bind) -> socket.socket:
    if bind.address is None:
        return _open_unix(bind)
    family = socket.AF_INET if bind.address.version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise ListenFailed(f"cannot listen on {bind}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 is a bind of its own
        if bind.transparent:
            _make_transparent(sock, bind)
        sock.bind((str(bind.address), bind.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenFailed(f"cannot listen on {bind}: {_way_out(bind, error)}") from error
    return sock


def _make_transparent(sock: socket.socket, bind: Bind) -> None:
    level, option = _TRANSPARENT[sock.family]
    try:
        sock.setsockopt(level, option, 1)
    except OSError as error:
        sock.close()
        raise ListenFailed(
            f"cannot listen on {bind} for TPROXY: {error.strerror}; it needs CAP_NET_ADMIN "
            "(systemd: AmbientCapabilities=CAP_NET_ADMIN, or a socket unit with Transparent=yes and `bind` fd:NAME); "
            'intercept_by = "redirect" needs no privilege'
        ) from error


def _way_out(bind: Bind, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return (
                "the port is in use; stop the other program "
                f"(`ss -ltnp 'sport = :{bind.port}'` shows it) or change `bind`"
            )
        case errno.EACCES | errno.EPERM:
            return (
                "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE "
                "(systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE), a socket unit, or another port"
            )
        case errno.EADDRNOTAVAIL:
            return "no interface of this host has this address; correct `bind`"
        case errno.EAFNOSUPPORT:
            return "this host has no such address family; remove it from `bind`"
        case _:
            return error.strerror or str(error)


class UnixListener(socket.socket):
    """A bound Unix socket whose file goes when it closes, unless the file is another's by then: a successor may have
    removed ours as stale and bound its own.
    """

    __slots__ = ("_file",)

    def __init__(self) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._file: tuple[str, int, int] | None = None

    def bind(self, address: Any, /) -> None:
        """As of any socket; remembers which file it made."""
        super().bind(address)
        made = os.lstat(address)
        self._file = (address, made.st_dev, made.st_ino)

    def close(self) -> None:
        """Close, and unlink the file if it is still ours."""
        file, self._file = self._file, None
        if file is not None:
            path, device, inode = file
            with suppress(OSError):  # gone already, or the directory is not ours to change
                there = os.lstat(path)
                if (there.st_dev, there.st_ino) == (device, inode):
                    os.unlink(path)
        super().close()


def _open_unix(bind: Bind) -> socket.socket:
    """Bind, give to the group, open the mode, and only then listen: nobody can connect before the
    permissions stand.
    """
    gid = _gid(bind)
    _remove_stale(bind)
    sock = UnixListener()
    try:
        try:
            sock.bind(bind.path)
        except OSError as error:
            raise ListenFailed(f"cannot listen on {bind}: {_unix_way_out(bind, error)}") from error
        try:
            if gid is not None:
                os.chown(bind.path, -1, gid)
            os.chmod(bind.path, bind.mode)
        except OSError as error:
            raise ListenFailed(
                f"cannot listen on {bind}: cannot give it to group {bind.group}: {error.strerror}; "
                f"make our user a member (systemd: SupplementaryGroups={bind.group})"
            ) from error
        sock.listen(BACKLOG)
    except ListenFailed:
        sock.close()
        raise
    return sock


def _gid(bind: Bind) -> int | None:
    if not bind.group:
        return None
    try:
        return grp.getgrnam(bind.group).gr_gid
    except KeyError:
        raise ListenFailed(
            f"cannot listen on {bind}: no group {printable(bind.group, 40)}; create it or correct `group`"
        ) from None


def _remove_stale(bind: Bind) -> None:
    """A socket file that nobody listens on is left from an earlier life; anything else is not ours to
    remove.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(bind.path).st_mode):
            raise ListenFailed(f"cannot listen on {bind}: a file that is not a socket is there; move it away")
    except OSError:
        return  # not there, or bind will say why not
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(bind.path)
    if code == errno.ECONNREFUSED:
        with suppress(OSError):
            os.unlink(bind.path)
    elif code in (0, errno.EAGAIN):
        raise ListenFailed(f"cannot listen on {bind}: another process listens there; stop it or change `bind`")


def _unix_way_out(bind: Bind, error: OSError) -> str:
    directory = os.path.dirname(bind.path)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"there is no directory {directory}; create it (systemd: RuntimeDirectory=)"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"our user may not write to {directory}; change its owner (systemd: RuntimeDirectory=)"
        case errno.EADDRINUSE:
            return "a socket that we may not remove is there; remove it"
        case _:
            return error.strerror or str(error)


def sd_notify(text: str, environ: MutableMapping[str, str] | None = None) -> bool:
    """Tell systemd `READY=1`, `STOPPING=1`, `STATUS=...`; False where there is nobody to tell."""
    target = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if target[:1] not in ("/", "@"):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.sendto(text.encode(), "\0" + target[1:] if target[0] == "@" else target)
        except OSError:
            return False
    return True
