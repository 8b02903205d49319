"""SMTP-26: what others may hold against the name and address mail leaves from."""

import pytest

from smtpguard.dns.records import FailureKind
from smtpguard.names import Domain, parse_address
from smtpguard.outbound.identity import identity_problems
from smtpguard.outbound.settings import OutboundListener
from tests.support.zone import Node, Zone

NAME = "mail.example.org"
SOURCE = "93.184.216.34"
PTR = "34.216.184.93.in-addr.arpa"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ({NAME: Node(a=[SOURCE]), PTR: Node(ptr=[NAME])}, []),
        ({NAME: Node(), PTR: Node(ptr=[NAME])}, ["has no address", "does not lead back"]),
        ({NAME: Node(a=[SOURCE]), PTR: Node()}, ["has no PTR record"]),
        ({NAME: Node(a=[SOURCE]), PTR: Node(ptr=["x.example"]), "x.example": Node(a=["192.0.2.9"])}, ["lead back"]),
        ({NAME: Node(fail=FailureKind.TIMEOUT), PTR: Node(fail=FailureKind.TIMEOUT)}, []),
    ],
    ids=["good", "no address", "no PTR", "elsewhere", "nothing known"],
)
async def test_identity(nodes: dict[str, Node], expected: list[str]) -> None:
    listener = OutboundListener("x", (), "lmtp", Domain(NAME), source_ipv4=parse_address(SOURCE))
    problems = await identity_problems(Zone(nodes), listener)
    assert len(problems) == len(expected)
    assert all(part in problem for part, problem in zip(expected, problems, strict=True))
