"""Do the names and addresses we send from vouch for each other?  (RFC 5321 §4.1.4; forward-confirmed reverse DNS)

Many hosts refuse or distrust a client whose address has no PTR record that leads back to it, or whose EHLO name does
not exist.  A start-up check only: what is wrong is told, nothing is stopped.
"""

from smtpguard.dns.records import Answer, LookupFailed, RdType
from smtpguard.dns.resolver import Lookups
from smtpguard.names import Domain, IpAddress
from smtpguard.outbound.settings import OutboundListener


async def identity_problems(lookups: Lookups, listener: OutboundListener) -> list[str]:
    """What receiving hosts may hold against this listener's EHLO name and source addresses, one line each.

    A look-up that fails proves nothing and is not told.  Without source addresses only the name can be looked at.
    """
    problems = []
    if await _addresses_of(lookups, listener.ehlo) == set():
        problems.append(f"the EHLO name {listener.ehlo} has no address")
    for source in (listener.source_ipv4, listener.source_ipv6):
        if source is not None and source.is_global:
            problems += await _reverse_problems(lookups, source)
    return problems


async def _reverse_problems(lookups: Lookups, source: IpAddress) -> list[str]:
    answer = await lookups.lookup(Domain(source.reverse_pointer), RdType.PTR)
    if isinstance(answer, LookupFailed):
        return []
    names = [record for record in answer.records if isinstance(record, str)]
    if not names:
        return [f"the source address {source} has no PTR record"]
    for name in names[:5]:
        addresses = await _addresses_of(lookups, Domain(name))
        if addresses is None or source in addresses:
            return []
    return [f"the source address {source} is called {names[0]}, which does not lead back to it"]


async def _addresses_of(lookups: Lookups, name: Domain) -> set[object] | None:
    """All addresses, perhaps none; None where a look-up failed and nothing can be concluded."""
    found: set[object] = set()
    failed = False
    for rdtype in (RdType.A, RdType.AAAA):
        answer = await lookups.lookup(name, rdtype)
        if isinstance(answer, Answer):
            found.update(answer.records)
        else:
            failed = True
    return None if failed and not found else found
