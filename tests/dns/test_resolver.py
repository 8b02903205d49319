"""tests for dns/resolver.py and dns/transport.py, against a name server on loopback"""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import pytest
import trio
import trustme

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.dns.records import (
    Answer,
    FailureKind,
    Lookup,
    LookupFailed,
    MxRecord,
    RdType,
    Security,
    TlsaRecord,
)
from smtpguard.dns.resolver import (
    Resolver,
    ResolverAddress,
    ResolverSettings,
    Validation,
    is_trusted,
    resolvers_from_resolv_conf,
)
from smtpguard.events import DnsLookup, DnssecState, InternalError
from smtpguard.names import Domain
from tests.dns.dns_server import DnsServer, Reply, Respond, answer

NAME = Domain("mx1.example.org")
LOOPBACK = ip_address("127.0.0.1")
A = "mx1.example.org. 300 IN A 192.0.2.1"
SOA = "example.org. 600 IN SOA ns.example.org. root.example.org. 1 2 3 4 120"


@dataclass
class Bench:
    """A resolver that runs, its servers, and what it said."""

    servers: list[DnsServer]
    nursery: trio.Nursery
    resolver: Resolver
    events: list[Any]
    validation: list[Validation] = field(default_factory=lambda: [Validation.TRUSTED])

    async def a(self) -> Lookup:
        return await self.resolver.lookup(NAME, RdType.A)

    @property
    def queries(self) -> list[tuple[str, str, str]]:
        return [query for server in self.servers for query in server.queries]


@asynccontextmanager
async def running(
    *responders: Respond,
    tls: ssl.SSLContext | None = None,
    tls_name: Domain | None = None,
    vouched: bool = True,
    **settings: Any,
) -> AsyncIterator[Bench]:
    servers = [DnsServer(respond, tls) for respond in responders]
    validation = [Validation.TRUSTED]
    events: list[Any] = []
    async with trio.open_nursery() as nursery:
        for server in servers:
            await nursery.start(server.run)
        resolvers = tuple(ResolverAddress(LOOPBACK, s.port, tls_name, vouched) for s in servers)
        resolver = Resolver(
            ResolverSettings(resolvers, **settings),
            SYSTEM_CLOCK,
            events.append,
            lambda: validation[0],
            confirmed=lambda: True,
        )
        await nursery.start(resolver.run)
        yield Bench(servers, nursery, resolver, events, validation)
        nursery.cancel_scope.cancel()


def always(*records: str, **more: Any) -> Respond:
    return lambda query, udp: answer(query, *records, **more)


def silence(query: dns.message.Message, udp: bool) -> Reply:
    return None


def found(lookup: Lookup) -> Answer:
    assert isinstance(lookup, Answer), lookup
    return lookup


def failed(lookup: Lookup) -> LookupFailed:
    assert isinstance(lookup, LookupFailed), lookup
    return lookup


async def test_dane_01_a_secure_answer() -> None:
    async with running(always(A)) as bench:
        got = found(await bench.a())
        assert got.records == (ip_address("192.0.2.1"),)
        assert (got.security, got.canonical, got.nxdomain) == (Security.SECURE, NAME, False)
        [query] = bench.servers[0].messages
        assert query.flags & dns.flags.AD
        assert query.flags & dns.flags.RD
        assert query.ednsflags & dns.flags.DO
        assert query.payload == 1232  # TLSA-20
        [event] = bench.events
        assert isinstance(event, DnsLookup)
        assert (event.qname, event.rdtype, event.status) == (NAME, "A", "secure")


async def test_dane_01_an_insecure_answer() -> None:
    async with running(always(A, ad=False)) as bench:
        assert found(await bench.a()).security is Security.INSECURE


@pytest.mark.parametrize("code", [5, 6, 7, 8, 9, 10, 11, 12])
async def test_dane_01_dane_03_a_bogus_answer(code: int) -> None:
    async with running(always(rcode=dns.rcode.SERVFAIL, ede=[code]), always(A)) as bench:
        got = failed(await bench.a())
        assert (got.kind, got.ede, got.reason_code) == (FailureKind.BOGUS, (code,), f"ede-{code}")
        assert len(bench.queries) == 1  # nobody else is asked


