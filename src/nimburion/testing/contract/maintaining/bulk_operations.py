"""Bulk operations: kept, claimed by one process at a time, and advanced in fenced, atomic steps."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    MAX_STEP,
    BulkAction,
    BulkOperation,
    BulkState,
    BulkStep,
    Claim,
    NewBulkOperation,
)
from nimburion.core.errors import (
    BulkOperationNotFound,
    InvalidJob,
    StepLost,
    TooManyBulkOperations,
)
from nimburion.core.job import JobOptions, State
from nimburion.core.queries import JobFilter
from nimburion.core.settlement import Failed
from nimburion.testing.contract.harness import FAILURE, TTL, Harness, wait_in_time
from nimburion.testing.contract.job_states import JOB_STATES
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


async def claim(backend: Backend, ttl: float = TTL) -> BulkOperation:
    """Claim the step that is due."""
    claimed = (await backend.maintenance.claim_bulk_operation(ttl)).operation
    assert claimed is not None
    return claimed


class BulkOperationCases:
    """`start_bulk_operation`, `cancel_bulk_operation`, and what is read of bulk operations."""

    async def test_a_started_bulk_operation_is_kept(self, harness: Harness) -> None:
        new = NewBulkOperation(
            id="op",
            action=BulkAction.REPLAY,
            which=EVERYTHING,
            by="ann@web-1 ✓",
            origin="cli",
            rate=0.5,
            limit=7,
        )
        started = await harness.backend.maintenance.start_bulk_operation(new)
        now = harness.clock.now()
        assert started == BulkOperation(**msgspec.structs.asdict(new), started_at=now, due=now)
        assert await harness.backend.reads.get_bulk_operation("op") == started

    async def test_a_bulk_operation_is_started_once(self, harness: Harness) -> None:
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        harness.clock.advance(1.0)
        claimed = await claim(harness.backend)
        other = NewBulkOperation(id="op", action=BulkAction.DELETE)
        assert await harness.backend.maintenance.start_bulk_operation(other) == claimed

    async def test_an_unknown_bulk_operation_is_not_found(self, harness: Harness) -> None:
        with pytest.raises(BulkOperationNotFound):
            await harness.backend.reads.get_bulk_operation("op")
        with pytest.raises(BulkOperationNotFound):
            await harness.backend.maintenance.cancel_bulk_operation("op")
        with pytest.raises(BulkOperationNotFound):
            await harness.backend.maintenance.advance_bulk_operation("op", 1, BulkStep())

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
    async def test_a_bulk_operation_that_makes_no_sense_is_refused(
        self, harness: Harness, changes: dict[str, object]
    ) -> None:
        with pytest.raises(InvalidJob):
            await harness.backend.maintenance.start_bulk_operation(
                msgspec.structs.replace(REPLAY, **changes)
            )
        assert (await harness.backend.reads.list_bulk_operations()).operations == []

    async def test_a_cancelled_bulk_operation_has_ended(self, harness: Harness) -> None:
        """Its claimed step is lost. Cancelling it again changes nothing."""
        await make_dead_letters(harness, "a")
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        claimed = await claim(harness.backend)
        cancelled = await harness.backend.maintenance.cancel_bulk_operation("op")
        assert (cancelled.state, cancelled.ended_at) == (BulkState.CANCELLED, harness.clock.now())
        with pytest.raises(StepLost):
            await harness.backend.maintenance.advance_bulk_operation(
                "op", claimed.fence, BulkStep(ids=("a",))
            )
        assert await harness.state("a") is State.FAILED
        harness.clock.advance(2 * TTL)
        assert await harness.backend.maintenance.claim_bulk_operation(TTL) == Claim(None)
        assert await harness.backend.maintenance.cancel_bulk_operation("op") == cancelled
        assert await harness.backend.reads.get_bulk_operation("op") == cancelled

    async def test_a_bulk_operation_that_is_done_is_not_cancelled(self, harness: Harness) -> None:
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        done = await harness.backend.maintenance.advance_bulk_operation(
            "op", (await claim(harness.backend)).fence, BulkStep(end=BulkState.DONE)
        )
        assert await harness.backend.maintenance.cancel_bulk_operation("op") == done

    @pytest.mark.parametrize("limit", [2, 5, 6])
    async def test_pages_of_bulk_operations_have_no_gaps(
        self, harness: Harness, limit: int
    ) -> None:
        for operation_id in "abcde":
            await harness.backend.maintenance.start_bulk_operation(
                msgspec.structs.replace(REPLAY, id=operation_id)
            )
        seen: list[str] = []
        after: str | None = None
        while after is not None or not seen:
            page = await harness.backend.reads.list_bulk_operations(limit=limit, after=after)
            assert len(page.operations) <= limit
            seen += [operation.id for operation in page.operations]
            after = page.next
            if after is None:
                break
        assert seen == ["e", "d", "c", "b", "a"]
        with pytest.raises(InvalidJob):
            await harness.backend.reads.list_bulk_operations(after="no cursor!")

    async def test_only_the_newest_bulk_operations_are_kept(self, harness: Harness) -> None:
        """The oldest is deleted, but not while it is running."""
        keep = 20
        for n in range(keep):
            new = msgspec.structs.replace(REPLAY, id=f"o{n}")
            await harness.backend.maintenance.start_bulk_operation(new, keep=keep)
        with pytest.raises(TooManyBulkOperations, match="o0"):
            await harness.backend.maintenance.start_bulk_operation(REPLAY, keep=keep)
        with pytest.raises(BulkOperationNotFound):
            await harness.backend.reads.get_bulk_operation("op")
        await harness.backend.maintenance.cancel_bulk_operation("o0")
        await harness.backend.maintenance.start_bulk_operation(REPLAY, keep=keep)
        with pytest.raises(BulkOperationNotFound):
            await harness.backend.reads.get_bulk_operation("o0")
        page = await harness.backend.reads.list_bulk_operations(limit=keep + 1)
        assert (len(page.operations), page.next) == (keep, None)
        assert (page.operations[0].id, page.operations[-1].id) == ("op", "o1")


class BulkStepCases:
    """`claim_bulk_operation` and `advance_bulk_operation`."""

    async def test_nothing_is_claimed_where_nothing_runs(self, harness: Harness) -> None:
        assert await harness.backend.maintenance.claim_bulk_operation(TTL) == Claim(None)

    async def test_a_step_is_claimed_by_one_process(self, harness: Harness) -> None:
        """It can be claimed again after the time of the claim. The fence rises."""
        started = await harness.backend.maintenance.start_bulk_operation(REPLAY)
        first = await claim(harness.backend)
        until = harness.clock.now() + TTL
        assert first == msgspec.structs.replace(started, fence=1, leased_until=until)
        harness.clock.advance(TTL / 2)
        assert await harness.backend.maintenance.claim_bulk_operation(TTL) == Claim(None, TTL / 2)
        harness.clock.advance(TTL / 2)
        assert (await claim(harness.backend)).fence == 2

    async def test_many_processes_claim_a_step_once(self, fleet: Harness) -> None:
        await fleet.backend.maintenance.start_bulk_operation(REPLAY)
        claims = await wait_in_time(
            asyncio.gather(
                *(handle.maintenance.claim_bulk_operation(TTL) for handle in fleet.handles * 4)
            )
        )
        assert [found.operation.fence for found in claims if found.operation] == [1]

    @pytest.mark.parametrize(
        "state", ["pending", "scheduled", "retrying", "processing", "completed", "failed"]
    )
    @pytest.mark.parametrize("action", BulkAction)
    async def test_a_step_changes_what_its_action_can_change(
        self, harness: Harness, action: BulkAction, state: str
    ) -> None:
        """Jobs in other states and unknown ids are skipped."""
        job_id = await JOB_STATES[state](harness)
        await harness.backend.maintenance.start_bulk_operation(
            NewBulkOperation(id="op", action=action)
        )
        before = await harness.backend.reads.get_job(job_id)
        advanced = await harness.backend.maintenance.advance_bulk_operation(
            "op", (await claim(harness.backend)).fence, BulkStep(ids=("unknown", job_id))
        )
        found = {job.id: job for job in (await harness.backend.reads.list_jobs()).jobs}
        changed = before.state in action.states
        assert (advanced.done, advanced.skipped) == (int(changed), 2 - changed)
        assert (found.get(job_id) != msgspec.structs.replace(before, payload=None)) is changed
        after = {
            BulkAction.REPLAY: State.PENDING,
            BulkAction.RUN_NOW: State.RETRYING if state == "retrying" else State.PENDING,
            BulkAction.CANCEL: State.PROCESSING if state == "processing" else State.CANCELLED,
            BulkAction.DELETE: None,
        }[action]
        if changed:
            assert (found[job_id].state if job_id in found else None) is after

    async def test_a_step_records_its_progress(self, harness: Harness) -> None:
        """Jobs whose unique key another job holds count as failed."""
        await harness.put(harness.job("b", options=JobOptions(unique_key="k")))
        await make_dead_letters(harness, "a", "b", "c")
        await harness.put(harness.job("d", options=JobOptions(unique_key="k")))
        started = await harness.backend.maintenance.start_bulk_operation(REPLAY)
        harness.clock.advance(0.5)
        first = await harness.backend.maintenance.advance_bulk_operation(
            "op",
            (await claim(harness.backend)).fence,
            BulkStep(ids=("a", "b", "d"), cursor="7", error="slow ✓"),
        )
        expected = msgspec.structs.replace(
            started, done=1, skipped=1, failed=1, cursor="7", error="slow ✓", fence=1
        )
        assert first == expected
        second = await harness.backend.maintenance.advance_bulk_operation(
            "op", (await claim(harness.backend)).fence, BulkStep(ids=("c",), exhausted=True)
        )
        assert second == msgspec.structs.replace(
            expected, done=2, cursor=None, exhausted=True, fence=2
        )
        assert await harness.backend.reads.get_bulk_operation("op") == second
        assert (await harness.backend.reads.count_jobs())[State.FAILED] == 1

    async def test_the_last_step_ends_the_operation(self, harness: Harness) -> None:
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        harness.clock.advance(3.0)
        step = BulkStep(exhausted=True, end=BulkState.FAILED, error="no luck")
        ended = await harness.backend.maintenance.advance_bulk_operation(
            "op", (await claim(harness.backend)).fence, step
        )
        assert (ended.state, ended.ended_at) == (BulkState.FAILED, harness.clock.now())
        assert (ended.error, ended.leased_until) == ("no luck", None)
        harness.clock.advance(TTL)
        assert await harness.backend.maintenance.claim_bulk_operation(TTL) == Claim(None)
        assert (
            await harness.backend.maintenance.advance_bulk_operation("op", ended.fence, step)
            == ended
        )

    async def test_a_repeated_step_changes_nothing(self, harness: Harness) -> None:
        """A job that failed again in the meantime stays a dead letter."""
        await make_dead_letters(harness, "a")
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        fence = (await claim(harness.backend)).fence
        step = BulkStep(ids=("a",), cursor="7")
        done = await harness.backend.maintenance.advance_bulk_operation("op", fence, step)
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        assert await harness.backend.maintenance.advance_bulk_operation("op", fence, step) == done
        assert await harness.state("a") is State.FAILED

    async def test_a_stale_step_writes_nothing(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a", "b")
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        stale = await claim(harness.backend)
        harness.clock.advance(TTL)
        fresh = await claim(harness.backend)
        with pytest.raises(StepLost):
            await harness.backend.maintenance.advance_bulk_operation(
                "op", stale.fence, BulkStep(ids=("a",))
            )
        assert await harness.state("a") is State.FAILED
        assert await harness.backend.reads.get_bulk_operation("op") == fresh
        done = await harness.backend.maintenance.advance_bulk_operation(
            "op", fresh.fence, BulkStep(ids=("b",))
        )
        assert done.done == 1
        with pytest.raises(StepLost):
            await harness.backend.maintenance.advance_bulk_operation(
                "op", stale.fence, BulkStep(ids=("a",))
            )
        assert await harness.backend.reads.get_bulk_operation("op") == done

    async def test_a_late_step_counts_if_no_other_process_claimed_it(
        self, harness: Harness
    ) -> None:
        await make_dead_letters(harness, "a")
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        late = await claim(harness.backend)
        harness.clock.advance(2 * TTL)
        done = await harness.backend.maintenance.advance_bulk_operation(
            "op", late.fence, BulkStep(ids=("a",))
        )
        assert done.done == 1

    @pytest.mark.parametrize(
        ("late", "wait"), [(0.0, 2.0), (0.5, 1.5), (20.0, 1.0)], ids=["in time", "late", "too late"]
    )
    async def test_the_rate_decides_when_the_next_step_is_due(
        self, harness: Harness, late: float, wait: float
    ) -> None:
        """A delay is made up for, but not more than a second."""
        await make_dead_letters(harness, "a", "b", "c")
        await harness.backend.maintenance.start_bulk_operation(
            msgspec.structs.replace(REPLAY, rate=1.5)
        )
        harness.clock.advance(late)
        await harness.backend.maintenance.advance_bulk_operation(
            "op", (await claim(harness.backend)).fence, BulkStep(ids=("a", "b", "c", "unknown"))
        )
        assert await harness.backend.maintenance.claim_bulk_operation(TTL) == Claim(None, wait)
        harness.clock.advance(wait)
        assert (await claim(harness.backend)).fence == 2

    async def test_the_step_that_waited_longest_is_claimed_first(self, harness: Harness) -> None:
        """So operations take turns."""
        for operation_id in "ab":
            await harness.backend.maintenance.start_bulk_operation(
                msgspec.structs.replace(REPLAY, id=operation_id)
            )
        claimed = []
        for _ in range(6):
            harness.clock.advance(10.0)
            operation = await claim(harness.backend)
            await harness.backend.maintenance.advance_bulk_operation(
                operation.id, operation.fence, BulkStep(cursor="7")
            )
            claimed.append(operation.id)
        assert "".join(claimed) in {"ababab", "bababa"}

    @pytest.mark.parametrize("action", BulkAction)
    async def test_a_step_changes_many_jobs(self, harness: Harness, action: BulkAction) -> None:
        job_ids = tuple(f"{n}" for n in range(MAX_STEP))
        later = 60.0 if action is BulkAction.RUN_NOW else 0.0
        await harness.enqueue(*(harness.job(job_id, after=later) for job_id in job_ids))
        if State.FAILED in action.states:
            worker = await harness.worker()
            leases = [delivery.lease for delivery in await worker.take(MAX_STEP)]
            await worker.settle(*(Failed(lease, "permanent", FAILURE) for lease in leases))
        await harness.backend.maintenance.start_bulk_operation(
            NewBulkOperation(id="op", action=action)
        )
        fence = (await claim(harness.backend)).fence
        done = await harness.backend.maintenance.advance_bulk_operation(
            "op", fence, BulkStep(ids=job_ids)
        )
        assert (done.done, done.skipped, done.failed) == (MAX_STEP, 0, 0)
        counts = await harness.backend.reads.count_jobs()
        expected = {
            BulkAction.REPLAY: State.PENDING,
            BulkAction.RUN_NOW: State.PENDING,
            BulkAction.CANCEL: State.CANCELLED,
        }
        assert {state: count for state, count in counts.items() if count} == (
            {expected[action]: MAX_STEP} if action in expected else {}
        )

    @pytest.mark.parametrize(
        "ids", [("a", "a"), tuple(f"{n}" for n in range(MAX_STEP + 1))], ids=["twice", "too many"]
    )
    async def test_a_step_with_wrong_ids_is_refused(
        self, harness: Harness, ids: tuple[str, ...]
    ) -> None:
        await harness.backend.maintenance.start_bulk_operation(REPLAY)
        claimed = await claim(harness.backend)
        with pytest.raises(InvalidJob):
            await harness.backend.maintenance.advance_bulk_operation(
                "op", claimed.fence, BulkStep(ids=ids)
            )
        assert await harness.backend.reads.get_bulk_operation("op") == claimed
