"""Schedules: stored unchanged, replaced without losing what happened, paused and deleted."""

from __future__ import annotations

import msgspec
import pytest

from nimburion.core.errors import Unstorable
from nimburion.core.records import NewRecord, RecordPut
from nimburion.core.schedules import (
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
)
from nimburion.testing.contract.harness import Harness
from tests.overridden import OverridableBackend

NIGHTLY = ScheduleRecord(name="nightly", spec=b'{"cron": "0 2 * * *"}', owner="app")


async def get_only(harness: Harness) -> ScheduleRecord:
    """Return the only schedule."""
    (schedule,) = await list_schedules(harness.backend)
    return schedule


async def fire(harness: Harness, expected: float | None, tick: float, job_id: str) -> None:
    """Decide a tick of the nightly schedule."""
    await harness.backend.producing.fire("nightly", expected, tick, harness.job(job_id), "allow")


async def test_a_schedule_is_kept_as_it_is(harness: Harness) -> None:
    spec = b'{ "cron":"* * * * *",\n "args": {"\xc3\xa4": "\\u00e4"} }'
    record = ScheduleRecord(name="a", spec=spec, owner="me", paused=True, last_tick=7.25)
    await put_schedule(harness.backend, record)
    assert await get_only(harness) == msgspec.structs.replace(
        record, version=round(harness.clock.now() * 1e6)
    )


async def test_schedules_are_listed_by_name(harness: Harness) -> None:
    for name in ("b", "c", "a"):
        await put_schedule(harness.backend, ScheduleRecord(name=name, spec=b"{}"))
    names = [schedule.name for schedule in await list_schedules(harness.backend)]
    assert names == ["a", "b", "c"]


async def test_putting_again_replaces_the_spec_and_keeps_what_happened(harness: Harness) -> None:
    """A deployment stores all its schedules again; none fires again, and none is resumed."""
    await put_schedule(harness.backend, NIGHTLY)
    await fire(harness, None, 100.0, "one")
    await pause_schedule(harness.backend, "nightly", paused=True)
    await put_schedule(
        harness.backend,
        ScheduleRecord(name="nightly", spec=b"{}", owner="other", last_tick=5.0),
    )
    kept = await get_only(harness)
    assert (kept.spec, kept.owner, kept.paused) == (b"{}", "other", True)
    assert (kept.last_tick, kept.last_job) == (100.0, "one")


async def test_a_tick_that_is_decided_meanwhile_is_kept(harness: Harness) -> None:
    await put_schedule(harness.backend, NIGHTLY)
    read = await get_only(harness)
    await fire(harness, None, 100.0, "one")
    await put_schedule(harness.backend, msgspec.structs.replace(read, spec=b"{}"))
    kept = await get_only(harness)
    assert (kept.spec, kept.last_tick, kept.last_job) == (b"{}", 100.0, "one")


async def test_pausing_and_resuming(harness: Harness) -> None:
    await put_schedule(harness.backend, NIGHTLY)
    assert await pause_schedule(harness.backend, "nightly", paused=True) is True
    assert (await get_only(harness)).paused is True
    assert await pause_schedule(harness.backend, "nightly", paused=False) is True
    assert (await get_only(harness)).paused is False


async def test_a_pause_overwrites_no_tick_that_is_decided_meanwhile() -> None:
    class Racing(OverridableBackend):
        """A backend in which a tick is decided before the first write of a pause."""

        has_fired = False

        async def put_record(
            self, record: NewRecord, *, version: int | None = None, keep: int | None = None
        ) -> RecordPut:
            if version and not self.has_fired:
                self.has_fired = True
                job = Harness(clock=None, handles=[self]).job("one")  # type: ignore[arg-type]
                await self.fire("nightly", None, 100.0, job, "allow")
            return await super().put_record(record, version=version, keep=keep)

    backend = Racing()
    await put_schedule(backend, NIGHTLY)
    assert await pause_schedule(backend, "nightly", paused=True) is True
    (kept,) = await list_schedules(backend)
    assert (kept.paused, kept.last_tick) == (True, 100.0)


async def test_what_is_not_there_cannot_be_paused_or_deleted(harness: Harness) -> None:
    assert await pause_schedule(harness.backend, "unknown", paused=True) is False
    assert await delete_schedule(harness.backend, "unknown") is False


async def test_a_schedule_that_is_put_again_after_deleting_has_no_history(
    harness: Harness,
) -> None:
    await put_schedule(harness.backend, NIGHTLY)
    await fire(harness, None, 100.0, "one")
    read = await get_only(harness)
    assert await delete_schedule(harness.backend, "nightly") is True
    assert await delete_schedule(harness.backend, "nightly") is False
    assert await list_schedules(harness.backend) == []
    await put_schedule(harness.backend, read)
    version = round(harness.clock.now() * 1e6)
    assert await get_only(harness) == msgspec.structs.replace(NIGHTLY, version=version)


async def test_a_text_without_a_form_in_utf_8_is_refused(harness: Harness) -> None:
    with pytest.raises(Unstorable):
        await put_schedule(harness.backend, msgspec.structs.replace(NIGHTLY, owner="\ud800"))
    assert await list_schedules(harness.backend) == []
