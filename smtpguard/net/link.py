"""How does a dialogue run over a wire?  The only such loop, for both roles.

`ClientLink` asks and gets one reply a request; `ServerLink` reads groups of commands and writes their
replies at once. A lost wire, a protocol error and an interrupt arrive as exceptions: they end the dialogue,
never a decision.
"""

from collections.abc import Sequence
from contextlib import suppress

from OpenSSL import SSL

from smtpguard.names import Domain
from smtpguard.net.wire import Wire, WireLost
from smtpguard.reasons import printable
from smtpguard.smtp.client import NOTHING_OFFERED, ClientDialogue
from smtpguard.smtp.extensions import Extensions
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.server import ServerDialogue, Slot
from smtpguard.tls.outcome import StartTls, TlsOutcome

_PIPELINED_LINES = 100
"""Command lines written before their replies are read: their replies fit into any receive buffer, so that the two sides
never both wait to be read (RFC 2920 §3.1)."""


class ClientLink:
    """The client role over one wire."""

    __slots__ = ("_dialogue", "esmtp", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.esmtp = False
        self._dialogue = ClientDialogue()

    @property
    def extensions(self) -> Extensions:
        """What the server offered in its last EHLO."""
        return self._dialogue.extensions

    @property
    def is_alive(self) -> bool:
        """Is an idle dialogue in step and its connection good?  Asks the kernel once, without waiting."""
        in_step = not self._dialogue.pending and not self._dialogue.owed
        return in_step and self.wire.interrupted is None and self.wire.is_alive()

    async def reply(self) -> Reply:
        """The next owed reply.  Raises WireLost, RemoteProtocolError, Interrupted."""
        while (reply := self._dialogue.next_reply()) is None:
            octets = await self.wire.receive()
            if not octets:
                raise WireLost("the connection was closed")
            self._dialogue.receive(octets)
        return reply

    async def exchange(self, lines: Sequence[bytes]) -> list[Reply]:
        """One reply for each command line, in order; pipelined where the server offers it (RFC 2920).

        Raises as `reply`; a 421 that ended the dialogue early is told in the WireLost.
        """
        width = _PIPELINED_LINES if self._dialogue.extensions.has("PIPELINING") else 1
        replies: list[Reply] = []
        try:
            for start in range(0, len(lines), width):
                batch = lines[start : start + width]
                await self.wire.send(self._dialogue.request(*batch))
                for _ in batch:
                    replies.append(await self.reply())  # noqa: PERF401  -- those before a loss count
        except WireLost as lost:
            if replies and replies[-1].code == 421:
                raise WireLost(printable(f"it said {replies[-1]}")) from lost
            raise
        return replies

    async def request(self, lines: Sequence[bytes]) -> None:
        """Send command lines at once, to a server that offers PIPELINING; each is owed a `reply`."""
        await self.wire.send(self._dialogue.request(*lines))

    async def hello(self, name: str, *, may_fall_back: bool, extended: bool = True) -> Reply:
        """EHLO, and HELO where that is refused for good and the level allows it (SMTP-04), or not `extended`.

        What an EHLO before it offered holds no longer, PIPELINING above all (RFC 5321 §4.1.4, RFC 2920 §3.1)."""
        self._dialogue.extensions = NOTHING_OFFERED
        if not extended:
            self.esmtp = False
            (reply,) = await self.exchange([b"HELO " + name.encode("ascii")])
            return reply
        (reply,) = await self.exchange([b"EHLO " + name.encode("ascii")])
        self.esmtp = reply.is_positive
        if reply.is_positive:
            self._dialogue.extensions = Extensions.of_reply(reply)
        elif reply.is_permanent and may_fall_back:
            (reply,) = await self.exchange([b"HELO " + name.encode("ascii")])
        return reply

    async def start_tls(self, context: SSL.Context, sni: Domain | None) -> TlsOutcome:
        """STARTTLS and the handshake (RFC 3207 §4); what failed is in the outcome, and the wire is then
        done for.

        After a refusal the dialogue goes on in clear; the caller judges.  Clear octets after the 220 are an
        attack (STLS-11).  Raises HandshakeFailed, WireLost, RemoteProtocolError, Interrupted.
        """
        (reply,) = await self.exchange([b"STARTTLS"])
        if reply.code != 220:
            return TlsOutcome(StartTls.REFUSED, detail=reply.text, failure_code=f"smtp-reply-{reply.code}")
        if self._dialogue.pending:
            return TlsOutcome(
                StartTls.INJECTED, detail="octets in clear after the 220", failure_code="starttls-injection"
            )
        outcome = await self.wire.start_tls(context, server_side=False, sni=sni)
        self._dialogue.tls_started()
        return outcome

    async def send(self, octets: bytes | memoryview) -> None:
        """Message content, after a 354."""
        await self.wire.send(octets)

    async def end_of_data(self, octets: bytes) -> None:
        """The terminator; its reply is owed from here on."""
        self._dialogue.expect_reply()
        await self.wire.send(octets)

    def early_reply(self) -> Reply | None:
        """What the server said inside the content, before its reply was owed; None where it is silent, as it should be.
        Does not wait.  Raises WireLost where it closed, RemoteProtocolError where it said half a reply.
        """
        owed = self._dialogue.owed
        self._dialogue.owed = max(owed, 1)
        while (reply := self._dialogue.next_reply()) is None:
            octets = self.wire.receive_nowait()
            if octets is None:
                if self._dialogue.pending:
                    raise RemoteProtocolError("part of a reply before the end of data")
                self._dialogue.owed = owed
                return None
            if not octets:
                raise WireLost("the connection was closed")
            self._dialogue.receive(octets)
        return reply

    def expect_reply(self) -> None:
        """A reply is owed for what goes by `send`: a chunk (RFC 3030 §2)."""
        self._dialogue.expect_reply()

    def late_reply(self) -> Reply | None:
        """What the server said before it was lost, or None: read after a failed send, without waiting for
        more.
        """
        try:
            return self.early_reply()
        except (WireLost, RemoteProtocolError):
            return None

    def quit(self) -> None:
        """QUIT without waiting, then close: for a dialogue whose outcome is settled."""
        with suppress(WireLost):
            self.wire.send_nowait(b"QUIT\r\n")
        self.wire.close()


class ServerLink:
    """The server role over one wire."""

    __slots__ = ("dialogue", "wire")

    def __init__(self, wire: Wire, dialogue: ServerDialogue) -> None:
        self.wire = wire
        self.dialogue = dialogue

    async def greet(self) -> None:
        """Send the 220."""
        await self.wire.send(self.dialogue.greeting().encode())

    async def next_group(self) -> list[Slot]:
        """The commands the client has sent so far, at least one; [] when it closed (SMTP-17)."""
        while not (group := self.dialogue.next_group()):
            octets = await self.wire.receive()
            if not octets:
                return []
            self.dialogue.receive(octets)
        return group

    async def settle(self, slots: list[Slot]) -> None:
        """Write the replies of a group in one write."""
        octets = self.dialogue.settle(slots)
        if octets:
            await self.wire.send(octets)
