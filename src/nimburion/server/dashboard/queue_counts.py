"""The numbers of waiting jobs that pages show: counted up to a bound, and older ones beyond it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from nimburion.core.queries import QueueInfo

LIVE_COUNT_BUDGET = 80_000
"""The jobs that a live update counts: 10 ms on SQLite."""
EXACT_AGE = 10.0
"""Seconds after which all jobs are counted again, in the background, where there are more."""


def is_complete(queues: Iterable[QueueInfo]) -> bool:
    """Return whether all waiting jobs of all queues are counted."""
    return all(queue.size_complete and queue.scheduled_complete for queue in queues)


def fill_up_counts(counted: Iterable[QueueInfo], last: Iterable[QueueInfo]) -> list[QueueInfo]:
    """Replace numbers that are too small by those of the last full count, sorted by name.

    The numbers stay marked as incomplete. A queue whose jobs are all scheduled may be in `last`
    only.
    """
    known = {queue.name: queue for queue in last}
    queues = {queue.name: _fill_up(queue, known.get(queue.name)) for queue in counted}
    if not all(queue.scheduled_complete for queue in queues.values()):
        for queue in known.values():
            if queue.scheduled:
                queues.setdefault(queue.name, _keep_scheduled(queue))
    return [queues[name] for name in sorted(queues)]


def _fill_up(queue: QueueInfo, last: QueueInfo | None) -> QueueInfo:
    if last is None or (queue.size_complete and queue.scheduled_complete):
        return queue
    return msgspec.structs.replace(
        queue,
        size=queue.size if queue.size_complete else max(queue.size, last.size),
        scheduled=queue.scheduled
        if queue.scheduled_complete
        else max(queue.scheduled, last.scheduled),
        names={
            name: max(queue.names.get(name, 0), last.names.get(name, 0))
            for name in sorted({*queue.names, *last.names})
        },
    )


def _keep_scheduled(queue: QueueInfo) -> QueueInfo:
    return msgspec.structs.replace(
        queue, size=0, processing=0, oldest_age=0.0, paused=False, pause=None,
        scheduled_complete=False,
    )  # fmt: skip
