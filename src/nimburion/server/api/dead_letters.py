"""Dead letters: list, group, replay and purge failed jobs."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.dead_letters import PurgeReport, ReplayReport
from nimburion.core.diagnosis.failure_groups import FailureGroups
from nimburion.core.job import FAILED_ONLY, Reason
from nimburion.core.queries import JobFilter
from nimburion.jobs.payloads.codec import UnreadablePayload, check_size
from nimburion.server.api.body_rules import select_jobs
from nimburion.server.api.jobs import (
    JobPage,
    SearchQuery,
    check_payload,
    check_selection,
    summarize_page,
)
from nimburion.server.api.names import JobCursor, JsonObject, Name, PageSize
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation
from nimburion.server.problems import InvalidPart, Problem
from nimburion.server.services import ManagementServices


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
    page = await request.services.backend.reads.list_jobs(
        which, limit=query.limit, after=query.after
    )
    return summarize_page(page)


async def list_failure_groups(request: ApiRequest[GroupQuery, NoBody]) -> FailureGroups:
    """Group the newest 10,000 dead letters by their error, the largest group first."""
    query = request.query
    which = JobFilter(states=FAILED_ONLY, queue=query.queue, name=query.name, reason=query.reason)
    return await request.services.backend.reads.group_failures(which, limit=query.limit)


async def replay_dead_letters(request: ApiRequest[NoQuery, ReplayBody]) -> ReplayReport:
    """Make dead letters pending again. They keep id, payload and history."""
    body = request.body
    return await request.actions.dead.replay_matching(
        body.make_filter(), limit=body.limit, after=body.after
    )


async def purge_dead_letters(
    request: ApiRequest[NoQuery, DeadLetterSelection],
) -> PurgeReport:
    """Delete dead letters for good."""
    body = request.body
    return await request.actions.dead.purge_matching(body.make_filter(), limit=body.limit)


async def replay_edited_dead_letter(
    request: ApiRequest[NoQuery, EditedReplayBody],
) -> EditedReplay:
    """Enqueue the job of a dead letter with other arguments, as a new job. All else is the same.

    A repeat with the same payload stores no second job.
    """
    body, services = request.body, request.services
    record = await request.actions.dead.show(request.path["id"])
    sizes = services.config.jobs.sizes
    payload = check_payload(body.payload, sizes.nesting)
    check_size(record.name, payload, sizes)
    validated = _validate_payload(services, record.name, payload)
    if body.dry_run:
        return EditedReplay(id=None, deleted=False, validated=validated)
    job_id, deleted = await request.actions.dead.replay_edited(
        record.id, payload, delete=body.delete
    )
    return EditedReplay(id=job_id, deleted=deleted, validated=validated)


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


_SELECTION = select_jobs("queue", "name", "reason")

OPERATIONS = (
    Operation(
        method="GET",
        path="/dead-letters",
        handle=list_dead_letters,
        query=SearchQuery,
        answer=JobPage,
    ),
    Operation(
        method="GET",
        path="/failure-groups",
        handle=list_failure_groups,
        query=GroupQuery,
        answer=FailureGroups,
    ),
    Operation(
        method="POST",
        path="/dead-letters/replay",
        handle=replay_dead_letters,
        action="dead.replay",
        body=ReplayBody,
        rules=(_SELECTION,),
        answer=ReplayReport,
    ),
    Operation(
        method="POST",
        path="/dead-letters/purge",
        handle=purge_dead_letters,
        action="dead.purge",
        body=DeadLetterSelection,
        rules=(_SELECTION,),
        answer=PurgeReport,
    ),
    Operation(
        method="POST",
        path="/dead-letters/{id}/replay-edited",
        handle=replay_edited_dead_letter,
        action="dead.replay_edited",
        body=EditedReplayBody,
        answer=EditedReplay,
    ),
)
