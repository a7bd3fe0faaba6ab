"""Cancel many jobs, one after another, and count what became of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from nimburion.core.backend import Backend
from nimburion.core.errors import JobNotFound

CancelOutcome = Literal["cancelled", "requested", "finished", "not found"]
"""A value of `Cancellation`, or `not found` for an id that no job has."""


async def cancel_if_found(backend: Backend, job_id: str) -> CancelOutcome:
    """Cancel a job as `Backend.cancel` does, and return the outcome. An unknown id is no error."""
    try:
        return (await backend.cancel(job_id)).value
    except JobNotFound:
        return "not found"


def count_cancelled(outcomes: Iterable[str]) -> int:
    """Return how many jobs were cancelled, or will be asked to end."""
    return sum(outcome in {"cancelled", "requested"} for outcome in outcomes)
