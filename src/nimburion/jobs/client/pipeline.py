"""Run the enqueue middleware for all jobs of one call together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

from nimburion.core.errors import InvalidJob
from nimburion.core.job import NewJob
from nimburion.core.size_limits import SizeLimits, check_name
from nimburion.jobs.declaration.codec import check_size
from nimburion.jobs.declaration.middleware import Enqueueing, EnqueueMiddleware, compose
from nimburion.jobs.declaration.options import check_headers, check_texts

StoreJobs = Callable[[list[NewJob]], Awaitable[list[str]]]
"""Stores jobs in one step and returns their ids."""


class Original(NamedTuple):
    """What the middleware may change and the keys of a job depend on, before it ran."""

    name: str
    payload: bytes
    tenant: str | None


RenewKeys = Callable[[object, NewJob, Original], NewJob]
"""Returns a job that a middleware has changed with its new limit keys and unique key. Its first
argument is the argument of `enqueue`."""


class EnqueuePipeline:
    """One enqueue call with middleware.

    The middleware runs for each job separately. When every job has passed through it, all are
    stored in one step, and each `call_next` returns. If a middleware raises before that, no job is
    stored.
    """

    def __init__(
        self,
        layers: Sequence[EnqueueMiddleware],
        store: StoreJobs,
        sizes: SizeLimits,
        expected: int,
        renew_keys: RenewKeys,
    ) -> None:
        self._layers = layers
        self._renew_keys = renew_keys
        self._store = store
        self._sizes = sizes
        self._missing = expected
        self._seen: set[int] = set()
        """The identities of the originals whose jobs have passed through the middleware."""
        self._collected: list[tuple[NewJob, asyncio.Future[str]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def run(self, enqueueings: Sequence[Enqueueing]) -> list[str]:
        """Return the ids of the jobs, in the order of `enqueueings`."""
        tasks = [
            asyncio.ensure_future(self._run_middleware(enqueueing)) for enqueueing in enqueueings
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_middleware(self, enqueueing: Enqueueing) -> str:
        """Run the middleware for one job. If it raises, the call stays incomplete and stores
        nothing."""
        original = Original(enqueueing.name, enqueueing.payload, enqueueing.options.tenant)
        chain = compose(self._layers, partial(self._collect, original))
        answer: str = await chain(enqueueing)
        if id(original) not in self._seen:  # a middleware did not pass it on
            self._count_down()
        return answer

    async def _collect(self, original: Original, enqueueing: Enqueueing) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._seen.add(id(original))
        job = _validate(enqueueing, self._sizes)
        if original != (job.name, job.payload, job.options.tenant):
            job = self._renew_keys(enqueueing.job, job, original)
        self._collected.append((job, future))
        self._count_down()
        return await future

    def _count_down(self) -> None:
        self._missing -= 1
        if self._missing <= 0 and self._collected:
            arrived, self._collected = self._collected, []
            self._storing = asyncio.ensure_future(self._store_all(arrived))

    async def _store_all(self, arrived: list[tuple[NewJob, asyncio.Future[str]]]) -> None:
        try:
            ids = await self._store([job for job, _ in arrived])
        except Exception as error:  # noqa: BLE001 (it goes to each caller)
            for _, future in arrived:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), job_id in zip(arrived, ids, strict=True):
                if not future.done():
                    future.set_result(job_id)


def _validate(enqueueing: Enqueueing, sizes: SizeLimits) -> NewJob:
    """Return the job after the middleware; `InvalidJob` if it cannot be stored."""
    if not isinstance(enqueueing.payload, bytes):
        raise InvalidJob(
            f"an enqueue middleware set a payload of type {type(enqueueing.payload).__name__}; "
            "a payload must be bytes"
        )
    check_size(enqueueing.name, enqueueing.payload, sizes)
    if enqueueing.priority not in range(10):
        raise InvalidJob(f"priority must be from 0 to 9, not {enqueueing.priority!r}")
    check_texts(enqueueing.options)
    check_headers(enqueueing.options.headers, sizes)
    return NewJob(
        id=check_name("job id", enqueueing.id),
        name=check_name("job name", enqueueing.name),
        queue=check_name("queue", enqueueing.queue),
        payload=enqueueing.payload,
        priority=enqueueing.priority,
        at=enqueueing.at,
        after=enqueueing.after,
        options=enqueueing.options,
    )
