"""Dead letters: list, group, replay and purge failed jobs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.backend import Inspecting
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.job import FAILED_ONLY, JobRecord, NewJob, Reason, State
from nimburion.core.queries import JobFilter
from nimburion.jobs.client.client import require_stored, send_jobs
from nimburion.jobs.declaration.codec import UnreadablePayload, check_size
from nimburion.server.api.body_rules import select_jobs
from nimburion.server.api.jobs import (
    JobPage,
    SearchQuery,
    check_payload,
    check_selection,
    summarize_page,
)
from nimburion.server.api.names import JobCursor, JsonObject, Name, PageSize, make_id
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.problems import InvalidPart, Problem
from nimburion.server.services import ManagementServices

REPLAY_OF_HEADER = "nimburion-replay-of"
"""The header of a job that was enqueued in place of a dead letter: the id of the dead letter."""


class GroupQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The dead letters to group."""

    limit: PageSize = 100
    """The maximum number of groups."""
    queue: Name | None = None
    name: Name | None = None
    reason: Reason | None = None


class DeadLetterSelection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dead letters to change: `ids`, or filters, or `all`."""

    ids: Annotated[tuple[Name, ...], Meta(max_length=100)] = ()
    queue: Name | None = None
    name: Name | None = None
    reason: Reason | None = None
    all: bool = False
    limit: Annotated[int, Meta(ge=1, le=1000)] = 500
    """The maximum number of dead letters that this request changes."""

    def make_filter(self) -> JobFilter:
        """Return the filter. Raises `Problem` for a combination that makes no sense."""
        filters = (self.queue, self.name, self.reason)
        check_selection(self.ids, any(value is not None for value in filters), self.all)
        return JobFilter(
            states=FAILED_ONLY,
            ids=self.ids or None,
            queue=self.queue,
            name=self.name,
            reason=self.reason,
        )


class ReplayBody(DeadLetterSelection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The dead letters to replay."""

    after: JobCursor | None = None


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did."""

    replayed: list[str]
    held: list[str]
    """Not replayed, because another job holds their unique key."""
    not_replayed: dict[str, str]
    """Given ids that are not dead letters, with the reasons."""
    next: str | None
    """Pass it as `after` to continue; None: that was all."""


class PurgeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge did."""

    purged: list[str]
    not_purged: dict[str, str]
    """Given ids that are not dead letters, with the reasons."""
    more: bool
    """More dead letters may match; repeat the request."""


class EditedReplayBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dead letter to run again with other arguments."""

    payload: JsonObject
    """A JSON object. Its text is stored byte for byte."""
    delete: bool = False
    """Delete the dead letter once the new job is stored."""
    dry_run: bool = False
    """Only check the payload."""


class EditedReplay(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a replay with other arguments."""

    id: str | None
    """The id of the new job; None after a dry run."""
    deleted: bool
    """Whether the dead letter was deleted."""
    validated: bool
    """Whether the payload was checked against the types of the handler. False: this server does not
    know the name of the job, so only the JSON was checked.
    """


async def list_dead_letters(request: ApiRequest[SearchQuery, NoBody]) -> JobPage:
    """List dead letters, most recently enqueued first."""
    query = request.query
    which = query.make_filter(FAILED_ONLY)
    page = await request.services.backend.list_jobs(which, limit=query.limit, after=query.after)
    return summarize_page(page)


async def list_failure_groups(request: ApiRequest[GroupQuery, NoBody]) -> FailureGroups:
    """Group the newest 10,000 dead letters by their error, the largest group first."""
    query = request.query
    which = JobFilter(states=FAILED_ONLY, queue=query.queue, name=query.name, reason=query.reason)
    return await request.services.backend.group_failures(which, limit=query.limit)


async def replay_dead_letters(request: ApiRequest[NoQuery, ReplayBody]) -> ReplayReport:
    """Make dead letters pending again. They keep id, payload and history."""
    body, backend = request.body, request.services.backend
    which = body.make_filter()
    misses = await _explain_misses(backend, body.ids)
    done = await backend.replay(which, body.limit, body.after)
    request.change.count = len(done.ids)
    return ReplayReport(replayed=done.ids, held=done.held, not_replayed=misses, next=done.next)


