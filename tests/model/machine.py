"""Two backends get the same calls and must give the same answers; one is the memory backend.

Only what the contract leaves open may differ: a lease's `ref`, the text of cursors, and the order
of lists that promise none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkStep,
    Claim,
    NewBulkOperation,
    cancel_bulk_operation,
    claim_bulk_operation,
    list_bulk_operations,
    run_bulk_step,
    start_bulk_operation,
)
from nimburion.core.diagnosis.explanations import MAX_UNMET
from nimburion.core.errors import NimburionError
from nimburion.core.exchange import RESERVE_NOTHING, Lane, QueueOptions, Reply, ReserveRequest
from nimburion.core.flows import ENDS, FlowInfo, NewFlow, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import (
    NO_JOB_OPTIONS,
    WAITING,
    AttemptError,
    JobOptions,
    JobRecord,
    NewJob,
    State,
    sort_states,
)
from nimburion.core.lease import Lease, Token
from nimburion.core.limits import (
    LimitChange,
    LimitRule,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.core.maintenance import Rescued, Retention
from nimburion.core.queries import JobFilter
from nimburion.core.rate_limits import RateLimit
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    NewSignal,
    RunPage,
    make_signal_source,
    read_time_source,
    split_signal_source,
)
from nimburion.core.schedules import (
    Overlap,
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
)
from nimburion.core.session import HeartbeatReply, Session
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
    Suspended,
)
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.changing import delete, make_due, replay
from nimburion.testing.contract.harness import list_uses, make_limits
from tests.progress import EXCHANGES, find_idle_jobs

Answer = Any
"""What a backend answers, or what of it is compared."""

QUEUES = ("red", "blue")
QUEUE_LIMITS = tuple(make_queue_limit_name(queue) for queue in QUEUES)
NAMES = ("mail", "report", "scan")
JOB_LIMITS = tuple(make_job_limit_name(name) for name in NAMES)
LANES = tuple(Lane(queue, name) for queue in QUEUES for name in NAMES)
PAYLOADS = (b"{}", b"{}", b"{}", b'{"\xc3\xa9": "\\u0000"}', b'"' + 5_000 * b"x" + b'"')
"""The last is so large that backends may keep it apart from the rest."""
SESSIONS = tuple(f"{n:032x}" for n in range(5))
SIGNALS = ("go", "halt")
FLOWS = 8
"""The number of different flows."""
TENANTS = ("t", "u", "v \u00e9")
SCHEDULES = ("nightly", "hourly")
ROUNDS = 5
"""How often the progress check completes what it reserved."""
TTL = 30.0

seeds = st.integers(0, 2**32 - 1)
"""One number from which a rule draws everything: quick to draw, and it replays."""

Make = Callable[[Lease], Settlement]


@dataclass(frozen=True)
class Held:
    """A lease as each of the two backends gave it."""

    oracle: Lease
    subject: Lease


@dataclass
class Line:
    """What a worker knows of its session."""

    number: int = 0
    """Of its last exchange, and ..."""
    sent: tuple[list[tuple[Held, Make]], ReserveRequest] | None = None
    """... what that carried."""
    leases: list[Held] = field(default_factory=list)
    """The leases it knows of."""


class Twins(RuleBasedStateMachine):
    """Drives a backend against the memory backend."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.oracle: Backend = MemoryBackend(clock=self.clock)
        self.subject = self.make_subject(self.clock)
        self.lines: dict[str, Line] = {}
        self.spent: list[Held] = []
        """Leases that were settled, or whose session is over."""
        self.known: set[str] = set()
        """Every job id that was ever used."""
        self.touched: set[str] = set()
        self.step = 0
        self._both(lambda backend: backend.open())

    def teardown(self) -> None:
        try:
            for job_id in sorted(self.known | {"never"}):
                self._agree_on(job_id)
            for backend in (self.oracle, self.subject) if self.checks_progress else ():
                self.loop.run_until_complete(check_progress(backend, self.clock))
            self._both(lambda backend: backend.close())
        finally:
            self.loop.close()
            self.remove_subject()

    checks_progress = True
    """Whether an example ends with a worker that has idle slots, for which no job may wait."""
    first_step = CLEANUP_STEP
    """The lowest number of a step. Without `CLEANUP_STEP`, a cancel ends each run at once."""

    def make_subject(self, clock: FakeClock) -> Backend:
        """The backend to compare, empty and not open."""
        raise NotImplementedError

    def remove_subject(self) -> None:
        """What is left of it may go."""

    def _luck(self, seed: int) -> Random:
        """What this step draws from. Salted: hypothesis likes to give the same seed again."""
        self.step += 1
        return Random(seed * 1000 + self.step)

    # Asking both

    def _both(self, call: Callable[[Backend], Awaitable[Any]]) -> tuple[Any, Any]:
        return self._answer(call, self.oracle), self._answer(call, self.subject)

    def _answer(self, call: Callable[[Backend], Awaitable[Any]], backend: Backend) -> Answer:
        """What the backend answers, or the type of what it raises."""

        async def ask() -> Answer:
            return await call(backend)

        try:
            return self.loop.run_until_complete(ask())
        except NimburionError as error:
            return type(error)

    def _agree(
        self,
        call: Callable[[Backend], Awaitable[Any]],
        view: Callable[[Any], Any] = lambda answer: answer,
    ) -> tuple[Answer, Answer]:
        """Make the call on both; the answers, in the values of the contract, must be the same."""
        expected, actual = self._both(call)
        _check_same(expected, actual, view)
        return expected, actual

    def _touch(self, job_ids: Iterable[str]) -> None:
        """These must be read again after this step."""
        self.touched.update(job_ids)
        self.known |= self.touched

    def _agree_on(self, job_id: str) -> None:
        self._agree(lambda backend: backend.reads.get_job(job_id))
        self._agree(partial(read_run, job_id=job_id), hide_numbers)
        self._agree(lambda backend: list_sources(backend, job_id))

    # The way in

    @rule(seed=seeds)
    def enqueue(self, seed: int) -> None:
        self._enqueue(self._luck(seed))

    def _enqueue(self, luck: Random) -> None:
        jobs = [_new_job(luck) for _ in range(luck.randint(1, 4))]
        if luck.random() < 0.3:
            name, queue = luck.choice(NAMES), luck.choice(QUEUES)
            jobs = [NewJob(f"{name}-{queue}-{n}", name, queue, b"{}") for n in range(6)]
        self._touch(job.id for job in jobs)
        self._agree(lambda backend: backend.producing.enqueue(jobs))

    @rule(seed=seeds)
    def enqueue_flow(self, seed: int) -> None:
        self._enqueue_flow(self._luck(seed))

    def _enqueue_flow(self, luck: Random) -> None:
        """A flow, whole or only its first jobs. The same id always has the same graph."""
        jobs, flows = make_graph(luck.randrange(FLOWS))
        if luck.random() < 0.2:
            jobs = jobs[: luck.randint(0, len(jobs))]
        self._touch(job.id for job in jobs)
        self._agree(lambda backend: backend.producing.enqueue(jobs, flows))

    @rule(seed=seeds)
    def send_signals(self, seed: int) -> None:
        self._send_signals(self._luck(seed))

    def _send_signals(self, luck: Random) -> None:
        """Signals to jobs of all kinds, also to one that never was; some ids come again."""
        job_ids = luck.choices(sorted(self.known | {"never"}), k=luck.randint(1, 6))
        signals = [
            NewSignal(job_id, luck.choice(SIGNALS), str(luck.randrange(12)), b"%d" % number)
            for number, job_id in enumerate(job_ids)
        ]
        self._agree(lambda backend: backend.producing.send_signals(signals))
        self._touch({*job_ids} - {"never"})

    # Workers

    @rule(seed=seeds)
    def open_session(self, seed: int) -> None:
        luck = self._luck(seed)
        session = luck.choice(sorted({*self.lines, *SESSIONS}))
        limits = {name: luck.randint(1, 3) for name in NAMES if luck.random() < 0.3}
        rates = _rates(luck)
        known = {name for name in NAMES if luck.random() < 0.8} | limits.keys() | rates.keys()
        self._open_session(session, known, limits, rates, _keyed_limits(luck, known))

    def _open_session(
        self,
        session: str,
        names: Iterable[str],
        limits: dict[str, int],
        rates: dict[str, RateLimit],
        keyed: dict[str, dict[str, LimitRule]],
    ) -> None:
        about = Session(
            id=session,
            ttl=TTL,
            queues=QUEUES,
            names=tuple(sorted(names)),
            limits=make_limits(limits, rates=rates, keyed=keyed),
            weights={"t": 1.5} if session < "8" else {},
        )
        answer, _ = self._agree(lambda backend: backend.consuming.open_session(about))
        if answer is None:
            self.lines.setdefault(session, Line())

    @rule(seed=seeds, turns=st.integers(1, 4))
    def work(self, seed: int, turns: int) -> None:
        """As workers do: settle what is held, take more; now and then something is wrong."""
        luck = self._luck(seed)
        for _ in range(turns):
            if luck.random() < 0.4:
                self._enqueue(luck)
            if luck.random() < 0.2:
                self._enqueue_flow(luck)
            if luck.random() < 0.15:
                self._operate(luck)
            if luck.random() < 0.25:
                self._send_signals(luck)
            if luck.random() < 0.1:
                self.clock.advance(luck.choice((0.25, 1.0, 5.0)))
            session = self._some_session(luck)
            line = self.lines[session]
            batch = [
                (held, _settlement(luck, self.first_step))
                for held in line.leases
                if luck.random() < 0.5
            ]
            batch += self._wrong_settlements(luck, session)
            if self._exchange(session, line.number + 1, batch, _want(luck)) and luck.random() < 0.2:
                self._repeat(luck, session)

    @rule(seed=seeds)
    def work_on(self, seed: int) -> None:
        self.work(seed, 3)

    @rule(seed=seeds)
    def exchange_out_of_order(self, seed: int) -> None:
        luck = self._luck(seed)
        session = luck.choice(sorted(self.lines) or SESSIONS)
        number = self.lines.get(session, Line()).number + luck.choice((-2, -1, 2, 3))
        if number > 0:
            self._agree(
                lambda backend: backend.consuming.exchange(session, number, [], RESERVE_NOTHING)
            )

    def _some_session(self, luck: Random) -> str:
        """One that lives, as far as is known."""
        if not self.lines:
            session = luck.randbytes(16).hex()
            limits = {name: luck.randint(1, 3) for name in NAMES if luck.random() < 0.3}
            self._open_session(session, NAMES, limits, _rates(luck), _keyed_limits(luck, NAMES))
        return luck.choice(sorted(self.lines))

    def _wrong_settlements(self, luck: Random, session: str) -> list[tuple[Held, Make]]:
        """Settlements under old, foreign and forged tokens, and some twice."""
        foreign = [held for line in self.lines.values() for held in line.leases]
        own = self.lines[session].leases
        wrong = []
        if self.spent and luck.random() < 0.3:
            wrong.append(luck.choice(self.spent[-20:]))
        if foreign and luck.random() < 0.2:
            wrong.append(luck.choice(foreign))
        if own and luck.random() < 0.2:
            held, what = luck.choice(own), luck.choice(("nonce", "fence"))
            wrong.append(Held(_forged(held.oracle, what), _forged(held.subject, what)))
        return [(held, _settlement(luck, self.first_step)) for held in wrong]

    def _repeat(self, luck: Random, session: str) -> None:
        """The last number again; what it carries the second time does not matter."""
        line = self.lines[session]
        assert line.sent
        batch, want = line.sent if luck.random() < 0.7 else ([], _want(luck))
        self._exchange(session, line.number, batch, want)

    def _exchange(
        self, session: str, number: int, batch: list[tuple[Held, Make]], want: ReserveRequest
    ) -> bool:
        sent = {
            id(self.oracle): self._name_signals(
                self.oracle, [make(held.oracle) for held, make in batch]
            ),
            id(self.subject): self._name_signals(
                self.subject, [make(held.subject) for held, make in batch]
            ),
        }
        expected, actual = self._both(
            lambda backend: backend.consuming.exchange(session, number, sent[id(backend)], want)
        )
        _check_same(expected, actual, _reply)
        self._touch(held.oracle.job_id for held, _ in batch)
        if not isinstance(expected, Reply):
            self._resume_due()
            self._make_dead_letter(session)
            return False
        line = self.lines[session]
        if number > line.number:
            line.number, line.sent = number, (batch, want)
            self._note(line, batch, expected, actual)
        return True

    def _name_signals(self, backend: Backend, settlements: list[Settlement]) -> list[Settlement]:
        """Let steps take signals by their numbers, which differ from backend to backend. Until now
        they name the place among those that are unread.
        """
        named = []
        for one in settlements:
            if isinstance(one, Recorded) and one.takes is not None:
                page = self._answer(partial(read_run, job_id=one.lease.job_id), backend)
                unread = page.signals[one.takes - 1 :] if isinstance(page, RunPage) else []
                number = unread[0].number if unread else None
                one = msgspec.structs.replace(one, takes=number)  # noqa: PLW2901
            named.append(one)
        return named

    def _note(
        self, line: Line, batch: list[tuple[Held, Make]], expected: Reply, actual: Reply
    ) -> None:
        """Remember what is held from now on."""
        for (held, make), result in zip(batch, expected.results, strict=True):
            goes_on = isinstance(make(held.oracle), Progressed | Recorded | Spent)
            if result is Settled.DONE and not goes_on and held in line.leases:
                line.leases.remove(held)
                self.spent.append(held)
        for one, other in zip(expected.deliveries, actual.deliveries, strict=True):
            line.leases.append(Held(one.lease, other.lease))
            self._touch([one.lease.job_id])
            if other.run is not None:
                read = self._answer(partial(read_run, job_id=one.lease.job_id), self.subject)
                assert other.run == read

    def _make_dead_letter(self, session: str) -> None:
        line = self.lines.pop(session, None)
        if line is not None:
            self.spent += line.leases

    @rule(seed=seeds)
    def heartbeat(self, seed: int) -> None:
        luck = self._luck(seed)
        for session in sorted({*self.lines, luck.choice(SESSIONS)}):
            if luck.random() < 0.7:
                answer, _ = self._heartbeat(session)
                if isinstance(answer, type):
                    self._make_dead_letter(session)

    def _heartbeat(self, session: str) -> tuple[Answer, Answer]:
        return self._agree(lambda backend: backend.consuming.heartbeat(session), _normalize_reply)

    @rule(seed=seeds)
    @precondition(lambda self: self.lines)
    def close_session(self, seed: int) -> None:
        luck = self._luck(seed)
        session = luck.choice(sorted(self.lines))
        stuck = [held for held in self.lines[session].leases if luck.random() < 0.3]
        if self.spent and luck.random() < 0.2:
            stuck.append(luck.choice(self.spent))
        running = {
            id(self.oracle): [held.oracle for held in stuck],
            id(self.subject): [held.subject for held in stuck],
        }
        self._agree(lambda backend: backend.consuming.close_session(session, running[id(backend)]))
        if not stuck:
            self._make_dead_letter(session)

    # Housekeeping

    @rule(seconds=st.sampled_from((0.25, 1.0, 5.0, 10.0, 29.75, 30.0)))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from((0.0, 20.0, 30.0, 30.25)), max_lost=st.integers(1, 3))
    def rescue(self, seconds: float, max_lost: int) -> None:
        self.clock.advance(seconds)
        self._agree(lambda backend: backend.consuming.rescue(100, max_lost=max_lost), _rescued)

    @rule(limit=st.sampled_from((1, 2, 100)))
    def promote(self, limit: int) -> None:
        self._agree(lambda backend: backend.consuming.promote(limit))

    # Operators

    @rule(seed=seeds)
    def operate(self, seed: int) -> None:
        self._operate(self._luck(seed))

    def _operate(self, luck: Random) -> None:
        luck.choice(
            (
                self._cancel,
                self._cancel,
                self._make_due,
                self._make_due,
                self._replay,
                self._delete,
                self._prune,
                self._pause,
                self._page,
                self._change_in_bulk,
                self._weigh,
                self._change_limit,
                self._read_run,
            )
        )(luck)

    def _change_limit(self, luck: Random) -> None:
        """Change or reset a limit or one key of it."""
        name = luck.choice((*JOB_LIMITS, "k", "k", "r", "r", *QUEUE_LIMITS))
        key = luck.choice((None, "a")) if name in {"k", "r"} else None
        if luck.random() < 0.4:
            self._agree(lambda backend: backend.maintenance.reset_limit(name, key))
            return
        rate = RateLimit("4/s", 250_000 * luck.randint(1, 3), burst=luck.choice((1, 3)))
        change = LimitChange(
            name=name,
            key=key,
            concurrency=luck.choice((None, 0, 1, 3)),
            rate=luck.choice((None, None, rate)),
        )
        self._agree(lambda backend: backend.maintenance.change_limit(change))

    def _cancel(self, luck: Random) -> None:
        job_id = luck.choice(sorted(self.known | {"never"}))
        self._agree(lambda backend: backend.producing.cancel(job_id))
        if job_id != "never":
            self._touch([job_id])

    def _read_run(self, luck: Random) -> None:
        job_id, limit = luck.choice(sorted(self.known | {"never"})), luck.randint(1, 3)

        async def pages(backend: Backend) -> Answer:
            found: list[RunPage] = []
            after = None
            while True:
                page = await backend.reads.read_run(job_id, limit=limit, after=after)
                found.append(msgspec.structs.replace(hide_numbers(page), next=None))
                after = page.next
                if after is None:
                    return found

        self._agree(pages)

    def _make_due(self, luck: Random) -> None:
        job_ids = sorted(set(luck.choices(sorted(self.known | {"never"}), k=luck.randint(1, 4))))
        self._agree(lambda backend: make_due(backend, job_ids))
        self._touch(set(job_ids) - {"never"})

    def _replay(self, luck: Random) -> None:
        which = self._filter(luck, State.FAILED)
        self._agree(
            lambda backend: replay(backend, which, 1000), lambda r: (sorted(r.ids), sorted(r.held))
        )
        self._touch(self.known)

    def _delete(self, luck: Random) -> None:
        which = self._filter(luck, State.COMPLETED)
        self._agree(lambda backend: delete(backend, which, 1000), sorted)

    def _change_in_bulk(self, luck: Random) -> None:
        """Start a bulk operation, run a step or two, some under a wrong fence, and cancel it."""
        which = self._filter(luck, luck.choice(list(State)))
        new = NewBulkOperation(
            id=f"bulk-{self.step}-{luck.randrange(1000)}",
            action=luck.choice(list(BulkAction)),
            which=msgspec.structs.replace(which, states=None),
            rate=luck.choice((None, None, 0.7, 3.0)),
        )
        self._agree(lambda backend: start_bulk_operation(backend, new))
        for _ in range(luck.randint(1, 2)):
            self.clock.advance(luck.choice((0.0, 0.25, 5.0)))
            page, _ = self._both(lambda backend: backend.reads.list_jobs(new.which, limit=20))
            step = BulkStep(
                ids=tuple(job.id for job in page.jobs),
                cursor=luck.choice((None, "7")),
                exhausted=luck.random() < 0.3,
            )
            claim, _ = self._agree(lambda backend: claim_bulk_operation(backend, TTL))
            if claim.operation is not None:
                version = claim.operation.version + luck.choice((0, 0, 0, 1, -1))
                claimed = msgspec.structs.replace(claim.operation, version=version)
                claim = msgspec.structs.replace(claim, operation=claimed)
                for _ in range(luck.choice((1, 1, 2))):
                    self._run_step(claim, step)
        self._agree(lambda backend: cancel_bulk_operation(backend, new.id))
        self._agree(list_bulk_operations, lambda page: page.operations)
        self._touch(self.known)

    def _run_step(self, claim: Claim, step: BulkStep) -> None:
        self._agree(lambda backend: run_bulk_step(backend, claim, step))

    def _prune(self, luck: Random) -> None:
        keep = Retention(
            completed=luck.choice((None, 0.0, 60.0)),
            completed_max=luck.choice((None, None, 0)),
            failed=luck.choice((None, 60.0)),
            results=luck.choice((None, 0.0, 10.0)),
        )
        self._agree(lambda backend: backend.maintenance.prune(keep, 1000))

    def _pause(self, luck: Random) -> None:
        queue, paused = luck.choice(QUEUES), luck.random() < 0.4
        self._agree(lambda backend: backend.maintenance.pause_queue(queue, paused=paused))

    def _weigh(self, luck: Random) -> None:
        tenant, weight = luck.choice(TENANTS), luck.choice((None, 0.25, 2.0, 3.333))
        self._agree(lambda backend: backend.maintenance.set_tenant_weight(tenant, weight))

    def _page(self, luck: Random) -> None:
        which, step = self._filter(luck, luck.choice(list(State))), luck.randint(1, 4)

        async def pages(backend: Backend) -> Answer:
            jobs: list[Any] = []
            after = None
            while True:
                page = await backend.reads.list_jobs(which, limit=step, after=after)
                jobs += page.jobs
                after = page.next
                if after is None:
                    return jobs, await backend.reads.count_jobs(which.queue)

        self._agree(pages)

    def _filter(self, luck: Random, state: State) -> JobFilter:
        return JobFilter(
            states=luck.choice((None, frozenset({state}), frozenset(State))),
            queue=luck.choice((None, None, *QUEUES)),
            name=luck.choice((None, None, None, *NAMES)),
            reason=luck.choice((None, None, None, "lost", "exhausted")),
            ids=luck.choice(
                (None, None, tuple(luck.sample(sorted(self.known), len(self.known) // 2)))
            ),
        )

    # Schedules

    @rule(seed=seeds)
    def schedule(self, seed: int) -> None:
        luck = self._luck(seed)
        name = luck.choice(SCHEDULES)
        match luck.randrange(8):
            case 0 | 1 | 2:
                spec = luck.choice((b"{}", b'{"cron": "* * * * *"}'))
                self._agree(
                    lambda backend: put_schedule(backend, ScheduleRecord(name=name, spec=spec))
                )
            case 3:
                paused = luck.random() < 0.3
                self._agree(lambda backend: pause_schedule(backend, name, paused=paused))
            case 4:
                self._agree(lambda backend: delete_schedule(backend, name))
            case _:
                self._fire(luck, name)

    def _fire(self, luck: Random, name: str) -> None:
        overlaps: tuple[Overlap, ...] = ("allow", "skip", "queue_one", "cancel_previous")
        job, overlap = _new_job(luck), luck.choice(overlaps)
        behind, tick = luck.random() < 0.2, 60.0 * luck.randint(1, 5)

        async def decide(backend: Backend) -> Answer:
            last = {s.name: s.last_tick for s in await list_schedules(backend)}.get(name)
            return await backend.producing.fire(name, 59.0 if behind else last, tick, job, overlap)

        self._agree(decide)
        self._touch([job.id])

    # What must be the same after each step

    @invariant()
    def same_jobs(self) -> None:
        self._resume_due()
        touched, self.touched = sorted(self.touched)[:3], set()
        for job_id in touched:
            self._agree_on(job_id)

    @invariant()
    def same_lists(self) -> None:
        async def read(backend: Backend) -> Answer:
            jobs = (await backend.reads.list_jobs(limit=1000, payloads=True)).jobs
            counts, queues = await backend.reads.count_jobs(), await backend.reads.list_queues()
            tenants = await backend.reads.list_tenants()
            flows = (await backend.reads.list_flows(limit=100)).flows
            for flow in flows:
                check_flow(await backend.reads.get_flow(flow.id), jobs)
            return (
                jobs,
                [await backend.reads.get_flow(flow.id) for flow in flows],
                counts,
                queues,
                await backend.reads.list_sessions(),
                await list_schedules(backend),
                [
                    # Others may open when the first parked job may run: see below.
                    (limit.name, limit.changes, limit.room, is_own and limit.opens_at)
                    for limit in await backend.reads.list_limits(holders=0)
                    for is_own in [limit.name in JOB_LIMITS]
                    if limit.rules or limit.changes
                ],
                [
                    (use.limit, use.key, use.in_use)
                    for use in await list_uses(backend)
                    if use.in_use
                ],
                tenants.weights,
                # A backend may return the parked jobs of a changed limit later than another.
                [msgspec.structs.replace(use, waiting=0) for use in tenants.tenants if use.running],
            )

        self._agree(read)

    def _resume_due(self) -> None:
        """Let both resume the runs whose time has come: other steps may do it, or leave it."""
        self._agree(lambda backend: backend.consuming.promote(0), lambda promoted: promoted.count)

    @invariant()
    def no_run_waits_for_what_has_come(self) -> None:
        async def check(backend: Backend) -> None:
            suspended = JobFilter(states=frozenset({State.SUSPENDED}))
            for job in (await backend.reads.list_jobs(suspended, limit=1000)).jobs:
                await check_waits(backend, job.id)

        self.loop.run_until_complete(check(self.oracle))


async def read_run(backend: Backend, job_id: str) -> RunPage:
    return await backend.reads.read_run(job_id)


def hide_numbers(page: RunPage) -> RunPage:
    """Return a page whose signals have no numbers: only their order is promised."""
    numbers = [signal.number for signal in page.signals]
    assert numbers == sorted({*numbers})
    signals = [msgspec.structs.replace(signal, number=0) for signal in page.signals]
    return msgspec.structs.replace(page, signals=signals)


async def list_sources(backend: Backend, job_id: str) -> Answer:
    """Return what a job waits for, without an order."""
    facts = await backend.reads.explain_job(job_id)
    named = facts.unmet if facts.unmet_count <= MAX_UNMET else []
    return facts.unmet_count, {(one.condition.source, one.condition.on) for one in named}


async def check_waits(backend: Backend, job_id: str, *, after_promotion: bool = False) -> None:
    """Check that nothing has come of what a durable run waits for, and that its steps and signals
    are in order. A time may have come since the last step that looked for times.
    """
    facts, page = await backend.reads.explain_job(job_id), await backend.reads.read_run(job_id)
    numbers = [step.number for step in page.steps]
    assert numbers == sorted({*numbers}), f"{job_id} has a step twice"
    places = [signal.number for signal in page.signals]
    assert places == sorted({*places}), f"{job_id} has a signal twice"
    unread = {signal.name for signal in page.signals}
    for one in facts.unmet:
        source = one.condition.source
        if one.condition.on is not On.ANY:
            continue
        match source.kind:
            case SourceKind.SIGNAL:
                assert split_signal_source(source.id)[1] not in unread, f"{job_id}: {source}"
            case SourceKind.TIME:
                is_ahead = read_time_source(source.id) > facts.now
                assert is_ahead or not after_promotion, f"{job_id}: {source}"
            case _:
                assert one.flow is not None, f"{job_id}: {source}"
                assert one.flow.unfinished, f"{job_id}: {source}"
    assert CANCEL_SIGNAL not in unread, f"{job_id} was asked to end, and waits"


def check_flow(tree: Sequence[FlowInfo], jobs: Sequence[JobRecord]) -> None:
    """Check a flow and its groups against the records of its jobs, of which none is missing."""
    states = {job.id: job.state for job in jobs}
    flows = {flow.id: flow for flow in tree}
    for flow in tree:
        assert 0 <= flow.unfinished <= flow.members, flow
    for job in jobs:
        if job.options.flow != tree[0].id or job.state is not State.SUSPENDED:
            continue
        if job.started_at is not None:
            continue  # a durable run: its conditions were met before
        for condition in job.options.conditions:
            source = condition.source
            if source.kind is SourceKind.JOB:
                ended = states.get(source.id, State.PENDING)
                met = judge_end(condition.on, ended)
            else:
                flow = flows[source.id]
                ended = State.COMPLETED if not flow.has_failed else State.FAILED
                met = None if flow.unfinished else judge_end(condition.on, ended)
            assert met is not False, f"{job.id} waits for {source}, which cannot come any more"


def judge_end(on: On, state: State) -> bool | None:
    """Return whether the end of a source meets a condition; None: it has not ended."""
    if not state.finished:
        return None
    return on is On.FINISHED or (state is State.COMPLETED) is (on is On.SUCCESS)


async def check_progress(backend: Backend, clock: FakeClock) -> None:
    """Work as a worker with idle slots does, and see that no job waits which may run.

    The sessions of before have expired. Each round reserves what may run, and then completes it, so
    that the jobs behind it have room.
    """
    clock.advance(2 * TTL)
    await backend.consuming.rescue(1_000, max_lost=3)
    await backend.consuming.promote(1_000)
    suspended = JobFilter(states=frozenset({State.SUSPENDED}))
    for job in (await backend.reads.list_jobs(suspended, limit=1000)).jobs:
        await check_waits(backend, job.id, after_promotion=True)
    session = Session(id="f" * 32, ttl=1e6, queues=QUEUES)
    await backend.consuming.open_session(session)
    number, leases = 0, list[Lease]()
    for _ in range(ROUNDS):
        completed = [Completed(lease) for lease in leases]
        leases = []
        for _ in range(EXCHANGES):
            number += 1
            want = ReserveRequest(100, LANES, nonce=number.to_bytes(16, "big"))
            reply = await backend.consuming.exchange(session.id, number, completed, want)
            leases += [delivery.lease for delivery in reply.deliveries]
            completed = []
        idle = await find_idle_jobs(backend)
        assert idle == [], f"{backend.describe()}: these jobs wait though they may run"
        clock.advance(0.25)


WAITING_STATES = sort_states(WAITING)
FRESH_OR_COMPLETED = (State.PENDING, State.COMPLETED)


def _new_job(luck: Random) -> NewJob:
    number = luck.randrange(30)
    same = Random(number)  # mostly the same body under the same id; else a conflict
    plain = luck.random() < 0.6
    return NewJob(
        id=f"job-{number}" if number % 3 else str(UUID(int=number)),  # backends may pack a UUID
        name=same.choice(NAMES),
        queue=luck.choice(QUEUES),
        payload=same.choice(PAYLOADS) if luck.random() < 0.95 else luck.choice(PAYLOADS),
        priority=luck.randint(4, 6),
        # Multiples of a quarter second are the same number in floats and in microseconds.
        after=0.0 if luck.random() < 0.7 else luck.randint(1, 200) / 4,
        options=NO_JOB_OPTIONS
        if plain
        else JobOptions(
            headers=luck.choice(({}, {"a": "b"})),
            unique_key=luck.choice((None, "k1", "k2")),
            unique_for=luck.choice((None, None, 10.0)),
            unique_while=luck.choice((None, None, WAITING_STATES, FRESH_OR_COMPLETED)),
            on_duplicate=luck.choice(("reject", "existing", "existing", "replace", "replace")),
            max_wait=luck.choice((None, 5.0)),
            max_retries=luck.choice((None, 2)),
            limit_keys=luck.choice(({}, {"k": luck.choice("ab"), "r": luck.choice("ab")})),
            tenant=luck.choice((None, *TENANTS, *TENANTS)),
            fair=luck.random() < 0.9,
        ),
    )


def make_graph(number: int) -> tuple[list[NewJob], list[NewFlow]]:
    """Return the jobs of a flow, each after those it waits for, and the flow with its groups."""
    luck = Random(number)
    flow = f"flow-{number}"
    groups = [f"{flow}.{name}" for name in "pq"[: luck.randint(0, 2)]]
    sources = [WaitSource(SourceKind.FLOW, group) for group in groups]
    jobs = []
    for position in range(luck.randint(1, 6)):
        job_id = f"{flow}.{position}"
        waits = luck.sample(sources, min(len(sources), luck.choice((0, 1, 1, 2))))
        group = luck.choice((None, *groups))
        if group is not None:  # else a group could wait for itself
            waits = [source for source in waits if source.kind is SourceKind.JOB]
        conditions = tuple(
            WaitCondition(source, luck.choice((On.SUCCESS, On.SUCCESS, *ENDS))) for source in waits
        )
        jobs.append(_new_member(luck, job_id, flow, group, conditions))
        sources.append(WaitSource(SourceKind.JOB, job_id))
    counted = Counter(job.options.counted_flow for job in jobs)
    flows = [
        NewFlow(
            id=flow,
            name="graph",
            members=counted[flow] + len(groups),
            max_failed=luck.choice((0, 0, 1)),
        ),
        *(
            NewFlow(
                id=group,
                name="group",
                members=counted[group],
                parent=flow,
                max_failed=luck.choice((0, 0, 1)),
            )
            for group in groups
        ),
    ]
    end = WaitSource(SourceKind.FLOW, flow)
    jobs += [
        _new_member(luck, f"{flow}.{on}", flow, "", (WaitCondition(end, on),))
        for on in ENDS
        if luck.random() < 0.5
    ]
    return jobs, flows


def _new_member(
    luck: Random,
    job_id: str,
    flow: str,
    group: str | None,
    conditions: tuple[WaitCondition, ...],
) -> NewJob:
    options = JobOptions(
        flow=flow,
        group=group,
        conditions=conditions,
        unique_key=luck.choice((None, None, None, job_id)),
        tenant=luck.choice((None, None, *TENANTS)),
        limit_keys=luck.choice(({}, {"k": "a"})),
    )
    name, queue = luck.choice(NAMES), luck.choice(QUEUES)
    after = 0.0 if luck.random() < 0.8 else 5.0
    return NewJob(job_id, name, queue, b"{}", luck.randint(4, 6), None, after, options)


def _settlement(luck: Random, first_step: int) -> Make:
    """What to say of an attempt, for whichever lease."""
    delay, units = luck.choice((0.0, 0.25, 1.0, 20.0)), luck.choice((1, 5, -2))
    number, takes, forgets = (
        luck.randrange(first_step, 5),
        luck.choice((None, 1, 2)),
        luck.random() < 0.1,
    )
    names = [name for name in SIGNALS if luck.random() < 0.6]
    flows = [f"flow-{luck.randrange(FLOWS)}"] if luck.random() < 0.4 else []
    until = luck.choice((None, None, delay))
    error = AttemptError(1, luck.choice(("failure", "timeout")), "ValueError", "no luck")
    makes: list[Make] = [
        Completed,
        lambda lease: Completed(lease, b'{"sum": 1}'),
        lambda lease: Retried(lease, delay, error),
        lambda lease: Failed(lease, "exhausted", error),
        Released,
        lambda lease: Released(lease, delay),
        lambda lease: Cancelled(lease, "no more"),
        lambda lease: Progressed(lease, 0.5, "half"),
        lambda lease: Released(lease, unstarted=True),
        lambda lease: Released(lease, delay, unstarted=True),
        lambda lease: RateLimited(lease, delay),
        lambda lease: Spent(lease, units),
        lambda lease: Recorded(lease, number, b"%d" % number, takes, forgets),
        lambda lease: Suspended(lease, _list_sources(lease.job_id, names, flows), until),
    ]
    return luck.choices(makes, weights=(2, 1, 2, 2, 1, 1, 1, 2, 1, 1, 1, 1, 3, 3))[0]


def _list_sources(job_id: str, names: list[str], flows: list[str]) -> tuple[WaitSource, ...]:
    return (
        *(make_signal_source(job_id, name) for name in names),
        *(WaitSource(SourceKind.FLOW, flow_id) for flow_id in flows),
    )


def _keyed_limits(luck: Random, names: Iterable[str]) -> dict[str, dict[str, LimitRule]]:
    """Limits by key of some names, often the same ones, and shared by names."""
    rate = RateLimit("often", interval=500_000, burst=luck.choice((1, 1, 2)))
    limits = {"k": LimitRule(luck.choice((1, 1, 2))), "r": LimitRule(rate=rate)}
    if luck.random() < 0.3:
        limits[luck.choice(QUEUE_LIMITS)] = LimitRule(luck.choice((1, 3)))
    some = {name: limit for name, limit in limits.items() if luck.random() < 0.8}
    return {name: some for name in names if some and luck.random() < 0.6}


def _rates(luck: Random) -> dict[str, RateLimit]:
    """Rate limits of some names. Their times are multiples of a quarter second, as all times."""
    return {
        name: RateLimit(
            "often",
            interval=250_000 * luck.randint(1, 4),
            burst=luck.randint(1, 4),
            cost=luck.choice((1, 1, 2, 6)),
        )
        for name in NAMES
        if luck.random() < 0.3
    }


def _want(luck: Random) -> ReserveRequest:
    if luck.random() < 0.2:
        return RESERVE_NOTHING
    whole = luck.random() < 0.7
    return ReserveRequest(
        total=luck.randint(1, 5),
        lanes=LANES if whole else tuple(luck.sample(LANES, luck.randint(1, 5))),
        queues={
            queue: QueueOptions(luck.randint(0, 2), luck.choice((None, None, 0, 1, 2)))
            for queue in QUEUES
            if luck.random() < 0.5
        },
        ageing=luck.choice((0.0, 10.0)),
        nonce=luck.randbytes(16),
    )


def _forged(lease: Lease, what: str) -> Lease:
    token = lease.token
    false = (
        Token(token.fence + 1, token.nonce) if what == "fence" else Token(token.fence, bytes(16))
    )
    return msgspec.structs.replace(lease, token=false)


def _named(lease: Lease) -> tuple[str, Token]:
    return lease.job_id, lease.token


def _check_same(expected: Answer, actual: Answer, view: Callable[[Any], Any]) -> None:
    if isinstance(expected, type) or isinstance(actual, type):
        assert actual == expected
    else:
        assert view(actual) == view(expected)


def _reply(reply: Reply) -> Answer:
    deliveries = [
        # A backend may leave the run out.
        (_named(one.lease), msgspec.structs.replace(one, lease=None, run=None))
        for one in reply.deliveries
    ]
    waiting = {(lane.queue, lane.name) for lane in reply.waiting}
    return reply.results, deliveries, waiting, reply.next_due, reply.now


def _normalize_reply(reply: HeartbeatReply) -> Answer:
    return {_named(lease) for lease in reply.cancel}, sorted(reply.paused), reply.limits


def _rescued(rescued: Rescued) -> Answer:
    return sorted(rescued.returned), sorted(rescued.failed), sorted(rescued.cancelled)
