"""Convert local times to instants across clock changes.

The rule is that of Debian's cron. An expression is fixed when neither minute nor hour begins with
`*`. A fixed expression runs once for each local time. A skipped time runs right after the gap; a
repeated time runs at its first occurrence. Any other expression follows elapsed time: skipped times
do not run, and repeated times run twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from nimburion.scheduler.cron import CronExpression

_MAX_OFFSET_CHANGE = 25 * 3600
"""No clock change has exceeded one day (a move across the date line)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (of times on the wall)
_SECOND = timedelta(seconds=1)
_LAST = (datetime(9999, 12, 29, tzinfo=UTC) - _EPOCH) // _SECOND
"""Python has no local times after the year 9999, and two days are needed to find a tick."""


def find_next_instant(expression: CronExpression, zone: ZoneInfo, after: int) -> int | None:
    """Return the first epoch second after `after` at which the expression matches in `zone`;
    None if there is none before 9999-12-29."""
    if after >= _LAST:
        return None
    now = datetime.fromtimestamp(after, zone)
    local = expression.next_after(now.replace(tzinfo=None))
    if local is None:
        return None
    offset = _read_offset(now)
    instant = (local - _LOCAL_EPOCH - offset) // _SECOND
    if instant - after <= _MAX_OFFSET_CHANGE:
        then = datetime.fromtimestamp(instant, zone)
        if not then.fold and then.utcoffset() == offset:
            return instant  # no clock change in between
    return _find_by_wall_clock(expression, zone, after, now)


def _find_by_wall_clock(
    expression: CronExpression, zone: ZoneInfo, after: int, now: datetime
) -> int | None:
    local: datetime | None = _find_start(zone, after, now)
    best: int | None = None
    while local is not None and (local := expression.next_after(local)) is not None:
        first, second = _to_instant(local, zone, 0), _to_instant(local, zone, 1)
        for instant in _list_candidates(expression, zone, first, second):
            if instant > after and (best is None or instant < best):
                best = instant
        if best is not None and min(first, second) >= best:
            break
    return best


def _find_start(zone: ZoneInfo, after: int, now: datetime) -> datetime:
    """Return the local time of `now`, minus the length of a repetition that is about to begin."""
    soon = datetime.fromtimestamp(after + _MAX_OFFSET_CHANGE, zone)
    back = _read_offset(now) - _read_offset(soon)
    local = now.replace(tzinfo=None)
    return local - back if back > timedelta(0) else local


def _read_offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta(0)


def _to_instant(local: datetime, zone: ZoneInfo, fold: int) -> int:
    """Return the epoch second of a local time, with the offset before (0) or after (1) a change."""
    return (local.replace(tzinfo=zone, fold=fold) - _EPOCH) // _SECOND


def _list_candidates(
    expression: CronExpression, zone: ZoneInfo, first: int, second: int
) -> tuple[int, ...]:
    if first == second:
        return (first,)
    if first < second:  # repeated
        return (first,) if expression.fixed else (first, second)
    return (_find_change(zone, second, first),) if expression.fixed else ()  # skipped


def _find_change(zone: ZoneInfo, low: int, high: int) -> int:
    """Return the epoch second of the clock change in (low, high]."""
    before = _read_offset(datetime.fromtimestamp(low, zone))
    while high - low > 1:
        middle = (low + high) // 2
        if _read_offset(datetime.fromtimestamp(middle, zone)) == before:
            low = middle
        else:
            high = middle
    return high
