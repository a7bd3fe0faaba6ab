"""Child jobs of a durable run: their ids, how they are stored, and their outcomes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from msgspec import Raw

from nimburion.core.errors import (
    BackendUnavailable,
    ChildFailed,
    InvalidStep,
    JobConflict,
    NimburionError,
    NotOpen,
    ResultNotKept,
)
from nimburion.core.flows import SourceKind, WaitSource
from nimburion.core.job import JobRecord, State
from nimburion.core.result_errors import decode_result_error
from nimburion.core.size_limits import NAME_PATTERN, SizeLimits
from nimburion.jobs.declaration.job import AnyJob, JobFunction, require_declaration
from nimburion.jobs.declaration.signature import read_return_type
from nimburion.jobs.durable.branches import Wait
from nimburion.jobs.durable.journal import ChildrenEntry, OutcomeEntry, StoredEntry
from nimburion.jobs.durable.run import CallSite, DurableRun
from nimburion.jobs.durable.steps import NO_OPTIONS, StepCall, make_error, run_step
from nimburion.jobs.durable.stored_errors import encode_error
from nimburion.jobs.payloads.codec import ResultCodec

if TYPE_CHECKING:
    from nimburion.jobs.declaration.job import JobId, JobReturning
    from nimburion.jobs.options.enqueue_options import EnqueueOptions

R = TypeVar("R")
T = TypeVar("T")

MAX_CHILDREN = 10_000
"""The most child jobs of one call."""
MAX_RESULT_BYTES = 1024 * 1024
"""The maximum size of the results of the child jobs of one call, as JSON."""
_MAX_FLOW_ID = 120
"""The most characters of the id of the flow: those of its members are longer."""
_LIKE_A_GENERATION = re.compile(r":\d+$")
"""The end of a job's id that looks as if the run had begun anew."""
_CANCELLED_TOGETHER = 500
_READ_TOGETHER = 100
"""Job records read at a time: each may have a result of 256 KiB."""


def make_flow_id(job_id: str, generation: int, key: str) -> str:
    """Return the id of the flow of the child jobs with a key.

    >>> make_flow_id("import-1", 0, "parts"), make_flow_id("import-1", 2, "parts")
    ('import-1.parts', 'import-1:2.parts')

    Two runs never share one. So a key with a dot becomes a digest, as does one that is too long.
    """
    run = f"{job_id}:{generation}" if generation else job_id
    flow_id = f"{run}.{key}"
    is_unique = "." not in key and not _LIKE_A_GENERATION.search(job_id)
    if is_unique and len(flow_id) <= _MAX_FLOW_ID and NAME_PATTERN.fullmatch(flow_id):
        return flow_id
    digest = _digest(f"{job_id}\0{generation}\0{key}")
    flow_id = f"{run}.{digest}"
    return flow_id if len(flow_id) <= _MAX_FLOW_ID else digest


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def list_child_ids(entry: ChildrenEntry) -> list[str]:
    """Return the ids of the child jobs."""
    return [f"{entry.flow}.{number}" for number in range(entry.count)]


async def start_children(
    run: DurableRun, key: str, place: CallSite, jobs: Sequence[AnyJob], *, detached: bool = False
) -> StoredEntry:
    """Store child jobs, unless an earlier attempt has, and return their entry.

    Those that are `detached` are not cancelled with the run.
    """
    run.begin("child job", key, place)
    digest = _compute_digest(jobs, run.services.sizes)
    stored = run.journal.find_passed(ChildrenEntry, key)
    if stored is not None:
        entry = cast("ChildrenEntry", stored.entry)
        if entry.arguments != digest:
            run.note_difference("child jobs", key, place)
        if entry.count != len(jobs):
            raise InvalidStep(
                f"{place}: {len(jobs)} child jobs have the key {key!r}, and an earlier attempt "
                f"started {entry.count}; the code between two steps must give the same each time. "
                "Do what changes in a step"
            )
        run.note_passed(stored)
        return stored
    await run.require_may_begin()
    if len(jobs) > MAX_CHILDREN:
        raise InvalidStep(
            f"{place}: {len(jobs)} child jobs, over the limit of {MAX_CHILDREN} for one call; "
            "start them in parts, each with its own key"
        )
    run.branches.begin_work()
    try:
        if not detached:
            run.recorder.require_cleanup()
        await run.record_first()
        flow_id = make_flow_id(run.job_id, run.generation, key)
        try:
            await run.services.enqueue_children(flow_id, key, jobs)
        except JobConflict:  # an earlier attempt stored them, but not their entry
            run.note_difference("child jobs", key, place)
        except BackendUnavailable as error:  # some may be stored; a repeat stores the others
            await run.stop_without_answer(f"its child jobs could not be stored: {error}")
        names = dict.fromkeys(require_declaration(job).name for job in jobs)
        entry = ChildrenEntry(key, flow_id, tuple(names), len(jobs), digest, detached)
        return run.recorder.send(entry)
    finally:
        run.branches.end_work()


