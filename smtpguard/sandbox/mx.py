"""What can an MX do, well or badly?  A scripted SMTP server.  (RFC 5321, RFC 3207, RFC 1870, RFC 9422)

Each connection becomes an `MxSession`: the octets it sent in clear and inside TLS, its SNI, its
commands.  Complete messages are in `messages`.  `behaviour` is read anew at each stage, so that a test may
replace it in mid-session.
"""

import socket
import ssl
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from smtpguard.sandbox.behaviour import Behaviour, Drop, Handshake, Lines, Stage, code_of, encode_lines
from smtpguard.sandbox.certificates import Credential
from smtpguard.sandbox.client import dot_unstuffed
from smtpguard.sandbox.conversation import Conversation, Lost, listen, port_of

FATAL_HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"  # the alert record, RFC 8446 §6
SMALL_BUFFER = 4096


@dataclass(frozen=True, slots=True)
class Message:
    """A message this MX took responsibility for (or read whole: `reply` is what it answered)."""

    reverse_path: str
    mail_parameters: str
    recipients: tuple[str, ...]
    content: bytes  # dots unstuffed, terminator removed
    over_tls: bool
    reply: str


@dataclass(slots=True)
class MxSession:
    """One connection, as the MX saw it.  It fills while the connection lives."""

    peer: str
    conversation: Conversation
    sni: str | None = None
    tls_version: str | None = None
    tls_error: str = ""
    commands: list[str] = field(default_factory=list)
    injected_by_client: bytes = b""  # clear octets behind STARTTLS
    ended: bool = False

    @property
    def clear(self) -> bytes:
        """Every octet received in clear; once TLS began only what came before."""
        return bytes(self.conversation.received_clear)

    @property
    def inside_tls(self) -> bytes:
        """Every octet received inside TLS."""
        return bytes(self.conversation.received_tls)


class _Cut(Exception):
    """The script cuts the connection here."""


class Mx:
    """A mail exchanger named `name`.  `sessions` and `messages` are oldest first."""

    def __init__(
        self,
        name: str,
        credential: Credential,
        *,
        by_sni: Mapping[str, Credential] | None = None,
        behaviour: Behaviour | None = None,
    ) -> None:
        self.name = name
        self.credential = credential
        self.by_sni = dict(by_sni or {})
        self.behaviour = behaviour or Behaviour()
        self.sessions: deque[MxSession] = deque(maxlen=1000)
        self.messages: deque[Message] = deque(maxlen=1000)
        self.address = ""
        self.port = 0
        self.seen: Counter[str] = Counter()  # addresses greylisted once
        self._listening = trio.CancelScope()
        self._closed = trio.Event()
        self._closed.set()

    async def start(self, nursery: trio.Nursery, address: str, port: int = 0) -> None:
        """Bind and serve until `stop` or the nursery's end.  Raises OSError."""
        listener = await listen(address, port)
        self.address, self.port = address, port_of(listener)
        self._listening, self._closed = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._serve, listener, nursery, self._listening)

    async def stop(self) -> None:
        """Close the listener; open sessions go on.  The address refuses connections afterwards."""
        self._listening.cancel()
        await self._closed.wait()

    @property
    def clear(self) -> bytes:
        """All octets of all sessions in clear."""
        return b"".join(session.clear for session in self.sessions)

    async def _serve(self, listener: trio.SocketListener, nursery: trio.Nursery, scope: trio.CancelScope) -> None:
        closed = self._closed
        with scope:
            await trio.serve_listeners(self._accept, [listener], handler_nursery=nursery)
        closed.set()

    async def _accept(self, stream: trio.SocketStream) -> None:
        if self.behaviour.small_receive_buffer:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        conversation = Conversation(stream)
        session = MxSession(str(stream.socket.getpeername()[0]), conversation)
        self.sessions.append(session)
        async with stream:
            try:
                await _Dialogue(self, session).run()
                await conversation.aclose()
            except _Cut:
                if self.behaviour.drop is Drop.RESET:
                    conversation.reset()
            except Lost:
                pass
            finally:
                session.ended = True


