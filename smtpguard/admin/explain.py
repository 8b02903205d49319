"""What does a remembered decision tell an operator?  From the answer of `/api/decisions` to lines of prose.

What was published, what was required and why, each host tried and what it showed, the reply, and the way out of the
one table of reasons.  Pure; every line is printable and at most WIDTH columns wide, whatever the process answered.
"""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from types import MappingProxyType
from typing import Any

from smtpguard.reasons import ReasonCode, printable

WIDTH = 100
_LABEL = 12
_MAX_ENTRIES = 64
_MAX_TEXT = 2000

_CODES = MappingProxyType({code.token: code for code in ReasonCode})

_REQUIREMENTS = MappingProxyType(
    {
        "none": "no TLS",
        "may": "TLS where the host offers it, unauthenticated",
        "encrypt": "TLS, unauthenticated",
        "dane": "TLS, and a certificate that matches the host's TLSA records (DANE)",
        "half-dane": "TLS, and a certificate that matches the host's TLSA records; the MX record itself is unsigned",
        "dane-unusable": "TLS, unauthenticated: the host's TLSA records are of no usable kind",
        "dane-only": "TLS, and a certificate that matches TLSA records; without them no mail",
        "sts": "TLS, and a trusted certificate of a host that the MTA-STS policy lists (enforce)",
        "verify": "TLS, and a trusted certificate that names the host",
        "secure": "TLS, and a trusted certificate that names what the rule says",
        "fingerprint": "TLS, and a certificate of the rule's fingerprints",
    }
)
_AUTHENTICATED = MappingProxyType(
    {
        "dane": "authenticated by DANE",
        "host-only": "the host authenticated by DANE",
        "pkix": "authenticated by its certificate",
        "fingerprint": "authenticated by its fingerprint",
        "none": "not authenticated",
        "clear": "not authenticated",
    }
)

Facts = Mapping[str, Any]


def explained(decision: Facts) -> str:
    """One decision as text of several lines, without a final line end."""
    entries = [one for one in _list(decision.get("entries")) if isinstance(one, Mapping)][:_MAX_ENTRIES]
    facts = [(_text(one.get("event")), _text(one.get("at")), _facts(one)) for one in entries]
    ends = [(name, one) for name, _, one in facts if name in ("delivered", "delivery_refused")]
    began = facts[0][1][:19].replace("T", " ") + " UTC" if facts and facts[0][1] else ""
    lines = [f"{_text(decision.get('id'))}  {_text(decision.get('domain'))}  {began}".rstrip()]
    clients = [_client(one) for _, _, one in facts if one.get("direction") == "inbound"]
    if clients:  # a rule of ours about who sends: what a domain publishes has no part in it
        lines += _section("client", clients)
    else:
        lines += _section("published", _published([one for _, _, one in facts]))
    lines += _section("required", _required([one for _, _, one in facts], ends))
    lines += _section("tried", [line for name, _, one in facts for line in _host(name, one)])
    lines += _section("observed", [_observed(one) for name, _, one in facts if name == "policy_observed"])
    lines += _section(
        "outcome", [_outcome(name, one) for name, one in ends] or ["nothing yet: still under way, or lost"]
    )
    lines += _section("way out", _ways_out(ends))
    if decision.get("omitted"):
        lines += _section("", [f"({_text(decision['omitted'])} entries in between are not kept)"])
    return "\n".join(lines)


def _client(facts: Facts) -> str:
    return f"{_text(facts.get('client'))} at {_text(facts.get('listener'))}"


def _published(facts: Sequence[Facts]) -> list[str]:
    """Each policy once; hosts of one domain share them."""
    found: dict[str, None] = {}
    for one in facts:
        kind, domain = _text(one.get("policy_type")), _text(one.get("policy_domain"))
        strings = "; ".join(_text(text) for text in _list(one.get("policy_string")))
        if kind == "tlsa":
            found[f"TLSA of {domain}: {strings or 'could not be used; see below'}"] = None
        elif kind == "sts":
            found[f"MTA-STS policy of {domain}: {strings or 'could not be had; see below'}"] = None
    if not found and any(_text(one.get("reason")).startswith("dns/") for one in facts):
        return ["not known: a look-up failed"]
    return list(found) or ["nothing that decides: no usable DANE or MTA-STS"]


