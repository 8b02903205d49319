"""The labs, clean after each test; the first of them once for all interop tests."""

from collections.abc import Iterator

import pytest

from tests.interop.inbound_lab import InboundLab, open_inbound_lab
from tests.interop.lab import Lab, open_lab
from tests.interop.pod import Pod, open_pod
from tests.interop.processes import Postfix


@pytest.fixture(scope="session")
def opened_lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened


@pytest.fixture
def lab(opened_lab: Lab) -> Iterator[Lab]:
    """The lab; however the test ends, the next one finds it without mail and with smtpguard running."""
    try:
        yield opened_lab
    finally:
        opened_lab.clean()


@pytest.fixture(params=["lmtp", "smtp"])
def sender(lab: Lab, request: pytest.FixtureRequest) -> Postfix:
    """The sending Postfix, by each protocol."""
    return lab.senders[request.param]


@pytest.fixture(scope="module")  # it ends in the network in which it began: the other lab's
def opened_inbound_lab() -> Iterator[InboundLab]:
    with open_inbound_lab() as opened:
        yield opened


@pytest.fixture
def inbound(opened_inbound_lab: InboundLab) -> Iterator[InboundLab]:
    """The inbound lab, with smtpguard running whatever the test before did."""
    try:
        yield opened_inbound_lab
    finally:
        opened_inbound_lab.smtpguard.ensure()


@pytest.fixture(scope="module")
def opened_pod() -> Iterator[Pod]:
    with open_pod() as opened:
        yield opened


@pytest.fixture
def pod(opened_pod: Pod) -> Iterator[Pod]:
    """The pod; however the test ends, the next one finds it without mail and smtpguard without memory."""
    try:
        yield opened_pod
    finally:
        opened_pod.clean()
