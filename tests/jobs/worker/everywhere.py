"""An application with one handler for each place where handlers run. Child processes import it."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import trace

from nimburion.backends.memory import MemoryBackend
from nimburion.jobs import Context, Processor, get_current_context

Facts = dict[str, object]

VARIABLE: ContextVar[str] = ContextVar("variable", default="")


@dataclass
class Resources:
    """What the lifespan opens."""

    process: int
    hooked: list[str]


def make_processor(concurrency: int = 10) -> Processor:
    """Return a processor whose handlers report what they see; each enqueues one more job."""
    processor = Processor(
        MemoryBackend(),
        children=1,
        concurrency=concurrency,
        import_path=f"{__name__}:{make_processor.__name__}",
    )

    @processor.lifespan
    async def resources() -> AsyncIterator[Resources]:
        yield Resources(os.getpid(), [])

    @processor.around_handler
    def note_def(ctx: Context[Resources]) -> Iterator[None]:
        ctx.state.hooked.append(ctx.job_id)
        yield

    @processor.around_handler
    async def note_async(ctx: Context[Resources]) -> AsyncIterator[None]:
        ctx.state.hooked.append(ctx.job_id)
        yield

    @processor.job()
    async def follow_up(ctx: Context[Resources]) -> str | None:
        return ctx.tenant

    @processor.job()
    async def on_loop(ctx: Context[Resources]) -> Facts:
        return report(ctx) | {"enqueued": await ctx.enqueue(follow_up.job())}

    @processor.job()
    def in_thread(ctx: Context[Resources]) -> Facts:
        return report(ctx) | {"enqueued": processor.sync.enqueue(follow_up.job())}

    @processor.job(execution="process")
    async def async_in_child(ctx: Context[Resources]) -> Facts:
        return report(ctx) | {"enqueued": await ctx.enqueue(follow_up.job())}

    @processor.job(execution="process")
    def in_child(ctx: Context[Resources]) -> Facts:
        return report(ctx) | {"enqueued": processor.sync.enqueue(follow_up.job())}

    return processor


def report(ctx: Context[Resources]) -> Facts:
    """Report progress, log, and return what the handler sees."""
    variable = VARIABLE.get()
    VARIABLE.set(ctx.job_id)
    ctx.progress(0.5, "half")
    ctx.log.warning("seen by %s", ctx.name, extra={"number": 17})
    return {
        "process": os.getpid(),
        "on_main_thread": threading.current_thread() is threading.main_thread(),
        "lifespan_in": ctx.state.process,
        "hooked": ctx.job_id in ctx.state.hooked,
        "trace": format(trace.get_current_span().get_span_context().trace_id, "032x"),
        "is_current": get_current_context() is ctx,
        "job_id": ctx.job_id,
        "attempt": ctx.attempt,
        "tenant": ctx.tenant,
        "correlation_id": ctx.correlation_id,
        "own_header": ctx.headers.get("own"),
        "has_deadline": ctx.remaining() is not None,
        "cancelled": ctx.cancelled,
        "variable": variable,
    }
