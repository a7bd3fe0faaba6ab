"""Concurrent callers of different kinds: no job is lost, and no job is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter

from nimburion.core.maintenance import Cancellation, Retention
from nimburion.core.queries import EVERY_JOB
from nimburion.testing.contract.changing import delete
from nimburion.testing.contract.harness import Harness, ids
from nimburion.testing.contract.racing import RACERS, race


class Traffic:
    """Concurrent callers of different kinds."""

    async def test_enqueueing_while_others_reserve_loses_nothing(self, fleet: Harness) -> None:
        workers = [await fleet.worker(backend=handle) for handle in fleet.handles]
        taken: list[str] = []

        async def run(n: int) -> None:
            if n % 2:
                for _ in range(25):
                    await fleet.handles[n // 2].producing.enqueue([fleet.job()])
                    await asyncio.sleep(0)
                return
            while len(taken) < 200:
                taken.extend(ids(await workers[n // 2].take(5)))
                await asyncio.sleep(0)

        await race(16, run)
        assert len(taken) == len(set(taken)) == 200

    async def test_one_cancel_wins(self, fleet: Harness) -> None:
        await fleet.add("a")
        answers = await race(RACERS, lambda n: fleet.handles[n % 8].producing.cancel("a"))
        assert Counter(answers) == {Cancellation.CANCELLED: 1, Cancellation.FINISHED: RACERS - 1}

    async def test_every_record_is_deleted_or_pruned_once(self, fleet: Harness) -> None:
        jobs = [fleet.job() for _ in range(60)]
        await fleet.backend.producing.enqueue(jobs)
        for job in jobs:
            await fleet.backend.producing.cancel(job.id)
        fleet.clock.advance(1.0)
        keep = Retention(completed=0.0)

        async def run(n: int) -> int:
            if n % 2:
                return await fleet.handles[n % 8].maintenance.prune(keep, 3)
            return len(await delete(fleet.handles[n % 8], EVERY_JOB, 3))

        gone = 0
        while found := sum(await race(16, run)):
            gone += found
        assert gone == 60
        assert sum((await fleet.backend.reads.count_jobs()).values()) == 0

    async def test_nothing_is_reserved_after_a_pause(self, fleet: Harness) -> None:
        """This holds from the moment that `pause_queue` returns, for all callers."""
        await fleet.backend.producing.enqueue([fleet.job() for _ in range(100)])
        workers = [await fleet.worker(backend=handle) for handle in fleet.handles]
        paused = asyncio.Event()
        late: list[str] = []

        async def run(n: int) -> None:
            if n == len(workers):
                await fleet.backend.maintenance.pause_queue("default", paused=True)
                paused.set()
                return
            for _ in range(10):
                after = paused.is_set()
                taken = ids(await workers[n].take(1))
                late.extend(taken if after else ())
                await asyncio.sleep(0)

        await race(len(workers) + 1, run)
        assert late == []
        assert await workers[0].take(100) == []
