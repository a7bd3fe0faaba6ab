"""Cancel jobs, make waiting jobs due, send signals, and ask where a running handler is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import msgspec

from nimburion.actions.operator import SubjectActions
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import MAX_STEP, BulkAction
from nimburion.core.errors import InvalidJob, JobNotFound
from nimburion.core.queries import JobFilter, describe_filter
from nimburion.core.session import WorkerCommand
from nimburion.core.size_limits import check_name
from nimburion.core.stacks import HandlerStack, get_stack, request_stack

if TYPE_CHECKING:
    from nimburion.core.runs import SignalOutcome

STEP = MAX_STEP
"""The most jobs that one step of an action reads or changes."""

CancelOutcome = Literal["cancelled", "requested", "finished", "not found"]
"""A value of `Cancellation`, or `not found` for an id that no job has."""
DueOutcome = Literal["due", "unchanged", "not found"]
"""`unchanged`: the job was due already, runs or has ended."""
_CANCELLED = frozenset({"cancelled", "requested"})
"""The outcomes of jobs that were cancelled, or will be asked to end."""
StackOutcome = Literal["shown", "not running", "no answer"]
"""`no answer`: the worker may answer later, for as long as the request is kept."""
_STACK_TRIES = 50
_STACK_INTERVAL = 0.2
"""Seconds between two looks for the answer of a worker."""
_TRIES_PER_NOTIFICATION = 10
"""Notifications are best effort."""
ReportProgress = Callable[[int], object]
"""Is called with the number of jobs that a step has processed."""


class Cancellations(msgspec.Struct, frozen=True):
    """What became of jobs that were to be cancelled."""

    outcomes: dict[str, CancelOutcome]
    next: str | None = None
    """Pass it as `after` to continue; None: that was all."""


class StackAnswer(msgspec.Struct, frozen=True):
    """What a worker answered about the handler of a job."""

    outcome: StackOutcome
    stack: HandlerStack | None = None


class SentSignal(msgspec.Struct, frozen=True):
    """What became of a signal to a durable run."""

    id: str
    """The id of the signal. The job gets each id once."""
    outcome: SignalOutcome


class JobActions(SubjectActions):
    """Cancel jobs, make waiting jobs due, send signals, and ask where a running handler is."""

    async def cancel(
        self,
        which: JobFilter,
        *,
        limit: int | None = None,
        after: str | None = None,
        report: ReportProgress = lambda _: None,
    ) -> Cancellations:
        """Cancel all jobs that match; one that runs is cancelled by its worker.

        If `ids` is the only field of the filter, each id has an outcome, and `limit` has no effect.
        Otherwise only jobs that match all fields have one. With `limit`, at most that number of
        jobs is read, and `next` says where to continue. Jobs that end meanwhile stay unchanged.
        """
        outcomes: dict[str, CancelOutcome] = {}
        only_ids = which.ids if which == JobFilter(ids=which.ids) else None
        async with self._operator.record(
            self._backend, "jobs.cancel", find_target(which), **describe_filter(which)
        ) as change:
            changed = 0
            while True:
                if only_ids is not None:
                    ids, after = list(dict.fromkeys(only_ids)), None
                else:
                    page = await self._backend.reads.list_jobs(
                        which, limit=limit or STEP, after=after
                    )
                    ids, after = [record.id for record in page.jobs], page.next
                for job_id in ids:
                    outcome = outcomes[job_id] = await self._cancel(job_id)
                    changed += outcome in _CANCELLED
                    change.count = changed
                report(len(ids))
                if after is None or limit is not None:
                    change.count = changed
                    return Cancellations(outcomes, after)

    async def run_now(self, *ids: str) -> dict[str, DueOutcome]:
        """Make jobs due that wait for a later time, and return the outcome of each.

        A worker starts them in the order of their queue.
        """
        which = JobFilter(ids=ids)
        async with self._operator.record(
            self._backend, "jobs.run_now", find_target(which), **describe_filter(which)
        ) as change:
            outcomes: dict[str, DueOutcome] = dict.fromkeys(ids, "unchanged")
            for some in batch_ids(ids):
                changes = await self._backend.maintenance.change_jobs(BulkAction.RUN_NOW, some)
                outcomes |= dict.fromkeys(changes.ids, "due")
            change.count = list(outcomes.values()).count("due")
            others = tuple(job_id for job_id, outcome in outcomes.items() if outcome != "due")
            known = await _list_known(self._backend, others)
            outcomes |= dict.fromkeys((one for one in others if one not in known), "not found")
        return outcomes

    async def show_stack(self, job_id: str, *, tries: int = _STACK_TRIES) -> StackAnswer:
        """Ask the worker of a running job where its handler is, and wait for the answer.

        The job continues. The answer has lines of code and no values, and is kept for a
        minute. The worker is asked with a notification; one that gets none answers with its next
        regular heartbeat. With the usual settings, the call waits for ten seconds at most.

        Raises:
            JobNotFound: there is no job with this id.
        """
        backend = self._backend
        async with self._operator.record(backend, "jobs.stack", job_id):
            session = (await backend.reads.get_job(job_id)).session
            if session is None:
                return StackAnswer("not running")
            await request_stack(backend, job_id, session)
            for attempt in range(tries):
                if attempt % _TRIES_PER_NOTIFICATION == 0:
                    await backend.maintenance.send_command(session, WorkerCommand.SHOW_STACKS)
                stack = await get_stack(backend, job_id, await backend.now())
                if stack is not None:
                    return StackAnswer("shown", stack)
                await asyncio.sleep(_STACK_INTERVAL)
        return StackAnswer("no answer")

    async def signal(
        self,
        job_id: str,
        name: str,
        payload: bytes,
        *,
        signal_id: str | None = None,
        reason: str = "",
    ) -> SentSignal:
        """Send a signal to a durable run, and return what became of it.

        `payload` is JSON. The handler reads it in the type of its signal. Without `signal_id`, each
        call sends another signal. The audit log keeps `reason` and the name, but not the payload.

        Raises:
            JobNotFound: there is no job with this id.
            InvalidJob: the name or the id is no valid one, or the payload is no JSON or too large.
        """
        from nimburion.core.runs import NewSignal, SignalOutcome  # most processes send none

        check_signal(name, payload)
        signal_id = os.urandom(16).hex() if signal_id is None else check_name("id", signal_id)
        async with self._operator.record(
            self._backend, "jobs.signal", job_id, signal=name, id=signal_id, reason=reason
        ) as change:
            (outcome,) = await self._backend.producing.send_signals(
                [NewSignal(job_id, name, signal_id, payload)]
            )
            if outcome is SignalOutcome.UNKNOWN:
                raise JobNotFound(job_id)
            change.count = int(outcome is SignalOutcome.STORED)
        return SentSignal(signal_id, outcome)

    async def _cancel(self, job_id: str) -> CancelOutcome:
        try:
            return (await self._backend.producing.cancel(job_id)).value
        except JobNotFound:
            return "not found"


def check_signal(name: str, payload: bytes) -> None:
    """Raise `InvalidJob` unless a signal can have this name and this payload."""
    from nimburion.core.runs import check_signal_name, check_signal_size

    check_signal_name(name)
    check_signal_size(name, payload)
    try:
        payload.decode()
        msgspec.json.decode(payload)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise InvalidJob(f"signal {name!r}: its value is no JSON: {error}") from None


def batch_ids(ids: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield the ids in batches of one step, each id once."""
    once = tuple(dict.fromkeys(ids))
    for start in range(0, len(once), STEP):
        yield once[start : start + STEP]


async def _list_known(backend: Backend, ids: tuple[str, ...]) -> set[str]:
    known: set[str] = set()
    for some in batch_ids(ids):
        page = await backend.reads.list_jobs(JobFilter(ids=some), limit=STEP)
        known.update(record.id for record in page.jobs)
    return known


def find_target(which: JobFilter) -> str:
    """Return the target of the audit record: the id of a single job."""
    return which.ids[0] if which.ids is not None and len(which.ids) == 1 else ""
