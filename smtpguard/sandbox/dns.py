"""What does the sandbox's DNS say?  Authoritative server and "validating resolver" in one.
(RFC 1035, RFC 4035, RFC 6840 §5.7-8, RFC 8914)

`Names` is the data and the judgement, without I/O; `NameServer` answers from it over UDP and TCP on one port.
Nothing is really signed: each RRset has a `Security`, and the answer says what a validating resolver would.
    secure    AD, if the query asked for it (AD or DO bit) and the whole CNAME chain is secure
    insecure  the data, never AD
    bogus     SERVFAIL with Extended DNS Error 6; the data without AD if the query has CD
"""

import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeVar

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

from smtpguard.sandbox.conversation import Conversation, Lost, listen, port_of

Transport = Literal["udp", "tcp"]
_T = TypeVar("_T")
MAX_CHAIN = 8
NEGATIVE_TTL = 60


class Security(Enum):
    """What validation says of an RRset, or of its absence."""

    SECURE = "secure"
    INSECURE = "insecure"
    BOGUS = "bogus"


class Fault(Enum):
    """How a name misbehaves, whatever its data."""

    DROP = "no answer at all"
    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    TRUNCATE = "TC over UDP, the data over TCP"
    TRUNCATE_AND_DROP = "TC over UDP, no answer over TCP"
    GARBAGE = "octets that are no DNS message"
    WRONG_ID = "an answer to another question's id"


@dataclass(frozen=True, slots=True)
class Query:
    """One question as it arrived."""

    name: str
    rdtype: str
    transport: Transport
    asks_ad: bool
    checking_disabled: bool


@dataclass(frozen=True, slots=True)
class _Records:
    texts: tuple[str, ...]
    ttl: int


_Key = tuple[dns.name.Name, dns.rdatatype.RdataType]


