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

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import HTTPConnection

from nimburion.integrations.starlette import find_processor, lifespan
from nimburion.jobs.processor import Processor

__all__ = ["ProcessorDependency", "get_processor", "router"]


def router(processor: Processor, *, worker: bool = False) -> APIRouter:
    """Return a router that opens the processor at startup and closes it at shutdown.

    It works beside a lifespan of the application: `include_router` runs both. With `worker`, the
    application also runs jobs, on its own event loop: for development and small deployments.
    Elsewhere, run `nimburion worker` beside the application.
    """
    return APIRouter(lifespan=lifespan(processor, worker=worker))


async def get_processor(connection: HTTPConnection) -> Processor:
    """Return the processor of the application, as a dependency: `Depends(get_processor)`.

    A test replaces it with `app.dependency_overrides[get_processor] = lambda: other`. Raises
    `NotOpen` if the application does not include `router(processor)`.
    """
    return find_processor(connection.state)


ProcessorDependency = Annotated[Processor, Depends(get_processor)]
"""The type of a parameter of an endpoint that receives the processor."""