@pytest.mark.parametrize(
    ("rcode", "ede", "kind"),
    [
        (dns.rcode.SERVFAIL, [], FailureKind.SERVFAIL),
        (dns.rcode.SERVFAIL, [22, 23], FailureKind.SERVFAIL),
        (dns.rcode.NOTIMP, [], FailureKind.SERVFAIL),
        (dns.rcode.FORMERR, [], FailureKind.SERVFAIL),
        (dns.rcode.BADVERS, [], FailureKind.SERVFAIL),
        (dns.rcode.REFUSED, [18], FailureKind.REFUSED),
    ],
)
async def test_dane_07_error_codes_are_failures(rcode: int, ede: list[int], kind: FailureKind) -> None:
    async with running(always(rcode=rcode, ede=ede)) as bench:
        got = failed(await bench.a())
        assert (got.kind, got.ede) == (kind, tuple(ede))


async def test_dane_07_silence_is_a_time_out_after_all_attempts(autojump_clock: trio.abc.Clock) -> None:
    async with running(silence, silence, attempts=2, timeout_seconds=3.0) as bench:
        started = trio.current_time()
        assert failed(await bench.a()).kind is FailureKind.TIMEOUT
        assert trio.current_time() - started == pytest.approx(12.0)
        assert len(bench.queries) == 4
        assert len({message.id for server in bench.servers for message in server.messages}) > 1


async def test_a_lost_query_is_sent_again(autojump_clock: trio.abc.Clock) -> None:
    dropped: list[int] = []

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        if not dropped:
            dropped.append(query.id)
            return None
        return answer(query, A)

    async with running(respond) as bench:
        assert found(await bench.a()).records


async def test_the_next_resolver_answers_for_one_that_fails() -> None:
    async with running(always(rcode=dns.rcode.SERVFAIL), always(A)) as bench:
        assert found(await bench.a()).records


async def test_a_resolver_that_failed_is_not_asked_again_and_its_failure_outweighs_silence(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with running(silence, always(rcode=dns.rcode.SERVFAIL, ede=[23])) as bench:
        assert failed(await bench.a()).ede == (23,)
        assert [len(server.queries) for server in bench.servers] == [2, 1]


async def test_nothing_listens() -> None:
    async with running(silence) as bench:
        port = bench.servers[0].port
    settings = ResolverSettings((ResolverAddress(LOOPBACK, port),))
    resolver = Resolver(settings, SYSTEM_CLOCK, print, lambda: Validation.TRUSTED, confirmed=bool)
    got = failed(await resolver.query_uncached(NAME, RdType.A))
    assert got.kind is FailureKind.NETWORK
    assert "refused" in got.detail


@pytest.mark.parametrize("ad", [True, False])
@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN])
async def test_dane_04_absence_is_an_answer(rcode: int, ad: bool, autojump_clock: trio.abc.Clock) -> None:
    async with running(always(rcode=rcode, soa=SOA, ad=ad)) as bench:
        got = found(await bench.a())
        assert got.records == ()
        assert got.nxdomain == (rcode == dns.rcode.NXDOMAIN)
        assert got.security is (Security.SECURE if ad else Security.INSECURE)
        assert got.expires - trio.current_time() == pytest.approx(120)  # RFC 2308 §5: SOA minimum


async def test_tlsa_20_a_truncated_answer_is_asked_for_over_tcp() -> None:
    records = [f"_25._tcp.mx1.example.org. 300 IN TLSA 3 1 1 {n:064x}" for n in range(100)]

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        if not udp:
            return answer(query, *records)
        short = answer(query)
        short.flags |= dns.flags.TC
        return short

    async with running(respond) as bench:
        got = found(await bench.resolver.lookup(Domain("_25._tcp.mx1.example.org"), RdType.TLSA))
        assert len(got.records) == 100
        assert got.security is Security.SECURE
        assert [how for *_, how in bench.queries] == ["udp", "tcp"]


async def test_tlsa_01_records_of_the_wrong_length_come_through() -> None:
    """dnspython would refuse the whole message"""
    rdatas = [b"", b"\x03", b"\x03\x01\x01", b"\x03\x01\x01" + b"x" * 31, b"\x03\x01\x01" + b"y" * 32]

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        [question] = query.question
        owner = question.name.to_wire()
        assert owner is not None
        body = owner + (52).to_bytes(2) + (1).to_bytes(2)
        message = query.id.to_bytes(2) + b"\x85\xa0" + b"\0\1" + len(rdatas).to_bytes(2) + b"\0\0\0\0" + body
        for rdata in rdatas:
            message += b"\xc0\x0c" + b"\0\x34\0\1" + (300).to_bytes(4) + len(rdata).to_bytes(2) + rdata
        return message

    async with running(respond) as bench:
        got = found(await bench.resolver.lookup(Domain("_25._tcp.mx1.example.org"), RdType.TLSA))
        assert got.security is Security.SECURE
        assert got.records == (
            TlsaRecord(0, 0, 0, b"", malformed=True),
            TlsaRecord(3, 0, 0, b"", malformed=True),
            TlsaRecord(3, 1, 1, b"", malformed=True),
            TlsaRecord(3, 1, 1, b"x" * 31),
            TlsaRecord(3, 1, 1, b"y" * 32),
        )


