"""Backoffs: the delay until the next attempt of a job that has failed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from random import Random

import msgspec

from nimburion.core.errors import DefinitionError
from nimburion.core.settings import Settings
from nimburion.core.timing.durations import Duration, require_seconds

_log = logging.getLogger("nimburion.jobs")

BackoffFunction = Callable[[int], float]
"""Returns the seconds to wait after failure number n (1 for the first), before cap and jitter."""
Delays = Duration | Sequence[Duration] | BackoffFunction
"""Seconds that double with each failure, a list of seconds, or a function of the failure's
number."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays between the attempts of a job that fails, and their end.

    ```python
    @job(retry_backoff=Backoff(15, max_delay=3600, retry_for=86_400))
    async def charge(order: int) -> None: ...
    ```

    Args:
        delays: as the option `retry_backoff`: seconds that double with each failure, a list of
            seconds, or a function of the number of the failure. None: as the settings say.
        max_delay: the largest delay with its jitter, in seconds or as a timedelta. None: as the
            settings say; a list of seconds then has no maximum.
        retry_for: no retry starts later than this after the job was enqueued, whatever
            `max_retries` allows. None: without an end.
    """

    delays: Delays | None = None
    _: KW_ONLY
    max_delay: Duration | None = None
    retry_for: Duration | None = None


JITTER = 0.2
"""The largest fraction of a delay that is added at random.

Jitter only lengthens a delay, so retries spread out and none comes early. At the cap, the delay
is shortened first, so that it is between five sixths of the cap and the cap.
"""

_MAX_DOUBLINGS = 60
"""More would overflow a float after some hundreds of failures; the maximum delay is reached
earlier.
"""


def compute_delay(
    backoff: BackoffFunction | None, longest: float | None, failures: int, random: Random
) -> float:
    """Return the seconds from failure number `failures` to the next attempt, at most `longest`.

    The backoff is capped so that it stays below `longest` with all of its jitter: jobs that failed
    together are spread there too. `longest` None: as the settings say.
    """
    if longest is None:
        longest = Settings().retry_backoff_max
    capped = min(_call_backoff(backoff, failures), longest / (1.0 + JITTER))
    return min(capped * (1.0 + JITTER * random.random()), longest)


def _call_backoff(backoff: BackoffFunction | None, failures: int) -> float:
    """Return the delay of a backoff, in seconds, before cap and jitter.

    A user's function may raise, or return a value that is no delay. Both are logged, and
    exponential backoff from 1 s, the default of the settings, is used instead, so that the job is
    not lost.
    """
    if backoff is None:
        backoff = exponential(Settings().retry_backoff)
    try:
        seconds = float(backoff(failures))
    except Exception:  # noqa: BLE001 (a user's function may raise anything)
        _log.exception("the backoff function failed; exponential backoff is used instead")
        seconds = math.nan
    else:
        if not seconds >= 0.0:
            _log.error("the backoff function returned %r, which is not a delay", seconds)
    return seconds if seconds >= 0.0 else exponential(Settings().retry_backoff)(failures)


class _Exponential(msgspec.Struct, frozen=True):
    base: float

    def __call__(self, failures: int) -> float:
        return self.base * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)


class _Listed(msgspec.Struct, frozen=True):
    seconds: tuple[float, ...]

    def __call__(self, failures: int) -> float:
        return self.seconds[min(failures, len(self.seconds)) - 1]


def exponential(base: Duration) -> BackoffFunction:
    """Return a backoff of `base` seconds that doubles with each failure.

    >>> [exponential(1.5)(failures) for failures in (1, 2, 3)]
    [1.5, 3.0, 6.0]
    """
    return _Exponential(require_seconds("retry_backoff", base, DefinitionError))


def listed(*seconds: Duration) -> BackoffFunction:
    """Return a backoff with these delays, in seconds, before jitter; the last one repeats.

    >>> [listed(1, 60)(failures) for failures in (1, 2, 3)]
    [1.0, 60.0, 60.0]
    """
    if not seconds:
        raise DefinitionError("retry_backoff: list at least one delay")
    return _Listed(
        tuple(require_seconds("retry_backoff", delay, DefinitionError) for delay in seconds)
    )


def is_listed(backoff: BackoffFunction | None) -> bool:
    """Return whether a backoff is a list of delays, which the declaration has chosen one by one.

    >>> is_listed(listed(1, 3600)), is_listed(exponential(1))
    (True, False)
    """
    return isinstance(backoff, _Listed)


def parse_delays(value: Delays) -> BackoffFunction:
    """Return the backoff of the option `retry_backoff`."""
    if callable(value):
        return value
    if value is True:
        raise DefinitionError(
            "retry_backoff=True: leave it out; the delay doubles with each failure by default"
        )
    if isinstance(value, list | tuple):
        return listed(*value)
    if isinstance(value, int | Duration):
        return exponential(value)
    raise DefinitionError(
        "retry_backoff must be seconds, a list of seconds, a function of the number of the "
        f"failure or a Backoff, not {value!r}"
    )
