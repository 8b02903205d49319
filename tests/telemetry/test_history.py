"""telemetry.history: the last decisions, kept over a restart."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from smtpguard.clock import Clock
from smtpguard.events import (
    Delivered,
    DeliveryRefused,
    HostOpened,
    HostSkipped,
    Lifecycle,
    PolicyObserved,
)
from smtpguard.telemetry.history import TABLE, History, encode, encode_all

AT = datetime(2026, 11, 30, 10, 0, 0, tzinfo=UTC)


class Ticking:
    """A clock that is a second later at each look."""

    def __init__(self, start: datetime = AT) -> None:
        self.time = start
        self.clock = Clock(now=self.now, monotonic=lambda: 0.0)

    def now(self) -> datetime:
        self.time += timedelta(seconds=1)
        return self.time


class Store:
    """In memory; gives its records back in an order of its own."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}

    def put(self, table: str, key: str, value: bytes) -> None:
        assert table == TABLE
        self.records[key] = value

    def load(self, table: str) -> Iterable[tuple[str, bytes]]:
        assert table == TABLE
        return sorted(self.records.items(), key=lambda item: item[1][::-1])

    def delete(self, table: str, key: str) -> None:
        assert table == TABLE
        self.records.pop(key, None)


def refused(id_: str, domain: str = "example.org", **changes: object) -> DeliveryRefused:
    return DeliveryRefused(**{"id": id_, "domain": domain, "reply": "451 4.7.5", "stage": "rcpt", **changes})  # type: ignore[arg-type]


def skipped(id_: str, mx: str = "mx1.example.org") -> HostSkipped:
    return HostSkipped(
        id=id_,
        domain="example.org",
        mx=mx,
        address="192.0.2.1",
        port=25,
        policy="dane",
        policy_type="tlsa",
        policy_string=("3 1 1 ab",),
        reason="dane/no-match",
    )


OPENED = HostOpened(
    id="a.1", domain="example.org", mx="mx2.example.org", address="2001:db8::1", port=25, policy="dane", seconds=0.25
)
OBSERVED = PolicyObserved(
    id="a.1",
    domain="example.org",
    mx="mx2.example.org",
    address="2001:db8::1",
    port=25,
    policy="dane",
    kind="sts",
    would="refuse",
)
DELIVERED = Delivered(
    id="a.1",
    domain="example.org",
    mx="mx2.example.org",
    address="2001:db8::1",
    port=25,
    policy="dane",
    auth="dane",
    tls_version="1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    group="x25519",
    recipients=1,
    octets=1000,
    seconds=0.5,
    reply="250 2.0.0 ok",
    why=("dane", "sts"),
)


def test_the_events_of_one_id_are_one_decision() -> None:
    history = History(Store(), Ticking().clock)
    story = (skipped("a.1"), OPENED, OBSERVED, DELIVERED)
    for event in story:
        history.emit(event)
    history.emit(refused("a.2", "other.example"))
    (decision,) = history.find("a.1")
    assert (decision.id, decision.domain) == ("a.1", "example.org")
    assert tuple(entry.event for entry in decision.entries) == story
    assert [entry.at for entry in decision.entries] == [AT + timedelta(seconds=n) for n in (1, 2, 3, 4)]
    assert len(history) == 2


def test_find_by_domain_gives_the_newest_first() -> None:
    history = History(Store(), Ticking().clock)
    for n in range(5):
        history.emit(refused(f"a.{n}", "Example.org" if n % 2 else "example.org"))
        history.emit(refused(f"b.{n}", "other.example"))
    assert [d.id for d in history.find("example.org")] == ["a.4", "a.3", "a.2", "a.1", "a.0"]
    assert [d.id for d in history.find(" EXAMPLE.org. ")] == ["a.4", "a.3", "a.2", "a.1", "a.0"]
    assert history.find("unknown.example") == []
    assert history.find("") == []


def test_recent_gives_the_newest_first() -> None:
    history = History(Store(), Ticking().clock)
    for n in range(5):
        history.emit(refused(f"a.{n}"))
    assert [d.id for d in history.recent(2)] == ["a.4", "a.3"]
    assert len(history.recent(100)) == 5
    assert history.recent(0) == history.recent(-1) == []


def test_other_events_are_no_decisions() -> None:
    history = History(Store(), Ticking().clock)
    history.emit(Lifecycle(stage="ready"))
    assert len(history) == 0


