"""Enqueue calls share a way into the backend, and each caller hears only of its own job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest

from nimburion.core.errors import BackendFull, BackendUnavailable, EnqueueBlocked, Unstorable
from nimburion.core.job import Enqueued, JobOptions, NewJob
from nimburion.jobs.client.batching import MAX_BATCH, EnqueueBatcher, choose_limit
from nimburion.testing import FakeClock
from tests.simulation.loop import SimulatedLoop, elapse, run
from tests.simulation.world import LocalClock


class FakeBackend:
    """Answers enqueue calls as the test says, when the test says."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.proceed = asyncio.Event()
        self.proceed.set()
        self.entered = asyncio.Event()
        self.errors: list[Exception] = []
        self.answer: Callable[[Sequence[NewJob]], list[Enqueued]] = all_created

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        self.calls.append([job.id for job in jobs])
        self.entered.set()
        await self.proceed.wait()
        if self.errors:
            raise self.errors.pop(0)
        return self.answer(jobs)


def all_created(jobs: Sequence[NewJob]) -> list[Enqueued]:
    return [Enqueued(job.id, "created") for job in jobs]


def new(job_id: str) -> NewJob:
    return NewJob(job_id, "n", "q", b"{}")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def make_batcher(backend: FakeBackend, clock: FakeClock, timeout: float = 5.0) -> EnqueueBatcher:
    return EnqueueBatcher(backend, clock, timeout)  # type: ignore[arg-type]


async def behind_a_first(
    way: EnqueueBatcher, backend: FakeBackend, ids: str
) -> list[asyncio.Task[Enqueued]]:
    """One call in flight, and callers that wait behind it."""
    backend.proceed.clear()
    backend.entered.clear()
    tasks = [asyncio.create_task(way.enqueue(new("first")))]
    await backend.entered.wait()
    tasks += [asyncio.create_task(way.enqueue(new(one))) for one in ids]
    await asyncio.sleep(0)
    return tasks


async def test_alone_a_call_leaves_at_once(clock: FakeClock) -> None:
    backend = FakeBackend()
    way = make_batcher(backend, clock)
    assert await way.enqueue(new("a")) == Enqueued("a", "created")
    assert await way.enqueue(new("b")) == Enqueued("b", "created")
    assert backend.calls == [["a"], ["b"]]


async def test_what_comes_during_a_call_shares_the_next(clock: FakeClock) -> None:
    backend = FakeBackend()
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "abc")
    backend.proceed.set()
    assert [result.id for result in await asyncio.gather(*tasks)] == ["first", "a", "b", "c"]
    assert backend.calls == [["first"], ["a", "b", "c"]]


async def test_a_neighbours_conflict_stays_its_own(clock: FakeClock) -> None:
    backend = FakeBackend()

    def refuse_b(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if not any(job.id == "b" for job in jobs):
            return all_created(jobs)
        return [Enqueued(job.id, "conflict" if job.id == "b" else "refused") for job in jobs]

    backend.answer = refuse_b
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "abc")
    backend.proceed.set()
    outcomes = {one.id: one.outcome for one in await asyncio.gather(*tasks)}
    assert outcomes == {"first": "created", "a": "created", "b": "conflict", "c": "created"}
    assert backend.calls == [["first"], ["a", "b", "c"], ["a", "c"]]


async def test_a_neighbours_unstorable_data_stays_its_own(clock: FakeClock) -> None:
    backend = FakeBackend()

    def choke_on_b(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if any(job.id == "b" for job in jobs):
            raise Unstorable("no")
        return all_created(jobs)

    backend.answer = choke_on_b
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "abcd")
    backend.proceed.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [Enqueued, Enqueued, Unstorable, Enqueued, Enqueued]


