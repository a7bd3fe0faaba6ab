"""Hosts whose clocks are wrong: the backend's time rules."""

from __future__ import annotations

from typing import cast

import pytest

from nimburion.core.backend import Lifecycle
from nimburion.core.errors import BackendUnavailable
from nimburion.scheduler import Scheduler
from nimburion.scheduler.backend_clock import BackendClock
from nimburion.testing import FakeClock
from tests.scheduler.conftest import BEGIN, Place, Report

HOUR = 3600.0


class HostClock:
    """A host's clock that is `off` from the true one, and drifts `drift` seconds a second."""

    def __init__(self, true: FakeClock, off: float = 0.0, drift: float = 0.0) -> None:
        self._true = true
        self._began = true.monotonic()
        self.off = off
        self._drift = drift

    def _drifted(self) -> float:
        return self._drift * (self._true.monotonic() - self._began)

    def now(self) -> float:
        """Wall time, as this host has it."""
        return self._true.now() + self.off + self._drifted()

    def monotonic(self) -> float:
        """Never steps, but drifts too."""
        return self._true.monotonic() + self._drifted()

    async def sleep(self, seconds: float) -> None:
        """As the true one."""
        await self._true.sleep(seconds)


def each_minute(one: Scheduler) -> None:
    one.schedule("* * * * *", Report(), misfire="skip", misfire_grace=5)


@pytest.mark.parametrize("off", [HOUR, -HOUR, 30.0, -30.0])
async def test_a_clock_that_is_off_changes_no_tick(place: Place, off: float) -> None:
    """Its schedules are declared there, so that their beginning is the backend's time too."""
    scheduler = await place.scheduler(each_minute, clock=HostClock(place.clock, off))
    for seconds in range(0, 300, 20):
        place.at(seconds)
        assert await scheduler.fire_due() == (seconds > 0 and seconds % 60 == 0)
    jobs = await place.jobs()
    assert [job.due - BEGIN for job in jobs] == [60, 120, 180, 240]
    assert all(job.created_at == job.due for job in jobs)


@pytest.mark.parametrize("off", [HOUR, -HOUR])
async def test_one_that_is_off_does_the_others_no_harm(place: Place, off: float) -> None:
    """With the policy that would pass by an hour's ticks for the latest of them."""
    declare = lambda one: one.schedule("* * * * *", Report())  # noqa: E731
    right = await place.scheduler(declare)
    wrong = await place.scheduler(declare, clock=HostClock(place.clock, off))
    decided = 0
    for minute in range(10):
        place.at(60 * minute)
        for one in (wrong, right) if minute % 2 else (right, wrong):
            decided += await one.fire_due()
    jobs = await place.jobs()
    assert [job.due - BEGIN for job in jobs] == [60 * minute for minute in range(1, 10)]
    assert decided == 9


async def test_a_clock_that_is_set_is_noticed_at_once(place: Place) -> None:
    """Between two ticks, and well before the time at which the backend is asked again."""
    clock = HostClock(place.clock)
    scheduler = await place.scheduler(each_minute, clock=clock)
    for seconds, off in ((0, 0.0), (55, HOUR), (60, HOUR), (110, -HOUR), (120, -HOUR), (180, 0.0)):
        place.at(seconds)
        clock.off = off
        assert await scheduler.fire_due() == (seconds > 0 and seconds % 60 == 0)
    assert [job.due - BEGIN for job in await place.jobs()] == [60, 120, 180]


async def test_the_scheduler_follows_a_host_clock_that_is_set_with_its_backend(
    place: Place,
) -> None:
    """A backend that is a file goes by the clock of the host."""
    scheduler = await place.scheduler(each_minute)
    await scheduler.fire_due()
    place.clock.step_wall(50)
    place.at(60)
    assert await scheduler.fire_due() == 1


