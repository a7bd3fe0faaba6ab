"""A scenario for a concurrency limit: a fleet, many more jobs than may run, and workers that
vanish."""

from __future__ import annotations

import asyncio

from nimburion.core.exchange import Reply
from nimburion.core.job import State
from nimburion.core.lease import Lease
from nimburion.core.session import ConcurrencyLimit
from nimburion.core.settlement import Completed, Settled
from nimburion.testing.contract.harness import TTL, HandDrivenWorker, Harness

JOBS, LIMIT, WORKERS = 5_000, 3, 8


class Fleet:
    """Eight workers, and the jobs that their handlers run at any time."""

    def __init__(self, harness: Harness, workers: list[HandDrivenWorker]) -> None:
        self.harness = harness
        self.workers = workers
        self.running: dict[str, Lease] = {}
        """Leases of running jobs: from the reply that delivers a job to the exchange that
        settles it."""
        self.most: int = 0
        self.completed: int = 0

    async def work(self, until: int) -> None:
        """Run the workers until `until` jobs are completed in total."""
        await asyncio.gather(*(self._work(worker, until) for worker in self.workers))

    async def _work(self, worker: HandDrivenWorker, until: int) -> None:
        held: list[Lease] = []
        while self.completed < until:
            for lease in held:
                del self.running[lease.job_id]
            done = [Completed(lease) for lease in held]
            reply = await worker.exchange(*done, want=worker.want(2))
            assert reply.results == [Settled.DONE] * len(done)
            self.completed += len(done)
            held = self._begin(reply)
            await asyncio.sleep(0)
        if held:
            await self._release(worker, held)

    def _begin(self, reply: Reply) -> list[Lease]:
        leases = [delivery.lease for delivery in reply.deliveries]
        assert not self.running.keys() & {lease.job_id for lease in leases}
        self.running |= {lease.job_id: lease for lease in leases}
        self.most = max(self.most, len(self.running))
        return leases

    async def _release(self, worker: HandDrivenWorker, held: list[Lease]) -> None:
        for lease in held:
            del self.running[lease.job_id]
        await worker.settle(*(Completed(lease) for lease in held))
        self.completed += len(held)

    async def lose(self, worker: HandDrivenWorker) -> None:
        """Let one worker reserve up to the limit and vanish. The other workers continue, and its
        jobs are rescued."""
        self.workers.remove(worker)
        held = self._begin(await worker.exchange(want=worker.want(LIMIT)))
        assert len(held) == LIMIT
        limit = (await self.workers[0].heartbeat()).limits["mail"]
        assert limit == ConcurrencyLimit(LIMIT, LIMIT)
        for _ in range(2):
            self.harness.clock.advance(TTL / 2)
            for member in self.workers:
                await member.heartbeat()
        for lease in held:
            del self.running[lease.job_id]
        rescued = await self.harness.backend.rescue(100, max_lost=3)
        assert sorted(rescued.returned) == sorted(lease.job_id for lease in held)


class LimitsScenario:
    """Limits, over time."""

    async def test_a_limit_holds_for_a_fleet_that_loses_workers(self, fleet: Harness) -> None:
        """8 workers, limit 3, 5,000 jobs, two lost: never above 3, all completed, 0 at rest."""
        await fleet.backend.enqueue([fleet.job(f"{n}") for n in range(JOBS)])
        scenario = Fleet(
            fleet,
            [
                await fleet.worker(backend=handle, limits={"mail": LIMIT})
                for handle in fleet.handles
            ],
        )
        assert len(scenario.workers) == WORKERS
        for share in (1, 2):
            await scenario.work(share * JOBS // 3)
            await scenario.lose(scenario.workers[-1])
        await scenario.work(JOBS)
        assert (scenario.most, scenario.completed) == (LIMIT, JOBS)
        assert (await scenario.workers[0].heartbeat()).limits == {
            "mail": ConcurrencyLimit(LIMIT, 0)
        }
        assert (await fleet.backend.count_jobs())[State.COMPLETED] == JOBS
