"""Growing pauses between the tries of an operation that fails, or between two polls."""

from __future__ import annotations

from collections.abc import Iterator


def iterate_pauses(first: float, longest: float, factor: float = 2.0) -> Iterator[float]:
    """Yield pauses in seconds, without end: each is `factor` times the one before, up to `longest`.

    >>> pauses = iterate_pauses(0.5, 3.0)
    >>> [next(pauses) for _ in range(4)]
    [0.5, 1.0, 2.0, 3.0]
    """
    pause = first
    while True:
        yield pause
        pause = min(factor * pause, longest)
