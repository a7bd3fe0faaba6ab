"""Steps: stored once, tried again, and read in their types."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nimburion import Cancel, DurableContext, PermanentError, Processor, Retry, Signal, State
from nimburion.core.events import ArgumentsDiffer, Event
from nimburion.core.exchange import Reply
from nimburion.core.job import Reason
from nimburion.core.settlement import Recorded
from nimburion.errors import InvalidStep, NimburionError, StepFailed
from tests.jobs.durable.runs import finish, make_processor
from tests.overridden import OverridableBackend
from tests.waiting import wait_until_finished


@dataclass
class Account:
    number: int


class Refused(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"refused with {code}")
        self.code = code


async def test_a_step_is_called_once_and_its_value_has_its_type_in_each_attempt() -> None:
    calls: list[str] = []

    async def create(email: str) -> Account:
        calls.append(email)
        return Account(7)

    processor = make_processor()

    @processor.job
    async def onboard(ctx: DurableContext, email: str) -> list[Any]:
        account = await ctx.step(create, email)
        await ctx.sleep("trial", timedelta(days=3))
        return [type(account).__name__, account.number, ctx.attempt]

    async with processor:
        status = await finish(processor, await onboard.enqueue("ann"))
        assert status.result == ["Account", 7, 1]
        assert calls == ["ann"]


async def test_a_def_function_runs_in_a_thread() -> None:
    processor = make_processor()

    def find_thread() -> bool:
        return threading.current_thread() is threading.main_thread()

    @processor.job
    async def run(ctx: DurableContext) -> bool:
        return await ctx.step(find_thread)

    async with processor:
        assert (await finish(processor, await run.enqueue())).result is False


async def test_branches_may_come_in_any_order() -> None:
    processor = make_processor()
    order: list[int] = []

    async def double(number: int) -> int:
        order.append(number)
        for _ in range(number):
            await asyncio.sleep(0)
        return 2 * number

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        async def branch(number: int) -> int:
            value = await ctx.options(key=f"double-{number}").step(double, number)
            await ctx.sleep(f"pause-{number}", number)
            return value

        return await asyncio.gather(*map(branch, (3, 1, 2)))

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == [6, 2, 4]
        assert sorted(order) == [1, 2, 3]


async def test_branches_in_a_task_group() -> None:
    processor = make_processor()
    calls: list[int] = []

    async def double(number: int) -> int:
        calls.append(number)
        return 2 * number

    @processor.job
    async def run(ctx: DurableContext) -> int:
        async def branch(number: int) -> int:
            await ctx.sleep(f"pause-{number}", 10)
            return await ctx.options(key=f"double-{number}").step(double, number)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch(number)) for number in range(3)]
        return sum(task.result() for task in tasks)

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 6
        assert sorted(calls) == [0, 1, 2]


async def test_a_key_that_is_used_twice_names_both_places() -> None:
    processor = make_processor(max_retries=3)

    async def charge(cents: int) -> int:
        return cents

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.step(charge, 1)
        await ctx.step(charge, 2)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.state is State.FAILED
        assert status.attempt == 1
        error = status.error
        assert error is not None
        assert error.type == "InvalidStep"
        assert error.message.count("test_steps.py:") == 2
        assert "the key 'charge' is used for a step at" in error.message
        assert "ctx.options(key=…)" in error.message


async def test_a_function_without_a_name_needs_a_key() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> int:
        with pytest.raises(InvalidStep, match="has no name that could be its key"):
            await ctx.step(lambda: 1)
        return await ctx.options(key="one").step(lambda: 1)

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 1


@pytest.mark.parametrize("key", ["", "k" * 201])
async def test_a_key_has_1_to_200_characters(key: str) -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        with pytest.raises(InvalidStep, match="1 to 200 characters"):
            await ctx.options(key=key).step(int)

    async with processor:
        assert (await finish(processor, await run.enqueue())).state is State.COMPLETED


async def test_a_key_without_a_utf_8_form_is_refused_before_its_function_runs() -> None:
    processor = make_processor()

    def never() -> None:
        raise AssertionError("it is called")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        with pytest.raises(InvalidStep, match="with a UTF-8 form"):
            await ctx.options(key="caf\udce9").step(never)
        with pytest.raises(InvalidStep, match="with a UTF-8 form"):
            await ctx.sleep("caf\udce9", 1)
        assert await ctx.options(key="café").step(int) == 0

    async with processor:
        assert (await finish(processor, await run.enqueue())).state is State.COMPLETED


async def test_a_value_without_a_json_form_is_not_retried() -> None:
    processor = make_processor(max_retries=3)

    async def make_lock() -> Any:
        return threading.Lock()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.step(make_lock)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.error is not None
        assert status.attempt == 1
        assert "step 'make_lock': its value cannot be stored" in status.error.message


async def test_a_step_whose_value_cannot_be_stored_is_not_called_again_if_that_is_caught() -> None:
    processor = make_processor()
    calls: list[str] = []

    async def make_lock() -> Any:
        calls.append("make_lock")
        return threading.Lock()

    async def count() -> int:
        calls.append("count")
        return "two"  # type: ignore[return-value]

    @processor.job
    async def run(ctx: DurableContext) -> list[str]:
        caught: list[str] = []
        for function in (make_lock, count):
            try:
                await ctx.options(max_retries=3).step(function)
            except NimburionError as error:
                caught.append(f"{type(error).__name__}: {error}")
        await ctx.sleep("pause", 10)
        return caught

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert calls == ["make_lock", "count"]
        first, second = status.result
        assert first.startswith("InvalidStep: step 'make_lock': its value cannot be stored")
        assert second.startswith("UnreadablePayload: step 'count': its stored value does not fit")


async def test_a_value_over_the_limit() -> None:
    processor = make_processor()

    async def read() -> str:
        return "x" * 256 * 1024

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.step(read)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.error is not None
        assert "over the limit of 262144; store it elsewhere" in status.error.message


async def test_a_value_that_is_too_large_for_the_rest_of_the_run_is_an_error_of_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record of a step is larger than its value: the error is the step's in either case."""
    monkeypatch.setattr("nimburion.jobs.durable.recorder.MAX_BYTES", 1_000)
    processor = make_processor()
    number = Signal("number", int)
    calls: list[int] = []

    async def read(length: int) -> str:
        calls.append(length)
        return "x" * length

    @processor.job
    async def run(ctx: DurableContext, length: int) -> list[str]:
        first = ctx.options(key="first").step(read, 300)
        second = ctx.options(key="second").step(read, length)
        found = await asyncio.gather(first, second, return_exceptions=True)
        await ctx.wait_for(number)  # stores nothing before the signal comes
        return [type(one).__name__ for one in found]

    outcomes: list[object] = []
    async with processor:
        for length in range(450, 700, 10):
            calls.clear()
            job_id = await run.enqueue(length)
            await processor.drain()
            await processor.signal(job_id, number, 1)
            status = await finish(processor, job_id)
            assert calls == [300, length]
            outcomes.append(status.result)
    assert outcomes[0] == ["str", "str"]
    assert outcomes[-1] == ["str", "InvalidStep"]
    assert None in outcomes  # the value of the signal does not fit any more


