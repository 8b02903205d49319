"""Debian's Postfix in front of smtpguard, with the files of deploy/postfix as they are, by LMTP and by SMTP."""

import re
import smtplib

import pytest

from tests.interop import zones
from tests.interop.lab import MANY, SUBMISSION, VERIFIED, Lab
from tests.interop.messages import below_trace, message, transaction_ids
from tests.interop.processes import Postfix, wait_for

SENT = r"to=<user\d+@d\d+\.many\.test>, .*? status=sent"


@pytest.mark.parametrize("domain", ["dane.test", "exim.test", "sts.test", "plain.test"])
def test_delivered_octet_for_octet(lab: Lab, sender: Postfix, domain: str) -> None:
    """INV-09, SMTP-27: below the trace lines nothing is changed."""
    marker = f"marker-{domain}-{sender.address}-end"
    sent = message(marker)
    sender.send(f"user1@{domain}", content=sent, port=SUBMISSION)
    (received,) = wait_for(f"mail to {domain}", lambda: lab.delivered(marker.encode()))
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    assert b"with ESMTPS" in received or b"with esmtps" in received or domain == "plain.test"
    line = wait_for("the sender's log", lambda: sender.last_line(f"user1@{domain}"))
    assert "status=sent" in line
    auth = {"dane.test": "dane", "exim.test": "dane", "sts.test": "pkix", "plain.test": "none"}[domain]
    (decision,) = re.findall(r" (\S+)\)\)$", line)
    lab.smtpguard.logged(rf"event=delivered id={re.escape(decision)} domain={re.escape(domain)} .*auth={auth} ")


@pytest.mark.parametrize(
    ("domain", "token"),
    [
        ("swap.test", "451 4.7.5 [dane/no-match] mx.swap.test[127.25.0.2]:25"),
        ("stsbad.test", "451 4.7.5 [sts/untrusted] mx.stsbad.test[127.25.0.4]:25"),
        ("bogus.test", "451 4.4.3 [dns/bogus] bogus.test"),
    ],
)
def test_deferred_with_our_text(lab: Lab, sender: Postfix, domain: str, token: str) -> None:
    """The postmaster reads in Postfix's own log what was refused, and `explain` knows the id in it."""
    marker = f"never-{domain}"
    sender.send(f"user2@{domain}", content=message(marker), port=SUBMISSION)
    line = wait_for("the deferral", lambda: sender.last_line(f"user2@{domain}"))
    assert "status=deferred" in line
    assert token in line
    assert "in reply to RCPT TO command" in line  # no body was sent in vain
    (decision,) = re.findall(r"\(id (\S+?)\)", line)
    assert not lab.delivered(marker.encode())
    explained = lab.smtpguard.run("explain", decision)
    assert explained.returncode == 0, explained.stderr
    assert domain in explained.stdout


def test_address_verification_gets_the_truth(lab: Lab, sender: Postfix) -> None:
    """reject_unverified_recipient: the mail host's own word for an address, our 4xx for an unsafe host."""
    with smtplib.SMTP(sender.address, VERIFIED, timeout=60) as client:
        client.ehlo()
        client.mail("user@sender.test")
        assert client.rcpt("user3@dane.test")[0] == 250
        client.rset()
        client.mail("user@sender.test")
        refused, text = client.rcpt("nobody@dane.test")
        assert refused == 550, text
        assert b"User unknown" in text
        client.rset()
        client.mail("user@sender.test")
        unsafe, text = client.rcpt("user3@swap.test")
        assert unsafe == 450, text
        assert b"[dane/no-match]" in text
    assert not lab.delivered(b"Subject: probe")


