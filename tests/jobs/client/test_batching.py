"""Enqueue calls share a way into the backend, and each caller hears only of its own job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest

from nimburion.core.errors import BackendFull, BackendUnavailable, Unstorable
from nimburion.core.job import Enqueued, NewJob
from nimburion.jobs.client.batching import MAX_BATCH, EnqueueBatcher, choose_limit
from nimburion.testing import FakeClock
from tests.simulation.loop import SimulatedLoop, elapse, run
from tests.simulation.world import LocalClock


class Store:
    """Answers enqueue calls as the test says, when the test says."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.faults: list[Exception] = []
        self.answer: Callable[[Sequence[NewJob]], list[Enqueued]] = all_created

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[Enqueued]:
        self.calls.append([job.id for job in jobs])
        self.entered.set()
        await self.gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        return self.answer(jobs)


def all_created(jobs: Sequence[NewJob]) -> list[Enqueued]:
    return [Enqueued(job.id, "created") for job in jobs]


def new(job_id: str) -> NewJob:
    return NewJob(job_id, "n", "q", b"{}")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def intake(store: Store, clock: FakeClock, timeout: float = 5.0) -> EnqueueBatcher:
    return EnqueueBatcher(store, clock, timeout)  # type: ignore[arg-type]


async def behind_a_first(
    way: EnqueueBatcher, store: Store, ids: str
) -> list[asyncio.Task[Enqueued]]:
    """One call in flight, and callers that wait behind it."""
    store.gate.clear()
    store.entered.clear()
    tasks = [asyncio.create_task(way.enqueue(new("first")))]
    await store.entered.wait()
    tasks += [asyncio.create_task(way.enqueue(new(one))) for one in ids]
    await asyncio.sleep(0)
    return tasks


async def test_alone_a_call_leaves_at_once(clock: FakeClock) -> None:
    store = Store()
    way = intake(store, clock)
    assert await way.enqueue(new("a")) == Enqueued("a", "created")
    assert await way.enqueue(new("b")) == Enqueued("b", "created")
    assert store.calls == [["a"], ["b"]]


async def test_what_comes_during_a_call_shares_the_next(clock: FakeClock) -> None:
    store = Store()
    tasks = await behind_a_first(intake(store, clock), store, "abc")
    store.gate.set()
    assert [result.id for result in await asyncio.gather(*tasks)] == ["first", "a", "b", "c"]
    assert store.calls == [["first"], ["a", "b", "c"]]


async def test_a_neighbours_conflict_stays_its_own(clock: FakeClock) -> None:
    store = Store()

    def refuse_b(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if not any(job.id == "b" for job in jobs):
            return all_created(jobs)
        return [Enqueued(job.id, "conflict" if job.id == "b" else "refused") for job in jobs]

    store.answer = refuse_b
    tasks = await behind_a_first(intake(store, clock), store, "abc")
    store.gate.set()
    outcomes = {one.id: one.outcome for one in await asyncio.gather(*tasks)}
    assert outcomes == {"first": "created", "a": "created", "b": "conflict", "c": "created"}
    assert store.calls == [["first"], ["a", "b", "c"], ["a", "c"]]


async def test_a_neighbours_unstorable_data_stays_its_own(clock: FakeClock) -> None:
    store = Store()

    def choke_on_b(jobs: Sequence[NewJob]) -> list[Enqueued]:
        if any(job.id == "b" for job in jobs):
            raise Unstorable("no")
        return all_created(jobs)

    store.answer = choke_on_b
    tasks = await behind_a_first(intake(store, clock), store, "abcd")
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [Enqueued, Enqueued, Unstorable, Enqueued, Enqueued]


async def test_a_full_store_is_told_to_each(clock: FakeClock) -> None:
    store = Store()
    tasks = await behind_a_first(intake(store, clock), store, "ab")
    store.faults = [BackendFull("full"), BackendFull("full")]
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in results] == [BackendFull] * 3
    store.faults = []
    assert (await intake(store, clock).enqueue(new("a"))).outcome == "created"


async def test_a_caller_that_gave_up_while_waiting_is_not_stored(clock: FakeClock) -> None:
    store = Store()
    tasks = await behind_a_first(intake(store, clock), store, "ab")
    tasks[1].cancel()
    await asyncio.sleep(0)
    store.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert store.calls == [["first"], ["b"]]


