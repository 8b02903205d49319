"""Each MTA that sends, through smtpguard, to each MTA that receives."""

import smtplib
from pathlib import Path

import pytest

from tests.interop.lab import SENDING, SUBMISSION, Lab
from tests.interop.messages import below_trace, message
from tests.interop.processes import wait_for


def submit(lab: Lab, sender: str, recipient: str, content: bytes) -> None:
    """Hand a message to a sending MTA, as a mail client would."""
    if sender in lab.senders:
        lab.senders[sender].send(recipient, content=content, port=SUBMISSION)
        return
    with smtplib.SMTP(SENDING[sender], 2500, local_hostname="client.sender.test", timeout=60) as client:
        assert not client.sendmail("user@sender.test", [recipient], content, ["BODY=8BITMIME"])


def log_of(lab: Lab, sender: str) -> str:
    if sender in lab.senders:
        return lab.senders[sender].log
    path = {"exim": "sender-exim/log/mainlog", "opensmtpd": "sender-opensmtpd.log"}[sender]
    return Path(lab.directory / path).read_text()


@pytest.mark.parametrize("domain", ["dane.test", "exim.test", "osmtpd.test"])
@pytest.mark.parametrize("sender", ["lmtp", "smtp", "exim", "opensmtpd"])
def test_delivered(lab: Lab, sender: str, domain: str) -> None:
    """Octet for octet below the trace lines; verified by DANE but for OpenSMTPD, which does no TLS here."""
    marker = f"matrix-{sender}-{domain}-end"
    sent = message(marker)
    submit(lab, sender, f"user1@{domain}", sent)
    (received,) = wait_for(f"mail to {domain}", lambda: lab.delivered(f"Subject: {marker}".encode()))
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    how = "" if domain == "osmtpd.test" else "auth=dane "
    lab.smtpguard.logged(rf"event=delivered .*domain={domain} .*{how}")


# Postfix last: the lab ends smtpguard where mail is left in its queue, and OpenSMTPD waits long after that.
@pytest.mark.parametrize("sender", ["opensmtpd", "exim", "lmtp", "smtp"])
def test_refused_with_our_text(lab: Lab, sender: str) -> None:
    """The mail stays in the sender's queue, and its log has our reason."""
    marker = f"matrix-never-{sender}"
    submit(lab, sender, "user7@swap.test", message(marker))
    wait_for("our reason", lambda: "451 4.7.5 [dane/no-match] mx.swap.test" in log_of(lab, sender))
    assert not lab.delivered(marker.encode())
