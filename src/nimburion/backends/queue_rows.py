"""Combine what a backend reports about each lane into one record for each queue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nimburion.core.queries import Pause, QueueInfo


class LaneRow(NamedTuple):
    """The unfinished jobs of one name in one queue, or the fact that a queue is paused."""

    queue: str
    name: str | None
    """None: the row only states that the queue is paused."""
    size: int
    scheduled: int
    processing: int
    age: float | None
    """The longest time that a waiting job has been due, in seconds; None if no job is due."""
    paused: bool
    pause: Pause | None = None
    """Who paused the queue, when and why; only in the row that states the pause."""
    size_complete: bool = True
    """False: at least `size` jobs are due."""
    scheduled_complete: bool = True
    """False: at least `scheduled` jobs are not due yet."""


def combine_rows(rows: Iterable[LaneRow]) -> list[QueueInfo]:
    """Return one record for each queue in the rows, ordered by name."""
    queues: dict[str, list[LaneRow]] = {}
    for row in rows:
        queues.setdefault(row.queue, []).append(row)
    return [_combine(queue, queues[queue]) for queue in sorted(queues)]


def _combine(queue: str, rows: list[LaneRow]) -> QueueInfo:
    names: dict[str, int] = {}
    for row in rows:
        if row.name is not None and row.size + row.scheduled:
            names[row.name] = names.get(row.name, 0) + row.size + row.scheduled
    return QueueInfo(
        name=queue,
        size=sum(row.size for row in rows),
        scheduled=sum(row.scheduled for row in rows),
        processing=sum(row.processing for row in rows),
        oldest_age=max((0.0, *(row.age for row in rows if row.age is not None))),
        paused=any(row.paused for row in rows),
        pause=next((row.pause for row in rows if row.pause is not None), None),
        names=dict(sorted(names.items())),
        size_complete=all(row.size_complete for row in rows),
        scheduled_complete=all(row.scheduled_complete for row in rows),
    )
