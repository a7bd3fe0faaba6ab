"""The jobs of one enqueue call, encoded when the backend first reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from nimburion.core.job import NewJob

MakeJobs = Callable[[int, int], list[NewJob]]
"""Returns the jobs from a start index up to, but not including, a stop index."""


class LazyJobs(Sequence[NewJob]):
    """A sequence of jobs, each made once and in order, for backends with `lazy_batches`.

    Reading a job raises any error from making that job or an earlier one.
    """

    def __init__(self, count: int, make: MakeJobs) -> None:
        self._count = count
        self._make = make
        self._made: list[NewJob] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[NewJob]:
        self._make_until(self._count)
        return iter(self._made)

    @overload
    def __getitem__(self, place: int) -> NewJob: ...

    @overload
    def __getitem__(self, place: slice) -> list[NewJob]: ...

    def __getitem__(self, place: int | slice) -> NewJob | list[NewJob]:
        if isinstance(place, slice):
            places = range(self._count)[place]
            self._make_until(max(places[0], places[-1]) + 1 if places else 0)
        else:
            self._make_until(place + 1 if place >= 0 else self._count)
        return self._made[place]

    def _make_until(self, stop: int) -> None:
        stop = min(stop, self._count)
        if stop > len(self._made):
            self._made += self._make(len(self._made), stop)
