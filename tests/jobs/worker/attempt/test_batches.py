"""Batch handlers: one call for several jobs, and an outcome for each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, DefinitionError, PermanentError, Retry, Snooze
from nimburion.core.job import State
from nimburion.jobs import Batch, Context, Job, Processor, job
from nimburion.jobs.handling.batch_context import BatchContext
from nimburion.testing import FakeClock
from tests.waiting import wait_until, wait_until_finished

DEADLINE = 20.0


class Document(msgspec.Struct):
    name: str
    version: int = 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def processor(clock: FakeClock) -> AsyncIterator[Processor]:
    async with Processor(MemoryBackend(clock=clock), clock=clock, retry_backoff=1.0) as made:
        yield made


async def states(processor: Processor, ids: Sequence[str]) -> list[State]:
    return [(await processor.get_status(each)).state for each in ids]


@pytest.mark.parametrize("is_async", [True, False])
async def test_one_call_takes_the_jobs_that_are_due(processor: Processor, is_async: bool) -> None:
    calls: list[list[Document]] = []

    async def index_async(documents: list[Document]) -> list[int]:
        calls.append(documents)
        return [document.version for document in documents]

    def index_blocking(documents: list[Document]) -> list[int]:
        assert threading.current_thread() is not threading.main_thread()
        calls.append(documents)
        return [document.version for document in documents]

    function = index_async if is_async else index_blocking
    index = processor.job(name="index", batch=3)(function)
    ids = [await index.enqueue(Document("plan", n)) for n in range(5)]
    assert await processor.process_one()
    assert [[document.version for document in call] for call in calls] == [[0, 1, 2]]
    assert await processor.drain() == 2
    assert [len(call) for call in calls] == [3, 2]
    assert [(await processor.get_status(each)).result for each in ids] == [0, 1, 2, 3, 4]


async def test_each_job_has_its_own_outcome(processor: Processor, clock: FakeClock) -> None:
    outcomes: list[Any] = [None, ValueError("bad"), PermanentError("worse")]
    outcomes += [Retry(after=30), Snooze(60), Cancel("off")]

    @processor.job(batch=10, max_retries=2)
    async def index(names: list[str]) -> list[Any]:
        return outcomes

    ids = [await index.enqueue(str(n)) for n in range(len(outcomes))]
    assert await processor.process_one()
    assert await states(processor, ids) == [
        "completed", "retrying", "failed", "retrying", "scheduled", "cancelled",
    ]  # fmt: skip
    retried = await processor.get_status(ids[1])
    assert (retried.failures, [error.message for error in retried.history]) == (1, ["bad"])
    assert (await processor.get_status(ids[4])).failures == 0


class NeedsReason(Exception):
    """Cannot be made without an argument."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "def"])
async def test_an_exception_class_as_outcome_means_what_it_means_after_raise(
    fails: bool, in_thread: bool, processor: Processor
) -> None:
    def decide(ctx: BatchContext, names: list[str]) -> list[Any]:
        ctx.set_outcome(0, PermanentError)
        ctx.set_outcome(1, Cancel)
        if fails:
            raise LookupError
        return [None, None, KeyError, NeedsReason]

    async def decide_on_the_loop(ctx: BatchContext, names: list[str]) -> list[Any]:
        return decide(ctx, names)

    options = processor.job(name="index", batch=10, max_retries=0)
    index = options(decide) if in_thread else options(decide_on_the_loop)

    ids = [await index.enqueue(str(n)) for n in range(4)]
    await processor.process_one()
    assert await states(processor, ids) == ["failed", "cancelled", "failed", "failed"]
    errors = [(await processor.get_status(ids[place])).history[0] for place in (0, 2, 3)]
    expected = ["LookupError", "LookupError"] if fails else ["KeyError", "TypeError"]
    assert [each.type for each in errors] == ["PermanentError", *expected]


async def test_outcomes_can_be_set_and_jobs_know_their_context(processor: Processor) -> None:
    @processor.job(batch=10, max_retries=0)
    async def index(ctx: BatchContext, names: list[str]) -> None:
        assert [each.job_id for each in ctx.jobs] == ids
        ctx.set_outcome(0, "first")
        ctx.set_outcome(1, ValueError("bad"))
        with pytest.raises(IndexError, match="the batch has 3 jobs"):
            ctx.set_outcome(3, None)

    ids = await processor.enqueue_many([index.job(name) for name in "abc"])
    assert await processor.drain() == 3
    assert await states(processor, ids) == ["completed", "failed", "completed"]
    assert (await processor.get_status(ids[0])).result == "first"


