"""telemetry.totals and telemetry.outcomes: what people are shown of the events."""

from dataclasses import replace

import pytest

from smtpguard.clock import Clock
from smtpguard.events import (
    Delivered,
    DeliveryRefused,
    Event,
    FinalReplyLost,
    InboundTls,
    Lifecycle,
    MessageRelayed,
    StsAlert,
    Violation,
)
from smtpguard.telemetry.outcomes import direction, domains, outcome
from smtpguard.telemetry.totals import Direction, Totals
from tests.support.certificates import NOW

DELIVERED = Delivered(
    id="s.1", domain="A.example", mx="mx.a.example", address="192.0.2.1", port=25, policy="dane", auth="dane",
    tls_version="1.3", cipher="c", group="g", recipients=1, octets=9, seconds=0.1, reply="250 2.0.0 ok",
)  # fmt: skip
RELAYED = MessageRelayed(
    id="s.2", listener="mx", client="c", helo="c", sender_domain="b.example", recipients=1, octets=9, seconds=0.1,
    reply="250 ok", tls_version="1.3",
)  # fmt: skip
REFUSED = DeliveryRefused(id="s.3", domain="c.example", reason="dane/no-match", reply="451 x", stage="rcpt")
LOST = FinalReplyLost(id="s.4", domain="d.example", mx="mx", side="upstream")


@pytest.mark.parametrize(
    ("event", "way", "became", "about"),
    [
        (DELIVERED, "outbound", "delivered", ("a.example",)),
        (RELAYED, "inbound", "delivered", ("b.example",)),
        (replace(RELAYED, reply="421 x"), "inbound", "deferred", ("b.example",)),
        (replace(RELAYED, reply="554 x", sender_domain=""), "inbound", "refused", ()),
        (REFUSED, "outbound", "deferred", ("c.example",)),
        (replace(REFUSED, reply="530 x", direction="inbound"), "inbound", "refused", ("c.example",)),
        (LOST, "outbound", "lost", ("d.example",)),
        (replace(LOST, direction="inbound"), "inbound", "lost", ("d.example",)),
        (StsAlert(event="expired", domain="e.example"), "outbound", "", ("e.example",)),
        (InboundTls(session="s", listener="mx", client="c"), "inbound", "", ()),
        (Violation(direction="inbound", kind="nul", session="s", peer="p"), "inbound", "", ()),
        (Lifecycle(stage="ready"), "", "", ()),
    ],
)
def test_words_of_an_event(event: Event, way: str, became: str, about: tuple[str, ...]) -> None:
    assert (direction(event), outcome(event), domains(event)) == (way, became, about)


def totals_of(*events: Event) -> dict[str, object]:
    totals = Totals(Clock(now=lambda: NOW, monotonic=lambda: 0.0))
    for event in events:
        totals.emit(event)
    assert totals.failures == 0
    return dict(totals.as_json())


def test_nothing_yet() -> None:
    assert totals_of(Lifecycle(stage="ready"))["refusals"] == []
    assert totals_of()["since"] == NOW


def test_shares_of_tls() -> None:
    """Of what was delivered; a host authenticated by an insecure MX record is not the domain's (DANE-26)."""
    told = totals_of(
        DELIVERED,
        replace(DELIVERED, auth="host-only"),
        replace(DELIVERED, auth="clear", tls_version=""),
        replace(DELIVERED, auth="none"),
        LOST,
        RELAYED,
        replace(RELAYED, tls_version=""),
        replace(RELAYED, reply="451 x"),
    )
    outbound, inbound = told["outbound"], told["inbound"]
    assert isinstance(outbound, Direction)
    assert isinstance(inbound, Direction)
    assert (outbound.delivered, outbound.over_tls, outbound.authenticated, outbound.lost) == (4, 3, 1, 1)
    assert (inbound.delivered, inbound.over_tls, inbound.deferred) == (2, 1, 1)


def test_refusals_by_reason() -> None:
    """The most frequent first, with words and the latest domain; what is no reason of ours is `other` or the host's."""
    relayed = replace(REFUSED, reason="", relayed=True, reply="550 no", domain="z" * 300)
    told = totals_of(relayed, REFUSED, replace(REFUSED, domain="last.example"), replace(REFUSED, reason="<b>"))
    rows = told["refusals"]
    assert isinstance(rows, list)
    assert [(row["reason"], row["count"], row["last_domain"][:12]) for row in rows] == [
        ("dane/no-match", 2, "last.example"),
        ("other", 1, "c.example"),
        ("relayed/5xx", 1, "z" * 12),
    ]
    assert rows[0]["text"] == "no TLSA record matches the certificate"
    assert rows[0]["advice"]
    assert len(rows[2]["last_domain"]) == 255
    assert rows[2]["text"]
