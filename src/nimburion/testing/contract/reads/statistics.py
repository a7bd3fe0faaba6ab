"""Statistics: absolute counters by source, interval, queue and name."""

from __future__ import annotations

import pytest

from nimburion.core.errors import InvalidJob
from nimburion.core.maintenance import Retention
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import (
    MERGE_AFTER,
    STEPS,
    Counters,
    Statistics,
)
from nimburion.testing.contract.harness import Harness


def make_row(
    start: float,
    counters: Counters | None = None,
    *,
    step: int = 60,
    queue: str = "default",
    name: str = "mail",
) -> Statistics:
    """Return counters of the interval that contains `start`; one started attempt by default."""
    return Statistics(
        step=step,
        start=int(start) // step * step,
        queue=queue,
        name=name,
        counters=counters or Counters(started=1),
    )


async def read_all(harness: Harness, step: int = 60) -> list[Statistics]:
    """Return all statistics around the current time."""
    now = harness.clock.now()
    return await harness.backend.reads.list_statistics(now - 100 * step, now + 100 * step, step)


class StatisticsCases:
    """`put_statistics` and `list_statistics`."""

    async def test_statistics_are_returned_as_stored(self, harness: Harness) -> None:
        row = make_row(harness.clock.now(), Counters(enqueued=3, started=2, completed=1, retried=1))
        for seconds in (0.0, 0.000_3, 0.2, 0.2, 1.0):
            row.counters.wait.observe(seconds)
        row.counters.wait.observe(99_999.0)
        row.counters.run.observe(5.0)
        await harness.backend.consuming.put_statistics("one", [row])
        assert await read_all(harness) == [row]

    async def test_a_repeated_put_of_statistics_changes_nothing(self, harness: Harness) -> None:
        rows = [make_row(harness.clock.now(), Counters(completed=2))]
        await harness.backend.consuming.put_statistics("one", rows)
        await harness.backend.consuming.put_statistics("one", rows)
        assert await read_all(harness) == rows

    async def test_a_later_put_of_a_source_replaces_its_counters(self, harness: Harness) -> None:
        now = harness.clock.now()
        await harness.backend.consuming.put_statistics(
            "one", [make_row(now, Counters(started=5, failed=1))]
        )
        await harness.backend.consuming.put_statistics("one", [make_row(now, Counters(started=7))])
        assert await read_all(harness) == [make_row(now, Counters(started=7))]

    async def test_the_counters_of_all_sources_are_added_up(self, harness: Harness) -> None:
        now = harness.clock.now()
        for source, seconds in (("one", 0.002), ("two", 40.0)):
            row = make_row(now, Counters(completed=2, cancelled=1, rescued=3))
            row.counters.run.observe(seconds)
            await harness.backend.consuming.put_statistics(source, [row])
        expected = make_row(now, Counters(completed=4, cancelled=2, rescued=6))
        expected.counters.run.observe(0.002)
        expected.counters.run.observe(40.0)
        assert await read_all(harness) == [expected]

    async def test_statistics_are_ordered_by_start_queue_and_name(self, harness: Harness) -> None:
        now = harness.clock.now()
        rows = [
            make_row(now - 60, Counters(started=1), queue="b", name="a"),
            make_row(now, Counters(started=2), queue="a", name="z"),
            make_row(now, Counters(started=3), queue="b", name="a"),
            make_row(now, Counters(started=4), queue="b", name="b"),
        ]
        await harness.backend.consuming.put_statistics("one", [rows[3], rows[0], rows[2], rows[1]])
        assert await read_all(harness) == rows

    async def test_statistics_are_read_by_start_step_queue_and_name(self, harness: Harness) -> None:
        start = int(harness.clock.now()) // 3600 * 3600
        rows = {
            (step, queue, name): make_row(
                start, Counters(started=1), step=step, queue=queue, name=name
            )
            for step in STEPS
            for queue in ("red", "blue")
            for name in ("a", "b")
        }
        await harness.backend.consuming.put_statistics("one", list(rows.values()))
        read = harness.backend.reads.list_statistics
        assert await read(start, start + 1, 600, queue="red", name="b") == [rows[600, "red", "b"]]
        assert len(await read(start, start + 1, 3600, queue="blue")) == 2
        assert len(await read(start, start + 1, 60, name="a")) == 2
        assert await read(start - 60, start, 60) == []
        assert await read(start + 1, start + 61, 60) == []

    async def test_prune_deletes_statistics_by_their_step(self, harness: Harness) -> None:
        now = harness.clock.now()
        await harness.backend.consuming.put_statistics(
            "one", [make_row(now, step=s) for s in STEPS]
        )
        for step, seconds in STEPS.items():
            harness.clock.advance(now + seconds - harness.clock.now() - step)
            await harness.backend.maintenance.prune(Retention(), 10)
            assert len(await harness.backend.reads.list_statistics(now - step, now + 1, step)) == 1
            harness.clock.advance(2.0 * step + 1.0)
            await harness.backend.maintenance.prune(Retention(), 10)
            assert await harness.backend.reads.list_statistics(now - step, now + 1, step) == []

    async def test_a_step_or_range_that_is_not_kept_is_refused(self, harness: Harness) -> None:
        now = harness.clock.now()
        with pytest.raises(InvalidJob, match="step"):
            await harness.backend.reads.list_statistics(now - 60, now, 61)
        with pytest.raises(InvalidJob, match="shorter range"):
            await harness.backend.reads.list_statistics(0.0, now, 60)

    async def test_no_statistics_change_nothing(self, harness: Harness) -> None:
        await harness.backend.consuming.put_statistics("one", [])
        assert await read_all(harness) == []

    async def test_prune_keeps_the_sums_of_all_sources(self, harness: Harness) -> None:
        now = harness.clock.now()
        for number in range(1, 5):
            rows = [
                make_row(now, Counters(started=number), step=step, name=name)
                for step in STEPS
                for name in ("a", "b")
            ]
            for row in rows:
                row.counters.wait.observe_sorted([0.5] * number + [128.0 * number])
            await harness.backend.consuming.put_statistics(f"source-{number}", rows)
        harness.clock.advance(3600.0 + MERGE_AFTER + 1.0)
        waits = Histogram()
        waits.observe_sorted([0.5] * 10 + [128.0, 256.0, 384.0, 512.0])
        for _ in range(2):
            await harness.backend.maintenance.prune(Retention(), 10)
            for step in STEPS:
                found = await harness.backend.reads.list_statistics(now - step, now + 1, step)
                assert [(row.name, row.counters.started) for row in found] == [("a", 10), ("b", 10)]
                assert [row.counters.wait for row in found] == [waits, waits]

    async def test_prune_leaves_young_statistics_to_their_sources(self, harness: Harness) -> None:
        now = harness.clock.now()
        await harness.backend.consuming.put_statistics("one", [make_row(now, Counters(started=1))])
        await harness.backend.consuming.put_statistics("two", [make_row(now, Counters(started=2))])
        harness.clock.advance(60.0 + MERGE_AFTER / 2)
        await harness.backend.maintenance.prune(Retention(), 10)
        await harness.backend.consuming.put_statistics("one", [make_row(now, Counters(started=5))])
        (row,) = await harness.backend.reads.list_statistics(now - 60, now + 1, 60)
        assert row.counters.started == 7
