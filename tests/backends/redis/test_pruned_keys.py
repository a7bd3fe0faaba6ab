"""When every job and session is forgotten, their keys are empty, whatever happened before."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import Phase
from hypothesis.stateful import run_state_machine_as_test

from nimburion.backends.redis import RedisBackend
from nimburion.core.backend import Backend
from nimburion.core.maintenance import Retention
from nimburion.core.queries import EVERY_JOB
from nimburion.core.runs import CLEANUP_STEP
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.changing import delete
from tests.model.machine import FLOWS, Twins, make_graph
from tests.servers import Server

OF_NO_JOB = {
    "idle_worker",
    "lane_counts",
    "lane_number",
    "lane_name",
    "meta",
    "counters",
    "paused_queue",
    "limit",
    "limit_use",
    "limit_opening",
    "changed_lane",
    "tenant_weight",
    "declared_limit",
    "limit_change",
    "record",
    "record_order",
}
OF_NO_JOB |= {
    "statistics_merged",
    "pruned_blocks",
}
"""Keys that grow with lanes, names, queues and records; `pruned_blocks` with runs of forgotten
jobs."""
EVERYTHING = Retention(completed=0.0, failed=0.0, results=0.0)


@pytest.mark.slow
def test_nothing_is_left_of_what_is_forgotten(valkey: Server) -> None:
    class PrunedTwins(Twins):
        checks_progress = False  # it would leave a session
        first_step = CLEANUP_STEP + 1  # only a worker ends a run with that step

        def make_subject(self, clock: FakeClock) -> Backend:
            return RedisBackend(valkey.url, clock=clock, timeout=30.0)

        def remove_subject(self) -> None:
            try:
                with valkey.client(decode_responses=True) as client:
                    left = {key.rpartition(":")[2] for key in client.scan_iter()}
            finally:
                valkey.empty()
            assert left <= OF_NO_JOB

        def teardown(self) -> None:
            self.loop.run_until_complete(self.forget())
            super().teardown()

        async def forget(self) -> None:
            """On both, so that they go on answering alike."""
            self.clock.advance(1_000.0)
            for backend in (self.oracle, self.subject):
                await backend.consuming.rescue(1_000, max_lost=3)
                await cancel_all(backend)
                await enqueue_missing_members(backend)
                await cancel_all(backend)
                await delete(backend, EVERY_JOB, 1_000)
            self.clock.advance(10 * 86_400.0)
            for backend in (self.oracle, self.subject):
                await backend.maintenance.prune(EVERYTHING, 1_000)

    valkey.empty()
    few = hypothesis.settings(max_examples=12, phases=[Phase.generate])
    run_state_machine_as_test(PrunedTwins, settings=few)


async def cancel_all(backend: Backend) -> None:
    for job in (await backend.reads.list_jobs(limit=1_000)).jobs:
        await backend.producing.cancel(job.id)


async def enqueue_missing_members(backend: Backend) -> None:
    """Repeat the calls that stored a part of a flow. Such a flow runs until all are stored."""
    page = await backend.reads.list_flows(running=True, limit=1_000)
    running = {flow.id for flow in page.flows}
    for number in range(FLOWS):
        jobs, flows = make_graph(number)
        if flows[0].id in running:
            await backend.producing.enqueue(jobs, flows)
