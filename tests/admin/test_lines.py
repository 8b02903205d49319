"""admin.lines: an event as one line of a terminal, whatever the process sent."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from smtpguard.admin.lines import line_of, words_of
from smtpguard.admin.live import line_of as record_of
from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import (
    Delivered,
    DeliveryRefused,
    DnssecState,
    Event,
    HostSkipped,
    Lifecycle,
    MessageRelayed,
    PolicyObserved,
)
from tests.admin.test_explain import HOST, JSON, TLS


def said(event: Event) -> str:
    """The line without its time, by the very way it takes."""
    line = line_of(json.loads(record_of(SYSTEM_CLOCK.now(), event)))
    assert line[2] == line[5] == ":"
    assert line[8] == "Z"
    return " ".join(line[10:].split())


def test_deliveries() -> None:
    out = Delivered(
        **HOST, **TLS, policy="dane", auth="dane", recipients=1, octets=9, seconds=0.1, reply="250 2.0.0 ok"
    )  # type: ignore[arg-type]
    assert said(out) == (
        "out delivered a.example mx.a.example[192.0.2.1]:25 TLS 1.3, authenticated by DANE: 250 2.0.0 ok (id s.1)"
    )
    relayed = MessageRelayed(
        id="s.2", listener="mx", client="c.example[192.0.2.7]:4711", helo="c", sender_domain="b.example", recipients=1,
        octets=9, seconds=0.1, reply="451 4.3.0 later",
    )  # fmt: skip
    assert said(relayed) == "in deferred b.example c.example[192.0.2.7]:4711 in clear: 451 4.3.0 later (id s.2)"


def test_refusals() -> None:
    """The reason's token once, whether the reply names it or not."""
    ours = DeliveryRefused(id="s.1", domain="a.example", reason="dane/no-match", reply="451 4.7.5 [dane/no-match] x", stage="rcpt")  # fmt: skip # noqa: E501
    assert said(ours) == "out deferred a.example 451 4.7.5 [dane/no-match] x (id s.1)"
    theirs = DeliveryRefused(**HOST, reply="550 5.1.1 no", stage="rcpt", relayed=True)  # type: ignore[arg-type]
    assert said(theirs) == "out refused a.example mx.a.example[192.0.2.1]:25: 550 5.1.1 no (id s.1)"
    annotated = DeliveryRefused(
        **HOST, reply="550 no (mx.a.example[192.0.2.1]:25 dane s.1)", stage="rcpt", relayed=True
    )  # type: ignore[arg-type]
    assert said(annotated) == "out refused a.example 550 no (mx.a.example[192.0.2.1]:25 dane s.1)"
    skipped = HostSkipped(**HOST, policy="dane", reason="tls/version", detail="old")  # type: ignore[arg-type]
    assert said(skipped) == "out skipped a.example mx.a.example[192.0.2.1]:25 [tls/version] old (id s.1)"
    shadow = PolicyObserved(**HOST, policy="dane", kind="shadow", would="refuse", reason="tls/version")  # type: ignore[arg-type]
    assert (
        said(shadow)
        == "out observed a.example shadow would refuse at mx.a.example[192.0.2.1]:25 [tls/version] (id s.1)"
    )


def test_everything_else() -> None:
    """Events that concern no mail: their facts."""
    assert said(Lifecycle(stage="draining", detail="at most 30 s")) == 'lifecycle stage=draining detail="at most 30 s"'
    assert said(DnssecState(state="lost", detail="x")) == "out dnssec_state state=lost detail=x"
    assert list(words_of({"outcome": "refused", "level": "warning"})) == ["refused", "warning"]


def test_a_line_has_an_end() -> None:
    """However much an event says."""
    assert (
        len(line_of({"ts": "2026-11-28T05:00:00.000Z", "event": "x", **{f"key{n}": "v" * 300 for n in range(20)}}))
        == 1000
    )


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["ts", "event", "outcome", "direction", "domain", "reply", "reason", "mx", "id"]) | st.text(),
        JSON | st.sampled_from(["delivered", "delivery_refused", "message_relayed", "host_skipped"]),
    )
)
def test_any_record_is_one_printable_line(record: dict[str, object]) -> None:
    line = line_of(record)
    assert len(line) <= 1000
    assert line.isascii()
    assert line.isprintable()
