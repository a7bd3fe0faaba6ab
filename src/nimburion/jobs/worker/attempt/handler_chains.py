"""How a handler is called: inside its middleware and hooks, on the loop, a thread or in a child."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from nimburion.core.metrics.counters import LaneCounters
from nimburion.jobs.declaration.registry import Handler, Registry
from nimburion.jobs.handling.context import Context, get_record
from nimburion.jobs.handling.handler_setup import HandlerSetup
from nimburion.jobs.handling.middleware import compose
from nimburion.jobs.worker.attempt.attempt import Attempt
from nimburion.jobs.worker.attempt.attempt_end import AttemptEnd, EndPolicy
from nimburion.jobs.worker.attempt.batch_run import BatchHandler
from nimburion.jobs.worker.attempt.forking import ForkGuard
from nimburion.jobs.worker.attempt.handler_calls import (
    HandlerCall,
    make_handler_call,
    surround_call,
)
from nimburion.jobs.worker.attempt.process_calls import NotRunInChild, ProcessCalls
from nimburion.jobs.worker.attempt.threads import HandlerThreads

if TYPE_CHECKING:
    from nimburion.jobs.worker.attempt.member_results import MemberResults

_log = logging.getLogger("nimburion.worker")

HandlerCoroutine = Callable[[Context], Awaitable[object]]


class HandlerChain(NamedTuple):
    """What an attempt at a job of one name needs."""

    handler: Handler
    call: HandlerCoroutine
    """Calls the middleware, the hooks and the handler."""
    lanes: dict[str, LaneCounters]
    """The counters of these jobs, by queue."""
    context_type: type[Context]
    """What the handler gets as its context."""
    innermost: HandlerCoroutine
    """Calls the hooks and the handler."""
    end: EndPolicy
    """Decides what follows when the handler has raised."""


class HandlerChains:
    """Makes the chain of each handler when its first job arrives, and keeps it."""

    def __init__(
        self,
        registry: Registry,
        setup: HandlerSetup,
        *,
        threads: HandlerThreads,
        guard: ForkGuard,
        process_calls: ProcessCalls | None,
        end: AttemptEnd,
    ) -> None:
        self._registry = registry
        self._middlewares = tuple(setup.middlewares)
        self._setup = setup
        self._threads = threads
        self._guard = guard
        self._process_calls = process_calls
        self._end = end
        self.known: dict[str, HandlerChain] = {}
        """The chains that `find` has made."""

    def find(self, name: str) -> HandlerChain | None:
        """Return the chain of the jobs with this name; None if no handler is registered."""
        known = self.known.get(name)
        if known is not None:
            return known
        handler = self._registry.get(name)
        if handler is None:
            return None
        innermost = self._make_call(handler)
        call = self._add_middleware(innermost)
        context_type, end = _choose_parts(handler, self._end)
        chain = HandlerChain(handler, call, {}, context_type, innermost, end)
        self.known[name] = chain
        return chain

    def fill_in_results(self, chain: HandlerChain, results: MemberResults) -> HandlerChain:
        """Return the chain of a job whose payload lacks results of other members.

        They are added after the middleware, which may decrypt the payload.
        """
        handler, innermost = chain.handler, chain.innermost

        async def call_with_results(context: Context) -> object:
            await results.fill_in(context, handler)
            return await innermost(context)

        return self._replace_innermost(chain, call_with_results)

    def isolate(self, chain: HandlerChain) -> HandlerChain:
        """Return the chain of a suspect, which runs in a child process so that its worker survives.

        If the handler cannot run in a child, it runs where its policy says.
        """
        handler, calls = chain.handler, self._process_calls
        if calls is None or handler.policy.execution == "process" or handler.is_durable:
            return chain
        call_in_child = self._make_process_call(handler, calls)

        async def call(context: Context) -> object:
            try:
                return await call_in_child(context)
            except NotRunInChild as error:
                _log.warning(
                    "job %s has lost its worker repeatedly and should run in a child process; it "
                    "runs in the worker, because %s",
                    context.job_id,
                    error,
                )
                cast("Attempt", get_record(context)).start_timeout()
                return await self._make_call(handler)(context)

        return self._replace_innermost(chain, call)

    def _replace_innermost(self, chain: HandlerChain, innermost: HandlerCoroutine) -> HandlerChain:
        return chain._replace(call=self._add_middleware(innermost), innermost=innermost)

    def _make_call(self, handler: Handler) -> HandlerCoroutine:
        """Return a function that runs a handler where its policy says."""
        if handler.policy.execution == "process" and self._process_calls is not None:
            return self._make_process_call(handler, self._process_calls)
        call = make_handler_call(handler, self._setup, self._guard)
        if handler.is_durable:
            return _make_durable_call(call)
        alone = call if handler.is_async else self._make_thread_call(call)
        return alone if handler.policy.batch is None else self._surround_call(handler, alone)

    def _surround_call(self, handler: Handler, call_alone: HandlerCoroutine) -> HandlerCoroutine:
        """Return a function that joins the call of a batch. A job without a batch runs alone."""
        surround = partial(surround_call, handler, self._setup, self._guard)
        batch_handler = BatchHandler(handler, surround, self._threads)

        async def join_call(context: Context) -> object:
            batch_run = cast("Attempt", get_record(context)).batch_run
            if batch_run is None:
                return await call_alone(context)
            return await batch_run.run(batch_handler, context)

        return join_call

    def _make_process_call(self, handler: Handler, calls: ProcessCalls) -> HandlerCoroutine:
        async def call_in_child(context: Context) -> object:
            attempt = cast("Attempt", get_record(context))
            return await calls.run(attempt, context, handler.policy)

        return call_in_child

    def _add_middleware(self, innermost: HandlerCoroutine) -> HandlerCoroutine:
        chain = compose(self._middlewares, innermost)
        if self._middlewares:  # middleware may fork too
            chain = self._check_for_fork(chain)
        return chain

    def _check_for_fork(self, chain: HandlerCoroutine) -> HandlerCoroutine:
        guard = self._guard

        async def call(context: Context) -> object:
            try:
                return await chain(context)
            finally:
                if guard.in_child:
                    guard.check(sys.exc_info()[1])

        return call

    def _make_thread_call(self, call: HandlerCall) -> HandlerCoroutine:
        threads = self._threads

        async def call_in_thread(context: Context) -> object:
            started = threads.start(call, context)
            cast("Attempt", get_record(context)).call = started
            value = await started.future
            if value is None:  # usual, and `isawaitable` costs a tenth of the whole call
                return None
            # A lambda or a wrapper around an `async def` returns a coroutine that has not run yet.
            return await value if inspect.isawaitable(value) else value

        return call_in_thread


def _choose_parts(handler: Handler, end: AttemptEnd) -> tuple[type[Context], EndPolicy]:
    """Return the type of the context, and the end policy."""
    if not handler.is_durable:
        return Context, end
    from nimburion.jobs.durable.context import DurableContext
    from nimburion.jobs.worker.attempt.run_end import RunEnd

    return DurableContext, RunEnd(end)


def _make_durable_call(call: HandlerCall) -> HandlerCoroutine:
    """Return a function that runs a durable handler."""
    from nimburion.jobs.durable.context import call_durably

    return cast("HandlerCoroutine", partial(call_durably, call))
