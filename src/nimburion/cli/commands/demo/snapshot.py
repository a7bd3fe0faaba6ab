"""Snapshots of the jobs of the demo, their changes and the final totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.job import AttemptError, JobRecord, Reason, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.session import SessionInfo


class Snapshot(msgspec.Struct, frozen=True):
    """All jobs and sessions at one time."""

    jobs: dict[str, JobRecord]
    sessions: list[SessionInfo]

    def list_unfinished(self) -> list[JobRecord]:
        """Return the jobs that have not ended."""
        return [record for record in self.jobs.values() if not record.state.finished]

    def list_held_by(self, pid: int) -> list[JobRecord]:
        """Return the jobs that one worker process has leased."""
        ids = {session.id for session in self.sessions if session.pid == pid}
        return [record for record in self.jobs.values() if record.session in ids]


EMPTY = Snapshot({}, [])


async def take_snapshot(backend: Backend) -> Snapshot:
    """Read all jobs and sessions."""
    jobs = {record.id: record async for record in iterate_jobs(backend, step=500)}
    oldest_first = dict(reversed(jobs.items()))
    return Snapshot(oldest_first, await backend.reads.list_sessions())


def describe_changes(before: Snapshot, now: Snapshot) -> Iterator[str]:
    """Yield one line for each job that failed, was rescued or ended between two snapshots."""
    for job_id, record in now.jobs.items():
        if earlier := before.jobs.get(job_id):
            title = f"{record.name} …{record.id[-6:]}"  # ids differ at the end
            yield from _describe_errors(title, record, record.history[len(earlier.history) :])
            if record.state is not earlier.state:
                yield from _describe_end(title, record)


def _describe_errors(title: str, record: JobRecord, new: Sequence[AttemptError]) -> Iterator[str]:
    for error in new:
        if error.kind == "lost":
            yield f"rescued    {title}: its worker died, it waits again"
        elif record.state is not State.FAILED or error is not record.history[-1]:
            yield f"retrying   {title}: {error.type}: {error.message}"


def _describe_end(title: str, record: JobRecord) -> Iterator[str]:
    if record.state is State.COMPLETED:
        yield f"completed  {title}" + (f" on attempt {record.attempt}" if record.history else "")
    elif record.state is State.FAILED and (error := record.error):
        why = error.message.partition("\n")[0]
        yield f"failed     {title}: {record.reason}: {error.type}: {why}"


COLUMNS = ("enqueued", "completed", "failed", "cancelled", "retried", "rescued")
"""What is counted of the jobs of each name."""


def count_totals(ids: set[str], snapshot: Snapshot) -> dict[str, Counter[str]]:
    """Return the counts by name, then those of all jobs. `ids` are the ids that enqueue returned,
    independent of the backend."""
    rows: dict[str, Counter[str]] = {}
    for record in sorted(snapshot.jobs.values(), key=lambda record: record.name):
        rows.setdefault(record.name, Counter()).update(_count(record))
    total: Counter[str] = sum(rows.values(), Counter())
    total["enqueued"] = len(ids)
    return {**rows, "total": total}


def is_accounted_for(ids: set[str], snapshot: Snapshot) -> bool:
    """Return whether every id has a record, every record has an id, and all jobs have ended."""
    return snapshot.jobs.keys() == ids and not snapshot.list_unfinished()


def _count(record: JobRecord) -> dict[str, int]:
    kinds = [error.kind for error in record.history]
    retried = kinds.count("failure") + kinds.count("timeout")
    retried -= record.state is State.FAILED and record.reason == Reason.EXHAUSTED
    return {"enqueued": 1, record.state: 1, "retried": retried, "rescued": kinds.count("lost")}
