"""Schedules: stored unchanged, and each tick decided once."""

from __future__ import annotations

from typing import Literal

import pytest

from nimburion.core.job import JobOptions, State
from nimburion.core.queries import EVERY_JOB
from nimburion.core.schedules import (
    Fired,
    Overlap,
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
)
from nimburion.core.settlement import Completed, Failed, Released, Retried, Settlement
from nimburion.testing.contract.changing import delete
from nimburion.testing.contract.harness import FAILURE, Harness

NIGHTLY = ScheduleRecord(name="nightly", spec=b'{"cron": "0 2 * * *"}', owner="app")

NOT_STARTED, STARTED, ENDED = "not started", "started", "ended"
PREVIOUS = {
    "pending": NOT_STARTED,
    "scheduled": NOT_STARTED,
    "released": NOT_STARTED,
    "processing": STARTED,
    "retrying": STARTED,
    "completed": ENDED,
    "failed": ENDED,
    "cancelled": ENDED,
    "forgotten": ENDED,
}
"""Places of the previous job of a schedule, and their meaning for the next tick."""
OVERLAPS: dict[tuple[Overlap, str], Literal["fired", "skipped"]] = {
    ("allow", NOT_STARTED): "fired",
    ("allow", STARTED): "fired",
    ("allow", ENDED): "fired",
    ("skip", NOT_STARTED): "skipped",
    ("skip", STARTED): "skipped",
    ("skip", ENDED): "fired",
    ("queue_one", NOT_STARTED): "skipped",
    ("queue_one", STARTED): "fired",
    ("queue_one", ENDED): "fired",
    ("cancel_previous", NOT_STARTED): "fired",
    ("cancel_previous", STARTED): "fired",
    ("cancel_previous", ENDED): "fired",
}


async def fire(
    harness: Harness, expected: float | None, tick: float, job_id: str, overlap: Overlap = "allow"
) -> Fired:
    """Decide a tick of the nightly schedule."""
    return await harness.backend.producing.fire(
        "nightly", expected, tick, harness.job(job_id), overlap
    )


async def the_schedule(harness: Harness) -> ScheduleRecord:
    """Return the only schedule."""
    (schedule,) = await list_schedules(harness.backend)
    return schedule


async def move_previous(harness: Harness, to: str) -> None:
    """Move the previous job, which is pending, to the given place."""
    if to in {"pending", "scheduled"}:
        return
    if to in {"cancelled", "forgotten"}:
        await harness.backend.producing.cancel("previous")
        if to == "forgotten":
            await delete(harness.backend, EVERY_JOB, 10)
        return
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    settlements: dict[str, Settlement] = {
        "released": Released(lease),
        "retrying": Retried(lease, 60.0, FAILURE),
        "completed": Completed(lease),
        "failed": Failed(lease, "permanent", FAILURE),
    }
    if to in settlements:
        await worker.settle(settlements[to])


