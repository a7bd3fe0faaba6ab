"""Queues: list, count, pause and resume."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.unserved import Unserved, find_unserved, is_live, list_reasons
from nimburion.core.job import State
from nimburion.core.queries import Pause, QueueInfo
from nimburion.server.api.body_rules import exclude
from nimburion.server.api.names import END, Name, PageQuery, Time, to_epoch
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.problems import InvalidPart, Problem


class QueueSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one queue when it was read."""

    name: str
    size: int
    """The number of jobs that are due and not processing."""
    scheduled: int
    processing: int
    oldest_age: float
    """Seconds for which the oldest waiting job has been due."""
    paused: bool
    pause: Pause | None
    """Who paused the queue, when and why; None if it is not paused."""
    names: dict[str, int]
    """The number of waiting jobs by name."""
    unserved: dict[str, str]
    """The names of waiting jobs that no live worker takes, with the reasons."""


class QueuePage(msgspec.Struct, frozen=True):
    """A page of queues, by name."""

    queues: list[QueueSummary]
    next: str | None


class QueueCounts(msgspec.Struct, frozen=True):
    """The number of jobs in each state."""

    queue: str | None
    counts: dict[str, int]


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

    reason: Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,500}" + END)] = ""
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
    backend = request.services.backend
    found = await backend.list_queues()
    unserved = find_unserved(found, await backend.list_sessions())
    after, limit = request.query.after, request.query.limit
    found.sort(key=lambda queue: queue.name)
    rest = [queue for queue in found if after is None or queue.name > after]
    page = [_summarize(queue, unserved) for queue in rest[:limit]]
    return QueuePage(page, page[-1].name if len(rest) > limit else None)


async def get_queue(request: ApiRequest[NoQuery, NoBody]) -> QueueSummary:
    """Show one queue. A queue without unfinished jobs is empty; it is never unknown."""
    name = request.path["queue"]
    backend = request.services.backend
    found = await backend.list_queues()
    unserved = find_unserved(found, await backend.list_sessions())
    empty = QueueInfo(name=name, size=0, scheduled=0, processing=0, oldest_age=0.0, paused=False)
    queue = next((queue for queue in found if queue.name == name), empty)
    return _summarize(queue, unserved)


async def count_jobs(request: ApiRequest[CountsQuery, NoBody]) -> QueueCounts:
    """Count the jobs in each state, of one queue or of all."""
    queue = request.query.queue
    counts = await request.services.backend.count_jobs(queue)
    return QueueCounts(queue, {state.value: counts[state] for state in State})


async def pause_queue(request: ApiRequest[NoQuery, PauseBody]) -> PauseState:
    """Start no more jobs of a queue until it is resumed. Running jobs continue."""
    queue, body, backend = request.path["queue"], request.body, request.services.backend
    until, by = await _read_until(body, backend), request.caller.name
    await backend.pause_queue(queue, paused=True, by=by, reason=body.reason, until=until)
    return PauseState(queue, paused=True, until=until)


async def resume_queue(request: ApiRequest[NoQuery, NoBody]) -> PauseState:
    """Start the jobs of a paused queue again."""
    queue = request.path["queue"]
    await request.services.backend.pause_queue(queue, paused=False)
    return PauseState(queue, paused=False)


async def pause_all_queues(request: ApiRequest[NoQuery, PauseBody]) -> AllPauses:
    """Start no more jobs of any queue that holds a job or that a live worker serves. Queues that
    are paused already keep their pause, and a queue that is used later is not paused.
    """
    body, backend = request.body, request.services.backend
    until, by = await _read_until(body, backend), request.caller.name
    found = await backend.list_queues()
    served = {
        queue for one in await backend.list_sessions() if is_live(one) for queue in one.queues
    }
    paused = {queue.name for queue in found if queue.paused}
    names = sorted({queue.name for queue in found}.union(served) - paused)
    for count, name in enumerate(names, start=1):
        await backend.pause_queue(name, paused=True, by=by, reason=body.reason, until=until)
        request.change.count = count
    return AllPauses(names, paused=True, until=until)


async def resume_all_queues(request: ApiRequest[NoQuery, NoBody]) -> AllPauses:
    """Start the jobs of all paused queues again."""
    backend = request.services.backend
    names = sorted(queue.name for queue in await backend.list_queues() if queue.paused)
    for count, name in enumerate(names, start=1):
        await backend.pause_queue(name, paused=False)
        request.change.count = count
    return AllPauses(names, paused=False)


async def _read_until(body: PauseBody, backend: Backend) -> float | None:
    """Return when a pause ends, in epoch seconds."""
    if body.duration is not None and body.until is not None:
        raise Problem(422, "invalid-body", "give either for or until, not both")
    if body.duration is not None:
        return await backend.now() + body.duration
    until = to_epoch(body.until)
    if until is not None and until <= await backend.now():
        detail = "until: this time is past, so nothing would be paused; give a later one"
        part = InvalidPart(detail, pointer="#/until")
        raise Problem(409, "past-time", detail, parts=(part,))
    return until


def _summarize(queue: QueueInfo, unserved: list[Unserved]) -> QueueSummary:
    """Return a queue as the API shows it. The API counts without a bound."""
    fields = msgspec.structs.asdict(queue)
    del fields["size_complete"], fields["scheduled_complete"]
    return QueueSummary(**fields, unserved=list_reasons(queue.name, unserved))


OPERATIONS = (
    Operation(
        method="GET",
        path="/queues",
        right="read",
        handle=list_queues,
        query=PageQuery,
        answer=QueuePage,
    ),
    Operation(
        method="GET",
        path="/queues/{queue}",
        right="read",
        handle=get_queue,
        answer=QueueSummary,
    ),
    Operation(
        method="GET",
        path="/counts",
        right="read",
        handle=count_jobs,
        query=CountsQuery,
        answer=QueueCounts,
    ),
    Operation(
        method="POST",
        path="/queues/{queue}/pause",
        right="operate",
        handle=pause_queue,
        action="queue.pause",
        body=PauseBody,
        rules=(exclude("for", "until"),),
        answer=PauseState,
    ),
    Operation(
        method="POST",
        path="/queues/{queue}/resume",
        right="operate",
        handle=resume_queue,
        action="queue.resume",
        answer=PauseState,
    ),
    Operation(
        method="POST",
        path="/queues/pause",
        right="operate",
        handle=pause_all_queues,
        action="queue.pause_all",
        body=PauseBody,
        rules=(exclude("for", "until"),),
        answer=AllPauses,
    ),
    Operation(
        method="POST",
        path="/queues/resume",
        right="operate",
        handle=resume_all_queues,
        action="queue.resume_all",
        answer=AllPauses,
    ),
)
