"""`prune`: deletes old finished jobs, up to a maximum per call, and no unfinished job."""

from __future__ import annotations

import pytest

from nimburion.core.errors import JobNotFound
from nimburion.core.job import Enqueued, JobOptions, State
from nimburion.core.maintenance import Retention
from nimburion.core.settlement import Cancelled, Completed, Failed
from nimburion.testing.contract.harness import FAILURE, Harness
from nimburion.testing.contract.job_states import JOB_STATES

FOREVER = Retention(completed=None, failed=None, results=None)
A_MINUTE = Retention(completed=60.0, failed=60.0, results=60.0)
NOTHING_KEPT = Retention(completed=0.0, completed_max=0, failed=0.0, results=0.0)


async def complete(harness: Harness, *job_ids: str, result: bytes | None = b"1") -> None:
    """Enqueue and complete jobs, one per second."""
    await harness.add(*job_ids)
    worker = await harness.worker()
    for delivery in await worker.take(len(job_ids)):
        await worker.settle(Completed(delivery.lease, result))
        harness.clock.advance(1.0)
    await worker.close()


async def kept(harness: Harness) -> set[str]:
    """Return the ids of the stored jobs."""
    return {record.id for record in (await harness.backend.reads.list_jobs()).jobs}


class Pruning:
    """`prune`."""

    async def test_nothing_is_forgotten_before_its_time(self, harness: Harness) -> None:
        await complete(harness, "a")
        keep = Retention(completed=60.0, failed=None, results=None)
        harness.clock.advance(59.0)
        assert await harness.backend.maintenance.prune(keep, 100) == 0
        harness.clock.advance(1.001)
        assert await harness.backend.maintenance.prune(keep, 100) == 1
        with pytest.raises(JobNotFound):
            await harness.backend.reads.get_job("a")

    @pytest.mark.parametrize("state", [s for s in JOB_STATES if s.split(",")[0] in {
        "pending", "scheduled", "processing", "retrying"}])  # fmt: skip
    async def test_what_is_unfinished_is_never_pruned(self, harness: Harness, state: str) -> None:
        job_id = await JOB_STATES[state](harness)
        harness.clock.advance(1_000_000_000.0)
        before = await harness.backend.reads.get_job(job_id)
        assert await harness.backend.maintenance.prune(NOTHING_KEPT, 100) == 0
        assert await harness.backend.reads.get_job(job_id) == before

    async def test_failed_jobs_are_kept_by_their_own_span(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        worker = await harness.worker()
        a, b, c = [delivery.lease for delivery in await worker.take(3)]
        await worker.settle(Completed(a), Failed(b, "permanent", FAILURE), Cancelled(c))
        harness.clock.advance(100.0)
        assert (
            await harness.backend.maintenance.prune(Retention(completed=50.0, failed=500.0), 100)
            == 2
        )
        assert await kept(harness) == {"b"}
        harness.clock.advance(401.0)
        assert (
            await harness.backend.maintenance.prune(Retention(completed=50.0, failed=500.0), 100)
            == 1
        )
        assert await kept(harness) == set()

    async def test_none_keeps_for_ever(self, harness: Harness) -> None:
        await complete(harness, "a")
        harness.clock.advance(1_000_000_000.0)
        assert await harness.backend.maintenance.prune(FOREVER, 100) == 0
        assert (await harness.backend.reads.get_job("a")).result == b"1"

    async def test_the_oldest_go_first_when_there_are_too_many(self, harness: Harness) -> None:
        """Failed jobs do not count."""
        await complete(harness, "a", "b", "c", "d")
        await harness.add("e")
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        keep = Retention(completed=None, completed_max=2, failed=None, results=None)
        assert await harness.backend.maintenance.prune(keep, 100) == 2
        assert await kept(harness) == {"c", "d", "e"}
        assert await harness.backend.maintenance.prune(keep, 100) == 0

    async def test_oldest_means_finished_first(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        a, b = [delivery.lease for delivery in await worker.take(2)]
        await worker.settle(Completed(b))
        harness.clock.advance(1.0)
        await worker.settle(Completed(a))
        keep = Retention(completed=None, completed_max=1, failed=None, results=None)
        assert await harness.backend.maintenance.prune(keep, 100) == 1
        assert await kept(harness) == {"a"}

    async def test_results_go_before_their_records(self, harness: Harness) -> None:
        await complete(harness, "a")
        harness.clock.advance(100.0)
        assert (
            await harness.backend.maintenance.prune(Retention(completed=None, results=50.0), 100)
            == 1
        )
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.result) == (State.COMPLETED, None)
        assert (
            await harness.backend.maintenance.prune(Retention(completed=None, results=50.0), 100)
            == 0
        )

    async def test_a_record_without_a_result_is_no_result_to_prune(self, harness: Harness) -> None:
        await complete(harness, "a", result=None)
        harness.clock.advance(100.0)
        assert (
            await harness.backend.maintenance.prune(Retention(completed=None, results=50.0), 100)
            == 0
        )

    async def test_the_limit_holds_and_less_means_that_nothing_is_left(
        self, harness: Harness
    ) -> None:
        await complete(harness, *(f"{n}" for n in range(7)))
        harness.clock.advance(100.0)
        keep = Retention(completed=50.0, failed=None, results=None)
        assert [await harness.backend.maintenance.prune(keep, 3) for _ in range(3)] == [3, 3, 1]
        assert await kept(harness) == set()

    async def test_the_limit_spans_records_and_results(self, harness: Harness) -> None:
        await complete(harness, "a", "b")
        harness.clock.advance(100.0)
        await complete(harness, "c", "d")
        harness.clock.advance(20.0)
        keep = Retention(completed=50.0, failed=None, results=10.0)
        assert [await harness.backend.maintenance.prune(keep, 3) for _ in range(2)] == [3, 1]
        records = (await harness.backend.reads.list_jobs()).jobs
        assert [(record.id, record.result) for record in records] == [("d", None), ("c", None)]

    async def test_an_id_that_was_pruned_is_new_again(self, harness: Harness) -> None:
        await complete(harness, "a")
        harness.clock.advance(100.0)
        await harness.backend.maintenance.prune(Retention(completed=50.0), 100)
        await harness.put(harness.job("a", payload=b'{"other": 1}'))
        assert await harness.state("a") is State.PENDING

    async def test_pruning_does_not_bring_a_dead_session_back(self, harness: Harness) -> None:
        """The id of a session stays invalid for at least a week."""
        worker = await harness.worker()
        await harness.lose(worker)
        harness.clock.advance(3_600.0)
        await harness.backend.maintenance.prune(NOTHING_KEPT, 100)
        assert await harness.backend.reads.list_sessions() == []

    async def test_age_is_counted_from_the_end(self, harness: Harness) -> None:
        await harness.add("a")
        harness.clock.advance(10_000.0)
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        assert await harness.backend.maintenance.prune(A_MINUTE, 10) == 0

    async def test_pruning_an_empty_backend_deletes_nothing(self, harness: Harness) -> None:
        assert await harness.backend.maintenance.prune(Retention(), 10) == 0

    async def test_pruning_keeps_a_key_that_is_held_for_a_time(self, harness: Harness) -> None:
        options = JobOptions(unique_key="k", unique_for=1_000.0)
        await harness.put(harness.job("a", options=options))
        await harness.backend.producing.cancel("a")
        harness.clock.advance(100.0)
        assert await harness.backend.maintenance.prune(A_MINUTE, 10) == 1
        assert await harness.enqueue(harness.job("b", options=options)) == [Enqueued("a", "taken")]
        harness.clock.advance(900.0)
        assert await harness.enqueue(harness.job("b", options=options)) == [
            Enqueued("b", "created")
        ]

    async def test_a_result_as_old_as_it_may_be_stays(self, harness: Harness) -> None:
        await complete(harness, "a")
        harness.clock.advance(49.0)
        assert await harness.backend.maintenance.prune(Retention(results=50.0), 10) == 0
        assert (await harness.backend.reads.get_job("a")).result == b"1"
