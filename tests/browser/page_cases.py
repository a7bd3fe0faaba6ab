"""Every page: it shows something, reflows, is accessible in both themes, and valid."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from nimburion.server.dashboard.page import AnyPage
from nimburion.server.dashboard.site import PAGES, SECTIONS
from tests.browser.conftest import NARROW, Subject, Subjects
from tests.waiting import DEADLINE

pytestmark = pytest.mark.asyncio(loop_scope="session")
every_page = pytest.mark.parametrize("shown", PAGES, ids=lambda page: page.name)

LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RULES = {"light": LEVELS, "dark": {"type": "rule", "values": ["color-contrast"]}}
"""The rules to check in each theme. Only colours differ between them."""
FIND_VIOLATIONS = """async rules => {
  const result = await axe.run(document, {runOnly: rules, resultTypes: ["violations"]});
  return result.violations.flatMap(one => one.nodes.map(node =>
    `${one.id}: ${node.target.join(" ")}: ${node.failureSummary.replaceAll("\\n", " ")}`));
}"""


async def find_overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    width: int = await page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return width


def check_pages(pages: list[dict[str, str]], node_modules: Path) -> list[str]:
    """Return what is wrong with the HTML and the policies of pages."""
    # A module finds packages beside itself only.
    program = node_modules.parent / "check_pages.mjs"
    program.write_bytes((Path(__file__).parent / "check_pages.mjs").read_bytes())
    done = subprocess.run(
        ["node", program], input=json.dumps(pages), text=True, capture_output=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


@every_page
async def test_a_page_is_accessible_in_both_themes_and_reflows(
    subject: Subject, page: Page, shown: AnyPage, node_modules: Path
) -> None:
    response = await page.goto(subject.find_url(shown))
    assert response
    assert response.status == 200
    await expect(page.locator("#as-of[title]")).to_be_visible()  # the script has run
    await expect(page.locator("#live[data-pending]")).to_have_count(0)  # its values are there
    await page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
    for theme, rules in RULES.items():
        await page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        assert await page.evaluate(FIND_VIOLATIONS, rules) == [], theme
    assert await find_overflow(page) <= 0
    await page.set_viewport_size(NARROW)
    await page.evaluate("document.body.classList.add('held')")
    assert await find_overflow(page) <= 0


async def get_with_values(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """Return the page as soon as the backend was read for it."""
    mark = "&" if "?" in url else "?"
    async with asyncio.timeout(DEADLINE):
        while 'data-pending="yes"' in (answer := await client.get(url)).text:
            await client.get(f"{url}{mark}format=fragment")  # which waits for the values
    return answer


async def test_the_html_is_valid_and_the_policy_has_no_bypass(
    subjects: Subjects, node_modules: Path
) -> None:
    subject = await subjects.get("sqlite")
    pages = []
    async with httpx.AsyncClient() as client:
        for shown in PAGES:
            answer = await get_with_values(client, subject.find_url(shown))
            pages.append(
                {
                    "name": shown.name,
                    "html": answer.text,
                    "policy": answer.headers["Content-Security-Policy"],
                }
            )
        missing = await get_with_values(client, f"{subject.dashboard.address}/jobs/none")
        assert missing.status_code == 404
        pages.append(
            {
                "name": "problem",
                "html": missing.text,
                "policy": missing.headers["Content-Security-Policy"],
            }
        )
    fault = {"name": "fault", "html": "<p><div></p>", "policy": "script-src 'unsafe-inline'"}
    found = check_pages([*pages, fault], node_modules)
    assert [one for one in found if not one.startswith("fault")] == []
    assert len(found) > 2, "the checks see no faults"


@every_page
async def test_a_page_can_be_read_without_scripts(
    subject: Subject, browser: Browser, shown: AnyPage
) -> None:
    context = await browser.new_context(java_script_enabled=False)
    try:
        page = await context.new_page()
        await page.goto(subject.find_url(shown))
        await expect(page.locator("h1")).to_be_visible()
        assert len((await page.locator("#live").inner_text()).split()) > 2
        await expect(page.locator("#pause")).to_be_hidden()
    finally:
        await context.close()


async def test_keys_open_each_page_and_the_help(subject: Subject, page: Page) -> None:
    await page.goto(subject.dashboard.address)
    for section in SECTIONS:
        await page.keyboard.press(section.key)
        await expect(page.locator("nav [aria-current=page]")).to_have_text(section.label)
        await page.wait_for_load_state()  # its script listens to keys
    await page.keyboard.press("?")
    await expect(page.locator("#help")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#help")).to_be_hidden()
