"""A year in twelve zones, both changes of clocks included, on a clock that the test moves."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from nimburion.scheduler import Scheduler
from tests.scheduler.conftest import Place, Report
from tests.scheduler.oracle import changes, local_at, skipped

ZONES = (
    "UTC", "Europe/Rome", "Europe/London", "America/New_York", "America/St_Johns",
    "America/Santiago", "Australia/Lord_Howe", "Australia/Sydney", "Africa/Casablanca",
    "Asia/Kolkata", "Africa/Cairo", "Antarctica/Troll",
)  # fmt: skip
BEGIN, END = (
    int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()),
    int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()),
)
HALF_HOURS = range(BEGIN + 1800, END + 1, 1800)


def fixed(zone: str) -> set[int]:
    """`30 2 * * *` by the table: once a day; skipped, right after the gap; twice, at the first."""
    there, seen, ticks = ZoneInfo(zone), set[datetime](), set[int]()
    for instant in HALF_HOURS:
        local = local_at(instant, there)
        if (local.hour, local.minute) == (2, 30) and local not in seen:
            seen.add(local)
            ticks.add(instant)
    for change in changes(zone):
        missing = {(one.hour, one.minute) for one in skipped(change, there)}
        if BEGIN < change.at <= END and (2, 30) in missing:
            ticks.add(change.at)
    return ticks


def real(zone: str) -> set[int]:
    """`*/30 1-3 * * *` by the table: whenever clocks show it."""
    there = ZoneInfo(zone)
    return {instant for instant in HALF_HOURS if 1 <= local_at(instant, there).hour <= 3}


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.timeout(180)
@pytest.mark.parametrize("url", ["memory://"])
async def test_a_year_in_twelve_zones_fires_what_the_table_says(place: Place) -> None:
    await check_ticks_of_a_year(place)


@pytest.mark.deep
@pytest.mark.timeout(1800)
async def test_a_year_in_twelve_zones_fires_the_same_on_every_backend(place: Place) -> None:
    await check_ticks_of_a_year(place)


async def check_ticks_of_a_year(place: Place) -> None:
    """Let a scheduler fire two schedules a zone, and compare the ticks with the table."""

    def declare(one: Scheduler) -> None:
        for zone in ZONES:
            name = zone.replace("/", ".")
            one.schedule("30 2 * * *", Report(), timezone=zone, name=f"fixed.{name}")
            one.schedule("*/30 1-3 * * *", Report(), timezone=zone, name=f"real.{name}")

    scheduler = await place.scheduler(declare)
    await scheduler.fire_due()
    while (due := scheduler.next_due) is not None and due <= END:
        place.clock.advance_to(due)
        await scheduler.fire_due()
    fired = defaultdict[str, set[int]](set)
    for made in await place.jobs():
        name, _, _ = made.id.partition(":")
        assert made.due not in fired[name]
        fired[name].add(int(made.due))
    for zone in ZONES:
        name = zone.replace("/", ".")
        assert fired[f"fixed.{name}"] == fixed(zone), zone
        assert fired[f"real.{name}"] == real(zone), zone
    assert sum(map(len, fired.values())) > 30_000


def test_the_table_has_both_changes() -> None:
    rome = fixed("Europe/Rome")
    spring = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp())
    autumn = int(datetime(2026, 10, 25, 0, 30, tzinfo=UTC).timestamp())
    assert {spring, autumn} <= rome
    assert len(rome) == 365
    assert timedelta(hours=1).total_seconds() + autumn not in rome
