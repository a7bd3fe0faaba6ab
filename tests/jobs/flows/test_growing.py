"""Flows that grow: `processor.flows.add`, open flows, and `ctx.flow.add`."""

from __future__ import annotations

import pytest

from nimburion import Context, Flow, Processor, State
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import FlowNotFound, InvalidJob, JobConflict, NotSupported
from nimburion.core.flows import FlowState
from nimburion.core.size_limits import SizeLimits
from nimburion.testing import FakeClock
from tests.jobs.flows.flow_jobs import count_rows, fetch, make_processor, note


async def list_members(processor: Processor, flow_id: str = "i") -> list[str]:
    page = await processor.backend.reads.list_jobs(limit=1_000)
    return [job.id for job in reversed(page.jobs) if job.options.flow == flow_id]


async def test_members_are_added_from_outside() -> None:
    async with make_processor() as processor:
        flow = Flow("import", on_finished=note.job("done"))
        flow.add(fetch.job("f.csv"))
        await processor.enqueue_flow(flow, id="i")
        jobs = [count_rows.job("f", number) for number in range(2)]
        added = ["i.late.0", "i.late.1"]
        for _ in range(2):
            assert await processor.flows.add("i", jobs, name="late") == added
        assert (await processor.flows.get("i")).members == 3
        (other,) = await processor.flows.add("i", fetch.job("g.csv"))
        await processor.drain()
        tree = await processor.flows.get("i")
        assert (tree.state, tree.completed, tree.added) == (FlowState.COMPLETED, 4, 3)
        assert (await processor.get_status(other)).state is State.COMPLETED
        with pytest.raises(InvalidJob, match="'i': it has ended, completed"):
            await processor.flows.add("i", fetch.job("h.csv"))
        assert await processor.flows.add("i", jobs, name="late") == added


async def test_an_open_flow_ends_after_it_is_closed() -> None:
    async with make_processor() as processor:
        flow = Flow("import", open=True, on_success=note.job("done"))
        await processor.enqueue_flow(flow, id="i")
        for number in range(3):
            await processor.flows.add("i", fetch.job(f"{number}.csv"))
            await processor.drain()
        tree = await processor.flows.get("i")
        assert (tree.state, tree.is_open, tree.completed) == (FlowState.RUNNING, True, 3)
        for _ in range(2):
            await processor.flows.close("i")
        assert (await processor.flows.wait("i", 10)).state is FlowState.COMPLETED
        assert (await processor.get_status("i.on_success")).state is State.PENDING
        with pytest.raises(FlowNotFound, match="no flow 'j'"):
            await processor.flows.close("j")
        with pytest.raises(FlowNotFound, match="no flow 'j'"):
            await processor.flows.add("j", fetch.job("0.csv"))
        actions = [record.action async for record in processor.audit.list()]
        assert set(actions) == {"flows.close"}


@pytest.mark.parametrize("name", ["a.b", "", 5])
async def test_a_name_that_is_not_possible(name: str) -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(Flow("import", open=True), id="i")
        with pytest.raises(InvalidJob, match="name of an addition"):
            await processor.flows.add("i", fetch.job("f"), name=name)


async def test_what_cannot_be_added() -> None:
    async with make_processor() as processor:
        flow = Flow("import", open=True)
        file = flow.add(fetch.job("f.csv"))
        await processor.enqueue_flow(flow, id="i")
        with pytest.raises(InvalidJob, match=r"job 'count_rows'.*takes no results"):
            await processor.flows.add("i", count_rows.job(file.result, 1))
        with pytest.raises(InvalidJob, match="limit of 128"):
            await processor.flows.add("i", fetch.job("f"), name="n" * 127)
        with pytest.raises(InvalidJob, match="takes several jobs"):
            await processor.flows.add("i", "jobs")  # type: ignore[arg-type]
        assert await list_members(processor) == ["i.fetch"]


def test_an_open_flow_has_no_percentage() -> None:
    with pytest.raises(InvalidJob, match="whole number, not '5%'"):
        Flow("import", open=True, max_failed="5%")