@pytest.mark.parametrize("blocked", ["first", "b", "keyed"])
async def test_a_blocked_job_is_repeated_on_its_own(clock: FakeClock, blocked: str) -> None:
    backend = FakeBackend()
    is_open = True

    def refuse_blocked(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if is_open and any(job.id == blocked for job in jobs):
            raise EnqueueBlocked("another transaction is still open")
        return all_created(jobs)

    backend.answer = refuse_blocked
    batcher = make_batcher(backend, clock)
    tasks = await behind_a_first(batcher, backend, "abcd")
    keyed = NewJob("keyed", "n", "q", b"{}", options=JobOptions(unique_key="k"))
    tasks.append(asyncio.create_task(batcher.enqueue(keyed)))
    await asyncio.sleep(0)
    backend.proceed.set()
    ids = ["first", *"abcd", "keyed"]
    others = [task for job_id, task in zip(ids, tasks, strict=True) if job_id != blocked]
    assert {one.outcome for one in await asyncio.gather(*others)} == {"created"}
    assert (await batcher.enqueue(new("later"))).outcome == "created"
    (waiting,) = [task for task in tasks if task not in others]
    assert not waiting.done()
    is_open = False
    await settled(waiting, clock)
    assert waiting.result() == Enqueued(blocked, "created")
    stored = [job_id for call in backend.calls if blocked not in call for job_id in call]
    assert sorted(stored) == sorted({*ids, "later"} - {blocked})


async def test_a_job_that_stays_blocked_is_not_stored(clock: FakeClock) -> None:
    backend = FakeBackend()
    backend.errors = [EnqueueBlocked("a transaction is still open") for _ in range(500)]
    batcher = make_batcher(backend, clock)
    tasks = await behind_a_first(batcher, backend, "a")
    backend.proceed.set()
    for task in tasks:
        await settled(task, clock)
        error = task.exception()
        assert isinstance(error, BackendUnavailable)
        assert str(error).startswith("a transaction is still open: job ")
        assert error.outcome == "not applied"


async def test_a_blocked_caller_that_gave_up_is_not_repeated(clock: FakeClock) -> None:
    backend, refused = FakeBackend(), asyncio.Event()

    def refuse_a(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if any(job.id == "a" for job in jobs):
            refused.set()
            raise EnqueueBlocked("a transaction is still open")
        return all_created(jobs)

    backend.answer = refuse_a
    batcher = make_batcher(backend, clock)
    tasks = await behind_a_first(batcher, backend, "a")
    backend.proceed.set()
    await refused.wait()
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    clock.advance(5.0)
    await batcher.enqueue(new("b"))
    assert backend.calls == [["first"], ["a"], ["b"]]


async def test_a_full_backend_is_reported_to_each_caller(clock: FakeClock) -> None:
    backend = FakeBackend()
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "ab")
    backend.errors = [BackendFull("full"), BackendFull("full")]
    backend.proceed.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [BackendFull] * 3
    backend.errors = []
    assert (await make_batcher(backend, clock).enqueue(new("a"))).outcome == "created"


async def test_a_caller_that_gave_up_while_waiting_is_not_stored(clock: FakeClock) -> None:
    backend = FakeBackend()
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "ab")
    tasks[1].cancel()
    await asyncio.sleep(0)
    backend.proceed.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert backend.calls == [["first"], ["b"]]


async def test_those_behind_a_cancelled_first_are_served(clock: FakeClock) -> None:
    backend = FakeBackend()
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "ab")
    tasks[0].cancel()
    backend.proceed.set()
    results = await asyncio.gather(*tasks[1:])
    assert [one.id for one in results] == ["a", "b"]
    assert tasks[0].cancelled()


async def settled(task: asyncio.Task[Enqueued], clock: FakeClock) -> None:
    """Let the clock run until the task is done."""
    async with asyncio.timeout(10):
        while not task.done():
            await asyncio.sleep(0)
            if clock.sleepers:
                clock.advance(0.05)


