"""Live updates: open pages poll, share what they read, and show a change within about a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from heapq import heapify, heappop, heappush

import httpx
import pytest

from nimburion.core.errors import BackendUnavailable
from nimburion.core.queries import JobFilter
from nimburion.server.dashboard.fragments import Fragment, SharedFragments
from nimburion.server.dashboard.page import UPDATE_INTERVAL
from nimburion.server.dashboard.readings import FOR_UPDATES, PageReadings, SharedReadings
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.server.dashboard.site import PAGES
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.changing import delete
from tests.server.conftest import Api, MakeApi
from tests.waiting import wait_until

LIVE_PATHS = [page.path for page in PAGES if page.interval is not None and "{" not in page.path]
SHOWN_PATHS = [*LIVE_PATHS, "/queues/mail", "/jobs/a"]


class Renderer:
    """Renders a page whose values are due after a second."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.count = 0
        self.error: Exception | None = None
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def render(self) -> Fragment:
        self.count += 1
        number = self.count
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        due_at = self.clock.monotonic() + 1.0
        return Fragment(html=f"<p>{number}</p>", at=1.0, due_at=due_at)


@pytest.fixture
def renderer() -> Renderer:
    return Renderer()


@pytest.fixture
def readings(api: Api, renderer: Renderer) -> SharedReadings:
    return SharedReadings(api.processor.backend, renderer.clock)


@pytest.fixture
async def fragments(readings: SharedReadings) -> AsyncIterator[SharedFragments]:
    made = SharedFragments(readings)
    yield made
    await made.stop()


async def test_the_viewers_of_a_page_share_a_fragment_until_it_is_due(
    fragments: SharedFragments, renderer: Renderer
) -> None:
    viewers = [fragments.get("page", renderer.render) for _ in range(10)]
    assert len({shown.html for shown in await asyncio.gather(*viewers)}) == 1
    renderer.clock.advance(0.9)
    shown = await fragments.get("page", renderer.render)
    assert (renderer.count, round(fragments.compute_wait(shown, 10.0), 3)) == (1, 0.25)
    renderer.clock.advance(0.1)
    shown = await fragments.get("page", renderer.render)
    assert (shown.html, fragments.compute_wait(shown, 10.0)) == ("<p>2</p>", 1.0)


async def test_a_viewer_who_leaves_does_not_end_the_update_of_the_others(
    fragments: SharedFragments, renderer: Renderer
) -> None:
    renderer.may_end.clear()
    first = asyncio.create_task(fragments.get("page", renderer.render))
    await wait_until(lambda: renderer.count == 1, "a rendering")
    second = asyncio.create_task(fragments.get("page", renderer.render))
    first.cancel()
    renderer.may_end.set()
    assert (await second).html == "<p>1</p>"


async def test_an_update_that_began_before_a_change_is_not_shown_after_it(
    fragments: SharedFragments, readings: SharedReadings, renderer: Renderer
) -> None:
    renderer.may_end.clear()
    before = asyncio.create_task(fragments.get("page", renderer.render))
    await wait_until(lambda: renderer.count == 1, "a rendering")
    readings.expire()
    after = asyncio.create_task(fragments.get("page", renderer.render))
    await wait_until(lambda: renderer.count == 2, "another rendering")
    renderer.may_end.set()
    assert [(await before).html, (await after).html] == ["<p>1</p>", "<p>2</p>"]
    assert (await fragments.get("page", renderer.render)).html == "<p>2</p>"


async def test_a_failure_is_not_kept(fragments: SharedFragments, renderer: Renderer) -> None:
    renderer.error = BackendUnavailable("gone")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="gone"):
            await fragments.get("page", renderer.render)
    renderer.error = None
    assert (await fragments.get("page", renderer.render)).html == "<p>3</p>"


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 0.7])
async def test_a_change_is_soon_on_an_open_page_although_the_backend_is_slow(
    readings: SharedReadings, fragments: SharedFragments, renderer: Renderer, seconds: float
) -> None:
    clock, happened, html = renderer.clock, 0, ""
    delays: list[float] = []

    async def read() -> int:
        found = happened
        await clock.sleep(seconds)
        return found

    async def render() -> Fragment:
        page = PageReadings(readings, FOR_UPDATES)
        shown = await page.read("key", read)
        return Fragment(html=str(shown), at=page.at, due_at=page.due_at)

    async def view() -> None:
        nonlocal html
        while True:
            shown = await fragments.get("page", render)
            html = shown.html
            await clock.sleep(fragments.compute_wait(shown, UPDATE_INTERVAL))

    viewer = asyncio.create_task(view())
    for number in range(1, 20):
        await advance(clock, 0.7 + 0.1 * number)
        happened, at = number, clock.monotonic()
        while html != str(number):
            await advance(clock, 0.1)
        delays.append(clock.monotonic() - at)
    # A read that has begun does not see it; the next one begins after a pause as long as that.
    assert max(delays) <= max(1.5, 3 * seconds + 0.4)
    viewer.cancel()
    await readings.stop()


async def advance(clock: FakeClock, seconds: float) -> None:
    """Advance the clock in small steps; let tasks run after each."""
    for _ in range(round(10 * seconds)):
        clock.advance(0.1)
        for _ in range(20):
            await asyncio.sleep(0)


