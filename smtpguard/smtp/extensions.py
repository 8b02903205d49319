"""Which extensions do we offer, which did a server offer, and which parameters may pass from one to the
other?

An allow-list on every side (EXT-20): what is not named here is hidden, refused with 555, or stripped.
RFC 1870 (SIZE), 2033 §5 (LMTP), 2034, 2920, 3207, 3461 §4-5 (DSN), 4954 §5, 6152, 6531 §3, 9422 (LIMITS).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from smtpguard.reasons import ReasonCode, printable
from smtpguard.smtp.commands import Mail, Rcpt
from smtpguard.smtp.replies import Reply
from smtpguard.smtp.syntax import Params, decode_xtext, encode_param, is_xtext

_MAX_KEYWORDS = 100
_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_LIMIT = re.compile(r"([A-Za-z0-9_-]+)=([!-:<-~]+)")
_LIMIT_COUNT = re.compile(r"[1-9][0-9]{0,5}")

PASSED_INBOUND = ("DELIVERBY", "MT-PRIORITY", "FUTURERELEASE")
"""Keywords whose parameters go to the MTA behind as they are, where it offers them (EXT-13, 14, 16)."""

_DSN_MAIL = frozenset({"RET", "ENVID"})
_DSN_RCPT = frozenset({"NOTIFY", "ORCPT"})


@dataclass(frozen=True, slots=True)
class Extensions:
    """What a server offered: keyword in upper case, and its arguments as one printable text."""

    offered: Mapping[str, str]

    @classmethod
    def of_reply(cls, reply: Reply | None) -> Self:
        """The extensions in an EHLO or LHLO reply; none for None or a refusal.

        What is no keyword is skipped, the old `AUTH=` form too (EXT-10); of a keyword given twice the first
        counts.
        """
        offered: dict[str, str] = {}
        if reply is not None and reply.is_positive:
            for line in reply.lines[1 : _MAX_KEYWORDS + 1]:
                keyword, _, arguments = line.strip(b" \t").partition(b" ")
                if len(keyword) <= 64 and _KEYWORD.fullmatch(keyword):
                    offered.setdefault(keyword.decode("ascii").upper(), printable(arguments, 500).strip())
        return cls(MappingProxyType(offered))

    def has(self, keyword: str) -> bool:
        """Was `keyword` (any case) offered?"""
        return keyword.upper() in self.offered

    @property
    def size(self) -> int | None:
        """Octets of a message the server takes; 0: it names no limit (RFC 1870 §4); None: SIZE is not
        offered."""
        arguments = self.offered.get("SIZE")
        if arguments is None:
            return None
        return int(arguments) if re.fullmatch("[0-9]{1,20}", arguments) else 0

    def limit(self, name: str) -> int | None:
        """The value of one LIMITS item, such as RCPTMAX; None where it is absent or the keyword malformed
        (EXT-12)."""
        limits: dict[str, str] = {}
        for word in self.offered.get("LIMITS", "").split():
            item = _LIMIT.fullmatch(word)
            if item is None:
                return None
            limits.setdefault(item[1].upper(), item[2])
        value = limits.get(name.upper(), "")
        return int(value) if _LIMIT_COUNT.fullmatch(value) else None


@dataclass(frozen=True, slots=True)
class Offer:
    """What we offer to a client, before any next hop is known (EXT-25: each item can be honoured or refused
    later).

    `size`: octets of a message, 0 for no limit.  `rcpt_max`: recipients of one transaction, at least 100.
    `rcpt_domain_max`: of one SMTP session, None for no limit; both are said in SMTP only (RFC 9422 is not for
    LMTP). `dsn` False hides DSN, and the MTA makes the notifications itself.  `starttls`: a certificate is
    loaded. `auth` mechanisms are offered inside TLS only; `chunking` is for a server that can take BDAT.
    `further` are keywords of the MTA behind, each with its arguments, out of `PASSED_INBOUND`.
    """

    size: int = 0
    rcpt_max: int = 1000
    rcpt_domain_max: int | None = 1
    dsn: bool = True
    starttls: bool = False
    auth: tuple[str, ...] = ()
    chunking: bool = False
    eight_bit: bool = True
    smtputf8: bool = True
    further: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.rcpt_max < 100:
            raise ValueError("rcpt_max must be 100 at least (RFC 5321 §4.5.3.1.8)")

    def ehlo_lines(self, *, lmtp: bool, tls_active: bool) -> tuple[str, ...]:
        """The keyword lines of the EHLO or LHLO reply."""
        lines = ["PIPELINING", f"SIZE {self.size}"]
        if self.eight_bit:
            lines.append("8BITMIME")
        if self.smtputf8:
            lines.append("SMTPUTF8")
        lines.append("ENHANCEDSTATUSCODES")
        if self.dsn:
            lines.append("DSN")
        if self.chunking:
            lines.append("CHUNKING")
        if self.starttls and not tls_active:  # RFC 3207 §4.2 (STLS-06)
            lines.append("STARTTLS")
        if self.auth and tls_active:
            lines.append("AUTH " + " ".join(self.auth))
        if not lmtp:
            domains = "" if self.rcpt_domain_max is None else f" RCPTDOMAINMAX={self.rcpt_domain_max}"
            lines.append(f"LIMITS RCPTMAX={self.rcpt_max}{domains}")
        lines.extend(f"{keyword} {arguments}".rstrip() for keyword, arguments in self.further)
        return tuple(lines)

    def offers(self, keyword: str) -> bool:
        """Is `keyword` (upper case) among the further ones?"""
        return any(keyword == offered for offered, _ in self.further)


def check_mail_params(mail: Mail, offer: Offer) -> Reply | None:
    """The refusal of a MAIL whose parameters we do not offer or cannot read; None where all is well.

    555 5.5.4 unknown (SMTP-12), 501 5.5.4 malformed, 552 5.3.4 over SIZE, 553 5.6.7 UTF-8 without SMTPUTF8.
    """
    for keyword, value in mail.params:
        match keyword:
            case "SIZE":
                if value is None or not re.fullmatch("[0-9]{1,20}", value):
                    return _invalid(keyword)
                if 0 < offer.size < int(value):
                    return Reply.of(552, "5.3.4", f"message size exceeds the limit of {offer.size} octets")
            case "BODY" if offer.eight_bit:
                match (value or "").upper():
                    case "7BIT" | "8BITMIME":
                        pass
                    case "BINARYMIME":  # of RFC 3030, and hidden (EXT-08)
                        return _unknown("BODY=BINARYMIME")
                    case _:
                        return _invalid(keyword)
            case "SMTPUTF8" if offer.smtputf8:
                if value is not None:
                    return _invalid(keyword)
            case "BY" if offer.offers("DELIVERBY"):
                if value is None or not re.fullmatch("-?[0-9]{1,9};[NRnr][Tt]?", value):
                    return _invalid(keyword)
            case "MT-PRIORITY" if offer.offers("MT-PRIORITY"):
                if value is None or not re.fullmatch("-?[0-9]", value):  # RFC 6710 §4.1
                    return Reply.of(501, "5.5.2", "the value of MT-PRIORITY is not valid")
            case "HOLDFOR" | "HOLDUNTIL" if offer.offers("FUTURERELEASE"):
                if value is None:  # RFC 4865 §4; what it says is for the MTA
                    return _invalid(keyword)
            case "RET" if offer.dsn:
                if value is None or value.upper() not in {"FULL", "HDRS"}:
                    return _invalid(keyword)
            case "ENVID" if offer.dsn:
                if value is None or not _is_envid(value):
                    return _invalid(keyword)
            case "AUTH" if offer.auth:
                if value is None or not (value == "<>" or is_xtext(value)):
                    return _invalid(keyword)
            case _:
                return _unknown(keyword)
    if not mail.path.text.isascii() and not mail.needs_smtputf8:
        return _utf8_refused()
    return None


def check_rcpt_params(rcpt: Rcpt, offer: Offer, *, smtputf8: bool) -> Reply | None:
    """The same for RCPT; `smtputf8`: the MAIL of this transaction had SMTPUTF8."""
    for keyword, value in rcpt.params:
        match keyword:
            case "NOTIFY" if offer.dsn:
                if value is None or not _is_notify(value):
                    return _invalid(keyword)
            case "ORCPT" if offer.dsn:
                if value is None or not _is_orcpt(value, smtputf8=smtputf8):
                    return _invalid(keyword)
            case _:
                return _unknown(keyword)
    if not rcpt.path.text.isascii() and not smtputf8:
        return _utf8_refused()
    return None


def forward_mail(mail: Mail, extensions: Extensions, *, dsn_hide: bool) -> tuple[bytes, ...] | ReasonCode:
    """The parameters of `mail` for a next hop that offered `extensions`, or what rules this host out.

    SIZE is kept where offered, and above the limit TOO_BIG.  BODY is dropped where 8BITMIME is not offered:
    whether an 8-bit message may go there is for the caller (EXT-03).  SMTPUTF8 without the extension is
    NO_SMTPUTF8; it needs 8BITMIME too (RFC 6531 §3.1).  RET and ENVID pass octet by octet, or are stripped
    (EXT-05).  AUTH never passes.
    """
    limit = extensions.size
    size = mail.size
    if limit and size is not None and size > limit:
        return ReasonCode.TOO_BIG
    if mail.needs_smtputf8 and not (extensions.has("SMTPUTF8") and extensions.has("8BITMIME")):
        return ReasonCode.NO_SMTPUTF8
    passed = set()
    if limit is not None:
        passed.add("SIZE")
    if extensions.has("8BITMIME"):
        passed.add("BODY")
    if extensions.has("SMTPUTF8"):
        passed.add("SMTPUTF8")
    if extensions.has("DSN") and not dsn_hide:
        passed |= _DSN_MAIL
    return _kept(mail.params, passed)


def forward_rcpt(rcpt: Rcpt, extensions: Extensions, *, dsn_hide: bool) -> tuple[bytes, ...]:
    """The parameters of `rcpt` for a next hop: NOTIFY and ORCPT octet by octet where it offers DSN, else
    none."""
    return _kept(rcpt.params, _DSN_RCPT if extensions.has("DSN") and not dsn_hide else frozenset())


def _kept(params: Params, passed: set[str] | frozenset[str]) -> tuple[bytes, ...]:
    return tuple(encode_param(keyword, value) for keyword, value in params if keyword in passed)


def _is_envid(value: str) -> bool:
    """RFC 3461 §4.4: xtext of printable ASCII, at most 100 characters."""
    return len(value) <= 100 and is_xtext(value) and all(32 <= o <= 126 for o in decode_xtext(value))


def _is_notify(value: str) -> bool:
    """RFC 3461 §4.1: NEVER alone, or some of SUCCESS, FAILURE, DELAY."""
    words = value.upper().split(",")
    return words == ["NEVER"] or {"SUCCESS", "FAILURE", "DELAY"}.issuperset(words)


def _is_orcpt(value: str, *, smtputf8: bool) -> bool:
    """RFC 3461 §4.2: addr-type ';' xtext, at most 500 characters; with SMTPUTF8 the address may be UTF-8 (RFC
    6533 §3)."""
    kind, semicolon, address = value.partition(";")
    if not semicolon or len(value) > 500 or not re.fullmatch("[A-Za-z0-9-]+", kind):
        return False
    if kind.lower() == "utf-8":  # utf-8-addr-xtext and -unitext: \x{...} escapes and, with SMTPUTF8, UTF-8 itself
        return bool(address) and (address.isascii() or smtputf8)
    return bool(address) and is_xtext(address)


def _invalid(keyword: str) -> Reply:
    return Reply.of(501, "5.5.4", f"the value of {keyword} is not valid")


def _unknown(keyword: str) -> Reply:
    return Reply.of(555, "5.5.4", f"parameter {printable(keyword, 40)} is not supported")


def _utf8_refused() -> Reply:
    return Reply.of(553, "5.6.7", "a non-ASCII address needs SMTPUTF8")