async def test_the_steps_of_a_run_have_a_maximum_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nimburion.jobs.durable.recorder.MAX_BYTES", 1_000)
    processor = make_processor(max_retries=3)
    calls: list[int] = []

    async def read(number: int) -> str:
        calls.append(number)
        return "x" * 300

    @processor.job
    async def run(ctx: DurableContext, is_restarted: bool) -> None:
        for number in range(2):
            await ctx.options(key=str(number)).step(read, number)
            await ctx.sleep(f"pause-{number}", 10)
        if not is_restarted:
            await ctx.restart(is_restarted=True)
        await ctx.options(key="last").step(read, 2)

    async with processor:
        status = await finish(processor, await run.enqueue(is_restarted=False))
        assert calls == [0, 1, 0, 1, 2]
        assert status.attempt == 1
        assert status.error is not None
        assert status.error.type == "InvalidStep"
        assert "are over the limit of 1000; store large values elsewhere" in status.error.message


async def test_a_value_of_another_type_is_unreadable() -> None:
    processor = make_processor(max_retries=3)

    async def count() -> int:
        return "two"  # type: ignore[return-value]

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.step(count)

    async with processor:
        job_id = await run.enqueue()
        await finish(processor, job_id)
        record = await processor.backend.reads.get_job(job_id)
        assert record.reason == Reason.UNREADABLE


