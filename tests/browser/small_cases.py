"""What a reader notices: on a phone, during an outage, and in another time zone."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import Subject

pytestmark = pytest.mark.asyncio(loop_scope="session")
PHONE = {"width": 390, "height": 844}


async def test_on_a_phone_a_job_is_seen_without_scrolling(subject: Subject, page: Page) -> None:
    await page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    await page.goto(f"{subject.dashboard.address}/jobs")
    first = page.locator("#live tbody tr").first
    await expect(first).to_be_visible()
    box, header = await first.bounding_box(), await page.locator(".top").bounding_box()
    assert box
    assert header
    assert box["y"] + box["height"] < PHONE["height"] * 0.7
    assert header["height"] < 90, "one row and the navigation"
    await expect(page.locator(".selection")).to_be_hidden()
    await first.locator(".select").check()
    await expect(page.locator(".selection")).to_be_visible()


async def test_times_name_their_zone(subject: Subject, browser: Browser) -> None:
    context = await browser.new_context(timezone_id="Europe/Rome")
    page = await context.new_page()
    await page.goto(f"{subject.dashboard.address}/schedules")
    await expect(page.locator(".status")).to_contain_text("Europe/Rome")
    await expect(page.locator(".data-links")).to_contain_text("Times are in Europe/Rome")
    await expect(page.locator("#schedule-nightly_report")).to_contain_text("03:00 UTC")
    await context.close()


async def test_the_dot_is_red_while_the_values_are_old(subject: Subject, page: Page) -> None:
    await page.goto(subject.dashboard.address)
    # In one call: the page hides the banner again when a poll has an answer.
    before, after, bad = await page.evaluate(
        """() => {
            const dot = document.querySelector('.dot'), banner = document.getElementById('banner');
            const readColour = (element) => getComputedStyle(element).backgroundColor;
            banner.hidden = true;
            const before = readColour(dot);
            banner.hidden = false;
            return [before, readColour(dot), readColour(banner)];
        }"""
    )
    assert before != after == bad
