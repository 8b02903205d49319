"""A mail server with the mistakes that many had: what the inbound part of the demo puts smtpguard in front of.

It obeys inside TLS what was pipelined in clear behind STARTTLS (CVE-2011-0411 and its kin), takes LF . CRLF for the end
of a message (SMTP smuggling, CVE-2023-51764 to 51766), and takes any mail in clear.  RFC 5321, RFC 3207 otherwise.
"""

import re
import ssl
from collections import deque

import trio

from smtpguard.sandbox.certificates import Credential
from smtpguard.sandbox.conversation import Conversation, Lost, listen, port_of
from smtpguard.sandbox.mx import Message, server_context

_END = re.compile(rb"\r?\n\.\r\n")
_ADDRESS = re.compile(r"<([^>]*)>")


class CarelessMta:
    """Takes mail for `domain` and its subdomains; what it took is in `messages`, oldest first."""

    def __init__(self, domain: str, credential: Credential) -> None:
        self.domain = domain
        self.messages: deque[Message] = deque(maxlen=1000)
        self.port = 0
        self._tls: ssl.SSLContext = server_context(credential)

    async def start(self, nursery: trio.Nursery) -> None:
        """Bind and serve until the nursery's end.  Raises OSError."""
        listener = await listen("127.0.0.1", 0)
        self.port = port_of(listener)
        nursery.start_soon(trio.serve_listeners, self._session, [listener])

    async def _session(self, stream: trio.SocketStream) -> None:
        conversation = Conversation(stream)
        async with stream:
            try:
                await conversation.send(f"220 {self.domain} ESMTP\r\n".encode())
                await self._dialogue(conversation)
                await conversation.aclose()
            except Lost:
                pass

    async def _dialogue(self, conversation: Conversation) -> None:
        sender, recipients = "", list[str]()
        while True:
            line = (await conversation.receive_line()).decode("latin-1")
            reply = "250 2.0.0 ok"
            match line[:4].upper():
                case "EHLO":
                    offers = "" if conversation.tls else "250-STARTTLS\r\n"
                    reply = f"250-{self.domain}\r\n{offers}250-PIPELINING\r\n250 8BITMIME"
                case "STAR":
                    await conversation.send(b"220 2.0.0 go ahead\r\n")
                    pipelined, _, client_hello = conversation.take_buffered().partition(b"\x16\x03")
                    conversation.put_back(b"\x16\x03" + client_hello if client_hello else b"")
                    await conversation.start_tls(self._tls, server_side=True)
                    conversation.put_back(pipelined)  # the mistake
                    continue
                case "MAIL":
                    sender, recipients = "".join(_ADDRESS.findall(line)[:1]), []
                case "RCPT":
                    address = "".join(_ADDRESS.findall(line)[:1])
                    domain = address.rpartition("@")[2].lower()
                    if domain == self.domain or domain.endswith(f".{self.domain}"):
                        recipients.append(address)
                    else:
                        reply = "550 5.7.1 relaying denied"
                case "DATA":
                    await conversation.send(b"354 go ahead\r\n")
                    content = await self._content(conversation)
                    over_tls = conversation.tls is not None
                    self.messages.append(Message(sender, "", tuple(recipients), content, over_tls, reply))
                case "QUIT":
                    await conversation.send(b"221 2.0.0 bye\r\n")
                    return
            await conversation.send(reply.encode("latin-1") + b"\r\n")

    @staticmethod
    async def _content(conversation: Conversation) -> bytes:
        octets = bytearray()
        while (end := _END.search(octets)) is None:
            more = await conversation.receive()
            if not more:
                raise trio.BrokenResourceError("closed inside the message")
            octets += more
        conversation.put_back(bytes(octets[end.end() :]))
        return bytes(octets[: end.start()])
