"""The sandbox's own tiny SMTP and LMTP client.  (RFC 5321, RFC 2033, RFC 3207)

Lock-step, no pipelining, believes nothing and checks nothing: what it is told comes back as a `Reply`.
"""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from smtpguard.sandbox.conversation import Conversation, EndOfStream, open_conversation


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, line texts without code and separator."""

    code: int
    lines: tuple[str, ...]

    @property
    def is_positive(self) -> bool:
        """2xx or 3xx."""
        return 200 <= self.code < 400

    def __str__(self) -> str:
        return f"{self.code} {' '.join(self.lines)}"


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one message: the replies, as far as the dialogue got."""

    mail: Reply
    recipients: tuple[Reply, ...]
    data: Reply | None
    ends: tuple[Reply, ...]  # SMTP: one; LMTP: one for each accepted recipient

    @property
    def is_delivered(self) -> bool:
        """Every recipient was accepted, and so was the content."""
        return bool(self.ends) and all(reply.is_positive for reply in (*self.recipients, *self.ends))

    @property
    def last_reply(self) -> Reply:
        """The reply that explains the result best."""
        for reply in (self.mail, *self.recipients, self.data, *self.ends):
            if reply is not None and not reply.is_positive:
                return reply
        return self.ends[-1] if self.ends else (self.data or self.mail)


class Client:
    """One client session.  Methods raise trio.BrokenResourceError when the peer is lost."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.extensions: tuple[str, ...] = ()

    @classmethod
    async def connect(cls, address: str, port: int) -> Self:
        """Connect; the greeting is not read yet.  Raises OSError."""
        return cls(await open_conversation(address, port))

    async def reply(self) -> Reply:
        """The next reply."""
        lines = []
        while True:
            line = (await self.conversation.receive_line()).decode("latin-1")
            if not line[:3].isdecimal():
                raise EndOfStream(f"not a reply: {line[:60]!r}")
            lines.append(line[4:])
            if line[3:4] != "-":
                return Reply(int(line[:3]), tuple(lines))

    async def command(self, line: str) -> Reply:
        """Send one command line and read its reply."""
        await self.conversation.send(line.encode("utf-8") + b"\r\n")
        return await self.reply()

    async def hello(self, name: str = "client.example", verb: str = "EHLO") -> Reply:
        """EHLO (or LHLO, HELO); keeps the extensions."""
        reply = await self.command(f"{verb} {name}")
        if reply.is_positive:
            self.extensions = tuple(line.upper() for line in reply.lines[1:])
        return reply

    def offers(self, keyword: str) -> bool:
        """Did the last EHLO reply name this extension?"""
        return any(line.split(" ")[0] == keyword for line in self.extensions)

    async def start_tls(self, context: ssl.SSLContext, server_name: str | None = None) -> Reply:
        """STARTTLS and, after a 220, the handshake.  The EHLO that must follow is the caller's."""
        reply = await self.command("STARTTLS")
        if reply.code == 220:
            await self.conversation.start_tls(context, server_side=False, server_name=server_name)
        return reply

    async def send(self, sender: str, recipients: Sequence[str], content: bytes, *, lmtp: bool = False) -> Sent:
        """One mail transaction.  `content` has CRLF line ends and ends with one; dots are stuffed here."""
        mail = await self.command(f"MAIL FROM:<{sender}>")
        if not mail.is_positive:
            return Sent(mail, (), None, ())
        replies = [await self.command(f"RCPT TO:<{recipient}>") for recipient in recipients]
        accepted = sum(reply.is_positive for reply in replies)
        if not accepted:
            await self.command("RSET")
            return Sent(mail, tuple(replies), None, ())
        data = await self.command("DATA")
        if data.code != 354:
            return Sent(mail, tuple(replies), data, ())
        await self.conversation.send(dot_stuffed(content) + b".\r\n")
        ends = [await self.reply() for _ in range(accepted if lmtp else 1)]
        return Sent(mail, tuple(replies), data, tuple(ends))

    async def quit(self) -> None:
        """QUIT and close."""
        await self.command("QUIT")
        await self.conversation.aclose()


def dot_stuffed(content: bytes) -> bytes:
    """RFC 5321 §4.5.2: a line that begins with a dot gets a second one."""
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed


def dot_unstuffed(stuffed: bytes) -> bytes:
    """The inverse of `dot_stuffed`."""
    content = stuffed.replace(b"\r\n.", b"\r\n")
    return content[1:] if content.startswith(b".") else content


def unverifying_context() -> ssl.SSLContext:
    """TLS as opportunistic senders and attackers do it: any certificate will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
