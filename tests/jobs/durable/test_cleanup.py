"""Undo: what a run did is undone when it fails for good or is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nimburion import DurableContext, PermanentError, Processor, Retry, State
from nimburion.core.job import Reason
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.settlement import Released
from nimburion.jobs.worker.attempt.attempt import Attempt, Interruption
from nimburion.jobs.worker.attempt.threads import HandlerThreads
from tests.jobs.durable.runs import finish, make_processor
from tests.waiting import wait_until


class Shop:
    """Reservations and payments."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.refusals = 0

    async def reserve(self) -> str:
        self.log.append("reserve")
        return "r"

    def charge(self) -> str:
        self.log.append("charge")
        return "p"

    async def ship(self) -> str:
        self.log.append("ship")
        raise ValueError("no stock")

    async def release(self, reservation: str) -> None:
        self.log.append(f"release {reservation}")

    def refund(self, payment: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise OSError("busy")
        self.log.append(f"refund {payment}")


def add_order(processor: Processor, shop: Shop) -> Any:
    @processor.job
    async def order(ctx: DurableContext) -> str:
        reservation = await ctx.step(shop.reserve)
        ctx.undo(shop.release, reservation)
        payment = await ctx.step(shop.charge)
        ctx.undo(shop.refund, payment)
        await ctx.sleep("pause", 100)
        return await ctx.step(shop.ship)

    return order


DONE = ["reserve", "charge"]
UNDONE = ["refund p", "release r"]


async def test_a_run_that_fails_for_good_is_undone_in_reverse_order() -> None:
    processor, shop = make_processor(), Shop()
    order = add_order(processor, shop)
    async with processor:
        status = await finish(processor, await order.enqueue())
        assert status.state is State.FAILED
        assert status.error is not None
        assert status.error.message == "no stock"
        assert shop.log == [*DONE, "ship", *UNDONE]


async def test_a_run_that_is_retried_is_not_undone() -> None:
    processor, shop = make_processor(max_retries=1, retry_backoff=10), Shop()
    order = add_order(processor, shop)
    async with processor:
        await finish(processor, await order.enqueue())
        assert shop.log == [*DONE, "ship", "ship", *UNDONE]


async def test_a_replay_of_an_undone_run_begins_anew() -> None:
    processor, shop = make_processor(), Shop()
    order = add_order(processor, shop)
    async with processor:
        job_id = await order.enqueue()
        await finish(processor, job_id)
        shop.log.clear()
        await processor.dead.replay(job_id)
        assert (await finish(processor, job_id)).state is State.FAILED
        assert shop.log == [*DONE, "ship", *UNDONE]


async def test_a_suspended_run_that_is_cancelled_is_undone() -> None:
    processor, shop = make_processor(), Shop()
    order = add_order(processor, shop)
    async with processor:
        job_id = await order.enqueue()
        await processor.drain()
        assert await processor.cancel(job_id) == "requested"
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.CANCELLED
        assert shop.log == [*DONE, *UNDONE]


async def test_a_run_that_waits_and_has_nothing_to_undo_is_cancelled_at_once() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.sleep("pause", 100)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        assert await processor.cancel(job_id) == "cancelled"


async def test_a_run_that_is_cancelled_while_a_step_works_ends_the_step_first() -> None:
    processor, shop = Processor("memory://"), Shop()
    started, may_end = asyncio.Event(), asyncio.Event()

    async def charge() -> str:
        started.set()
        await may_end.wait()
        return shop.charge()

    @processor.job
    async def order(ctx: DurableContext) -> None:
        payment = await ctx.step(charge)
        ctx.undo(shop.refund, payment)
        await ctx.step(shop.ship)

    async with processor:
        await processor.start()
        job_id = await order.enqueue()
        await started.wait()
        assert await processor.cancel(job_id) == "requested"
        worker = processor._running
        assert worker is not None
        attempts = worker._worker._slots.running
        await wait_until(lambda: any(one.cancel_requested for one in attempts), "the cancel came")
        may_end.set()
        await wait_until(lambda: "refund p" in shop.log, "it is undone")
        await processor.stop()
        assert (await processor.get_status(job_id)).state is State.CANCELLED
        assert shop.log == ["charge", "refund p"]


async def test_a_run_that_is_cancelled_before_it_starts_again_is_released() -> None:
    processor, shop = make_processor(), Shop()
    order = add_order(processor, shop)
    async with processor:
        threads = HandlerThreads(1, asyncio.get_running_loop())
        runner = processor._make_assembly().make_attempt_runner(threads, lambda *_: None, None)
        lease = Lease(await order.enqueue(), Token(2, bytes(16)))
        attempt = Attempt(Delivery(lease, "order", "default", b"{}"), "s")
        attempt.interrupt(Interruption.CANCEL)
        assert await runner.perform(attempt) == Released(lease, unstarted=True)


async def test_the_branches_of_a_cancelled_run_are_all_undone() -> None:
    processor = make_processor()
    undone: list[str] = []

    async def work(name: str) -> str:
        return name

    async def undo(name: str) -> None:
        undone.append(name)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def branch(name: str) -> None:
            options = ctx.options(key=name)
            await options.step(work, name)
            options.undo(undo, name)
            await ctx.sleep(name, 100)

        await asyncio.gather(*map(branch, "abc"))

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.cancel(job_id)
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.CANCELLED
        assert sorted(undone) == ["a", "b", "c"]


async def test_a_run_whose_steps_cannot_be_read_is_not_undone_and_continues_when_they_can() -> None:
    processor, shop = make_processor(), Shop()

    async def count() -> int:
        return 1

    async def count_later() -> str:
        return "1"

    functions: list[Any] = [count, count_later, count]

    @processor.job
    async def run(ctx: DurableContext) -> int:
        ctx.undo(shop.release, "r")
        counted: int = await ctx.options(key="count").step(functions.pop(0))
        await ctx.sleep("pause", 10)
        return counted

    async with processor:
        job_id = await run.enqueue()
        assert (await finish(processor, job_id)).state is State.FAILED
        assert (await processor.backend.reads.get_job(job_id)).reason == Reason.UNREADABLE
        await processor.dead.replay(job_id)
        assert (await finish(processor, job_id)).result == 1
        assert shop.log == []


async def test_an_undo_is_tried_again() -> None:
    processor, shop = make_processor(max_retries=2, retry_backoff=10), Shop()
    shop.refusals = 2
    order = add_order(processor, shop)
    async with processor:
        status = await finish(processor, await order.enqueue())
        assert shop.log[-2:] == UNDONE
        assert status.state is State.FAILED
        assert status.error is not None
        assert status.error.message == "no stock"


async def test_an_undo_that_fails_for_good_is_a_dead_letter_and_a_replay_tries_it_again() -> None:
    processor, shop = make_processor(), Shop()
    shop.refusals = 1
    order = add_order(processor, shop)
    async with processor:
        job_id = await order.enqueue()
        await finish(processor, job_id)
        record = await processor.backend.reads.get_job(job_id)
        assert record.reason == Reason.UNDO_FAILED
        assert record.error is not None
        assert record.error.message == "undo 'refund': busy"
        assert shop.log == [*DONE, "ship"]

        await processor.dead.replay(job_id)
        await finish(processor, job_id)
        record = await processor.backend.reads.get_job(job_id)
        assert record.reason == Reason.EXHAUSTED
        assert shop.log == [*DONE, "ship", *UNDONE]


async def test_hooks_are_called_after_the_undo() -> None:
    processor, shop = make_processor(), Shop()
    order = add_order(processor, shop)

    @processor.on_dead
    def tell(ctx: Any, error: Any) -> None:
        shop.log.append(f"dead {error.message}")

    async with processor:
        await finish(processor, await order.enqueue())
        assert shop.log[-1] == "dead no stock"


@pytest.mark.parametrize("catches", [False, True])
async def test_a_handler_that_is_cancelled_may_clean_up_itself(*, catches: bool) -> None:
    processor = make_processor()
    notes: list[str] = []

    async def note(text: str) -> None:
        notes.append(text)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        ctx.undo(note, "undone")
        try:
            await ctx.sleep("pause", 100)
        except asyncio.CancelledError:
            if ctx.cancelled:
                notes.append("cancelled")
            if not (catches and ctx.cancelled):
                raise

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.cancel(job_id)
        await processor.drain()
        state = (await processor.get_status(job_id)).state
        assert state is (State.COMPLETED if catches else State.CANCELLED)
        assert notes == (["cancelled"] if catches else ["cancelled", "undone"])


async def test_an_error_before_all_undos_are_registered_again_is_a_failure_of_the_attempt() -> None:
    processor = make_processor(max_retries=2, retry_backoff=10)
    log: list[str] = []
    errors: list[Exception | None] = [None, OSError("config file busy"), None]

    async def release() -> None:
        log.append("release")

    async def refund() -> None:
        log.append("refund")
        if log.count("refund") == 1:
            raise OSError("busy")

    @processor.job
    async def order(ctx: DurableContext) -> None:
        ctx.undo(release)
        error = errors.pop(0)
        if error is not None:
            raise error
        await ctx.step(log.append, "charge")
        ctx.undo(refund)
        raise PermanentError("no stock")

    async with processor:
        status = await finish(processor, await order.enqueue())
        assert log == ["charge", "refund", "refund", "release"]
        assert status.error is not None
        assert status.error.message == "no stock"


@pytest.mark.parametrize("raises", [True, False])
async def test_an_undo_that_is_not_registered_again_is_undo_failed(*, raises: bool) -> None:
    processor = make_processor(max_retries=1, retry_backoff=10)
    log: list[str] = []
    is_new_code = False

    async def refund() -> None:
        log.append("refund")
        nonlocal is_new_code
        if log.count("refund") == 1:
            is_new_code = True
            raise OSError("busy")

    @processor.job
    async def order(ctx: DurableContext) -> None:
        ctx.undo(log.append, "release")
        await ctx.step(log.append, "charge")
        if not is_new_code:
            ctx.undo(refund)
        elif raises:
            raise PermanentError("a bug")
        await ctx.options(key="new" if is_new_code else "more").step(log.append, "more")
        raise PermanentError("no stock")

    async with processor:
        job_id = await order.enqueue()
        await finish(processor, job_id)
        record = await processor.backend.reads.get_job(job_id)
        assert record.reason == Reason.UNDO_FAILED
        assert record.error is not None
        expected = "undo 'refund': the handler did not come to it again"
        if raises:
            expected += " (PermanentError: a bug)"
        assert record.error.message == expected
        assert log == ["charge", "more", "refund"]

        is_new_code = False
        await processor.dead.replay(job_id)
        await finish(processor, job_id)
        record = await processor.backend.reads.get_job(job_id)
        assert record.error is not None
        assert record.error.message == "no stock"
        assert log == ["charge", "more", "refund", "refund", "release"]


async def test_the_undos_of_branches_keep_their_order_when_they_are_continued() -> None:
    processor = make_processor(max_retries=5, retry_backoff=10)
    log: list[str] = []
    may_end = asyncio.Event()

    async def work(name: str) -> None:
        if name == "slow":
            await may_end.wait()
        else:
            may_end.set()

    async def undo(name: str) -> None:
        log.append(name)
        if log == ["slow", "fast"]:
            raise OSError("busy")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def branch(name: str) -> None:
            await ctx.options(key=name).step(work, name)
            ctx.options(key=name).undo(undo, name)

        async def fail() -> None:
            raise PermanentError("no")

        ctx.options(key="first").undo(undo, "first")
        await asyncio.gather(branch("slow"), branch("fast"))
        await ctx.step(fail)

    async with processor:
        await finish(processor, await run.enqueue())
        assert log == ["slow", "fast", "fast", "first"]


async def test_a_cancelled_run_undoes_what_a_branch_did_that_comes_after_one_that_waits() -> None:
    processor = make_processor()
    log: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def reserve() -> None:
            await ctx.step(log.append, "reserve")
            ctx.undo(log.append, "release")

        await asyncio.gather(ctx.sleep("pause", 1000), reserve())

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.cancel(job_id)
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.CANCELLED
        assert log == ["reserve", "release"]


async def test_a_run_that_fails_for_good_while_it_is_cancelled_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    processor = make_processor()
    log: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        ctx.undo(log.append, "undone")
        try:
            await ctx.sleep("pause", 100)
        finally:
            if ctx.cancelled:
                raise OSError("no connection to clean up")

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.cancel(job_id)
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.CANCELLED
        assert log == ["undone"]
        assert "failed while it was cancelled, and ends as cancelled" in caplog.text
        assert "dead letter" not in caplog.text


async def test_an_undo_that_does_an_operation_is_undo_failed() -> None:
    processor = Processor("memory://", max_retries=0)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def pause() -> None:
            await ctx.sleep("pause", 1000)

        ctx.undo(pause)
        raise ValueError("fails")

    async with processor:
        await processor.start()
        job_id = await run.enqueue()

        async def has_failed() -> bool:
            return (await processor.get_status(job_id)).state is State.FAILED

        await wait_until(has_failed, "it has failed")
        job = await processor.backend.reads.get_job(job_id)
        assert job.reason == Reason.UNDO_FAILED
        assert job.error is not None
        assert "in the function of a step or an undo" in job.error.message


async def test_a_run_that_is_cancelled_while_it_is_replayed_is_undone_completely() -> None:
    processor = Processor("memory://", max_retries=1)
    undone: list[str] = []
    attempts: list[int] = []
    awaits_more = asyncio.Event()

    async def work() -> None: ...

    @processor.job
    async def run(ctx: DurableContext) -> None:
        attempts.append(1)
        await ctx.options(key="first").step(work)
        ctx.options(key="first").undo(undone.append, "first")
        if len(attempts) == 2:
            awaits_more.set()
            await wait_until(lambda: ctx.cancelled, "its worker knows of the cancel")
        await ctx.options(key="second").step(work)
        ctx.options(key="second").undo(undone.append, "second")
        if len(attempts) == 1:
            raise Retry(after=0)
        await ctx.options(key="third").step(undone.append, "a step that is new")

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await awaits_more.wait()
        await processor.cancel(job_id)

        async def is_cancelled() -> bool:
            return (await processor.get_status(job_id)).state is State.CANCELLED

        await wait_until(is_cancelled, "it is cancelled")
        assert undone == ["second", "first"]
