"""What does this web server answer to one GET?  (RFC 9110, 9112, 9525; RFC 8461 §3.3, §7.1, §10.3)

One request over one `Wire` with h11, names looked up by our own resolver, the certificate judged by tls.pkix
and tls.identity after the handshake.  No redirects, cookies, proxies, cache or content codings: what a policy
fetch must not do, this client cannot do.  Every failure is an `HttpFailed`, never an exception.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, assert_never

import h11
import trio
from OpenSSL import SSL

from smtpguard.clock import Clock
from smtpguard.dns.records import FailureKind, LookupFailed, RdType
from smtpguard.dns.resolver import Lookups
from smtpguard.names import Domain, IpAddress
from smtpguard.net.wire import HandshakeFailed, Interrupted, Wire, WireLost
from smtpguard.reasons import printable
from smtpguard.tls.identity import DnsId, names_match, presented_names
from smtpguard.tls.outcome import TlsOutcome
from smtpguard.tls.pkix import PkixFailed, PkixVerified, RootStore, verify_pkix

_HEAD_OCTETS = 16384
_PORT = 443


class HttpFailure(Enum):
    """The step at which a request failed, in the order of the steps."""

    LOCAL = "local"
    """At none: something is lacking here, and nothing is known about the host."""
    DNS = "dns"
    FORBIDDEN = "forbidden"
    """Every address of the host is one this machine may not connect to."""
    CONNECT = "connect"
    LOST = "lost"
    TIMEOUT = "timeout"
    TLS = "tls"
    """The handshake failed, or the certificate does not prove who the host is."""
    PROTOCOL = "protocol"
    TOO_BIG = "too-big"


@dataclass(frozen=True, slots=True)
class HttpFailed:
    """No usable answer.  `detail` is printable; `code` is short and fit for an RFC 8460 report."""

    kind: HttpFailure
    detail: str
    code: str


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response with any status.  `media_type` is lower case, without parameters, "" if absent."""

    status: int
    media_type: str
    body: bytes


class Refused(Protocol):
    """Why no connection came about (`net.connect.ConnectFailed` is one)."""

    @property
    def detail(self) -> str: ...

    @property
    def is_exhaustion(self) -> bool: ...


Open = Callable[[IpAddress, int], Awaitable[Wire | Refused]]
"""Connects to an address and port within its own time limit."""


@dataclass(frozen=True, slots=True)
class HttpsLimits:
    """Bounds of one request."""

    total_seconds: float = 60.0
    body_octets: int = 65536
    addresses: int = 4


