"""The MTA behind an inbound listener, scripted: what it offers, says and does can be set, and all it heard is kept."""

import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

OFFER = (b"PIPELINING", b"SIZE 1000000", b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES")
XCLIENT = b"XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
CUT = b"cut"
"""A reply that is none: the MTA closes the connection."""
RESET = b"reset"


@dataclass
class Heard:
    """One connection: command lines, what was in BDAT, and messages whose end was heard."""

    lines: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    proxy: bytes = b""
    unfinished: bytes = b""
    """Octets of a message that did not end."""
    closed: bool = False
    tls: bool = False

    def verbs(self) -> list[bytes]:
        """The first word of each line."""
        return [line.split(b" ")[0].upper() for line in self.lines]

    def of(self, verb: bytes) -> list[bytes]:
        """The lines with this verb."""
        return [line for line in self.lines if line.upper().startswith(verb)]


Script = Callable[[bytes], Awaitable[bytes | None]]


@dataclass
class Mta:
    """`replies` overrides by verb (`GREETING`, `EOD` too): bytes without CRLF, lines split at newlines; `script` is
    asked first, and None means the ordinary reply."""

    offer: tuple[bytes, ...] = OFFER
    replies: dict[bytes, bytes] = field(default_factory=dict)
    script: Script | None = None
    proxy: bool = False
    pipelining: bool = True
    heard: list[Heard] = field(default_factory=list)
    port: int = 0
    started: bool = False
    path: str = ""
    """Listen on this unix socket instead."""
    tls: ssl.SSLContext | None = None
    """Take STARTTLS, which `offer` may name: it is offered in clear only."""
    streams: list[trio.SocketStream] = field(default_factory=list)
    """The connections that are open now; closing one is how an MTA dies at any moment."""

    async def start(self, nursery: trio.Nursery) -> None:
        """Listen on a free port of loopback, or at `path`."""
        self.started = True
        if self.path:
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.bind(self.path)
            sock.listen()
            listener = trio.SocketListener(sock)
        else:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, self.session, [listener])

    @property
    def clients(self) -> list[Heard]:
        """The connections but those of the profile and the open-relay probe."""
        return [
            heard
            for heard in self.heard
            if not any(b"probe.example.com" in line for line in heard.lines) and (heard.lines or heard.proxy)
        ]

    @property
    def messages(self) -> list[bytes]:
        """Every message whose end came."""
        return [message for heard in self.heard for message in heard.messages]

    async def session(self, stream: trio.SocketStream) -> None:
        """One connection."""
        heard = Heard()
        self.heard.append(heard)
        self.streams.append(stream)
        try:
            async with stream:
                await _Dialogue(self, stream, heard).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, _Cut):
            pass
        finally:
            heard.closed = True
            self.streams.remove(stream)


class _Cut(Exception):
    """The script wants the connection closed."""


