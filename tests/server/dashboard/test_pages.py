"""Each page is HTML, JSON and a fragment of the same values, under a strict policy."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from nimburion.core.errors import BackendUnavailable
from nimburion.core.session import Session
from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.readings import FOR_PAGES, SharedReadings
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.server.dashboard.site import ACTIONS, PAGES, SECTIONS
from tests.server.conftest import OWN, Api
from tests.server.dashboard.conftest import every_page, make_path

NOT_READ = 'data-pending="yes"'
"""In a page that came without its values."""


def find_inline_code(html: str) -> list[str]:
    """Return what the policy would refuse: inline scripts, handlers and styles."""
    scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>", html)
    return [*scripts, *re.findall(r"<[^>]*\s(?:style|on\w+)=", html), *re.findall("<style", html)]


@every_page
async def test_a_page_is_html_under_a_strict_policy(site: Api, page: AnyPage) -> None:
    response = await site.client.get(make_path(page), headers={"Accept": "text/html"})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/html")
    policy = response.headers["Content-Security-Policy"]
    nonces = set(re.findall(r"<script nonce=\"([^\"]+)\"", response.text))
    assert len(nonces) == 1
    assert policy == (
        f"default-src 'none'; script-src 'nonce-{nonces.pop()}'; style-src 'self'; "
        "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    assert find_inline_code(response.text) == []
    assert response.text.count("<h1") == 1
    assert response.headers["Cache-Control"] == "no-store"


@every_page
async def test_the_forms_of_a_page_show_the_same(site: Api, page: AnyPage) -> None:
    path = make_path(page)
    checks, readings = site.services.checks, site.services.readings
    await readings.peek("checks", checks.run, 60.0, first_wait=30.0)
    html = (await site.client.get(path)).text
    fragment = await site.client.get(path, params={"format": "fragment"})
    twin = await site.client.get(path, params={"format": "json"})
    accepted = await site.client.get(path, headers={"Accept": "application/json"})
    assert fragment.text.strip() in html
    assert twin.headers["Content-Type"] == "application/json"
    assert twin.json() == accepted.json()
    assert fragment.headers["Problem"] == twin.headers["Problem"] == ""


async def test_the_twin_has_what_the_backend_holds(site: Api) -> None:
    twin = (await site.client.get(f"{DASHBOARD_PATH}/queues?format=json")).json()
    rows = {row["name"]: row for row in twin["queues"]}
    assert (rows["mail"]["size"], rows["mail"]["workers"]) == (2, 0)
    assert rows["other"]["pause"]["reason"] == "deploy"
    assert rows["mail"]["unserved"] == {"send": "no live worker serves this queue"}
    session = Session(id="s" * 32, queues=("mail",), names=("other",))
    await site.processor.backend.consuming.open_session(session)
    site.services.readings.expire()
    html = (await site.client.get(f"{DASHBOARD_PATH}/queues")).text
    assert "that serves this queue has a handler of send" in html


@every_page
async def test_unknown_parameters_and_values_are_refused(site: Api, page: AnyPage) -> None:
    for query in ("nonsense=1", "format=xml", "page=0", "page=-1", "sort=%3Cscript%3E", "range=9y"):
        response = await site.client.get(f"{make_path(page)}?{query}")
        assert response.status_code == 422, query
        assert "<script>" not in response.text.replace("<script nonce", "")


async def test_names_of_pages_and_actions_are_unique() -> None:
    assert len({page.name for page in PAGES}) == len({page.path for page in PAGES}) == len(PAGES)
    assert len({action.name for action in ACTIONS}) == len(ACTIONS)
    labels = {section.label for section in SECTIONS}
    assert {page.section for page in PAGES} <= labels
    assert len({section.key for section in SECTIONS}) == len(SECTIONS)
    assert {f"{section.path}" for section in SECTIONS} <= {page.path for page in PAGES}


async def test_the_root_leads_to_the_dashboard(site: Api) -> None:
    response = await site.client.get("/")
    assert (response.status_code, response.headers["Location"]) == (307, DASHBOARD_PATH)


async def test_links_have_the_prefix_of_a_mounted_server(site: Api) -> None:
    app = Starlette(routes=[Mount("/admin/jobs", site.app)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=OWN) as client:
        html = (await client.get("/admin/jobs/dashboard")).text
        links = re.findall(r"(?:href|src|action|data-live)=\"(/[^\"]*)\"", html)
        assert len(links) > 10
        assert [link for link in links if not link.startswith("/admin/jobs/dashboard")] == []
        asset = next(link for link in links if "dashboard.css" in link)
        assert (await client.get(asset)).status_code == 200


async def test_a_page_that_does_not_exist_is_a_page(site: Api) -> None:
    response = await site.client.get(f"{DASHBOARD_PATH}/nothing", headers={"Accept": "text/html"})
    assert response.status_code == 404
    assert "<h1>Not found</h1>" in response.text
    twin = await site.client.get(
        f"{DASHBOARD_PATH}/nothing", headers={"Accept": "application/json"}
    )
    assert twin.json()["type"] == "urn:nimburion:problem:not-found"


async def test_without_the_backend_the_last_values_stay(
    site: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{DASHBOARD_PATH}/queues"
    before = (await site.client.get(path)).text
    assert 'id="banner" role="alert" hidden' in before

    async def fail(**_: object) -> object:
        raise BackendUnavailable("connection <refused>")

    monkeypatch.setattr(site.processor.backend.reads, "list_queues", fail)
    site.services.readings.expire()
    after = await site.client.get(path)
    assert after.status_code == 200
    assert "connection &lt;refused&gt;" in after.text
    assert 'id="queue-mail"' in after.text
    fragment = await site.client.get(f"{path}?format=fragment")
    assert "connection%20%3Crefused%3E" in fragment.headers["Problem"]
    monkeypatch.undo()
    site.services.readings.expire()
    assert 'id="banner" role="alert" hidden' in (await site.client.get(path)).text


async def test_a_first_page_without_the_backend_is_a_problem(
    site: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(**_: object) -> object:
        raise BackendUnavailable("connection refused")

    monkeypatch.setattr(site.processor.backend.reads, "list_queues", fail)
    response = await site.client.get(f"{DASHBOARD_PATH}/queues")
    assert response.status_code == 503
    assert "connection refused" in response.text
    assert "data-retry" in response.text
    assert response.headers["Content-Type"].startswith("text/html")


async def test_a_page_does_not_wait_for_values_that_take_long(
    site: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes without them, and its script asks for the fragment, which has them."""
    answer = asyncio.Event()
    read_backend = SharedReadings._refresh

    async def read_slowly(*arguments: Any) -> None:
        await answer.wait()
        await read_backend(*arguments)

    monkeypatch.setattr(SharedReadings, "_refresh", read_slowly)
    site.services.page_policy = msgspec.structs.replace(FOR_PAGES, wait=0.001)
    # One reads nothing, and the other waits for its values to open another page.
    paths = [make_path(page) for page in PAGES if page.name not in {"about", "search"}]
    pages = [(await site.client.get(path)).text for path in paths]
    assert [path for path, html in zip(paths, pages, strict=True) if NOT_READ not in html] == [
        f"{DASHBOARD_PATH}/backend"  # has nothing that must be read
    ]
    assert all('http-equiv="refresh"' in html for html in pages if NOT_READ in html)
    answer.set()
    for path in paths:
        assert (await site.client.get(path, params={"format": "json"})).status_code == 200
        assert NOT_READ not in (await site.client.get(path)).text, path
