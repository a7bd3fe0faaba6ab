"""What a page says and keeps while the database or the network between is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page, expect

from nimburion.core.job import NewJob
from nimburion.jobs import Processor
from tests.browser.conftest import Subject
from tests.browser.live_cases import NOT_REACHED
from tests.browser.served_dashboard import ServedDashboard
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_programs import postgres_binary
from tests.servers.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def start_work(context: BrowserContext, address: str, queue: str) -> tuple[Page, Page]:
    """Return a page with a form that is half filled in, and one with a selected job."""
    form, selection = await context.new_page(), await context.new_page()
    await form.goto(f"{address}/queues/{queue}")
    await form.locator("summary", has_text="Pause").click()
    await form.get_by_role("textbox", name="Reason").fill("the CRM is down")
    await selection.goto(f"{address}/jobs?q=queue:{queue}")
    await selection.locator("#live .select").first.check()
    return form, selection


async def check_work(form: Page, selection: Page) -> None:
    """Check that both are as they were left."""
    await expect(form.get_by_role("textbox", name="Reason")).to_be_visible()
    await expect(form.get_by_role("textbox", name="Reason")).to_have_value("the CRM is down")
    await expect(selection.locator("#live .select:checked")).to_have_count(1)
    await expect(selection.locator("form[data-selection] button").first).to_be_enabled()


async def finish_work(form: Page, selection: Page, queue: str) -> None:
    """Send the form and the selection, which must work after the outage."""
    await form.get_by_role("button", name=f"Pause {queue}").click()
    await expect(form.locator("#notice")).to_contain_text("is paused")
    await expect(form.locator("#live")).to_contain_text("the CRM is down")
    await selection.get_by_role("button", name="Cancel 1").click()
    await expect(selection.locator("#notice")).to_contain_text("1 cancelled")


async def test_a_killed_postgresql_is_reported_and_nothing_is_lost(
    tmp_path: Path, context: BrowserContext, expected_problems: list[str]
) -> None:
    expected_problems.append(NOT_REACHED)
    with PostgresServer(postgres_binary(), durable=True) as server:
        async with Processor(server.url) as processor:
            await processor.backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
        with ServedDashboard(server.url, tmp_path) as served:
            pages = await start_work(context, served.address, "mail")
            server.kill()
            for page in pages:
                banner = page.get_by_role("alert")
                await expect(banner).to_contain_text("The backend does not answer")
            await check_work(*pages)
            server.start()
            for page in pages:
                await expect(page.get_by_role("alert")).to_be_hidden()
            await check_work(*pages)
            await finish_work(*pages, "mail")


async def test_a_lost_network_is_reported_and_nothing_is_lost(
    subject: Subject, context: BrowserContext, expected_problems: list[str]
) -> None:
    expected_problems.append(NOT_REACHED)
    await subject.backend.producing.enqueue([NewJob("network-1", "send", "network", b"{}")])
    async with Proxy(subject.dashboard.port) as network:
        address = f"http://127.0.0.1:{network.port}/dashboard"
        pages = await start_work(context, address, "network")
        network.refuse()
        network.cut()
        for page in pages:
            await expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
        await check_work(*pages)
        await network.accept()
        for page in pages:
            await expect(page.get_by_role("alert")).to_be_hidden()
        await check_work(*pages)
        await finish_work(*pages, "network")
