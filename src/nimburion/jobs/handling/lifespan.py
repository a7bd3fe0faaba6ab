"""The lifespan of a worker: the resources that its handlers share, such as a client or a model.

```python
@processor.lifespan
async def resources() -> AsyncIterator[Resources]:
    async with httpx.AsyncClient() as client:
        yield Resources(client)
```

The part before the `yield` runs before the worker takes its first job, the part after it when the
last handler has ended. Handlers find what it yields in `ctx.state`.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final

from nimburion.core.errors import DefinitionError

LifespanFunction = Callable[[], AsyncIterator[Any]] | Callable[[], Iterator[Any]]
"""A generator function without parameters that yields the state once."""

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens the resources of one worker or child process; the context manager returns the state."""


class NoState(enum.Enum):
    """The state of a processor without a lifespan."""

    NO_STATE = "no state"


NO_STATE: Final = NoState.NO_STATE


def make_lifespan(function: LifespanFunction) -> Lifespan:
    """Return the lifespan of a generator function, `def` or `async def`.

    `DefinitionError` is raised for anything else.
    """
    if inspect.isasyncgenfunction(function):
        lifespan: Lifespan = asynccontextmanager(function)
    elif inspect.isgeneratorfunction(function):
        lifespan = _make_async(function)
    else:
        raise DefinitionError(
            f"a lifespan is a function with one `yield`, not {function!r}; write "
            "`async def resources(): ...; yield state; ...`, or `def`"
        )
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise DefinitionError(f"a lifespan is called without arguments: {error}") from None
    return lifespan


def _make_async(function: Callable[[], Iterator[Any]]) -> Lifespan:
    open_blocking = contextmanager(function)

    @asynccontextmanager
    async def open_lifespan() -> AsyncIterator[Any]:
        with open_blocking() as state:
            yield state

    return open_lifespan
