"""Dead letters: kept complete, replayed once, deleted only when finished."""

from __future__ import annotations

import pytest

from nimburion.core.errors import JobNotFound
from nimburion.core.job import AttemptError, JobOptions, State
from nimburion.core.operations import Replayed
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.settlement import Completed, Failed, Retried, Settled
from nimburion.testing.contract.harness import OOPS, Harness, ids
from nimburion.testing.contract.standing import STANDING

KEY = JobOptions(unique_key="k")
ODD = b'{ "b":1.0 ,"a":"\\u00e4 \xc3\xa4",\n "a":2 }'
"""JSON that no encoder writes in the same bytes."""
LARGE = b'"' + b"x" * 100_000 + b'"'
"""A payload so large that a backend may store it apart from the rest of the job."""


async def bury(stage: Harness, *job_ids: str, reason: str = "permanent", **where: str) -> None:
    """Fail these jobs permanently; jobs that do not exist are enqueued first."""
    name, queue = where.get("name", "mail"), where.get("queue", "default")
    await stage.enqueue(*(stage.job(one, name=name, queue=queue) for one in job_ids))
    worker = await stage.worker(names=(name,), queues=(queue,))
    taken = [one.lease for one in await worker.take(100) if one.lease.job_id in job_ids]
    assert len(taken) == len(job_ids)
    await worker.settle(*(Failed(lease, reason, OOPS) for lease in taken))
    await worker.close()


class Replaying:
    """`replay`."""

    async def test_a_replayed_job_is_pending_under_its_old_id(self, stage: Harness) -> None:
        await bury(stage, "a")
        stage.clock.advance(100.0)
        assert await stage.store.replay(JobFilter(ids=("a",)), 10) == Replayed(["a"], [], None)
        record = await stage.store.get("a")
        assert (record.state, record.reason, record.finished_at) == (State.PENDING, None, None)
        assert record.due == stage.clock.now()

    async def test_counts_begin_anew_and_the_history_stays(self, stage: Harness) -> None:
        await stage.add("a")
        lost = await stage.worker()
        await lost.take_one()
        await stage.lose(lost)
        worker = await stage.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, OOPS))
        await worker.settle(Failed((await worker.take_one()).lease, "exhausted", OOPS))
        before = await stage.store.get("a")
        assert (before.failures, before.lost, len(before.history)) == (2, 1, 3)
        await stage.store.replay(EVERY_JOB, 10)
        after = await stage.store.get("a")
        assert (after.failures, after.lost, after.attempt) == (0, 0, 1)
        assert after.history == before.history

    @pytest.mark.parametrize("payload", [ODD, LARGE], ids=["odd", "large"])
    async def test_the_payload_is_the_same_byte_for_byte(
        self, stage: Harness, payload: bytes
    ) -> None:
        await stage.put(stage.job("a", payload=payload))
        worker = await stage.worker()
        await worker.settle(Failed((await worker.take_one()).lease, "unreadable", OOPS))
        assert (await stage.store.get("a")).payload == payload
        await stage.store.replay(EVERY_JOB, 10)
        assert (await worker.take_one()).payload == payload

    async def test_replaying_twice_does_nothing_the_second_time(self, stage: Harness) -> None:
        await bury(stage, "a")
        await stage.store.replay(EVERY_JOB, 10)
        assert await stage.store.replay(EVERY_JOB, 10) == Replayed([], [], None)
        assert len(await (await stage.worker()).take(5)) == 1

    @pytest.mark.parametrize("state", [s for s in STANDING if not s.startswith("failed")])
    async def test_what_is_not_failed_is_passed_over(self, stage: Harness, state: str) -> None:
        job_id = await STANDING[state](stage)
        before = await stage.store.get(job_id)
        assert await stage.store.replay(JobFilter(ids=(job_id,)), 10) == Replayed([], [], None)
        assert await stage.store.get(job_id) == before

    async def test_an_unknown_id_is_passed_over(self, stage: Harness) -> None:
        assert await stage.store.replay(JobFilter(ids=("nobody",)), 10) == Replayed([], [], None)

    async def test_states_that_are_not_failed_replay_nothing(self, stage: Harness) -> None:
        await bury(stage, "a")
        which = JobFilter(states=frozenset({State.COMPLETED}))
        assert (await stage.store.replay(which, 10)).ids == []

    @pytest.mark.parametrize(
        ("which", "expected"),
        [
            (EVERY_JOB, {"a", "b", "c", "d"}),
            (JobFilter(queue="red"), {"b"}),
            (JobFilter(name="post"), {"c"}),
            (JobFilter(reason="lost"), {"d"}),
            (JobFilter(ids=("a", "d", "nobody")), {"a", "d"}),
            (JobFilter(states=frozenset({State.FAILED, State.PENDING}), queue="red"), {"b"}),
            (JobFilter(name="post", queue="red"), set()),
        ],
        ids=["all", "queue", "name", "reason", "ids", "states", "no match"],
    )
    async def test_a_filter_chooses(
        self, stage: Harness, which: JobFilter, expected: set[str]
    ) -> None:
        await bury(stage, "a")
        await bury(stage, "b", queue="red")
        await bury(stage, "c", name="post")
        await bury(stage, "d", reason="lost")
        assert set((await stage.store.replay(which, 10)).ids) == expected

    async def test_the_bound_holds_and_the_cursor_goes_on(self, stage: Harness) -> None:
        await bury(stage, "a", "b", "c", "d", "e")
        seen: list[str] = []
        after, calls = None, 0
        while after is not None or not calls:
            replayed = await stage.store.replay(EVERY_JOB, 2, after)
            assert len(replayed.ids) <= 2
            seen, after, calls = seen + replayed.ids, replayed.next, calls + 1
        assert (sorted(seen), calls) == (["a", "b", "c", "d", "e"], 3)

    async def test_a_replayed_job_is_fenced_from_its_old_token(self, stage: Harness) -> None:
        await stage.add("a")
        worker = await stage.worker()
        old = (await worker.take_one()).lease
        await worker.settle(Failed(old, "permanent", OOPS))
        await stage.store.replay(EVERY_JOB, 10)
        new = (await worker.take_one()).lease
        assert new.token.fence > old.token.fence
        assert await worker.settle(Completed(old)) != [Settled.DONE]
        assert await stage.state("a") is State.PROCESSING

    async def test_a_replayed_job_can_fail_and_be_replayed_again(self, stage: Harness) -> None:
        await bury(stage, "a")
        for n in range(2, 5):
            await stage.store.replay(EVERY_JOB, 10)
            worker = await stage.worker()
            error = AttemptError(1, "failure", "ValueError", f"try {n}")
            await worker.settle(Failed((await worker.take_one()).lease, "exhausted", error))
            record = await stage.store.get("a")
            assert (record.failures, len(record.history), record.reason) == (1, n, "exhausted")

    async def test_a_bounded_replay_goes_past_what_is_held(self, stage: Harness) -> None:
        """Those whose key another job holds are told once, not met for ever."""
        await stage.put(stage.job("b", options=KEY))
        await bury(stage, "a", "b", "c")
        await stage.put(stage.job("d", options=KEY))
        found: list[Replayed] = [await stage.store.replay(EVERY_JOB, 1)]
        while (after := found[-1].next) is not None:
            found.append(await stage.store.replay(EVERY_JOB, 1, after))
        assert len(found) == 3
        assert sorted(job_id for one in found for job_id in one.ids) == ["a", "c"]
        assert [job_id for one in found for job_id in one.held] == ["b"]

    async def test_of_two_with_one_key_one_is_replayed(self, stage: Harness) -> None:
        for job_id in ("a", "b"):
            await stage.put(stage.job(job_id, options=KEY))
            await bury(stage, job_id)
        replayed = await stage.store.replay(EVERY_JOB, 10)
        assert (len(replayed.ids), len(replayed.held)) == (1, 1)
        assert {*replayed.ids, *replayed.held} == {"a", "b"}

    async def test_a_replayed_job_is_due_now(self, stage: Harness) -> None:
        """It stands behind those that were due before."""
        await bury(stage, "a")
        await stage.add("b")
        stage.clock.advance(1.0)
        await stage.store.replay(EVERY_JOB, 10)
        assert ids(await (await stage.worker()).take(9)) == ["b", "a"]

    async def test_a_replayed_job_keeps_its_place_in_lists(self, stage: Harness) -> None:
        """And its enqueue order among those due at the same moment."""
        await bury(stage, "a")
        await stage.add("b")
        await stage.store.replay(EVERY_JOB, 10)
        assert [job.id for job in (await stage.store.list_jobs()).jobs] == ["b", "a"]
        assert ids(await (await stage.worker()).take(9)) == ["a", "b"]

    async def test_a_replayed_job_of_a_paused_queue_waits(self, stage: Harness) -> None:
        await bury(stage, "a")
        await stage.store.pause("default", paused=True)
        assert (await stage.store.replay(EVERY_JOB, 10)).ids == ["a"]
        assert await (await stage.worker()).take(9) == []


