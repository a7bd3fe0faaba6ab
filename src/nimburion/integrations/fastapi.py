"""FastAPI: open a processor with the application, and use it in endpoints.

```python
processor = Processor("sqlite:///jobs.db")
app = FastAPI()
app.include_router(router(processor))


@app.post("/signups")
async def sign_up(address: str, jobs: ProcessorDependency) -> dict[str, str]:
    return {"job": await jobs.enqueue(SendEmail(to=address))}
```
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Annotated, Protocol

from nimburion.integrations import explain_missing
from nimburion.integrations.starlette import find_processor, lifespan
from nimburion.jobs.processor import Processor

try:
    from fastapi import APIRouter, Depends
    from starlette.requests import HTTPConnection
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as _missing:
    raise explain_missing(_missing, "fastapi") from None

__all__ = ["ProcessorDependency", "get_processor", "router"]


class Management(Protocol):
    """What `nimburion.server.MountedManagement` is: an ASGI application with a lifetime."""

    async def __aenter__(self) -> object: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def router(
    processor: Processor,
    *,
    worker: bool = False,
    management: Management | None = None,
    management_path: str = "/nimburion",
) -> APIRouter:
    """Return a router that opens the processor at startup and closes it at shutdown.

    It works beside a lifespan of the application: `include_router` runs both. With `worker`, the
    application also runs jobs, on its own event loop: for development and small deployments.
    Elsewhere, run `nimburion worker` beside the application.

    `management=MountedManagement(processor, config.load())`, from `nimburion.server`, adds health
    checks, metrics and the JSON API below `management_path`.
    """
    if management is None:
        return APIRouter(lifespan=lifespan(processor, worker=worker))

    @asynccontextmanager
    async def manage(_: object) -> AsyncIterator[None]:
        async with management:
            yield

    # Not a `Mount`: `include_router` drops those before FastAPI 0.139.
    path = f"{management_path.rstrip('/')}/{{{_REST}:path}}"
    mounted = Route(path, _Mounted(management), include_in_schema=False)
    return APIRouter(lifespan=lifespan(processor, manage, worker=worker), routes=[mounted])


_REST = "management_route"
"""The parameter of the path that holds what is behind `management_path`."""


class _Mounted:
    """The endpoint of a route below which an ASGI application answers, as in a `Mount`."""

    def __init__(self, app: Management) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. The path in front of the rest becomes the path of the root."""
        parameters = dict(scope["path_params"])
        rest = f"/{parameters.pop(_REST)}"
        outer, path = scope.get("root_path", ""), scope["path"]
        inside = path if f"{path}/".startswith(f"{outer}/") else f"{outer}{path}"
        root = inside.removesuffix(rest)
        inner = {**scope, "path_params": parameters, "root_path": root, "path": inside}
        await self._app(inner, receive, send)


async def get_processor(connection: HTTPConnection) -> Processor:
    """Return the processor of the application, as a dependency: `Depends(get_processor)`.

    A test replaces it with `app.dependency_overrides[get_processor] = lambda: other`. Raises
    `NotOpen` if the application does not include `router(processor)`.
    """
    return find_processor(connection.state)


ProcessorDependency = Annotated[Processor, Depends(get_processor)]
"""The type of a parameter of an endpoint that receives the processor."""
