"""Rescue: the jobs of a dead worker run again, and a job that repeatedly loses its workers
becomes a dead letter."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nimburion.core.errors import SessionLost
from nimburion.core.job import AttemptError, State
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Completed, Failed, Released, Retried, Settled
from nimburion.core.text.fingerprints import LOST_FINGERPRINT
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, TTL, Harness, ids


class Rescuing:
    """`rescue`."""

    async def test_a_live_session_is_left_alone(self, harness: Harness) -> None:
        """Not a second early."""
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        harness.clock.advance(TTL - 0.001)
        rescued = await harness.backend.consuming.rescue(10, max_lost=3)
        assert (rescued.returned, rescued.failed, rescued.cancelled) == ([], [], [])
        assert await harness.state("a") is State.PROCESSING
        await worker.heartbeat()

    async def test_an_expired_session_gives_its_jobs_back(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        await worker.take(2)
        rescued = await harness.lose(worker)
        assert sorted(rescued.returned) == ["a", "b"]
        assert (rescued.failed, rescued.cancelled, rescued.more) == ([], [], False)
        assert ids(await (await harness.worker()).take(5)) == ["a", "b"]

    async def test_a_loss_is_counted_apart_from_failures_and_added_to_the_history(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        await worker.take_one()
        await harness.lose(worker)
        record = await harness.backend.reads.get_job("a")
        assert (record.failures, record.lost, record.attempt) == (1, 1, 3)
        assert [(error.kind, error.attempt) for error in record.history] == [
            ("failure", 1),
            ("lost", 2),
        ]
        assert record.history[1].at == harness.clock.now()
        assert record.session is None

    async def test_a_rescued_first_try_is_pending_again(self, harness: Harness) -> None:
        """A loss is no failure: `retrying` says that it failed."""
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker)
        assert await harness.state("a") is State.PENDING
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.PROCESSING]) == (1, 0)

    async def test_the_last_loss_makes_a_dead_letter(self, harness: Harness) -> None:
        await harness.put(harness.job("a", payload=b'{"kills": true}'))
        outcomes = []
        for _ in range(3):
            worker = await harness.worker()
            await worker.take_one()
            rescued = await harness.lose(worker, max_lost=3)
            outcomes.append((rescued.returned, rescued.failed))
        assert outcomes == [(["a"], []), (["a"], []), ([], ["a"])]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.reason, record.lost) == (State.FAILED, "lost", 3)
        assert (record.failures, record.payload) == (0, b'{"kills": true}')
        assert record.finished_at == harness.clock.now()
        assert len(record.history) == 3

    async def test_only_the_job_that_was_lost_too_often_fails(self, harness: Harness) -> None:
        """Its neighbours in the same worker are not."""
        await harness.add("killer")
        first = await harness.worker()
        await first.take_one()
        await harness.lose(first)
        await harness.add("neighbour")
        second = await harness.worker()
        await second.take(2)
        rescued = await harness.lose(second, max_lost=2)
        assert (rescued.failed, rescued.returned) == (["killer"], ["neighbour"])

    async def test_a_suspect_that_was_held_beside_others_counts_no_loss(
        self, harness: Harness
    ) -> None:
        """A worker runs a suspect alone, so this one had not begun when the session expired."""
        await harness.add("a", "b")
        for _ in range(2):
            worker = await harness.worker()
            await worker.take(2)
            await harness.lose(worker)
        await harness.add("innocent")
        worker = await harness.worker()
        await worker.take(3)
        rescued = await harness.lose(worker, max_lost=3)
        assert (sorted(rescued.returned), rescued.failed) == (["a", "b", "innocent"], [])
        records = {
            job_id: await harness.backend.reads.get_job(job_id) for job_id in ("a", "b", "innocent")
        }
        assert {job_id: record.lost for job_id, record in records.items()} == {
            "a": 2,
            "b": 2,
            "innocent": 1,
        }
        assert [len(record.history) for record in records.values()] == [2, 2, 1]

    @pytest.mark.parametrize("limit", [1, 2, 3])
    async def test_a_suspect_that_a_limit_leaves_to_the_next_rescue_counts_no_loss(
        self, harness: Harness, limit: int
    ) -> None:
        """The session held it beside others, also if those were rescued before it."""
        await harness.add("a", "b", "c", "d")
        for _ in range(2):
            worker = await harness.worker()
            await worker.take(4)
            await harness.lose(worker)
        worker = await harness.worker()
        await worker.take(4)
        harness.clock.advance(TTL)
        returned: list[str] = []
        more = True
        while more:
            rescued = await harness.backend.consuming.rescue(limit, max_lost=3)
            assert rescued.failed == []
            returned += rescued.returned
            more = rescued.more
        assert sorted(returned) == ["a", "b", "c", "d"]
        assert {(await harness.backend.reads.get_job(job_id)).lost for job_id in returned} == {2}

    async def test_a_suspect_that_was_held_alone_counts_its_loss(self, harness: Harness) -> None:
        """Also where its session held others before: they were settled or released."""
        await harness.add("a", "b")
        for _ in range(2):
            worker = await harness.worker()
            await worker.take(2)
            await harness.lose(worker)
        worker = await harness.worker()
        first, second = await worker.take(2)
        await worker.settle(Released(second.lease))
        rescued = await harness.lose(worker, max_lost=3)
        assert (rescued.returned, rescued.failed) == ([], [first.lease.job_id])

    async def test_a_cancel_that_was_requested_ends_the_job(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.backend.producing.cancel("a")
        rescued = await harness.lose(worker, max_lost=1)
        assert (rescued.cancelled, rescued.returned, rescued.failed) == (["a"], [], [])
        assert await harness.state("a") is State.CANCELLED

    async def test_settling_after_the_rescue_is_lost(self, harness: Harness) -> None:
        """Promise 4: a worker that lost the job cannot change it."""
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.lose(worker)
        record = await harness.backend.reads.get_job("a")
        for settlement in (Completed(lease), Failed(lease, "permanent", FAILURE)):
            with pytest.raises(SessionLost):
                await worker.settle(settlement)
        assert await harness.backend.reads.get_job("a") == record

    async def test_the_new_holder_can_settle(self, harness: Harness) -> None:
        await harness.add("a")
        first = await harness.worker()
        await first.take_one()
        await harness.lose(first)
        second = await harness.worker()
        assert await second.settle(Completed((await second.take_one()).lease)) == [Settled.DONE]

    async def test_the_limit_holds_and_more_is_reported(self, harness: Harness) -> None:
        await harness.add("a", "b", "c", "d", "e")
        worker = await harness.worker()
        await worker.take(5)
        harness.clock.advance(TTL)
        seen: list[str] = []
        for more in (True, True, False):
            rescued = await harness.backend.consuming.rescue(2, max_lost=3)
            assert (len(rescued.returned) <= 2, rescued.more) == (True, more)
            seen += rescued.returned
        assert sorted(seen) == ["a", "b", "c", "d", "e"]

    async def test_the_session_is_dead_though_some_of_its_jobs_are_left(
        self, harness: Harness
    ) -> None:
        """Its token settles none of them any more, also not those that wait for the next sweep."""
        await harness.add("a", "b")
        worker = await harness.worker()
        leases = [delivery.lease for delivery in await worker.take(2)]
        harness.clock.advance(TTL)
        (returned,) = (await harness.backend.consuming.rescue(1, max_lost=3)).returned
        with pytest.raises(SessionLost):
            await worker.heartbeat()
        with pytest.raises(SessionLost):
            await worker.settle(*(Completed(lease) for lease in leases))
        (other,) = {"a", "b"} - {returned}
        assert await harness.state(other) is State.PROCESSING
        assert (await harness.backend.consuming.rescue(1, max_lost=3)).returned == [other]

    async def test_rescuing_twice_counts_one_loss(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == []
        assert (await harness.backend.reads.get_job("a")).lost == 1

    async def test_only_expired_sessions_lose_their_jobs(self, harness: Harness) -> None:
        await harness.add("a", "b")
        first = await harness.worker()
        await first.take_one()
        harness.clock.advance(TTL / 2)
        second = await harness.worker()
        await second.take_one()
        harness.clock.advance(TTL / 2)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == ["a"]
        assert await harness.state("b") is State.PROCESSING
        await second.heartbeat()

    async def test_each_session_has_its_own_span(self, harness: Harness) -> None:
        await harness.add("a", "b")
        short, long = await harness.worker(ttl=5.0), await harness.worker(ttl=500.0)
        await short.take_one()
        await long.take_one()
        harness.clock.advance(5.0)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == ["a"]
        harness.clock.advance(495.0)
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).returned == ["b"]

    async def test_a_rescued_job_keeps_its_due_time(self, harness: Harness) -> None:
        await harness.add("a")
        before = await harness.backend.reads.get_job("a")
        worker = await harness.worker()
        harness.clock.advance(3.0)
        reserved = harness.clock.now()
        await worker.take_one()
        await harness.lose(worker)
        record = await harness.backend.reads.get_job("a")
        lost = AttemptError(1, "lost", record.history[0].type, record.history[0].message)
        assert record == replace(
            before,
            lost=1,
            started_at=reserved,
            history=[
                replace(
                    lost,
                    at=harness.clock.now(),
                    started_at=reserved,
                    session=worker.id,
                    host="here",
                    fingerprint=LOST_FINGERPRINT,
                )
            ],
        )

    async def test_a_job_that_was_settled_in_time_is_not_rescued(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        rescued = await harness.lose(worker)
        assert (rescued.returned, rescued.failed) == ([], [])
        assert (await harness.backend.reads.get_job("a")).state is State.COMPLETED

    async def test_a_limit_that_is_just_enough_leaves_no_more(self, harness: Harness) -> None:
        await harness.add("a", "b")
        worker = await harness.worker()
        await worker.take(2)
        harness.clock.advance(30.0)
        assert (await harness.backend.consuming.rescue(2, max_lost=3)).more is False

    async def test_a_lease_left_by_a_limited_rescue_still_reads_as_processing(
        self, harness: Harness
    ) -> None:
        """A lease that the bound left over still reads as processing, and can be cancelled."""
        await harness.add("a", "b")
        worker = await harness.worker()
        await worker.take(2)
        harness.clock.advance(30.0)
        (returned,) = (await harness.backend.consuming.rescue(1, max_lost=3)).returned
        (left,) = {"a", "b"} - {returned}
        assert await harness.state(left) is State.PROCESSING
        assert await harness.backend.producing.cancel(left) == "requested"
        assert (await harness.backend.consuming.rescue(10, max_lost=3)).cancelled == [left]

    async def test_losses_begin_anew_after_a_replay(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker, max_lost=1)
        await replay(harness.backend, JobFilter(ids=("a",)), 10)
        worker = await harness.worker()
        await worker.take_one()
        assert (await harness.lose(worker, max_lost=2)).returned == ["a"]
        record = await harness.backend.reads.get_job("a")
        assert (record.lost, len(record.history)) == (1, 2)

    async def test_a_hundred_jobs_of_one_worker_come_back(self, harness: Harness) -> None:
        jobs = [harness.job() for _ in range(100)]
        await harness.backend.producing.enqueue(jobs)
        worker = await harness.worker()
        await worker.take(100)
        assert len((await harness.lose(worker)).returned) == 100
        assert ids(await (await harness.worker()).take(200)) == [job.id for job in jobs]

    async def test_failures_are_no_losses(self, harness: Harness) -> None:
        """Failures and losses have separate limits: four failures count no loss."""
        await harness.add("a")
        worker = await harness.worker()
        for _ in range(4):
            await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        await worker.take_one()
        assert (await harness.lose(worker, max_lost=2)).returned == ["a"]

    async def test_all_that_expired_go_in_one_call(self, harness: Harness) -> None:
        await harness.add("a", "b", "c")
        workers = [await harness.worker() for _ in range(3)]
        for worker in workers:
            await worker.take_one()
        assert sorted((await harness.lose(workers[0])).returned) == ["a", "b", "c"]
        assert await harness.backend.reads.list_sessions() == []
