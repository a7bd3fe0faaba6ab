"""Single scenarios that a random simulation seldom meets, each in a few virtual seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec
import pytest

from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import NewJob, State
from nimburion.core.service import Periodic
from nimburion.jobs.handling.context import Context
from tests.simulation.ledger import Ledger
from tests.simulation.loop import PROCESS, SimulatedLoop, elapse, run
from tests.simulation.world import SWEEP, TTL, LocalClock, Worker, World, within


class Scenario(World):
    """A calm world without a nemesis: the scenario is the only cause of trouble."""

    async def enqueue(self, *jobs: NewJob) -> None:
        """Put jobs into the backend, past the net."""
        await self.ledger.apply("enqueue", (jobs,), {})


class KillersAmongOthers(Scenario):
    """Jobs that kill their worker, whose handlers' names say so, and jobs that do nothing bad."""

    async def behave(self, ctx: Context, worker: Worker) -> None:
        await elapse(0.02)
        if ctx.job_id.startswith("killer"):
            self.kill(worker)
            await elapse(1.0)

    async def check_promises(self) -> None:
        await self.backend.open()
        self.hire()
        ids = ["killer-a", *(f"innocent-{n}" for n in range(9)), "killer-b"]
        self.random.shuffle(ids)
        await self.enqueue(*(NewJob(job_id, "plain", "default", b"{}") for job_id in ids))
        await self.until_all_ended()
        for job_id in ids:
            job = await self.backend.reads.get_job(job_id)
            guilty = job_id.startswith("killer")
            expected = (State.FAILED, "lost") if guilty else (State.COMPLETED, None)
            assert (job.state, job.reason) == expected, job_id


@pytest.mark.parametrize("seed", range(20))
def test_a_job_that_kills_its_workers_affects_no_other_job(seed: int) -> None:
    loop = SimulatedLoop(Random(seed))
    run(loop, KillersAmongOthers(loop, seed, concurrency=10).check_promises())


class SuspectsAmongKillers(KillersAmongOthers):
    """Innocent suspects wait in a worker for jobs that kill it, as often as they may be lost."""

    async def check_promises(self) -> None:
        await self.backend.open()
        suspects = await self.add_suspects(4)
        killers = [f"killer-{n}" for n in range(3)]
        await self.enqueue(*(NewJob(job_id, "plain", "default", b"{}") for job_id in killers))
        self.hire()
        await self.until_all_ended()
        for job_id in suspects:
            job = await self.backend.reads.get_job(job_id)
            assert (job.state, job.lost, self.runs[job_id]) == (State.COMPLETED, 2, 1)
        for job_id in killers:
            assert (await self.backend.reads.get_job(job_id)).reason == "lost"
            assert self.runs[job_id] == 3
        assert self.ledger.counts["suspects in a batch"]
        assert self.ledger.counts["suspects spared"]
        assert self.ledger.violations == []


@pytest.mark.parametrize("seed", range(20))
def test_a_suspect_that_waits_shares_no_blame(seed: int) -> None:
    loop = SimulatedLoop(Random(seed))
    run(loop, SuspectsAmongKillers(loop, seed, concurrency=10).check_promises())


class OpenedAndRescued(Scenario):
    """A session is opened, the answer is lost, and the outage outlives the session."""

    async def check_promises(self) -> None:
        await self.backend.open()
        self.net.ledger = OpeningUnheard(self.ledger)  # type: ignore[assignment]
        self.hire()
        await elapse(2 * TTL)
        await self.backend.consuming.rescue(10, max_lost=3)
        self.net.ledger = self.ledger
        await self.enqueue(NewJob("a", "plain", "default", b"{}"))
        await self.until_all_ended()


class OpeningUnheard:
    """Applies what it is asked, and never answers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Make the call for nothing."""
        if not await self._ledger.backend.reads.list_sessions():
            await self._ledger.apply(name, args, kwargs)
        raise BackendUnavailable("no answer", outcome="unknown")


def test_a_session_that_died_before_it_was_known_is_replaced() -> None:
    loop = SimulatedLoop(Random(1))
    run(loop, OpenedAndRescued(loop, 1).check_promises())


