"""`pause`: no job of a paused queue is delivered."""

from __future__ import annotations

from nimburion.core.exchange import Lane, QueueOptions
from nimburion.core.job import State
from nimburion.core.settlement import Completed, Retried, Settled
from nimburion.testing.contract.harness import OOPS, Harness, ids


class Pausing:
    """Paused queues."""

    async def test_a_paused_queue_hands_out_nothing(self, stage: Harness) -> None:
        await stage.add("a")
        await stage.store.pause("default", paused=True)
        reply = await (worker := await stage.worker()).exchange(want=worker.want(5))
        assert (reply.deliveries, reply.waiting) == ([], [])
        assert await stage.state("a") is State.PENDING

    async def test_other_queues_go_on(self, stage: Harness) -> None:
        await stage.add("a", queue="red")
        await stage.add("b", queue="blue")
        await stage.store.pause("red", paused=True)
        worker = await stage.worker(queues=("red", "blue"))
        assert ids(await worker.take(5)) == ["b"]

    async def test_a_resumed_queue_goes_on_in_its_old_order(self, stage: Harness) -> None:
        await stage.add("a", "b")
        await stage.store.pause("default", paused=True)
        await stage.add("c")
        await stage.store.pause("default", paused=False)
        assert ids(await (await stage.worker()).take(5)) == ["a", "b", "c"]

    async def test_what_is_processing_goes_on_and_can_be_settled(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.pause("default", paused=True)
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_a_retry_in_a_paused_queue_waits(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        lease = (await worker.take_one()).lease
        await stage.store.pause("default", paused=True)
        reply = await worker.exchange(Retried(lease, 0.0, OOPS), want=worker.want(5))
        assert reply.deliveries == []
        assert await stage.state("a") is State.RETRYING

    async def test_a_paused_queue_takes_new_jobs_and_promotes_them(self, stage: Harness) -> None:
        await stage.store.pause("default", paused=True)
        await stage.put(stage.job("a", after=5.0))
        stage.clock.advance(5.0)
        assert (await stage.store.promote(10)).count == 1
        assert await (await stage.worker()).take(5) == []

    async def test_pausing_twice_is_pausing_once(self, stage: Harness) -> None:
        await stage.add("a")
        await stage.store.pause("default", paused=True)
        await stage.store.pause("default", paused=True)
        await stage.store.pause("default", paused=False)
        assert ids(await (await stage.worker()).take(5)) == ["a"]

    async def test_resuming_what_is_not_paused_does_nothing(self, stage: Harness) -> None:
        await stage.store.pause("nowhere", paused=False)
        assert await stage.store.queues() == []

    async def test_a_paused_queue_is_listed_also_when_it_is_empty(self, stage: Harness) -> None:
        await stage.store.pause("empty", paused=True)
        (queue,) = await stage.store.queues()
        assert (queue.name, queue.paused, queue.size, queue.processing) == ("empty", True, 0, 0)

    async def test_a_paused_job_can_be_cancelled(self, stage: Harness) -> None:
        await stage.add("a")
        await stage.store.pause("default", paused=True)
        assert await stage.store.cancel("a") == "cancelled"

    async def test_a_repeat_brings_back_what_was_handed_out_before_the_pause(
        self, stage: Harness
    ) -> None:
        await stage.add("a")
        worker = await stage.worker()
        want = worker.want(1)
        first = await stage.store.exchange(worker.id, 1, [], want)
        await stage.store.pause("default", paused=True)
        again = await stage.store.exchange(worker.id, 1, [], want)
        assert again.deliveries == first.deliveries

    async def test_what_is_rescued_while_it_is_paused_waits(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await worker.take_one()
        await stage.store.pause("default", paused=True)
        assert (await stage.lose(worker)).returned == ["a"]
        assert await (await stage.worker()).take(9) == []

    async def test_its_lanes_are_not_waiting(self, stage: Harness) -> None:
        await stage.add("a", queue="red")
        await stage.add("b", queue="blue")
        await stage.store.pause("red", paused=True)
        worker = await stage.worker(queues=("red", "blue"))
        reply = await worker.exchange(want=worker.want(0))
        assert reply.waiting == [Lane("blue", "mail")]

    async def test_its_jobs_age_all_the_same(self, stage: Harness) -> None:
        await stage.add("a", queue="low")
        await stage.store.pause("low", paused=True)
        stage.clock.advance(130.0)
        await stage.store.pause("low", paused=False)
        await stage.add("b", queue="high")
        worker = await stage.worker(queues=("low", "high"))
        terms = {"high": QueueOptions(priority=1)}
        assert ids(await worker.take(1, queues=terms, ageing=60.0)) == ["a"]

    async def test_a_pause_outlives_the_sessions(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        await stage.store.pause("default", paused=True)
        await worker.close()
        assert await (await stage.worker()).take(9) == []