class OpenPages:
    """Pages in browsers that poll when the answers tell them to. Only the test advances their
    clock.
    """

    def __init__(self, api: Api, *paths: str) -> None:
        self.clock = FakeClock()
        self.readings = SharedReadings(api.processor.backend, self.clock)
        self._api = api
        self._polls = [
            (self.clock.monotonic() + 0.13 * number, number, DASHBOARD_PATH + path)
            for number, path in enumerate(paths)
        ]
        self._known: dict[int, str] = {}
        heapify(self._polls)
        api.services.readings = self.readings
        api.services.fragments = SharedFragments(self.readings)

    async def poll(self) -> httpx.Response:
        """Advance the clock until one of the pages polls, and return the answer."""
        at, number, path = heappop(self._polls)
        self.clock.advance(max(0.0, at - self.clock.monotonic()))
        headers = {"If-None-Match": self._known[number]} if number in self._known else {}
        answer = await self._api.client.get(path, params={"format": "fragment"}, headers=headers)
        assert answer.status_code in {200, 304}
        assert (answer.status_code == 304) is (answer.headers["ETag"] == self._known.get(number))
        self._known[number] = answer.headers["ETag"]
        wait = float(answer.headers["Poll-After"])
        heappush(self._polls, (self.clock.monotonic() + wait, number, path))
        return answer

    async def count_reads(self, seconds: float) -> int:
        """Return the reads of the backend in some seconds."""
        before, until = self.readings.count, self._polls[0][0] + seconds
        while self._polls[0][0] < until:
            await self.poll()
        return self.readings.count - before


@pytest.fixture
async def mail(make_api: MakeApi) -> Api:
    """A dashboard of a backend with a queue."""
    made: Api = await make_api()
    await made.enqueue("a", "b", queue="mail")
    return made


@pytest.mark.parametrize("path", SHOWN_PATHS)
async def test_the_viewers_of_a_page_cost_two_reads_a_second(mail: Api, path: str) -> None:
    pages = OpenPages(mail, path, path)
    await pages.count_reads(2)  # of the first values
    assert await pages.count_reads(12) <= 24


async def test_viewers_of_ten_different_pages_cost_two_reads_a_second(mail: Api) -> None:
    pages = OpenPages(mail, *LIVE_PATHS[:10])
    await pages.count_reads(2)
    assert 30 <= await pages.count_reads(30) <= 60


@pytest.mark.parametrize("path", ["", "/queues", "/queues/mail"])
async def test_a_pause_is_soon_on_an_open_page(mail: Api, path: str) -> None:
    """Whoever watches it, and whatever other values of the page are read."""
    pages, delays = OpenPages(mail, path, path), []
    for number in range(16):
        for _ in range(1 + number % 5):
            await pages.poll()
        paused, at = number % 2 == 0, pages.clock.monotonic()
        await mail.processor.backend.maintenance.pause_queue("mail", paused=paused)
        for _ in range(2):
            while ("state paused" in (answer := await pages.poll()).text) is not paused:
                assert pages.clock.monotonic() < at + 10, answer.text
        delays.append(pages.clock.monotonic() - at)
    assert max(delays) <= 1.4, delays


async def test_an_action_is_on_all_open_pages_when_they_poll(mail: Api) -> None:
    pages = OpenPages(mail, *LIVE_PATHS[:9], "/queues")
    await pages.count_reads(5)
    await mail.client.post(
        f"{DASHBOARD_PATH}/queues/mail/pause",
        headers={
            "Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded",
        },
    )  # fmt: skip
    at = pages.clock.monotonic()
    shown = []
    while pages.clock.monotonic() < at + 1.0:
        answer = await pages.poll()
        shown += [answer.text] if answer.url.path == f"{DASHBOARD_PATH}/queues" else []
    assert any("state paused" in text for text in shown)


@pytest.mark.parametrize(("path", "oldest"), [("/queues/mail", 6.0), ("", 6.0), ("/metrics", 11.0)])
async def test_no_value_of_an_open_page_becomes_old(mail: Api, path: str, oldest: float) -> None:
    """An answer says how old the oldest value is."""
    pages, ages, shown_at = OpenPages(mail, path), [], 0.0
    for _ in range(25):
        answer = await pages.poll()
        ages += [pages.clock.now() - shown_at] if shown_at else []
        shown_at = float(answer.headers["As-Of"])
    assert max(ages) <= oldest, ages


async def test_a_page_whose_values_come_from_the_background_is_rendered_again(mail: Api) -> None:
    pages = OpenPages(mail, "/backend")
    assert len({(await pages.poll()).headers["As-Of"] for _ in range(3)}) == 3


async def test_a_poll_of_a_job_that_was_deleted_answers_404(mail: Api) -> None:
    pages = OpenPages(mail, "/jobs/b")
    assert (await pages.poll()).status_code == 200
    backend = mail.processor.backend
    await backend.producing.cancel("b")
    assert await delete(backend, JobFilter(ids=("b",)), 1) == ["b"]
    pages.readings.expire()
    answer = await mail.client.get(f"{DASHBOARD_PATH}/jobs/b?format=fragment")
    assert answer.status_code == 404
