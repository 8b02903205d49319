"""The sandbox as a whole, with attacker.py and opportunistic.py, which only mean something inside it."""

import ssl
import subprocess
import sys

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from smtpguard.sandbox.certificates import tlsa
from smtpguard.sandbox.conversation import open_conversation
from smtpguard.sandbox.internet import FORGED_NAME, Attack, Publication, Site, start
from smtpguard.sandbox.policyhost import PATH

SECRET = b"Subject: s\r\n\r\nthe secret\r\n"


@pytest.fixture
async def net(nursery, tmp_path):
    return await start(nursery, tmp_path)


async def deliver(net, domain):
    return await net.opportunistic_sender.send("a@client.example", [f"b@{domain}"], SECRET)


def ask(net, name, rdtype):
    query = dns.message.make_query(name, rdtype)
    query.flags |= dns.flags.AD
    return net.names.answer(query)


@pytest.mark.parametrize(
    "domain",
    ["dane.example", "dane-ta.example", "sts.example", "both.example", "testing.example", "plain.example"],
)
async def test_undisturbed_mail_arrives_over_tls_everywhere(net, domain):
    attempt = await deliver(net, domain)
    host = net.hosts[domain]
    assert (attempt.delivered, attempt.encrypted) == (True, True)
    assert host.mx.messages[0].content == SECRET
    assert host.mx.sessions[0].sni == host.mx_name
    assert b"secret" not in host.mx.clear


async def test_stripped_mail_crosses_in_clear_and_is_read(net):
    await net.attack("dane.example", Attack.STRIP_STARTTLS)
    attempt = await deliver(net, "dane.example")
    host = net.hosts["dane.example"]
    assert (attempt.delivered, attempt.encrypted) == (True, False)
    assert host.attacker.has_read(b"the secret")
    assert host.mx.messages[0].over_tls  # the MX notices nothing


async def test_swapped_certificate_is_believed_and_the_mail_read(net):
    await net.attack("sts.example", Attack.SWAP_CERTIFICATE)
    attempt = await deliver(net, "sts.example")
    host = net.hosts["sts.example"]
    assert (attempt.delivered, attempt.encrypted) == (True, True)
    assert host.attacker.has_read(b"the secret")
    assert host.attacker.credential.der != host.honest.der


@pytest.mark.parametrize(
    ("domain", "rcode"), [("dane.example", dns.rcode.SERVFAIL), ("sts.example", dns.rcode.NOERROR)]
)
async def test_forged_mx_deceives_who_does_not_validate(net, domain, rcode):
    await net.attack(domain, Attack.FORGE_MX)
    assert (await deliver(net, domain)).mx_host == FORGED_NAME
    assert net.forged_mx.messages[0].content == SECRET
    assert not net.hosts[domain].mx.messages
    assert ask(net, domain, "MX").rcode() == rcode


async def test_bogus_tlsa_is_servfail_and_the_rest_stays_secure(net):
    await net.attack("dane.example", Attack.BOGUS_TLSA)
    host = net.hosts["dane.example"]
    assert ask(net, net.tlsa_name(host.mx_name), "TLSA").rcode() == dns.rcode.SERVFAIL
    assert ask(net, "dane.example", "MX").flags & dns.flags.AD


async def test_neglect_shows_in_the_certificate(net):
    host = net.hosts["dane.example"]
    published = ask(net, net.tlsa_name(host.mx_name), "TLSA").answer[0][0].to_text()
    for attack, still_matches in [
        (Attack.STALE_TLSA, False),
        (Attack.EXPIRED_CERTIFICATE, True),
        (Attack.WRONG_NAME, True),
        (Attack.NONE, True),
    ]:
        await net.attack("dane.example", attack)
        assert (tlsa(3, 1, 1, host.mx.credential.der) == published) is still_matches
    assert host.mx.credential is host.honest


