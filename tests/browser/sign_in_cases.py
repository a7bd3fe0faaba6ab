"""Sign-in with a token, and what a caller without a right sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from nimburion.core.job import NewJob
from nimburion.jobs import Processor
from tests.browser.conftest import HOST
from tests.browser.served_dashboard import ServedDashboard

pytestmark = pytest.mark.asyncio(loop_scope="session")
TOKENS = {"READ_TOKEN": "read-0123456789abcdef", "OPS_TOKEN": "ops-0123456789abcdef"}
SETTINGS = """
server:
  tokens:
    - {name: reader, variable: READ_TOKEN, rights: [read]}
    - {name: ops, variable: OPS_TOKEN, rights: [read, operate]}
"""


@pytest_asyncio.fixture(loop_scope="session")
async def guarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServedDashboard]:
    """A dashboard with a token to read and one to operate."""
    for variable, token in TOKENS.items():
        monkeypatch.setenv(variable, token)
    (tmp_path / "config.yaml").write_text(SETTINGS, encoding="utf-8")
    url = f"sqlite:///{tmp_path}/guarded.db"
    async with Processor(url) as processor:
        await processor.backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    with ServedDashboard(url, tmp_path) as served:
        yield served


async def test_buttons_follow_the_rights_of_the_token(
    guarded: ServedDashboard, browser: Browser
) -> None:
    pauses = {"READ_TOKEN": 0, "OPS_TOKEN": 1}
    for variable, count in pauses.items():
        page = await browser.new_page(
            http_credentials={"username": "me", "password": TOKENS[variable]}
        )
        await page.goto(f"{guarded.address}/queues")
        await expect(page.locator("#queue-mail")).to_be_visible()
        await expect(page.locator("summary", has_text="Pause")).to_have_count(count)
        await page.close()
    async with httpx.AsyncClient() as stranger:
        answer = await stranger.get(f"{guarded.address}/queues")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


async def test_a_form_without_scripts_works_over_plain_http(
    guarded: ServedDashboard, browser: Browser
) -> None:
    """Here a browser sends no `Sec-Fetch-Site`, and `Origin` only as the referrer policy allows."""
    context = await browser.new_context(
        java_script_enabled=False,
        http_credentials={"username": "me", "password": TOKENS["OPS_TOKEN"]},
    )
    try:
        page = await context.new_page()
        await page.goto(f"{guarded.address.replace('127.0.0.1', HOST)}/queues/mail")
        await page.locator("summary", has_text="Pause").first.click()
        form = page.locator("details.action[open]")
        await form.locator("[name=reason]").fill("an incident")
        await form.get_by_role("button").click()
        await expect(page.locator("#notice")).to_contain_text("paused")
    finally:
        await context.close()
