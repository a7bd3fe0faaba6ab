"""Growth: members that are added to a stored flow, and flows that stay open for more."""

from __future__ import annotations

import asyncio

import pytest

from nimburion.core.errors import FlowNotFound, InvalidJob
from nimburion.core.flows import MAX_CLOSED, FlowState, Growth, NewFlow, On
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.maintenance import Retention
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
from nimburion.testing.contract.harness import Harness, wait_in_time
from nimburion.testing.contract.transactions import opened

OPEN = NewFlow(id=FLOW, name="import file", members=0, growth=Growth.OPEN)
MORE = NewFlow(id=FLOW, growth=Growth.ADD)
CLOSE = NewFlow(id=FLOW, growth=Growth.CLOSE)
HOUR = Retention(open_flows=3_600.0)


async def add(harness: Harness, *jobs: NewJob, flow: NewFlow = MORE) -> list[str]:
    """Add jobs to the flow, and return what happened to each."""
    results = await harness.backend.producing.enqueue(jobs, [flow])
    return [result.outcome for result in results]


class Growing:
    """`enqueue` adds members to a flow that has not ended."""

    async def test_a_flow_ends_with_its_added_members(self, harness: Harness) -> None:
        done = member("done", after_flow(), group="")
        await store(harness, [member("a"), done], make_flow(1))
        assert await add(harness, member("b"), member("c")) == ["created", "created"]
        flow = await read_flow(harness)
        assert (flow.members, flow.added, flow.unfinished) == (3, 2, 3)
        worker = await harness.worker()
        await finish(worker, "a")
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 1, 0, 0)
        await finish(worker, "b", "c")
        assert await list_waiting(worker) == ["done"]
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 3, 0, 0)

    async def test_a_repeat_adds_nothing_twice(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        assert await add(harness, member("b")) == ["created"]
        assert await add(harness, member("b"), member("c")) == ["exists", "created"]
        assert await read_counts(harness) == (FlowState.RUNNING, 3, 0, 0, 0)
        worker = await harness.worker()
        await finish(worker, "b")
        assert await add(harness, member("b")) == ["exists"]
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 1, 0, 0)
        await finish(worker, "a", "c")
        ended = await read_flow(harness)
        harness.clock.advance(5.0)
        assert await add(harness, member("b"), member("c")) == ["exists", "exists"]
        assert await read_flow(harness) == ended

    @pytest.mark.parametrize("state", [FlowState.COMPLETED, FlowState.FAILED])
    async def test_a_flow_that_has_ended_gets_no_members(
        self, harness: Harness, state: FlowState
    ) -> None:
        await store(harness, [member("a")])
        await (finish if state is FlowState.COMPLETED else fail)(await harness.worker(), "a")
        ended = await read_flow(harness)
        with pytest.raises(InvalidJob, match=f"'{FLOW}': it has ended, {state}"):
            await add(harness, member("b"), member("a"))
        assert await read_flow(harness) == ended
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    @pytest.mark.parametrize("growth", [Growth.ADD, Growth.CLOSE])
    async def test_an_unknown_flow_gets_no_members(self, harness: Harness, growth: Growth) -> None:
        with pytest.raises(FlowNotFound, match="no flow 'import'"):
            await add(harness, member("b"), flow=NewFlow(id=FLOW, growth=growth))
        assert sum((await harness.backend.reads.count_jobs()).values()) == 0

    async def test_a_refused_call_adds_nothing(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        await harness.add("b")
        assert await add(harness, member("c"), member("b")) == ["refused", "conflict"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 0, 0)
        options = JobOptions(flow=FLOW, unique_key="k")
        await harness.put(harness.job("holder", options=JobOptions(unique_key="k")))
        unique = NewJob("d", "mail", "default", b"{}", options=options)
        assert await add(harness, member("c"), unique) == ["refused", "taken"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 0, 0)

    async def test_a_repeated_flow_is_the_same_after_growth(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        await add(harness, member("b"))
        results = await harness.backend.producing.enqueue([member("a")], [make_flow(1)])
        assert [result.outcome for result in results] == ["exists"]
        with pytest.raises(InvalidJob, match="1 member;"):
            await harness.backend.producing.enqueue([member("a")], [make_flow(2)])

    async def test_a_group_gets_members(self, harness: Harness) -> None:
        """What waits for the group waits for them too."""
        report = member("report", after_flow("parts"))
        group = make_group("parts", 1)
        await store(harness, [member("split", group="parts"), report], make_flow(2), group)
        worker = await harness.worker()
        more = NewFlow(id="parts", parent=FLOW, growth=Growth.ADD)
        added = [member(f"part-{number}", group="parts") for number in range(3)]
        assert set(await add(harness, *added, flow=more)) == {"created"}
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 0, 0, 0)
        await finish(worker, "split", "part-0", "part-1")
        assert await read_counts(harness, "parts") == (FlowState.RUNNING, 1, 3, 0, 0)
        await finish(worker, "part-2")
        assert await list_waiting(worker) == ["report"]

    async def test_an_added_member_waits_for_others(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b")])
        worker = await harness.worker()
        await finish(worker, "a")
        jobs = [member("c", after("a")), member("d", after("b", "c"))]
        assert await add(harness, *jobs) == ["created", "created"]
        await harness.backend.consuming.promote(100)
        assert await list_waiting(worker) == ["b", "c"]
        await fail(worker, "b")
        assert (await harness.backend.reads.get_job("d")).reason == "dependency"
        await finish(worker, "c")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 2, 1, 1)

    async def test_members_are_added_to_a_flow_that_has_failed(self, harness: Harness) -> None:
        await store(harness, [member("a"), member("b")])
        worker = await harness.worker()
        await fail(worker, "a")
        assert await add(harness, member("c")) == ["created"]
        await finish(worker, "b", "c")
        assert await read_counts(harness) == (FlowState.FAILED, 0, 2, 1, 0)

    async def test_many_members_are_added(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        added = [member(f"b{number:04}") for number in range(1_200)]
        assert set(await add(harness, *added)) == {"created"}
        assert set(await add(harness, *added)) == {"exists"}
        assert await read_counts(harness) == (FlowState.RUNNING, 1_201, 0, 0, 0)

    async def test_members_are_added_while_the_last_one_ends(self, fleet: Harness) -> None:
        """Either the flow gets the member, or the call is refused: nothing is half stored."""
        worker = await fleet.worker()
        for number in range(10):
            flow = make_flow(1, flow_id=f"flow-{number}")
            await store(fleet, [member(f"a{number}", flow=flow.id)], flow)
            other, last = fleet.handles[1], member(f"b{number}", flow=flow.id)
            more = NewFlow(id=flow.id, growth=Growth.ADD)
            _, added = await asyncio.gather(
                finish(worker, f"a{number}"),
                other.producing.enqueue([last], [more]),
                return_exceptions=True,
            )
            is_added = not isinstance(added, BaseException)
            waiting = [delivery.lease for delivery in await worker.take(5)]
            assert [lease.job_id for lease in waiting] == ([last.id] if is_added else [])
            await worker.backend.consuming.release(worker.id, waiting)
            if is_added:
                await finish(worker, last.id)
            completed = 2 if is_added else 1
            counts = await read_counts(fleet, flow.id)
            assert counts == (FlowState.COMPLETED, 0, completed, 0, 0)


class OpenFlows:
    """An open flow does not end before it is closed."""

    async def test_an_open_flow_ends_when_it_is_closed(self, harness: Harness) -> None:
        done = member("done", after_flow(), group="")
        await store(harness, [done], OPEN)
        flow = await read_flow(harness)
        assert (flow.state, flow.is_open, flow.members) == (FlowState.RUNNING, True, 1)
        await add(harness, member("a"))
        worker = await harness.worker()
        await finish(worker, "a")
        assert await list_waiting(worker) == []
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 1, 0, 0)
        for _ in range(2):
            await add(harness, flow=CLOSE)
            await harness.backend.consuming.promote(100)
            flow = await read_flow(harness)
            assert (flow.state, flow.is_open, flow.members) == (FlowState.COMPLETED, False, 1)
        assert await list_waiting(worker) == ["done"]

    async def test_a_closed_flow_ends_with_its_last_member(self, harness: Harness) -> None:
        await store(harness, [member("a")], NewFlow(id=FLOW, members=1, growth=Growth.OPEN))
        await add(harness, member("b"), flow=CLOSE)
        await harness.backend.consuming.promote(100)
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 0, 0, 0)
        await add(harness, member("c"))
        worker = await harness.worker()
        await finish(worker, "a", "b", "c")
        assert await read_counts(harness) == (FlowState.COMPLETED, 0, 3, 0, 0)

    async def test_a_repeat_of_an_open_flow(self, harness: Harness) -> None:
        await store(harness, [member("a")], NewFlow(id=FLOW, members=1, growth=Growth.OPEN))
        again = NewFlow(id=FLOW, members=1, growth=Growth.OPEN)
        assert await add(harness, member("a"), flow=again) == ["exists"]
        assert await read_counts(harness) == (FlowState.RUNNING, 2, 0, 0, 0)
        await add(harness, flow=CLOSE)
        assert await add(harness, member("a"), flow=again) == ["exists"]
        await harness.backend.consuming.promote(100)
        assert not (await read_flow(harness)).is_open

    async def test_a_failure_is_seen_while_it_is_open(self, harness: Harness) -> None:
        alert = member("alert", after_flow(on=On.FAILURE), group="")
        await store(harness, [alert], OPEN)
        await add(harness, member("a"))
        worker = await harness.worker()
        await fail(worker, "a")
        assert await list_waiting(worker) == ["alert"]
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 1, 0)

    async def test_an_open_flow_that_is_never_closed(self, harness: Harness) -> None:
        done = member("done", after_flow(on=On.FINISHED), group="")
        await store(harness, [done], OPEN)
        worker = await harness.worker()
        harness.clock.advance(3_000.0)
        await add(harness, member("a"))
        harness.clock.advance(3_000.0)
        await self.prune(harness)
        assert (await read_flow(harness)).is_open
        harness.clock.advance(601.0)
        await self.prune(harness)
        flow = await read_flow(harness)
        assert (flow.state, flow.is_open, flow.unfinished) == (FlowState.RUNNING, False, 1)
        await finish(worker, "a")
        assert await read_counts(harness) == (FlowState.CANCELLED, 0, 1, 0, 1)
        assert await list_waiting(worker) == ["done"]
        with pytest.raises(InvalidJob, match="has ended, cancelled"):
            await add(harness, member("b"))

    async def test_a_tolerance_does_not_hide_that_it_was_never_closed(
        self, harness: Harness
    ) -> None:
        flow = NewFlow(id=FLOW, max_failed=5, growth=Growth.OPEN)
        await store(harness, [], flow)
        harness.clock.advance(3_601.0)
        await self.prune(harness)
        assert (await read_counts(harness))[:2] == (FlowState.CANCELLED, 0)

    async def test_several_prunes_close_many(self, harness: Harness) -> None:
        """A prune closes a bounded number of flows; the next one continues."""
        flows = [NewFlow(id=f"f{n}", growth=Growth.OPEN) for n in range(MAX_CLOSED + 1)]
        await harness.backend.producing.enqueue([], flows)
        harness.clock.advance(3_601.0)
        left = []
        for _ in range(2):
            await harness.backend.maintenance.prune(HOUR, 100)
            await harness.backend.consuming.promote(100)
            page = await harness.backend.reads.list_flows(limit=len(flows))
            left.append(sum(flow.is_open for flow in page.flows))
        assert left == [1, 0]

    async def prune(self, harness: Harness) -> None:
        """Prune twice, and apply what that leaves."""
        for _ in range(2):
            await harness.backend.maintenance.prune(HOUR, 100)
            await harness.backend.consuming.promote(100)

    async def test_open_flows_are_not_closed(self, harness: Harness) -> None:
        await store(harness, [], OPEN)
        harness.clock.advance(1e6)
        await harness.backend.maintenance.prune(Retention(open_flows=None), 100)
        await harness.backend.consuming.promote(100)
        assert (await read_flow(harness)).is_open

    async def test_an_open_flow_is_listed(self, harness: Harness) -> None:
        await store(harness, [], OPEN)
        await store(harness, [member("a", flow="other")], make_flow(1, flow_id="other"))
        page = await harness.backend.reads.list_flows(running=True)
        assert [(flow.id, flow.is_open) for flow in page.flows] == [("other", False), (FLOW, True)]
        assert page.flows[1].grown_at == harness.clock.now()


class TransactionalGrowth:
    """`enqueue_in` adds no members."""

    async def test_no_members_are_added_in_a_transaction(self, harness: Harness) -> None:
        await store(harness, [member("a")])
        transaction = await opened(harness)
        for flow in (MORE, CLOSE):
            with pytest.raises(InvalidJob, match="after the commit"):
                await wait_in_time(
                    transaction.producing.enqueue_in(transaction.connection, [member("b")], [flow])
                )
        await transaction.rollback()
        assert await read_counts(harness) == (FlowState.RUNNING, 1, 0, 0, 0)

    async def test_an_open_flow_comes_with_the_commit(self, harness: Harness) -> None:
        await harness.add("carrier")
        worker = await harness.worker()
        carrier = await worker.take_one()
        transaction = await opened(harness)
        await wait_in_time(
            transaction.producing.enqueue_in(transaction.connection, [member("a")], [OPEN])
        )
        await transaction.complete(worker, carrier)
        await transaction.commit()
        assert (await read_flow(harness)).is_open
