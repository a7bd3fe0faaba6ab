"""Open each page of a dashboard in Chromium, and time what a person sees."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Mapping
from random import Random

import msgspec
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.report import table
from nimburion.core.backend import Backend
from nimburion.core.job import NewJob

LOADS = 3
"""How often each page is loaded."""
EVENTS = 6
"""How often each change is timed."""
PAUSED = "queue_1"
"""The queue that is paused."""
DEADLINE = 60_000
"""Milliseconds until something counts as not happening."""

_READ_TIMES = """() => {
  const entry = performance.getEntriesByType("navigation")[0];
  return [entry.responseStart - entry.requestStart, entry.loadEventEnd - entry.startTime];
}"""


PAUSE_MARK = "#live .state.paused"
"""What a page shows of each paused queue."""

_WATCH = """([selector, count]) => new Promise((resolve) => {
  const look = () => {
    if (document.querySelectorAll(selector).length !== count) return;
    observer.disconnect();
    resolve();
  };
  const observer = new MutationObserver(look);
  observer.observe(document, { subtree: true, childList: true, attributes: true });
  look();
})"""


class PageTimes(msgspec.Struct):
    """The times of one page in milliseconds, of each load."""

    first_byte: list[float] = msgspec.field(default_factory=list)
    """From the request until the first byte of the answer."""
    loaded: list[float] = msgspec.field(default_factory=list)
    """From the click until the page and its files are loaded."""


class BrowserFigures(msgspec.Struct):
    """What Chromium measured."""

    pages: dict[str, PageTimes]
    changes: dict[str, list[float]]
    """The seconds from each change until an open page showed it."""


async def drive_pages(address: str, paths: Mapping[str, str], backend: Backend) -> BrowserFigures:
    """Load each page a few times, and time when changes appear on open pages."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"))
        try:
            pages = {name: PageTimes() for name in paths}
            for _ in range(LOADS):
                page = await browser.new_page()
                for name, path in paths.items():
                    await load_page(page, address + path, pages[name])
                await page.close()
            return BrowserFigures(pages, await time_changes(browser, address, backend))
        finally:
            await browser.close()


async def load_page(page: Page, url: str, times: PageTimes) -> None:
    """Load a page and note its times."""
    answer = await page.goto(url, timeout=DEADLINE)
    assert answer is not None
    assert answer.ok, f"{url}: {answer.status}"
    first_byte, loaded = await page.evaluate(_READ_TIMES)
    times.first_byte.append(first_byte)
    times.loaded.append(loaded)


async def time_changes(browser: Browser, address: str, backend: Backend) -> dict[str, list[float]]:
    """Return when a new job, and a pause and its end, appear on an open page. One page is open at a
    time: with more, each is updated less often.
    """
    random, queue = Random(1), f"seen_{time.time_ns()}"
    taken: dict[str, list[float]] = {}
    page = await browser.new_page()
    await page.goto(f"{address}/jobs?q=queue:{queue}", timeout=DEADLINE)
    for number in range(EVENTS):
        job = NewJob(f"{queue}-{number}", "send", queue, b"{}")
        await wait_a_moment(random, page)
        sight = watch_for(page, f"#job-{job.id}", 1)
        await backend.producing.enqueue([job])
        taken.setdefault("a new job: jobs", []).append(await time_sight(sight))
    for name, path in {
        "queues": "/queues",
        "its queue": f"/queues/{PAUSED}",
        "overview": "",
    }.items():
        await page.goto(address + path, timeout=DEADLINE)
        for number in range(EVENTS):
            paused = number % 2 == 0
            await wait_a_moment(random, page)
            sight = watch_for(page, PAUSE_MARK, int(paused))
            await backend.maintenance.pause_queue(
                PAUSED, paused=paused, by="somebody", reason="a deploy"
            )
            taken.setdefault(f"a pause or its end: {name}", []).append(await time_sight(sight))
    await page.close()
    return taken


async def wait_a_moment(random: Random, page: Page) -> None:
    """Wait so that the next change comes at any time between two updates."""
    await page.wait_for_timeout(random.uniform(500, 2500))


def watch_for(page: Page, selector: str, count: int) -> asyncio.Task[None]:
    """Return a task that ends at the moment when the page has this many elements.

    The page itself looks after each of its changes. An assertion of Playwright looks a few times
    with up to a second in between, which would be part of the figure.
    """
    return asyncio.create_task(page.evaluate(_WATCH, [selector, count]))


async def time_sight(sight: asyncio.Task[None]) -> float:
    """Return the seconds until a change that has just been made is seen."""
    started = time.perf_counter()
    async with asyncio.timeout(DEADLINE / 1000):
        await sight
    return time.perf_counter() - started


def show_browser(title: str, figures: BrowserFigures) -> str:
    """Return the tables of a run."""
    head = ["Chromium, ms", "first byte", "worst", "loaded", "worst"]
    lines = [
        [
            name,
            *(f"{value:,.0f}" for value in summarize(times.first_byte) + summarize(times.loaded)),
        ]
        for name, times in figures.pages.items()
    ]
    rows = [
        [change, *(f"{value:.2f}" for value in summarize(taken))]
        for change, taken in figures.changes.items()
    ]
    return "\n".join(
        [
            table(title, head, lines),
            table("until an open page shows a change, s", ["", "median", "worst"], rows),
        ]
    )


def summarize(values: list[float]) -> tuple[float, float]:
    """Return the median and the largest value."""
    return statistics.median(values), max(values)
