"""The pages of dead letters: groups by error, the jobs of one group, and changed arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from nimburion.core.diagnosis.failure_groups import FailureGroup
from nimburion.core.job import FAILED_ONLY, JobRecord, Reason, State
from nimburion.core.queries import JobFilter
from nimburion.jobs.processor import Processor
from nimburion.server.api import dead_letters as dead_letter_operations
from nimburion.server.api.dead_letters import EditedReplay
from nimburion.server.api.jobs import JobSummary, summarize_page
from nimburion.server.api.names import Cursor, Name
from nimburion.server.api.operation import NoQuery, make_parameter_problem
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.pages.jobs.job_contents import TracebackPart, split_traceback
from nimburion.server.dashboard.pages.jobs.job_list import describe_purge, describe_replay

MAX_GROUPS = 100
MAX_SORTED_GROUPS = 1_000
"""The groups that are put in order before the first `MAX_GROUPS` are shown: a group may be small,
and still be the one that grew most.
"""
GROUP_AGE = 10.0
"""Seconds for which the groups count: reading them costs more than other values."""
PAGE_SIZE = 50
SEARCH_BUDGET = 5_000
"""The records that are examined for one page. The next page continues where this one stopped."""
HOUR = 3600.0
NO_FINGERPRINT = "none"
"""Stands in paths for the group of dead letters whose errors have no fingerprint."""
MAX_EDITABLE_BYTES = 65_536


class GroupListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead letters to group, and in which order to show the groups."""

    sort: Literal["count", "growth", "recent", "latest"] = "count"
    queue: Name | None = None
    name: Name | None = None
    reason: Reason | None = None


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """One group of dead letters."""

    key: str
    """The fingerprint, or `NO_FINGERPRINT`."""
    group: FailureGroup
    recent: int
    """How many of the group failed in the last hour."""
    before: int
    """How many failed in the hour before."""
    is_new: bool
    """Whether all of them failed in the last hour."""