async def test_the_error_that_ends_an_attempt_is_forgotten() -> None:
    processor = make_processor(max_retries=2, retry_backoff=60)
    outcomes: list[object] = [Refused(1), 5]

    async def charge() -> int:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, int)
        return outcome

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.step(charge)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.result == 5
        assert outcomes == []


async def test_an_error_that_the_handler_catches_is_raised_again_in_later_attempts() -> None:
    processor = make_processor()
    calls: list[str] = []

    async def charge() -> int:
        calls.append("charge")
        raise Refused(51)

    async def tell(code: int) -> str:
        calls.append(f"tell {code}")
        return "noted"

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            await ctx.step(charge)
        except Refused as error:
            noted = await ctx.step(tell, error.code)
            await ctx.sleep("pause", 10)
            return f"{noted} {error} {error.code}"
        return "charged"

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.result == "noted refused with 51 51"
        assert calls == ["charge", "tell 51"]


async def test_an_error_that_was_caught_and_then_ends_the_attempt_is_forgotten() -> None:
    processor = make_processor(max_retries=2, retry_backoff=60)
    calls: list[str] = []

    async def charge() -> int:
        calls.append("charge")
        if calls.count("charge") == 1:
            raise Refused(51)
        return 5

    async def tell() -> None:
        calls.append("tell")

    @processor.job
    async def run(ctx: DurableContext) -> int:
        try:
            return await ctx.step(charge)
        except Refused:
            await ctx.step(tell)
            raise

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.result == 5
        assert calls == ["charge", "tell", "charge"]


async def test_a_step_that_always_fails_uses_up_the_retries_of_the_job() -> None:
    processor = make_processor(max_retries=2, retry_backoff=60)
    calls: list[str] = []

    async def charge() -> int:
        calls.append("charge")
        raise Refused(51)

    async def tell() -> None:
        calls.append("tell")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        try:
            await ctx.step(charge)
        except Refused:
            await ctx.step(tell)
            raise

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.state is State.FAILED
        assert calls.count("tell") == 1
        assert calls.count("charge") <= 4


async def test_an_error_of_a_local_class_is_step_failed_in_each_attempt() -> None:
    class Local(Exception):
        pass

    processor = make_processor()
    seen: list[str] = []

    async def charge() -> int:
        raise Local("no")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        try:
            await ctx.step(charge)
        except StepFailed as error:
            seen.append(f"{error.key} {error.message}")
        await ctx.sleep("pause", 10)

    async with processor:
        await finish(processor, await run.enqueue())
        assert seen == ["charge no", "charge no"]


async def test_a_step_has_retries_of_its_own_and_the_run_is_suspended_between_them() -> None:
    processor = make_processor()
    tries: list[float] = []

    async def charge() -> int:
        tries.append(processor.clock.now())
        if len(tries) < 3:
            raise Refused(1)
        return 5

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.options(max_retries=2, retry_backoff=[10, 100]).step(charge)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.SUSPENDED
        status = await finish(processor, job_id)
        assert (status.result, status.failures) == (5, 0)
        assert 10 <= tries[1] - tries[0] <= 12
        assert 100 <= tries[2] - tries[1] <= 120


@pytest.mark.parametrize("error", [PermanentError("no"), Cancel("no")])
async def test_an_error_that_no_retry_helps_is_raised_at_once(error: Exception) -> None:
    processor = make_processor()
    tries: list[int] = []

    async def charge() -> int:
        tries.append(1)
        raise error

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.options(max_retries=5).step(charge)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.state.finished
        assert tries == [1]


async def test_a_step_says_when_it_is_tried_again() -> None:
    processor = make_processor()
    tries: list[float] = []

    async def charge() -> int:
        tries.append(processor.clock.now())
        if len(tries) == 1:
            raise Retry(after=500)
        return 5

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.options(max_retries=2).step(charge)

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == 5
        assert tries[1] - tries[0] == 500


