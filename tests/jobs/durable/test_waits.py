"""Sleeps and signals."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from nimburion import DurableContext, Processor, Signal, State
from nimburion.errors import InvalidJob, InvalidStep, JobNotFound, TooManySignals
from nimburion.jobs.payloads.codec import UnreadablePayload
from nimburion.testing import FakeClock
from tests.jobs.durable.runs import finish, make_processor


@dataclass
class Confirmed:
    by: str


confirmed = Signal("confirmed", Confirmed)
number = Signal("number", int)


async def test_a_sleep_ends_when_its_time_has_come_and_holds_no_slot() -> None:
    clock = FakeClock()
    processor = make_processor(clock)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.sleep("trial", timedelta(days=3))

    async with processor:
        job_id = await run.enqueue()
        began = clock.now()
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.SUSPENDED
        clock.advance("2d")
        assert await processor.drain() == 0
        assert (await finish(processor, job_id)).state is State.COMPLETED
        assert clock.now() == began + 3 * 86_400


async def test_a_later_version_of_the_code_does_not_move_the_end_of_a_sleep() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    durations = ["10d", "1h", "1h"]

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.sleep("trial", durations.pop(0))
        await ctx.sleep("more", "1h")

    async with processor:
        began = clock.now()
        await finish(processor, await run.enqueue())
        assert clock.now() == began + 10 * 86_400 + 3_600


async def test_many_sleeps_at_once_take_as_long_as_the_longest() -> None:
    clock = FakeClock()
    processor = make_processor(clock)

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await asyncio.gather(*(ctx.sleep(f"{n}", 100 * n) for n in range(1, 6)))

    async with processor:
        began = clock.now()
        await finish(processor, await run.enqueue())
        assert clock.now() == began + 500


async def test_a_sleep_of_no_time_ends_at_once() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.sleep("none", 0)

    async with processor:
        job_id = await run.enqueue()
        assert await processor.drain() == 1
        assert (await processor.get_status(job_id)).state is State.COMPLETED


@pytest.mark.parametrize(
    ("duration", "text"), [("soon", "a number of seconds"), ("9999d", "ten years")]
)
async def test_a_duration_that_is_none(duration: str, text: str) -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        with pytest.raises(InvalidStep, match=text):
            await ctx.sleep("trial", duration)

    async with processor:
        assert (await finish(processor, await run.enqueue())).state is State.COMPLETED


async def test_now_is_the_same_in_each_attempt() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    seen: list[list[datetime]] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        times = [ctx.now()]
        await ctx.step(int)
        times.append(ctx.now())
        await ctx.sleep("pause", 100)
        times.append(ctx.now())
        seen.append(times)
        await ctx.sleep("more", 50)

    async with processor:
        start = datetime.fromtimestamp(clock.now(), UTC)
        await finish(processor, await run.enqueue())
        assert seen == [[start, start, start + timedelta(seconds=100)]] * 2


async def test_now_after_a_signal_is_the_same_in_each_attempt() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    seen: list[datetime] = []

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.wait_for(number)
        seen.append(ctx.now())
        await ctx.sleep("more", 50)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        clock.advance(10)
        came = datetime.fromtimestamp(clock.now(), UTC)
        await processor.signal(job_id, number, 7)
        clock.advance(10)
        await finish(processor, job_id)
        assert seen == [came, came]


async def wait_twice(processor: Processor, timeout: float | None = None) -> str:
    @processor.job
    async def run(ctx: DurableContext) -> list[int | None]:
        values: list[int | None] = []
        for place in range(2):
            options = ctx.options(key=str(place))
            if timeout is None:
                values.append(await options.wait_for(number))
            else:
                values.append(await options.wait_for(number, timeout=timeout))
        return values

    return await run.enqueue()


async def test_signals_before_and_during_a_wait_come_in_their_order() -> None:
    processor = make_processor()
    async with processor:
        job_id = await wait_twice(processor)
        assert await processor.signal(job_id, number, 1)
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.SUSPENDED
        assert await processor.signal(job_id, number, 2)
        assert (await finish(processor, job_id)).result == [1, 2]


async def test_the_same_id_twice_is_one_signal() -> None:
    processor = make_processor()
    async with processor:
        job_id = await wait_twice(processor)
        assert await processor.signal(job_id, number, 1, id="a")
        assert not await processor.signal(job_id, number, 9, id="a")
        await processor.drain()
        assert not await processor.signal(job_id, number, 9, id="a")
        assert await processor.signal(job_id, number, 2, id="b")
        assert (await finish(processor, job_id)).result == [1, 2]
        assert not await processor.signal(job_id, number, 3)


async def test_a_wait_that_times_out_stays_so_and_a_late_signal_waits_for_the_next() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    async with processor:
        job_id = await wait_twice(processor, timeout=100.0)
        await processor.drain()
        clock.advance(101)
        await processor.signal(job_id, number, 5)
        assert (await finish(processor, job_id)).result == [None, 5]


async def test_a_signal_in_time_wins_although_the_worker_comes_late() -> None:
    clock = FakeClock()
    processor = make_processor(clock)
    async with processor:
        job_id = await wait_twice(processor, timeout=100.0)
        await processor.drain()
        clock.advance(99)
        await processor.signal(job_id, number, 5)
        clock.advance(10)
        assert (await finish(processor, job_id)).result == [5, None]


async def test_two_branches_take_two_signals() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> list[int]:
        waits = (ctx.options(key=str(place)).wait_for(number) for place in range(2))
        return await asyncio.gather(*waits)

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, number, 1)
        await processor.signal(job_id, number, 2)
        result = (await finish(processor, job_id)).result
        assert isinstance(result, list)
        assert sorted(result) == [1, 2]


async def test_a_value_is_read_in_its_type() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> str:
        answer = await ctx.wait_for(confirmed)
        return answer.by

    async with processor:
        job_id = await run.enqueue()
        await processor.signal(job_id, confirmed, Confirmed("ann"))
        assert (await finish(processor, job_id)).result == "ann"


async def test_a_signal_is_refused() -> None:
    processor = make_processor()
    async with processor:
        job_id = await wait_twice(processor)
        with pytest.raises(InvalidJob, match="signal 'number': expected `int`, got `str`"):
            await processor.signal(job_id, number, "one")  # type: ignore[misc]
        with pytest.raises(InvalidJob, match="over the limit of 65536"):
            await processor.signal(job_id, confirmed, Confirmed("x" * 65_536))
        with pytest.raises(JobNotFound):
            await processor.signal("unknown", number, 1)
        for value in range(1_000):
            await processor.signal(job_id, number, value)
        with pytest.raises(TooManySignals):
            await processor.signal(job_id, number, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "without a slash"),
        ("a/b", "without a slash"),
        ("n" * 201, "without a slash"),
        ("a\nb", "control characters"),
        ("a\ud800", "valid Unicode"),
    ],
)
def test_a_name_of_a_signal_that_cannot_be(name: str, message: str) -> None:
    with pytest.raises(InvalidJob, match=message):
        Signal(name, int)


async def test_a_signal_of_another_type_than_the_wait_is_unreadable() -> None:
    processor = make_processor()
    text = Signal("number", str)

    @processor.job
    async def run(ctx: DurableContext) -> int:
        return await ctx.wait_for(number)

    async with processor:
        job_id = await run.enqueue()
        await processor.signal(job_id, text, "one")
        await finish(processor, job_id)
        record = await processor.backend.reads.get_job(job_id)
        assert record.reason == "unreadable"


async def test_a_handler_that_swallows_the_suspension() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            await ctx.sleep("pause", 10)
        except BaseException:  # noqa: BLE001
            return "swallowed"
        return "slept"

    async with processor:
        status = await finish(processor, await run.enqueue())
        assert status.error is not None
        assert "the handler has caught the asyncio.CancelledError" in status.error.message


async def test_except_exception_does_not_catch_the_suspension_and_finally_runs() -> None:
    processor = make_processor()
    notes: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            await ctx.sleep("pause", 10)
        except Exception:  # noqa: BLE001
            return "caught"
        finally:
            notes.append("finally")
        return "slept"

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == "slept"
        assert notes == ["finally", "finally"]


async def test_a_timeout_of_the_job_counts_one_stretch() -> None:
    processor = make_processor()

    @processor.job(timeout=30)
    async def run(ctx: DurableContext) -> str:
        await ctx.sleep("pause", 1_000)
        return "slept"

    async with processor:
        assert (await finish(processor, await run.enqueue())).result == "slept"


async def test_a_change_is_true_for_new_runs_and_false_for_those_that_came_further() -> None:
    processor = make_processor()
    is_new_code = False

    @processor.job
    async def run(ctx: DurableContext) -> str:
        has_changed = ctx.changed("new") if is_new_code else None
        await ctx.sleep("pause", 10)
        await ctx.sleep("more", 10)
        return str(has_changed)

    async with processor:
        old = await run.enqueue()
        await processor.drain()
        is_new_code = True
        new = await run.enqueue()
        await processor.drain(advance=True)
        assert (await processor.get_status(old)).result == "False"
        assert (await processor.get_status(new)).result == "True"


async def test_a_change_behind_steps_that_were_tried_again_is_true_for_a_run_that_comes_there() -> (
    None
):
    processor = make_processor()
    outcomes: list[int | None] = [None, 1]
    answers: list[bool] = []

    async def work() -> int:
        outcome = outcomes.pop(0)
        if outcome is None:
            raise ValueError("no")
        return outcome

    @processor.job
    async def run(ctx: DurableContext) -> None:
        await ctx.options(max_retries=1).step(work)
        await ctx.options(key="wait").wait_for(number, timeout=10)
        answers.append(ctx.changed("new"))
        await ctx.sleep("pause", 10)

    async with processor:
        await finish(processor, await run.enqueue())
        assert answers == [True, True]


async def test_a_run_begins_anew_with_other_arguments() -> None:
    processor = make_processor()
    steps: list[int] = []

    async def note(value: int) -> int:
        steps.append(value)
        return value + 1

    @processor.job
    async def run(ctx: DurableContext, value: int) -> int:
        following = await ctx.step(note, value)
        await ctx.sleep("pause", "1h")
        if following < 3:
            await ctx.restart(following)
        return following

    async with processor:
        assert (await finish(processor, await run.enqueue(0))).result == 3
        assert steps == [0, 1, 2]


async def test_a_run_cannot_begin_anew_with_arguments_that_it_does_not_take() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext, value: int) -> None:
        await ctx.restart("one", 2)

    async with processor:
        status = await finish(processor, await run.enqueue(0))
        assert status.error is not None
        assert status.error.message.startswith("ctx.restart: ")


async def test_a_blocking_signal() -> None:
    processor = make_processor()
    async with processor:
        job_id = await wait_twice(processor)
        assert await asyncio.to_thread(processor.sync.signal, job_id, number, 1)
        assert await asyncio.to_thread(processor.sync.signal, job_id, number, 2)
        assert (await finish(processor, job_id)).result == [1, 2]


@pytest.mark.parametrize("waits_for", ["signal", "sleep", "child", "two"])
async def test_a_caught_error_is_stored_before_a_wait(waits_for: str) -> None:
    processor = make_processor()
    calls: list[str] = []

    async def charge() -> None:
        calls.append("charge")
        if len(calls) == 1:
            raise ValueError("declined")

    @processor.job
    async def child() -> None: ...

    @processor.job
    async def run(ctx: DurableContext) -> str:
        try:
            await ctx.step(charge)
        except ValueError:
            if waits_for == "signal":
                await ctx.wait_for(number)
            elif waits_for == "sleep":
                await ctx.sleep("pause", 10)
            elif waits_for == "child":
                await ctx.run(child.job())
            else:
                others = [ctx.options(key=f"{place}").wait_for(number) for place in range(2)]
                await asyncio.gather(*others)
            return "declined"
        return "charged"

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, number, 7)
        await processor.signal(job_id, number, 8)
        assert (await finish(processor, job_id)).result == "declined"
        assert calls == ["charge"]


async def test_a_caught_error_of_a_branch_is_stored_when_another_waits() -> None:
    processor = make_processor()
    calls: list[str] = []

    async def charge() -> None:
        calls.append("charge")
        if len(calls) == 1:
            raise ValueError("declined")

    @processor.job
    async def run(ctx: DurableContext) -> object:
        async def branch() -> str:
            try:
                await ctx.step(charge)
            except ValueError:
                return "declined"
            return "charged"

        outcome: str = (await asyncio.gather(ctx.wait_for(number), branch()))[1]
        return outcome

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, number, 7)
        assert (await finish(processor, job_id)).result == "declined"
        assert calls == ["charge"]


async def test_a_signal_that_cannot_be_read_is_taken_once() -> None:
    processor = make_processor()
    text = Signal("number", str)
    attempts: list[int] = []

    @processor.job
    async def run(ctx: DurableContext) -> int:
        attempts.append(ctx.attempt)
        if len(attempts) > 5:
            return -1
        try:
            return await ctx.options(key="first").wait_for(number)
        except UnreadablePayload:
            return await ctx.options(key="second").wait_for(number)

    async with processor:
        job_id = await run.enqueue()
        await processor.signal(job_id, text, "one")
        await processor.drain()
        await processor.signal(job_id, number, 2)
        assert (await finish(processor, job_id)).result == 2
        assert len(attempts) == 3  # the first reads no signals


async def test_a_signal_that_came_after_the_lease_and_before_the_timeout() -> None:
    """The run was resumed by another branch, and its handler begins when the timeout is over."""
    clock = FakeClock()
    processor = make_processor(clock)
    other = Signal("other", int)
    late: list[str] = []

    @processor.job
    async def run(ctx: DurableContext) -> list[int | None]:
        if late:
            await processor.signal(late.pop(), number, 7)
            clock.advance(60)
        first, second = await asyncio.gather(ctx.wait_for(number, timeout=30), ctx.wait_for(other))
        return [first, second]

    async with processor:
        job_id = await run.enqueue()
        await processor.drain()
        late.append(job_id)
        await processor.signal(job_id, other, 1)
        assert (await finish(processor, job_id)).result == [7, 1]