async def enqueue_once(
    run: DurableRun,
    key: str,
    job: JobReturning[R],
    options: EnqueueOptions,
    place: CallSite,
) -> JobId[R]:
    """Store a job as a step of the run, and return its id."""
    client = run.worker.client
    if client is None:
        raise NotOpen("this context has no processor to enqueue with")

    async def enqueue(job: JobReturning[R]) -> str:
        options.setdefault("id", make_flow_id(run.job_id, run.generation, f"enqueue:{key}"))
        return await client.enqueue(job, **options)

    call = StepCall(f"enqueue {key}", enqueue, (job,), {}, NO_OPTIONS, place)
    return cast("JobId[R]", await run_step(run, call))


async def wait_for_children(
    run: DurableRun, stored: StoredEntry, jobs: Sequence[AnyJob]
) -> list[Any]:
    """Return the results of child jobs, in their order. `ChildFailed` is raised for the first that
    failed or was cancelled, when all have ended.
    """
    entry = cast("ChildrenEntry", stored.entry)
    outcome = run.journal.find_passed(OutcomeEntry, entry.key)
    if outcome is not None:
        run.note_passed(outcome)
        return _read_outcome(run, entry.key, cast("OutcomeEntry", outcome.entry), jobs)
    await run.require_may_begin()
    if stored.at is not None:  # else they were stored now: the backend says when they have ended
        run.branches.begin_work()
        try:
            ended = await _read_ended(run, entry)
            if ended is not None:
                return await _take_results(run, entry, ended, jobs)
        finally:
            run.branches.end_work()
    await run.branches.wait(Wait((WaitSource(SourceKind.FLOW, entry.flow),)))
    raise AssertionError("a wait for child jobs ends with a new attempt")


class ChildJob(Generic[R]):
    """A child job of a durable run: what `ctx.start` returns."""

    __slots__ = ("_job", "_run", "_stored", "id")

    def __init__(
        self, run: DurableRun, stored: StoredEntry, job: JobReturning[R], job_id: str
    ) -> None:
        self.id: str = job_id
        """The id of the job."""
        self._run = run
        self._stored = stored
        self._job = job

    async def result(self) -> R:
        """Return the result of the job when it has ended. The run is suspended meanwhile.

        `ChildFailed` is raised when the job has failed for good or was cancelled, and
        `ResultNotKept` when it is completed but its result or its record is not kept.
        """
        jobs = [cast("AnyJob", self._job)]
        (result,) = await wait_for_children(self._run, self._stored, jobs)
        return cast("R", result)

    def __repr__(self) -> str:
        return f"<child job {self.id}>"


def get_flow(child: ChildJob[Any]) -> str:
    """Return the id of the flow whose only member a child job is."""
    return cast("ChildrenEntry", child._stored.entry).flow


def belongs_to(run: DurableRun, child: ChildJob[Any]) -> bool:
    """Return whether a run started a child job."""
    return child._run is run


async def read_ends(run: DurableRun, children: Sequence[ChildJob[Any]]) -> dict[str, float]:
    """Return when child jobs have ended, by their ids, without those that have not.

    A job that the backend does not keep any more has ended at an unknown time: 0.
    """
    ids = [child.id for child in children if child._stored.at is not None]  # others began now
    ends: dict[str, float] = {}
    for start in range(0, len(ids), _READ_TOGETHER):
        some = ids[start : start + _READ_TOGETHER]
        found = await _read(run, run.services.read_records(some))
        for job_id in some:
            record = found.get(job_id)
            if record is None or record.state.finished:
                ends[job_id] = 0.0 if record is None else record.finished_at or 0.0
    return ends


async def cancel_children(run: DurableRun) -> None:
    """Cancel the child jobs that have not ended, without those that are detached."""
    entries = run.journal.list_entries()
    ended = {one.key for one in entries if isinstance(one, OutcomeEntry)}
    ids = [
        job_id
        for one in entries
        if isinstance(one, ChildrenEntry) and not one.detached and one.key not in ended
        for job_id in list_child_ids(one)
    ]
    for start in range(0, len(ids), _CANCELLED_TOGETHER):
        await run.services.cancel_jobs(ids[start : start + _CANCELLED_TOGETHER])


