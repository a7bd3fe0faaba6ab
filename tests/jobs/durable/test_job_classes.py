"""`Job` classes as durable functions, and handlers that cannot be durable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from nimburion import Context, DurableContext, Job, Processor, Signal, State
from nimburion.errors import DefinitionError
from nimburion.jobs.handling.batch_context import BatchContext
from nimburion.testing import crash_everywhere, make_context
from tests.jobs.durable.runs import finish, make_processor

paid = Signal("paid", int)
undone: list[str] = []


async def reserve(item: str) -> str:
    return f"r-{item}"


class Double(Job):
    value: int

    async def process(self, ctx: Context) -> int:
        return 2 * self.value


class Order(Job, queue="orders", max_retries=0):
    item: str
    rounds: int = 0

    async def process(self, ctx: DurableContext) -> list[object]:
        reservation = await ctx.step(reserve, self.item)
        ctx.undo(undone.append, reservation)
        cents = await ctx.wait_for(paid, timeout="7d")
        if cents is None:
            raise RuntimeError("not paid")
        doubled = await ctx.run(Double(value=cents))
        if self.rounds:
            await ctx.restart(item=f"{self.item}+", rounds=self.rounds - 1)
        return [reservation, cents, doubled]


class LargeOrder(Order):
    """Inherits the durable `process`."""


def make_orders() -> Processor:
    processor = make_processor()
    processor.register(Order, LargeOrder, Double)
    undone.clear()
    return processor


@pytest.mark.parametrize("kind", [Order, LargeOrder])
async def test_a_job_class_remembers_its_steps(kind: type[Order]) -> None:
    processor = make_orders()
    async with processor:
        job_id = await processor.enqueue(kind(item="tea"))
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.SUSPENDED
        await processor.signal(job_id, paid, 250)
        assert (await finish(processor, job_id)).result == ["r-tea", 250, 500]
        assert undone == []


async def test_a_job_class_begins_anew_with_other_arguments() -> None:
    processor = make_orders()
    async with processor:
        job_id = await processor.enqueue(Order(item="tea", rounds=1))
        await processor.signal(job_id, paid, 1)
        await processor.signal(job_id, paid, 2)
        assert (await finish(processor, job_id)).result == ["r-tea+", 2, 4]


async def test_a_job_class_cannot_begin_anew_with_arguments_that_it_does_not_take() -> None:
    processor = make_processor()

    class Again(Job):
        value: int = 0

        async def process(self, ctx: DurableContext) -> None:
            await ctx.restart(5)

    processor.register(Again)
    async with processor:
        status = await finish(processor, await processor.enqueue(Again()))
        assert status.error is not None
        assert "ctx.restart: job 'again': fields are passed by name" in status.error.message


async def test_a_job_class_whose_worker_is_lost_at_any_point() -> None:
    report = await crash_everywhere(
        Order(item="tea", rounds=1), processor=make_orders(), signals=[(paid, 1), (paid, 2)]
    )
    assert report.result == ["r-tea+", 2, 4]
    undone.clear()
    report = await crash_everywhere(Order(item="tea"), processor=make_orders())
    assert (report.state, report.error) == (State.FAILED, "RuntimeError: not paid")
    assert "undo append" in report.steps
    assert undone


class OwnDurable(DurableContext):
    """A context with methods of the application."""

    def notify(self) -> None: ...


class OwnContext(Context):
    """A context with methods of the application."""


class OwnBatch(BatchContext):
    """A context with methods of the application."""


async def take_durable(ctx: OwnDurable, item: str) -> None: ...


async def take_context(ctx: OwnContext, item: str) -> None: ...


async def take_batch(ctx: Any, items: list[str]) -> None: ...


take_batch.__annotations__["ctx"] = OwnBatch


def blocking(ctx: DurableContext) -> None: ...


class Blocking(Job):
    def process(self, ctx: DurableContext) -> None: ...


async def take_it_second(item: str, ctx: DurableContext) -> None: ...


HERE = r"test_job_classes.py:\d+: "


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (take_durable, f"{HERE}the worker makes the context, and makes no OwnDurable; write `ctx:"),
        (take_context, f"{HERE}the worker makes the context, and makes no OwnContext; write `ctx:"),
        (blocking, f"{HERE}a durable function is an `async def`, and this is a `def`; write"),
        (Blocking, f"{HERE}a durable function is an `async def`, and this is a `def`; write"),
        (take_it_second, "parameter 'ctx': the context is the first parameter"),
    ],
)
def test_a_handler_that_cannot_be_called_is_refused_when_it_is_registered(
    target: Any, text: str
) -> None:
    processor = make_processor()
    register = processor.register if isinstance(target, type) else processor.job
    with pytest.raises(DefinitionError, match=text):
        register(target)


def test_a_job_class_with_a_context_of_its_own_is_refused_where_it_is_written() -> None:
    with pytest.raises(DefinitionError, match=f"{HERE}the worker makes the context"):

        class TakeOwn(Job):
            async def process(self, ctx: OwnDurable) -> None: ...  # type: ignore[override]


def test_a_batch_handler_with_a_context_of_its_own() -> None:
    with pytest.raises(DefinitionError, match="makes no OwnBatch; write `ctx: BatchContext`"):
        make_processor().job(batch=5)(take_batch)


async def test_an_argument_may_be_a_context_of_another_kind() -> None:
    @dataclass
    class Context:
        page: str

    @dataclass
    class PageContext(Context):
        title: str

    async def render(context: PageContext) -> str:
        return context.title

    render.__annotations__["context"] = PageContext  # a local class
    processor = make_processor()
    job = processor.job(render)
    async with processor:
        status = await finish(processor, await job.enqueue(PageContext("index", "Home")))
        assert status.result == "Home"


async def test_a_plain_context_says_how_its_function_becomes_durable() -> None:
    async def call(ctx: Any) -> None:
        await ctx.step(reserve, "tea")

    with pytest.raises(AttributeError, match=r"write `ctx: DurableContext`\. A test runs the job"):
        await call(make_context())
    assert not hasattr(make_context(), "unknown")
