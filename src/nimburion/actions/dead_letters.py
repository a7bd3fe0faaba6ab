"""Dead letters: list, show, replay and purge failed jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec

from nimburion.actions.jobs import STEP, ReportProgress, batch_ids, find_target
from nimburion.actions.operator import Operator, SubjectActions
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import NotDeadLetter
from nimburion.core.ids import make_repeatable_id
from nimburion.core.job import (
    FAILED_ONLY,
    Enqueued,
    JobRecord,
    NewJob,
    State,
    require_stored,
)
from nimburion.core.paging import change_matching, iterate_jobs
from nimburion.core.queries import JobFilter, describe_filter

REPLAY_OF_HEADER = "nimburion-replay-of"
"""The header of a job that was enqueued in place of a dead letter: the id of the dead letter."""

Ids = list[str]
EnqueueJobs = Callable[[Sequence[NewJob]], Awaitable[list[Enqueued]]]
"""Stores jobs that are in the backend's form already."""


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did."""

    replayed: list[str] = msgspec.field(default_factory=list)
    held: list[str] = msgspec.field(default_factory=list)
    """Not replayed, because another job holds their unique key."""
    not_replayed: dict[str, str]
    """Given ids that are not dead letters, with the reasons."""
    next: str | None = None
    """Pass it as `after` to continue; None: that was all."""


class PurgeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge did."""

    purged: list[str] = msgspec.field(default_factory=list)
    not_purged: dict[str, str]
    """Given ids that are not dead letters, with the reasons."""
    more: bool = False
    """More dead letters may match; repeat the request."""