async def test_an_exception_of_the_call_fails_all(processor: Processor) -> None:
    @processor.job(batch=10, max_retries=0)
    async def index(names: list[str]) -> list[None]:
        if names == ["a", "b"]:
            raise ValueError("down")
        return []

    ids = await processor.enqueue_many([index.job(name) for name in "ab"])
    assert await processor.process_one()
    assert await states(processor, ids) == ["failed", "failed"]
    assert {(await processor.get_status(each)).history[0].message for each in ids} == {"down"}
    other = await index.enqueue("c")
    await processor.drain()
    error = (await processor.get_status(other)).history[0]
    assert error.message.startswith("the batch handler returned 0 outcomes for 1 jobs")


async def test_a_payload_that_cannot_be_read_fails_alone(processor: Processor) -> None:
    seen: list[list[int]] = []

    @processor.job(batch=10)
    async def add(numbers: list[int]) -> None:
        seen.append(numbers)

    ids = [await processor.enqueue_raw("add", {"numbers": each}) for each in (1, "x", 3)]
    assert await processor.drain() == 3
    assert await states(processor, ids) == ["completed", "failed", "completed"]
    assert seen == [[1, 3]]


async def test_middleware_and_hooks_are_called(processor: Processor) -> None:
    seen: list[str] = []

    async def middleware(ctx: Context, call_next: Any) -> Any:
        seen.append("job")
        return await call_next(ctx)

    @processor.around_handler
    async def hook(ctx: Context) -> AsyncIterator[None]:
        seen.append("call")
        yield

    @processor.job(batch=10)
    async def add(numbers: list[int]) -> None:
        seen.append("handler")

    processor.use(middleware)
    await processor.enqueue_many([add.job(n) for n in range(2)])
    await processor.drain()
    assert seen == ["job", "job", "call", "handler"]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_worker_waits_for_a_full_batch_or_for_a_time(is_async: bool) -> None:
    sizes: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def add_async(numbers: list[int]) -> None:
        sizes.put_nowait(len(numbers))

    def add_blocking(numbers: list[int]) -> None:
        loop.call_soon_threadsafe(sizes.put_nowait, len(numbers))

    processor = Processor("memory://", concurrency=8)
    add = processor.job(name="add", batch=Batch(4, wait=0.2))(
        add_async if is_async else add_blocking
    )
    async with processor, asyncio.timeout(DEADLINE):
        ids = await processor.enqueue_many([add.job(n) for n in range(6)])
        await processor.start()
        assert [await sizes.get(), await sizes.get()] == [4, 2]
        for each in ids:
            await processor.wait(each)
        await processor.stop()


async def test_a_job_that_times_out_or_is_cancelled_leaves_the_others() -> None:
    interrupted = asyncio.Event()
    processor = Processor("memory://", concurrency=4, max_retries=0)

    @processor.job(batch=Batch(2, wait=60))
    async def add(numbers: list[int]) -> None:
        try:
            await asyncio.Event().wait() if 1 in numbers else None
        except asyncio.CancelledError:
            interrupted.set()
            raise

    async def has_started() -> bool:
        return (await processor.get_status(single)).state is State.PROCESSING

    async with processor, asyncio.timeout(DEADLINE):
        pair = [await add.options(timeout=seconds).enqueue(1) for seconds in (0.05, 0.1)]
        await processor.start()
        await interrupted.wait()  # both have timed out: no job needs the call any more
        for each in pair:
            record = await wait_until_finished(processor, each)
            assert (record.state, record.history[0].kind) == ("failed", "timeout")
        single = await add.enqueue(2)
        await wait_until(has_started, "the job waits for a second one")
        await processor.cancel(single)
        assert (await wait_until_finished(processor, single)).state is State.CANCELLED
        for each in await processor.enqueue_many([add.job(3), add.job(4)]):
            assert (await wait_until_finished(processor, each)).state is State.COMPLETED
        await processor.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a whole number, from 1 to 10000"),
        ({"batch_wait": 1}, "write `batch=Batch\\(100, wait=1\\)`"),
        ({"batch": 5, "execution": "process"}, "a batch handler runs in the worker"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        job(name="wrong", **options)(lambda numbers: None)


async def test_a_handler_that_takes_no_list_is_refused(processor: Processor) -> None:
    async def one(number: int) -> None: ...

    async def answer(numbers: list[int]) -> int:
        return len(numbers)

    with pytest.raises(DefinitionError, match="a batch handler takes one list"):
        processor.register(job(batch=5)(one))  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="a batch handler returns None, or a list"):
        processor.register(job(batch=5)(answer))
    with pytest.raises(DefinitionError, match="a raw handler takes one job"):
        processor.register("raw", lambda ctx, data: None, batch=5)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="a Job class handles one job in a call"):
        type("Wrong", (Job,), {"__annotations__": {}}, batch=5)
