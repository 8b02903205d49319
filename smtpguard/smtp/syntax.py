"""What do the arguments of MAIL and RCPT say?  Paths, ESMTP parameters, xtext.

RFC 5321 §4.1.1.11, §4.1.2 (paths; source routes are read past, §3.3), RFC 6531 §3.3 (UTF-8 in both), RFC 3461
§4 (xtext).  Strict where octets could mean two things to two readers; lenient only in where the dots of a
local part stand, which real mailboxes break and nobody but their own host interprets.
"""

import re
from dataclasses import dataclass

from smtpguard.names import Domain, IpAddress, NameInvalid, parse_mail_domain

MAX_PATH = 1024
"""Octets of a path with its brackets; RFC 5321 §4.5.3.1.3 asks for 256 at least."""

MAX_PARAMS = 20
"""ESMTP parameters of one command; no standard track extension set comes near it."""

Params = tuple[tuple[str, str | None], ...]
"""Keyword in upper case and value as written, in the order written."""


class ArgumentError(ValueError):
    """The octets are not what the grammar asks for; the message says what was expected, without quoting
    them."""


class DomainError(ArgumentError):
    """A well-formed path whose domain cannot be a domain name or address literal."""


@dataclass(frozen=True, slots=True)
class ReversePath:
    """The sender.  `text` is what stood in the brackets, without a source route; b'' and None, None for `<>`.

    `domain` is also None where the name cannot be one of the DNS: nothing is routed on it.
    """

    text: bytes
    local_part: bytes | None
    domain: Domain | IpAddress | None

    @property
    def is_null(self) -> bool:
        """`<>`: a notification, which must not cause another (RFC 5321 §4.5.5)."""
        return self.local_part is None


@dataclass(frozen=True, slots=True)
class ForwardPath:
    """A recipient.  `text` is what stood in the brackets, without a source route.

    `domain` is None for `<postmaster>` alone (RFC 5321 §4.5.1).
    """

    local_part: bytes
    domain: Domain | IpAddress | None
    text: bytes


_ATEXT = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\x80-\xff-]"
_QUOTED = rb'"(?:[ !#-\[\]-~\x80-\xff]|\\[ -~])*"'
_DOMAIN = rb"(?:[A-Za-z0-9_.\x80-\xff-]+|\[[A-Za-z0-9:.-]+\])"
_PATH = re.compile(
    rb"<(?:@%b(?:,@%b)*:)?((?P<local>%b+|%b)@(?P<domain>%b))>" % (_DOMAIN, _DOMAIN, _ATEXT, _QUOTED, _DOMAIN)
)
_POSTMASTER = re.compile(rb"<(postmaster)>", re.IGNORECASE)

_KEYWORD = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
# RFC 5321 esmtp-value, with the UTF-8 RFC 6531 §3.3 and RFC 6533 §3 (ORCPT) add.
_VALUE = re.compile(rb"[!-<>-~\x80-\xff]+")

_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")


def parse_reverse_path(octets: bytes) -> tuple[ReversePath, bytes]:
    """The path `octets` begin with, and the octets behind it.  Raises ArgumentError."""
    if octets.startswith(b"<>"):
        return ReversePath(b"", None, None), octets[2:]
    local, domain, text, rest = _mailbox(octets)
    try:
        return ReversePath(text, local, parse_mail_domain(domain)), rest
    except NameInvalid:
        # Refusing here would bounce mail for what concerns no next hop; the recipient's host may judge it.
        return ReversePath(text, local, None), rest


def parse_forward_path(octets: bytes) -> tuple[ForwardPath, bytes]:
    """The path `octets` begin with, and the octets behind it.  Raises ArgumentError; DomainError for the
    domain."""
    if found := _POSTMASTER.match(octets):
        return ForwardPath(found[1], None, found[1]), octets[found.end() :]
    local, domain, text, rest = _mailbox(octets)
    try:
        return ForwardPath(local, parse_mail_domain(domain), text), rest
    except NameInvalid as error:
        raise DomainError(str(error)) from error


def _mailbox(octets: bytes) -> tuple[bytes, str, bytes, bytes]:
    found = _PATH.match(octets)
    if found is None:
        raise ArgumentError("a path is <local-part@domain>, directly behind the colon")
    if found.end() > MAX_PATH:
        raise ArgumentError(f"a path has at most {MAX_PATH} octets")
    try:
        found[1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError("a path is ASCII or UTF-8") from error
    return found["local"], found["domain"].decode("utf-8"), found[1], octets[found.end() :]


def parse_params(octets: bytes) -> Params:
    """The parameters behind a path, each after spaces.  A repeated keyword is an error.  Raises
    ArgumentError."""
    if octets and not octets.startswith((b" ", b"\t")):
        raise ArgumentError("a space belongs between path and parameters")
    words = octets.split()
    if len(words) > MAX_PARAMS:
        raise ArgumentError("too many parameters")
    params: dict[str, str | None] = {}
    for word in words:
        name, equals, value = word.partition(b"=")
        if not _KEYWORD.fullmatch(name) or (equals and not _VALUE.fullmatch(value)):
            raise ArgumentError("a parameter is KEYWORD or KEYWORD=value")
        keyword = name.decode("ascii").upper()
        if keyword in params:
            raise ArgumentError("a parameter is given twice")
        try:
            params[keyword] = value.decode("utf-8") if equals else None
        except UnicodeDecodeError as error:
            raise ArgumentError("a parameter value is ASCII or UTF-8") from error
    return tuple(params.items())


def encode_param(keyword: str, value: str | None) -> bytes:
    """One parameter as it is sent: the value has the octets it was read from."""
    return (keyword if value is None else f"{keyword}={value}").encode("utf-8")


def is_xtext(text: str) -> bool:
    """Is `text` xtext (RFC 3461 §4: printable ASCII, '+' and '=' only as '+' and two upper-case hex
    digits)?"""
    return _XTEXT.fullmatch(text) is not None


def decode_xtext(text: str) -> bytes:
    """The octets `text` stands for.  Raises ArgumentError."""
    if not is_xtext(text):
        raise ArgumentError("not xtext (RFC 3461 §4)")
    head, *parts = text.encode("ascii").split(b"+")
    return head + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in parts)


def encode_xtext(octets: bytes) -> str:
    """`octets` as xtext."""
    return "".join(chr(o) if 33 <= o <= 126 and o not in b"+=" else f"+{o:02X}" for o in octets)
