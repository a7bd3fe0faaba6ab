"""How many slots the jobs of some queues want, for autoscalers.

The number counts work, not age: it is proportional to the workers that are needed. Jobs that are
processing count in full, so it never asks to stop a worker that is busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.limits import LimitInfo, get_limited_job
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.queries import QueueInfo
from nimburion.server.api.names import END
from nimburion.server.api.operation import ApiRequest, NoBody, Operation
from nimburion.server.dashboard.queue_counts import is_complete

DEFAULT_RUN = 1.0
"""The seconds that a job counts for, if no job of its name ended within the last hour."""
_MIN_RUN = 0.001
_WINDOW = 3600.0
_STEP = 600
_LIST_SCHEMA = r"^[A-Za-z0-9_.:-]{1,128}(,[A-Za-z0-9_.:-]{1,128}){0,99}" + END


class ScaleQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The queues to count, and how soon their jobs should have been started."""

    queues: Annotated[str, Meta(pattern=_LIST_SCHEMA)] | None = None
    """At most 100 names, with commas between them. The default is every queue."""
    target_wait: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
    """The seconds within which the slots should work off the jobs that are due now."""


class QueueDemand(msgspec.Struct, frozen=True, kw_only=True):
    """The demand of one queue."""

    queue: str
    processing: int
    ready: int
    """The number of jobs that are due and not processing; 0 if the queue is paused."""
    work: float
    """The seconds that one slot would take for them."""


class ScaleReport(msgspec.Struct, frozen=True, kw_only=True):
    """The demand of all queues that were asked for."""

    wanted: int
    """The number of slots: `processing`, and those that work off the due jobs in `target_wait`."""
    processing: int
    ready: int
    oldest_age: float
    """Seconds for which the first of the due jobs has been due. Do not scale by it, except from
    zero.
    """
    queues: list[QueueDemand]
    complete: bool
    """False: more jobs wait than were counted for this report. `ready` is then the number of the
    last full count, which is made in the background, or at least as many as were counted.
    """


async def get_scale(request: ApiRequest[ScaleQuery, NoBody]) -> ScaleReport:
    """Say how many slots the jobs of some queues want: those processing, and those for the due
    work."""
    query, backend = request.query, request.services.backend
    found = await request.services.readings.list_queues()
    if query.queues is not None:
        known = {queue.name: queue for queue in found}
        asked = dict.fromkeys(query.queues.split(","))
        found = [known[name] for name in asked if name in known]
    now = await backend.now()
    rows = await backend.reads.list_statistics(now - _WINDOW, now, _STEP)
    limits = await backend.reads.list_limits(fullest=0, holders=0)
    return compute_scale(found, limits, average_runs(rows), query.target_wait)


def average_runs(rows: Iterable[Statistics]) -> dict[str, float]:
    """Return the mean run time of each name, in seconds."""
    runs: dict[str, Histogram] = {}
    for row in rows:
        runs.setdefault(row.name, Histogram()).add(row.counters.run)
    return {name: max(_MIN_RUN, run.sum / run.count) for name, run in runs.items() if run.count}


def compute_scale(
    queues: Sequence[QueueInfo],
    limits: Iterable[LimitInfo],
    mean_runs: Mapping[str, float],
    target_wait: float,
) -> ScaleReport:
    """Return the demand of the queues.

    A name wants no more slots than it has due jobs, and at its concurrency limit no further one:
    there is nothing that such a slot could run.
    """
    due_by_name: dict[str, float] = {}
    work_by_name: dict[str, float] = {}
    demands = []
    for queue in queues:
        waiting = queue.size + queue.scheduled
        due_share = 0.0 if queue.paused or not waiting else queue.size / waiting
        work = 0.0
        for name, count in queue.names.items():
            due_by_name[name] = due_by_name.get(name, 0.0) + count * due_share
            seconds = count * due_share * mean_runs.get(name, DEFAULT_RUN)
            work_by_name[name] = work_by_name.get(name, 0.0) + seconds
            work += seconds
        ready = 0 if queue.paused else queue.size
        demands.append(
            QueueDemand(queue=queue.name, processing=queue.processing, ready=ready, work=work)
        )
    room = {
        get_limited_job(limit.name): max(0, limit.concurrency - limit.in_use)
        for limit in limits
        if limit.concurrency is not None
    }
    slots = sum(
        min(seconds / target_wait, due_by_name[name], room.get(name, math.inf))
        for name, seconds in work_by_name.items()
    )
    processing = sum(demand.processing for demand in demands)
    return ScaleReport(
        wanted=processing + math.ceil(slots),
        processing=processing,
        ready=sum(demand.ready for demand in demands),
        complete=is_complete(queues),
        oldest_age=max((queue.oldest_age for queue in queues if not queue.paused), default=0.0),
        queues=demands,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/scale",
        handle=get_scale,
        query=ScaleQuery,
        answer=ScaleReport,
    ),
)
