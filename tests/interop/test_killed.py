"""kill -9 of smtpguard at each step of a transaction, between Postfix and a host that stops there (law 1, AF-55)."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.interop.lab import SCRIPTED, SUBMISSION, Lab
from tests.interop.messages import message
from tests.interop.processes import Postfix, wait_for
from tests.interop.scripted import ScriptedHost, Step, Stopped

LINES = 9000
FILLER = (b"filler " + b"y" * 980 + b"\r\n") * LINES
"""8.9 MB: more than the kernel holds for a dead sender (tcp_wmem's largest is 4 MiB, and it sends that after the death:
2.5 MB once lay there whole, dot included), less than Postfix's message_size_limit."""


@contextmanager
def scripted(stopped: Stopped | None) -> Iterator[ScriptedHost]:
    host = ScriptedHost(SCRIPTED, stopped)
    try:
        yield host
    finally:
        host.close()


def sent(sender: Postfix, recipient: str) -> Callable[[], bool]:
    """Has Postfix been told that this mail was delivered?  Asking makes it try again."""

    def asked() -> bool:
        if "status=sent" in sender.last_line(recipient):
            return True
        sender.flush()
        return False

    return asked


@pytest.mark.parametrize("step", Step)
def test_killed_at(lab: Lab, sender: Postfix, step: Step) -> None:
    """AF-55, INV-03: delivered exactly once; twice only where the host had taken the mail and its reply was cut."""
    marker = f"killed-{step.name}-{sender.address}-end"
    recipient = f"user-{step.name.lower()}-{sender.directory.name}@scripted.test"
    stopped = Stopped(step)
    process = lab.smtpguard.process
    assert process is not None
    with scripted(stopped) as host:
        sender.send(recipient, content=message(marker) + FILLER, port=SUBMISSION)
        assert stopped.reached.wait(20), sender.log[-2000:]
        if step is Step.REPLIED:  # the reply reaches the kernel of smtpguard's machine, and nobody reads it
            process.send_signal(signal.SIGSTOP)
            stopped.go_on.set()
            wait_for("the host's reply", partial(len, host.accepted))
        lab.smtpguard.stop(signal.SIGKILL)
        stopped.go_on.set()
        line = wait_for("Postfix's deferral", partial(sender.last_line, recipient))
        assert "status=deferred" in line
        assert "lost connection with 127.0.0.1" in line or "conversation with 127.0.0.1" in line
        lab.smtpguard.start()
        wait_for("the delivery", sent(sender, recipient))
        wait_for("an empty queue", lambda: "Mail queue is empty" in sender.queue())
    copies = sum(f"Subject: {marker}".encode() in octets for octets in host.accepted)
    assert copies == (2 if step in (Step.DOT, Step.REPLIED) else 1)
    assert len(host.accepted) == copies
    # A 354 was sent, to the living or the dead, and no dot followed: a death never ends a message.
    assert host.cut == (1 if step in (Step.DATA, Step.GO_AHEAD, Step.CONTENT) else 0)
    whole = [octets.count(b"\r\nfiller ") for octets in host.accepted]
    assert whole == [LINES] * copies


def test_killed_after_the_reply_reached_postfix(lab: Lab, sender: Postfix) -> None:
    """AF-55: what Postfix was told is true; a death right after it makes no second copy."""
    recipient = f"user-after-{sender.directory.name}@scripted.test"
    with scripted(None) as host:
        sender.send(recipient, content=message("killed-after-end"), port=SUBMISSION)
        wait_for("the delivery", lambda: "status=sent" in sender.last_line(recipient))
        lab.smtpguard.stop(signal.SIGKILL)
        lab.smtpguard.start()
        sender.flush()
        wait_for("an empty queue", lambda: "Mail queue is empty" in sender.queue())
    assert len(host.accepted) == 1


def test_killed_while_mail_flows(lab: Lab, sender: Postfix) -> None:
    """INV-03, AF-55: nothing is lost, and twice comes at most what was under way at once."""
    markers = [f"flow-{number}-{sender.address}-end" for number in range(40)]
    for number, marker in enumerate(markers):
        sender.send(f"user{number}@dane.test", content=message(marker, lines=200), port=SUBMISSION)
        if number == 20:
            lab.smtpguard.stop(signal.SIGKILL)
    lab.smtpguard.start()

    def arrived() -> bool:
        sender.flush()
        return all(lab.delivered(f"Subject: {marker}".encode()) for marker in markers)

    wait_for("all 40 mails", arrived, 60)
    wait_for("an empty queue", lambda: "Mail queue is empty" in sender.queue())
    twice = [marker for marker in markers if len(lab.delivered(f"Subject: {marker}".encode())) > 1]
    assert len(twice) <= 20, twice  # destination_concurrency_limit
