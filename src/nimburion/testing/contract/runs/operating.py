"""What operators see of a durable run, and what pauses, limits and keys do with it."""

from __future__ import annotations

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import Unstorable
from nimburion.core.flows import NewFlow
from nimburion.core.job import JobOptions, State, sort_states
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import NewSignal, SignalOutcome, make_signal_source
from nimburion.core.settlement import Completed, Progressed, Recorded, Retried, Suspended
from nimburion.testing.contract.changing import make_due
from nimburion.testing.contract.flows.graphs import after, finish, member, store
from nimburion.testing.contract.harness import FAILURE, Harness, ids
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    flow_source,
    read_signals,
    read_steps,
    record,
    send,
    start,
    start_suspended,
    suspend,
)

SUSPENDED = JobFilter(states=frozenset({State.SUSPENDED}))


class OperatedRuns:
    """A suspended run is a job as any other one."""

    async def test_lists_and_counts_show_it(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID)
        await harness.add("plain")
        reads = harness.backend.reads
        assert [job.id for job in (await reads.list_jobs(SUSPENDED)).jobs] == [RUN]
        named = JobFilter(states=frozenset({State.SUSPENDED}), queue="default", name="mail")
        assert [job.id for job in (await reads.list_jobs(named)).jobs] == [RUN]
        others = JobFilter(states=frozenset({State.PENDING, State.PROCESSING, State.SCHEDULED}))
        assert [job.id for job in (await reads.list_jobs(others)).jobs] == ["plain"]
        counts = await reads.count_jobs("default")
        assert (counts[State.SUSPENDED], counts[State.PENDING]) == (1, 1)
        (queue,) = await reads.list_queues()
        assert (queue.size, queue.processing, queue.scheduled) == (1, 0, 0)

    async def test_its_record_says_what_it_is(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        held = await worker.take_one()
        await worker.exchange(Progressed(held.lease, 0.5), Suspended(held.lease, (PAID,)))
        job = await harness.backend.reads.get_job(RUN)
        assert (job.state, job.session, job.finished_at) == (State.SUSPENDED, None, None)
        assert (job.failures, job.lost, len(job.history)) == (1, 0, 1)
        assert job.progress is not None
        assert (job.progress.fraction, job.payload) == (0.5, b"{}")

    async def test_what_it_waits_for_does_not_come_of_an_action(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID, delay=60.0)
        assert await make_due(harness.backend, [RUN]) == []
        for action in (BulkAction.DELETE, BulkAction.REPLAY):
            changes = await harness.backend.maintenance.change_jobs(action, [RUN])
            assert changes.ids == []
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_a_paused_queue_keeps_a_resumed_run(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID)
        await harness.backend.maintenance.pause_queue("default", paused=True)
        assert await send(harness) is SignalOutcome.STORED
        assert await harness.state(RUN) is State.PENDING
        assert await worker.take(5) == []
        await harness.backend.maintenance.pause_queue("default", paused=False)
        assert ids(await worker.take(5)) == [RUN]

    async def test_it_has_taken_its_units_of_a_rate(self, harness: Harness) -> None:
        worker = await harness.worker(
            rates={"mail": RateLimit("2/h", interval=1_800_000_000, burst=2)}
        )
        await start_suspended(harness, worker, PAID)
        await send(harness)
        held = await worker.take_one()
        await suspend(worker, held, make_signal_source(RUN, "more"))
        await send(harness, "more", key="s2")
        assert await worker.take(5) == []

    async def test_it_takes_a_place_of_its_key_when_it_is_resumed(self, harness: Harness) -> None:
        keyed = {"mail": {"customer": LimitRule(concurrency=1)}}
        worker = await harness.worker(keyed=keyed)
        options = JobOptions(limit_keys={"customer": "acme"})
        await harness.enqueue(*(harness.job(job_id, options=options) for job_id in (RUN, "b", "c")))
        held = (await worker.take(5))[0]
        reply = await worker.exchange(Suspended(held.lease, (PAID,)), want=worker.want(5))
        assert ids(reply.deliveries) == ["b"]
        await send(harness)
        assert await worker.take(5) == []
        done = Completed(reply.deliveries[0].lease)
        taken = ids((await worker.exchange(done, want=worker.want(5))).deliveries)
        assert len(taken) == 1
        assert await worker.take(5) == []

    @pytest.mark.parametrize(
        ("states", "outcome"),
        [
            ((State.PENDING, State.SUSPENDED), "taken"),
            ((State.PENDING, State.PROCESSING), "created"),
        ],
    )
    async def test_its_unique_key_is_held_in_the_states_it_names(
        self, harness: Harness, states: tuple[State, ...], outcome: str
    ) -> None:
        worker = await harness.worker()
        options = JobOptions(unique_key="k", unique_while=sort_states(states))
        await harness.put(harness.job(RUN, options=options))
        held = await worker.take_one()
        await suspend(worker, held, PAID)
        (result,) = await harness.enqueue(harness.job("other", options=options))
        assert result.outcome == outcome

    async def test_its_tenant_waits_for_no_turn(self, harness: Harness) -> None:
        worker = await harness.worker()
        options = JobOptions(tenant="acme")
        await harness.put(harness.job(RUN, options=options))
        held = await worker.take_one()
        await suspend(worker, held, PAID)
        uses = (await harness.backend.reads.list_tenants()).tenants
        assert [use for use in uses if use.waiting or use.running] == []
        await send(harness)
        (use,) = (await harness.backend.reads.list_tenants()).tenants
        assert (use.waiting, use.running) == (1, 0)
        assert ids(await worker.take(5)) == [RUN]

    async def test_a_result_that_expires_leaves_the_steps(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await worker.exchange(Completed(held.lease, b"1"))
        harness.clock.advance(120.0)
        keep = Retention(completed=3_600.0, results=60.0)
        while await harness.backend.maintenance.prune(keep, 100):
            pass
        assert (await harness.backend.reads.get_job(RUN)).result is None
        assert await read_steps(harness) == [(1, b"1")]

    async def test_a_prune_leaves_a_suspended_run(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await record(worker, held, 1)
        await suspend(worker, held, PAID)
        harness.clock.advance(400 * 86_400.0)
        while await harness.backend.maintenance.prune(Retention(completed=1.0), 100):
            pass
        assert await harness.state(RUN) is State.SUSPENDED
        assert await read_steps(harness) == [(1, b"1")]

    async def test_its_flow_runs_until_it_has_ended(self, harness: Harness) -> None:
        worker = await harness.worker()
        await store(harness, [member(RUN), member("b", after(RUN))])
        held = await worker.take_one()
        await suspend(worker, held, PAID)
        (flow,) = await harness.backend.reads.get_flow("import")
        assert (flow.unfinished, flow.completed) == (2, 0)
        await send(harness)
        await finish(worker, RUN)
        assert ids(await worker.take(5)) == ["b"]

    async def test_a_delay_that_is_no_time_applies_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        with pytest.raises(Unstorable):
            await harness.backend.consuming.exchange(
                worker.id,
                worker.number + 1,
                [Recorded(held.lease, 1, b"x"), Suspended(held.lease, (PAID,), float("nan"))],
                worker.want(0),
            )
        assert await harness.state(RUN) is State.PROCESSING
        assert await read_steps(harness) == []


class SignallingJobs:
    """`send_signals` with several jobs, and with jobs that do not wait for a signal."""

    async def test_several_jobs_in_one_call(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.add("r1", "r2", "done", "waits")
        held = {one.lease.job_id: one.lease for one in await worker.take(3)}
        await worker.exchange(
            Suspended(held["r1"], (make_signal_source("r1", "go"),)),
            Suspended(held["r2"], (make_signal_source("r2", "other"),)),
            Completed(held["done"]),
        )
        signals = [
            NewSignal(job_id, "go", key, b"")
            for job_id, key in (
                ("unknown", "1"),
                ("r2", "1"),
                ("done", "1"),
                ("r1", "1"),
                ("waits", "1"),
                ("r1", "1"),
                ("r1", "2"),
            )
        ]
        outcomes = await harness.backend.producing.send_signals(signals)
        assert [str(one) for one in outcomes] == [
            "unknown", "stored", "finished", "stored", "stored", "exists", "stored",
        ]  # fmt: skip
        assert {*ids(await worker.take(5))} == {"r1", "waits"}
        assert await harness.state("r2") is State.SUSPENDED
        page = await harness.backend.reads.read_run("r1")
        assert [signal.number for signal in page.signals] == [1, 2]

    async def test_an_empty_call(self, harness: Harness) -> None:
        assert await harness.backend.producing.send_signals([]) == []

    async def test_a_job_that_waits_for_others_is_not_resumed(self, harness: Harness) -> None:
        await store(harness, [member("a"), member(RUN, after("a"))])
        assert await send(harness) is SignalOutcome.STORED
        assert await harness.state(RUN) is State.SUSPENDED
        worker = await harness.worker()
        await finish(worker, "a")
        assert ids(await worker.take(5)) == [RUN]

    async def test_a_signal_is_stored_for_a_job_in_any_state(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.put(harness.job(RUN, after=60.0))
        assert await send(harness, key="scheduled") is SignalOutcome.STORED
        harness.clock.advance(60.0)
        worker = await harness.worker()
        held = await worker.take_one()
        assert await send(harness, key="processing") is SignalOutcome.STORED
        await worker.exchange(Retried(held.lease, 60.0, FAILURE))
        assert await send(harness, key="retrying") is SignalOutcome.STORED
        assert await harness.state(RUN) is State.RETRYING
        assert len(await read_signals(harness)) == 3

    async def test_an_id_that_another_job_has_is_free(self, harness: Harness) -> None:
        await harness.add("r1", "r2")
        signals = [NewSignal(job_id, "go", "same", b"") for job_id in ("r1", "r2")]
        outcomes = await harness.backend.producing.send_signals(signals)
        assert outcomes == [SignalOutcome.STORED, SignalOutcome.STORED]

    async def test_a_flow_and_a_signal_of_the_same_text_are_two_sources(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        flow_id = PAID.id
        await store(
            harness, [member("a", flow=flow_id)], NewFlow(id=flow_id, name="child", members=1)
        )
        await suspend(worker, held, PAID)
        await finish(worker, "a")
        assert await harness.state(RUN) is State.SUSPENDED
        await send(harness)
        assert await harness.state(RUN) is State.PENDING

    async def test_a_run_waits_for_a_flow_of_the_text_of_a_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        flow_id = PAID.id
        await store(
            harness, [member("a", flow=flow_id)], NewFlow(id=flow_id, name="child", members=1)
        )
        await suspend(worker, held, flow_source(flow_id))
        await send(harness)
        assert await harness.state(RUN) is State.SUSPENDED
