"""Readings of the backend, which all viewers of the dashboard share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from nimburion.core.errors import BackendUnavailable, JobNotFound
from nimburion.server.dashboard.readings import (
    FOR_UPDATES,
    MAX_ENTRIES,
    MAX_STALENESS,
    PageReadings,
    SharedReadings,
)
from nimburion.testing.clock import FakeClock
from tests.server.conftest import Api
from tests.waiting import wait_until


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

    assert await readings.peek("slow", read, 10.0) is None
    await wait_until(lambda: readings.count == 1, "the read in the background")
    with pytest.raises(BackendUnavailable):
        await readings.read("key", read, 1.0)
    error = None
    clock.advance(1)
    assert (await readings.read("key", read, 1.0)).problem is None
    await readings.peek("slow", read, 10.0)
    await wait_until(lambda: readings.count == 4, "another read in the background")
    assert await readings.peek("slow", read, 10.0) == 1
    clock.advance(MAX_STALENESS + 1)
    assert await readings.peek("slow", read, 10.0) is None, "a number of an hour ago says nothing"
    await wait_until(lambda: readings.count == 5, "a read in the background")
    assert await readings.peek("slow", read, 10.0) == 1
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


async def test_the_value_that_was_not_read_for_longest_makes_room(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)

    async def read() -> int:
        return 1

    for number in range(MAX_ENTRIES + 10):
        clock.advance(0.1)
        await readings.read(f"search {number}", read, 1.0)
    assert len(readings.durations) == MAX_ENTRIES
    assert "search 9" not in readings.durations


async def test_open_pages_read_each_value_less_often_the_more_values_they_need(api: Api) -> None:
    clock = FakeClock()
    readings = SharedReadings(api.processor.backend, clock)

    async def read() -> int:
        return 1

    for _ in range(100):
        clock.advance(0.1)
        for number in range(8):
            await PageReadings(readings, FOR_UPDATES).read(f"value {number}", read)
    assert 16 <= readings.count <= 8 + 2 * 10
    count = readings.count
    for _ in range(100):
        clock.advance(0.1)
        await PageReadings(readings, FOR_UPDATES).read("value 0", read)
    assert 8 <= readings.count - count <= 10, "the other values are on no open page any more"
    await PageReadings(readings).read("value 7", read)
    count = readings.count
    clock.advance(1.0)
    await PageReadings(readings).read("value 7", read)
    assert readings.count == count + 1, "programs get new values"
