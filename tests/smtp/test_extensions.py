"""What is offered, what was offered, what passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.reasons import ReasonCode
from smtpguard.smtp.commands import Mail, Rcpt, parse_command
from smtpguard.smtp.extensions import (
    Extensions,
    Offer,
    check_mail_params,
    check_rcpt_params,
    forward_mail,
    forward_rcpt,
)
from smtpguard.smtp.replies import Reply


def mail(params: str = "", path: str = "a@a.example") -> Mail:
    command = parse_command(f"MAIL FROM:<{path}> {params}".encode())
    assert isinstance(command, Mail)
    return command


def rcpt(params: str = "", path: str = "b@b.example") -> Rcpt:
    command = parse_command(f"RCPT TO:<{path}> {params}".encode())
    assert isinstance(command, Rcpt)
    return command


def offered(*lines: str) -> Extensions:
    return Extensions.of_reply(Reply(250, (b"mx.example", *(line.encode("latin-1") for line in lines))))


ALL = ("SIZE 1000", "8BITMIME", "SMTPUTF8", "DSN", "PIPELINING")


# -- what a server offered


def test_keywords_in_any_case() -> None:
    """SMTP-02: EHLO keywords are case-insensitive."""
    extensions = offered("pipelining", "Size 100", "AUTH PLAIN LOGIN")
    assert extensions.has("PIPELINING")
    assert extensions.has("size")
    assert extensions.offered["AUTH"] == "PLAIN LOGIN"
    assert not extensions.has("DSN")


def test_the_first_line_is_no_keyword() -> None:
    assert not Extensions.of_reply(Reply(250, (b"STARTTLS",))).has("STARTTLS")


@pytest.mark.parametrize("reply", [None, Reply(502, (b"x", b"STARTTLS")), Reply(421, (b"x", b"STARTTLS"))])
def test_a_refused_ehlo_offers_nothing(reply: Reply | None) -> None:
    assert not Extensions.of_reply(reply).has("STARTTLS")


def test_what_is_no_keyword_is_skipped() -> None:
    """EXT-10: the old `AUTH=` form is dropped; a keyword given twice counts once."""
    extensions = offered("AUTH=LOGIN", "", "\x1b[2J", "-X", "XXXXXXXA", "é", "SIZE 5", "SIZE 9", "K" * 65)
    assert dict(extensions.offered) == {"XXXXXXXA": "", "SIZE": "5"}


def test_keywords_are_bounded() -> None:
    extensions = offered(*(f"X{n} {'y' * 3000}" for n in range(300)))
    assert len(extensions.offered) == 100
    assert all(len(value) <= 500 for value in extensions.offered.values())


@pytest.mark.parametrize(
    ("line", "size"),
    [("SIZE 1000", 1000), ("SIZE 0", 0), ("SIZE", 0), ("SIZE many", 0), ("SIZE -1", 0), ("DSN", None)],
)
def test_size(line: str, size: int | None) -> None:
    """EXT-02: 0 names no limit, None is not offered."""
    assert offered(line).size == size


@pytest.mark.parametrize(
    ("line", "rcptmax", "mailmax"),
    [
        ("LIMITS RCPTMAX=2 MAILMAX=10", 2, 10),
        ("limits rcptmax=2", 2, None),
        ("LIMITS RCPTMAX=2 FUTURE=a,b", 2, None),
        ("LIMITS RCPTMAX=0", None, None),
        ("LIMITS RCPTMAX=1000000", None, None),
        ("LIMITS RCPTMAX=x", None, None),
        ("LIMITS RCPTMAX=2 ;;", None, None),
        ("LIMITS RCPTMAX=2 MAILMAX", None, None),
        ("LIMITS", None, None),
        ("PIPELINING", None, None),
    ],
)
def test_limits(line: str, rcptmax: int | None, mailmax: int | None) -> None:
    """EXT-12: RFC 9422 limits; a malformed keyword is ignored whole."""
    assert offered(line).limit("RCPTMAX") == rcptmax
    assert offered(line).limit("MAILMAX") == mailmax


# -- what we offer

BASE = ("PIPELINING", "SIZE 500", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")


def test_the_outbound_offer_in_smtp() -> None:
    """EXT-01..06, EXT-09, EXT-12 and nothing else: an allow-list (EXT-07, 08, 10..20)."""
    offer = Offer(size=500, rcpt_max=100, starttls=True)
    expected = (*BASE, "DSN", "STARTTLS", "LIMITS RCPTMAX=100 RCPTDOMAINMAX=1")
    assert offer.ehlo_lines(lmtp=False, tls_active=False) == expected


def test_the_outbound_offer_in_lmtp() -> None:
    """LMTP-04: PIPELINING, ENHANCEDSTATUSCODES, 8BITMIME; EXT-12: LIMITS never in LHLO."""
    assert Offer(size=500).ehlo_lines(lmtp=True, tls_active=False) == (*BASE, "DSN")


def test_starttls_is_not_offered_inside_tls() -> None:
    """STLS-06; EXT-10: AUTH is, and only there."""
    offer = Offer(starttls=True, auth=("PLAIN",))
    assert "STARTTLS" in offer.ehlo_lines(lmtp=True, tls_active=False)
    assert "AUTH PLAIN" not in offer.ehlo_lines(lmtp=True, tls_active=False)
    assert "STARTTLS" not in offer.ehlo_lines(lmtp=True, tls_active=True)
    assert "AUTH PLAIN" in offer.ehlo_lines(lmtp=True, tls_active=True)


def test_dsn_can_be_hidden() -> None:
    """EXT-05: `dsn = "hide"`."""
    assert "DSN" not in Offer(dsn=False).ehlo_lines(lmtp=False, tls_active=False)


def test_an_offer_for_inbound() -> None:
    """EXT-07, EXT-12: CHUNKING where the server behind takes BDAT; no limit of domains."""
    lines = Offer(chunking=True, rcpt_domain_max=None).ehlo_lines(lmtp=False, tls_active=False)
    assert "CHUNKING" in lines
    assert "LIMITS RCPTMAX=1000" in lines


def test_fewer_than_100_recipients_are_no_offer() -> None:
    """SMTP-22."""
    with pytest.raises(ValueError, match="100"):
        Offer(rcpt_max=99)


# -- what may come in


@pytest.mark.parametrize(
    ("params", "code", "status"),
    [
        ("", None, None),
        ("SIZE=500", None, None),
        ("SIZE=501", 552, "5.3.4"),
        ("SIZE=" + "9" * 20, 552, "5.3.4"),
        ("SIZE=" + "9" * 21, 501, "5.5.4"),
        ("SIZE=x", 501, "5.5.4"),
        ("SIZE", 501, "5.5.4"),
        ("BODY=7bit", None, None),
        ("BODY=8BITMIME", None, None),
        ("BODY=BINARYMIME", 555, "5.5.4"),
        ("body=binarymime", 555, "5.5.4"),
        ("BODY=9BIT", 501, "5.5.4"),
        ("BODY", 501, "5.5.4"),
        ("SMTPUTF8", None, None),
        ("SMTPUTF8=1", 501, "5.5.4"),
        ("RET=FULL ENVID=QQ314159", None, None),
        ("RET=hdrs", None, None),
        ("RET=ALL", 501, "5.5.4"),
        ("RET", 501, "5.5.4"),
        ("ENVID=a+2Bb", None, None),
        ("ENVID=a+b", 501, "5.5.4"),
        ("ENVID=a+0Ab", 501, "5.5.4"),
        ("ENVID=" + "x" * 100, None, None),
        ("ENVID=" + "x" * 101, 501, "5.5.4"),
        ("ENVID", 501, "5.5.4"),
        ("AUTH=<>", 555, "5.5.4"),
        ("REQUIRETLS", 555, "5.5.4"),
        ("HOLDFOR=5", 555, "5.5.4"),
        ("HOLDUNTIL=2026-11-30T10:00:00Z", 555, "5.5.4"),
        ("BY=120;R", 555, "5.5.4"),
        ("MT-PRIORITY=3", 555, "5.5.4"),
        ("XVERP", 555, "5.5.4"),
        ("MTRK=x", 555, "5.5.4"),
        ("FOO=1", 555, "5.5.4"),
    ],
)
def test_mail_parameters(params: str, code: int | None, status: str | None) -> None:
    """SMTP-12, EXT-02, 03, 05, 08, 10, 11, 13, 14, 16, 18, 20: refused by name, honoured or nothing."""
    reply = check_mail_params(mail(params), Offer(size=500))
    assert (reply and reply.code, reply and reply.enhanced_status) == (code, status)


@pytest.mark.parametrize("params", ["RET=FULL", "ENVID=x"])
def test_mail_dsn_parameters_are_unknown_where_dsn_is_hidden(params: str) -> None:
    """EXT-05."""
    reply = check_mail_params(mail(params), Offer(dsn=False))
    assert reply is not None
    assert reply.code == 555


def test_no_size_limit() -> None:
    assert check_mail_params(mail("SIZE=" + "9" * 20), Offer(size=0)) is None


@pytest.mark.parametrize(("value", "code"), [("<>", None), ("a+40b", None), ("a=b", 501), ("+", 501)])
def test_mail_auth_where_offered(value: str, code: int | None) -> None:
    """AUTH-05: read, never passed on by forward_mail."""
    command = parse_command(f"MAIL FROM:<> AUTH={value}".encode())
    if not isinstance(command, Mail):  # '=' in a value is no parameter at all
        assert code == 501
        return
    reply = check_mail_params(command, Offer(auth=("PLAIN",)))
    assert (reply and reply.code) == code


def test_utf8_needs_smtputf8() -> None:
    """EXT-04."""
    refused = check_mail_params(mail(path="ü@a.example"), Offer())
    assert refused is not None
    assert (refused.code, refused.enhanced_status) == (553, "5.6.7")
    assert check_mail_params(mail("SMTPUTF8", path="ü@a.example"), Offer()) is None
    refused = check_rcpt_params(rcpt(path="ü@b.example"), Offer(), smtputf8=False)
    assert refused is not None
    assert refused.code == 553
    assert check_rcpt_params(rcpt(path="ü@b.example"), Offer(), smtputf8=True) is None


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ("", None),
        ("NOTIFY=NEVER", None),
        ("NOTIFY=success,Failure,DELAY", None),
        ("NOTIFY=NEVER,DELAY", 501),
        ("NOTIFY=SUCCESS,", 501),
        ("NOTIFY=YES", 501),
        ("NOTIFY", 501),
        ("ORCPT=rfc822;Bob+2BX@Example.ORG", None),
        ("ORCPT=rfc822;", 501),
        ("ORCPT=rfc822", 501),
        ("ORCPT=;x", 501),
        ("ORCPT=rfc822;a+b", 501),
        ("ORCPT=rfc822;" + "x" * 493, None),
        ("ORCPT=rfc822;" + "x" * 494, 501),
        ("ORCPT=utf-8;b\\x{FC}@b.example", None),
        ("ORCPT=utf-8;bü@b.example", 501),
        ("ORCPT", 501),
        ("SIZE=1", 555),
        ("FOO=1", 555),
        ("RRVS=2026-01-01T00:00:00Z", 555),
    ],
)
def test_rcpt_parameters(params: str, code: int | None) -> None:
    """SMTP-12, EXT-05, EXT-20."""
    reply = check_rcpt_params(rcpt(params), Offer(), smtputf8=False)
    assert (reply and reply.code) == code
    if params:
        hidden = check_rcpt_params(rcpt(params), Offer(dsn=False), smtputf8=False)
        assert hidden is not None
        assert hidden.code == 555


def test_a_utf8_orcpt_with_smtputf8() -> None:
    assert check_rcpt_params(rcpt("ORCPT=utf-8;bü@b.example"), Offer(), smtputf8=True) is None


# -- what goes out

EVERY = "SIZE=999 BODY=8BITMIME SMTPUTF8 RET=Full ENVID=Qq+2B1"


def test_everything_passes_where_everything_is_offered() -> None:
    """EXT-05: byte-exact, in the order written."""
    assert forward_mail(mail(EVERY), offered(*ALL), dsn_hide=False) == (
        b"SIZE=999",
        b"BODY=8BITMIME",
        b"SMTPUTF8",
        b"RET=Full",
        b"ENVID=Qq+2B1",
    )
    params = "NOTIFY=Success,delay ORCPT=rfc822;Bob@Example.ORG"
    assert forward_rcpt(rcpt(params), offered(*ALL), dsn_hide=False) == (
        b"NOTIFY=Success,delay",
        b"ORCPT=rfc822;Bob@Example.ORG",
    )


def test_nothing_passes_where_nothing_is_offered() -> None:
    """EXT-02, EXT-03, EXT-05: dropped or stripped, nothing is invented."""
    assert forward_mail(mail("SIZE=999 BODY=8BITMIME RET=FULL ENVID=x"), offered(), dsn_hide=False) == ()
    assert forward_rcpt(rcpt("NOTIFY=NEVER ORCPT=rfc822;a"), offered(), dsn_hide=False) == ()


def test_dsn_is_stripped_where_hidden() -> None:
    """EXT-05: all four."""
    assert forward_mail(mail("RET=FULL ENVID=x SIZE=1"), offered(*ALL), dsn_hide=True) == (b"SIZE=1",)
    assert forward_rcpt(rcpt("NOTIFY=NEVER ORCPT=rfc822;a"), offered(*ALL), dsn_hide=True) == ()


@pytest.mark.parametrize(
    ("line", "size", "expected"),
    [
        ("SIZE 1000", 999, (b"SIZE=999",)),
        ("SIZE 1000", 1000, (b"SIZE=1000",)),
        ("SIZE 1000", 1001, ReasonCode.TOO_BIG),
        ("SIZE 0", 1001, (b"SIZE=1001",)),
        ("SIZE", 1001, (b"SIZE=1001",)),
        ("DSN", 1001, ()),
    ],
)
def test_size_is_checked_against_the_next_hop(line: str, size: int, expected: tuple[bytes, ...] | ReasonCode) -> None:
    """EXT-02: limit minus one, the limit, plus one."""
    assert forward_mail(mail(f"SIZE={size}"), offered(line), dsn_hide=False) == expected


def test_smtputf8_is_never_dropped() -> None:
    """EXT-04: a host without SMTPUTF8, or without the 8BITMIME it needs, must not get the message."""
    command = mail("SMTPUTF8")
    assert forward_mail(command, offered("8BITMIME"), dsn_hide=False) is ReasonCode.NO_SMTPUTF8
    assert forward_mail(command, offered("SMTPUTF8"), dsn_hide=False) is ReasonCode.NO_SMTPUTF8
    assert forward_mail(command, offered("SMTPUTF8", "8BITMIME"), dsn_hide=False) == (b"SMTPUTF8",)


def test_auth_never_passes() -> None:
    """AUTH-05, EXT-10."""
    assert forward_mail(mail("AUTH=<>"), offered("AUTH PLAIN"), dsn_hide=False) == ()


@given(st.lists(st.sampled_from([*ALL, "X-FOO", "AUTH PLAIN", "SIZE 5", "CHUNKING"])), st.booleans())
def test_only_what_was_offered_is_sent(lines: list[str], dsn_hide: bool) -> None:
    """EXT-20, EXT-25: for any offer, each parameter sent belongs to a keyword in it."""
    extensions = offered(*lines)
    belongs = {"SIZE": "SIZE", "BODY": "8BITMIME", "SMTPUTF8": "SMTPUTF8", "RET": "DSN", "ENVID": "DSN"}
    sent = forward_mail(mail(EVERY), extensions, dsn_hide=dsn_hide)
    if isinstance(sent, tuple):
        for param in sent:
            keyword = belongs[param.decode().partition("=")[0]]
            assert extensions.has(keyword)
            assert not (dsn_hide and keyword == "DSN")


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=20))
def test_any_ehlo_reply_can_be_read(lines: list[bytes]) -> None:
    """Nothing a server says raises; values are printable."""
    extensions = Extensions.of_reply(Reply(250, tuple(lines)))
    assert all(value.isascii() and value.isprintable() for value in extensions.offered.values())
    assert extensions.size is None or extensions.size >= 0
    assert extensions.limit("RCPTMAX") is None
