"""Unique keys: at most one unfinished job per (name, key), enforced by the backend."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.lease import Lease
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settlement,
)
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness

KEY = JobOptions(unique_key="k")
LENIENT = JobOptions(unique_key="k", on_duplicate="existing")
FOR_A_MINUTE = JobOptions(unique_key="k", unique_for=60.0)

FREEING: dict[str, Callable[[Lease], Settlement]] = {
    "completed": Completed,
    "failed": lambda lease: Failed(lease, "permanent", FAILURE),
    "cancelled": Cancelled,
}
KEEPING: dict[str, Callable[[Lease], Settlement]] = {
    "retried": lambda lease: Retried(lease, 5.0, FAILURE),
    "released": Released,
    "snoozed": lambda lease: Released(lease, 5.0),
    "progressed": lambda lease: Progressed(lease, 0.5),
}


def keyed(job_id: str, options: JobOptions = KEY, **fields: str) -> NewJob:
    """Return a job with a unique key."""
    about = {"name": "mail", "queue": "default", **fields}
    return NewJob(job_id, about["name"], about["queue"], b"{}", options=options)


class UniqueKeys:
    """Unique keys."""

    async def test_a_held_key_is_taken(self, harness: Harness) -> None:
        """The answer names the holder; nothing is stored."""
        await harness.put(keyed("a"))
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_a_held_key_answers_the_existing_job_when_asked_to(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a"))
        assert await harness.enqueue(keyed("b", LENIENT)) == [Enqueued("a", "exists")]
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_in_a_refused_call_a_job_that_would_exist_is_named_itself(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a"))
        await harness.add("kept")
        bad = harness.job("kept", payload=b"[]")
        results = await harness.enqueue(keyed("b", LENIENT), bad)
        assert results == [Enqueued("b", "refused"), Enqueued("kept", "conflict")]

    async def test_the_second_job_says_what_happens_on_a_duplicate(self, harness: Harness) -> None:
        await harness.put(keyed("a", LENIENT))
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]

    async def test_a_key_belongs_to_one_name(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        assert await harness.enqueue(keyed("b", name="post")) == [Enqueued("b", "created")]

    async def test_a_key_spans_queues(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        assert await harness.enqueue(keyed("b", queue="other")) == [Enqueued("a", "taken")]

    async def test_other_keys_and_no_key_are_free(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        await harness.put(keyed("b", JobOptions(unique_key="other")))
        await harness.add("c", "d")
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 4

    async def test_the_same_id_again_exists_though_it_holds_the_key(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        assert await harness.enqueue(keyed("a")) == [Enqueued("a", "exists")]

    async def test_a_key_twice_in_one_call_is_taken_by_the_first(self, harness: Harness) -> None:
        results = await harness.enqueue(keyed("a"), keyed("b"))
        assert results == [Enqueued("a", "refused"), Enqueued("a", "taken")]
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    async def test_a_key_twice_in_one_call_may_answer_the_first(self, harness: Harness) -> None:
        results = await harness.enqueue(keyed("a"), keyed("b", LENIENT))
        assert results == [Enqueued("a", "created"), Enqueued("a", "exists")]
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_one_taken_key_refuses_the_whole_call(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        results = await harness.enqueue(harness.job("x"), keyed("b"), harness.job("y"))
        assert results == [
            Enqueued("x", "refused"),
            Enqueued("a", "taken"),
            Enqueued("y", "refused"),
        ]
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_a_refused_call_takes_no_key(self, harness: Harness) -> None:
        await harness.add("x")
        await harness.enqueue(keyed("a"), harness.job("x", payload=b"[]"))
        assert await harness.enqueue(keyed("b")) == [Enqueued("b", "created")]

    @pytest.mark.parametrize("end", FREEING)
    async def test_the_end_of_its_job_frees_the_key(self, harness: Harness, end: str) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        await worker.settle(FREEING[end]((await worker.take_one()).lease))
        assert await harness.enqueue(keyed("b")) == [Enqueued("b", "created")]

    @pytest.mark.parametrize("how", KEEPING)
    async def test_an_unfinished_job_keeps_its_key(self, harness: Harness, how: str) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]
        await worker.settle(KEEPING[how](lease))
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]

    async def test_cancelling_a_waiting_job_frees_its_key(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        await harness.backend.producing.cancel("a")
        assert await harness.enqueue(keyed("b")) == [Enqueued("b", "created")]

    async def test_a_requested_cancel_frees_no_key_yet(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.producing.cancel("a")
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]
        await worker.settle(Released(lease))
        assert await harness.enqueue(keyed("b")) == [Enqueued("b", "created")]

    async def test_a_rescued_job_keeps_its_key(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        await worker.take_one()
        await harness.lose(worker)
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]

    async def test_a_job_lost_for_good_frees_its_key(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        await worker.take_one()
        assert (await harness.lose(worker, max_lost=1)).failed == ["a"]
        assert await harness.enqueue(keyed("b")) == [Enqueued("b", "created")]

    async def test_a_key_for_a_time_outlives_its_job(self, harness: Harness) -> None:
        await harness.put(keyed("a", FOR_A_MINUTE))
        worker = await harness.worker()
        await worker.settle(Completed((await worker.take_one()).lease))
        harness.clock.advance(59.0)
        assert await harness.enqueue(keyed("b", FOR_A_MINUTE)) == [Enqueued("a", "taken")]
        harness.clock.advance(1.0)
        assert await harness.enqueue(keyed("b", FOR_A_MINUTE)) == [Enqueued("b", "created")]

    async def test_a_key_for_a_time_is_free_after_it_though_its_job_waits(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a", FOR_A_MINUTE))
        harness.clock.advance(60.0)
        assert await harness.enqueue(keyed("b")) == [Enqueued("b", "created")]

    async def test_the_end_of_an_old_holder_frees_nothing_of_the_new_one(
        self, harness: Harness
    ) -> None:
        """The key expired and went to another job; the end of the first job does not free it."""
        await harness.put(keyed("a", FOR_A_MINUTE))
        harness.clock.advance(60.0)
        await harness.put(keyed("b"))
        assert await harness.backend.producing.cancel("a") == "cancelled"
        assert await harness.enqueue(keyed("c")) == [Enqueued("b", "taken")]

    async def test_replay_takes_the_key_again(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        assert (await replay(harness.backend, JobFilter(ids=("a",)), 10)).ids == ["a"]
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]

    async def test_replay_is_held_while_another_has_the_key(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        await harness.put(keyed("b"))
        replayed = await replay(harness.backend, JobFilter(ids=("a",)), 10)
        assert (replayed.ids, replayed.held) == ([], ["a"])
        assert await harness.state("a") is State.FAILED

    async def test_deleting_the_job_leaves_a_key_for_a_time(self, harness: Harness) -> None:
        """A key with a fixed validity is held until then, even if its job was deleted."""
        await harness.put(keyed("a", FOR_A_MINUTE))
        await harness.backend.producing.cancel("a")
        assert await delete(harness.backend, JobFilter(ids=("a",)), 10) == ["a"]
        assert await harness.enqueue(keyed("b")) == [Enqueued("a", "taken")]
