"""smtp.forwarded: what the MTA is told of the client, by XCLIENT and by a PROXY header."""

import re
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.names import Domain
from smtpguard.smtp.forwarded import (
    ClientCertificate,
    ClientIdentity,
    ClientTls,
    ClientTurnedAway,
    NameMissing,
    XclientAccepted,
    XclientImpossible,
    XclientRefused,
    build_proxy_v2,
    plan_xclient,
    read_xclient_reply,
)
from smtpguard.smtp.proxy_header import ProxyHeader, read_proxy_header
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.syntax import decode_xtext

POSTFIX = "NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
CLIENT = ClientIdentity(
    address=ip_address("192.0.2.79"),
    port=40025,
    server_address=ip_address("198.51.100.1"),
    server_port=25,
    name=Domain("client.example.org"),
    reverse_name=Domain("client.example.org"),
    helo=b"client.example.org",
    extended=True,
    session="3f9q2a01c",
)
TLS = ClientTls(
    "TLSv1.3",
    "TLS_AES_256_GCM_SHA384",
    256,
    "x25519",
    "mx1.example.org",
    certificate=ClientCertificate("Client Nr. 1", verified=True),
)


def client(**changes: object) -> ClientIdentity:
    fields = {name: getattr(CLIENT, name) for name in ClientIdentity.__dataclass_fields__}
    return ClientIdentity(**{**fields, **changes})  # type: ignore[arg-type]


def told(commands: tuple[bytes, ...] | XclientImpossible) -> dict[str, str]:
    """The attributes of all commands, as the MTA decodes them."""
    assert isinstance(commands, tuple)
    words = [word for command in commands for word in command.decode("ascii").split(" ")[1:]]
    pairs = [word.split("=") for word in words]
    assert len(dict(pairs)) == len(pairs)
    return {keyword: decode_xtext(value).decode("latin-1") for keyword, value in pairs}


# -- the identity


@pytest.mark.parametrize("text", ["::ffff:192.0.2.1", "192.0.2.1"])
def test_pxy_11_an_ipv4_client_is_one_address_whatever_the_socket(text: str) -> None:
    identity = client(address=ip_address(text), server_address=ip_address("::ffff:198.51.100.1"))
    assert str(identity.address) == "192.0.2.1"
    assert str(identity.server_address) == "198.51.100.1"


def test_the_client_gets_its_name_when_it_says_it() -> None:
    named = ClientIdentity(address=IPv4Address("192.0.2.1")).named(b"c.example", extended=True)
    assert (named.helo, named.protocol) == (b"c.example", "ESMTP")
    assert named.named(b"d.example", extended=False).protocol == "SMTP"


# -- XCLIENT


def test_pxy_10_what_postfix_offers_is_told_addr_last_and_login_never() -> None:
    """PXY-10, AUTH-06."""
    command = (
        b"XCLIENT NAME=client.example.org REVERSE_NAME=client.example.org PROTO=ESMTP HELO=client.example.org"
        b" DESTADDR=198.51.100.1 DESTPORT=25 PORT=40025 ADDR=192.0.2.79"
    )
    assert plan_xclient(CLIENT, POSTFIX) == (command,)


@pytest.mark.parametrize(
    ("offered", "keywords"),
    [
        ("ADDR", ["ADDR"]),
        ("addr Name", ["NAME", "ADDR"]),
        ("NAME ADDR PROTO HELO", ["NAME", "PROTO", "HELO", "ADDR"]),
        ("ADDR LOGIN COLOUR", ["ADDR"]),
    ],
)
def test_pxy_10_only_what_the_mta_lists(offered: str, keywords: list[str]) -> None:
    assert list(told(plan_xclient(CLIENT, offered))) == keywords


@pytest.mark.parametrize(
    ("offered", "detail"),
    [
        ("", "the MTA does not offer XCLIENT to this host (Postfix: smtpd_authorized_xclient_hosts)"),
        ("NAME HELO", "the MTA offers XCLIENT without ADDR"),
    ],
)
def test_pxy_10_without_addr_nothing_can_be_relayed(offered: str, detail: str) -> None:
    assert plan_xclient(CLIENT, offered) == XclientImpossible(detail)


@pytest.mark.parametrize(
    ("address", "value"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "IPV6:2001:db8::1"),
        ("fe80::1%eth0", "IPV6:fe80::1"),
        (None, "[UNAVAILABLE]"),
    ],
)
def test_pxy_09_addresses_with_postfix_prefix(address: str | None, value: str) -> None:
    identity = client(address=ip_address(address) if address else None)
    assert told(plan_xclient(identity, POSTFIX))["ADDR"] == value


