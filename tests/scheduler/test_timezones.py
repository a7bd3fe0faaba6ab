"""Ticks around every change of clocks, against the oracle; and the rule, case by case."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest

from nimburion.core.errors import DefinitionError
from nimburion.core.timing.timezones import find_zone
from nimburion.scheduler.triggers import Timetable, parse_trigger
from tests.scheduler.oracle import AROUND, EXPRESSIONS, Change, changes, ticks_around

ROME = "Europe/Rome"
ODD = (
    ROME, "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "America/Caracas",
    "Asia/Pyongyang", "Antarctica/Casey", "Pacific/Norfolk", "Asia/Gaza", "Pacific/Apia",
    "Africa/Casablanca", "Antarctica/Troll", "America/Santiago", "Asia/Tehran", "Africa/Cairo",
)  # fmt: skip
"""Shifts of half an hour, of two and three, off the hour, at midnight, over a whole day."""
USUAL = (ROME, "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia", "Antarctica/Troll")
"""One of each kind. `dev.py wide` checks the others."""


def ticks(expression: str, zone: str, first: datetime, last: datetime) -> list[str]:
    """The ticks in (first, last], on the clocks of the zone."""
    there = ZoneInfo(zone)
    table = Timetable(parse_trigger(expression, there))
    return [
        f"{datetime.fromtimestamp(tick, there):%d %H:%M %Z}"
        for tick in table.iterate_between(first.timestamp(), last.timestamp())
    ]


def what_differs(change: Change, expressions: Sequence[str]) -> dict[str, tuple[object, object]]:
    """Where our ticks are not those of the oracle."""
    first, last = change.at - AROUND * 60 - 1, change.at + AROUND * 60
    wrong: dict[str, tuple[object, object]] = {}
    for expression in expressions:
        ours = list(
            Timetable(parse_trigger(expression, ZoneInfo(change.zone))).iterate_between(first, last)
        )
        wanted = ticks_around(expression, change)
        if ours != wanted:
            wrong[expression] = ours, wanted
    return wrong


@pytest.mark.parametrize(
    "zone",
    [zone if zone in USUAL else pytest.param(zone, marks=pytest.mark.wide) for zone in ODD],
)
def test_ticks_around_changes_are_those_of_the_oracle(zone: str) -> None:
    """A sample: in each zone the first change, and the last two."""
    all_of_it = list(changes(zone))
    assert all_of_it
    for change in {all_of_it[0], *all_of_it[-2:]}:
        assert what_differs(change, EXPRESSIONS[1:]) == {}, change


@pytest.mark.deep
@pytest.mark.timeout(7200)
def test_ticks_around_every_change_of_every_zone() -> None:
    known: set[int | tuple[int, ...]] = set()
    looked_at = 0
    for zone in sorted(available_timezones()):
        of_zone = list(changes(zone))
        alike = tuple(change.at for change in of_zone)
        if alike in known and zone not in ODD:  # another name for a zone seen before
            continue
        known.add(alike)
        for change in of_zone:
            assert what_differs(change, EXPRESSIONS) == {}, change
            looked_at += 1
    assert looked_at > 1_500


BEFORE_SPRING, AFTER_SPRING = (
    datetime(2026, 3, 28, 12, tzinfo=UTC),
    datetime(2026, 3, 29, 12, tzinfo=UTC),
)
BEFORE_AUTUMN, AFTER_AUTUMN = (
    datetime(2026, 10, 24, 12, tzinfo=UTC),
    datetime(2026, 10, 25, 12, tzinfo=UTC),
)


def test_a_time_that_is_skipped_runs_once_right_after_the_gap() -> None:
    assert ticks("30 2 * * *", ROME, BEFORE_SPRING, AFTER_SPRING) == ["29 03:00 CEST"]


def test_two_skipped_times_and_the_one_after_them_are_one_tick() -> None:
    found = ticks("0,30 2,3 * * *", ROME, BEFORE_SPRING, AFTER_SPRING)
    assert found == ["29 03:00 CEST", "29 03:30 CEST"]


def test_a_time_that_comes_twice_runs_at_the_first() -> None:
    assert ticks("30 2 * * *", ROME, BEFORE_AUTUMN, AFTER_AUTUMN) == ["25 02:30 CEST"]


def test_a_star_follows_real_time() -> None:
    found = ticks("30 * * * *", ROME, datetime(2026, 10, 24, 23, tzinfo=UTC), BEFORE_AUTUMN)
    assert found == []
    night = datetime(2026, 10, 24, 23, 45, tzinfo=UTC), datetime(2026, 10, 25, 2, tzinfo=UTC)
    assert ticks("30 * * * *", ROME, *night) == ["25 02:30 CEST", "25 02:30 CET"]


def test_a_skipped_day_runs_once() -> None:
    """Samoa had no 30 December 2011."""
    days = datetime(2011, 12, 29, 12, tzinfo=UTC), datetime(2011, 12, 31, 12, tzinfo=UTC)
    assert ticks("0 9 30 12 *", "Pacific/Apia", *days) == ["31 00:00 +14"]


def test_the_half_hour_of_lord_howe() -> None:
    night = datetime(2026, 4, 4, 14, tzinfo=UTC), datetime(2026, 4, 4, 16, tzinfo=UTC)
    found = ticks("*/10 1,2 * * *", "Australia/Lord_Howe", *night)
    assert found[-4:] == ["05 02:00 +1030", "05 02:10 +1030", "05 02:20 +1030", "05 02:30 +1030"]
    assert found.count("05 01:40 +11") == found.count("05 01:40 +1030") == 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Europe/Roma", "'Europe/Rome'"),
        ("CEST", "an abbreviation is ambiguous; did you mean 'Europe/Berlin'?"),
        ("IST", "an abbreviation is ambiguous; write one like 'Europe/Rome'"),
        ("", "'UTC'"),
        ("../etc/passwd", "time zone"),
        ("Europe", ""),
    ],
)
def test_an_unknown_zone_names_a_near_one(name: str, hint: str) -> None:
    with pytest.raises(DefinitionError, match="there is no time zone") as caught:
        find_zone(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Apia", "America/St_Johns"])
def test_there_is_no_tick_at_the_end_of_the_last_year(zone: str) -> None:
    trigger = parse_trigger("*/5 * * * *", ZoneInfo(zone))
    start = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())
    assert Timetable(trigger, start).next_after(0) is None
    assert Timetable(trigger, start - 3 * 86_400).next_after(0) == start + 1 - 3 * 86_400
