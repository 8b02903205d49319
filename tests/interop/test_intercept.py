"""An unmodified Debian Postfix whose connections are redirected to smtpguard: nftables, iptables, TPROXY, IPv4, IPv6.

Each test ends with a look at every octet that was on the wire between pod and Internet.
"""

import re
import smtplib
import socket

import pytest

from tests.interop.messages import below_trace, message
from tests.interop.path import Stripper, assert_nothing_in_clear
from tests.interop.pod import POD, SITES, Pod
from tests.interop.processes import wait_for
from tests.interop.unmodified import SUBMISSION

RULES = ["nftables", "iptables"]
DOMAINS = ["dane", "six"]  # IPv4 and IPv6


def send(pod: Pod, recipient: str, marker: str) -> bytes:
    content = message(marker)
    with pod.network.entered():
        pod.sender.send(recipient, content=content, port=SUBMISSION)
    return content


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
    line = wait_for("Postfix's log", lambda: pod.sender.last_line(recipient))
    assert f"relay=mx.{domain}.test[{SITES[domain]}]:25" in line  # Postfix saw nothing but the mail host
    assert "status=sent" in line
    (decision,) = re.findall(r" dane (\S+)\)\)$", line)
    log = pod.smtpguard.log
    assert re.search(rf"event=delivered id={re.escape(decision)} domain={domain}\.test .*auth=dane ", log)
    assert re.search(rf"event=intercepted id={re.escape(decision)} .*verdict=mapped mx=mx\.{domain}\.test", log)
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


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_gateway_by_tproxy(pod: Pod, family: socket.AddressFamily) -> None:
    """MX-17, INV-04: another host's connection through this one, addresses untouched."""
    domain = "dane" if family == socket.AF_INET else "six"
    marker = f"tproxy-{domain}-end"
    with pod.heard() as ear, pod.redirected("tproxy"), pod.client.entered():
        with smtplib.SMTP(SITES[domain], 25, local_hostname="mta.client.test", timeout=60) as client:
            assert not client.sendmail("user@client.test", [f"user4@{domain}.test"], message(marker))
        (received,) = wait_for("the mail", lambda: pod.delivered(marker))
    assert b"with ESMTPS" in received
    assert re.search(rf"event=delivered .* domain={domain}\.test .*auth=dane ", pod.smtpguard.log)
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
    with pod.heard() as ear, pod.redirected(rules, user="64999"):
        recipient = f"user5{RULES.index(rules)}@loop.test"
        send(pod, recipient, "loop-marker-end")
        line = wait_for("the deferral", lambda: pod.sender.last_line(recipient))
        with pod.network.entered():
            assert pod.smtpguard.counted("smtpguard_sessions_total") <= 4
            assert pod.smtpguard.counted("smtpguard_violations_total") >= 1
    assert "[intercept/own-traffic]" in line
    assert "kind=own_traffic" in pod.smtpguard.log
    assert not ear.heard(b"EHLO")


def greeting(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=20) as sock:
        return sock.makefile().readline()
