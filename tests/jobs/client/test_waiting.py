"""Waiting for several jobs, reading several of them, and jobs with their own options."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from nimburion import JobId
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import (
    InvalidJob,
    JobNotCompleted,
    JobNotFound,
    PermanentError,
    WaitTimeout,
)
from nimburion.core.queries import EVERY_JOB, SCAN_BUDGET, WHOLE_PAYLOAD, JobFilter, Page
from nimburion.jobs import Processor, job
from nimburion.jobs.client import status_reader
from nimburion.jobs.handling.middleware import Enqueueing, Next
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import wait_until

SQLITE = "sqlite:///{}/jobs.db"


@pytest.fixture(autouse=True)
def slow_backend_may_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each query a minute, so that a short timeout of `wait` does not end it on a busy
    machine."""
    monkeypatch.setattr(status_reader, "_MIN_QUERY_TIMEOUT", 60.0)


@job
async def double(number: int) -> int:
    if number < 0:
        raise PermanentError("too small")
    return 2 * number


@pytest.fixture(params=["memory://", SQLITE])
async def processor(request: pytest.FixtureRequest, tmp_path: object) -> AsyncIterator[Processor]:
    made = Processor(request.param.format(tmp_path))
    made.register(double)
    async with made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# The type of an id


def test_an_id_is_a_plain_text_at_run_time() -> None:
    assert type(JobId("own")) is str
    assert JobId[int](UUID(int=0)) == "00000000-0000-0000-0000-000000000000"
    assert JobId[int] is str


async def test_an_id_may_be_an_argument_of_a_job(processor: Processor) -> None:
    @processor.job
    async def report(parts: list[JobId[int]], parent: JobId[str] | None = None) -> list[JobId[int]]:
        return parts

    job_id = await report.enqueue([await processor.enqueue(double.job(1))])
    await processor.drain()
    (part,) = await processor.wait(job_id)
    assert await processor.wait(part) == 2
    with pytest.raises(InvalidJob, match="expected `str`, got `int`"):
        await report.enqueue([5])  # type: ignore[list-item]


# wait_all


async def test_results_come_in_the_order_of_the_ids(processor: Processor) -> None:
    ids = await processor.enqueue_many([double.job(number) for number in range(5)])
    await processor.drain()
    assert await processor.wait_all(reversed(ids)) == [8, 6, 4, 2, 0]
    assert await processor.wait_all([ids[3], ids[1], ids[3]]) == [6, 2, 6]
    assert await processor.wait_all([]) == []


async def test_the_first_error_is_raised_although_other_jobs_wait(processor: Processor) -> None:
    waiting = await processor.enqueue(double.job(1), after=3600)
    failed = await processor.enqueue(double.job(-1))
    await processor.drain()
    with pytest.raises(JobNotCompleted, match="too small") as raised:
        await processor.wait_all([waiting, failed])
    assert raised.value.job_id == failed
    with pytest.raises(JobNotFound, match="unknown"):
        await processor.wait_all([waiting, "unknown"])


async def test_errors_may_be_returned_in_place_of_results(processor: Processor) -> None:
    good, failed = await processor.enqueue_many([double.job(1), double.job(-1)])
    late = await processor.enqueue(double.job(1), after=3600)
    await processor.drain()
    ids = ["unknown", late, failed, good]
    missing, waiting, refused, result = await processor.wait_all(
        ids, timeout=0, return_exceptions=True
    )
    assert isinstance(missing, JobNotFound)
    assert isinstance(waiting, WaitTimeout)
    assert isinstance(refused, JobNotCompleted)
    assert result == 2


async def test_all_jobs_are_read_in_one_query_until_the_last_has_ended(clock: FakeClock) -> None:
    class Counting(OverridableBackend):
        async def list_jobs(
            self,
            which: JobFilter = EVERY_JOB,
            *,
            limit: int = 100,
            after: str | None = None,
            payloads: bool = False,
            payload_bytes: int = WHOLE_PAYLOAD,
            budget: int = SCAN_BUDGET,
        ) -> Page:
            asked.append(which.ids)
            return await super().list_jobs(
                which, limit=limit, after=after, payloads=payloads, budget=budget
            )

    asked: list[tuple[str, ...] | None] = []
    processor = Processor(Counting(clock=clock), clock=clock)
    processor.register(double)
    async with processor:
        ids = await processor.enqueue_many([double.job(number) for number in range(4)])
        await processor.process_one()
        all_results = asyncio.create_task(processor.wait_all(ids))
        await wait_until(lambda: clock.sleepers == 1, "it sleeps")
        await processor.drain()
        clock.advance(1)
        assert await all_results == [0, 2, 4, 6]
    assert [which for which in asked if which] == [tuple(ids), tuple(ids[1:])]


