"""Each page and each form works on the backends that have a server."""

from __future__ import annotations

from nimburion.server.dashboard.site import ACTIONS, PAGES
from tests.server.conftest import Api, MakeApi
from tests.server.dashboard.conftest import fill, make_path, send_form
from tests.servers.server_kinds import RunningPostgres, RunningRedis


async def test_redis(redis_server: RunningRedis, make_api: MakeApi) -> None:
    assert await find_failures(make_api, redis_server.url) == {}


async def test_postgres(postgres_server: RunningPostgres, make_api: MakeApi) -> None:
    assert await find_failures(make_api, postgres_server.url) == {}


async def find_failures(make_api: MakeApi, url: str) -> dict[str, str]:
    """Return what answered with another status than expected, and its answer."""
    api: Api = await make_api(url)
    await fill(api)
    failures = {}
    for page in PAGES:
        response = await api.client.get(make_path(page))
        if response.status_code != 200:
            failures[page.name] = response.text
    for action in ACTIONS:
        response = await send_form(api, action)
        if response.status_code not in {303, 404, 409}:  # an action before it changed the same job
            failures[action.name] = f"{response.status_code} {response.text}"
    return failures
