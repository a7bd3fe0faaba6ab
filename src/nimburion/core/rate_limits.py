"""Rates: how many jobs may start in a time. The arithmetic of all backends, and how a rate is
written: `"100/min"`.

The algorithm is GCRA (generic cell rate algorithm). The state of a limit is one time,
`spent_until`: the units that jobs have taken are used up until then, at one unit in each interval.
A job may start while `spent_until` is less than a burst ahead of now. All times are whole
microseconds on the backend's clock.
"""

from __future__ import annotations

import math
import re
from types import MappingProxyType

import msgspec

from nimburion.core.errors import DefinitionError

MAX_AHEAD = 366 * 86_400 * 1_000_000
"""Microseconds: the farthest distance of `spent_until` from now, so that no backend overflows."""
CLOCK_TOLERANCE = 1_000_000
"""Microseconds by which the time of an exchange may be earlier than that of another one before it.

Two transactions of a server may read its clock in another order than they get a lock. Only a larger
difference means that the clock was set back.
"""
MAX_UNITS = 1_000_000
"""The most units of a burst, of the cost of a job, and of one correction."""

_UNITS = MappingProxyType(
    {
        "s": 1.0, "sec": 1.0, "second": 1.0,
        "m": 60.0, "min": 60.0, "minute": 60.0,
        "h": 3_600.0, "hour": 3_600.0,
        "d": 86_400.0, "day": 86_400.0,
    }
)  # fmt: skip
"""Seconds by the name of a unit."""
_RATE = re.compile(r"\s*([0-9][0-9_,]*)\s*/\s*([0-9]+)?\s*([a-z]+)\s*")
_MAX_PER_SECOND = 10_000
"""More jobs a second would make the whole microseconds of an interval inexact by over 1 %."""
_DEFAULT_BURST_SECONDS = 0.1
_MAX_PERIOD = 86_400.0
_MAX_REFILL = 365 * 86_400.0
"""Seconds in which an empty burst is available again, at most."""


class RateLimit(msgspec.Struct, frozen=True):
    """The rate of a limit.

    >>> slow = RateLimit("2/s", interval=500_000, burst=2)
    >>> spent = slow.spend(0, now=10_000_000, units=2)
    >>> slow.count_room(spent, now=10_000_000), slow.find_opening(spent)
    (0, 10500000)
    """

    rate: str
    """The rate for people: `100/min`."""
    interval: int
    """Microseconds in which one unit becomes available."""
    burst: int
    """The most units that can be available at the same time."""
    cost: int = 1
    """The units that one job takes. A job that costs more than a burst needs a full burst."""

    @property
    def needed(self) -> int:
        """The units that must be available when a job starts."""
        return min(self.cost, self.burst)

    @property
    def full_burst(self) -> int:
        """Microseconds in which a full burst becomes available, or one job if that costs more."""
        return max(self.burst, self.cost) * self.interval

    def count_room(self, spent_until: int, now: int) -> int:
        """Return how many jobs may start now."""
        left = (self.burst - self.needed) * self.interval - max(0, spent_until - now)
        return 0 if left < 0 else left // (self.cost * self.interval) + 1

    def find_opening(self, spent_until: int) -> int:
        """Return the time from which the next job may start."""
        return spent_until - (self.burst - self.needed) * self.interval

    def spend(self, spent_until: int, now: int, units: int) -> int:
        """Return the new `spent_until` after a job took `units`, or gave them back if negative."""
        start = max(spent_until, now) if units > 0 else spent_until
        return _clamp(start + units * self.interval, now)

    def refund(self, spent_until: int, now: int, taken_at: int) -> int:
        """Return the new `spent_until` after a job that took its units at `taken_at` gave them
        back.

        The part that has become available again by itself since then is not returned. Otherwise
        more than a burst could start at once.
        """
        refund = max(0, self.cost * self.interval - max(0, now - taken_at))
        return _clamp(spent_until - refund, now)

    def block(self, spent_until: int, now: int, delay: int) -> int:
        """Return the new `spent_until` if no job may start for `delay` microseconds.

        After that, jobs start one interval apart: no burst follows.
        """
        opening = now + delay + (self.burst - self.needed) * self.interval
        return _clamp(max(spent_until, opening), now)

    def carry_over(self, old: RateLimit, spent_until: int, now: int) -> int:
        """Return the new `spent_until` when this rate replaces an old one.

        Units that jobs took under the old rate delay the next job by at most a full burst of the
        new one. A time that is further ahead than they explain is that of a refusal, and stays.
        """
        if spent_until > now + old.burst * old.interval:
            return spent_until
        return min(spent_until, now + self.burst * self.interval)


def follow_clock(spent_until: int, now: int, before: int, full_burst: int) -> int:
    """Return the new `spent_until` after the clock was set back from `before` to `now`.

    What was left to wait at `before` is left again: units that jobs took, or the delay of a
    refusal. If that is less than a full burst, it may become one, so that a step of the clock
    brings no second burst.
    """
    return min(spent_until, now + max(full_burst, spent_until - before))


def _clamp(spent_until: int, now: int) -> int:
    return min(max(spent_until, now - MAX_AHEAD), now + MAX_AHEAD)


def parse_rate(rate: str | None, burst: int | None = None, cost: int = 1) -> RateLimit | None:
    """Return the rate limit of these options; None without a rate.

    `DefinitionError` names the option with a wrong value. The default burst is what the rate allows
    in 0.1 s, at least 1, so that a fast rate does not depend on timers of a millisecond.

    >>> parse_rate("100/min", burst=10)
    RateLimit(rate='100/min', interval=600000, burst=10, cost=1)
    """
    cost = _parse_units("cost", cost)
    if rate is None:
        if burst is not None or cost != 1:
            raise DefinitionError('burst and cost need a `rate`, like rate="100/min"')
        return None
    count, period = _parse_text(rate)
    interval = math.ceil(period * 1_000_000 / count)
    default = max(1, int(count / period * _DEFAULT_BURST_SECONDS))
    burst = default if burst is None else _parse_units("burst", burst)
    if burst * interval > _MAX_REFILL * 1_000_000:
        raise DefinitionError(f"burst {burst} is more than the rate {rate!r} allows in a year")
    return RateLimit(rate.strip(), interval, burst, cost)


def _parse_text(rate: object) -> tuple[int, float]:
    """Return the number of units and the seconds of a rate."""
    found = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    count = int(re.sub("[_,]", "", found[1])) if found else 0
    unit = _UNITS.get(found[3]) if found else None
    if not found or not count or unit is None:
        raise DefinitionError(
            "rate must be a number of jobs and a time, like '100/min', '5/s' or '1000/2h', not "
            f"{rate!r}"
        )
    period = int(found[2] or 1) * unit
    if not 0 < period <= _MAX_PERIOD:
        raise DefinitionError(f"the time of a rate is at most one day, not {rate!r}")
    if count / period > _MAX_PER_SECOND:
        raise DefinitionError(f"a rate is at most {_MAX_PER_SECOND:,} a second, not {rate!r}")
    return count, period


def _parse_units(what: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_UNITS:
        return value
    raise DefinitionError(f"{what} must be a whole number from 1 to {MAX_UNITS:,}, not {value!r}")