def make_splitting(clock: FakeClock, *, failures: int = 0) -> tuple[Processor, Flow]:
    """Return a processor, and a flow whose first member adds three parts to its group."""
    processor = Processor(MemoryBackend(clock=clock), clock=clock)

    @processor.job(max_retries=5)
    async def split(ctx: Context) -> int:
        await ctx.flow.add(count_rows.job("a", 1))
        await ctx.flow.add_all([count_rows.job("b", n) for n in range(2)])
        await ctx.flow.add(count_rows.job("c", 3), key="c")
        if ctx.failures < failures:
            raise ValueError("again")
        return 0

    processor.register(count_rows, note)
    flow = Flow("import", on_finished=note.job("done"))
    parts = flow.add_all([split.job()], name="parts")
    flow.add(note.job("joined"), name="join", depends_on=parts)
    return processor, flow


@pytest.mark.parametrize("failures", [0, 2])
async def test_a_member_adds_members_to_its_group(failures: int) -> None:
    """What waits for the group waits for them too. Another attempt adds nothing twice."""
    clock = FakeClock()
    processor, flow = make_splitting(clock, failures=failures)
    async with processor:
        await processor.enqueue_flow(flow, id="i")
        await processor.drain(advance=True)
        members = await list_members(processor)
        assert len(members) == 7
        tree = await processor.flows.get("i")
        assert (tree.state, tree.completed) == (FlowState.COMPLETED, 2)
        (group,) = tree.groups
        assert (group.members, group.added, group.completed) == (5, 4, 5)
        assert (await processor.get_status("i.join")).state is State.COMPLETED


async def test_another_attempt_that_adds_another_job() -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    errors: list[Exception] = []

    @processor.job(max_retries=1)
    async def split(ctx: Context) -> None:
        try:
            await ctx.flow.add(fetch.job(f"{ctx.attempt}.csv"))
        except JobConflict as error:
            errors.append(error)
        if ctx.attempt == 1:
            raise ValueError("again")

    processor.register(fetch)
    flow = Flow("import")
    flow.add(split.job())
    async with processor:
        await processor.enqueue_flow(flow, id="i")
        await processor.drain(advance=True)
        assert len(errors) == 1
        assert len(await list_members(processor)) == 2


async def test_only_a_member_adds_members() -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    errors: list[str] = []

    @processor.job
    async def add_one(ctx: Context) -> None:
        with pytest.raises(InvalidJob) as caught:
            await ctx.flow.add(fetch.job("f.csv"))
        errors.append(str(caught.value))

    @processor.job
    def add_blocking(ctx: Context) -> str:
        with pytest.raises(NotSupported) as caught:
            ctx.flow.add(fetch.job("f.csv"))  # type: ignore[unused-coroutine]
        errors.append(str(caught.value))
        return ctx.flow.id

    flow = Flow("import", on_success=add_one.job())
    flow.add(add_blocking.job())
    async with processor:
        await processor.enqueue_flow(flow, id="i")
        job_id = await processor.enqueue(add_one.job())
        await processor.drain()
        assert sorted(errors) == [
            (
                "`ctx.flow.add` needs `await`, and this handler is a `def`: write "
                "`processor.sync.flows.add(ctx.flow.id, …, name=…)`"
            ),
            *sorted(
                f"job {one} is not a member of a flow, so it has no `ctx.flow`; a callback gets "
                "the id of its flow as an argument"
                for one in (job_id, "i.on_success")
            ),
        ]
        assert await processor.wait("i.add_blocking") == "i"


async def test_a_batch_that_is_refused_does_not_keep_others_away() -> None:
    """Whether a job is added does not depend on the batches before its own."""
    async with make_processor(sizes=SizeLimits(batch=2)) as processor:
        flow = Flow("import")
        flow.add(fetch.job("f.csv"))
        await processor.enqueue_flow(flow, id="i")
        jobs = [count_rows.job("f", number) for number in range(5)]
        await processor.flows.add("i", jobs[:2], name="late")
        changed = [count_rows.job("g", 0), *jobs[1:]]
        for _ in range(2):
            with pytest.raises(JobConflict, match=r"i\.late\.0"):
                await processor.flows.add("i", changed, name="late")
            assert [f"i.late.{n}" for n in range(5)] == (await list_members(processor))[1:]
