"""When a process is replaced by a fresh one."""

from __future__ import annotations

import pytest

from nimburion.jobs.worker.recycling import RecycleLimits


class Running:
    """A process of 100 s and 3 MiB."""

    age = 100.0

    def read_memory(self) -> int:
        return 3 * 1024**2


@pytest.mark.parametrize(
    ("limits", "reached"),
    [
        (RecycleLimits(None, None, None), ""),
        (RecycleLimits(11, 4 * 1024**2, 101.0), ""),
        (RecycleLimits(10, None, None), "10 jobs"),
        (RecycleLimits(None, 3 * 1024**2, None), "3 MiB of memory"),
        (RecycleLimits(None, None, 100.0), "an age of 100 s"),
    ],
)
def test_which_limit_is_reached(limits: RecycleLimits, reached: str) -> None:
    assert limits.find_reached(Running(), 10) == reached