async def test_every_attack_ends(net):
    """After any attack and its end, the domain works as at first."""
    for attack in Attack:
        await net.attack("both.example", attack)
        await net.attack("both.example", Attack.NONE)
        assert (await deliver(net, "both.example")).encrypted
    host = net.hosts["both.example"]
    assert len(host.mx.messages) == len(Attack)
    assert not net.forged_mx.messages
    assert not net.policy_hosts.pages["mta-sts.both.example"].refuses_tls


@pytest.mark.parametrize(("domain", "secure"), [("dane.example", True), ("sts.example", False)])
async def test_what_domains_publish(net, domain, secure):
    host = net.hosts[domain]
    for name, rdtype in [(domain, "MX"), (host.mx_name, "A"), (net.tlsa_name(host.mx_name), "TLSA")]:
        assert bool(ask(net, name, rdtype).flags & dns.flags.AD) is secure
    assert bool(ask(net, f"_mta-sts.{domain}", "TXT").answer) is not secure


async def test_the_policy_verifies_with_the_ca_file(net):
    context = ssl.create_default_context(cafile=str(net.ca_file))
    conversation = await open_conversation("127.0.0.80", net.policy_port)
    host = "mta-sts.sts.example"
    await conversation.start_tls(context, server_side=False, server_name=host)
    await conversation.send(f"GET {PATH} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    policy = await conversation.receive_until(b"max_age: 86400\r\n")
    conversation.close()
    assert b"mx: mx.sts.example\r\n" in policy


@pytest.mark.parametrize(
    ("attack", "says"),
    [(Attack.NONE, ""), (Attack.EXPIRED_CERTIFICATE, "expired"), (Attack.WRONG_NAME, "mismatch")],
)
async def test_the_mx_of_an_sts_domain_verifies_unless_attacked(net, attack, says, connect):
    await net.attack("sts.example", attack)
    host = net.hosts["sts.example"]
    client = await connect(host.address, net.mx_port)
    await client.reply()
    await client.hello()
    said = ""
    try:
        await client.start_tls(ssl.create_default_context(cafile=str(net.ca_file)), host.mx_name)
    except trio.BrokenResourceError as error:
        said = str(error.__cause__)
    assert says in said
    assert bool(said) is bool(says)


async def test_the_canary_names(net):
    """DESIGN §6: AD, no AD, SERVFAIL."""
    assert ask(net, "signed.canary", "A").flags & dns.flags.AD
    assert not ask(net, "unsigned.canary", "A").flags & dns.flags.AD
    assert ask(net, "broken.canary", "A").rcode() == dns.rcode.SERVFAIL


async def test_a_further_mx_is_published_like_the_first(net):
    mx = await net.add_mx("both.example", "mx2.both.example")
    assert len(ask(net, "both.example", "MX").answer[0]) == 2
    assert ask(net, net.tlsa_name("mx2.both.example"), "TLSA").answer
    assert b"mx: mx2.both.example\r\n" in net.policy_hosts.pages["mta-sts.both.example"].body
    await net.hosts["both.example"].mx.stop()
    attempt = await deliver(net, "both.example")
    assert (attempt.delivered, attempt.mx_host) == (True, "mx2.both.example")
    assert mx.messages


async def test_two_internets_do_not_meet(net, nursery, tmp_path):
    """Same addresses, other ports: tests may run in parallel."""
    (tmp_path / "other").mkdir()
    other = await start(nursery, tmp_path / "other", [Site("dane.example", Publication.NOTHING)])
    await deliver(other, "dane.example")
    assert not net.hosts["dane.example"].mx.messages
    assert other.hosts["dane.example"].mx.messages


async def test_an_unknown_domain_is_an_answer(net):
    attempt = await deliver(net, "nowhere.example")
    assert (attempt.delivered, attempt.detail) == (False, "no MX host was found")


def test_the_sandbox_imports_nothing_of_smtpguard():
    """Else both sides share a bug."""
    code = (
        "import sys, smtpguard.sandbox.internet\n"
        "ours = [name for name in sys.modules if name.startswith('smtpguard.')]\n"
        "print(*[name for name in ours if not name.startswith('smtpguard.sandbox')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