class GroupListData(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of the newest dead letters."""

    groups: list[GroupRow]
    examined: int
    """The number of dead letters that were grouped, the newest ones."""
    complete: bool
    """Whether these were all that match."""


async def read_groups(request: PageRequest[GroupListQuery]) -> GroupListData:
    """Group dead letters by their error, and count those of the last two hours."""
    query, now = request.query, request.readings.now
    which = JobFilter(states=FAILED_ONLY, queue=query.queue, name=query.name, reason=query.reason)
    backend, since = request.readings.backend, (now - HOUR, now - 2 * HOUR)

    async def read() -> GroupListData:
        found = await backend.reads.group_failures(which, limit=MAX_SORTED_GROUPS, since=since)
        rows = [_make_group_row(group, since[0]) for group in found.groups]
        return GroupListData(groups=rows, examined=found.examined, complete=found.complete)

    page = await request.readings.read(f"failure groups {which}", read, GROUP_AGE)
    shown = sorted(page.groups, key=_ORDERS[query.sort])[:MAX_GROUPS]
    return msgspec.structs.replace(page, groups=shown)


def _make_group_row(group: FailureGroup, since: float) -> GroupRow:
    recent, both = group.counts_since
    return GroupRow(
        key=group.fingerprint or NO_FINGERPRINT,
        group=group,
        recent=recent,
        before=both - recent,
        is_new=group.first >= since,
    )


_ORDERS: Mapping[str, Callable[[GroupRow], tuple[float, ...]]] = {
    "count": lambda row: (-row.group.count, -row.group.last),
    "growth": lambda row: (row.before - row.recent, -row.recent, -row.group.count),
    "recent": lambda row: (-row.recent, -row.group.count),
    "latest": lambda row: (-row.group.last, -row.group.count),
}


class GroupPageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which part of a group to show."""

    after: Cursor | None = None


class GroupData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the dead letters of one group, most recently enqueued first."""

    fingerprint: str | None
    """None: the errors have no fingerprint."""
    jobs: list[JobSummary]
    next: str | None
    examined: int
    traceback: list[TracebackPart]
    """That of the first job; empty without the right `payloads`."""


async def read_group(request: PageRequest[GroupPageQuery]) -> GroupData:
    """Read the dead letters of one group. A group without jobs is empty; it is never unknown."""
    key, after = request.path["fingerprint"], request.query.after
    if key != NO_FINGERPRINT and not re.fullmatch("[0-9a-f]{16}", key):
        detail = f"a fingerprint has 16 hexadecimal digits, or is {NO_FINGERPRINT!r}"
        raise make_parameter_problem("fingerprint", detail)
    fingerprint = None if key == NO_FINGERPRINT else key
    which = JobFilter(states=FAILED_ONLY, fingerprint=fingerprint or "")
    backend = request.readings.backend

    async def read() -> GroupData:
        found = await backend.reads.list_jobs(
            which, limit=PAGE_SIZE, after=after, budget=SEARCH_BUDGET
        )
        error = found.jobs[0].error if found.jobs else None
        page = summarize_page(found)
        return GroupData(
            fingerprint=fingerprint,
            jobs=page.jobs,
            next=page.next,
            examined=page.examined,
            traceback=split_traceback(error.traceback) if error and error.traceback else [],
        )

    page = await request.readings.read(f"dead letters {key} {after}", read)
    if "payloads" in request.caller.rights:
        return page
    return msgspec.structs.replace(page, traceback=[])


class ArgumentsData(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a dead letter, to change them and run the job again."""

    id: str
    name: str
    queue: str
    state: State
    payload: str | None
    """The stored text; None if it cannot be edited."""
    obstacle: str | None
    """Why it cannot be edited."""
    known: bool
    """Whether this server can check the payload against the types of the handler."""
    delete: bool = False
    """Whether the form deletes the dead letter afterwards."""


async def read_arguments(request: PageRequest[NoQuery]) -> ArgumentsData:
    """Read the payload of one dead letter."""
    job_id, backend = request.path["id"], request.readings.backend
    processor = request.services.processor

    async def read() -> ArgumentsData:
        return _make_arguments(await backend.reads.get_job(job_id), processor)

    return await request.readings.read(f"arguments {job_id}", read)


def _make_arguments(record: JobRecord, processor: Processor | None) -> ArgumentsData:
    payload, obstacle = None, None
    if record.state is not State.FAILED:
        obstacle = f"The job is {record.state.value}. Only the arguments of failed jobs can change."
    elif len(record.payload or b"") > MAX_EDITABLE_BYTES:
        obstacle = f"The arguments have more than {MAX_EDITABLE_BYTES} bytes. Use the API."
    else:
        try:
            payload = (record.payload or b"").decode()
        except UnicodeDecodeError:
            obstacle = "The arguments are no text."
    return ArgumentsData(
        id=record.id,
        name=record.name,
        queue=record.queue,
        state=record.state,
        payload=payload,
        obstacle=obstacle,
        known=processor is not None and processor.registry.get(record.name) is not None,
    )


DEAD_LETTERS = DashboardPage(
    path="/dead-letters",
    title="Dead letters",
    section="Dead letters",
    read=read_groups,
    template="dead_letters/dead_letters.html",
    tables=("groups",),
    query=GroupListQuery,
)
DEAD_LETTER_GROUP = DashboardPage(
    path="/dead-letters/{fingerprint}",
    title="Dead letters {fingerprint}",
    section="Dead letters",
    read=read_group,
    template="dead_letters/dead_letter_group.html",
    tables=("jobs",),
    query=GroupPageQuery,
)
ARGUMENTS = DashboardPage(
    path="/jobs/{id}/arguments",
    title="Arguments of {id}",
    section="Dead letters",
    read=read_arguments,
    template="dead_letters/arguments.html",
    right="payloads",
    interval=None,
)


def refill_arguments(shown: ArgumentsData, written: dict[str, str]) -> ArgumentsData:
    """Return what the page shows with the fields of its form."""
    if shown.payload is None:
        return shown
    return msgspec.structs.replace(
        shown, payload=written.get("payload", shown.payload), delete="delete" in written
    )


def describe_edited_replay(report: EditedReplay) -> str:
    """Return what a replay with other arguments did."""
    checked = "fit the handler" if report.validated else "are JSON; their types were not checked"
    if report.id is None:
        return f"The arguments {checked}. Nothing was changed."
    deleted = " The dead letter is deleted." if report.deleted else ""
    return f"Job {report.id} is enqueued; the arguments {checked}.{deleted}"


ACTIONS = (
    DashboardAction(
        path="/dead-letters/{fingerprint}/replay",
        operation=find_operation(dead_letter_operations.OPERATIONS, "replay_dead_letters"),
        done="The selected dead letters are replayed.",
        back="/dead-letters/{fingerprint}",
        describe=describe_replay,
    ),
    DashboardAction(
        path="/dead-letters/{fingerprint}/purge",
        operation=find_operation(dead_letter_operations.OPERATIONS, "purge_dead_letters"),
        done="The selected dead letters are deleted.",
        back="/dead-letters/{fingerprint}",
        describe=describe_purge,
    ),
    DashboardAction(
        path="/jobs/{id}/arguments/replay",
        operation=find_operation(dead_letter_operations.OPERATIONS, "replay_edited_dead_letter"),
        done="The arguments were accepted.",
        back="/dead-letters",
        describe=describe_edited_replay,
        form_page=ARGUMENTS,
        refill=refill_arguments,
    ),
)