def test_survives_a_restart_in_order_and_whole() -> None:
    store = Store()
    ticking = Ticking()
    history = History(store, ticking.clock)
    for event in (skipped("a.1"), OPENED, OBSERVED, DELIVERED):
        history.emit(event)
    for n in range(10):
        history.emit(refused(f"0.{9 - n}", f"d{n % 3}.example", why=("dane/no-match mx1",)))
    again = History(store, ticking.clock)
    assert again.recent(100) == history.recent(100)
    assert again.find("d0.example") == history.find("d0.example")
    again.emit(refused("0.0", "d0.example"))
    (grown,) = again.find("0.0")
    assert len(grown.entries) == 2


def test_keeps_the_newest_and_deletes_the_rest_from_the_store() -> None:
    store = Store()
    history = History(store, Ticking().clock, capacity=3)
    for n in range(10):
        history.emit(refused(f"a.{n}", f"d{n}.example"))
    assert [d.id for d in history.recent(10)] == ["a.9", "a.8", "a.7"]
    assert set(store.records) == {"a.7", "a.8", "a.9"}
    assert history.find("a.6") == history.find("d6.example") == []
    smaller = History(store, Ticking().clock, capacity=2)
    assert [d.id for d in smaller.recent(10)] == ["a.9", "a.8"]
    assert set(store.records) == {"a.8", "a.9"}


def test_a_long_walk_is_bounded_and_keeps_its_end() -> None:
    history = History(Store(), Ticking().clock)
    for n in range(100):
        history.emit(skipped("a.1", f"mx{n}.example.org"))
    history.emit(refused("a.1"))
    (decision,) = history.find("a.1")
    assert len(decision.entries) == 32
    assert decision.omitted == 101 - 32
    assert isinstance(decision.entries[-1].event, DeliveryRefused)


def test_long_texts_are_cut() -> None:
    store = Store()
    history = History(store, Ticking().clock)
    event = replace(skipped("a.1"), detail="x" * 70_000, policy_string=("mx: " + "y" * 70_000,) * 100)
    history.emit(event)
    assert len(store.records["a.1"]) < 12_000
    (decision,) = history.find("a.1")
    kept = decision.entries[0].event
    assert isinstance(kept, HostSkipped)
    assert kept.detail == "x" * 497 + "..."
    assert len(kept.policy_string) == 16


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"not json",
        b"[]",
        b'{"id": "a.1"}',
        b'{"id": "a.1", "domain": "d", "entries": []}',
        b'{"id": "other", "domain": "d", "entries": []}',
        b'{"id": "a.1", "domain": "d", "entries": [{"at": "2026-11-30T10:00:00Z", "event": "new", "facts": {}}]}',
        b'{"id": "a.1", "domain": "d", "entries": [{"at": "2026-11-30T10:00:00Z", "event": "delivered", "facts": {}}]}',
        b"\xff\xfe",
    ],
)
def test_a_record_that_cannot_be_read_is_left_out(damage: bytes) -> None:
    store = Store()
    History(store, Ticking().clock).emit(refused("good.1"))
    store.records["a.1"] = damage
    history = History(store, Ticking().clock)
    assert [d.id for d in history.recent(10)] == ["good.1"]
    assert history.unreadable == 1
    assert set(store.records) == {"good.1"}


def test_a_record_of_another_id_is_left_out() -> None:
    store = Store()
    History(store, Ticking().clock).emit(refused("good.1"))
    store.records["a.1"] = store.records["good.1"]
    assert History(store, Ticking().clock).unreadable == 1


def test_fields_a_later_version_adds_do_not_hurt() -> None:
    store = Store()
    History(store, Ticking().clock).emit(refused("a.1"))
    record = json.loads(store.records["a.1"])
    record["later"] = 1
    record["entries"][0]["facts"]["later"] = 1
    store.records["a.1"] = json.dumps(record).encode()
    assert len(History(store, Ticking().clock).find("a.1")) == 1


def test_the_json_of_a_decision_says_what_happened() -> None:
    history = History(Store(), Ticking().clock)
    history.emit(skipped("a.1"))
    (decision,) = history.recent(1)
    record = json.loads(encode(decision))
    assert record["id"] == "a.1"
    assert record["entries"][0]["at"] == "2026-11-30T10:00:01Z"
    assert record["entries"][0]["event"] == "host_skipped"
    assert record["entries"][0]["facts"]["reason"] == "dane/no-match"
    assert json.loads(encode_all([decision])) == [record]


class FailingStore(Store):
    """A disk that is full."""

    def put(self, table: str, key: str, value: bytes) -> None:
        raise OSError(28, "No space left on device")


def test_emit_never_raises_and_memory_goes_on_without_the_store() -> None:
    history = History(FailingStore(), Ticking().clock)
    history.emit(refused("a.1"))
    assert history.failures == 1
    assert [d.id for d in history.find("a.1")] == ["a.1"]
    history.emit(None)  # type: ignore[arg-type]
