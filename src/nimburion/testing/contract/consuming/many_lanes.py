"""A worker of many names: an exchange finds the few lanes that hold jobs."""

from __future__ import annotations

from random import Random

import pytest

from nimburion.core.exchange import Lane
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Completed, Failed, Released, Retried
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids
from nimburion.testing.contract.open_transactions import open_transaction

NAMES = tuple(f"name-{n}" for n in range(80))
LAST = NAMES[-1]


async def let_wait_again(harness: Harness, worker: HandDrivenWorker, how: str) -> None:
    """Reserve the job, and let it wait again."""
    lease = (await worker.take_one()).lease
    if how == "retried":
        await worker.settle(Retried(lease, 0.0, FAILURE))
    elif how == "due":
        await worker.settle(Released(lease, 5.0))
        assert await worker.take(9) == []
        harness.clock.advance(5.0)
    elif how == "released":
        await harness.backend.consuming.release(worker.id, [lease])
    elif how == "replayed":
        await worker.settle(Failed(lease, "failure", FAILURE))
        assert await worker.take(9) == []
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
    elif how == "resumed":
        await worker.settle(Released(lease))
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert await worker.take(9) == []
        await harness.backend.maintenance.pause_queue("default", paused=False)


class ManyLanes:
    """Exchanges of many lanes."""

    @pytest.mark.parametrize("priorities", [(5,), (4, 5, 6)])
    @pytest.mark.parametrize("total", [1, 7, 50])
    async def test_the_first_jobs_of_many_lanes_come_in_order(
        self, harness: Harness, priorities: tuple[int, ...], total: int
    ) -> None:
        random = Random(total)  # noqa: S311 - repeatable
        jobs = [
            harness.job(
                name=random.choice(NAMES),
                priority=random.choice(priorities),
                after=random.choice((0.0, 1.0, 2.0)),
            )
            for _ in range(300)
        ]
        await harness.enqueue(*jobs)
        expected = sorted(jobs, key=lambda job: (-job.priority, job.after))
        harness.clock.advance(2.0)
        worker = await harness.worker(names=NAMES)
        taken: list[str] = []
        while len(taken) < len(jobs):
            some = ids(await worker.take(total, ageing=0.0))
            assert some
            taken += some
        assert taken == [job.id for job in expected]

    async def test_the_reply_names_only_lanes_that_hold_jobs(self, harness: Harness) -> None:
        worker = await harness.worker(names=NAMES)
        await harness.add("1", name=NAMES[3])
        await harness.add("2", "3", name=NAMES[20])
        await harness.add("4", name=LAST)
        reply = await worker.exchange(want=worker.want(2))
        assert ids(reply.deliveries) == ["1", "2"]
        assert set(reply.waiting) == {Lane("default", NAMES[20]), Lane("default", LAST)}
        reply = await worker.exchange(want=worker.want(9))
        assert ids(reply.deliveries) == ["3", "4"]
        assert reply.waiting == []

    @pytest.mark.parametrize("how", ["retried", "due", "released", "replayed", "resumed"])
    async def test_a_lane_that_was_empty_is_read_when_a_job_waits_again(
        self, harness: Harness, how: str
    ) -> None:
        worker = await harness.worker(names=NAMES)
        for n in range(3):
            await harness.add(f"other-{n}", name=NAMES[n])
        await worker.settle(*[Completed(one.lease) for one in await worker.take(9)])
        await harness.add("a", name=LAST)
        await let_wait_again(harness, worker, how)
        assert ids(await worker.take(9)) == ["a"]
        assert await worker.take(9) == []

    async def test_a_lane_that_looked_empty_is_read_after_the_commit(
        self, harness: Harness
    ) -> None:
        """The caller's transaction begins before exchanges that find nothing, and ends after."""
        worker = await harness.worker(names=NAMES)
        caller = await open_transaction(harness)
        await caller.enqueue(harness.job("a", name=LAST))
        for n in range(3):
            await harness.add(f"other-{n}", name=NAMES[n])
            assert ids(await worker.take(9)) == [f"other-{n}"]
            assert await worker.take(9) == []
        await caller.commit()
        assert ids(await worker.take(9)) == ["a"]
