"""The replay of a failed member suspends what its failure cancelled."""

from __future__ import annotations

from nimburion.core.flows import MAX_RESOLVED, FlowState, On
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.queries import JobFilter
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.flows.graphs import (
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
    read_flow,
    store,
)
from nimburion.testing.contract.harness import Harness


async def replay_one(harness: Harness, job_id: str) -> None:
    """Replay a dead letter."""
    assert (await replay(harness.backend, JobFilter(ids=(job_id,)), 1)).ids == [job_id]


class ReplayingMembers:
    """`change_jobs` with the action `replay`, for members of flows."""

    async def test_the_dependents_wait_again(self, harness: Harness) -> None:
        jobs = [member("a"), member("b", after("a")), member("c", after("b"))]
        await store(harness, jobs)
        worker = await harness.worker()
        await fail(worker, "a")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 2)
        await replay_one(harness, "a")
        assert await read_counts(harness) == (FlowState.RUNNING, 3, 0, 0, 0)
        assert (await read_flow(harness)).finished_at is None
        record = await harness.backend.reads.get_job("b")
        assert (record.state, record.reason, record.finished_at) == (State.SUSPENDED, None, None)
        for job_id in "abc":
            await finish(worker, job_id)
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 3, 0, 0)

    async def test_a_second_failure_cancels_again(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        worker = await harness.worker()
        for _ in range(2):
            await fail(worker, "a")
            assert (await harness.backend.reads.get_job("b")).reason == "dependency"
            assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 1)
            await replay_one(harness, "a")

    async def test_a_job_with_two_failed_sources_waits_for_both_replays(
        self, harness: Harness
    ) -> None:
        await store(harness, [member("a"), member("b"), member("c", after("a", "b"))])
        worker = await harness.worker()
        await fail(worker, "a", "b")
        await replay_one(harness, "a")
        assert await harness.state("c") is State.CANCELLED
        await finish(worker, "a")
        await replay_one(harness, "b")
        assert await harness.state("c") is State.SUSPENDED
        await finish(worker, "b")
        assert await list_waiting(worker) == ["c"]

    async def test_a_met_condition_stays_met(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b"), member("c", after("a", "b"))])
        worker = await harness.worker()
        await finish(worker, "a")
        await fail(worker, "b")
        await replay_one(harness, "b")
        await finish(worker, "b")
        assert await list_waiting(worker) == ["c"]

    async def test_a_source_that_ends_meanwhile_counts(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b"), member("c", after("a", "b"))])
        worker = await harness.worker()
        await fail(worker, "a")
        await finish(worker, "b")
        await replay_one(harness, "a")
        await finish(worker, "a")
        assert await list_waiting(worker) == ["c"]

    async def test_a_join_of_a_group_waits_again(self, harness: Harness) -> None:
        parts = [member(f"parts.{number}", group="parts") for number in range(3)]
        report = member("report", after_flow("parts"))
        await store(harness, [*parts, report], make_flow(2), make_group("parts", 3))
        worker = await harness.worker()
        await fail(worker, "parts.0", "parts.1")
        await finish(worker, "parts.2")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 1)
        await replay_one(harness, "parts.0")
        assert await read_counts(harness, "parts") == (FlowState.RUNNING, 1, 1, 1, 0)
        assert await harness.state("report") is State.CANCELLED
        await finish(worker, "parts.0")
        await replay_one(harness, "parts.1")
        assert await harness.state("report") is State.SUSPENDED
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 0, 0, 0)
        await finish(worker, "parts.1")
        assert await list_waiting(worker) == ["report"]

    async def test_a_tolerated_failure_that_is_replayed(self, harness: Harness) -> None:
        alert = member("alert", after_flow(on=On.FAILURE), group="")
        jobs = [member("a"), member("b"), alert]
        await store(harness, jobs, make_flow(2, max_failed=1))
        worker = await harness.worker()
        await fail(worker, "a")
        await finish(worker, "b")
        assert (await harness.backend.reads.get_job("alert")).reason == "not needed"
        await replay_one(harness, "a")
        assert await harness.state("alert") is State.SUSPENDED
        await finish(worker, "a")
        assert (await harness.backend.reads.get_job("alert")).reason == "not needed"
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 2, 0, 0)

    async def test_a_job_that_someone_cancelled_stays_cancelled(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a")), member("c", after("a"))])
        worker = await harness.worker()
        await harness.backend.producing.cancel("b")
        await fail(worker, "a")
        await replay_one(harness, "a")
        assert await harness.state("b") is State.CANCELLED
        assert await harness.state("c") is State.SUSPENDED

    async def test_completed_members_stay(self, harness: Harness) -> None:
        jobs = [member("a"), member("b"), member("c", after("a", on=On.FINISHED))]
        await store(harness, jobs)
        worker = await harness.worker()
        await fail(worker, "a")
        await finish(worker, "b", "c")
        await replay_one(harness, "a")
        assert await list_waiting(worker) == ["a"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 2, 0, 0)

    async def test_a_unique_key_that_is_taken_meanwhile(self, harness: Harness) -> None:
        options = JobOptions(flow=FLOW, conditions=after("a"), unique_key="k")
        unique = NewJob("b", "mail", "default", b"{}", options=options)
        await store(harness, [member("a"), unique])
        worker = await harness.worker()
        await fail(worker, "a")
        await harness.put(harness.job("other", options=JobOptions(unique_key="k")))
        await replay_one(harness, "a")
        assert await harness.state("b") is State.SUSPENDED
        await finish(worker, "a")
        assert "b" in await list_waiting(worker)

    async def test_a_replay_comes_after_what_earlier_steps_have_left(
        self, harness: Harness
    ) -> None:
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}", after("a")) for number in range(count)]
        await store(harness, [member("a"), *waiting])
        worker = await harness.worker()
        await fail(worker, "a")
        await replay_one(harness, "a")
        for _ in range(5):
            await harness.backend.consuming.promote(1_000)
        assert (await harness.backend.reads.count_jobs())[State.SUSPENDED] == count
        assert await read_counts(harness) == (FlowState.RUNNING, count + 1, 0, 0, 0)

    async def test_more_than_one_step_suspends(self, harness: Harness) -> None:
        count = 2 * MAX_RESOLVED + 1
        waiting = [member(f"w{number:04}", after("a")) for number in range(count)]
        await store(harness, [member("a"), *waiting])
        worker = await harness.worker()
        await fail(worker, "a")
        for _ in range(3):
            await harness.backend.consuming.promote(1_000)
        await replay_one(harness, "a")
        assert (await harness.backend.reads.count_jobs())[State.SUSPENDED] <= MAX_RESOLVED
        for _ in range(3):
            await harness.backend.consuming.promote(1_000)
        assert (await harness.backend.reads.count_jobs())[State.SUSPENDED] == count
        await finish(worker, "a")
        for _ in range(3):
            await harness.backend.consuming.promote(1_000)
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == count
