"""Read the statuses of jobs, and wait for the results of jobs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import (
    BackendUnavailable,
    JobNotCompleted,
    JobNotFound,
    ResultNotKept,
    WaitTimeout,
)
from nimburion.core.job import JobRecord, State
from nimburion.core.queries import JobFilter, Page
from nimburion.core.result_errors import decode_result_error
from nimburion.core.timing.clock import Clock
from nimburion.core.timing.pauses import iterate_pauses
from nimburion.jobs.client.batching import CALL_STARTED, choose_limit
from nimburion.jobs.client.status import Status, make_status
from nimburion.jobs.declaration.registry import Registry

if TYPE_CHECKING:
    from nimburion.core.queries import QueueInfo
    from nimburion.jobs.outbox.database import OutboxDatabase
    from nimburion.jobs.outbox.outbox import Outbox, OutboxRows, WaitingJob

_FIRST_POLL_PAUSE = 0.01
"""Seconds between the first two queries of `wait`."""
_MAX_POLL_PAUSE = 1.0
"""The longest time in seconds between two queries of `wait`."""
_MAX_READ = 1_000
"""The most jobs that one query of the backend reads by id."""
_MIN_QUERY_TIMEOUT = 0.25
"""Seconds that the backend has to answer, even when the timeout is almost over."""


class _FoundJobs(NamedTuple):
    """What one query of `wait` has found."""

    records: dict[str, JobRecord]
    waiting: dict[str, WaitingJob]
    """Jobs without a record that wait in the outbox, by id."""


class StatusReader:
    """Reads jobs by id in the backend and in the outbox, and waits until they have ended."""

    def __init__(
        self,
        backend: Backend,
        outbox: Outbox | None,
        registry: Registry,
        clock: Clock,
        *,
        timeout: float,
        check_open: Callable[[], None],
    ) -> None:
        self._backend = backend
        self._rows: OutboxRows | None = None
        if outbox is not None:
            from nimburion.jobs.outbox.outbox import get_rows  # loaded already: there is an outbox

            self._rows = get_rows(outbox)
        self._registry = registry
        self._clock = clock
        self._timeout = timeout
        """Seconds that one read may take on a server."""
        self._check_open = check_open
        """Raises `NotOpen` if the client is not open on this event loop."""

    async def get_statuses(self, job_ids: Sequence[str]) -> dict[str, Status | None]:
        """See `Client.get_statuses`."""
        async with self._limit_reading(), self._open_outbox() as outbox:
            found = await self._find_jobs(job_ids, outbox, payloads=True)
        now, records = self._clock.now(), found.records
        for job_id, job in found.waiting.items():
            record = job.make_record(now)
            if record is not None:
                records[job_id] = record
        return {
            job_id: make_status(record, self._find_result_decoder(record.name))
            if (record := records.get(job_id))
            else None
            for job_id in job_ids
        }

    async def list_queues(self) -> list[QueueInfo]:
        """Return all queues with the numbers of their jobs."""
        self._check_open()
        async with self._limit_reading():
            return await self._backend.reads.list_queues(budget=None)

    async def read_records(self, job_ids: Sequence[str]) -> dict[str, JobRecord]:
        """Return the records of those jobs that the backend has, without payloads, by id."""
        async with self._limit_reading():
            return await self._find_records(job_ids)

    async def wait_all(
        self,
        job_ids: Sequence[str],
        seconds: float | None,
        *,
        return_exceptions: bool,
        missing_ok: bool,
    ) -> list[Any]:
        """See `Client.wait_all`."""
        deadline = None if seconds is None else _get_call_start(self._clock) + seconds
        pauses = iterate_pauses(_FIRST_POLL_PAUSE, _MAX_POLL_PAUSE, factor=1.5)
        outcomes: dict[str, object] = {}
        waiting = list(dict.fromkeys(job_ids))
        async with self._open_outbox() as outbox:
            while waiting:
                try:
                    found = await self._find_before(
                        deadline, waiting, seconds, None if missing_ok else outbox
                    )
                except WaitTimeout as late:
                    new: dict[str, object] = dict.fromkeys(waiting, late)
                else:
                    new = self._read_outcomes(waiting, found, missing_ok=missing_ok)
                    if deadline is not None and self._clock.monotonic() >= deadline:
                        new = _make_wait_timeouts(waiting, found, seconds) | new
                if not return_exceptions:
                    _raise_first(new.values())
                outcomes |= new
                waiting = [job_id for job_id in waiting if job_id not in new]
                if waiting:
                    left = math.inf if deadline is None else deadline - self._clock.monotonic()
                    await self._clock.sleep(min(next(pauses), left))
        return [outcomes[job_id] for job_id in job_ids]

    @asynccontextmanager
    async def _limit_reading(self) -> AsyncIterator[None]:
        """Raise `BackendUnavailable` if the block does not end in the time that an enqueue has.

        The time includes the wait for a connection that other calls use. A backend in this process
        has no limit, because counting millions of jobs in a file takes long.
        """
        seconds = self._timeout
        is_remote = self._backend.capabilities.out_of_process
        time = asyncio.timeout(choose_limit(seconds) if is_remote else None)
        try:
            async with time:
                yield
        except TimeoutError as error:
            if not time.expired():
                raise
            raise BackendUnavailable(
                f"{self._backend.describe()}: no answer within {seconds:g} s", outcome="not applied"
            ) from error

    async def _find_records(
        self, job_ids: Sequence[str], *, payloads: bool = False
    ) -> dict[str, JobRecord]:
        """Return the records of those jobs that exist, by id."""
        self._check_open()
        reads = self._backend.reads
        if len(job_ids) == 1:
            with suppress(JobNotFound):
                return {job_ids[0]: await reads.get_job(job_ids[0])}
            return {}
        found: dict[str, JobRecord] = {}
        for start in range(0, len(job_ids), _MAX_READ):
            some = tuple(job_ids[start : start + _MAX_READ])
            page: Page | None = None
            while page is None or page.next is not None:
                page = await reads.list_jobs(
                    JobFilter(ids=some),
                    limit=len(some),
                    after=None if page is None else page.next,
                    payloads=payloads,
                )
                found |= {record.id: record for record in page.jobs}
        return found

    async def _find_before(
        self,
        deadline: float | None,
        job_ids: Sequence[str],
        seconds: float | None,
        outbox: OutboxDatabase | None,
    ) -> _FoundJobs:
        """Return what the backend and the outbox know about these jobs.

        `WaitTimeout` is raised when one of them does not answer before `deadline`.
        """
        if deadline is None:
            return await self._find_jobs(job_ids, outbox)
        time = asyncio.timeout(max(_MIN_QUERY_TIMEOUT, deadline - self._clock.monotonic()))
        try:
            async with time:
                return await self._find_jobs(job_ids, outbox)
        except TimeoutError as error:
            if not time.expired():
                raise
            or_outbox = "" if outbox is None else " or the database of the outbox"
            raise WaitTimeout(
                f"job {job_ids[0]}: {self._backend.describe()}{or_outbox} did not answer within "
                f"the {seconds:g} s of waiting"
            ) from error

    def _open_outbox(self) -> AbstractAsyncContextManager[OutboxDatabase | None]:
        return nullcontext() if self._rows is None else self._rows.open_database()

    async def _find_jobs(
        self, job_ids: Sequence[str], outbox: OutboxDatabase | None, *, payloads: bool = False
    ) -> _FoundJobs:
        """Return the records of those jobs that exist, and which others wait in the outbox."""
        records = await self._find_records(job_ids, payloads=payloads)
        missing = [job_id for job_id in job_ids if job_id not in records]
        if self._rows is None or outbox is None or not missing:
            return _FoundJobs(records, {})
        waiting = await self._rows.find_waiting(outbox, missing)
        others = [job_id for job_id in missing if job_id not in waiting]
        if others:  # they may have been relayed since the first query
            records |= await self._find_records(others, payloads=payloads)
        return _FoundJobs(records, waiting)

    def _read_outcomes(
        self, job_ids: Iterable[str], found: _FoundJobs, *, missing_ok: bool
    ) -> dict[str, object]:
        """Return the result of each job that has ended, or the error that `wait` raises for it."""
        outcomes: dict[str, object] = {}
        for job_id in job_ids:
            record = found.records.get(job_id)
            if record is not None and record.state.finished:
                outcomes[job_id] = self._read_outcome(record)
            elif record is None and not missing_ok and job_id not in found.waiting:
                outcomes[job_id] = JobNotFound(job_id)
        return outcomes

    def _read_outcome(self, record: JobRecord) -> object:
        """Return the result of a job that has ended, or the error that `wait` raises for it."""
        if record.state is not State.COMPLETED:
            return JobNotCompleted(record.id, record.state, _describe_end(record))
        reason = decode_result_error(record.result)
        if reason is not None:
            return ResultNotKept(record.id, reason)
        if record.result is None:
            return None
        return self._find_result_decoder(record.name)(record.result)

    def _find_result_decoder(self, name: str) -> Callable[[bytes], Any]:
        handler = self._registry.get(name)
        return msgspec.json.decode if handler is None else handler.decode_result


def _get_call_start(clock: Clock) -> float:
    """Return the monotonic time at which the current call started."""
    started = CALL_STARTED.get()
    return clock.monotonic() if started is None else started


def _raise_first(outcomes: Iterable[object]) -> None:
    """Raise the first error among the outcomes of jobs."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def _make_wait_timeouts(
    job_ids: Iterable[str], found: _FoundJobs, seconds: float | None
) -> dict[str, object]:
    """Return the error of each job for the case that it does not end in time."""
    errors: dict[str, object] = {}
    for job_id in job_ids:
        record = found.records.get(job_id)
        if record is not None:
            state, advice = (
                f"is {record.state}",
                f"; `nimburion why {job_id}` says what it waits for",
            )
        elif job_id in found.waiting:
            state, advice = "is in the outbox, not relayed yet,", ""
        else:
            state, advice = "does not exist", ""
        errors[job_id] = WaitTimeout(f"job {job_id} {state} after {seconds:g} s of waiting{advice}")
    return errors


def _describe_end(record: JobRecord) -> str | None:
    """Return the reason why a job ended, with its last error if it failed with one."""
    error = record.error
    if record.state is not State.FAILED or error is None:
        return record.reason
    return f"{record.reason}: {error.type}: {error.message}"
