"""An unmodified Debian Postfix whose connections are redirected to smtpguard: nftables, iptables, TPROXY, IPv4, IPv6.

Each test ends with a look at every octet that was on the wire between pod and Internet.
"""

import re
import socket

import pytest

from tests.interop.messages import below_trace, message
from tests.interop.path import Stripper, assert_nothing_in_clear
from tests.interop.pod import POD, SECOND, SITES, WITH_CERTIFICATE, Pod
from tests.interop.processes import Postfix, wait_for
from tests.interop.unmodified import SUBMISSION

RULES = ["nftables", "iptables"]
DOMAINS = ["dane", "six"]  # IPv4 and IPv6
SENT = "status=sent"
OURS_BY_TLS = b"by out.sender.test with ESMTPS"


def send(pod: Pod, recipient: str, marker: str) -> bytes:
    content = message(marker)
    with pod.network.entered():
        pod.sender.send(recipient, content=content, port=SUBMISSION)
    return content


def delivered_line(postfix: Postfix, recipient: str) -> str:
    return wait_for("Postfix's log", lambda: next((one for one in postfix.lines_about(recipient) if SENT in one), ""))


def assert_verified(pod: Pod, line: str, domain: str) -> str:
    """The id in Postfix's line of a delivery is that of one verified by DANE."""
    (decision,) = re.findall(r" dane (\S+)\)\)$", line)
    pod.smtpguard.logged(rf"event=delivered id={re.escape(decision)} domain={domain}\.test .*auth=dane ")
    return decision


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("rules", RULES)
def test_delivered_and_verified(pod: Pod, rules: str, domain: str) -> None:
    """MX-17, MX-18, INV-04: Postfix was told nothing of smtpguard, and its mail arrives over verified TLS."""
    marker = f"marker-{rules}-{domain}-end"
    recipient = f"user1{RULES.index(rules)}@{domain}.test"
    with pod.heard() as ear, pod.redirected(rules):
        sent = send(pod, recipient, marker)
        (received,) = wait_for("the mail", lambda: pod.delivered(marker))
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    assert b"with ESMTPS" in received
    line = delivered_line(pod.sender, recipient)
    assert f"relay=mx.{domain}.test[{SITES[domain]}]:25" in line  # Postfix saw nothing but the mail host
    decision = assert_verified(pod, line, domain)
    pod.smtpguard.logged(rf"event=intercepted id={re.escape(decision)} .*verdict=mapped mx=mx\.{domain}\.test")
    assert_nothing_in_clear(ear, marker)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("rules", RULES)
def test_stripped_starttls_holds_the_mail(pod: Pod, rules: str, domain: str) -> None:
    """AF-01, INV-04: with an attacker on the path Postfix's queue holds the mail with our reason, until he is gone."""
    marker = f"stripped-{rules}-{domain}-end"
    recipient = f"user2{RULES.index(rules)}@{domain}.test"
    reason = f"451 4.7.4 [tls/no-starttls] mx.{domain}.test[{SITES[domain]}]:25: TLS is required"
    with pod.heard() as ear, pod.redirected(rules):
        with Stripper().attacking() as attacker:
            send(pod, recipient, marker)
            line = wait_for("the deferral", lambda: pod.sender.last_line(recipient))
            assert attacker.stripped
        assert "status=deferred" in line
        assert reason in line
        assert "in reply to RCPT TO command" in line  # no body was sent in vain
        assert reason in re.sub(r"\s+", " ", pod.sender.queue())
        assert not pod.delivered(marker)
        pod.sender.flush()
        wait_for("the mail", lambda: pod.delivered(marker))
    assert_nothing_in_clear(ear, marker)


def test_the_attack_works_where_nobody_asks_for_tls(pod: Pod) -> None:
    """What the other tests do not hear could be heard: a domain that publishes nothing gets its mail in clear."""
    marker = "clear-marker-end"
    with pod.heard() as ear, pod.redirected("nftables"), Stripper().attacking():
        send(pod, "user3@plain.test", marker)
        wait_for("the mail", lambda: pod.delivered(marker))
    assert all(ear.heard(words) for words in (b"MAIL FROM", b"RCPT TO", marker.encode()))


NOT_OFFERED = f"TLS is required, but was not offered by host mx.dane.test[{SITES['dane']}]"


