import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
import trio

from smtpguard.sandbox.conversation import open_conversation
from smtpguard.sandbox.dns import Fault, Names, NameServer, Security


@pytest.fixture
def names():
    names = Names()
    names.zone("signed.example", Security.SECURE)
    names.zone("unsigned.example", Security.INSECURE)
    names.zone("broken.example", Security.BOGUS)
    for apex in ("signed.example", "unsigned.example", "broken.example"):
        names.put(f"www.{apex}", "A", "192.0.2.1")
    return names


@pytest.fixture
async def server(names, nursery):
    server = NameServer(names)
    await server.start(nursery)
    return server


def question(name, rdtype="A", *, dnssec=True, edns=True):
    query = dns.message.make_query(name, rdtype, use_edns=0 if edns else False)
    if dnssec:
        query.flags |= dns.flags.AD
    return query


async def ask_udp(server, query):
    sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    with sock:
        await sock.sendto(query.to_wire(), (server.address, server.port))
        return await sock.recv(65535)


async def ask_tcp(server, query):
    conversation = await open_conversation(server.address, server.port)
    try:
        wire = query.to_wire()
        await conversation.send(len(wire).to_bytes(2, "big") + wire)
        size = int.from_bytes(await conversation.receive_exactly(2), "big")
        return await conversation.receive_exactly(size)
    finally:
        conversation.close()


def texts(response):
    return [record.to_text() for rrset in response.answer for record in rrset]


@pytest.mark.parametrize("ask", [ask_udp, ask_tcp])
async def test_ad_only_where_secure(server, ask):
    secure = dns.message.from_wire(await ask(server, question("www.signed.example")))
    insecure = dns.message.from_wire(await ask(server, question("www.unsigned.example")))
    assert texts(secure) == texts(insecure) == ["192.0.2.1"]
    assert secure.flags & dns.flags.AD
    assert not insecure.flags & dns.flags.AD


def test_ad_only_where_asked_for(names):
    """RFC 6840 §5.7: neither AD nor DO in the query, no AD in the answer."""
    assert not names.answer(question("www.signed.example", dnssec=False)).flags & dns.flags.AD
    query = dns.message.make_query("www.signed.example", "A", want_dnssec=True)
    assert names.answer(query).flags & dns.flags.AD


def test_bogus_is_servfail_with_ede_6(names):
    response = names.answer(question("www.broken.example"))
    assert response.rcode() == dns.rcode.SERVFAIL
    assert [option.code for option in response.options] == [dns.edns.EDECode.DNSSEC_BOGUS]
    assert not response.answer


def test_bogus_with_cd_is_data_without_ad(names):
    query = question("www.broken.example")
    query.flags |= dns.flags.CD
    response = names.answer(query)
    assert texts(response) == ["192.0.2.1"]
    assert not response.flags & dns.flags.AD


@pytest.mark.parametrize(
    ("name", "rdtype", "rcode"),
    [
        ("www.signed.example", "TLSA", dns.rcode.NOERROR),
        ("nothing.signed.example", "A", dns.rcode.NXDOMAIN),
        ("signed.example", "MX", dns.rcode.NOERROR),
    ],
)
def test_negative_answers_carry_soa_and_ad(names, name, rdtype, rcode):
    response = names.answer(question(name, rdtype))
    assert response.rcode() == rcode
    assert [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA]
    assert response.flags & dns.flags.AD


def test_an_empty_nonterminal_is_no_nxdomain(names):
    """RFC 8020: names above existing names exist."""
    names.put("_25._tcp.mx.signed.example", "TLSA", "3 1 1 " + "00" * 32)
    assert names.answer(question("_tcp.mx.signed.example")).rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize(
    ("links", "secure"),
    [
        (("www.signed.example",), True),
        (("www.unsigned.example",), False),
        (("hop.unsigned.example", "www.signed.example"), False),
        (("nothing.signed.example",), True),
    ],
)
def test_ad_covers_the_whole_cname_chain(names, links, secure):
    """RFC 4035 §3.2.3: AD only if every RRset in the answer is secure."""
    owners = ("alias.signed.example", *links)
    for owner, target in zip(owners, links, strict=False):
        names.put(owner, "CNAME", f"{target}.")
    response = names.answer(question("alias.signed.example"))
    assert len([rrset for rrset in response.answer if rrset.rdtype == dns.rdatatype.CNAME]) == len(links)
    assert bool(response.flags & dns.flags.AD) is secure


