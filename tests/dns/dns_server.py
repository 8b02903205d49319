"""A name server in the test's own nursery: UDP and TCP (or TLS) on one loopback port, answers by a function.

`respond` gets the query and whether it came by UDP; it gives a message, raw octets, several of them, or None
(silence).
"""

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset
import trio

Reply = dns.message.Message | bytes | None
Respond = Callable[[dns.message.Message, bool], Reply | Sequence[Reply]]


@dataclass
class DnsServer:
    """The server; `queries` logs what was asked: name, type, and `udp`, `tcp` or `tls`."""

    respond: Respond
    tls: ssl.SSLContext | None = None
    port: int = 0
    connections: int = 0
    queries: list[tuple[str, str, str]] = field(default_factory=list)
    messages: list[dns.message.Message] = field(default_factory=list)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        listener, udp = await self._bind()
        self.port = udp.getsockname()[1]
        async with trio.open_nursery() as nursery:
            with udp:
                nursery.start_soon(self._serve_udp, udp)
                await nursery.start(trio.serve_listeners, self._serve_stream, [listener])
                task_status.started()
                await trio.sleep_forever()

    async def _bind(self) -> tuple[trio.SocketListener, trio.socket.SocketType]:
        while True:  # a port that is free for UDP as well as TCP
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            udp = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
            try:
                await udp.bind(("127.0.0.1", listener.socket.getsockname()[1]))
            except OSError:
                udp.close()
                await listener.aclose()
                continue
            return listener, udp

    async def _serve_udp(self, udp: trio.socket.SocketType) -> None:
        while True:
            wire, sender = await udp.recvfrom(65535)
            for reply in self._replies(wire, "udp"):
                await udp.sendto(reply, sender)

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        how = "tcp"
        if self.tls is not None:
            stream, how = trio.SSLStream(stream, self.tls, server_side=True), "tls"
        try:
            async with stream:
                while head := await stream.receive_some(2):
                    wire = b""
                    while len(wire) < int.from_bytes(head):
                        wire += await stream.receive_some(65535)
                    for reply in self._replies(wire, how):
                        await stream.send_all(len(reply).to_bytes(2) + reply)
        except trio.BrokenResourceError:
            return  # the client went away

    def _replies(self, wire: bytes, how: str) -> list[bytes]:
        query = dns.message.from_wire(wire)
        [question] = query.question
        self.messages.append(query)
        self.queries.append((question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype), how))
        replies = self.respond(query, how == "udp")
        several = [replies] if isinstance(replies, dns.message.Message | bytes | None) else replies
        return [r if isinstance(r, bytes) else r.to_wire(max_size=65535) for r in several if r is not None]


def answer(
    query: dns.message.Message,
    *records: str,
    ad: bool = True,
    rcode: int = 0,
    soa: str = "",
    ede: Sequence[int] = (),
) -> dns.message.Message:
    """A response with records in zone-file form (`example.org. 300 IN MX 10 mx.example.org.`)."""
    response = dns.message.make_response(query, recursion_available=True)
    if ad:
        response.flags |= dns.flags.AD
    response.set_rcode(dns.rcode.Rcode.make(rcode))
    response.answer = [_rrset(record) for record in records]
    if soa:
        response.authority = [_rrset(soa)]
    if ede:
        response.use_edns(0, options=[dns.edns.EDEOption(dns.edns.EDECode(code)) for code in ede])
    return response


def _rrset(text: str) -> dns.rrset.RRset:
    owner, ttl, rdclass, rdtype, rdata = text.split(None, 4)
    return dns.rrset.from_text(owner, int(ttl), rdclass, rdtype, rdata)
