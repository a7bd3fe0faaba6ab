"""Unique keys that are held in chosen states, and enqueues that replace the waiting holder."""

from __future__ import annotations

import pytest

from nimburion.core.job import (
    FINISHED,
    REPEAT_WINDOW,
    WAITING,
    Enqueued,
    JobOptions,
    JobRecord,
    NewJob,
    State,
    sort_states,
)
from nimburion.core.maintenance import Retention
from nimburion.core.queries import EVERY_JOB, JobFilter
from nimburion.core.schedules import Fired, ScheduleRecord, put_schedule
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Released,
    Retried,
    Settlement,
)
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import FAILURE, Harness

WHILE_WAITING = sort_states(WAITING)
WAITING_KEY = JobOptions(unique_key="k", unique_while=WHILE_WAITING)
REPLACING = JobOptions(unique_key="k", on_duplicate="replace")
DEBOUNCED = JobOptions(
    unique_key="k", unique_while=WHILE_WAITING, on_duplicate="replace", max_wait=60.0
)
LARGE = b'"%s"' % (b"x" * 10_000)


def keyed(
    job_id: str, options: JobOptions = REPLACING, payload: bytes = b"{}", **fields: object
) -> NewJob:
    """Return a job with a unique key."""
    return NewJob(job_id, "mail", "default", payload, options=options, **fields)  # type: ignore[arg-type]


async def move_to(harness: Harness, job_id: str, state: State) -> None:
    """Move the only waiting job to a state."""
    if state in {State.PENDING, State.SCHEDULED}:
        return
    worker = await harness.worker()
    lease = (await worker.take_one()).lease
    assert lease.job_id == job_id
    settlements: dict[State, Settlement] = {
        State.RETRYING: Retried(lease, 600.0, FAILURE),
        State.COMPLETED: Completed(lease),
        State.FAILED: Failed(lease, "permanent", FAILURE),
        State.CANCELLED: Cancelled(lease),
    }
    if state in settlements:
        await worker.settle(settlements[state])


async def read(harness: Harness, job_id: str) -> JobRecord:
    """Return a job with its payload."""
    return await harness.backend.reads.get_job(job_id)


