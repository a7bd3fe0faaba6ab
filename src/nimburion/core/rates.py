"""Parse the rate of a declaration: `"100/min"`, with its burst and the cost of a job."""

from __future__ import annotations

import math
import re
from types import MappingProxyType

from nimburion.core.errors import DefinitionError
from nimburion.core.rate_limits import MAX_UNITS, RateLimit

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
