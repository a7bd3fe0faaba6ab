"""Schedulers on a backend: one job per tick, and every policy as it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from nimburion.core.errors import (
    BackendUnavailable,
    DefinitionError,
    DuplicateJob,
    NotOpen,
    ScheduleNotFound,
)
from nimburion.core.events import Event, JobEnqueued, TickDecided
from nimburion.core.job import State
from nimburion.core.records import NewRecord, RecordPut
from nimburion.core.schedules import (
    Fired,
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    put_schedule,
)
from nimburion.core.session import Session
from nimburion.core.settings import SchedulerSettings, TaskSettings
from nimburion.jobs import Limit, Processor, job
from nimburion.jobs.handling.middleware import Enqueueing
from nimburion.scheduler import Scheduler, schedules
from nimburion.scheduler.declarations import ScheduleOptions
from nimburion.testing.contract.harness import HandDrivenWorker
from tests.scheduler.conftest import Place, Report

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


def each_minute(**options: object) -> Callable[[Scheduler], object]:
    """Declares `report` each minute."""
    return lambda scheduler: scheduler.schedule("* * * * *", Report(), **options)  # type: ignore[call-overload]


async def list_all(scheduler: Scheduler) -> list[schedules.ScheduleInfo]:
    """The schedules of the backend."""
    return [one async for one in scheduler.processor.schedules.list()]


def at(*times: str) -> list[str]:
    """The ids of the ticks at these times of the first day."""
    return [f"report:2026-01-{one}:00Z" for one in times]


# One job per tick


async def test_a_tick_makes_one_job_that_says_where_it_comes_from(place: Place) -> None:
    scheduler = await place.scheduler(each_minute(queue="reports", priority=7, tenant="acme"))
    assert await scheduler.fire_due() == 0
    place.at(59.9)
    assert await scheduler.fire_due() == 0
    place.at(60)
    assert await scheduler.fire_due() == 1
    assert await scheduler.fire_due() == 0
    (made,) = await place.jobs()
    assert made.id == "report:2026-01-01T00:01:00Z"
    assert (made.queue, made.priority, made.options.tenant) == ("reports", 7, "acme")
    assert made.payload == b'{"kind":"daily"}'
    assert made.options.headers == {
        "nimburion-schedule": "report",
        "nimburion-tick": "2026-01-01T00:01:00Z",
    }


async def test_many_that_are_due_at_once_are_all_decided_at_once(place: Place) -> None:
    def declare(scheduler: Scheduler) -> None:
        for n in range(200):
            scheduler.schedule("* * * * *", Report(), name=f"report-{n}")

    scheduler = await place.scheduler(declare)
    assert await scheduler.fire_due() == 0
    for minute in (1, 2):
        place.at(minute * MINUTE)
        assert await scheduler.fire_due() == 200


async def test_five_schedulers_make_one_job_per_tick(place: Place) -> None:
    schedulers = [await place.scheduler(each_minute()) for _ in range(5)]
    decided = 0
    for minute in range(31):
        place.at(minute * MINUTE + 0.5)
        for scheduler in (*schedulers[minute % 5 :], *schedulers[: minute % 5]):
            decided += await scheduler.fire_due()
    ids = await place.ids()
    assert len(ids) == len(set(ids)) == decided == 30


async def test_a_scheduler_that_slept_makes_no_second_job(place: Place) -> None:
    """It acts on what it read long ago; the backend refuses it."""
    paused, other = [await place.scheduler(each_minute()) for _ in range(2)]
    await paused.fire_due()
    await other.fire_due()
    for minute in range(1, 4):
        place.at(minute * MINUTE)
        assert await other.fire_due() == 1
    assert await paused.fire_due() == 0
    assert len(await place.ids()) == 3


async def test_who_was_always_second_is_first_when_the_first_is_gone(place: Place) -> None:
    first, second = [
        await place.scheduler(lambda one: one.schedule("@every 1s", Report())) for _ in range(2)
    ]
    await second.fire_due()
    for second_ in (1, 2, 3):
        place.at(second_)
        assert await first.fire_due() == 1
        assert await second.fire_due() == 0
    place.at(4)
    assert await second.fire_due() == 1


async def test_a_scheduler_far_behind_reads_which_ticks_were_fired(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not lose a thousand ticks, one by one."""
    declare = lambda one: one.schedule("@every 1s", Report(), misfire="catch_up")  # noqa: E731
    first, behind = [await place.scheduler(declare) for _ in range(2)]
    place.at(1)
    await behind.fire_due()
    place.at(4.5)
    backend = behind.processor.backend
    real, ticks_tried = backend.producing.fire, list[float]()

    async def fire(name: str, expected: float | None, tick: float, *more: object) -> Fired:
        await first.fire_due()
        ticks_tried.append(tick)
        return await real(name, expected, tick, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(backend.producing, "fire", fire)
    assert await behind.fire_due() == 0
    assert len(ticks_tried) == 2
    place.at(5)
    monkeypatch.undo()
    assert await behind.fire_due() == 1


async def test_a_fire_whose_answer_was_lost_is_repeated(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    place.at(60)
    backend = scheduler.processor.backend
    real = backend.producing.fire

    async def applied_and_lost(*arguments: object) -> Fired:
        await real(*arguments)  # type: ignore[arg-type]
        raise BackendUnavailable("cut")

    monkeypatch.setattr(backend.producing, "fire", applied_and_lost)
    with pytest.raises(BackendUnavailable):
        await scheduler.fire_due()
    monkeypatch.setattr(backend.producing, "fire", real)
    assert await scheduler.fire_due() == 0
    place.at(120)
    assert await scheduler.fire_due() == 1
    assert await place.ids() == at("01T00:01", "01T00:02")


async def test_a_restart_fires_nothing_twice(place: Place) -> None:
    first = await place.scheduler(each_minute())
    await first.fire_due()
    place.at(60)
    await first.fire_due()
    second = await place.scheduler(each_minute())
    assert await second.fire_due() == 0
    assert len(await place.ids()) == 1


async def test_a_new_schedule_makes_up_for_nothing(place: Place) -> None:
    place.at(DAY)
    scheduler = await place.scheduler(each_minute(misfire="catch_up"))
    assert await scheduler.fire_due() == 0


async def test_a_changed_schedule_replays_nothing(place: Place) -> None:
    old = await place.scheduler(lambda one: one.schedule("@daily", Report()))
    await old.fire_due()
    place.at(DAY)
    assert await old.fire_due() == 1
    place.at(200 * DAY)
    new = await place.scheduler(each_minute(misfire="catch_up"))
    assert await new.fire_due() == 0
    place.at(200 * DAY + MINUTE)
    assert await new.fire_due() == 1


# Missed ticks


async def down_for(place: Place, seconds: float, **options: object) -> list[str]:
    """A fleet of three fires the first minute, is down, and comes back, all three at once; what
    was fired then."""
    fleet = [await place.scheduler(each_minute(**options)) for _ in range(3)]
    for minute in (0, 1):
        place.at(minute * MINUTE)
        await asyncio.gather(*(one.fire_due() for one in fleet))
    place.at(60 + seconds)
    fleet = [await place.scheduler(each_minute(**options)) for _ in range(3)]
    decided = await asyncio.gather(*(one.fire_due() for one in fleet))
    found = (await place.ids())[1:]
    assert sum(decided) == len(found)
    return found


async def test_what_is_at_most_a_minute_late_is_fired_by_every_policy(place: Place) -> None:
    assert await down_for(place, 61, misfire="skip") == at("01T00:02")


async def test_skip_passes_by_what_was_missed(place: Place) -> None:
    assert await down_for(place, 600.5, misfire="skip") == at("01T00:11")


async def test_fire_once_fires_the_latest_that_was_missed(place: Place) -> None:
    assert await down_for(place, 600.5) == at("01T00:10", "01T00:11")


async def test_fire_once_without_grace_fires_one(place: Place) -> None:
    assert await down_for(place, 600.5, misfire_grace=0) == at("01T00:11")


async def test_catch_up_fires_all_in_order(place: Place) -> None:
    wanted = at(*(f"01T00:{minute:02}" for minute in range(2, 12)))
    assert await down_for(place, 600.5, misfire="catch_up") == wanted


async def test_catch_up_goes_back_as_far_as_its_window(place: Place) -> None:
    found = await down_for(place, 600.5, misfire="catch_up", catch_up_window=180)
    assert found == at("01T00:09", "01T00:10", "01T00:11")


async def test_a_year_of_missed_seconds_costs_nothing(place: Place) -> None:
    def declare(one: Scheduler) -> None:
        one.schedule("@every 1s", Report())
        one.schedule("@every 1s", Report(), name="skips", misfire="skip", misfire_grace=2)

    before = await place.scheduler(declare)
    await before.fire_due()
    place.at(365 * DAY + 0.5)
    after = await place.scheduler(declare)
    assert await after.fire_due() == 1 + 60 + 2


# Overlap, pause, jitter, bounds


async def test_overlap_is_decided_with_the_tick(place: Place) -> None:
    scheduler = await place.scheduler(each_minute(overlap="skip"))
    events: list[Event] = []
    scheduler.processor.events.subscribe(events.append)
    await scheduler.fire_due()
    for minute in (1, 2):
        place.at(minute * MINUTE)
        assert await scheduler.fire_due() == 1
    assert await place.ids() == at("01T00:01")
    ticks = [(one.tick % 3600, one.outcome) for one in events if isinstance(one, TickDecided)]
    assert ticks == [(60.0, "fired"), (120.0, "skipped")]
    await scheduler.processor.drain()
    place.at(180)
    await scheduler.fire_due()
    assert await place.ids() == at("01T00:01", "01T00:03")


@pytest.mark.parametrize(
    ("overlap", "states"),
    [
        ("allow", [State.PENDING, State.PENDING]),
        ("skip", [State.PENDING]),
        ("queue_one", [State.PENDING]),
        ("cancel_previous", [State.CANCELLED, State.PENDING]),
    ],
)
async def test_a_tick_while_the_previous_job_waits(
    place: Place, overlap: str, states: list[State]
) -> None:
    scheduler = await place.scheduler(each_minute(overlap=overlap))
    for minute in (0, 1, 2):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    assert [one.state for one in await place.jobs()] == states


@pytest.mark.parametrize(
    ("overlap", "minutes", "cancelled"),
    [
        ("allow", [1, 2, 3], False),
        ("skip", [1], False),
        ("queue_one", [1, 2], False),
        ("cancel_previous", [1, 2, 3], True),
    ],
)
async def test_ticks_while_the_previous_job_runs(
    place: Place,
    overlap: str,
    minutes: list[int],
    cancelled: bool,
) -> None:
    """It runs from the first tick on; the second finds it running, the third the second's."""
    scheduler = await place.scheduler(each_minute(overlap=overlap))
    for minute in (0, 1):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    worker = HandDrivenWorker(
        place.backend, Session(id="0" * 32, queues=("default",), names=("report",))
    )
    await place.backend.consuming.open_session(worker.session)
    running = (await worker.take_one()).lease
    for minute in (2, 3):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    assert await place.ids() == at(*(f"01T00:0{minute}" for minute in minutes))
    assert (await place.backend.reads.get_job(running.job_id)).cancel_requested is cancelled


async def test_a_pause_is_not_made_up_for(place: Place) -> None:
    scheduler = await place.scheduler(each_minute(misfire="catch_up"))
    await scheduler.fire_due()
    await scheduler.processor.schedules.pause("report")
    place.at(10 * MINUTE)
    assert await scheduler.fire_due() == 0
    await scheduler.processor.schedules.resume("report")
    place.at(11 * MINUTE)
    assert await scheduler.fire_due() == 1


async def test_a_pause_holds_at_once_and_over_a_restart(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    place.at(58)
    await scheduler.fire_due()
    await scheduler.processor.schedules.pause("report")
    place.at(60)
    assert await scheduler.fire_due() == 0
    again = await place.scheduler(each_minute())
    assert await again.fire_due() == 0
    (info,) = await list_all(again)
    assert info.condition == "paused"


async def test_jitter_is_the_same_on_every_scheduler_and_only_later(place: Place) -> None:
    scheduler = await place.scheduler(each_minute(jitter=30))
    await scheduler.fire_due()
    for minute in range(1, 9):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    late = [made.due % 60 for made in await place.jobs()]
    assert all(0 <= one < 30 for one in late)
    assert len(set(late)) == 8


async def test_start_and_end_bound_the_ticks(place: Place) -> None:
    begin = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    options = {"start": begin, "end": begin + timedelta(minutes=2)}
    scheduler = await place.scheduler(each_minute(**options))
    for minute in range(7):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    assert await place.ids() == at("01T00:02", "01T00:03")
    (info,) = await list_all(scheduler)
    assert info.condition == "over"


async def test_once_is_once(place: Place) -> None:
    when = datetime(2026, 1, 1, 0, 5, tzinfo=UTC)
    scheduler = await place.scheduler(lambda one: one.schedule(when, Report()))
    for minute in range(0, 20, 5):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    assert await place.ids() == at("01T00:05")


async def test_what_is_disabled_is_declared_and_not_fired(place: Place) -> None:
    scheduler = await place.scheduler(each_minute(enabled=False))
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 0
    (info,) = await list_all(scheduler)
    assert info.condition == "disabled"


# What is computed


async def test_arguments_may_be_computed_from_the_nominal_time(place: Place) -> None:
    def report_of(tick: datetime) -> Report:
        return Report(kind=f"{tick:%H:%M %Z}")

    scheduler = await place.scheduler(
        lambda one: one.schedule("* * * * *", report_of, timezone="Europe/Rome", priority=9)
    )
    await scheduler.fire_due()
    place.at(61.5)
    await scheduler.fire_due()
    (made,) = await place.jobs()
    assert made.id == "report_of:2026-01-01T00:01:00Z"
    assert (made.payload, made.priority) == (b'{"kind":"01:01 CET"}', 9)


async def test_only_who_declares_a_computed_job_fires_it(place: Place) -> None:
    mine = await place.scheduler(
        lambda one: one.schedule("* * * * *", lambda _: Report(), name="report")
    )
    other = await place.scheduler(owner="other")
    await mine.fire_due()
    place.at(60)
    assert await other.fire_due() == 0
    assert await mine.fire_due() == 1


async def test_one_that_cannot_be_computed_does_not_stop_the_others(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: datetime) -> Report:
        raise ZeroDivisionError

    def declare(one: Scheduler) -> None:
        one.schedule("* * * * *", broken)
        one.schedule("* * * * *", Report())

    scheduler = await place.scheduler(declare)
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 1
    assert "schedule 'broken'" in caplog.text
    assert await place.ids() == at("01T00:01")


async def test_a_single_tick_that_cannot_be_computed_is_tried_again_with_each_renewal(
    place: Place,
) -> None:
    """And not with each read of the schedules."""
    tried: list[datetime] = []

    def broken(tick: datetime) -> Report:
        tried.append(tick)
        raise ZeroDivisionError

    scheduler = await place.scheduler(
        lambda scheduler: scheduler.schedule("@at 2026-01-01T00:01:00+00:00", broken)
    )
    for seconds in range(0, 125, 5):
        place.at(seconds)
        assert await scheduler.fire_due() == 0
    assert len(tried) == 2  # at 60 s, and after the renewal at 65 s


async def test_the_enqueue_middleware_sees_each_tick(place: Place) -> None:
    async def stamp(enqueueing: Enqueueing, call_next: Callable[[Enqueueing], object]) -> object:
        enqueueing.add_headers(stamp="yes")
        return await call_next(enqueueing)  # type: ignore[misc]

    scheduler = await place.scheduler(each_minute())
    scheduler.processor.use_enqueue(stamp)
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 1
    await scheduler.processor.schedules.run_now("report")
    assert [made.options.headers["stamp"] for made in await place.jobs()] == ["yes", "yes"]


async def test_a_tick_that_a_middleware_dropped_does_not_come_back(place: Place) -> None:
    """Also not when the scheduler renews its declaration, which changes the stored schedule."""
    dropped: list[str] = []

    async def drop(enqueueing: Enqueueing, call_next: object) -> str:
        dropped.append(enqueueing.id)
        return enqueueing.id

    scheduler = await place.scheduler(
        lambda scheduler: scheduler.schedule("1 0 * * *", Report(), misfire_grace=0)
    )
    scheduler.processor.use_enqueue(drop)
    for seconds in (0, 60, 120, 600, 1200):
        place.at(seconds)
        assert await scheduler.fire_due() == 0
    assert dropped == at("01T00:01")
    assert await place.jobs() == []


async def test_a_middleware_that_fails_after_the_job_was_stored_loses_no_tick(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_late(
        enqueueing: Enqueueing, call_next: Callable[[Enqueueing], object]
    ) -> object:
        await call_next(enqueueing)  # type: ignore[misc]
        raise ConnectionError("no metrics today")

    scheduler = await place.scheduler(lambda one: one.schedule("@every 1s", Report()))
    scheduler.processor.use_enqueue(fail_late)
    seen: list[Event] = []
    scheduler.processor.events.subscribe(seen.append)
    await scheduler.fire_due()
    for second in (1, 2, 3):
        place.at(second)
        assert await scheduler.fire_due() == 1
    ids = await place.ids()
    assert len(ids) == 3
    assert "an enqueue middleware failed after the job was stored" in caplog.text
    assert "no metrics today" in caplog.text
    assert "could not be built" not in caplog.text
    decided = [(one.outcome, one.job_id) for one in seen if isinstance(one, TickDecided)]
    assert decided == [("fired", job_id) for job_id in ids]


async def test_a_middleware_that_fails_with_an_error_of_the_backend_loses_no_tick(
    place: Place,
) -> None:
    async def fail_late(
        enqueueing: Enqueueing, call_next: Callable[[Enqueueing], object]
    ) -> object:
        await call_next(enqueueing)  # type: ignore[misc]
        raise BackendUnavailable("another backend of this application")

    scheduler = await place.scheduler(lambda one: one.schedule("@every 1s", Report()))
    scheduler.processor.use_enqueue(fail_late)
    await scheduler.fire_due()
    for second in (1, 2, 3):
        place.at(second)
        assert await scheduler.fire_due() == 1
    assert len(await place.ids()) == 3


async def test_the_jobs_of_schedules_are_counted_and_announced_as_enqueued(place: Place) -> None:
    async def move(enqueueing: Enqueueing, call_next: Callable[[Enqueueing], object]) -> object:
        enqueueing.queue = "moved"
        return await call_next(enqueueing)  # type: ignore[misc]

    first, second = [await place.scheduler(each_minute()) for _ in range(2)]
    seen: list[Event] = []
    for scheduler in (first, second):
        scheduler.processor.use_enqueue(move)
        scheduler.processor.events.subscribe(seen.append)
        await scheduler.fire_due()
    for minute in (1, 2):
        place.at(minute * MINUTE)
        assert (await first.fire_due(), await second.fire_due()) == (1, 0)
    await second.processor.schedules.run_now("report", job_id="extra")
    await second.processor.schedules.run_now("report", job_id="extra")
    lanes = {
        (lane.queue, lane.name): lane.enqueued
        for lane in first.processor._statistics.jobs.list_lanes()
    }
    assert lanes == {("moved", "report"): 2}
    lanes = {
        (lane.queue, lane.name): lane.enqueued
        for lane in second.processor._statistics.jobs.list_lanes()
    }
    assert lanes == {("moved", "report"): 1}
    announced = [(one.queue, one.created) for one in seen if isinstance(one, JobEnqueued)]
    assert announced == [("moved", True)] * 3 + [("moved", False)]
    for scheduler in (first, second):
        await scheduler.processor.close()
    now = await place.backend.now()
    rows = await place.backend.reads.list_statistics(now - DAY, now + DAY, 3600)
    assert sum(row.counters.enqueued for row in rows if row.queue == "moved") == 3


# Who declares it


async def test_an_undeclared_schedule_is_suspended_and_kept_for_30_days(place: Place) -> None:
    first = await place.scheduler(each_minute())
    await first.fire_due()
    place.at(60)
    await first.fire_due()
    other = await place.scheduler(owner="other")
    place.at(DAY)
    assert await other.fire_due() == 0
    (info,) = await list_all(other)
    assert (info.condition, info.last_job) == ("inactive", at("01T00:01")[0])
    place.at(29 * DAY)
    await other.fire_due()
    assert len(await list_all(other)) == 1
    place.at(31 * DAY)
    await other.fire_due()
    assert await list_all(other) == []


async def test_while_one_half_declares_it_it_is_active(place: Place) -> None:
    """A rolling deploy: the new code has dropped it, the old code still runs."""
    old, new = await place.scheduler(each_minute()), await place.scheduler()
    await old.fire_due()
    for minute in range(1, 40):
        place.at(minute * MINUTE)
        await new.fire_due()
        assert await old.fire_due() == 1
    assert (await new.processor.schedules.get("report")).condition == "active"


async def test_the_newest_declaration_counts(place: Place) -> None:
    old = await place.scheduler(each_minute())
    await old.fire_due()
    new = await place.scheduler(lambda one: one.schedule("@hourly", Report()))
    await new.fire_due()
    place.at(10 * MINUTE)
    assert await old.fire_due() == 0
    assert (await old.processor.schedules.get("report")).trigger == "@hourly"


async def test_two_applications_do_not_share_a_name(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    first = await place.scheduler(each_minute(), owner="first")
    second = await place.scheduler(lambda one: one.schedule("@hourly", Report()), owner="second")
    await first.fire_due()
    await second.fire_due()
    assert "belongs to the application 'first'" in caplog.text
    assert (await second.processor.schedules.get("report")).owner == "first"
    place.at(60)
    assert await second.fire_due() == 0
    assert await first.fire_due() == 1


async def test_many_schedules_are_registered_a_few_at_a_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks that are due wait for it."""

    def declare(one: Scheduler) -> None:
        for number in range(450):
            one.schedule("@yearly", Report(), name=f"report-{number}")

    scheduler = await place.scheduler(declare)
    backend = scheduler.processor.backend
    real, put = backend.maintenance.put_record, list[str]()

    async def put_record(record: NewRecord, **options: Any) -> RecordPut:
        put.append(record.id)
        return await real(record, **options)

    monkeypatch.setattr(backend.maintenance, "put_record", put_record)
    counts = []
    for seconds in (0, 30, 61, 66, 71, 76):
        place.at(seconds)
        put.clear()
        await scheduler.fire_due()
        counts.append(len(set(put)))
    assert counts == [450, 0, 200, 200, 50, 0]
    assert {one.condition for one in await list_all(scheduler)} == {"active"}


async def test_schedules_are_registered_again_in_a_backend_that_lost_its_data(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    await delete_schedule(place.backend, "report")
    place.at(30)
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 1


# By hand


async def test_what_is_added_by_hand_is_fired_by_everyone(place: Place) -> None:
    scheduler = await place.scheduler(owner="any")
    added = await scheduler.processor.schedules.add(
        "clean-up", "@every 5m", "report", '{"kind": "clean-up"}', queue="low", overlap="skip"
    )
    assert (added.condition, added.owner, added.overlap) == ("active", "", "skip")
    await scheduler.fire_due()
    place.at(300)
    assert await scheduler.fire_due() == 1
    (made,) = await place.jobs()
    assert (made.id, made.queue) == ("clean-up:2026-01-01T00:05:00Z", "low")
    await scheduler.processor.schedules.remove("clean-up")
    place.at(600)
    assert await scheduler.fire_due() == 0
    with pytest.raises(ScheduleNotFound):
        await scheduler.processor.schedules.get("clean-up")


async def test_what_no_code_declares_counts_for_the_limits_of_its_job(place: Place) -> None:
    """A scheduler that has the handler adds the keys; with one that has none, there are none."""
    task = TaskSettings(name="task", cron="* * * * *", job_name="sync", payload='{"customer":"b"}')

    def declare(scheduler: Scheduler) -> None:
        @scheduler.processor.job(name="sync", limits=[Limit(1, key="customer")])
        async def sync(customer: str) -> None: ...

        scheduler.add_tasks(SchedulerSettings(tasks=(task,)))

    scheduler = await place.scheduler(declare)
    await scheduler.processor.schedules.add("by-hand", "@every 60s", "sync", '{"customer":"a"}')
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 2
    await scheduler.processor.schedules.run_now("by-hand")
    keys = [made.options.limit_keys for made in await place.jobs()]
    assert sorted(keys, key=str) == [{"sync:customer": key} for key in "aab"]


async def test_what_code_declares_is_neither_replaced_nor_removed_by_hand(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    with pytest.raises(DefinitionError, match="declared by the code of 'nimburion'"):
        await scheduler.processor.schedules.add("report", "@hourly", "report")
    with pytest.raises(DefinitionError, match="pause the schedule"):
        await scheduler.processor.schedules.remove("report")
    place.at(DAY)
    await scheduler.processor.schedules.remove("report")


async def test_run_now_is_beside_the_ticks_and_in_the_history(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    place.at(60)
    await scheduler.fire_due()
    extra = await scheduler.processor.schedules.run_now("report")
    assert extra == "report:now:1767225660000"
    kept = await scheduler.processor.schedules.history("report")
    assert [one.id for one in kept] == [extra, *at("01T00:01")]
    await scheduler.processor.drain()
    info = await scheduler.processor.schedules.get("report")
    assert (info.last_tick, info.last_state) == (1_767_225_660.0, State.COMPLETED)


def report_of(tick: datetime) -> Report:
    return Report(kind=f"{tick:%H:%M:%S}")


def computed(scheduler: Scheduler) -> object:
    return scheduler.schedule("@daily", report_of, name="report", priority=9)


async def test_run_now_of_a_computed_job_is_done_by_who_declares_it(place: Place) -> None:
    declaring, second = await place.scheduler(computed), await place.scheduler(computed)
    other = await place.scheduler(owner="other")
    for scheduler in (declaring, second, other):
        await scheduler.fire_due()
    by_hand = schedules.Schedules(other.processor)
    place.at(10)
    extra = await by_hand.run_now("report")
    assert extra == "report:now:1767225610000"
    assert [await one.fire_due() for one in (other, second, declaring)] == [0, 1, 0]
    (made,) = await place.jobs()
    assert (made.id, made.payload, made.priority) == (extra, b'{"kind":"00:00:10"}', 9)
    assert made.options.headers["nimburion-schedule"] == "report"
    assert [one.id for one in await by_hand.history("report")] == [extra]
    assert [info.name async for info in by_hand.list()] == ["report"]
    assert len(await list_schedules(other.processor.backend)) == 1


async def test_run_now_of_a_computed_job_with_an_id_makes_one_job(place: Place) -> None:
    scheduler = await place.scheduler(computed)
    await scheduler.fire_due()
    for seconds in (10, 20):
        place.at(seconds)
        assert await scheduler.processor.schedules.run_now("report", job_id="mine") == "mine"
        assert (await list_all(scheduler))[0].condition == "active"
        await scheduler.fire_due()
    assert await place.ids() == ["mine"]


async def test_run_now_needs_a_scheduler_that_computes_the_job(place: Place) -> None:
    scheduler = await place.scheduler(computed)
    await scheduler.fire_due()
    place.at(HOUR)
    with pytest.raises(DefinitionError, match="start a worker of the application"):
        await scheduler.processor.schedules.run_now("report")


async def test_a_job_that_cannot_be_computed_is_requested_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: datetime) -> Report:
        raise ZeroDivisionError

    scheduler = await place.scheduler(lambda one: one.schedule("@daily", broken, name="report"))
    await scheduler.fire_due()
    await scheduler.processor.schedules.run_now("report")
    for seconds in (10, 20):
        place.at(seconds)
        assert await scheduler.fire_due() == 0
    assert caplog.text.count("the job could not be built") == 1
    assert len(await list_schedules(scheduler.processor.backend)) == 1


async def test_run_now_with_an_id_makes_one_job(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    for _ in range(2):
        assert await scheduler.processor.schedules.run_now("report", job_id="mine") == "mine"
    assert await scheduler.processor.pending_count() == 1


async def test_run_now_reports_a_job_that_is_not_stored(place: Place) -> None:
    scheduler = await place.scheduler(each_minute(unique_key="report"))
    await scheduler.fire_due()
    await scheduler.processor.schedules.run_now("report")
    place.at(1)
    with pytest.raises(DuplicateJob):
        await scheduler.processor.schedules.run_now("report")


async def test_schedules_are_listed_in_pages(place: Place) -> None:
    scheduler = await place.scheduler()
    for name in ("b", "a", "c"):
        await scheduler.processor.schedules.add(name, "@daily", "report")
    first = [one async for one in scheduler.processor.schedules.list(1, limit=2)]
    second = [one async for one in scheduler.processor.schedules.list(1, after=first[-1].name)]
    assert [[info.name for info in page] for page in (first, second)] == [["a", "b"], ["c"]]


async def test_history_finds_the_jobs_of_ticks_behind_many_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = await place.scheduler(each_minute())
    for minute in range(4):
        place.at(minute * MINUTE)
        await scheduler.fire_due()
    monkeypatch.setattr(schedules, "_MAX_SCANNED", 20)
    await scheduler.processor.enqueue_many([Report(kind=f"{n}") for n in range(30)])
    found = await scheduler.processor.schedules.history("report", 2)
    assert [one.id for one in found] == at("01T00:03", "01T00:02")
    assert len(await scheduler.processor.schedules.history("report")) == 3


async def test_what_would_never_tick_is_not_added(place: Place) -> None:
    scheduler = await place.scheduler()
    with pytest.raises(DefinitionError, match="would never tick: @at 2025-12-31T23:59:59"):
        await scheduler.processor.schedules.add("late", "@at 2025-12-31T23:59:59Z", "report")
    await scheduler.processor.schedules.add("soon", "@at 2026-01-01T00:00:01Z", "report")
    assert [one.name for one in await list_all(scheduler)] == ["soon"]


async def test_what_this_version_cannot_read_is_left_alone(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    await put_schedule(place.backend, ScheduleRecord(name="future", spec=b'{"trigger": 7}'))
    await put_schedule(
        place.backend, ScheduleRecord(name="odd", spec=b'{"trigger": "0 0 W * *", "job": "x"}')
    )
    scheduler = await place.scheduler(each_minute())
    await scheduler.fire_due()
    place.at(60)
    assert await scheduler.fire_due() == 1
    conditions = {one.name: one.condition for one in await list_all(scheduler)}
    assert conditions == {"future": "unreadable", "odd": "unreadable", "report": "active"}
    assert caplog.text.count("schedule 'future' is not fired here") == 1


# Declaring


def a_scheduler() -> Scheduler:
    from nimburion.backends.memory import MemoryBackend

    return Scheduler(Processor(MemoryBackend()))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"misfire": "later"}, "misfire must be one of skip, fire_once, catch_up, not 'later'"),
        ({"overlap": "queue"}, "overlap must be one of"),
        ({"timezone": "Mars"}, "there is no time zone"),
        ({"timezne": "UTC"}, "there is no option 'timezne'; did you mean 'timezone'?"),
        ({"name": "a b"}, "the name of a schedule must be"),
        (
            {"name": "a" * 101},
            "must be 1-100 characters of A-Z a-z 0-9 _ . : -, not 101 characters",
        ),
        ({"jitter": -1}, "jitter must be 0 seconds or more, not -1"),
        ({"start": datetime(2026, 1, 1)}, "start must be a datetime with a time zone"),  # noqa: DTZ001
        ({"priority": 11}, "priority must be from 0 to 9"),
        ({"queue": "a b"}, "queue must be"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_declared(
    options: ScheduleOptions, problem: str
) -> None:
    with pytest.raises(DefinitionError, match=problem):
        a_scheduler().schedule("@daily", Report(), **options)


def test_a_number_is_no_interval() -> None:
    when: Any = 3600
    with pytest.raises(
        DefinitionError, match=r"like '@every 1h' or timedelta\(hours=1\).* not 3600"
    ):
        a_scheduler().schedule(when, Report())


def test_a_function_that_needs_arguments_is_scheduled_with_them() -> None:
    @job
    def archive(year: int) -> None: ...

    with pytest.raises(
        DefinitionError,
        match=r"job 'archive': missing required argument 'year'; schedule archive\.job\(…\)",
    ):
        a_scheduler().schedule("@daily", archive)  # type: ignore[arg-type]


def test_what_is_no_job_is_refused() -> None:
    with pytest.raises(DefinitionError, match="is not a job"):
        a_scheduler().schedule("@daily", 7)  # type: ignore[call-overload]


def test_a_name_is_declared_once() -> None:
    scheduler = a_scheduler()
    assert scheduler.schedule("@daily", Report()) == "report"
    with pytest.raises(DefinitionError, match="give this one another name="):
        scheduler.schedule("@hourly", Report())
    assert scheduler.schedule("@hourly", Report(), name="hourly") == "hourly"


def test_the_form_of_a_decorator() -> None:
    scheduler = a_scheduler()

    @scheduler.schedule("@hourly")
    @job
    def clean_up() -> None: ...

    @scheduler.schedule("@daily", name="computed")
    def for_day(tick: datetime) -> Report:
        return Report(kind=f"{tick:%A}")

    scheduler.schedule("@weekly")(Report)
    assert scheduler.names == ["clean_up", "computed", "report"]
    assert for_day(datetime(2026, 1, 1, tzinfo=UTC)).kind == "Thursday"
    clean_up()


def test_tasks_of_the_configuration() -> None:
    scheduler = a_scheduler()
    task = TaskSettings(
        name="t", cron="0 2 * * *", job_name="report", payload='{"kind": "x"}', expires=600.0
    )
    scheduler.add_tasks(SchedulerSettings(tasks=(task,)))
    assert scheduler.names == ["t"]
    assert scheduler._declared["t"].spec.options.expires == 600.0
    wrong = TaskSettings(name="w", cron="0 26 * * *", job_name="report")
    with pytest.raises(
        DefinitionError, match=r"scheduler task 'w': .* field 2 \(hour\), column 3, '26'"
    ):
        scheduler.add_tasks(SchedulerSettings(tasks=(wrong,)))


# Coming and going


async def test_it_starts_and_stops_with_the_worker(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    processor = scheduler.processor
    await processor.start()
    assert scheduler.running
    with pytest.raises(DefinitionError, match="before the scheduler is started"):
        scheduler.schedule("@daily", Report(), name="late")
    with pytest.raises(DefinitionError, match="before the processor is started"):
        Scheduler(processor)
    await processor.stop(0.0)
    assert not scheduler.running


async def test_alone_it_runs_without_a_worker(place: Place) -> None:
    scheduler = await place.scheduler(each_minute())
    await scheduler.start()
    await scheduler.start()
    await scheduler.stop()
    await scheduler.stop()
    await scheduler.processor.close()
    with pytest.raises(NotOpen):
        await scheduler.processor.pending_count()