async def purge_dead_letters(
    request: ApiRequest[NoQuery, DeadLetterSelection],
) -> PurgeReport:
    """Delete dead letters for good."""
    body, backend = request.body, request.services.backend
    which = body.make_filter()
    misses = await _explain_misses(backend, body.ids)
    purged = await backend.delete(which, body.limit)
    request.change.count = len(purged)
    return PurgeReport(purged=purged, not_purged=misses, more=len(purged) >= body.limit)


async def replay_edited_dead_letter(
    request: ApiRequest[NoQuery, EditedReplayBody],
) -> EditedReplay:
    """Enqueue the job of a dead letter with other arguments, as a new job. All else is the same.

    A repeat with the same payload stores no second job.
    """
    body, services = request.body, request.services
    record = await services.backend.get_job(request.path["id"])
    if record.state is not State.FAILED:
        detail = f"job {record.id!r} is {record.state.value}, not failed: it is no dead letter"
        raise Problem(409, "no-dead-letter", detail)
    sizes = services.config.jobs.sizes
    payload = check_payload(body.payload, sizes.nesting)
    check_size(record.name, payload, sizes)
    validated = _validate_payload(services, record.name, payload)
    if body.dry_run:
        return EditedReplay(id=None, deleted=False, validated=validated)
    job = _make_edited_job(record, payload)
    (stored,) = await send_jobs(services.client, [job])
    job_id = require_stored(job, stored)
    deleted: list[str] = []
    if body.delete:
        which = JobFilter(states=FAILED_ONLY, ids=(record.id,))
        deleted = await services.backend.delete(which, 1)
    request.change.count = 1
    return EditedReplay(id=job_id, deleted=bool(deleted), validated=validated)


def _validate_payload(services: ManagementServices, name: str, payload: bytes) -> bool:
    """Check a payload against the types of its handler. Return False if this process has none."""
    processor = services.processor
    handler = None if processor is None else processor.registry.get(name)
    if handler is None:
        return False
    try:
        handler.decode(payload)
    except UnreadablePayload as error:
        part = InvalidPart(str(error), pointer="#/payload")
        raise Problem(422, "invalid-body", f"payload: {error}", parts=(part,)) from None
    return True


def _make_edited_job(record: JobRecord, payload: bytes) -> NewJob:
    headers = {**record.options.headers, REPLAY_OF_HEADER: record.id}
    return NewJob(
        make_id(record.id, payload.decode()),
        record.name,
        record.queue,
        payload,
        record.priority,
        options=msgspec.structs.replace(record.options, headers=headers),
    )


async def _explain_misses(backend: Inspecting, ids: tuple[str, ...]) -> dict[str, str]:
    """Return the reason for each id that is no dead letter."""
    if not ids:
        return {}
    page = await backend.list_jobs(JobFilter(ids=ids), limit=len(ids))
    states = {record.id: record.state for record in page.jobs}
    return {
        job_id: f"it is {states[job_id]}, not failed" if job_id in states else "no such job"
        for job_id in ids
        if states.get(job_id) is not State.FAILED
    }


_SELECTION = select_jobs("queue", "name", "reason")

OPERATIONS = (
    Operation(
        method="GET",
        path="/dead-letters",
        right="read",
        handle=list_dead_letters,
        query=SearchQuery,
        answer=JobPage,
    ),
    Operation(
        method="GET",
        path="/failure-groups",
        right="read",
        handle=list_failure_groups,
        query=GroupQuery,
        answer=FailureGroups,
    ),
    Operation(
        method="POST",
        path="/dead-letters/replay",
        right="operate",
        handle=replay_dead_letters,
        action="dead.replay",
        body=ReplayBody,
        rules=(_SELECTION,),
        answer=ReplayReport,
    ),
    Operation(
        method="POST",
        path="/dead-letters/purge",
        right="admin",
        handle=purge_dead_letters,
        action="dead.purge",
        body=DeadLetterSelection,
        rules=(_SELECTION,),
        answer=PurgeReport,
    ),
    Operation(
        method="POST",
        path="/dead-letters/{id}/replay-edited",
        right="admin",
        handle=replay_edited_dead_letter,
        action="dead.replay_edited",
        body=EditedReplayBody,
        answer=EditedReplay,
    ),
)