@dataclass(slots=True)
class Names:
    """The contents of the sandbox's DNS; may be changed while it is served."""

    _zones: dict[dns.name.Name, Security] = field(default_factory=dict)
    _records: dict[_Key, _Records] = field(default_factory=dict)
    _security: dict[_Key, Security] = field(default_factory=dict)
    _faults: dict[tuple[dns.name.Name, str], Fault] = field(default_factory=dict)
    _held: dict[tuple[dns.name.Name, str], trio.Event] = field(default_factory=dict)

    def zone(self, apex: str, security: Security) -> None:
        """Declare a zone; what lies under `apex` (and under no deeper zone) has this security."""
        self._zones[_name(apex)] = security

    def put(self, name: str, rdtype: str, *texts: str, ttl: int = 300) -> None:
        """Replace the RRset by these records in presentation form; none removes it."""
        key = _key(name, rdtype)
        if texts:
            dns.rrset.from_text_list(key[0], ttl, "IN", rdtype, list(texts))  # a slip fails here, not at a query
            self._records[key] = _Records(texts, ttl)
        else:
            self._records.pop(key, None)

    def judge_as(self, name: str, rdtype: str, security: Security | None) -> None:
        """This RRset, present or absent, has another security than its zone; None ends that."""
        key = _key(name, rdtype)
        if security is None:
            self._security.pop(key, None)
        else:
            self._security[key] = security

    def fail(self, name: str, fault: Fault | None, rdtype: str = "ANY") -> None:
        """Questions for `name` and `rdtype` (ANY: all types) end in `fault`; None repairs it."""
        key = (_name(name), rdtype)
        if fault is None:
            self._faults.pop(key, None)
        else:
            self._faults[key] = fault

    def hold(self, name: str, until: trio.Event, rdtype: str = "ANY") -> None:
        """Answers for `name` and `rdtype` wait for an event."""
        self._held[_name(name), rdtype] = until

    def fault_of(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Fault | None:
        """What `fail` said of this question."""
        return _find(self._faults, name, rdtype)

    def held_by(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> trio.Event | None:
        """What `hold` said of this question."""
        return _find(self._held, name, rdtype)

    def answer(self, query: dns.message.Message) -> dns.message.Message:
        """The reply of a validating resolver to `query`, faults and holds aside."""
        response = dns.message.make_response(query, recursion_available=True, our_payload=1232)
        question = query.question[0]
        name, rdtype = question.name, question.rdtype
        securities = []
        rcode = dns.rcode.NOERROR
        for _ in range(MAX_CHAIN):
            securities.append(self._security_of(name, rdtype))
            if found := self._records.get((name, rdtype)):
                response.answer.append(_rrset(name, rdtype, found))
                break
            alias = self._records.get((name, dns.rdatatype.CNAME))
            if alias is None:
                if not self._exists(name):
                    rcode = dns.rcode.NXDOMAIN
                response.authority.append(self._soa(name))
                break
            securities[-1] = self._security_of(name, dns.rdatatype.CNAME)
            response.answer.append(_rrset(name, dns.rdatatype.CNAME, alias))
            name = dns.name.from_text(alias.texts[0])
        else:
            rcode = dns.rcode.SERVFAIL  # a loop, or a chain longer than resolvers follow
        if Security.BOGUS in securities and not query.flags & dns.flags.CD:
            return self._refusal(query, dns.rcode.SERVFAIL, dns.edns.EDECode.DNSSEC_BOGUS)
        if rcode == dns.rcode.SERVFAIL:
            return self._refusal(query, rcode, None)
        response.set_rcode(rcode)
        if _asks_ad(query) and all(each is Security.SECURE for each in securities):
            response.flags |= dns.flags.AD
        return response

    def refused(self, query: dns.message.Message, rcode: dns.rcode.Rcode) -> dns.message.Message:
        """An empty reply with `rcode`."""
        return self._refusal(query, rcode, None)

    @staticmethod
    def _refusal(
        query: dns.message.Message, rcode: dns.rcode.Rcode, ede: dns.edns.EDECode | None
    ) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        response.set_rcode(rcode)
        if ede is not None and query.edns >= 0:
            response.use_edns(0, payload=1232, options=[dns.edns.EDEOption(ede)])
        return response

    def _apex(self, name: dns.name.Name) -> dns.name.Name:
        while name != dns.name.root:
            if name in self._zones:
                return name
            name = name.parent()
        return name

    def _security_of(self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType) -> Security:
        # Names under no declared zone do not exist, and the (signed) root proves it.
        inherited = self._zones.get(self._apex(name), Security.SECURE)
        return self._security.get((name, rdtype), inherited)

    def _exists(self, name: dns.name.Name) -> bool:
        """Has `name`, or anything below it (an empty non-terminal), records?"""
        return name in self._zones or any(owner.is_subdomain(name) for owner, _ in self._records)

    def _soa(self, name: dns.name.Name) -> dns.rrset.RRset:
        text = f"ns.sandbox.example. hostmaster.sandbox.example. 1 3600 600 86400 {NEGATIVE_TTL}"
        return dns.rrset.from_text(self._apex(name), NEGATIVE_TTL, "IN", "SOA", text)


class NameServer:
    """Serves `names` on UDP and TCP; `queries` is the log, oldest first, the last 10,000."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.queries: deque[Query] = deque(maxlen=10_000)
        self.address = ""
        self.port = 0

    async def start(self, nursery: trio.Nursery, address: str = "127.0.0.1", port: int = 0) -> None:
        """Bind (port 0: one free for both transports); serve until the nursery ends.  Raises OSError."""
        udp, tcp = await _bind_both(address, port)
        self.address, self.port = address, port_of(tcp)
        nursery.start_soon(self._serve_udp, udp, nursery)
        nursery.start_soon(trio.serve_listeners, self._serve_tcp, [tcp])

    def asked(self, name: str, rdtype: str) -> int:
        """How many queries for this name and type came."""
        wanted = name.rstrip(".").lower()
        return sum(query.name == wanted and query.rdtype == rdtype for query in self.queries)

    async def _serve_udp(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        with sock:
            while True:
                wire, peer = await sock.recvfrom(65535)
                nursery.start_soon(self._answer_udp, sock, wire, peer)

    async def _answer_udp(self, sock: trio.socket.SocketType, wire: bytes, peer: tuple[str, int]) -> None:
        reply = await self._reply(wire, "udp")
        if reply is not None:
            with contextlib.suppress(OSError):  # the asker is gone
                await sock.sendto(reply, peer)

    async def _serve_tcp(self, stream: trio.SocketStream) -> None:
        conversation = Conversation(stream)
        async with stream:
            try:
                while True:
                    size = int.from_bytes(await conversation.receive_exactly(2), "big")
                    reply = await self._reply(await conversation.receive_exactly(size), "tcp")
                    if reply is None:
                        await trio.sleep_forever()
                    await conversation.send(len(reply).to_bytes(2, "big") + reply)
            except Lost:
                pass

    async def _reply(self, wire: bytes, transport: Transport) -> bytes | None:
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if len(query.question) != 1:
            return self.names.refused(query, dns.rcode.FORMERR).to_wire()
        question = query.question[0]
        self.queries.append(
            Query(
                name=question.name.to_text(omit_final_dot=True).lower(),
                rdtype=dns.rdatatype.to_text(question.rdtype),
                transport=transport,
                asks_ad=_asks_ad(query),
                checking_disabled=bool(query.flags & dns.flags.CD),
            )
        )
        held = self.names.held_by(question.name, question.rdtype)
        if held is not None:
            await held.wait()
        fault = self.names.fault_of(question.name, question.rdtype)
        truncates = fault in (Fault.TRUNCATE, Fault.TRUNCATE_AND_DROP)
        if fault is Fault.DROP or (fault is Fault.TRUNCATE_AND_DROP and transport == "tcp"):
            return None
        if fault is Fault.GARBAGE:
            return b"\xff" * 24
        if fault in (Fault.SERVFAIL, Fault.REFUSED):
            rcode = dns.rcode.SERVFAIL if fault is Fault.SERVFAIL else dns.rcode.REFUSED
            return self.names.refused(query, rcode).to_wire()
        response = self.names.answer(query)
        if fault is Fault.WRONG_ID:
            response.id = (query.id + 1) & 0xFFFF
        if transport == "tcp":
            return response.to_wire(max_size=65535)
        limit = max(512, query.payload) if query.edns >= 0 else 512
        return _truncated(response) if truncates else _fitted(response, limit)


def _fitted(response: dns.message.Message, limit: int) -> bytes:
    try:
        return response.to_wire(max_size=limit)
    except dns.exception.TooBig:
        return _truncated(response)


def _truncated(response: dns.message.Message) -> bytes:
    response.answer, response.authority, response.additional = [], [], []
    response.flags |= dns.flags.TC
    return response.to_wire()


async def _bind_both(address: str, port: int) -> tuple[trio.socket.SocketType, trio.SocketListener]:
    """A UDP socket and a TCP listener on the same port."""
    last: OSError | None = None
    for _ in range(20):
        tcp = await listen(address, port)
        udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await udp.bind((address, port_of(tcp)))
        except OSError as error:  # the port is free for TCP only; with port 0, try another
            last = error
            udp.close()
            await tcp.aclose()
        else:
            return udp, tcp
    raise OSError(f"no port of {address} is free for both UDP and TCP") from last


def _name(text: str) -> dns.name.Name:
    return dns.name.from_text(text.lower())


def _key(name: str, rdtype: str) -> _Key:
    return _name(name), dns.rdatatype.from_text(rdtype)


def _find(
    table: Mapping[tuple[dns.name.Name, str], _T], name: dns.name.Name, rdtype: dns.rdatatype.RdataType
) -> _T | None:
    return table.get((name, dns.rdatatype.to_text(rdtype)), table.get((name, "ANY")))


def _rrset(name: dns.name.Name, rdtype: dns.rdatatype.RdataType, records: _Records) -> dns.rrset.RRset:
    return dns.rrset.from_text_list(name, records.ttl, dns.rdataclass.IN, rdtype, list(records.texts))


def _asks_ad(query: dns.message.Message) -> bool:
    return bool(query.flags & dns.flags.AD or query.ednsflags & dns.flags.DO)
