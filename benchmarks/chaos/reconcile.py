"""Compares the event log of a run with the records of the backend.

Nothing here asks the backend: `EventLog` is what processes wrote down, and `End` is what the
backend says of a job after the run. A violation names the jobs that it concerns.

- A *delivery* is a job under one token. Deliveries of a job are ordered by their fence, apart from
  restarts of the server: it may forget its last writes, and then gives the same fences out again.
  So a delivery after a restart is newer than every delivery before it.
- A run is *wasted* if no settlement of it was written: its worker was killed or paused, or was cut
  off. Its job must run again.
- A worker *held* a delivery at a fault if it had received it, and had no answer to its settlement.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from benchmarks.chaos.event_log import (
    Acknowledged,
    Fault,
    Joined,
    Line,
    Reserved,
    RunEnded,
    RunStarted,
    SessionOver,
    Settled,
    StepRan,
    parse_token,
    read_events,
)
from nimburion.core.job import JobRecord, Reason, State

AFTERMATH = 0.5
"""Seconds after a fault within which a worker reads replies that waited meanwhile."""
WRITTEN = frozenset({"done", "already"})
ENDING = frozenset({"completed", "failed", "cancelled"})
UNENDING = frozenset({"progressed", "spent", "recorded"})
"""The settlements after which the attempt continues."""
TAKING = ("kill", "pause")
"""The faults that take a worker from its jobs. The others may."""
LASTING = ("pause", "black hole", "restart")
"""The faults that last, and so can delay the recovery from another one."""
PRECEDENCE = (*TAKING, "restart", "black hole", "lost reply", "cut")
"""Which fault explains a run if several hit its worker: the first of these."""


class End(msgspec.Struct, frozen=True):
    """What the backend says of a job after the run."""

    state: State
    token: str | None = None
    """The token under which the job was completed: the beginning of its result."""
    session: str | None = None
    """The session whose attempt ended the job; None if no attempt did."""
    reason: str | None = None
    failures: int = 0
    lost: int = 0
    failed_in: tuple[tuple[str, int], ...] = ()
    """Session and number of each attempt that failed or timed out."""
    rescued: tuple[tuple[str, float], ...] = ()
    """Session of each attempt that lost its worker, and when the job was rescued from it."""
    value: str | None = None
    """The rest of the result."""


def describe_end(record: JobRecord, clock_offset: float) -> End:
    """Return what matters of a record.

    `clock_offset`: what to subtract from the clock of the backend to get that of the event log.
    """
    lost = [error for error in record.history if error.kind == "lost"]
    result = None if record.result is None else msgspec.json.decode(record.result, type=str)
    token, _, value = (result or "").partition(" ")
    return End(
        state=record.state,
        token=token or None,
        value=value or None,
        session=record.ended_by,
        reason=record.reason,
        failures=record.failures,
        lost=record.lost,
        failed_in=tuple((e.session, e.attempt) for e in record.history if e.kind != "lost"),
        rescued=tuple((error.session, error.at - clock_offset) for error in lost),
    )


class Delivery(msgspec.Struct):
    """One delivery of a job, and what was logged about it."""

    job: str
    token: str
    fence: int
    at: float
    pid: int
    session: str
    attempt: int | None = None
    """The attempt that ran under it; None if its handler never began."""
    settled: tuple[float, float, str] | None = None
    """When its settlement was sent and answered, and its kind, if it was written."""
    refused: bool = False
    """Whether a settlement of it was refused as stale."""
    ended: bool = False
    """Whether its handler returned, raised or was interrupted."""


class EventLog:
    """The events of a run, by job."""

    def __init__(self, events: Iterable[tuple[int, Line]]) -> None:
        self.acknowledged: set[str] = set()
        self.deliveries: dict[str, Delivery] = {}
        """By token."""
        self.by_job: dict[str, list[Delivery]] = defaultdict(list)
        """Each job's deliveries, oldest first."""
        self.faults: list[Fault] = []
        self.lost_sessions: set[str] = set()
        self.joined: dict[str, list[Joined]] = defaultdict(list)
        """Each run of a join."""
        self.steps: list[StepRan] = []
        """Each call of a step of a durable run."""
        events = list(events)
        for pid, event in events:
            self._add(pid, event)
        for _, event in events:  # of jobs whose deliveries are known now
            if isinstance(event, RunStarted):
                self.deliveries[event.token].attempt = event.attempt
            elif isinstance(event, RunEnded):
                self.deliveries[event.token].ended = True
            elif isinstance(event, Settled):
                self._add_results(event)
        self.faults.sort(key=lambda fault: fault.at)
        self._downs = [fault.down for fault in self.faults if fault.down is not None]
        for deliveries in self.by_job.values():
            deliveries.sort(key=lambda one: (self.count_restarts(one.at), one.fence, one.at))

    def count_restarts(self, at: float) -> int:
        """Return how often the server had stopped by then. A restart may forget leases, so fences
        are in order only between two of them.
        """
        return bisect_left(self._downs, at)

    def _add(self, pid: int, event: Line) -> None:
        match event:
            case Acknowledged():
                self.acknowledged.update(event.jobs)
            case Reserved():
                self._add_deliveries(pid, event)
            case Fault():
                self.faults.append(event)
            case Joined():
                self.joined[event.job].append(event)
            case StepRan():
                self.steps.append(event)
            case SessionOver(how="lost"):
                self.lost_sessions.add(event.session)
            case _:
                pass

    def _add_deliveries(self, pid: int, event: Reserved) -> None:
        for job, token in event.deliveries:
            if token in self.deliveries:  # the same reply, read again after a repeat
                continue
            _, parsed = parse_token(token)
            one = Delivery(job, token, parsed.fence, event.at, pid, event.session)
            self.deliveries[token] = one
            self.by_job[job].append(one)

    def _add_results(self, event: Settled) -> None:
        for token, kind, result in event.results:
            delivery = self.deliveries[token]
            if kind in UNENDING:
                continue
            if result not in WRITTEN:
                delivery.refused = True
            elif delivery.settled is None:
                delivery.settled = event.sent, event.at, kind

    def get_next(self, delivery: Delivery) -> Delivery | None:
        """Return the next delivery of the same job, or None."""
        later = self.by_job[delivery.job]
        place = later.index(delivery) + 1
        return later[place] if place < len(later) else None


