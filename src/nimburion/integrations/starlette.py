"""Starlette: open a processor while the application runs.

```python
app = Starlette(routes=routes, lifespan=lifespan(processor))
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from nimburion.core.errors import NotOpen
from nimburion.jobs.processor import Processor

__all__ = ["STATE_KEY", "Lifespan", "find_processor", "lifespan"]

STATE_KEY = "nimburion_processor"
"""The key of the processor in the state of the application's lifespan."""

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
"""A lifespan that yields a state, as Starlette and FastAPI take it."""


def lifespan(
    processor: Processor,
    inner: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    *,
    worker: bool = False,
) -> Lifespan:
    """Return a lifespan that opens the processor at startup and closes it at shutdown.

    `inner` is a lifespan of your own: it starts after the processor and ends before it, and its
    state is kept. With `worker`, the application also runs jobs, on its own event loop: for
    development and small deployments. Elsewhere, run `nimburion worker` beside the application.

    In a request, `request.state.nimburion_processor` is the processor.
    """

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:  # noqa: ANN401 (Starlette's type)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(processor)
            if worker:
                await processor.start()
                stack.push_async_callback(processor.stop)
            state: dict[str, Any] = {STATE_KEY: processor}
            if inner is not None:
                state.update(await stack.enter_async_context(inner(app)) or {})
            yield state

    return run


def find_processor(state: object) -> Processor:
    """Return the processor of `request.state`.

    Raises `NotOpen` if the application does not use `lifespan`, or a test client did not start it.
    """
    found = getattr(state, STATE_KEY, None)
    if isinstance(found, Processor):
        return found
    raise NotOpen(
        "the application has opened no processor: pass lifespan=lifespan(processor), or with "
        "FastAPI app.include_router(router(processor)); a test writes `with TestClient(app):`"
    )
