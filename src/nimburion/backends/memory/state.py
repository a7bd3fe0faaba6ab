"""The data of the memory backend: jobs, lanes, sessions, limits, unique keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from nimburion.backends.memory.flows import FlowTables
from nimburion.backends.memory.heaps import iter_heap
from nimburion.backends.memory.runs import RunTables
from nimburion.backends.memory.tenants import TenantTurns
from nimburion.core.exchange import DUE_WINDOW
from nimburion.core.ids import compute_digest
from nimburion.core.job import (
    AttemptError,
    JobOptions,
    JobRecord,
    Progress,
    State,
)
from nimburion.core.lease import Lease, Token
from nimburion.core.limits import (
    MAX_RETURNED,
    JobLimit,
    LimitChange,
    LimitKey,
    LimitRule,
    LimitUse,
    closes_lane,
    concerns_lane,
    find_limit_key,
)
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.queries import Pause
from nimburion.core.rate_limits import CLOCK_TOLERANCE, RateLimit, follow_clock
from nimburion.core.records import Record, RecordKind
from nimburion.core.session import Session, SessionInfo, Vitals, WorkerCommand
from nimburion.core.settlement import Settled
from nimburion.core.timing.clock import MICRO, to_micros


class LeaseEntry(msgspec.Struct, eq=False):
    """A lease on a job: its session, exchange, token and start time."""

    session: SessionEntry
    exchange_number: int
    token: Token
    started_at: int
    counted_keys: tuple[LimitKey, ...] = ()
    """The keys of limits for which the lease counts."""
    charge: int | None = None
    """What the job was charged to its tenant; None if it has no turn."""
    cancel_requested: bool = False


LanePosition = tuple[int, int, int]
"""Sort key of a job in its lane: minus its priority, due time, enqueue order. Lowest first."""


class JobEntry(msgspec.Struct, eq=False):
    """A job with its state, counters and history. Times are in microseconds since 1970."""

    id: str
    name: str
    queue: str
    payload: bytes | None
    priority: int
    options: JobOptions
    seq: int
    due: int
    created_at: int
    digest: bytes | None = None
    """Digest of name and first payload; set when the payload is replaced or removed."""
    started_at: int | None = None
    finished_at: int | None = None
    failures: int = 0
    lost: int = 0
    fence: int = 0
    final_state: State | None = None
    """The finished state of the job; None while it is unfinished."""
    reason: str | None = None
    history: tuple[AttemptError, ...] = ()
    progress: Progress | None = None
    result: bytes | None = None
    ended_by: SessionEntry | None = None
    """The session whose attempt ended the job."""
    leased: LeaseEntry | None = None
    is_suspended: bool = False
    """Whether it waits for conditions."""
    last_settled_token: Token | None = None
    """The token of the latest settlement of this job."""
    position: LanePosition | None = None
    """Position in its lane, among the scheduled jobs or among the parked ones; None if the job
    is in none of them.
    """
    parked_for: LimitKey | None = None
    """The key that has no room for the job; None if it is not parked."""

    def get_place(self) -> LanePosition:
        """Return the place of the job in its lane."""
        return (-self.priority, self.due, self.seq)

    def get_body_digest(self) -> bytes:
        """Return the digest of name and first payload, also after that was replaced or removed."""
        if self.digest is not None or self.payload is None:
            return self.digest or b""
        return compute_digest(self.name, self.payload)

    def get_state(self, now: int) -> State:
        """Return the state of the job at the time `now`, in microseconds."""
        if self.final_state is not None:
            return self.final_state
        if self.leased is not None:
            return State.PROCESSING
        if self.is_suspended:
            return State.SUSPENDED
        if self.failures:
            return State.RETRYING
        return State.SCHEDULED if self.due > now else State.PENDING

    def make_lease(self, token: Token) -> Lease:
        """Return a lease on this job with the given token."""
        return Lease(self.id, token, self.seq)

    def make_record(self, now: int, *, payload_bytes: int = 0) -> JobRecord:
        """Return the job as a `JobRecord`, with the first bytes of its payload; 0: without it."""
        session = self.leased.session if self.leased else self.ended_by
        return JobRecord(
            id=self.id,
            name=self.name,
            queue=self.queue,
            state=self.get_state(now),
            priority=self.priority,
            payload=self.payload[:payload_bytes]
            if payload_bytes and self.payload is not None
            else None,
            failures=self.failures,
            lost=self.lost,
            due=self.due / MICRO,
            created_at=self.created_at / MICRO,
            started_at=_to_seconds(self.leased.started_at if self.leased else self.started_at),
            finished_at=_to_seconds(self.finished_at),
            reason=self.reason,
            history=list(self.history),
            progress=self.progress,
            result=self.result,
            cancel_requested=self.leased is not None and self.leased.cancel_requested,
            session=self.leased.session.session.id if self.leased else None,
            ended_by=self.ended_by.session.id if self.ended_by else None,
            host=session.session.host if session else "",
            options=self.options,
        )


def _to_seconds(at: int | None) -> float | None:
    return None if at is None else at / MICRO


class SessionEntry:
    """A session of a worker, with its expiry, its last exchange and its leased jobs."""

    __slots__ = (
        "command",
        "ended_at",
        "expires_at",
        "held_several",
        "last_exchange_number",
        "last_results",
        "leased_jobs",
        "left",
        "opened_at",
        "session",
        "vitals",
    )

    def __init__(self, session: Session, opened_at: int, expires_at: float) -> None:
        self.session: Session = session
        self.opened_at: int = opened_at
        self.expires_at: float = expires_at
        """Seconds on the monotonic clock."""
        self.last_exchange_number: int = 0
        """Number of the latest exchange; 0 before the first."""
        self.last_results: list[Settled] = []
        """Results of the settlements of the latest exchange."""
        self.left: bool = False
        self.vitals: Vitals | None = None
        self.command: WorkerCommand | None = None
        self.ended_at: int | None = None
        self.held_several: bool = False
        """Whether the session held more than one job when it expired."""
        self.leased_jobs: dict[int, JobEntry] = {}
        """The jobs that this session has leased, by seq."""

    def make_info(self, monotonic: float) -> SessionInfo:
        """Return the session as a `SessionInfo`, at a time on the monotonic clock."""
        return self.session.to_info(
            opened_at=self.opened_at / MICRO,
            expires_in=self.expires_at - monotonic,
            left=self.left,
            running=len(self.leased_jobs),
            vitals=self.vitals,
            command=self.command,
        )

    @property
    def is_ended(self) -> bool:
        """Whether the session has ended. Its id is kept for a day, so it cannot be reopened."""
        return self.ended_at is not None


class KeyEntry:
    """The use of one key of a limit, and the jobs that wait for it."""

    __slots__ = ("in_use", "opens_at", "parked", "spent_until")

    def __init__(self, now: int) -> None:
        self.in_use: int = 0
        self.spent_until: int = now
        self.opens_at: int | None = None
        """When parked jobs are considered again because of the rate; None: no time is known."""
        self.parked: dict[tuple[str, str], LaneHeap] = {}
        """The parked jobs by lane, each a heap as in `MemoryState.lanes`."""

    def carry_over(self, old: RateLimit | None, new: RateLimit | None, now: int) -> None:
        """Change the rate of the key; see `RateLimit.carry_over`."""
        if old is not None and new is not None:
            self.spent_until = new.carry_over(old, self.spent_until, now)

    def has_parked(self) -> bool:
        """Return whether jobs are parked for the key."""
        return any(
            entry.position is place for heap in self.parked.values() for place, entry in heap
        )


class UniqueKeyEntry(msgspec.Struct):
    """The job that holds a unique key.

    `valid_until` is in microseconds since 1970; None: until the job finishes. `states`: the job
    holds the key only in these states; None: in each.
    """

    job_id: str
    valid_until: int | None
    states: tuple[State, ...] | None


class ReplacementEntry(msgspec.Struct):
    """An enqueue that replaced the job `job_id`; `digest` is that of the body it enqueued."""

    job_id: str
    digest: bytes
    valid_until: int
    """Microseconds since 1970; a repeat of the enqueue is recognised until then."""


LaneHeap = list[tuple[LanePosition, JobEntry]]

_NO_LIMITS: Mapping[str, LimitRule] = MappingProxyType({})


class LaneLimit(NamedTuple):
    """A limit in which all jobs of a lane count, and its use."""

    limit: JobLimit
    use: KeyEntry

    def count_room(self, now: int, most: int) -> int:
        """Return how many jobs may start now; at most `most`."""
        _, concurrency, rate = self.limit
        if concurrency is not None:
            most = min(most, max(0, concurrency - self.use.in_use))
        return most if rate is None else min(most, rate.count_room(self.use.spent_until, now))


class MemoryState:
    """All the data of one memory backend, shared by its handles."""

    def __init__(self) -> None:
        self.seq = 0
        self.jobs: dict[str, JobEntry] = {}
        self.jobs_by_seq: dict[int, JobEntry] = {}
        self.lanes: dict[tuple[str, str], LaneHeap] = defaultdict(list)
        """A heap per lane. An entry is skipped if its job no longer has the recorded position."""
        self.turns: TenantTurns = TenantTurns()
        """The waiting jobs of tenants, which are in none of the `lanes`."""
        self.scheduled: list[tuple[int, int, LanePosition, JobEntry]] = []
        """A heap by due time and seq. Outdated entries are skipped as in `lanes`."""
        self.reported_due: tuple[int, str] | None = None
        """The due time that an exchange reported last, and to which session."""
        self.sessions: dict[str, SessionEntry] = {}
        self.declared_limits: dict[str, dict[str, LimitRule]] = {}
        """What the newest session of each job name declared, by the name of the limit."""
        self.limit_changes: dict[str, LimitChange] = {}
        """Changes of whole limits, by name. They are applied in `limits`."""
        self.key_changes: dict[LimitKey, LimitChange] = {}
        self.limits: dict[str, dict[str, LimitRule]] = {}
        """What is in force, by job name and then by the name of the limit, sorted."""
        self.names_with_keys: set[str] = set()
        """The job names that have a limit for which jobs may be parked."""
        self.limits_used_at: int = 0
        """When the latest exchange considered limits."""
        self.limit_uses: defaultdict[LimitKey, KeyEntry] = defaultdict(lambda: KeyEntry(0))
        self.returning: dict[tuple[LimitKey, tuple[str, str]], int] = {}
        """How many of the jobs that are parked for a key still return to a lane, after a change of
        the limit.
        """
        self.unique_keys: dict[tuple[str, str], UniqueKeyEntry] = {}
        self.replacements: dict[str, ReplacementEntry] = {}
        """By the id of the job that was enqueued."""
        self.pauses: dict[str, Pause] = {}
        """By queue. A pause stays here after its end until the queue is paused or resumed."""
        self.statistics: dict[tuple[int, int, str, str, str], Statistics] = {}
        """By step, start, queue, name and source."""
        self.flow_tables: FlowTables = FlowTables()
        self.run_tables: RunTables = RunTables()
        self.records: defaultdict[RecordKind, dict[str, tuple[int, Record]]] = defaultdict(dict)
        """By kind, then by id, in the order in which the records were added, with their positions.
        """
        self.record_positions: int = 0
        """The number of records that were added."""

    def count_fresh_sessions(self, after: float) -> int:
        """Return the number of sessions that have not ended and expire after this time."""
        return sum(one.expires_at > after for one in self.sessions.values() if not one.is_ended)

    def find_next_expiry(self, monotonic: float) -> float:
        """Return in how many seconds the first session expires; 0 if jobs wait for a rescue."""
        return min(
            0.0 if one.is_ended else one.expires_at - monotonic
            for one in self.sessions.values()
            if not one.is_ended or one.leased_jobs
        )

    def find_pause(self, queue: str, now: int) -> Pause | None:
        """Return the pause of a queue that is in force at the time `now`, or None."""
        pause = self.pauses.get(queue)
        if pause is None or (pause.until is not None and to_micros(pause.until) <= now):
            return None
        return pause

    def list_paused(self, now: int) -> list[str]:
        """Return the queues that are paused at the time `now`, sorted."""
        return sorted(queue for queue in self.pauses if self.find_pause(queue, now))

    def add_waiting(self, entry: JobEntry, now: int, *, was_parked: bool = False) -> None:
        """Add a job to its lane if it is due, else to the scheduled jobs."""
        entry.position = place = (-entry.priority, entry.due, entry.seq)
        if entry.due > now:
            heappush(self.scheduled, (entry.due, entry.seq, place, entry))
        elif entry.options.fair_tenant is not None:
            self.turns.add(entry, place, was_parked=was_parked)
        else:
            heappush(self.lanes[entry.queue, entry.name], (place, entry))

    def peek_lane(self, lane: tuple[str, str]) -> JobEntry | None:
        """Return the first job of a lane without removing it; None if the lane is empty."""
        heap = self.lanes.get(lane)
        while heap:
            place, entry = heap[0]
            if entry.position is place:
                return entry
            heappop(heap)
        return None

    def pop_lane(self, lane: tuple[str, str]) -> JobEntry:
        """Remove and return the first job of a lane. Call only after `peek_lane` found one."""
        _, entry = heappop(self.lanes[lane])
        entry.position = None
        return entry

    def has_waiting(self, lane: tuple[str, str]) -> bool:
        """Return whether a lane holds jobs, with or without a tenant."""
        return self.peek_lane(lane) is not None or self.turns.peek(lane) is not None

    def list_limits(self, entry: JobEntry, *, uses_own_cost: bool = True) -> list[JobLimit]:
        """Return the limits in which a job counts, by name, with the changes of its keys.

        `uses_own_cost`: the rates of the limits for which it may be parked have the cost of the
        job, if it has one.
        """
        found = []
        cost = entry.options.cost if uses_own_cost else None
        for name, rule in self.limits.get(entry.name, _NO_LIMITS).items():
            key = find_limit_key(name, entry.queue, entry.options.limit_keys)
            if key is not None:
                rule = rule.apply(self.key_changes.get((name, key)))  # noqa: PLW2901
                rate = rule.rate
                if rate is not None and cost is not None and not closes_lane(name):
                    rate = msgspec.structs.replace(rate, cost=cost)
                found.append(JobLimit((name, key), rule.concurrency, rate))
        return found

    def list_lane_limits(self, queue: str, name: str) -> list[LaneLimit]:
        """Return the limits in which all jobs of a lane count, and their uses."""
        found = []
        for limit, rule in self.limits.get(name, _NO_LIMITS).items():
            if concerns_lane(limit, queue):
                key = (limit, "")
                own = JobLimit(key, rule.concurrency, rule.rate)
                found.append(LaneLimit(own, self.limit_uses[key]))
        return found

    def read_use(self, key: LimitKey) -> LimitUse:
        """Return the use of a key of a limit."""
        use = self.limit_uses.get(key)
        if use is None:
            return LimitUse()
        return LimitUse(use.in_use, use.spent_until, use.opens_at, use.has_parked())

    def save_uses(self, uses: Mapping[LimitKey, LimitUse]) -> None:
        """Store the uses of keys of limits."""
        for key, new in uses.items():
            use = self.limit_uses[key]
            use.in_use, use.spent_until, use.opens_at = new.in_use, new.spent_until, new.opens_at

    def iter_lane(self, lane: tuple[str, str]) -> Iterator[JobEntry]:
        """Yield the jobs of a lane in their order, without removing them."""
        return (entry for place, entry in iter_heap(self.lanes[lane]) if entry.position is place)

    def iter_parked(self, key: LimitKey, lane: tuple[str, str]) -> Iterator[JobEntry]:
        """Yield the jobs of a lane that are parked for a key, in their order."""
        use = self.limit_uses.get(key)
        heap = [] if use is None else use.parked.get(lane, [])
        return (entry for place, entry in iter_heap(heap) if entry.position is place)

    def park(self, entry: JobEntry, key: LimitKey) -> None:
        """Park a job, which leaves its lane or the key for which it was parked before."""
        entry.position = place = entry.get_place()
        entry.parked_for = key
        parked = self.limit_uses[key].parked
        heappush(parked.setdefault((entry.queue, entry.name), []), (place, entry))

    def unpark_job(self, entry: JobEntry) -> None:
        """Return one parked job to its lane."""
        entry.parked_for = None
        self.add_waiting(entry, entry.due, was_parked=True)

    def unpark(self, key: LimitKey, lane: tuple[str, str], count: int = 1) -> int:
        """Return jobs that are parked for a key to their lane, the first ones; return how many."""
        heap = self.limit_uses[key].parked.get(lane)
        moved = 0
        while heap and moved < count:
            place, entry = heappop(heap)
            if entry.position is place:
                self.unpark_job(entry)
                moved += 1
        if not heap:
            self.limit_uses[key].parked.pop(lane, None)
        return moved

    def let_return(self, key: LimitKey, lane: tuple[str, str], count: int) -> None:
        """Let up to `count` jobs that are parked for a key return to their lane, in steps."""
        parked = len(self.limit_uses[key].parked[lane])
        self.returning[key, lane] = max(self.returning.get((key, lane), 0), min(count, parked))

    def unpark_changed(self) -> None:
        """Return up to `MAX_RETURNED` parked jobs to their lanes after limits changed."""
        left = MAX_RETURNED
        for (key, lane), count in list(self.returning.items()):
            moved = self.unpark(key, lane, min(count, left))
            if moved < count and moved == left:
                self.returning[key, lane] = count - moved
            else:
                del self.returning[key, lane]
            left -= moved
            if left == 0:
                break

    def list_changing(self) -> set[tuple[str, str]]:
        """Return the lanes to which parked jobs still return.

        Nothing is reserved from them meanwhile, so that no job overtakes a parked one.
        """
        return {lane for _, lane in self.returning}

    def follow_clock(self, now: int) -> None:
        """Let the rates follow the clock if it was set back; see `follow_clock` in
        core/rate_limits.py. Of several rates of a limit, the one with the longest burst counts.
        """
        if not self.limits:
            return
        before = self.limits_used_at
        if abs(now - before) <= CLOCK_TOLERANCE:
            return
        self.limits_used_at = now
        if now > before:
            return
        bursts: defaultdict[str, int] = defaultdict(int)
        for rules in self.limits.values():
            for name, rule in rules.items():
                if rule.rate is not None:
                    bursts[name] = max(bursts[name], rule.rate.full_burst)
        for (name, _), use in self.limit_uses.items():
            use.spent_until = follow_clock(use.spent_until, now, before, bursts[name])
            if use.opens_at is not None:
                use.opens_at = now

    def unpark_open(self, now: int) -> list[str]:
        """Return jobs whose rate allows one now to their lanes; return the queues."""
        queues = []
        for key, use in list(self.limit_uses.items()):
            if use.opens_at is not None and use.opens_at <= now:
                use.opens_at = None
                queues += [lane[0] for lane in list(use.parked) if self.unpark(key, lane)]
        return queues

    def find_next_key_opening(self) -> int | None:
        """Return when the rate of a key first allows a parked job, or None.

        An opening stays when the last job that waited for it was cancelled or moved.
        """
        uses = self.limit_uses.values()
        times = [use.opens_at for use in uses if use.opens_at is not None and use.has_parked()]
        return min(times, default=None)

    def peek_scheduled(self) -> JobEntry | None:
        """Return the scheduled job with the earliest due time without removing it, or None."""
        while self.scheduled:
            _, _, place, entry = self.scheduled[0]
            if entry.position is place:
                return entry
            heappop(self.scheduled)
        return None

    def report_due(self, due: int, session_id: str, now: int) -> bool:
        """Return whether to report the earliest due time to a session that requests jobs, and note
        that it was reported. False: another session looks for jobs by then.
        """
        if due - now > to_micros(DUE_WINDOW):
            return True
        last = self.reported_due
        if last is not None and now < last[0] <= due and last[1] != session_id:
            session = self.sessions.get(last[1])
            if session is not None and session.ended_at is None:
                return False
        self.reported_due = (due, session_id)
        return True

    def promote(self, now: int, limit: int) -> list[JobEntry]:
        """Move up to `limit` due jobs from the scheduled jobs into their lanes, earliest first."""
        moved: list[JobEntry] = []
        while len(moved) < limit and (entry := self.peek_scheduled()) and entry.due <= now:
            heappop(self.scheduled)
            self.add_waiting(entry, now)
            moved.append(entry)
        return moved

    def remove_job(self, entry: JobEntry) -> None:
        """Remove a finished job."""
        self.flow_tables.remove_conditions(entry.id)
        self.run_tables.remove(entry.id)
        del self.jobs[entry.id]
        del self.jobs_by_seq[entry.seq]
