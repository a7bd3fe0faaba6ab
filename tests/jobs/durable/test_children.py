"""Child jobs: stored once, awaited without a slot, with results and failures."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from nimburion import DurableContext, PermanentError, Processor, State
from nimburion.core.job import NewJob
from nimburion.core.size_limits import SizeLimits
from nimburion.errors import BackendFull, BackendUnavailable, ChildFailed, NimburionError
from nimburion.jobs.durable import services
from nimburion.jobs.durable.children import make_flow_id
from nimburion.testing import FakeClock, crash_everywhere
from tests.jobs.durable.runs import finish, make_processor


def add_jobs(processor: Processor) -> tuple[Any, Any, list[int]]:
    runs: list[int] = []

    @processor.job
    async def double(value: int) -> int:
        runs.append(value)
        return 2 * value

    @processor.job(name="fails")
    async def fail(text: str) -> int:
        raise PermanentError(text)

    return double, fail, runs


async def test_results_of_children() -> None:
    processor = make_processor()
    double, _, runs = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        one = await ctx.options(key="one").run(double.job(1))
        many = await ctx.run_all(double.job(n) for n in range(3))
        none: list[int] = await ctx.options(key="none").run_all([])
        return [one, *many, *none]

    async with processor:
        job_id = await run.enqueue()
        assert (await finish(processor, job_id)).result == [2, 0, 2, 4]
        assert runs == [1, 0, 1, 2]
        assert (await processor.get_status(f"{job_id}.one.0")).result == 2
        assert (await processor.get_status(f"{job_id}.double.2")).result == 4


async def test_a_child_uses_the_only_slot_of_its_parent() -> None:
    processor = Processor("memory://", concurrency=1)
    double, _, _ = add_jobs(processor)

    @processor.job(concurrency=1)
    async def run(ctx: DurableContext, depth: int) -> int:
        if depth == 0:
            return await ctx.run(double.job(21))
        return await ctx.run(run.job(depth - 1))

    async with processor:
        await processor.start()
        assert await processor.wait(await run.enqueue(3), timeout=20) == 42


async def test_a_failed_child_is_an_error_in_the_run_and_fails_it_for_good() -> None:
    processor = make_processor(max_retries=3)
    _, fail, _ = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.run(fail.job("no"))

    async with processor:
        job_id = await run.enqueue()
        status = await finish(processor, job_id)
        assert status.state is State.FAILED
        assert status.error is not None
        assert status.error.type == "ChildFailed"
        assert status.error.message == (
            f"job fails {job_id}.fails.0 ended as failed: PermanentError: no"
        )


async def test_a_failed_child_that_is_caught_is_the_same_in_later_attempts() -> None:
    processor = make_processor()
    double, fail, _ = add_jobs(processor)
    seen: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> int:
        try:
            await ctx.run(fail.job("no"))
        except ChildFailed as error:
            seen.append(f"{error.name} {error.state} {error.reason}")
        return await ctx.run(double.job(4))

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 8
        assert seen == ["fails failed PermanentError: no"] * 2


async def test_a_replayed_child_completes_its_replayed_parent() -> None:
    processor = make_processor()
    healthy = [False]

    @processor.job
    async def part() -> int:
        if not healthy[0]:
            raise PermanentError("no")
        return 5

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.run(part.job())

    async with processor:
        job_id = await run.enqueue()
        assert (await finish(processor, job_id)).state is State.FAILED
        healthy[0] = True
        await processor.dead.replay(f"{job_id}.part.0")
        await processor.drain()
        await processor.dead.replay(job_id)
        assert (await finish(processor, job_id)).result == 5


async def test_run_all_waits_for_all_and_raises_the_first_failure() -> None:
    processor = make_processor()
    double, fail, runs = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            await ctx.run_all([double.job(1), fail.job("b"), fail.job("c"), double.job(2)])
        except ChildFailed as error:
            return str(error.reason)
        return "completed"

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == "PermanentError: b"
        assert runs == [1, 2]


async def test_results_over_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimburion.jobs.durable.children.MAX_RESULT_BYTES", 200)
    processor = make_processor()
    double, fail, runs = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> list[str]:
        errors: list[str] = []
        for key, last in ("all", double.job(1)), ("but one", fail.job("b")):
            jobs = [*(double.job(100_000) for _ in range(120)), last]
            try:
                await ctx.options(key=key).run_all(jobs)
            except NimburionError as error:
                errors.append(f"{type(error).__name__}: {error}")
        return errors

    async with processor:
        first, second = (await finish(processor, await run.enqueue())).result
        assert first.startswith("InvalidStep: the results of the child jobs 'all' are 721 bytes")
        assert second.startswith("ChildFailed: job fails")
        assert len(runs) == 241


async def test_a_child_that_was_started_is_awaited_later() -> None:
    processor = make_processor()
    double, _, _ = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> list[Any]:
        child = await ctx.start(double.job(4))
        await ctx.sleep("pause", 10)
        return [child.id, await child.result(), repr(child)]

    async with processor:
        job_id = await run.enqueue()
        child = f"{job_id}.double.0"
        result = (await finish(processor, job_id)).result
        assert result == [child, 8, f"<child job {child}>"]


async def test_children_in_branches() -> None:
    processor = make_processor()
    double, _, _ = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        parts = (ctx.options(key=f"part-{n}").run(double.job(n)) for n in range(4))
        return list(await asyncio.gather(*parts))

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == [0, 2, 4, 6]


async def test_a_job_is_enqueued_once_whatever_becomes_of_the_run() -> None:
    processor = make_processor()
    double, _, runs = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> list[str]:
        one = await ctx.enqueue(double.job(1))
        two = await ctx.options(key="more").enqueue(double.job(2), id="own")
        await ctx.sleep("pause", 10)
        return [one, two]

    async with processor:
        job_id = await run.enqueue()
        status = await finish(processor, job_id)
        assert status.result == [f"{job_id}.enqueue:double", "own"]
        assert runs == [1, 2]


async def test_cancelling_a_run_cancels_its_children() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    double, _, _ = add_jobs(processor)

    @processor.job
    async def later(ctx: DurableContext) -> None:
        await ctx.sleep("long", "10d")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.options(key="done").run(double.job(1))
        await ctx.run_all([later.job(), later.job()])

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        assert await processor.cancel(job_id) == "requested"
        await processor.drain()
        states = [
            (await processor.get_status(one)).state
            for one in (job_id, f"{job_id}.done.0", f"{job_id}.later.0", f"{job_id}.later.1")
        ]
        assert states == [State.CANCELLED, State.COMPLETED, State.CANCELLED, State.CANCELLED]


@pytest.mark.parametrize("has_others", [True, False])
@pytest.mark.parametrize("form", ["start", "run", "run_all"])
async def test_detached_children_continue_when_the_run_is_cancelled(
    form: str, has_others: bool
) -> None:
    processor = make_processor()

    @processor.job
    async def later(ctx: DurableContext) -> int:
        await ctx.sleep("long", "10d")
        return 1

    @processor.job
    async def run(ctx: DurableContext) -> None:
        if has_others:
            await ctx.options(key="other").start(later.job())
        if form == "start":
            child = await ctx.start(later.job(), detached=True)
            await child.result()
        elif form == "run":
            await ctx.run(later.job(), detached=True)
        else:
            await ctx.run_all([later.job()], detached=True)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        # Without anything to do at its end, the run needs no worker to end.
        assert await processor.cancel(job_id) == ("requested" if has_others else "cancelled")
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.CANCELLED
        if has_others:
            assert (await processor.get_status(f"{job_id}.other.0")).state is State.CANCELLED
        assert (await finish(processor, f"{job_id}.later.0")).result == 1


@pytest.mark.parametrize("operation", ["get_job", "list_jobs", "get_flow", "enqueue_members"])
async def test_a_backend_that_does_not_answer_about_children_counts_nothing(
    monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    processor = make_processor()
    double, _, _ = add_jobs(processor)
    lost: list[str] = []
    part = services if operation == "enqueue_members" else processor.backend.reads
    original = getattr(part, operation)

    async def fail_once(*args: Any, **options: Any) -> Any:
        if not lost:
            lost.append(operation)
            raise BackendUnavailable("no answer")
        return await original(*args, **options)

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        try:
            child = await ctx.options(key="first").start(double.job(1))
            await ctx.wait_any(child)
            return await ctx.run_all(double.job(n) for n in range(2))
        except BackendUnavailable:
            return []

    async with processor:
        job_id = await run.enqueue()
        monkeypatch.setattr(part, operation, fail_once)
        await processor.drain(advance=True)
        assert lost == [operation]
        status = await processor.get_status(job_id)
        assert (status.result, status.attempt) == ([0, 2], 1)


def lose_first_read(
    monkeypatch: pytest.MonkeyPatch, processor: Processor, was_read: threading.Event | asyncio.Event
) -> None:
    """Leave the first read of a job without an answer, and set the event then."""
    original = processor.backend.reads.get_job

    async def fail_once(*args: Any, **options: Any) -> Any:
        if not was_read.is_set():
            was_read.set()
            raise BackendUnavailable("no answer")
        return await original(*args, **options)

    monkeypatch.setattr(processor.backend.reads, "get_job", fail_once)


async def test_a_step_ends_before_a_run_without_an_answer_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread cannot be cancelled: its step would run twice at the same time."""
    processor = make_processor()
    double, _, _ = add_jobs(processor)
    was_read = threading.Event()
    calls: list[str] = []

    def work() -> int:
        assert was_read.wait(20)
        calls.append("work")
        return 1

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        child = await ctx.start(double.job(1))
        await ctx.sleep("pause", 10)
        results: list[int] = await asyncio.gather(child.result(), ctx.step(work))
        return results

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        lose_first_read(monkeypatch, processor, was_read)
        await processor.drain(advance=True)
        assert (await processor.get_status(job_id)).result == [2, 1]
        assert calls == ["work"]