class StopsWithoutBackend(Scenario):
    """The backend goes away for good, and the worker is asked to stop so much later."""

    def __init__(self, loop: SimulatedLoop, after: float) -> None:
        super().__init__(loop, seed=1)
        self._after = after

    async def check_promises(self) -> None:
        await self.backend.open()
        worker = self.hire()
        await self.enqueue(NewJob("a", "plain", "default", b"{}"))
        await self.until_all_ended()
        self.net.cut_off[worker.process.name] = float("inf")
        await elapse(self._after)
        worker.stop_requested.set()
        await within(20.0, worker.task, "the worker does not stop")


@pytest.mark.parametrize("after", [0.0, 0.1, TTL / 2, 2 * TTL, 5 * TTL, 20 * TTL])
def test_a_worker_stops_also_when_its_backend_is_gone(after: float) -> None:
    loop = SimulatedLoop(Random(1))
    run(loop, StopsWithoutBackend(loop, after).check_promises())


class ResumesTooLate(Scenario):
    """A worker is stopped as by SIGSTOP with jobs in hand, and goes on when they are lost."""

    async def check_promises(self) -> None:
        await self.backend.open()
        first = self.hire()
        await self.enqueue(*(NewJob(f"j-{n}", "plain", "default", b"{}") for n in range(6)))
        while not self.ledger.counts["deliveries"]:
            await elapse(0.001)
        first.process.paused = True
        self.hire()
        await elapse(1.5 * TTL)
        self.loop.resume(first.process)
        await self.until_all_ended()
        assert self.ledger.counts["jobs rescued"]
        assert self.loop.faults == []


@pytest.mark.parametrize("seed", range(10))
def test_a_worker_that_slept_too_long_begins_nothing_that_it_lost(seed: int) -> None:
    loop = SimulatedLoop(Random(seed))
    run(loop, ResumesTooLate(loop, seed).check_promises())


class StopsWithManyPrefetched(Scenario):
    """Many quick jobs let a worker hold some ahead; then slow ones come, and it is stopped."""

    async def behave(self, ctx: Context, worker: Worker) -> None:
        if ctx.job_id.startswith("slow"):
            await elapse(100.0)

    async def check_promises(self) -> None:
        await self.backend.open()
        quick = [NewJob(f"quick-{n}", "plain", "default", b"{}") for n in range(30)]
        slow = [NewJob(f"slow-{n}", "plain", "default", b"{}") for n in range(5)]
        await self.enqueue(*quick, *slow)
        self.settings = msgspec.structs.replace(self.settings, grace=0.1)
        worker = self.hire()
        while not any(self.runs[job.id] for job in slow):
            await elapse(0.001)
        await elapse(0.03)  # what was under way is answered
        worker.stop_requested.set()
        await within(20.0, worker.task, "the worker does not stop")
        assert sum(self.runs[job.id] for job in slow) == 1
        for job in slow:
            record = await self.backend.reads.get_job(job.id)
            assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)


def test_what_was_not_started_is_handed_back_at_stop() -> None:
    loop = SimulatedLoop(Random(1))
    run(loop, StopsWithManyPrefetched(loop, 1, concurrency=1).check_promises())


class OutageForAll(Scenario):
    """The backend does not answer anybody, for longer than sessions live, while jobs are
    running."""

    def __init__(self, loop: SimulatedLoop, seed: int, seconds: float) -> None:
        super().__init__(loop, seed)
        self.settings = msgspec.structs.replace(self.settings, session_ttl=30.0)
        self._seconds = seconds

    async def behave(self, ctx: Context, worker: Worker) -> None:
        await elapse(20.0)

    async def check_promises(self) -> None:
        await self.backend.open()
        workers = [self.hire() for _ in range(3)]
        ids = [f"j-{n}" for n in range(9)]
        await self.enqueue(*(NewJob(job_id, "plain", "default", b"{}") for job_id in ids))
        while self.ledger.counts["deliveries"] < len(ids):
            await elapse(0.1)
        until = self.loop.time() + self._seconds
        self.net.cut_off = {worker.process.name: until for worker in workers}
        await self.until_all_ended(until - self.loop.time() + 120.0)
        for job_id in ids:
            job = await self.backend.reads.get_job(job_id)
            assert (job.state, job.lost, job.failures) == (State.COMPLETED, 0, 0)


