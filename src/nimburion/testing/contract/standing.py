"""A job in each possible place, for cases that run through all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nimburion.core.settlement import Cancelled, Completed, Failed, Progressed, Released, Retried
from nimburion.testing.contract.harness import OOPS, HandDrivenWorker, Harness


async def _pending(stage: Harness) -> str:
    return (await stage.add())[0]


async def _scheduled(stage: Harness) -> str:
    return await stage.put(stage.job(after=3_600.0))


async def _taken(stage: Harness) -> tuple[str, HandDrivenWorker]:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.take_one()
    return job_id, worker


async def _processing(stage: Harness) -> str:
    return (await _taken(stage))[0]


async def _cancel_requested(stage: Harness) -> str:
    job_id, _ = await _taken(stage)
    await stage.store.cancel(job_id)
    return job_id


async def _reporting(stage: Harness) -> str:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.settle(Progressed((await worker.take_one()).lease, 0.5, "half"))
    return job_id


async def _retrying(stage: Harness, delay: float = 3_600.0) -> str:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.settle(Retried((await worker.take_one()).lease, delay, OOPS))
    return job_id


async def _retrying_due(stage: Harness) -> str:
    return await _retrying(stage, 0.0)


async def _released(stage: Harness, delay: float | None = None) -> str:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.settle(Released((await worker.take_one()).lease, delay))
    return job_id


async def _snoozed(stage: Harness) -> str:
    return await _released(stage, 3_600.0)


async def _rescued(stage: Harness) -> str:
    job_id, worker = await _taken(stage)
    await stage.lose(worker)
    return job_id


async def _completed(stage: Harness) -> str:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.settle(Completed((await worker.take_one()).lease, b"1"))
    return job_id


async def _failed(stage: Harness) -> str:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.settle(Failed((await worker.take_one()).lease, "permanent", OOPS))
    return job_id


async def _failed_lost(stage: Harness) -> str:
    job_id, worker = await _taken(stage)
    await stage.lose(worker, max_lost=1)
    return job_id


async def _cancelled(stage: Harness) -> str:
    (job_id,) = await stage.add()
    worker = await stage.worker()
    await worker.settle(Cancelled((await worker.take_one()).lease, "why not"))
    return job_id


async def _cancelled_waiting(stage: Harness) -> str:
    (job_id,) = await stage.add()
    await stage.store.cancel(job_id)
    return job_id


STANDING: dict[str, Callable[[Harness], Awaitable[str]]] = {
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
"""Builders by place. The first word of the name is the state. Each builder makes one job and
returns its id."""
