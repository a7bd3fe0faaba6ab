"""The dashboard behind nginx, below a path, with the configuration of the how-to page."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from nimburion.core.job import NewJob
from nimburion.jobs import Processor
from tests.browser.served_dashboard import ServedDashboard
from tests.docs.pages import read
from tests.house.tree import ROOT
from tests.servers.ports import free_port
from tests.waiting import block_until

pytestmark = pytest.mark.asyncio(loop_scope="session")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
PROXY = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedDashboard]:
    folder: Path = tmp_path_factory.mktemp("proxied")
    (folder / "config.yaml").write_text("server: {root_path: /jobs}", encoding="utf-8")
    url = f"sqlite:///{folder}/jobs.db"
    async with Processor(url) as processor:
        await processor.backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    with ServedDashboard(url, folder) as dashboard:
        yield dashboard


@pytest.fixture(params=["", "/"], ids=["kept", "stripped"])
def address(
    request: pytest.FixtureRequest, served: ServedDashboard, tmp_path: Path
) -> Iterator[str]:
    """The dashboard through nginx, which leaves the path or strips it."""
    assert NGINX, "no nginx on PATH; scripts/install-servers installs it"
    page = read(ROOT / "docs" / "how-to" / "management-server.md")
    (location,) = (block.text for block in page.blocks if block.info == ("nginx",))
    target = f"127.0.0.1:{served.port}{request.param}"
    port = free_port()
    settings = PROXY.format(
        folder=tmp_path, port=port, location=location.replace("127.0.0.1:8420", target)
    )
    (tmp_path / "nginx.conf").write_text(settings, encoding="utf-8")
    command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    found = f"http://127.0.0.1:{port}/jobs/dashboard"

    def answers() -> bool:
        assert process.poll() is None, "nginx ended"
        try:
            return httpx.get(found).status_code < 500
        except httpx.TransportError:
            return False

    block_until(answers, f"{found} answers")
    yield found
    process.terminate()
    process.wait()


async def test_pages_actions_and_updates_pass_the_proxy(
    served: ServedDashboard, address: str, page: Page
) -> None:
    name = address.rpartition(":")[2].partition("/")[0]  # the port: each test has its own queues
    async with Processor(served.url) as processor:
        await processor.backend.producing.enqueue(
            [NewJob(f"a{name}", "send", f"mail{name}", b"{}")]
        )
        await page.goto(address)
        async with page.expect_response(lambda answer: "=fragment" in answer.url):
            await page.locator("nav").get_by_text("Queues").click()
        await expect(page.locator(f"#queue-mail{name}")).to_be_visible()
        await processor.backend.producing.enqueue(
            [NewJob(f"b{name}", "send", f"other{name}", b"{}")]
        )
        await expect(page.locator(f"#queue-other{name}")).to_be_visible()
    form = page.locator(f"#queue-mail{name} details.action")
    await form.locator("summary").click()
    await form.locator("[name=reason]").fill("a deploy")
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_contain_text(f"Queue mail{name} is paused")
