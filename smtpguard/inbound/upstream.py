"""How is the MTA behind a listener reached, and how does it learn who the client is?

RFC 5321 §3.1-3.2 (greeting, EHLO), RFC 3207, Postfix's XCLIENT, the PROXY protocol.  One connection to the MTA belongs
to one client: it is opened in the client's name, and never shared or reused for another (PXY-08).  Fail-closed: where
the MTA does not take the client's identity, nothing is relayed.
"""

from dataclasses import dataclass
from enum import Enum

import trio

from smtpguard.clock import Clock
from smtpguard.inbound.limits import Times
from smtpguard.inbound.settings import Mta
from smtpguard.names import IpAddress, parse_address
from smtpguard.net.connect import ConnectFailed, connect, connect_unix
from smtpguard.net.link import ClientLink
from smtpguard.net.sessions import Sessions
from smtpguard.net.wire import HandshakeFailed, Interrupted, Wire, WireLost
from smtpguard.reasons import printable
from smtpguard.smtp.forwarded import (
    ClientIdentity,
    ClientTurnedAway,
    XclientImpossible,
    XclientRefused,
    build_proxy_v2,
    plan_xclient,
    read_xclient_reply,
)
from smtpguard.smtp.framing import RemoteProtocolError
from smtpguard.smtp.replies import Reply
from smtpguard.tls.identity import DnsId, names_match
from smtpguard.tls.outcome import StartTls, TlsOutcome
from smtpguard.tls.pkix import PkixFailed, verify_pkix

_ADDRESSES = 4
_RESOLVED_SECONDS = 10.0


