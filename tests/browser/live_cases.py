"""Live updates, and what a page says while the server or the backend does not answer."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from nimburion.core.job import NewJob
from nimburion.jobs import Processor
from tests.browser.conftest import Subject
from tests.browser.served_dashboard import ServedDashboard
from tests.servers.binaries import valkey_binary
from tests.servers.server import Server

pytestmark = pytest.mark.asyncio(loop_scope="session")
NOT_REACHED = "console: (Failed to load resource|.*Failed to fetch|.*network error|.*net::ERR)"
SET_HIDDEN = """hidden => {
    Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
    document.dispatchEvent(new Event("visibilitychange"));
}"""


async def test_what_happens_appears_and_the_pause_holds_it(
    subject: Subject, page: Page, browser: Browser
) -> None:
    await page.goto(f"{subject.dashboard.address}/jobs?q=queue:live")
    await expect(page.locator("#live")).to_contain_text("No job matches")
    await subject.backend.producing.enqueue([NewJob("live-1", "send", "live", b"{}")])
    await expect(page.locator("#job-live-1")).to_be_visible()
    await page.locator("#pause").click()
    await expect(page.locator("body.paused")).to_have_count(1)
    await subject.backend.producing.enqueue([NewJob("live-2", "send", "live", b"{}")])
    other = await browser.new_page()
    await other.goto(page.url)
    await expect(other.locator("#job-live-2")).to_be_visible()
    await other.close()
    await expect(page.locator("#job-live-2")).to_have_count(0)
    await page.locator("#pause").click()
    await expect(page.locator("#job-live-2")).to_be_visible()


async def test_a_page_that_comes_without_values_gets_them_at_once(
    subject: Subject, page: Page
) -> None:
    async def leave_out_values(route: Route) -> None:
        answer = await route.fetch()
        html = await answer.text()
        await route.fulfill(
            response=answer,
            body=html.replace('id="live"', 'id="live" data-pending="yes"').replace(
                'data-poll="1.0"', 'data-poll="1000"'
            ),
        )

    await page.route("**/jobs?q=queue:later", leave_out_values)
    await page.goto(f"{subject.dashboard.address}/jobs?q=queue:later")
    await expect(page.locator("#live[data-pending]")).to_have_count(0)
    await subject.backend.producing.enqueue([NewJob("later-1", "send", "later", b"{}")])
    await expect(page.locator("#job-later-1")).to_be_visible()


async def test_a_hidden_page_does_not_poll_and_one_without_news_gets_no_copy(
    subject: Subject, page: Page
) -> None:
    answers: list[int] = []
    page.on("response", lambda one: answers.append(one.status) if "=fragment" in one.url else None)
    await subject.backend.producing.enqueue([NewJob("hidden-1", "send", "hidden", b"{}")])
    await page.goto(f"{subject.dashboard.address}/jobs?q=id:hidden-2")
    async with page.expect_response(lambda answer: answer.status == 304):
        pass
    await page.evaluate(SET_HIDDEN, True)
    count = len(answers)
    other = await page.context.new_page()
    await other.goto(f"{subject.dashboard.address}/jobs?q=id:hidden-2")
    for _ in range(2):
        async with other.expect_response(lambda answer: "=fragment" in answer.url):
            pass
    await other.close()
    assert len(answers) <= count + 1, "one may have been under way"
    async with page.expect_response(lambda answer: "=fragment" in answer.url):
        await page.evaluate(SET_HIDDEN, False)


async def test_a_page_that_came_without_values_says_that_its_job_does_not_exist(
    subject: Subject, page: Page, expected_problems: list[str]
) -> None:
    """A slow backend had not answered yet, so the page could not be 404 itself."""
    expected_problems.append("console: Failed to load resource")
    await subject.backend.producing.enqueue([NewJob("known", "send", "known", b"{}")])

    async def answer_without_values(route: Route) -> None:
        answer = await route.fetch(url=f"{subject.dashboard.address}/jobs/known")
        html = re.sub(
            r'(<div id="live"[^>]*)>.*?<p class="data-links',
            r'\1 data-pending="yes">The backend is being read</div><p class="data-links',
            await answer.text(),
            flags=re.DOTALL,
        )
        await route.fulfill(response=answer, body=html.replace("/known", "/unknown"))

    await page.route("**/jobs/unknown", answer_without_values)
    await page.goto(f"{subject.dashboard.address}/jobs/unknown")
    await expect(page.get_by_role("alert")).to_contain_text("This does not exist")
    await expect(page.locator("#live")).to_have_text("")


async def test_a_selection_of_text_and_a_focused_link_survive(subject: Subject, page: Page) -> None:
    await subject.backend.producing.enqueue([NewJob("kept-1", "send", "kept", b"{}")])
    await page.goto(f"{subject.dashboard.address}/jobs?q=queue:kept")
    link = page.locator("#job-kept-1").get_by_role("link").first
    await link.focus()
    await subject.backend.producing.enqueue([NewJob("kept-2", "send", "kept", b"{}")])
    await expect(page.locator("#job-kept-2")).to_be_visible()
    await expect(link).to_be_focused()
    await page.locator("#job-kept-1").get_by_text("send").select_text()
    await subject.backend.producing.enqueue([NewJob("kept-3", "send", "kept", b"{}")])
    await expect(page.locator("body.held")).to_have_count(1)
    assert await page.evaluate("String(getSelection())") == "send"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_dashboard(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[ServedDashboard]:
    """A dashboard on a SQLite file that the test may kill."""
    folder: Path = tmp_path_factory.mktemp("own")
    url = f"sqlite:///{folder}/own.db"
    async with Processor(url) as processor:
        await processor.backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    with ServedDashboard(url, folder) as served:
        yield served


async def test_a_killed_server_is_reported_until_it_answers_again(
    own_dashboard: ServedDashboard, page: Page, expected_problems: list[str]
) -> None:
    expected_problems.append(NOT_REACHED)
    await page.goto(f"{own_dashboard.address}/queues")
    await expect(page.locator("#queue-mail")).to_be_visible()
    own_dashboard.kill()
    banner = page.get_by_role("alert")
    await expect(banner).to_contain_text("The server does not answer")
    await expect(page.locator("#queue-mail")).to_be_visible()
    await page.locator("summary", has_text="Pause").click()
    await page.get_by_role("button", name="Pause mail").click()
    await expect(page.locator("#notice")).to_contain_text("Nothing is known about the change")
    await page.keyboard.press("Escape")
    own_dashboard.start()
    await expect(banner).to_be_hidden()


async def test_a_frozen_server_is_reported(
    own_dashboard: ServedDashboard, page: Page, expected_problems: list[str]
) -> None:
    expected_problems.append(NOT_REACHED)
    await page.goto(f"{own_dashboard.address}/queues")
    own_dashboard.freeze()
    banner = page.get_by_role("alert")
    await expect(banner).to_contain_text("The server does not answer")
    own_dashboard.resume()
    await expect(banner).to_be_hidden()


async def test_a_backend_that_does_not_answer_is_reported(
    tmp_path: Path, page: Page, expected_problems: list[str]
) -> None:
    expected_problems.append(NOT_REACHED)
    with Server(valkey_binary()) as server:
        async with Processor(server.url) as processor:
            await processor.backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
        with ServedDashboard(server.url, tmp_path) as served:
            await page.goto(f"{served.address}/queues")
            await expect(page.locator("#queue-mail")).to_be_visible()
            banner = page.get_by_role("alert")
            server.pause()
            await expect(banner).to_contain_text("The backend does not answer")
            await expect(page.locator("#queue-mail")).to_be_visible()
            server.resume()
            await expect(banner).to_be_hidden()
            server.stop()
            await expect(banner).to_contain_text("The backend does not answer")
            server.start()
            await expect(banner).to_be_hidden()