async def test_records_of_each_type() -> None:
    async with running(
        always(
            "example.org. 9 IN MX 10 MX1.Example.ORG.",
            "example.org. 9 IN MX 0 .",
            "example.org. 9 IN MX 5 192.0.2.1.",
            "example.org. 9 IN MX 5 bad!host.example.",
            "example.org. 9 IN MX 6 not\\.two.example.",
        )
    ) as bench:
        got = found(await bench.resolver.lookup(Domain("example.org"), RdType.MX))
        assert got.records == (
            MxRecord(10, NAME),
            MxRecord(0, None, null=True),
            MxRecord(5, None),
            MxRecord(6, None),
        )
    async with running(always('example.org. 9 IN TXT "v=STSv1; " "id=1;"', 'example.org. 9 IN TXT "x"')) as bench:
        got = found(await bench.resolver.lookup(Domain("example.org"), RdType.TXT))
        assert got.records == (b"v=STSv1; id=1;", b"x")
    async with running(
        always(
            "1.2.0.192.in-addr.arpa. 9 IN CNAME 1.0/25.2.0.192.in-addr.arpa.",
            "1.0/25.2.0.192.in-addr.arpa. 9 IN PTR mx1.example.org.",
        )
    ) as bench:
        got = found(await bench.resolver.lookup(Domain("1.2.0.192.in-addr.arpa"), RdType.PTR))
        assert (got.records, got.canonical) == ((NAME,), "1.2.0.192.in-addr.arpa")


ALIAS = ("mx1.example.org. 60 IN CNAME B.example.", "b.example. 30 IN CNAME c.example.")


async def test_dane_08_an_alias_chain_is_followed_in_the_answer(autojump_clock: trio.abc.Clock) -> None:
    async with running(always("c.example. 300 IN A 192.0.2.9", *ALIAS, "other.example. 1 IN A 192.0.2.8")) as bench:
        got = found(await bench.a())
        assert got.records == (ip_address("192.0.2.9"),)
        assert (got.name, got.canonical) == (NAME, "c.example")
        assert got.expires - trio.current_time() == pytest.approx(30)


async def test_dane_09_a_cname_query_is_not_followed() -> None:
    async with running(always(*ALIAS)) as bench:
        got = found(await bench.resolver.lookup(NAME, RdType.CNAME))
        assert (got.records, got.canonical) == ((Domain("b.example"),), NAME)


@pytest.mark.parametrize("insecure", ["alias", "target"])
async def test_mx_01_a_resolver_that_stops_at_the_alias_is_asked_for_the_target(insecure: str) -> None:
    def respond(query: dns.message.Message, udp: bool) -> Reply:
        if query.question[0].name == dns.name.from_text("c.example"):
            return answer(query, "c.example. 300 IN A 192.0.2.9", ad=insecure != "target")
        return answer(query, *ALIAS, ad=insecure != "alias")

    async with running(respond) as bench:
        got = found(await bench.a())
        assert (got.records, got.canonical) == ((ip_address("192.0.2.9"),), "c.example")
        assert got.security is Security.INSECURE  # DANE-08: one insecure link
        assert len(bench.queries) == 2


async def test_an_alias_of_a_name_without_records_is_not_asked_again() -> None:
    async with running(always(*ALIAS, soa=SOA)) as bench:
        assert found(await bench.a()).records == ()
        assert len(bench.queries) == 1


@pytest.mark.parametrize(
    "chain",
    [
        ["mx1.example.org. 60 IN CNAME mx1.example.org."],
        ["mx1.example.org. 60 IN CNAME b.example.", "b.example. 60 IN CNAME mx1.example.org."],
        [
            "mx1.example.org. 60 IN CNAME 0.example.",
            *(f"{n}.example. 60 IN CNAME {n + 1}.example." for n in range(20)),
        ],
    ],
)
async def test_dane_08_loops_and_long_chains_are_errors(chain: list[str]) -> None:
    async with running(always(*chain)) as bench:
        assert failed(await bench.a()).kind is FailureKind.ALIAS_LOOP


