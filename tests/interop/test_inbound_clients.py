"""The clients that people use, against smtpguard in front of Postfix (port 25) and Exim (submission with AUTH)."""

import json
import re
import smtplib
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.interop.inbound_lab import CLIENT, EXIM_MX, MX, InboundLab, wait_for_delivery
from tests.interop.messages import below_trace, message
from tests.interop.processes import wait_for

SUBMISSION, SUBMISSIONS = 587, 465


def ran(*command: str | Path, given: bytes = b"") -> str:
    """What a client printed that must succeed."""
    done = subprocess.run([str(word) for word in command], input=given, capture_output=True, timeout=60, check=False)
    output = (done.stdout + done.stderr).decode("utf-8", "backslashreplace")
    assert done.returncode == 0, output
    return output


def came_by_tls(received: bytes, *, authenticated: bool = False) -> None:
    head = re.sub(rb"\n[ \t]+", b" ", received[: received.index(b"Subject:")])
    assert b" by mx.in.test " in head
    assert (b" with ESMTPSA " if authenticated else b" with ESMTPS ") in head, head


def test_swaks(inbound: InboundLab) -> None:
    output = ran(
        *("swaks", "--server", f"{MX}:25", "--local-interface", CLIENT, "--tls", "--tls-verify"),
        *("--tls-ca-path", inbound.trust_file, "--tls-sni", "mx.in.test", "--ehlo", "said.clients.test"),
        *("--from", "user@clients.test", "--to", "user1@in.test", "--header", "Subject: swaks-mx-end"),
    )
    assert "TLS started with cipher TLSv1.3" in output, output
    came_by_tls(wait_for_delivery(inbound, "swaks-mx-end"))


@pytest.mark.parametrize("mode", ["--tls", "--tls-on-connect"])
def test_swaks_submits(inbound: InboundLab, mode: str) -> None:
    """AUTH-01, SUB-01: offered inside TLS only, carried to Exim."""
    port = SUBMISSION if mode == "--tls" else SUBMISSIONS
    marker = f"swaks{mode}-end"
    output = ran(
        *("swaks", "--server", f"{EXIM_MX}:{port}", mode, "--auth", "PLAIN", "--auth-user", "user"),
        *("--auth-password", "secret", "--from", "user@clients.test", "--to", "user1@exim.in.test"),
        *("--header", f"Subject: {marker}"),
    )
    in_clear, _, inside = output.partition("=== TLS started")
    assert "AUTH" not in in_clear
    assert "250-AUTH PLAIN" in inside
    assert "235 Authentication succeeded" in inside
    came_by_tls(wait_for_delivery(inbound, marker), authenticated=True)


def test_wrong_password_is_the_mtas_own_word(inbound: InboundLab) -> None:
    with smtplib.SMTP_SSL(EXIM_MX, SUBMISSIONS, timeout=30, context=trusting(inbound)) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.login("user", "wrong")
        assert caught.value.smtp_code == 535
        assert b"Incorrect authentication data" in caught.value.smtp_error


def trusting(inbound: InboundLab) -> ssl.SSLContext:
    """A client that verifies the chain; smtplib names the host by its address, so names are not asked here."""
    context = ssl.create_default_context(cafile=str(inbound.trust_file))
    context.check_hostname = False
    return context


@pytest.mark.parametrize("port", [25, 465])
def test_curl(inbound: InboundLab, port: int) -> None:
    """curl verifies chain and name, in STARTTLS and in implicit TLS."""
    marker = f"curl-{port}-end"
    sent = message(marker)
    ran(
        *("curl", "--silent", "--show-error", "--ssl-reqd", "--cacert", inbound.trust_file, "--interface", CLIENT),
        *("--resolve", f"mx.in.test:{port}:{MX}", "--crlf", "--upload-file", "-", "--mail-from", "user@clients.test"),
        *("--mail-rcpt", "user1@in.test", f"{'smtps' if port == 465 else 'smtp'}://mx.in.test:{port}"),
        given=sent.replace(b"\r\n", b"\n"),
    )
    received = wait_for_delivery(inbound, marker)
    came_by_tls(received)
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("port", [SUBMISSION, SUBMISSIONS])
def test_msmtp(inbound: InboundLab, port: int) -> None:
    marker = f"msmtp-{port}-end"
    ran(
        *("msmtp", "--file=/dev/null", f"--host={EXIM_MX}", f"--port={port}", "--tls=on"),
        *(f"--tls-starttls={'on' if port == SUBMISSION else 'off'}", f"--tls-trust-file={inbound.trust_file}"),
        *("--tls-host-override=exim.in.test", "--auth=plain", "--user=user", "--passwordeval=echo secret"),
        *("--from=user@clients.test", "user2@exim.in.test"),
        given=message(marker).replace(b"\r\n", b"\n"),
    )
    came_by_tls(wait_for_delivery(inbound, marker), authenticated=True)


