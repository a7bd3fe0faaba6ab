"""What a processor adds around its handlers: middleware, hooks and a lifespan.

Hooks run where the handler runs: in its thread or process, or on the loop. A hook is a generator
function. The part before its `yield` runs before the arguments are decoded and the handler is
called, the part after it runs when the handler has ended:

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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

from nimburion.core.errors import DefinitionError
from nimburion.jobs.handling.context import Context
from nimburion.jobs.handling.lifespan import Lifespan
from nimburion.jobs.handling.middleware import Middleware
from nimburion.jobs.options.failure_hooks import FailureHooks

HandlerHook = Callable[[Context[Any]], Iterator[None]]
"""A hook around `def` handlers: a generator function with one `yield`."""
AsyncHandlerHook = Callable[[Context[Any]], AsyncIterator[None]]
"""A hook around `async def` handlers: an async generator function with one `yield`."""


class HandlerSetup:
    """What surrounds the handlers of a processor, in its worker and in its child processes."""

    def __init__(self) -> None:
        self.middlewares: list[Middleware] = []
        """What wraps every attempt, the outermost first; see `Processor.use`."""
        self.blocking_hooks: list[Callable[[Context[Any]], AbstractContextManager[None]]] = []
        """The hooks around `def` handlers, as context managers, the outermost first."""
        self.async_hooks: list[Callable[[Context[Any]], AbstractAsyncContextManager[None]]] = []
        """The hooks around `async def` handlers, as context managers, the outermost first."""
        self.failure_hooks: FailureHooks = FailureHooks()
        """What is called when an attempt has failed; see `on_failure` and `on_dead`."""
        self.lifespan: Lifespan | None = None
        """Opens the resources of a worker or of a child process; see `Processor.lifespan`."""

    def add_hook(self, hook: HandlerHook | AsyncHandlerHook) -> None:
        """Add a hook. `DefinitionError` is raised when it is not a generator function."""
        if inspect.isgeneratorfunction(hook):
            self.blocking_hooks.append(contextmanager(hook))
        elif inspect.isasyncgenfunction(hook):
            self.async_hooks.append(asynccontextmanager(hook))
        else:
            raise DefinitionError(
                f"a hook around handlers is a function with one `yield`, not {hook!r}; write "
                "`def hook(ctx): ...; yield; ...`, or `async def` for `async def` handlers"
            )
