"""Draw the pictures of the dashboard: each page in both themes, from sample data at a fixed time.

`python -m website.dashboard_pictures [PAGE ...]` writes docs/pictures/dashboard/. It needs
Chromium on PATH.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from playwright.async_api import Page, async_playwright

from nimburion import config
from nimburion.actions.auditing import record_change
from nimburion.backends.memory import MemoryBackend
from nimburion.jobs import Processor
from nimburion.server.access import AccessControl
from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.site import PAGES
from nimburion.server.health import HealthChecks
from nimburion.server.routes import make_management_app
from nimburion.server.services import ManagementServices
from nimburion.testing import FakeClock
from website.sample_jobs import Sample, fill_sample

PICTURES = Path(__file__).parents[1] / "docs" / "pictures" / "dashboard"
START = datetime(2026, 11, 27, 11, 2, tzinfo=UTC)
WIDTH = 1280
MAX_HEIGHT = 1_000
THEMES = ("light", "dark")


@asynccontextmanager
async def serve_sample() -> AsyncIterator[tuple[str, Sample, FakeClock]]:
    """Serve a dashboard with the sample data; yields its address, the sample and its clock."""
    clock = FakeClock(START.timestamp())
    async with Processor(MemoryBackend(clock=clock), clock=clock) as processor:
        settings = config.load(jobs={"url": "memory://"})
        health = HealthChecks(processor.backend, clock, lambda: "started", None)
        services = ManagementServices(settings, processor, health)
        await services.schedules.add("nightly_report", "0 3 * * *", "build_report", queue="reports")
        await services.schedules.add("sync_contacts", "*/15 * * * *", "sync_contacts")
        sample = await fill_sample(processor.backend, clock.advance)
        reason = {"reason": "the CRM is down for maintenance"}
        async with record_change(
            processor.backend,
            "schedule.pause",
            by="ops",
            origin="dashboard",
            target="sync_contacts",
            details=reason,
        ):
            await services.schedules.pause("sync_contacts")
        app = make_management_app(services, AccessControl(settings.server, ()))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/dashboard"
            yield address, sample, clock
            await services.stop_reads()
            server.should_exit = True
            await serving


def find_path(shown: AnyPage, sample: Sample) -> str:
    """Return the path of a page that shows something."""
    values = {
        "queue": "mail",
        "id": sample.running if shown.name == "job" else sample.failed,
        "fingerprint": sample.fingerprint,
        "name": "nightly_report",
        "operation": sample.operation,
        "flow": sample.flow,
    }
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], shown.path)


async def draw_page(page: Page, url: str, name: str) -> None:
    """Write the pictures of one page."""
    await page.set_viewport_size({"width": WIDTH, "height": MAX_HEIGHT})
    for _ in range(2):  # the first visit starts the slow reads
        await page.goto(url)
        await page.locator("#pause[aria-pressed=false]").wait_for()
        await page.wait_for_load_state("load")
    # Chromium hides its scrollbars here, so their room is not needed.
    await page.evaluate("document.documentElement.style.scrollbarGutter = 'auto'")
    height: int = await page.evaluate(
        "document.querySelector('main').getBoundingClientRect().bottom"
    )
    await page.set_viewport_size({"width": WIDTH, "height": min(MAX_HEIGHT, int(height))})
    for theme in THEMES:
        await page.locator(f".status [data-theme-choice={theme}]").click()
        await page.mouse.move(WIDTH / 2, 0)
        await page.screenshot(path=PICTURES / f"{name}-{theme}.png", animations="disabled")


async def draw(names: Sequence[str]) -> None:
    """Write the pictures of the pages with these names; without names, of all."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium")
    async with serve_sample() as (address, sample, clock), async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium)
        context = await browser.new_context(timezone_id="UTC", reduced_motion="reduce")
        await context.clock.set_fixed_time(clock.now())
        page = await context.new_page()
        for shown in PAGES:
            if not names or shown.name in names:
                await draw_page(page, address + find_path(shown, sample), shown.name)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(draw(sys.argv[1:]))
