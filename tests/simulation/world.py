"""Workers, a producer and a nemesis around one backend, all drawn from one seed."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.planning.flows import REOPENED_REASONS
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import (
    BackendUnavailable,
    Cancel,
    DuplicateJob,
    JobNotFound,
    PermanentError,
    Retry,
    Snooze,
)
from nimburion.core.events import Event, SessionEnded
from nimburion.core.exchange import RESERVE_NOTHING, Lane, ReserveRequest
from nimburion.core.flows import NewFlow
from nimburion.core.job import Enqueued, JobOptions, JobRecord, NewJob, State
from nimburion.core.lease import SUSPECT_AFTER, Lease
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.session import Session
from nimburion.core.settings import Settings
from nimburion.core.settlement import Completed, Settled
from nimburion.core.size_limits import SizeLimits
from nimburion.core.timing.clock import Clock
from nimburion.jobs import Limit, Processor, Unique
from nimburion.jobs.handling.context import Context
from nimburion.jobs.worker.session.heartbeat import Heartbeat
from nimburion.testing.contract.harness import list_uses, make_limits
from tests.model.machine import check_waits
from tests.progress import EXCHANGES, find_idle_jobs
from tests.simulation.flow_ledger import make_graph
from tests.simulation.ledger import CallerTransaction, Ledger
from tests.simulation.loop import SimulatedLoop, elapse
from tests.simulation.net import Net, wired
from tests.simulation.run_workers import QUEUE as RUN_QUEUE
from tests.simulation.run_workers import RunWorker, check_runs, send_runs

EPOCH = 1_800_000_000.0
TTL = 2.0
SWEEP = TTL / 2
"""Seconds in which the jobs of an expired session are found, and its rescue is done."""
LIMITS = {"limited": 2}
RATE = RateLimit("20/s", interval=50_000, burst=4)
REPLACE = Unique(on_duplicate="replace")
RATES = {"limited": RATE}
MAX_RETRIES = 2
KEYED = {"keyed:tenant": 1, "gateway": 2}
"""The most jobs of one key that run at once, by the name of the limit."""
NAMES = ("plain", "limited", "timed", "keyed")
_STORM = 10.0
"""Virtual seconds of faults; then the weather is good and everything must come to rest ..."""
_SUSPECTS = 4
_RUN_WORKERS = 2
_NEW_TENANTS = 2
"""Jobs of new tenants in each second of the storm."""
_FLOWS = 8
_KEPT = Retention(completed=1.5, failed=None, results=0.5)
"""What a prune during the storm keeps. Dead letters and flows stay."""
_REST = 60.0
"""... within so many."""


Make = Callable[[Clock], Backend]
"""A new, empty backend that lives by that clock."""

Begin = Callable[[Backend, NewJob], Awaitable[CallerTransaction]]
"""Enqueues a job in a transaction of a caller, which stays open."""


def in_memory(clock: Clock) -> Backend:
    """The written reference."""
    return MemoryBackend(clock=clock)


class LateEnqueue:
    """A transaction of a caller on a backend without any: the job is stored at the commit."""

    def __init__(self, backend: Backend, job: NewJob) -> None:
        self._backend = backend
        self._job = job

    async def commit(self) -> list[Enqueued]:
        return await self._backend.producing.enqueue([self._job])


async def begin_late(backend: Backend, job: NewJob) -> CallerTransaction:
    """Enqueue the job when its transaction commits."""
    return LateEnqueue(backend, job)


class LocalClock:
    """A clock of one process: wrong by a fixed amount, but as fast as the others."""

    def __init__(self, loop: SimulatedLoop, wrong: float = 0.0, booted: float = 0.0) -> None:
        self._loop = loop
        self._wrong = wrong
        self._booted = booted

    def now(self) -> float:
        return EPOCH + self._wrong + self._loop.time()

    def monotonic(self) -> float:
        return self._booted + self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await elapse(seconds)

    def step_back(self, seconds: float) -> None:
        """From now on it is late by so many seconds more. `monotonic` goes on as before."""
        self._wrong -= seconds


class Worker:
    """One simulated worker process."""

    def __init__(self, world: World, number: int) -> None:
        loop, random = world.loop, world.random
        self.process = loop.begin(f"worker-{number}")
        self.stop_requested = asyncio.Event()
        self.task = loop.spawn(self._main(world, random.randrange(2**32)), self.process)

    async def _main(self, world: World, seed: int) -> None:
        random = Random(seed)
        self.processor = Processor(
            wired(world.net, self.process, world.backend.new_handle()),
            world.settings,
            clock=LocalClock(world.loop, random.uniform(-3600, 3600), random.uniform(0, 1e6)),
            random=Random(seed + 1),
            entropy=Random(seed + 2).randbytes,
        )
        world.register(self.processor, self)
        self.processor.events.subscribe(world.note)
        await self.processor.start()
        try:
            await self.stop_requested.wait()
        except asyncio.CancelledError:
            if world.loop.over:
                raise
            world.replace(self)
        while True:
            try:
                await self.processor.stop()
            except asyncio.CancelledError:
                if world.loop.over:
                    raise
            else:
                return

    def cancel_everything(self) -> None:
        """Do what a handler does that cancels all tasks of its event loop."""
        for task in self.process.list_tasks():
            task.cancel()

    @property
    def session(self) -> str | None:
        """The session that it has now; None while it has none."""
        running = getattr(self, "processor", None) and self.processor._running
        worker = running._worker if running else None
        return None if worker is None or worker.task is None else worker.session.id

    @property
    def heartbeat(self) -> Heartbeat:
        """What its engine knows of its leases."""
        assert self.processor._running is not None
        return self.processor._running._worker.session.heartbeat


class Run:
    """One call of a handler."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._heartbeat = worker.heartbeat

    @property
    def holds_lease(self) -> bool:
        """Whether the engine may still act on the lease that it runs under."""
        heartbeat = self._heartbeat
        return not heartbeat.ended and heartbeat._clock.monotonic() < heartbeat.lease_valid_until


