"""A process dies at a named point; others finish its work, and nothing is lost or done twice."""

from __future__ import annotations

import pytest

from nimburion.core.job import JobOptions, NewJob, State
from nimburion.testing.contract.harness import list_uses
from tests.crash.harness import ProcessHarness

pytestmark = pytest.mark.slow


class Points:
    """Those that every backend has. Subclasses have a fixture `harness`."""

    @pytest.mark.parametrize("point", ["reserved", "before", "inside", "after", "settled"])
    async def test_a_worker_dies(self, point: str, harness: ProcessHarness) -> None:
        await check_dead_worker(harness, point)

    async def test_a_worker_dies_when_it_has_rescued(self, harness: ProcessHarness) -> None:
        await check_dead_rescuer(harness, "rescued")

    @pytest.mark.parametrize("point", ["reserved", "inside", "settled"])
    async def test_a_worker_dies_with_keys_of_limits(
        self, point: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker_with_keys(harness, point)

    async def test_a_producer_dies_when_it_has_replaced_a_job(
        self, harness: ProcessHarness
    ) -> None:
        await check_dead_replacement(harness, "enqueued")

    async def test_an_operator_dies_when_it_has_made_jobs_due(
        self, harness: ProcessHarness
    ) -> None:
        await check_dead_operator(harness, "made_due", due={5})

    async def test_a_producer_dies_when_it_has_delayed_a_job(self, harness: ProcessHarness) -> None:
        await check_dead_debounce(harness, "enqueued")

    async def test_a_producer_dies_when_it_has_enqueued(self, harness: ProcessHarness) -> None:
        await check_dead_producer(harness, "enqueued", stored={5})


class TestSQLite(Points):
    @pytest.fixture
    def harness(self, sqlite_harness: ProcessHarness) -> ProcessHarness:
        return sqlite_harness

    @pytest.mark.parametrize(
        "statement",
        ["insert_charged_leases", "save_exchange", "complete_jobs", "delete_completed_leases"],
    )
    async def test_a_worker_dies_within_an_exchange(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker(harness, f"statement {statement}")

    @pytest.mark.parametrize("statement", ["put_shares", "move_turns", "rank_turns"])
    async def test_a_worker_dies_while_it_charges_tenants(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        """More jobs wait than it reserves, so that turns move. Nothing stays charged."""
        await harness.enqueue("quick", 30)
        await harness.wait_until_killed(
            harness.start_worker(f"statement {statement}", concurrency=2)
        )
        harness.start_worker()
        await harness.check_all_completed(lost=30)

    @pytest.mark.parametrize(
        "statement", ["copy_to_parked", "insert_lease_keys", "put_limit_uses", "delete_lease_keys"]
    )
    async def test_a_worker_dies_while_it_counts_keys(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker_with_keys(harness, f"statement {statement}")

    @pytest.mark.parametrize("statement", ["copy_due_to_ready", "delete_promoted"])
    async def test_a_worker_dies_while_it_promotes(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await harness.enqueue("quick", 5, after=0.5)
        await harness.wait_until_killed(harness.start_worker(f"statement {statement}"))
        harness.start_worker()
        await harness.check_all_completed(lost=0)

    @pytest.mark.parametrize(
        "statement", ["expire_sessions", "list_orphaned_leases", "insert_attempt_error"]
    )
    async def test_a_worker_dies_while_it_rescues(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await check_dead_rescuer(harness, f"statement {statement}")

    @pytest.mark.parametrize("statement", ["replace_job", "put_replacement"])
    async def test_a_producer_dies_while_it_replaces_a_job(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await check_dead_replacement(harness, f"statement {statement}")

    @pytest.mark.parametrize("statement", ["delete_scheduled", "set_due"])
    async def test_an_operator_dies_while_it_makes_jobs_due(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await check_dead_operator(harness, f"statement {statement}", due={0})

    @pytest.mark.parametrize("statement", ["replace_job", "put_replacement"])
    async def test_a_producer_dies_while_it_delays_a_job(
        self, statement: str, harness: ProcessHarness
    ) -> None:
        await check_dead_debounce(harness, f"statement {statement}")

    @pytest.mark.parametrize("statement", ["insert_lane", "insert_new_ready"])
    async def test_a_producer_dies(self, statement: str, harness: ProcessHarness) -> None:
        await check_dead_producer(harness, f"statement {statement}", stored={0})


class TestRedis(Points):
    """A script is one step, so there are points before its answer and between two scripts only."""

    @pytest.fixture
    def harness(self, redis_harness: ProcessHarness) -> ProcessHarness:
        return redis_harness

    @pytest.mark.parametrize("request_", ["reserve", "settle"])
    async def test_a_worker_dies_before_the_answer(
        self, request_: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker(harness, f"unheard {request_}")

    async def test_a_producer_dies_before_the_answer(self, harness: ProcessHarness) -> None:
        await check_dead_producer(harness, "unheard enqueue", stored={0, 5})

    async def test_an_operator_dies_before_the_answer(self, harness: ProcessHarness) -> None:
        await check_dead_operator(harness, "unheard make_due", due={0, 5})

    async def test_a_producer_dies_between_two_scripts(self, harness: ProcessHarness) -> None:
        ids = [f"quick-{n}" for n in range(1100)]
        await harness.wait_until_killed(harness.start_producer("script enqueue", "quick", ids))
        assert (await harness.backend.reads.count_jobs(budget=None))[State.PENDING] == 500
        assert await harness.wait_for_exit(harness.start_producer(None, "quick", ids)) == 0
        jobs = (await harness.backend.reads.list_jobs(limit=2000)).jobs
        assert sorted(job.id for job in jobs) == sorted(ids)

    @pytest.mark.parametrize("request_", ["reserve", "settle"])
    async def test_a_worker_with_keys_dies_before_the_answer(
        self, request_: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker_with_keys(harness, f"unheard {request_}")

    async def test_a_producer_that_replaces_dies_before_the_answer(
        self, harness: ProcessHarness
    ) -> None:
        await check_dead_replacement(harness, "unheard enqueue")

    async def test_a_producer_that_delays_dies_before_the_answer(
        self, harness: ProcessHarness
    ) -> None:
        await check_dead_debounce(harness, "unheard enqueue")


class TestPostgres(Points):
    """A function is one transaction; the server ends it with us or without us."""

    @pytest.fixture
    def harness(self, postgres_harness: ProcessHarness) -> ProcessHarness:
        return postgres_harness

    @pytest.mark.parametrize("request_", ["reserve", "settle"])
    async def test_a_worker_dies_before_the_answer(
        self, request_: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker(harness, f"unheard {request_}")

    @pytest.mark.parametrize("request_", ["reserve", "settle"])
    async def test_a_worker_with_keys_dies_before_the_answer(
        self, request_: str, harness: ProcessHarness
    ) -> None:
        await check_dead_worker_with_keys(harness, f"unheard {request_}")

    async def test_a_worker_dies_while_it_rescues(self, harness: ProcessHarness) -> None:
        await check_dead_rescuer(harness, "unheard rescue")

    async def test_an_operator_dies_before_the_answer(self, harness: ProcessHarness) -> None:
        await check_dead_operator(harness, "unheard make_due", due={0, 5})

    async def test_a_producer_dies_before_the_answer(self, harness: ProcessHarness) -> None:
        await check_dead_producer(harness, "unheard enqueue", stored={0, 5})


async def check_dead_worker(harness: ProcessHarness, point: str) -> None:
    """With some of five jobs in hand."""
    await harness.enqueue("quick", 5)
    await harness.wait_until_killed(harness.start_worker(point, concurrency=5))
    harness.start_worker()
    await harness.check_all_completed(lost=5)


async def check_dead_worker_with_keys(harness: ProcessHarness, point: str) -> None:
    """Two tenants, one job of each at a time: others are parked. In the end, no key is in use."""
    await harness.enqueue_keyed(6)
    await harness.wait_until_killed(harness.start_worker(point, concurrency=5))
    harness.start_worker()
    await harness.wait_until_finished()
    assert await list_uses(harness.backend) == []
    await harness.check_all_completed(lost=2)


async def check_dead_replacement(harness: ProcessHarness, point: str) -> None:
    """The producer asks again by id: the waiting job is replaced once, and keeps its id."""
    options = JobOptions(unique_key="draft", on_duplicate="replace")
    job = NewJob("first", "quick", "default", b"{}", after=60.0, options=options)
    await harness.backend.producing.enqueue([job])
    for crash_at in (point, None):
        process = harness.start_producer(crash_at, "quick", ["second"], replaces=True)
        if crash_at is not None:
            await harness.wait_until_killed(process)
        else:
            assert await harness.wait_for_exit(process) == 0
    record = await harness.get_record("first")
    assert record.payload == b'{"n":2}'
    assert sum((await harness.backend.reads.count_jobs(budget=None)).values()) == 1


async def check_dead_debounce(harness: ProcessHarness, point: str) -> None:
    """The producer asks again by id. The waiting job is delayed, but not beyond its longest wait,
    however often the producer asked.
    """
    options = JobOptions(unique_key="draft", on_duplicate="replace", max_wait=90.0)
    job = NewJob("first", "quick", "default", b"{}", after=60.0, options=options)
    await harness.backend.producing.enqueue([job])
    before = (await harness.get_record("first")).due
    for crash_at in (point, None, None):
        process = harness.start_producer(
            crash_at, "quick", ["second"], replaces=True, after=600.0, max_wait=90.0
        )
        if crash_at is not None:
            await harness.wait_until_killed(process)
        else:
            assert await harness.wait_for_exit(process) == 0
    record = await harness.get_record("first")
    assert record.payload == b'{"n":2}'
    assert record.due - before == pytest.approx(30.0, abs=0.001)
    assert sum((await harness.backend.reads.count_jobs(budget=None)).values()) == 1


async def check_dead_rescuer(harness: ProcessHarness, point: str) -> None:
    """With the jobs of another one, which was killed, on their way back."""
    await harness.enqueue("hanging", 3)
    victim = harness.start_worker()
    await harness.wait_until_logged("start", 3)
    victim.kill()
    await harness.wait_until_killed(harness.start_worker(point))
    harness.start_worker()
    # The one that rescued them may have taken them itself before it died.
    await harness.check_all_completed(lost=6)


async def check_dead_operator(harness: ProcessHarness, point: str, due: set[int]) -> None:
    """It cannot know whether its jobs are due; a repeat makes it true, and each runs once."""
    ids = await harness.enqueue("quick", 5, after=600.0)
    await harness.wait_until_killed(harness.start_operator(point, ids))
    assert (await harness.backend.reads.count_jobs(budget=None))[State.PENDING] in due
    assert await harness.wait_for_exit(harness.start_operator(None, ids)) == 0
    assert (await harness.backend.reads.count_jobs(budget=None))[State.SCHEDULED] == 0
    harness.start_worker()
    await harness.check_all_completed(lost=0)


async def check_dead_producer(harness: ProcessHarness, point: str, stored: set[int]) -> None:
    """It cannot know whether its jobs are stored; asking again by id makes it true, once."""
    ids = [f"quick-{n}" for n in range(5)]
    await harness.wait_until_killed(harness.start_producer(point, "quick", ids))
    assert sum((await harness.backend.reads.count_jobs(budget=None)).values()) in stored
    assert await harness.wait_for_exit(harness.start_producer(None, "quick", ids)) == 0
    harness.jobs = ids
    harness.start_worker()
    await harness.check_all_completed(lost=0)
