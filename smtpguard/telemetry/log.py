"""How does an event become a line of the log?

Logfmt by our own code (`ts=… level=… event=… key=value`), JSON by msgspec, one line an event.  `emit` only
puts the event into a bounded queue; one thread renders and writes, so a slow reader of the log costs lines,
counted, and never a session's time.  Every octet written is printable ASCII or a line end: no value can
forge a line.
"""

import dataclasses
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import BinaryIO, ClassVar, Literal

import msgspec

from smtpguard.clock import Clock
from smtpguard.events import Event, Severity

LogFormat = Literal["logfmt", "json"]

_RANK = MappingProxyType({"debug": 0, "info": 1, "warning": 2, "error": 3})
_RESERVED = frozenset(("ts", "level", "event"))
_MAX_VALUE = 2000
_LINES_A_WRITE = 4096
_COLLECTED_SECONDS = 0.1

# Written without quotes: what no logfmt parser takes for a delimiter or an escape.
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")
_ESCAPED = re.compile(r"[^ !#-\[\]-~]")

_KEYS: dict[type[Event], tuple[tuple[str, str, object], ...]] = {}

Value = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`level` is the lowest severity written."""

    format: LogFormat = "logfmt"
    level: Severity = "info"


class LogSink:
    """Writes events to `stream`, which must be buffered or write whole lines (such as `sys.stdout.buffer`).

    At most `queue_lines` events wait; further ones are dropped and counted in `dropped`, and the log says
    how many as soon as it moves again.  The stream stays the caller's to close.
    """

    def __init__(self, settings: LogSettings, stream: BinaryIO, clock: Clock, queue_lines: int = 10_000) -> None:
        self._rank = _RANK[settings.level]
        self._renderer = render_json if settings.format == "json" else render_logfmt
        self._stream = stream
        self._clock = clock
        self._queue_lines = queue_lines
        self._queue: SimpleQueue[tuple[datetime, Event] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._dropped = 0
        self._reported = 0  # drops the log has told of; only the writer's
        self._closed = False
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Lines lost so far: the queue was full, the stream failed, or the sink was closed."""
        return self._dropped

    def emit(self, event: Event) -> None:
        """Takes the event; never blocks and never raises."""
        try:
            if _RANK[event.severity] < self._rank:
                return
            # The size is exact enough: a few threads at most emit at once.
            if self._closed or self._queue.qsize() >= self._queue_lines:
                self._count_dropped(1)
                return
            self._queue.put((self._clock.now(), event))
        except Exception:  # noqa: BLE001 - the boundary of a sink: a log line must not end a session
            self._count_dropped(1)

    def close(self, deadline_seconds: float) -> bool:
        """Writes what waits, for at most this long; False where lines were left, which are counted as
        dropped.

        Blocks: for the very end of the process.  A second call waits again.
        """
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._closing.set()
        self._writer.join(deadline_seconds)
        if not self._writer.is_alive():
            return True
        # The thread is a daemon: a reader that never reads cannot keep the process.
        self._count_dropped(max(self._queue.qsize() - 1, 0))
        return False

    def _count_dropped(self, lines: int) -> None:
        with self._lock:
            self._dropped += lines

    def _write(self) -> None:
        """The writer thread: a line after a quiet while at once, then what comes in a tenth of a second together."""
        last = False
        while not last:
            batch = [self._queue.get()]
            try:
                while len(batch) < _LINES_A_WRITE:
                    batch.append(self._queue.get_nowait())
            except Empty:
                pass
            last = batch[-1] is None
            self._write_lines(self._render(batch))
            # One wake-up of this thread for many lines: each takes the interpreter from the sessions.
            self._closing.wait(_COLLECTED_SECONDS)

    def _render(self, batch: list[tuple[datetime, Event] | None]) -> list[bytes]:
        lines = []
        for entry in batch:
            if entry is None:
                continue
            try:
                lines.append(self._renderer(*entry))
            except Exception:  # noqa: BLE001 - the boundary of a sink: one bad event must not end the log
                self._count_dropped(1)
        if (lost := self._dropped - self._reported) > 0:
            self._reported += lost
            lines.append(self._renderer(self._clock.now(), LogLinesDropped(lines=lost)))
        return lines

    def _write_lines(self, lines: list[bytes]) -> None:
        try:
            self._stream.write(b"".join(lines))
            self._stream.flush()
        except (OSError, ValueError):  # the reader is gone, the disk is full, the stream is closed
            self._count_dropped(len(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLinesDropped(Event):
    """The log itself lost lines."""

    name: ClassVar[str] = "log_lines_dropped"
    severity: ClassVar[Severity] = "warning"
    lines: int


def render_logfmt(at: datetime, event: Event) -> bytes:
    """The event as one logfmt line, with its line end.  Empty fields are left out."""
    parts = [f"ts={_timestamp(at)} level={event.severity} event={event.name}"]
    parts += [f"{key}={_logfmt_value(value)}" for key, value in _fields(event)]
    return (" ".join(parts) + "\n").encode("ascii")


def render_json(at: datetime, event: Event) -> bytes:
    """The event as one JSON object on one line.  Empty fields are left out; tuples stay lists."""
    return msgspec.json.encode(json_record(at, event)) + b"\n"


def json_record(at: datetime, event: Event) -> dict[str, object]:
    """What `render_json` writes: bounded printable text, numbers and lists."""
    record: dict[str, object] = {"ts": _timestamp(at), "level": event.severity, "event": event.name}
    record.update((key, _json_value(value)) for key, value in _fields(event))
    return record


def _timestamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(event: Event) -> Iterator[tuple[str, Value]]:
    """The fields that say something: not empty, and not a zero or False that is only the default."""
    for key, name, default in _keys(type(event)):
        value: Value = getattr(event, name)
        if value is None or value == "" or value == () or (not value and value == default):
            continue
        yield key, value


def _keys(kind: type[Event]) -> tuple[tuple[str, str, object], ...]:
    """Key, attribute and default of each field; worked out once a class."""
    if (keys := _KEYS.get(kind)) is None:
        # A field may be called like a key of every line (`sts` events have an `event`).
        keys = _KEYS[kind] = tuple(
            (f"{kind.name}_{field.name}" if field.name in _RESERVED else field.name, field.name, field.default)
            for field in dataclasses.fields(kind)
        )
    return keys


def _logfmt_value(value: Value) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return str(round(value, 6))
        case int():
            return str(value)
        case tuple():
            text = "; ".join(value)
        case str():
            text = value
        case None:
            return ""
    text = _bounded(text)
    return text if _PLAIN.fullmatch(text) else f'"{_ESCAPED.sub(_escape, text)}"'


def _json_value(value: Value) -> object:
    match value:
        case str():
            return _ascii(_bounded(value))
        case tuple():
            return [_ascii(_bounded(item)) for item in value[:100]]
        case float():
            return round(value, 6)
        case _:
            return value


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."


def _ascii(text: str) -> str:
    """Events hold printable ASCII; where one does not, msgspec would still fail on a lone surrogate."""
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode("ascii")


def _escape(match: re.Match[str]) -> str:
    """As in a JSON string: `\\"`, `\\\\`, `\\n`, `\\u00e9`."""
    character = match[0]
    match character:
        case '"' | "\\":
            return "\\" + character
        case "\n":
            return "\\n"
        case "\r":
            return "\\r"
        case "\t":
            return "\\t"
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
