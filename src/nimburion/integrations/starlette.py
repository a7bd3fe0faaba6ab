"""Starlette: open a processor while the application runs.

```python
app = Starlette(routes=routes, lifespan=lifespan(processor))
```

Jobs that a request enqueues take its header `X-Request-ID` as their correlation id, and its header
`traceparent`, so that a worker continues the trace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any

from nimburion.core.errors import NotOpen
from nimburion.jobs.handling.context import CURRENT, RequestContext
from nimburion.jobs.processor import Processor

__all__ = ["STATE_KEY", "Lifespan", "RequestContextMiddleware", "find_processor", "lifespan"]

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
            with _wrap_application(app):
                yield state

    return run


Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class RequestContextMiddleware:
    """An ASGI middleware: the jobs that a request enqueues inherit its id and its trace.

    `lifespan` adds it to a Starlette or FastAPI application. Wrap other ASGI applications yourself.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with the wrapped application."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        found = {name: value.decode("latin-1") for name, value in scope["headers"]}
        request = RequestContext.read(found.get(b"x-request-id"), found.get(b"traceparent"))
        token = CURRENT.set(request)
        try:
            await self.app(scope, receive, send)
        finally:
            CURRENT.reset(token)


@contextmanager
def _wrap_application(app: Any) -> Iterator[None]:  # noqa: ANN401 (Starlette's type)
    """Put the middleware around the application while it runs.

    `add_middleware` refuses that once the application has started, and a lifespan runs then. So the
    outermost middleware is replaced.
    """
    stack = getattr(app, "middleware_stack", None)
    if stack is None or isinstance(stack, RequestContextMiddleware):
        yield
        return
    wrapped = RequestContextMiddleware(stack)
    app.middleware_stack = wrapped
    try:
        yield
    finally:
        if app.middleware_stack is wrapped:  # else somebody has replaced it meanwhile
            app.middleware_stack = stack


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
