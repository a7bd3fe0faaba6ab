"""Collects attempts at jobs of a batch handler, and calls the handler once for them.

Each job stays an attempt of its own, with its lease, timeout, middleware and settlement. Only the
innermost call is shared: an attempt adds its argument to the open batch and waits for its outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from nimburion.core.timing.clock import Clock
from nimburion.jobs.declaration.batches import BatchContext, read_outcomes, spread_error
from nimburion.jobs.declaration.context import CURRENT, Context, get_record
from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.worker.attempt.attempt import Attempt
from nimburion.jobs.worker.attempt.batch_calls import BatchCalls
from nimburion.jobs.worker.attempt.threads import HandlerThreads, ThreadCall

SurroundCall = Callable[[Callable[[Context], Any]], Callable[[Context], Any]]
"""Puts the hooks of the processor around a call that takes a context."""


class _Item:
    """One job of a batch."""

    __slots__ = ("argument", "call", "context", "waits")

    def __init__(self, context: Context, argument: object, loop: asyncio.AbstractEventLoop) -> None:
        self.context = context
        self.argument = argument
        self.call = ThreadCall(lambda: None, (), loop)
        """Holds the outcome. Its attempt waits for it; a thread runs another call for all."""
        self.waits = True
        """Whether the attempt still waits for the outcome."""


class _Batch:
    """Jobs that are collected for one call, or that one call runs."""

    __slots__ = ("is_ready", "items", "task", "timer")

    def __init__(self) -> None:
        self.items: list[_Item] = []
        self.timer: asyncio.Task[None] | None = None
        self.is_ready = False
        """Whether the call starts as soon as a slot is free; until then more jobs may join."""
        self.task: asyncio.Task[None] | None = None
        """The call; None while jobs are collected."""


class BatchCollector:
    """The batches of one handler in one worker.

    A call is ready when it has `batch` jobs, or `batch_wait` seconds after the first one of them;
    without `batch_wait`, when the backend holds no more of these jobs. It starts when a slot is
    free.

    Args:
        calls: the batches of the worker; None outside a worker, where a call needs no slot.
    """

    def __init__(
        self,
        handler: Handler,
        surround: SurroundCall,
        threads: HandlerThreads,
        clock: Clock,
        *,
        waits: bool,
        calls: BatchCalls | None,
    ) -> None:
        self._handler = handler
        self._surround = surround
        self._threads = threads
        self._clock = clock
        self._size = handler.policy.batch or 1
        self._wait = handler.policy.batch_wait if waits else 0.0
        self._calls = calls
        self._open: _Batch | None = None
        if calls is not None and not self._wait:
            calls.set_start(handler.name, self._end_collecting)

    async def run(self, context: Context) -> object:
        """Add the job of a context to the open batch; return its result, or raise its error."""
        context.job = job = self._handler.decode(context.payload)
        loop = asyncio.get_running_loop()
        item = _Item(context, self._handler.get_batch_argument(job), loop)
        cast("Attempt", get_record(context)).stop_timeout()  # until the handler is called
        batch = self._open
        if batch is None:
            batch = self._open = _Batch()
            if self._wait or self._calls is None or not self._calls.may_fill(self._handler.name):
                batch.timer = loop.create_task(self._start_later(batch), context=_make_variables())
        batch.items.append(item)
        if len(batch.items) >= self._size:
            self._await_slot(batch)
        try:
            return await item.call.future
        finally:
            item.waits = False
            self._forget(batch, item)

    def _forget(self, batch: _Batch, item: _Item) -> None:
        """Take a job whose attempt has ended out of its batch. Cancel a call that no job needs."""
        if batch.task is None:
            batch.items.remove(item)
            if not batch.items and self._open is batch:
                self._open = None
                if batch.timer is not None:
                    batch.timer.cancel()
        elif self._handler.is_async and not any(each.waits for each in batch.items):
            batch.task.cancel()

    async def _start_later(self, batch: _Batch) -> None:
        await (self._clock.sleep(self._wait) if self._wait else asyncio.sleep(0))
        if self._open is batch:
            self._await_slot(batch)

    def _end_collecting(self) -> None:
        """End the open batch once the jobs that were started before this call have joined it."""
        batch = self._open
        if batch is not None and batch.timer is None:
            loop = asyncio.get_running_loop()
            batch.timer = loop.create_task(self._start_later(batch), context=_make_variables())

    def _await_slot(self, batch: _Batch) -> None:
        """Start the call of the open batch when a slot is free."""
        if len(batch.items) >= self._size:
            self._open = None
        if batch.is_ready:
            return
        batch.is_ready = True
        if batch.timer is not None and batch.timer is not asyncio.current_task():
            batch.timer.cancel()
        if self._calls is None:
            self._start(batch)
        else:
            self._calls.await_slot(partial(self._start, batch))

    def _start(self, batch: _Batch) -> bool:
        """Call the handler for the jobs of a batch; return False if none is left."""
        if self._open is batch:
            self._open = None
        if not batch.items:
            return False
        attempts = [cast("Attempt", get_record(item.context)) for item in batch.items]
        for attempt in attempts:
            attempt.start_timeout()
        loop = asyncio.get_running_loop()
        batch.task = loop.create_task(
            self._call(batch.items), name=self._handler.name, context=_make_variables()
        )
        if self._calls is not None:
            end_call = self._calls.end_call
            batch.task.add_done_callback(lambda _: end_call())
            self._calls.begin_call(attempts)
        return True

    async def _call(self, items: Sequence[_Item]) -> None:
        """Call the handler and give each job its outcome."""
        context = BatchContext([item.context for item in items])
        try:
            outcomes = read_outcomes(await self._call_handler(context, items), context)
        except BaseException as error:  # noqa: BLE001 - each attempt classifies it
            outcomes = spread_error(error, context)
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, asyncio.CancelledError):
                item.call.finished = True
                item.call.future.cancel()
            elif isinstance(outcome, BaseException):
                item.call.error = outcome
            else:
                item.call.value = outcome
            item.call.deliver()

    async def _call_handler(self, context: BatchContext[Any], items: Sequence[_Item]) -> object:
        handler, arguments = self._handler, [item.argument for item in items]
        call = self._surround(lambda _: handler.call_batch(context, arguments))
        first = context.jobs[0]
        if handler.is_async:
            return await call(first)
        for item in items:
            # A thread cannot be stopped: each attempt keeps its slot until the call has returned.
            cast("Attempt", get_record(item.context)).call = item.call
        return await self._threads.start(call, first).future


def _make_variables() -> contextvars.Context:
    """Return a copy of the context variables in which no job runs."""
    variables = contextvars.copy_context()
    variables.run(CURRENT.set, None)
    return variables