async def test_dane_08_a_chain_handed_out_link_by_link_is_bounded() -> None:
    def respond(query: dns.message.Message, udp: bool) -> Reply:
        first = str(query.question[0].name).split(".")[0]
        step = int(first) + 1 if first.isdigit() else 0
        return answer(query, f"{query.question[0].name} 60 IN CNAME {step}.example.")

    async with running(respond) as bench:
        assert failed(await bench.a()).kind is FailureKind.ALIAS_LOOP
        assert len(bench.queries) == 17


async def test_an_alias_of_no_host_name_is_malformed() -> None:
    async with running(always("mx1.example.org. 9 IN CNAME a/b.example.", "a/b.example. 9 IN A 192.0.2.1")) as bench:
        assert failed(await bench.a()).kind is FailureKind.MALFORMED


@pytest.mark.parametrize("cut", [1, 3, 10])
async def test_dane_07_a_malformed_answer(cut: int) -> None:
    def respond(query: dns.message.Message, udp: bool) -> Reply:
        return answer(query, A).to_wire()[:-11][:-cut]

    async with running(respond) as bench:
        assert failed(await bench.a()).kind is FailureKind.MALFORMED


async def test_an_unfinished_alias_that_cannot_be_followed_proves_nothing() -> None:
    owner = Domain("_25._tcp.mx1.example.org")
    async with running(always(f"{owner}. 9 IN CNAME a/b.example.")) as bench:
        assert failed(await bench.resolver.lookup(owner, RdType.TLSA)).kind is FailureKind.MALFORMED


async def test_dane_07_octets_after_an_address_are_malformed() -> None:
    def respond(query: dns.message.Message, udp: bool) -> Reply:
        query.use_edns(False)
        wire = bytearray(answer(query, A).to_wire())
        start = wire.index(b"\0\x04\xc0\x00\x02\x01")
        return bytes(wire[:start]) + b"\0\x05\xc0\x00\x02\x01\x01" + bytes(wire[start + 6 :])

    async with running(respond) as bench:
        assert failed(await bench.a()).kind is FailureKind.MALFORMED


async def test_answers_to_other_questions_are_ignored() -> None:
    def respond(query: dns.message.Message, udp: bool) -> Sequence[Reply]:
        other = dns.message.make_query("other.example", "A")
        other.id = query.id
        wrong_type = dns.message.make_query(NAME, "AAAA")
        wrong_type.id = query.id
        wrong_id = answer(query, "mx1.example.org. 300 IN A 192.0.2.66")
        wrong_id.id ^= 1
        notify = answer(query, "mx1.example.org. 300 IN A 192.0.2.66")
        notify.set_opcode(dns.opcode.NOTIFY)
        no_question = answer(query)
        no_question.question = []
        return [
            b"",
            b"junk",
            query,  # not a response
            answer(other, "other.example. 300 IN A 192.0.2.66"),
            answer(wrong_type),
            wrong_id,
            notify,
            no_question,
            answer(query, A),
        ]

    async with running(respond) as bench:
        assert found(await bench.a()).records == (ip_address("192.0.2.1"),)


async def test_over_tcp_another_answer_is_malformed(autojump_clock: trio.abc.Clock) -> None:
    def respond(query: dns.message.Message, udp: bool) -> Reply:
        response = answer(query)
        response.flags |= dns.flags.TC
        if not udp:
            response.id ^= 1
        return response

    async with running(respond) as bench:
        assert failed(await bench.a()).kind is FailureKind.MALFORMED


async def test_answers_are_cached_with_their_ad_bit_until_the_ttl(autojump_clock: trio.abc.Clock) -> None:
    async with running(always(A)) as bench:
        first = await bench.a()
        await trio.sleep(299)
        assert await bench.a() == first
        assert len(bench.queries) == 1
        await trio.sleep(2)
        assert found(await bench.a()).security is Security.SECURE
        assert len(bench.queries) == 2


async def test_failures_are_cached_for_moments(autojump_clock: trio.abc.Clock) -> None:
    async with running(always(rcode=dns.rcode.SERVFAIL)) as bench:
        await bench.a()
        await bench.a()
        assert len(bench.queries) == 1
        await trio.sleep(6)
        await bench.a()
        assert len(bench.queries) == 2