class DeadLetters(SubjectActions):
    """The failed jobs of a backend: `processor.dead`.

    Each record has the payload byte for byte as it was enqueued, the reason of the failure and the
    whole history of attempts.

    The filters `queue`, `name` and `reason` match exactly; without a filter, all failed jobs match.
    """

    def __init__(
        self, backend: Backend, operator: Operator, enqueue: EnqueueJobs | None = None
    ) -> None:
        super().__init__(backend, operator)
        self._enqueue: EnqueueJobs = enqueue or backend.producing.enqueue

    def list(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> AsyncIterator[JobRecord]:
        """Return an iterator over all failed jobs that match, read page by page.

        The job enqueued last comes first. Use it with `async for`.
        """
        return iterate_jobs(self._backend, _make_filter(queue, name, reason), payloads=True)

    async def show(self, job_id: str) -> JobRecord:
        """Return one failed job.

        Raises `NotDeadLetter` for a job that is not failed, which is a `JobNotFound`.
        """
        record = await self._backend.reads.get_job(job_id)
        if record.state is not State.FAILED:
            raise NotDeadLetter(job_id, record.state)
        return record

    async def replay(self, *job_ids: str) -> Ids:
        """Make failed jobs pending again, and return the ids of the jobs replayed.

        A replayed job keeps its id, payload and history; its counts of failures and losses start
        again. Jobs that are not failed are skipped, so a second call changes nothing. So is a job
        whose unique key another job holds now.
        """
        which = JobFilter(states=FAILED_ONLY, ids=job_ids)
        return (await self.replay_matching(which)).replayed

    async def replay_all(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> Ids:
        """Replay all failed jobs that match, and return their ids.

        The jobs are replayed in bounded steps. Each step is atomic, the whole call is not.
        """
        return (await self.replay_matching(_make_filter(queue, name, reason))).replayed

    async def purge(self, *job_ids: str) -> Ids:
        """Delete failed jobs for good, and return the ids of the jobs deleted.

        Jobs that are not failed are skipped.
        """
        which = JobFilter(states=FAILED_ONLY, ids=job_ids)
        return (await self.purge_matching(which)).purged

    async def purge_all(
        self,
        *,
        queue: str | None = None,
        name: str | None = None,
        reason: str | None = None,
    ) -> Ids:
        """Delete all failed jobs that match for good, and return their ids.

        The jobs are deleted in bounded steps, as `replay_all` does.
        """
        return (await self.purge_matching(_make_filter(queue, name, reason))).purged

    async def replay_matching(
        self,
        which: JobFilter,
        *,
        limit: int | None = None,
        after: str | None = None,
        report: ReportProgress = lambda _: None,
    ) -> ReplayReport:
        """Replay all dead letters that match, in steps. With `limit`, one step of that size.

        A step is atomic, the whole is not.
        """
        done = ReplayReport(not_replayed=await self._explain_misses(which))
        async with self._operator.record(
            self._backend, "dead.replay", find_target(which), **describe_filter(which)
        ) as change:
            while True:
                step = await change_matching(
                    self._backend, BulkAction.REPLAY, which, limit or STEP, after
                )
                done.replayed.extend(step.ids)
                done.held.extend(step.held)
                change.count = len(done.replayed)
                report(len(step.ids) + len(step.held))
                after = step.next
                if after is None or limit is not None:
                    return msgspec.structs.replace(done, next=after)

    async def purge_matching(
        self,
        which: JobFilter,
        *,
        limit: int | None = None,
        report: ReportProgress = lambda _: None,
    ) -> PurgeReport:
        """Delete all dead letters that match, in steps. With `limit`, one step of that size.

        A step is atomic, the whole is not.
        """
        done = PurgeReport(not_purged=await self._explain_misses(which))
        async with self._operator.record(
            self._backend, "dead.purge", find_target(which), **describe_filter(which)
        ) as change:
            after: str | None = None
            while True:
                step = await change_matching(
                    self._backend, BulkAction.DELETE, which, limit or STEP, after
                )
                done.purged.extend(step.ids)
                change.count = len(done.purged)
                report(len(step.ids))
                after = step.next
                if after is None or limit is not None:
                    return msgspec.structs.replace(done, more=after is not None)

    async def replay_edited(
        self, job_id: str, payload: bytes, *, delete: bool = False
    ) -> tuple[str, bool]:
        """Enqueue the job of a dead letter with other arguments, as a new job.

        With `delete`, the dead letter is deleted afterwards. A repeat with the same payload stores
        no second job. The new job holds no unique key: that of the dead letter was made from the
        old arguments. It is a member of no flow. Its keys for limits are computed anew if its
        handler is registered here, and are those of the dead letter otherwise. Return the id of the
        new job, and whether the dead letter was deleted.

        Raises `NotDeadLetter`, and the errors of an enqueue.
        """
        async with self._operator.record(
            self._backend, "dead.replay_edited", job_id, delete=delete or None
        ) as change:
            record = await self.show(job_id)
            job = _make_edited_job(record, payload)
            (stored,) = await self._enqueue([job])
            new_id = require_stored(job, stored)
            which = JobFilter(states=FAILED_ONLY, ids=(job_id,))
            deleted: Ids = []
            if delete:
                deleted = (await change_matching(self._backend, BulkAction.DELETE, which, 1)).ids
            change.count = 1
        return new_id, bool(deleted)

    async def _explain_misses(self, which: JobFilter) -> dict[str, str]:
        """Return the reason for each given id that is no dead letter."""
        misses: dict[str, str] = {}
        for some in batch_ids(which.ids or ()):
            page = await self._backend.reads.list_jobs(JobFilter(ids=some), limit=STEP)
            states = {record.id: record.state for record in page.jobs}
            misses |= {
                job_id: f"it is {states[job_id]}, not failed" if job_id in states else "no such job"
                for job_id in some
                if states.get(job_id) is not State.FAILED
            }
        return misses


def _make_filter(queue: str | None, name: str | None, reason: str | None) -> JobFilter:
    return JobFilter(states=FAILED_ONLY, queue=queue, name=name, reason=reason)


def _make_edited_job(record: JobRecord, payload: bytes) -> NewJob:
    headers = {**record.options.headers, REPLAY_OF_HEADER: record.id}
    return NewJob(
        make_repeatable_id(record.id, payload.hex()),
        record.name,
        record.queue,
        payload,
        record.priority,
        options=msgspec.structs.replace(
            record.options,
            headers=headers,
            unique_key=None,
            unique_for=None,
            unique_while=None,
            flow=None,
            group=None,
            conditions=(),
        ),
    )
