"""What does this response say?  (RFC 1035 §4, RFC 2181 §5, RFC 6891, RFC 8914; RFC 7672 §2.1.3)

From octets to a `Reading`: the records at the end of the alias chain, the AD bit, and how long they hold.
The wire format is read here, on dnspython's parser and names, and not by `dns.message.from_wire`: that
refuses a whole message for one TLSA record of the wrong length, and RFC 6698 §2.1 wants such a record
unusable and its RRset present. No I/O, no clock.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import assert_never

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.wire

from smtpguard.dns.records import FailureKind, LookupFailed, MxRecord, RdType, Record, TlsaRecord
from smtpguard.names import Domain, NameInvalid, parse_domain

EDNS_OCTETS = 1232
"""UDP payload we accept: never fragmented on an Ethernet path, the rest goes by TCP (RFC 7671 §10.1.1)."""

_EDE_OPTION = 15
_MAX_EDE = 4

_DNSSEC_EDE = frozenset({1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 25, 27})
"""RFC 8914 §4 and the IANA registry: the codes that blame DNSSEC, where the answer is SERVFAIL."""


class MalformedResponseError(Exception):
    """The octets answer our question, and cannot be read to the end."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked, and the octets that ask it."""

    id: int
    name: Domain
    qname: dns.name.Name
    rdtype: RdType
    wire: bytes


@dataclass(frozen=True, slots=True)
class ResourceRecord:
    """One record of the answer section: of the type asked, or a CNAME on the way (`alias`)."""

    owner: dns.name.Name
    ttl: int
    record: Record | None
    """None: a name that is no usable domain name."""
    alias: dns.name.Name | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A response to our question; of a truncated one only the header is read."""

    rcode: int
    truncated: bool
    authenticated: bool
    answers: tuple[ResourceRecord, ...] = ()
    soa_ttl: int | None = None
    ede: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response says: `records` at `end`, `links` aliases away from the question; the least `ttl` on
    the way.

    `unfinished`: the resolver stopped at an alias and neither gave the target's records nor denied them.
    """

    records: tuple[Record, ...]
    end: dns.name.Name
    canonical: Domain | None
    links: int
    ttl: int
    soa_ttl: int | None
    authenticated: bool
    nxdomain: bool
    unfinished: bool


def make_question(name: Domain, rdtype: RdType) -> Question:
    """A query with RD, AD (RFC 6840 §5.7), EDNS and DO; the id is random."""
    qname = dns.name.from_text(name)
    query = dns.message.make_query(qname, rdtype.value, want_dnssec=True, payload=EDNS_OCTETS)
    query.flags |= dns.flags.AD
    return Question(query.id, name, qname, rdtype, query.to_wire())


def parse_response(wire: bytes, question: Question) -> Response | None:
    """The response in `wire`, or None where it is not one to `question` (another id, name or type; not a
    response).

    Raises MalformedResponseError.
    """
    parser = dns.wire.Parser(wire)
    try:
        ident, flags, questions, answers, authorities, additionals = parser.get_struct("!HHHHHH")
        rcode = flags & 0x000F
        if ident != question.id or not flags & dns.flags.QR or flags & 0x7800:
            return None
        if not _asks(parser, questions, rcode, question):
            return None
    except dns.exception.DNSException:
        return None  # not even the question can be read: nothing says that it is ours
    authenticated = bool(flags & dns.flags.AD)
    if flags & dns.flags.TC:
        return Response(rcode, truncated=True, authenticated=authenticated)
    wanted = int(dns.rdatatype.from_text(question.rdtype.value))
    records: list[ResourceRecord] = []
    soa_ttl: int | None = None
    ede: list[int] = []
    try:
        for owner, rdtype, ttl in _records(parser, answers):
            if rdtype == wanted:
                records.append(_read_record(parser, question.rdtype, owner, ttl))
            elif rdtype == dns.rdatatype.CNAME:
                records.append(_read_record(parser, RdType.CNAME, owner, ttl))
        for _, rdtype, ttl in _records(parser, authorities):
            if rdtype == dns.rdatatype.SOA:
                dns.name.from_wire_parser(parser)
                dns.name.from_wire_parser(parser)
                minimum = parser.get_struct("!IIIII")[4]
                soa_ttl = min(ttl, minimum)  # RFC 2308 §5
        for _, rdtype, ttl in _records(parser, additionals):
            if rdtype == dns.rdatatype.OPT:
                rcode |= (ttl >> 24) << 4
                ede.extend(_extended_errors(parser))
    except dns.exception.DNSException as error:
        raise MalformedResponseError(str(error)) from error
    return Response(rcode, False, authenticated, tuple(records), soa_ttl, tuple(ede[:_MAX_EDE]))


