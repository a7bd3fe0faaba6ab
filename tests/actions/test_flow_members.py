"""The members of a flow are found within bounds, however many other jobs there are."""

from __future__ import annotations

from typing import Any

import pytest

from nimburion import Flow, Processor, chain
from nimburion.actions.flow_members import list_group, read_dependencies, read_members
from nimburion.actions.flows import read_tree
from nimburion.core.audit import list_audit
from nimburion.core.errors import FlowNotFound, InvalidJob
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.flows import FlowState, Growth, NewFlow, On
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.lease import Delivery
from nimburion.core.maintenance import JobChanges
from nimburion.core.queries import SCAN_BUDGET, JobFilter, Page
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from tests.jobs.flows.flow_jobs import add_up, count_rows, fetch, make_processor, note
from tests.overridden import OverridableBackend


def make_import(parts: int) -> Flow:
    flow = Flow("import", on_failure=note.job("failed"))
    file = flow.add(fetch.job("file"))
    rows = flow.add_all((count_rows.job(file.result, n) for n in range(parts)), name="parts")
    flow.add(add_up.job(rows.results))
    flow.add(note.job("at the end"), name="last", depends_on=rows, on="finished")
    return flow


async def enqueue_others(processor: Processor, count: int) -> None:
    """Store jobs that are in no flow."""
    for start in range(0, count, 5_000):
        jobs = [NewJob(f"other-{start + n}", "other", "other", b"{}") for n in range(5_000)]
        await processor.backend.producing.enqueue(jobs)


async def test_all_members_are_found_in_a_busy_backend() -> None:
    async with make_processor() as processor:
        await enqueue_others(processor, SCAN_BUDGET)
        await processor.enqueue_flow(make_import(1_500), id="i")
        await enqueue_others(processor, 2 * SCAN_BUDGET)
        members = await read_members(processor.backend, await read_tree(processor.backend, "i"))
        assert members.missing == 0
        assert {"i.fetch", "i.add_up", "i.last", "i.on_failure", "i.parts.0"} <= {*members.records}
        assert members.examined <= SCAN_BUDGET
        assert len(members.records) < 1_100


async def test_a_flow_whose_jobs_are_far_away_says_how_many_are_missing() -> None:
    async with make_processor() as processor:
        flow = Flow("pair")
        for number in range(2):
            flow.add(note.job("x"), name=f"n{number}")
        await processor.enqueue_flow(flow, id="i")
        await enqueue_others(processor, SCAN_BUDGET)
        members = await read_members(processor.backend, await read_tree(processor.backend, "i"))
        assert (members.missing, members.examined) == (2, SCAN_BUDGET)


async def test_a_chain_is_found_by_the_names_that_workers_know() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(chain(fetch.job("a"), note.job("b"), note.job("c")), id="i")
        await enqueue_others(processor, 2 * SCAN_BUDGET)
        backend = processor.backend
        await backend.consuming.open_session(Session(id="a" * 32, names=("fetch", "note")))
        members = await read_members(backend, await read_tree(backend, "i"))
        assert {*members.records} == {"i.fetch", "i.note", "i.note-2"}
        assert (members.missing, members.examined) == (0, 0)


async def test_what_members_wait_for_and_what_waits_for_them() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(3), id="i")
        backend = processor.backend
        await processor.process_one()
        members = await read_members(backend, await read_tree(backend, "i"))
        records = members.records
        waiting = [records["i.last"], records["i.parts.1"]]
        found = await read_dependencies(backend, members, waiting, 5)
        (end,), (file,) = found["i.last"], found["i.parts.1"]
        assert (end.condition.on, end.is_met) == (On.FINISHED, None)
        assert end.flow is not None
        assert end.flow.unfinished == 3
        assert file.is_met is True
        assert file.job is not None
        assert file.job.state is State.COMPLETED
        waiters = [one.id for one in members.list_waiters(records["i.parts.1"])]
        assert sorted(waiters) == ["i.add_up", "i.last"]


async def test_the_jobs_of_a_group_in_parts() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(7), id="i")
        (group,) = (await read_tree(processor.backend, "i")).groups
        found: list[str] = []
        start: int | None = 0
        while start is not None:
            which = JobFilter(flow="i")
            records, start = await list_group(processor.backend, group, which, start, 3)
            found += [record.id for record in records]
        assert found == [f"i.parts.{n}" for n in range(7)]


class CountingBackend(OverridableBackend):
    """A memory backend that counts the jobs that its searches examine."""

    examined = 0

    async def list_jobs(self, *arguments: Any, **options: Any) -> Page:
        page = await super().list_jobs(*arguments, **options)
        self.examined += page.examined
        return page