async def test_the_canary_asks_past_the_cache_and_validation() -> None:
    async with running(always(A)) as bench:
        bench.validation[0] = Validation.OFF
        for _ in range(2):
            assert found(await bench.resolver.query_uncached(NAME, RdType.A)).security is Security.SECURE
        assert len(bench.queries) == 2


async def test_dane_02_without_validation_every_answer_is_insecure() -> None:
    async with running(always(A)) as bench:
        bench.validation[0] = Validation.OFF
        assert bench.resolver.validation is Validation.OFF
        assert found(await bench.a()).security is Security.INSECURE
        assert found(await bench.a()).security is Security.INSECURE  # cached
    async with running(always(A), dnssec="off") as bench:
        assert bench.resolver.validation is Validation.OFF
        assert found(await bench.a()).security is Security.INSECURE


async def test_what_was_cached_while_validation_was_lost_does_not_outlive_it() -> None:
    """an insecure answer kept from then would switch DANE off after the recovery"""
    ad = [False]
    async with running(lambda query, udp: answer(query, A, ad=ad[0])) as bench:
        bench.validation[0] = Validation.LOST
        assert found(await bench.a()).security is Security.INSECURE
        bench.validation[0], ad[0] = Validation.TRUSTED, True
        assert found(await bench.a()).security is Security.SECURE


async def test_dane_02_af_21_ad_of_an_untrusted_resolver_is_not_believed() -> None:
    async with running(always(A), vouched=False) as bench:
        assert not bench.resolver.trusted
        before = bench.resolver.validation
        assert found(await bench.a()).security is Security.INSECURE
        [warning] = [event for event in bench.events if isinstance(event, DnssecState)]
        assert (warning.state, warning.severity) == ("untrusted", "warning")
        assert str(bench.servers[0].port) in warning.detail
        bench.validation[0] = Validation.LOST
        # A changed configuration drops nothing silently.
        assert (before, bench.resolver.validation) == (Validation.OFF, Validation.LOST)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("127.0.0.11", False),
        ("127.0.0.53", False),
        ("127.0.0.54", False),
        ("::ffff:127.0.0.53", False),
        ("192.168.1.1", False),
        ("9.9.9.9", False),
    ],
)
def test_dane_02_whose_ad_bit_is_believed(address: str, expected: bool) -> None:
    resolver = ResolverAddress(ip_address(address))
    assert is_trusted(resolver, trust_ad=False) is expected
    assert is_trusted(resolver, trust_ad=True)
    assert is_trusted(replace(resolver, tls_name=Domain("dns.example")), trust_ad=False)
    assert not is_trusted(replace(resolver, vouched=False), trust_ad=True)


def test_dane_02_one_untrusted_resolver_spoils_the_list() -> None:
    resolvers = (ResolverAddress(LOOPBACK), ResolverAddress(ip_address("192.0.2.53")))
    resolver = Resolver(ResolverSettings(resolvers), SYSTEM_CLOCK, print, lambda: Validation.TRUSTED, confirmed=bool)
    assert resolver.validation is Validation.OFF
    assert not resolver.permanent_answers_confirmed()


def test_dane_02_resolv_conf_is_believed_only_with_trust_ad() -> None:
    servers = ["127.0.0.1", "fe80::1%eth0", "x", "::1"]
    text = "# a comment\nsearch example\n" + "".join(f"nameserver {server}\n" for server in servers)
    expected = [LOOPBACK, ip_address("::1")]
    addresses, trust_ad = resolvers_from_resolv_conf(text)
    assert (addresses, trust_ad) == (tuple(ResolverAddress(a, vouched=False) for a in expected), False)
    addresses, trust_ad = resolvers_from_resolv_conf(text + "options edns0 trust-ad\n")
    assert (addresses, trust_ad) == (tuple(map(ResolverAddress, expected)), True)
    assert len(resolvers_from_resolv_conf("nameserver 192.0.2.1\n" * 9)[0]) == 3


def test_a_resolver_in_words() -> None:
    assert str(ResolverAddress(LOOPBACK)) == "127.0.0.1:53"
    assert str(ResolverAddress(ip_address("2001:db8::1"), 853, Domain("dns.example"))) == (
        "tls://[2001:db8::1]:853#dns.example"
    )


