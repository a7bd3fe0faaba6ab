"""Scenarios for fairness among tenants, in virtual time: one with many jobs, one with long ones."""

from __future__ import annotations

from heapq import heappop, heappush

from nimburion.core.job import JobOptions, NewJob
from nimburion.core.lease import Lease
from nimburion.core.settlement import Completed
from nimburion.testing.contract.harness import TTL, HandDrivenWorker, Harness

SLOTS = 10
"""The jobs that run at the same time."""


class Load:
    """Tenants that enqueue all their jobs at the same time. Times are in seconds."""

    def __init__(self, jobs: dict[str, int], seconds: dict[str, float]) -> None:
        self.jobs = jobs
        """The number of jobs by tenant, in the order in which they are enqueued."""
        self.seconds = seconds
        """The run time of a job by tenant."""

    def make_jobs(self, harness: Harness) -> list[NewJob]:
        """Return all jobs; the id of a job begins with its tenant."""
        return [
            harness.job(f"{tenant}:{n}", options=JobOptions(tenant=tenant))
            for tenant, count in self.jobs.items()
            for n in range(count)
        ]

    def compute_wait(self, tenant: str) -> float:
        """Return the mean wait of a tenant's jobs if it had its share of the slots for itself."""
        rate = SLOTS / len(self.jobs) / self.seconds[tenant]
        return (self.jobs[tenant] - 1) / 2 / rate

    async def measure_waits(self, harness: Harness, light: set[str]) -> dict[str, float]:
        """Run the jobs until those of the `light` tenants have started. Return the mean waits."""
        jobs = self.make_jobs(harness)
        for first in range(0, len(jobs), 500):
            await harness.backend.producing.enqueue(jobs[first : first + 500])
        worker = await harness.worker()
        start = harness.clock.now()
        waits: dict[str, list[float]] = {tenant: [] for tenant in self.jobs}
        missing = sum(self.jobs[tenant] for tenant in light)
        running: list[tuple[float, str, Lease]] = []
        ended: list[Completed] = []
        while missing:
            now = harness.clock.now()
            reply = await worker.exchange(*ended, want=worker.want(SLOTS - len(running)))
            for delivery in reply.deliveries:
                lease = delivery.lease
                tenant = lease.job_id.partition(":")[0]
                waits[tenant].append(now - start)
                missing -= tenant in light
                heappush(running, (now + self.seconds[tenant], lease.job_id, lease))
            await self._pass_time(harness, worker, running[0][0])
            ended = []
            while running and running[0][0] <= harness.clock.now() + 1e-9:
                ended.append(Completed(heappop(running)[2]))
        return {tenant: sum(waits[tenant]) / len(waits[tenant]) for tenant in light}

    async def _pass_time(self, harness: Harness, worker: HandDrivenWorker, until: float) -> None:
        while (left := until - harness.clock.now()) > 0:
            harness.clock.advance(min(left, TTL / 2))
            await worker.heartbeat()


class FairnessScenario:
    """Waits of tenants with few or short jobs, beside one with many or long ones."""

    async def test_a_flood_delays_no_other_tenant(self, harness: Harness) -> None:
        """One tenant has 2,000 jobs, twenty have 10 each: these wait about as long as if they had
        their share of the slots for themselves."""
        light = {f"t{n}" for n in range(20)}
        jobs = {"flood": 2_000, **dict.fromkeys(sorted(light), 10)}
        load = Load(jobs, dict.fromkeys(jobs, 0.1))
        waits = await load.measure_waits(harness, light)
        assert max(waits.values()) <= 1.25 * load.compute_wait("t0")

    async def test_long_jobs_delay_no_other_tenant(self, harness: Harness) -> None:
        """One tenant has jobs of 10 s, five have jobs of 0.1 s, and no run time is known
        before: the short ones wait less than twice as long as with their share alone."""
        light = {f"t{n}" for n in range(5)}
        jobs = {"long": 100, **dict.fromkeys(sorted(light), 100)}
        load = Load(jobs, {"long": 10.0, **dict.fromkeys(light, 0.1)})
        waits = await load.measure_waits(harness, light)
        assert max(waits.values()) <= 2.0 * load.compute_wait("t0")
