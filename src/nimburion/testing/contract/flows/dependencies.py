"""Conditions: which jobs are suspended, and which ends resume or cancel them."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import InvalidJob
from nimburion.core.flows import MAX_RESOLVED, FlowState, NewFlow, On
from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.maintenance import Cancellation
from nimburion.core.settlement import Completed, Released, Retried, Settled
from nimburion.testing.contract.consuming.waiting import listening
from nimburion.testing.contract.flows.graphs import (
    FAILING_ENDS,
    FLOW,
    after,
    after_flow,
    fail,
    finish,
    list_waiting,
    make_flow,
    make_group,
    member,
    read_counts,
    store,
)
from nimburion.testing.contract.harness import FAILURE, Harness, ids, wait_in_time


class Suspending:
    """A job with conditions waits without worker, slot or limit."""

    async def test_a_job_with_a_condition_is_suspended(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        assert await harness.state("b") is State.SUSPENDED
        assert await list_waiting(worker) == ["a"]
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.SUSPENDED]) == (1, 1)
        assert (await harness.backend.reads.count_jobs("default"))[State.SUSPENDED] == 1

    async def test_a_queue_does_not_count_it(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        (queue,) = await harness.backend.reads.list_queues()
        assert (queue.size, queue.scheduled, queue.processing) == (1, 0, 0)

    async def test_it_takes_no_place_of_a_limit(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a")), member("c")])
        worker = await harness.worker(limits={"mail": 2})
        assert ids(await worker.take(5)) == ["a", "c"]

    async def test_it_holds_its_unique_key(self, harness: Harness) -> None:
        options = JobOptions(flow=FLOW, conditions=after("a"), unique_key="k")
        unique = NewJob("b", "mail", "default", b"{}", options=options)
        await store(harness, [member("a"), unique])
        for on_duplicate in ("reject", "replace"):
            other = JobOptions(unique_key="k", on_duplicate=on_duplicate)
            assert await harness.enqueue(harness.job("c", options=other)) == [
                Enqueued("b", "taken")
            ]

    async def test_it_can_be_cancelled(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a")), member("c", after("b"))])
        assert await harness.backend.producing.cancel("b") is Cancellation.CANCELLED
        record = await harness.backend.reads.get_job("b")
        assert (record.state, record.reason, record.payload) == (State.CANCELLED, None, None)
        assert (await harness.backend.reads.get_job("c")).reason == "dependency"
        worker = await harness.worker()
        await finish(worker, "a")
        assert await harness.state("b") is State.CANCELLED
        assert await read_counts(harness) == (FlowState.CANCELLED, 0, 1, 0, 2)


class Resuming:
    """A job is resumed in the step that meets its last condition."""

    async def test_the_step_that_ends_the_source_can_reserve_it(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        first = await worker.take_one()
        reply = await worker.exchange(Completed(first.lease), want=worker.want(5))
        assert ids(reply.deliveries) == ["b"]
        assert reply.deliveries[0].payload == b'{"a":1}'

    async def test_it_waits_for_all_of_its_conditions(self, harness: Harness) -> None:
        sources = [member(job_id) for job_id in "abc"]
        await store(harness, [*sources, member("d", after("a", "b", "c"))])
        worker = await harness.worker()
        await finish(worker, "b")
        await finish(worker, "a")
        assert await harness.state("d") is State.SUSPENDED
        await finish(worker, "c")
        assert await list_waiting(worker) == ["d"]

    async def test_sources_that_end_in_one_step_resume_it(self, harness: Harness) -> None:
        sources = [member(job_id) for job_id in "abc"]
        await store(harness, [*sources, member("d", after("a", "b", "c"))])
        worker = await harness.worker()
        await finish(worker, "a", "b", "c")
        assert await list_waiting(worker) == ["d"]

    async def test_all_that_wait_for_one_job_are_resumed_in_order(self, harness: Harness) -> None:
        waiting = [member(f"w{number}", after("a")) for number in range(20)]
        await store(harness, [member("a"), *waiting])
        worker = await harness.worker()
        await finish(worker, "a")
        assert await list_waiting(worker) == [job.id for job in waiting]

    async def test_it_is_due_when_it_is_resumed(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        harness.clock.advance(60.0)
        await finish(worker, "a")
        assert (await harness.backend.reads.get_job("b")).due == harness.clock.now()

    async def test_a_later_due_time_stays(self, harness: Harness) -> None:
        due = harness.clock.now() + 100.0
        await store(harness, [member("a"), member("b", after("a"), at=due)])
        assert await harness.state("b") is State.SUSPENDED
        worker = await harness.worker()
        await finish(worker, "a")
        assert await harness.state("b") is State.SCHEDULED
        harness.clock.advance(100.0)
        assert await list_waiting(worker) == ["b"]

    async def test_a_due_time_that_passes_does_not_resume_it(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"), after=10.0)])
        worker = await harness.worker()
        harness.clock.advance(20.0)
        await harness.backend.consuming.promote(100)
        assert await list_waiting(worker) == ["a"]

    async def test_attempts_that_continue_resume_nothing(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a", on=On.FINISHED))])
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        await worker.settle(Released((await worker.take_one()).lease))
        await worker.take_one()
        await harness.lose(worker)
        assert await harness.state("b") is State.SUSPENDED

    async def test_a_stale_settlement_resumes_nothing(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker, other = await harness.worker(), await harness.worker()
        stale = (await worker.take_one()).lease
        await harness.backend.consuming.release(worker.id, [stale])
        await other.take_one()
        assert await worker.settle(Completed(stale)) == [Settled.ALREADY]
        assert await harness.state("b") is State.SUSPENDED

    async def test_a_repeated_exchange_counts_once(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b"), member("c", after("a", "b"))])
        worker = await harness.worker()
        first, _ = await worker.take(2)
        await worker.settle(Completed(first.lease))
        consuming = worker.backend.consuming
        await consuming.exchange(worker.id, worker.number, [Completed(first.lease)], worker.want(0))
        assert await harness.state("c") is State.SUSPENDED
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 1, 0, 0)

    async def test_a_resumed_job_wakes_a_worker(self, fleet: Harness) -> None:
        if not fleet.backend.capabilities.notifies:
            pytest.skip("this backend does not notify")
        await store(fleet, [member("a"), member("b", after("a"))])
        worker, other = await fleet.worker(), await fleet.worker(backend=fleet.handles[1])
        lease = (await worker.take_one()).lease
        assert await other.take(1) == []
        woken = await listening(fleet, 1, ("default",), 15.0)
        await worker.settle(Completed(lease))
        await wait_in_time(woken)
        assert ids(await other.take(1)) == ["b"]

    async def test_more_than_one_step_resumes(self, harness: Harness) -> None:
        """One step resumes at most `MAX_RESOLVED`; any next one continues."""
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}", after("a")) for number in range(count)]
        await store(harness, [member("a"), *waiting])
        worker = await harness.worker()
        await finish(worker, "a")
        states = await harness.backend.reads.count_jobs()
        assert states[State.PENDING] <= MAX_RESOLVED
        for _ in range(3):
            await harness.backend.consuming.promote(1_000)
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == count
        assert ids(await worker.take(3)) == ["w0000", "w0001", "w0002"]


class EndingWithoutSuccess:
    """A job that waits for a success is cancelled when that cannot come."""

    @pytest.mark.parametrize("way", FAILING_ENDS)
    async def test_a_failing_end(self, harness: Harness, way: str) -> None:
        jobs = [
            member("a"),
            member("success", after("a")),
            member("behind", after("success")),
            member("finished", after("a", on=On.FINISHED)),
            member("failure", after("a", on=On.FAILURE)),
        ]
        await store(harness, jobs)
        await FAILING_ENDS[way](harness, await harness.worker(), "a")
        for job_id in ("success", "behind"):
            record = await harness.backend.reads.get_job(job_id)
            assert (record.state, record.reason) == (State.CANCELLED, "dependency")
            assert record.payload == b'{"a":1}'
            assert record.finished_at == harness.clock.now()
        assert await list_waiting(await harness.worker()) == ["finished", "failure"]
        _, unfinished, _, failed, cancelled = await read_counts(harness)
        assert (unfinished, failed + cancelled) == (2, 3)

    async def test_a_success_cancels_those_that_wait_for_a_failure(self, harness: Harness) -> None:
        failure = member("failure", after("a", on=On.FAILURE))
        await store(harness, [member("a"), failure, member("finished", after("a", on=On.FINISHED))])
        worker = await harness.worker()
        await finish(worker, "a")
        record = await harness.backend.reads.get_job("failure")
        assert (record.state, record.reason) == (State.CANCELLED, "not needed")
        assert await list_waiting(worker) == ["finished"]

    async def test_other_members_continue(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b"), member("c", after("b"))])
        worker = await harness.worker()
        await fail(worker, "a")
        await finish(worker, "b")
        assert await list_waiting(worker) == ["c"]

    async def test_it_is_cancelled_once(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b"), member("c", after("a", "b"))])
        worker = await harness.worker()
        await fail(worker, "a", "b")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 2, 1)

    async def test_it_frees_its_unique_key(self, harness: Harness) -> None:
        options = JobOptions(flow=FLOW, conditions=after("a"), unique_key="k")
        unique = NewJob("b", "mail", "default", b"{}", options=options)
        await store(harness, [member("a"), unique])
        await fail(await harness.worker(), "a")
        await harness.put(harness.job("c", options=JobOptions(unique_key="k")))

    async def test_a_worker_continues_what_is_left(self, harness: Harness) -> None:
        """The heartbeat says that something is left, and the rescue continues it."""
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}", after("a")) for number in range(count)]
        await store(harness, [member("a"), *waiting])
        worker = await harness.worker()
        assert (await worker.heartbeat()).next_expiry > 0
        await fail(worker, "a")
        assert (await worker.heartbeat()).next_expiry == 0
        steps = 1
        while (await harness.backend.consuming.rescue(100, max_lost=3)).more:
            steps += 1
        assert steps in {2, 3}
        assert (await worker.heartbeat()).next_expiry > 0
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, count)

    @pytest.mark.parametrize("limits", [{}, {"mail": 2}])
    async def test_an_exchange_of_any_worker_continues(
        self, harness: Harness, limits: dict[str, int]
    ) -> None:
        """The next exchange of each worker continues, and asks for another at once.

        Some backends plan an exchange with limits in other steps.
        """
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}", after("a")) for number in range(count)]
        await store(harness, [member("a"), *waiting])
        worker = await harness.worker()
        other = await harness.worker(names=("mail", "report"), limits=limits)
        await fail(worker, "a")
        for left in (1, 0):
            reply = await other.exchange(want=other.want())
            assert (await read_counts(harness))[1] == left
            assert (reply.next_due is not None) is (left > 0)
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, count)

    async def test_more_than_one_step_cancels(self, harness: Harness) -> None:
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}", after("a")) for number in range(count)]
        await store(harness, [member("a"), *waiting])
        await fail(await harness.worker(), "a")
        assert (await harness.backend.reads.count_jobs())[State.CANCELLED] <= MAX_RESOLVED
        for _ in range(3):
            await harness.backend.consuming.promote(1_000)
        assert (await harness.backend.reads.count_jobs())[State.CANCELLED] == count
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, count)


class EnqueueingFlows:
    """`enqueue` with flows: repeats, parts, and what is refused."""

    async def test_a_repeated_flow_changes_nothing(self, harness: Harness) -> None:
        jobs = [member("a"), member("b", after("a")), member("c", after("b"))]
        await store(harness, jobs)
        worker = await harness.worker()
        await finish(worker, "a")
        results = await harness.backend.producing.enqueue(jobs, [make_flow(3)])
        assert {result.outcome for result in results} == {"exists"}
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 1, 0, 0)
        assert await harness.state("c") is State.SUSPENDED
        assert [flow.id for flow in (await harness.backend.reads.list_flows()).flows] == [FLOW]
        assert await list_waiting(worker) == ["b"]

    async def test_a_repeat_completes_a_flow(self, harness: Harness) -> None:
        """A flow that is stored in parts ends with its last member, not with the last stored."""
        jobs = [member("a"), member("b", after("a")), member("c", after("b"))]
        await store(harness, jobs[:1], members=3)
        worker = await harness.worker()
        await finish(worker, "a")
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 1, 0, 0)
        results = await harness.backend.producing.enqueue(jobs, [make_flow(3)])
        assert [result.outcome for result in results] == ["exists", "created", "created"]
        assert await list_waiting(worker) == ["b"]
        assert await harness.state("c") is State.SUSPENDED

    async def test_a_source_that_has_failed_counts(self, harness: Harness) -> None:
        jobs = [member("a"), member("b", after("a")), member("c", after("a", on=On.FAILURE))]
        await store(harness, jobs[:1], members=3)
        worker = await harness.worker()
        await fail(worker, "a")
        await harness.backend.producing.enqueue(jobs, [make_flow(3)])
        record = await harness.backend.reads.get_job("b")
        assert (record.state, record.reason) == (State.CANCELLED, "dependency")
        assert await list_waiting(worker) == ["c"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 1, 1)

    async def test_a_flow_that_has_ended_counts(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        worker = await harness.worker()
        await finish(worker, "a")
        await store(harness, [member("done", after_flow(), flow=None)], make_flow(1))
        await store(harness, [member("alert", after_flow(on=On.FAILURE), flow=None)], make_flow(1))
        assert await list_waiting(worker) == ["done"]
        assert (await harness.backend.reads.get_job("alert")).reason == "not needed"

    @pytest.mark.parametrize(
        "job",
        [
            member("b", after("unknown")),
            member("b", after_flow("unknown")),
            member("b", flow="unknown"),
            member("b", group="unknown"),
        ],
        ids=["a job", "a flow", "the own flow", "the own group"],
    )
    async def test_an_unknown_source_is_refused(self, harness: Harness, job: NewJob) -> None:
        with pytest.raises(InvalidJob, match="unknown"):
            await harness.backend.producing.enqueue([member("a"), job], [make_flow(2)])
        assert await harness.backend.reads.get_flow(FLOW) == []
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    @pytest.mark.parametrize(
        "source", ["waits", "has ended", "comes in the same call", "is in another flow"]
    )
    async def test_a_source_in_no_flow_of_the_call_is_refused(
        self, harness: Harness, source: str
    ) -> None:
        """Nothing would follow from its end."""
        jobs = [member("b", after("a"))]
        if source == "comes in the same call":
            jobs.insert(0, harness.job("a"))
        elif source == "is in another flow":
            await store(harness, [member("a", flow="other")], make_flow(1, flow_id="other"))
        else:
            await harness.add("a")
        if source == "has ended":
            await finish(await harness.worker(), "a")
        with pytest.raises(InvalidJob, match="'a', which is unknown or a job of no flow"):
            await harness.backend.producing.enqueue(jobs, [make_flow(1)])
        assert await harness.backend.reads.get_flow(FLOW) == []

    async def test_a_group_in_an_unknown_flow_is_refused(self, harness: Harness) -> None:
        group = NewFlow(id="parts", name="parts", members=0, parent="unknown")
        with pytest.raises(InvalidJob, match="unknown"):
            await harness.backend.producing.enqueue([], [group])

    async def test_another_flow_with_the_id_is_refused(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        for other in (make_flow(2), make_flow(1, max_failed=1)):
            with pytest.raises(InvalidJob, match=FLOW):
                await harness.backend.producing.enqueue([member("b")], [other])
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    @pytest.mark.parametrize("has_ended", [True, False])
    async def test_another_flow_with_other_groups_is_refused(
        self, harness: Harness, *, has_ended: bool
    ) -> None:
        """Its groups would never end: the flow that is kept counts others."""
        members = [member("parts.0", group="parts")]
        await store(harness, members, make_flow(1), make_group("parts", 1))
        if has_ended:
            await finish(await harness.worker(), "parts.0")
        before = await read_counts(harness)
        others = [member("pieces.0", group="pieces")]
        with pytest.raises(InvalidJob, match=f"'{FLOW}' is kept: it has other groups"):
            await harness.backend.producing.enqueue(others, [make_flow(1), make_group("pieces", 1)])
        assert await harness.backend.reads.get_flow("pieces") == []
        assert await read_counts(harness) == before
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1
        again = await harness.backend.producing.enqueue(
            members, [make_flow(1), make_group("parts", 1)]
        )
        assert [result.outcome for result in again] == ["exists"]

    async def test_a_conflict_adds_no_flow(self, harness: Harness) -> None:
        await harness.add("a")
        results = await harness.backend.producing.enqueue(
            [member("a"), member("b", after("a"))], [make_flow(2)]
        )
        assert [result.outcome for result in results] == ["conflict", "refused"]
        assert await harness.backend.reads.get_flow(FLOW) == []

    @pytest.mark.parametrize("flow_id", [None, "other"])
    async def test_a_job_outside_the_flow_is_no_member(
        self, harness: Harness, flow_id: str | None
    ) -> None:
        """Name and payload are the same, but nothing would count its end."""
        other = member("b", flow=flow_id)
        if flow_id is None:
            await harness.put(other)
        else:
            await store(harness, [other], make_flow(1, flow_id=flow_id))
        jobs = [member("a"), member("b")]
        results = await harness.backend.producing.enqueue(jobs, [make_flow(2)])
        assert [result.outcome for result in results] == ["refused", "conflict"]
        assert await harness.backend.reads.get_flow(FLOW) == []
        await store(harness, jobs[:1], members=2)
        results = await harness.backend.producing.enqueue(jobs, [make_flow(2)])
        assert [result.outcome for result in results] == ["refused", "conflict"]

    async def test_a_repeat_of_a_part_whose_flow_has_ended(self, harness: Harness) -> None:
        """It names members of other parts, which were deleted with this one."""
        await store(harness, [member("a")], members=2)
        await store(harness, [member("b", after("a"))], members=2)
        worker = await harness.worker()
        await finish(worker, "a")
        await finish(worker, "b")
        await harness.backend.maintenance.change_jobs(BulkAction.DELETE, ["a", "b"])
        results = await harness.backend.producing.enqueue([member("b", after("a"))], [make_flow(2)])
        assert [result.outcome for result in results] == ["exists"]
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 2, 0, 0)

    async def test_a_large_flow(self, harness: Harness) -> None:
        waiting = [member(f"w{number:04}", after("a")) for number in range(1_200)]
        await store(harness, [member("a"), *waiting])
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.PENDING], counts[State.SUSPENDED]) == (1, 1_200)


class EndingTogether:
    """The last members of a join end at the same time, in two workers."""

    async def test_the_join_is_resumed_once(self, fleet: Harness) -> None:
        first = await fleet.worker()
        second = await fleet.worker(backend=fleet.handles[1])
        for number in range(10):
            flow = make_flow(3, flow_id=f"flow-{number}")
            sources = [f"a{number}", f"b{number}"]
            jobs = [member(job_id, flow=flow.id) for job_id in sources]
            await store(fleet, [*jobs, member(f"c{number}", after(*sources), flow=flow.id)], flow)
            one, other = await first.take_one(), await second.take_one()
            await asyncio.gather(
                first.settle(Completed(one.lease)), second.settle(Completed(other.lease))
            )
            joined = await first.take(5)
            assert ids(joined) == [f"c{number}"]
            await first.settle(Completed(joined[0].lease))
            assert (await read_counts(fleet, flow.id))[:3] == (FlowState.COMPLETED, 0, 3)
