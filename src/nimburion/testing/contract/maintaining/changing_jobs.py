"""`change_jobs`: jobs are replayed, made due, cancelled or deleted, with a record in one step."""

from __future__ import annotations

import msgspec
import pytest

from nimburion.core.bulk_operations import MAX_STEP, BulkAction
from nimburion.core.errors import InvalidJob
from nimburion.core.job import JobOptions, State
from nimburion.core.maintenance import JobChanges
from nimburion.core.records import NewRecord, Record, RecordChange
from nimburion.core.settlement import Failed
from nimburion.testing.contract.harness import FAILURE, Harness
from nimburion.testing.contract.job_states import JOB_STATES
from nimburion.testing.contract.maintaining.dead_letters import make_dead_letters

AFTER = {
    BulkAction.REPLAY: State.PENDING,
    BulkAction.RUN_NOW: State.PENDING,
    BulkAction.CANCEL: State.CANCELLED,
}
"""The state of a job that was changed. A deleted one has none."""
CHANGEABLE = [
    (action, name)
    for action in BulkAction
    for name in ("pending", "scheduled", "processing", "retrying", "retrying, due", "completed",
                 "failed", "cancelled")
    if State(name.partition(",")[0]) in action.states
    and (action, name) != (BulkAction.RUN_NOW, "retrying, due")
]  # fmt: skip
"""The actions, each with the jobs of `JOB_STATES` that it can change."""


async def put_record(harness: Harness) -> int:
    """Store the record that a step writes, and return its version."""
    record = NewRecord(kind="bulk_operation", id="op", body=b"{}", due=5.0)
    put = await harness.backend.maintenance.put_record(record)
    assert put.record is not None
    return put.record.version


def make_change(version: int, body: bytes = b"[]", due: float | None = 10.0) -> RecordChange:
    """Return a change of the record; each job of the step adds half a second."""
    return RecordChange(
        kind="bulk_operation", id="op", body=body, due=due, version=version, pause=0.5
    )