def interpret(response: Response, question: Question) -> Reading | LookupFailed:
    """What the response means for the question: the end of its alias chain, or why there is no answer."""

    def failed(kind: FailureKind, detail: str) -> LookupFailed:
        return LookupFailed(question.name, question.rdtype, kind, response.ede, detail)

    match response.rcode:
        case dns.rcode.NOERROR | dns.rcode.NXDOMAIN:
            pass
        case dns.rcode.SERVFAIL if _DNSSEC_EDE.intersection(response.ede):
            return failed(FailureKind.BOGUS, "DNSSEC validation failed")
        case dns.rcode.REFUSED:
            return failed(FailureKind.REFUSED, "the resolver refused the query")
        case other:
            return failed(FailureKind.SERVFAIL, dns.rcode.to_text(dns.rcode.Rcode.make(other)))
    end = question.qname
    ttl = 0x7FFFFFFF
    links = 0
    if question.rdtype is not RdType.CNAME:
        aliases = {answer.owner: answer for answer in response.answers if answer.alias is not None}
        seen = {end}
        while (link := aliases.get(end)) is not None and link.alias is not None:
            end = link.alias
            ttl = min(ttl, link.ttl)
            links += 1
            if end in seen:
                return failed(FailureKind.ALIAS_LOOP, "the aliases form a loop")
            seen.add(end)
    found = [answer for answer in response.answers if answer.owner == end and answer.record is not None]
    if question.rdtype is not RdType.CNAME:
        found = [answer for answer in found if answer.alias is None]
    records = tuple(dict.fromkeys(answer.record for answer in found if answer.record is not None))
    nxdomain = response.rcode == dns.rcode.NXDOMAIN
    return Reading(
        records=records,
        end=end,
        canonical=domain_of(end),
        links=links,
        ttl=min([ttl, *(answer.ttl for answer in found)]),
        soa_ttl=response.soa_ttl,
        authenticated=response.authenticated,
        nxdomain=nxdomain,
        unfinished=links > 0 and not found and not nxdomain and response.soa_ttl is None,
    )


def domain_of(name: dns.name.Name) -> Domain | None:
    """The Domain of a name from the wire, or None where it cannot be one: odd octets, the root, an IP
    address.
    """
    labels = name.labels[:-1]
    if not labels or any(b"." in label for label in labels):
        return None
    with suppress(NameInvalid, UnicodeDecodeError):
        return parse_domain(b".".join(labels).decode("ascii"))
    return None


def _asks(parser: dns.wire.Parser, questions: int, rcode: int, question: Question) -> bool:
    """Is the question section of a response ours?  Error responses may come without one."""
    if questions == 0:
        return rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
    if questions != 1:
        return False
    name = dns.name.from_wire_parser(parser)
    rdtype, rdclass = parser.get_struct("!HH")
    asked = question.qname, dns.rdatatype.from_text(question.rdtype.value), dns.rdataclass.IN
    return (name, rdtype, rdclass) == asked


def _records(parser: dns.wire.Parser, count: int) -> Iterator[tuple[dns.name.Name, int, int]]:
    """Owner, type and TTL of each record of class IN (OPT has none); while one is out, `parser` ends at its
    RDATA.
    """
    for _ in range(count):
        owner = dns.name.from_wire_parser(parser)
        rdtype, rdclass, ttl, octets = parser.get_struct("!HHIH")
        with parser.restrict_to(octets):
            if rdclass == dns.rdataclass.IN or rdtype == dns.rdatatype.OPT:
                yield owner, rdtype, ttl
            parser.get_remaining()


def _read_record(parser: dns.wire.Parser, rdtype: RdType, owner: dns.name.Name, ttl: int) -> ResourceRecord:
    """The record of a type we ask for; RDATA must be read exactly to its end, TLSA excepted (TLSA-01)."""
    record: Record | None
    alias: dns.name.Name | None = None
    match rdtype:
        case RdType.A:
            record = IPv4Address(parser.get_bytes(4))
        case RdType.AAAA:
            record = IPv6Address(parser.get_bytes(16))
        case RdType.CNAME:
            alias = dns.name.from_wire_parser(parser)
            record = domain_of(alias)
        case RdType.PTR:
            record = domain_of(dns.name.from_wire_parser(parser))
        case RdType.MX:
            preference = parser.get_uint16()
            exchange = dns.name.from_wire_parser(parser)
            record = MxRecord(preference, domain_of(exchange), null=exchange == dns.name.root)
        case RdType.TLSA:
            record = _tlsa(parser.get_remaining())
        case RdType.TXT:
            strings = []
            while parser.remaining():
                strings.append(parser.get_counted_bytes())
            record = b"".join(strings)
        case _:
            assert_never(rdtype)
    if parser.remaining():
        raise MalformedResponseError(f"octets follow the RDATA of {rdtype.value}")
    return ResourceRecord(owner, ttl, record, alias)


def _tlsa(rdata: bytes) -> TlsaRecord:
    """RFC 6698 §2.1; short or empty RDATA stays a record, a malformed one, so that the RRset counts as
    present.
    """
    if len(rdata) < 3:
        usage, selector, matching_type = rdata.ljust(3, b"\0")
        return TlsaRecord(usage, selector, matching_type, b"", malformed=True)
    return TlsaRecord(rdata[0], rdata[1], rdata[2], rdata[3:], malformed=len(rdata) == 3)


def _extended_errors(parser: dns.wire.Parser) -> Iterator[int]:
    """RFC 8914 codes of an OPT record."""
    while parser.remaining():
        option, octets = parser.get_struct("!HH")
        value = parser.get_bytes(octets)
        if option == _EDE_OPTION and octets >= 2:
            yield int.from_bytes(value[:2])
