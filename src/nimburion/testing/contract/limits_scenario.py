"""A scenario for a concurrency limit: a fleet, many more jobs than may run, and workers that
vanish."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from nimburion.core.exchange import Reply
from nimburion.core.job import JobOptions, State
from nimburion.core.lease import Delivery, Lease
from nimburion.core.limits import LimitRule
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import ConcurrencyLimit
from nimburion.core.settlement import Completed, Settled
from nimburion.testing.contract.harness import TTL, HandDrivenWorker, Harness, list_uses

LIMIT, WORKERS = 3, 8


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
        rescued = await self.harness.backend.consuming.rescue(100, max_lost=3)
        assert sorted(rescued.returned) == sorted(lease.job_id for lease in held)


class LimitsScenario:
    """Limits, over time."""

    @pytest.mark.parametrize("jobs", [600, 5_000])
    async def test_a_limit_holds_for_a_fleet_that_loses_workers(
        self, fleet: Harness, jobs: int
    ) -> None:
        """8 workers, limit 3, two lost: never above 3, all completed, 0 at rest."""
        await fleet.backend.producing.enqueue([fleet.job(f"{n}") for n in range(jobs)])
        scenario = Fleet(
            fleet,
            [
                await fleet.worker(backend=handle, limits={"mail": LIMIT})
                for handle in fleet.handles
            ],
        )
        assert len(scenario.workers) == WORKERS
        for share in (1, 2):
            await scenario.work(share * jobs // 3)
            await scenario.lose(scenario.workers[-1])
        await scenario.work(jobs)
        assert (scenario.most, scenario.completed) == (LIMIT, jobs)
        assert (await scenario.workers[0].heartbeat()).limits == {
            "mail": ConcurrencyLimit(LIMIT, 0)
        }
        assert (await fleet.backend.reads.count_jobs())[State.COMPLETED] == jobs

    async def test_three_limits_hold_for_a_fleet_that_loses_workers(self, fleet: Harness) -> None:
        """8 workers, 400 jobs: a concurrency limit, a limit by key and a rate by key; three
        sessions are lost. Nothing is ever above a limit, and nothing is in use at rest."""
        rate = RateLimit("4/s", interval=250_000, burst=3)
        options = {
            "limits": {"mail": 6},
            "keyed": {
                "mail": {"customer": LimitRule(concurrency=1), "region": LimitRule(rate=rate)}
            },
        }
        luck = Random(7)  # noqa: S311 - the scenario is the same each time
        count = 400
        await fleet.backend.producing.enqueue(
            [
                fleet.job(
                    f"{n}",
                    options=JobOptions(
                        limit_keys={"customer": f"c{luck.randrange(9)}", "region": f"r{n % 3}"}
                    ),
                )
                for n in range(count)
            ]
        )
        workers = [await fleet.worker(backend=handle, **options) for handle in fleet.handles]  # type: ignore[arg-type]
        held: dict[str, list[Delivery]] = {worker.id: [] for worker in workers}
        starts: dict[str, list[float]] = {}
        completed = 0
        for step in range(20 * count):
            worker = luck.choice(workers)
            mine = held[worker.id]
            settled = [mine.pop() for _ in range(luck.randint(0, len(mine)))]
            reply = await worker.exchange(
                *(Completed(one.lease) for one in settled), want=worker.want(luck.randint(1, 4))
            )
            completed += len(settled)
            mine += reply.deliveries
            for delivery in reply.deliveries:
                region = delivery.options.limit_keys["region"]
                starts.setdefault(region, []).append(reply.now)
            _check_three_limits(held, starts, rate)
            if completed == count:
                break
            fleet.clock.advance(0.05)
            if step % 100 == 0:
                for each in workers:
                    await each.heartbeat()
            if step in {150, 300, 450}:
                lost = workers.pop(luck.randrange(len(workers)))
                del held[lost.id]
                fleet.clock.advance(TTL / 2)
                for each in workers:
                    await each.heartbeat()
                fleet.clock.advance(TTL / 2)
                await fleet.backend.consuming.rescue(100, max_lost=9)
        assert completed == count
        assert await list_uses(fleet.backend) == []
        assert (await workers[0].heartbeat()).limits == {"mail": ConcurrencyLimit(6, 0)}


def _check_three_limits(
    held: dict[str, list[Delivery]], starts: dict[str, list[float]], rate: RateLimit
) -> None:
    running = [one.options.limit_keys["customer"] for mine in held.values() for one in mine]
    assert len(running) <= 6
    assert len(running) == len(set(running))
    for times in starts.values():
        for first in range(max(0, len(times) - 20), len(times)):
            most = rate.burst + (times[-1] - times[first]) * 1e6 / rate.interval
            assert len(times) - first <= most + 1e-3