def test_a_cname_loop_is_servfail(names):
    names.put("a.signed.example", "CNAME", "b.signed.example.")
    names.put("b.signed.example", "CNAME", "a.signed.example.")
    assert names.answer(question("a.signed.example")).rcode() == dns.rcode.SERVFAIL


def test_a_bogus_link_spoils_the_chain(names):
    names.put("alias.signed.example", "CNAME", "www.broken.example.")
    assert names.answer(question("alias.signed.example")).rcode() == dns.rcode.SERVFAIL


def test_one_rrset_may_be_judged_apart(names):
    names.judge_as("www.signed.example", "TLSA", Security.BOGUS)
    assert names.answer(question("www.signed.example", "TLSA")).rcode() == dns.rcode.SERVFAIL
    assert names.answer(question("www.signed.example", "A")).rcode() == dns.rcode.NOERROR
    names.judge_as("www.signed.example", "TLSA", None)
    assert names.answer(question("www.signed.example", "TLSA")).rcode() == dns.rcode.NOERROR


async def test_a_large_answer_is_truncated_over_udp_only(server):
    server.names.put("big.signed.example", "TXT", *(f'"{number:0200}"' for number in range(20)))
    query = question("big.signed.example", "TXT")
    over_udp = dns.message.from_wire(await ask_udp(server, query), ignore_trailing=False)
    over_tcp = dns.message.from_wire(await ask_tcp(server, query))
    assert over_udp.flags & dns.flags.TC
    assert not over_udp.answer
    assert len(texts(over_tcp)) == 20
    assert [query.transport for query in server.queries] == ["udp", "tcp"]


async def test_without_edns_512_octets_are_the_limit(server):
    server.names.put("mid.signed.example", "TXT", *(f'"{number:0200}"' for number in range(4)))
    plain = await ask_udp(server, question("mid.signed.example", "TXT", edns=False))
    extended = await ask_udp(server, question("mid.signed.example", "TXT"))
    assert dns.message.from_wire(plain).flags & dns.flags.TC
    assert len(texts(dns.message.from_wire(extended))) == 4


async def test_truncate_is_a_switch(server):
    server.names.fail("www.signed.example", Fault.TRUNCATE)
    query = question("www.signed.example")
    assert dns.message.from_wire(await ask_udp(server, query)).flags & dns.flags.TC
    assert texts(dns.message.from_wire(await ask_tcp(server, query))) == ["192.0.2.1"]


@pytest.mark.parametrize("ask", [ask_udp, ask_tcp])
async def test_drop_is_silence_and_is_logged(server, ask, autojump_clock):
    server.names.fail("www.signed.example", Fault.DROP, "A")
    with trio.move_on_after(30) as scope:
        await ask(server, question("www.signed.example"))
    assert scope.cancelled_caught
    assert server.asked("www.signed.example", "A") == 1
    assert dns.message.from_wire(await ask(server, question("www.signed.example", "AAAA")))


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.REFUSED])
async def test_error_codes(server, fault):
    server.names.fail("www.signed.example", fault)
    response = dns.message.from_wire(await ask_udp(server, question("www.signed.example")))
    assert response.rcode() == dns.rcode.from_text(fault.name)
    assert not response.options


async def test_wrong_id_and_garbage(server):
    query = question("www.signed.example")
    server.names.fail("www.signed.example", Fault.WRONG_ID)
    assert dns.message.from_wire(await ask_udp(server, query)).id != query.id
    server.names.fail("www.signed.example", Fault.GARBAGE)
    assert await ask_udp(server, query) == b"\xff" * 24


async def test_a_held_answer_waits_and_others_do_not(server, nursery):
    go = trio.Event()
    server.names.hold("www.signed.example", go)
    done = []

    async def ask():
        done.append(await ask_udp(server, question("www.signed.example")))

    nursery.start_soon(ask)
    await ask_udp(server, question("www.unsigned.example"))
    assert not done
    go.set()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(done) == 1


async def test_names_are_compared_without_case(server):
    response = dns.message.from_wire(await ask_udp(server, question("WwW.sIgNeD.example")))
    assert texts(response) == ["192.0.2.1"]
    assert server.asked("www.signed.example", "A") == 1
    assert response.question[0].name.to_text() == "WwW.sIgNeD.example."