async def test_a_cancel_ends_with_the_last_member_and_examines_no_other_jobs() -> None:
    backend = CountingBackend()
    processor = Processor(backend)
    processor.register(fetch, count_rows, add_up, note)
    async with processor:
        await enqueue_others(processor, 5 * SCAN_BUDGET)
        await processor.enqueue_flow(make_import(50), id="i")
        await enqueue_others(processor, 5 * SCAN_BUDGET)
        backend.examined = 0
        ids = await processor.flows.cancel("i")
        flow = await processor.flows.get("i")
        assert (flow.state, flow.unfinished) == (FlowState.CANCELLED, 0)
        assert "i.fetch" in ids
        assert backend.examined < 3 * SCAN_BUDGET


async def test_a_cancel_finds_members_that_were_added_later() -> None:
    async with make_processor() as processor:
        flow = Flow("import", open=True)
        flow.add_all([count_rows.job("a", 1), count_rows.job("a", 2)], name="first")
        await processor.enqueue_flow(flow, id="i")
        await enqueue_others(processor, SCAN_BUDGET)
        await processor.flows.add("i", note.job("late"), name="late")
        await processor.flows.close("i")
        await processor.flows.cancel("i")
        assert (await processor.flows.get("i")).state is FlowState.CANCELLED


async def test_a_cancel_ends_an_open_flow() -> None:
    async with make_processor() as processor:
        flow = Flow("import", open=True, on_failure=note.job("failed"))
        flow.add(note.job("a"), name="a")
        await processor.enqueue_flow(flow, id="i")
        assert await processor.flows.cancel("i") == ["i.a"]
        cancelled = await processor.flows.get("i")
        assert (cancelled.state, cancelled.is_open) == (FlowState.CANCELLED, False)


async def test_a_group_is_not_closed() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(2), id="i")
        with pytest.raises(InvalidJob, match="is a group: pass the id of its flow"):
            await processor.flows.close("i.parts")
        with pytest.raises(FlowNotFound):
            await processor.flows.close("other")
        assert not (await list_audit(processor.backend)).records


async def test_a_cancel_is_complete_when_only_running_members_are_left_that_were_asked() -> None:
    backend = CountingBackend()
    processor = Processor(backend)
    processor.register(fetch, count_rows, add_up, note)
    async with processor:
        await enqueue_others(processor, 5 * SCAN_BUDGET)
        await processor.enqueue_flow(make_import(5), id="i")
        await backend.consuming.open_session(Session(id="a" * 32, names=("fetch",)))
        request = ReserveRequest(total=1, lanes=(Lane("default", "fetch"),))
        (running,) = (await backend.consuming.exchange("a" * 32, 1, [], request)).deliveries
        backend.examined = 0
        await processor.flows.cancel("i")
        assert backend.examined < 3 * SCAN_BUDGET
        flow = await processor.flows.get("i")
        assert (flow.state, flow.unfinished) == (FlowState.RUNNING, 1)
        settled = [Completed(running.lease, b"1")]
        await backend.consuming.exchange("a" * 32, 2, settled, ReserveRequest(total=0))
        assert (await processor.flows.get("i")).state is FlowState.CANCELLED


async def test_a_running_member_that_ends_during_a_cancel_hides_no_other_one() -> None:
    """Its end must not be taken for that of a member that the cancel has not reached yet."""

    class EndingBackend(CountingBackend):
        """Completes the running member right after it was asked to end."""

        async def change_jobs(self, *arguments: Any, **options: Any) -> JobChanges:
            changed = await super().change_jobs(*arguments, **options)
            if running:
                settled = [Completed(running.pop().lease, b"1")]
                await self.exchange("a" * 32, 2, settled, ReserveRequest(total=0))
            return changed

    backend = EndingBackend()
    processor = Processor(backend)
    processor.register(fetch, note)
    async with processor:
        flow = Flow("pair")
        flow.add(note.job("old"))
        await processor.enqueue_flow(flow, id="i")
        await enqueue_others(processor, SCAN_BUDGET)
        running: list[Delivery] = []
        options = JobOptions(flow="i")
        added = NewFlow(id="i", growth=Growth.ADD)
        late = NewJob("i.late", "fetch", "default", b'{"url":"a"}', options=options)
        await backend.producing.enqueue([late], [added])
        await backend.consuming.open_session(Session(id="a" * 32, names=("fetch",)))
        request = ReserveRequest(total=1, lanes=(Lane("default", "fetch"),))
        running += (await backend.consuming.exchange("a" * 32, 1, [], request)).deliveries
        await processor.flows.cancel("i")
        assert (await processor.get_status("i.note")).state is State.CANCELLED
