"""What do the slices say?  Medians, spreads and ratios of CPU time per message, as a table; arithmetic only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

AIMS: Mapping[str, Mapping[str, float]] = {
    "new": {"nginx": 1.4, "postfix": 0.65},
    "kept": {"nginx": 3.0, "postfix": 0.3},
    "bulk": {"nginx": 2.5, "postfix": 0.45},
}
"""At most so many times the other's CPU time per message."""
IDLE_AIM_KIB = 26.0


@dataclass(frozen=True, slots=True)
class Slice:
    """One peer under one load for a moment."""

    cpu_ms: float
    """Per message, all processes of the peer."""
    messages_per_second: float
    p50_ms: float
    p99_ms: float
    messages: int
    errors: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Idle:
    """One peer holding sessions."""

    held: int
    kib_per_session: float
    answered: int
    live_per_second: float
    live_p99_ms: float
    errors: int
    error: str = ""


def ratios(ours: Sequence[Slice], theirs: Sequence[Slice]) -> list[float]:
    """Round by round: neighbours in time share the machine's mood."""
    return [one.cpu_ms / other.cpu_ms for one, other in zip(ours, theirs, strict=False) if other.cpu_ms > 0]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Minimum, median, maximum."""
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def case_table(case: str, description: str, slices: Mapping[str, Sequence[Slice]]) -> list[str]:
    """One case: a line for each peer, then the ratios and the aims."""
    lines = [
        f"{case}: {description}",
        f"  {'':26} {'CPU-ms/message min / median / max':>36} {'msg/s':>8} {'p50 ms':>8} {'p99 ms':>8}",
    ]
    for peer, found in slices.items():
        if not found:
            lines.append(f"  {peer:26} {'no valid slice':>36}")
            continue
        cost = spread([one.cpu_ms for one in found])
        lines.append(
            f"  {peer:26} {cost:>36} {median(one.messages_per_second for one in found):8.0f}"
            f" {median(one.p50_ms for one in found):8.2f} {median(one.p99_ms for one in found):8.2f}"
        )
        wrong = sum(one.errors for one in found)
        if wrong:
            lines.append(
                f"    {wrong} errors in {sum(one.messages for one in found)} messages: "
                f"{next((one.error for one in found if one.error), '?')}"
            )
    for ours, other in _pairs(list(slices)):
        pairs = ratios(slices[ours], slices[other])
        if not pairs:
            continue
        line = f"  {ours + ' / ' + other:38} {spread(pairs, 2):>22}"
        aim = AIMS.get(case, {}).get(other) if ours == "smtpguard" else None
        if aim is not None:
            line += f"   aim <= {aim:g}: {'reached' if median(pairs) <= aim else 'NOT reached'}"
        lines.append(line)
    return lines


def idle_table(found: Mapping[str, Idle]) -> list[str]:
    """Memory of held TLS sessions, and what was served beside them."""
    lines = ["idle: held TLS sessions (greeting, STARTTLS, EHLO), live traffic beside them, then a NOOP on each"]
    lines.append(f"  {'':26} {'held':>7} {'KiB/session':>12} {'answered':>9} {'live msg/s':>11} {'p99 ms':>8}")
    for peer, one in found.items():
        line = f"  {peer:26} {one.held:7} {one.kib_per_session:12.1f} {one.answered:9}"
        line += f" {one.live_per_second:11.0f} {one.live_p99_ms:8.2f}"
        if peer.startswith("smtpguard"):
            line += f"   aim <= {IDLE_AIM_KIB:g}: {'reached' if one.kib_per_session <= IDLE_AIM_KIB else 'NOT reached'}"
        lines.append(line)
        if one.errors or one.error:
            lines.append(f"    {one.errors} errors: {one.error}")
    return lines


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Who is compared with whom: smtpguard with every stranger, a tree with its baseline."""
    strangers = [name for name in names if name in {"nginx", "postfix"}]
    found = [("smtpguard", name) for name in strangers if "smtpguard" in names]
    return found + [(name, f"{name}-baseline") for name in names if f"{name}-baseline" in names]
