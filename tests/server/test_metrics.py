"""The page `/metrics`."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.access_rights import RIGHTS
from nimburion.core.errors import BackendUnavailable
from nimburion.telemetry import backend_metrics
from tests.server.conftest import Api, MakeApi, send
from tests.waiting import wait_until

TOKEN = "0123456789abcdef"


@pytest.fixture
def reads(api: Api, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reads of the backend, as they are made."""
    made: list[str] = []

    def count(owner: object, name: str) -> None:
        original = getattr(owner, name)

        async def read(**options: object) -> object:
            made.append(name)
            await asyncio.sleep(0)
            return await original(**options)

        monkeypatch.setattr(owner, name, read)

    for name in ("list_queues", "list_sessions", "list_limits", "list_flows", "count_jobs"):
        count(api.processor.backend.reads, name)
    count(api.processor.backend, "now")
    return made


async def read_page(api: Api, accept: str = "") -> str:
    response = await api.client.get("/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    return response.text


async def test_the_page_has_the_metrics_of_the_process_and_of_the_backend(api: Api) -> None:
    await api.processor.enqueue(send.job("ann"))
    await api.enqueue("a", queue="mail")
    page = await read_page(api)
    assert 'nimburion_jobs_enqueued_total{queue="default",name="send"} 1' in page
    assert 'nimburion_jobs_queue_size{queue="mail"} 1' in page
    assert "nimburion_backend_up 1" in page


async def test_the_format_is_the_one_that_the_request_accepts(api: Api) -> None:
    response = await api.client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert not response.text.endswith("# EOF\n")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = await api.client.get("/metrics", headers={"Accept": accept})
    kind = "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert response.headers["content-type"] == kind
    assert response.text.endswith("# EOF\n")


async def test_scrapes_at_the_same_time_share_two_reads(api: Api, reads: list[str]) -> None:
    pages = await asyncio.gather(*(read_page(api) for _ in range(20)))
    assert len(pages) == 20
    assert reads == ["list_queues", "list_sessions"]


async def test_the_page_says_that_the_backend_is_down(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**_: object) -> object:
        raise BackendUnavailable("it is down")

    monkeypatch.setattr(api.processor.backend.reads, "list_queues", fail)
    assert "nimburion_backend_up 0" in await read_page(api)


async def test_a_backend_that_hangs_is_down_after_a_bound(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> object:
        return await asyncio.Event().wait()

    monkeypatch.setattr(api.processor.backend.reads, "list_sessions", hang)
    monkeypatch.setattr(backend_metrics, "READ_TIMEOUT", 0.01)
    assert "nimburion_backend_up 0" in await read_page(api)


async def test_the_limits_are_read_in_the_background(api: Api, reads: list[str]) -> None:
    await api.services.metrics.slow_readings.start()
    try:
        await wait_until(lambda: reads.count("list_flows") > 1, "limits and counts are read")
        assert reads == ["list_limits", "count_jobs", "list_flows", "list_flows"]
    finally:
        await api.services.metrics.slow_readings.stop()
    await api.services.metrics.slow_readings.stop()


@pytest.mark.parametrize("right", RIGHTS)
async def test_the_page_needs_the_right_to_read(
    make_api: MakeApi, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", TOKEN)
    api: Api = await make_api(tokens=[{"name": "t", "rights": [right], "variable": "TOKEN"}])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    response = await api.client.get("/metrics", headers=headers)
    assert response.status_code == (200 if right == "read" else 403)
    assert (await api.client.get("/metrics")).status_code == 401