def _required(facts: Sequence[Facts], ends: Sequence[tuple[str, Facts]]) -> list[str]:
    found: dict[str, None] = {}
    for one in facts:
        policy = _text(one.get("policy"))
        if policy in _REQUIREMENTS:
            found[f"{policy}: {_REQUIREMENTS[policy]}"] = None
    for name, one in ends:
        if name == "delivered":
            for why in _list(one.get("why")):
                token, _, subject = _text(why).partition(":")
                code = _CODES.get(token)
                found[f"because: {code.text if code else token}" + (f" ({subject})" if subject else "")] = None
    return list(found)


def _host(name: str, facts: Facts) -> Iterator[str]:
    if name not in ("host_opened", "host_skipped"):
        return
    where = where_of(facts)
    if name == "host_opened":
        again = ", on a connection that was open" if facts.get("reused") else ""
        yield f"{where}: {_tls(facts)}, {authentication_of(facts)}{again}"
        if detail := _text(facts.get("detail")):
            yield f"  {detail}"
        return
    yield f"{where}: skipped, {_reason(_text(facts.get('reason')))}"
    if detail := _text(facts.get("detail")):
        yield f"  seen: {detail}"
    if facts.get("tls_version"):
        yield f"  {_tls(facts)}"


def _observed(facts: Facts) -> str:
    """A policy that was only judged."""
    would = "would refuse" if facts.get("would") == "refuse" else "would deliver"
    reason = _text(facts.get("reason"))
    why = f": {_reason(reason)}" if reason else ""
    return f"{_text(facts.get('kind'))} at {where_of(facts)} {would}{why}"


def _outcome(name: str, facts: Facts) -> str:
    reply = _text(facts.get("reply"))
    if name == "delivered":
        return f"delivered to {where_of(facts)}, {_tls(facts)}, {authentication_of(facts)}: {reply}"
    word = "refused" if reply.startswith("5") else "deferred"
    who = "by the host's own reply" if facts.get("relayed") else "by smtpguard"
    stage = _text(facts.get("stage")).upper()
    return f"{word} {who} at {stage}: {reply}"


def _ways_out(ends: Sequence[tuple[str, Facts]]) -> list[str]:
    found: dict[str, None] = {}
    for _, facts in ends:
        code = _CODES.get(_text(facts.get("reason")))
        if code is not None and code.advice:
            found[code.advice] = None
    return list(found)


def where_of(facts: Facts) -> str:
    """`mx.a.example[192.0.2.1]:25`."""
    mx, address, port = (_text(facts.get(key)) for key in ("mx", "address", "port"))
    if not address or address == "None":
        return mx or "no host"
    return f"{address}:{port}" if mx in ("", f"[{address}]") else f"{mx}[{address}]:{port}"


def _tls(facts: Facts) -> str:
    """`TLS 1.3 TLS_AES_256_GCM_SHA384 x25519`, or `in clear`."""
    words = [_text(facts.get(key)) for key in ("tls_version", "cipher", "group")]
    return " ".join(["TLS", *filter(None, words)]) if words[0] else "in clear"


def authentication_of(facts: Facts) -> str:
    """What held, in words."""
    auth = _text(facts.get("auth")) or "none"
    return _AUTHENTICATED.get(auth, auth)


def _reason(token: str) -> str:
    code = _CODES.get(token)
    return f"{code.text} [{token}]" if code is not None else token


def _section(label: str, texts: Sequence[str]) -> list[str]:
    """The texts beside their label, wrapped; a text that begins with blanks stays below the one before."""
    lines = []
    for text in texts:
        indent = " " * (len(text) - len(text.lstrip()))
        lines += wrap(
            text.strip(),
            WIDTH - _LABEL - 2,
            initial_indent=indent,
            subsequent_indent=f"{indent}  ",
            break_on_hyphens=False,
        )
    return [f"  {label if number == 0 else '':{_LABEL}}{line}" for number, line in enumerate(lines)]


def _facts(entry: Facts) -> Facts:
    facts = entry.get("facts")
    return facts if isinstance(facts, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    return "" if value is None else printable(str(value), _MAX_TEXT)
