"""Calls the hooks `on_failure` and `on_dead`, after the outcome is decided, before it is sent."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from nimburion.core.job import AttemptError
from nimburion.jobs.handling.context import CURRENT, Context
from nimburion.jobs.options.failure_hooks import FailureHook
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.reporter import log_safely
from nimburion.jobs.worker.attempt.threads import HandlerThreads

HOOKS_TIMEOUT = 10.0
"""Seconds that all hooks of one attempt may take together. The outcome is not sent before."""
_CANCEL_TIMEOUT = 1.0
"""Seconds that an interrupted hook has to end."""


class FailureHookRunner:
    """Calls hooks in the worker: `async def` hooks on the event loop, `def` hooks in a thread.

    Whatever a hook does, the outcome of the attempt stays as it was decided.
    """

    def __init__(self, guard: ForkGuard) -> None:
        self._guard = guard

    async def run(
        self,
        hooks: Sequence[FailureHook],
        context: Context[Any],
        error: AttemptError,
        must_stop: Callable[[], bool],
    ) -> None:
        """Call hooks, one after another; return when they have ended or their time is over.

        A cancellation of the caller interrupts the hooks only if `must_stop` returns True.
        """
        loop = asyncio.get_running_loop()
        calls = loop.create_task(self._call_all(hooks, context, error), name="failure hooks")
        deadline = loop.time() + HOOKS_TIMEOUT
        while not calls.done() and (seconds := deadline - loop.time()) > 0:
            try:
                await asyncio.wait({calls}, timeout=seconds)
            except asyncio.CancelledError:
                if must_stop():
                    break
        if not calls.done():
            await self._interrupt(calls, context)

    async def _interrupt(self, calls: asyncio.Task[None], context: Context[Any]) -> None:
        log_safely(
            logging.WARNING,
            "job %s: a hook for its failed attempt was interrupted, because it took more than "
            "%g s or the worker stops; a hook in a thread continues. Enqueue a job for long work",
            context.job_id,
            HOOKS_TIMEOUT,
        )
        calls.cancel()
        try:
            await asyncio.wait({calls}, timeout=_CANCEL_TIMEOUT)
        except asyncio.CancelledError:  # the outcome must still be sent
            return

    async def _call_all(
        self, hooks: Sequence[FailureHook], context: Context[Any], error: AttemptError
    ) -> None:
        CURRENT.set(context)
        for hook in hooks:
            try:
                await self._call(hook, context, error)
            except asyncio.CancelledError:
                return
            except BaseException as raised:  # noqa: BLE001 - a hook changes nothing
                log_safely(
                    logging.ERROR,
                    "job %s: the hook %s failed, which changes nothing about the job",
                    context.job_id,
                    getattr(hook, "__qualname__", repr(hook)),
                    raised=raised,
                )

    async def _call(self, hook: FailureHook, context: Context[Any], error: AttemptError) -> None:
        if inspect.iscoroutinefunction(hook):
            value = hook(context, error)
        else:
            # A thread of its own: the threads for handlers may all be occupied.
            threads = HandlerThreads(1, asyncio.get_running_loop(), self._guard)
            call = threads.start(hook, context, error)
            threads.close()
            value = await call.future
        if inspect.isawaitable(value):
            await value
