"""Run the enqueue middleware for all jobs of one call together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import NewJob
from nimburion.core.size_limits import SizeLimits, check_name
from nimburion.jobs.declaration.job import require_declaration
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.handling.middleware import Enqueueing, EnqueueMiddleware, compose
from nimburion.jobs.options.enqueue_options import check_headers, check_texts
from nimburion.jobs.options.limits import JobLimits
from nimburion.jobs.payloads.codec import UnreadablePayload, check_size

StoreJobs = Callable[[list[NewJob]], Awaitable[list[str]]]
"""Stores jobs in one step and returns their ids."""


class Original(NamedTuple):
    """What the middleware may change and the keys of a job depend on, before it ran."""

    name: str
    payload: bytes
    tenant: str | None


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
        registry: Registry,
    ) -> None:
        self._layers = layers
        self._registry = registry
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
            job = _renew_keys(self._registry, self._sizes, enqueueing.job, job, original)
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


def _renew_keys(
    registry: Registry, sizes: SizeLimits, job: object, new: NewJob, original: Original
) -> NewJob:
    """Return a job with the keys of its limits and with its declared unique key, after a middleware
    changed its name, its payload or its tenant. `job` is as `_renew_limit_keys` takes it.
    """
    renewed = _renew_limit_keys(registry, job, new, original)
    return renewed if job is None else _renew_unique_key(registry, sizes, job, renewed, original)


def _renew_unique_key(
    registry: Registry, sizes: SizeLimits, job: object, new: NewJob, original: Original
) -> NewJob:
    """Return a job whose declared unique key is made of its present payload.

    A key that the call or a middleware has set stays. So does the key of the original payload, if
    the present one cannot be read, or if the present name declares no key.
    """
    declaration = require_declaration(job)
    unique = declaration.policy.unique
    if unique is None or new.options.unique_key != unique.make_key(original.payload, job):
        return new
    handler = registry.get(new.name)
    if handler is not None:
        unique = handler.policy.unique
    elif new.name != declaration.name:
        return new
    if unique is None:
        return new
    try:
        if handler is None:
            changed = declaration.codec.decode(new.payload, sizes)
        else:
            changed = handler.decode(new.payload)
    except UnreadablePayload:
        return new
    key = unique.make_key(new.payload, changed)
    options = msgspec.structs.replace(new.options, unique_key=key)
    return msgspec.structs.replace(new, options=options)


def _renew_limit_keys(registry: Registry, job: object, new: NewJob, original: Original) -> NewJob:
    """Return a job with the keys for its limits by key, after a middleware changed its name, its
    payload or its tenant.

    `job` is the argument of `enqueue`; None if the job was enqueued by name. If the handler cannot
    read the new payload, such as an encrypted one, or is not registered here, the keys are those of
    the original payload.
    """
    is_renamed = new.name != original.name
    if is_renamed:
        options = msgspec.structs.replace(new.options, limit_keys={}, cost=None)
        new = msgspec.structs.replace(new, options=options)
    if is_renamed or new.payload != original.payload:
        renewed = registry.try_add_limit_keys(new)
        if renewed is not None or is_renamed:
            return renewed or new
    if job is None:
        restored = msgspec.structs.replace(new, payload=original.payload)
        renewed = registry.add_limit_keys(restored)
        return msgspec.structs.replace(renewed, payload=new.payload)
    declaration = require_declaration(job)
    limits = JobLimits(declaration.name, declaration.policy.limits)
    return msgspec.structs.replace(new, options=limits.apply(new.options, original.payload, job))
