"""Who is at the door, and in which TLS?  From accept to the first word of SMTP.

The PROXY protocol (PXY-01, 02), RFC 8314 §3 (implicit TLS), RFC 3207 §4, RFC 6066 §3 (the certificate by SNI).  The
header of a load balancer is read before anything is said, and only from listed peers; nobody else is spoken to there.
"""

from dataclasses import replace
from enum import Enum

import trio

from smtpguard.clock import Clock
from smtpguard.inbound.settings import InboundListener
from smtpguard.names import Domain
from smtpguard.net.handshake import timed_out
from smtpguard.net.wire import Wire, WireLost
from smtpguard.policy.inbound import ClientFacts
from smtpguard.smtp.forwarded import ClientCertificate, ClientIdentity, ClientTls
from smtpguard.smtp.proxy_header import (
    Incomplete,
    LocalHeader,
    Malformed,
    NotProxy,
    ProxyHeader,
    client_behind,
    read_proxy_header,
)
from smtpguard.tls.certificates import ServerCertificates
from smtpguard.tls.clienthello import Incomplete as IncompleteHello
from smtpguard.tls.clienthello import Sni, read_hello
from smtpguard.tls.outcome import TlsOutcome, TlsVersion


class Turned(Enum):
    """Why nobody is spoken to; the value is the word of events."""

    NOT_LISTED = "proxy_peer"
    NO_HEADER = "proxy_header"


async def read_client(wire: Wire, listener: InboundListener, clock: Clock, session: str) -> ClientIdentity | Turned:
    """The client behind this connection, or why it is closed unread.

    Raises WireLost, Interrupted.
    """
    peer, local = wire.peer, wire.local
    connection = ClientIdentity(
        address=peer.address,
        port=peer.port,
        server_address=local.address,
        server_port=local.port,
        session=session,
    )
    if not listener.proxy_from:
        return connection
    if peer.address is None or not any(peer.address in network for network in listener.proxy_from):
        return Turned.NOT_LISTED
    wire.deadline = clock.monotonic() + listener.times.proxy_header
    header = b""
    while True:
        read = read_proxy_header(header)
        match read:
            case Incomplete(needed):
                octets = await wire.receive(needed)
                if not octets:
                    raise WireLost("closed inside the PROXY header")
                header += octets
            case NotProxy() | Malformed():
                return Turned.NO_HEADER
            case ProxyHeader() | LocalHeader():
                wire.deadline = float("inf")
                return client_behind(read, connection)


async def shake_hands(
    wire: Wire, certificates: ServerCertificates, seconds: float, *, request_certificate: bool
) -> tuple[TlsOutcome, Domain | None]:
    """The handshake in the server role, all of it within `seconds`, and the name the client asked for.

    Raises HandshakeFailed, Interrupted, WireLost.
    """
    name: Domain | None = None
    with trio.move_on_after(seconds):
        if len(certificates.certificates) > 1:
            hello = read_hello(await wire.peek(_more_is_needed))
            name = hello.name if isinstance(hello, Sni) else None
        context = certificates.context(name, request_client_certificate=request_certificate)
        return await wire.start_tls(context, server_side=True), name
    raise timed_out()


def facts_behind(client: ClientIdentity) -> ClientFacts:
    """What is known before we have shaken hands ourselves: perhaps a load balancer has."""
    tls = client.tls
    version = next((one for one in TlsVersion if tls is not None and tls.version.endswith(f"v{one.value}")), None)
    return ClientFacts(client.address, encrypted=tls is not None, version=version)


def _more_is_needed(octets: bytes) -> bool:
    return isinstance(read_hello(octets), IncompleteHello)


def secured(
    client: ClientIdentity, wire: Wire, outcome: TlsOutcome, sni: Domain | None, certificate: ClientCertificate | None
) -> ClientIdentity:
    """The client, once it speaks TLS with us; what it said before in clear is forgotten (STLS-04)."""
    return replace(
        client,
        helo=b"",
        extended=False,
        tls=ClientTls(
            version=f"TLSv{outcome.version.value}" if outcome.version else "",
            cipher=outcome.cipher,
            bits=(wire.tls.get_cipher_bits() or 0) if wire.tls is not None else 0,
            group=outcome.group,
            sni=sni or "",
            certificate=certificate,
        ),
    )
