"""What Postfix's queue manager makes of a bad destination, and of smtpguard dying."""

import re
import signal
import socket
import statistics

from tests.interop.lab import SITES, Lab, run, wait_for
from tests.interop.test_postfix import message


def delays(log: str, domain: str) -> list[float]:
    """Seconds from the queue to delivery of each mail sent to this domain."""
    found = re.findall(rf"to=<user\d+@{re.escape(domain)}>, .*? delay=([\d.]+), .*? status=sent", log)
    return [float(seconds) for seconds in found]


def test_black_hole_delays_nobody_else(lab: Lab) -> None:
    """200 mails to a host that accepts and never speaks, beside 200 to a good one (DESIGN §6, §8)."""
    before = len(delays(lab.sender.log, "plain.test"))
    with socket.socket() as hole:
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind((SITES["hole"].address, 25))
        hole.listen(512)
        for batch in range(10):
            users = range(1000 + batch * 20, 1020 + batch * 20)
            lab.send(*(f"user{user}@hole.test" for user in users), content=message("hole"))
            lab.send(*(f"user{user}@plain.test" for user in users), content=message("beside-hole"))
        good = wait_for(
            "200 good deliveries",
            lambda: len(found := delays(lab.sender.log, "plain.test")[before:]) == 200 and found,
            90,
        )
        run("postsuper", "-c", lab.sender.config, "-d", "ALL")
    assert statistics.median(good) < 2.0, sorted(good)[::20]
    assert "delivery temporarily suspended" not in lab.sender.log


def test_killed_in_the_middle(lab: Lab) -> None:
    """INV-03, AF-55: kill -9 while mail flows; nothing is lost, and twice comes only what was between the dots."""
    markers = [f"kill-{number}-end" for number in range(40)]
    for number, marker in enumerate(markers):
        lab.send(f"user{number}@dane.test", content=message(marker, lines=200))
        if number == 20:
            lab.smtpguard.stop(signal.SIGKILL)
    lab.smtpguard.start()

    def arrived() -> bool:
        lab.sender.flush()
        return all(lab.delivered(marker.encode()) for marker in markers)

    wait_for("all 40 mails", arrived, 60)
    twice = [marker for marker in markers if len(lab.delivered(marker.encode())) > 1]
    assert len(twice) <= 20, twice  # as many as were on the way at once


def test_restart_behind_a_socket(lab: Lab) -> None:
    """Socket activation: while smtpguard restarts, Postfix's connections wait in the socket; nothing is suspended."""
    lab.smtpguard.stop()
    with socket.socket() as lmtp, socket.socket() as smtp:
        for sock, port in ((lmtp, 10027), (smtp, 10026)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen(512)
        lab.smtpguard.start((lmtp, smtp))
        before = len(lab.sender.log)
        for batch in range(10):  # 10 x 20 mails, a restart in the middle
            users = range(2000 + batch * 20, 2020 + batch * 20)
            lab.send(*(f"user{user}@dane.test" for user in users), content=message("restart-beside"))
            if batch == 4:
                lab.smtpguard.stop()
            if batch == 6:
                lab.smtpguard.start((lmtp, smtp))

        def all_here() -> bool:
            lab.sender.flush()
            return len(lab.delivered(b"Subject: restart-beside")) >= 200

        try:
            wait_for("200 copies", all_here, 60)
        except AssertionError as error:
            raise AssertionError(f"{error}; in the queue: {lab.sender.queue()[-2000:]}") from error
        log = lab.sender.log[before:]
        assert "delivery temporarily suspended" not in log
        lab.smtpguard.stop()
    lab.smtpguard.start()
