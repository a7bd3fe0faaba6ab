"""Rescue: the jobs of a dead worker run again, and a job that repeatedly loses its workers
becomes a dead letter."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.errors import SessionLost
from nimburion.core.job import AttemptError, State
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Completed, Failed, Released, Retried, Settled
from nimburion.testing.contract.harness import OOPS, TTL, Harness, ids


class Rescuing:
    """`rescue`."""

    async def test_a_live_session_is_left_alone(self, stage: Harness) -> None:
        """Not a second early."""
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        stage.clock.advance(TTL - 0.001)
        rescued = await stage.store.rescue(10, max_lost=3)
        assert (rescued.returned, rescued.failed, rescued.cancelled) == ([], [], [])
        assert await stage.state("a") is State.PROCESSING
        await worker.beat()

    async def test_an_expired_session_gives_its_jobs_back(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        await worker.take(2)
        rescued = await stage.lose(worker)
        assert sorted(rescued.returned) == ["a", "b"]
        assert (rescued.failed, rescued.cancelled, rescued.more) == ([], [], False)
        assert ids(await (await stage.worker()).take(5)) == ["a", "b"]

    async def test_a_loss_is_counted_apart_from_failures_and_joins_the_history(
        self, stage: Harness
    ) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, OOPS))
        await worker.take_one()
        await stage.lose(worker)
        record = await stage.store.get("a")
        assert (record.failures, record.lost, record.attempt) == (1, 1, 3)
        assert [(error.kind, error.attempt) for error in record.history] == [
            ("failure", 1),
            ("lost", 2),
        ]
        assert record.history[1].at == stage.clock.now()
        assert record.session is None

    async def test_a_rescued_first_try_is_pending_again(self, stage: Harness) -> None:
        """A loss is no failure: `retrying` says that it failed."""
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await stage.lose(worker)
        assert await stage.state("a") is State.PENDING

    async def test_the_last_loss_makes_a_dead_letter(self, stage: Harness) -> None:
        await stage.put(stage.job("a", payload=b'{"kills": true}'))
        outcomes = []
        for _ in range(3):
            worker = await stage.worker()
            await worker.take_one()
            rescued = await stage.lose(worker, max_lost=3)
            outcomes.append((rescued.returned, rescued.failed))
        assert outcomes == [(["a"], []), (["a"], []), ([], ["a"])]
        record = await stage.store.get("a")
        assert (record.state, record.reason, record.lost) == (State.FAILED, "lost", 3)
        assert (record.failures, record.payload) == (0, b'{"kills": true}')
        assert record.finished_at == stage.clock.now()
        assert len(record.history) == 3

    async def test_only_the_job_whose_losses_are_spent_is_set_aside(self, stage: Harness) -> None:
        """Its neighbours in the same worker are not."""
        await stage.add("killer")
        first = await stage.worker()
        await first.take_one()
        await stage.lose(first)
        await stage.add("neighbour")
        second = await stage.worker()
        await second.take(2)
        rescued = await stage.lose(second, max_lost=2)
        assert (rescued.failed, rescued.returned) == (["killer"], ["neighbour"])

    async def test_a_suspect_that_was_held_beside_others_counts_no_loss(
        self, stage: Harness
    ) -> None:
        """A worker runs a suspect alone, so this one had not begun when its worker vanished."""
        await stage.add("a", "b")
        for _ in range(2):
            worker = await stage.worker()
            await worker.take(2)
            await stage.lose(worker)
        await stage.add("innocent")
        worker = await stage.worker()
        await worker.take(3)
        rescued = await stage.lose(worker, max_lost=3)
        assert (sorted(rescued.returned), rescued.failed) == (["a", "b", "innocent"], [])
        records = {job_id: await stage.store.get(job_id) for job_id in ("a", "b", "innocent")}
        assert {job_id: record.lost for job_id, record in records.items()} == {
            "a": 2,
            "b": 2,
            "innocent": 1,
        }
        assert [len(record.history) for record in records.values()] == [2, 2, 1]

    async def test_a_suspect_that_was_held_alone_counts_its_loss(self, stage: Harness) -> None:
        """Also where its session held others before: they were settled or given back."""
        await stage.add("a", "b")
        for _ in range(2):
            worker = await stage.worker()
            await worker.take(2)
            await stage.lose(worker)
        worker = await stage.worker()
        first, second = await worker.take(2)
        await worker.settle(Released(second.lease))
        rescued = await stage.lose(worker, max_lost=3)
        assert (rescued.returned, rescued.failed) == ([], [first.lease.job_id])

    async def test_a_cancel_that_was_requested_ends_the_job(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await stage.store.cancel("a")
        rescued = await stage.lose(worker, max_lost=1)
        assert (rescued.cancelled, rescued.returned, rescued.failed) == (["a"], [], [])
        assert await stage.state("a") is State.CANCELLED

    async def test_settling_after_the_rescue_is_lost(self, stage: Harness) -> None:
        """Promise 4: whoever lost the job cannot say anything about it."""
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.lose(worker)
        record = await stage.store.get("a")
        for settlement in (Completed(lease), Failed(lease, "permanent", OOPS)):
            with pytest.raises(SessionLost):
                await worker.settle(settlement)
        assert await stage.store.get("a") == record

    async def test_the_new_holder_can_settle(self, stage: Harness) -> None:
        await stage.add("a")
        first = await stage.worker()
        await first.take_one()
        await stage.lose(first)
        second = await stage.worker()
        assert await second.settle(Completed((await second.take_one()).lease)) == [Settled.DONE]

    async def test_the_bound_holds_and_says_that_there_is_more(self, stage: Harness) -> None:
        await stage.add("a", "b", "c", "d", "e")
        worker = await stage.worker()
        await worker.take(5)
        stage.clock.advance(TTL)
        seen: list[str] = []
        for more in (True, True, False):
            rescued = await stage.store.rescue(2, max_lost=3)
            assert (len(rescued.returned) <= 2, rescued.more) == (True, more)
            seen += rescued.returned
        assert sorted(seen) == ["a", "b", "c", "d", "e"]

    async def test_the_session_is_dead_though_some_of_its_jobs_are_left(
        self, stage: Harness
    ) -> None:
        """Its token settles none of them any more, also not those that wait for the next sweep."""
        await stage.add("a", "b")
        worker = await stage.worker()
        leases = [delivery.lease for delivery in await worker.take(2)]
        stage.clock.advance(TTL)
        (returned,) = (await stage.store.rescue(1, max_lost=3)).returned
        with pytest.raises(SessionLost):
            await worker.beat()
        with pytest.raises(SessionLost):
            await worker.settle(*(Completed(lease) for lease in leases))
        (other,) = {"a", "b"} - {returned}
        assert await stage.state(other) is State.PROCESSING
        assert (await stage.store.rescue(1, max_lost=3)).returned == [other]

    async def test_rescuing_twice_counts_one_loss(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await stage.lose(worker)
        assert (await stage.store.rescue(10, max_lost=3)).returned == []
        assert (await stage.store.get("a")).lost == 1

    async def test_only_expired_sessions_lose_their_jobs(self, stage: Harness) -> None:
        await stage.add("a", "b")
        first = await stage.worker()
        await first.take_one()
        stage.clock.advance(TTL / 2)
        second = await stage.worker()
        await second.take_one()
        stage.clock.advance(TTL / 2)
        assert (await stage.store.rescue(10, max_lost=3)).returned == ["a"]
        assert await stage.state("b") is State.PROCESSING
        await second.beat()

    async def test_each_session_has_its_own_span(self, stage: Harness) -> None:
        await stage.add("a", "b")
        short, long = await stage.worker(ttl=5.0), await stage.worker(ttl=500.0)
        await short.take_one()
        await long.take_one()
        stage.clock.advance(5.0)
        assert (await stage.store.rescue(10, max_lost=3)).returned == ["a"]
        stage.clock.advance(495.0)
        assert (await stage.store.rescue(10, max_lost=3)).returned == ["b"]

    async def test_a_rescued_job_keeps_its_due_time(self, stage: Harness) -> None:
        await stage.add("a")
        before = await stage.store.get("a")
        worker = await stage.worker()
        stage.clock.advance(3.0)
        reserved = stage.clock.now()
        await worker.take_one()
        await stage.lose(worker)
        record = await stage.store.get("a")
        lost = AttemptError(1, "lost", record.history[0].type, record.history[0].message)
        assert record == replace(
            before,
            lost=1,
            started_at=reserved,
            history=[replace(lost, at=stage.clock.now())],
        )

    async def test_a_job_that_was_settled_in_time_is_not_rescued(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        rescued = await stage.lose(worker)
        assert (rescued.returned, rescued.failed) == ([], [])
        assert (await stage.store.get("a")).state is State.COMPLETED

    async def test_a_bound_that_is_just_enough_leaves_no_more(self, stage: Harness) -> None:
        await stage.add("a", "b")
        worker = await stage.worker()
        await worker.take(2)
        stage.clock.advance(30.0)
        assert (await stage.store.rescue(2, max_lost=3)).more is False

    async def test_an_operator_cannot_tell_a_leftover_lease_from_a_lost_one(
        self, stage: Harness
    ) -> None:
        """A lease that the bound left over still reads as processing, and can be cancelled."""
        await stage.add("a", "b")
        worker = await stage.worker()
        await worker.take(2)
        stage.clock.advance(30.0)
        (returned,) = (await stage.store.rescue(1, max_lost=3)).returned
        (left,) = {"a", "b"} - {returned}
        assert await stage.state(left) is State.PROCESSING
        assert await stage.store.cancel(left) == "requested"
        assert (await stage.store.rescue(10, max_lost=3)).cancelled == [left]

    async def test_losses_begin_anew_after_a_replay(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await stage.lose(worker, max_lost=1)
        await stage.store.replay(JobFilter(ids=("a",)), 10)
        worker = await stage.worker()
        await worker.take_one()
        assert (await stage.lose(worker, max_lost=2)).returned == ["a"]
        record = await stage.store.get("a")
        assert (record.lost, len(record.history)) == (1, 2)

    async def test_a_hundred_jobs_of_one_worker_come_back(self, stage: Harness) -> None:
        jobs = [stage.job() for _ in range(100)]
        await stage.store.enqueue(jobs)
        worker = await stage.worker()
        await worker.take(100)
        assert len((await stage.lose(worker)).returned) == 100
        assert ids(await (await stage.worker()).take(200)) == [job.id for job in jobs]

    async def test_failures_are_no_losses(self, stage: Harness) -> None:
        """Two budgets: four failures do not bring the first loss nearer to the last."""
        await stage.add("a")
        worker = await stage.worker()
        for _ in range(4):
            await worker.settle(Retried((await worker.take_one()).lease, 0.0, OOPS))
        await worker.take_one()
        assert (await stage.lose(worker, max_lost=2)).returned == ["a"]

    async def test_all_that_expired_go_in_one_call(self, stage: Harness) -> None:
        await stage.add("a", "b", "c")
        workers = [await stage.worker() for _ in range(3)]
        for worker in workers:
            await worker.take_one()
        assert sorted((await stage.lose(workers[0])).returned) == ["a", "b", "c"]
        assert await stage.store.sessions() == []
