"""smtp.trace: the Received line."""

import email
import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.names import Domain
from smtpguard.smtp.forwarded import ClientCertificate, ClientIdentity, ClientTls, NameMissing, plan_xclient
from smtpguard.smtp.trace import protocol_word, received_from, received_line

DATE = datetime(2026, 11, 3, 9, 5, 7, tzinfo=UTC)


def line(**changes: object) -> bytes:
    arguments: dict[str, object] = {
        "from_name": b"client.example.org",
        "from_address": "192.0.2.1",
        "by": "mx1.example.org",
        "with_": "ESMTPS",
        "id": "0k3f9q2a.7",
        "for_": None,
        "tls": "TLS_AES_256_GCM_SHA384",
        "group": "x25519",
        "date": DATE,
    }
    return received_line(**{**arguments, **changes})  # type: ignore[arg-type]


def test_trc_01_one_field_folded_with_its_crlf() -> None:
    written = line(for_="user@example.com")
    assert written == (
        b"Received: from client.example.org ([192.0.2.1])\r\n"
        b"\tby mx1.example.org with ESMTPS id 0k3f9q2a.7\r\n"
        b"\tfor <user@example.com>\r\n"
        b"\ttls TLS_AES_256_GCM_SHA384 group x25519;\r\n"
        b"\tTue, 3 Nov 2026 09:05:07 +0000\r\n"
    )
    message = email.message_from_bytes(written + b"Subject: x\r\n\r\nhello\r\n")
    assert message.keys() == ["Received", "Subject"]


def test_trc_02_from_by_with_id_and_a_date_with_numeric_offset() -> None:
    written = line(date=datetime(2026, 2, 28, 23, 59, 1, tzinfo=timezone(-timedelta(hours=3, minutes=30))))
    assert b"for" not in written.replace(b"Received", b""), "several recipients: none is named"
    date = written.rpartition(b";")[2].strip().decode()
    assert date == "Sat, 28 Feb 2026 23:59:01 -0330"
    assert parsedate_to_datetime(date).utcoffset() == -timedelta(hours=3, minutes=30)