def test_pxy_09_what_is_not_known_is_said_to_be_unavailable() -> None:
    """Left out, Postfix would keep the name and port of our own connection, which may be `localhost`."""
    identity = ClientIdentity(address=ip_address("192.0.2.1"), name=NameMissing.TEMPORARY)
    assert told(plan_xclient(identity, POSTFIX)) == {
        "NAME": "[TEMPUNAVAIL]",
        "REVERSE_NAME": "[UNAVAILABLE]",
        "PROTO": "SMTP",
        "HELO": "[UNAVAILABLE]",
        "DESTADDR": "[UNAVAILABLE]",
        "DESTPORT": "[UNAVAILABLE]",
        "PORT": "[UNAVAILABLE]",
        "ADDR": "192.0.2.1",
    }


def test_pxy_11_a_spoofed_ehlo_injects_no_attribute() -> None:
    helo = b"a ADDR=1.2.3.4 LOGIN=root\r\nRSET+20"
    (command,) = plan_xclient(client(helo=helo), POSTFIX)  # type: ignore[misc]
    assert command.count(b"ADDR=") == 2, "DESTADDR and ADDR"
    assert b"LOGIN=" not in command
    assert b"\r" not in command
    assert told((command,))["HELO"].encode() == helo


@given(
    helo=st.binary(max_size=600),
    labels=st.lists(st.from_regex(r"[a-z0-9_-]{1,60}", fullmatch=True), min_size=1, max_size=4),
    offered=st.permutations(POSTFIX.split()),
)
def test_pxy_10_every_line_has_at_most_512_octets_and_xtext_only(
    helo: bytes, labels: list[str], offered: list[str]
) -> None:
    """PXY-10, PXY-11: whatever the client says of itself."""
    name = Domain(".".join(labels)[:253])
    commands = plan_xclient(client(helo=helo, name=name, reverse_name=name), " ".join(offered))
    assert isinstance(commands, tuple)
    for command in commands:
        assert len(command) + 2 <= 512
        assert re.fullmatch(rb"XCLIENT( [A-Z_]+=[!-<>-~]{1,255})+", command), "255 is Postfix's limit of a value"
    assert commands[-1].rpartition(b" ")[2] == b"ADDR=192.0.2.79"
    attributes = told(commands)
    assert attributes["NAME"] == name
    assert helo.startswith(attributes["HELO"].encode("latin-1")) or not helo
    assert "LOGIN" not in attributes


def test_pxy_10_a_long_identity_takes_several_commands() -> None:
    name = Domain(".".join(["x" * 62] * 4))
    commands = plan_xclient(client(name=name, reverse_name=name, helo=bytes(255)), POSTFIX)
    assert isinstance(commands, tuple)
    assert [command.partition(b"=")[0] for command in commands] == [
        b"XCLIENT NAME",
        b"XCLIENT REVERSE_NAME",
        b"XCLIENT HELO",
    ]
    assert len(told(commands)["HELO"]) == 85, "cut between two octets where xtext trebles it"


def test_pxy_09_220_is_the_only_yes() -> None:
    greeting = Reply(220, (b"mx.example.org ESMTP",))
    assert read_xclient_reply(greeting) == XclientAccepted(greeting)


@pytest.mark.parametrize("code", [421, 450, 521, 554])
def test_pxy_09_a_client_that_is_not_greeted_was_taken_for_the_client(code: int) -> None:
    reply = Reply(code, (b"5.7.1 <unknown[192.0.2.79]>: Client host rejected",))
    assert read_xclient_reply(reply) == ClientTurnedAway(reply)


@pytest.mark.parametrize("code", [250, 221, 500, 501, 503, 550])
def test_pxy_09_any_other_reply_fails_closed(code: int) -> None:
    refused = read_xclient_reply(Reply(code, (b"insufficient \xff authorization",)))
    assert refused == XclientRefused(f"the MTA answered XCLIENT with {code} insufficient ? authorization")


# -- the PROXY header we write


def parsed(header: bytes) -> ProxyHeader:
    read = read_proxy_header(header)
    assert isinstance(read, ProxyHeader)
    assert read.consumed == len(header)
    return read


