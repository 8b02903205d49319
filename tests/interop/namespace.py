"""A network of the lab's own: no port of the host is taken, and black holes can be dug.

The calling thread, and the processes and threads it starts from then on, live in a new network namespace (Linux,
root).  Loopback is its only interface.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.interop.processes import run

CLONE_NEWNET = 0x40000000
_MINE = "/proc/thread-self/ns/net"
BLACK_HOLE = "198.18.1.7"
"""Packets to this address vanish: it is routed to loopback, where nobody has it."""


@contextmanager
def own_network(*addresses: str) -> Iterator[None]:
    """Move this thread into a new network namespace, and back at the end; `addresses` are further ones of loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(_MINE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(libc.unshare(CLONE_NEWNET), "unshare")
        try:
            run("ip", "link", "set", "lo", "up")
            run("ip", "address", "add", "198.18.0.1/32", "dev", "lo")
            run("ip", "route", "add", f"{BLACK_HOLE}/32", "dev", "lo", "src", "198.18.0.1")
            for address in addresses:
                run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
            yield
        finally:
            _checked(libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


class Network:
    """A further network namespace, empty but for loopback; it lives until `close` and its last process's end."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open(_MINE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(libc.unshare(CLONE_NEWNET), "unshare")
            self._descriptor = os.open(_MINE, os.O_RDONLY | os.O_CLOEXEC)
            _checked(libc.setns(home, CLONE_NEWNET), "setns")
        finally:
            os.close(home)
        with self.entered():
            run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        """What `ip link ... netns` takes."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and what it starts, is in this network for a while."""
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open(_MINE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _checked(libc.setns(self._descriptor, CLONE_NEWNET), "setns")
            try:
                yield
            finally:
                _checked(libc.setns(home, CLONE_NEWNET), "setns")
        finally:
            os.close(home)

    def close(self) -> None:
        os.close(self._descriptor)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
