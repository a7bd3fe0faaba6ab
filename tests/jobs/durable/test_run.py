"""A worker is lost before or after any call of its backend: the run ends with the same result."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from nimburion import DurableContext, Processor, Signal, State
from nimburion.testing import crash_everywhere

approved = Signal("approved", str)
calls: Counter[str] = Counter()
processor = Processor("memory://", max_retries=0, max_lost=100)


@processor.job
async def double(value: int) -> int:
    return 2 * value


async def reserve(item: str) -> str:
    calls["reserve"] += 1
    return f"r-{item}"


def charge(cents: int) -> int:
    calls["charge"] += 1
    return cents


async def flaky() -> str:
    calls["flaky"] += 1
    raise ValueError("always")


async def release(reservation: str) -> None:
    calls["release"] += 1


async def refund(cents: int) -> None:
    calls["refund"] += 1


@processor.job
async def order(ctx: DurableContext, *, fails: bool) -> list[Any]:
    """Does each operation."""
    reservation = await ctx.step(reserve, "book")
    ctx.undo(release, reservation)
    text = ""
    try:
        await ctx.step(flaky)
    except ValueError as error:
        text = str(error)
    await ctx.sleep("pause", 100)
    one, payment = await asyncio.gather(
        ctx.options(key="one").run(double.job(5)), ctx.step(charge, 700)
    )
    ctx.undo(refund, payment)
    many = await ctx.run_all(double.job(n) for n in range(3))
    answer = await ctx.wait_for(approved, timeout=1_000)
    late = await ctx.options(key="late").wait_for(approved, timeout=1_000)
    if fails:
        raise RuntimeError("no stock")
    return [reservation, text, one, payment, many, answer, late]


OPERATIONS = {
    *("step reserve", "step flaky", "step charge", "timer pause"),
    *("children one", "children double", "signal approved", "signal late"),
}


async def test_a_run_whose_worker_is_lost_at_any_point_has_the_same_result() -> None:
    counts: list[Counter[str]] = []

    def note_calls() -> None:
        counts.append(Counter(calls))
        calls.clear()

    report = await crash_everywhere(
        order.job(fails=False), signals=[(approved, "ann")], after_each=note_calls
    )
    assert report.state is State.COMPLETED
    assert report.result == ["r-book", "always", 10, 700, [0, 2, 4], "ann", None]
    assert set(report.steps) == OPERATIONS
    assert 50 < report.crashes < 400
    assert len(counts) == report.crashes + 2
    assert counts[0] == {"reserve": 1, "charge": 1, "flaky": 1}
    for name in ("reserve", "charge", "flaky"):
        assert {count[name] for count in counts} == {1, 2}  # the crash was after the call, too
    assert all({"release", "refund"}.isdisjoint(count) for count in counts)


async def test_a_run_that_fails_is_undone_although_its_worker_is_lost() -> None:
    counts: list[Counter[str]] = []

    def note_calls() -> None:
        counts.append(Counter(calls))
        calls.clear()

    report = await crash_everywhere(
        order.job(fails=True), signals=[(approved, "ann")], after_each=note_calls
    )
    assert (report.state, report.error) == (State.FAILED, "RuntimeError: no stock")
    assert set(report.steps) == OPERATIONS | {"undo release", "undo refund"}
    for name in ("release", "refund"):
        assert {count[name] for count in counts} == {1, 2}
