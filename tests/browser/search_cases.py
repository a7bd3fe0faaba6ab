"""The search that each page has in its header."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.site import PAGES
from tests.browser.conftest import Subject

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("shown", PAGES, ids=lambda page: page.name)
async def test_slash_searches_on_every_page(subject: Subject, page: Page, shown: AnyPage) -> None:
    await page.goto(subject.find_url(shown))
    await expect(page.locator("#as-of[title]")).to_be_visible()
    await page.keyboard.press("/")
    await expect(page.locator("#find")).to_be_focused()
    await expect(page.locator("#find")).to_have_value("")


async def test_the_tail_of_an_id_leads_from_the_overview_to_the_job(
    subject: Subject, page: Page
) -> None:
    job_id = subject.sample.failed
    await page.goto(subject.dashboard.address)
    await page.keyboard.press("/")
    await page.keyboard.type(job_id[-12:])  # its digits and letters are no shortcuts
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{subject.dashboard.address}/jobs/{job_id}")


async def test_a_name_leads_to_its_jobs_and_keys_in_a_field_are_no_shortcuts(
    subject: Subject, page: Page
) -> None:
    await page.goto(subject.dashboard.address)
    await page.keyboard.press("/")
    await page.keyboard.type("build_report?")
    await expect(page.locator("#help")).to_be_hidden()
    await page.keyboard.press("Backspace")
    await page.keyboard.press("Enter")
    await expect(page.locator("#search")).to_have_value("name:build_report")
    await page.keyboard.press("a")
    await expect(page).to_have_url(f"{subject.dashboard.address}/audit")