async def test_an_unanswered_call_is_repeated_by_id(clock: FakeClock) -> None:
    backend = FakeBackend()
    backend.errors = [BackendUnavailable("gone"), BackendUnavailable("gone", outcome="not applied")]
    task = asyncio.create_task(make_batcher(backend, clock).enqueue(new("a")))
    await settled(task, clock)
    assert (await task).outcome == "created"
    assert backend.calls == [["a"]] * 3


async def test_a_backend_that_does_not_answer_is_given_up(clock: FakeClock) -> None:
    backend = FakeBackend()
    backend.proceed.clear()
    with pytest.raises(BackendUnavailable, match=r"no answer within 0\.02 s") as failed:
        await make_batcher(backend, clock, timeout=0.02).enqueue(new("a"))
    assert failed.value.outcome == "unknown"


@pytest.mark.parametrize(
    ("outcomes", "verdict", "message"),
    [
        (["not applied"] * 100, "not applied", "job a was not stored"),
        (["unknown"] + ["not applied"] * 99, "unknown", "job a may have been stored"),
        (["applied"] * 100, "unknown", "job a may have been stored"),
    ],
)
async def test_after_the_timeout_the_outcome_is_reported(
    clock: FakeClock, outcomes: list[str], verdict: str, message: str
) -> None:
    backend = FakeBackend()
    backend.errors = [BackendUnavailable("gone", outcome=one) for one in outcomes]  # type: ignore[arg-type]
    began = clock.monotonic()
    task = asyncio.create_task(make_batcher(backend, clock).enqueue(new("a")))
    await settled(task, clock)
    with pytest.raises(BackendUnavailable) as failed:
        await task
    assert (failed.value.job_id, failed.value.outcome) == ("a", verdict)
    assert message in str(failed.value)
    assert isinstance(failed.value.__cause__, BackendUnavailable)
    assert 3.0 <= clock.monotonic() - began <= 5.0
    assert len(backend.calls) > 5


async def test_those_who_wait_through_an_outage_each_hear_of_their_own_job(
    clock: FakeClock,
) -> None:
    backend = FakeBackend()
    tasks = await behind_a_first(make_batcher(backend, clock), backend, "ab")
    backend.errors = [BackendUnavailable("gone", outcome="not applied") for _ in range(200)]
    began = clock.monotonic()
    backend.proceed.set()
    for task in tasks:
        await settled(task, clock)
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(error, "job_id", None) for error in errors] == ["first", "a", "b"]
    assert clock.monotonic() - began <= 5.5  # not one time after the other


async def test_an_unanswered_batch_has_its_own_message(clock: FakeClock) -> None:
    backend = FakeBackend()
    backend.errors = [BackendUnavailable("gone")]
    with pytest.raises(BackendUnavailable, match="the 2 jobs may have been stored") as failed:
        await make_batcher(backend, clock, timeout=0.0).enqueue_all([new("a"), new("b")])
    assert failed.value.job_id is None


# --- each caller has a time of its own; on virtual time -------------------------------------------

TIMEOUT = 5.0
Answers = Callable[[Sequence[NewJob]], Awaitable[list[Enqueued]]]


class Trouble:
    """A backend in trouble: `answer` says what becomes of each call."""

    def __init__(self, answer: Answers) -> None:
        self.enqueue = answer


async def never(_: Sequence[NewJob]) -> list[Enqueued]:
    await asyncio.Event().wait()
    raise AssertionError


async def late(_: Sequence[NewJob]) -> list[Enqueued]:
    await elapse(TIMEOUT - 0.2)
    raise BackendUnavailable("gone")


async def late_and_known(_: Sequence[NewJob]) -> list[Enqueued]:
    await elapse(3.0)
    raise BackendUnavailable("no route", outcome="not applied")


CallOutcome = tuple[str, float, Enqueued | BackendUnavailable]


async def called(way: EnqueueBatcher, job_id: str, at: float) -> CallOutcome:
    """Enqueue a job at some time; what came of it, after how long."""
    loop = asyncio.get_running_loop()
    await elapse(at)
    try:
        what: Enqueued | BackendUnavailable = await way.enqueue(new(job_id))
    except BackendUnavailable as error:
        what = error
    assert getattr(what, "job_id", job_id) == job_id
    return job_id, loop.time() - at, what


