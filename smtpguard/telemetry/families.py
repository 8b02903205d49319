"""Which metrics are there, what do they count, and what can stand in their labels?  One table.

The sink makes its metrics from it, `tools/metrics.py` writes docs/metrics.md, and the tests hold the alert rules and
the dashboard to it.  Names are Prometheus's: base units, `_total` for counters; label names are the keys of the log.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

from smtpguard.dns.canary import CanaryState
from smtpguard.dns.records import FailureKind
from smtpguard.events import Direction
from smtpguard.inbound.gate import Excess
from smtpguard.inbound.upstream import Step
from smtpguard.mtasts.parse import Mode
from smtpguard.policy.model import Authentication
from smtpguard.reasons import ReasonCode
from smtpguard.telemetry.outcomes import OTHER, RELAYED_4XX, RELAYED_5XX
from smtpguard.tls.outcome import TlsVersion

Kind = Literal["counter", "gauge", "histogram"]

NONE = "none"
"""In place of no word."""
WORDS_A_LABEL = 64
"""How many different words an open label takes; the rest is OTHER."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:+-]{0,47}")

_DELIVERY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 240.0, 600.0)
_OPEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DNS_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Label:
    """`values` are all the words it takes; where there are none it is open: the first WORDS_A_LABEL plain words.

    `configured`: the words come from the configuration, which bounds them, and are taken as they are.
    """

    name: str
    text: str
    values: tuple[str, ...] = ()
    configured: bool = False

    def word(self, word: str, known: set[str]) -> str:
        """`word` as a value of this label; `known` are the words that an open one has taken, and takes it."""
        if not word:
            return NONE
        if self.configured:
            return word
        if self.values:
            return word if word in self.values else OTHER
        if word not in known:
            if len(known) >= WORDS_A_LABEL or _WORD.fullmatch(word) is None:
                return OTHER
            known.add(word)
        return word


REFUSING = tuple(code.token for code in ReasonCode if code.reply_code >= 400)
MTA_STATES = ("starting", "ready", "unproven", "down", "refused", "open_relay")
DNSSEC_STATES = ("off", "untrusted", *(state.value for state in CanaryState))
CANARY_VERDICTS = ("none", "validates", "contradicts", "unreachable")

_DIRECTION = Label("direction", "whose session: outbound the MTA's, inbound a client's", get_args(Direction))
_REASON = Label(
    "reason",
    "a token of [refusals.md](refusals.md); a mail host's own reply is relayed/...",
    (*REFUSING, RELAYED_4XX, RELAYED_5XX),
)
_AUTH = Label(
    "auth",
    "how the mail host proved who it is; none: TLS without proof, clear: no TLS, host-only: DANE under an insecure MX",
    ("clear", "host-only", *(how.value for how in Authentication)),
)
_POLICY = Label("policy", "the level that was required, as in the log: dane, sts, may, ...")
_TLS_VERSIONS = tuple(version.value for version in TlsVersion)
_CIPHER = Label("cipher", "the cipher suite's name in OpenSSL")
_GROUP = Label("group", "the key exchange group, such as x25519")
_WOULD = Label("would", "what would have become of the mail")
_LISTENER = Label("listener", "its `name`, or its protocol and first `bind`", configured=True)


