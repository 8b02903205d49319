"""What Postfix's queue manager makes of bad destinations and of a restart: good mail must not feel them."""

import re
import smtplib
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from tests.interop.lab import MANY, SITES, SUBMISSION, Lab
from tests.interop.messages import message, transaction_ids
from tests.interop.processes import Postfix, wait_for

GRACE_SECONDS = 2.0
"""More than this above the same burst without a bad host is a delay; a blocked queue costs 30, a suspended one 300."""
OUR_DEFERRAL = re.compile(
    r"status=deferred \(host \S+\[127\.0\.0\.1\] said: 451 4\.(?:3\.2 \[load/destination-busy\]"
    r"|4\.1 \[host/(?:connect|remembered)\]|4\.2 \[host/timeout\]).*\(id \S+\) \(in reply to RCPT TO command\)\)"
)


def delays(log: str, domain: str) -> list[float]:
    """Seconds from the queue to delivery of each mail sent to this domain."""
    found = re.findall(rf"to=<user\d+@{re.escape(domain)}>, .*? delay=([\d.]+), .*? status=sent", log)
    return [float(seconds) for seconds in found]


def failures(log: str, domain: str) -> list[str]:
    """Postfix's log lines about mail to this domain that was deferred or bounced."""
    return [line for line in log.splitlines() if f"@{domain}>," in line and "status=sent" not in line]


@contextmanager
def mute_host() -> Iterator[None]:
    """A host that accepts connections and never says a word."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((SITES["mute"].address, 25))
        sock.listen(512)
        yield


def burst(sender: Postfix, other: str) -> float:
    """200 mails to another domain beside 200 to plain.test; the median of these mails' seconds in Postfix."""
    log_from = len(sender.log)
    for batch in range(10):
        users = range(1000 + batch * 20, 1020 + batch * 20)
        sender.send(*(f"user{user}@{other}" for user in users), content=message("other"), port=SUBMISSION)
        sender.send(*(f"user{user}@plain.test" for user in users), content=message("good"), port=SUBMISSION)
    good = wait_for(
        "200 good deliveries",
        lambda: (len(found := delays(sender.log[log_from:], "plain.test")) == 200 and found) or [],
        90,
    )
    return statistics.median(good)


@pytest.mark.parametrize("domain", ["hole.test", "mute.test"])
def test_black_hole_delays_nobody_else(lab: Lab, sender: Postfix, domain: str) -> None:
    """A host that drops every SYN, or accepts and never speaks, beside a good one; all mail has one next hop here, and
    what Postfix writes about the bad mail is our text (DESIGN §6, §8)."""
    alone = burst(sender, "dane.test")
    before = len(sender.log)
    with mute_host() if domain == "mute.test" else nullcontext():
        beside = burst(sender, domain)
        bad = wait_for(
            "fates of bad mail",
            lambda: (len(found := failures(sender.log[before:], domain)) >= 20 and found) or [],
            60,
        )
    assert beside < alone + GRACE_SECONDS
    assert not failures(sender.log[before:], "plain.test")
    assert not delays(sender.log[before:], domain)
    others = [line for line in bad if not OUR_DEFERRAL.search(line)]
    assert not others, "\n".join(others[:3])


def test_black_hole_in_a_queue_of_its_own(lab: Lab) -> None:
    """With a queue for each domain Postfix itself keeps the bad domain to its initial concurrency of 5 sessions."""
    sender = lab.senders["domains"]
    alone = burst(sender, "dane.test")
    before = len(sender.log)
    beside = burst(sender, "hole.test")
    assert beside < alone + GRACE_SECONDS
    assert not failures(sender.log[before:], "plain.test")
    assert not failures(sender.log[before:], "hole.test")  # they wait for the host; none was sent away as too many
    wait_for("the good sessions' end", lambda: lab.smtpguard.counted("smtpguard_sessions_open") <= 5)


