"""Cron expressions: what they mean, against another library; what is refused, and how."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from random import Random
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim, CronSimError
from hypothesis import given, settings
from hypothesis import strategies as st

from nimburion.core.errors import DefinitionError
from nimburion.scheduler.cron import MACROS, CronExpression
from nimburion.scheduler.triggers import Timetable, explain_trigger, parse_trigger

UTC_ZONE = ZoneInfo("UTC")
MONDAY = datetime(2026, 6, 1, 12, 30)  # noqa: DTZ001 (on the wall)


def term(least: int, most: int) -> st.SearchStrategy[str]:
    """A term of a field that is right."""
    numbers = st.integers(least, most)
    steps = st.integers(1, most - least)
    spans = (
        st.tuples(numbers, numbers)
        .filter(lambda pair: pair[0] != pair[1])  # the other one reads 3-3/2 as 3/2
        .map(lambda pair: f"{min(pair)}-{max(pair)}")
    )
    return st.one_of(
        st.just("*"),
        numbers.map(str),
        spans,
        st.tuples(st.one_of(st.just("*"), spans), steps).map(lambda two: f"{two[0]}/{two[1]}"),
    )


def field(least: int, most: int, *special: str) -> st.SearchStrategy[str]:
    """One to three terms."""
    one = st.one_of(term(least, most), st.sampled_from(special)) if special else term(least, most)
    return st.lists(one, min_size=1, max_size=3).map(",".join)


expressions = st.tuples(
    field(0, 59),
    field(0, 23),
    field(1, 31, "L", "LW"),
    field(1, 12, "JAN", "DEC"),
    field(0, 6, "SUN", "1#2", "5L", "7"),
).map(" ".join)
times = st.datetimes(MONDAY - timedelta(days=12_000), MONDAY + timedelta(days=20_000))


@settings(deadline=None, max_examples=300)
@given(expressions, times)
def test_the_next_tick_is_that_of_another_library(text: str, local: datetime) -> None:
    try:
        other = CronSim(text, local)
    except CronSimError:
        with pytest.raises(DefinitionError):
            CronExpression(text)
        return
    try:
        ours = CronExpression(text)
    except DefinitionError:
        with pytest.raises(StopIteration):
            next(other)
        return
    for _ in range(3):
        found = ours.next_after(local)
        assert found == next(other)
        assert found is not None
        local = found


@settings(deadline=None, max_examples=500)
@given(st.text(alphabet="0123456789*/,-#L?W @JANMONevery", max_size=40))
def test_any_text_is_an_expression_or_an_error_of_ours(text: str) -> None:
    try:
        trigger = parse_trigger(text, UTC_ZONE)
    except DefinitionError:
        return
    tick = trigger.next_after(1_750_000_000)
    assert tick is None or tick > 1_750_000_000
    assert explain_trigger(trigger)


@pytest.mark.deep
@pytest.mark.timeout(7200)
def test_no_text_of_a_million_hangs() -> None:
    """Without Hypothesis, which would take an hour."""
    random, slowest = Random(20260501), 0.0
    for _ in range(1_000_000):
        text = any_text(random)
        began = time.process_time()
        with suppress(DefinitionError):
            parse_trigger(text, UTC_ZONE).next_after(1_750_000_000)
        slowest = max(slowest, time.process_time() - began)
    assert slowest < 1.0


def any_text(random: Random) -> str:
    """Fields that may be right, letters of expressions, or anything."""
    kind = random.randrange(4)
    if kind == 0:
        return "".join(chr(random.randrange(0x11000)) for _ in range(random.randrange(60)))
    if kind == 1:
        return "".join(random.choices("0123456789*/,-#LW @everydaily", k=random.randrange(80)))
    pieces = ("*", "*/7", "0", "1-5", "59", "L", "LW", "5L", "1#2", "MON", "JAN-MAR", "31", "99")
    fields = (",".join(random.choices(pieces, k=random.randint(1, 3))) for _ in range(5))
    return " ".join(fields) + ("" if kind == 2 else random.choice((" ", "\n", "\x00", " *")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 0 L * *", "2026-06-30 00:00"),
        ("0 0 LW 5 *", "2027-05-31 00:00"),
        ("0 0 LW 8 *", "2026-08-31 00:00"),
        ("0 0 LW 2 *", "2027-02-26 00:00"),
        ("0 9 * * 5L", "2026-06-26 09:00"),
        ("0 9 * * FRIL", "2026-06-26 09:00"),
        ("0 9 * * 1#2", "2026-06-08 09:00"),
        ("0 9 * * mon#5", "2026-06-29 09:00"),
        ("0 9 * * FRI-SUN", "2026-06-05 09:00"),
        ("0 9 * jan-mar 7", "2027-01-03 09:00"),
        ("0 0 29 2 *", "2028-02-29 00:00"),
        ("0 0 * 2 1#5", "2044-02-29 00:00"),
        ("0 0 13 * FRI", "2026-06-05 00:00"),
        ("0 0 */13 * FRI", "2026-08-14 00:00"),
        ("5/20 12 * * *", "2026-06-01 12:45"),
        ("@hourly", "2026-06-01 13:00"),
        ("@daily", "2026-06-02 00:00"),
        ("@midnight", "2026-06-02 00:00"),
        ("@weekly", "2026-06-07 00:00"),
        ("@monthly", "2026-07-01 00:00"),
        ("@YEARLY", "2027-01-01 00:00"),
        ("@annually", "2027-01-01 00:00"),
        ("  0   9 * * *  ", "2026-06-02 09:00"),
    ],
)
def test_the_first_tick_after_a_monday(text: str, expected: str) -> None:
    assert f"{CronExpression(text).next_after(MONDAY):%Y-%m-%d %H:%M}" == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 25 * * *", "field 2 (hour), column 3, '25': '25' is not one of 0-23"),
        ("61 * * * *", "field 1 (minute), column 1, '61': '61' is not one of 0-59"),
        ("0 0 0 * *", "field 3 (day of month), column 5, '0': '0' is not one of 1-31"),
        ("0 0 * JUNE *", "field 4 (month), column 7, 'JUNE': 'JUNE' is not one of 1-12, JAN-DEC"),
        ("0 0 * * 8", "field 5 (day of week), column 9, '8': '8' is not one of 0-7, SUN-SAT"),
        (
            "0 22-2 * * *",
            "field 2 (hour), column 3, '22-2': the range is reversed; write 22-23,0-2",
        ),
        ("*/0 * * * *", "the step after / must be 1 to 59, not '0'"),
        ("*/60 * * * *", "the step after / must be 1 to 59, not '60'"),
        ("0 0 ? * *", "for any value write *"),
        ("0 0 * * L", "5L is the last Friday"),
        ("0 0 * * 1#6", "'1#6': must be a day, # and 1 to 5"),
        ("0 0 15W * *", "field 3 (day of month), column 5, '15W'"),
        (
            "0 0 30 2 *",
            "field 3 (day of month), column 5, '30': no month of the expression has such a day",
        ),
        ("0 0 31 4,6,9,11 *", "no month of the expression has such a day"),
        ("0 0 */20 2 1#3", ""),
        ("* * * * * *", "6 fields; libraries disagree"),
        ("0 0 * * * * 2030", "7 fields; libraries disagree"),
        ("* * * *", "4 fields instead of five"),
        ("every 5m", "month day-of-week; did you mean @every 5m?"),
        ("Daily", "; did you mean @daily?"),
        ("", "0 fields instead of five"),
        ("@reboot", "@reboot is not supported"),
        ("@fortnightly", "known macros: @yearly"),
        ("0" * 300, "more than 256 characters"),
        ("0 0 \u0663 * *", "field 3 (day of month), column 5, '\\u0663'"),
        ("1,,2 * * * *", "field 1 (minute), column 3, '': '' is not one of 0-59"),
        ("  1,20,61  * * * *", "field 1 (minute), column 8, '61'"),
        ("0\x00 * * * *", "field 1 (minute), column 1, '0\\x00'"),
        ("0\t0\n* * 9", "field 5 (day of week), column 9, '9'"),
    ],
)
def test_what_is_refused_points_at_the_field(text: str, problem: str) -> None:
    if not problem:
        return
    with pytest.raises(DefinitionError, match=re.escape(problem)):
        CronExpression(text)


@pytest.mark.parametrize("wrong", [None, 5, b"* * * * *"])
def test_what_is_no_text_is_refused(wrong: object) -> None:
    with pytest.raises(DefinitionError, match="a schedule takes a cron expression"):
        parse_trigger(wrong, UTC_ZONE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("@every 5m", "@every 5m"),
        ("@every 10s", "@every 10s"),
        ("@every 90m", "@every 1h30m"),
        ("@EVERY 1d", "@every 1d"),
        (timedelta(seconds=90), "@every 1m30s"),
        ("@at 2030-01-31T09:00+01:00", "@at 2030-01-31T09:00:00+01:00"),
        (datetime(2030, 1, 31, 9, tzinfo=UTC), "@at 2030-01-31T09:00:00+00:00"),
        (" 0 2 * * * ", "0 2 * * *"),
    ],
)
def test_the_text_of_a_trigger_means_the_same(
    source: str | timedelta | datetime, text: str
) -> None:
    trigger = parse_trigger(source, UTC_ZONE)
    assert trigger.text == text
    assert parse_trigger(trigger.text, UTC_ZONE).next_after(0) == trigger.next_after(0)


@pytest.mark.parametrize(
    "wrong",
    ["@every", "@every 0s", "@every 1.5s", "@every -5m", "@every 5", "@every 400d", "@at soon",
     "@at 2030-01-31T09:00", timedelta(seconds=1.5), timedelta(0), MONDAY],
)  # fmt: skip
def test_what_is_no_interval_or_time_is_refused(wrong: str | timedelta | datetime) -> None:
    with pytest.raises(DefinitionError):
        parse_trigger(wrong, UTC_ZONE)


def test_every_scheduler_counts_an_interval_the_same() -> None:
    trigger = parse_trigger("@every 5m", UTC_ZONE)
    assert [trigger.next_after(instant) for instant in (1000, 1199, 1200)] == [1200, 1200, 1500]


def test_a_timetable_begins_and_ends() -> None:
    table = Timetable(parse_trigger("@every 10s", UTC_ZONE), start=100, end=130)
    assert list(table.iterate_between(0, 1000)) == [100, 110, 120]
    assert table.find_latest(0, 1000) == 120
    assert table.find_latest(120, 1000) is None


@pytest.mark.parametrize("text", ["* * * * *", "0 2 * * *", "0 0 1 1 *", "0 0 29 2 *"])
def test_the_latest_tick_is_the_last_of_all(text: str) -> None:
    table = Timetable(parse_trigger(text, ZoneInfo("Europe/Rome")))
    until = datetime(2026, 6, 1, tzinfo=UTC).timestamp() + 0.5
    since = until - (5000 if text.startswith("*") else 5 * 366 * 86_400)
    assert table.find_latest(since, until) == list(table.iterate_between(since, until))[-1]


@pytest.mark.parametrize("macro", MACROS)
def test_macros_are_explained(macro: str) -> None:
    assert explain_trigger(parse_trigger(macro, UTC_ZONE)).endswith("(time zone UTC)")