async def test_no_branch_begins_a_step_in_a_run_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = make_processor()
    double, _, _ = add_jobs(processor)
    was_read = asyncio.Event()
    attempts: list[int] = []

    async def work() -> int:
        """Return which call of the handler called this."""
        return len(attempts)

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        attempts.append(1)
        child = await ctx.start(double.job(1))
        await ctx.sleep("pause", 10)

        async def work_twice() -> list[int]:
            first = await ctx.options(key="first").step(work)
            await was_read.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            return [first, await ctx.options(key="second").step(work)]

        steps, result = await asyncio.gather(work_twice(), child.result())
        return [*steps, result]

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        lose_first_read(monkeypatch, processor, was_read)
        await processor.drain(advance=True)
        assert (await processor.get_status(job_id)).result == [2, 3, 2]


async def test_detached_children_of_a_run_whose_worker_is_lost_at_any_point() -> None:
    processor = make_processor(max_lost=100)
    double, _, _ = add_jobs(processor)

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        first = await ctx.options(key="first").start(double.job(1), detached=True)
        second = await ctx.options(key="second").run(double.job(2), detached=True)
        third = await ctx.options(key="third").run_all([double.job(3)], detached=True)
        return [await first.result(), second, *third]

    report = await crash_everywhere(run.job(), processor=processor)
    assert report.result == [2, 4, 6]
    assert report.steps == ("children first", "children second", "children third")