@contextmanager
def handed_over(lab: Lab) -> Iterator[tuple[socket.socket, socket.socket]]:
    """smtpguard on sockets that outlive it, as under systemd."""
    lab.smtpguard.stop()
    with socket.socket() as lmtp, socket.socket() as smtp:
        for sock, port in ((lmtp, 10027), (smtp, 10026)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen(512)
        lab.smtpguard.start((lmtp, smtp))
        try:
            yield lmtp, smtp
        finally:
            lab.smtpguard.stop()


def test_restarts_under_load(lab: Lab, sender: Postfix) -> None:
    """Two restarts behind handed-over sockets at 50 messages a second: each arrives once, nothing waits in a queue."""
    rate, seconds, restarts = 50, 8, (2.0, 5.0)
    markers = [f"restart-{number}-{sender.address}-end" for number in range(rate * seconds)]
    errors: list[BaseException] = []
    before = len(sender.log)
    with handed_over(lab) as sockets:
        begin = time.monotonic()  # noqa: TID251

        def restart() -> None:
            try:
                for at in restarts:
                    time.sleep(max(0.0, begin + at - time.monotonic()))  # noqa: TID251
                    lab.smtpguard.stop()
                    lab.smtpguard.start(sockets)
            except BaseException as error:  # noqa: BLE001 - told by the assertion below
                errors.append(error)

        restarter = threading.Thread(target=restart)
        restarter.start()
        with smtplib.SMTP(sender.address, SUBMISSION, timeout=60) as client:
            for number, marker in enumerate(markers):
                time.sleep(max(0.0, begin + number / rate - time.monotonic()))  # noqa: TID251
                client.sendmail("user@sender.test", [f"user{number}@dane.test"], message(marker))
        restarter.join()
        took = time.monotonic() - begin  # noqa: TID251
        assert not errors
        assert took < seconds * 2, f"the load was {len(markers) / took:.0f} messages a second"
        wait_for("an empty queue", lambda: "Mail queue is empty" in sender.queue(), 60)
        log = sender.log[before:]
    arrived = wait_for(
        "all copies", lambda: len(found := lab.delivered(b"Subject: restart-")) >= len(markers) and found
    )
    subjects = Counter(re.findall(rb"(?m)^Subject: (\S+)$", b"\n".join(arrived)))
    mine = {subject: times for subject, times in subjects.items() if f"-{sender.address}-".encode() in subject}
    assert mine == {marker.encode(): 1 for marker in markers}
    assert not failures(log, "dane.test")
    assert len(delays(log, "dane.test")) == len(markers)


def test_a_queue_for_each_domain(lab: Lab) -> None:
    """deploy/postfix/smtpguard-domains.cf: the next hop carries the recipient's domain, so Postfix keeps its queues by
    domain; 50 recipients in 20 domains are 20 transactions (DESIGN §8)."""
    sender = lab.senders["domains"]
    recipients = [f"user{number}@d{number % MANY}.many.test" for number in range(50)]
    sender.send(*recipients, content=message("by-domain-end"), port=SUBMISSION)
    copies = wait_for("50 copies", lambda: len(found := lab.delivered(b"Subject: by-domain-end")) == 50 and found, 60)
    assert len(transaction_ids(copies)) == MANY
    lines = wait_for(
        "50 replies", lambda: len(found := [x for r in recipients if (x := sender.last_line(r))]) == 50 and found
    )
    for recipient, line in zip(recipients, lines, strict=True):
        domain = recipient.partition("@")[2]
        assert f"relay={domain}.localhost[127.0.0.1]:10027" in line
        assert "status=sent" in line


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("user9@[192.0.2.9]", "status=deferred (host 127.0.0.1[127.0.0.1] said: "),
        ("user9@under_score.test", " said: 5"),
    ],
)
def test_no_queue_of_its_own(lab: Lab, recipient: str, reply: str) -> None:
    """What is no host name takes default_transport, and smtpguard says what becomes of it."""
    sender = lab.senders["domains"]
    sender.send(recipient, content=message("elsewhere"), port=SUBMISSION)
    line = wait_for("its fate", lambda: sender.last_line(recipient))
    assert "relay=127.0.0.1[127.0.0.1]:10027" in line
    assert reply in line, line


def test_a_resolver_that_knows_no_localhost(lab: Lab) -> None:
    """Where names below localhost are not found, mail waits (deploy/postfix/smtpguard-domains.status); no bounce."""
    sender = lab.senders["domains"]
    table = sender.config / "smtpguard-domains.cf"
    shipped = table.read_text()
    try:
        table.write_text(shipped.replace(".localhost:", ".no-such-name.test:"))
        with sender.settings():
            sender.send("user1@dane.test", content=message("resolver-end"), port=SUBMISSION)
            line = wait_for("its fate", lambda: sender.last_line("user1@dane.test"))
            assert "dsn=4.4.4, status=deferred (Host or domain name not found." in line
    finally:
        table.write_text(shipped)
    with sender.settings():
        sender.flush()
        assert len(wait_for("the mail", lambda: lab.delivered(b"Subject: resolver-end"))) == 1
