"""CONFORMANCE §D2: a clock that is two years off, either way (AF-33)."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from smtpguard.sandbox.internet import Publication, Site
from tests.support.rig import Calendar, open_rig
from tests.support.told import (
    MX,
    D,
    opened,
    outcome,
    skipped,
    sts,
)

# The sandbox's certificates hold from 2020-01-01 to 2049-12-31, 00:00.
AHEAD = (datetime(2048, 6, 1, tzinfo=UTC), datetime(2050, 6, 1, tzinfo=UTC))
SOON_AHEAD = (datetime(2049, 12, 30, 12, tzinfo=UTC), datetime(2049, 12, 31, 6, tzinfo=UTC))
BEHIND = (datetime(2021, 6, 1, tzinfo=UTC), datetime(2019, 6, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("times", "invalid"),
    [(AHEAD, "X509_V_ERR_CERT_HAS_EXPIRED"), (BEHIND, "X509_V_ERR_CERT_NOT_YET_VALID")],
    ids=["ahead", "behind"],
)
@pytest.mark.parametrize(("publishes", "token"), [(Publication.DANE_EE, ""), (Publication.DANE_TA, "dane/expired")])
async def test_wrong_clock_and_dane(
    tmp_path: Path, publishes: Publication, token: str, times: tuple[datetime, datetime], invalid: str
) -> None:
    """AF-33, OUT-12, RM-03: two years off, either way; usage 3 knows no dates, usage 2 does.  The idle connection of
    a better time is judged anew, and a clock set right ends it."""
    calendar = Calendar(times[0])
    async with open_rig(tmp_path, [Site(D, publishes)], clock=calendar.clock) as rig:
        assert await outcome(rig) == "delivered"
        calendar.now = times[1]
        result = await outcome(rig)
        if not token:
            assert result == "delivered"
            return
        assert f"451 4.7.5 [{token}] {MX}" in result
        assert skipped(rig) == [(MX, token, "tlsa", "certificate-expired", invalid)]
        calendar.now = times[0]
        assert await outcome(rig) == "delivered"


@pytest.mark.parametrize(
    ("times", "invalid"),
    [(SOON_AHEAD, "X509_V_ERR_CERT_HAS_EXPIRED"), (BEHIND, "X509_V_ERR_CERT_NOT_YET_VALID")],
    ids=["ahead within max_age", "behind"],
)
async def test_wrong_clock_and_sts(tmp_path: Path, times: tuple[datetime, datetime], invalid: str) -> None:
    """AF-33, OUT-17, RM-03: the cached policy holds, the certificate does not."""
    calendar = Calendar(times[0])
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)], clock=calendar.clock) as rig:
        assert await outcome(rig) == "delivered"
        calendar.now = times[1]
        assert f"451 4.7.5 [sts/expired] {MX}" in await outcome(rig)
        assert skipped(rig) == [(MX, "sts/expired", "sts", "certificate-expired", invalid)]
        assert sts(rig) == [("fetched", "", "")]
        calendar.now = times[0]
        assert await outcome(rig) == "delivered"


async def test_clock_ahead_of_the_policy(tmp_path: Path) -> None:
    """AF-33, STS-15, STS-40: beyond max_age the policy is gone, and cannot be fetched with such a clock: that is the
    reported exception, and the level is the default one."""
    calendar = Calendar(AHEAD[0])
    async with open_rig(tmp_path, [Site(D, Publication.STS_ENFORCE)], clock=calendar.clock) as rig:
        assert await outcome(rig) == "delivered"
        calendar.now = AHEAD[1]
        assert await outcome(rig) == "delivered"
        assert opened(rig)[1][1:] == ("may", "no-policy-found", "")
        assert sts(rig) == [
            ("fetched", "", ""),
            ("expired", "", ""),
            ("webpki", "sts-webpki-invalid", "X509_V_ERR_CERT_HAS_EXPIRED"),
        ]
