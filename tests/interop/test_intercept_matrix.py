"""Each MTA that sends and was told nothing of smtpguard, intercepted, to each MTA that receives."""

import pytest

from tests.interop.messages import below_trace, message
from tests.interop.path import Stripper, assert_nothing_in_clear
from tests.interop.pod import SITES, Pod
from tests.interop.processes import wait_for

SENDERS = ["postfix", "exim", "opensmtpd"]
VERIFIED_BY = {"dane": "dane", "exim": "dane", "sts": "pkix", "osmtpd": "clear"}
"""The receivers' domains, and how their hosts are verified; OpenSMTPD does no TLS here."""
# OpenSMTPD keeps a session open for a while after a mail, and our restart between two tests spoils the first try of its
# next mail to the same host: so its domain is one that is not delivered to.
STRIPPED = [("postfix", "dane"), ("postfix", "sts"), ("exim", "dane"), ("opensmtpd", "six")]


@pytest.mark.parametrize("domain", VERIFIED_BY)
@pytest.mark.parametrize("sender", SENDERS)
def test_delivered(pod: Pod, sender: str, domain: str) -> None:
    """MX-17, MX-18: octet for octet below the trace lines, over verified TLS where the domain asks for it."""
    marker = f"matrix-{sender}-{domain}-end"
    sent, before = message(marker), len(pod.smtpguard.log)
    with pod.heard() as ear, pod.redirected("nftables"):
        pod.unmodified[sender].send(f"user1@{domain}.test", sent)
        (received,) = wait_for("the mail", lambda: pod.delivered(marker))
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    pod.smtpguard.logged(rf"event=delivered .*domain={domain}\.test .*auth={VERIFIED_BY[domain]} ", before)
    pod.smtpguard.logged(rf"event=intercepted .*verdict=mapped mx=mx\.{domain}\.test", before)
    if domain != "osmtpd":
        assert_nothing_in_clear(ear, marker)


@pytest.mark.parametrize(("sender", "domain"), STRIPPED)
def test_stripped_starttls_holds_the_mail(pod: Pod, sender: str, domain: str) -> None:
    """AF-01, INV-04: the mail stays in the queue of the sender, whose log has our reason; when the attacker is gone it
    arrives."""
    marker = f"matrix-stripped-{sender}-{domain}-end"
    mta = pod.unmodified[sender]
    reason = f"[{'sts' if domain == 'sts' else 'tls'}/no-starttls] mx.{domain}.test[{SITES[domain]}]:25"
    with pod.heard() as ear, pod.redirected("nftables"):
        before = len(mta.log)
        with Stripper().attacking() as attacker:
            mta.send(f"user2@{domain}.test", message(marker))
            wait_for("our reason", lambda: reason in mta.log[before:])
            assert attacker.stripped
        assert not pod.delivered(marker)
        mta.retry()
        wait_for("the mail", lambda: pod.delivered(marker))
    assert_nothing_in_clear(ear, marker)


def test_exim_that_may_believe_its_resolver(pod: Pod) -> None:
    """With `options trust-ad` Exim's default is DANE: it asks us for the TLS that is the mail host's.  Its mail waits
    until DANE is left to smtpguard, as docs/interception.md says."""
    marker = "exim-trust-ad-end"
    mta = pod.unmodified["exim-trust-ad"]
    config = pod.directory / "sender-trust-ad" / "exim.conf"
    with pod.heard() as ear, pod.redirected("nftables"):
        mta.send("user3@dane.test", message(marker))
        reason = "a TLS session is required, but the server did not offer TLS support"
        wait_for("Exim's reason", lambda: f"mx.dane.test [{SITES['dane']}]: {reason}" in mta.log)
        assert not pod.delivered(marker)
        config.write_text(config.read_text().replace("driver = smtp\n", "driver = smtp\n  hosts_try_dane =\n"))
        mta.retry()
        wait_for("the mail", lambda: pod.delivered(marker))
    assert_nothing_in_clear(ear, marker)