@pytest.mark.parametrize("implicit", [False, True])
def test_smtplib(inbound: InboundLab, implicit: bool) -> None:
    marker = f"smtplib-{implicit}-end"
    context = trusting(inbound)
    client = smtplib.SMTP_SSL(EXIM_MX, SUBMISSIONS, context=context) if implicit else smtplib.SMTP(EXIM_MX, SUBMISSION)
    with client:
        if not implicit:
            client.starttls(context=context)
        client.login("user", "secret")
        client.sendmail("user@clients.test", ["user1@exim.in.test"], message(marker))
    came_by_tls(wait_for_delivery(inbound, marker), authenticated=True)


@pytest.mark.parametrize("secure", [False, True])
def test_nodemailer(inbound: InboundLab, secure: bool) -> None:
    marker = f"nodemailer-{secure}-end"
    wish = {
        "transport": {
            "host": EXIM_MX,
            "port": SUBMISSIONS if secure else SUBMISSION,
            "secure": secure,
            "requireTLS": True,
            "auth": {"user": "user", "pass": "secret"},
            "tls": {"servername": "exim.in.test", "ca": inbound.trust_file.read_text()},
        },
        "message": {"from": "user@clients.test", "to": "user1@exim.in.test", "subject": marker, "text": ".\n..\nend"},
    }
    assert ran("node", Path(__file__).parent / "send.mjs", json.dumps(wish)).startswith("250 ")
    came_by_tls(wait_for_delivery(inbound, marker), authenticated=True)


def test_smtp_source(inbound: InboundLab) -> None:
    """Postfix's load generator, in clear as it only can: 200 mails, 10 sessions at once."""
    before = inbound.postfix.log.count("status=sent")
    ran("smtp-source", "-s", "10", "-m", "200", "-f", "user@clients.test", "-t", "user3@in.test", f"{MX}:25")
    wait_for("200 deliveries", lambda: inbound.postfix.log.count("status=sent") >= before + 200, 60)


def test_a_whole_postfix_sends_by_dane(inbound: InboundLab) -> None:
    """A Postfix of the Internet side verifies us by our TLSA record, and pipelines."""
    markers = [f"postfix-{number}-end" for number in range(20)]
    sent = message(markers[0])
    for marker in markers:
        inbound.sender.send("user1@in.test", "user2@in.test", content=message(marker), port=2500)
    received = wait_for_delivery_of_two(inbound, markers[0])
    came_by_tls(received)
    assert below_trace(received) == sent.replace(b"\r\n", b"\n")
    for marker in markers:
        wait_for_delivery_of_two(inbound, marker)
    assert f"Verified TLS connection established to mx.in.test[{MX}]:25" in inbound.sender.log


def wait_for_delivery_of_two(inbound: InboundLab, marker: str) -> bytes:
    """One of the two copies, each recipient its own."""
    found = wait_for(marker, lambda: (f := inbound.delivered(f"Subject: {marker}".encode())) and len(f) == 2 and f)
    assert isinstance(found, list)
    first: bytes = found[0]
    return first


SSLYZE = "/var/lib/smtpguard-interop/sslyze/bin/sslyze"


