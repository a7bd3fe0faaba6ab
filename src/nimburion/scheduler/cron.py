"""Evaluate cron expressions on a calendar without time zones.

`timezones` handles clock changes such as daylight saving time.
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_right
from datetime import datetime
from types import MappingProxyType

from nimburion.core.errors import DefinitionError
from nimburion.scheduler.cron_fields import KINDS, LAST, CronField, FieldText, parse_field

LONGEST = 256
_WORD = re.compile(r"\S+")
MACROS = MappingProxyType(
    {
        "@yearly": "0 0 1 1 *",
        "@annually": "0 0 1 1 *",
        "@monthly": "0 0 1 * *",
        "@weekly": "0 0 * * 0",
        "@daily": "0 0 * * *",
        "@midnight": "0 0 * * *",
        "@hourly": "0 * * * *",
    }
)

_MONTHS_AHEAD = 12 * 41
"""Months to search ahead. A leap day on a given weekday recurs within 40 years, even across
2100."""
_EVERY_CALENDAR = range(2000, 2028)
"""28 years in which January 1 falls on each weekday, in leap years and in common years."""


class CronExpression:
    """Five fields (minute, hour, day of month, month, day of week) or a macro such as `@daily`.

    As in Debian's cron, a day must match both day fields if one of them begins with `*`.
    Otherwise it must match at least one of them. Raises `DefinitionError` for invalid text and for
    days that do not exist, such as February 30.

    >>> CronExpression("30 9 * * MON-FRI").next_after(datetime(2026, 5, 1, 9, 30))
    datetime.datetime(2026, 5, 4, 9, 30)
    """

    def __init__(self, text: str) -> None:
        self.text: str = text
        self.fields: tuple[CronField, ...] = _parse_fields(text)
        minute, hour, self._day, month, self._weekday = self.fields
        self._minutes, self._hours, self._months = minute.numbers, hour.numbers, month.numbers
        self.fixed: bool = not (minute.starred or hour.starred)
        """Whether the expression names times of day; otherwise it follows elapsed time."""
        self._both = self._day.starred or self._weekday.starred
        self._layouts: dict[tuple[int, int], tuple[int, ...]] = {}
        if not any(
            self._list_days(year, month) for year in _EVERY_CALENDAR for month in self._months
        ):
            problem = self._day.source.make_error("no month of the expression has such a day")
            raise DefinitionError(f"cron expression {text!a}: {problem}")

    def next_after(self, local: datetime) -> datetime | None:
        """Return the first match after `local`; None if there is none before the year 10000.
        Both times are without a time zone."""
        day = local.day
        if local.month in self._months and day in self._list_days(local.year, local.month):
            hour, minute = local.hour, local.minute
            place = bisect_right(self._minutes, minute)
            if place < len(self._minutes) and hour in self._hours:
                return datetime(local.year, local.month, day, hour, self._minutes[place])  # noqa: DTZ001
            place = bisect_right(self._hours, hour)
            if place < len(self._hours):
                hour = self._hours[place]
                return datetime(local.year, local.month, day, hour, self._minutes[0])  # noqa: DTZ001
        return self._find_later_day(local.year, local.month, day)

    def _find_later_day(self, year: int, month: int, day: int) -> datetime | None:
        first = 12 * year + month - 1
        for count in range(first, min(first + _MONTHS_AHEAD, 12 * 10_000)):
            year, month = count // 12, count % 12 + 1
            if month in self._months:
                days = self._list_days(year, month)
                place = bisect_right(days, day if count == first else 0)
                if place < len(days):
                    day = days[place]
                    return datetime(year, month, day, self._hours[0], self._minutes[0])  # noqa: DTZ001
        return None

    def _list_days(self, year: int, month: int) -> tuple[int, ...]:
        """Return the matching days of a month in ascending order. Cached: there are only 28
        month layouts."""
        layout = calendar.monthrange(year, month)
        days = self._layouts.get(layout)
        if days is None:
            days = tuple(day for day in range(1, layout[1] + 1) if self._matches_day(day, *layout))
            self._layouts[layout] = days
        return days

    def _matches_day(self, day: int, first_weekday: int, length: int) -> bool:
        weekday = (first_weekday + day) % 7  # days count from 1; Sunday is 0
        in_month = self._matches_day_of_month(day, weekday, length)
        in_week = (
            weekday in self._weekday.numbers
            or (weekday, (day + 6) // 7) in self._weekday.nth
            or (day + 7 > length and (weekday, LAST) in self._weekday.nth)
        )
        return in_month and in_week if self._both else in_month or in_week

    def _matches_day_of_month(self, day: int, weekday: int, length: int) -> bool:
        if day in self._day.numbers or (self._day.last_day and day == length):
            return True
        if not self._day.last_workday:
            return False
        workday = 1 <= weekday <= 5
        ends_the_week = weekday == 5 and length - day < 3
        return workday and (day == length or ends_the_week)


def _parse_fields(text: str) -> tuple[CronField, ...]:
    if not isinstance(text, str):
        raise DefinitionError(f"a cron expression is a text like '0 2 * * *', not {text!r}")
    if len(text) > LONGEST:
        raise DefinitionError(f"a cron expression of more than {LONGEST} characters")
    shown = ascii(text)
    expanded = _expand_macro(text.strip(), shown) if text.lstrip().startswith("@") else text
    fields = list(_WORD.finditer(expanded))
    if len(fields) != len(KINDS):
        hint = _suggest_macro(expanded)
        raise DefinitionError(f"cron expression {shown}: {_explain_field_count(len(fields))}{hint}")
    try:
        return tuple(
            parse_field(FieldText(kind, term[0].upper(), term.start() + 1))
            for kind, term in zip(KINDS, fields, strict=True)
        )
    except DefinitionError as error:
        raise DefinitionError(f"cron expression {shown}: {error}") from None


def _suggest_macro(expanded: str) -> str:
    """Return a suggestion if the text is a macro without its `@`, else an empty string."""
    word = expanded.strip().lower()
    forgotten = f"@{word}" in MACROS or word.startswith("every ")
    return f"; did you mean @{word[:30]}?" if forgotten else ""


def _expand_macro(word: str, shown: str) -> str:
    found = MACROS.get(word.lower())
    if found is not None:
        return found
    if word.lower() == "@reboot":
        problem = "@reboot is not supported; enqueue the job when your application starts"
    else:
        problem = f"known macros: {', '.join(MACROS)}, and @every 5m"
    raise DefinitionError(f"cron expression {shown}: {problem}")


def _explain_field_count(count: int) -> str:
    if count in {6, 7}:
        return (
            f"{count} fields; libraries disagree about the order of seconds and years, so five are "
            "read (minute hour day-of-month month day-of-week); for seconds write @every 10s"
        )
    return f"{count} fields instead of five: minute hour day-of-month month day-of-week"
