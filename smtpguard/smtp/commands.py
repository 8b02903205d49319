"""Which command does a line hold?  One frozen value a verb, `Other` for the rest, `BadCommand` with its
refusal.

RFC 5321 §4.1.1 (commands), §2.4 (verbs in any case), RFC 2033 §4.1 (LHLO), RFC 3207 §4, RFC 4954 §4, RFC 3030
§2. Whether a command is offered, and whether it is in order, is for `server`.
"""

import re
from dataclasses import dataclass, field

from smtpguard.reasons import Reason, ReasonCode, printable
from smtpguard.smtp.framing import LineFaultKind
from smtpguard.smtp.replies import Reply, reply_of
from smtpguard.smtp.syntax import (
    ArgumentError,
    DomainError,
    ForwardPath,
    Params,
    ReversePath,
    parse_forward_path,
    parse_params,
    parse_reverse_path,
)

MAX_CLIENT_NAME = 255
"""Octets of the name in EHLO (RFC 5321 §4.5.3.1.2)."""


@dataclass(frozen=True, slots=True)
class Ehlo:
    """EHLO; `name` is printable ASCII without spaces, whatever it says (SMTP-26)."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Helo:
    """HELO."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Lhlo:
    """LHLO of LMTP."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """MAIL FROM."""

    path: ReversePath
    params: Params = ()

    @property
    def size(self) -> int | None:
        """The octets SIZE= announces: an estimate (RFC 1870 §5), never used to find the end."""
        value = dict(self.params).get("SIZE")
        return int(value) if value is not None and value.isascii() and value.isdigit() else None

    @property
    def is_8bit(self) -> bool:
        """BODY=8BITMIME was given."""
        return (dict(self.params).get("BODY") or "").upper() == "8BITMIME"

    @property
    def needs_smtputf8(self) -> bool:
        """SMTPUTF8 was given: a host without the extension must not get this message (RFC 6531 §3.1)."""
        return "SMTPUTF8" in dict(self.params)


@dataclass(frozen=True, slots=True)
class Rcpt:
    """RCPT TO."""

    path: ForwardPath
    params: Params = ()


@dataclass(frozen=True, slots=True)
class Data:
    """DATA."""


@dataclass(frozen=True, slots=True)
class Bdat:
    """BDAT: `size` octets follow the line at once."""

    size: int
    last: bool


@dataclass(frozen=True, slots=True)
class Rset:
    """RSET."""


@dataclass(frozen=True, slots=True)
class Noop:
    """NOOP; its argument means nothing."""


@dataclass(frozen=True, slots=True)
class Quit:
    """QUIT."""


@dataclass(frozen=True, slots=True)
class Help:
    """HELP; its argument is not looked at."""


@dataclass(frozen=True, slots=True)
class Vrfy:
    """VRFY."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Expn:
    """EXPN."""

    text: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """STARTTLS."""


@dataclass(frozen=True, slots=True)
class Auth:
    """AUTH; the initial response is a secret and stays out of every repr."""

    mechanism: str
    initial: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Other:
    """Any other verb: printable, upper case, at most 32 characters."""

    verb: str


@dataclass(frozen=True, slots=True)
class BadCommand:
    """A known verb with arguments that are not its own, or a line that is none (`fault`); `reply` says so."""

    reply: Reply
    fault: LineFaultKind | None = None


Command = (
    Ehlo | Helo | Lhlo | Mail | Rcpt | Data | Bdat | Rset | Noop | Quit | Help | Vrfy | Expn | StartTls | Auth
    | Other | BadCommand
)  # fmt: skip

_NAME = re.compile(rb"[!-~]{1,%d}" % MAX_CLIENT_NAME)
_MECHANISM = re.compile(rb"[A-Za-z0-9_-]{1,20}")
_BASE64 = re.compile(rb"=|[A-Za-z0-9+/]+={0,2}")
_CHUNK_SIZE = re.compile(rb"[0-9]{1,20}")


def parse_command(line: bytes) -> Command:
    """The command in `line` (without CRLF).  Never raises: what cannot be read is `Other` or `BadCommand`."""
    line = line.rstrip(b" \t")  # RFC 5321 §4.1.1: trailing white space is tolerated
    word, _, rest = line.partition(b" ")
    argument = rest.lstrip(b" \t")
    match word.upper():
        case b"MAIL":
            return _parse_mail(argument)
        case b"RCPT":
            return _parse_rcpt(argument)
        case b"DATA":
            return _alone(Data(), argument)
        case b"EHLO":
            return Ehlo(argument) if _NAME.fullmatch(argument) else _bad("EHLO takes one domain or address literal")
        case b"HELO":
            return Helo(argument) if _NAME.fullmatch(argument) else _bad("HELO takes one domain")
        case b"LHLO":
            return Lhlo(argument) if _NAME.fullmatch(argument) else _bad("LHLO takes one domain or address literal")
        case b"RSET":
            return _alone(Rset(), argument)
        case b"QUIT":
            return _alone(Quit(), argument)
        case b"NOOP":
            return Noop()
        case b"HELP":
            return Help()
        case b"VRFY":
            return Vrfy(argument) if argument else _bad("VRFY takes a name")
        case b"EXPN":
            return Expn(argument) if argument else _bad("EXPN takes a name")
        case b"STARTTLS":
            return _alone(StartTls(), argument)
        case b"AUTH":
            return _parse_auth(argument)
        case b"BDAT":
            return _parse_bdat(argument)
    return Other(printable(word, 32).upper())


def _alone(command: Command, argument: bytes) -> Command:
    """RFC 5321 §4.1.1: these take no argument (SMTP-10, STLS-02)."""
    return _bad("no argument is allowed here") if argument else command


def _parse_mail(argument: bytes) -> Command:
    if argument[:5].upper() != b"FROM:":
        return _bad("MAIL FROM:<reverse-path> is expected")
    try:
        path, rest = parse_reverse_path(argument[5:])
    except ArgumentError as error:
        return BadCommand(Reply.of(501, "5.1.7", str(error)))
    try:
        return Mail(path, parse_params(rest))
    except ArgumentError as error:
        return _bad(str(error))


def _parse_rcpt(argument: bytes) -> Command:
    if argument[:3].upper() != b"TO:":
        return _bad("RCPT TO:<forward-path> is expected")
    try:
        path, rest = parse_forward_path(argument[3:])
    except DomainError as error:
        return BadCommand(reply_of(Reason(ReasonCode.BAD_DOMAIN, "", str(error)), ""))
    except ArgumentError as error:
        return BadCommand(Reply.of(501, "5.1.3", str(error)))
    try:
        return Rcpt(path, parse_params(rest))
    except ArgumentError as error:
        return _bad(str(error))


def _parse_auth(argument: bytes) -> Command:
    mechanism, *initial = argument.split() or [b""]
    if not _MECHANISM.fullmatch(mechanism) or len(initial) > 1:
        return _bad("AUTH takes a mechanism and at most one initial response")
    if initial and not _BASE64.fullmatch(initial[0]):
        return BadCommand(Reply.of(501, "5.5.2", "the initial response is not base64"))
    return Auth(mechanism.decode("ascii").upper(), initial[0] if initial else None)


def _parse_bdat(argument: bytes) -> Command:
    size, *last = argument.split() or [b""]
    if not _CHUNK_SIZE.fullmatch(size) or [word.upper() for word in last] not in ([], [b"LAST"]):
        return _bad("BDAT takes a number of octets and LAST or nothing")
    return Bdat(int(size), bool(last))


def _bad(text: str) -> BadCommand:
    return BadCommand(Reply.of(501, "5.5.4", text))
