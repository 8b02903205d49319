"""How does one query reach one resolver and come back?  (RFC 1035 §4.2, RFC 5452, RFC 7766, RFC 7858)

UDP from a fresh, connected socket (the kernel picks the port, and drops what others send), TCP where the
answer was truncated, or TLS with a verified name.  TLS connections are kept for the next query.  No retries
and no time limit here: the resolver has both.
"""

import socket
import ssl
from dataclasses import dataclass

import trio

from smtpguard.dns.message import MalformedResponseError, Question, Response, parse_response
from smtpguard.names import Domain, IpAddress
from smtpguard.reasons import printable

MAX_IDLE_CONNECTIONS = 4
"""TLS connections kept per resolver."""


class TransportError(Exception):
    """The resolver could not be reached; the message says how, printable."""


@dataclass(frozen=True, slots=True)
class ResolverAddress:
    """One resolver: plain DNS, or DNS over TLS where `tls_name` is the name its certificate must bear.

    `vouched`: False for a server out of a resolv.conf without `options trust-ad`; its AD bit is never
    believed.
    """

    address: IpAddress
    port: int = 53
    tls_name: Domain | None = None
    vouched: bool = True

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"tls://{host}:{self.port}#{self.tls_name}" if self.tls_name else f"{host}:{self.port}"


class Transport:
    """The way to one resolver.  `context` serves where the resolver has a `tls_name`."""

    __slots__ = ("_context", "_idle", "resolver")

    def __init__(self, resolver: ResolverAddress, context: ssl.SSLContext) -> None:
        self.resolver = resolver
        self._context = context
        self._idle: list[trio.SSLStream[trio.SocketStream]] = []

    async def exchange(self, question: Question) -> Response:
        """The resolver's response.  Raises TransportError, MalformedResponseError."""
        try:
            if self.resolver.tls_name is not None:
                return await self._over_tls(question)
            response = await self._over_udp(question)
            return await self._over_tcp(question) if response.truncated else response
        except OSError as error:
            raise TransportError(printable(error.strerror or str(error))) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError(printable(str(error.__cause__ or "the connection broke"))) from error

    def close(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            _drop(self._idle.pop())

    def _destination(self) -> tuple[socket.AddressFamily, tuple[str, int]]:
        family = socket.AF_INET6 if self.resolver.address.version == 6 else socket.AF_INET
        return family, (str(self.resolver.address), self.resolver.port)

    async def _over_udp(self, question: Question) -> Response:
        family, destination = self._destination()
        with trio.socket.socket(family, socket.SOCK_DGRAM) as udp:
            await udp.connect(destination)
            await udp.send(question.wire)
            while True:
                response = parse_response(await udp.recv(65535), question)
                if response is not None:
                    return response
                # Not ours: a forgery, or late news of an earlier query of this port (RFC 5452 §9.1).

    async def _over_tcp(self, question: Question) -> Response:
        stream = await self._connect()
        try:
            return await _ask_stream(stream, question)
        finally:
            stream.socket.close()

    async def _over_tls(self, question: Question) -> Response:
        while self._idle:
            stream = self._idle.pop()
            try:
                return await self._ask_tls(stream, question)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, TransportError):
                continue  # the resolver closed it meanwhile (RFC 7766 §6.2.4): not a failure of the query
        transport = await self._connect()
        tls = trio.SSLStream(transport, self._context, server_hostname=self.resolver.tls_name)
        return await self._ask_tls(tls, question)

    async def _ask_tls(self, stream: trio.SSLStream[trio.SocketStream], question: Question) -> Response:
        try:
            response = await _ask_stream(stream, question)
        except BaseException:
            _drop(stream)  # cancelled in mid-answer it would hand that answer to the next question
            raise
        if len(self._idle) < MAX_IDLE_CONNECTIONS:
            self._idle.append(stream)
        else:
            _drop(stream)
        return response

    async def _connect(self) -> trio.SocketStream:
        family, destination = self._destination()
        tcp = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await tcp.connect(destination)
            return trio.SocketStream(tcp)
        except BaseException:
            tcp.close()
            raise


async def _ask_stream(stream: trio.abc.Stream, question: Question) -> Response:
    """One query and its response with two-octet lengths (RFC 1035 §4.2.2)."""
    await stream.send_all(len(question.wire).to_bytes(2) + question.wire)
    length = int.from_bytes(await _receive_exactly(stream, 2))
    response = parse_response(await _receive_exactly(stream, length), question)
    if response is None:
        raise MalformedResponseError("the response is to another question")
    if response.truncated:
        raise MalformedResponseError("the response over a stream is truncated")
    return response


async def _receive_exactly(stream: trio.abc.Stream, octets: int) -> bytes:
    received = bytearray()
    while len(received) < octets:
        part = await stream.receive_some(octets - len(received))
        if not part:
            raise TransportError("the resolver closed the connection")
        received += part
    return bytes(received)


def _drop(stream: trio.SSLStream[trio.SocketStream]) -> None:
    """Close without a word; synchronous, so that it can stand in cleanup."""
    stream.transport_stream.socket.close()
