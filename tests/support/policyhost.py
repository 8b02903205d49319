"""A web server of one answer on a loopback port, in the test's own nursery: stdlib ssl, none of our code."""

import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

import trio

from smtpguard.clock import Clock
from smtpguard.https import HttpsClient, HttpsLimits
from smtpguard.names import IpAddress
from smtpguard.net.connect import ConnectFailed, connect
from smtpguard.net.wire import Wire
from smtpguard.tls.context import client_context
from smtpguard.tls.pkix import RootStore
from tests.support.certificates import Issued
from tests.support.zone import Zone

POLICY = b"version: STSv1\nmode: enforce\nmx: *.example.org\nmax_age: 86400\n"


def response(
    status: str = "200 OK",
    body: bytes = POLICY,
    media_type: str | None = "text/plain",
    framed: bool = True,
    extra: str = "",
) -> bytes:
    """The octets of a response; not `framed`: its end is the end of the connection."""
    head = f"HTTP/1.1 {status}\r\n{extra}"
    head += f"Content-Type: {media_type}\r\n" if media_type is not None else ""
    head += f"Content-Length: {len(body)}\r\n" if framed else "Connection: close\r\n"
    return head.encode() + b"\r\n" + body


@dataclass
class PolicyHost:
    """What it answers, and what it was asked.  `pieces` go out `pause_seconds` apart; no `close_notify` cuts."""

    pieces: Sequence[bytes] = (response(),)
    pause_seconds: float = 0.0
    close_notify: bool = True
    requests: list[bytes] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    async def serve(self, leaf: Issued, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve with this certificate until cancelled."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "server.pem"
            path.write_bytes(leaf.chain_pem + leaf.key_pem)
            context.load_cert_chain(path)
        context.sni_callback = lambda _sock, name, _context: self.names.append(name)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()

        async def answer(stream: trio.SocketStream) -> None:
            self.connections += 1
            secured = trio.SSLStream(stream, context, server_side=True, https_compatible=not self.close_notify)
            try:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    octets = await secured.receive_some()
                    if not octets:
                        return
                    request += octets
                self.requests.append(request)
                for piece in self.pieces:
                    await secured.send_all(piece)
                    await trio.sleep(self.pause_seconds)
                if self.close_notify:
                    await secured.unwrap()
            except (trio.BrokenResourceError, ssl.SSLError):
                pass
            finally:
                await trio.aclose_forcefully(stream)

        await trio.serve_listeners(answer, [listener])


def https_client(
    host: PolicyHost, zone: Zone, root: Issued, directory: Path, clock: Clock, **limits: float
) -> HttpsClient:
    """A client whose every address leads to `host`, except 192.0.2.0/24, where nobody answers."""
    anchors = directory / "roots.pem"
    anchors.write_bytes(root.pem)
    roots = RootStore.load(anchors)

    async def dial(address: IpAddress, port: int) -> Wire | ConnectFailed:
        if str(address).startswith("192.0.2."):
            address = ip_address("127.0.0.1")
            port = 1  # closed
        return await connect(address, port, timeout=5, clock=clock)

    return HttpsClient(
        lookups=zone,
        open=dial,
        forbidden=lambda address, port: "is a private address" if address.is_link_local else "",
        context=client_context(),
        roots=lambda: roots,
        clock=clock,
        port=host.port,
        limits=HttpsLimits(**limits),  # type: ignore[arg-type]
    )
