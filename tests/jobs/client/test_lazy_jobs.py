"""Jobs of one call are made once, in their order, when they are first looked at."""

from __future__ import annotations

import pytest

from nimburion.core.job import NewJob
from nimburion.jobs.client.lazy_jobs import LazyJobs


class Made:
    """Ten jobs, and which of them were made together."""

    def __init__(self, bad: int = 10) -> None:
        self.calls: list[tuple[int, int]] = []
        self._bad = bad
        self.batch = LazyJobs(10, self._make)

    def _make(self, start: int, stop: int) -> list[NewJob]:
        self.calls.append((start, stop))
        if start <= self._bad < stop:
            raise ValueError(self._bad)
        return [NewJob(str(n), "mail", "default", b"") for n in range(start, stop)]


def ids(jobs: object) -> list[str]:
    return [job.id for job in jobs]  # type: ignore[attr-defined]


def test_nothing_is_made_before_it_is_looked_at() -> None:
    made = Made()
    assert (len(made.batch), bool(made.batch), made.calls) == (10, True, [])


def test_parts_are_made_as_they_are_looked_at() -> None:
    made = Made()
    parts = [ids(made.batch[start : start + 4]) for start in (0, 4, 8)]
    assert parts == [list("0123"), list("4567"), list("89")]
    assert made.calls == [(0, 4), (4, 8), (8, 10)]


def test_all_of_them_are_made_once() -> None:
    made = Made()
    assert made.batch[2].id == "2"
    assert made.batch[-1].id == "9"
    assert ids(made.batch) == ids(made.batch) == list("0123456789")
    assert made.calls == [(0, 3), (3, 10)]


def test_a_slice_backwards_is_whole() -> None:
    assert ids(Made().batch[5:2:-1]) == list("543")


def test_an_error_while_making_a_job_reaches_the_reader() -> None:
    made = Made(bad=6)
    assert ids(made.batch[:5]) == list("01234")
    for _ in range(2):
        with pytest.raises(ValueError, match="6"):
            list(made.batch)
