"""How do the sandbox's parties talk over one TCP connection, in clear and then inside TLS?

A `Conversation` is a Trio socket stream with a line buffer; from STARTTLS on with an `ssl.SSLObject` between.
(`trio.SSLStream` would not send the alert of a failed handshake, and real servers do.)
Every octet that arrives is kept in `received_clear` or `received_tls`, up to `KEEP` each.
"""

import contextlib
import functools
import socket
import ssl
import struct
from collections.abc import Callable
from typing import TypeVar

import trio

KEEP = 4 * 1024 * 1024  # octets kept per direction and connection; more is counted, not kept
MAX_LINE = 128 * 1024
TLS_TURN = 64 * 1024  # octets encrypted before they are written out
_T = TypeVar("_T")

Lost = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What ends a conversation: the peer went away, TLS failed, or we closed it ourselves."""


class EndOfStream(trio.BrokenResourceError):
    """The peer closed before the line or reply was complete."""


class Conversation:
    """One connection.  Not safe for two tasks that read, nor for two that write."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._sending = trio.Lock()
        self._buffer = bytearray()
        self.received_clear = bytearray()
        self.received_tls = bytearray()
        self.octets_received = 0
        self.tls: ssl.SSLObject | None = None

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket underneath."""
        return self._stream.socket

    async def receive(self, limit: int = 65536) -> bytes:
        """What is buffered, else the next octets from the peer; b"" at the end of the stream."""
        if self._buffer:
            return self.take_buffered()
        return await self._read(limit)

    async def receive_line(self) -> bytes:
        """The next line without its CRLF (a bare LF ends a line too).  Raises EndOfStream."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise EndOfStream(f"line of more than {MAX_LINE} octets")
            octets = await self._read(65536)
            if not octets:
                raise EndOfStream("closed by the peer")
            self._buffer += octets
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line[:-2] if line.endswith(b"\r\n") else line[:-1]

    async def receive_until(self, mark: bytes) -> bytes:
        """Everything up to and including `mark`.  Raises EndOfStream."""
        searched = 0
        while (at := self._buffer.find(mark, max(0, searched - len(mark)))) < 0:
            searched = len(self._buffer)
            octets = await self._read(262144)
            if not octets:
                raise EndOfStream("closed by the peer")
            self._buffer += octets
        end = at + len(mark)
        found = bytes(self._buffer[:end])
        del self._buffer[:end]
        return found

    async def receive_exactly(self, count: int) -> bytes:
        """The next `count` octets.  Raises EndOfStream."""
        while len(self._buffer) < count:
            octets = await self._read(65536)
            if not octets:
                raise EndOfStream("closed by the peer")
            self._buffer += octets
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def take_buffered(self) -> bytes:
        """What has arrived and was not read; at STARTTLS, what was injected before the handshake."""
        octets = bytes(self._buffer)
        self._buffer.clear()
        return octets

    def put_back(self, octets: bytes) -> None:
        """The next read sees `octets` first."""
        self._buffer[:0] = octets

    async def send(self, octets: bytes) -> None:
        """All of `octets`.  Raises trio.BrokenResourceError."""
        if self.tls is None:
            await self._stream.send_all(octets)
            return
        for start in range(0, len(octets), TLS_TURN):
            self.tls.write(octets[start : start + TLS_TURN])
            await self._flush()

    async def start_tls(self, context: ssl.SSLContext, *, server_side: bool, server_name: str | None = None) -> None:
        """Handshake; what follows is inside TLS.  Raises BrokenResourceError (cause: ssl.SSLError)."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name)
        # What came right behind the 220 is the handshake's; a server that looks for injection took it before.
        self._incoming.write(self.take_buffered())
        await self._exchange(tls.do_handshake)
        self.tls = tls

    async def aclose(self) -> None:
        """Close; with a close_notify where there is TLS."""
        if self.tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()  # the peer's own close_notify is not waited for
            with contextlib.suppress(*Lost):
                await self._flush()
        await self._stream.aclose()

    def close(self) -> None:
        """Close at once and without ceremony: what is to be sent still goes, no close_notify does."""
        self.socket.close()

    def reset(self) -> None:
        """Close at once with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    async def drain(self) -> None:
        """Read and drop what the peer still sends, until it closes."""
        while await self.receive():
            pass

    async def _read(self, limit: int) -> bytes:
        if self.tls is None:
            octets = bytes(await self._stream.receive_some(limit))
            kept = self.received_clear
        else:
            octets = await self._exchange(functools.partial(self._read_tls, self.tls, limit))
            kept = self.received_tls
        self.octets_received += len(octets)
        kept += octets[: max(0, KEEP - len(kept))]
        return octets

    @staticmethod
    def _read_tls(tls: ssl.SSLObject, limit: int) -> bytes:
        try:
            return tls.read(limit)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""  # with or without close_notify: mail servers do both

    async def _exchange(self, step: Callable[[], _T]) -> _T:
        """Run one step of TLS, feeding and draining it; the alert of a failure is still sent."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if octets := await self._stream.receive_some(65536):
                    self._incoming.write(octets)
                else:
                    self._incoming.write_eof()
            except ssl.SSLError as error:
                with contextlib.suppress(*Lost):
                    await self._flush()
                raise trio.BrokenResourceError(str(error)) from error
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        async with self._sending:  # a reader may owe a reply to a key update while another task sends
            if octets := self._outgoing.read():
                await self._stream.send_all(octets)


async def open_conversation(address: str, port: int) -> Conversation:
    """Connect to a literal address.  Raises OSError."""
    family = trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET
    sock = trio.socket.socket(family, trio.socket.SOCK_STREAM)
    try:
        await sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return Conversation(trio.SocketStream(sock))


async def listen(address: str, port: int) -> trio.SocketListener:
    """A listener on exactly this loopback address.  Raises OSError (the port is taken)."""
    if not address.startswith("127."):
        raise ValueError(f"the sandbox stays on 127.0.0.0/8, not {address}")
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
    try:
        # Lets a listener return to a port that its former connections still hold in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind((address, port))
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


def port_of(listener: trio.SocketListener) -> int:
    """The port a listener got."""
    port: int = listener.socket.getsockname()[1]
    return port
