"""A mail host that can be stopped at one step of one transaction, to see what a proxy does that dies there.

It speaks enough SMTP for one client at a time a thread, in cleartext, and shares no code with smtpguard.
"""

import socket
import threading
from contextlib import suppress
from enum import Enum

_PATIENCE = 30.0


class Step(Enum):
    """Where the host stops: what it has done when it does."""

    RCPT = "RCPT read, not answered"
    DATA = "RCPT answered, DATA read"
    GO_AHEAD = "354 sent, nothing of the content read"
    CONTENT = "the content read in part"
    DOT = "the final dot read, not answered"
    REPLIED = "the final dot answered while the client slept"


class Stopped:
    """One meeting at a step: the host says `reached` and waits for `go_on`."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.reached = threading.Event()
        self.go_on = threading.Event()


class ScriptedHost:
    """`accepted` are the messages it took responsibility for: it answered 250, whether or not anybody heard it.

    `cut` counts transactions that ended after the 354 without a final dot.
    """

    def __init__(self, address: str, stopped: Stopped | None) -> None:
        self.accepted: list[bytes] = []
        self.cut = 0
        self._stopped = stopped
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Small, so that a message cannot lie whole in the kernel while nobody reads it.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._sock.bind((address, 25))
        self._sock.listen(64)
        self._sessions: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections, and end the sessions that the client keeps for later."""
        if self._stopped is not None:
            self._stopped.go_on.set()
        for sock in (self._sock, *self._sessions):
            with suppress(OSError):  # closed already
                sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            self._sessions.append(sock)
            thread = threading.Thread(target=self._session, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _session(self, sock: socket.socket) -> None:
        sock.settimeout(_PATIENCE)
        with sock, suppress(OSError), sock.makefile("rb", 4096) as lines:
            sock.sendall(b"220 mx.scripted.test ESMTP\r\n")
            while line := lines.readline(4096):
                verb = line.split(None, 1)[0].upper().rstrip(b":") if line.strip() else b""
                if verb == b"EHLO":
                    sock.sendall(b"250-mx.scripted.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                elif verb == b"DATA":
                    self._meet(Step.DATA)
                    sock.sendall(b"354 go\r\n")
                    self._meet(Step.GO_AHEAD)
                    self._content(sock, lines)
                elif verb == b"QUIT":
                    sock.sendall(b"221 bye\r\n")
                    return
                else:
                    if verb == b"RCPT":
                        self._meet(Step.RCPT)
                    sock.sendall(b"250 2.0.0 ok\r\n")

    def _content(self, sock: socket.socket, lines: object) -> None:
        kept: list[bytes] = []
        octets = 0
        try:
            while (line := lines.readline(65536)) != b".\r\n":  # type: ignore[attr-defined]
                if not line:
                    raise ConnectionResetError
                kept.append(line)
                octets += len(line)
                if octets > 100_000:
                    self._meet(Step.CONTENT)
        except OSError:
            self.cut += 1
            raise
        self._meet(Step.DOT)
        self._meet(Step.REPLIED)
        self.accepted.append(b"".join(kept))
        sock.sendall(b"250 2.0.0 taken\r\n")

    def _meet(self, step: Step) -> None:
        stopped = self._stopped
        if stopped is not None and stopped.step is step and not stopped.reached.is_set():
            stopped.reached.set()
            stopped.go_on.wait(_PATIENCE)
