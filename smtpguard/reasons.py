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
    """token, reply code, enhanced status, RFC 8460 result type (None: not a TLS result), sentence, and for a refusal
    the way out: what the operator of this smtpguard does, or whom he tells."""

    # Where the mail should go
    NULL_MX = (
        "route/null-mx", 556, "5.1.10", None,
        "the domain accepts no mail (null MX)",
        "The domain wants no mail. Correct the address, or tell the sender.",
    )  # fmt: skip
    NO_SUCH_DOMAIN = (
        "route/no-such-domain", 550, "5.1.2", None,
        "the domain does not exist",
        "Correct the address. If the domain should exist, ask its owner or registrar.",
    )  # fmt: skip
    NO_USABLE_MX = (
        "route/no-usable-mx", 550, "5.4.4", None,
        "no mail host of the domain has a usable address",
        "Tell the domain's DNS operator: no name in its MX records has an address.",
    )  # fmt: skip
    LOOP = (
        "route/loop", 554, "5.4.6", None,
        "the best mail host is this host: mail would loop",
        "Make your MTA deliver this domain itself, or set a [[route]] for it; check own_names and own_addresses.",
    )  # fmt: skip
    TOO_MANY_HOPS = (
        "route/too-many-hops", 554, "5.4.6", None,
        "too many Received header fields: mail loops",
        "Find the two hosts that hand the mail to each other in its Received fields.",
    )  # fmt: skip
    BAD_DOMAIN = (
        "route/bad-domain", 550, "5.1.3", None,
        "the recipient's domain is not valid",
        "Correct the address.",
    )  # fmt: skip
    LITERAL_REFUSED = (
        "route/literal", 550, "5.1.2", None,
        "address literals are refused by the configuration",
        'Use a domain, or allow literals with [outbound] literals = "deliver".',
    )  # fmt: skip
    FORBIDDEN_ADDRESS = (
        "route/forbidden-address", 451, "4.4.1", None,
        "the address is not one this host may connect to",
        ("If this host is meant (an intranet), name its network in [outbound] allow_destinations or set a "
         "[[route]]; else tell the domain's DNS operator."),
    )  # fmt: skip
    # DNS
    DNS_FAILURE = (
        "dns/failure", 451, "4.4.3", None,
        "DNS lookup failed",
        ("Wait; if it lasts, ask your resolver for the name (delv, dig): broken there too, tell the domain's DNS "
         "operator; else mend the resolver."),
    )  # fmt: skip
    DNS_BOGUS = (
        "dns/bogus", 451, "4.4.3", _R.VALIDATION_FAILURE,
        "DNSSEC validation failed",
        ("Tell the domain's DNS operator that DNSSEC fails (dnsviz.net shows where). If every domain fails, mend "
         "your resolver: its clock, its root key."),
    )  # fmt: skip
    DNS_UNCONFIRMED = (
        "dns/unconfirmed", 451, "4.4.3", None,
        "a permanent DNS answer while the resolver cannot be trusted",
        "Mend your resolver: it does not answer for the canary names, so its 'no such domain' is not believed.",
    )  # fmt: skip
    # Reaching a host
    NO_ADDRESS = (
        "host/no-address", 451, "4.4.3", None,
        "the host has no address",
        "Wait; if it lasts, tell the domain's DNS operator that the MX host has no address.",
    )  # fmt: skip
    CONNECT_FAILED = (
        "host/connect", 451, "4.4.1", None,
        "connection failed",
        ("Wait; if it lasts for every domain, see whether your network lets port 25 out; for one domain, tell its "
         "postmaster."),
    )  # fmt: skip
    GREETING_REFUSED = (
        "host/greeting", 451, "4.4.1", None,
        "the host refused at its greeting",
        ("Read the reply in `explain`: often your address is on a block list or has no reverse DNS. Else tell the "
         "postmaster there."),
    )  # fmt: skip
    NO_GREETING = (
        "host/no-greeting", 451, "4.4.1", None,
        "no greeting",
        "Wait; if it lasts, tell the postmaster there, and give your address: it may be delayed on purpose.",
    )  # fmt: skip
    EHLO_REFUSED = (
        "host/ehlo", 451, "4.4.1", None,
        "EHLO was refused",
        ("Read the reply in `explain`: the host may not like the name in `hostname` or `ehlo`; it should lead back"
         " to your address."),
    )  # fmt: skip
    REMEMBERED = (
        "host/remembered", 451, "4.4.1", None,
        "failed a moment ago and is not tried again yet",
        "Wait: the address is tried again within 10 minutes. `explain DOMAIN` shows the failure itself.",
    )  # fmt: skip
    LOST = (
        "host/lost", 451, "4.4.2", None,
        "connection lost",
        "Wait; if it lasts, tell the postmaster there. A lost path for big messages only: see your MTU.",
    )  # fmt: skip
    TIMED_OUT = (
        "host/timeout", 451, "4.4.2", None,
        "timed out",
        "Wait; if it lasts, tell the postmaster there. A lost path for big messages only: see your MTU.",
    )  # fmt: skip
    PROTOCOL_ERROR = (
        "host/protocol", 451, "4.5.0", None,
        "the host violated the protocol",
        "Tell the postmaster there, with the detail that `explain` shows.",
    )  # fmt: skip
    BUSY = (
        "load/destination-busy", 451, "4.3.2", None,
        "too many connections to this destination",
        ("Wait. If it is usual, let your MTA open fewer connections to one domain, or raise [outbound] "
         "destination_connections."),
    )  # fmt: skip
    OVERLOAD = (
        "load/overload", 451, "4.3.2", None,
        "too many sessions",
        "Wait; if it lasts, raise max_sessions of the [[listener]] or let your MTA open fewer.",
    )  # fmt: skip
    BUDGET = (
        "host/budget", 451, "4.4.2", None,
        "no answer within the time the sender waits",
        "Wait; `explain` shows which hosts were slow.",
    )  # fmt: skip
    STALLED = (
        "host/stalled", 451, "4.4.2", None,
        "the host stopped reading the message",
        "Wait; if it lasts, tell the postmaster there.",
    )  # fmt: skip
    # TLS to a host
    NO_STARTTLS = (
        "tls/no-starttls", 451, "4.7.4", _R.STARTTLS_NOT_SUPPORTED,
        "TLS is required, STARTTLS is not offered",
        ("Tell the postmaster there: STARTTLS is missing or somebody on the path removes it (`probe DOMAIN` from "
         "another network tells which). Do not turn TLS off before you know."),
    )  # fmt: skip
    STARTTLS_REFUSED = (
        "tls/starttls-refused", 451, "4.7.4", _R.STARTTLS_NOT_SUPPORTED,
        "TLS is required, STARTTLS was refused",
        "Wait; if it lasts, tell the postmaster there: STARTTLS is offered and refused.",
    )  # fmt: skip
    HANDSHAKE = (
        "tls/handshake", 451, "4.7.5", _R.VALIDATION_FAILURE,
        "the TLS handshake failed",
        ("Tell the postmaster there, with the detail that `explain` shows: mostly an old TLS version or cipher, or"
         " somebody on the path."),
    )  # fmt: skip
    TLS_TOO_OLD = (
        "tls/version", 451, "4.7.5", _R.VALIDATION_FAILURE,
        "the TLS version is below the required one",
        ("Tell the postmaster there. If an older TLS is to be accepted, lower min_tls in the [[policy]] (not below"
         " 1.2)."),
    )  # fmt: skip
    INJECTION = (
        "tls/injection", 451, "4.7.5", _R.VALIDATION_FAILURE,
        "cleartext followed the reply to STARTTLS",
        "Tell the postmaster there: an old hole in the host or an attack on the path (CVE-2011-0411).",
    )  # fmt: skip
    # DANE (RFC 7672)
    DANE_NO_MATCH = (
        "dane/no-match", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED,
        "no TLSA record matches the certificate",
        ("Tell the postmaster and DNS operator there: certificate and TLSA record differ, mostly after a renewal; "
         "else it is an attack. A [[policy]] with override and expires is the last resort."),
    )  # fmt: skip
    DANE_NAME = (
        "dane/name", 451, "4.7.5", _R.CERTIFICATE_HOST_MISMATCH,
        "the certificate does not name the host",
        "Tell the postmaster there: the certificate under its DANE trust anchor must name the host.",
    )  # fmt: skip
    DANE_EXPIRED = (
        "dane/expired", 451, "4.7.5", _R.CERTIFICATE_EXPIRED,
        "the certificate is not valid at this time",
        "Tell the postmaster there: the certificate must be renewed. See your own clock, too.",
    )  # fmt: skip
    DANE_CHAIN = (
        "dane/chain", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED,
        "no valid chain to the trust anchor in TLSA",
        "Tell the postmaster there: the host must send the certificates up to the anchor its TLSA record names.",
    )  # fmt: skip
    DANE_UNUSABLE = (
        "dane/unusable", 451, "4.7.5", _R.TLSA_INVALID,
        "no TLSA record is usable",
        "Tell the DNS operator there: no TLSA record is of a kind that SMTP uses (2 1 1 or 3 1 1).",
    )  # fmt: skip
    TLSA_BOGUS = (
        "dane/tlsa-bogus", 451, "4.7.5", _R.DNSSEC_INVALID,
        "DNSSEC validation of the TLSA records failed",
        "Tell the DNS operator there that DNSSEC fails below the host's name (dnsviz.net shows where).",
    )  # fmt: skip
    TLSA_LOOKUP = (
        "dane/tlsa-lookup", 451, "4.7.5", _R.TLSA_INVALID,
        "the TLSA lookup failed",
        ("Wait; if it lasts, tell the DNS operator there: its name servers fail for _25._tcp (mostly an old "
         "firewall or name server). If every domain fails, mend your resolver."),
    )  # fmt: skip
    DNSSEC_LOST = (
        "dane/dnssec-lost", 451, "4.7.5", _R.DNSSEC_INVALID,
        "the resolver stopped validating DNSSEC",
        ('Mend your resolver: it validated once and does not any more. [dns] dnssec = "off" gives DANE up, for '
         "good."),
    )  # fmt: skip
    DANE_REQUIRED = (
        "dane/required", 451, "4.7.5", _R.DANE_REQUIRED,
        "DANE is required, and there is no usable TLSA record",
        "Your rule asks for DANE and the domain has none: tell its postmaster, or change the level in [[policy]].",
    )  # fmt: skip
    DANE_INSECURE_MX = (
        "dane/insecure-mx", 451, "4.7.5", _R.DANE_REQUIRED,
        "DANE is required, and the MX records are not secure",
        ("Your rule asks for DANE and the domain's MX records are not signed: tell its DNS operator, or change the"
         " level in [[policy]]."),
    )  # fmt: skip
    # MTA-STS (RFC 8461)
    STS_MX = (
        "sts/mx", 451, "4.7.5", _R.VALIDATION_FAILURE,
        "the MTA-STS policy does not list this MX",
        ("Tell the postmaster there: MX records and MTA-STS policy differ. If they agree for others, somebody "
         "forges DNS towards you."),
    )  # fmt: skip
    STS_NO_STARTTLS = (
        "sts/no-starttls", 451, "4.7.4", _R.STARTTLS_NOT_SUPPORTED,
        "MTA-STS requires TLS, STARTTLS is not available",
        ("Tell the postmaster there: the policy asks for TLS and the host offers none, or somebody on the path "
         "removes it."),
    )  # fmt: skip
    STS_NAME = (
        "sts/name", 451, "4.7.5", _R.CERTIFICATE_HOST_MISMATCH,
        "the certificate does not name the MX",
        "Tell the postmaster there: the certificate must name the MX host.",
    )  # fmt: skip
    STS_EXPIRED = (
        "sts/expired", 451, "4.7.5", _R.CERTIFICATE_EXPIRED,
        "the certificate is not valid at this time",
        "Tell the postmaster there: the certificate must be renewed. See your own clock, too.",
    )  # fmt: skip
    STS_UNTRUSTED = (
        "sts/untrusted", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED,
        "the certificate is not trusted",
        ("Tell the postmaster there: certificate or intermediate is missing or self-signed. If every domain fails,"
         " see [tls] ca_file."),
    )  # fmt: skip
    STS_TXT_FAILURE = (
        "sts/txt", 451, "4.4.3", _R.STS_POLICY_FETCH_ERROR,
        "the MTA-STS record could not be looked up",
        ("Wait; if it lasts, tell the DNS operator there: _mta-sts cannot be looked up. [mtasts] sts_txt_tempfail "
         "says how long mail waits."),
    )  # fmt: skip
    STS_FETCH = (
        "sts/fetch", 451, "4.7.5", _R.STS_POLICY_FETCH_ERROR,
        "the MTA-STS policy could not be fetched",
        ("Wait; if it lasts, tell the postmaster there, and see that this host may connect to port 443. `smtpguard"
         " sts refresh DOMAIN` tries at once."),
    )  # fmt: skip
    STS_INVALID = (
        "sts/invalid", 451, "4.7.5", _R.STS_POLICY_INVALID,
        "the MTA-STS policy is not valid",
        "Tell the postmaster there, with the detail that `explain` shows.",
    )  # fmt: skip
    STS_WEBPKI = (
        "sts/webpki", 451, "4.7.5", _R.STS_WEBPKI_INVALID,
        "the MTA-STS policy host did not authenticate",
        ("Tell the postmaster there: the certificate of mta-sts.DOMAIN is not valid. If every domain fails, see "
         "[tls] ca_file and your clock."),
    )  # fmt: skip
    # Local rules
    PKIX_NAME = (
        "pkix/name", 451, "4.7.5", _R.CERTIFICATE_HOST_MISMATCH,
        "the certificate has no matching DNS name (common names are not used)",
        ("Ask the partner which name their certificate has; it belongs into its DNS names, or into `match` of your "
         "[[policy]]."),
    )  # fmt: skip
    PKIX_EXPIRED = (
        "pkix/expired", 451, "4.7.5", _R.CERTIFICATE_EXPIRED,
        "the certificate is not valid at this time",
        "Ask the partner to renew their certificate. See your own clock, too.",
    )  # fmt: skip
    PKIX_UNTRUSTED = (
        "pkix/untrusted", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED,
        "the certificate is not trusted",
        "Ask the partner for a certificate of a public authority, or name theirs in ca_file of your [[policy]].",
    )  # fmt: skip
    FINGERPRINT = (
        "fingerprint/no-match", 451, "4.7.5", _R.CERTIFICATE_NOT_TRUSTED,
        "the certificate has none of the configured fingerprints",
        ("Ask the partner, by another way than mail, whether their certificate changed; then change fingerprints "
         "in your [[policy]]."),
    )  # fmt: skip
    # Extensions the message needs
    NO_8BITMIME = (
        "message/8bitmime", 554, "5.6.3", None,
        "the message has 8-bit content, no host offers 8BITMIME",
        'Let your MTA convert to quoted-printable, or set [outbound] eightbit_to_7bit_mx = "send".',
    )  # fmt: skip
    NO_SMTPUTF8 = (
        "message/smtputf8", 553, "5.6.7", None,
        "the message needs SMTPUTF8, no host offers it",
        "Send to an ASCII address; the other side cannot take internationalised ones.",
    )  # fmt: skip
    TOO_BIG = (
        "message/size", 552, "5.3.4", None,
        "the message is too big",
        "Send less, or another way; `explain` shows whose limit it is ([outbound] max_message_size is yours).",
    )  # fmt: skip
    LINE_TOO_LONG = (
        "message/line-too-long", 554, "5.6.0", None,
        "the message has an over-long line",
        "Mend the program that wrote the message: lines end after at most 998 octets.",
    )  # fmt: skip
    BARE_NEWLINE = (
        "message/bare-newline", 550, "5.5.2", None,
        "the message has a bare CR or LF",
        ("Mend the program that wrote the message (lines end with CR LF), or set [outbound] bare_newlines = "
         '"normalize".'),
    )  # fmt: skip
    # The dialogue with the MTA
    OTHER_NEXT_HOP = (
        "session/other-next-hop", 452, "4.5.3", None,
        "this recipient goes to another next hop; send it in another transaction",
        "Nothing: the MTA sends this recipient in the next transaction. By LMTP it need not.",
    )  # fmt: skip
    TOO_MANY_RECIPIENTS = (
        "session/too-many-recipients", 452, "4.5.3", None,
        "too many recipients",
        "Nothing: the MTA sends the rest in the next transaction.",
    )  # fmt: skip
    # Interception
    NOT_REDIRECTED = (
        "intercept/not-redirected", 421, "4.3.5", None,
        "this listener serves redirected connections only",
        ("Let nftables or iptables redirect your MTA's connections to port 25 (deploy/interception), or give the MTA a "
         "listener without `intercept`. If they are redirected: the rules must run in the network namespace of this "
         "process."),
    )  # fmt: skip
    OWN_TRAFFIC = (
        "intercept/own-traffic", 421, "4.4.6", None,
        "our own connection was redirected back to us",
        ("Exempt the user that smtpguard runs as in your redirection rules, as deploy/interception does, and run the "
         "MTA as another user."),
    )  # fmt: skip
    UNMAPPED = (
        "intercept/unmapped", 451, "4.7.5", None,
        "no mail host of the domain has the address the MTA connected to",
        ("If the MTA is meant to send there (a relay of yours), name its network in intercept_direct of the "
         "[[listener]] or set a [[route]]. Else see which resolver the MTA asks."),
    )  # fmt: skip
    INTERNAL = (
        "internal", 451, "4.3.0", None,
        "internal error",
        "A bug: report it with the internal_error line of the log.",
    )  # fmt: skip
    # What inbound rules ask of a client
    INBOUND_TLS_REQUIRED = (
        "inbound/tls-required", 530, "5.7.0", None,
        "TLS is required, issue STARTTLS first",
        "The sender switches on STARTTLS toward this host. Is the rule too strict? It stands in [[inbound_policy]].",
    )  # fmt: skip
    INBOUND_TLS_TOO_OLD = (
        "inbound/tls-version", 530, "5.7.0", None,
        "a newer TLS version is required",
        "The sender updates its TLS library or lifts its upper limit; min_tls stands in [[inbound_policy]].",
    )  # fmt: skip
    INBOUND_NO_CERTIFICATE = (
        "inbound/no-client-certificate", 550, "5.7.1", None,
        "a client certificate is required, and none was presented",
        "The sender configures the client certificate agreed upon (Postfix: smtp_tls_chain_files).",
    )  # fmt: skip
    INBOUND_BAD_CERTIFICATE = (
        "inbound/client-certificate", 550, "5.7.1", None,
        "the client certificate is not the one required",
        "Compare the detail with ca_file, names or fingerprints in [[inbound_policy]]; a renewed key changes them.",
    )  # fmt: skip
    # What held: reasons of a delivery
    DANE_REQUIRES = ("dane", 250, "2.0.0", None, "usable TLSA records")
    HALF_DANE = ("half-dane", 250, "2.0.0", None, "usable TLSA records of a host named by an insecure MX record")
    DANE_UNUSABLE_ENCRYPT = (
        "dane-unusable", 250, "2.0.0", _R.TLSA_INVALID,
        "TLSA records present, none usable: TLS without authentication",
    )  # fmt: skip
    STS_REQUIRES = ("sts", 250, "2.0.0", None, "MTA-STS policy in enforce mode")
    RULE_REQUIRES = ("rule", 250, "2.0.0", None, "policy rule of the configuration")
    RULE_WEAKER = (
        "rule/weaker", 250, "2.0.0", None,
        "the rule is weaker than what the domain publishes, and is not applied without override",
    )  # fmt: skip
    NOTHING_PUBLISHED = ("floor", 250, "2.0.0", None, "the domain publishes nothing usable")

    def __init__(
        self, token: str, reply_code: int, status: str, result_type: ResultType | None, text: str, advice: str = ""
    ) -> None:
        self.token = token
        self.reply_code = reply_code
        self.status = status
        self.result_type = result_type
        self.text = text
        self.advice = advice


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
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    shown = "".join(c if " " <= c <= "~" else "?" for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
