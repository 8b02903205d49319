"""telemetry.log: events as lines, through a bounded queue to one thread."""

import io
import json
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpguard.clock import Clock
from smtpguard.events import DeliveryRefused, DnsLookup, Event, HostOpened, Lifecycle, StsAlert, StsEvent, Violation
from smtpguard.telemetry.log import LogSettings, LogSink, render_json, render_logfmt

AT = datetime(2026, 11, 30, 10, 0, 0, 123456, tzinfo=UTC)
CLOCK = Clock(now=lambda: AT, monotonic=lambda: 0.0)

REFUSED = DeliveryRefused(
    id="0k3f9q2a.7",
    domain="example.org",
    mx="mx1.example.org",
    policy="dane",
    reason="dane/no-match",
    reply="451 4.7.5",
    stage="rcpt",
)


def violation(detail: str) -> Violation:
    return Violation(direction="inbound", kind="nul", session="s", peer="192.0.2.1:1", detail=detail)


def lifecycle(detail: str) -> Lifecycle:
    return Lifecycle(stage="ready", detail=detail)


class Pipe(io.BytesIO):
    """A stream whose reader stands still until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.blocked = threading.Event()

    def write(self, octets: object) -> int:
        self.blocked.set()
        self.go.wait(10)
        return super().write(octets)  # type: ignore[arg-type]


def parse_logfmt(line: str) -> dict[str, str]:
    """An independent reader: key=value, values quoted as JSON strings."""
    pairs = {}
    rest = line
    while rest:
        match = re.match(r'([a-z0-9_]+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)(?: |$)', rest)
        assert match, f"not logfmt from {rest!r}"
        key, value = match.groups()
        assert key not in pairs
        pairs[key] = json.loads(value) if value.startswith('"') else value
        rest = rest[match.end() :]
    return pairs


# ---- lines


def test_logfmt_line_is_the_one_of_the_design() -> None:
    assert render_logfmt(AT, REFUSED) == (
        b"ts=2026-11-30T10:00:00.123Z level=warning event=delivery_refused id=0k3f9q2a.7 domain=example.org "
        b'mx=mx1.example.org policy=dane reason=dane/no-match reply="451 4.7.5" stage=rcpt recipients=1 '
        b"direction=outbound\n"
    )


def test_json_line_has_the_same_fields() -> None:
    line = render_json(AT, REFUSED)
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "ts": "2026-11-30T10:00:00.123Z",
        "level": "warning",
        "event": "delivery_refused",
        "id": "0k3f9q2a.7",
        "domain": "example.org",
        "mx": "mx1.example.org",
        "policy": "dane",
        "reason": "dane/no-match",
        "reply": "451 4.7.5",
        "stage": "rcpt",
        "recipients": 1,
        "direction": "outbound",
    }


def test_numbers_booleans_and_tuples() -> None:
    event = HostOpened(
        id="a.1",
        domain="d",
        mx="m",
        address="192.0.2.1",
        port=25,
        policy="dane",
        policy_string=("3 1 1 ab", "3 1 1 cd"),
        reused=True,
        seconds=0.12345678,
    )
    pairs = parse_logfmt(render_logfmt(AT, event).decode().rstrip("\n"))
    assert pairs["reused"] == "true"
    assert pairs["seconds"] == "0.123457"
    assert pairs["port"] == "25"
    assert pairs["policy_string"] == "3 1 1 ab; 3 1 1 cd"
    record = json.loads(render_json(AT, event))
    assert record["policy_string"] == ["3 1 1 ab", "3 1 1 cd"]
    assert (record["reused"], record["seconds"], record["port"]) == (True, 0.123457, 25)
    assert "mx_patterns" not in record, "empty fields are left out"


def test_a_zero_that_was_measured_is_shown() -> None:
    event = DnsLookup(qname="q", rdtype="MX", status="secure", seconds=0.0, resolver="r")
    assert b" seconds=0.0 " in render_logfmt(AT, event)


def test_a_field_called_like_a_key_of_every_line_gets_the_events_name() -> None:
    event = StsEvent(event="fetched", domain="example.org")
    assert parse_logfmt(render_logfmt(AT, event).decode().rstrip())["sts_event"] == "fetched"
    record = json.loads(render_json(AT, event))
    assert (record["event"], record["sts_event"]) == ("sts", "fetched")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain/value:1,2", "plain/value:1,2"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("a\nlevel=error", r'"a\nlevel=error"'),
        ("\r\t\x00\x1b\x7f\x85", r'"\r\t\u0000\u001b\u007f\u0085"'),
        ("é", r'"\u00e9"'),
        ("\U0001f600", r'"\ud83d\ude00"'),
        ("\ud800", r'"\ud800"'),
    ],
)
def test_logfmt_quoting(value: str, written: str) -> None:
    assert render_logfmt(AT, violation(value)).decode().rstrip("\n").endswith(f" detail={written}")


@given(st.text(st.characters(), min_size=1, max_size=80))
def test_no_value_forges_a_line_or_a_field(value: str) -> None:
    line = render_logfmt(AT, violation(value)).decode("ascii")
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    pairs = parse_logfmt(line[:-1])
    assert pairs["detail"] == value
    assert list(pairs) == ["ts", "level", "event", "direction", "kind", "session", "peer", "detail"]
    record = render_json(AT, violation(value))
    assert record.count(b"\n") == 1
    assert list(json.loads(record)) == list(pairs)


def test_values_are_bounded() -> None:
    assert len(render_logfmt(AT, violation("x" * 100_000))) < 2200
    assert len(render_json(AT, violation("x" * 100_000))) < 2200


# ---- the sink


def test_sink_writes_in_order_and_close_flushes() -> None:
    stream = io.BytesIO()
    sink = LogSink(LogSettings(), stream, CLOCK)
    for i in range(1000):
        sink.emit(lifecycle(str(i)))
    assert sink.close(10)
    details = re.findall(rb"detail=(\d+)\n", stream.getvalue())
    assert details == [str(i).encode() for i in range(1000)]
    assert sink.dropped == 0
    assert sink.close(10), "a second close is harmless"


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["dns_lookup", "lifecycle", "violation"]),
        ("info", ["lifecycle", "violation"]),
        ("warning", ["violation"]),
        ("error", []),
    ],
)
def test_level_is_the_lowest_severity_written(level: str, events: list[str]) -> None:
    stream = io.BytesIO()
    sink = LogSink(LogSettings(format="json", level=level), stream, CLOCK)  # type: ignore[arg-type]
    sink.emit(DnsLookup(qname="q", rdtype="MX", status="secure", seconds=1.0, resolver="r"))
    sink.emit(lifecycle("x"))
    sink.emit(violation("x"))
    assert sink.close(10)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == events


def test_a_reader_that_stands_still_costs_lines_and_not_time() -> None:
    stream = Pipe()
    sink = LogSink(LogSettings(), stream, CLOCK, queue_lines=10)
    sink.emit(lifecycle("first"))
    assert stream.blocked.wait(10), "the writer holds the first line"
    for i in range(25):
        sink.emit(lifecycle(str(i)))
    assert sink.dropped == 15
    stream.go.set()
    assert sink.close(10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 10 + 1
    assert lines[-1].endswith(b"level=warning event=log_lines_dropped lines=15")


def test_close_waits_no_longer_than_its_deadline() -> None:
    stream = Pipe()
    sink = LogSink(LogSettings(), stream, CLOCK)
    sink.emit(lifecycle("held"))
    assert stream.blocked.wait(10)
    sink.emit(lifecycle("left"))
    assert not sink.close(0.01)
    assert sink.dropped == 1
    stream.go.set()
    sink.emit(lifecycle("late"))
    assert sink.close(10)
    assert sink.dropped == 2, "after close nothing is taken"
    assert b"late" not in stream.getvalue()


class Failing(io.BytesIO):
    """A pipe without a reader, for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = True
        self.failed = threading.Event()

    def write(self, octets: object) -> int:
        if self.broken:
            self.failed.set()
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(octets)  # type: ignore[arg-type]


