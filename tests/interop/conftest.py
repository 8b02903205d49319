"""The lab, once for all interop tests."""

from collections.abc import Iterator

import pytest

from tests.interop.lab import Lab, open_lab


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened
