"""What stands on the path between pod and Internet: an ear that hears every octet, and an attacker who strips STARTTLS.

Threads, which live in the network of the thread that made them; no code of smtpguard.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.interop.processes import run

_ORIGINAL_DST = 80
_MOST_OCTETS = 64 * 1024 * 1024
ATTACKER_PORT = 2525
_RULES = f"""
table ip attacker {{
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    iifname "net0" tcp dport 25 redirect to :{ATTACKER_PORT}
  }}
}}
table ip6 attacker {{
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    iifname "net0" tcp dport 25 redirect to :{ATTACKER_PORT}
  }}
}}
"""


class Ear:
    """Every frame of one interface, from `listening` on."""

    def __init__(self, interface: str) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
        self._sock.bind((interface, 0))
        self._sock.settimeout(0.1)
        self._frames: list[bytes] = []
        self._octets = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @contextmanager
    def listening(self) -> Iterator["Ear"]:
        """Until the end of the block; what is on its way then still counts."""
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()
            self._sock.close()

    def _listen(self) -> None:
        while True:
            try:
                frame = self._sock.recv(65536)
            except TimeoutError:
                if self._ended.is_set():
                    return
                continue
            self._octets += len(frame)
            assert self._octets < _MOST_OCTETS
            self._frames.append(frame)

    def heard(self, words: bytes) -> bool:
        """Was this in any frame, in any case of letters?"""
        return any(words.upper() in frame.upper() for frame in self._frames)


def assert_nothing_in_clear(ear: Ear, marker: str) -> None:
    """INV-04: neither envelope nor the message with this marker; and that the ear hears at all."""
    assert ear.heard(b"EHLO out.sender.test")
    assert not any(ear.heard(words) for words in (b"MAIL FROM", b"RCPT TO", marker.encode()))


class Stripper:
    """Passes everything on to where it was going, without the offer of STARTTLS."""

    def __init__(self) -> None:
        self.stripped = 0
        self._listeners = [
            socket.create_server(("0.0.0.0", ATTACKER_PORT)),
            socket.create_server(("::", ATTACKER_PORT), family=socket.AF_INET6, dualstack_ipv6=False),
        ]
        self._sockets: list[socket.socket] = []

    @contextmanager
    def attacking(self) -> Iterator["Stripper"]:
        """On the path until the end of the block."""
        for listener in self._listeners:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        try:
            run_nft(_RULES)
            yield self
        finally:
            run("nft", "delete", "table", "ip", "attacker")
            run("nft", "delete", "table", "ip6", "attacker")
            for sock in (*self._listeners, *self._sockets):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(_original(client), timeout=20)
                self._sockets += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, strip: bool) -> None:
        with suppress(OSError):
            while octets := source.recv(65536):
                if strip and b"STARTTLS\r\n" in octets:
                    octets = octets.replace(b"STARTTLS\r\n", b"XXXXXXXA\r\n")  # as certain firewalls do
                    self.stripped += 1
                sink.sendall(octets)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _original(sock: socket.socket) -> tuple[str, int]:
    if sock.family == socket.AF_INET:
        port, address = struct.unpack("!2xH4s8x", sock.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DST, 16))
    else:
        port, address = struct.unpack("!2xH4x16s4x", sock.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, 28))
    return socket.inet_ntop(sock.family, address), port


def run_nft(rules: str) -> None:
    """Load nftables rules given as text."""
    run("bash", "-c", 'nft -f - <<< "$0"', rules)
