"""The management routes below a path of a web application.

```python
management = MountedManagement(processor, config.load())
app.include_router(router(processor, management=management))  # FastAPI
```
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope, Send

from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import Config
from nimburion.jobs.processor import Processor
from nimburion.server.access import AccessControl, read_tokens
from nimburion.server.health import HealthChecks, Phase
from nimburion.server.routes import make_management_app
from nimburion.server.services import ManagementServices


class MountedManagement:
    """The dashboard, health checks, metrics and the JSON API of a processor, as an ASGI application
    to mount.

    It works inside `async with`, while the processor is open. Every request but the health checks
    needs one of the tokens of `config.server.tokens`: the application may listen on any address.
    `ConfigurationError` is raised if there is none.

    Readiness tells whether the backend answers, and if a worker runs in this process, whether it
    has a session.
    """

    def __init__(self, processor: Processor, config: Config) -> None:
        if not config.server.tokens:
            raise ConfigurationError(
                "server.tokens: management routes inside a web application need a token; write "
                "`tokens: [{name: ops, variable: OPS_TOKEN, rights: [read]}]` under server"
            )
        self._phase: Phase = "stopped"
        self._health = HealthChecks(
            processor.backend,
            processor.clock,
            lambda: self._phase,
            lambda: None if (health := processor.health()).state == "open" else health,
        )
        self._services = ManagementServices(config, processor, self._health)
        access = AccessControl(config.server, read_tokens(config.server.tokens))
        self._app = make_management_app(self._services, access)
        self._parts = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for service in self._services.background:
            await service.start()
            self._parts.push_async_callback(service.stop)
        self._parts.push_async_callback(self._services.stop_reads)
        self._phase = "started"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._phase = "stopped"
        await self._parts.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)
