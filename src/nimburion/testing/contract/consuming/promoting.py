"""Due times: delays, retries and snoozes follow the clock of the backend and never run early."""

from __future__ import annotations

import pytest

from nimburion.core.exchange import MAX_PROMOTED
from nimburion.core.job import State
from nimburion.core.maintenance import Promoted
from nimburion.core.settlement import Released, Retried
from nimburion.testing.contract.harness import FAILURE, Harness, ids


class Promoting:
    """`promote` and delays."""

    async def test_nothing_scheduled_promotes_nothing(self, harness: Harness) -> None:
        await harness.add("a")
        assert await harness.backend.consuming.promote(10) == Promoted(0, None)

    async def test_what_is_not_due_stays(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=10.0))
        due = harness.clock.now() + 10.0
        harness.clock.advance(9.999)
        assert await harness.backend.consuming.promote(10) == Promoted(0, due)
        assert await harness.state("a") is State.SCHEDULED
        assert await (await harness.worker()).take() == []

    async def test_what_is_due_becomes_reservable(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=10.0))
        harness.clock.advance(10.0)
        assert await harness.backend.consuming.promote(10) == Promoted(1, None)
        assert await harness.backend.consuming.promote(10) == Promoted(0, None)
        assert ids(await (await harness.worker()).take()) == ["a"]

    async def test_a_due_job_reads_as_pending_before_it_is_promoted(self, harness: Harness) -> None:
        """The state depends on the clock, not on the last call of `promote`."""
        await harness.put(harness.job("a", after=10.0))
        harness.clock.advance(10.0)
        assert await harness.state("a") is State.PENDING
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 1
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.size, queue.scheduled) == (1, 0)

    async def test_the_limit_holds_and_the_earliest_go_first(self, harness: Harness) -> None:
        for after in (3.0, 1.0, 5.0, 2.0, 4.0):
            await harness.put(harness.job(f"after-{after:.0f}", after=after))
        start = harness.clock.now()
        harness.clock.advance(5.0)
        assert await harness.backend.consuming.promote(2) == Promoted(2, start + 3.0)
        assert await harness.backend.consuming.promote(2) == Promoted(2, start + 5.0)
        assert await harness.backend.consuming.promote(2) == Promoted(1, None)

    async def test_next_due_is_the_earliest_of_all_queues(self, harness: Harness) -> None:
        start = harness.clock.now()
        await harness.put(harness.job(after=30.0, queue="red"))
        await harness.put(harness.job(after=20.0, queue="blue", name="post"))
        assert await harness.backend.consuming.promote(10) == Promoted(0, start + 20.0)

    @pytest.mark.parametrize("how", ["retried", "snoozed"])
    async def test_what_a_settlement_delays_is_never_early(
        self, harness: Harness, how: str
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        late = Retried(lease, 7.0, FAILURE) if how == "retried" else Released(lease, 7.0)
        await worker.settle(late)
        harness.clock.advance(6.999)
        await harness.backend.consuming.promote(10)
        assert await worker.take() == []
        harness.clock.advance(0.001)
        assert await harness.backend.consuming.promote(10) == Promoted(1, None)
        assert ids(await worker.take()) == ["a"]

    async def test_a_retry_that_is_due_is_still_retrying(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 5.0, FAILURE))
        harness.clock.advance(5.0)
        assert await harness.state("a") is State.RETRYING
        await harness.backend.consuming.promote(10)
        assert await harness.state("a") is State.RETRYING

    async def test_a_cancelled_job_is_not_promoted(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=5.0))
        await harness.backend.producing.cancel("a")
        assert await harness.backend.consuming.promote(10) == Promoted(0, None)
        harness.clock.advance(5.0)
        assert await harness.backend.consuming.promote(10) == Promoted(0, None)
        assert await (await harness.worker()).take() == []

    async def test_a_wall_clock_that_goes_back_makes_nothing_due(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=10.0))
        harness.clock.step_wall(-3_600.0)
        harness.clock.advance(10.0)
        assert (await harness.backend.consuming.promote(10)).count == 0
        assert await (await harness.worker()).take() == []
        harness.clock.step_wall(3_600.0)
        assert ids(await (await harness.worker()).take()) == ["a"]

    async def test_a_job_far_ahead_keeps_its_time(self, harness: Harness) -> None:
        """A due time in a hundred years does not overflow."""
        century = 100 * 365.25 * 86_400.0
        await harness.put(harness.job("a", after=century))
        due = harness.clock.now() + century
        assert (await harness.backend.reads.get_job("a")).due == pytest.approx(due, abs=1e-3)
        assert (await harness.backend.consuming.promote(10)).next_due == pytest.approx(
            due, abs=1e-3
        )

    async def test_promoting_changes_nothing_that_can_be_read(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=5.0))
        harness.clock.advance(5.0)
        before = await harness.backend.reads.get_job("a")
        await harness.backend.consuming.promote(10)
        assert await harness.backend.reads.get_job("a") == before

    async def test_a_job_that_was_promoted_twice_is_there_once(self, harness: Harness) -> None:
        await harness.put(harness.job("a", after=5.0))
        harness.clock.advance(5.0)
        await harness.backend.consuming.promote(10)
        await harness.backend.consuming.promote(10)
        assert ids(await (await harness.worker()).take(10)) == ["a"]

    async def test_a_snooze_can_be_repeated(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        for _ in range(3):
            await worker.settle(Released((await worker.take_one()).lease, 10.0))
            assert await worker.take() == []
            harness.clock.advance(10.0)
        assert (await worker.take_one()).attempt == 1

    async def test_jobs_become_due_one_after_the_other(self, harness: Harness) -> None:
        for n in range(5):
            await harness.put(harness.job(f"{n}", after=float(n + 1)))
        worker = await harness.worker(ttl=300.0)
        for n in range(5):
            harness.clock.advance(1.0)
            assert ids(await worker.take(10)) == [f"{n}"]

    @pytest.mark.parametrize("at", [0.0, 1.0, 4_102_444_800.0, 253_402_300_799.0])
    async def test_any_time_from_1970_to_9999_can_be_kept(
        self, harness: Harness, at: float
    ) -> None:
        await harness.put(harness.job("a", at=at))
        record = await harness.backend.reads.get_job("a")
        assert record.due == pytest.approx(at, abs=1e-3)
        assert record.state is (State.PENDING if at < harness.clock.now() else State.SCHEDULED)

    async def test_many_due_jobs_do_not_delay_those_that_wait(self, harness: Harness) -> None:
        """One exchange promotes some of them only. The reply says that more are due."""
        count = 2 * MAX_PROMOTED + 1
        jobs = [harness.job(after=1.0, priority=1) for _ in range(count)]
        await harness.backend.producing.enqueue(jobs)
        await harness.add("urgent")
        harness.clock.advance(1.0)
        worker = await harness.worker()
        reply = await worker.exchange(want=worker.want(1))
        assert ids(reply.deliveries) == ["urgent"]
        assert reply.next_due is not None
        assert reply.next_due <= harness.clock.now()
        assert (await harness.backend.consuming.promote(count)).count >= count - MAX_PROMOTED

    async def test_a_thousand_jobs_due_at_once_come_in_order(self, harness: Harness) -> None:
        jobs = [harness.job(after=1.0 + n / 1000) for n in range(1000)]
        await harness.backend.producing.enqueue(jobs)
        harness.clock.advance(5.0)
        worker = await harness.worker()
        taken = ids(await worker.take(500)) + ids(await worker.take(500))
        assert taken == [job.id for job in jobs]
