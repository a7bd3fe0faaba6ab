"""The management server's application, called without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from nimburion import config
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import AttemptError, NewJob
from nimburion.core.session import Session
from nimburion.core.settings import Config
from nimburion.core.settlement import Failed
from nimburion.jobs import Processor, job
from nimburion.server.access import AccessControl, read_tokens
from nimburion.server.dashboard.readings import FOR_DATA
from nimburion.server.health import HealthChecks
from nimburion.server.routes import make_management_app
from nimburion.server.services import ManagementServices

OWN = "http://127.0.0.1:8420"


@job
def send(to: str, secret: str = "") -> str:
    """A job of the tests."""
    return f"{to} {secret}"


class Api:
    """A management server in this process, and the processor behind it."""

    def __init__(self, cfg: Config) -> None:
        self.processor = Processor(cfg.jobs.url, cfg.jobs)
        self.processor.register(send)
        self.health = HealthChecks(
            self.processor.backend, self.processor.clock, lambda: "started", None
        )
        self.services = ManagementServices(cfg, self.processor, self.health)
        self.services.page_policy = FOR_DATA  # however busy the machine is, pages have their values
        access = AccessControl(cfg.server, read_tokens(cfg.server.tokens))
        self.app: Starlette = make_management_app(self.services, access)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url=OWN,
            headers={"Content-Type": "application/json"},
        )

    async def get(self, path: str, **options: Any) -> Any:
        """Return the JSON of a successful answer to a GET."""
        return self._read(await self.client.get(f"/api/v1{path}", **options))

    async def post(self, path: str, body: object = None, **options: Any) -> Any:
        """Return the JSON of a successful answer to a POST."""
        return self._read(await self.client.post(f"/api/v1{path}", json=body or {}, **options))

    async def delete(self, path: str) -> Any:
        """Return the JSON of a successful answer to a DELETE."""
        return self._read(await self.client.delete(f"/api/v1{path}"))

    def _read(self, response: httpx.Response) -> Any:
        assert response.status_code in {200, 201}, response.text
        return response.json()

    async def enqueue(
        self, *ids: str, name: str = "send", queue: str = "default", after: float = 0.0
    ) -> None:
        """Store jobs that are due after some seconds."""
        payload = b'{"to":"a","secret":"hush"}'
        jobs = [NewJob(job_id, name, queue, payload, after=after) for job_id in ids]
        await self.processor.backend.producing.enqueue(jobs)

    async def fail(self, *ids: str, queue: str = "default") -> None:
        """Store jobs and make dead letters of them."""
        await self.enqueue(*ids, queue=queue)
        await self.fail_waiting(len(ids), queue=queue)

    async def fail_waiting(self, count: int = 1, *, queue: str = "default") -> None:
        """Make dead letters of the next jobs of a queue."""
        backend, lane = self.processor.backend, Lane(queue, "send")
        session = Session(id=queue.ljust(32, "0"), queues=(queue,), names=("send",))
        await backend.consuming.open_session(session)
        request = ReserveRequest(total=count, lanes=(lane,))
        reply = await backend.consuming.exchange(session.id, 1, [], request)
        error = AttemptError(1, "permanent", "Broken", "no good", "Traceback\n  hush")
        settled = [Failed(delivery.lease, "permanent", error) for delivery in reply.deliveries]
        await backend.consuming.exchange(session.id, 2, settled, ReserveRequest(total=0))
        await backend.consuming.close_session(session.id)


MakeApi = Callable[..., Any]


@pytest.fixture
async def make_api() -> AsyncIterator[MakeApi]:
    """Returns a function that makes an `Api`, with settings of the section `server`."""
    async with AsyncExitStack() as stack:

        async def make(url: str = "memory://", **server: object) -> Api:
            api = Api(config.load(server=server, jobs={"url": url}))
            await stack.enter_async_context(api.processor)
            await stack.enter_async_context(api.client)
            return api

        yield make


@pytest.fixture
async def api(make_api: MakeApi) -> Api:
    """A management server on loopback, without tokens."""
    made = await make_api()
    assert isinstance(made, Api)
    return made
