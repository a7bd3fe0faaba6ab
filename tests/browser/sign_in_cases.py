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
        await processor.backend.enqueue([NewJob("a", "send", "mail", b"{}")])
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
