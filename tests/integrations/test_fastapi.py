"""FastAPI: the processor opens with the application, and endpoints enqueue with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.routing import Route
from starlette.testclient import TestClient

from nimburion.core.errors import ConfigurationError, NotOpen
from nimburion.core.job import State
from nimburion.core.settings import Config, ServerSettings, TokenSettings
from nimburion.integrations.fastapi import ProcessorDependency, get_processor, router
from nimburion.integrations.starlette import lifespan
from nimburion.jobs import Processor, job
from nimburion.server import MountedManagement


@job
async def send(to: str) -> str:
    return f"sent to {to}"


@pytest.fixture
def processor() -> Processor:
    made = Processor("memory://")
    made.register(send)
    return made


def make_app(**arguments: Any) -> FastAPI:
    app = FastAPI(**arguments)

    @app.post("/signups")
    async def sign_up(to: str, jobs: ProcessorDependency) -> dict[str, str]:
        return {"id": await jobs.enqueue(send.job(to))}

    @app.get("/jobs/{job_id}")
    async def show(job_id: str, jobs: ProcessorDependency) -> dict[str, Any]:
        return (await jobs.get_status(job_id)).public_dict()

    @app.get("/own")
    async def own(request: Request) -> dict[str, Any]:
        return {"own": request.state.own}

    return app


def test_endpoints_enqueue_and_a_test_drains(processor: Processor) -> None:
    app = make_app()
    app.include_router(router(processor))
    with TestClient(app) as client:
        job_id = client.post("/signups", params={"to": "ann"}).json()["id"]
        assert client.get(f"/jobs/{job_id}").json()["state"] == "pending"
        assert client.portal is not None
        assert client.portal.call(processor.drain) == 1
        shown = client.get(f"/jobs/{job_id}").json()
    assert (shown["state"], shown["result"]) == ("completed", "sent to ann")
    assert processor.health().state == "stopped"


async def test_an_error_names_the_router_that_an_application_lacks(processor: Processor) -> None:
    with pytest.raises(NotOpen, match=r"in FastAPI, write `app\.include_router\(.*router\(proc"):
        await processor.enqueue(send.job("ann"))


async def test_a_middleware_stack_that_somebody_replaced_meanwhile_stays(
    processor: Processor,
) -> None:
    app = make_app()
    app.middleware_stack = own = app.build_middleware_stack()
    async with lifespan(processor)(app):
        assert app.middleware_stack is not own
    assert app.middleware_stack is own
    other = app.build_middleware_stack()
    async with lifespan(processor)(app):
        app.middleware_stack = other
    assert app.middleware_stack is other


def test_a_lifespan_of_the_application_runs_too(processor: Processor) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        events.append("started")
        yield {"own": "state"}
        events.append("stopped")

    app = make_app(lifespan=own)
    app.include_router(router(processor))
    with TestClient(app) as client:
        assert client.get("/own").json() == {"own": "state"}
        assert client.post("/signups", params={"to": "ann"}).status_code == 200
    assert events == ["started", "stopped"]


def test_a_composed_lifespan_keeps_the_state_of_the_inner_one(processor: Processor) -> None:
    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await processor.enqueue(send.job("inner"))  # the processor is open already
        yield {"own": "state"}

    with TestClient(make_app(lifespan=lifespan(processor, own))) as client:
        assert client.get("/own").json() == {"own": "state"}
        assert client.post("/signups", params={"to": "ann"}).status_code == 200


def test_a_worker_runs_in_the_application(processor: Processor) -> None:
    app = make_app()
    app.include_router(router(processor, worker=True))
    with TestClient(app) as client:
        job_id = client.post("/signups", params={"to": "ann"}).json()["id"]
        assert client.portal is not None
        assert client.portal.call(processor.wait, job_id, 10) == "sent to ann"
        assert processor.health().state == "ready"
    assert processor.health().state == "stopped"


async def test_the_dependency_is_overridden(processor: Processor) -> None:
    app = make_app()
    async with Processor("memory://") as other:
        app.dependency_overrides[get_processor] = lambda: other
        from httpx import ASGITransport, AsyncClient

        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1") as client:
            answer = await client.post("/signups", params={"to": "ann"})
        assert (await other.get_status(answer.json()["id"])).state is State.PENDING


def test_an_application_without_a_processor_says_what_to_write() -> None:
    client = TestClient(make_app())
    with pytest.raises(NotOpen, match=r"app\.include_router\(router\(processor\)\)"):
        client.post("/signups", params={"to": "ann"})


def test_the_management_routes_are_mounted_when_asked(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "a-long-secret-of-this-test")
    token = TokenSettings(name="ops", rights=("read",), variable="SHOP_TOKEN")
    management = MountedManagement(processor, Config(server=ServerSettings(tokens=(token,))))
    app = make_app()
    app.include_router(router(processor, management=management, management_path="/ops"))
    with TestClient(app) as client:
        client.post("/signups", params={"to": "ann"})
        assert client.get("/ops/health/ready").status_code == 200
        assert client.get("/ops/api/v1/jobs").status_code == 401
        own = {"Authorization": "Bearer a-long-secret-of-this-test"}
        shown = client.get("/ops/api/v1/jobs", headers=own).json()
        assert [each["name"] for each in shown["jobs"]] == ["send"]
        assert "jobs_enqueued_total" in client.get("/ops/metrics", headers=own).text
    with TestClient(app) as client:  # a second time, as after a restart in one process
        assert client.get("/ops/health/ready").status_code == 200


def test_the_management_routes_are_copied_by_each_version_of_fastapi(
    processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 0.139, `include_router` makes a route of each `Route`, and drops all else."""
    monkeypatch.setenv("SHOP_TOKEN", "a-long-secret-of-this-test")
    token = TokenSettings(name="ops", rights=("read",), variable="SHOP_TOKEN")
    management = MountedManagement(processor, Config(server=ServerSettings(tokens=(token,))))
    app = FastAPI()
    for route in router(processor, management=management).routes:
        assert isinstance(route, Route)
        app.add_route(f"/api{route.path}", route.endpoint, methods=list(route.methods or []))
    own = {"Authorization": "Bearer a-long-secret-of-this-test"}
    client = TestClient(app, headers=own, root_path="/shop")
    assert client.get("/api/nimburion/health/startup").status_code == 200
    assert client.post("/api/nimburion/api/v1/queues/pause").status_code == 403
    for path in ("/api/nimburion/dashboard/about", "/shop/api/nimburion/dashboard/about"):
        assert 'href="/shop/api/nimburion/dashboard/jobs"' in client.get(path).text


def test_mounted_management_needs_a_token(processor: Processor) -> None:
    with pytest.raises(ConfigurationError, match=r"need a token; write `tokens: \["):
        MountedManagement(processor, Config())


PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_jobs_take_the_id_and_the_trace_of_the_request(processor: Processor) -> None:
    app = make_app()
    app.include_router(router(processor))

    @app.post("/blocking")
    def sign_up_blocking() -> dict[str, str]:
        return {"id": processor.sync.enqueue(send.job("ann"))}

    headers = {"X-Request-ID": "req-7", "traceparent": PARENT}
    for _ in range(2):  # the application can start again
        with TestClient(app) as client:
            assert client.portal is not None
            for path in ("/signups?to=ann", "/blocking"):
                job_id = client.post(path, headers=headers).json()["id"]
                status = client.portal.call(processor.get_status, job_id)
                assert (status.correlation_id, status.headers) == (
                    "req-7",
                    {"traceparent": PARENT},
                )
                job_id = client.post(path).json()["id"]
                status = client.portal.call(processor.get_status, job_id)
                assert (status.correlation_id, status.headers) == (None, {})
