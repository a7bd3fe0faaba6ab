"""Enqueue flows: the ids, conditions and results of their jobs; repeats, batches and errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nimburion import Flow, Processor, State, chain, job
from nimburion.core.errors import (
    DuplicateJob,
    InvalidJob,
    JobConflict,
    NotSupported,
)
from nimburion.core.flows import FlowState, NewFlow, On, ResultRef, SourceKind
from nimburion.core.job import Enqueued, NewJob
from nimburion.core.maintenance import Retention
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs.handling.middleware import Enqueueing
from nimburion.testing import FakeClock
from tests.jobs.flows.flow_jobs import (
    Measure,
    add_up,
    count_rows,
    fail,
    fetch,
    make_processor,
    note,
    show,
    take_existing,
    take_path,
)


def make_import(count: int = 3) -> Flow:
    flow = Flow("import", on_success=note.job("done"), on_failure=note.job("failed"))
    file = flow.add(fetch.job("f.csv"))
    parts = flow.add_all((count_rows.job(file.result, n) for n in range(count)), name="parts")
    flow.add(add_up.job(parts.results))
    return flow


async def list_states(processor: Processor) -> dict[str, State]:
    page = await processor.backend.reads.list_jobs(limit=1_000)
    return {record.id: record.state for record in reversed(page.jobs)}


async def test_the_graph_of_a_flow() -> None:
    async with make_processor() as processor:
        assert await processor.enqueue_flow(make_import(), id="i") == "i"
        states = await list_states(processor)
        assert list(states) == [
            *("i.on_success", "i.on_failure", "i.fetch"),
            *("i.parts.0", "i.parts.1", "i.parts.2", "i.add_up"),
        ]
        assert {states.pop("i.fetch")} == {State.PENDING}
        assert {*states.values()} == {State.SUSPENDED}
        get_job = processor.backend.reads.get_job
        part, total, callback = [
            (await get_job(job_id)) for job_id in ("i.parts.1", "i.add_up", "i.on_failure")
        ]
        assert (part.options.flow, part.options.group) == ("i", "i.parts")
        assert part.options.results == {"path": ResultRef("i.fetch")}
        assert part.payload == b'{"part":1}'
        assert (total.options.flow, total.options.group) == ("i", None)
        assert total.options.results == {"counts": ResultRef("i.parts", 3)}
        (condition,) = total.options.conditions
        assert (condition.source.kind, condition.source.id) == (SourceKind.FLOW, "i.parts")
        assert (callback.options.flow, callback.options.group) == ("i", "")
        assert callback.options.conditions[0].on is On.FAILURE


async def test_a_flow_runs_to_its_end() -> None:
    async with make_processor() as processor:
        flow_id = await processor.enqueue_flow(make_import())
        assert await processor.drain() == 6
        assert await processor.wait(f"{flow_id}.add_up") == 3 * len("/tmp/f.csv") + 0 + 1 + 2
        tree = await processor.backend.reads.get_flow(flow_id)
        assert [flow.state for flow in tree] == [FlowState.COMPLETED] * 2
        states = await list_states(processor)
        assert states[f"{flow_id}.on_success"] is State.COMPLETED
        assert states[f"{flow_id}.on_failure"] is State.CANCELLED


def test_from_code_that_is_not_async() -> None:
    processor = make_processor()
    flow_id = processor.sync.enqueue_flow(chain(fetch.job("a"), note.job("b")), id="c")
    assert processor.sync.drain() == 2
    assert processor.sync.get_status(f"{flow_id}.note").state is State.COMPLETED
    processor.sync.close()


async def test_a_repeat_changes_nothing() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(), id="i")
        before = await list_states(processor)
        await processor.enqueue_flow(make_import(), id="i")
        assert await list_states(processor) == before
        await processor.drain()
        await processor.enqueue_flow(make_import(), id="i")
        assert await processor.drain() == 0


async def test_another_flow_with_the_id() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(3), id="i")
        with pytest.raises(InvalidJob, match="another flow with the id 'i"):
            await processor.enqueue_flow(make_import(4), id="i")
        other = Flow("import", on_success=note.job("done"), on_failure=note.job("failed"))
        file = other.add(fetch.job("another.csv"))
        parts = other.add_all((count_rows.job(file.result, n) for n in range(3)), name="parts")
        other.add(add_up.job(parts.results))
        with pytest.raises(JobConflict, match=r"i\.fetch"):
            await processor.enqueue_flow(other, id="i")


async def test_a_large_flow_is_stored_in_batches_and_a_repeat_completes_it() -> None:
    sizes = SizeLimits(batch=10)
    async with make_processor(sizes=sizes) as processor:
        flow = make_import(35)
        calls: list[tuple[int, list[str]]] = []
        enqueue = processor.backend.producing.enqueue

        async def fail_late(
            jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
        ) -> list[Enqueued]:
            calls.append((len(jobs), [one.id for one in flows]))
            if len(calls) == 3:
                raise OSError("the cable was cut")
            return await enqueue(jobs, flows)

        processor.backend.producing.enqueue = fail_late  # type: ignore[method-assign]
        with pytest.raises(OSError, match="cable"):
            await processor.enqueue_flow(flow, id="i")
        assert calls == [(10, ["i", "i.parts"])] * 3
        assert await processor.drain() == 18  # the file and the parts that are stored
        await processor.enqueue_flow(flow, id="i")
        assert await processor.drain() == 35 - 17 + 2
        assert await processor.wait("i.add_up") == 35 * len("/tmp/f.csv") + sum(range(35))


async def test_a_flow_that_is_stored_in_part_ends_after_a_repeat_and_a_cancel() -> None:
    async with make_processor(sizes=SizeLimits(batch=10)) as processor:
        flow, enqueue, calls = make_import(35), processor.backend.producing.enqueue, []

        async def fail_late(
            jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
        ) -> list[Enqueued]:
            calls.append(len(jobs))
            if len(calls) == 3:
                raise OSError("the cable was cut")
            return await enqueue(jobs, flows)

        processor.backend.producing.enqueue = fail_late  # type: ignore[method-assign]
        with pytest.raises(OSError, match="cable"):
            await processor.enqueue_flow(flow, id="i")
        await processor.flows.cancel("i")
        assert (await processor.flows.get("i")).state is FlowState.RUNNING
        await processor.enqueue_flow(flow, id="i")
        await processor.flows.cancel("i")
        assert (await processor.flows.get("i")).state is not FlowState.RUNNING


async def test_a_large_flow_with_a_wrong_member_is_refused_as_a_whole() -> None:
    async with make_processor(sizes=SizeLimits(batch=10)) as processor:
        flow = Flow("import")
        flow.add_all([note.job("a")] * 25 + [note.job(5)])  # type: ignore[arg-type]
        with pytest.raises(InvalidJob, match=r"member 'note\.25': job 'note', field 'text'"):
            await processor.enqueue_flow(flow)
        assert await list_states(processor) == {}


async def test_members_without_jobs() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(Flow("empty", on_finished=note.job("end")), id="e")
        flow = Flow("group")
        parts = flow.add_all(count_rows.job("a", n) for n in range(0))
        flow.add(add_up.job(parts.results))
        await processor.enqueue_flow(flow, id="g")
        assert await processor.drain() == 2
        assert await processor.wait("g.add_up") == 0


async def test_a_result_inside_a_list_is_refused() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        first = flow.add(count_rows.job("a", 1))
        flow.add(add_up.job([first.result]))
        with pytest.raises(InvalidJob, match=r"member 'add_up'.*counts\[0\].*only be a whole arg"):
            await processor.enqueue_flow(flow)
        with pytest.raises(InvalidJob, match="whole argument"):
            await processor.enqueue(count_rows.job("a", first.result))
        assert await list_states(processor) == {}


async def test_a_result_inside_another_value_is_refused() -> None:
    """`InvalidJob` names the argument, whatever the types are."""

    @job
    async def take(found: list[dict[str, int]], more: dict[str, object] | None = None) -> None: ...

    async with make_processor() as processor:
        for place in ("found", "more"):
            flow = Flow("import")
            first: Any = flow.add(fetch.job("a")).result
            flow.add(take.job([first]) if place == "found" else take.job([], {"a": first}))
            with pytest.raises(InvalidJob, match=f"member 'take'.*'{place}'.* whole argument"):
                await processor.enqueue_flow(flow)


async def test_a_member_in_place_of_its_result_is_refused() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        first: Any = flow.add(fetch.job("a"))
        flow.add(note.job(first))
        with pytest.raises(InvalidJob, match=r"expected `str`, got `Member` .*`member\.result`"):
            await processor.enqueue_flow(flow)


async def test_ids_that_would_be_too_long() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        flow.add(fetch.job("a"), name="n" * 100)
        with pytest.raises(InvalidJob, match=r"member 'n+': .* 131 characters, over the limit"):
            await processor.enqueue_flow(flow, id="i" * 30)
        flow = Flow("import")
        flow.add_all([note.job("a")] * 11, name="n" * 97)
        with pytest.raises(InvalidJob, match=r"member 'n+\.10'"):
            await processor.enqueue_flow(flow, id="i" * 30)
        with pytest.raises(InvalidJob, match="a Flow, not"):
            await processor.enqueue_flow(note.job("a"))  # type: ignore[arg-type]


async def test_a_unique_key_that_lets_another_job_take_the_place() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        flow.add(take_existing.job(5))
        with pytest.raises(InvalidJob, match=r"member 'take_existing'.*on_duplicate='existing'"):
            await processor.enqueue_flow(flow)
        await processor.enqueue(take_path.job("a"))
        flow = Flow("import")
        flow.add_all([note.job("a"), take_path.job("a")])
        with pytest.raises(DuplicateJob):
            await processor.enqueue_flow(flow, id="i")
        assert await processor.backend.reads.get_flow("i") == []


async def test_middleware_sees_each_job_and_must_pass_on_all() -> None:
    processor = make_processor()
    seen: list[str] = []
    drops: list[str] = []

    async def watch(
        enqueueing: Enqueueing, call_next: Callable[[Enqueueing], Awaitable[str]]
    ) -> str:
        seen.append(enqueueing.id)
        if enqueueing.name in drops:
            return "dropped"
        return await call_next(msgspec.structs.replace(enqueueing, priority=9))

    processor.use_enqueue(watch)
    async with processor:
        await processor.enqueue_flow(make_import(), id="i")
        assert len(seen) == 7
        assert (await processor.backend.reads.get_job("i.parts.1")).priority == 9
        drops.append("add_up")
        with pytest.raises(InvalidJob, match=r"did not pass on job 'j\.add_up'"):
            await processor.enqueue_flow(make_import(), id="j")
        drops += ["note", "fetch", "count_rows"]
        with pytest.raises(InvalidJob, match="did not pass on job"):
            await processor.enqueue_flow(make_import(), id="k")
        for flow_id in "jk":
            assert await processor.backend.reads.get_flow(flow_id) == []
        assert len(await list_states(processor)) == 7
        assert await processor.drain() == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"unique_key": "k", "on_duplicate": "existing"}, "on_duplicate='existing'"),
        ({"flow": "other"}, "changed the place of job 'i.fetch'"),
        ({"group": ""}, "changed the place"),
        ({"conditions": ()}, "changed the place of job 'i.parts.0'"),
        ({"results": {}}, "changed the place"),
    ],
)
async def test_middleware_must_keep_the_place_of_a_job(
    changed: dict[str, object], message: str
) -> None:
    processor = make_processor()

    async def change(
        enqueueing: Enqueueing, call_next: Callable[[Enqueueing], Awaitable[str]]
    ) -> str:
        if enqueueing.name in {"fetch", "count_rows", "add_up"}:
            enqueueing.options = msgspec.structs.replace(enqueueing.options, **changed)
        return await call_next(enqueueing)

    processor.use_enqueue(change)
    async with processor:
        with pytest.raises(InvalidJob, match=message):
            await processor.enqueue_flow(make_import(), id="i")
        assert await processor.backend.reads.get_flow("i") == []


async def test_members_inherit_the_tenant_and_the_correlation_id() -> None:
    processor = make_processor()

    @processor.job
    async def start() -> str:
        return await processor.enqueue_flow(make_import())

    async with processor:
        started = await processor.enqueue(start.job(), tenant="acme", correlation_id="c")
        await processor.drain()
        flow_id = await processor.wait(started)
        for name in ("fetch", "parts.2", "add_up", "on_success"):
            options = (await processor.backend.reads.get_job(f"{flow_id}.{name}")).options
            assert (options.tenant, options.correlation_id) == ("acme", "c")


async def test_a_flow_belongs_to_a_transaction(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with Processor(url) as processor:
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
            connection.execute("BEGIN")
            await processor.enqueue_flow(make_import(), id="i", connection=connection)
            connection.rollback()
            assert await processor.backend.reads.get_flow("i") == []
            connection.execute("BEGIN")
            await processor.enqueue_flow(make_import(), id="i", connection=connection)
            connection.commit()
        assert [flow.id for flow in await processor.backend.reads.get_flow("i")] == ["i", "i.parts"]
        assert len(await list_states(processor)) == 7


async def test_a_transaction_that_the_backend_cannot_join() -> None:
    class Session:
        pass

    async with make_processor() as processor:
        with pytest.raises(NotSupported, match="flows do not go through an outbox yet"):
            await processor.enqueue_flow(make_import(), connection=Session())


async def test_a_job_class_takes_results() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        file = flow.add(fetch.job("f.csv"))
        flow.add(Measure(path=file.result, unit="km"), name="measure")
        flow.add(show.job(file.result, times=2))
        await processor.enqueue_flow(flow, id="i")
        record = await processor.backend.reads.get_job("i.measure")
        assert record.payload == b'{"unit":"km"}'
        await processor.drain()
        assert await processor.wait("i.measure") == len("/tmp/f.csv")
        assert await processor.wait("i.show") == "/tmp/f.csv/tmp/f.csv"


async def test_the_tolerance_of_a_group() -> None:
    async with make_processor() as processor:
        flow = Flow("import", on_failure=note.job("alert"), on_success=note.job("good"))
        jobs = [fail.job(1) if n == 2 else count_rows.job("", n) for n in range(20)]
        parts = flow.add_all(jobs, max_failed="5%")
        flow.add(add_up.job(parts.results))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert await processor.wait("i.add_up") == sum(range(20)) - 2
        assert (await list_states(processor))["i.on_success"] is State.COMPLETED


async def test_a_failure_cancels_what_depends_on_it() -> None:
    async with make_processor() as processor:
        flow = Flow("import", on_failure=note.job("alert"), on_finished=note.job("end"))
        first = flow.add(fail.job(1))
        flow.add(show.job("a"), depends_on=first)
        flow.add(show.job("b"), name="always", depends_on=first, on="finished")
        flow.add(show.job("c"), name="repair", depends_on=[first], on="failure")
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        states = await list_states(processor)
        assert states["i.show"] is State.CANCELLED
        for name in ("always", "repair", "on_failure", "on_finished"):
            assert states[f"i.{name}"] is State.COMPLETED


async def test_a_group_whose_results_are_taken_may_have_failed() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        parts = flow.add_all([count_rows.job("", 1), fail.job(2), count_rows.job("", 3)])
        flow.add(add_up.job(parts.results), depends_on=parts, on="finished")
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert await processor.wait("i.add_up") == 1 + 3


async def test_a_callback_does_not_run_again_when_the_flow_is_repeated() -> None:
    clock = FakeClock()
    processor = make_processor(clock=clock)
    async with processor:
        flow = Flow("import", on_finished=note.job("end"))
        flow.add(fetch.job("a"))
        await processor.enqueue_flow(flow, id="i")
        assert await processor.drain() == 2
        clock.advance(3_600.0)
        await processor.backend.maintenance.prune(Retention(completed=60.0), 100)
        assert await list_states(processor) == {}
        await processor.enqueue_flow(flow, id="i")
        assert await processor.drain() == 0
