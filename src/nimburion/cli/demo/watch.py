"""What the store says, looked at again and again, and what changed since the last look."""

from __future__ import annotations

from collections import Counter

import msgspec

from nimburion.core.backend import Inspecting
from nimburion.core.job import JobRecord, State
from nimburion.core.paging import every_job
from nimburion.core.session import SessionInfo


class Snapshot(msgspec.Struct, frozen=True):
    """The store at one moment."""

    jobs: dict[str, JobRecord]
    sessions: list[SessionInfo]

    def by_name(self) -> dict[str, Counter[State]]:
        """How many jobs of each name are in each state."""
        counts: dict[str, Counter[State]] = {}
        for record in self.jobs.values():
            counts.setdefault(record.name, Counter())[record.state] += 1
        return dict(sorted(counts.items()))

    def unfinished(self) -> list[JobRecord]:
        """The jobs that are not at their end."""
        return [record for record in self.jobs.values() if not record.state.finished]

    def held_by(self, pid: int) -> list[JobRecord]:
        """The jobs in the hands of one process."""
        ids = {session.id for session in self.sessions if session.pid == pid}
        return [record for record in self.jobs.values() if record.session in ids]


NOTHING = Snapshot({}, [])


async def look(backend: Inspecting) -> Snapshot:
    """Read all jobs and sessions."""
    jobs = {record.id: record async for record in every_job(backend, step=500)}
    oldest_first = dict(reversed(jobs.items()))
    return Snapshot(oldest_first, await backend.sessions())


def changes(before: Snapshot, now: Snapshot) -> list[str]:
    """What happened in between, one line each; what merely began is not told."""
    lines: list[str] = []
    for job_id, record in now.jobs.items():
        earlier = before.jobs.get(job_id)
        if earlier is not None:
            lines += _new_errors(earlier, record)
            lines += _new_state(earlier, record)
    return lines


def _new_errors(earlier: JobRecord, record: JobRecord) -> list[str]:
    lines = []
    for error in record.history[len(earlier.history) :]:
        if error.kind == "lost":
            lines.append(f"rescued    {title(record)}: its worker vanished, it waits again")
        elif record.state is not State.FAILED or error is not record.history[-1]:
            said = f"{error.type}: {error.message}"
            lines.append(f"retrying   {title(record)}: {said}")
    return lines


def _new_state(earlier: JobRecord, record: JobRecord) -> list[str]:
    if record.state is earlier.state:
        return []
    if record.state is State.COMPLETED:
        tries = f" on attempt {record.attempt}" if record.history else ""
        return [f"completed  {title(record)}{tries}"]
    if record.state is State.FAILED:
        error = record.error
        why = f"{error.type}: {error.message.splitlines()[0]}" if error and error.message else ""
        return [f"failed     {title(record)}: {record.reason}: {why}"]
    return []


def title(record: JobRecord) -> str:
    """Name and the telling end of the id."""
    return f"{record.name} …{record.id[-6:]}"