class Family(Enum):
    """name, kind, help, labels, and for a histogram the upper bounds of its buckets."""

    # Outbound
    DELIVERIES = (
        "smtpguard_deliveries_total", "counter",
        "Messages that a next hop took responsibility for.",
        (_AUTH, _POLICY),
    )  # fmt: skip
    DELIVERED_BYTES = (
        "smtpguard_delivered_bytes_total", "counter",
        "Content of the messages that a next hop took responsibility for.",
    )  # fmt: skip
    DELIVERY_DURATION = (
        "smtpguard_delivery_duration_seconds", "histogram",
        "Time from the first recipient of a next hop to its reply to the end of data, the MTA's sending included.",
        (), _DELIVERY_SECONDS,
    )  # fmt: skip
    REFUSALS = (
        "smtpguard_refusals_total", "counter",
        "Refusing or deferring replies, one for each decision and not for each recipient.",
        (_DIRECTION, _REASON),
    )  # fmt: skip
    INTERCEPTED = (
        "smtpguard_intercepted_total", "counter",
        "Next hops of intercepted connections, by whose the original address is.",
        (
            Label(
                "verdict",
                "mapped, remembered: a mail host of the domain has it; direct: `intercept_direct`; rerouted, refused",
                ("mapped", "remembered", "direct", "rerouted", "refused"),
            ),
        ),
    )  # fmt: skip
    HOSTS_OPENED = (
        "smtpguard_hosts_opened_total", "counter",
        "Connections to mail hosts that showed what was required.",
        (Label("reused", "was it open from an earlier message?", ("true", "false")),),
    )  # fmt: skip
    HOST_OPEN_DURATION = (
        "smtpguard_host_open_duration_seconds", "histogram",
        "Time to make a new connection to a mail host: connect, greeting, EHLO, TLS, verification.",
        (), _OPEN_SECONDS,
    )  # fmt: skip
    HOSTS_SKIPPED = (
        "smtpguard_hosts_skipped_total", "counter",
        "Mail hosts passed over; the mail may still have gone to another host of the domain.",
        (_REASON,),
    )  # fmt: skip
    POLICIES_OBSERVED = (
        "smtpguard_policies_observed_total", "counter",
        "Judgements of policies that are not enforced.",
        (
            Label("kind", "sts-testing, sts (beside DANE), shadow, override, dane-unusable"),
            Label(_WOULD.name, _WOULD.text, ("deliver", "refuse")),
        ),
    )  # fmt: skip
    POOL_CONNECTIONS = (
        "smtpguard_pool_connections", "gauge",
        "Idle connections to mail hosts kept for the next message.",
    )  # fmt: skip

    # Inbound
    MESSAGES_RELAYED = (
        "smtpguard_messages_relayed_total", "counter",
        "Clients' messages that were answered at their end, by the class of the reply.",
        (
            Label("reply", "the reply's class", ("2xx", "4xx", "5xx")),
            Label("tls_version", "how it came; none: in clear", (NONE, *_TLS_VERSIONS)),
        ),
    )  # fmt: skip
    RELAYED_BYTES = (
        "smtpguard_relayed_bytes_total", "counter",
        "Content of the clients' messages that were answered at their end.",
    )  # fmt: skip
    RELAY_DURATION = (
        "smtpguard_relay_duration_seconds", "histogram",
        "Time from the go-ahead for a client's message to the reply at its end, the client's sending included.",
        (), _DELIVERY_SECONDS,
    )  # fmt: skip
    CLIENT_HANDSHAKE_FAILURES = (
        "smtpguard_client_handshake_failures_total", "counter",
        "TLS handshakes with clients that failed.",
        (Label("cause", "tls-alert-N or a word of the log's `cause`"),),
    )  # fmt: skip
    LIMITS_HIT = (
        "smtpguard_limits_hit_total", "counter",
        "Times a client, or all together, reached a limit of an inbound listener.",
        (
            Label(
                "limit",
                "see [configuration.md](configuration.md#inbound-listeners)",
                (*(excess.value for excess in Excess), "handshakes", "errors", "idle_commands"),
            ),
        ),
    )  # fmt: skip
    RULES_SHADOWED = (
        "smtpguard_rules_shadowed_total", "counter",
        "Judgements of inbound rules in shadow.",
        (Label(_WOULD.name, _WOULD.text, ("accept", "refuse")),),
    )  # fmt: skip
    MTA_FAILURES = (
        "smtpguard_mta_failures_total", "counter",
        "Times the MTA behind an inbound listener could not be used for a client.",
        (Label("step", "how far it came", tuple(step.value for step in Step)),),
    )  # fmt: skip
    MTA_STATE = (
        "smtpguard_mta_state", "gauge",
        "1 for what the MTA behind an inbound listener is; in every state but ready and unproven clients hear 421.",
        (_LISTENER, Label("state", "see [inbound.md](inbound.md)", MTA_STATES)),
    )  # fmt: skip
    CERTIFICATE_NOT_AFTER = (
        "smtpguard_certificate_not_after_timestamp_seconds", "gauge",
        "When a certificate that an inbound listener serves ends (Unix time).",
        (
            _LISTENER,
            Label("file", "the certificate's file", configured=True),
            Label("name", "its first DNS name", configured=True),
        ),
    )  # fmt: skip
    CERTIFICATE_EVENTS = (
        "smtpguard_certificate_events_total", "counter",
        "Certificates of inbound listeners that were read, or that need a look.",
        (
            Label(
                "event",
                "failed: the old one is kept; warning and tlsa: see the log",
                ("loaded", "reloaded", "failed", "warning", "tlsa"),
            ),
        ),
    )  # fmt: skip
    DANE_SELF_CHECK_PROBLEMS = (
        "smtpguard_dane_self_check_problems", "gauge",
        "What the hourly comparison of the served chain with our own published TLSA records found wrong; 0: nothing.",
        (_LISTENER,),
    )  # fmt: skip

    # Both directions
    SESSIONS_OPEN = (
        "smtpguard_sessions_open", "gauge",
        "Sessions open now.",
        (_DIRECTION,),
    )  # fmt: skip
    SESSIONS = (
        "smtpguard_sessions_total", "counter",
        "Sessions that ended.",
        (_DIRECTION, Label("cause", "quit, closed, idle, lost, shutdown, refused, error, ...")),
    )  # fmt: skip
    TLS_CONNECTIONS = (
        "smtpguard_tls_connections_total", "counter",
        "TLS handshakes done: outbound with mail hosts, inbound with clients.",
        (_DIRECTION, Label("tls_version", "what was agreed on", _TLS_VERSIONS), _CIPHER, _GROUP),
    )  # fmt: skip
    VIOLATIONS = (
        "smtpguard_violations_total", "counter",
        "Times a peer broke the protocol.",
        (_DIRECTION, Label("kind", "bare_newline, starttls_injection, early_talker, handshake, slow, ...")),
    )  # fmt: skip
    FINAL_REPLIES_LOST = (
        "smtpguard_final_replies_lost_total", "counter",
        "Messages whose reply to the end of data was lost: a retry may deliver them twice.",
        (_DIRECTION, Label("side", "who was lost: where the mail goes, or whoever sent it", ("upstream", "client"))),
    )  # fmt: skip
    ACCEPT_PAUSES = (
        "smtpguard_accept_pauses_total", "counter",
        "Times a listener stopped accepting because no descriptor or no session slot was free.",
    )  # fmt: skip
    LISTENERS = (
        "smtpguard_listeners", "gauge",
        "Sockets that are listened on.",
        (
            Label("role", "what for", ("outbound", "inbound", "admin")),
            Label("protocol", "spoken there", ("smtp", "smtp+starttls", "smtps", "lmtp", "http")),
        ),
    )  # fmt: skip

    # DNS and published policies
    DNSSEC_STATE = (
        "smtpguard_dnssec_state", "gauge",
        "1 for what the resolver is known to be; DANE is applied while it is validating or unknown.",
        (Label("state", "lost: what may be DANE is deferred; off, untrusted, never-...: no DANE", DNSSEC_STATES),),
    )  # fmt: skip
    CANARY_VERDICT = (
        "smtpguard_canary_verdict", "gauge",
        "1 for what the canary's last round proved; none: not asked yet.",
        (Label("verdict", "unreachable proves nothing and leaves the state", CANARY_VERDICTS),),
    )  # fmt: skip
    DNS_LOOKUPS = (
        "smtpguard_dns_lookups_total", "counter",
        "DNS queries sent; what the cache answers is not counted.",
        (Label("status", "what came of it", ("secure", "insecure", *(kind.value for kind in FailureKind))),),
    )  # fmt: skip
    DNS_LOOKUP_DURATION = (
        "smtpguard_dns_lookup_duration_seconds", "histogram",
        "Time of one DNS query to one resolver.",
        (), _DNS_SECONDS,
    )  # fmt: skip
    STS_EVENTS = (
        "smtpguard_sts_events_total", "counter",
        "What happened to MTA-STS policies of other domains.",
        (Label("event", "fetched, refreshed, fetch_error, refresh_failed, expired, grace, ..."),),
    )  # fmt: skip
    STS_POLICIES = (
        "smtpguard_sts_policies", "gauge",
        "MTA-STS policies in the cache.",
        (Label("mode", "RFC 8461 section 5", tuple(mode.value for mode in Mode)),),
    )  # fmt: skip
    STS_REFRESH_FAILING = (
        "smtpguard_sts_refresh_failing", "gauge",
        "Cached MTA-STS policies that could not be renewed at the last try; `smtpguard sts` lists them.",
    )  # fmt: skip

    # The process
    BUILD_INFO = (
        "smtpguard_build_info", "gauge",
        "Constant 1; the labels say what runs.",
        (
            Label("version", "smtpguard's", configured=True),
            Label("python", "the interpreter's", configured=True),
            Label("openssl", "of the library that speaks TLS with mail hosts and clients", configured=True),
        ),
    )  # fmt: skip
    READY = (
        "smtpguard_ready", "gauge",
        "Whether mail is taken: what /healthz/ready says.",
    )  # fmt: skip
    CONFIG_LAST_RELOAD_SUCCESSFUL = (
        "smtpguard_config_last_reload_successful", "gauge",
        "Whether the file's configuration is the one in force; 0 after a reload that failed.",
    )  # fmt: skip
    CONFIG_LAST_RELOAD_SUCCESS = (
        "smtpguard_config_last_reload_success_timestamp_seconds", "gauge",
        "When the configuration in force was loaded (Unix time).",
    )  # fmt: skip
    CONFIG_RESTART_NEEDED = (
        "smtpguard_config_restart_needed", "gauge",
        "Whether the last reload brought a change that only a restart puts into force.",
    )  # fmt: skip
    RULE_WARNINGS = (
        "smtpguard_rule_warnings_total", "counter",
        "Times a rule did not do what it seems to.",
        (Label("kind", "weaker, expired, ..., as in the log"),),
    )  # fmt: skip
    IDENTITY_WARNINGS = (
        "smtpguard_identity_warnings_total", "counter",
        "Findings against the names and addresses that mail is sent from.",
    )  # fmt: skip
    STORE_ERRORS = (
        "smtpguard_store_errors_total", "counter",
        "Failures to read or write the state directory.",
    )  # fmt: skip
    LOG_LINES_DROPPED = (
        "smtpguard_log_lines_dropped_total", "counter",
        "Log lines lost to a slow or failing reader of the log.",
    )  # fmt: skip
    INTERNAL_ERRORS = (
        "smtpguard_internal_errors_total", "counter",
        "Bugs: exceptions that reached the boundary of a session, a next hop or a service.",
    )  # fmt: skip

    def __init__(
        self, metric: str, kind: Kind, text: str, labels: tuple[Label, ...] = (), buckets: tuple[float, ...] = ()
    ) -> None:
        self.metric = metric
        self.kind: Kind = kind
        self.text = text
        self.labels = labels
        self.buckets = buckets

    @property
    def is_closed(self) -> bool:
        """Is every series known beforehand?"""
        return all(label.values for label in self.labels)
