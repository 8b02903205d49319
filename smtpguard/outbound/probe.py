"""What would a delivery to this domain meet right now?  A live look at every mail host, with no mail.

The same look-ups, verdicts and `open_host` as delivery; the connection ends with QUIT right after the handshake, and no
code path here can write MAIL.
"""

from dataclasses import asdict, dataclass

import trio

from smtpguard.names import Domain, IpAddress
from smtpguard.outbound.gather import Gathering, Plan
from smtpguard.outbound.host import Candidate, HostFailed, Opened
from smtpguard.outbound.routes import NextHop
from smtpguard.outbound.settings import Outbound, OutboundListener
from smtpguard.outbound.walk import Services
from smtpguard.policy.engine import auth_label
from smtpguard.policy.model import Await, TryNextMx
from smtpguard.reasons import Reason, printable

PROBE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class HostReport:
    """One address of one mail host.  `reason` and `detail` are empty where it would get the mail."""

    host: str
    address: str
    policy: str
    would: str
    auth: str = ""
    tls: str = ""
    cipher: str = ""
    group: str = ""
    reason: str = ""
    detail: str = ""
    observed: tuple[str, ...] = ()
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DomainReport:
    """All hosts of one domain, in the order a delivery would try them."""

    domain: str
    next_hop: str
    verdict: str
    hosts: tuple[HostReport, ...]
    reason: str = ""
    detail: str = ""

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


async def probe(
    domain: Domain | IpAddress, services: Services, settings: Outbound, listener: OutboundListener
) -> DomainReport:
    """Look at every host of `domain`, each to its own end; at most PROBE_SECONDS."""
    next_hop = settings.routes.next_hop(domain)
    gathering = Gathering(
        next_hop,
        settings.rules.find(next_hop.key),
        lookups=services.lookups,
        sts=services.sts,
        clock=services.clock,
        family=listener.family,
        random=services.random,
        digests=settings.tlsa_digests,
    )
    reports: list[HostReport] = []
    with trio.move_on_after(PROBE_SECONDS) as scope:
        async with trio.open_nursery() as nursery:
            gathering.start(nursery)
            if next_hop.address is not None:
                literal = gathering.literal(next_hop.address)
                reports += await _host(f"[{next_hop.address}]", literal, services, settings, listener, next_hop)
            else:
                hosts = await gathering.hosts()
                if isinstance(hosts, Reason):
                    nursery.cancel_scope.cancel()
                    return _none(str(domain), next_hop.key, hosts)
                for host in hosts:
                    plan = await gathering.plan(host)
                    reports += await _host(host.name, plan, services, settings, listener, next_hop)
            nursery.cancel_scope.cancel()
    first = next((report for report in reports if report.would == "deliver"), None)
    verdict = "deliver" if first is not None else "refuse"
    last = reports[-1] if reports else None
    if scope.cancelled_caught:
        return DomainReport(str(domain), next_hop.key, "timeout", tuple(reports), "host/budget", "")
    return DomainReport(
        str(domain),
        next_hop.key,
        verdict,
        tuple(reports),
        "" if first else (last.reason if last else ""),
        "" if first else (last.detail if last else ""),
    )


def _none(domain: str, next_hop: str, reason: Reason) -> DomainReport:
    return DomainReport(domain, next_hop, "refuse", (), reason.code.token, printable(reason.detail or reason.code.text))


async def _host(
    name: str,
    plan: Plan | TryNextMx | Await,
    services: Services,
    settings: Outbound,
    listener: OutboundListener,
    next_hop: NextHop,
) -> list[HostReport]:
    assert not isinstance(plan, Await)
    if isinstance(plan, TryNextMx):
        reason = plan.reasons[-1]
        return [_refused(name, "", reason.code.token.partition("/")[0], reason)]
    reports = []
    for address in plan.addresses[: settings.max_addresses]:
        source = listener.source(address)
        candidate = Candidate(name, address, next_hop.port, source, listener.ehlo, next_hop.routed)
        opened = await services.hosts.open_host(candidate, plan.requirement, last=True, remember=False)
        if isinstance(opened, HostFailed):
            reports.append(_refused(name, str(address), plan.requirement.policy, opened.reasons[-1]))
        else:
            opened.link.quit()
            reports.append(_delivered(name, str(address), plan, opened))
    return reports


def _refused(host: str, address: str, policy: str, reason: Reason) -> HostReport:
    detail = printable(f"{reason.code.text}; {reason.detail}" if reason.detail else reason.code.text, 300)
    return HostReport(host, address, policy, "refuse", reason=reason.code.token, detail=detail)


def _delivered(host: str, address: str, plan: Plan, opened: Opened) -> HostReport:
    outcome = opened.outcome
    return HostReport(
        host,
        address,
        plan.requirement.policy,
        "deliver",
        auth=auth_label(plan.requirement, opened.decision) if outcome.encrypted else "clear",
        tls=outcome.version.value if outcome.version else "",
        cipher=outcome.cipher,
        group=outcome.group,
        observed=tuple(
            f"{kind}: {'holds' if not reasons else reasons[-1].code.token}"
            for kind, reasons in opened.decision.observed
        ),
        why=tuple(
            printable(f"{reason.code.text} ({reason.subject})" if reason.subject else reason.code.text)
            for reason in plan.requirement.reasons
        ),
    )
