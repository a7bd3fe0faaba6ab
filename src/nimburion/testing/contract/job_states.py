"""A job in each state, for cases that run through all states."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nimburion.core.settlement import Cancelled, Completed, Failed, Progressed, Released, Retried
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness


async def _pending(harness: Harness) -> str:
    return (await harness.add())[0]


async def _scheduled(harness: Harness) -> str:
    return await harness.put(harness.job(after=3_600.0))


async def _taken(harness: Harness) -> tuple[str, HandDrivenWorker]:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.take_one()
    return job_id, worker


async def _processing(harness: Harness) -> str:
    return (await _taken(harness))[0]


async def _cancel_requested(harness: Harness) -> str:
    job_id, _ = await _taken(harness)
    await harness.backend.producing.cancel(job_id)
    return job_id


async def _reporting(harness: Harness) -> str:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.settle(Progressed((await worker.take_one()).lease, 0.5, "half"))
    return job_id


async def _retrying(harness: Harness, delay: float = 3_600.0) -> str:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.settle(Retried((await worker.take_one()).lease, delay, FAILURE))
    return job_id


async def _retrying_due(harness: Harness) -> str:
    return await _retrying(harness, 0.0)


async def _released(harness: Harness, delay: float | None = None) -> str:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.settle(Released((await worker.take_one()).lease, delay))
    return job_id


async def _snoozed(harness: Harness) -> str:
    return await _released(harness, 3_600.0)


async def _rescued(harness: Harness) -> str:
    job_id, worker = await _taken(harness)
    await harness.lose(worker)
    return job_id


async def _completed(harness: Harness) -> str:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.settle(Completed((await worker.take_one()).lease, b"1"))
    return job_id


async def _failed(harness: Harness) -> str:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
    return job_id


async def _failed_lost(harness: Harness) -> str:
    job_id, worker = await _taken(harness)
    await harness.lose(worker, max_lost=1)
    return job_id


async def _cancelled(harness: Harness) -> str:
    (job_id,) = await harness.add()
    worker = await harness.worker()
    await worker.settle(Cancelled((await worker.take_one()).lease, "why not"))
    return job_id


async def _cancelled_waiting(harness: Harness) -> str:
    (job_id,) = await harness.add()
    await harness.backend.producing.cancel(job_id)
    return job_id


JOB_STATES: dict[str, Callable[[Harness], Awaitable[str]]] = {
    "pending": _pending,
    "pending, released": _released,
    "pending, rescued": _rescued,
    "scheduled": _scheduled,
    "scheduled, snoozed": _snoozed,
    "processing": _processing,
    "processing, with progress": _reporting,
    "processing, cancel requested": _cancel_requested,
    "retrying": _retrying,
    "retrying, due": _retrying_due,
    "completed": _completed,
    "failed": _failed,
    "failed, lost": _failed_lost,
    "cancelled": _cancelled,
    "cancelled while waiting": _cancelled_waiting,
}
"""Builders by name. The first word of the name is the state. A builder stores one job in this state
and returns its id."""