async def test_other_arguments_of_children_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    processor = make_processor()
    double, _, runs = add_jobs(processor)
    values = [1, 2]

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.run(double.job(values.pop(0)))

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 2
        assert runs == [1]
        assert "the arguments of the child jobs 'double' at" in caplog.text


async def test_children_that_an_earlier_attempt_stored_in_part(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processor = make_processor(max_retries=1, sizes=SizeLimits(batch=2))
    double, _, runs = add_jobs(processor)
    enqueue, batches = processor.backend.producing.enqueue, list[int]()

    async def fail_at_the_second(jobs: Sequence[NewJob], *args: Any, **options: Any) -> Any:
        if jobs[0].name == "double":
            batches.append(len(jobs))
            if len(batches) == 2:
                raise BackendFull("no room")
        return await enqueue(jobs, *args, **options)

    monkeypatch.setattr(processor.backend.producing, "enqueue", fail_at_the_second)
    values = [0, 5]

    @processor.job
    async def run(ctx: DurableContext) -> int:
        first = values.pop(0) if values else 5
        results = await ctx.run_all(double.job(first) for _ in range(3))
        return sum(results)

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 10
        assert batches == [2, 1, 2, 1]
        assert runs == [0, 0, 5]
        assert "the arguments of the child jobs 'double' at" in caplog.text


async def test_another_number_of_children_is_an_error() -> None:
    processor = make_processor()
    double, _, _ = add_jobs(processor)
    counts = [2, 3]

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        results: list[int] = await ctx.run_all([double.job(1)] * counts.pop(0))
        return results

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.error is not None
        assert "3 child jobs have the key 'double', and an earlier attempt started 2" in (
            status.error.message
        )


def test_ids_of_flows_are_valid_and_differ() -> None:
    long = make_flow_id("j" * 100, 0, "a long key of a step")
    assert len(long) <= 120
    assert make_flow_id("j", 0, "with a space") == f"j.{make_flow_id('j', 0, 'with a space')[2:]}"
    assert make_flow_id("j", 0, "a b") != make_flow_id("j", 0, "a_b")
    assert make_flow_id("j", 1, "k") == "j:1.k"


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a", 0, "b.c"), ("a.b", 0, "c")), (("a", 2, "k"), ("a:2", 0, "k"))],
)
def test_two_runs_do_not_share_a_flow(
    one: tuple[str, int, str], other: tuple[str, int, str]
) -> None:
    assert make_flow_id(*one) != make_flow_id(*other)