async def test_one_timeout_is_for_all_jobs(processor: Processor) -> None:
    ids = await processor.enqueue_many([double.job(1), double.job(2)], after=3600)
    async with asyncio.timeout(20):
        with pytest.raises(WaitTimeout, match=f"job {ids[0]} is scheduled after 0.05 s"):
            await processor.wait_all(ids, 0.05)


# missing_ok


async def test_what_is_no_list_of_ids_is_refused(processor: Processor) -> None:
    one: Any
    for one in (3, "ab", None):
        with pytest.raises(InvalidJob, match=f"pass a list of job ids, not {one!r}; for one job"):
            await processor.wait_all(one)
        with pytest.raises(InvalidJob, match="pass a list of job ids"):
            await processor.get_statuses(one)
    one = processor.enqueue_many([])
    with pytest.raises(InvalidJob, match="an `await` is missing"):
        await processor.wait_all(one)


async def test_wait_may_begin_before_the_job_exists(clock: FakeClock) -> None:
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    processor.register(double)
    async with processor:
        waiting = asyncio.create_task(processor.wait("own", missing_ok=True))
        await wait_until(lambda: clock.sleepers == 1, "it sleeps")
        await processor.enqueue(double.job(4), id="own")
        await processor.drain()
        clock.advance(1)
        assert await waiting == 8


async def test_a_job_that_never_exists_ends_the_wait_in_time(processor: Processor) -> None:
    with pytest.raises(WaitTimeout, match="job own does not exist after 0 s of waiting"):
        await processor.wait("own", timeout=0, missing_ok=True)


# get_statuses


async def test_statuses_are_read_together(processor: Processor) -> None:
    first, second = await processor.enqueue_many([double.job(1), double.job(2)], tenant="acme")
    await processor.process_one()
    found = await processor.get_statuses([second, "unknown", first])
    assert list(found) == [second, "unknown", first]
    assert found["unknown"] is None
    assert found[first] == await processor.get_status(first)
    assert found[second] == await processor.get_status(second)
    assert await processor.get_statuses([]) == {}
    with pytest.raises(InvalidJob, match="job id must be"):
        await processor.get_statuses([first, "not an id"])


async def test_more_statuses_than_one_query_reads(processor: Processor) -> None:
    ids = await processor.enqueue_many([double.job(number) for number in range(2_500)])
    found = await processor.get_statuses(ids)
    assert [status.args for status in found.values() if status] == [
        {"number": number} for number in range(2_500)
    ]


def test_a_script_waits_and_reads_together(tmp_path: object) -> None:
    processor = Processor(SQLITE.format(tmp_path))
    processor.register(double)
    with processor.sync as sync:
        ids = sync.enqueue_many([double.job(1), (double.job(2), {"priority": 9})])
        sync.drain()
        assert sync.wait_all(ids, timeout=20) == [2, 4]
        assert [status.priority for status in sync.get_statuses(ids).values() if status] == [5, 9]
        with pytest.raises(WaitTimeout, match="does not exist"):
            sync.wait("unknown", timeout=0, missing_ok=True)


# Jobs with their own options


async def test_a_pair_has_its_own_options(processor: Processor) -> None:
    ids = await processor.enqueue_many(
        [
            double.job(1),
            (double.job(2), {"id": "own", "priority": 9, "tenant": None}),
            (double.job(3), {}),
        ],
        priority=7,
        tenant="acme",
    )
    assert ids[1] == "own"
    statuses = (await processor.get_statuses(ids)).values()
    assert [(one.priority, one.tenant) for one in statuses if one] == [
        (7, "acme"),
        (9, None),
        (7, "acme"),
    ]


async def test_pairs_pass_the_enqueue_middleware(processor: Processor) -> None:
    seen: list[tuple[object, int]] = []

    async def note(enqueueing: Enqueueing, call_next: Next[Enqueueing]) -> str:
        seen.append((enqueueing.job, enqueueing.priority))
        return str(await call_next(enqueueing))

    processor.use_enqueue(note)
    first, second = double.job(1), double.job(2)
    await processor.enqueue_many([first, (second, {"priority": 9})])
    assert seen == [(first, 5), (second, 9)]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((double.job(1), {"priorty": 7}), r"jobs\[1\]: .*'priorty'.*did you mean 'priority'"),
        ((double.job(1), {"priority": 70}), r"jobs\[1\]: priority must be from 0 to 9"),
        ((double.job(1), 7), r"jobs\[1\]: .* is a pair like .*, not \(double\(number=1\), 7\)"),
        ((double.job(1),), r"jobs\[1\]: .* is a pair"),
        ((double, {}), r"jobs\[1\]: .*double.job\(…\)"),
        ((double.job(1), {"connection": object()}), r"jobs\[1\]: .* pass `connection` once"),
    ],
)
async def test_a_wrong_pair_is_named_and_nothing_is_stored(
    processor: Processor, pair: object, message: str
) -> None:
    with pytest.raises(InvalidJob, match=message):
        await processor.enqueue_many([double.job(0), pair])  # type: ignore[arg-type]
    assert await processor.pending_count() == 0