def test_pxy_08_the_header_octet_by_octet() -> None:
    """PXY-08: signature, PROXY (never LOCAL), TCP over IPv4, addresses, ports, then TLVs."""
    identity = client(session="")
    assert build_proxy_v2(identity) == (
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x4f\xc6\x33\x64\x01\x9c\x59\x00\x19"
    )
    written = build_proxy_v2(client(session="", tls=ClientTls("TLSv1.2", "AES128-SHA", sni="a.example")))
    assert written[28:] == (
        b"\x02\x00\x09a.example\x20\x00\x1c\x01\x00\x00\x00\x01\x21\x00\x07TLSv1.2\x23\x00\x0aAES128-SHA"
    )


def test_pxy_08_tls_name_and_session_arrive() -> None:
    """PXY-08: SSL with version and cipher, AUTHORITY, UNIQUE_ID."""
    read = parsed(build_proxy_v2(client(tls=TLS)))
    assert (str(read.source), read.source_port) == ("192.0.2.79", 40025)
    assert (str(read.destination), read.destination_port) == ("198.51.100.1", 25)
    assert read.tls == ClientTls(
        "TLSv1.3",
        "TLS_AES_256_GCM_SHA384",
        group="x25519",
        sni="mx1.example.org",
        certificate=ClientCertificate("Client Nr. 1", verified=True),
    )
    assert (read.authority, read.unique_id) == ("mx1.example.org", b"3f9q2a01c")


@pytest.mark.parametrize(
    ("certificate", "client_bits", "verify"),
    [
        (None, 1, 1),
        (ClientCertificate("c", verified=True), 7, 0),
        (ClientCertificate("c", verified=False), 7, 1),
    ],
)
def test_pxy_08_only_a_certificate_that_held_is_called_verified(
    certificate: ClientCertificate | None, client_bits: int, verify: int
) -> None:
    header = build_proxy_v2(client(session="", tls=ClientTls("TLSv1.3", certificate=certificate)))
    assert header[28] == 0x20
    assert header[31] == client_bits
    assert int.from_bytes(header[32:36], "big") == verify


@pytest.mark.parametrize(
    ("source", "destination", "family", "sent"),
    [
        ("192.0.2.1", "198.51.100.1", 0x11, ("192.0.2.1", "198.51.100.1")),
        ("192.0.2.1", None, 0x11, ("192.0.2.1", "0.0.0.0")),
        ("2001:db8::1", "2001:db8::2", 0x21, ("2001:db8::1", "2001:db8::2")),
        ("2001:db8::1", None, 0x21, ("2001:db8::1", "::")),
        ("192.0.2.1", "2001:db8::2", 0x21, ("::ffff:192.0.2.1", "2001:db8::2")),
        ("2001:db8::1", "198.51.100.1", 0x21, ("2001:db8::1", "::ffff:198.51.100.1")),
        ("::ffff:192.0.2.1", "::ffff:198.51.100.1", 0x11, ("192.0.2.1", "198.51.100.1")),
    ],
)
def test_pxy_08_both_addresses_are_of_one_family(
    source: str, destination: str | None, family: int, sent: tuple[str, str]
) -> None:
    header = build_proxy_v2(
        client(address=ip_address(source), server_address=ip_address(destination) if destination else None, session="")
    )
    assert header[13] == family
    octets = tuple(ip_address(text).packed for text in sent)
    assert header[16 : 16 + 2 * len(octets[0])] == octets[0] + octets[1]


def test_pxy_08_a_client_without_address_is_never_taken_for_us() -> None:
    """Not LOCAL and not unspecified: both would mean the address of smtpguard, which the MTA may trust."""
    header = build_proxy_v2(client(address=None))
    assert header[12:14] == b"\x21\x31"
    assert parsed(header).source is None


@given(
    texts=st.tuples(*[st.text(max_size=400)] * 5),
    session=st.text(max_size=300),
    verified=st.booleans(),
    port=st.integers(0, 65535),
)
def test_pxy_08_the_header_is_bounded_and_one_header(
    texts: tuple[str, ...], session: str, verified: bool, port: int
) -> None:
    """PXY-08, PXY-11: whatever TLS and the certificate say; nothing follows the header."""
    version, cipher, group, sni, name = texts
    tls = ClientTls(version, cipher, 0, group, sni, certificate=ClientCertificate(name, verified))
    header = build_proxy_v2(client(tls=tls, session=session, port=port))
    assert len(header) < 2048
    read = parsed(header)
    assert (read.source, read.source_port) == (CLIENT.address, port)
    assert read.tls is not None
    assert read.tls.certificate is not None
    assert read.tls.certificate.verified is verified
    assert read.tls.certificate.common_name.isprintable()