@pytest.mark.parametrize(
    "seed", [*range(40), *(pytest.param(seed, marks=pytest.mark.wide) for seed in range(40, 80))]
)
def test_an_outage_of_the_backend_counts_as_no_loss(seed: int) -> None:
    """Its workers lived: whoever is back first must not count their jobs as lost."""
    random = Random(seed)
    loop = SimulatedLoop(random)
    run(loop, OutageForAll(loop, seed, random.uniform(5.0, 100.0)).check_promises())


class EndsAfterItsSession(Scenario):
    """A handler does not let itself be cancelled, and returns when its worker has a new session."""

    async def behave(self, ctx: Context, worker: Worker) -> None:
        if ctx.fence == 1:
            await self.hold_on(3 * TTL)

    async def check_promises(self) -> None:
        await self.backend.open()
        worker = self.hire()
        await self.enqueue(NewJob("a", "plain", "default", b"{}"))
        while not self.runs["a"]:
            await elapse(0.1)
        self.net.cut_off[worker.process.name] = self.loop.time() + 1.5 * TTL
        await self.until_all_ended()
        await elapse(3 * TTL)
        worker.stop_requested.set()
        await within(20.0, worker.task, "the worker does not stop")
        assert self.ledger.violations == []
        assert (self.counts["sessions lost"], self.runs["a"]) == (1, 2)


def test_nothing_is_sent_under_a_lease_of_a_session_that_is_over() -> None:
    loop = SimulatedLoop(Random(1))
    run(loop, EndsAfterItsSession(loop, 1).check_promises())


class CancelledWhileRunning(Scenario):
    """Somebody cancels a job that runs for long."""

    async def behave(self, ctx: Context, worker: Worker) -> None:
        await elapse(1000.0)

    async def check_promises(self) -> None:
        await self.backend.open()
        self.hire()
        await self.enqueue(NewJob("a", "plain", "default", b"{}"))
        while not self.runs["a"]:
            await elapse(0.1)
        await self.ledger.apply("cancel", ("a",), {})
        await self.until_all_ended(TTL)
        job = await self.backend.reads.get_job("a")
        assert (job.state, job.lost, self.counts["sessions lost"]) == (State.CANCELLED, 0, 0)


def test_a_cancel_reaches_a_running_job_with_the_next_heartbeat() -> None:
    loop = SimulatedLoop(Random(1))
    run(loop, CancelledWhileRunning(loop, 1).check_promises())


def test_a_killed_process_runs_nothing_more() -> None:
    loop = SimulatedLoop(Random(1))
    seen: list[float] = []

    async def live() -> None:
        assert PROCESS.get() is not None
        while True:
            seen.append(loop.time())
            await elapse(1.0)

    async def check_promises() -> None:
        process = loop.begin("victim")
        victim = loop.spawn(live(), process)
        await elapse(2.5)
        loop.kill(process)
        await elapse(10.0)
        assert seen == [0.0, 1.0, 2.0]
        assert not victim.done()

    run(loop, check_promises())


