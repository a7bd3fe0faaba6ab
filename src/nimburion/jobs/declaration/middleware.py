"""Wrapping what runs and what is enqueued: a middleware calls the next, or does not.

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
from typing import Any, TypeVar

import msgspec

from nimburion.core.job import NO_JOB_OPTIONS, JobOptions
from nimburion.jobs.declaration.context import Context

Subject = TypeVar("Subject")

Next = Callable[[Subject], Awaitable[Any]]
"""What comes after a middleware; in the end the handler, or the backend."""

Layer = Callable[[Subject, Next[Subject]], Awaitable[Any]]

Middleware = Layer[Context]
"""Around every attempt: `async (ctx, call_next) -> result`. `ctx.payload` may be replaced before
`call_next`; an exception that leaves it is the attempt's failure."""


class Enqueueing(msgspec.Struct, kw_only=True):
    """A job on its way into the backend, as an enqueue middleware sees it; all may be replaced."""

    job: object
    """What was handed to `enqueue`; None for `enqueue_raw`. Changing it has no effect on
    `payload`, which is made already."""
    id: str
    name: str
    queue: str
    payload: bytes
    priority: int
    at: float | None
    """Due at this epoch second, or …"""
    after: float
    """… this many seconds from now. `at` wins."""
    options: JobOptions = NO_JOB_OPTIONS
    """Headers, tenant, correlation id and the like; replace it by `with_options`."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers as they stand; see `add_headers`."""
        return dict(self.options.headers)

    def with_options(self, **changes: Any) -> None:
        """Replace some of the options: `enqueueing.with_options(tenant="acme")`."""
        self.options = msgspec.structs.replace(self.options, **changes)

    def add_headers(self, **headers: str) -> None:
        """Add or replace headers."""
        self.with_options(headers={**self.options.headers, **headers})


EnqueueMiddleware = Layer[Enqueueing]
"""Around every enqueue: `async (enqueueing, call_next) -> job id`. After `call_next` the job is
stored. What it does not pass on is not stored; it still has to answer an id, or to raise."""


def compose(layers: Sequence[Layer[Subject]], innermost: Next[Subject]) -> Next[Subject]:
    """One callable that runs `layers`, the first outermost, around `innermost`. No layers:
    `innermost` itself."""
    call = innermost
    for layer in reversed(layers):
        call = partial(_enter, layer, call)
    return call


def _enter(layer: Layer[Subject], call_next: Next[Subject], subject: Subject) -> Awaitable[Any]:
    return layer(subject, call_next)
