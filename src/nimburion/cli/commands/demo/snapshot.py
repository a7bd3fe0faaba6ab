"""Snapshots of the jobs of the demo, their changes and the final totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from nimburion.core.backend import Inspecting
from nimburion.core.job import JobRecord, Reason, State
from nimburion.core.paging import iterate_jobs
from nimburion.core.session import SessionInfo


class Snapshot(msgspec.Struct, frozen=True):
    """All jobs and sessions at one time."""

    jobs: dict[str, JobRecord]
    sessions: list[SessionInfo]

    def count_by_name(self) -> dict[str, Counter[State]]:
        """Return the number of jobs by name and state."""
        counts: dict[str, Counter[State]] = {}
        for record in self.jobs.values():
            counts.setdefault(record.name, Counter())[record.state] += 1
        return dict(sorted(counts.items()))

    def list_unfinished(self) -> list[JobRecord]:
        """Return the jobs that have not ended."""
        return [record for record in self.jobs.values() if not record.state.finished]

    def list_held_by(self, pid: int) -> list[JobRecord]:
        """Return the jobs that one worker process has leased."""
        ids = {session.id for session in self.sessions if session.pid == pid}
        return [record for record in self.jobs.values() if record.session in ids]


EMPTY = Snapshot({}, [])


async def take_snapshot(backend: Inspecting) -> Snapshot:
    """Read all jobs and sessions."""
    jobs = {record.id: record async for record in iterate_jobs(backend, step=500)}
    oldest_first = dict(reversed(jobs.items()))
    return Snapshot(oldest_first, await backend.list_sessions())


def describe_changes(before: Snapshot, now: Snapshot) -> list[str]:
    """Return one line for each job that failed, was rescued or ended between two snapshots."""
    lines: list[str] = []
    for job_id, record in now.jobs.items():
        earlier = before.jobs.get(job_id)
        if earlier is not None:
            lines += _describe_new_errors(earlier, record)
            lines += _describe_new_state(earlier, record)
    return lines


def _describe_new_errors(earlier: JobRecord, record: JobRecord) -> list[str]:
    lines = []
    for error in record.history[len(earlier.history) :]:
        if error.kind == "lost":
            lines.append(f"rescued    {_make_title(record)}: its worker died, it waits again")
        elif record.state is not State.FAILED or error is not record.history[-1]:
            lines.append(f"retrying   {_make_title(record)}: {error.type}: {error.message}")
    return lines


def _describe_new_state(earlier: JobRecord, record: JobRecord) -> list[str]:
    if record.state is earlier.state:
        return []
    if record.state is State.COMPLETED:
        attempt = f" on attempt {record.attempt}" if record.history else ""
        return [f"completed  {_make_title(record)}{attempt}"]
    if record.state is State.FAILED:
        error = record.error
        why = f"{error.type}: {error.message.splitlines()[0]}" if error and error.message else ""
        return [f"failed     {_make_title(record)}: {record.reason}: {why}"]
    return []


def _make_title(record: JobRecord) -> str:
    """Return the name and the end of the id of a job; ids differ at the end."""
    return f"{record.name} …{record.id[-6:]}"


class Totals(msgspec.Struct):
    """The numbers of jobs of one name."""

    name: str
    enqueued: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    rescued: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether every job that was enqueued has ended."""
        return self.enqueued == self.completed + self.failed + self.cancelled


def count_totals(ids: set[str], snapshot: Snapshot) -> list[Totals]:
    """Return the totals by name, then the grand total. `ids` are the ids that enqueue returned,
    independent of the backend."""
    by_name: dict[str, Totals] = {}
    for record in snapshot.jobs.values():
        _add(by_name.setdefault(record.name, Totals(record.name)), record)
    rows = sorted(by_name.values(), key=lambda row: row.name)
    total = _sum_up(rows)
    total.enqueued = len(ids)
    return [*rows, total]


def is_accounted_for(ids: set[str], snapshot: Snapshot) -> bool:
    """Return whether every id has a record, every record has an id, and all jobs have ended."""
    rows = count_totals(ids, snapshot)
    return snapshot.jobs.keys() == ids and all(row.is_balanced for row in rows)


def _add(row: Totals, record: JobRecord) -> None:
    row.enqueued += 1
    row.completed += record.state is State.COMPLETED
    row.failed += record.state is State.FAILED
    row.cancelled += record.state is State.CANCELLED
    kinds = [error.kind for error in record.history]
    row.rescued += kinds.count("lost")
    row.retried += kinds.count("failure") + kinds.count("timeout")
    row.retried -= record.state is State.FAILED and record.reason == Reason.EXHAUSTED


def _sum_up(rows: Iterable[Totals]) -> Totals:
    total = Totals("total")
    for row in rows:
        for field in Totals.__struct_fields__[1:]:
            setattr(total, field, getattr(total, field) + getattr(row, field))
    return total