class _Dialogue:
    def __init__(self, mta: Mta, stream: trio.SocketStream, heard: Heard) -> None:
        self.mta = mta
        self.socket = stream.socket
        self.stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = stream
        self.heard = heard
        self.buffer = b""
        self.mail = False
        self.rcpts = 0
        self.bad_chunk = False

    def reset(self) -> None:
        self.mail, self.rcpts, self.bad_chunk = False, 0, False
        self.heard.chunks = []

    async def more(self) -> None:
        octets = await self.stream.receive_some(65536)
        if not octets:
            raise _Cut
        self.buffer += octets

    async def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            await self.more()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    async def say(self, reply: bytes) -> None:
        if reply == CUT:
            raise _Cut
        if reply == RESET:
            self.socket.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0
            raise _Cut
        *more, last = reply.split(b"\n")
        code = reply[:3]
        out = b"".join((code + b"-" + line.removeprefix(code + b"-") + b"\r\n") for line in more)
        await self.stream.send_all(out + (last if not more else code + b" " + last.removeprefix(code + b" ")) + b"\r\n")

    async def answer(self, verb: bytes, line: bytes, ordinary: bytes) -> bytes:
        reply = await self.mta.script(line) if self.mta.script is not None else None
        if reply is None:
            reply = self.mta.replies.get(verb, ordinary)
        await self.say(reply)
        return reply

    async def run(self) -> None:
        if self.mta.proxy:
            await self.read_proxy()
        if not (await self.answer(b"GREETING", b"GREETING", b"220 mta.example ESMTP")).startswith(b"220"):
            return
        while True:
            line = await self.line()
            self.heard.lines.append(line)
            verb = line.split(b" ")[0].upper()
            await self.command(verb, line)
            if verb == b"QUIT":
                return

    async def read_proxy(self) -> None:
        while len(self.buffer) < 16:
            await self.more()
        length = 16 + int.from_bytes(self.buffer[14:16], "big")
        while len(self.buffer) < length:
            await self.more()
        self.heard.proxy, self.buffer = self.buffer[:length], self.buffer[length:]

    async def command(self, verb: bytes, line: bytes) -> None:
        match verb:
            case b"EHLO":
                self.reset()
                secured = isinstance(self.stream, trio.SSLStream)
                offer = b"\n".join(word for word in self.mta.offer if not (secured and word == b"STARTTLS"))
                await self.answer(verb, line, b"250-mta.example Hello\n" + offer if offer else b"250 mta.example")
            case b"HELO" | b"RSET":
                self.reset()
                await self.answer(verb, line, b"250 2.0.0 Ok")
            case b"STARTTLS" if self.mta.tls is not None:
                if (await self.answer(verb, line, b"220 2.0.0 go ahead")).startswith(b"220"):
                    assert isinstance(self.stream, trio.SocketStream)
                    self.stream = trio.SSLStream(self.stream, self.mta.tls, server_side=True, https_compatible=True)
                    await self.stream.do_handshake()
                    self.heard.tls = True
            case b"XCLIENT":
                if await self.answer(verb, line, b"220 mta.example ESMTP") == b"220 mta.example ESMTP":
                    self.mail, self.rcpts = False, 0
            case b"MAIL":
                if self.mail:
                    await self.say(b"503 5.5.1 nested MAIL")
                    return
                self.mail = (await self.answer(verb, line, b"250 2.1.0 Ok")).startswith(b"2")
                self.rcpts = 0
            case b"NOOP":
                await self.answer(verb, line, b"250 2.0.0 Ok")
            case b"VRFY":
                await self.answer(verb, line, b"252 2.5.2 send some mail")
            case b"RCPT":
                if not self.mail:
                    await self.say(b"503 5.5.1 need MAIL")
                    return
                ordinary = b"554 5.7.1 Relay access denied" if b":<probe@" in line else b"250 2.1.5 Ok"
                self.rcpts += (await self.answer(verb, line, ordinary)).startswith(b"2")
            case b"DATA":
                await self.data(line)
            case b"BDAT":
                await self.bdat(line)
            case b"QUIT":
                await self.answer(verb, line, b"221 2.0.0 Bye")
            case _:
                await self.answer(verb, line, b"502 5.5.1 unknown")

    async def data(self, line: bytes) -> None:
        if not self.mail or self.heard.chunks:
            await self.say(b"503 5.5.1 send MAIL first")
            return
        if not self.rcpts:
            await self.say(b"554 5.5.1 no valid recipients")
            return
        if not (await self.answer(b"DATA", line, b"354 go ahead")).startswith(b"354"):
            return
        content = b""
        end = b"\r\n.\r\n"
        try:
            while not (content.startswith(b".\r\n") or end in content):
                if not self.buffer:
                    await self.more()
                content, self.buffer = content + self.buffer, b""
                reply = await self.mta.script(b"CONTENT") if self.mta.script is not None else None
                if reply is not None:
                    await self.say(reply)
        except BaseException:
            self.heard.unfinished = content
            raise
        at = 0 if content.startswith(b".\r\n") else content.index(end) + 2
        content, self.buffer = content[:at], content[at + 3 :]
        self.heard.messages.append(content)
        self.mail, self.rcpts = False, 0
        await self.answer(b"EOD", b"EOD", b"250 2.0.0 queued as 1")

    async def bdat(self, line: bytes) -> None:
        size = int(line.split()[1])
        while len(self.buffer) < size:
            await self.more()
        chunk, self.buffer = self.buffer[:size], self.buffer[size:]
        last = line.upper().endswith(b"LAST")
        if not self.mail or self.bad_chunk or not self.rcpts:
            await self.say(b"554 5.5.1 no valid recipients" if self.mail and not self.bad_chunk else b"503 5.5.1 no")
            self.bad_chunk = self.mail
            if last:  # the end of a message is the end of its transaction, whatever became of it: as in Postfix
                self.reset()
            return
        self.heard.chunks.append(chunk)
        reply = await self.answer(b"BDAT", line, b"250 2.0.0 Ok")
        if last and reply.startswith(b"2"):
            self.heard.messages.append(b"".join(self.heard.chunks))
            self.heard.chunks = []
            self.mail, self.rcpts = False, 0
