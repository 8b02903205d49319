"""Why was it refused, skipped or deferred, and how does each party hear it?  One table.

A `ReasonCode` carries the token of the reply text and the logs, the reply code and RFC 3463 status the MTA sees
when it is the last word (CONFORMANCE OUT-nn), the RFC 8460 result type, and a sentence for people.  A `Reason` is
one occurrence: which host or domain, and what exactly was seen.
"""

from dataclasses import dataclass
from enum import Enum


class ResultType(Enum):
    """RFC 8460 §4.3 result types."""

    STARTTLS_NOT_SUPPORTED = "starttls-not-supported"
    CERTIFICATE_HOST_MISMATCH = "certificate-host-mismatch"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_TRUSTED = "certificate-not-trusted"
    VALIDATION_FAILURE = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_POLICY_FETCH_ERROR = "sts-policy-fetch-error"
    STS_POLICY_INVALID = "sts-policy-invalid"
    STS_WEBPKI_INVALID = "sts-webpki-invalid"


_R = ResultType


class ReasonCode(Enum):
    """token, reply code, enhanced status, RFC 8460 result type (None: not a TLS result), sentence."""

    # Where the mail should go
    NULL_MX = ("route/null-mx", 556, "5.1.10", None, "the domain accepts no mail (null MX)")
    NO_SUCH_DOMAIN = ("route/no-such-domain", 550, "5.1.2", None, "the domain does not exist")
    NO_USABLE_MX = ("route/no-usable-mx", 550, "5.4.4", None, "no mail host of the domain has a usable address")
    LOOP = ("route/loop", 554, "5.4.6", None, "the best mail host is this host: mail would loop")
    TOO_MANY_HOPS = ("route/too-many-hops", 554, "5.4.6", None, "too many Received header fields: mail loops")
    BAD_DOMAIN = ("route/bad-domain", 550, "5.1.3", None, "the recipient's domain is not valid")
    LITERAL_REFUSED = ("route/literal", 550, "5.1.2", None, "address literals are refused by the configuration")
    FORBIDDEN_ADDRESS = (
        "route/forbidden-address", 451, "4.4.1", None, "the address is not one this host may connect to",
    )  # fmt: skip
    # DNS
    DNS_FAILURE = ("dns/failure", 451, "4.4.3", None, "DNS lookup failed")
    DNS_BOGUS = ("dns/bogus", 451, "4.4.3", _R.VALIDATION_FAILURE, "DNSSEC validation failed")
    DNS_UNCONFIRMED = (
        "dns/unconfirmed", 451, "4.4.3", None, "a permanent DNS answer while the resolver cannot be trusted",
    )  # fmt: skip
    # Reaching a host
    NO_ADDRESS = ("host/no-address", 451, "4.4.3", None, "the host has no address")
    CONNECT_FAILED = ("host/connect", 451, "4.4.1", None, "connection failed")
    GREETING_REFUSED = ("host/greeting", 451, "4.4.1", None, "the host refused at its greeting")
    NO_GREETING = ("host/no-greeting", 451, "4.4.1", None, "no greeting")
    EHLO_REFUSED = ("host/ehlo", 451, "4.4.1", None, "EHLO was refused")
    REMEMBERED = ("host/remembered", 451, "4.4.1", None, "failed a moment ago and is not tried again yet")
    LOST = ("host/lost", 451, "4.4.2", None, "connection lost")
    TIMED_OUT = ("host/timeout", 451, "4.4.2", None, "timed out")
    PROTOCOL_ERROR = ("host/protocol", 451, "4.5.0", None, "the host violated the protocol")
    BUSY = ("load/destination-busy", 451, "4.3.2", None, "too many connections to this destination")
    OVERLOAD = ("load/overload", 451, "4.3.2", None, "too many sessions")
    BUDGET = ("host/budget", 451, "4.4.2", None, "no answer within the time the sender waits")
    STALLED = ("host/stalled", 451, "4.4.2", None, "the host stopped reading the message")
    # TLS to a host
    NO_STARTTLS = (
        "tls/no-starttls",
        451,
        "4.7.4",
        _R.STARTTLS_NOT_SUPPORTED,
        "TLS is required, STARTTLS is not offered",
    )
    STARTTLS_REFUSED = (
        "tls/starttls-refused",
        451,
        "4.7.4",
        _R.STARTTLS_NOT_SUPPORTED,
        "TLS is required, STARTTLS was refused",
    )
    HANDSHAKE = ("tls/handshake", 451, "4.7.5", _R.VALIDATION_FAILURE, "the TLS handshake failed")
    TLS_TOO_OLD = ("tls/version", 451, "4.7.5", _R.VALIDATION_FAILURE, "the TLS version is below the required one")
    INJECTION = ("tls/injection", 451, "4.7.5", _R.VALIDATION_FAILURE, "cleartext followed the reply to STARTTLS")
    # DANE (RFC 7672)
    DANE_NO_MATCH = (
        "dane/no-match",
        451,
        "4.7.5",
        _R.CERTIFICATE_NOT_TRUSTED,
        "no TLSA record matches the certificate",
    )
    DANE_NAME = ("dane/name", 451, "4.7.5", _R.CERTIFICATE_HOST_MISMATCH, "the certificate does not name the host")
    DANE_EXPIRED = ("dane/expired", 451, "4.7.5", _R.CERTIFICATE_EXPIRED, "the certificate is not valid at this time")
    DANE_CHAIN = ("dane/chain", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED, "no valid chain to the trust anchor in TLSA")
    DANE_UNUSABLE = ("dane/unusable", 451, "4.7.5", _R.TLSA_INVALID, "no TLSA record is usable")
    TLSA_BOGUS = ("dane/tlsa-bogus", 451, "4.7.5", _R.DNSSEC_INVALID, "DNSSEC validation of the TLSA records failed")
    TLSA_LOOKUP = ("dane/tlsa-lookup", 451, "4.7.5", _R.TLSA_INVALID, "the TLSA lookup failed")
    DNSSEC_LOST = ("dane/dnssec-lost", 451, "4.7.5", _R.DNSSEC_INVALID, "the resolver stopped validating DNSSEC")
    DANE_REQUIRED = (
        "dane/required",
        451,
        "4.7.5",
        _R.DANE_REQUIRED,
        "DANE is required, and there is no usable TLSA record",
    )
    DANE_INSECURE_MX = (
        "dane/insecure-mx",
        451,
        "4.7.5",
        _R.DANE_REQUIRED,
        "DANE is required, and the MX records are not secure",
    )
    # MTA-STS (RFC 8461)
    STS_MX = ("sts/mx", 451, "4.7.5", _R.VALIDATION_FAILURE, "the MTA-STS policy does not list this MX")
    STS_NO_STARTTLS = (
        "sts/no-starttls",
        451,
        "4.7.4",
        _R.STARTTLS_NOT_SUPPORTED,
        "MTA-STS requires TLS, STARTTLS is not available",
    )
    STS_NAME = ("sts/name", 451, "4.7.5", _R.CERTIFICATE_HOST_MISMATCH, "the certificate does not name the MX")
    STS_EXPIRED = ("sts/expired", 451, "4.7.5", _R.CERTIFICATE_EXPIRED, "the certificate is not valid at this time")
    STS_UNTRUSTED = ("sts/untrusted", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED, "the certificate is not trusted")
    STS_TXT_FAILURE = ("sts/txt", 451, "4.4.3", _R.STS_POLICY_FETCH_ERROR, "the MTA-STS record could not be looked up")
    STS_FETCH = ("sts/fetch", 451, "4.7.5", _R.STS_POLICY_FETCH_ERROR, "the MTA-STS policy could not be fetched")
    STS_INVALID = ("sts/invalid", 451, "4.7.5", _R.STS_POLICY_INVALID, "the MTA-STS policy is not valid")
    STS_WEBPKI = ("sts/webpki", 451, "4.7.5", _R.STS_WEBPKI_INVALID, "the MTA-STS policy host did not authenticate")
    # Local rules
    PKIX_NAME = (
        "pkix/name",
        451,
        "4.7.5",
        _R.CERTIFICATE_HOST_MISMATCH,
        "the certificate has no matching DNS name (common names are not used)",
    )
    PKIX_EXPIRED = ("pkix/expired", 451, "4.7.5", _R.CERTIFICATE_EXPIRED, "the certificate is not valid at this time")
    PKIX_UNTRUSTED = ("pkix/untrusted", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED, "the certificate is not trusted")
    FINGERPRINT = (
        "fingerprint/no-match",
        451,
        "4.7.5",
        _R.CERTIFICATE_NOT_TRUSTED,
        "the certificate has none of the configured fingerprints",
    )
    # Extensions the message needs
    NO_8BITMIME = ("message/8bitmime", 554, "5.6.3", None, "the message has 8-bit content, no host offers 8BITMIME")
    NO_SMTPUTF8 = ("message/smtputf8", 553, "5.6.7", None, "the message needs SMTPUTF8, no host offers it")
    TOO_BIG = ("message/size", 552, "5.3.4", None, "the message is too big")
    LINE_TOO_LONG = ("message/line-too-long", 554, "5.6.0", None, "the message has an over-long line")
    BARE_NEWLINE = ("message/bare-newline", 550, "5.5.2", None, "the message has a bare CR or LF")
    # The dialogue with the MTA
    OTHER_NEXT_HOP = (
        "session/other-next-hop",
        452,
        "4.5.3",
        None,
        "this recipient goes to another next hop; send it in another transaction",
    )
    TOO_MANY_RECIPIENTS = ("session/too-many-recipients", 452, "4.5.3", None, "too many recipients")
    INTERNAL = ("internal", 451, "4.3.0", None, "internal error")
    # What held: reasons of a delivery
    DANE_REQUIRES = ("dane", 250, "2.0.0", None, "usable TLSA records")
    HALF_DANE = ("half-dane", 250, "2.0.0", None, "usable TLSA records of a host named by an insecure MX record")
    DANE_UNUSABLE_ENCRYPT = (
        "dane-unusable",
        250,
        "2.0.0",
        _R.TLSA_INVALID,
        "TLSA records present, none usable: TLS without authentication",
    )
    STS_REQUIRES = ("sts", 250, "2.0.0", None, "MTA-STS policy in enforce mode")
    RULE_REQUIRES = ("rule", 250, "2.0.0", None, "policy rule of the configuration")
    RULE_WEAKER = (
        "rule/weaker",
        250,
        "2.0.0",
        None,
        "the rule is weaker than what the domain publishes, and is not applied without override",
    )
    NOTHING_PUBLISHED = ("floor", 250, "2.0.0", None, "the domain publishes nothing usable")

    def __init__(self, token: str, reply_code: int, status: str, result_type: ResultType | None, text: str) -> None:
        self.token = token
        self.reply_code = reply_code
        self.status = status
        self.result_type = result_type
        self.text = text


@dataclass(frozen=True, slots=True)
class Reason:
    """One occurrence: `subject` is the host or domain it is about, `detail` what exactly was seen (may be empty).

    `failure_code` is the RFC 8460 §4.3 failure-reason-code where there is one (`smtp-reply-454`, `ede-6`).

    `detail` may hold text of the network; whoever prints it escapes and bounds it (`printable`).
    """

    code: ReasonCode
    subject: str
    detail: str = ""
    failure_code: str = ""


def printable(text: str | bytes, limit: int = 200) -> str:
    """`text` from the network made safe for a reply, a log line or a page: printable ASCII, bounded."""
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("latin-1")
    shown = "".join(c if " " <= c <= "~" else "?" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