def deferred(pod: Pod, recipient: str, reason: str) -> None:
    """Postfix keeps the mail for Postfix's own reason."""
    wait_for(reason, lambda: reason in (line := pod.sender.last_line(recipient)) and "status=deferred" in line)
    assert reason in re.sub(r"\s+", " ", pod.sender.queue())


def flushed(pod: Pod, marker: str) -> bytes:
    """The mail that waited in Postfix's queue."""

    def arrived() -> list[bytes]:
        pod.sender.flush()  # each time: one that comes while Postfix reloads is lost
        return pod.delivered(marker)

    (received,) = wait_for("the mail", arrived)
    return received


def test_encrypt_is_content_with_a_certificate_of_ours(pod: Pod) -> None:
    """Without one Postfix at `encrypt` keeps the mail; with any, as docs/interception.md says, it is delivered."""
    marker, recipient, before = "encrypt-end", "user6@dane.test", len(pod.smtpguard.log)
    with pod.sender.settings(smtp_tls_security_level="encrypt"), pod.heard() as ear:
        with pod.redirected("nftables"):
            send(pod, recipient, marker)
            deferred(pod, recipient, NOT_OFFERED)
            assert "event=intercepted" not in pod.smtpguard.log[before:]  # Postfix has not told us for whom it is
            assert not pod.delivered(marker)
        with pod.redirected("nftables", port=WITH_CERTIFICATE):
            assert OURS_BY_TLS in flushed(pod, marker)
    assert_verified(pod, delivered_line(pod.sender, recipient), "dane")
    assert_nothing_in_clear(ear, marker)


VERIFYING = {
    "dane": {"smtp_tls_security_level": "dane", "smtp_dns_support_level": "dnssec"},
    "map": {"smtp_tls_policy_maps": "inline:{dane.test=secure}"},
}
"""Settings by which Postfix verifies mail hosts itself."""


@pytest.mark.parametrize("way", VERIFYING)
def test_verification_must_be_left_to_us(pod: Pod, way: str) -> None:
    """Postfix that looks for the mail host's certificate keeps the mail, whether it finds none or ours; back at `may`,
    as docs/interception.md says, the mail is delivered, verified by smtpguard."""
    marker, recipient = f"strict-{way}-end", f"user6{list(VERIFYING).index(way)}@dane.test"
    with pod.heard() as ear:
        with pod.sender.settings(**VERIFYING[way]):
            with pod.redirected("nftables"):
                send(pod, recipient, marker)
                deferred(pod, recipient, NOT_OFFERED)
            with pod.redirected("nftables", port=WITH_CERTIFICATE):
                pod.sender.flush()
                deferred(pod, recipient, "Server certificate not verified")
        assert not pod.delivered(marker)
        with pod.redirected("nftables"):
            flushed(pod, marker)
    assert_verified(pod, delivered_line(pod.sender, recipient), "dane")
    assert_nothing_in_clear(ear, marker)


def test_may_takes_a_certificate_of_ours(pod: Pod) -> None:
    """A listener that serves MTAs at `encrypt` serves those at `may` too, in TLS.  (To a host to which no test before
    sent mail: Postfix keeps connections and TLS sessions for each.)"""
    marker = "may-certificate-end"
    with pod.heard() as ear, pod.redirected("nftables", port=WITH_CERTIFICATE):
        send(pod, "user7@exim.test", marker)
        (received,) = wait_for("the mail", lambda: pod.delivered(marker))
    assert OURS_BY_TLS in received, f"{received!r}\n{pod.sender.log[-4000:]}\n{pod.smtpguard.log[-4000:]}"
    assert_nothing_in_clear(ear, marker)


def test_our_walk_goes_on_to_the_second_host(pod: Pod) -> None:
    """The host that Postfix chose shows a wrong certificate: smtpguard delivers to the domain's other host, and Postfix
    hears of one delivery."""
    marker, recipient = "second-end", "user8@swap.test"
    with pod.heard() as ear, pod.redirected("nftables"):
        send(pod, recipient, marker)
        wait_for("the mail", lambda: pod.delivered(marker))
    line = delivered_line(pod.sender, recipient)
    assert f"relay=mx.swap.test[{SITES['swap']}]:25" in line
    assert f"(second.swap.test[{SECOND['swap']}]:25 dane " in line
    assert len(pod.sender.lines_about(recipient)) == 1
    decision = assert_verified(pod, line, "swap")
    pod.smtpguard.logged(rf"event=host_skipped id={re.escape(decision)} .* mx=mx\.swap\.test .* reason=dane/no-match ")
    assert_nothing_in_clear(ear, marker)


