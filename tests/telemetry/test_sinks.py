"""Log lines, metrics and history are rendered from the same events, and no value can forge a line."""

import io
import json
from contextlib import closing
from pathlib import Path

from smtpguard.clock import SYSTEM_CLOCK
from smtpguard.events import Delivered, DeliveryRefused, HostSkipped, Violation
from smtpguard.mtasts.store import Store
from smtpguard.telemetry.history import History
from smtpguard.telemetry.log import LogSettings, LogSink
from smtpguard.telemetry.metrics import Metrics

REFUSED = DeliveryRefused(
    id="s1.1", domain="a.example", mx="mx.a.example", reason="dane/no-match", reply='451 4.7.5 "x"\ny', stage="rcpt"
)


def logged(settings: LogSettings, *events: object) -> list[str]:
    stream = io.BytesIO()
    sink = LogSink(settings, stream, SYSTEM_CLOCK)
    for event in events:
        sink.emit(event)  # type: ignore[arg-type]
    assert sink.close(5)
    return stream.getvalue().decode("ascii").splitlines()


def test_logfmt_line() -> None:
    (line,) = logged(LogSettings(), REFUSED)
    assert " level=warning event=delivery_refused id=s1.1 domain=a.example mx=mx.a.example " in line
    assert "reason=dane/no-match" in line
    assert r'reply="451 4.7.5 \"x\"' in line


def test_json_line_and_level() -> None:
    quiet = Violation(direction="outbound", kind="nul", session="s", peer="p")
    skipped = HostSkipped(id="s1.1", domain="a", mx="m", address="", port=25, policy="dane")
    lines = logged(LogSettings("json", "warning"), REFUSED, skipped, quiet)
    decoded = [json.loads(line) for line in lines]
    assert [one["event"] for one in decoded] == ["delivery_refused", "violation"]
    assert decoded[0]["reply"] == '451 4.7.5 "x"\ny'


def test_metrics_are_bounded() -> None:
    """A hostile word becomes `other`, never a label of its own."""
    metrics = Metrics(SYSTEM_CLOCK, "1")
    metrics.emit(REFUSED)
    for number in range(100):
        metrics.emit(Violation(direction="outbound", kind=f"kind-{number}-{'x' * 100}", session="s", peer="p"))
    content_type, body = metrics.render("")
    text = body.decode()
    assert content_type.startswith("text/plain")
    assert 'smtpguard_refusals_total{direction="outbound",reason="dane/no-match"} 1.0' in text
    assert text.count("smtpguard_violations_total{") < 100


def test_history_survives_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "history.db"
    store = Store.open(database, lambda event: None)
    history = History(store, SYSTEM_CLOCK, capacity=2)
    for number in range(3):
        history.emit(
            Delivered(
                id=f"s.{number}", domain=f"d{number}.example", mx="m", address="192.0.2.1", port=25, policy="dane",
                auth="dane", tls_version="1.3", cipher="c", group="g", recipients=1, octets=1, seconds=0.1, reply="250",
            )
        )  # fmt: skip
    store.close()
    with closing(Store.open(database, lambda event: None)) as reopened:
        again = History(reopened, SYSTEM_CLOCK, capacity=2)
        assert [decision.id for decision in again.recent(10)] in (["s.2", "s.1"], ["s.1", "s.2"])
        assert [decision.id for decision in again.find("d2.example")] == ["s.2"]
        assert again.find("s.0") == []