class FaultFigures(msgspec.Struct):
    """What the faults of one kind did."""

    count: int = 0
    held: int = 0
    """Deliveries that the workers held which they hit."""
    runs_again: int = 0
    """Runs that were wasted by them: their jobs ran again."""
    rescued: list[float] = []
    """Seconds until the jobs of each worker were rescued, as the backend says."""
    delivered: list[float] = []
    """Seconds until the last of them was delivered to another worker."""
    rescued_undisturbed: list[float] = []
    """As `rescued`, of those faults during which there was no other lasting fault."""


class Reconciliation(msgspec.Struct):
    """The outcome. Violations are lists of job ids; all of them must be empty."""

    acknowledged: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    failed_as_lost: int = 0
    deliveries: int = 0
    runs: int = 0
    extra_runs: int = 0
    """Runs beyond those whose outcome the backend counted."""
    losses: int = 0
    """The sum of `lost` of all jobs."""
    refused: int = 0
    """Settlements that the backend refused as stale."""
    dropped: int = 0
    """Runs of live workers that ended too late, and that the worker did not even try to settle."""
    forgotten: int = 0
    """Settlements that a server had answered, and no longer knew after a restart."""
    expired_without_fault: int = 0
    """Wasted runs of sessions that expired although no fault hit their worker: the machine was
    busy, or another worker was paused while it held the write lock of SQLite."""
    faults: dict[str, FaultFigures] = {}
    lost: list[str] = []
    """Acknowledged, and not in the backend, or not ended."""
    ended_twice: list[str] = []
    """Two settlements that end the job were written, and no restart explains it."""
    stale_accepted: list[str] = []
    """A settlement was written under a token that was not the valid lease any more."""
    unexplained: list[str] = []
    """Ran again although no fault hit the worker of the run before."""

    @property
    def violations(self) -> dict[str, list[str]]:
        """The jobs of each violation that occurred."""
        named = {
            "lost": self.lost,
            "ended twice": self.ended_twice,
            "stale settlement accepted": self.stale_accepted,
            "ran again without a fault": self.unexplained,
        }
        return {name: jobs for name, jobs in named.items() if jobs}


