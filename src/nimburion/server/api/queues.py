"""Queues: list, count, pause and resume."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.diagnosis.unserved import QueueSummary, make_empty_queue
from nimburion.core.job import State
from nimburion.server.api.body_rules import exclude
from nimburion.server.api.names import Name, PageQuery, ReasonText, Time
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation


class QueuePage(msgspec.Struct, frozen=True):
    """A page of queues, by name."""

    queues: list[QueueSummary]
    next: str | None


class QueueCounts(msgspec.Struct, frozen=True):
    """The number of jobs in each state."""

    queue: str | None
    counts: dict[str, int]
    complete: bool
    """False: there may be more waiting and failed jobs than were counted."""


class PauseState(msgspec.Struct, frozen=True):
    """Whether a queue is paused."""

    queue: str
    paused: bool
    until: float | None = None
    """When the pause ends by itself, in epoch seconds; None: when the queue is resumed."""


class AllPauses(msgspec.Struct, frozen=True):
    """The queues that were paused or resumed."""

    queues: list[str]
    paused: bool
    until: float | None = None
    """When the pause ends by itself, in epoch seconds; None: when the queues are resumed."""


class PauseBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pause. Without `for` and `until`, it lasts until the queue is resumed."""

    reason: ReasonText = ""
    """Shown wherever the queue is."""
    duration: Annotated[float, Meta(gt=0, le=31_536_000)] | None = msgspec.field(
        default=None, name="for"
    )
    """Seconds after which the queue is resumed."""
    until: Time | None = None


class CountsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to count."""

    queue: Name | None = None


async def list_queues(request: ApiRequest[PageQuery, NoBody]) -> QueuePage:
    """List the queues that hold an unfinished job or are paused."""
    after, limit = request.query.after, request.query.limit
    found = request.actions.queues.list()
    rest = [queue async for queue in found if after is None or queue.name > after]
    page = rest[:limit]
    return QueuePage(page, page[-1].name if len(rest) > limit else None)


async def get_queue(request: ApiRequest[NoQuery, NoBody]) -> QueueSummary:
    """Show one queue. A queue without unfinished jobs is empty; it is never unknown."""
    name = request.path["queue"]
    found = [queue async for queue in request.actions.queues.list() if queue.name == name]
    return found[0] if found else make_empty_queue(name)


async def count_jobs(request: ApiRequest[CountsQuery, NoBody]) -> QueueCounts:
    """Count the jobs in each state, of one queue or of all."""
    queue = request.query.queue
    counts = await request.services.backend.reads.count_jobs(queue)
    return QueueCounts(queue, {state.value: counts[state] for state in State}, counts.is_complete)


async def pause_queue(request: ApiRequest[NoQuery, PauseBody]) -> PauseState:
    """Start no more jobs of a queue until it is resumed. Running jobs continue."""
    queue, body = request.path["queue"], request.body
    until = await request.actions.queues.pause(
        queue, reason=body.reason, seconds=body.duration, until=body.until
    )
    return PauseState(queue, paused=True, until=until)


async def resume_queue(request: ApiRequest[NoQuery, NoBody]) -> PauseState:
    """Start the jobs of a paused queue again."""
    queue = request.path["queue"]
    await request.actions.queues.resume(queue)
    return PauseState(queue, paused=False)


async def pause_all_queues(request: ApiRequest[NoQuery, PauseBody]) -> AllPauses:
    """Start no more jobs of any queue that holds a job or that a live worker serves. Queues that
    are paused already keep their pause, and a queue that is used later is not paused.
    """
    body = request.body
    names, until = await request.actions.queues.pause_all(
        reason=body.reason, seconds=body.duration, until=body.until
    )
    return AllPauses(names, paused=True, until=until)


async def resume_all_queues(request: ApiRequest[NoQuery, NoBody]) -> AllPauses:
    """Start the jobs of all paused queues again."""
    return AllPauses(await request.actions.queues.resume_all(), paused=False)


OPERATIONS = (
    Operation(
        method="GET",
        path="/queues",
        handle=list_queues,
        query=PageQuery,
        answer=QueuePage,
    ),
    Operation(
        method="GET",
        path="/queues/{queue}",
        handle=get_queue,
        answer=QueueSummary,
    ),
    Operation(
        method="GET",
        path="/counts",
        handle=count_jobs,
        query=CountsQuery,
        answer=QueueCounts,
    ),
    Operation(
        method="POST",
        path="/queues/{queue}/pause",
        handle=pause_queue,
        action="queue.pause",
        body=PauseBody,
        rules=(exclude("for", "until"),),
        answer=PauseState,
    ),
    Operation(
        method="POST",
        path="/queues/{queue}/resume",
        handle=resume_queue,
        action="queue.resume",
        answer=PauseState,
    ),
    Operation(
        method="POST",
        path="/queues/pause",
        handle=pause_all_queues,
        action="queue.pause_all",
        body=PauseBody,
        rules=(exclude("for", "until"),),
        answer=AllPauses,
    ),
    Operation(
        method="POST",
        path="/queues/resume",
        handle=resume_all_queues,
        action="queue.resume_all",
        answer=AllPauses,
    ),
)