def test_postfix_goes_on_to_the_second_host(pod: Pod) -> None:
    """Nobody answers at the host that Postfix chose: it hears 421 and chooses the next, as it would without us."""
    marker, recipient = "away-end", "user8@away.test"
    with pod.heard() as ear, pod.redirected("nftables"):
        before = len(pod.sender.log)
        send(pod, recipient, marker)
        wait_for("the mail", lambda: pod.delivered(marker))
    line = delivered_line(pod.sender, recipient)
    assert f"relay=second.away.test[{SECOND['away']}]:25" in line
    assert_verified(pod, line, "away")
    assert f"host mx.away.test[{SITES['away']}] refused to talk to me: 421 4.4.1 " in pod.sender.log[before:]
    assert_nothing_in_clear(ear, marker)


@pytest.mark.parametrize("domain", DOMAINS)
def test_gateway_by_tproxy(pod: Pod, domain: str) -> None:
    """MX-17, INV-04: another host's Postfix sends through this one, addresses untouched; under attack its queue holds
    the mail."""
    marker, recipient = f"tproxy-{domain}-end", f"user4@{domain}.test"
    with pod.heard() as ear, pod.redirected("tproxy"):
        with Stripper().attacking():
            pod.unmodified["routed"].send(recipient, message(marker))
            line = wait_for("the deferral", lambda: pod.routed.last_line(recipient))
        assert f"451 4.7.4 [tls/no-starttls] mx.{domain}.test[{SITES[domain]}]:25: TLS is required" in line
        assert not pod.delivered(marker)
        pod.routed.flush()
        (received,) = wait_for("the mail", lambda: pod.delivered(marker))
    assert b"with ESMTPS" in received
    line = delivered_line(pod.routed, recipient)
    assert f"relay=mx.{domain}.test[{SITES[domain]}]:25" in line
    assert_verified(pod, line, domain)
    assert_nothing_in_clear(ear, marker)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_direct_connection_is_refused(pod: Pod, address: str) -> None:
    """MX-17: with the kernel tracking connections, and without; by TPROXY only the own address tells."""
    refused = "421 4.3.5 [intercept/not-redirected] "
    with pod.network.entered():
        assert greeting(address, 10025).startswith(refused)
        assert greeting(address, 10024).startswith(refused)
    for rules in (*RULES, "tproxy"):
        with pod.redirected(rules), pod.network.entered():
            assert greeting(address, 10024 if rules == "tproxy" else 10025).startswith(refused)


def test_local_mail_is_not_redirected(pod: Pod) -> None:
    """The shipped rules leave connections to this host alone."""
    for rules in RULES:
        with pod.redirected(rules), pod.network.entered(), socket.create_server((POD, 25)) as server:
            client = socket.create_connection((POD, 25), timeout=20)
            server.settimeout(20)
            accepted, _ = server.accept()
            accepted.close()
            client.close()


@pytest.mark.parametrize("rules", RULES)
def test_rules_that_do_not_exempt_us(pod: Pod, rules: str) -> None:
    """MX-17: our own connection comes back and is recognised: one session too many, not one without end."""
    counters = ("smtpguard_sessions_total", "smtpguard_violations_total")
    with pod.heard() as ear, pod.redirected(rules, user="64999"):
        recipient = f"user5{RULES.index(rules)}@loop.test"
        with pod.network.entered():
            sessions, violations = (pod.smtpguard.counted(name) for name in counters)
        send(pod, recipient, "loop-marker-end")
        line = wait_for("the deferral", lambda: pod.sender.last_line(recipient))
        with pod.network.entered():
            assert pod.smtpguard.counted(counters[0]) <= sessions + 4
            assert pod.smtpguard.counted(counters[1]) > violations
    assert "[intercept/own-traffic]" in line
    pod.smtpguard.logged("kind=own_traffic")
    assert not ear.heard(b"EHLO")


def greeting(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=20) as sock:
        return sock.makefile().readline()