def reconcile(log: EventLog, ends: Mapping[str, End]) -> Reconciliation:
    """Compare a log with what the backend says."""
    outcome = Reconciliation(
        acknowledged=len(log.acknowledged),
        deliveries=len(log.deliveries),
        runs=sum(one.attempt is not None for one in log.deliveries.values()),
        losses=sum(end.lost for end in ends.values()),
        refused=sum(one.refused for one in log.deliveries.values()),
        failed_as_lost=sum(end.reason == Reason.LOST for end in ends.values()),
    )
    count_states(ends, outcome)
    outcome.lost = find_lost(log.acknowledged, ends)
    outcome.stale_accepted = find_stale_accepted(log, ends)
    check_settled_twice(log, outcome)
    figures = outcome.faults
    for fault in log.faults:
        figures.setdefault(fault.kind, FaultFigures()).count += 1
    count_held(log, figures)
    if "restart" in figures:  # the workers did not hold these, and the server did not know that
        figures["restart"].held += outcome.forgotten
    count_extra_runs(log, ends, outcome)
    measure_recovery(log, ends, figures)
    return outcome


def count_states(ends: Mapping[str, End], outcome: Reconciliation) -> None:
    """Count how the jobs ended."""
    states = Counter(end.state for end in ends.values())
    outcome.completed = states[State.COMPLETED]
    outcome.failed = states[State.FAILED]
    outcome.cancelled = states[State.CANCELLED]


def find_lost(acknowledged: Collection[str], ends: Mapping[str, End]) -> list[str]:
    """Return the jobs that were acknowledged and have not ended."""
    return sorted(job for job in acknowledged if job not in ends or not ends[job].state.finished)


def find_stale_accepted(log: EventLog, ends: Mapping[str, End]) -> list[str]:
    """Return the jobs that ended, or were given back, under a token that was not their lease.

    The lease of a job is its newest delivery. So the token of its end must be that of the newest
    delivery, which nobody can have received after the end. A settlement before the end must have
    been sent before the next delivery was received.
    """
    stale = {job for job, end in ends.items() if ended_under_old_token(log.by_job[job], end)}
    for deliveries in log.by_job.values():
        for one, successor in pairwise(deliveries):
            if one.settled is not None and one.settled[0] > successor.at:
                stale.add(one.job)
    return sorted(stale)


def ended_under_old_token(deliveries: Sequence[Delivery], end: End) -> bool:
    """Tell whether a job's end names another token or session than its newest delivery."""
    if end.session is None or end.reason == Reason.LOST or was_cancelled_by_rescue(deliveries, end):
        return False
    if not deliveries:
        return True
    newest = deliveries[-1]
    wrong_token = end.state is State.COMPLETED and end.token != newest.token
    return wrong_token or end.session != newest.session


def was_cancelled_by_rescue(deliveries: Sequence[Delivery], end: End) -> bool:
    """Tell whether a rescue ended a job whose cancel was requested: no worker settled it.

    Its session may have been killed before it logged the delivery.
    """
    if end.state is not State.CANCELLED or not end.rescued:
        return False
    session, at = end.rescued[-1]
    return session == end.session and all(one.at <= at for one in deliveries)


def check_settled_twice(log: EventLog, outcome: Reconciliation) -> None:
    """Find jobs with two endings that were written.

    A server may forget the first in a restart: what workers write does not wait for its disk.
    """
    restarts = [fault for fault in log.faults if fault.kind == "restart"]
    for job, deliveries in log.by_job.items():
        final = [d for d in deliveries if d.settled is not None and d.settled[2] in ENDING]
        for one in final[:-1]:
            successor = log.get_next(one)
            assert one.settled is not None
            assert successor is not None
            answered = one.settled[1]
            if any(r.until >= answered and r.at <= successor.at for r in restarts):
                outcome.forgotten += 1
            else:
                outcome.ended_twice.append(job)


def count_held(log: EventLog, figures: Mapping[str, FaultFigures]) -> None:
    """Count the deliveries that the workers held which the faults hit.

    A delivery that several faults of one kind hit counts once.
    """
    held: dict[str, set[str]] = defaultdict(set)
    by_pid = group_by_pid(log)
    for fault in log.faults:
        for pid in fault.processes:
            held[fault.kind].update(one.token for one in find_held(by_pid[pid], fault))
    for kind, tokens in held.items():
        figures[kind].held = len(tokens)


