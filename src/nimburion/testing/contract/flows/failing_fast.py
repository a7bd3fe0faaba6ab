"""`fail_fast`: the failure of a flow cancels the members that have not started."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nimburion.core.errors import InvalidJob
from nimburion.core.flows import ENDS, MAX_RESOLVED, FlowState, Growth, NewFlow, On
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Completed, Failed, Retried
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.flows.graphs import (
    FAILING_ENDS,
    FLOW,
    after,
    after_flow,
    fail,
    finish,
    list_waiting,
    make_group,
    member,
    read_counts,
    read_flow,
    store,
)
from nimburion.testing.contract.harness import FAILURE, Harness, ids


def make_fast_flow(members: int, *, max_failed: int = 0) -> NewFlow:
    """Return a flow with `fail_fast`."""
    return NewFlow(
        id=FLOW, name="import file", members=members, max_failed=max_failed, fail_fast=True
    )


async def enqueue_failing_fast(
    harness: Harness, jobs: Sequence[NewJob], *, max_failed: int = 0
) -> None:
    """Store a flow with `fail_fast` and these members."""
    await store(harness, jobs, make_fast_flow(len(jobs), max_failed=max_failed))


async def continue_all(harness: Harness) -> None:
    """Apply what earlier steps have left, in up to ten steps."""
    for _ in range(10):
        await harness.backend.consuming.promote(1_000)


async def read_states(harness: Harness, *job_ids: str) -> list[State]:
    """Return the states of jobs."""
    return [await harness.state(job_id) for job_id in job_ids]


class FailingFast:
    """A member that fails for good cancels all that have not started."""

    @pytest.mark.parametrize("way", FAILING_ENDS)
    async def test_all_that_wait_are_cancelled(self, harness: Harness, way: str) -> None:
        jobs = [
            member("a"),
            member("suspended", after("a")),
            member("scheduled", after=600.0),
            member("always", after("scheduled", on=On.FINISHED)),
        ]
        await enqueue_failing_fast(harness, jobs)
        await FAILING_ENDS[way](harness, await harness.worker(), "a")
        await continue_all(harness)
        for job in jobs[1:]:
            record = await harness.backend.reads.get_job(job.id)
            assert (record.state, record.reason) == (State.CANCELLED, "dependency")
            assert record.payload == b'{"a":1}'
            assert record.finished_at == harness.clock.now()
        _, unfinished, completed, failed, cancelled = await read_counts(harness)
        assert (unfinished, completed, failed + cancelled) == (0, 0, 4)
        assert (await read_flow(harness)).fail_fast
        assert await list_waiting(await harness.worker()) == []

    async def test_pending_and_retrying_members(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member(job_id) for job_id in "abcd"])
        worker = await harness.worker()
        first, second, third = await worker.take(3)
        await worker.settle(
            Retried(second.lease, 0.0, FAILURE), Retried(third.lease, 60.0, FAILURE)
        )
        await worker.settle(Failed(first.lease, "permanent", FAILURE))
        await continue_all(harness)
        assert await read_states(harness, *"bcd") == 3 * [State.CANCELLED]
        counts = await harness.backend.reads.count_jobs()
        assert {state: count for state, count in counts.items() if count} == {
            State.FAILED: 1,
            State.CANCELLED: 3,
        }
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 3)

    async def test_members_that_run_are_left_alone(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a"), member("b"), member("c")])
        worker = await harness.worker()
        first, second = await worker.take(2)
        await worker.settle(Failed(first.lease, "permanent", FAILURE))
        await continue_all(harness)
        assert not (await worker.heartbeat()).cancel
        assert await read_states(harness, "b", "c") == [State.PROCESSING, State.CANCELLED]
        await worker.settle(Completed(second.lease))
        assert await read_counts(harness) == (FlowState.FAILED, 0, 1, 1, 1)

    async def test_nothing_is_cancelled_up_to_the_tolerance(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member(job_id) for job_id in "abcd"], max_failed=1)
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        assert await list_waiting(worker) == ["b", "c", "d"]
        await finish(worker, "b")
        await fail(worker, "c")
        await continue_all(harness)
        assert await harness.state("d") is State.CANCELLED
        assert await read_counts(harness) == (FlowState.FAILED, 0, 1, 2, 1)

    async def test_members_of_groups(self, harness: Harness) -> None:
        parts = [member(f"parts.{number}", group="parts") for number in range(3)]
        report = member("report", after_flow("parts", On.FINISHED))
        await store(harness, [*parts, report], make_fast_flow(2), make_group("parts", 3))
        worker = await harness.worker()
        await fail(worker, "parts.1")
        await continue_all(harness)
        assert await read_states(harness, "parts.0", "parts.2", "report") == 3 * [State.CANCELLED]
        assert await read_counts(harness, "parts") == (FlowState.FAILED, 0, 0, 1, 2)
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 1)

    async def test_a_member_that_the_failure_would_let_run(self, harness: Harness) -> None:
        """It waits for the end of what fails, so that end resumes and cancels it."""
        jobs = [member("a"), member("always", after("a", on=On.FINISHED))]
        await enqueue_failing_fast(harness, jobs)
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        assert await harness.state("always") is State.CANCELLED
        assert await list_waiting(worker) == []
        counts = await harness.backend.reads.count_jobs()
        assert {state: count for state, count in counts.items() if count} == {
            State.FAILED: 1,
            State.CANCELLED: 1,
        }

    async def test_callbacks_are_called(self, harness: Harness) -> None:
        callbacks = [member(on.value, after_flow(on=on), group="") for on in ENDS]
        jobs = [member("a"), member("b"), *callbacks]
        await store(harness, jobs, make_fast_flow(2))
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        assert set(await list_waiting(worker)) == {"failure", "finished"}

    async def test_a_member_that_is_added_later_is_cancelled(self, harness: Harness) -> None:
        await store(harness, [], NewFlow(id=FLOW, fail_fast=True, growth=Growth.OPEN))
        more = NewFlow(id=FLOW, growth=Growth.ADD)
        await store(harness, [member("a")], more)
        await fail(await harness.worker(), "a")
        await store(harness, [member("b"), member("c", after("b"))], more)
        await continue_all(harness)
        assert await read_states(harness, "b", "c") == 2 * [State.CANCELLED]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 1, 2)

    async def test_other_flows_and_jobs_stay(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a"), member("b")])
        await store(harness, [member("c", flow="other")], NewFlow(id="other", members=1))
        await harness.add("d")
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        assert await list_waiting(worker) == ["c", "d"]

    async def test_a_flow_that_succeeds(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        facts = await harness.backend.reads.explain_job("b")
        assert [one.condition for one in facts.unmet] == [*after("a")]
        assert facts.unmet_count == 1
        await finish(worker, "a")
        await finish(worker, "b")
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 2, 0, 0)

    async def test_it_says_what_cancelled_a_member(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a"), member("b")])
        await fail(await harness.worker(), "a")
        await continue_all(harness)
        (unmet,) = (await harness.backend.reads.explain_job("b")).unmet
        assert unmet.condition == after_flow()[0]
        assert unmet.flow is not None

    async def test_it_frees_unique_keys_and_places(self, harness: Harness) -> None:
        options = JobOptions(flow=FLOW, unique_key="k")
        jobs = [member("a"), NewJob("b", "mail", "default", b'{"a":1}', options=options)]
        await enqueue_failing_fast(harness, jobs)
        await fail(await harness.worker(), "a")
        await continue_all(harness)
        await harness.put(harness.job("c", options=JobOptions(unique_key="k")))
        assert await list_waiting(await harness.worker()) == ["c"]

    async def test_parked_members_are_cancelled(self, harness: Harness) -> None:
        """They waited for the key of a limit, and let others have it."""
        options = JobOptions(flow=FLOW, limit_keys={"site": "x"})
        jobs = [NewJob(job_id, "mail", "default", b"{}", options=options) for job_id in "abc"]
        await enqueue_failing_fast(harness, jobs)
        free = JobOptions(limit_keys={"site": "x"})
        await harness.put(NewJob("d", "mail", "default", b"{}", options=free))
        worker = await harness.worker(keyed={"mail": {"site": LimitRule(1)}})
        (first,) = await worker.take(5)
        await worker.settle(Failed(first.lease, "permanent", FAILURE))
        await continue_all(harness)
        assert await read_states(harness, "b", "c") == 2 * [State.CANCELLED]
        assert ids(await worker.take(5)) == ["d"]

    async def test_several_steps_cancel(self, harness: Harness) -> None:
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}") for number in range(count)]
        await enqueue_failing_fast(harness, [member("a", priority=9), *waiting])
        worker = await harness.worker()
        assert (await worker.heartbeat()).next_expiry > 0
        (first,) = await worker.take(1)
        assert first.lease.job_id == "a"
        await worker.settle(Failed(first.lease, "permanent", FAILURE))
        assert (await harness.backend.reads.count_jobs())[State.CANCELLED] <= MAX_RESOLVED
        assert (await worker.heartbeat()).next_expiry == 0
        while (await harness.backend.consuming.rescue(100, max_lost=3)).more:
            pass
        assert (await worker.heartbeat()).next_expiry > 0
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, count)

    async def test_fail_fast_belongs_to_the_flow(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a")])
        other = NewFlow(id=FLOW, name="import file", members=1)
        with pytest.raises(InvalidJob, match=FLOW):
            await harness.backend.producing.enqueue([member("a")], [other])


class ReplayingFast:
    """A replay lets what `fail_fast` cancelled wait again."""

    async def test_members_wait_again(self, harness: Harness) -> None:
        jobs = [
            member("a"),
            member("pending"),
            member("suspended", after("pending")),
            member("scheduled", after=600.0),
        ]
        await enqueue_failing_fast(harness, jobs)
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 3)
        assert (await replay(harness.backend, JobFilter(ids=("a",)), 1)).ids == ["a"]
        await continue_all(harness)
        assert await read_states(harness, "pending", "suspended", "scheduled") == [
            State.PENDING,
            State.SUSPENDED,
            State.SCHEDULED,
        ]
        assert await read_counts(harness) == (FlowState.RUNNING, 4, 0, 0, 0)
        await finish(worker, "a", "pending")
        await finish(worker, "suspended")
        harness.clock.advance(600.0)
        await continue_all(harness)
        await finish(worker, "scheduled")
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 4, 0, 0)

    async def test_a_second_failure_cancels_them_again(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a"), member("b")])
        worker = await harness.worker()
        for _ in range(2):
            await fail(worker, "a")
            await continue_all(harness)
            assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 1)
            assert (await replay(harness.backend, JobFilter(ids=("a",)), 1)).ids == ["a"]
            await continue_all(harness)
        assert set(await list_waiting(worker)) == {"a", "b"}

    async def test_the_next_failure_cancels_what_a_replay_let_wait(self, harness: Harness) -> None:
        """The replay of one member is enough, also if the flow has failed without it."""
        jobs = [member("a"), member("b"), member("c"), member("d", after("c"))]
        await enqueue_failing_fast(harness, jobs)
        worker = await harness.worker()
        await fail(worker, "a", "b")
        await continue_all(harness)
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 2, 2)
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        await continue_all(harness)
        assert await read_states(harness, "c", "d") == [State.PENDING, State.SUSPENDED]
        assert await read_counts(harness) == (FlowState.RUNNING, 3, 0, 1, 0)
        await fail(worker, "a")
        await continue_all(harness)
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 2, 2)

    async def test_a_flow_that_is_never_closed_cancels_what_waits_again(
        self, harness: Harness
    ) -> None:
        """The member that stands for those that may come counts as one more failure."""
        flow = NewFlow(id=FLOW, members=3, fail_fast=True, growth=Growth.OPEN)
        await store(harness, [member("a"), member("b"), member("c")], flow)
        await fail(await harness.worker(), "a", "b")
        await continue_all(harness)
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        await continue_all(harness)
        assert await read_states(harness, "a", "c") == 2 * [State.PENDING]
        harness.clock.advance(3_601.0)
        await harness.backend.maintenance.prune(Retention(open_flows=3_600.0), 100)
        await continue_all(harness)
        assert await read_states(harness, "a", "c") == 2 * [State.CANCELLED]
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 3)

    async def test_dependents_that_wait_again_are_cancelled_again(self, harness: Harness) -> None:
        """Also those that their dependency cancelled before the flow had failed."""
        jobs = [member("a"), member("b", after("a")), member("c"), member("d")]
        await enqueue_failing_fast(harness, jobs, max_failed=1)
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 3)
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        await continue_all(harness)
        await finish(worker, "a")
        await fail(worker, "c", "d")
        await continue_all(harness)
        assert await harness.state("b") is State.CANCELLED
        assert await read_counts(harness) == (FlowState.FAILED, 0, 1, 2, 1)

    async def test_the_replay_of_a_callback_changes_no_member(self, harness: Harness) -> None:
        callback = member("callback", after_flow(on=On.FAILURE), group="")
        await store(harness, [member("a"), member("b"), callback], make_fast_flow(2))
        worker = await harness.worker()
        await fail(worker, "a")
        await continue_all(harness)
        await fail(worker, "callback")
        assert (await replay(harness.backend, JobFilter(ids=("callback",)), 1)).ids == ["callback"]
        await continue_all(harness)
        assert await list_waiting(worker) == ["callback"]
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 1)

    async def test_what_someone_cancelled_stays_cancelled(self, harness: Harness) -> None:
        await enqueue_failing_fast(harness, [member("a"), member("b"), member("c")], max_failed=1)
        worker = await harness.worker()
        await harness.backend.producing.cancel("b")
        await fail(worker, "a")
        await continue_all(harness)
        assert await harness.state("c") is State.CANCELLED
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        await continue_all(harness)
        assert await read_states(harness, "a", "b", "c") == [
            State.PENDING,
            State.CANCELLED,
            State.PENDING,
        ]
