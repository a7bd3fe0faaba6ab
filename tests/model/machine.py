"""Two stores get the same calls and must give the same answers; one is the memory store.

Only what the contract leaves open may differ: a lease's `ref`, the text of cursors, and the order
of lists that promise none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Backend
from nimburion.core.errors import NimburionError
from nimburion.core.exchange import NOTHING, Lane, QueueTerms, Reply, Want
from nimburion.core.job import AttemptError, NewJob, Options, State
from nimburion.core.lease import Lease, Token
from nimburion.core.reading import JobFilter, Overlap, Rescued, Retention, ScheduleRecord
from nimburion.core.session import Orders, Session
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settlement,
)
from nimburion.testing.clock import FakeClock

Answer = Any
"""What a store answers, or what of it is compared."""

QUEUES = ("red", "blue")
NAMES = ("mail", "report", "scan")
LANES = tuple(Lane(queue, name) for queue in QUEUES for name in NAMES)
IDS = tuple(f"job-{n}" for n in range(12))
SESSIONS = tuple(f"{n:032x}" for n in range(5))
SCHEDULES = ("nightly", "hourly")
TTL = 30.0

# Multiples of a quarter second are the same number in floats, microseconds and milliseconds.
quarters = st.integers(0, 240).map(lambda n: n / 4)
names = st.sampled_from(NAMES)
queues = st.sampled_from(QUEUES)
job_ids = st.sampled_from(IDS)
session_ids = st.sampled_from(SESSIONS)
payloads = st.sampled_from((b"{}", b'{"n": 1}', '{"é": "\\u0000"}'.encode()))
errors = st.builds(
    AttemptError,
    attempt=st.just(1),
    kind=st.sampled_from(("failure", "timeout")),
    type=st.just("ValueError"),
    message=st.sampled_from(("", "no luck")),
)
options = st.builds(
    Options,
    headers=st.sampled_from(({}, {"a": "b"})),
    unique_key=st.sampled_from((None, None, "k1", "k2")),
    unique_for=st.sampled_from((None, None, 10.0)),
    on_duplicate=st.sampled_from(("reject", "existing")),
    max_retries=st.sampled_from((None, 2)),
)
new_jobs = st.builds(
    NewJob,
    id=job_ids,
    name=names,
    queue=queues,
    payload=payloads,
    priority=st.integers(3, 7),
    after=st.just(0.0) | quarters,
    options=st.just(Options()) | options,
)
wants = st.builds(
    Want,
    total=st.integers(1, 5),
    lanes=st.just(LANES) | st.lists(st.sampled_from(LANES), unique=True).map(tuple),
    queues=st.dictionaries(
        queues,
        st.builds(QueueTerms, priority=st.integers(0, 2), cap=st.sampled_from((None, 0, 1, 2))),
    ),
    ageing=st.sampled_from((0.0, 10.0)),
    nonce=st.binary(min_size=16, max_size=16),
)
filters = st.builds(
    JobFilter,
    states=st.none() | st.frozensets(st.sampled_from(State), min_size=1),
    queue=st.none() | queues,
    name=st.none() | names,
    reason=st.none() | st.sampled_from(("lost", "exhausted")),
    ids=st.none() | st.lists(job_ids, unique=True).map(tuple),
)


@dataclass
class Held:
    """A lease as each of the two stores gave it, and what became of it as far as was said."""

    oracle: Lease
    subject: Lease


@dataclass
class Line:
    """What a worker knows of its session: the number of its last exchange, and what it sent."""

    number: int = 0
    sent: tuple[list[tuple[Held, Callable[[Lease], Settlement]]], Want] | None = None
    leases: list[Held] = field(default_factory=list)


class Twins(RuleBasedStateMachine):
    """Drives a store against the memory store."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.oracle: Backend = MemoryBackend(clock=self.clock)
        self.subject = self.make_subject(self.clock)
        self.lines: dict[str, Line] = {}
        self.touched: set[str] = set()
        self._both(lambda store: store.open())

    def teardown(self) -> None:
        try:
            for job_id in IDS:
                self._agree_on(job_id)
            self._both(lambda store: store.close())
        finally:
            self.loop.close()
            self.remove_subject()

    def make_subject(self, clock: FakeClock) -> Backend:
        """The store to compare, empty and not open."""
        raise NotImplementedError

    def remove_subject(self) -> None:
        """What is left of it may go."""

    # Asking both

    def _both(self, call: Callable[[Backend], Awaitable[Any]]) -> tuple[Any, Any]:
        return self._answer(call, self.oracle), self._answer(call, self.subject)

    def _answer(self, call: Callable[[Backend], Awaitable[Any]], store: Backend) -> Answer:
        """What the store answers, or the type of what it raises."""

        async def ask() -> Answer:
            return await call(store)

        try:
            return self.loop.run_until_complete(ask())
        except NimburionError as error:
            return type(error)

    def _agree(
        self,
        call: Callable[[Backend], Awaitable[Any]],
        view: Callable[[Any], Any] = lambda answer: answer,
    ) -> Answer:
        """Make the call on both; what they said, in the contract's terms, must be the same."""
        expected, actual = self._both(call)
        if isinstance(expected, type) or isinstance(actual, type):
            assert actual == expected
        else:
            assert view(actual) == view(expected)
        return expected, actual

    def _agree_on(self, job_id: str) -> None:
        self._agree(lambda store: store.get(job_id))

    # The way in

    @rule(jobs=st.lists(new_jobs, min_size=1, max_size=3, unique_by=lambda job: job.id))
    def enqueue(self, jobs: list[NewJob]) -> None:
        self.touched.update(job.id for job in jobs)
        self._agree(lambda store: store.enqueue(jobs))

    @rule(name=names, queue=queues, count=st.integers(2, 6))
    def enqueue_many_alike(self, name: str, queue: str, count: int) -> None:
        jobs = [NewJob(f"{name}-{queue}-{n}", name, queue, b"{}") for n in range(count)]
        self.touched.update(job.id for job in jobs)
        self._agree(lambda store: store.enqueue(jobs))

    @rule(job_id=job_ids)
    def cancel(self, job_id: str) -> None:
        self._agree(lambda store: store.cancel(job_id))

    # Workers

    @initialize(limits=st.sampled_from(({}, {"mail": 1}, {"mail": 2, "scan": 1})))
    def begin(self, limits: dict[str, int]) -> None:
        self.open_session(SESSIONS[0], frozenset(NAMES), limits)

    @rule(
        session=session_ids,
        known=st.frozensets(names),
        limits=st.dictionaries(names, st.integers(1, 3), max_size=2),
    )
    def open_session(self, session: str, known: frozenset[str], limits: dict[str, int]) -> None:
        names = tuple(sorted(known | limits.keys()))
        about = Session(id=session, ttl=TTL, queues=QUEUES, names=names, limits=limits)
        answer, _ = self._agree(lambda store: store.open_session(about))
        if answer is None:
            self.lines.setdefault(session, Line())

    @rule(target=leases, data=st.data(), want=st.just(NOTHING) | wants | wants)
    @precondition(lambda self: self.lines)
    def exchange(self, data: st.DataObject, want: Want) -> Answer:
        """The next number, with settlements that mostly are the session's own."""
        session = data.draw(st.sampled_from(sorted(self.lines)))
        line = self.lines[session]
        batch = []
        if line.leases:
            count = data.draw(st.integers(0, min(3, len(line.leases))))
            for _ in range(count):
                held = data.draw(st.sampled_from(line.leases))
                batch.append((held, data.draw(settlements())))
        return self._exchange(session, line.number + 1, batch, want)

    @rule(
        target=leases,
        data=st.data(),
        held=leases,
        want=st.just(NOTHING) | wants,
        forged=st.sampled_from((None, None, "nonce", "fence")),
    )
    @precondition(lambda self: self.lines)
    def settle_under_any_lease(
        self, data: st.DataObject, held: Held, want: Want, forged: str | None
    ) -> Answer:
        """Old, foreign and forged tokens."""
        session = data.draw(st.sampled_from(sorted(self.lines)))
        if forged:
            held = Held(_forged(held.oracle, forged), _forged(held.subject, forged))
        batch = [(held, data.draw(settlements()))]
        return self._exchange(session, self.lines[session].number + 1, batch, want)

    @rule(target=leases, data=st.data(), other=st.booleans(), want=wants)
    @precondition(lambda self: any(line.sent for line in self.lines.values()))
    def repeat_exchange(self, data: st.DataObject, other: bool, want: Want) -> Answer:
        """The last number again; what it carries the second time does not matter."""
        able = sorted(session for session, line in self.lines.items() if line.sent)
        session = data.draw(st.sampled_from(able))
        line = self.lines[session]
        assert line.sent
        batch, first_want = line.sent
        return self._exchange(session, line.number, batch, want if other else first_want)

    @rule(session=session_ids, off=st.sampled_from((-2, -1, 2, 3)))
    def exchange_out_of_order(self, session: str, off: int) -> None:
        number = self.lines.get(session, Line()).number + off
        if number > 0:
            self._agree(lambda store: store.exchange(session, number, [], NOTHING))

    def _exchange(
        self,
        session: str,
        number: int,
        batch: list[tuple[Held, Callable[[Lease], Settlement]]],
        want: Want,
    ) -> Answer:
        sent = {
            id(self.oracle): [make(held.oracle) for held, make in batch],
            id(self.subject): [make(held.subject) for held, make in batch],
        }
        expected, actual = self._agree(
            lambda store: store.exchange(session, number, sent[id(store)], want), _reply
        )
        if not isinstance(expected, Reply):
            return multiple()
        line = self.lines[session]
        fresh = number > line.number
        line.number, line.sent = number, (batch, want)
        held = [
            Held(one.lease, other.lease)
            for one, other in zip(expected.deliveries, actual.deliveries, strict=True)
        ]
        self.touched.update(one.oracle.job_id for one in held)
        if fresh:
            line.leases += held
        return multiple(*(held if fresh else ()))

    @rule(session=session_ids)
    def beat(self, session: str) -> None:
        self._agree(lambda store: store.beat(session), _orders)

    @rule(data=st.data())
    @precondition(lambda self: self.lines)
    def close_session(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(sorted(self.lines)))
        line = self.lines[session]
        stuck = data.draw(st.lists(st.sampled_from(line.leases), max_size=2)) if line.leases else []
        running = {
            id(self.oracle): [held.oracle for held in stuck],
            id(self.subject): [held.subject for held in stuck],
        }
        self._agree(lambda store: store.close_session(session, running[id(store)]))

    # Housekeeping

    @rule(seconds=st.sampled_from((0.25, 1.0, 5.0, 10.0, 29.75, 30.0, 30.25, 120.0, 86_400.0)))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(max_lost=st.integers(1, 3))
    def rescue(self, max_lost: int) -> None:
        self._agree(lambda store: store.rescue(100, max_lost=max_lost), _rescued)

    @rule(seconds=st.sampled_from((30.0, 30.25, 45.0)))
    def let_all_expire_and_rescue(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.rescue(3)

    @rule(limit=st.sampled_from((1, 2, 100)))
    def promote(self, limit: int) -> None:
        self._agree(lambda store: store.promote(limit))

    @rule(
        keep=st.builds(
            Retention,
            completed=st.sampled_from((None, 0.0, 60.0)),
            completed_max=st.sampled_from((None, None, 0)),
            failed=st.sampled_from((None, 60.0)),
            results=st.sampled_from((None, 0.0, 10.0)),
        )
    )
    def prune(self, keep: Retention) -> None:
        self._agree(lambda store: store.prune(keep, 1000))

    # Operators

    @rule(which=filters)
    def replay(self, which: JobFilter) -> None:
        self._agree(
            lambda store: store.replay(which, 1000), lambda r: (sorted(r.ids), sorted(r.held))
        )

    @rule(which=filters)
    def delete(self, which: JobFilter) -> None:
        self._agree(lambda store: store.delete(which, 1000), sorted)

    @rule(queue=queues, paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        self._agree(lambda store: store.pause(queue, paused=paused))

    @rule(which=filters, step=st.integers(1, 4))
    def read_page_by_page(self, which: JobFilter, step: int) -> None:
        async def pages(store: Backend) -> list[Any]:
            jobs, after = [], None
            while True:
                page = await store.list_jobs(which, limit=step, after=after)
                jobs += page.jobs
                after = page.next
                if after is None:
                    return jobs

        self._agree(pages)

    @rule(queue=queues)
    def count_one_queue(self, queue: str) -> None:
        self._agree(lambda store: store.counts(queue))

    # Schedules

    @rule(name=st.sampled_from(SCHEDULES), spec=st.sampled_from((b"{}", b'{"cron": "* * * * *"}')))
    def put_schedule(self, name: str, spec: bytes) -> None:
        self._agree(lambda store: store.put_schedule(ScheduleRecord(name=name, spec=spec)))

    @rule(name=st.sampled_from(SCHEDULES), paused=st.booleans())
    def pause_schedule(self, name: str, paused: bool) -> None:
        self._agree(lambda store: store.pause_schedule(name, paused=paused))

    @rule(name=st.sampled_from(SCHEDULES))
    def delete_schedule(self, name: str) -> None:
        self._agree(lambda store: store.delete_schedule(name))

    @rule(
        name=st.sampled_from(SCHEDULES),
        job=new_jobs,
        overlap=st.sampled_from(("allow", "skip", "queue_one", "cancel_previous")),
        tick=st.integers(1, 5).map(lambda n: n * 60.0),
        behind=st.booleans(),
    )
    def fire(self, name: str, job: NewJob, overlap: Overlap, tick: float, behind: bool) -> None:
        async def decide(store: Backend) -> Answer:
            last = {s.name: s.last_tick for s in await store.list_schedules()}.get(name)
            expected = 59.0 if behind else last
            return await store.fire(name, expected, tick, job, overlap)

        self.touched.add(job.id)
        self._agree(decide)

    # What must be the same after each step

    @invariant()
    def same_jobs(self) -> None:
        self._agree(lambda store: store.list_jobs(limit=1000, payloads=True), lambda p: p.jobs)

    @invariant()
    def same_records(self) -> None:
        touched, self.touched = sorted(self.touched)[:3], set()
        for job_id in touched:
            self._agree_on(job_id)

    @invariant()
    def same_counts_and_queues(self) -> None:
        async def read(store: Backend) -> Answer:
            return await store.counts(), await store.queues()

        self._agree(read)

    @invariant()
    def same_sessions(self) -> None:
        self._agree(lambda store: store.sessions())

    @invariant()
    def same_schedules(self) -> None:
        self._agree(lambda store: store.list_schedules())


@st.composite
def settlements(draw: st.DrawFn) -> Callable[[Lease], Settlement]:
    """What to say of an attempt, for whichever lease."""
    delay, error = draw(quarters), draw(errors)
    settle: Callable[[Lease], Settlement] = draw(
        st.sampled_from(
            (
                Completed,
                lambda lease: Completed(lease, b'{"sum": 1}'),
                lambda lease: Retried(lease, delay, error),
                lambda lease: Retried(lease, 0.0, error),
                lambda lease: Failed(lease, "exhausted", error),
                Released,
                lambda lease: Released(lease, delay),
                lambda lease: Cancelled(lease, "no more"),
                lambda lease: Progressed(lease, 0.5, "half"),
            )
        )
    )
    return settle


def _forged(lease: Lease, what: str) -> Lease:
    token = lease.token
    false = (
        Token(token.fence + 1, token.nonce) if what == "fence" else Token(token.fence, bytes(16))
    )
    return msgspec.structs.replace(lease, token=false)


def _named(lease: Lease) -> tuple[str, Token]:
    return lease.job_id, lease.token


def _reply(reply: Reply) -> Answer:
    deliveries = [
        (_named(one.lease), msgspec.structs.replace(one, lease=None)) for one in reply.deliveries
    ]
    waiting = {(lane.queue, lane.name) for lane in reply.waiting}
    return reply.results, deliveries, waiting, reply.next_due, reply.now


def _orders(orders: Orders) -> Answer:
    return {_named(lease) for lease in orders.cancel}, sorted(orders.paused), orders.gates


def _rescued(rescued: Rescued) -> Answer:
    return sorted(rescued.returned), sorted(rescued.failed), sorted(rescued.cancelled)