class _Dialogue:
    """One session's run through the commands."""

    def __init__(self, mx: Mx, session: MxSession) -> None:
        self._mx = mx
        self._session = session
        self._conversation = session.conversation
        self._forget_transaction()

    @property
    def _script(self) -> Behaviour:
        return self._mx.behaviour

    def _forget_transaction(self) -> None:
        self._reverse_path: str | None = None
        self._parameters = ""
        self._recipients: list[str] = []

    async def run(self) -> None:
        await self._reply(Stage.GREETING, self._script.greeting)
        match code_of(self._script.greeting) // 100:
            case 4:
                return
            case 5:
                await self._wait_for_quit()
                return
        while True:
            line = (await self._conversation.receive_line()).decode("utf-8", "replace")
            self._session.commands.append(line)
            verb, _, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    self._forget_transaction()
                    await self._reply(Stage.EHLO, self._script.ehlo or self._ehlo_lines())
                case "HELO":
                    self._forget_transaction()
                    await self._reply(Stage.EHLO, self._script.helo)
                case "STARTTLS":
                    await self._start_tls()
                case "MAIL":
                    await self._mail(rest)
                case "RCPT":
                    await self._rcpt(rest)
                case "DATA":
                    await self._data()
                case "RSET":
                    self._forget_transaction()
                    await self._reply(Stage.RSET, self._script.rset)
                case "NOOP":
                    await self._send("250 2.0.0 ok")
                case "QUIT":
                    await self._reply(Stage.QUIT, self._script.quit)
                    return
                case _:
                    await self._send("500 5.5.2 not understood")

    async def _wait_for_quit(self) -> None:
        """RFC 5321 §3.1: who greets with 554 answers 503 until QUIT."""
        while (line := await self._conversation.receive_line()).upper() != b"QUIT":
            self._session.commands.append(line.decode("utf-8", "replace"))
            await self._send("503 5.5.1 no service here")
        self._session.commands.append("QUIT")
        await self._send(self._script.quit)

    async def _start_tls(self) -> None:
        script, conversation = self._script, self._conversation
        if not script.offers_starttls and script.starttls == Behaviour().starttls:
            await self._send("502 5.5.1 no STARTTLS here")
            return
        await self._reach(Stage.STARTTLS)
        await conversation.send(encode_lines(script.starttls, self._mx.name) + script.injected)
        if code_of(script.starttls) != 220:
            return
        self._session.injected_by_client = conversation.take_buffered()
        await self._reach(Stage.HANDSHAKE)
        if script.handshake in (Handshake.RESET, Handshake.CLOSE, Handshake.GARBAGE, Handshake.ALERT):
            # The ClientHello is read first: unread, it would turn a close into a reset, and garbage into injection.
            await conversation.receive()
        match script.handshake:
            case Handshake.PROPER:
                pass
            case Handshake.RESET:
                conversation.reset()
                raise trio.ClosedResourceError
            case Handshake.CLOSE:
                raise _Cut
            case Handshake.GARBAGE:
                await conversation.send(b"\x00\x01 no TLS here\r\n" * 8)
                await conversation.drain()
                raise _Cut
            case Handshake.ALERT:
                await conversation.send(FATAL_HANDSHAKE_FAILURE)
                await conversation.drain()
                raise _Cut
            case Handshake.HANG:
                await conversation.drain()
                raise _Cut
        try:
            await conversation.start_tls(self._context(), server_side=True)
        except trio.BrokenResourceError as error:
            self._session.tls_error = str(error.__cause__ or error)
            raise
        assert conversation.tls is not None
        self._session.tls_version = conversation.tls.version()
        self._forget_transaction()

    def _context(self) -> ssl.SSLContext:
        """A context for this session alone: its SNI is recorded where it arrives."""
        script, session = self._script, self._session

        def choose(tls: ssl.SSLObject | ssl.SSLSocket, sni: str | None, _: ssl.SSLContext) -> None:
            session.sni = sni
            credential = self._mx.by_sni.get(sni or "")
            if credential is not None:
                tls.context = server_context(credential, script.minimum_tls, script.maximum_tls)

        context = server_context(self._mx.credential, script.minimum_tls, script.maximum_tls)
        context.sni_callback = choose
        return context

    async def _mail(self, rest: str) -> None:
        path, _, parameters = rest.partition(":")[2].strip().partition(" ")
        if self._script.requires_tls and self._conversation.tls is None:
            lines: Lines = "530 5.7.0 Must issue a STARTTLS command first"
        elif self._reverse_path is not None:
            lines = "503 5.5.1 nested MAIL"
        else:
            lines = self._script.mail or "250 2.1.0 ok"
        if code_of(lines) == 250:
            self._reverse_path, self._parameters = path.strip("<>"), parameters
        await self._reply(Stage.MAIL, lines)

    async def _rcpt(self, rest: str) -> None:
        script = self._script
        address = rest.partition(":")[2].strip().partition(" ")[0].strip("<>")
        if self._reverse_path is None:
            lines: Lines = "503 5.5.1 need MAIL"
        elif address in script.rcpt_by_address:
            lines = script.rcpt_by_address[address]
        elif script.greylists and not self._mx.seen[address]:
            self._mx.seen[address] += 1
            lines = "450 4.2.0 greylisted, come back"
        elif script.max_recipients is not None and len(self._recipients) >= script.max_recipients:
            lines = "452 4.5.3 too many recipients"
        else:
            lines = script.rcpt or "250 2.1.5 ok"
        if code_of(lines) // 100 == 2:
            self._recipients.append(address)
        await self._reply(Stage.RCPT, lines)

    async def _data(self) -> None:
        script, conversation = self._script, self._conversation
        usual = "354 go ahead" if self._recipients else "554 5.5.1 no valid recipients"
        lines = script.data or usual
        await self._reply(Stage.DATA, lines)
        if code_of(lines) != 354:
            self._forget_transaction()
            return
        if Stage.BODY in script.drops:
            conversation.put_back(await conversation.receive())
        await self._reach(Stage.BODY)
        stuffed = await self._read_body()
        reply = script.end
        self._mx.messages.append(
            Message(
                reverse_path=self._reverse_path or "",
                mail_parameters=self._parameters,
                recipients=tuple(self._recipients),
                content=dot_unstuffed(stuffed),
                over_tls=conversation.tls is not None,
                reply=encode_lines(reply, self._mx.name).decode().strip(),
            )
        )
        self._forget_transaction()
        await self._reply(Stage.END, reply)
        await self._reach(Stage.IDLE)

    async def _read_body(self) -> bytes:
        """Up to the terminator, which is removed; still dot-stuffed."""
        conversation, pause = self._conversation, self._script.body_pause_seconds
        # The CRLF of the DATA line counts: a lone ".CRLF" is the end of an empty message.
        body = bytearray(b"\r\n")
        while True:
            octets = await conversation.receive(SMALL_BUFFER if pause else 262144)
            if not octets:
                raise trio.BrokenResourceError("closed inside the body")
            searched = max(0, len(body) - 4)
            body += octets
            end = body.find(b"\r\n.\r\n", searched)
            if end >= 0:
                conversation.put_back(bytes(body[end + 5 :]))
                return bytes(body[2 : end + 2])
            if pause:
                await trio.sleep(pause)

    def _ehlo_lines(self) -> tuple[str, ...]:
        script = self._script
        keywords = list(script.extensions)
        if script.offers_starttls and self._conversation.tls is None:
            keywords.append("STARTTLS")
        if script.max_recipients is not None:
            keywords.append(f"LIMITS RCPTMAX={script.max_recipients}")
        lines = ["{name}", *keywords]
        return (*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}")

    async def _reply(self, stage: Stage, lines: Lines) -> None:
        await self._reach(stage)
        await self._send(lines)

    async def _reach(self, stage: Stage) -> None:
        held = self._script.held.get(stage)
        if held is not None:
            await held.wait()
        if stage in self._script.drops:
            raise _Cut

    async def _send(self, lines: Lines) -> None:
        await self._conversation.send(encode_lines(lines, self._mx.name))


def server_context(
    credential: Credential,
    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
) -> ssl.SSLContext:
    """A stdlib server context.  Below TLS 1.2 OpenSSL 3 wants @SECLEVEL=0."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if minimum < ssl.TLSVersion.TLSv1_2:
        context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = minimum, maximum
    context.load_cert_chain(credential.pem_file)
    return context
