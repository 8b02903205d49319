"""What does our Received line say?  (RFC 5321 §4.4, RFC 3848, RFC 6531 §3.7.3 and §4.3, RFC 8314 §4.3)

One line is put before each message that is accepted; nothing else of the message is touched.  What the
client claims about itself is made harmless first: it can add neither a clause nor a line.
"""

import re
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from types import MappingProxyType

from smtpguard.names import NameInvalid, parse_domain
from smtpguard.smtp.forwarded import ClientIdentity, NameMissing

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# The octets of a domain or address literal.
_NOT_NAME = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_ATOM = re.compile(r"[^A-Za-z0-9._-]")
_IANA_SUITE = re.compile(r"TLS_[A-Z0-9_]{1,60}")
_MAX_NAME = 255
_MAX_PATH = 512

# TLS 1.3 suites have one name.  For TLS 1.2 OpenSSL has names of its own; the clause takes IANA's (RFC 8314
# §4.3).
_IANA_SUITES = MappingProxyType(
    {
        f"{key_exchange}{openssl}": f"TLS_{iana_exchange}_WITH_{iana}"
        for key_exchange, iana_exchange in (
            ("ECDHE-ECDSA-", "ECDHE_ECDSA"),
            ("ECDHE-RSA-", "ECDHE_RSA"),
            ("DHE-RSA-", "DHE_RSA"),
            ("", "RSA"),
        )
        for openssl, iana in (
            ("AES128-GCM-SHA256", "AES_128_GCM_SHA256"),
            ("AES256-GCM-SHA384", "AES_256_GCM_SHA384"),
            ("AES128-CCM", "AES_128_CCM"),
            ("AES256-CCM", "AES_256_CCM"),
            ("AES128-SHA", "AES_128_CBC_SHA"),
            ("AES256-SHA", "AES_256_CBC_SHA"),
            ("AES128-SHA256", "AES_128_CBC_SHA256"),
        )
    }
    | {
        f"{key_exchange}-CHACHA20-POLY1305": f"TLS_{iana_exchange}_WITH_CHACHA20_POLY1305_SHA256"
        for key_exchange, iana_exchange in (
            ("ECDHE-ECDSA", "ECDHE_ECDSA"),
            ("ECDHE-RSA", "ECDHE_RSA"),
            ("DHE-RSA", "DHE_RSA"),
        )
    }
    | {
        "ECDHE-ECDSA-AES256-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
        "ECDHE-RSA-AES256-SHA384": "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
        "DHE-RSA-AES256-SHA256": "TLS_DHE_RSA_WITH_AES_256_CBC_SHA256",
        "AES256-SHA256": "TLS_RSA_WITH_AES_256_CBC_SHA256",
    }
)
_IANA_GROUPS = MappingProxyType(
    {
        "X25519": "x25519",
        "X448": "x448",
        "prime256v1": "secp256r1",
        "P-256": "secp256r1",
        "P-384": "secp384r1",
        "P-521": "secp521r1",
    }
)


def protocol_word(*, lmtp: bool, extended: bool, tls: bool, auth: bool, utf8: bool) -> str:
    """The word after `with` (RFC 3848, RFC 6531 §4.3).  `extended`: the client said EHLO; `utf8`: the
    transaction has SMTPUTF8.  A session begun by HELO is `SMTP`, whatever else holds: no other word is
    registered for it."""
    if not lmtp and not extended:
        return "SMTP"
    base = f"UTF8{'LMTP' if lmtp else 'SMTP'}" if utf8 else ("LMTP" if lmtp else "ESMTP")
    return f"{base}{'S' if tls else ''}{'A' if auth else ''}"


def received_line(
    *,
    from_name: bytes,
    from_address: str,
    by: str,
    with_: str,
    id: str,  # noqa: A002 - the clause's own name
    for_: str | None,
    tls: str,
    group: str,
    date: datetime,
    from_host: str = "",
    tls_version: str = "",
    tls_bits: int = 0,
) -> bytes:
    """The Received field, folded, with its final CRLF.

    `from_name` is what the client said in EHLO, empty where it said nothing; `from_address` its IP address,
    empty for a unix socket; `from_host` the confirmed name of that address, if any.  `for_` is the recipient
    as `user@domain` or `<user@domain>`, and None where there are several (naming them would show each to the
    others).  `tls` is the suite by IANA's or OpenSSL's name, empty without TLS; an unknown suite has no
    clause.  With `tls_version` (`TLSv1.3`) a comment tells people what the clause tells programs, the suite
    under the name it was given by.  `date` must be aware; raises ValueError.
    """
    utf8 = with_.startswith("UTF8")
    literal = _literal(from_address)
    name = _shown_name(from_name, utf8) or literal or "unknown"
    host = _shown_name(from_host.encode(), utf8)
    proven = " ".join(part for part in (host, literal) if part)
    lines = [f"Received: from {name}{f' ({proven})' if literal else ''}"]
    if tls_version:
        lines.append(_tls_comment(tls_version, tls, tls_bits, group))
    lines.append(f"by {_shown_name(by.encode(), utf8) or 'unknown'} with {with_} id {_word(id)}")
    if for_ is not None and (path := _shown_path(for_, utf8)):
        lines.append(f"for {path}")
    if suite := tls if _IANA_SUITE.fullmatch(tls) else _IANA_SUITES.get(tls, ""):
        clause = f"tls {suite}"
        if group:
            clause += f" group {_group(group)}"
        lines.append(clause)
    return ("\r\n\t".join(lines) + ";\r\n\t" + _date(date) + "\r\n").encode()


