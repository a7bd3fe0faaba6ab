"""Progress: the attempt continues, the lease stays valid, and only its holder may report."""

from __future__ import annotations

import pytest

from nimburion.core.job import Progress, State
from nimburion.core.settlement import Completed, Progressed, Retried, Settled
from nimburion.testing.contract.consuming.concurrency_limits import ENDING
from nimburion.testing.contract.harness import FAILURE, Harness


class Reporting:
    """`Progressed`."""

    async def test_progress_is_read_as_it_was_reported(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        assert (await harness.backend.reads.get_job("a")).progress is None
        assert await worker.settle(Progressed(lease, 0.25, "a quärter")) == [Settled.DONE]
        record = await harness.backend.reads.get_job("a")
        assert record.progress == Progress(0.25, "a quärter")
        assert (record.state, record.failures) == (State.PROCESSING, 0)

    async def test_the_latest_report_counts(self, harness: Harness) -> None:
        """It may be lower than the report before; the backend does not check it."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Progressed(lease, 0.9, "nearly"), Progressed(lease, 0.1))
        assert (await harness.backend.reads.get_job("a")).progress == Progress(0.1, "")

    async def test_progress_and_completion_may_go_together(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        results = await worker.settle(Progressed(lease, 1.0, "all"), Completed(lease))
        assert results == [Settled.DONE, Settled.DONE]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.progress) == (State.COMPLETED, Progress(1.0, "all"))

    async def test_progress_after_the_completion_writes_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        results = await worker.settle(Completed(lease), Progressed(lease, 0.5))
        assert results == [Settled.DONE, Settled.ALREADY]
        assert (await harness.backend.reads.get_job("a")).progress is None

    async def test_progress_of_a_lost_attempt_writes_nothing(self, harness: Harness) -> None:
        """The progress that the new holder reported stays."""
        await harness.add("a")
        first = await harness.worker()
        old = (await first.take_one()).lease
        await harness.lose(first)
        second = await harness.worker()
        await second.settle(Progressed((await second.take_one()).lease, 0.1, "second"))
        third = await harness.worker()
        assert await third.settle(Progressed(old, 0.9, "first")) == [Settled.STALE]
        assert (await harness.backend.reads.get_job("a")).progress == Progress(0.1, "second")

    async def test_progress_is_no_settlement_of_the_lease(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Progressed(lease, 0.5))
        assert await worker.settle(Retried(lease, 5.0, FAILURE)) == [Settled.DONE]

    async def test_a_repeated_exchange_reports_once(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Progressed(lease, 0.5))
        again = await harness.backend.consuming.exchange(
            worker.id, worker.number, [Progressed(lease, 0.7)], worker.want(0)
        )
        assert again.results == [Settled.DONE]
        assert (await harness.backend.reads.get_job("a")).progress == Progress(0.5, "")

    @pytest.mark.parametrize("how", ENDING)
    async def test_the_last_report_outlives_the_attempt(self, harness: Harness, how: str) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await worker.settle(Progressed(lease, 0.4, "so far"))
        await worker.settle(ENDING[how](lease))
        assert (await harness.backend.reads.get_job("a")).progress == Progress(0.4, "so far")

    async def test_the_last_report_outlives_the_worker(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Progressed((await worker.take_one()).lease, 0.4))
        await harness.lose(worker)
        assert (await harness.backend.reads.get_job("a")).progress == Progress(0.4)

    async def test_a_report_changes_nothing_else(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        before = await harness.backend.reads.get_job("a")
        harness.clock.advance(1.0)
        await worker.settle(Progressed(lease, 0.5))
        after = await harness.backend.reads.get_job("a")
        assert after.progress == Progress(0.5, "")
        assert {f for f in after.__struct_fields__ if getattr(after, f) != getattr(before, f)} == {
            "progress"
        }
