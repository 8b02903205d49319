"""admin.explain: what a remembered decision tells an operator, whatever the process answered."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.admin.explain import WIDTH, explained
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import Delivered, DeliveryRefused, Event, HostOpened, HostSkipped, PolicyObserved, discard
from smtpguard.mtasts.store import Store
from smtpguard.reasons import ReasonCode
from smtpguard.telemetry.history import History, encode_all

HOST = {"id": "s.1", "domain": "a.example", "mx": "mx.a.example", "address": "192.0.2.1", "port": 25}
TLSA = {"policy_type": "tlsa", "policy_domain": "mx.a.example", "policy_string": ("3 1 1 00ff",)}
TLS = {"tls_version": "1.3", "cipher": "TLS_AES_256_GCM_SHA384", "group": "x25519"}
REPLY = "451 4.7.5 [dane/no-match] mx.a.example[192.0.2.1]:25: no TLSA record matches the certificate (id s.1)"


def said(*events: Event) -> str:
    """The text, by the very way it takes: events, history, JSON, words."""
    history = History(Store.open(None, discard), SYSTEM_CLOCK)
    for event in events:
        history.emit(event)
    (decision,) = json.loads(encode_all(history.recent(1)))
    return explained(decision)


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_refusal() -> None:
    """What was published and required, each host, the reply, the way out; no field names."""
    skipped = HostSkipped(**HOST, **TLSA, **TLS, policy="dane", reason="dane/no-match", detail="none of 1 matches")  # type: ignore[arg-type]
    end = DeliveryRefused(**HOST, policy="dane", reason="dane/no-match", reply=REPLY, stage="rcpt")  # type: ignore[arg-type]
    text = said(skipped, end)
    assert text.startswith("s.1  a.example  ")
    told = words(text)
    for part in (
        "published TLSA of mx.a.example: 3 1 1 00ff",
        "required dane: TLS, and a certificate that matches the host's TLSA records",
        "tried mx.a.example[192.0.2.1]:25: skipped, no TLSA record matches the certificate [dane/no-match]",
        "seen: none of 1 matches",
        "TLS 1.3 TLS_AES_256_GCM_SHA384 x25519",
        f"outcome deferred by smtpguard at RCPT: {REPLY}",
        f"way out {ReasonCode.DANE_NO_MATCH.advice}",
    ):
        assert part in told, part
    assert not any(mark in text for mark in ("{", "policy_type", "facts", "tls_version"))


def test_a_delivery() -> None:
    opened = HostOpened(**HOST, **TLSA, **TLS, policy="dane", auth="dane", reused=True)  # type: ignore[arg-type]
    shadow = PolicyObserved(**HOST, policy="dane", kind="shadow", would="refuse", reason="tls/version")  # type: ignore[arg-type]
    end = Delivered(
        **HOST, **TLS, policy="dane", auth="dane", recipients=1, octets=9, seconds=0.1, reply="250 2.0.0 ok",
        why=("dane:mx.a.example",),
    )  # type: ignore[arg-type]  # fmt: skip
    told = words(said(opened, shadow, end))
    assert "because: usable TLSA records (mx.a.example)" in told
    assert "authenticated by DANE, on a connection that was open" in told
    assert "shadow at mx.a.example[192.0.2.1]:25 would refuse: the TLS version is below" in told
    assert "outcome delivered to mx.a.example[192.0.2.1]:25, TLS 1.3" in told
    assert "way out" not in told


def test_a_client_that_was_refused() -> None:
    """A rule about the way in: who came where; nothing of what a domain publishes."""
    reply = "530 5.7.0 [inbound/tls-required] recipient domain secret.example: TLS is required (id s.1)"
    end = DeliveryRefused(
        direction="inbound", id="s.1", domain="secret.example", listener="mx", client="192.0.2.9", policy="inbound",
        reason="inbound/tls-required", reply=reply, stage="rcpt",
    )  # fmt: skip
    told = words(said(end))
    assert f"client 192.0.2.9 at mx outcome refused by smtpguard at RCPT: {reply}" in told
    assert "published" not in told


def test_nothing_is_said_to_be_unpublished_where_nobody_could_look() -> None:
    end = DeliveryRefused(domain="a.example", id="s.1", reason="dns/failure", reply="451 4.4.3 no", stage="rcpt")
    told = words(said(end))
    assert "published not known: a look-up failed" in told
    assert "nothing that decides" not in told


def test_a_relayed_refusal_has_the_hosts_own_reply() -> None:
    end = DeliveryRefused(**HOST, reply="550 5.1.1 no such user", stage="rcpt", relayed=True)  # type: ignore[arg-type]
    told = words(said(end))
    assert "refused by the host's own reply at RCPT: 550 5.1.1 no such user" in told
    assert "published nothing that decides" in told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    ["mx", "address", "policy", "reason", "policy_type", "policy_string", "why", "reply", "detail"]
)
ENTRY = st.fixed_dictionaries(
    {
        "at": JSON,
        "event": st.sampled_from(["host_opened", "host_skipped", "policy_observed", "delivered", "delivery_refused"]),
        "facts": st.dictionaries(FIELDS, JSON) | JSON,
    }
)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({"id": st.text(max_size=20), "domain": st.text(max_size=60), "entries": st.lists(ENTRY)}))
def test_any_answer_is_printable_and_bounded(decision: dict[str, object]) -> None:
    """Another version, or damage: never an exception, never a line that a terminal would act on."""
    for line in explained(decision).split("\n")[1:]:
        assert len(line) <= WIDTH
        assert line.isascii()
        assert line.isprintable()