class Deleting:
    """`delete`."""

    @pytest.mark.parametrize("state", STANDING)
    async def test_only_what_is_finished_is_deleted(self, stage: Harness, state: str) -> None:
        job_id = await STANDING[state](stage)
        before = await stage.store.get(job_id)
        deleted = await stage.store.delete(JobFilter(ids=(job_id,)), 10)
        if before.state.finished:
            assert deleted == [job_id]
            with pytest.raises(JobNotFound):
                await stage.store.get(job_id)
        else:
            assert deleted == []
            assert await stage.store.get(job_id) == before

    async def test_the_id_of_a_deleted_job_is_new_again(self, stage: Harness) -> None:
        await bury(stage, "a")
        await stage.store.delete(EVERY_JOB, 10)
        await stage.put(stage.job("a", payload=b"[]"))
        record = await stage.store.get("a")
        assert (record.state, record.history, record.failures) == (State.PENDING, [], 0)

    async def test_the_bound_holds(self, stage: Harness) -> None:
        await bury(stage, "a", "b", "c")
        first = await stage.store.delete(EVERY_JOB, 2)
        second = await stage.store.delete(EVERY_JOB, 2)
        assert (len(first), len(second)) == (2, 1)
        assert {*first, *second} == {"a", "b", "c"}
        assert await stage.store.delete(EVERY_JOB, 2) == []

    async def test_a_filter_chooses_what_is_deleted(self, stage: Harness) -> None:
        await bury(stage, "a", reason="lost")
        await bury(stage, "b")
        await stage.add("c", "d")
        await stage.store.cancel("d")
        which = JobFilter(states=frozenset({State.FAILED, State.PENDING}), reason="lost")
        assert await stage.store.delete(which, 10) == ["a"]
        assert await stage.store.delete(JobFilter(states=frozenset({State.PENDING})), 10) == []
        assert await stage.store.delete(EVERY_JOB, 10) != []
        assert (await stage.store.list_jobs()).jobs[0].id == "c"

    async def test_deleting_hands_nothing_out_again(self, stage: Harness) -> None:
        await bury(stage, "a")
        await stage.add("b")
        await stage.store.delete(EVERY_JOB, 10)
        assert ids(await (await stage.worker()).take(5)) == ["b"]
