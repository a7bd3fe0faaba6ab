"""Live updates: shared by all viewers, cheap for the backend, over for those who leave."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nimburion.core.errors import BackendUnavailable, JobNotFound
from nimburion.server.dashboard.live import STILL_HERE, Fragment, LivePages, format_event
from nimburion.server.dashboard.readings import (
    FOR_UPDATES,
    MAX_ENTRIES,
    MAX_STALENESS,
    PageReadings,
    SharedReadings,
)
from nimburion.server.dashboard.responses import DASHBOARD_PATH
from nimburion.server.dashboard.site import PAGES
from nimburion.testing.clock import FakeClock
from tests.server.conftest import Api, MakeApi
from tests.waiting import wait_until


class Browser:
    """A client of a stream, as an ASGI server sees it."""

    def __init__(self, app: Any, path: str) -> None:
        self.status = 0
        self.received = ""
        self.ended = False
        self._app = app
        self._path = path
        self._leave = asyncio.Event()

    async def run(self) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": self._path,
            "root_path": "",
            "query_string": b"format=stream",
            "headers": [(b"host", b"127.0.0.1")],
        }
        await self._app(scope, self._receive, self._send)
        self.ended = True

    def leave(self) -> None:
        self._leave.set()

    def count_fragments(self) -> int:
        return self.received.count("\n\ndata: ") + self.received.startswith("data: ")

    async def _receive(self) -> dict[str, object]:
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.received += message["body"].decode()


@asynccontextmanager
async def open_browsers(api: Api, *paths: str) -> AsyncIterator[list[Browser]]:
    """Open streams, and close them at the end."""
    browsers = [Browser(api.app, path) for path in paths]
    tasks = [asyncio.create_task(browser.run()) for browser in browsers]
    try:
        yield browsers
    finally:
        for browser in browsers:
            browser.leave()
        await api.services.stop_streams()
        await asyncio.gather(*tasks)


async def test_a_stream_sends_what_changes(api: Api) -> None:
    async with open_browsers(api, f"{DASHBOARD_PATH}/queues") as (browser,):
        await wait_until(lambda: browser.count_fragments() >= 1, "the first fragment")
        assert browser.status == 200
        await api.enqueue("a", queue="mail")
        await wait_until(lambda: 'id="queue-mail"' in browser.received, "the new queue")
        assert '{"at":' in browser.received


async def test_a_stream_ends_with_the_server(api: Api) -> None:
    async with open_browsers(api, DASHBOARD_PATH) as (browser,):
        await wait_until(lambda: api.services.live.viewer_count == 1, "a viewer")
        await api.services.stop_streams()
        await wait_until(lambda: browser.ended, "the end of the stream")
    assert api.services.live.viewer_count == 0


async def test_a_viewer_who_leaves_is_forgotten(api: Api) -> None:
    async with open_browsers(api, DASHBOARD_PATH) as (browser,):
        await wait_until(lambda: api.services.live.viewer_count == 1, "a viewer")
        browser.leave()
        await wait_until(lambda: api.services.live.viewer_count == 0, "nobody looks")
        assert browser.status == 200


async def test_a_client_that_reads_nothing_is_disconnected(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimburion.server.dashboard.live.SEND_TIMEOUT", 0.02)

    class SlowBrowser(Browser):
        async def _send(self, message: dict[str, Any]) -> None:
            await super()._send(message)
            if message["type"] == "http.response.body":
                await asyncio.get_running_loop().create_future()

    browser = SlowBrowser(api.app, DASHBOARD_PATH)
    await browser.run()
    assert browser.received
    assert api.services.live.viewer_count == 0
    await api.services.stop_streams()


async def advance(clock: FakeClock, seconds: float) -> None:
    """Advance the clock in small steps; let tasks run after each."""
    for _ in range(round(10 * seconds)):
        clock.advance(0.1)
        for _ in range(20):
            await asyncio.sleep(0)


class Counter:
    """Counts how often a page is rendered."""

    def __init__(self, reads: int = 0) -> None:
        self.rendered = 0
        self.error: Exception | None = None
        self._reads = reads

    async def render(self) -> Fragment:
        self.rendered += 1
        if self.error is not None:
            raise self.error
        return Fragment(f"<p>{self.rendered}</p>", 1.0, reads=self._reads)


async def test_ten_viewers_of_a_page_share_its_fragments() -> None:
    clock = FakeClock()
    pages, counter = LivePages(clock), Counter()
    viewers = [pages.subscribe("page", counter.render, 1.0) for _ in range(10)]
    await advance(clock, 10.5)
    assert 9 <= counter.rendered <= 11
    assert {viewer.take_events() for viewer in viewers} == {
        format_event(f"<p>{counter.rendered}</p>").encode()
        + format_event('{"at":1.0,"problem":""}', "status").encode()
    }
    assert viewers[0].take_events() == STILL_HERE
    await pages.stop()


async def test_many_different_pages_are_rendered_four_times_a_second_together() -> None:
    clock = FakeClock()
    pages, counter = LivePages(clock), Counter()
    for number in range(20):
        pages.subscribe(number, counter.render, 1.0)
    await advance(clock, 21)
    assert 60 <= counter.rendered <= 20 + 4 * 21
    await pages.stop()


async def test_updates_that_read_much_are_less_frequent_until_something_is_changed() -> None:
    clock = FakeClock()
    pages, counter = LivePages(clock), Counter(reads=10)
    pages.subscribe("page", counter.render, 1.0)
    await advance(clock, 30)
    assert 50 <= 10 * counter.rendered <= 60
    rendered = counter.rendered
    pages.hasten()
    await advance(clock, 0.2)
    assert counter.rendered == rendered + 1
    await pages.stop()


async def test_a_slow_page_does_not_delay_the_others() -> None:
    clock = FakeClock()
    pages, counter = LivePages(clock), Counter()

    async def render_slowly() -> Fragment:
        await clock.sleep(10)
        return Fragment("", 1.0)

    pages.subscribe("slow", render_slowly, 1.0)
    pages.subscribe("page", counter.render, 1.0)
    await advance(clock, 10)
    assert counter.rendered >= 8
    await pages.stop()


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 0.7])
async def test_a_change_is_soon_on_an_open_page_although_the_backend_is_slow(
    api: Api, seconds: float
) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    happened = 0

    async def read() -> int:
        found = happened
        await clock.sleep(seconds)
        return found

    async def render() -> Fragment:
        page = PageReadings(readings, FOR_UPDATES)
        shown = await page.read("key", read)
        trace = page.trace
        return Fragment(
            f"<p>{shown}</p>",
            page.at,
            reads=trace.started,
            pending=frozenset(trace.pending),
            due_at=trace.due_at,
        )

    pages = LivePages(clock)
    viewer = pages.subscribe("page", render, 1.0)
    await advance(clock, 5)
    delays = []
    for number in range(1, 20):
        await advance(clock, 0.7 + 0.1 * number)
        happened, at = number, clock.monotonic()
        while f"<p>{number}</p>".encode() not in viewer.take_events():
            await advance(clock, 0.1)
        delays.append(clock.monotonic() - at)
    # A read that has begun does not see it; the next one begins after a pause as long as that.
    assert max(delays) <= max(1.5, 3 * seconds + 0.4)
    await pages.stop()
    await readings.stop()


async def test_without_viewers_nothing_is_rendered() -> None:
    clock = FakeClock()
    pages, counter = LivePages(clock), Counter()
    viewer = pages.subscribe("page", counter.render, 1.0)
    await advance(clock, 2)
    pages.unsubscribe("page", viewer)
    await advance(clock, 1)
    rendered = counter.rendered
    await advance(clock, 5)
    assert counter.rendered == rendered
    assert clock.sleepers == 0
    await pages.stop()


async def test_viewers_learn_that_the_backend_does_not_answer_and_when_it_does_again() -> None:
    clock = FakeClock()
    pages, counter = LivePages(clock), Counter()
    viewer = pages.subscribe("page", counter.render, 1.0)
    await advance(clock, 1.2)
    viewer.take_events()
    counter.error = BackendUnavailable("gone")
    await advance(clock, 1.2)
    assert b'"problem":"The backend does not answer: gone. ' in viewer.take_events()
    counter.error = JobNotFound("a")
    await advance(clock, 1.2)
    assert b'"problem":"No job \'a\' in this backend' in viewer.take_events()
    counter.error = None
    await advance(clock, 1.2)
    assert b'"problem":""' in viewer.take_events()
    await pages.stop()


LIVE_PATHS = [page.path for page in PAGES if page.interval is not None and "{" not in page.path]


@asynccontextmanager
async def watch(make_api: MakeApi, *paths: str) -> AsyncIterator[tuple[SharedReadings, FakeClock]]:
    """Open pages of a dashboard whose clock only the test advances, each in a browser that loads it
    first.
    """
    api: Api = await make_api()
    await api.enqueue("a", "b", queue="mail")
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    api.services.readings, api.services.live = readings, LivePages(clock)
    for path in paths:
        assert (await api.client.get(DASHBOARD_PATH + path)).status_code == 200
    async with open_browsers(api, *(DASHBOARD_PATH + path for path in paths)) as browsers:
        await wait_until(lambda: api.services.live.viewer_count == len(paths), "all viewers")
        yield readings, clock
        for browser in browsers:
            assert browser.count_fragments() >= 1


@pytest.mark.parametrize("path", [*LIVE_PATHS, "/queues/mail", "/jobs/a"])
async def test_ten_viewers_of_a_page_cost_two_reads_a_second(make_api: MakeApi, path: str) -> None:
    async with watch(make_api, *[path] * 10) as (readings, clock):
        before = readings.count
        await advance(clock, 30)
        assert readings.count - before <= 60


async def test_viewers_of_ten_different_pages_cost_two_reads_a_second(make_api: MakeApi) -> None:
    async with watch(make_api, *LIVE_PATHS[:10]) as (readings, clock):
        before = readings.count
        await advance(clock, 60)
        assert 60 <= readings.count - before <= 120


@pytest.mark.parametrize("after_action", [False, True])
@pytest.mark.parametrize("path", ["", "/queues", "/queues/mail"])
async def test_a_pause_is_soon_on_an_open_page(
    make_api: MakeApi, path: str, after_action: bool
) -> None:
    """The other values of the page must not use up the reads of live updates, nor must those that
    are read again after an action.
    """
    api: Api = await make_api()
    await api.enqueue("a", "b", queue="mail")
    backend, clock = api.processor.backend, FakeClock()
    api.services.readings = SharedReadings(backend, clock)
    api.services.live = LivePages(clock)
    assert (await api.client.get(DASHBOARD_PATH + path)).status_code == 200
    delays = []
    async with open_browsers(api, DASHBOARD_PATH + path) as (browser,):
        await wait_until(lambda: api.services.live.viewer_count == 1, "a viewer")
        for number in range(40):
            if after_action:
                api.services.readings.expire()
                api.services.live.hasten()
            await advance(clock, 1 + 0.3 * (number % 7))
            browser.received, at, paused = "", clock.monotonic(), number % 2 == 0
            await backend.maintenance.pause_queue("mail", paused=paused)
            while browser.count_fragments() == 0 or ("state paused" in browser.received) != paused:
                browser.received = ""
                await advance(clock, 0.1)
            delays.append(clock.monotonic() - at)
    assert max(delays) <= 1.3, delays


@pytest.mark.parametrize(("path", "oldest"), [("/queues/mail", 6.0), ("", 6.0), ("/metrics", 11.0)])
async def test_no_value_of_an_open_page_becomes_old(
    make_api: MakeApi, path: str, oldest: float
) -> None:
    """Updates read some of the values later, and say how old the oldest is."""
    api: Api = await make_api()
    clock = FakeClock()
    api.services.readings = SharedReadings(api.processor.backend, clock)
    api.services.live = LivePages(clock)
    ages = []
    async with open_browsers(api, DASHBOARD_PATH + path) as (browser,):
        await wait_until(lambda: api.services.live.viewer_count == 1, "a viewer")
        for _ in range(60):
            await advance(clock, 1)
            times = re.findall(r'"at":([\d.]+)', browser.received)
            ages += [clock.now() - float(times[-1])] if times else []
    assert len(ages) > 40
    assert max(ages) <= oldest, ages


async def test_a_read_is_shared_and_kept_for_its_age(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    calls = 0

    async def read() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return calls

    await asyncio.gather(*(readings.read("key", read, 1.0) for _ in range(10)))
    assert calls == 1
    clock.advance(1.0)
    assert (await readings.read("key", read, 1.0)).value == 2
    readings.expire()
    assert (await readings.read("key", read, 1.0)).value == 3


async def test_a_page_does_not_wait_for_a_slow_read_whose_value_is_not_old(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    values = iter(range(1, 10))

    async def read() -> int:
        clock.advance(0.2)
        return next(values)

    assert (await readings.read("key", read, 1.0)).value == 1
    clock.advance(0.9)
    assert (await readings.read("key", read, 1.0)).value == 1
    assert readings.count == 1, "a read of 0.2 s is repeated after 1.2 s at the earliest"
    clock.advance(1)
    assert (await readings.read("key", read, 1.0)).value == 1
    await wait_until(lambda: readings.count == 2, "a read in the background")
    assert (await readings.read("key", read, 1.0)).value == 2
    readings.expire()
    assert (await readings.read("key", read, 1.0)).value == 3, "after a change pages wait"
    await readings.stop()


async def test_a_page_learns_that_its_job_was_deleted_during_a_read_in_the_background(
    api: Api,
) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    problems: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: problems.append(context["message"])
    )

    async def read() -> int:
        clock.advance(0.2)
        if readings.count > 1:
            raise JobNotFound("a")
        return 1

    await readings.read("key", read, 1.0)
    clock.advance(2)
    assert (await readings.read("key", read, 1.0)).value == 1
    await wait_until(lambda: not readings._tasks, "the end of the read in the background")
    with pytest.raises(JobNotFound):
        await readings.read("key", read, 1.0)
    gc.collect()
    assert problems == []


async def test_a_live_update_waits_for_a_read_that_is_slow_for_a_page(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    values = iter(range(1, 10))

    async def read() -> int:
        clock.advance(0.2)
        return next(values)

    page = PageReadings(readings)
    assert await page.read("key", read) == 1
    clock.advance(3)
    update = PageReadings(readings, FOR_UPDATES)
    assert await update.read("key", read) == 2
    clock.advance(3)
    assert await page.read("key", read) == 2, "a page shows the last value"
    await readings.stop()


async def test_the_end_of_an_outage_is_noticed_soon(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    error: Exception | None = None

    async def read() -> int:
        if error is not None:
            clock.advance(2)  # a timeout
            raise error
        return 1

    await readings.read("key", read, 1.0)
    clock.advance(1)
    error = BackendUnavailable("gone")
    assert (await readings.read("key", read, 1.0)).problem is error
    error = None
    clock.advance(1)
    assert (await readings.read("key", read, 1.0)).problem is None


async def test_after_an_outage_a_background_read_does_not_wait_for_its_pause(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    error: Exception | None = BackendUnavailable("gone")

    async def read() -> int:
        if error is not None:
            clock.advance(30)  # a timeout
            raise error
        return 1

    assert readings.peek("slow", read, 10.0) is None
    await wait_until(lambda: readings.count == 1, "the read in the background")
    with pytest.raises(BackendUnavailable):
        await readings.read("key", read, 1.0)
    error = None
    clock.advance(1)
    assert (await readings.read("key", read, 1.0)).problem is None
    readings.peek("slow", read, 10.0)
    await wait_until(lambda: readings.count == 4, "another read in the background")
    assert readings.peek("slow", read, 10.0) == 1
    clock.advance(MAX_STALENESS + 1)
    assert readings.peek("slow", read, 10.0) is None, "a number of an hour ago says nothing"
    await wait_until(lambda: readings.count == 5, "a read in the background")
    assert readings.peek("slow", read, 10.0) == 1
    await readings.stop()


async def test_old_values_are_not_shown_for_ever(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)
    answer: Callable[[], int] = lambda: 1  # noqa: E731

    async def read() -> int:
        return answer()

    def fail() -> int:
        raise BackendUnavailable("gone")

    assert (await readings.read("key", read, 1.0)).problem is None
    answer = fail
    clock.advance(2)
    entry = await readings.read("key", read, 1.0)
    assert (entry.value, str(entry.problem)) == (1, "gone")
    clock.advance(MAX_STALENESS)
    with pytest.raises(BackendUnavailable):
        await readings.read("key", read, 1.0)


async def test_values_that_nobody_asks_for_are_dropped(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)

    async def read() -> int:
        return 1

    for number in range(MAX_ENTRIES + 10):
        await readings.read(f"search {number}", read, 1.0)
    assert readings.entry_count == MAX_ENTRIES
    clock.advance(200)
    await readings.read("another", read, 1.0)
    assert readings.entry_count == 1


def test_an_event_keeps_the_lines_of_its_data() -> None:
    assert format_event("a\nb", "status") == "event: status\ndata: a\ndata: b\n\n"