def all_called(answer: Answers, moments: Sequence[float]) -> list[CallOutcome]:
    """Callers at these moments; what came of each call."""
    loop = SimulatedLoop(Random(1))

    async def run_scenario() -> list[CallOutcome]:
        way = EnqueueBatcher(Trouble(answer), LocalClock(loop), TIMEOUT)  # type: ignore[arg-type]
        return await asyncio.gather(*(called(way, f"{n}", at) for n, at in enumerate(moments)))

    return run(loop, run_scenario())


@pytest.mark.parametrize("answer", [never, late, late_and_known])
def test_no_caller_waits_longer_than_its_time(answer: Answers) -> None:
    """However many share the call before, and however late they come."""
    moments = [0.0, *(0.01 + 0.5 * n for n in range(40)), *[3.0] * (2 * MAX_BATCH)]
    for job_id, seconds, what in all_called(answer, moments):
        assert isinstance(what, BackendUnavailable)
        assert seconds <= choose_limit(TIMEOUT) + 0.001, f"{job_id} after {seconds:.2f} s"
        assert seconds >= TIMEOUT - 1.0, f"{job_id} after {seconds:.2f} s"


def test_a_job_that_never_left_was_not_stored() -> None:
    sent: set[str] = set()

    async def never_answered(jobs: Sequence[NewJob]) -> list[Enqueued]:
        sent.update(job.id for job in jobs)
        return await never(jobs)

    outcomes_in_order = all_called(never_answered, [0.0, *[0.1] * (MAX_BATCH + 7)])
    outcomes = {job_id: getattr(what, "outcome", None) for job_id, _, what in outcomes_in_order}
    assert {job_id for job_id, outcome in outcomes.items() if outcome == "unknown"} == sent
    assert list(outcomes.values()).count("not applied") == 7