async def test_a_step_has_a_timeout() -> None:
    processor = make_processor()

    async def charge() -> int:
        await asyncio.get_running_loop().create_future()
        return 5

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.options(timeout=0.01).step(charge)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.error is not None
        assert status.error.message == "step 'charge' did not end within 0.01 s"


async def test_other_arguments_than_the_stored_ones_are_logged_and_an_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    processor = make_processor()
    amounts = [1, 2]

    async def charge(cents: int) -> int:
        return cents

    @processor.job
    async def run(ctx: DurableContext) -> int:
        charged = await ctx.step(charge, amounts.pop(0))
        await ctx.sleep("pause", 10)
        return charged

    events: list[Event] = []
    processor.events.subscribe(events.append, kinds=(ArgumentsDiffer,))
    async with processor:
        job_id = await run.enqueue()
        with caplog.at_level(logging.WARNING):
            assert (await finish(processor, job_id)).result == 1
        assert "the arguments of the step 'charge' at" in caplog.text
    [event] = events
    assert isinstance(event, ArgumentsDiffer)
    assert (event.job_id, event.name, event.key) == (job_id, "run", "charge")
    assert Path(__file__).name in event.place


async def test_a_new_step_resets_the_failures_of_the_job() -> None:
    processor = make_processor(max_retries=1, retry_backoff=1)
    steps: list[int] = []

    async def note(number: int) -> None:
        steps.append(number)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        for number in range(5):
            await ctx.options(key=str(number)).step(note, number)
            if steps.count(number) and number == len(steps) - 1 and ctx.failures < 1:
                raise Refused(number)

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.state is State.COMPLETED
        assert steps == [0, 1, 2, 3, 4]


async def test_an_operation_after_the_end_of_the_handler() -> None:
    processor = make_processor()
    contexts: list[DurableContext] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        contexts.append(ctx)

    async with processor:
        await finish(processor, await run.enqueue())
        with pytest.raises(Exception, match="the handler has ended"):
            await contexts[0].step(int)


async def test_a_step_after_one_whose_wait_for_the_backend_was_cancelled() -> None:
    answers = asyncio.Event()

    async def give_one() -> int:
        return 1

    class Slow(OverridableBackend):
        """It answers steps when the handler has lost its patience."""

        async def exchange(self, *arguments: Any) -> Reply:
            if any(isinstance(one, Recorded) for one in arguments[2]):
                await answers.wait()
            return await super().exchange(*arguments)

    processor = Processor(Slow(), max_retries=0)

    @processor.job
    async def run(ctx: DurableContext) -> int:
        ctx.undo(give_one)
        try:
            async with asyncio.timeout(0.001):
                await ctx.options(key="late").step(give_one)
        except TimeoutError:
            answers.set()
        return await ctx.step(give_one)

    async with processor, asyncio.timeout(20):
        await processor.start()
        assert await processor.wait(await run.enqueue()) == 1


async def test_a_caught_error_is_stored_before_the_next_step_is_called() -> None:
    processor = make_processor()
    stored: list[int] = []

    async def fail() -> None:
        raise ValueError("declined")

    async def count(job_id: str) -> None:
        stored.append(len((await processor.backend.reads.read_run(job_id)).steps))

    @processor.job
    async def run(ctx: DurableContext) -> None:
        try:
            await ctx.step(fail)
        except ValueError:
            await ctx.step(count, ctx.job_id)

    async with processor:
        await finish(processor, await run.enqueue())
    assert stored == [1]


@pytest.mark.parametrize("is_async", [True, False])
async def test_the_function_of_a_step_does_no_operation(*, is_async: bool) -> None:
    """It would wait for ever, or not be done again when the stored step is."""
    processor = Processor("memory://", max_retries=5)
    undone: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def pause() -> None:
            await ctx.sleep("pause", 1000)

        def register() -> None:
            ctx.undo(undone.append, "registered")

        await asyncio.gather(ctx.step(pause if is_async else register))

    async with processor, asyncio.timeout(20):
        await processor.start()
        job_id = await run.enqueue()
        error = (await wait_until_finished(processor, job_id)).error
        assert error is not None
        assert error.attempt == 1
        assert "in the function of a step or an undo" in error.message
        assert undone == []
