"""Where do the sandbox's MTA-STS policies come from?  One HTTPS server, a `Page` per host.  (RFC 8461 §3.3)

Just enough of HTTP/1.1 for one GET per connection.  The certificate follows the SNI, the page the Host
field; every request is recorded with both.
"""

import ssl
from collections import deque
from dataclasses import dataclass, field

import trio

from smtpguard.sandbox.certificates import Credential
from smtpguard.sandbox.conversation import Conversation, Lost, listen, port_of
from smtpguard.sandbox.mx import server_context

PATH = "/.well-known/mta-sts.txt"
MAX_HEAD = 16 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """What one policy host serves at the well-known path."""

    body: bytes
    status: str = "200 OK"
    content_type: str | None = "text/plain; charset=utf-8"
    location: str | None = None  # for a redirect
    fields: tuple[tuple[str, str], ...] = ()
    declares_length: bool = True  # False: the body ends where the connection does
    chunked: bool = False
    hangs: bool = False  # reads the request and says nothing
    refuses_tls: bool = False  # closes in the handshake
    held: trio.Event | None = None  # the answer waits for this


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    sni: str | None
    host: str
    target: str
    fields: tuple[tuple[str, str], ...]


def policy_text(mode: str, *mx: str, max_age_seconds: int = 86400) -> bytes:
    """A policy file, CRLF line ends."""
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {pattern}" for pattern in mx)]
    lines.append(f"max_age: {max_age_seconds}")
    return "".join(f"{line}\r\n" for line in lines).encode()


@dataclass(slots=True)
class PolicyHosts:
    """The HTTPS server.  `pages` and `credentials` are by host name and may be changed while it serves."""

    fallback: Credential  # for a ClientHello without SNI or with an unknown one
    pages: dict[str, Page] = field(default_factory=dict)
    credentials: dict[str, Credential] = field(default_factory=dict)
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=1000))
    tls_errors: deque[str] = field(default_factory=lambda: deque(maxlen=100))
    connections: int = 0
    address: str = ""
    port: int = 0

    async def start(self, nursery: trio.Nursery, address: str, port: int = 0) -> None:
        """Bind and serve until the nursery ends.  Raises OSError."""
        listener = await listen(address, port)
        self.address, self.port = address, port_of(listener)
        nursery.start_soon(trio.serve_listeners, self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        conversation = Conversation(stream)
        seen: list[str | None] = []
        async with stream:
            try:
                try:
                    await conversation.start_tls(self._context(seen), server_side=True)
                except trio.BrokenResourceError as error:
                    self.tls_errors.append(str(error.__cause__ or error))
                    raise
                await self._answer(conversation, seen[0] if seen else None)
                await conversation.aclose()
            except Lost:
                pass

    def _context(self, seen: list[str | None]) -> ssl.SSLContext:
        def choose(
            tls: ssl.SSLObject | ssl.SSLSocket, sni: str | None, _: ssl.SSLContext
        ) -> ssl.AlertDescription | None:
            seen.append(sni)
            page = self.pages.get(sni or "")
            if page is not None and page.refuses_tls:
                return ssl.AlertDescription.ALERT_DESCRIPTION_HANDSHAKE_FAILURE
            if credential := self.credentials.get(sni or ""):
                tls.context = server_context(credential)
            return None

        context = server_context(self.fallback)
        context.sni_callback = choose
        return context

    async def _answer(self, conversation: Conversation, sni: str | None) -> None:
        head = (await conversation.receive_until(b"\r\n\r\n"))[:MAX_HEAD].decode("latin-1")
        request_line, *lines = head.rstrip("\r\n").split("\r\n")
        fields = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        host = next((value for name, value in fields if name.lower() == "host"), "").partition(":")[0]
        words = request_line.split(" ")
        target = words[1] if len(words) > 1 else ""
        self.requests.append(Request(sni, host, target, fields))
        page = self.pages.get(host)
        if page is None or target != PATH:
            page = Page(b"not found\n", status="404 Not Found")
        if page.held is not None:
            await page.held.wait()
        if page.hangs:
            await conversation.drain()
            return
        await conversation.send(_encode(page))


def _encode(page: Page) -> bytes:
    head = [f"HTTP/1.1 {page.status}", "Connection: close"]
    if page.content_type is not None:
        head.append(f"Content-Type: {page.content_type}")
    if page.location is not None:
        head.append(f"Location: {page.location}")
    head += [f"{name}: {value}" for name, value in page.fields]
    body = page.body
    if page.chunked:
        head.append("Transfer-Encoding: chunked")
        chunks = [body[at : at + 1000] for at in range(0, len(body), 1000)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    elif page.declares_length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body
