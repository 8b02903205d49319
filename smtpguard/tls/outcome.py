"""What did the host show?  (RFC 3207 §4; failure codes for RFC 8460 §4.4, CONFORMANCE RM-01..14)

A `TlsOutcome` is a fact, whatever was required.  One table turns an OpenSSL error into a failure-reason-code;
its last row keeps the text.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from OpenSSL import SSL

from smtpguard.reasons import printable
from smtpguard.tls.chain import CertChain, peer_chain


class TlsVersion(Enum):
    """Protocol versions, ordered: `version >= TlsVersion.TLS_1_2`."""

    TLS_1_0 = "1.0"
    TLS_1_1 = "1.1"
    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"

    def __lt__(self, other: "TlsVersion") -> bool:
        return _rank(self) < _rank(other)

    def __le__(self, other: "TlsVersion") -> bool:
        return _rank(self) <= _rank(other)

    def __gt__(self, other: "TlsVersion") -> bool:
        return _rank(self) > _rank(other)

    def __ge__(self, other: "TlsVersion") -> bool:
        return _rank(self) >= _rank(other)


def _rank(version: TlsVersion) -> str:
    return str(version.value)


class StartTls(Enum):
    """How far the upgrade came."""

    NOT_TRIED = "not-tried"
    NOT_OFFERED = "not-offered"
    REFUSED = "refused"
    FAILED = "failed"
    """The handshake failed."""
    INJECTED = "injected"
    """Cleartext followed the reply to STARTTLS (STLS-11)."""
    ESTABLISHED = "established"


@dataclass(frozen=True, slots=True)
class TlsOutcome:
    """What one connection showed.  Without TLS only `starttls`, `detail` and `failure_code` say something.

    `failure_code` is the RFC 8460 failure-reason-code (`smtp-reply-454`, `tls-alert-40`), `detail` the same
    for people, printable.  `group` is the key exchange, empty where the library does not tell.
    """

    starttls: StartTls
    detail: str = ""
    failure_code: str = ""
    version: TlsVersion | None = None
    cipher: str = ""
    group: str = ""
    chain: CertChain | None = None

    @property
    def encrypted(self) -> bool:
        """Does TLS protect the connection?"""
        return self.starttls is StartTls.ESTABLISHED


_VERSIONS = MappingProxyType(
    {
        "TLSv1": TlsVersion.TLS_1_0,
        "TLSv1.1": TlsVersion.TLS_1_1,
        "TLSv1.2": TlsVersion.TLS_1_2,
        "TLSv1.3": TlsVersion.TLS_1_3,
    }
)


def read_outcome(connection: SSL.Connection) -> TlsOutcome:
    """What a finished handshake showed."""
    return TlsOutcome(
        StartTls.ESTABLISHED,
        version=_VERSIONS.get(connection.get_protocol_version_name()),
        cipher=connection.get_cipher_name() or "",
        group=connection.get_group_name() or "",
        chain=peer_chain(connection),
    )


# RFC 8446 §6, RFC 5246 §7.2.2, by the words OpenSSL uses for them.
_ALERTS = MappingProxyType(
    {
        "close notify": 0,
        "unexpected message": 10,
        "bad record mac": 20,
        "decryption failed": 21,
        "record overflow": 22,
        "decompression failure": 30,
        "handshake failure": 40,
        "no certificate": 41,
        "bad certificate": 42,
        "unsupported certificate": 43,
        "certificate revoked": 44,
        "certificate expired": 45,
        "certificate unknown": 46,
        "illegal parameter": 47,
        "unknown ca": 48,
        "access denied": 49,
        "decode error": 50,
        "decrypt error": 51,
        "export restriction": 60,
        "protocol version": 70,
        "insufficient security": 71,
        "internal error": 80,
        "inappropriate fallback": 86,
        "user cancelled": 90,
        "no renegotiation": 100,
        "missing extension": 109,
        "unsupported extension": 110,
        "certificate unobtainable": 111,
        "unrecognized name": 112,
        "bad certificate status response": 113,
        "bad certificate hash value": 114,
        "unknown psk identity": 115,
        "certificate required": 116,
        "no application protocol": 120,
    }
)

OTHER = "tls-handshake-failed"

# What our own side found, by OpenSSL's reason.  The texts are those of OpenSSL 3.0 to 4.0.
_REASONS = MappingProxyType(
    {
        "unsupported protocol": "protocol-version",
        "unknown protocol": "protocol-version",
        "version too low": "protocol-version",
        "version too high": "protocol-version",
        "wrong ssl version": "protocol-version",
        "no protocols available": "protocol-version",
        "inappropriate fallback": "protocol-version",
        "wrong version number": "not-tls",
        "http request": "not-tls",
        "https proxy request": "not-tls",
        "packet length too long": "not-tls",
        "record layer failure": "not-tls",
        "no shared cipher": "no-shared-cipher",
        "no ciphers available": "no-shared-cipher",
        "wrong cipher returned": "no-shared-cipher",
        "unknown cipher returned": "no-shared-cipher",
        "no suitable key share": "no-shared-group",
        "no shared groups": "no-shared-group",
        "bad key share": "no-shared-group",
        "wrong curve": "no-shared-group",
        "no suitable signature algorithm": "no-shared-signature-algorithm",
        "no shared signature algorithms": "no-shared-signature-algorithm",
        "wrong signature type": "no-shared-signature-algorithm",
        "dh key too small": "key-too-small",
        "ee key too small": "key-too-small",
        "bad signature": "bad-signature",
        "digest check failed": "bad-signature",
        "unexpected eof while reading": "eof",
    }
)

_ERRNOS = MappingProxyType(
    {
        -1: "eof",  # pyOpenSSL's way to say that the stream ended inside the handshake
        0: "eof",
        errno.ECONNRESET: "reset",
        errno.EPIPE: "reset",
        errno.ECONNABORTED: "reset",
        errno.ETIMEDOUT: "timeout",
    }
)


def handshake_failed(error: Exception) -> TlsOutcome:
    """The outcome of a handshake that ended in `error`: whatever it is, it has a code."""
    code, text = _classify(error)
    return TlsOutcome(StartTls.FAILED, detail=printable(text), failure_code=code)


def _classify(error: Exception) -> tuple[str, str]:
    match error:
        case SSL.ZeroReturnError():
            return "eof", "the peer closed TLS inside the handshake"
        case SSL.SysCallError(args=(int(number), *text)):
            return _ERRNOS.get(number, OTHER), _system_text(number, text)
        case SSL.Error():
            return _of_reasons(list(_reasons(error)))
        case TimeoutError():
            return "timeout", "the handshake timed out"
        case EOFError():
            return "eof", "the connection ended inside the handshake"
        case OSError(errno=int(number)):
            return _ERRNOS.get(number, OTHER), _system_text(number, [error.strerror or ""])
        case _:
            return OTHER, f"{type(error).__name__}: {error}"


def _system_text(number: int, text: list[object]) -> str:
    if number in (-1, 0):
        return "the connection ended inside the handshake"
    return str(text[0]) if text and text[0] else errno.errorcode.get(number, f"errno {number}")


def _reasons(error: SSL.Error) -> Iterator[str]:
    """The reason texts of OpenSSL's error queue: args[0] is a list of (library, function, reason)."""
    match error.args:
        case (list(entries), *_):
            for entry in entries:
                match entry:
                    case (_, _, str(reason)):
                        yield reason


def _of_reasons(reasons: list[str]) -> tuple[str, str]:
    text = "; ".join(reasons) or "the TLS library gave no reason"
    for reason in reasons:
        # "tls alert internal error", "tlsv1 alert ...", but "tlsv1 unrecognized name" for those of RFC 6066.
        name = reason.partition(" alert ")[2] or (reason.removeprefix("tlsv1 ") if "tlsv1 " in reason else "")
        if name in _ALERTS:
            return f"tls-alert-{_ALERTS[name]}", text
    for reason in reasons:
        if reason in _REASONS:
            return _REASONS[reason], text
    return OTHER, text
