"""The timeline of a durable run that waits, on the page of its job."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from nimburion import DurableContext, Processor, Signal, job
from tests.browser.conftest import NARROW, Subject
from tests.browser.page_cases import (
    FIND_VIOLATIONS,
    RULES,
    check_pages,
    find_overflow,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

confirmed: Signal[str] = Signal("confirmed", str)


def create_account(email: str) -> dict[str, str]:
    return {"email": email}


def find_coupon() -> str:
    raise LookupError("no such coupon")


@job(name="onboard", queue="onboarding")
async def onboard(ctx: DurableContext, email: str) -> str:
    """Create an account, and wait until somebody confirms it."""
    account = await ctx.step(create_account, email)
    with suppress(LookupError):
        await ctx.step(find_coupon)
    answer = await ctx.wait_for(confirmed, timeout="7d")
    return f"{account['email']} {answer}"


@asynccontextmanager
async def start(subject: Subject, job_id: str) -> AsyncIterator[Processor]:
    """Store a run, and let it come to its wait."""
    processor = Processor(subject.dashboard.url)
    processor.register(onboard)
    async with processor:
        await processor.enqueue(onboard.job("ann@example.com"), id=job_id)
        assert await processor.process_one()
        yield processor


async def test_the_timeline_shows_the_wait_and_its_end(subject: Subject, page: Page) -> None:
    async with start(subject, "run-live") as processor:
        await check_wait_and_end(subject, page, processor)


async def check_wait_and_end(subject: Subject, page: Page, processor: Processor) -> None:
    """Look at the run while it waits, and after a signal has come."""
    await page.goto(f"{subject.dashboard.address}/jobs/run-live")
    timeline = page.locator("#timeline")
    await expect(timeline.locator("svg.flow")).to_be_visible()
    await expect(timeline.locator("svg .name")).to_have_text(
        ["create_account", "find_coupon", "confirmed"]
    )
    last = timeline.locator("tbody tr").last
    await expect(last).to_contain_text("confirmed")
    await expect(last.locator(".state")).to_have_text("waiting")
    await expect(last).to_contain_text("left")
    await expect(timeline).to_contain_text("LookupError: no such coupon")
    await processor.signal("run-live", confirmed, "ann")
    assert await processor.process_one()
    await expect(last.locator(".state")).to_have_text("done")
    await expect(last).to_contain_text('"ann"')


async def test_the_timeline_is_accessible_and_reflows(
    subject: Subject, page: Page, node_modules: Path
) -> None:
    async with start(subject, "run-shown"):
        pass
    response = await page.goto(f"{subject.dashboard.address}/jobs/run-shown")
    assert response
    await expect(page.locator("#timeline svg.flow")).to_be_visible()
    await page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    for theme, rules in RULES.items():
        await page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        assert await page.evaluate(FIND_VIOLATIONS, rules) == [], theme
    await page.set_viewport_size(NARROW)
    assert await find_overflow(page) <= 0
    shown = {
        "name": "run",
        "html": await response.text(),
        "policy": response.headers["content-security-policy"],
    }
    assert check_pages([shown], node_modules) == []
