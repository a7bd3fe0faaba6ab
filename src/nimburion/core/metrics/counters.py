"""Counters of this process since it started: its jobs by queue and name, and its calls to the
backend.

The statistics of the backend and the metrics are both read from them. A worker updates them for
every job. On that path it only appends two numbers to lists. `count_pending` counts them later,
which takes a third of the time of counting each at once (measured).
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

from nimburion.core.job import Enqueued, NewJob
from nimburion.core.metrics.histogram import Histogram
from nimburion.core.metrics.statistics import RUN_BOUNDS, WAIT_BOUNDS, Counters
from nimburion.core.transactions import EnqueueCount

MAX_LANES = 2_000
"""The maximum number of pairs of queue and name that are counted separately."""
OTHER = "other"
"""The queue and the name under which all further pairs are counted."""

CALL_BOUNDS: tuple[float, ...] = (
    0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0,
)  # fmt: skip
"""Inclusive upper bounds of the buckets of call times, in seconds; one more bucket has the rest."""

SIZE_BOUNDS: tuple[float, ...] = (0, 1, 3, 10, 30, 100, 300, 1000)
"""Inclusive upper bounds of the buckets of jobs in one exchange; one more bucket has the rest."""
_MAX_PENDING = 1_000
"""Times are counted when there are 1,000, or when they are read."""


ExemplarValue = tuple[Mapping[str, str], float, float]
"""The labels of an exemplar, its value, and its time in epoch seconds."""


class LaneCounters:
    """The counters of the jobs of one name in one queue. They only increase."""

    __slots__ = (
        "_lock",
        "cancelled",
        "completed",
        "completed_runs",
        "enqueued",
        "failed",
        "failed_by_reason",
        "lost",
        "name",
        "other_runs",
        "queue",
        "recent_runs",
        "recent_waits",
        "released",
        "rescued",
        "retried",
        "run_buckets",
        "run_exemplars",
        "run_seconds",
        "started",
        "wait_buckets",
        "wait_seconds",
        "waits",
    )

    def __init__(self, queue: str, name: str) -> None:
        self.queue: str = queue
        self.name: str = name
        self.enqueued: int = 0
        self.waits: list[float] = []
        """The wait times in seconds of attempts that started and are not counted yet."""
        self.completed_runs: list[float] = []
        """The run times in seconds of attempts that completed their job, not counted yet."""
        self.other_runs: list[float] = []
        """The run times of attempts that ended otherwise, not counted yet."""
        self.started: int = 0
        self.completed: int = 0
        self.failed: int = 0
        """Attempts that made a dead letter of their job."""
        self.failed_by_reason: dict[str, int] = {}
        """Dead letters by `Reason`; those of a rescue too, which no attempt made."""
        self.retried: int = 0
        self.released: int = 0
        self.cancelled: int = 0
        self.lost: int = 0
        """Attempts that ended after the worker had lost their lease."""
        self.rescued: int = 0
        self.wait_seconds: float = 0.0
        self.wait_buckets: list[int] = [0] * (len(WAIT_BOUNDS) + 1)
        self.run_seconds: float = 0.0
        self.run_buckets: list[int] = [0] * (len(RUN_BOUNDS) + 1)
        self.run_exemplars: dict[int, ExemplarValue] = {}
        """The latest traced attempt of each bucket of run times."""
        self.recent_waits: Histogram = Histogram()
        """The wait times that were counted since the last `take_times`."""
        self.recent_runs: Histogram = Histogram()
        self._lock = threading.Lock()

    def count_pending(self) -> None:
        """Count the times in the lists. Safe from any thread, while the worker appends to them.

        Does nothing while another thread counts. It does not wait for it: after a fork, the child
        may have a copy of the lock that no thread releases.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            waits = _take(self.waits)
            completed, other = _take(self.completed_runs), _take(self.other_runs)
            self.started += len(waits)
            self.completed += len(completed)
            runs = completed + other
            waits.sort()
            runs.sort()
            self.wait_seconds += _count_times(waits, WAIT_BOUNDS, self.wait_buckets)
            self.run_seconds += _count_times(runs, RUN_BOUNDS, self.run_buckets)
            self.recent_waits.observe_sorted(waits)
            self.recent_runs.observe_sorted(runs)
        finally:
            self._lock.release()

    def take_times(self) -> tuple[Histogram, Histogram]:
        """Return the wait and run times that were counted since the last call.

        Returns none while another thread counts, so that the next call returns them.
        """
        taken = Histogram(), Histogram()
        if self._lock.acquire(blocking=False):
            try:
                new = Histogram(), Histogram()
                taken = self.recent_waits, self.recent_runs
                self.recent_waits, self.recent_runs = new
            finally:
                self._lock.release()
        return taken

    def note_exemplar(self, labels: Mapping[str, str], seconds: float, at: float) -> None:
        """Remember a traced attempt that ran `seconds` and ended `at`, in epoch seconds."""
        self.run_exemplars[bisect_left(RUN_BOUNDS, seconds)] = (labels, seconds, at)

    def count_dead_letter(self, reason: str) -> None:
        """Count a job that became a dead letter."""
        self.failed_by_reason[reason] = self.failed_by_reason.get(reason, 0) + 1

    def add(self, other: LaneCounters) -> None:
        """Add the counters of another process or client."""
        self.enqueued += other.enqueued
        self.started += other.started
        self.completed += other.completed
        self.failed += other.failed
        for reason, count in list(other.failed_by_reason.items()):
            self.failed_by_reason[reason] = self.failed_by_reason.get(reason, 0) + count
        self.retried += other.retried
        self.released += other.released
        self.cancelled += other.cancelled
        self.lost += other.lost
        self.rescued += other.rescued
        self.wait_seconds += other.wait_seconds
        self.run_seconds += other.run_seconds
        self.run_exemplars.update(other.run_exemplars.copy())
        for index, count in enumerate(other.wait_buckets):
            self.wait_buckets[index] += count
        for index, count in enumerate(other.run_buckets):
            self.run_buckets[index] += count

    def copy_counters(self) -> Counters:
        """Return the counters as `Counters`, without the times."""
        return Counters(
            enqueued=self.enqueued,
            started=self.started,
            completed=self.completed,
            failed=sum(list(self.failed_by_reason.values())),
            retried=self.retried,
            cancelled=self.cancelled,
            rescued=self.rescued,
        )