@pytest.mark.parametrize("port", [25, 465])
def test_sslyze_finds_nothing(inbound: InboundLab, port: int, tmp_path: Path) -> None:
    """TLS-01..09: Mozilla's intermediate profile by sslyze, ciphers, curves, certificate and known holes."""
    report = tmp_path / "report.json"
    how = ["--starttls", "smtp"] if port == 25 else []
    command = [SSLYZE, *how, "--sni", "mx.in.test", "--certinfo_ca_file", str(inbound.trust_file)]
    done = subprocess.run(
        [*command, "--mozilla_config", "intermediate", "--json_out", str(report), f"{MX}:{port}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    (scan,) = json.loads(report.read_text())["server_scan_results"]
    result = scan["scan_result"]
    for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert result[f"{old}_cipher_suites"]["result"]["accepted_cipher_suites"] == []
    assert not result["heartbleed"]["result"]["is_vulnerable_to_heartbleed"]
    assert not result["openssl_ccs_injection"]["result"]["is_vulnerable_to_ccs_injection"]
    assert not result["tls_compression"]["result"]["supports_compression"]
    assert result["session_renegotiation"]["result"]["supports_secure_renegotiation"]
    assert not result["session_renegotiation"]["result"]["is_vulnerable_to_client_renegotiation_dos"]
    assert {part["status"] for part in result.values()} <= {"COMPLETED", "NOT_SCHEDULED"}
    assert "Traceback" not in inbound.smtpguard.log


def test_testssl_finds_nothing(inbound: InboundLab, tmp_path: Path) -> None:
    """TLS-01..09 with other eyes than sslyze's: protocols, ciphers, groups, preferences, certificate, known holes."""
    report = tmp_path / "report.json"
    what = ["--protocols", "--std", "--pfs", "--server-preference", "--server-defaults", "--vulnerable"]
    how = ["--starttls", "smtp", "--nodns", "none", "--warnings", "off", "--add-ca", str(inbound.trust_file)]
    done = subprocess.run(
        ["testssl", *what, *how, "--jsonfile", str(report), "--ip", MX, "mx.in.test:25"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    findings = json.loads(report.read_text())
    told = {one["id"]: one["severity"] for one in findings}
    assert {"TLS1_3", "cert_trust", "heartbleed", "LUCKY13"} <= told.keys(), done.stdout[-6000:]
    # Its own OpenSSL has no GOST; the lab's authority says nothing of revocation.
    expected = {"engine_problem": "WARN", "cert_revocation": "HIGH"}
    assert {key: word for key, word in told.items() if word not in ("OK", "INFO")} == expected, done.stdout[-6000:]


def test_500_scanner_connections_leave_nothing(inbound: InboundLab) -> None:
    """Everything that port scanners do, 500 times: no traceback, no task, no descriptor stays behind."""
    process = inbound.smtpguard.process
    assert process is not None
    descriptors = Path(f"/proc/{process.pid}/fd")
    sessions = "smtpguard_sessions"
    wait_for("no sessions", lambda: inbound.smtpguard.counted(sessions) == 0, 60)
    before = len(list(descriptors.iterdir()))
    hello = client_hello()
    for number in range(500):
        port = 465 if number % 3 == 0 else 25
        with socket.create_connection((MX, port), 10, (CLIENT, 0)) as sock:
            probe(sock, number, hello)
    wait_for("no sessions", lambda: inbound.smtpguard.counted(sessions) == 0, 90)
    wait_for("the descriptors", lambda: len(list(descriptors.iterdir())) <= before, 30)
    assert "Traceback" not in inbound.smtpguard.log
    assert "level=critical" not in inbound.smtpguard.log
    assert "event=internal_error" not in inbound.smtpguard.log


def client_hello() -> bytes:
    """A good ClientHello of OpenSSL's."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mx.in.test")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def probe(sock: socket.socket, number: int, hello: bytes) -> None:
    """One of the things that scanners do; the connection is closed by the caller, or reset."""
    things = [
        b"",
        hello,
        hello[: len(hello) // 2],
        b"\x16\x03\x01\xff\xff" + bytes(1000),
        b"\x80\x2e\x01\x00\x02" + bytes(40),
        b"GET / HTTP/1.0\r\n\r\n",
        b"EHLO scanner\r\nSTARTTLS\r\n",
        b"EHLO scanner\r\nSTARTTLS\r\n" + hello,
        b"EHLO scanner\r\nMAIL FROM:<>\r\nRCPT TO:<user1@in.test>\r\nDATA\r\n",
        b"\x00" * 3000,
        b"A" * 70_000,
        b"\x15\x03\x01\x00\x02\x02\x28",
    ]
    try:
        if number % 2:
            sock.recv(1 if number % 4 == 1 else 4096) if number % 3 else None
        sock.sendall(things[number % len(things)])
        if number % 5 == 0:
            sock.shutdown(socket.SHUT_WR)
            sock.recv(4096)
    except OSError:  # smtpguard may have closed first
        return
    if number % 7 == 0:  # a reset instead of an end
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def test_versions_that_openssl_gets(inbound: InboundLab) -> None:
    """TLS-02: openssl's own client gets TLS 1.2 and 1.3 and nothing older."""
    for version, wanted in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"{MX}:465", version, "-cipher", "ALL:@SECLEVEL=0", "-brief"],
            input=b"QUIT\r\n",
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode == 0) == wanted, (version, done.stderr)
