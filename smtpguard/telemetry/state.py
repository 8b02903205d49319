"""What is so at the moment of a scrape?  The gauges that are read, since no event tells their end.

A certificate that a reload took away, a listener that got another name: counted from events they would stay for ever.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from smtpguard.inbound.service import Inbound
from smtpguard.mtasts.parse import Mode
from smtpguard.reasons import printable
from smtpguard.telemetry.families import CANARY_VERDICTS, DNSSEC_STATES, MTA_STATES, Family

_MAX_CERTIFICATES = 500
_MAX_LISTENERS = 100
_MAX_TEXT = 200

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServedCertificate:
    """One pair of one listener; `name` is the first DNS name."""

    listener: str
    file: str
    name: str
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """`mta_states`, `self_check_problems`: by listener.  `sts_policies`: how many are cached, by mode."""

    ready: bool = False
    restart_needed: bool = False
    log_lines_dropped: int = 0
    dnssec: str = "off"
    canary_verdict: str = "none"
    sts_policies: Mapping[Mode, int] = field(default_factory=dict)
    sts_refresh_failing: int = 0
    pool_connections: int = 0
    mta_states: Mapping[str, str] = field(default_factory=dict)
    certificates: tuple[ServedCertificate, ...] = ()
    self_check_problems: Mapping[str, int] = field(default_factory=dict)


def with_inbound(state: State, inbounds: Iterable[Inbound]) -> State:
    """`state` and what the inbound listeners show."""
    inbounds = tuple(inbounds)
    return replace(
        state,
        mta_states={inbound.listener.name: inbound.watch.state for inbound in inbounds},
        certificates=tuple(
            ServedCertificate(
                inbound.listener.name,
                str(certificate.files.certificate),
                certificate.names[0] if certificate.names else "",
                certificate.not_after,
            )
            for inbound in inbounds
            if inbound.certificates is not None
            for certificate in inbound.certificates.certificates
        ),
        self_check_problems={
            inbound.listener.name: len(inbound.tlsa_problems)
            for inbound in inbounds
            if inbound.tlsa_problems is not None
        },
    )


READ_FAMILIES = frozenset((
    Family.READY, Family.CONFIG_RESTART_NEEDED, Family.POOL_CONNECTIONS, Family.DNSSEC_STATE, Family.CANARY_VERDICT,
    Family.STS_POLICIES, Family.STS_REFRESH_FAILING, Family.MTA_STATE, Family.CERTIFICATE_NOT_AFTER,
    Family.DANE_SELF_CHECK_PROBLEMS, Family.LOG_LINES_DROPPED,
))  # fmt: skip
"""The metrics that are read here, not counted."""


class StateCollector(Collector):
    """Reads the state once for each scrape."""

    def __init__(self, read: Callable[[], State]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Every state there can be has its series, so that an alert on one sees it come and go."""
        state = self._read()
        yield _gauge(Family.READY, {(): state.ready})
        yield _gauge(Family.CONFIG_RESTART_NEEDED, {(): state.restart_needed})
        yield _gauge(Family.POOL_CONNECTIONS, {(): state.pool_connections})
        yield _gauge(Family.DNSSEC_STATE, {(one,): one == state.dnssec for one in DNSSEC_STATES})
        yield _gauge(Family.CANARY_VERDICT, {(one,): one == state.canary_verdict for one in CANARY_VERDICTS})
        yield _gauge(Family.STS_POLICIES, {(mode.value,): state.sts_policies.get(mode, 0) for mode in Mode})
        yield _gauge(Family.STS_REFRESH_FAILING, {(): state.sts_refresh_failing})
        mtas = _first(state.mta_states)
        yield _gauge(
            Family.MTA_STATE, {(listener, one): one == found for listener, found in mtas.items() for one in MTA_STATES}
        )
        yield _gauge(Family.CERTIFICATE_NOT_AFTER, _ends(state.certificates))
        problems = _first(state.self_check_problems)
        yield _gauge(Family.DANE_SELF_CHECK_PROBLEMS, {(listener,): count for listener, count in problems.items()})
        dropped = Family.LOG_LINES_DROPPED
        yield CounterMetricFamily(dropped.metric, dropped.text, value=state.log_lines_dropped)


def _gauge(family: Family, series: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(family.metric, family.text, labels=[label.name for label in family.labels])
    for words, value in series.items():
        gauge.add_metric(words, float(value))
    return gauge


def _ends(certificates: tuple[ServedCertificate, ...]) -> dict[tuple[str, ...], float]:
    """Those that end first, since that is what is watched."""
    ends: dict[tuple[str, ...], float] = {}
    for one in sorted(certificates, key=lambda one: one.not_after)[:_MAX_CERTIFICATES]:
        words = tuple(printable(word, _MAX_TEXT) for word in (one.listener, one.file, one.name or "none"))
        ends.setdefault(words, one.not_after.timestamp())
    return ends


def _first(by_listener: Mapping[str, _T]) -> dict[str, _T]:
    return {printable(name, _MAX_TEXT): value for name, value in list(by_listener.items())[:_MAX_LISTENERS]}