class JobChangeCases:
    """`change_jobs`."""

    @pytest.mark.parametrize(
        "state", ["pending", "scheduled", "retrying", "processing", "completed", "failed"]
    )
    @pytest.mark.parametrize("action", BulkAction)
    async def test_an_action_changes_what_it_can_change(
        self, harness: Harness, action: BulkAction, state: str
    ) -> None:
        """Jobs in other states and unknown ids are skipped."""
        job_id = await JOB_STATES[state](harness)
        before = await harness.backend.reads.get_job(job_id)
        changes = await harness.backend.maintenance.change_jobs(action, ["unknown", job_id])
        found = {job.id: job for job in (await harness.backend.reads.list_jobs()).jobs}
        changed = before.state in action.states
        assert changes == JobChanges([job_id] if changed else [])
        assert (found.get(job_id) != msgspec.structs.replace(before, payload=None)) is changed
        if not changed:
            return
        after = AFTER.get(action)
        if action is BulkAction.RUN_NOW and state == "retrying":
            after = State.RETRYING
        if action is BulkAction.CANCEL and state == "processing":
            after = State.PROCESSING
        assert (found[job_id].state if job_id in found else None) is after

    @pytest.mark.parametrize(("action", "state"), CHANGEABLE)
    async def test_a_job_changes_only_in_the_given_states(
        self, harness: Harness, action: BulkAction, state: str
    ) -> None:
        """A job in another state is skipped, and a record of the step is written nevertheless."""
        job_id = await JOB_STATES[state](harness)
        before = await harness.backend.reads.get_job(job_id)
        change = make_change(await put_record(harness))
        others = frozenset(State) - {before.state}
        for states in (others, frozenset[State]()):
            skipped = await harness.backend.maintenance.change_jobs(
                action, [job_id], change, states=states
            )
            assert (skipped.ids, skipped.held) == ([], [])
            assert skipped.record is not None
            assert skipped.record.changed == 0
            change = make_change(skipped.record.version)
        assert await harness.backend.maintenance.change_jobs(
            action, [job_id], states=others
        ) == JobChanges([])
        assert await harness.backend.reads.get_job(job_id) == before
        changed = await harness.backend.maintenance.change_jobs(
            action, ["unknown", job_id], change, states={before.state}
        )
        assert changed.ids == [job_id]
        assert changed.record is not None
        assert changed.record.changed == 1

    @pytest.mark.parametrize("action", BulkAction)
    async def test_a_step_changes_many_jobs(self, harness: Harness, action: BulkAction) -> None:
        job_ids = [f"{n}" for n in range(MAX_STEP)]
        later = 60.0 if action is BulkAction.RUN_NOW else 0.0
        await harness.enqueue(*(harness.job(job_id, after=later) for job_id in job_ids))
        if State.FAILED in action.states:
            worker = await harness.worker()
            leases = [delivery.lease for delivery in await worker.take(MAX_STEP)]
            await worker.settle(*(Failed(lease, "permanent", FAILURE) for lease in leases))
        assert await harness.backend.maintenance.change_jobs(action, job_ids) == JobChanges(job_ids)
        counts = await harness.backend.reads.count_jobs()
        assert {state: count for state, count in counts.items() if count} == (
            {AFTER[action]: MAX_STEP} if action in AFTER else {}
        )

    @pytest.mark.parametrize(
        "job_ids", [("a", "a"), tuple(f"{n}" for n in range(MAX_STEP + 1))],
        ids=["twice", "too many"],
    )  # fmt: skip
    async def test_wrong_ids_are_refused(self, harness: Harness, job_ids: tuple[str, ...]) -> None:
        with pytest.raises(InvalidJob):
            await harness.backend.maintenance.change_jobs(BulkAction.DELETE, job_ids)

    async def test_no_ids_change_nothing(self, harness: Harness) -> None:
        version = await put_record(harness)
        assert await harness.backend.maintenance.change_jobs(BulkAction.CANCEL, []) == JobChanges(
            []
        )
        changes = await harness.backend.maintenance.change_jobs(
            BulkAction.CANCEL, [], make_change(version)
        )
        assert changes.record is not None
        assert (changes.record.version, changes.record.due) == (version + 1, 10.0)

    async def test_a_step_writes_its_record(self, harness: Harness) -> None:
        """Jobs whose unique key another job holds are held."""
        await harness.put(harness.job("b", options=JobOptions(unique_key="k")))
        await make_dead_letters(harness, "a", "b", "c")
        await harness.put(harness.job("d", options=JobOptions(unique_key="k")))
        created = harness.clock.now()
        version = await put_record(harness)
        harness.clock.advance(0.5)
        first = await harness.backend.maintenance.change_jobs(
            BulkAction.REPLAY, ["a", "b", "d"], make_change(version)
        )
        assert first == JobChanges(
            ["a"],
            ["b"],
            Record(
                kind="bulk_operation",
                id="op",
                body=b"[]",
                due=10.5,
                version=version + 1,
                created_at=created,
                changed=1,
                held=1,
            ),
        )
        assert await harness.backend.reads.get_record("bulk_operation", "op") == first.record
        second = await harness.backend.maintenance.change_jobs(
            BulkAction.REPLAY, ["c"], make_change(version + 1, b'{"n":2}', due=None)
        )
        assert second.record is not None
        assert (second.record.changed, second.record.held) == (2, 1)
        assert (second.record.body, second.record.due) == (b'{"n":2}', None)
        replaced = await harness.backend.maintenance.put_record(
            NewRecord(kind="bulk_operation", id="op", body=b"{}")
        )
        assert replaced.record is not None
        assert (replaced.record.changed, replaced.record.held) == (2, 1)

    async def test_a_step_of_another_version_changes_nothing(self, harness: Harness) -> None:
        await make_dead_letters(harness, "a")
        missing = await harness.backend.maintenance.change_jobs(
            BulkAction.REPLAY, ["a"], make_change(1)
        )
        known = await put_record(harness)
        kept = await harness.backend.reads.get_record("bulk_operation", "op")
        for version in (0, known - 1, known + 1):
            stale = await harness.backend.maintenance.change_jobs(
                BulkAction.REPLAY, ["a"], make_change(version)
            )
            assert stale == missing == JobChanges([])
        assert await harness.state("a") is State.FAILED
        assert await harness.backend.reads.get_record("bulk_operation", "op") == kept

    async def test_a_repeated_step_changes_nothing(self, harness: Harness) -> None:
        """A job that failed again in the meantime stays a dead letter."""
        await make_dead_letters(harness, "a")
        version = await put_record(harness)
        done = await harness.backend.maintenance.change_jobs(
            BulkAction.REPLAY, ["a"], make_change(version)
        )
        worker = await harness.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "permanent", FAILURE))
        repeated = await harness.backend.maintenance.change_jobs(
            BulkAction.REPLAY, ["a"], make_change(version)
        )
        assert repeated == JobChanges([])
        assert await harness.state("a") is State.FAILED
        assert await harness.backend.reads.get_record("bulk_operation", "op") == done.record
