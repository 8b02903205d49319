"""Debian's Postfix, Exim and OpenSMTPD behind smtpguard: do they know the client; is nobody an open relay?"""

import re
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.interop.inbound_lab import (
    CLIENT,
    CLIENT6,
    CLIENT_NAME,
    DISTRUSTING,
    EXIM_MX,
    HAPROXY_PORT,
    MX,
    MX6,
    OPENSMTPD_MX,
    TRUSTING,
    UNLISTED_PORT,
    InboundLab,
    wait_for_delivery,
)
from tests.interop.messages import below_trace, message
from tests.interop.processes import wait_for

POSTFIX_BY_XCLIENT, POSTFIX_BY_PROXY = (MX, 25), (MX, 2525)
EXIM_BY_PROXY, OPENSMTPD_BY_PROXY = (EXIM_MX, 25), (OPENSMTPD_MX, 25)
EVERY_WAY = [POSTFIX_BY_XCLIENT, POSTFIX_BY_PROXY, EXIM_BY_PROXY, OPENSMTPD_BY_PROXY]
SECOND = "203.0.113.25:2627"


def unverified() -> ssl.SSLContext:
    """A client that takes any certificate, as mail hosts do that know neither DANE nor MTA-STS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def client(server: tuple[str, int], *, tls: bool = True, source: str = CLIENT) -> Iterator[smtplib.SMTP]:
    """An SMTP client with its EHLO said, inside TLS if so wished."""
    with smtplib.SMTP(*server, local_hostname="said.clients.test", timeout=30, source_address=(source, 0)) as opened:
        if tls:
            assert opened.starttls(context=unverified())[0] == 220
        assert opened.ehlo()[0] == 250
        yield opened


def recipient(server: tuple[str, int]) -> str:
    return {EXIM_MX: "user1@exim.in.test", OPENSMTPD_MX: "user1@osmtpd.in.test"}.get(server[0], "user1@in.test")


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("server", EVERY_WAY)
def test_delivered_octet_for_octet_below_our_trace(inbound: InboundLab, server: tuple[str, int], tls: bool) -> None:
    """INV-09, TRC-01..03: the message is as it was sent, below one line of ours that says how it came."""
    marker = f"inbound-{server[0]}-{server[1]}-{tls}-end"
    sent = message(marker)
    with client(server, tls=tls) as opened:
        assert not opened.sendmail("user@clients.test", [recipient(server)], sent, ["BODY=8BITMIME"])
    received = wait_for_delivery(inbound, marker)
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    head = re.sub(rb"\n[ \t]+", b" ", received[: received.index(b"Subject:")])
    ours = [line for line in head.splitlines() if b" by mx.in.test " in line]
    assert len(ours) == 1, head
    assert f"[{CLIENT}]".encode() in ours[0]
    assert b"from said.clients.test" in ours[0]
    assert (b" with ESMTPS " in ours[0]) == tls
    assert (b"TLSv1.3" in ours[0]) == tls


@pytest.mark.parametrize("source", [CLIENT, CLIENT6])
def test_postfix_logs_the_client_by_xclient(inbound: InboundLab, source: str) -> None:
    """XCLIENT: address, verified name and HELO of the client, over IPv4 and IPv6."""
    before = len(inbound.postfix.log)
    with client((MX6 if ":" in source else MX, 25), source=source) as opened:
        opened.sendmail("user@clients.test", ["user1@in.test"], message(f"who-{source}-end"))
    line = f"client={CLIENT_NAME}[{source}]"
    wait_for("Postfix's log line", lambda: line in inbound.postfix.log[before:])
    helo = wait_for_delivery(inbound, f"who-{source}-end")
    assert b"from said.clients.test" in helo.split(b"by inner.in.test")[0]


def test_postfix_logs_the_client_by_proxy(inbound: InboundLab) -> None:
    before = len(inbound.postfix.log)
    with client(POSTFIX_BY_PROXY) as opened:
        opened.sendmail("user@clients.test", ["user1@in.test"], message("who-proxy-end"))
    wait_for("Postfix's log line", lambda: re.search(rf"client=\S+\[{CLIENT}\]", inbound.postfix.log[before:]))


def test_exim_logs_the_client_by_proxy(inbound: InboundLab) -> None:
    with client(EXIM_BY_PROXY) as opened:
        opened.sendmail("user@clients.test", ["user1@exim.in.test"], message("who-exim-end"))
    (line,) = wait_for("Exim's log line", lambda: re.findall(r".* <= user@clients\.test .*", inbound.exim_log)[-1:])
    assert f"[{CLIENT}]" in line
    assert "PRX=127.0.0.1" in line


def test_opensmtpd_logs_the_client_by_proxy(inbound: InboundLab) -> None:
    with client(OPENSMTPD_BY_PROXY) as opened:
        opened.sendmail("user@clients.test", ["user1@osmtpd.in.test"], message("who-osmtpd-end"))
    log = inbound.directory / "osmtpd.log"
    wait_for("OpenSMTPD's log line", lambda: f"smtp connected address={CLIENT}" in log.read_text())


@pytest.mark.parametrize("server", EVERY_WAY)
def test_no_open_relay(inbound: InboundLab, server: tuple[str, int]) -> None:
    """Each MTA trusts our address, and refuses the client what it would allow us; its own words come through."""
    with client(server) as opened:
        assert opened.mail("user@clients.test")[0] == 250
        code, text = opened.rcpt("somebody@elsewhere.example")
        assert code in (454, 550), text
        assert re.search(rb"(?i)relay access denied|relay not permitted|invalid recipient", text), text
        assert opened.rcpt(recipient(server))[0] == 250


def by_none(inbound: InboundLab, upstream: str) -> str:
    """A listener before an MTA that does not learn the client."""
    return inbound.listener(SECOND, upstream=upstream, pass_client="none", upstream_has_no_trusted_networks=True)


@pytest.mark.parametrize("mta", TRUSTING)
def test_open_relay_is_found_at_start(inbound: InboundLab, mta: str) -> None:
    """`none` in front of an MTA that trusts us: nobody is served, and the operator is told why."""
    with inbound.second(by_none(inbound, TRUSTING[mta])) as other:
        wait_for("the probe", lambda: "state=open_relay" in other.log)
        assert greeting(2627).startswith(b"421 4.3.0 ")
        assert other.get("/healthz/ready")[0] == 503


@pytest.mark.parametrize("mta", ["postfix", *DISTRUSTING])
def test_none_is_right_where_the_mta_trusts_nobody(inbound: InboundLab, mta: str) -> None:
    with ExitStack() as stack:
        if mta == "postfix":
            stack.enter_context(inbound.postfix.settings(mynetworks="192.0.2.99/32"))
        other = stack.enter_context(inbound.second(by_none(inbound, {**TRUSTING, **DISTRUSTING}[mta])))
        wait_for("readiness", other.is_ready)
        opened = stack.enter_context(client((MX, 2627)))
        opened.mail("user@clients.test")
        assert opened.rcpt("somebody@elsewhere.example")[0] == (454 if mta == "postfix" else 550)
        server = {"postfix": MX, "exim": EXIM_MX, "opensmtpd": OPENSMTPD_MX}[mta]
        assert opened.rcpt(recipient((server, 25)))[0] == 250


@pytest.mark.parametrize("mta", ["exim", "opensmtpd"])
def test_xclient_that_the_mta_does_not_know(inbound: InboundLab, mta: str) -> None:
    """Exim 4.96 and OpenSMTPD have no XCLIENT: nothing is relayed, though they would take us for a trusted client."""
    with inbound.second(inbound.listener(SECOND, upstream=TRUSTING[mta], pass_client="xclient")) as other:
        wait_for("the verdict", lambda: "the MTA does not offer XCLIENT to this host" in other.log)
        assert greeting(2627).startswith(b"421 4.3.0 ")


def test_xclient_that_postfix_does_not_offer_us(inbound: InboundLab) -> None:
    """Fail-closed: without XCLIENT nothing is relayed, and the log says what to set."""
    listener = inbound.listener(SECOND, upstream=f"127.0.0.1:{UNLISTED_PORT}", pass_client="xclient")
    with inbound.second(listener) as other:
        wait_for("the verdict", lambda: "smtpd_authorized_xclient_hosts" in other.log)
        assert greeting(2627).startswith(b"421 4.3.0 ")


def test_xclient_refused_after_the_profile_was_learnt(inbound: InboundLab) -> None:
    """Postfix loses the setting while we run: the session that hears it is refused, nothing goes through as us."""
    with client(POSTFIX_BY_XCLIENT) as opened:
        assert opened.mail("user@clients.test")[0] == 250
    with (
        inbound.postfix.settings(smtpd_authorized_xclient_hosts=""),
        pytest.raises(smtplib.SMTPException) as caught,
        client(POSTFIX_BY_XCLIENT) as opened,
    ):
        opened.sendmail("user@clients.test", ["somebody@elsewhere.example"], message("never"))
    assert "421" in str(caught.value) or "4.3.0" in str(caught.value), caught.value

    def works_again() -> bool:
        try:
            with client(POSTFIX_BY_XCLIENT) as opened:
                return opened.mail("user@clients.test")[0] == 250
        except smtplib.SMTPException:
            return False

    wait_for("recovery without a restart", works_again, 30)


def test_wrong_way_round_proxy_header(inbound: InboundLab) -> None:
    """XCLIENT chosen for a smtpd that waits for a PROXY header: 421, and never a hanging client."""
    listener = inbound.listener(SECOND, upstream=f"127.0.0.1:{HAPROXY_PORT}", pass_client="xclient")
    with inbound.second(listener):
        assert greeting(2627).startswith(b"421 4.3.")


def test_protected_domain_in_clear(inbound: InboundLab) -> None:
    """`[[inbound_policy]]` in front of real Postfix: 530 in clear, delivered inside TLS."""
    with client(POSTFIX_BY_XCLIENT, tls=False) as opened:
        opened.mail("user@clients.test")
        code, text = opened.rcpt("user1@secret.in.test")
        assert code == 530, text
        assert b"5.7.0 [inbound/tls-required]" in text
        assert opened.rcpt("user1@in.test")[0] == 250
    with client(POSTFIX_BY_XCLIENT) as opened:
        opened.sendmail("user@clients.test", ["user1@secret.in.test"], message("secret-end"))
    wait_for_delivery(inbound, "secret-end")


def test_postfix_down_and_back(inbound: InboundLab) -> None:
    """AF-38: 4xx while the MTA is away, mail again when it is back, and no restart of ours."""
    run_postfix = inbound.postfix
    run_postfix.stop()
    try:
        wait_for("the refusal", lambda: not accepted(), 30)
    finally:
        run_postfix.restart()
    wait_for("recovery", accepted, 60)


def accepted() -> bool:
    """Does a client get as far as a recipient?"""
    try:
        with client(POSTFIX_BY_XCLIENT) as opened:
            opened.mail("user@clients.test")
            return opened.rcpt("user1@in.test")[0] == 250
    except (smtplib.SMTPException, AssertionError, OSError):
        return False


def greeting(port: int) -> bytes:
    """The first line that a client hears."""
    with socket.create_connection((MX, port), 30, (CLIENT, 0)) as sock:
        return sock.makefile("rb").readline()
