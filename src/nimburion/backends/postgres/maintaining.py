"""What operators do: what the functions are asked, and what they answer."""

from __future__ import annotations

from typing import Any

from nimburion.backends.packing import micros, unpack_id
from nimburion.core.errors import JobNotFound
from nimburion.core.reading import Cancellation, Replayed, Retention


def cancellation_of(answer: str, job_id: str) -> Cancellation:
    """What `cancel_1` answered.

    Raises:
        JobNotFound: there is no such job.
    """
    if answer == "missing":
        raise JobNotFound(job_id)
    return Cancellation(answer)


def replayed_of(rows: list[Any]) -> Replayed:
    """What `replay_1` answered; its last row says whether there are more."""
    ids = [unpack_id(job_id) for _, job_id, replayed, _ in rows if job_id and replayed]
    held = [unpack_id(job_id) for _, job_id, replayed, _ in rows if job_id and not replayed]
    more = len(rows) > 1 and rows[-1][1] is None
    return Replayed(ids, held, str(rows[-2][0]) if more else None)


def pruning_of(keep: Retention) -> list[Any]:
    """What `prune_1` takes before its bound."""
    spans = (keep.completed, keep.failed, keep.results)
    return [*(None if one is None else micros(one) for one in spans), keep.completed_max]
