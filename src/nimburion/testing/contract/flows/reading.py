"""Reading flows, and how long they are kept."""

from __future__ import annotations

import pytest

from nimburion.core.diagnosis.explanations import find_causes
from nimburion.core.errors import InvalidJob
from nimburion.core.flows import FlowState, On
from nimburion.core.job import JobOptions, State
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Completed
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.flows.graphs import (
    FLOW,
    after,
    after_flow,
    fail,
    finish,
    make_flow,
    make_group,
    member,
    read_flow,
    store,
)
from nimburion.testing.contract.harness import Harness

SHORT = Retention(completed=10.0, failed=100.0, results=10.0)


class ReadingFlows:
    """`get_flow`, `list_flows`, `explain_job` and the filter by flow."""

    async def test_a_flow_with_its_groups(self, harness: Harness) -> None:
        groups = [
            make_group("parts", 1),
            make_group("inner", 0, parent="parts"),
            make_group("a", 0),
        ]
        jobs = [member("b")]
        await store(harness, jobs, make_flow(3), *groups)
        found = await harness.backend.reads.get_flow(FLOW)
        assert [flow.id for flow in found] == [FLOW, "a", "inner", "parts"]
        assert [flow.parent for flow in found] == [None, FLOW, "parts", FLOW]
        assert [flow.id for flow in await harness.backend.reads.get_flow("parts")] == [
            "parts",
            "inner",
        ]
        assert await harness.backend.reads.get_flow("unknown") == []

    async def test_pages_of_flows(self, harness: Harness) -> None:
        for number in range(5):
            group = make_group(f"group-{number}", 0, parent=f"flow-{number}")
            flow = make_flow(2, flow_id=f"flow-{number}")
            await store(harness, [member(f"a{number}", flow=flow.id)], flow, group)
        reads = harness.backend.reads
        first = await reads.list_flows(limit=3)
        assert [flow.id for flow in first.flows] == ["flow-4", "flow-3", "flow-2"]
        await store(harness, [], make_flow(0, flow_id="new"))
        second = await reads.list_flows(limit=3, after=first.next)
        assert [flow.id for flow in second.flows] == ["flow-1", "flow-0"]
        assert second.next is None
        with pytest.raises(InvalidJob):
            await reads.list_flows(after="x")

    async def test_only_running_flows(self, harness: Harness) -> None:
        await store(harness, [member("a", flow="one")], make_flow(1, flow_id="one"))
        await store(harness, [member("b", flow="two")], make_flow(1, flow_id="two"))
        await finish(await harness.worker(), "b")
        page = await harness.backend.reads.list_flows(running=True)
        assert [flow.id for flow in page.flows] == ["one"]

    async def test_jobs_of_a_flow(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        await harness.add("c")
        callback = member("done", after_flow(), group="")
        await store(harness, [callback], make_flow(2))
        page = await harness.backend.reads.list_jobs(JobFilter(flow=FLOW))
        assert [job.id for job in page.jobs] == ["b", "a"]
        assert page.jobs[0].options.conditions == after("a")

    async def test_what_a_job_waits_for(self, harness: Harness) -> None:
        parts = [member(f"parts.{number}", group="parts") for number in range(3)]
        waiter = member("w", (*after("a", "b", "c", "d"), *after_flow("parts", On.FINISHED)))
        sources = [member(job_id) for job_id in "abcd"]
        await store(harness, [*sources, *parts, waiter], make_flow(6), make_group("parts", 3))
        await finish(await harness.worker(), "a")
        facts = await harness.backend.reads.explain_job("w")
        assert facts.unmet_count == len(facts.unmet) == 4
        assert {unmet.job.id for unmet in facts.unmet if unmet.job} == {"b", "c", "d"}
        await finish(await harness.worker(), "b", "c", "d")
        (unmet,) = (await harness.backend.reads.explain_job("w")).unmet
        assert unmet.condition == after_flow("parts", On.FINISHED)[0]
        assert unmet.flow is not None
        assert (unmet.flow.unfinished, unmet.flow.state) == (3, FlowState.RUNNING)

    async def test_what_cancelled_a_job(self, harness: Harness) -> None:
        jobs = [member(job_id) for job_id in "ab"]
        jobs += [member("c", after("a", "b")), member("d", after("c")), member("e", after("b"))]
        await store(harness, jobs)
        reads = harness.backend.reads
        await harness.backend.producing.cancel("e")
        await fail(await harness.worker(), "a")
        facts = await reads.explain_job("c")
        (unmet,) = facts.unmet
        assert (unmet.condition, facts.unmet_count) == (after("a")[0], 1)
        (cause,) = find_causes(facts)
        assert cause.text == "It is cancelled, reason: dependency: job a, which has failed."
        assert [one.condition for one in (await reads.explain_job("d")).unmet] == [*after("c")]
        assert (await reads.explain_job("e")).unmet == []
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        facts = await reads.explain_job("c")
        assert [one.condition for one in facts.unmet] == [*after("a", "b")]
        assert facts.unmet_count == 2

    async def test_a_running_job_waits_for_nothing(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b", after("a"))])
        await finish(await harness.worker(), "a")
        facts = await harness.backend.reads.explain_job("b")
        assert (facts.unmet, facts.unmet_count) == ([], 0)


class PruningFlows:
    """`prune` keeps what a running flow needs."""

    async def test_a_member_stays_while_its_flow_runs(self, harness: Harness) -> None:
        part = member("parts.0", group="parts")
        await store(harness, [part, member("b"), member("c")], make_flow(3), make_group("parts", 1))
        worker = await harness.worker()
        await finish(worker, "parts.0", "b")
        harness.clock.advance(50.0)
        assert await harness.backend.maintenance.prune(SHORT, 100) == 0
        await finish(worker, "c")
        harness.clock.advance(50.0)
        await harness.backend.maintenance.prune(SHORT, 100)
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    async def test_a_member_stays_that_ended_after_the_clock_was_set_back(
        self, harness: Harness
    ) -> None:
        """It ended before its flow was stored, as the clock says."""
        await store(harness, [member("a"), member("b")])
        worker = await harness.worker()
        harness.clock.step_wall(-2.0)
        await worker.settle(Completed((await worker.take_one()).lease))
        for seconds in (11.5, 50.0):
            harness.clock.advance(seconds)
            assert await harness.backend.maintenance.prune(SHORT, 100) == 0
            assert await harness.state("a") is State.COMPLETED

    async def test_a_member_stays_while_its_flow_runs_again(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b")])
        worker = await harness.worker()
        await finish(worker, "a")
        await fail(worker, "b")
        await harness.backend.maintenance.prune(SHORT, 100)
        assert (await replay(harness.backend, JobFilter(ids=("b",)), 1)).ids == ["b"]
        harness.clock.advance(50.0)
        assert await harness.backend.maintenance.prune(SHORT, 100) == 0
        await finish(worker, "b")
        harness.clock.advance(5.0)
        assert await harness.backend.maintenance.prune(SHORT, 100) == 1
        assert [job.id for job in (await harness.backend.reads.list_jobs()).jobs] == ["b"]

    async def test_a_member_cannot_be_deleted_while_its_flow_runs(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b")])
        worker = await harness.worker()
        await finish(worker, "a")
        assert await delete(harness.backend, JobFilter(ids=("a",)), 10) == []
        await finish(worker, "b")
        assert await delete(harness.backend, JobFilter(ids=("a",)), 10) == ["a"]

    async def test_other_jobs_go_while_a_flow_runs(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        tenant = JobOptions(tenant="t")
        for job_id in ("b", "c"):
            await harness.put(harness.job(job_id, options=tenant))
            await harness.backend.producing.cancel(job_id)
        assert await delete(harness.backend, JobFilter(ids=("b",)), 10) == ["b"]
        harness.clock.advance(50.0)
        assert await harness.backend.maintenance.prune(SHORT, 100) == 1

    async def test_members_of_a_running_flow_are_not_among_the_jobs_to_keep(
        self, harness: Harness
    ) -> None:
        await store(harness, [member(f"a{number}") for number in range(4)])
        worker = await harness.worker()
        await finish(worker, "a0", "a1", "a2")
        await harness.add("b", "c", "d")
        await finish(worker, "b", "c", "d")
        prune = harness.backend.maintenance.prune
        assert await prune(Retention(completed_max=3), 100) == 0
        assert await prune(Retention(completed_max=2), 100) == 1
        await finish(worker, "a3")
        assert await prune(Retention(completed_max=2), 100) == 4

    async def test_a_repeat_after_the_members_were_pruned(self, harness: Harness) -> None:
        """The flow is kept longer than its members, and tells that they have run."""
        callback = member("done", after_flow(), group="")
        jobs = [member("a"), member("b", after("a")), callback]
        await store(harness, jobs, make_flow(2))
        worker = await harness.worker()
        for job_id in ("a", "b", "done"):
            await finish(worker, job_id)
        harness.clock.advance(50.0)
        await harness.backend.maintenance.prune(SHORT, 100)
        results = await harness.backend.producing.enqueue(jobs, [make_flow(2)])
        assert {result.outcome for result in results} == {"exists"}
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    async def test_flows_stay_as_long_as_dead_letters(self, harness: Harness) -> None:
        await store(harness, [member("a", group="parts")], make_flow(1), make_group("parts", 1))
        await finish(await harness.worker(), "a")
        harness.clock.advance(90.0)
        await harness.backend.maintenance.prune(SHORT, 100)
        assert (await read_flow(harness)).state is FlowState.COMPLETED
        harness.clock.advance(20.0)
        await harness.backend.maintenance.prune(SHORT, 100)
        assert await harness.backend.reads.get_flow(FLOW) == []
        assert await harness.backend.reads.get_flow("parts") == []

    async def test_flows_stay_as_long_as_their_members(self, harness: Harness) -> None:
        keep = Retention(completed=100.0, failed=10.0, results=10.0)
        await store(harness, [member("a")])
        await finish(await harness.worker(), "a")
        harness.clock.advance(90.0)
        await harness.backend.maintenance.prune(keep, 100)
        assert (await read_flow(harness)).state is FlowState.COMPLETED
        harness.clock.advance(20.0)
        await harness.backend.maintenance.prune(keep, 100)
        assert await harness.backend.reads.get_flow(FLOW) == []

    async def test_a_member_that_outlived_its_flow_counts(self, harness: Harness) -> None:
        """A prune that reaches its limit can leave it."""
        jobs = [member("a"), member("b")]
        await store(harness, jobs)
        worker = await harness.worker()
        await finish(worker, "a")
        harness.clock.advance(1.0)
        await finish(worker, "b")
        harness.clock.advance(200.0)
        await harness.backend.maintenance.prune(SHORT, 1)
        assert await harness.backend.reads.get_flow(FLOW) == []
        results = await harness.backend.producing.enqueue(jobs, [make_flow(2)])
        assert [result.outcome for result in results] == ["created", "exists"]
        assert (await read_flow(harness)).unfinished == 1
        await finish(worker, "a")
        assert (await read_flow(harness)).state is FlowState.COMPLETED

    @pytest.mark.parametrize("most", [None, 0])
    async def test_what_a_replay_suspends_stays_as_long_as_dead_letters(
        self, harness: Harness, most: int | None
    ) -> None:
        keep = Retention(completed=10.0, completed_max=most, failed=100.0, results=10.0)
        done = member("done", after_flow(), group="")
        jobs = [member("a"), member("b", after("a")), member("c"), member("d"), done]
        await store(harness, jobs, make_flow(4, max_failed=1))
        worker = await harness.worker()
        await fail(worker, "a")
        await finish(worker, "c")
        await harness.backend.producing.cancel("d")
        ended_at = harness.clock.now()
        both = Retention(completed=None, completed_max=2)
        assert await harness.backend.maintenance.prune(both, 100) == 0
        for _ in range(4):
            harness.clock.advance(20.0)
            await harness.backend.maintenance.prune(keep, 100)
        kept = {job.id for job in (await harness.backend.reads.list_jobs()).jobs}
        assert kept == {"a", "b", "done"}
        assert (await harness.backend.reads.get_job("b")).finished_at == ended_at
        assert (await replay(harness.backend, JobFilter(ids=("a",)), 1)).ids == ["a"]
        await finish(worker, "a")
        await finish(worker, "b")
        await finish(worker, "done")

    async def test_a_running_flow_stays(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        harness.clock.advance(1_000.0)
        await harness.backend.maintenance.prune(SHORT, 100)
        assert (await read_flow(harness)).unfinished == 1

    async def test_an_id_that_is_used_again_finds_nothing_old(self, harness: Harness) -> None:
        jobs = [member("a"), member("b", after("a"))]
        await store(harness, jobs)
        worker = await harness.worker()
        await fail(worker, "a")
        harness.clock.advance(200.0)
        await harness.backend.maintenance.prune(SHORT, 100)
        await store(harness, jobs)
        await finish(worker, "a")
        await finish(worker, "b")
        assert (await read_flow(harness)).completed == 2