def group_by_pid(log: EventLog) -> dict[int, list[Delivery]]:
    """Return the deliveries of each worker, in the order in which it received them."""
    by_pid: dict[int, list[Delivery]] = defaultdict(list)
    for one in log.deliveries.values():
        by_pid[one.pid].append(one)
    for deliveries in by_pid.values():
        deliveries.sort(key=lambda one: one.at)
    return by_pid


def find_held(deliveries: Sequence[Delivery], fault: Fault) -> list[Delivery]:
    """Return the deliveries that a worker held at the beginning of a fault."""
    count = bisect_left(deliveries, fault.at, key=lambda one: one.at)
    return [d for d in deliveries[:count] if d.settled is None or d.settled[1] >= fault.at]


def count_extra_runs(log: EventLog, ends: Mapping[str, End], outcome: Reconciliation) -> None:
    """Count the runs whose outcome was not written, by the fault that explains each."""
    by_pid: dict[int, list[Fault]] = defaultdict(list)
    for fault in log.faults:
        for pid in fault.processes:
            by_pid[pid].append(fault)
    killed = {pid for fault in log.faults if fault.kind == "kill" for pid in fault.processes}
    for job, deliveries in log.by_job.items():
        runs = [one for one in deliveries if one.attempt is not None]
        wasted = [one for one in runs if not is_counted(one, ends.get(job))]
        if len(wasted) == len(runs):
            wasted = wasted[:-1]  # never ended by an attempt: the first run of all was due
        outcome.extra_runs += len(wasted)
        outcome.dropped += sum(d.ended and not d.refused and d.pid not in killed for d in wasted)
        for one in wasted:
            explain(log, one, by_pid[one.pid], ends.get(job), outcome)


def is_counted(run: Delivery, end: End | None) -> bool:
    """Tell whether the backend counts a run: as a failure, as the end of its job, or as one after
    which it waits.
    """
    if end is None:
        return False
    if run.settled is not None and run.settled[2] == "suspended":
        return True
    if (run.session, run.attempt) in end.failed_in:
        return True
    return run.token == end.token if end.token is not None else run.session == end.session


def explain(
    log: EventLog,
    run: Delivery,
    faults: Sequence[Fault],
    end: End | None,
    outcome: Reconciliation,
) -> None:
    """Attribute a wasted run to a fault of its worker between its delivery and the next one.

    A worker that is killed just after its session has expired does not log that. The backend tells
    from which sessions it has rescued the job.
    """
    rescued = {session for session, _ in end.rescued} if end is not None else set()
    successor = log.get_next(run)
    until = float("inf") if successor is None else successor.at
    kinds = {f.kind for f in faults if f.until + AFTERMATH >= run.at and f.at <= until}
    if kinds:
        outcome.faults[min(kinds, key=PRECEDENCE.index)].runs_again += 1
    elif run.session in log.lost_sessions | rescued:
        outcome.expired_without_fault += 1
    else:
        outcome.unexplained.append(run.job)


def measure_recovery(
    log: EventLog, ends: Mapping[str, End], figures: Mapping[str, FaultFigures]
) -> None:
    """Measure how long after each kill and pause the jobs of its worker were rescued and delivered
    again."""
    by_pid = group_by_pid(log)
    lasting = [fault for fault in log.faults if fault.kind in LASTING]
    for fault in log.faults:
        if fault.kind not in TAKING:
            continue
        held = find_held(by_pid[fault.processes[0]], fault)
        after = [one.at for one in map(log.get_next, held) if one is not None]
        if delivered := [at for at in after if at > fault.at]:
            figures[fault.kind].delivered.append(max(delivered) - fault.at)
        if rescued := list(find_rescues(held, ends, fault.at)):
            last = max(rescued)
            figures[fault.kind].rescued.append(last - fault.at)
            if not any(o is not fault and o.at <= last and o.until >= fault.at for o in lasting):
                figures[fault.kind].rescued_undisturbed.append(last - fault.at)


def find_rescues(
    held: Iterable[Delivery], ends: Mapping[str, End], after: float
) -> Iterator[float]:
    """Yield when each of these deliveries was rescued, if it was."""
    for one in held:
        for session, at in ends[one.job].rescued if one.job in ends else ():
            if session == one.session and at > after:
                yield at


def read_log(folder: Path) -> EventLog:
    """Read the event log of a run."""
    return EventLog(read_events(folder))