class JobCounters:
    """The counters of one client or worker. Change them on the thread of its event loop only."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, str], LaneCounters] = {}
        self.overflowed: int = 0
        """How often a pair of queue and name was counted as `OTHER`, because of `MAX_LANES`."""
        self._latest_lane = LaneCounters("", "")
        """The counters of the job that was enqueued last: consecutive jobs often share them."""

    def get_lane(self, queue: str, name: str) -> LaneCounters:
        """Return the counters of a queue and name, new ones if there are none.

        Keep them: they stay the same object.
        """
        lane = self._lanes.get((queue, name))
        if lane is not None:
            return lane
        if len(self._lanes) >= MAX_LANES:
            self.overflowed += 1
            queue = name = OTHER
        return self._lanes.setdefault((queue, name), LaneCounters(queue, name))

    def count_one(self, job: NewJob, result: Enqueued) -> None:
        """Count a job if it was stored now.

        Any thread may call it: the interpreter lets no other thread run within the addition.
        """
        if result.outcome == "created":
            lane = self._latest_lane
            if lane.name != job.name or lane.queue != job.queue:
                lane = self._latest_lane = self.get_lane(job.queue, job.name)
            lane.enqueued += 1

    def count_enqueued(self, jobs: Iterable[NewJob], results: Iterable[Enqueued]) -> None:
        """Count the jobs that were stored now."""
        lane = self._latest_lane
        for job, result in zip(jobs, results, strict=True):
            if result.outcome == "created":
                if lane.name != job.name or lane.queue != job.queue:
                    lane = self._latest_lane = self.get_lane(job.queue, job.name)
                lane.enqueued += 1

    def add_enqueued(self, counts: Iterable[EnqueueCount]) -> None:
        """Count jobs that callers' transactions stored."""
        for queue, name, jobs in counts:
            self.get_lane(queue, name).enqueued += jobs

    def list_lanes(self) -> list[LaneCounters]:
        """Return all counters, up to date. Safe from any thread."""
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.count_pending()
        return lanes


class Observations:
    """Numbers in buckets, and their sum."""

    __slots__ = ("bounds", "buckets", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds: tuple[float, ...] = bounds
        self.buckets: list[int] = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def observe(self, values: Sequence[float]) -> None:
        """Count these numbers."""
        bounds, buckets = self.bounds, self.buckets
        for value in values:
            buckets[bisect_left(bounds, value)] += 1
        self.sum += sum(values)


class OperationCalls:
    """The calls of one operation. Any thread may note a call."""

    __slots__ = ("_lock", "_seconds", "answered", "failed", "times")

    def __init__(self) -> None:
        self.answered: int = 0
        self.failed: int = 0
        """Calls that the backend did not answer, or could not execute."""
        self.times: list[float] = []
        """The seconds of answered calls that are not counted yet: append to it."""
        self._seconds = Observations(CALL_BOUNDS)
        self._lock = threading.Lock()

    def note_answer(self, seconds: float | None) -> None:
        """Count an answered call. `seconds` is None if the call waited on purpose."""
        if seconds is None:
            self.answered += 1
            return
        self.times.append(seconds)
        if len(self.times) >= _MAX_PENDING:
            self.count_pending()

    def count_pending(self) -> Observations:
        """Count the times, and return those of all calls. Safe from any thread.

        While another thread counts, it returns what is counted so far.
        """
        if self._lock.acquire(blocking=False):
            try:
                count = len(self.times)
                taken = self.times[:count]
                del self.times[:count]
                self.answered += count
                self._seconds.observe(taken)
            finally:
                self._lock.release()
        return self._seconds


class CallCounters:
    """The calls of one process by operation."""

    def __init__(self) -> None:
        self.operations: dict[str, OperationCalls] = {}
        self.exchange_jobs: Observations = Observations(SIZE_BOUNDS)
        """The numbers of jobs in the replies to exchanges."""

    def get_operation(self, operation: str) -> OperationCalls:
        """Return the calls of an operation, new ones if there are none.

        Keep them: they stay the same object.
        """
        found = self.operations.get(operation)
        if found is None:
            found = self.operations.setdefault(operation, OperationCalls())
        return found


def _take(times: list[float]) -> list[float]:
    """Remove and return all times. Another thread may append meanwhile."""
    count = len(times)
    taken = times[:count]
    del times[:count]
    return taken


def _count_times(times: list[float], bounds: tuple[float, ...], buckets: list[int]) -> float:
    """Count sorted times into buckets, negative ones as 0, and return their sum."""
    below = 0
    for index, bound in enumerate(bounds):
        if below == len(times):
            break
        upto = bisect_right(times, bound, below)
        buckets[index] += upto - below
        below = upto
    buckets[-1] += len(times) - below
    return sum(times[bisect_right(times, 0.0) :])
