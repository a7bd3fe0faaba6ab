"""Dead letters: kept complete, replayed once, deleted only when finished."""

from __future__ import annotations

import pytest

from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobOptions, State
from nimburion.core.paging import ChangedJobs
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.settlement import Completed, Failed, Retried, Settled
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness, ids
from nimburion.testing.contract.job_states import JOB_STATES

KEY = JobOptions(unique_key="k")
ODD = b'{ "b":1.0 ,"a":"\\u00e4 \xc3\xa4",\n "a":2 }'
"""JSON that no encoder writes in the same bytes."""
LARGE = b'"' + b"x" * 100_000 + b'"'
"""A payload so large that a backend may store it apart from the rest of the job."""


async def make_dead_letters(
    harness: Harness, *job_ids: str, reason: str = "permanent", **where: str
) -> None:
    """Fail these jobs permanently; jobs that do not exist are enqueued first."""
    name, queue = where.get("name", "mail"), where.get("queue", "default")
    await harness.enqueue(*(harness.job(job_id, name=name, queue=queue) for job_id in job_ids))
    worker = await harness.worker(names=(name,), queues=(queue,))
    taken = [
        delivery.lease for delivery in await worker.take(100) if delivery.lease.job_id in job_ids
    ]
    assert len(taken) == len(job_ids)
    await worker.settle(*(Failed(lease, reason, FAILURE) for lease in taken))
    await worker.close()


class Replaying:
    """`replay`."""

    async def test_a_replayed_job_is_pending_under_its_old_id(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        harness.clock.advance(100.0)
        assert (await replay(harness.backend, JobFilter(ids=("a",)), 10)).ids == ["a"]
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.reason, record.finished_at) == (State.PENDING, None, None)
        assert record.due == harness.clock.now()

    async def test_counts_begin_anew_and_the_history_stays(self, harness: Harness) -> None:
        await harness.add("a")
        lost = await harness.worker()
        await lost.take_one()
        await harness.lose(lost)
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        await worker.settle(Failed((await worker.take_one()).lease, "exhausted", FAILURE))
        before = await harness.backend.reads.get_job("a")
        assert (before.failures, before.lost, len(before.history)) == (2, 1, 3)
        await replay(harness.backend, EVERY_JOB, 10)
        after = await harness.backend.reads.get_job("a")
        assert (after.failures, after.lost, after.attempt) == (0, 0, 1)
        assert after.history == before.history

    @pytest.mark.parametrize("payload", [ODD, LARGE], ids=["odd", "large"])
    async def test_the_payload_is_the_same_byte_for_byte(
        self, harness: Harness, payload: bytes
    ) -> None:
        await harness.put(harness.job("a", payload=payload))
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "unreadable", FAILURE))
        assert (await harness.backend.reads.get_job("a")).payload == payload
        await replay(harness.backend, EVERY_JOB, 10)
        assert (await worker.take_one()).payload == payload

    async def test_replaying_twice_does_nothing_the_second_time(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        await replay(harness.backend, EVERY_JOB, 10)
        assert await replay(harness.backend, EVERY_JOB, 10) == ChangedJobs([], [], None)
        assert len(await (await harness.worker()).take(5)) == 1

    @pytest.mark.parametrize("state", [s for s in JOB_STATES if not s.startswith("failed")])
    async def test_what_is_not_failed_is_passed_over(self, harness: Harness, state: str) -> None:
        job_id = await JOB_STATES[state](harness)
        before = await harness.backend.reads.get_job(job_id)
        replayed = await replay(harness.backend, JobFilter(ids=(job_id,)), 10)
        assert replayed == ChangedJobs([], [])
        assert await harness.backend.reads.get_job(job_id) == before

    async def test_an_unknown_id_is_passed_over(self, harness: Harness) -> None:
        assert await replay(harness.backend, JobFilter(ids=("unknown",)), 10) == ChangedJobs(
            [], [], None
        )

    async def test_a_replayed_job_is_fenced_from_its_old_token(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        old = (await worker.take_one()).lease
        await worker.settle(Failed(old, "permanent", FAILURE))
        await replay(harness.backend, EVERY_JOB, 10)
        new = (await worker.take_one()).lease
        assert new.token.fence > old.token.fence
        assert await worker.settle(Completed(old)) != [Settled.DONE]
        assert await harness.state("a") is State.PROCESSING

    async def test_a_replayed_job_can_fail_and_be_replayed_again(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        for n in range(2, 5):
            await replay(harness.backend, EVERY_JOB, 10)
            worker = await harness.worker()
            error = AttemptError(1, "failure", "ValueError", f"try {n}")
            await worker.settle(Failed((await worker.take_one()).lease, "exhausted", error))
            record = await harness.backend.reads.get_job("a")
            assert (record.failures, len(record.history), record.reason) == (1, n, "exhausted")

    async def test_of_two_with_one_key_one_is_replayed(self, harness: Harness) -> None:
        for job_id in ("a", "b"):
            await harness.put(harness.job(job_id, options=KEY))
            await make_dead_letters(harness, job_id)
        replayed = await replay(harness.backend, EVERY_JOB, 10)
        assert (len(replayed.ids), len(replayed.held)) == (1, 1)
        assert {*replayed.ids, *replayed.held} == {"a", "b"}

    async def test_a_replayed_job_is_due_now(self, harness: Harness) -> None:
        """It comes after the jobs that were due before."""
        await make_dead_letters(harness, "a")
        await harness.add("b")
        harness.clock.advance(1.0)
        await replay(harness.backend, EVERY_JOB, 10)
        assert ids(await (await harness.worker()).take(9)) == ["b", "a"]

    async def test_a_replayed_job_keeps_its_place_in_lists(self, harness: Harness) -> None:
        """It also keeps its enqueue order among jobs with the same due time."""
        await make_dead_letters(harness, "a")
        await harness.add("b")
        await replay(harness.backend, EVERY_JOB, 10)
        assert [job.id for job in (await harness.backend.reads.list_jobs()).jobs] == ["b", "a"]
        assert ids(await (await harness.worker()).take(9)) == ["a", "b"]

    async def test_a_replayed_job_of_a_paused_queue_waits(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert (await replay(harness.backend, EVERY_JOB, 10)).ids == ["a"]
        assert await (await harness.worker()).take(9) == []


class Deleting:
    """`delete`."""

    @pytest.mark.parametrize("state", JOB_STATES)
    async def test_only_what_is_finished_is_deleted(self, harness: Harness, state: str) -> None:
        job_id = await JOB_STATES[state](harness)
        before = await harness.backend.reads.get_job(job_id)
        deleted = await delete(harness.backend, JobFilter(ids=(job_id,)), 10)
        if before.state.finished:
            assert deleted == [job_id]
            with pytest.raises(JobNotFound):
                await harness.backend.reads.get_job(job_id)
        else:
            assert deleted == []
            assert await harness.backend.reads.get_job(job_id) == before

    async def test_the_id_of_a_deleted_job_is_new_again(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        await delete(harness.backend, EVERY_JOB, 10)
        await harness.put(harness.job("a", payload=b"[]"))
        record = await harness.backend.reads.get_job("a")
        assert (record.state, record.history, record.failures) == (State.PENDING, [], 0)

    async def test_deleted_jobs_are_not_reserved_again(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        await harness.add("b")
        await delete(harness.backend, EVERY_JOB, 10)
        assert ids(await (await harness.worker()).take(5)) == ["b"]
