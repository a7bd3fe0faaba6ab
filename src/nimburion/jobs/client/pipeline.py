"""Run the enqueue middleware for all jobs of one call together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from nimburion.core.errors import InvalidJob
from nimburion.core.job import NewJob
from nimburion.core.size_limits import SizeLimits, check_name
from nimburion.jobs.declaration.codec import check_size
from nimburion.jobs.declaration.middleware import Enqueueing, EnqueueMiddleware, compose
from nimburion.jobs.declaration.options import check_headers, check_texts

StoreJobs = Callable[[list[NewJob]], Awaitable[list[str]]]
"""Stores jobs in one step and returns their ids."""
RenewLimitKeys = Callable[[object, NewJob], NewJob]
"""Returns a job, of which it gets the argument of `enqueue`, with the limit keys of its tenant."""


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
        renew_limit_keys: RenewLimitKeys,
    ) -> None:
        self._chain = compose(layers, self._collect)
        self._renew_limit_keys = renew_limit_keys
        self._tenants: dict[int, str | None] = {}
        """The tenants before the middleware, by the identity of the enqueueing."""
        self._store = store
        self._sizes = sizes
        self._missing = expected
        self._seen: set[int] = set()
        self._collected: list[tuple[NewJob, asyncio.Future[str]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def run(self, enqueueings: Sequence[Enqueueing]) -> list[str]:
        """Return the ids of the jobs, in the order of `enqueueings`."""
        self._tenants = {id(one): one.options.tenant for one in enqueueings}
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
        answer: str = await self._chain(enqueueing)
        if id(enqueueing) not in self._seen:  # a middleware did not pass it on
            self._count_down()
        return answer

    async def _collect(self, enqueueing: Enqueueing) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._seen.add(id(enqueueing))
        job = _validate(enqueueing, self._sizes)
        if job.options.tenant != self._tenants.get(id(enqueueing)):
            job = self._renew_limit_keys(enqueueing.job, job)
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