async def test_those_behind_a_cancelled_first_are_served(clock: FakeClock) -> None:
    store = Store()
    tasks = await behind_a_first(intake(store, clock), store, "ab")
    tasks[0].cancel()
    store.gate.set()
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
    store = Store()
    store.faults = [BackendUnavailable("gone"), BackendUnavailable("gone", outcome="not applied")]
    task = asyncio.create_task(intake(store, clock).enqueue(new("a")))
    await settled(task, clock)
    assert (await task).outcome == "created"
    assert store.calls == [["a"]] * 3


async def test_a_store_that_says_nothing_is_given_up(clock: FakeClock) -> None:
    store = Store()
    store.gate.clear()
    with pytest.raises(BackendUnavailable, match=r"no answer within 0\.02 s") as failed:
        await intake(store, clock, timeout=0.02).enqueue(new("a"))
    assert failed.value.outcome == "unknown"


@pytest.mark.parametrize(
    ("outcomes", "verdict", "said"),
    [
        (["not applied"] * 100, "not applied", "job a was not stored"),
        (["unknown"] + ["not applied"] * 99, "unknown", "job a may be stored or not"),
        (["applied"] * 100, "unknown", "job a may be stored or not"),
    ],
)
async def test_after_the_time_it_says_what_may_be_concluded(
    clock: FakeClock, outcomes: list[str], verdict: str, said: str
) -> None:
    store = Store()
    store.faults = [BackendUnavailable("gone", outcome=one) for one in outcomes]  # type: ignore[arg-type]
    began = clock.monotonic()
    task = asyncio.create_task(intake(store, clock).enqueue(new("a")))
    await settled(task, clock)
    with pytest.raises(BackendUnavailable) as failed:
        await task
    assert (failed.value.job_id, failed.value.outcome) == ("a", verdict)
    assert said in str(failed.value)
    assert isinstance(failed.value.__cause__, BackendUnavailable)
    assert 3.0 <= clock.monotonic() - began <= 5.0
    assert len(store.calls) > 5


async def test_those_who_wait_through_an_outage_each_hear_of_their_own_job(
    clock: FakeClock,
) -> None:
    store = Store()
    tasks = await behind_a_first(intake(store, clock), store, "ab")
    store.faults = [BackendUnavailable("gone", outcome="not applied") for _ in range(200)]
    began = clock.monotonic()
    store.gate.set()
    for task in tasks:
        await settled(task, clock)
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(error, "job_id", None) for error in errors] == ["first", "a", "b"]
    assert clock.monotonic() - began <= 5.5  # not one time after the other


async def test_many_unanswered_are_told_apart_from_one(clock: FakeClock) -> None:
    store = Store()
    store.faults = [BackendUnavailable("gone")]
    with pytest.raises(BackendUnavailable, match="the 2 jobs may be stored or not") as failed:
        await intake(store, clock, timeout=0.0).enqueue_all([new("a"), new("b")])
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


Told = tuple[str, float, Enqueued | BackendUnavailable]


async def called(way: EnqueueBatcher, job_id: str, at: float) -> Told:
    """Enqueue a job at some time; what came of it, after how long."""
    loop = asyncio.get_running_loop()
    await elapse(at)
    try:
        what: Enqueued | BackendUnavailable = await way.enqueue(new(job_id))
    except BackendUnavailable as error:
        what = error
    assert getattr(what, "job_id", job_id) == job_id
    return job_id, loop.time() - at, what


def all_called(answer: Answers, moments: Sequence[float]) -> list[Told]:
    """Callers at these moments; what came of each call."""
    loop = SimulatedLoop(Random(1))

    async def story() -> list[Told]:
        way = EnqueueBatcher(Trouble(answer), LocalClock(loop), TIMEOUT)  # type: ignore[arg-type]
        return await asyncio.gather(*(called(way, f"{n}", at) for n, at in enumerate(moments)))

    return run(loop, story())


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

    told = all_called(never_answered, [0.0, *[0.1] * (MAX_BATCH + 7)])
    outcomes = {job_id: getattr(what, "outcome", None) for job_id, _, what in told}
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

    told = all_called(stuck_once, [0.0, 0.1, 0.4, 4.0, 9.0])
    kinds = [type(what) for _, _, what in told]
    assert kinds == [BackendUnavailable, Enqueued, Enqueued, Enqueued, Enqueued]
    assert seen == ["stuck", "1", "2", "3", "4"]


def test_who_came_last_is_not_refused_with_who_came_first() -> None:
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
