"""Listening sockets that outlive smtpguard, as systemd's do: who calls while it is replaced waits and is not refused.

sockets.py hold NAME=ADDRESS:PORT ...   listens there, and gives the sockets to each who asks (`pod`)
sockets.py take COMMAND ...             becomes the command, which finds them as systemd would pass them (`smtpguard`)

They pass by a socket in a volume that both mount.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

DOOR = Path("/run/smtpguard/sockets")
BACKLOG = 1024  # who waits while nobody accepts


def hold(described: list[str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    names, listeners = [], []
    for one in described:
        name, _, where = one.partition("=")
        address, _, port = where.rpartition(":")
        names.append(name)
        listeners.append(socket.create_server((address, int(port)), backlog=BACKLOG))
    DOOR.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(DOOR))
        door.listen()
        while True:
            taker, _ = door.accept()
            with taker:
                socket.send_fds(taker, [":".join(names).encode()], [each.fileno() for each in listeners])


def take(command: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as door:
        for _ in range(300):
            if door.connect_ex(str(DOOR)) == 0:
                break
            time.sleep(0.1)  # `pod` is starting, too
        else:
            sys.exit(f"{DOOR}: nobody holds the sockets")
        names, descriptors, _, _ = socket.recv_fds(door, 4096, 64)
    # They come in ascending order from 4 on at least, since `door` was 3 or more; systemd's begin with 3.
    for number, descriptor in enumerate(descriptors, 3):
        os.dup2(descriptor, number)
    os.closerange(3 + len(descriptors), max(descriptors) + 1)
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": names.decode()}
    os.execve(command[0], command, {**os.environ, **passed})  # noqa: S606 - as the container's file says


if __name__ == "__main__":
    {"hold": hold, "take": take}[sys.argv[1]](sys.argv[2:])
