"""The images, built once for all tests that run them."""

from collections.abc import Iterator

import pytest

from tests.deploy.containers import Engine, Image, open_engine
from tests.interop.namespace import own_network


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with open_engine() as opened:
        opened.import_base()
        yield opened


@pytest.fixture(scope="session")
def image(engine: Engine) -> Image:
    return engine.build("localhost/smtpguard:test", "--build-arg=REVISION=0123abc")


@pytest.fixture(scope="session")
def unbound_image(engine: Engine) -> Image:
    return engine.build("localhost/smtpguard-unbound:test", file="deploy/unbound/Dockerfile")


@pytest.fixture(scope="session")
def interception_image(engine: Engine) -> Image:
    return engine.build("localhost/smtpguard-interception:test", "--target=interception")


@pytest.fixture(scope="session")
def mta_image(engine: Engine) -> Image:
    return engine.build("localhost/smtpguard-mta:test", "--layers", file="deploy/compose/mta/Dockerfile")


@pytest.fixture(scope="session")
def pod_images(engine: Engine, image: Image, unbound_image: Image, interception_image: Image, mta_image: Image) -> None:
    """All that the pods are made of."""
    engine.build(
        "localhost/smtpguard-mta-unaware:test", "--layers", "--target=unaware", file="deploy/compose/mta/Dockerfile"
    )


@pytest.fixture
def network() -> Iterator[None]:
    """A network namespace of the test's own: its ports are free, and nothing leaves it."""
    with own_network():
        yield
