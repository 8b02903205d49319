"""The companion resolver: read-only, without capabilities, on loopback alone, and smtpguard's image asks it."""

import re

import pytest
import trio

from tests.deploy.containers import HARDENED, Engine, Image
from tests.deploy.test_image import healthy


def test_it_has_no_shell(unbound_image: Image) -> None:
    with unbound_image.mounted() as root:
        assert not {"sh", "bash", "dash"} & {path.name for path in (root / "usr/bin").iterdir()}
    size = unbound_image.config["Size"] / 1e6
    print(f"\nsize of the resolver's image: {size:.0f} MB")
    assert size < 60


@pytest.mark.usefixtures("network")
def test_smtpguard_asks_it(unbound_image: Image, image: Image, engine: Engine) -> None:
    """Validation is on; without an Internet what it answers is SERVFAIL, which is an answer all the same."""

    async def story() -> None:
        with engine.container(unbound_image.name, *HARDENED) as unbound:
            await healthy(unbound)
            said = engine.podman("exec", unbound.id, "/usr/sbin/unbound-control", "get_option", "module-config")
            assert said == "validator iterator"
            with engine.container(image.name, *HARDENED, "--env=SMTPGUARD_HOSTNAME=mail.example.org") as smtpguard:
                await healthy(smtpguard)
                with trio.fail_after(30):
                    while asked(engine, unbound.id) == 0:
                        await trio.sleep(0.1)
            unbound.kill("TERM")
            assert unbound.wait() == 0

    trio.run(story)


def asked(engine: Engine, container: str) -> int:
    said = engine.podman("exec", container, "/usr/sbin/unbound-control", "stats_noreset")
    (queries,) = re.findall(r"^total\.num\.queries=(\d+)$", said, re.MULTILINE)
    return int(queries)
