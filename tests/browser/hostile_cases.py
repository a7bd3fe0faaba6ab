"""Hostile texts in a real browser: no script of theirs runs, no dialog opens, nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from nimburion.jobs import Processor
from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.site import PAGES
from tests.browser.served_dashboard import ServedDashboard
from tests.server.dashboard.conftest import make_path
from tests.server.dashboard.test_hostile import HOSTILE, fill_with_hostile_texts

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hostile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedDashboard]:
    """A dashboard whose backend holds hostile texts wherever it takes text."""
    folder: Path = tmp_path_factory.mktemp("hostile")
    url = f"sqlite:///{folder}/hostile.db"
    async with Processor(url) as processor:
        await fill_with_hostile_texts(processor, until=None)
    with ServedDashboard(url, folder) as served:
        yield served


@pytest.mark.parametrize("shown", PAGES, ids=lambda page: page.name)
async def test_hostile_texts_do_nothing(
    hostile: ServedDashboard, page: Page, shown: AnyPage
) -> None:
    await page.goto(hostile.address.removesuffix("/dashboard") + make_path(shown))
    await expect(page.locator("h1")).to_be_visible()
    await page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert await page.locator("#content script, #content img, #content b, [onfocus]").count() == 0


async def test_a_hostile_search_is_shown_as_text(hostile: ServedDashboard, page: Page) -> None:
    await page.goto(f"{hostile.address}/jobs")
    await page.locator("#search").fill(HOSTILE)
    await page.keyboard.press("Enter")
    await expect(page.locator("#live .message")).to_contain_text("no qualifier 'javascript'")
    await expect(page.locator("#search")).to_have_value(re.compile("^<script>alert"))
    assert await page.locator("#content script, #content img").count() == 0
