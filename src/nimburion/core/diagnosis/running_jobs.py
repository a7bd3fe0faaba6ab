"""Running jobs: how long they have run, how long their names usually take, who runs them."""

from __future__ import annotations

import msgspec

from nimburion.core.audit import list_audit
from nimburion.core.backend import Backend
from nimburion.core.diagnosis.explanations import Facts
from nimburion.core.job import PROCESSING_ONLY, JobRecord, State
from nimburion.core.metrics.statistics import Counters
from nimburion.core.queries import JobFilter
from nimburion.core.session import SessionInfo

_STEP = 3600
_MAX_READ = 1_000
"""The most running jobs of which the longest are looked for, those that were enqueued last."""
_MAX_AUDIT_RECORDS = 500
"""The most audit records in which the request of a cancel is looked for, the newest ones."""


class RunningJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that a worker holds."""

    job: JobRecord
    """Without its payload."""
    seconds: float
    """How long a worker has held it."""
    usual: float | None
    """The usual time of its name, as `read_usual_times` returns it; None if unknown."""
    session: SessionInfo | None
    """The session that holds it; None if it has ended meanwhile."""


class RunningJobs(msgspec.Struct, frozen=True, kw_only=True):
    """The running jobs that match, as far as they were read."""

    jobs: list[RunningJob]
    """The longest first."""
    more: bool
    """Whether there may be others."""


async def list_running_jobs(
    backend: Backend, *, queue: str | None = None, name: str | None = None, limit: int = 100
) -> RunningJobs:
    """Return up to `limit` running jobs that match, the longest first.

    Up to 1,000 are read, those that were enqueued last, and the longest of them are returned.
    """
    now = await backend.now()
    which = JobFilter(states=PROCESSING_ONLY, queue=queue, name=name)
    page = await backend.reads.list_jobs(which, limit=_MAX_READ)
    while not page.jobs and page.next is not None:  # the search ended at its budget
        page = await backend.reads.list_jobs(which, limit=_MAX_READ, after=page.next)
    sessions = {session.id: session for session in await backend.reads.list_sessions()}
    usual = await read_usual_times(backend, now, name=name) if page.jobs else {}
    running = [
        RunningJob(
            job=job,
            seconds=max(0.0, now - (job.started_at or now)),
            usual=usual.get(job.name),
            session=sessions.get(job.session or ""),
        )
        for job in page.jobs
    ]
    running.sort(key=lambda one: (-one.seconds, one.job.id))
    return RunningJobs(jobs=running[:limit], more=page.next is not None or len(running) > limit)


async def read_usual_times(
    backend: Backend, now: float, *, name: str | None = None
) -> dict[str, float]:
    """Return the seconds within which 95 % of the attempts of each name ended lately.

    Lately is the present hour and the one before. A name without attempts is left out.
    """
    rows = await backend.reads.list_statistics(now + 1 - 2 * _STEP, now + 1, _STEP, name=name)
    by_name: dict[str, Counters] = {}
    for row in rows:
        by_name.setdefault(row.name, Counters()).add(row.counters)
    times = {one: counters.run.estimate_quantile(0.95) for one, counters in by_name.items()}
    return {one: seconds for one, seconds in times.items() if seconds is not None}


async def read_facts(backend: Backend, job_id: str) -> Facts:
    """Return what decides whether a job can run, as `explain_job` does. For a running job, add
    the usual time of its name and when its cancel was requested.
    """
    return await complete_facts(backend, await backend.reads.explain_job(job_id))


async def complete_facts(backend: Backend, facts: Facts) -> Facts:
    """Add to the facts of a running job what `explain_job` leaves out."""
    job = facts.job
    if job.state is not State.PROCESSING:
        return facts
    usual = await read_usual_times(backend, facts.now, name=job.name)
    requested_at = await _find_cancel_request(backend, job) if job.cancel_requested else None
    return msgspec.structs.replace(
        facts, usual=usual.get(job.name), cancel_requested_at=requested_at
    )


async def _find_cancel_request(backend: Backend, job: JobRecord) -> float | None:
    """Return when an operator first asked to cancel the running attempt of a job.

    None if the audit log does not say so: code may have asked, or the record is too old.
    """
    page = await list_audit(backend, limit=_MAX_AUDIT_RECORDS)
    times = [
        record.at
        for record in page.records
        if record.action == "jobs.cancel"
        and job.id in {record.target, *record.details.get("ids", "").split()}
        and record.at >= (job.started_at or 0.0)
    ]
    return min(times, default=None)
