"""The page of one job: its data and its errors in one place."""

from __future__ import annotations

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.browser.conftest import Subject

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_traceback_is_open_folds_libraries_and_is_copied(
    subject: Subject, context: BrowserContext, page: Page
) -> None:
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.goto(f"{subject.dashboard.address}/jobs/{subject.sample.failed}")
    error = page.locator("details.error").first
    await expect(error.get_by_text("return self.transport.send(request)")).to_be_visible()
    folded = error.get_by_text("_sock.recv_into")
    await expect(folded).to_be_hidden()
    await error.get_by_role("button", name="Copy").click()
    await expect(error.get_by_role("button", name="Copied")).to_be_visible()
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("Traceback (most recent call last):")
    assert "recv_into" in copied
    assert copied.splitlines()[-1].startswith("SMTPServerDisconnected: ")
    await error.get_by_text("2 frames of libraries").click()
    await expect(folded).to_be_visible()


async def test_the_arguments_are_on_the_page_of_the_job(subject: Subject, page: Page) -> None:
    await page.goto(f"{subject.dashboard.address}/jobs/{subject.sample.failed}")
    await expect(page.locator("#data")).to_contain_text('"attachment":17')


async def test_a_group_of_errors_shows_a_traceback(subject: Subject, page: Page) -> None:
    await page.goto(f"{subject.dashboard.address}/dead-letters/{subject.sample.fingerprint}")
    await expect(page.locator(".traceback").first).to_contain_text("app/jobs.py")
