"""A browser, dashboards on each kind of backend, and pages that watch for what must not happen."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Dialog,
    Page,
    ViewportSize,
    async_playwright,
    expect,
)
from playwright.async_api import Request as BrowserRequest

from nimburion.core.backend import Backend
from nimburion.jobs import Processor
from nimburion.scheduler.schedules import Schedules
from nimburion.server.dashboard.page import AnyPage
from tests.browser.served_dashboard import ServedDashboard
from tests.servers.fixtures import StartedServers
from website.sample_jobs import Sample, fill_sample

KINDS = ("sqlite", "valkey", "postgres")
CHROMIUM = os.environ.get("NB_TEST_CHROMIUM") or shutil.which("chromium")
HOST = "jobs.test"
DEADLINE = 20_000
"""Milliseconds after which what should happen on a page counts as not happening."""
NARROW: ViewportSize = {"width": 320, "height": 640}


class Subject(msgspec.Struct, frozen=True):
    """A dashboard with something on each page, and the backend behind it."""

    kind: str
    dashboard: ServedDashboard
    processor: Processor
    sample: Sample

    def find_url(self, page: AnyPage) -> str:
        """Return the URL of a page that shows something."""
        values = {
            "queue": "mail",
            "id": self.sample.failed,
            "fingerprint": self.sample.fingerprint,
            "name": "nightly_report",
            "operation": self.sample.operation,
            "flow": self.sample.flow,
        }
        path = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], page.path)
        return f"{self.dashboard.address}{path}"

    @property
    def backend(self) -> Backend:
        """The backend of the dashboard."""
        return self.processor.backend


class Subjects:
    """The dashboards of this run, by kind of backend; each is made when it is first asked for."""

    def __init__(self, folder: Path, servers: StartedServers) -> None:
        self._folder = folder
        self._servers = servers
        self._made: dict[str, Subject] = {}
        self._processors: list[Processor] = []
        self._dashboards = ExitStack()

    async def get(self, kind: str) -> Subject:
        """Return the dashboard of this kind."""
        if kind not in self._made:
            self._made[kind] = await self._make(kind)
        return self._made[kind]

    async def _make(self, kind: str) -> Subject:
        url = f"sqlite:///{self._folder}/jobs.db" if kind == "sqlite" else self._get_server(kind)
        processor = Processor(url)
        await processor.__aenter__()
        self._processors.append(processor)
        sample = await fill_sample(processor.backend)
        await Schedules(processor).add("nightly_report", "0 3 * * *", "build_report")
        dashboard = self._dashboards.enter_context(ServedDashboard(url, self._folder))
        return Subject(kind, dashboard, processor, sample)

    def _get_server(self, kind: str) -> str:
        server = self._servers[kind]
        server.empty()
        return server.url

    async def close(self) -> None:
        """End all dashboards and close their backends."""
        self._dashboards.close()
        for processor in self._processors:
            await processor.__aexit__(None, None, None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium."""
    assert CHROMIUM, "no chromium on PATH; scripts/install-servers installs it"
    return CHROMIUM


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A browser without a window."""
    expect.set_options(timeout=DEADLINE)
    async with async_playwright() as playwright:
        # A name that is not loopback: over plain HTTP, a browser trusts such a page less.
        names = f"--host-resolver-rules=MAP {HOST} 127.0.0.1"
        started = await playwright.chromium.launch(executable_path=chromium, args=[names])
        yield started
        await started.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def subjects(
    tmp_path_factory: pytest.TempPathFactory, started_servers: StartedServers
) -> AsyncIterator[Subjects]:
    """The dashboards of this run."""
    made = Subjects(tmp_path_factory.mktemp("dashboards"), started_servers)
    yield made
    await made.close()


@pytest_asyncio.fixture(loop_scope="session")
async def subject(request: pytest.FixtureRequest, subjects: Subjects) -> Subject:
    """A dashboard. The tests are dealt out among the kinds of backends, always in the same way."""
    kind = KINDS[zlib.crc32(request.node.nodeid.encode()) % len(KINDS)]
    return await subjects.get(kind)


class Watch:
    """Collects what must not happen in a browser: errors, dialogs, requests to elsewhere."""

    def __init__(self, context: BrowserContext, expected: list[str]) -> None:
        self.problems: list[str] = []
        self._expected = expected
        context.on("console", self._on_console)
        context.on("weberror", lambda error: self.problems.append(f"error: {error.error}"))
        context.on("request", self._on_request)
        context.on("dialog", self._answer_dialog)

    def find_unexpected(self) -> list[str]:
        """Return the problems that the test did not expect."""
        return [problem for problem in self.problems if not self._is_expected(problem)]

    def _is_expected(self, problem: str) -> bool:
        return any(re.search(pattern, problem) for pattern in self._expected)

    async def _answer_dialog(self, dialog: Dialog) -> None:
        problem = f"dialog: {dialog.message}"
        self.problems.append(problem)
        await (dialog.accept() if self._is_expected(problem) else dialog.dismiss())

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(f"console: {message.text}")

    def _on_request(self, request: BrowserRequest) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:")):
            self.problems.append(f"request: {request.url[:200]}")


@pytest.fixture
def expected_problems() -> list[str]:
    """Patterns of problems that a test causes; it adds to them. Dialogs among them are accepted."""
    return []


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser, expected_problems: list[str]) -> AsyncIterator[BrowserContext]:
    """A fresh browser profile. At the end, nothing that must not happen has happened."""
    made = await browser.new_context(
        viewport={"width": 1280, "height": 900}, timezone_id="UTC", reduced_motion="reduce"
    )
    made.set_default_timeout(DEADLINE)
    watch = Watch(made, expected_problems)
    yield made
    await made.close()
    assert watch.find_unexpected() == []


@pytest_asyncio.fixture(loop_scope="session")
async def page(context: BrowserContext) -> Page:
    """A tab of a fresh profile."""
    return await context.new_page()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The packages of `package.json`, which `python3 dev.py browser` installs."""
    folder = Path(os.environ.get("NB_TEST_NODE_MODULES", Path(__file__).parent / "node_modules"))
    assert folder.is_dir(), f"{folder} does not exist; run `python3 dev.py browser`"
    return folder