def test_what_was_refused_in_time_is_not_stored_later() -> None:
    seen: list[str] = []

    async def stuck_once(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if not seen:
            seen.append("stuck")
            await never(jobs)
        seen.extend(job.id for job in jobs)
        return all_created(jobs)

    outcomes_in_order = all_called(stuck_once, [0.0, 0.1, 0.4, 4.0, 9.0])
    kinds = [type(what) for _, _, what in outcomes_in_order]
    assert kinds == [BackendUnavailable, Enqueued, Enqueued, Enqueued, Enqueued]
    assert seen == ["stuck", "1", "2", "3", "4"]


def test_each_enqueue_has_its_own_timeout() -> None:
    """The backend is back after seven seconds: in time for one, too late for the other."""

    async def back_after_seven(jobs: Sequence[NewJob]) -> list[Enqueued]:
        await elapse(0.1)
        if asyncio.get_running_loop().time() < 7.0:
            raise BackendUnavailable("no route", outcome="not applied")
        return all_created(jobs)

    first, second, third = all_called(back_after_seven, [0.0, 0.05, 4.9])
    assert isinstance(first[2], BackendUnavailable)
    assert isinstance(second[2], BackendUnavailable)
    assert second[2].outcome == "not applied"
    assert third[2] == Enqueued("2", "created")


# --- jobs that an open transaction blocks ---------------------------------------------------------

LOCK_WAIT = 0.2
"""How long the backend waits for the open transaction in each call."""


class BlockingBackend:
    """A backend on virtual time, in which a transaction holds ids until `committed`."""

    def __init__(self, held: set[str], committed: float) -> None:
        self.held = held
        self.committed = committed
        self.holding = 0
        """How many calls wait for the transaction."""
        self.most_holding = 0
        self.stored: list[str] = []

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        await elapse(0.001)
        if any(job.id in self.held for job in jobs):
            await self._wait_for_commit()
        self.stored += [job.id for job in jobs]
        return all_created(jobs)

    async def _wait_for_commit(self) -> None:
        left = self.committed - asyncio.get_running_loop().time()
        self.holding += 1
        self.most_holding = max(self.most_holding, self.holding)
        await elapse(max(0.0, min(left, LOCK_WAIT)))
        self.holding -= 1
        if left > LOCK_WAIT:
            raise EnqueueBlocked("a transaction is still open")


def enqueue_all_at(
    backend: BlockingBackend, moments: dict[str, float]
) -> dict[str, tuple[float, Enqueued | BackendUnavailable]]:
    """Enqueue each job at its moment; return when it was answered, and what the answer is."""
    loop = SimulatedLoop(Random(1))

    async def run_scenario() -> dict[str, tuple[float, Enqueued | BackendUnavailable]]:
        batcher = EnqueueBatcher(backend, LocalClock(loop), TIMEOUT)  # type: ignore[arg-type]
        outcomes = await asyncio.gather(*(called(batcher, *item) for item in moments.items()))
        return {job_id: (moments[job_id] + after, what) for job_id, after, what in outcomes}

    return run(loop, run_scenario())


def test_blocked_jobs_are_repeated_one_after_the_other() -> None:
    """Only one call of them at a time takes a connection, besides that of the first tries."""
    held = {f"held-{n}" for n in range(12)}
    backend = BlockingBackend(held, committed=3.0)
    others = {f"other-{n}": 0.05 * n for n in range(60)}
    answers = enqueue_all_at(backend, {"first": 0.0} | dict.fromkeys(held, 0.0005) | others)
    assert backend.most_holding <= 2
    assert {type(what) for _, what in answers.values()} == {Enqueued}
    assert all(3.0 <= answers[job_id][0] < 3.0 + 2 * LOCK_WAIT for job_id in held)
    assert sorted(backend.stored) == sorted(answers)
    for job_id, moment in others.items():
        assert answers[job_id][0] - moment < 0.1 or moment < 2 * LOCK_WAIT


def test_new_jobs_pass_the_parts_of_a_blocked_group() -> None:
    held = {"a", "h", "p"}
    backend = BlockingBackend(held, committed=4.0)
    group = dict.fromkeys("abcdefghijklmnop", 0.0005)
    answers = enqueue_all_at(backend, {"first": 0.0, **group, "new": LOCK_WAIT + 0.01})
    assert answers["new"][0] < LOCK_WAIT + 0.02
    for job_id in group.keys() - held:
        assert answers[job_id][0] < (len(held) + 2) * LOCK_WAIT


def test_a_job_behind_many_that_stay_blocked_was_not_stored() -> None:
    held = {f"{n}" for n in range(40)}
    backend = BlockingBackend(held, committed=60.0)
    answers = enqueue_all_at(backend, {"first": 0.0} | dict.fromkeys(held, 0.0005))
    outcomes = [str(getattr(answers[job_id][1], "outcome", None)) for job_id in held]
    assert sorted(set(outcomes)) == ["not applied", "unknown"]
    assert outcomes.count("unknown") == 1  # that of the last call
    for job_id in held:
        moment, _ = answers[job_id]
        assert moment <= choose_limit(TIMEOUT) + 0.001
    assert backend.stored == ["first"]
    assert backend.most_holding <= 2


def test_blocked_calls_of_many_jobs_take_turns() -> None:
    backend = BlockingBackend({"held"}, committed=3.0)
    loop = SimulatedLoop(Random(1))

    async def run_scenario() -> list[list[Enqueued]]:
        batcher = EnqueueBatcher(backend, LocalClock(loop), TIMEOUT)  # type: ignore[arg-type]
        calls = [asyncio.create_task(batcher.enqueue_all([new("held")])) for _ in range(4)]
        await elapse(2 * LOCK_WAIT)
        backend.most_holding = backend.holding
        return await asyncio.gather(*calls)

    assert run(loop, run_scenario()) == [[Enqueued("held", "created")]] * 4
    assert backend.most_holding == 1
