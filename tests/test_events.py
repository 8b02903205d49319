"""events: the keys of the log are one language: a word means one thing, and says its unit."""

import dataclasses
from typing import get_type_hints

from smtpguard import events
from smtpguard.events import Event, InternalError, TlsFacts
from smtpguard.telemetry.log import LogLinesDropped

CATALOGUE = [
    kind
    for kind in (*vars(events).values(), LogLinesDropped)
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in (Event, TlsFacts)
]
COUNTS = {"port", "recipients", "octets", "transactions", "lines"}
"""The numbers there are: each is a count of what it is called, or a port."""


def test_a_key_has_one_type() -> None:
    types: dict[str, set[object]] = {}
    for kind in CATALOGUE:
        for field in dataclasses.fields(kind):
            hint = get_type_hints(kind)[field.name]
            base = hint if hint in (int, float, bool) or "tuple" in str(hint) else str
            types.setdefault(field.name, set()).add(base)
    assert {name: found for name, found in types.items() if len(found) > 1} == {}


def test_numbers_say_their_unit() -> None:
    for kind in CATALOGUE:
        for field in dataclasses.fields(kind):
            hint = get_type_hints(kind)[field.name]
            if hint is float:
                assert field.name.endswith("seconds"), (kind, field.name)
            elif hint is int:
                assert field.name in COUNTS, (kind, field.name)


def test_a_line_has_one_name_and_an_alert_only_a_higher_level() -> None:
    """`event=` names a kind; what needs somebody's attention is a subclass that differs in nothing but its level."""
    ranks = ("debug", "info", "warning", "error")
    first: dict[str, type[Event]] = {}
    for kind in CATALOGUE:
        known = first.setdefault(kind.name, kind)
        if known is not kind:
            assert issubclass(kind, known)
            assert [f.name for f in dataclasses.fields(kind)] == [f.name for f in dataclasses.fields(known)]
            assert ranks.index(kind.severity) > ranks.index(known.severity)
    assert all(kind.__doc__ for kind in CATALOGUE)


def test_a_bug_is_told_with_its_place() -> None:
    """Of a group the first, since nurseries wrap; what the bug says is escaped and bounded."""

    def broken() -> None:
        raise ValueError("from the network: \r\n" + "x" * 5000)

    try:
        broken()
    except ValueError as error:
        group = ExceptionGroup("of a nursery", [ExceptionGroup("of another", [error]), TypeError("second")])
    told = InternalError.of("walk", group, "s.1")
    assert (told.where, told.session) == ("walk", "s.1")
    assert told.error.startswith("ValueError: from the network: ??xxx")
    assert len(told.error) < 1000
    assert " at test_events.py:" in told.error
    here = InternalError.of("walk", _raised(KeyError("k")))
    assert here.error.startswith("KeyError: 'k' at test_events.py:")
    assert InternalError.of("walk", KeyError("never raised")).error == "KeyError: 'never raised'"


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except KeyError as caught:
        return caught
