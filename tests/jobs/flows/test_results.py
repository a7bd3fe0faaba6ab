"""The worker fills in the results of other members."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nimburion import Context, Flow, Processor, State, job
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import JobRecord, Reason
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter, Page
from nimburion.core.size_limits import SizeLimits
from nimburion.jobs.handling.middleware import Enqueueing
from nimburion.testing import FakeClock
from tests.jobs.flows.flow_jobs import (
    add_up,
    count_rows,
    fetch,
    keep_nothing,
    make_processor,
    note,
    show,
)


@job
async def count_wrongly(path: str) -> str:
    return path


@job
async def find_nothing() -> str | None:
    return None


@job
async def count_values(values: list[str | None]) -> int:
    return len(values)


@job
async def take_optional(text: str | None) -> str:
    return f"got {text}"


async def read_error(processor: Processor, job_id: str) -> str:
    record = await processor.backend.reads.get_job(job_id)
    assert record.state is State.FAILED
    assert record.reason == Reason.UNREADABLE
    assert record.error is not None
    return record.error.message


async def test_a_result_of_a_wrong_type_is_unreadable() -> None:
    processor = make_processor()
    processor.register(count_wrongly)
    async with processor:
        flow = Flow("import")
        parts = flow.add_all([count_wrongly.job("a")], name="parts")
        flow.add(add_up.job(parts.results))  # type: ignore[arg-type]
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        text = await read_error(processor, "i.add_up")
        assert "field 'counts[0]': expected `int`, got `str`" in text
        assert "'counts' is the result of i.parts" in text


async def test_none_is_a_result() -> None:
    processor = make_processor()
    processor.register(find_nothing, take_optional)
    async with processor:
        flow = Flow("import")
        flow.add(take_optional.job(flow.add(find_nothing.job()).result))
        flow.add(show.job(flow.add(find_nothing.job()).result))  # type: ignore[arg-type]
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert await processor.wait("i.take_optional") == "got None"
        assert "got `null`" in await read_error(processor, "i.show")


async def test_the_results_of_a_group_have_none() -> None:
    processor = make_processor()
    processor.register(find_nothing, count_values)
    async with processor:
        flow = Flow("import")
        parts = flow.add_all(find_nothing.job() for _ in range(3))
        flow.add(count_values.job(parts.results))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert await processor.wait("i.count_values") == 3


async def test_none_is_a_result_for_as_long_as_the_flow_runs() -> None:
    clock = FakeClock()
    processor = make_processor(clock=clock, keep_results=60.0)
    processor.register(find_nothing, take_optional)
    async with processor:
        flow = Flow("import")
        flow.add(take_optional.job(flow.add(find_nothing.job()).result))
        await processor.enqueue_flow(flow, id="i")
        await processor.process_one()
        assert (await processor.backend.reads.get_job("i.find_nothing")).result == b"null"
        assert await processor.wait("i.find_nothing") is None
        clock.advance(3_600.0)
        await processor.drain()
        assert await processor.wait("i.take_optional") == "got None"


async def test_only_members_whose_result_is_taken_keep_none() -> None:
    processor = make_processor()
    processor.register(find_nothing)
    async with processor:
        flow = Flow("import", on_finished=find_nothing.job())
        flow.add(keep_nothing.job())
        flow.add(find_nothing.job())
        await processor.enqueue_flow(flow, id="i")
        await processor.enqueue(find_nothing.job(), id="plain")
        await processor.drain()
        for job_id in ("plain", "i.on_finished", "i.keep_nothing", "i.find_nothing"):
            record = await processor.backend.reads.get_job(job_id)
            assert (record.state, record.result) == (State.COMPLETED, None)


@job
async def find_without_a_type(url: str):  # type: ignore[no-untyped-def]
    return f"/tmp/{url}"


@pytest.mark.parametrize("source", [fetch, find_without_a_type])
async def test_a_result_that_is_no_longer_kept(source: Any) -> None:
    clock = FakeClock()
    processor = make_processor(clock=clock, keep_results=60.0)
    processor.register(find_without_a_type)
    calls: list[object] = []

    @processor.job
    async def check(text: str) -> None:
        calls.append(text)
        if len(calls) == 1:
            raise ValueError("not yet")

    async with processor:
        flow = Flow("import")
        flow.add(check.job(flow.add(source.job("a"), name="fetch").result))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        clock.advance(3_600.0)
        await processor.backend.maintenance.prune(Retention(results=60.0), 100)
        await processor.dead.replay("i.check")
        await processor.drain()
        text = await read_error(processor, "i.check")
        assert "'text' is the result of job i.fetch, which is no longer kept" in text
        assert calls == ["/tmp/a"]


async def test_a_job_that_is_no_longer_kept() -> None:
    processor = make_processor()

    @processor.job
    async def check(text: str) -> None:
        raise ValueError("not yet")

    async with processor:
        flow = Flow("import")
        flow.add(check.job(flow.add(fetch.job("a")).result))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        await processor.backend.maintenance.change_jobs(BulkAction.DELETE, ("i.fetch",))
        await processor.dead.replay("i.check")
        await processor.drain()
        assert "job i.fetch, which is no longer kept" in await read_error(processor, "i.check")


async def test_results_that_are_too_large_together() -> None:
    processor = make_processor(sizes=SizeLimits(payload=1_000))

    @processor.job
    async def write(number: int) -> str:
        return "x" * 200

    @processor.job
    async def join(texts: list[str]) -> None: ...

    async with processor:
        flow = Flow("import")
        flow.add(join.job(flow.add_all(write.job(n) for n in range(5)).results))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert "over the limit of 1000" in await read_error(processor, "i.join")


async def test_results_are_not_read_on_after_the_limit() -> None:
    processor = make_processor(sizes=SizeLimits(payload=1_000))

    @processor.job
    async def write(number: int) -> str:
        return "x" * 20

    @processor.job
    async def join(texts: list[str]) -> None: ...

    async with processor:
        flow = Flow("import")
        flow.add(join.job(flow.add_all(write.job(n) for n in range(250)).results))
        await processor.enqueue_flow(flow, id="i")
        reads: list[int] = []
        list_jobs = processor.backend.reads.list_jobs

        async def count_ids(which: JobFilter, **options: Any) -> Page:
            reads.extend([len(which.ids)] if which.ids else [])
            return await list_jobs(which, **options)

        processor.backend.reads.list_jobs = count_ids  # type: ignore[method-assign, assignment]
        await processor.drain()
        assert "over the limit of 1000" in await read_error(processor, "i.join")
        assert reads == [100]


async def test_a_result_that_could_not_be_stored() -> None:
    processor = make_processor(sizes=SizeLimits(result=100))

    @processor.job
    async def write() -> str:
        return "x" * 200

    async with processor:
        flow = Flow("import")
        flow.add(show.job(flow.add(write.job()).result))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert "i.write, which could not be stored" in await read_error(processor, "i.show")


async def test_a_raw_handler_gets_the_results() -> None:
    processor = Processor("memory://")
    got: list[bytes] = []
    processor.register(fetch)
    processor.register("show", lambda ctx, data: got.append(data))
    async with processor:
        flow = Flow("import")
        flow.add(show.job(flow.add(fetch.job("a")).result, 3))
        await processor.enqueue_flow(flow)
        await processor.drain()
    assert got == [b'{"times":3,"text":"/tmp/a"}']


async def test_middleware_comes_before_the_results() -> None:
    processor = make_processor()

    async def encrypt(
        enqueueing: Enqueueing, call_next: Callable[[Enqueueing], Awaitable[str]]
    ) -> str:
        enqueueing.payload = enqueueing.payload[::-1]
        return await call_next(enqueueing)

    async def decrypt(ctx: Context, call_next: Callable[[Context], Awaitable[object]]) -> object:
        ctx.payload = ctx.payload[::-1]
        return await call_next(ctx)

    processor.use_enqueue(encrypt)
    processor.use(decrypt)
    async with processor:
        flow = Flow("import")
        flow.add(count_rows.job(flow.add(fetch.job("a")).result, 1))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert await processor.wait("i.count_rows") == len("/tmp/a") + 1


async def test_a_batch_handler_gets_the_results() -> None:
    processor = make_processor()

    @processor.job(batch=10)
    async def index(paths: list[str]) -> None:
        assert paths == ["/tmp/a"]

    async with processor:
        flow = Flow("import")
        flow.add(index.job(flow.add(fetch.job("a")).result))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert (await processor.get_status("i.index")).state is State.COMPLETED


async def test_an_attempt_without_an_answer_counts_nothing() -> None:
    clock = FakeClock()
    processor = make_processor(clock=clock)
    async with processor:
        flow = Flow("import")
        flow.add(show.job(flow.add(fetch.job("a")).result))
        await processor.enqueue_flow(flow, id="i")
        get_job = processor.backend.reads.get_job
        broken = [True]

        async def get_or_fail(job_id: str) -> JobRecord:
            if broken:
                raise BackendUnavailable("no answer")
            return await get_job(job_id)

        processor.backend.reads.get_job = get_or_fail  # type: ignore[method-assign]
        await processor.drain()
        broken.clear()
        record = await get_job("i.show")
        assert (record.state, record.failures) == (State.SCHEDULED, 0)
        await processor.drain(advance=True)
        assert await processor.wait("i.show") == "/tmp/a"


async def test_a_dead_letter_with_other_arguments_is_no_member() -> None:
    async with make_processor() as processor:
        flow = Flow("import")
        first = flow.add(show.job("a"))
        flow.add(note.job("b"), depends_on=first)
        await processor.enqueue_flow(flow, id="i")
        await processor.backend.producing.cancel("i.show")
        tree = await processor.backend.reads.get_flow("i")
        assert (tree[0].cancelled, tree[0].unfinished) == (2, 0)