def received_from(
    identity: ClientIdentity,
    *,
    by: str,
    id: str,  # noqa: A002 - the clause's own name
    for_: str | None,
    date: datetime,
    auth: bool = False,
    utf8: bool = False,
) -> bytes:
    """The Received field of a message from the Internet: the client is who the MTA is told it is (PXY-11).

    `auth`: the MTA accepted AUTH (its user name stays out); `utf8`: the transaction has SMTPUTF8.  The rest
    as in received_line.
    """
    tls = identity.tls
    return received_line(
        from_name=identity.helo,
        from_address=str(identity.address) if identity.address is not None else "",
        from_host="" if isinstance(identity.name, NameMissing) else identity.name,
        by=by,
        with_=protocol_word(lmtp=False, extended=identity.extended, tls=tls is not None, auth=auth, utf8=utf8),
        id=id,
        for_=for_,
        tls=tls.cipher if tls is not None else "",
        group=tls.group if tls is not None else "",
        date=date,
        tls_version=(tls.version or "TLS") if tls is not None else "",
        tls_bits=tls.bits if tls is not None else 0,
    )


def _tls_comment(version: str, cipher: str, bits: int, group: str) -> str:
    """`(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256 bits) key-exchange x25519)`."""
    text = f"using {_word(version)}"
    if cipher:
        text += f" with cipher {_word(cipher)}" + (f" ({bits} bits)" if bits else "")
    if group:
        text += f" key-exchange {_group(group)}"
    return f"({text})"


def _group(group: str) -> str:
    return _word(_IANA_GROUPS.get(group, group))


def _word(text: str) -> str:
    return _NOT_ATOM.sub("?", text[:64])


@lru_cache(1024)
def _literal(address: str) -> str:
    """The address literal of RFC 5321 §4.1.3, or '' where `address` is none (a unix socket)."""
    try:
        parsed = ip_address(address.partition("%")[0])  # a scope means nothing to others
    except ValueError:
        return ""
    return f"[IPv6:{parsed}]" if isinstance(parsed, IPv6Address) else f"[{parsed}]"


def _shown_name(name: bytes, utf8: bool) -> str:
    """`name` as a domain or literal: U-labels only where SMTPUTF8 is in force, else A-labels (RFC 6531
    §3.7.3)."""
    name = name[:_MAX_NAME]
    if not name.isascii():
        try:
            u_labels = name.decode()
            a_labels = parse_domain(u_labels)
        except (UnicodeDecodeError, NameInvalid):
            pass
        else:
            return u_labels if utf8 else a_labels
    return _NOT_NAME.sub("?", name.decode("latin-1"))


def _shown_path(path: str, utf8: bool) -> str:
    """`path` in angle brackets, or '' where it cannot be written here: the clause is optional."""
    path = path if path.startswith("<") and path.endswith(">") else f"<{path}>"
    if not path.isprintable() or not (utf8 or path.isascii()):
        return ""
    return path if len(path.encode()) <= _MAX_PATH else ""


def _date(date: datetime) -> str:
    """RFC 5322 §3.3, with a numeric offset; strftime would follow the locale."""
    offset = date.utcoffset()
    if offset is None:
        raise ValueError("the date of a Received line must be aware")
    minutes = int(offset.total_seconds()) // 60
    sign = "-" if minutes < 0 else "+"
    hours, minutes = divmod(abs(minutes), 60)
    return (
        f"{_DAYS[date.weekday()]}, {date.day} {_MONTHS[date.month - 1]} {date.year:04d}"
        f" {date.hour:02d}:{date.minute:02d}:{date.second:02d} {sign}{hours:02d}{minutes:02d}"
    )
