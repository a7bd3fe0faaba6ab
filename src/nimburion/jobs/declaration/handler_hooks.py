"""Hooks around handlers. They run where the handler runs: in its thread or process, or on the loop.

A hook is a generator function. The part before its `yield` runs before the arguments are decoded
and the handler is called, the part after it runs when the handler has ended:

```python
@processor.around_handler
def database_connections(ctx: Context) -> Iterator[None]:
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()
```

A `def` hook surrounds `def` handlers, an `async def` hook surrounds `async def` handlers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial
from typing import TYPE_CHECKING, Any

from nimburion.core.errors import DefinitionError
from nimburion.jobs.declaration.context import Context

if TYPE_CHECKING:
    from nimburion.jobs.declaration.registry import Handler
    from nimburion.jobs.worker.attempt.forking import ForkGuard

HandlerHook = Callable[[Context[Any]], Iterator[None]]
"""A hook around `def` handlers: a generator function with one `yield`."""
AsyncHandlerHook = Callable[[Context[Any]], AsyncIterator[None]]
"""A hook around `async def` handlers: an async generator function with one `yield`."""

HandlerCall = Callable[[Context[Any]], Any]
"""Decodes the payload of a context and calls the handler, inside its hooks."""


class HandlerHooks:
    """The hooks of one processor; the first that was added is the outermost."""

    def __init__(self) -> None:
        self.blocking: list[Callable[[Context[Any]], AbstractContextManager[None]]] = []
        """The hooks around `def` handlers, as context managers."""
        self.asynchronous: list[Callable[[Context[Any]], AbstractAsyncContextManager[None]]] = []
        """The hooks around `async def` handlers, as context managers."""

    def add(self, hook: HandlerHook | AsyncHandlerHook) -> None:
        """Add a hook. `DefinitionError` is raised when it is not a generator function."""
        if inspect.isgeneratorfunction(hook):
            self.blocking.append(contextmanager(hook))
        elif inspect.isasyncgenfunction(hook):
            self.asynchronous.append(asynccontextmanager(hook))
        else:
            raise DefinitionError(
                f"a hook around handlers is a function with one `yield`, not {hook!r}; write "
                "`def hook(ctx): ...; yield; ...`, or `async def` for `async def` handlers"
            )


def make_handler_call(handler: Handler, hooks: HandlerHooks, guard: ForkGuard) -> HandlerCall:
    """Return a function that runs a handler inside its hooks, in the calling thread or task.

    For an `async def` handler the function returns a coroutine; otherwise it blocks. It knows no
    threads, so that a child process uses it too. A process that the handler forked ends when the
    handler returns there: the hooks, which share resources with its parent, do not run in it.
    """
    if handler.is_async:
        return _make_async_call(handler, hooks.asynchronous, guard)
    return _make_blocking_call(handler, hooks.blocking, guard)


def surround_call(
    handler: Handler, hooks: HandlerHooks, guard: ForkGuard, function: HandlerCall
) -> HandlerCall:
    """Return `function`, which calls a batch handler, inside the hooks of its kind of handlers."""
    surrounded: HandlerCall
    if handler.is_async:

        async def call_async(context: Context) -> object:
            try:
                return await function(context)
            finally:
                if guard.in_child:
                    guard.check(sys.exc_info()[1])

        surrounded = call_async
        for hook in reversed(hooks.asynchronous):
            surrounded = partial(_await_inside, hook, surrounded)
        return surrounded

    def call(context: Context) -> object:
        try:
            return function(context)
        finally:
            if guard.in_child:
                guard.check(sys.exc_info()[1])

    surrounded = call
    for blocking_hook in reversed(hooks.blocking):
        surrounded = partial(_call_inside, blocking_hook, surrounded)
    return surrounded


def _make_blocking_call(
    handler: Handler,
    hooks: Sequence[Callable[[Context[Any]], AbstractContextManager[None]]],
    guard: ForkGuard,
) -> HandlerCall:
    decode, function = handler.decode, handler.call

    def call(context: Context) -> object:
        context.job = job = decode(context.payload)
        try:
            return function(job, context)
        finally:
            if guard.in_child:
                guard.check(sys.exc_info()[1])

    surrounded: HandlerCall = call
    for hook in reversed(hooks):
        surrounded = partial(_call_inside, hook, surrounded)
    return surrounded


def _call_inside(
    hook: Callable[[Context[Any]], AbstractContextManager[None]],
    call: HandlerCall,
    context: Context,
) -> object:
    result = None
    with hook(context):
        result = call(context)
    return result  # noqa: RET504 - None if the hook suppressed an exception


def _make_async_call(
    handler: Handler,
    hooks: Sequence[Callable[[Context[Any]], AbstractAsyncContextManager[None]]],
    guard: ForkGuard,
) -> HandlerCall:
    decode, function = handler.decode, handler.call

    async def call(context: Context) -> object:
        context.job = job = decode(context.payload)
        try:
            return await function(job, context)
        finally:
            # Before any hook or middleware runs, because they share resources with the parent.
            if guard.in_child:
                guard.check(sys.exc_info()[1])

    surrounded: HandlerCall = call
    for hook in reversed(hooks):
        surrounded = partial(_await_inside, hook, surrounded)
    return surrounded


async def _await_inside(
    hook: Callable[[Context[Any]], AbstractAsyncContextManager[None]],
    call: HandlerCall,
    context: Context,
) -> object:
    result = None
    async with hook(context):
        result = await call(context)
    return result  # noqa: RET504 - None if the hook suppressed an exception
