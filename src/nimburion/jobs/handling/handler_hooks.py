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

HandlerHook = Callable[[Context[Any]], Iterator[None]]
"""A hook around `def` handlers: a generator function with one `yield`."""
AsyncHandlerHook = Callable[[Context[Any]], AsyncIterator[None]]
"""A hook around `async def` handlers: an async generator function with one `yield`."""


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
