"""Middleware around attempts and around enqueue calls.

A middleware calls the next one, or skips it.

```python
async def timing(ctx, call_next):
    began = time.perf_counter()
    try:
        return await call_next(ctx)
    finally:
        ctx.log.info("took %.3f s", time.perf_counter() - began)
```
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from nimburion.core.errors import InvalidJob
from nimburion.core.job import NO_JOB_OPTIONS, JobOptions
from nimburion.jobs.handling.context import Context
from nimburion.jobs.options.enqueue_options import ParsedOptions, read_job_id, set_options

if TYPE_CHECKING:
    from typing import Unpack

    from nimburion.jobs.options.enqueue_options import EnqueueOptions

Subject = TypeVar("Subject")

Next = Callable[[Subject], Awaitable[Any]]
"""The rest of the chain after a middleware, which ends in the handler or the backend."""

Layer = Callable[[Subject, Next[Subject]], Awaitable[Any]]

Middleware = Layer[Context[Any]]
"""A middleware around every attempt: `async (ctx, call_next) -> result`.

You may replace `ctx.payload` before `call_next`. An exception that leaves the middleware is the
failure of the attempt.
"""


class Enqueueing(msgspec.Struct, kw_only=True):
    """A job that is being enqueued, as an enqueue middleware receives it.

    Before `call_next`, `set` changes the options of the enqueue, and you may replace `name` and
    `payload`.
    """

    job: object
    """The argument of `enqueue`; None for `enqueue_raw`.

    Changes to it have no effect on `payload`, which is already encoded.
    """
    id: str
    name: str
    queue: str
    payload: bytes
    priority: int
    at: float | None
    """When the job becomes due, in epoch seconds; takes precedence over `after`."""
    after: float
    """The delay, in seconds from now, after which the job becomes due."""
    options: JobOptions = NO_JOB_OPTIONS
    """Headers, tenant, correlation id and other options; change them with `set`."""

    @property
    def headers(self) -> dict[str, str]:
        """A copy of the current headers; to add some, use `add_headers`."""
        return dict(self.options.headers)

    def set(self, **options: Unpack[EnqueueOptions]) -> None:
        """Set any option of `enqueue` but `connection`: `enqueueing.set(correlation_id="req-7")`.

        The other options stay. `tags` are added to those of the job, and
        `unique=Unique(on_duplicate=…)` keeps how long the job holds its key. None unsets `headers`,
        `tenant`, `correlation_id`, `unique_key`, `max_retries`, `timeout`, `expires` and `tags`.
        Raises `InvalidJob` for a wrong value.
        """
        if "connection" in options:
            raise InvalidJob("a middleware cannot set `connection`: pass it to `enqueue`")
        job_id = options.pop("id", None)
        before = ParsedOptions(self.queue, self.priority, self.at, self.after, self.options)
        after = set_options(before, options)
        if job_id is not None:
            self.id = read_job_id(job_id)
        if after.queue is not None and after.priority is not None:
            self.queue, self.priority = after.queue, after.priority
        self.at, self.after, self.options = after.at, after.after, after.options

    def add_headers(self, **headers: str) -> None:
        """Add headers, or replace those with the same names."""
        added = {**self.options.headers, **headers}
        self.options = msgspec.structs.replace(self.options, headers=added)


EnqueueMiddleware = Layer[Enqueueing]
"""A middleware around every enqueue: `async (enqueueing, call_next) -> job id`.

When `call_next` returns, the job is stored. A middleware that does not call it prevents the job
from being stored; it must still return an id, or raise.
"""


def compose(layers: Sequence[Layer[Subject]], innermost: Next[Subject]) -> Next[Subject]:
    """Return one callable that runs `layers` around `innermost`; the first layer is the outermost.

    Without layers, it returns `innermost` itself.
    """
    call = innermost
    for layer in reversed(layers):
        call = partial(_enter, layer, call)
    return call


def _enter(layer: Layer[Subject], call_next: Next[Subject], subject: Subject) -> Awaitable[Any]:
    return layer(subject, call_next)