def test_a_failing_stream_is_survived_and_counted() -> None:
    stream = Failing()
    sink = LogSink(LogSettings(), stream, CLOCK)
    sink.emit(lifecycle("x"))
    assert stream.failed.wait(10)
    stream.broken = False
    sink.emit(lifecycle("y"))
    assert sink.close(10)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith(b"detail=y")
    assert lines[1].endswith(b"lines=1")


def test_a_closed_stream_is_survived() -> None:
    stream = io.BytesIO()
    stream.close()
    sink = LogSink(LogSettings(), stream, CLOCK)
    sink.emit(lifecycle("x"))
    assert sink.close(10)
    assert sink.dropped == 1


@dataclass(frozen=True, slots=True)
class Bad(Event):
    """A field that no renderer knows."""

    field: object = b"\xff"


def test_emit_never_raises_and_a_bad_event_does_not_end_the_log() -> None:
    stream = io.BytesIO()
    sink = LogSink(LogSettings(), stream, CLOCK)
    sink.emit(None)  # type: ignore[arg-type]
    assert sink.dropped == 1
    sink.emit(Bad())
    sink.emit(lifecycle("after"))
    assert sink.close(10)
    assert sink.dropped == 2
    assert b"detail=after" in stream.getvalue()


def test_what_needs_attention_is_told_at_warning() -> None:
    """STS-39: a refresh that fails must be seen in a log that is kept at `warning`."""
    stream = io.BytesIO()
    sink = LogSink(LogSettings(level="warning"), stream, CLOCK)
    sink.emit(StsEvent(event="fetched", domain="a.example"))
    sink.emit(StsAlert(event="refresh_failed", domain="a.example"))
    assert sink.close(5)
    assert stream.getvalue() == (
        b"ts=2026-11-30T10:00:00.123Z level=warning event=sts sts_event=refresh_failed domain=a.example\n"
    )
