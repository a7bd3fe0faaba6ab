"""Bulk operations: started once, claimed step by step, ended, and kept with their progress."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nimburion.core.bulk_operations import (
    BulkAction,
    BulkOperation,
    BulkState,
    BulkStep,
    Claim,
    NewBulkOperation,
    cancel_bulk_operation,
    claim_bulk_operation,
    end_bulk_operation,
    get_bulk_operation,
    list_bulk_operations,
    run_bulk_step,
    start_bulk_operation,
)
from nimburion.core.errors import (
    BulkOperationNotFound,
    InvalidJob,
    StepLost,
    TooManyBulkOperations,
)
from nimburion.core.job import JobOptions, State
from nimburion.core.queries import JobFilter
from nimburion.testing.contract.harness import TTL, Harness
from nimburion.testing.contract.maintaining.dead_letters import make_dead_letters

EVERYTHING = JobFilter(
    states=frozenset({State.FAILED}),
    queue="red",
    name="mail",
    reason="lost",
    ids=("a", "b"),
    created_from=1.5,
    created_to=2.5,
    finished_from=3.5,
    finished_to=4.5,
    tenant="tenant ✓",
    correlation_id="c",
    fingerprint="0123456789abcdef",
    min_failures=2,
)
"""A filter with all fields."""
REPLAY = NewBulkOperation(id="op", action=BulkAction.REPLAY)


async def claim(harness: Harness) -> tuple[Claim, BulkOperation]:
    """Claim the step that is due."""
    claimed = await claim_bulk_operation(harness.backend, TTL)
    assert claimed.operation is not None
    return claimed, claimed.operation


async def test_a_started_operation_is_kept(harness: Harness) -> None:
    new = NewBulkOperation(
        id="op",
        action=BulkAction.REPLAY,
        which=EVERYTHING,
        by="ann@web-1 ✓",
        origin="cli",
        rate=0.5,
        limit=7,
    )
    started = await start_bulk_operation(harness.backend, new)
    now = harness.clock.now()
    assert started == BulkOperation(
        **msgspec.structs.asdict(new), started_at=now, due=now, version=round(now * 1e6)
    )
    assert await get_bulk_operation(harness.backend, "op") == started


async def test_an_operation_is_started_once(harness: Harness) -> None:
    await start_bulk_operation(harness.backend, REPLAY)
    harness.clock.advance(1.0)
    _, claimed = await claim(harness)
    other = NewBulkOperation(id="op", action=BulkAction.DELETE)
    assert await start_bulk_operation(harness.backend, other) == claimed


async def test_an_unknown_operation_is_not_found(harness: Harness) -> None:
    with pytest.raises(BulkOperationNotFound):
        await get_bulk_operation(harness.backend, "op")
    with pytest.raises(BulkOperationNotFound):
        await cancel_bulk_operation(harness.backend, "op")


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "no id!"},
        {"rate": 0.0},
        {"rate": float("nan")},
        {"limit": 0},
        {"which": JobFilter(states=frozenset({State.PENDING}))},
        {"which": JobFilter(ids=tuple(f"{n}" for n in range(1_001)))},
    ],
    ids=["id", "no rate", "not a number", "limit", "states", "ids"],
)
async def test_an_operation_that_makes_no_sense_is_refused(
    harness: Harness, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidJob):
        await start_bulk_operation(harness.backend, msgspec.structs.replace(REPLAY, **changes))
    assert (await list_bulk_operations(harness.backend)).operations == []


async def test_a_cancelled_operation_has_ended(harness: Harness) -> None:
    """Its claimed step is lost. Cancelling it again changes nothing."""
    await make_dead_letters(harness, "a")
    await start_bulk_operation(harness.backend, REPLAY)
    claimed, _ = await claim(harness)
    cancelled = await cancel_bulk_operation(harness.backend, "op")
    assert (cancelled.state, cancelled.ended_at) == (BulkState.CANCELLED, harness.clock.now())
    with pytest.raises(StepLost):
        await run_bulk_step(harness.backend, claimed, BulkStep(ids=("a",)))
    with pytest.raises(StepLost):
        await end_bulk_operation(harness.backend, claimed, BulkState.DONE)
    assert await harness.state("a") is State.FAILED
    harness.clock.advance(2 * TTL)
    assert await claim_bulk_operation(harness.backend, TTL) == Claim(None)
    assert await cancel_bulk_operation(harness.backend, "op") == cancelled
    assert await get_bulk_operation(harness.backend, "op") == cancelled


async def test_an_operation_ends_as_done_or_failed(harness: Harness) -> None:
    await start_bulk_operation(harness.backend, REPLAY)
    harness.clock.advance(3.0)
    claimed, _ = await claim(harness)
    ended = await end_bulk_operation(harness.backend, claimed, BulkState.FAILED, "no luck")
    assert (ended.state, ended.ended_at) == (BulkState.FAILED, harness.clock.now())
    assert ended.error == "no luck"
    harness.clock.advance(2 * TTL)
    assert await claim_bulk_operation(harness.backend, TTL) == Claim(None)
    assert await cancel_bulk_operation(harness.backend, "op") == ended


async def test_only_the_newest_operations_are_kept(harness: Harness) -> None:
    """The oldest is deleted, but not while it is running."""
    for n in range(20):
        new = msgspec.structs.replace(REPLAY, id=f"o{n}")
        await start_bulk_operation(harness.backend, new, keep=20)
    with pytest.raises(TooManyBulkOperations, match="o0"):
        await start_bulk_operation(harness.backend, REPLAY, keep=20)
    await cancel_bulk_operation(harness.backend, "o0")
    await start_bulk_operation(harness.backend, REPLAY, keep=20)
    with pytest.raises(BulkOperationNotFound):
        await get_bulk_operation(harness.backend, "o0")
    page = await list_bulk_operations(harness.backend, limit=19)
    assert (page.operations[0].id, page.operations[-1].id) == ("op", "o2")
    page = await list_bulk_operations(harness.backend, limit=19, after=page.next)
    assert ([one.id for one in page.operations], page.next) == (["o1"], None)


async def test_a_step_is_claimed_by_one_process(harness: Harness) -> None:
    """It can be claimed again after the time of the claim. The version rises."""
    started = await start_bulk_operation(harness.backend, REPLAY)
    _, first = await claim(harness)
    assert first == msgspec.structs.replace(started, version=started.version + 1)
    harness.clock.advance(TTL / 2)
    found = await claim_bulk_operation(harness.backend, TTL)
    assert (found.operation, found.wait) == (None, TTL / 2)
    harness.clock.advance(TTL / 2)
    _, second = await claim(harness)
    assert second == msgspec.structs.replace(started, version=started.version + 2)


async def test_a_step_records_its_progress(harness: Harness) -> None:
    """Jobs whose unique key another job holds count as failed."""
    await harness.put(harness.job("b", options=JobOptions(unique_key="k")))
    await make_dead_letters(harness, "a", "b", "c")
    await harness.put(harness.job("d", options=JobOptions(unique_key="k")))
    started = await start_bulk_operation(harness.backend, REPLAY)
    harness.clock.advance(0.5)
    claimed, _ = await claim(harness)
    step = BulkStep(ids=("a", "b", "d"), cursor="7")
    first = await run_bulk_step(harness.backend, claimed, step)
    version = started.version + 2
    expected = msgspec.structs.replace(
        started, done=1, skipped=1, failed=1, cursor="7", version=version
    )
    assert first == expected
    claimed, _ = await claim(harness)
    second = await run_bulk_step(harness.backend, claimed, BulkStep(ids=("c",), exhausted=True))
    assert second == msgspec.structs.replace(
        expected, done=2, cursor=None, exhausted=True, version=version + 2
    )
    assert await get_bulk_operation(harness.backend, "op") == second


async def test_a_stale_step_writes_nothing(harness: Harness) -> None:
    await make_dead_letters(harness, "a", "b")
    await start_bulk_operation(harness.backend, REPLAY)
    stale, _ = await claim(harness)
    harness.clock.advance(TTL)
    fresh, operation = await claim(harness)
    with pytest.raises(StepLost):
        await run_bulk_step(harness.backend, stale, BulkStep(ids=("a",)))
    assert await harness.state("a") is State.FAILED
    assert await get_bulk_operation(harness.backend, "op") == operation
    done = await run_bulk_step(harness.backend, fresh, BulkStep(ids=("b",)))
    assert done.done == 1
    for claimed in (stale, fresh):
        with pytest.raises(StepLost):
            await run_bulk_step(harness.backend, claimed, BulkStep(ids=("a",)))
    assert await get_bulk_operation(harness.backend, "op") == done


async def test_a_late_step_counts_if_no_other_process_claimed_it(harness: Harness) -> None:
    await make_dead_letters(harness, "a")
    await start_bulk_operation(harness.backend, REPLAY)
    late, _ = await claim(harness)
    harness.clock.advance(2 * TTL)
    assert (await run_bulk_step(harness.backend, late, BulkStep(ids=("a",)))).done == 1


@pytest.mark.parametrize(
    ("late", "wait"), [(0.0, 2.0), (0.5, 1.5), (20.0, 1.0)], ids=["in time", "late", "too late"]
)
async def test_the_rate_decides_when_the_next_step_is_due(
    harness: Harness, late: float, wait: float
) -> None:
    """A delay is made up for, but not more than a second."""
    await make_dead_letters(harness, "a", "b", "c")
    await start_bulk_operation(harness.backend, msgspec.structs.replace(REPLAY, rate=1.5))
    harness.clock.advance(late)
    claimed, _ = await claim(harness)
    await run_bulk_step(harness.backend, claimed, BulkStep(ids=("a", "b", "c", "unknown")))
    found = await claim_bulk_operation(harness.backend, TTL)
    assert (found.operation, found.wait) == (None, wait)
    harness.clock.advance(wait)
    await claim(harness)


async def test_the_step_that_waited_longest_is_claimed_first(harness: Harness) -> None:
    """So operations take turns."""
    for operation_id in "ab":
        new = msgspec.structs.replace(REPLAY, id=operation_id)
        await start_bulk_operation(harness.backend, new)
    taken = []
    for _ in range(6):
        harness.clock.advance(10.0)
        claimed, operation = await claim(harness)
        await run_bulk_step(harness.backend, claimed, BulkStep(cursor="7"))
        taken.append(operation.id)
    assert "".join(taken) in {"ababab", "bababa"}


async def test_a_step_with_wrong_ids_is_refused(harness: Harness) -> None:
    await start_bulk_operation(harness.backend, REPLAY)
    claimed, operation = await claim(harness)
    with pytest.raises(InvalidJob):
        await run_bulk_step(harness.backend, claimed, BulkStep(ids=("a", "a")))
    assert await get_bulk_operation(harness.backend, "op") == operation


async def test_a_step_without_a_claim_is_lost(harness: Harness) -> None:
    with pytest.raises(StepLost):
        await run_bulk_step(harness.backend, Claim(None), BulkStep())


async def test_a_step_skips_jobs_that_left_the_states_of_the_filter(harness: Harness) -> None:
    await harness.put(harness.job("a", after=60.0))
    await harness.put(harness.job("b", after=120.0))
    which = JobFilter(states=frozenset({State.SCHEDULED}))
    await start_bulk_operation(
        harness.backend, NewBulkOperation(id="op", action=BulkAction.CANCEL, which=which)
    )
    claimed, _ = await claim(harness)
    harness.clock.advance(60.0)
    step = BulkStep(ids=("a", "b"), exhausted=True)
    operation = await run_bulk_step(harness.backend, claimed, step)
    assert (operation.done, operation.skipped) == (1, 1)
    assert await harness.state("a") is State.PENDING
    assert await harness.state("b") is State.CANCELLED