def test_trc_02_a_naive_date_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        line(date=datetime(2026, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("address", "literal"),
    [
        ("192.0.2.1", b"([192.0.2.1])"),
        ("2001:db8::1", b"([IPv6:2001:db8::1])"),
        ("fe80::1%eth0", b"([IPv6:fe80::1])"),
    ],
)
def test_trc_02_address_literal(address: str, literal: bytes) -> None:
    assert line(from_address=address).splitlines()[0].endswith(literal)


def test_trc_02_a_unix_socket_has_no_address_and_a_silent_client_no_name() -> None:
    assert line(from_address="").startswith(b"Received: from client.example.org\r\n")
    assert line(from_name=b"").startswith(b"Received: from [192.0.2.1] ([192.0.2.1])\r\n")
    assert line(from_name=b"", from_address="").startswith(b"Received: from unknown\r\n")


def test_trc_03_protocol_word_of_every_session() -> None:
    """TRC-03: RFC 3848, RFC 6531 §4.3."""
    words = {
        flags: protocol_word(lmtp=flags[0], extended=True, tls=flags[1], auth=flags[2], utf8=flags[3])
        for flags in product((False, True), repeat=4)
    }
    assert set(words.values()) == {
        *("ESMTP", "ESMTPS", "ESMTPA", "ESMTPSA", "LMTP", "LMTPS", "LMTPA", "LMTPSA"),
        *(
            "UTF8SMTP",
            "UTF8SMTPS",
            "UTF8SMTPA",
            "UTF8SMTPSA",
            "UTF8LMTP",
            "UTF8LMTPS",
            "UTF8LMTPA",
            "UTF8LMTPSA",
        ),
    }
    assert len(set(words.values())) == 16
    assert words[False, True, True, False] == "ESMTPSA"
    assert words[True, True, False, True] == "UTF8LMTPS"
    assert protocol_word(lmtp=False, extended=False, tls=False, auth=False, utf8=False) == "SMTP"
    assert protocol_word(lmtp=False, extended=False, tls=True, auth=False, utf8=False) == "SMTP"


@pytest.mark.parametrize(
    ("tls", "group", "clause"),
    [
        ("TLS_AES_256_GCM_SHA384", "x25519", b"tls TLS_AES_256_GCM_SHA384 group x25519;"),
        ("TLS_AES_128_GCM_SHA256", "X25519MLKEM768", b"tls TLS_AES_128_GCM_SHA256 group X25519MLKEM768;"),
        (
            "ECDHE-RSA-AES256-GCM-SHA384",
            "prime256v1",
            b"tls TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 group secp256r1;",
        ),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", "", b"tls TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;"),
        ("AES128-SHA", "", b"tls TLS_RSA_WITH_AES_128_CBC_SHA;"),
    ],
)
def test_trc_04_iana_suite_then_group(tls: str, group: str, clause: bytes) -> None:
    assert b"\t" + clause in line(tls=tls, group=group)


@pytest.mark.parametrize("tls", ["", "UNHEARD-OF", "TLS_X; by evil"])
def test_trc_04_no_clause_without_tls_or_for_a_suite_without_iana_name(tls: str) -> None:
    written = line(tls=tls, group="x25519")
    assert b"tls" not in written
    assert b"group" not in written


@given(name=st.binary(max_size=600), recipient=st.text(max_size=600) | st.none(), utf8=st.booleans())
def test_trc_05_what_the_client_says_adds_no_line_and_no_clause(name: bytes, recipient: str | None, utf8: bool) -> None:
    """TRC-05: whatever the EHLO name, it is one word; the field is one field."""
    written = line(from_name=name, for_=recipient, with_="UTF8SMTP" if utf8 else "ESMTP")
    lines = written.decode().split("\r\n")
    assert lines.pop() == ""
    assert len(lines) == (4 if b"\r\n\tfor " not in written else 5)
    assert all(text.startswith("\t") for text in lines[1:])
    assert re.fullmatch(r"Received: from [^\s();]+ \(\[192\.0\.2\.1\]\)", lines[0])
    assert all(len(text.encode()) <= 998 for text in lines)
    assert not re.search(rb"[\r\n](?!\n|\t|$)", written)


def test_trc_05_an_injected_clause_stays_part_of_the_name() -> None:
    written = line(from_name=b"a (b) by evil with ESMTPS\r\nX: y")
    assert written.startswith(b"Received: from a??b??by?evil?with?ESMTPS??X:?y ([192.0.2.1])\r\n")


def test_trc_06_u_labels_only_where_smtputf8_is_in_force() -> None:
    name = "bücher.example".encode()
    assert line(from_name=name, with_="UTF8SMTPS").startswith("Received: from bücher.example (".encode())
    assert line(from_name=name, with_="ESMTPS").startswith(b"Received: from xn--bcher-kva.example (")
    assert line(from_name=b"b\xfccher", with_="UTF8SMTPS").startswith(b"Received: from b?cher (")
    assert "for <jürgen@example.com>".encode() in line(for_="jürgen@example.com", with_="UTF8SMTP")
    assert b"\tfor" not in line(for_="jürgen@example.com", with_="ESMTP")


def test_trc_05_a_path_in_utf8_is_measured_in_octets() -> None:
    """TRC-05: 500 characters may be 2000 octets, and no line has more than 998 (RFC 5322 §2.1.1)."""
    face = "\N{GRINNING FACE}"
    assert b"\tfor" not in line(for_=face * 300 + "@example.com", with_="UTF8SMTP")
    assert b"\tfor" in line(for_=face * 100 + "@example.com", with_="UTF8SMTP")


# -- the line of a message from the Internet

TLS = ClientTls("TLSv1.3", "TLS_AES_256_GCM_SHA384", 256, "X25519", "mx1.example.org")
CLIENT = ClientIdentity(
    address=ip_address("192.0.2.79"),
    port=40025,
    name=Domain("client.example.org"),
    reverse_name=Domain("client.example.org"),
    helo=b"mail.example.org",
    extended=True,
    tls=TLS,
    session="3f9q2a01c",
)


def inbound(identity: ClientIdentity = CLIENT, **changes: object) -> bytes:
    arguments: dict[str, object] = {
        "by": "mx1.example.net",
        "id": "3f9q2a01c.1",
        "for_": "<user@example.com>",
        "date": DATE,
    }
    return received_from(identity, **{**arguments, **changes})  # type: ignore[arg-type]


def test_trc_02_the_inbound_line_whole() -> None:
    """TRC-01, TRC-02, TRC-04, PXY-11: who it was and how it came, for people and for programs."""
    assert inbound() == (
        b"Received: from mail.example.org (client.example.org [192.0.2.79])\r\n"
        b"\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256 bits) key-exchange x25519)\r\n"
        b"\tby mx1.example.net with ESMTPS id 3f9q2a01c.1\r\n"
        b"\tfor <user@example.com>\r\n"
        b"\ttls TLS_AES_256_GCM_SHA384 group x25519;\r\n"
        b"\tTue, 3 Nov 2026 09:05:07 +0000\r\n"
    )


def test_trc_02_a_client_in_clear_without_confirmed_name() -> None:
    """TRC-02: a PTR name that does not lead back is worth nothing, and is not shown."""
    identity = ClientIdentity(
        address=ip_address("2001:db8::1"), reverse_name=Domain("fake.example.net"), helo=b"mail.example.org"
    )
    assert inbound(identity, for_=None) == (
        b"Received: from mail.example.org ([IPv6:2001:db8::1])\r\n"
        b"\tby mx1.example.net with SMTP id 3f9q2a01c.1;\r\n"
        b"\tTue, 3 Nov 2026 09:05:07 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("extended", "tls", "auth", "utf8", "word"),
    [
        (False, None, False, False, b"SMTP"),
        (True, None, False, False, b"ESMTP"),
        (True, TLS, False, False, b"ESMTPS"),
        (True, None, True, False, b"ESMTPA"),
        (True, TLS, True, False, b"ESMTPSA"),
        (True, TLS, True, True, b"UTF8SMTPSA"),
        (True, None, False, True, b"UTF8SMTP"),
    ],
)
def test_trc_03_the_inbound_session_as_it_is(
    extended: bool, tls: ClientTls | None, auth: bool, utf8: bool, word: bytes
) -> None:
    identity = ClientIdentity(address=CLIENT.address, helo=b"a.example", extended=extended, tls=tls)
    assert b"with " + word + b" id" in inbound(identity, auth=auth, utf8=utf8)


@pytest.mark.parametrize(
    ("tls", "comment", "clause"),
    [
        (ClientTls("TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", 128, "prime256v1"),
         b"(using TLSv1.2 with cipher ECDHE-RSA-AES128-GCM-SHA256 (128 bits) key-exchange secp256r1)",
         b"tls TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 group secp256r1;"),
        (ClientTls("TLSv1.3", "TLS_AES_128_GCM_SHA256", 0, "X25519MLKEM768"),
         b"(using TLSv1.3 with cipher TLS_AES_128_GCM_SHA256 key-exchange X25519MLKEM768)",
         b"tls TLS_AES_128_GCM_SHA256 group X25519MLKEM768;"),
        (ClientTls("TLSv1.2", "UNHEARD-OF"), b"(using TLSv1.2 with cipher UNHEARD-OF)", b""),
        (ClientTls(""), b"(using TLS)", b""),
    ],
)  # fmt: skip
def test_trc_04_comment_and_clause_agree(tls: ClientTls, comment: bytes, clause: bytes) -> None:
    written = inbound(ClientIdentity(address=CLIENT.address, helo=b"a.example", extended=True, tls=tls))
    assert b"\r\n\t" + comment + b"\r\n" in written
    assert (b"\ttls " in written) is bool(clause)
    assert clause in written


def test_trc_05_certificates_and_user_names_stay_inside() -> None:
    certificate = ClientCertificate("Internal Name", verified=True)
    tls = ClientTls("TLSv1.3", sni="internal.example", certificate=certificate)
    written = inbound(ClientIdentity(address=CLIENT.address, helo=b"a.example", extended=True, tls=tls), auth=True)
    assert b"nternal" not in written


@given(
    texts=st.tuples(*[st.text(max_size=300)] * 3),
    helo=st.binary(max_size=300),
    name=st.text(max_size=300),
    utf8=st.booleans(),
)
def test_trc_05_names_and_tls_words_add_no_line(texts: tuple[str, ...], helo: bytes, name: str, utf8: bool) -> None:
    """TRC-05, PXY-11: also a name from the DNS (nginx CVE-2026-28753) and what a load balancer says of TLS."""
    version, cipher, group = texts
    identity = ClientIdentity(
        address=CLIENT.address,
        name=Domain(name),
        helo=helo,
        extended=True,
        tls=ClientTls(version, cipher, 128, group),
    )
    written = inbound(identity, utf8=utf8, for_=None).decode()
    lines = written.split("\r\n")
    assert lines.pop() == ""
    assert len(lines) in (4, 5)
    assert all(text.startswith("\t") for text in lines[1:])
    assert re.fullmatch(r"Received: from [^\s();]+ \(([^\s();]+ )?\[192\.0\.2\.79\]\)", lines[0])
    assert re.fullmatch(
        r"\t\(using [^\s();]+( with cipher [^\s();]+ \(128 bits\))?( key-exchange [^\s();]+)?\)", lines[1]
    )
    assert all(len(text.encode()) <= 998 for text in lines)


def test_pxy_11_the_mta_and_the_trace_line_hear_the_same_client() -> None:
    for address in ("::ffff:192.0.2.79", "192.0.2.79"):
        identity = ClientIdentity(address=ip_address(address), name=NameMissing.TEMPORARY, helo=b"a (b) ADDR=1.2.3.4")
        assert b"from a??b??ADDR?1.2.3.4 ([192.0.2.79])\r\n" in inbound(identity)
        assert plan_xclient(identity, "HELO ADDR") == (b"XCLIENT HELO=a+20(b)+20ADDR+3D1.2.3.4 ADDR=192.0.2.79",)
