"""`pause_queue`: no job of a paused queue is delivered."""

from __future__ import annotations

from nimburion.core.exchange import Lane, QueueOptions
from nimburion.core.job import State
from nimburion.core.queries import Pause
from nimburion.core.settlement import Completed, Retried, Settled
from nimburion.testing.contract.harness import FAILURE, Harness, ids


class Pausing:
    """Paused queues."""

    async def test_a_paused_queue_returns_no_jobs(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.backend.maintenance.pause_queue("default", paused=True)
        reply = await (worker := await harness.worker()).exchange(want=worker.want(5))
        assert (reply.deliveries, reply.waiting) == ([], [])
        assert await harness.state("a") is State.PENDING

    async def test_other_queues_continue(self, harness: Harness) -> None:
        await harness.add("a", queue="red")
        await harness.add("b", queue="blue")
        await harness.backend.maintenance.pause_queue("red", paused=True)
        worker = await harness.worker(queues=("red", "blue"))
        assert ids(await worker.take(5)) == ["b"]

    async def test_a_resumed_queue_continues_in_its_old_order(self, harness: Harness) -> None:
        await harness.add("a", "b")
        await harness.backend.maintenance.pause_queue("default", paused=True)
        await harness.add("c")
        await harness.backend.maintenance.pause_queue("default", paused=False)
        assert ids(await (await harness.worker()).take(5)) == ["a", "b", "c"]

    async def test_running_jobs_continue_and_can_be_settled(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert await worker.settle(Completed(lease)) == [Settled.DONE]

    async def test_a_retry_in_a_paused_queue_waits(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.backend.maintenance.pause_queue("default", paused=True)
        reply = await worker.exchange(Retried(lease, 0.0, FAILURE), want=worker.want(5))
        assert reply.deliveries == []
        assert await harness.state("a") is State.RETRYING

    async def test_a_paused_queue_takes_new_jobs_and_promotes_them(self, harness: Harness) -> None:
        await harness.backend.maintenance.pause_queue("default", paused=True)
        await harness.put(harness.job("a", after=5.0))
        harness.clock.advance(5.0)
        assert (await harness.backend.consuming.promote(10)).count == 1
        assert await (await harness.worker()).take(5) == []

    async def test_pausing_twice_is_pausing_once(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.backend.maintenance.pause_queue("default", paused=True)
        await harness.backend.maintenance.pause_queue("default", paused=True)
        await harness.backend.maintenance.pause_queue("default", paused=False)
        assert ids(await (await harness.worker()).take(5)) == ["a"]

    async def test_resuming_what_is_not_paused_does_nothing(self, harness: Harness) -> None:
        await harness.backend.maintenance.pause_queue("nowhere", paused=False)
        assert await harness.backend.reads.list_queues() == []

    async def test_a_paused_queue_is_listed_also_when_it_is_empty(self, harness: Harness) -> None:
        await harness.backend.maintenance.pause_queue("empty", paused=True)
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.name, queue.paused, queue.size, queue.processing) == ("empty", True, 0, 0)

    async def test_a_paused_job_can_be_cancelled(self, harness: Harness) -> None:
        await harness.add("a")
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert await harness.backend.producing.cancel("a") == "cancelled"

    async def test_a_repeat_returns_the_jobs_reserved_before_the_pause(
        self, harness: Harness
    ) -> None:
        await harness.add("a")
        worker = await harness.worker()
        want = worker.want(1)
        first = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        await harness.backend.maintenance.pause_queue("default", paused=True)
        again = await harness.backend.consuming.exchange(worker.id, 1, [], want)
        assert again.deliveries == first.deliveries

    async def test_what_is_rescued_while_it_is_paused_waits(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await worker.take_one()
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert (await harness.lose(worker)).returned == ["a"]
        assert await (await harness.worker()).take(9) == []

    async def test_its_lanes_are_not_waiting(self, harness: Harness) -> None:
        await harness.add("a", queue="red")
        await harness.add("b", queue="blue")
        await harness.backend.maintenance.pause_queue("red", paused=True)
        worker = await harness.worker(queues=("red", "blue"))
        reply = await worker.exchange(want=worker.want(0))
        assert reply.waiting == [Lane("blue", "mail")]

    async def test_its_jobs_age_all_the_same(self, harness: Harness) -> None:
        await harness.add("a", queue="low")
        await harness.backend.maintenance.pause_queue("low", paused=True)
        harness.clock.advance(130.0)
        await harness.backend.maintenance.pause_queue("low", paused=False)
        await harness.add("b", queue="high")
        worker = await harness.worker(queues=("low", "high"))
        options = {"high": QueueOptions(priority=1)}
        assert ids(await worker.take(1, queues=options, ageing=60.0)) == ["a"]

    async def test_a_pause_outlives_the_sessions(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await harness.backend.maintenance.pause_queue("default", paused=True)
        await worker.close()
        assert await (await harness.worker()).take(9) == []

    async def test_a_pause_says_who_paused_when_and_why(self, harness: Harness) -> None:
        since = harness.clock.now()
        until = since + 60.0
        await harness.backend.maintenance.pause_queue(
            "default", paused=True, by="ops", reason="disk ✓ full", until=until
        )
        (queue,) = await harness.backend.reads.list_queues()
        assert queue.paused
        assert queue.pause == Pause(by="ops", reason="disk ✓ full", since=since, until=until)

    async def test_a_second_pause_replaces_the_reason_and_keeps_the_time(
        self, harness: Harness
    ) -> None:
        since = harness.clock.now()
        await harness.backend.maintenance.pause_queue(
            "default", paused=True, by="a", reason="b", until=since + 60
        )
        harness.clock.advance(5.0)
        await harness.backend.maintenance.pause_queue("default", paused=True, by="c")
        (queue,) = await harness.backend.reads.list_queues()
        assert queue.pause == Pause(by="c", since=since)

    async def test_a_pause_ends_by_itself(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await harness.backend.maintenance.pause_queue(
            "default", paused=True, until=harness.clock.now() + 10.0
        )
        harness.clock.advance(9.0)
        assert await worker.take(5) == []
        assert (await worker.heartbeat()).paused == ["default"]
        harness.clock.advance(1.0)
        assert (await worker.heartbeat()).paused == []
        assert ids(await worker.take(5)) == ["a"]

    async def test_a_pause_that_ended_is_not_listed(self, harness: Harness) -> None:
        await harness.backend.maintenance.pause_queue(
            "empty", paused=True, until=harness.clock.now() + 10.0
        )
        await harness.add("a", queue="full")
        await harness.backend.maintenance.pause_queue(
            "full", paused=True, until=harness.clock.now() + 10.0
        )
        harness.clock.advance(10.0)
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.name, queue.paused, queue.pause) == ("full", False, None)

    async def test_a_new_pause_after_the_end_of_another_starts_anew(self, harness: Harness) -> None:
        await harness.backend.maintenance.pause_queue(
            "default", paused=True, until=harness.clock.now() + 10.0
        )
        harness.clock.advance(20.0)
        await harness.backend.maintenance.pause_queue("default", paused=True)
        (queue,) = await harness.backend.reads.list_queues()
        assert queue.pause == Pause(since=harness.clock.now())

    async def test_its_lanes_wait_again_after_the_pause_ended(self, harness: Harness) -> None:
        await harness.add("a")
        worker = await harness.worker()
        await harness.backend.maintenance.pause_queue(
            "default", paused=True, until=harness.clock.now() + 10.0
        )
        harness.clock.advance(10.0)
        reply = await worker.exchange(want=worker.want(0))
        assert reply.waiting == [Lane("default", "mail")]
