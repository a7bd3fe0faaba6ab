"""Make many waiting jobs due, and say what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nimburion.core.backend import Backend
from nimburion.core.queries import JobFilter

DueOutcome = Literal["due", "unchanged", "not found"]
"""`unchanged`: the job was due already, runs or has ended."""


async def run_now(backend: Backend, job_ids: Sequence[str]) -> dict[str, DueOutcome]:
    """Make jobs due as `Backend.make_due` does, and return the outcome of each by id."""
    outcomes: dict[str, DueOutcome] = dict.fromkeys(job_ids, "unchanged")
    for job_id in await backend.make_due(job_ids):
        outcomes[job_id] = "due"
    others = tuple(job_id for job_id, outcome in outcomes.items() if outcome != "due")
    if others:
        page = await backend.list_jobs(JobFilter(ids=others), limit=len(others))
        known = {job.id for job in page.jobs}
        outcomes |= dict.fromkeys((one for one in others if one not in known), "not found")
    return outcomes