class World:
    """A whole simulation. Everything in it follows from `seed`."""

    def __init__(
        self,
        loop: SimulatedLoop,
        seed: int,
        *,
        weather: float = 0.0,
        jobs: int = 0,
        runs: int = 0,
        concurrency: int = 3,
        make: Make = in_memory,
        begin: Begin = begin_late,
    ) -> None:
        self.loop = loop
        self.seed = seed
        self.random = Random(seed)
        self.clock = LocalClock(loop, booted=self.random.uniform(0, 1e6))
        self.backend = make(self.clock)
        self.ledger = Ledger(self.backend, self.clock, LIMITS, RATES, KEYED)
        self.net = Net(loop, Random(seed ^ 0xBAD), self.ledger, weather)
        self.counts: Counter[str] = Counter()
        self.settings = Settings(
            session_ttl=TTL,
            grace=0.5,
            concurrency=concurrency,
            max_retries=MAX_RETRIES,
            retry_backoff=0.2,
            enqueue_timeout=1.0,
            sizes=SizeLimits(exchange=16_384, unsettled=4096),
        )
        self.acknowledged: list[str] = []
        self.runs: Counter[str] = Counter()
        self._job_count = jobs
        self._run_count = runs
        self._run_workers: list[RunWorker] = []
        self._begin = begin
        self._at_work: dict[str, list[Run]] = {}
        self.workers: list[Worker] = []
        self._retired: list[Worker] = []
        self._worker_count = 0

    # The scenario

    async def check_promises(self) -> None:
        """Faults for a while, then rest; at the end everything must be as it should."""
        await self.backend.open()
        if self.net.weather:
            await self.add_suspects(_SUSPECTS)
        for _ in range(self.random.randint(3, 5)):
            self.hire()
        producer = self.loop.spawn(self._produce(), self.loop.begin("producer"))
        callers = []
        if self.net.weather:
            callers = [
                self._send_new_tenants(),
                self._hold_transactions(),
                self._set_clock_back(),
                self._send_flows(),
                self._operate(),
            ]
        if self._run_count:
            self._run_workers = [RunWorker(self, number) for number in range(_RUN_WORKERS)]
            callers.append(send_runs(self, self._run_count))
            self.loop.detach(self.watch_runs())
        outside = [self.loop.spawn(caller) for caller in callers]
        await self._nemesis()
        self.net.weather = 0.0
        self.net.cut_off.clear()
        self.loop.detach(self.watch_progress())
        self.loop.detach(self.watch_idle_jobs())
        for task in (producer, *outside):
            await within(_REST, task, "what sends jobs does not end")
        await self.until_all_ended()
        for runner in self._run_workers:
            runner.stop_requested = True
            await within(_REST, runner.task, f"{runner.process} does not stop")
        for worker in self.workers:
            worker.stop_requested.set()
        for worker in (*self.workers, *self._retired):
            await within(_REST, worker.task, f"{worker.process} does not stop")
        await self.check_rest()

    def hire(self) -> Worker:
        """Start one more worker."""
        self._worker_count += 1
        self.workers.append(Worker(self, self._worker_count))
        if self.net.weather and self.random.random() < 0.4:
            self._slow_down(self.workers[-1], self.random)
        return self.workers[-1]

    async def add_suspects(self, count: int) -> list[str]:
        """Put jobs into the backend, past the net, that have each lost two workers already."""
        ids = [f"suspect-{n}" for n in range(count)]
        jobs = [NewJob(job_id, "plain", "default", b"{}") for job_id in ids]
        self.acknowledged += ids
        await self.ledger.apply("enqueue", (jobs,), {})
        for _ in range(SUSPECT_AFTER):
            session = Session(id=self.random.randbytes(16).hex(), ttl=0.01)
            await self.ledger.apply("open_session", (session,), {})
            lanes = (Lane("default", "plain"),)
            want = ReserveRequest(count, lanes, nonce=self.random.randbytes(16))
            await self.ledger.apply("exchange", (session.id, 1, [], want), {})
            await elapse(0.02)
            await self.ledger.apply("rescue", (count,), {"max_lost": self.settings.max_lost})
        return ids

    async def until_all_ended(self, seconds: float = _REST) -> None:
        """Let time pass until no job is unfinished, and none is on its way to the backend."""
        until = self.loop.time() + seconds
        while len(self.ledger.ended) < len(self.ledger.due) or self.net.enqueues_under_way:
            assert self.ledger.violations == []
            assert self.loop.time() < until, f"not at rest: {await self._unfinished()}"
            await elapse(0.25)

    async def watch_progress(self) -> None:
        """From now on, a job that is held has a worker that makes progress on it, or it is taken
        back within the time to live and a sweep. Progress: its handler runs, or its session makes
        exchanges."""
        began = self.loop.time()
        latest: dict[tuple[str, Lease], float] = {}
        while not self.loop.over:
            now = self.loop.time()
            for job_id, (session, lease) in self.ledger.held.items():
                runs = self._at_work.get(job_id, ())
                if any(run.holds_lease and not run.worker.process.paused for run in runs):
                    latest[job_id, lease] = now
                exchanged = self.ledger.last_exchange[session] - self.clock.monotonic() + now
                since = max(began, exchanged, latest.get((job_id, lease), began))
                if now - since > TTL + SWEEP:
                    self.fail(f"nobody works on {job_id}, and nobody takes it back")
                    return
            await elapse(0.1)

    async def watch_idle_jobs(self) -> None:
        """From now on, a job that may run starts within a few exchanges that ask for its lane and
        get fewer jobs than they ask for.
        """
        since: dict[tuple[str, int], int] = {}
        while not self.loop.over:
            idle = {
                # A job that was handed out since has begun to wait anew.
                (facts.job.id, len(self.ledger.tokens[facts.job.id])): facts.job
                for facts in await find_idle_jobs(self.backend)
            }
            since = {wait: count for wait, count in since.items() if wait in idle}
            for wait, job in idle.items():
                asked = self.ledger.unfilled[job.queue, job.name]
                if asked - since.setdefault(wait, asked) > EXCHANGES:
                    self.fail(f"{job.id} waits, though it may run and workers ask for it")
                    return
            await elapse(0.5)

    async def watch_runs(self) -> None:
        """No suspended run waits for what has come."""
        suspended = JobFilter(states=frozenset({State.SUSPENDED}), queue=RUN_QUEUE)
        while not self.loop.over:
            for job in (await self.backend.reads.list_jobs(suspended, limit=1_000)).jobs:
                try:
                    await check_waits(self.backend, job.id)
                except AssertionError as violation:
                    self.fail(str(violation))
                    return
            await elapse(0.1)

    async def _unfinished(self) -> list[Any]:
        page = await self.backend.reads.list_jobs(limit=1000)
        return [job for job in page.jobs if not job.state.finished]

    # The producer

    async def _produce(self) -> None:
        process = self.loop.begin("client")
        client = Processor(
            wired(self.net, process, self.backend.new_handle()),
            self.settings,
            clock=LocalClock(self.loop, wrong=-7200.0),
            random=Random(self.seed + 3),
            entropy=Random(self.seed + 4).randbytes,
        )
        random = Random(self.seed + 5)
        register_keyed(client, lambda ctx, data: None)  # the producer computes the keys
        async with client:
            for number in range(self._job_count):
                if random.random() < 0.2:  # jobs come in bursts
                    await elapse(random.expovariate(0.2 * self._job_count / (_STORM * 0.7)))
                await self._enqueue_one(client, random, f"job-{number}")
                if self.acknowledged and random.random() < 0.08:
                    await self._cancel_one(client, random.choice(self.acknowledged))

    async def _enqueue_one(self, client: Processor, random: Random, job_id: str) -> None:
        payload = b'{"n": "%s"}' % (b"x" * random.randrange(800))
        options: dict[str, Any] = {"id": job_id, "priority": random.randrange(10)}
        if random.random() < 0.3:
            options["after"] = random.uniform(0.0, 2.0)
        if random.random() < 0.5:
            options["tenant"] = random.choice("tuvw")
        name = random.choice(NAMES)
        if random.random() < 0.1:
            options["unique_key"] = f"key-{random.randrange(3)}"
        elif random.random() < 0.25:
            name = "plain"
            options |= {"unique_key": "draft", "unique": REPLACE, "after": 1.0}
        try:
            stored = await client.enqueue_raw(name, payload, **options)
            if "unique" not in options:
                assert stored == job_id
            self.acknowledged.append(stored)
        except BackendUnavailable:
            self.counts["enqueues not acknowledged"] += 1
        except DuplicateJob:
            self.counts["unique keys taken"] += 1

    async def _cancel_one(self, client: Processor, job_id: str) -> None:
        try:
            await client.cancel(job_id)
            self.counts["cancels"] += 1
        except BackendUnavailable:
            self.counts["cancels without an answer"] += 1
        except JobNotFound:
            self.counts["cancels of pruned jobs"] += 1

    async def _send_new_tenants(self) -> None:
        """Each second brings jobs of tenants that were never seen before."""
        for number in range(int(_STORM) * _NEW_TENANTS):
            await elapse(1.0 / _NEW_TENANTS)
            options = JobOptions(tenant=f"new-{number}")
            job = NewJob(f"visit-{number}", "plain", "default", b"{}", options=options)
            await self.ledger.apply("enqueue", ([job],), {})
            self.counts["new tenants"] += 1

    async def _send_flows(self) -> None:
        """Flows are enqueued over the net, some in two parts, until they are acknowledged."""
        random = Random(self.seed + 9)
        handle = wired(self.net, self.loop.begin("flows"), self.backend.new_handle())
        await handle.open()
        for number in range(_FLOWS):
            await elapse(random.expovariate(_FLOWS / (_STORM * 0.7)))
            jobs, flows = make_graph(random, f"flow-{number}")
            if random.random() < 0.2:
                part = jobs[: random.randint(1, len(jobs))]
                await self._enqueue_until_acknowledged(handle, part, flows)
            await self._enqueue_until_acknowledged(handle, jobs, flows)
            self.acknowledged += [job.id for job in jobs]
            self.counts["flows"] += 1
        await handle.close()

    async def _enqueue_until_acknowledged(
        self, handle: Backend, jobs: list[NewJob], flows: list[NewFlow]
    ) -> None:
        while True:
            try:
                await handle.producing.enqueue(jobs, flows)
            except BackendUnavailable:
                self.counts["flows enqueued again"] += 1
                await elapse(0.1)
            else:
                return

    async def _operate(self) -> None:
        """An operator replays and cancels members of flows, and jobs are pruned meanwhile."""
        random, until = Random(self.seed + 10), self.loop.time() + _STORM
        while self.loop.time() < until:
            await elapse(random.expovariate(2.0))
            members = self.ledger.flows.jobs
            match random.randrange(4):
                case 0 | 1:
                    failed = [
                        job_id
                        for job_id in members
                        if self.ledger.ended.get(job_id) is State.FAILED and random.random() < 0.5
                    ]
                    await self.ledger.apply("change_jobs", (BulkAction.REPLAY, failed), {})
                case 2 if members and random.random() < 0.5:
                    flow = members[random.choice([*members])].options.flow
                    ids = [job.id for job in members.values() if job.options.flow == flow]
                    await self.ledger.apply("change_jobs", (BulkAction.CANCEL, ids), {})
                    self.counts["flows cancelled"] += 1
                case _:
                    await self.ledger.apply("prune", (_KEPT, 1_000), {})

    async def _hold_transactions(self) -> None:
        """A caller enqueues jobs of known tenants, and commits seconds later."""
        random, number, until = Random(self.seed + 7), 0, self.loop.time() + _STORM
        while self.loop.time() < until:
            number += 1
            options = JobOptions(tenant=random.choice("tuvw"), unique_key=f"caller-{number}")
            # Its due time is told, so that the order does not depend on when it is stored.
            job = NewJob(
                f"caller-{number}",
                "plain",
                "default",
                b"{}",
                at=self.clock.now() - 60.0,
                options=options,
            )
            transaction = await self._begin(self.backend, job)
            self.ledger.open_transactions += 1
            await elapse(random.uniform(0.5, 1.5 * TTL))
            self.ledger.open_transactions -= 1
            await self.ledger.commit(transaction, job)
            self.counts["callers' transactions"] += 1
            await elapse(random.uniform(0.0, 1.0))

    async def _set_clock_back(self) -> None:
        """The backend's clock steps back by up to a second, some time before the storm ends.

        It does so while no caller's transaction is open: whether a job is due would depend on when
        the backend compares its due time with the clock, at the enqueue or at the commit.
        """
        random, until = Random(self.seed + 8), self.loop.time() + _STORM - 2 * TTL
        while self.loop.time() < until:
            await elapse(random.uniform(0.5, 2.0))
            while self.ledger.open_transactions:
                await elapse(0.05)
            before = self.clock.now()
            self.clock.step_back(random.uniform(0.1, 1.0))
            self.ledger.note_step_back(before)
            self.counts["clock steps back"] += 1

    # The nemesis

    async def _nemesis(self) -> None:
        random, until = Random(self.seed + 6), self.loop.time() + _STORM
        while self.loop.time() < until:
            await elapse(random.expovariate(0.8))
            if not self.net.weather:
                continue
            victim = random.choice(self.workers)
            match random.randrange(7):
                case 0:
                    self.kill(victim)
                case 1 | 2:
                    self.loop.detach(self._pause(victim, random.uniform(0.2, 3.0) * TTL))
                case 3:
                    self._retire(victim)
                case 4:
                    seconds = random.uniform(0.2, 2.5) * TTL
                    self.net.cut_off[victim.process.name] = self.loop.time() + seconds
                    self.counts["outages"] += 1
                case 5:
                    self._slow_down(victim, random)
                case 6:
                    self.poison(victim)
            await self._settle_with_a_stolen_token(random)
        for worker in (*self.workers, *self._retired):
            self.loop.resume(worker.process)

    def _slow_down(self, worker: Worker, random: Random) -> None:
        """From now on its connection is slow, in one direction or both."""
        most = random.randint(1150, 1400)
        ways = [(most, math.inf), (most, math.inf), (math.inf, most), (most, most)]
        self.net.slow[worker.process.name] = random.choice(ways)
        self.counts["slow connections"] += 1

    def kill(self, worker: Worker) -> None:
        """It is gone in this very moment; another takes its place."""
        if worker in self.workers:
            self.counts["kills"] += 1
            self.workers.remove(worker)
            self.loop.kill(worker.process)
            self.hire()

    def replace(self, worker: Worker) -> None:
        """It ends by itself; a supervisor starts another."""
        if worker in self.workers:
            self.workers.remove(worker)
            self._retired.append(worker)
            self.hire()

    def poison(self, worker: Worker) -> None:
        """From now on its exchanges fail, for as long as it keeps its session."""
        session = worker.session
        if session is not None:
            self.counts["poisoned connections"] += 1
            self.net.poisoned.add(session)

    async def _pause(self, worker: Worker, seconds: float) -> None:
        if worker in self.workers and not worker.process.paused:
            self.counts["pauses"] += 1
            worker.process.paused = True
            await elapse(seconds)
            self.loop.resume(worker.process)

    def _retire(self, worker: Worker) -> None:
        """A deployment: it is asked to stop, its successor starts at once."""
        self.counts["restarts"] += 1
        worker.stop_requested.set()
        self.replace(worker)

    async def _settle_with_a_stolen_token(self, random: Random) -> None:
        """What a zombie would send, from a session that lives."""
        if not self.ledger.orphans:
            return
        lease = random.choice(self.ledger.orphans)
        session = Session(id=random.randbytes(16).hex(), ttl=TTL)
        await self.backend.consuming.open_session(session)
        reply = await self.backend.consuming.exchange(
            session.id, 1, [Completed(lease)], RESERVE_NOTHING
        )
        await self.backend.consuming.close_session(session.id)
        assert reply.results == [Settled.STALE], f"{lease} was lost, and settled: {reply.results}"
        self.counts["stolen tokens refused"] += 1

    # The handlers

    def register(self, processor: Processor, worker: Worker) -> None:
        """Give a worker its handlers."""

        async def handle(ctx: Context, data: bytes) -> str:
            async with self._watched(ctx, data, worker):
                if ctx.name in RATES:
                    self._call_service(ctx)
                await self.behave(ctx, worker)
            return "r" * Random(f"{self.seed} {ctx.job_id} result").randrange(400, 1000)

        processor.register("plain", handle)
        rate = Limit(rate=RATE.rate, burst=RATE.burst)
        processor.register("limited", handle, concurrency=LIMITS["limited"], limits=[rate])
        processor.register("timed", handle, timeout=0.7)
        register_keyed(processor, handle)

    @asynccontextmanager
    async def _watched(self, ctx: Context, data: bytes, worker: Worker) -> AsyncIterator[None]:
        """Two workers never treat a lease on one job as valid at the same time."""
        assert data in self.ledger.payloads[ctx.job_id]
        at_work = self._at_work.setdefault(ctx.job_id, [])
        run = Run(worker)
        if not self.loop.over:
            if not run.holds_lease:
                self.fail(f"{ctx.job_id} was begun on {worker.process} after its lease")
            for rival in at_work:
                if rival.holds_lease:
                    self.fail(f"{ctx.job_id} runs on {worker.process} and {rival.worker.process}")
        at_work.append(run)
        self.runs[ctx.job_id] += 1
        self.ledger.begun.add((ctx.job_id, ctx.fence))
        try:
            yield
        finally:
            at_work.remove(run)

    def _call_service(self, ctx: Context) -> None:
        """A call may cost more than it took, or be refused."""
        luck = Random(f"{self.seed} {ctx.job_id} {self.runs[ctx.job_id]} service")
        if luck.random() < 0.2:
            ctx.spend(luck.choice((1, 2, 3)))
            if luck.random() < 0.3:
                ctx.rate_limited(luck.uniform(0.0, 0.5))

    async def behave(self, ctx: Context, worker: Worker) -> None:
        """What a handler does."""
        luck = Random(f"{self.seed} {ctx.job_id} {self.runs[ctx.job_id]}")
        await elapse(luck.uniform(0.0, 0.05))
        kills = 40 if ctx.lost >= SUSPECT_AFTER else 1.5
        match luck.choices(range(11), weights=(50, 15, 7, 5, 8, 3, 2, 3, 3, kills, 1.5))[0]:
            case 1:
                raise ValueError("as planned")
            case 2:
                raise Snooze(luck.uniform(0.0, 1.0))
            case 3:
                raise Retry("as planned", after=luck.uniform(0.0, 1.0))
            case 4:
                await self._take_long(ctx, luck.uniform(0.5, 2.5) * TTL)
            case 5:
                raise PermanentError("as planned")
            case 6:
                raise Cancel("as planned")
            case 7:
                await self.hold_on(luck.uniform(0.2, 1.5) * TTL)
            case 8:
                self.counts["cancelled by itself"] += 1
                raise asyncio.CancelledError
            case 9 | 10 as end if self.net.weather and not self.loop.over:
                await self._end_worker(worker, killed=end == 9)

    async def _end_worker(self, worker: Worker, *, killed: bool) -> None:
        """A handler ends its worker: it kills the process, or cancels all tasks of the loop."""
        if killed:
            self.counts["handlers that killed"] += 1
            self.kill(worker)
        else:
            self.counts["handlers that cancelled everything"] += 1
            worker.cancel_everything()
        await asyncio.sleep(0)

    async def _take_long(self, ctx: Context, seconds: float) -> None:
        for step in range(4):
            await elapse(seconds / 4)
            ctx.progress(step / 4, "on its way")

    async def hold_on(self, seconds: float) -> None:
        """Does not want to be cancelled."""
        until = self.loop.time() + seconds
        while self.loop.time() < until and not self.loop.over:
            try:
                await elapse(until - self.loop.time())
            except asyncio.CancelledError:
                self.counts["cancellations ignored"] += 1

    # Looking

    def note(self, event: Event) -> None:
        """Count what workers tell of themselves. At the end of the world, some may tell nothing."""
        if self.loop.over:
            return
        if isinstance(event, SessionEnded) and event.how == "lost":
            self.counts["sessions lost"] += 1

    def fail(self, what: str) -> None:
        """A handler saw something that must not be; its exception alone would be a retry."""
        self.loop.faults.append({"message": what})

    async def check_rest(self) -> None:
        """Look at everything once more when all have gone."""
        ledger = self.ledger
        jobs = {job.id: job for job in (await self.backend.reads.list_jobs(limit=10_000)).jobs}
        assert set(self.acknowledged) <= jobs.keys() | ledger.pruned, (
            "an acknowledged job is missing"
        )
        assert jobs.keys() == ledger.due.keys() - ledger.pruned
        assert ledger.due.keys() == ledger.ended.keys()
        for job_id, job in jobs.items():
            assert job.state is ledger.ended[job_id]
            assert job.failures == ledger.failures[job_id] <= MAX_RETRIES + 1
            assert job.lost == ledger.lost[job_id] <= self.settings.max_lost
            keeps_payload = (
                job.state is State.FAILED
                or job.reason in REOPENED_REASONS
                or (job.state is State.COMPLETED and self.backend.capabilities.keeps_arguments)
            )
            kept = ledger.payloads[job_id][-1] if keeps_payload else None
            assert (await self.backend.reads.get_job(job_id)).payload == kept
        counts = await self.backend.reads.count_jobs()
        ended = counts[State.COMPLETED] + counts[State.FAILED] + counts[State.CANCELLED]
        assert ended == sum(counts.values()) == len(jobs)
        assert await self.backend.reads.list_queues() == []
        assert (await self.backend.reads.list_tenants()).tenants == []
        await self._check_limits()
        await self._check_flows(jobs)
        check_runs(ledger.steps, ledger.ended)
        assert self.ledger.violations == []
        assert self.loop.faults == []

    async def _check_flows(self, jobs: dict[str, JobRecord]) -> None:
        """No flow runs, and none of their jobs waits or was left out without a reason."""
        flows = self.ledger.flows
        assert (await self.backend.reads.list_flows(running=True)).flows == []
        for flow in flows.flows.values():
            for info in await self.backend.reads.get_flow(flow.id):
                flows.check_flow(info)
        for job_id in flows.jobs.keys() & jobs.keys():
            flows.check_end(jobs[job_id], has_run=bool(self.ledger.tokens[job_id]))

    async def _check_limits(self) -> None:
        session = Session(
            id=self.random.randbytes(16).hex(), names=NAMES, limits=make_limits(LIMITS, rates=RATES)
        )
        left = [info for info in await self.backend.reads.list_sessions() if info.running]
        assert left == []
        await self.backend.consuming.open_session(session)
        limits = (await self.backend.consuming.heartbeat(session.id)).limits
        assert await list_uses(self.backend) == [], "a key is in use, or jobs are parked"
        assert {name: limit.in_use for name, limit in limits.items()} == dict.fromkeys(LIMITS, 0)

    def totals(self) -> Counter[str]:
        """What was injected and what came of it, by kind."""
        return self.net.happened + self.ledger.counts + self.counts


def register_keyed(processor: Processor, handle: Callable[[Context, bytes], Any]) -> None:
    """Register the handler of jobs with two limits: one job of a tenant, and two in all."""
    limits = [Limit(1, key="tenant"), Limit(KEYED["gateway"], name="gateway")]
    processor.register("keyed", handle, limits=limits)


async def within(seconds: float, task: asyncio.Task[None], otherwise: str) -> None:
    """Wait for a task that must end in so many virtual seconds."""
    done, _ = await asyncio.wait({task}, timeout=seconds)
    assert done, otherwise
    task.result()