class Fire:
    """`fire`."""

    async def test_a_tick_enqueues_its_job_and_moves_the_last_tick(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        assert await fire(harness, None, 100.0, "one") == Fired("fired", "one")
        assert await harness.state("one") is State.PENDING
        schedule = await the_schedule(harness)
        assert (schedule.last_tick, schedule.last_job) == (100.0, "one")

    async def test_a_tick_changes_nothing_else_of_the_schedule(self, harness: Harness) -> None:
        """The JSON of the scheduler stays as it is, byte for byte."""
        spec = b'{ "cron":"* * * * *",\n "args": {"\xc3\xa4": "\\u00e4 / \\u0000", "l": []} }'
        schedule = ScheduleRecord(name="nightly", spec=spec, owner="me ✓")
        await put_schedule(harness.backend, schedule)
        added = (await the_schedule(harness)).version
        await fire(harness, None, 100.0, "one")
        assert await the_schedule(harness) == ScheduleRecord(
            name="nightly",
            spec=spec,
            owner="me ✓",
            last_tick=100.0,
            last_job="one",
            version=added + 1,
        )
        await pause_schedule(harness.backend, "nightly", paused=True)
        assert (await fire(harness, 100.0, 200.0, "two")).outcome == "paused"
        await pause_schedule(harness.backend, "nightly", paused=False)
        assert (await fire(harness, 100.0, 200.0, "two")).outcome == "fired"
        assert (await the_schedule(harness)).spec == spec

    async def test_a_schedule_that_is_put_again_keeps_its_ticks(self, harness: Harness) -> None:
        """A deployment stores all its schedules again; none fires again."""
        await put_schedule(harness.backend, NIGHTLY)
        await fire(harness, None, 100.0, "one")
        await put_schedule(harness.backend, NIGHTLY)
        assert (await fire(harness, None, 100.0, "one")).outcome == "moved"
        await delete_schedule(harness.backend, "nightly")
        await put_schedule(harness.backend, NIGHTLY)
        assert (await the_schedule(harness)).last_tick is None

    async def test_ticks_follow_each_other(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await fire(harness, None, 100.0, "one")
        assert await fire(harness, 100.0, 200.0, "two") == Fired("fired", "two")
        assert (await the_schedule(harness)).last_tick == 200.0

    @pytest.mark.parametrize("expected", [None, 99.0, 100.001, 200.0])
    async def test_a_tick_that_another_scheduler_fired_enqueues_nothing(
        self, harness: Harness, expected: float | None
    ) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await fire(harness, None, 100.0, "one")
        before = await the_schedule(harness)
        assert await fire(harness, expected, 200.0, "two") == Fired("moved")
        assert await the_schedule(harness) == before
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_the_same_tick_fires_once(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        outcomes = [(await fire(harness, None, 100.0, f"{n}")).outcome for n in range(4)]
        assert outcomes == ["fired", "moved", "moved", "moved"]

    async def test_ticks_are_compared_exactly(self, harness: Harness) -> None:
        tick = 1_750_000_000.1234567
        await put_schedule(harness.backend, NIGHTLY)
        await fire(harness, None, tick, "one")
        assert (await the_schedule(harness)).last_tick == tick
        assert (await fire(harness, tick, tick + 60.0, "two")).outcome == "fired"

    async def test_a_missing_schedule_fires_nothing(self, harness: Harness) -> None:
        assert await fire(harness, None, 100.0, "one") == Fired("missing")
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    async def test_a_paused_schedule_fires_nothing_and_does_not_move(
        self, harness: Harness
    ) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await pause_schedule(harness.backend, "nightly", paused=True)
        assert await fire(harness, None, 100.0, "one") == Fired("paused")
        assert (await the_schedule(harness)).last_tick is None
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    @pytest.mark.parametrize("previous", PREVIOUS)
    @pytest.mark.parametrize("overlap", ["allow", "skip", "queue_one", "cancel_previous"])
    async def test_overlap_with_the_previous_job(
        self, harness: Harness, overlap: Overlap, previous: str
    ) -> None:
        """The last tick always moves; `last_job` changes only with a new job."""
        await put_schedule(harness.backend, NIGHTLY)
        after = 60.0 if previous == "scheduled" else 0.0
        first = harness.job("previous", after=after)
        await harness.backend.producing.fire("nightly", None, 100.0, first, "allow")
        await move_previous(harness, previous)
        expected = OVERLAPS[overlap, PREVIOUS[previous]]
        fired = await fire(harness, 100.0, 200.0, "next", overlap)
        assert fired == Fired(expected, "next" if expected == "fired" else None)
        schedule = await the_schedule(harness)
        assert schedule.last_tick == 200.0
        assert schedule.last_job == ("next" if expected == "fired" else "previous")

    async def test_cancel_previous_ends_what_waits(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await fire(harness, None, 100.0, "one")
        await fire(harness, 100.0, 200.0, "two", "cancel_previous")
        assert await harness.state("one") is State.CANCELLED
        assert await harness.state("two") is State.PENDING

    async def test_cancel_previous_requests_the_cancel_of_a_job(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await fire(harness, None, 100.0, "one")
        worker = await harness.worker()
        await worker.take_one()
        await fire(harness, 100.0, 200.0, "two", "cancel_previous")
        assert (await harness.backend.reads.get_job("one")).cancel_requested is True

    async def test_a_unique_key_that_is_taken_skips_the_tick(self, harness: Harness) -> None:
        options = JobOptions(unique_key="k")
        await harness.put(harness.job("holder", options=options))
        await put_schedule(harness.backend, NIGHTLY)
        job = harness.job("one", options=options)
        assert await harness.backend.producing.fire("nightly", None, 100.0, job, "allow") == Fired(
            "skipped"
        )
        schedule = await the_schedule(harness)
        assert (schedule.last_tick, schedule.last_job) == (100.0, None)

    async def test_a_job_that_is_there_already_counts_as_fired(self, harness: Harness) -> None:
        """Same id and body: a scheduler that derives ids from ticks may repeat the call."""
        await harness.add("one")
        await put_schedule(harness.backend, NIGHTLY)
        assert await fire(harness, None, 100.0, "one") == Fired("fired", "one")
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_schedules_do_not_mix(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await put_schedule(harness.backend, ScheduleRecord(name="hourly", spec=b"{}"))
        await fire(harness, None, 100.0, "one")
        other, nightly = await list_schedules(harness.backend)
        assert (other.last_tick, nightly.last_tick) == (None, 100.0)

    async def test_a_skipped_tick_is_measured_by_the_last_job_that_was_stored(
        self, harness: Harness
    ) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await harness.backend.producing.fire("nightly", None, 60.0, harness.job("first"), "skip")
        await harness.backend.producing.fire("nightly", 60.0, 120.0, harness.job("second"), "skip")
        await harness.backend.producing.cancel("first")
        fired = await harness.backend.producing.fire(
            "nightly", 120.0, 180.0, harness.job("third"), "skip"
        )
        assert fired == Fired("fired", "third")

    async def test_a_tick_may_take_the_holder_of_its_key_for_its_job(
        self, harness: Harness
    ) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await harness.put(harness.job("holder", options=JobOptions(unique_key="k")))
        lenient = JobOptions(unique_key="k", on_duplicate="existing")
        job = harness.job("a", options=lenient)
        fired = await harness.backend.producing.fire("nightly", None, 60.0, job, "allow")
        assert fired == Fired("fired", "holder")
        assert (await the_schedule(harness)).last_job == "holder"

    async def test_a_tick_whose_id_has_another_body_passes(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await harness.put(harness.job("a", payload=b"[]"))
        fired = await harness.backend.producing.fire(
            "nightly", None, 60.0, harness.job("a"), "allow"
        )
        assert fired == Fired("skipped")
        assert (await the_schedule(harness)).last_tick == 60.0
        assert (await harness.backend.reads.get_job("a")).payload == b"[]"

    async def test_the_other_rules_cancel_nothing(self, harness: Harness) -> None:
        await put_schedule(harness.backend, NIGHTLY)
        await harness.backend.producing.fire("nightly", None, 60.0, harness.job("first"), "allow")
        await harness.backend.producing.fire("nightly", 60.0, 120.0, harness.job("second"), "allow")
        await harness.backend.producing.fire("nightly", 120.0, 180.0, harness.job("third"), "skip")
        assert await harness.state("first") is State.PENDING
