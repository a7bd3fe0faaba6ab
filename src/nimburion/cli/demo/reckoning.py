"""The end: does the store account for every job that was enqueued?"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.cli.demo.watch import Snapshot
from nimburion.core.job import JobRecord, Reason, State


class Line(msgspec.Struct):
    """The jobs of one name, counted."""

    name: str
    enqueued: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    rescued: int = 0

    @property
    def balanced(self) -> bool:
        """Whether what went in came out."""
        return self.enqueued == self.completed + self.failed + self.cancelled


def reckon(ids: set[str], snapshot: Snapshot) -> list[Line]:
    """One line a name, then the total. `ids`: what enqueue answered, not what the store says."""
    lines: dict[str, Line] = {}
    for record in snapshot.jobs.values():
        count(lines.setdefault(record.name, Line(record.name)), record)
    by_name = sorted(lines.values(), key=lambda line: line.name)
    total = total_of(by_name)
    total.enqueued = len(ids)
    return [*by_name, total]


def accounted(ids: set[str], snapshot: Snapshot) -> bool:
    """Every id has a record, every record an id, and all have ended."""
    return snapshot.jobs.keys() == ids and all(line.balanced for line in reckon(ids, snapshot))


def count(line: Line, record: JobRecord) -> None:
    """Add one job to its line."""
    line.enqueued += 1
    line.completed += record.state is State.COMPLETED
    line.failed += record.state is State.FAILED
    line.cancelled += record.state is State.CANCELLED
    kinds = [error.kind for error in record.history]
    line.rescued += kinds.count("lost")
    line.retried += kinds.count("failure") + kinds.count("timeout")
    line.retried -= record.state is State.FAILED and record.reason == Reason.EXHAUSTED


def total_of(lines: Iterable[Line]) -> Line:
    """The sum of all lines."""
    total = Line("total")
    for line in lines:
        for field in Line.__struct_fields__[1:]:
            setattr(total, field, getattr(total, field) + getattr(line, field))
    return total