class Flaky(Periodic):
    """Works every second time."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__(LocalClock(loop), 1.0, Random(1))
        self.ticks = 0

    async def tick(self) -> None:
        self.ticks += 1
        if self.ticks % 2:
            raise BackendUnavailable("hiccup")


def test_a_service_that_worked_in_between_does_not_pause_longer_each_time() -> None:
    loop = SimulatedLoop(Random(1))

    async def check_promises() -> None:
        flaky = Flaky(loop)
        await flaky.start()
        await elapse(100.0)
        await flaky.stop()
        assert flaky.ticks > 80

    run(loop, check_promises())


class SlowConnection(Scenario):
    """Jobs whose payloads and results are large, and one worker that gets and writes one each."""

    def __init__(self, loop: SimulatedLoop, seed: int, most: tuple[float, float]) -> None:
        super().__init__(loop, seed, concurrency=10)
        self._most = most

    async def behave(self, ctx: Context, worker: Worker) -> None:
        await elapse(0.01)

    async def check_promises(self) -> None:
        await self.backend.open()
        worker = self.hire()
        self.net.slow[worker.process.name] = self._most
        self.loop.detach(self.watch_progress())
        payload = b'"' + b"x" * 900 + b'"'
        await self.enqueue(*(NewJob(f"{n}", "plain", "default", payload) for n in range(30)))
        await self.until_all_ended()
        assert (await self.backend.reads.count_jobs())[State.COMPLETED] == 30
        assert max(self.runs.values()) == 1
        way = "requests" if self._most[0] < self._most[1] else "replies"
        assert self.net.happened[f"{way} too large for their connection"]
        worker.stop_requested.set()
        await within(20.0, worker.task, "the worker does not stop")


@pytest.mark.parametrize("most", [(1300, math.inf), (math.inf, 1300)])
@pytest.mark.parametrize("seed", range(3))
def test_what_fits_a_slow_connection_only_one_by_one_is_done_one_by_one(
    seed: int, most: tuple[float, float]
) -> None:
    loop = SimulatedLoop(Random(seed))
    run(loop, SlowConnection(loop, seed, most).check_promises())


class ExchangesFail(Scenario):
    """From some moment on, the exchanges of one worker are refused, and its heartbeats answered."""

    async def check_promises(self) -> None:
        await self.backend.open()
        worker = self.hire()
        await self.enqueue(*(NewJob(f"{n}", "plain", "default", b"{}") for n in range(9)))
        while not self.runs:
            await elapse(0.01)
        self.net.ledger = Refusing(self.ledger, next(iter(self.ledger.held.values()))[0])  # type: ignore[assignment]
        self.loop.detach(self.watch_progress())
        self.hire()
        began = self.loop.time()
        await self.until_all_ended()
        assert self.loop.time() - began < TTL + SWEEP
        assert sum(self.runs.values()) > 9, "nothing was in hand when exchanges began to fail"
        assert not any(self.ledger.lost.values()), "nothing was lost: it was released"
        worker.stop_requested.set()
        await within(20.0, worker.task, "the worker does not stop")

    async def behave(self, ctx: Context, worker: Worker) -> None:
        await elapse(0.05)


class Refusing:
    """Refuses the exchanges of one session, and nothing else."""

    def __init__(self, ledger: Ledger, session: str) -> None:
        self._ledger = ledger
        self._session = session

    async def apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> object:
        """Make the call, unless it is such an exchange."""
        if name == "exchange" and args[0] == self._session:
            raise BackendUnavailable("a connection that is of no use", outcome="not applied")
        return await self._ledger.apply(name, args, kwargs)


@pytest.mark.parametrize("seed", range(5))
def test_a_worker_whose_exchanges_fail_gives_its_jobs_back_in_time(seed: int) -> None:
    loop = SimulatedLoop(Random(seed))
    run(loop, ExchangesFail(loop, seed).check_promises())


class PoisonedConnection(Scenario):
    """The exchanges of the only worker fail for ever while its heartbeats succeed: nobody would
    rescue what it holds."""

    async def behave(self, ctx: Context, worker: Worker) -> None:
        if not self.counts["poisoned connections"]:
            self.poison(worker)

    async def check_promises(self) -> None:
        await self.backend.open()
        worker = self.hire()
        await self.enqueue(*(NewJob(f"{n}", "plain", "default", b"{}") for n in range(5)))
        await self.until_all_ended(4 * TTL)
        assert (await self.backend.reads.count_jobs())[State.COMPLETED] == 5
        assert self.net.happened["exchanges on poisoned connections"]
        worker.stop_requested.set()
        await within(20.0, worker.task, "the worker does not stop")


@pytest.mark.parametrize("seed", range(3))
def test_a_poisoned_connection_strands_no_job(seed: int) -> None:
    loop = SimulatedLoop(Random(seed))
    run(loop, PoisonedConnection(loop, seed).check_promises())
