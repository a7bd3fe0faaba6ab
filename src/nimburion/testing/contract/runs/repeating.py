"""Lost replies: an exchange that is repeated stores each step once, and suspends each run once."""

from __future__ import annotations

import pytest

from nimburion.core.errors import SessionLost
from nimburion.core.job import State
from nimburion.core.runs import CLEANUP_STEP, make_signal_source
from nimburion.core.settlement import Completed, Recorded, Settled, Suspended
from nimburion.testing.contract.harness import Harness, ids
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    read,
    read_signals,
    read_steps,
    record,
    send,
    start,
    start_suspended,
    suspend,
)


class RepeatedRuns:
    """A worker repeats an exchange whose reply was lost, and one that it cannot know about."""

    async def test_a_repeat_delivers_the_same_jobs(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await harness.add("next")
        settlements = (Recorded(held.lease, 1, b"x"), Suspended(held.lease, (PAID,)))
        want = worker.want(1)
        first = await worker.exchange(*settlements, want=want)
        again = await worker.repeat(*settlements, want=want)
        assert ids(first.deliveries) == ids(again.deliveries) == ["next"]
        assert again.results == [Settled.DONE, Settled.DONE]
        assert await read_steps(harness) == [(1, b"x")]

    async def test_a_repeat_delivers_the_run_that_it_resumed(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness)
        want = worker.want(1)
        first = await worker.exchange(Suspended(held.lease, (PAID,)), want=want)
        again = await worker.repeat(Suspended(held.lease, (PAID,)), want=want)
        assert ids(first.deliveries) == ids(again.deliveries) == [RUN]
        assert (await worker.exchange(Completed(again.deliveries[0].lease))).results == [
            Settled.DONE
        ]

    async def test_a_repeat_does_not_suspend_a_run_that_another_worker_holds(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(Suspended(held.lease, (PAID,)))
        await send(harness)
        other = await harness.worker()
        new = await other.take_one()
        assert (await worker.repeat(Suspended(held.lease, (PAID,)))).results == [Settled.DONE]
        reply = await worker.exchange(Suspended(held.lease, (PAID,)))
        assert reply.results == [Settled.ALREADY]
        assert await harness.state(RUN) is State.PROCESSING
        assert (await other.exchange(Completed(new.lease))).results == [Settled.DONE]

    async def test_a_repeat_takes_no_second_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness, payload=b"a", key="s1")
        await send(harness, payload=b"b", key="s2")
        number = (await read(harness)).signals[0].number
        await worker.exchange(Recorded(held.lease, 1, b"a", number))
        await worker.repeat(Recorded(held.lease, 1, b"a", number))
        assert await read_signals(harness) == [("paid", b"b")]

    async def test_a_repeat_forgets_nothing(self, harness: Harness) -> None:
        """The reply was lost, and the next exchange stored more: the repeat comes late."""
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(Recorded(held.lease, 1, b"old"))
        anew = Recorded(held.lease, 2, b"anew", forgets=True)
        await worker.exchange(anew)
        await record(worker, held, 3, b"next")
        await worker.exchange(anew)
        assert await read_steps(harness) == [(2, b"anew"), (3, b"next")]

    async def test_a_step_that_a_lost_worker_repeats_is_not_stored(self, harness: Harness) -> None:
        """Its reply was lost, its session too, and another worker got on with the run."""
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1, b"x")
        await harness.lose(worker)
        other = await harness.worker()
        new = await other.take_one()
        await record(other, new, 2, b"y")
        with pytest.raises(SessionLost):
            await worker.exchange(Recorded(held.lease, 3, b"late"))
        assert await read_steps(harness) == [(1, b"x"), (2, b"y")]

    async def test_a_step_of_the_attempt_before_a_wait_is_stale(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start_suspended(harness, worker, PAID)
        await send(harness)
        await worker.take_one()
        reply = await worker.exchange(Recorded(held.lease, 1, b"late"))
        assert reply.results == [Settled.ALREADY]
        assert await read_steps(harness) == []

    async def test_a_crash_after_a_step_loses_nothing(self, harness: Harness) -> None:
        """The next worker finds the step, and the signal that the step took is not read again."""
        worker = await harness.worker()
        held = await start_suspended(harness, worker, PAID)
        await send(harness)
        held = await worker.take_one()
        (signal,) = (await read(harness)).signals
        await record(worker, held, 1, b"paid", takes=signal.number)
        await harness.lose(worker)
        worker = await harness.worker()
        held = await worker.take_one()
        assert (await read_steps(harness), await read_signals(harness)) == ([(1, b"paid")], [])
        await suspend(worker, held, PAID)
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_a_crash_before_a_step_loses_no_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID)
        await send(harness)
        await worker.take_one()
        await harness.lose(worker)
        worker = await harness.worker()
        held = await worker.take_one()
        assert (held.lost, await read_signals(harness)) == (1, [("paid", b"1")])
        reply = await worker.exchange(Suspended(held.lease, (PAID,)), want=worker.want(1))
        assert ids(reply.deliveries) == [RUN]

    async def test_a_lost_run_starts_no_wait(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, CLEANUP_STEP)
        await harness.lose(worker)
        with pytest.raises(SessionLost):
            await worker.exchange(Suspended(held.lease, (make_signal_source(RUN, "x"),)))
        assert await harness.state(RUN) is State.PENDING