@dataclass(frozen=True, slots=True)
class HttpsClient:
    """Everything a request needs.

    `forbidden` says why an address must not be dialled, "" if it may (the SSRF guard: whoever publishes a
    policy chooses the addresses we connect to).  `context` verifies nothing; `roots` gives the store as it is
    now.
    """

    lookups: Lookups
    open: Open
    forbidden: Callable[[IpAddress, int], str]
    context: SSL.Context
    roots: Callable[[], RootStore]
    clock: Clock
    port: int = _PORT
    limits: HttpsLimits = HttpsLimits()

    async def get(self, host: Domain, path: str) -> HttpResponse | HttpFailed:
        """GET `https://host/path`; the first address that answers is the answer.

        Raises nothing but Cancelled.
        """
        with trio.move_on_after(self.limits.total_seconds):
            return await self._get(host, path)
        return HttpFailed(
            HttpFailure.TIMEOUT, f"no complete answer within {self.limits.total_seconds:g} s", "http-timeout"
        )

    async def _get(self, host: Domain, path: str) -> HttpResponse | HttpFailed:
        addresses = await self._find_addresses(host)
        if isinstance(addresses, HttpFailed):
            return addresses
        failures: list[HttpFailed] = []
        for address in addresses[: self.limits.addresses]:
            answer = await self._get_from(address, host, path)
            if isinstance(answer, HttpResponse):
                return answer
            failures.append(answer)
        # The address that came furthest says most about the host.
        steps = list(HttpFailure)
        return max(failures, key=lambda failed: steps.index(failed.kind))

    async def _find_addresses(self, host: Domain) -> tuple[IpAddress, ...] | HttpFailed:
        """The addresses that may be dialled, IPv6 and IPv4 in turn; never empty."""
        found: dict[RdType, list[IpAddress]] = {RdType.AAAA: [], RdType.A: []}
        failed: list[LookupFailed] = []

        async def ask(rdtype: RdType) -> None:
            answer = await self.lookups.lookup(host, rdtype)
            if isinstance(answer, LookupFailed):
                failed.append(answer)
            else:
                found[rdtype] = [record for record in answer.records if isinstance(record, IpAddress)]

        async with trio.open_nursery() as nursery:
            for rdtype in found:
                nursery.start_soon(ask, rdtype)
        addresses = _in_turn(found[RdType.AAAA], found[RdType.A])
        if not addresses:
            if failed:
                ours = all(lookup.kind in (FailureKind.BUSY, FailureKind.NETWORK) for lookup in failed)
                return HttpFailed(
                    HttpFailure.LOCAL if ours else HttpFailure.DNS,
                    f"address lookup of {host}: {failed[0].kind.value}",
                    failed[0].reason_code,
                )
            return HttpFailed(HttpFailure.DNS, f"{host} has no address", "dns-no-address")
        refusals = {address: self.forbidden(address, self.port) for address in addresses}
        allowed = tuple(address for address in addresses if not refusals[address])
        if not allowed:
            first = addresses[0]
            return HttpFailed(
                HttpFailure.FORBIDDEN,
                printable(f"{host}[{first}] may not be connected to: {refusals[first]}"),
                "forbidden-address",
            )
        return allowed

    async def _get_from(self, address: IpAddress, host: Domain, path: str) -> HttpResponse | HttpFailed:
        where = f"{host}[{address}]:{self.port}"
        opened = await self.open(address, self.port)
        if not isinstance(opened, Wire):
            kind = HttpFailure.LOCAL if opened.is_exhaustion else HttpFailure.CONNECT
            return HttpFailed(kind, printable(f"{where}: {opened.detail}"), "http-connect")
        wire = opened
        try:
            # RFC 8461 §7.1: the SNI is the policy host.
            outcome = await wire.start_tls(self.context, server_side=False, sni=host)
            refusal = self._judge(outcome, host, where)
            if refusal is not None:
                return refusal
            return await self._exchange(wire, host, path, where)
        except HandshakeFailed as error:
            code = error.outcome.failure_code or "tls-handshake"
            return HttpFailed(HttpFailure.TLS, printable(f"{where}: {error.outcome.detail}"), code)
        except WireLost as error:
            return HttpFailed(HttpFailure.LOST, printable(f"{where}: {error.detail}"), "http-lost")
        except Interrupted as error:
            return HttpFailed(HttpFailure.LOST, f"{where}: {error.why.value}", "http-lost")
        finally:
            wire.close()

    def _judge(self, outcome: TlsOutcome, host: Domain, where: str) -> HttpFailed | None:
        """Does the certificate prove that this is `host`?  (RFC 8461 §3.3: PKIX, DNS-ID only)"""
        if outcome.chain is None:
            return HttpFailed(HttpFailure.TLS, f"{where}: no certificate was shown", "tls-no-certificate")
        verdict = verify_pkix(outcome.chain, self.roots(), self.clock.now())
        match verdict:
            case PkixFailed():
                return HttpFailed(HttpFailure.TLS, printable(f"{where}: {verdict.detail}"), verdict.code)
            case PkixVerified():
                pass
            case _:
                assert_never(verdict)
        if not names_match(outcome.chain.leaf, (DnsId(host),)):
            names = " ".join(presented_names(outcome.chain.leaf)) or "no DNS name"
            return HttpFailed(
                HttpFailure.TLS,
                printable(f"{where}: the certificate is for {names}"),
                "X509_V_ERR_HOSTNAME_MISMATCH",
            )
        return None

    async def _exchange(self, wire: Wire, host: Domain, path: str, where: str) -> HttpResponse | HttpFailed:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_OCTETS)
        authority = host if self.port == _PORT else f"{host}:{self.port}"
        request = h11.Request(
            method="GET",
            target=path,
            headers=[
                ("Host", authority),
                ("User-Agent", "smtpguard"),
                ("Accept", "*/*"),
                ("Connection", "close"),
            ],
        )
        try:
            await wire.send(connection.send(request) + connection.send(h11.EndOfMessage()))
            return await self._read(connection, wire, where)
        except h11.RemoteProtocolError as error:
            return HttpFailed(HttpFailure.PROTOCOL, printable(f"{where}: {error}"), "http-protocol")

    async def _read(self, connection: h11.Connection, wire: Wire, where: str) -> HttpResponse | HttpFailed:
        """The one response.  All octets, those of interim responses included, count against a limit."""
        response: h11.Response | None = None
        body = bytearray()
        left = self.limits.body_octets + 2 * _HEAD_OCTETS
        while True:
            event = connection.next_event()
            match event:
                case h11.NEED_DATA:
                    octets = await wire.receive()
                    left -= len(octets)
                    if left < 0:
                        return self._too_big(where)
                    connection.receive_data(octets)
                case h11.Response():
                    response = event
                case h11.Data():
                    body += event.data
                    if len(body) > self.limits.body_octets:
                        return self._too_big(where)
                case h11.EndOfMessage():
                    break
                case h11.InformationalResponse():
                    pass
                case _:
                    return HttpFailed(HttpFailure.LOST, f"{where}: the connection was closed", "http-lost")
        if response is None:
            return HttpFailed(HttpFailure.PROTOCOL, f"{where}: no response", "http-protocol")
        if not _is_framed(response) and not _ended_properly(wire):
            # Whoever can cut the connection could shorten the body: RFC 9112 §9.8.
            return HttpFailed(HttpFailure.LOST, f"{where}: the response was cut off", "http-truncated")
        return HttpResponse(response.status_code, _media_type(response), bytes(body))

    def _too_big(self, where: str) -> HttpFailed:
        limit = self.limits.body_octets
        return HttpFailed(HttpFailure.TOO_BIG, f"{where}: more than {limit} octets", "http-too-big")


def _in_turn(first: list[IpAddress], second: list[IpAddress]) -> list[IpAddress]:
    """Both lists interleaved, so that few tries reach a host with one dead family."""
    merged: list[IpAddress] = []
    for index in range(max(len(first), len(second))):
        merged += first[index : index + 1]
        merged += second[index : index + 1]
    return merged


def _is_framed(response: h11.Response) -> bool:
    """Does the head say where the body ends?"""
    if response.status_code in {204, 304}:
        return True
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in response.headers)


def _ended_properly(wire: Wire) -> bool:
    return wire.tls is not None and bool(wire.tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN)


def _media_type(response: h11.Response) -> str:
    for name, value in response.headers:
        if name == b"content-type":
            return printable(value.partition(b";")[0].strip().lower(), 100)
    return ""
