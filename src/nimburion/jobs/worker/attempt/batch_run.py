"""Calls a batch handler once for attempts that started together.

Each job stays an attempt of its own, with its lease, timeout, middleware and settlement. Only the
innermost call is shared: an attempt brings its argument and waits for its outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, cast

from nimburion.jobs.declaration.registry import Handler
from nimburion.jobs.handling.batch_context import BatchContext, read_outcomes, spread_error
from nimburion.jobs.handling.context import CURRENT, Context, get_record
from nimburion.jobs.worker.attempt.attempt import Attempt
from nimburion.jobs.worker.attempt.threads import HandlerThreads, ThreadCall

SurroundCall = Callable[[Callable[[Context], Any]], Callable[[Context], Any]]
"""Puts the hooks of the processor around a call that takes a context."""

_MAX_ARRIVAL_DELAY = 0.1
"""Seconds for which a call waits for attempts that are still in their middleware. Later ones get a
call of their own: their middleware may wait for the end of this one.
"""


class BatchHandler:
    """Calls the handler of one job name with the arguments of several jobs."""

    def __init__(self, handler: Handler, surround: SurroundCall, threads: HandlerThreads) -> None:
        self._handler = handler
        self._surround = surround
        self._threads = threads
        self.name: str = handler.name
        self.is_async: bool = handler.is_async

    def decode(self, context: Context) -> object:
        """Decode the payload of a job, and return what the handler receives of it."""
        context.job = job = self._handler.decode(context.payload)
        return self._handler.get_batch_argument(job)

    async def call(self, items: Sequence[_Item]) -> None:
        """Call the handler, and give each job its outcome."""
        context = BatchContext([item.context for item in items])
        try:
            outcomes = read_outcomes(await self._call_handler(context, items), context)
        except BaseException as error:  # noqa: BLE001 - each attempt classifies it
            outcomes = spread_error(error, context)
        for item, outcome in zip(items, outcomes, strict=True):
            item.deliver(outcome)

    async def _call_handler(self, context: BatchContext[Any], items: Sequence[_Item]) -> object:
        handler, arguments = self._handler, [item.argument for item in items]
        call = self._surround(lambda _: handler.call_batch(context, arguments))
        first = context.jobs[0]
        if handler.is_async:
            return await call(first)
        for item in items:
            # A thread cannot be stopped: each attempt continues until the call has returned.
            item.attempt.call = item.call
        return await self._threads.start(call, first).future


class _Item:
    """One job of a call."""

    __slots__ = ("argument", "attempt", "call", "context", "waits")

    def __init__(self, attempt: Attempt, context: Context, argument: object) -> None:
        self.attempt = attempt
        self.context = context
        self.argument = argument
        self.call = ThreadCall(lambda: None, (), asyncio.get_running_loop())
        """Holds the outcome. Its attempt waits for it; a thread runs another call for all."""
        self.waits = True
        """Whether the attempt still waits for the outcome."""

    def deliver(self, outcome: object) -> None:
        """Pass the outcome to the attempt."""
        if isinstance(outcome, asyncio.CancelledError):
            self.call.finished = True
            self.call.future.cancel()
        elif isinstance(outcome, BaseException):
            self.call.error = outcome
        else:
            self.call.value = outcome
        self.call.deliver()


class _Call:
    """One call of the handler; `task` is None while its jobs arrive."""

    __slots__ = ("handler", "items", "task", "timer")

    def __init__(self, handler: BatchHandler) -> None:
        self.handler = handler
        self.items: list[_Item] = []
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        """Starts the call without the attempts that have not arrived in time."""

    def remove(self, item: _Item) -> None:
        """Remove a job whose attempt has ended. Cancel a call that no job needs any more."""
        item.waits = False
        if self.task is None:
            self.items.remove(item)
        elif self.handler.is_async and not any(each.waits for each in self.items):
            self.task.cancel()


class BatchRun:
    """The attempts at the jobs of one batch.

    The handler is called when each of them has arrived at it or has ended. Set the run as
    `batch_run` of each attempt, and call `leave` when an attempt has ended.

    Args:
        size: the number of attempts.
        on_end: called when all attempts and the call have ended.
    """

    __slots__ = ("_absent", "_arrived", "_left", "_next_call", "_on_end", "_tasks")

    def __init__(self, size: int, on_end: Callable[[], None] = lambda: None) -> None:
        self._absent = size
        """The number of attempts that have neither arrived nor ended."""
        self._left = size
        """The number of attempts that have not ended."""
        self._on_end = on_end
        self._arrived: set[Attempt] = set()
        self._next_call: _Call | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """The calls that run: more than one only if attempts were late."""

    async def run(self, handler: BatchHandler, context: Context) -> object:
        """Join the call with the job of a context; return its result, or raise its error."""
        argument = handler.decode(context)
        attempt = cast("Attempt", get_record(context))
        attempt.stop_timeout()  # until the handler is called
        item = _Item(attempt, context, argument)
        call = self._next_call = self._next_call or _Call(handler)
        call.items.append(item)
        self._arrived.add(attempt)
        self._absent -= 1
        if self._absent <= 0:
            self._start_next_call()
        elif call.timer is None:
            loop = asyncio.get_running_loop()
            call.timer = loop.call_later(_MAX_ARRIVAL_DELAY, self._start_next_call)
        try:
            return await item.call.future
        finally:
            call.remove(item)

    def leave(self, attempt: Attempt) -> None:
        """Note that an attempt has ended, whether it has arrived or not."""
        self._left -= 1
        if attempt in self._arrived:
            self._arrived.remove(attempt)
        else:
            self._absent -= 1
        if self._absent <= 0:
            self._start_next_call()
        self._check_end()

    def _start_next_call(self) -> None:
        """Call the handler for the jobs that have arrived."""
        call, self._next_call = self._next_call, None
        if call is None:
            return
        if call.timer is not None:
            call.timer.cancel()
        if not call.items:
            return
        for item in call.items:
            item.attempt.start_timeout()
        call.task = asyncio.get_running_loop().create_task(
            call.handler.call(call.items), name=call.handler.name, context=_make_variables()
        )
        self._tasks.add(call.task)
        call.task.add_done_callback(self._note_call_end)

    def _note_call_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        self._check_end()

    def _check_end(self) -> None:
        if self._left == 0 and not self._tasks:
            self._on_end()


def _make_variables() -> contextvars.Context:
    """Return a copy of the context variables in which no job runs."""
    variables = contextvars.copy_context()
    variables.run(CURRENT.set, None)
    return variables