async def _read(run: DurableRun, reading: Awaitable[T]) -> T:
    """Return what the backend says of child jobs. If it does not answer, end this attempt."""
    try:
        return await reading
    except BackendUnavailable as error:
        await run.stop_without_answer(f"its child jobs could not be read: {error}")


class _EndedChildren(NamedTuple):
    """How child jobs have ended."""

    values: tuple[Raw, ...]
    """Their results in their order, up to the limit of their size."""
    size: int
    """The size of all results, in bytes."""
    error: NimburionError | None
    """Why the first job without a result has none."""


async def _read_ended(run: DurableRun, entry: ChildrenEntry) -> _EndedChildren | None:
    """Return how child jobs have ended; None if some have not."""
    services, ids = run.services, list_child_ids(entry)
    if len(ids) > 1:
        unfinished = await _read(run, services.count_unfinished(entry.flow))
        if unfinished:
            return None
    values: list[Raw] = []
    size, error = 0, None
    for start in range(0, len(ids), _READ_TOGETHER):
        some = ids[start : start + _READ_TOGETHER]
        found = await _read(run, services.read_records(some))
        for job_id in some:
            record = found.get(job_id)
            if record is not None and not record.state.finished:
                return None
            result = _read_result(job_id, record)
            if not isinstance(result, Raw):
                error = error or result
                continue
            size += len(bytes(result))
            if size <= MAX_RESULT_BYTES:
                values.append(result)
    return _EndedChildren(tuple(values), size, error)


async def _take_results(
    run: DurableRun, entry: ChildrenEntry, ended: _EndedChildren, jobs: Sequence[AnyJob]
) -> list[Any]:
    """Store the results and return them, or raise the error of the first job without one."""
    if ended.error is not None:
        raise _note_error(run, entry.key, ended.error)
    if ended.size > MAX_RESULT_BYTES:
        error = InvalidStep(
            f"the results of the child jobs {entry.key!r} are {ended.size} bytes, over the limit "
            f"of {MAX_RESULT_BYTES}; let the jobs store them elsewhere and return their location"
        )
        raise _note_error(run, entry.key, error)
    run.recorder.check_size(ended.size)
    outcome = OutcomeEntry(entry.key, ended.values)
    await run.record_entry(outcome)
    return _read_outcome(run, entry.key, outcome, jobs)


def _note_error(run: DurableRun, key: str, error: NimburionError) -> NimburionError:
    run.recorder.note_raised(error, OutcomeEntry(key, error=encode_error(error)))
    return error


def _read_result(job_id: str, record: JobRecord | None) -> Raw | NimburionError:
    if record is None:
        return ResultNotKept(job_id, "its record is not kept any more")
    if record.state is not State.COMPLETED:
        reason = record.reason
        if record.state is State.FAILED and record.error is not None:
            reason = f"{record.error.type}: {record.error.message}"
        return ChildFailed(job_id, record.name, record.state.value, reason)
    reason = decode_result_error(record.result)
    if reason is not None:
        return ResultNotKept(job_id, reason)
    return Raw(record.result or b"null")


def _read_outcome(
    run: DurableRun, key: str, entry: OutcomeEntry, jobs: Sequence[AnyJob]
) -> list[Any]:
    if entry.error is not None:
        error = make_error(key, entry.error)
        run.recorder.note_replayed(error, entry)
        raise error
    codecs: dict[str, ResultCodec] = {}
    values = []
    for job, value in zip(jobs, entry.values, strict=True):
        name = require_declaration(job).name
        if name not in codecs:
            codecs[name] = _make_codec(job)
        values.append(codecs[name].decode(bytes(value)))
    return values


def _make_codec(job: AnyJob) -> ResultCodec:
    """Return what decodes the result of a child job."""
    declaration = require_declaration(job)
    target = declaration.target
    if isinstance(target, JobFunction):
        return ResultCodec(declaration.name, read_return_type(declaration.name, target.function))
    return ResultCodec(declaration.name, read_return_type(declaration.name, target.process))


def _compute_digest(jobs: Sequence[AnyJob], sizes: SizeLimits) -> str:
    """Return a digest of the names and the arguments of jobs."""
    digest = hashlib.blake2b(digest_size=8)
    for job in jobs:
        declaration = require_declaration(job)
        digest.update(declaration.name.encode() + b"\0" + declaration.encode(job, sizes) + b"\0")
    return digest.hexdigest()
