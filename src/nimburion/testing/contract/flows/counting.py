"""The counts of flows and groups, their ends, and what a flow tolerates."""

from __future__ import annotations

import pytest

from nimburion.core.flows import ENDS, FlowState, On
from nimburion.core.job import State
from nimburion.core.queries import JobFilter
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.flows.graphs import (
    FLOW,
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


def part(number: int, group: str = "parts") -> str:
    """Return the id of a member of a group."""
    return f"{group}.{number}"


class Counting:
    """A flow counts each member once, and ends with the last."""

    async def test_the_counts_follow_the_members(self, harness: Harness) -> None:
        await store(harness, [member(job_id) for job_id in "abc"])
        worker = await harness.worker()
        assert await read_counts(harness) == (FlowState.RUNNING, 3, 0, 0, 0)
        await finish(worker, "a")
        await harness.backend.producing.cancel("b")
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 1, 0, 1)
        harness.clock.advance(5.0)
        await fail(worker, "c")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 1, 1, 1)
        flow = await read_flow(harness)
        assert flow.finished_at == harness.clock.now()
        assert flow.created_at == harness.clock.now() - 5.0
        assert (flow.name, flow.members, flow.parent) == ("import file", 3, None)

    async def test_a_flow_without_members_has_ended(self, harness: Harness) -> None:
        done = member("done", after_flow(), group="")
        alert = member("alert", after_flow(on=On.FAILURE), group="")
        await store(harness, [done, alert], make_flow(0))
        assert (await read_counts(harness))[0] is FlowState.COMPLETED
        assert await list_waiting(await harness.worker()) == ["done"]
        assert await harness.state("alert") is State.CANCELLED

    async def test_callbacks_follow_the_end(self, harness: Harness) -> None:
        callbacks = [member(on.value, after_flow(on=on), group="") for on in ENDS]
        await store(harness, [member("a"), member("b"), *callbacks], make_flow(2))
        worker = await harness.worker()
        await finish(worker, "a")
        assert await list_waiting(worker) == ["b"]
        await finish(worker, "b")
        assert await list_waiting(worker) == ["success", "finished"]
        assert (await harness.backend.reads.get_job("failure")).reason == "not needed"

    async def test_a_failure_is_seen_at_once(self, harness: Harness) -> None:
        callbacks = [member(on.value, after_flow(on=on), group="") for on in ENDS]
        await store(harness, [member("a"), member("b"), *callbacks], make_flow(2))
        worker = await harness.worker()
        await fail(worker, "a")
        assert await list_waiting(worker) == ["b", "failure"]
        assert (await harness.backend.reads.get_job("success")).reason == "dependency"
        assert await harness.state("finished") is State.SUSPENDED
        await finish(worker, "b")
        assert await list_waiting(worker) == ["failure", "finished"]

    async def test_many_members_end_in_one_step(self, harness: Harness) -> None:
        await store(harness, [member(f"a{number}") for number in range(300)])
        worker = await harness.worker()
        await finish(worker, *(f"a{number}" for number in range(300)))
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 300, 0, 0)


