"""inbound.clientname: the name of an address that leads back to it (RFC 1912 §2.1)."""

from ipaddress import ip_address

import pytest

from smtpguard.dns.records import Answer, FailureKind, Lookup, RdType, Security
from smtpguard.inbound.clientname import find_client_name
from smtpguard.names import Domain
from smtpguard.smtp.forwarded import NameMissing
from tests.support.zone import Node, Zone

FOUR, PTR4 = ip_address("192.0.2.1"), "1.2.0.192.in-addr.arpa"
SIX = ip_address("2001:db8::1")
PTR6 = SIX.reverse_pointer
UNAVAILABLE, TEMPORARY = NameMissing.UNAVAILABLE, NameMissing.TEMPORARY
HOST, OTHER = Domain("out.a.example"), Domain("other.a.example")


@pytest.mark.parametrize(
    ("nodes", "name", "reverse"),
    [
        ({PTR4: Node(ptr=[HOST]), HOST: Node(a=["192.0.2.9", "192.0.2.1"])}, HOST, HOST),
        ({}, UNAVAILABLE, UNAVAILABLE),
        ({PTR4: Node()}, UNAVAILABLE, UNAVAILABLE),
        ({PTR4: Node(ptr=[HOST])}, UNAVAILABLE, HOST),
        ({PTR4: Node(ptr=[HOST]), HOST: Node(a=["192.0.2.9"])}, UNAVAILABLE, HOST),
        ({PTR4: Node(ptr=[HOST]), HOST: Node(aaaa=["2001:db8::1"])}, UNAVAILABLE, HOST),
        ({PTR4: Node(fail=FailureKind.SERVFAIL)}, TEMPORARY, TEMPORARY),
        ({PTR4: Node(ptr=[HOST]), HOST: Node(fail=FailureKind.TIMEOUT)}, TEMPORARY, HOST),
        (
            {PTR4: Node(ptr=[OTHER, HOST]), OTHER: Node(a=["192.0.2.9"]), HOST: Node(a=["192.0.2.1"])}, HOST, HOST
        ),
        (
            {PTR4: Node(ptr=[OTHER, HOST]), OTHER: Node(fail=FailureKind.SERVFAIL), HOST: Node(a=["192.0.2.1"])},
            HOST, HOST,
        ),
        (
            {PTR4: Node(ptr=[OTHER, HOST]), OTHER: Node(fail=FailureKind.SERVFAIL), HOST: Node(a=["192.0.2.9"])},
            TEMPORARY, OTHER,
        ),
        ({PTR4: Node(cname="1.0-127.2.0.192.in-addr.arpa"), "1.0-127.2.0.192.in-addr.arpa": Node(ptr=[HOST]),
          HOST: Node(a=["192.0.2.1"])}, HOST, HOST),  # RFC 2317
    ],
)  # fmt: skip
async def test_confirmed_or_not(
    nodes: dict[str, Node], name: Domain | NameMissing, reverse: Domain | NameMissing
) -> None:
    """PXY-10: a name only where it leads back; "there is none" is not "could not be asked"."""
    assert await find_client_name(Zone(nodes), FOUR) == (name, reverse)


async def test_ipv6() -> None:
    zone = Zone({PTR6: Node(ptr=[HOST]), HOST: Node(a=["192.0.2.1"], aaaa=["2001:db8::1"])})
    assert await find_client_name(zone, SIX) == (HOST, HOST)
    assert zone.asked == [(PTR6, RdType.PTR), (HOST, RdType.AAAA)]


async def test_three_names_at_most() -> None:
    """Whoever owns the reverse zone could make us ask for any number."""
    names = [f"n{number}.a.example" for number in range(10)]
    zone = Zone({PTR4: Node(ptr=names), **{name: Node(a=["192.0.2.9"]) for name in names}})
    assert await find_client_name(zone, FOUR) == (UNAVAILABLE, Domain("n0.a.example"))
    assert zone.asked_for(RdType.A) == names[:3]


class Odd(Zone):
    """Answers PTR with what is no host name."""

    def _answer(self, name: Domain, rdtype: RdType) -> Lookup:
        records = tuple(map(Domain, ("bad name.example", "x" * 300, "")))
        return Answer(name, rdtype, records, Security.INSECURE, name, nxdomain=False, expires=60.0)


async def test_what_is_no_host_name_is_no_name() -> None:
    """PXY-11: nothing that cannot be a name reaches XCLIENT or a trace line."""
    assert await find_client_name(Odd({}), FOUR) == (UNAVAILABLE, UNAVAILABLE)