async def test_the_scheduler_follows_a_backend_clock_that_is_set(place: Place) -> None:
    host = FakeClock(BEGIN)
    scheduler = await place.scheduler(each_minute, clock=host)
    await scheduler.fire_due()
    place.clock.step_wall(5)
    host.advance(301)
    assert await scheduler.fire_due() == 0
    place.at(60)
    host.advance(55)
    assert await scheduler.fire_due() == 1
    assert [job.due - BEGIN for job in await place.jobs()] == [60]


@pytest.mark.parametrize("drift", [0.0001, -0.0001])
async def test_a_clock_that_drifts_is_corrected_again_and_again(place: Place, drift: float) -> None:
    clock = HostClock(place.clock, drift=drift)
    time = BackendClock(clock, place.backend)
    for seconds in range(0, 6000, 20):
        place.at(seconds)
        await time.synchronize()
        assert abs(time.now() - place.clock.now()) <= 0.05


async def test_what_the_round_trip_can_explain_is_no_difference() -> None:
    clock = FakeClock(BEGIN)
    slow = Slow(clock, took=0.4, says=BEGIN + 0.35)
    time = BackendClock(clock, cast("Lifecycle", slow))
    await time.synchronize()
    assert time.now() == pytest.approx(clock.now(), abs=0.001)


async def test_half_of_the_round_trip_is_the_way_there() -> None:
    clock = FakeClock(BEGIN)
    slow = Slow(clock, took=0.4, says=BEGIN + 100.2)
    time = BackendClock(clock, cast("Lifecycle", slow))
    await time.synchronize()
    assert time.now() == pytest.approx(clock.now() + 100, abs=0.001)


@pytest.mark.parametrize("says", [0.001, 19.999])
async def test_a_blocked_event_loop_is_not_reported_as_a_clock_difference(
    says: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler blocks the loop for 20 s, so that an answer given early or late is read late."""
    clock = FakeClock(BEGIN)
    slow = Slow(clock, took=20.0, says=BEGIN + says)
    time = BackendClock(clock, cast("Lifecycle", slow))
    await time.synchronize()
    assert time.now() == pytest.approx(clock.now(), abs=0.001)
    assert caplog.messages == []


async def test_a_clock_far_off_is_logged_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = await place.scheduler(each_minute, clock=HostClock(place.clock, -HOUR))
    for seconds in range(0, 600, 30):
        place.at(seconds)
        await scheduler.fire_due()
    messages = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    (message,) = messages
    assert message == (
        "the clock of this host differs from the backend's clock by -3600.0 s; ticks follow the "
        "backend's clock"
    )


async def test_reading_the_time_opens_no_session(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise AssertionError("a scheduler is no worker")

    scheduler = await place.scheduler(each_minute)
    for name in ("open_session", "exchange"):
        monkeypatch.setattr(scheduler.processor.backend.consuming, name, refuse)
    await scheduler.fire_due()
    place.at(600)
    await scheduler.fire_due()
    assert await place.backend.reads.list_sessions() == []


async def test_without_the_backends_time_no_tick_is_fired(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = await place.scheduler(each_minute)
    await scheduler.fire_due()

    async def cut() -> None:
        raise BackendUnavailable("cut")

    place.at(600)
    monkeypatch.setattr(scheduler.processor.backend, "now", cut)
    with pytest.raises(BackendUnavailable):
        await scheduler.fire_due()
    assert await place.jobs() == []


async def test_a_schedule_added_by_hand_begins_in_the_time_of_the_backend(place: Place) -> None:
    there = await place.scheduler(clock=HostClock(place.clock, HOUR))
    scheduler = await place.scheduler(owner="any")
    await there.processor.schedules.add("clean-up", "* * * * *", "report")
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 1
    await there.processor.schedules.pause("clean-up")
    place.at(110)
    await there.processor.schedules.resume("clean-up")
    place.at(120)
    assert await scheduler.fire_due() == 1


class Slow:
    """A backend that takes its time to say what time it is."""

    def __init__(self, clock: FakeClock, took: float, says: float) -> None:
        self._clock, self._took, self._says = clock, took, says

    async def now(self) -> float:
        self._clock.advance(self._took)
        return self._says