class Step(Enum):
    """Where on the way to the MTA it failed; the value is the word of the metrics."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    VERIFY = "verify"
    XCLIENT = "xclient"
    LOST = "lost"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"


@dataclass(frozen=True, slots=True)
class MtaFailed:
    """No connection to the MTA that could be used; `reply` is what the MTA itself said, where it did."""

    step: Step
    detail: str
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class MtaOpened:
    """A connection to the MTA, ready for MAIL: `greeting` is its 220, `hello` its last reply to EHLO."""

    link: ClientLink
    greeting: Reply
    hello: Reply


class MtaConnector:
    """Opens connections to the MTA of one listener.  `sessions` watches their deadlines."""

    def __init__(self, mta: Mta, times: Times, sessions: Sessions, clock: Clock) -> None:
        self._mta = mta
        self._times = times
        self._sessions = sessions
        self._clock = clock
        self._resolved: tuple[IpAddress, ...] = ()
        self._resolved_at = float("-inf")

    async def open(self, client: ClientIdentity, hello: bytes, *, extended: bool = True) -> MtaOpened | MtaFailed:
        """One connection in the name of `client`, which called itself `hello` (EHLO if `extended`, else HELO).

        Failures are values.  Raises nothing but Cancelled.
        """
        wire = await self._connect()
        if isinstance(wire, MtaFailed):
            return wire
        self._sessions.add(wire)
        wire.deadline = self._clock.monotonic() + self._times.mta_greeting
        opened: MtaOpened | MtaFailed | None = None
        try:
            opened = await self._greet(ClientLink(wire), client, hello, extended=extended)
        except WireLost as lost:
            opened = MtaFailed(Step.LOST, lost.detail)
        except Interrupted as interrupted:
            opened = MtaFailed(Step.TIMEOUT, interrupted.why.value)
        except HandshakeFailed as failed:
            opened = MtaFailed(Step.STARTTLS, failed.outcome.detail)
        except RemoteProtocolError as error:
            opened = MtaFailed(Step.PROTOCOL, str(error))
        finally:
            if not isinstance(opened, MtaOpened):
                self.close(wire)
        if isinstance(opened, MtaOpened):
            wire.deadline = float("inf")
        return opened

    def close(self, wire: Wire) -> None:
        """Close a connection to the MTA and watch it no longer."""
        self._sessions.remove(wire)
        wire.close()

    # -- the way there

    async def _connect(self) -> Wire | MtaFailed:
        if self._mta.path:
            wire = await connect_unix(self._mta.path, timeout=self._times.connect, clock=self._clock)
            return MtaFailed(Step.CONNECT, wire.detail) if isinstance(wire, ConnectFailed) else wire
        addresses = await self._addresses()
        if isinstance(addresses, MtaFailed):
            return addresses
        failed = MtaFailed(Step.RESOLVE, f"{self._mta.host} has no address")
        for address in addresses:
            wire = await connect(address, self._mta.port, timeout=self._times.connect, clock=self._clock)
            if isinstance(wire, Wire):
                return wire
            failed = MtaFailed(Step.CONNECT, wire.detail)
        return failed

    async def _addresses(self) -> tuple[IpAddress, ...] | MtaFailed:
        """By the system's resolver, as containers and clusters want it; never used to route mail."""
        if self._mta.address is not None:
            return (self._mta.address,)
        now = self._clock.monotonic()
        if self._resolved and now - self._resolved_at < _RESOLVED_SECONDS:
            return self._resolved
        try:
            with trio.move_on_after(self._times.connect) as scope:
                found = await trio.socket.getaddrinfo(self._mta.host, self._mta.port, type=trio.socket.SOCK_STREAM)
        except OSError as error:
            return MtaFailed(Step.RESOLVE, printable(f"{self._mta.host}: {error.strerror or error}"))
        if scope.cancelled_caught:
            return MtaFailed(Step.RESOLVE, f"{self._mta.host}: no answer within {self._times.connect:g} s")
        addresses = dict.fromkeys(parse_address(str(item[4][0]).partition("%")[0]) for item in found)
        self._resolved = tuple(addresses)[:_ADDRESSES]
        self._resolved_at = now
        return self._resolved

    # -- the dialogue before MAIL

    async def _greet(
        self, link: ClientLink, client: ClientIdentity, hello: bytes, *, extended: bool
    ) -> MtaOpened | MtaFailed:
        if self._mta.identity_by == "proxy-v2":
            await link.wire.send(build_proxy_v2(client))
        greeting = await link.reply()
        if greeting.code != 220:
            return MtaFailed(Step.GREETING, greeting.text, greeting)
        starts_tls, tells = self._mta.tls != "none", self._mta.identity_by == "xclient"
        # What is offered is learnt by EHLO, also for a client that said HELO: its own word comes last.
        reply = await self._hello(link, hello, extended=extended or starts_tls or tells)
        if starts_tls and reply.is_positive:
            failed = await self._start_tls(link)
            if failed is not None:
                return failed
            reply = await self._hello(link, hello, extended=extended or tells)
        if tells and reply.is_positive:
            failed = await self._xclient(link, client)
            if failed is not None:
                return failed
            reply = await self._hello(link, hello, extended=extended)
        if not reply.is_positive:
            return MtaFailed(Step.EHLO, reply.text, reply)
        return MtaOpened(link, greeting, reply)

    async def _hello(self, link: ClientLink, name: bytes, *, extended: bool) -> Reply:
        return await link.hello(name.decode("ascii"), may_fall_back=True, extended=extended)

    async def _start_tls(self, link: ClientLink) -> MtaFailed | None:
        context = self._mta.context
        assert context is not None
        if not link.extensions.has("STARTTLS"):
            return MtaFailed(Step.STARTTLS, "STARTTLS is not offered")
        outcome = await link.start_tls(context, self._mta.tls_name)
        if outcome.starttls is not StartTls.ESTABLISHED:
            return MtaFailed(Step.STARTTLS, outcome.detail)
        return self._verify(outcome) if self._mta.tls == "verify" else None

    def _verify(self, outcome: TlsOutcome) -> MtaFailed | None:
        roots, name = self._mta.roots, self._mta.tls_name
        assert roots is not None
        assert name is not None
        if outcome.chain is None:
            return MtaFailed(Step.VERIFY, "the MTA showed no certificate")
        verdict = verify_pkix(outcome.chain, roots, self._clock.now())
        if isinstance(verdict, PkixFailed):
            return MtaFailed(Step.VERIFY, verdict.detail)
        if not names_match(outcome.chain.leaf, (DnsId(name),)):
            return MtaFailed(Step.VERIFY, f"the certificate does not name {name}")
        return None

    async def _xclient(self, link: ClientLink, client: ClientIdentity) -> MtaFailed | None:
        """XCLIENT, one reply each; after the last 220 the MTA is as if the client had just connected."""
        plan = plan_xclient(client, link.extensions.offered.get("XCLIENT", ""))
        if isinstance(plan, XclientImpossible):
            return MtaFailed(Step.XCLIENT, plan.detail)
        for line in plan:
            (reply,) = await link.exchange([line])
            answer = read_xclient_reply(reply)
            if isinstance(answer, ClientTurnedAway):
                return MtaFailed(Step.GREETING, reply.text, reply)
            if isinstance(answer, XclientRefused):
                return MtaFailed(Step.XCLIENT, answer.detail, reply)
        return None