class UniqueKeyModes:
    """Unique keys in chosen states, and replacing."""

    # Chosen states

    async def test_a_key_while_waiting_is_free_when_its_job_starts(self, harness: Harness) -> None:
        await harness.put(keyed("a", WAITING_KEY))
        assert await harness.enqueue(keyed("b", WAITING_KEY)) == [Enqueued("a", "taken")]
        worker = await harness.worker()
        await worker.take_one()
        assert await harness.enqueue(keyed("c", WAITING_KEY)) == [Enqueued("c", "created")]
        assert await harness.enqueue(keyed("d", WAITING_KEY)) == [Enqueued("c", "taken")]

    async def test_a_job_that_waits_again_holds_its_key_again(self, harness: Harness) -> None:
        await harness.put(keyed("a", WAITING_KEY))
        worker = await harness.worker()
        await worker.settle(Released((await worker.take_one()).lease))
        assert await harness.enqueue(keyed("b", WAITING_KEY)) == [Enqueued("a", "taken")]
        await worker.settle(Retried((await worker.take_one()).lease, 0.0, FAILURE))
        assert await harness.enqueue(keyed("b", WAITING_KEY)) == [Enqueued("a", "taken")]
        await worker.take_one()
        await harness.lose(worker)
        assert await harness.enqueue(keyed("b", WAITING_KEY)) == [Enqueued("a", "taken")]

    async def test_a_job_whose_key_was_taken_retries_without_it(self, harness: Harness) -> None:
        await harness.put(keyed("a", WAITING_KEY))
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.put(keyed("b", WAITING_KEY))
        await worker.settle(Retried(lease, 0.0, FAILURE))
        assert await harness.enqueue(keyed("c", WAITING_KEY)) == [Enqueued("b", "taken")]
        retried, second = await worker.take(2)
        assert {retried.lease.job_id, second.lease.job_id} == {"a", "b"}
        await worker.settle(Completed(retried.lease), Completed(second.lease))
        assert await harness.enqueue(keyed("c", WAITING_KEY)) == [Enqueued("c", "created")]

    async def test_the_end_of_the_first_job_leaves_the_key_of_the_next(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a", WAITING_KEY))
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.put(keyed("b", WAITING_KEY))
        await worker.settle(Completed(lease))
        assert await harness.enqueue(keyed("c", WAITING_KEY)) == [Enqueued("b", "taken")]

    @pytest.mark.parametrize("state", [state for state in State if state is not State.SUSPENDED])
    async def test_the_chosen_states_hold_the_key(self, harness: Harness, state: State) -> None:
        """With `unique_for`, a finished job can hold its key too."""
        after = 60.0 if state is State.SCHEDULED else 0.0
        for states, outcome in (((state,), "taken"), (set(State) - {state}, "created")):
            options = JobOptions(
                unique_key=outcome, unique_for=3_600.0, unique_while=sort_states(states)
            )
            await harness.put(keyed(outcome, options, after=after))
            await move_to(harness, outcome, state)
            assert await harness.state(outcome) is state
            (result,) = await harness.enqueue(keyed(f"{outcome}-2", options))
            assert result.outcome == outcome
            await harness.backend.producing.cancel(outcome)

    async def test_a_refused_call_leaves_the_key_of_a_job_that_runs(self, harness: Harness) -> None:
        """The job waits again, so it holds its key again."""
        await harness.put(keyed("a", WAITING_KEY))
        worker = await harness.worker()
        lease = (await worker.take_one()).lease
        await harness.add("x")
        results = await harness.enqueue(
            keyed("b", WAITING_KEY), harness.job("x", payload=b"[]"), keyed("c", WAITING_KEY)
        )
        assert [result.outcome for result in results] == ["refused", "conflict", "taken"]
        await worker.settle(Released(lease))
        assert await harness.enqueue(keyed("b", WAITING_KEY)) == [Enqueued("a", "taken")]

    async def test_a_key_of_chosen_states_ends_with_its_time(self, harness: Harness) -> None:
        options = JobOptions(
            unique_key="k", unique_for=60.0, unique_while=(State.PENDING, State.COMPLETED)
        )
        await harness.put(keyed("a", options))
        await move_to(harness, "a", State.COMPLETED)
        harness.clock.advance(59.0)
        assert await harness.enqueue(keyed("b", options)) == [Enqueued("a", "taken")]
        harness.clock.advance(1.0)
        assert await harness.enqueue(keyed("b", options)) == [Enqueued("b", "created")]

    async def test_deleting_the_job_frees_a_key_of_chosen_states(self, harness: Harness) -> None:
        options = JobOptions(unique_key="k", unique_for=60.0, unique_while=sort_states(FINISHED))
        await harness.put(keyed("a", options))
        await harness.backend.producing.cancel("a")
        assert await harness.enqueue(keyed("b", options)) == [Enqueued("a", "taken")]
        assert await delete(harness.backend, JobFilter(ids=("a",)), 10) == ["a"]
        assert await harness.enqueue(keyed("b", options)) == [Enqueued("b", "created")]

    async def test_replay_takes_a_key_while_waiting_that_no_waiting_job_holds(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a", WAITING_KEY))
        await move_to(harness, "a", State.FAILED)
        await harness.put(keyed("b", WAITING_KEY))
        replayed = await replay(harness.backend, JobFilter(ids=("a",)), 10)
        assert (replayed.ids, replayed.held) == ([], ["a"])
        worker = await harness.worker()
        await worker.take_one()
        assert (await replay(harness.backend, JobFilter(ids=("a",)), 10)).ids == ["a"]
        assert await harness.enqueue(keyed("c", WAITING_KEY)) == [Enqueued("a", "taken")]

    async def test_one_call_replays_one_job_of_a_key_while_waiting(self, harness: Harness) -> None:
        for job_id in ("a", "b"):
            await harness.put(keyed(job_id, WAITING_KEY))
            await move_to(harness, job_id, State.FAILED)
        replayed = await replay(harness.backend, EVERY_JOB, 10)
        assert (replayed.ids, replayed.held) == (["b"], ["a"])

    async def test_the_explanation_names_only_a_job_that_holds_the_key_now(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a", WAITING_KEY))
        await move_to(harness, "a", State.FAILED)
        await harness.put(keyed("b", WAITING_KEY))
        assert (await harness.backend.reads.explain_job("a")).key_holder == "b"
        worker = await harness.worker()
        await worker.take_one()
        assert (await harness.backend.reads.explain_job("a")).key_holder is None

    # Replacing

    async def test_a_waiting_job_takes_what_the_new_one_brings(self, harness: Harness) -> None:
        await harness.put(keyed("a", JobOptions(unique_key="k", tenant="old"), b"1"))
        harness.clock.advance(5.0)
        options = JobOptions(unique_key="k", on_duplicate="replace", tenant="new", max_retries=9)
        new = NewJob("b", "mail", "fast", b"2", 7, after=30.0, options=options)
        assert await harness.enqueue(new) == [Enqueued("a", "replaced")]
        job = await read(harness, "a")
        assert (job.payload, job.queue, job.priority, job.options) == (b"2", "fast", 7, options)
        assert job.state is State.SCHEDULED
        assert (job.due - job.created_at, job.failures) == (35.0, 0)
        assert (await harness.backend.reads.count_jobs())[State.SCHEDULED] == 1
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1
        worker = await harness.worker(queues=("default", "fast"))
        assert await worker.take() == []
        harness.clock.advance(30.0)
        delivery = await worker.take_one()
        assert (delivery.lease.job_id, delivery.payload, delivery.options) == ("a", b"2", options)
        await worker.settle(Completed(delivery.lease))
        assert await harness.enqueue(keyed("c")) == [Enqueued("c", "created")]

    async def test_a_scheduled_job_that_is_replaced_can_be_due_at_once(
        self, harness: Harness
    ) -> None:
        """It keeps its place in the enqueue order. An earlier due time goes first."""
        await harness.put(keyed("a", after=600.0))
        await harness.put(harness.job("x"))
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 2
        early = keyed("c", payload=b"3", at=harness.clock.now() - 100.0)
        assert await harness.enqueue(early) == [Enqueued("a", "replaced")]
        worker = await harness.worker()
        deliveries = await worker.take(5)
        assert [(d.lease.job_id, d.payload) for d in deliveries] == [("a", b"3"), ("x", b"{}")]

    async def test_a_replaced_job_waits_in_its_new_place_only(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        for n, priority in enumerate((9, 0, 5)):
            job = keyed(f"r{n}", payload=b"%d" % n, priority=priority)
            assert await harness.enqueue(job) == [Enqueued("a", "replaced")]
        worker = await harness.worker()
        assert [delivery.payload for delivery in await worker.take(5)] == [b"2"]
        assert await worker.take(5) == []
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 0

    async def test_a_large_payload_and_a_small_one_replace_each_other(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a", payload=LARGE))
        await harness.enqueue(keyed("b", payload=b"1"))
        assert (await read(harness, "a")).payload == b"1"
        await harness.enqueue(keyed("c", payload=LARGE))
        assert (await read(harness, "a")).payload == LARGE
        worker = await harness.worker()
        assert (await worker.take_one()).payload == LARGE

    async def test_a_job_that_runs_is_not_replaced(self, harness: Harness) -> None:
        await harness.put(keyed("a", payload=b"1"))
        worker = await harness.worker()
        assert (await worker.take_one()).payload == b"1"
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "taken")]
        assert (await read(harness, "a")).payload == b"1"

    async def test_a_finished_job_that_still_holds_its_key_is_not_replaced(
        self, harness: Harness
    ) -> None:
        options = JobOptions(unique_key="k", unique_for=60.0, on_duplicate="replace")
        await harness.put(keyed("a", options))
        await move_to(harness, "a", State.FAILED)
        assert await harness.enqueue(keyed("b", options)) == [Enqueued("a", "taken")]
        await delete(harness.backend, JobFilter(ids=("a",)), 10)
        assert await harness.enqueue(keyed("b", options)) == [Enqueued("a", "taken")]

    async def test_a_retry_takes_the_payload_and_keeps_its_backoff(self, harness: Harness) -> None:
        await harness.put(keyed("a", payload=b"1"))
        worker = await harness.worker()
        await worker.settle(Retried((await worker.take_one()).lease, 60.0, FAILURE))
        retry_at = (await read(harness, "a")).due
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]
        job = await read(harness, "a")
        assert (job.payload, job.due, job.state) == (b"2", retry_at, State.RETRYING)
        assert (job.failures, len(job.history)) == (1, 1)
        later = keyed("c", payload=b"3", after=90.0)
        assert await harness.enqueue(later) == [Enqueued("a", "replaced")]
        assert await worker.take() == []
        harness.clock.advance(90.0)
        delivery = await worker.take_one()
        assert (delivery.payload, delivery.failures) == (b"3", 1)

    async def test_a_released_job_is_replaced_where_it_waits(self, harness: Harness) -> None:
        await harness.put(keyed("a", payload=b"1"))
        worker = await harness.worker()
        await worker.settle(Released((await worker.take_one()).lease, 60.0))
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]
        assert await harness.state("a") is State.PENDING
        delivery = await worker.take_one()
        assert (delivery.payload, delivery.failures) == (b"2", 0)
        assert await worker.settle(Completed(delivery.lease)) == ["done"]

    async def test_a_replaced_job_waits_no_longer_than_max_wait(self, harness: Harness) -> None:
        first = harness.clock.now()
        await harness.put(keyed("a", DEBOUNCED, after=20.0))
        dues = []
        for n in range(5):
            harness.clock.advance(18.0)
            again = keyed(f"r{n}", DEBOUNCED, b"%d" % n, after=20.0)
            assert await harness.enqueue(again) == [Enqueued("a", "replaced")]
            dues.append(round((await read(harness, "a")).due - first, 3))
        assert dues == [38.0, 56.0, 60.0, 72.0, 90.0]

    # Repeats

    async def test_a_repeat_changes_nothing(self, harness: Harness) -> None:
        """The reply was lost: the call is repeated after another one has replaced the job, while
        it runs, and after it has finished.
        """
        await harness.put(keyed("a", payload=b"1"))
        lost = keyed("b", payload=b"2", after=30.0)
        assert await harness.enqueue(lost) == [Enqueued("a", "replaced")]
        due = (await read(harness, "a")).due
        harness.clock.advance(10.0)
        assert await harness.enqueue(lost) == [Enqueued("a", "replaced")]
        assert (await read(harness, "a")).due == due
        assert await harness.enqueue(keyed("c", payload=b"3")) == [Enqueued("a", "replaced")]
        assert await harness.enqueue(lost) == [Enqueued("a", "replaced")]
        worker = await harness.worker()
        delivery = await worker.take_one()
        assert delivery.payload == b"3"
        assert await harness.enqueue(lost) == [Enqueued("a", "replaced")]
        await worker.settle(Completed(delivery.lease))
        assert await harness.enqueue(lost, lost) == [Enqueued("a", "replaced")] * 2
        assert sum((await harness.backend.reads.count_jobs()).values()) == 1

    async def test_a_repeat_with_another_body_conflicts(self, harness: Harness) -> None:
        await harness.put(keyed("a"))
        await harness.enqueue(keyed("b", payload=b"2"))
        assert await harness.enqueue(keyed("b", payload=b"3")) == [Enqueued("b", "conflict")]
        assert (await read(harness, "a")).payload == b"2"

    @pytest.mark.parametrize("others", [0, 600])
    async def test_an_id_that_replaced_a_job_can_be_that_of_another_job(
        self, harness: Harness, others: int
    ) -> None:
        """Only a job that may replace another is taken for a repeat, also in a call of many."""
        await harness.put(keyed("a"))
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]
        many = [harness.job() for _ in range(others)]
        again = keyed("b", JobOptions(unique_key="other"), b"3")
        assert (await harness.enqueue(*many, again))[-1] == Enqueued("b", "created")

    async def test_the_first_enqueue_can_be_repeated_after_its_job_was_replaced(
        self, harness: Harness
    ) -> None:
        await harness.put(keyed("a", payload=b"1"))
        await harness.enqueue(keyed("b", payload=b"2"))
        assert await harness.enqueue(keyed("a", payload=b"1")) == [Enqueued("a", "exists")]
        assert (await read(harness, "a")).payload == b"2"
        await move_to(harness, "a", State.COMPLETED)
        assert await harness.enqueue(keyed("a", payload=b"1")) == [Enqueued("a", "exists")]

    async def test_a_repeat_is_recognised_for_a_time(self, harness: Harness) -> None:
        await harness.put(keyed("a", after=3_600.0))
        await harness.enqueue(keyed("b", payload=b"2", after=3_600.0))
        await harness.enqueue(keyed("c", payload=b"3", after=3_600.0))
        harness.clock.advance(REPEAT_WINDOW - 1.0)
        await harness.backend.maintenance.prune(Retention(), 100)
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]
        assert (await read(harness, "a")).payload == b"3"
        harness.clock.advance(1.0)
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]
        assert (await read(harness, "a")).payload == b"2"

    # Several jobs in one call

    async def test_a_call_may_replace_its_own_job(self, harness: Harness) -> None:
        jobs = [keyed(f"{n}", payload=b"%d" % n, priority=n) for n in range(3)]
        assert await harness.enqueue(*jobs, harness.job("x")) == [
            Enqueued("0", "created"),
            Enqueued("0", "replaced"),
            Enqueued("0", "replaced"),
            Enqueued("x", "created"),
        ]
        assert (await read(harness, "0")).payload == b"2"
        assert (await harness.backend.reads.count_jobs())[State.PENDING] == 2
        assert await harness.enqueue(*jobs) == [
            Enqueued("0", "exists"),
            Enqueued("0", "replaced"),
            Enqueued("0", "replaced"),
        ]

    async def test_a_call_may_replace_a_stored_job_twice(self, harness: Harness) -> None:
        await harness.put(keyed("a", payload=LARGE))
        results = await harness.enqueue(keyed("b", payload=LARGE[:-1]), keyed("c", payload=b"3"))
        assert results == [Enqueued("a", "replaced")] * 2
        assert (await read(harness, "a")).payload == b"3"
        worker = await harness.worker()
        assert [delivery.payload for delivery in await worker.take(5)] == [b"3"]

    async def test_a_refused_call_replaces_nothing(self, harness: Harness) -> None:
        await harness.put(keyed("a", payload=b"1"))
        await harness.add("x")
        before = await read(harness, "a")
        results = await harness.enqueue(
            keyed("b", payload=b"2"), harness.job("y"), harness.job("x", payload=b"[]")
        )
        assert [result.outcome for result in results] == ["refused", "refused", "conflict"]
        assert await read(harness, "a") == before
        assert await harness.enqueue(keyed("b", payload=b"2")) == [Enqueued("a", "replaced")]

    async def test_a_tick_may_replace_the_waiting_job(self, harness: Harness) -> None:
        await harness.put(keyed("a", payload=b"1"))
        await put_schedule(harness.backend, ScheduleRecord(name="nightly", spec=b"{}"))
        fired = await harness.backend.producing.fire(
            "nightly", None, 100.0, keyed("b", payload=b"2"), "allow"
        )
        assert fired == Fired("fired", "a")
        assert (await read(harness, "a")).payload == b"2"
