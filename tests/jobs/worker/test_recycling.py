"""When a process is replaced by a fresh one."""

from __future__ import annotations

import pytest

from nimburion.core.settings import Recycle
from nimburion.jobs.worker.recycling import find_reached_limit


class Running:
    """A process of 100 s and 3 MiB."""

    age = 100.0

    def read_memory(self) -> int:
        return 3 * 1024**2


@pytest.mark.parametrize(
    ("recycle", "reached"),
    [
        (Recycle(), ""),
        (Recycle(jobs=11, memory=4 * 1024**2, age=101.0), ""),
        (Recycle(jobs=10), "10 jobs"),
        (Recycle(memory=3 * 1024**2), "3 MiB of memory"),
        (Recycle(age=100.0), "an age of 100 s"),
    ],
)
def test_which_limit_is_reached(recycle: Recycle, reached: str) -> None:
    assert find_reached_limit(recycle, Running(), 10) == reached
