import tomllib

import pytest

from smtpguard.sandbox.demo import CASES, Case, Ports, Result, Row, configuration, table
from smtpguard.sandbox.internet import Attack, Publication, Site, start


async def test_the_configuration_is_toml_and_points_into_the_sandbox(nursery, tmp_path):
    net = await start(nursery, tmp_path, [])
    read = tomllib.loads(configuration(net, Ports(1, 2, 3), tmp_path))
    assert read["outbound"]["port"] == net.mx_port
    assert read["dns"]["resolvers"] == [f"127.0.0.1:{net.name_server.port}"]
    assert read["mtasts"]["port"] == net.policy_port
    assert [one["protocol"] for one in read["listener"]] == ["smtp", "lmtp"]


REFUSED = Result(False, False, False, "451 4.7.5 no")
DELIVERED = Result(True, True, False, "250 ok")
READ = Result(True, False, True, "250 ok")


@pytest.mark.parametrize(
    ("delivers", "by_smtp", "by_lmtp", "good"),
    [
        (True, DELIVERED, DELIVERED, True),
        (True, DELIVERED, REFUSED, False),
        (False, REFUSED, REFUSED, True),
        (False, REFUSED, READ, False),
        (False, DELIVERED, REFUSED, False),
    ],
)
def test_a_row_is_good_only_if_both_ways_are(delivers, by_smtp, by_lmtp, good):
    case = Case(Site("x.example", Publication.DANE_EE, Attack.STRIP_STARTTLS), delivers)
    row = Row(case, READ, by_smtp, by_lmtp)
    assert row.is_as_expected is good
    assert f"{int(good)} of 1 rows as expected" in table([row])
    assert "read by the attacker" in table([row])


def test_every_case_is_its_own_domain():
    """Caches and pools of one row cannot help another."""
    assert len({case.site.domain for case in CASES}) == len(CASES)