@pytest.mark.parametrize("limit", [1, 50])
def test_fan_out_to_twenty_hosts(lab: Lab, limit: int) -> None:
    """LMTP-05, AF-40: 50 recipients in 20 domains, each with a host of its own: one LMTP transaction with 50 replies
    where Postfix may put 50 into one, else 50 transactions with one reply."""
    sender = lab.senders["lmtp"]
    marker = f"fan-out-{limit}-end"
    recipients = [f"user{number}@d{number % MANY}.many.test" for number in range(50)]
    with sender.settings(smtpguard_destination_recipient_limit=str(limit)):
        before = len(sender.log)
        counted = lab.smtpguard.counted("smtpguard_deliveries_total")
        sender.send(*recipients, content=message(marker), port=SUBMISSION)
        wait_for("50 replies", lambda: len(re.findall(SENT, sender.log[before:])) == 50, 60)
    copies = wait_for("50 copies", lambda: len(found := lab.delivered(marker.encode())) == 50 and found)
    replies = re.findall(r"many\.test>, relay=.* status=sent \((250 .*)\)\n", sender.log[before:])
    assert len(replies) == 50
    decisions = {reply.rsplit(" ", 1)[1].rstrip(")") for reply in replies}
    expected = {1: (50, 50), 50: (1, MANY)}[limit]
    assert len(transaction_ids(copies)) == expected[0]
    assert lab.smtpguard.counted("smtpguard_deliveries_total") - counted == expected[1]
    assert len(decisions) == expected[1]
    taken_by = {re.findall(r"^\(?(mx\d+)\.many\.test\[", reply.rsplit(" (", 1)[1])[0] for reply in replies}
    assert len(taken_by) == MANY  # the replies name the host that took it
    for decision in decisions:
        lab.smtpguard.logged(rf"event=delivered id={re.escape(decision)} ")
    hosts = re.findall(r"event=delivered id=(\S+) .*recipients=(\d+)", lab.smtpguard.log)
    assert sum(int(number) for id_, number in hosts if id_ in decisions) == 50


def test_several_next_hops_by_smtp(lab: Lab) -> None:
    """AF-40: one SMTP transaction has one next hop; Postfix delivers in one, and keeps the others for its next try."""
    sender = lab.senders["smtp"]
    recipients = [f"user{number}@d{number}.many.test" for number in range(4)]
    with sender.settings(smtpguard_destination_recipient_limit="50"):
        sender.send(*recipients, content=message("several-end"), port=SUBMISSION)
        lines = wait_for("four fates", lambda: [line for r in recipients if (line := sender.last_line(r))][3:] and True)
        assert lines
        first = [sender.last_line(recipient) for recipient in recipients]
        assert sum("status=sent" in line for line in first) == 1
        assert sum("452 4.5.3 [session/other-next-hop]" in line for line in first) == 3

        def all_sent() -> bool:
            sender.flush()
            return all("status=sent" in sender.last_line(recipient) for recipient in recipients)

        wait_for("all four", all_sent)
    assert len(lab.delivered(b"Subject: several-end")) == 4


def test_probe_agrees(lab: Lab) -> None:
    """`probe` says of both hosts what the deliveries above were told."""
    shown = lab.smtpguard.run("probe", "dane.test", "swap.test")
    assert shown.returncode == 1
    assert "dane.test: deliver" in shown.stdout
    assert "[dane/no-match]" in shown.stdout


def test_shipped_resolver_configuration(lab: Lab) -> None:
    """deploy/unbound/smtpguard.conf as it is: AD for what is signed, none for what is not, EDE for what is broken."""
    assert re.search(r"Flags:.* ad;", zones.ask(zones.UNBOUND, "_25._tcp.mx.dane.test", "TLSA"))
    unsigned = zones.ask(zones.UNBOUND, "plain.test", "MX")
    assert "status: NOERROR" in unsigned
    assert not re.search(r"Flags:.* ad;", unsigned)
    broken = zones.ask(zones.UNBOUND, "bogus.test", "MX")
    assert "status: SERVFAIL" in broken
    assert "EDE" in broken
    lab.smtpguard.logged("state=validating")