class Groups:
    """A group counts its members, and is itself a member of a flow."""

    async def add_parts(self, harness: Harness, *, max_failed: int = 0) -> None:
        """Store a flow: three parts, and a report that waits for them."""
        parts = [member(part(number), group="parts") for number in range(3)]
        report = member("report", after_flow("parts"))
        always = member("always", after_flow("parts", On.FINISHED))
        alert = member("alert", after_flow("parts", On.FAILURE))
        group = make_group("parts", 3, max_failed=max_failed)
        await store(harness, [*parts, report, always, alert], make_flow(4), group)

    async def test_a_join_waits_for_all_members(self, harness: Harness) -> None:
        await self.add_parts(harness)
        worker = await harness.worker()
        await finish(worker, part(0), part(2))
        assert await list_waiting(worker) == [part(1)]
        await finish(worker, part(1))
        assert await list_waiting(worker) == ["report", "always"]
        assert await read_counts(harness, "parts") == (FlowState.COMPLETED, 0, 3, 0, 0)
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 1, 0, 1)
        await finish(worker, "report", "always")
        assert (await read_counts(harness))[1] == 0

    async def test_a_join_is_cancelled_at_the_first_failure(self, harness: Harness) -> None:
        await self.add_parts(harness)
        worker = await harness.worker()
        await fail(worker, part(1))
        assert (await harness.backend.reads.get_job("report")).reason == "dependency"
        assert await harness.state("always") is State.SUSPENDED
        assert set(await list_waiting(worker)) == {part(0), part(2), "alert"}
        assert await read_counts(harness, "parts") == (FlowState.RUNNING, 2, 0, 1, 0)
        assert await read_counts(harness) == (FlowState.RUNNING, 3, 0, 1, 1)
        await finish(worker, part(0), part(2), "alert")
        assert await list_waiting(worker) == ["always"]
        await finish(worker, "always")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 2, 1, 1)

    async def test_a_group_of_which_only_members_were_cancelled(self, harness: Harness) -> None:
        await self.add_parts(harness)
        worker = await harness.worker()
        await harness.backend.producing.cancel(part(0))
        assert await read_counts(harness, "parts") == (FlowState.RUNNING, 2, 0, 0, 1)
        assert await read_counts(harness) == (FlowState.RUNNING, 3, 0, 0, 2)
        await finish(worker, part(1), part(2), "alert")
        await finish(worker, "always")
        assert (await read_counts(harness, "parts"))[0] is FlowState.CANCELLED
        assert await read_counts(harness) == (FlowState.CANCELLED, 0, 2, 0, 2)

    async def test_a_cancelled_group_that_fails_later(self, harness: Harness) -> None:
        groups = [make_group("outer", 1), make_group("inner", 3, parent="outer")]
        await store(
            harness, [member(part(n), group="inner") for n in range(3)], make_flow(1), *groups
        )
        worker = await harness.worker()
        await harness.backend.producing.cancel(part(0))
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 0, 1)
        await fail(worker, part(1))
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 1, 0)
        await finish(worker, part(2))
        assert await read_counts(harness) == (FlowState.FAILED, 0, 0, 1, 0)
        await replay(harness.backend, JobFilter(ids=(part(1),)), 1)
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 0, 1)
        await finish(worker, part(1))
        assert await read_counts(harness) == (FlowState.CANCELLED, 0, 0, 0, 1)

    @pytest.mark.parametrize("failures", [1, 2])
    async def test_failures_up_to_the_tolerance(self, harness: Harness, failures: int) -> None:
        await self.add_parts(harness, max_failed=1)
        worker = await harness.worker()
        failed = [part(number) for number in range(failures)]
        await fail(worker, *failed)
        await finish(worker, *(part(number) for number in range(failures, 3)))
        runs = ["report", "always"] if failures == 1 else ["always", "alert"]
        assert set(await list_waiting(worker)) == set(runs)

    async def test_groups_inside_groups(self, harness: Harness) -> None:
        groups = [
            make_group("outer", 2),
            make_group("inner", 2, parent="outer"),
        ]
        jobs = [
            member("a", group="outer"),
            member("b", group="inner"),
            member("c", group="inner"),
            member("end", after_flow("outer")),
        ]
        await store(harness, jobs, make_flow(2), *groups)
        worker = await harness.worker()
        await finish(worker, "a", "b")
        assert await read_counts(harness, "outer") == (FlowState.RUNNING, 1, 1, 0, 0)
        await finish(worker, "c")
        assert await read_counts(harness, "outer") == (FlowState.COMPLETED, 0, 2, 0, 0)
        assert await list_waiting(worker) == ["end"]
        await finish(worker, "end")
        assert (await read_counts(harness, FLOW))[0] is FlowState.COMPLETED

    async def test_a_failure_deep_inside_ends_the_join(self, harness: Harness) -> None:
        groups = [make_group("outer", 2), make_group("inner", 1, parent="outer")]
        jobs = [
            member("a", group="outer"),
            member("b", group="inner"),
            member("end", after_flow("outer")),
        ]
        await store(harness, jobs, make_flow(2), *groups)
        await fail(await harness.worker(), "b")
        assert (await harness.backend.reads.get_job("end")).reason == "dependency"

    async def test_an_empty_group(self, harness: Harness) -> None:
        jobs = [member("end", after_flow("parts"))]
        await store(harness, jobs, make_flow(2), make_group("parts", 0))
        worker = await harness.worker()
        await finish(worker, "end")
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 2, 0, 0)
