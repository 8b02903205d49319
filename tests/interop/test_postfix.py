"""Debian's Postfix in front of smtpguard, with the files of deploy/postfix as they are."""

import re
import smtplib

import pytest

from tests.interop.lab import BY_SMTP, MANY, SUBMISSION, VERIFIED, Lab, run, wait_for


def message(marker: str, lines: int = 20) -> bytes:
    """A message with every trap of transparency: dots, long lines, 8-bit, blank lines at the end."""
    body = [f"Subject: {marker}", "From: user@sender.test", "To: somebody@test", "Message-ID: <1@sender.test>"]
    body += ["Date: Tue, 24 Nov 2026 00:00:00 +0000", "", ".", "..two", "caf\u00e9", "x" * 990, ""]
    body += [f"line {number} {marker}" for number in range(lines)] + ["", "."]
    return "\r\n".join(body).encode("utf-8") + b"\r\n"


def below_trace(octets: bytes) -> bytes:
    """The message without the lines that MTAs prepend."""
    return octets[octets.index(b"Subject:") :]


@pytest.mark.parametrize("port", [SUBMISSION, BY_SMTP], ids=["lmtp", "smtp"])
@pytest.mark.parametrize("domain", ["dane.test", "exim.test", "sts.test", "plain.test"])
def test_delivered_octet_for_octet(lab: Lab, domain: str, port: int) -> None:
    """INV-09, SMTP-27: below the trace lines nothing is changed."""
    marker = f"marker-{domain}-{port}"
    sent = message(marker)
    lab.send(f"user1@{domain}", content=sent, port=port)
    (received,) = wait_for(f"mail to {domain}", lambda: lab.delivered(marker.encode()))
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    assert b"with ESMTPS" in received or b"with esmtps" in received or domain == "plain.test"
    line = wait_for("the sender's log", lambda: "status=sent" in lab.deferral(f"user1@{domain}") or "")
    assert line
    auth = {"dane.test": "dane", "exim.test": "dane", "sts.test": "pkix", "plain.test": "none"}[domain]
    assert re.search(rf"event=delivered .*domain={re.escape(domain)} .*auth={auth} ", lab.smtpguard.log)


@pytest.mark.parametrize(
    ("domain", "token"),
    [
        ("swap.test", "451 4.7.5 [dane/no-match] mx.swap.test[127.25.0.2]:25"),
        ("stsbad.test", "451 4.7.5 [sts/untrusted] mx.stsbad.test[127.25.0.4]:25"),
        ("bogus.test", "451 4.4.3 [dns/bogus] bogus.test"),
    ],
)
def test_deferred_with_our_text(lab: Lab, domain: str, token: str) -> None:
    marker = f"never-{domain}"
    lab.send(f"user2@{domain}", content=message(marker))
    line = wait_for("the deferral", lambda: lab.deferral(f"user2@{domain}"))
    assert "status=deferred" in line
    assert token in line
    (decision,) = re.findall(r"\(id (\S+?)\)", line)
    assert not lab.delivered(marker.encode())
    explained = lab.smtpguard.run("explain", decision)
    assert explained.returncode == 0, explained.stderr
    assert domain in explained.stdout


def test_address_verification_gets_the_truth(lab: Lab) -> None:
    with smtplib.SMTP("127.25.1.1", VERIFIED, timeout=60) as client:
        client.ehlo()
        client.mail("user@sender.test")
        good, _ = client.rcpt("user3@dane.test")
        assert good == 250
        client.rset()
        client.mail("user@sender.test")
        bad, text = client.rcpt("nobody@dane.test")
    assert bad == 550, text
    assert b"User unknown" in text


@pytest.mark.parametrize("limit", [1, 50])
def test_fifty_recipients_in_twenty_domains(lab: Lab, limit: int) -> None:
    marker = f"fan-out-{limit}"
    run("postconf", "-c", lab.sender.config, "-e", f"smtpguard_destination_recipient_limit={limit}")
    run("postfix", "-c", lab.sender.config, "reload")
    recipients = [f"user{number}@d{number % MANY}.many.test" for number in range(50)]
    lab.send(*recipients, content=message(marker))
    wait_for("50 copies", lambda: len(lab.delivered(marker.encode())) == 50, 60)
    run("postconf", "-c", lab.sender.config, "-e", "smtpguard_destination_recipient_limit=1")
    run("postfix", "-c", lab.sender.config, "reload")


def test_probe_agrees(lab: Lab) -> None:
    shown = lab.smtpguard.run("probe", "dane.test", "swap.test")
    assert shown.returncode == 1
    assert "dane.test: deliver" in shown.stdout
    assert "[dane/no-match]" in shown.stdout
