"""The outcome of an enqueue: which jobs are stored, which replace a waiting job, which are refused.

A backend reads what it knows about the jobs of a call (`KnownJobs`), and stores what the plan says
in the same atomic step. A backend may store jobs without a unique key and with new ids at once: all
of them are created.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from nimburion.core.ids import compute_digest
from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.timing.clock import to_micros

UniqueKey = tuple[str, str]
"""The name of a job and its unique key."""
REFUSING = frozenset({"conflict", "taken"})
"""The outcomes for which a call stores none of its jobs."""


class KeyHolder(NamedTuple):
    """The job that holds a unique key now."""

    job_id: str
    is_waiting: bool
    """Whether it waits. Only a waiting job can be replaced."""


class Replacement(NamedTuple):
    """What is remembered of an enqueue that replaced a job, so that a repeat is recognised."""

    job_id: str
    """The job that was replaced."""
    digest: bytes
    """The digest of the body that was enqueued."""


class KnownJobs(NamedTuple):
    """What a backend knows about the jobs of a call."""

    digests: Mapping[str, bytes]
    """The digests of the bodies of stored jobs that have an id of the call."""
    holders: Mapping[UniqueKey, KeyHolder]
    """The holders of the unique keys of the call."""
    replacements: Mapping[str, Replacement]
    """The replacements that jobs of the call made before, by their ids. Only jobs with
    `on_duplicate='replace'` need them."""


class EnqueuePlan(NamedTuple):
    """What a call stores, and its result."""

    results: list[Enqueued]
    """One result for each job of the call."""
    new: list[NewJob]
    """The jobs to store. Each takes its unique key."""
    replacing: list[tuple[str, NewJob]]
    """The jobs that replace another one, each with the id of that one. It may be a new job of the
    same call. They are applied in this order, after the new jobs are stored."""


def plan_enqueue(jobs: Sequence[NewJob], known: KnownJobs) -> EnqueuePlan:
    """Decide the outcomes of the jobs of a call.

    Each job is decided as if the jobs before it were stored. One `conflict` or `taken` refuses all
    other jobs.
    """
    digests, holders = dict(known.digests), dict(known.holders)
    replacements = dict(known.replacements)
    known = KnownJobs(digests, holders, replacements)
    plan = EnqueuePlan([], [], [])
    unkeyed: dict[str, NewJob] = {}
    """New jobs without a unique key. Their digests are only needed if an id occurs twice."""
    for job in jobs:
        earlier = unkeyed.get(job.id)
        if earlier is not None:
            digests[job.id] = compute_digest(earlier.name, earlier.payload)
        elif job.options.unique_key is None and job.id not in digests:
            unkeyed[job.id] = job
            plan.results.append(Enqueued(job.id, "created"))
            plan.new.append(job)
            continue
        digest = compute_digest(job.name, job.payload)
        result = decide_outcome(job, digest, known)
        plan.results.append(result)
        if result.outcome == "created":
            digests[job.id] = digest
            if job.options.unique_key is not None:
                holders[job.name, job.options.unique_key] = KeyHolder(job.id, is_waiting=True)
            plan.new.append(job)
        elif result.outcome == "replaced" and job.id not in replacements:
            replacements[job.id] = Replacement(result.id, digest)
            plan.replacing.append((result.id, job))
    if not is_stored(plan.results):
        return EnqueuePlan(refuse_others(jobs, plan.results), [], [])
    return plan


def decide_outcome(job: NewJob, digest: bytes, known: KnownJobs) -> Enqueued:
    """Return the outcome of one job, whose body has this digest."""
    if job.id in known.digests:
        return Enqueued(job.id, "exists" if known.digests[job.id] == digest else "conflict")
    key = job.options.unique_key
    if key is None:
        return Enqueued(job.id, "created")
    return decide_keyed(job, digest, known.holders.get((job.name, key)), known.replacements)


def decide_keyed(
    job: NewJob,
    digest: bytes,
    holder: KeyHolder | None,
    replacements: Mapping[str, Replacement],
) -> Enqueued:
    """Return the outcome of a job with a new id and a unique key, which `holder` holds."""
    replaces = job.options.on_duplicate == "replace"
    if replaces and job.id in replacements:
        replaced_id, known_digest = replacements[job.id]
        if known_digest == digest:
            return Enqueued(replaced_id, "replaced")
        return Enqueued(job.id, "conflict")
    if holder is None:
        return Enqueued(job.id, "created")
    if job.options.on_duplicate == "existing":
        return Enqueued(holder.job_id, "exists")
    if replaces and holder.is_waiting:
        return Enqueued(holder.job_id, "replaced")
    return Enqueued(holder.job_id, "taken")


def is_stored(results: Sequence[Enqueued]) -> bool:
    """Return whether a call with these results stores its jobs."""
    return not any(result.outcome in REFUSING for result in results)


def refuse_others(jobs: Sequence[NewJob], results: Sequence[Enqueued]) -> list[Enqueued]:
    """Return the results of a call that stores nothing, because of one of these results."""
    return [
        result if result.outcome in REFUSING else Enqueued(job.id, "refused")
        for job, result in zip(jobs, results, strict=True)
    ]


def compute_due(job: NewJob, now: int) -> int:
    """Return the due time of a new job."""
    if job.at is not None:
        return to_micros(job.at)
    return now + max(0, to_micros(job.after)) if job.after else now


def compute_replaced_due(
    job: NewJob, now: int, *, created_at: int, old_due: int, failures: int
) -> int:
    """Return the due time of a waiting job that `job` replaces.

    `created_at`, `old_due` and `failures` are those of the waiting job. With `max_wait`, it is due
    at most that long after its first enqueue, but not before now. A job that has failed keeps its
    due time if that is later.
    """
    due = compute_due(job, now)
    max_wait = job.options.max_wait
    if max_wait is not None:
        due = min(due, max(now, created_at + to_micros(max_wait)))
    return max(due, old_due) if failures else due


def compute_key_end(options: JobOptions, now: int) -> int | None:
    """Return until when a job holds the unique key that it takes now; None: no fixed time."""
    return None if options.unique_for is None else now + to_micros(options.unique_for)


def holds_key(
    now: int, valid_until: int | None, states: Collection[State] | None, state: State | None
) -> bool:
    """Return whether a job still holds the unique key that it has taken.

    `states`: it holds the key only in these; None: in each. `state`: that of the job; None: the job
    was deleted, or `states` is None.
    """
    if valid_until is not None and valid_until <= now:
        return False
    return states is None or state in states
