"""From times on the wall to instants, and what happens when clocks are changed.

The rule is that of Debian's cron. An expression that names times of day (neither minute nor hour
begins with `*`) runs once for each: a time that clocks skip runs right after the gap, one that
they show twice runs at the first. Any other follows real time: what clocks skip is not there,
what they show twice comes twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from nimburion.scheduler.cron import Expression

_REACH = 25 * 3600
"""Clocks were never set back by more than a day (and a date line crossed)."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 (of times on the wall)
_SECOND = timedelta(seconds=1)


def instant_after(expression: Expression, zone: ZoneInfo, after: int) -> int | None:
    """The first epoch second after `after` at which the expression comes true there."""
    now = datetime.fromtimestamp(after, zone)
    local = expression.after(now.replace(tzinfo=None))
    if local is None:
        return None
    offset = _offset(now)
    instant = (local - _LOCAL_EPOCH - offset) // _SECOND
    if instant - after <= _REACH:
        then = datetime.fromtimestamp(instant, zone)
        if not then.fold and then.utcoffset() == offset:
            return instant  # clocks are not changed in between
    return _by_the_rule(expression, zone, after, now)


def _by_the_rule(expression: Expression, zone: ZoneInfo, after: int, now: datetime) -> int | None:
    local: datetime | None = _start(zone, after, now)
    best: int | None = None
    while local is not None and (local := expression.after(local)) is not None:
        first, second = _instant(local, zone, 0), _instant(local, zone, 1)
        for instant in _candidates(expression, zone, first, second):
            if instant > after and (best is None or instant < best):
                best = instant
        if best is not None and min(first, second) >= best:
            break
    return best


def _start(zone: ZoneInfo, after: int, now: datetime) -> datetime:
    """What clocks show now; less, where they are about to show some times again."""
    soon = datetime.fromtimestamp(after + _REACH, zone)
    back = _offset(now) - _offset(soon)
    local = now.replace(tzinfo=None)
    return local - back if back > timedelta(0) else local


def _offset(moment: datetime) -> timedelta:
    return moment.utcoffset() or timedelta(0)


def _instant(local: datetime, zone: ZoneInfo, fold: int) -> int:
    """The second at which clocks show this, taking the offset before (0) or after (1) a change."""
    return (local.replace(tzinfo=zone, fold=fold) - _EPOCH) // _SECOND


def _candidates(expression: Expression, zone: ZoneInfo, first: int, second: int) -> tuple[int, ...]:
    if first == second:
        return (first,)
    if first < second:  # shown twice
        return (first,) if expression.fixed else (first, second)
    return (_change(zone, second, first),) if expression.fixed else ()  # skipped


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """The second at which clocks jump, in (low, high]."""
    before = _offset(datetime.fromtimestamp(low, zone))
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(datetime.fromtimestamp(middle, zone)) == before:
            low = middle
        else:
            high = middle
    return high
