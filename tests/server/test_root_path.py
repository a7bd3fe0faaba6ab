"""A server that a proxy shows below a path, whether the proxy strips the path or not."""

from __future__ import annotations

import httpx
import pytest

from nimburion import config
from nimburion.core.errors import ConfigurationError
from nimburion.server.root_path import RootPath
from tests.server.conftest import OWN, Api

FORM = {
    "Sec-Fetch-Site": "same-origin",
    "Content-Type": "application/x-www-form-urlencoded",
}


@pytest.fixture
def client(api: Api) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(RootPath(api.app, "/ops/jobs"))
    return httpx.AsyncClient(transport=transport, base_url=OWN)


@pytest.mark.parametrize("prefix", ["", "/ops/jobs"])
async def test_links_begin_with_the_path(api: Api, client: httpx.AsyncClient, prefix: str) -> None:
    await api.enqueue("a", queue="mail")
    shown = await client.get(f"{prefix}/dashboard/queues")
    assert shown.status_code == 200
    links = [part.partition('"')[0] for part in shown.text.split('href="')[1:]]
    outside = [link for link in links if not link.startswith(("/ops/jobs/dashboard", "#", "?"))]
    assert outside == []
    assert 'data-live="/ops/jobs/dashboard/queues?format=fragment"' in shown.text
    paused = await client.post(f"{prefix}/dashboard/queues/mail/pause", headers=FORM)
    assert paused.headers["Location"].startswith("/ops/jobs/dashboard/queues/mail?")
    index = await client.get(f"{prefix}/")
    assert index.headers["Location"] == "/ops/jobs/dashboard"
    assert (await client.get(f"{prefix}/health/ready")).status_code == 200
    assert (await client.get(f"{prefix}/api/v1/queues")).json()["queues"][0]["name"] == "mail"


async def test_the_path_itself_and_its_neighbours(client: httpx.AsyncClient) -> None:
    assert (await client.get("/ops/jobs")).headers["Location"] == "/ops/jobs/dashboard"
    for path in ("/ops", "/ops/jobsdashboard", "/ops/jobs/ops/jobs/dashboard"):
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize(
    "path", ["jobs", "/jobs/", "/", "//", "/a b", "/a%2Fb", "https://example.org/jobs"]
)
def test_another_text_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.root_path: expected a path like /jobs"):
        config.load(server={"root_path": path})