async def test_identical_lookups_are_one_query_and_a_cancelled_waiter_leaves_it_to_the_others(
    autojump_clock: trio.abc.Clock,
) -> None:
    answering: list[bool] = []

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        return answer(query, A) if answering else None

    results = []
    async with running(respond, timeout_seconds=2.0) as bench:

        async def ask() -> None:
            results.append(await bench.a())

        async with trio.open_nursery() as waiters:
            with trio.move_on_after(0.5) as first:
                waiters.start_soon(ask)
                waiters.start_soon(ask)
                await ask()
            assert first.cancelled_caught
            answering.append(True)
        assert [found(result).records for result in results] == [(ip_address("192.0.2.1"),)] * 2
        assert len(bench.queries) == 2  # one lost, one sent again; not one per waiter


async def test_lookups_in_flight_are_bounded_and_so_is_the_wait(autojump_clock: trio.abc.Clock) -> None:
    in_flight = []

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        in_flight.append(query.question[0].name)
        return None

    async with running(respond, max_parallel=2, attempts=1, timeout_seconds=3.0) as bench:
        results: list[Lookup] = []

        async def ask(n: int) -> None:
            results.append(await bench.resolver.lookup(Domain(f"n{n}.example"), RdType.A))

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(ask, n)
        assert len(in_flight) == 2
        kinds = [failed(result).kind for result in results]
        assert sorted(kind.value for kind in kinds) == ["busy"] * 3 + ["timeout"] * 2


async def test_a_resolver_that_stops_leaves_nobody_waiting() -> None:
    results: list[Lookup] = []
    started = trio.Event()

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        started.set()
        return None

    async with trio.open_nursery() as outside, running(respond) as bench:

        async def ask() -> None:
            results.append(await bench.a())

        outside.start_soon(ask)
        await started.wait()
    assert failed(results[0]).kind is FailureKind.NETWORK
    assert failed(await bench.a()).detail == "the resolver is not running"


async def test_a_bug_costs_one_answer() -> None:
    async with running(always(A)) as bench:
        calls = []

        def emit(event: Any) -> None:
            calls.append(event)
            if isinstance(event, DnsLookup):
                raise RuntimeError("bug")

        settings = ResolverSettings((ResolverAddress(LOOPBACK, bench.servers[0].port),))
        resolver = Resolver(settings, SYSTEM_CLOCK, emit, lambda: Validation.TRUSTED, confirmed=bool)
        assert failed(await resolver.query_uncached(NAME, RdType.A)).detail == "internal error"
        assert isinstance(calls[-1], InternalError)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("dns.example").configure_cert(context)
    return context


async def test_dane_02_dns_over_tls_with_a_verified_name(authority: trustme.CA, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = server_context(authority)
    async with running(always(A), tls=context, tls_name=Domain("dns.example"), ca_file=ca_file) as bench:
        assert found(await bench.a()).security is Security.SECURE
        assert found(await bench.resolver.lookup(Domain("b.example"), RdType.A)).records == ()
        assert [how for *_, how in bench.queries] == ["tls", "tls"]
        assert bench.servers[0].connections == 1  # kept for the second query


async def test_dane_02_dns_over_tls_with_another_name_or_authority(authority: trustme.CA, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = server_context(authority)
    async with running(always(A), tls=context, tls_name=Domain("other.example"), ca_file=ca_file) as bench:
        got = failed(await bench.a())
        assert got.kind is FailureKind.NETWORK
        assert "ertificate" in got.detail
    trustme.CA().cert_pem.write_to_path(str(ca_file))
    async with running(always(A), tls=context, tls_name=Domain("dns.example"), ca_file=ca_file) as bench:
        assert failed(await bench.a()).kind is FailureKind.NETWORK


async def test_a_kept_tls_connection_that_the_resolver_closed_is_replaced(
    authority: trustme.CA, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    dead: list[bool] = []

    def respond(query: dns.message.Message, udp: bool) -> Reply:
        if len(bench.servers[0].queries) == 2 and not dead:
            dead.append(True)
            raise trio.BrokenResourceError  # ends the connection
        return answer(query)

    tls_name = Domain("dns.example")
    context = server_context(authority)
    async with running(respond, tls=context, tls_name=tls_name, ca_file=ca_file, attempts=1) as bench:
        found(await bench.a())
        found(await bench.resolver.lookup(Domain("b.example"), RdType.A))
        assert bench.servers[0].connections == 2
