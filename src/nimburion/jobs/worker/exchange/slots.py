"""The jobs that a worker holds, running or not started, and how many more it may take."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator, Sized
from typing import TypeVar

from nimburion.core.lease import Delivery
from nimburion.jobs.worker.attempt.attempt import Attempt

T = TypeVar("T")

MAX_REQUESTED = 500
"""The most jobs that one exchange requests."""
PREFETCH_SECONDS = 0.020
"""The time in seconds within which the prefetched jobs should run."""
_LEAST_SHARED = 3
"""The jobs for each slot that a worker of a fleet may prefetch in any case."""
_MOST_GROWTH = 4
"""The most that such a worker prefetches, as a multiple of what it has run of the backlog."""

_NEW_VALUE_WEIGHT = 0.05
"""The weight of the latest duration in the moving average: it follows a change within about 20
jobs.
"""
_STARVATION_SECONDS = 0.25
"""Seconds. Many times the duration that a prefetch should take."""


class Prefetch:
    """The number of jobs to hold beyond the running ones.

    It is a time budget divided by the measured mean duration. For a remote backend the limit is
    twice the size of one exchange. One half runs while the backend works on the other: measured on
    PostgreSQL, 26,000 jobs a second became 42,000. A backend in this process would only get smaller
    batches.

    The time budget assumes that the jobs in all slots run side by side. Handlers that use the CPU
    do not: their jobs would wait for several times the budget, while other workers may be idle. So
    `share` sets a lower limit where there are other workers.
    """

    __slots__ = ("_concurrency", "_limit", "_mean", "_most", "is_off")

    def __init__(self, concurrency: int, *, remote: bool) -> None:
        self._concurrency = concurrency
        self._most = 2 * MAX_REQUESTED if remote else MAX_REQUESTED
        self._mean: float | None = None
        self._limit = self._most
        self.is_off: bool = True
        """Whether the size is 0, because the mean is unknown or longer than the budget."""

    @property
    def size(self) -> int:
        """The number of jobs to hold."""
        if self.is_off or self._mean is None:
            return 0
        return min(self._limit, int(self._concurrency * PREFETCH_SECONDS / max(self._mean, 1e-6)))

    def learn(self, seconds: float) -> None:
        """Update the mean with an attempt that took `seconds`."""
        mean = self._mean
        self._mean = mean = seconds if mean is None else mean + _NEW_VALUE_WEIGHT * (seconds - mean)
        self.is_off = mean > PREFETCH_SECONDS

    def suspend(self) -> None:
        """Set the size to 0 until another attempt has ended."""
        self.is_off = True

    def share(self, ran: int, ran_lately: int, seconds: float) -> None:
        """Limit the size, because other workers run the same backlog.

        A worker prefetches what it runs in the time budget, or some jobs for each slot. With fewer,
        a busy worker would wait for each exchange, and get less than its part. The first jobs of a
        backlog may take longer than those before, so it starts with few.

        Args:
            ran: the jobs that this worker has run since it last found nothing waiting.
            ran_lately: those of the last `seconds`.
        """
        lately = seconds / ran_lately if ran_lately > 0 else math.inf
        budget = PREFETCH_SECONDS / max(1e-6, min(self._mean or 0.0, lately))
        least = self._concurrency * _LEAST_SHARED
        self._limit = int(min(self._most, max(budget, least), ran * _MOST_GROWTH))

    def stop_sharing(self) -> None:
        """Remove the limit: there is no other worker."""
        self._limit = self._most


class Slots:
    """The jobs of one worker, by their progress.

    The watchdog's thread takes jobs that have not started while the event loop is blocked. Only the
    thread that removes an entry may use it. `take`, and `remove` on `not_begun`, are atomic, so no
    lock is needed.
    """

    __slots__ = (
        "batched",
        "concurrency",
        "draining",
        "max_running",
        "not_begun",
        "prefetch",
        "prefetched",
        "quiet",
        "remaining",
        "running",
        "runs_suspect",
        "suspects",
    )

    def __init__(self, concurrency: int, prefetch: Prefetch) -> None:
        self.concurrency: int = concurrency
        """The number of slots."""
        self.max_running: int = concurrency
        """The most attempts in `running`: one for each slot, and more while batches run, whose
        attempts take one slot together."""
        self.prefetch: Prefetch = prefetch
        """Decides how many jobs to hold beyond the running ones."""
        self.running: set[Attempt] = set()
        """The attempts that have started and not ended."""
        self.not_begun: set[Attempt] = set()
        """The attempts in `running` whose tasks have not made their first step."""
        self.prefetched: deque[Delivery] = deque()
        """The jobs that wait for a slot."""
        self.suspects: deque[Delivery] = deque()
        """The jobs whose workers were lost repeatedly. Each runs alone, after all other jobs."""
        self.batched: dict[str, deque[Delivery]] = {}
        """The jobs of batch handlers that wait for the start of their batch, by name; empty without
        batch handlers. They take no slot."""
        self.runs_suspect: bool = False
        """Whether a suspect runs: no other job starts until it has ended."""
        self.quiet: bool = False
        """Whether an operator told the worker to start no further job."""
        self.draining: bool = False
        """Whether the worker takes no more jobs."""
        self.remaining: int | None = None
        """The number of jobs that the worker may still start; None: any number."""

    @property
    def waiting_count(self) -> int:
        """The number of jobs that are reserved and have not started."""
        batched = sum(map(len, self.batched.values())) if self.batched else 0
        return len(self.prefetched) + len(self.suspects) + batched

    @property
    def are_empty(self) -> bool:
        """Whether the worker holds no job, running or not."""
        return not (self.running or self.prefetched or self.suspects or any(self.batched.values()))

    @property
    def hold_only_suspects(self) -> bool:
        """Whether no job runs, and only suspects wait."""
        return not self.running and self.waiting_count == len(self.suspects)

    @property
    def occupied_count(self) -> int:
        """The number of slots that are not free."""
        return self.concurrency - self.count_free_slots()

    def count_free_slots(self) -> int:
        """Return how many slots are free."""
        return self.max_running - len(self.running)

    def count_free(self) -> int:
        """Return how many more jobs the worker can take, running and prefetched together."""
        if self.draining or self.quiet or self.suspects or self.runs_suspect:
            return 0
        free = self.max_running + self.prefetch.size - len(self.running) - len(self.prefetched)
        return free if self.remaining is None else min(free, self.remaining - self.waiting_count)

    @property
    def can_start(self) -> bool:
        """Whether the worker can start another job at once, or let it join a batch."""
        if self.batched and self.takes_batched:
            return True
        return self.count_free() > 0 and self.count_free_slots() > len(self.prefetched)

    @property
    def takes_batched(self) -> bool:
        """Whether more jobs may join the batches."""
        if self.draining or self.quiet or self.suspects or self.runs_suspect:
            return False
        return self.remaining is None or self.remaining > self.waiting_count

    def count_unused_start(self) -> None:
        """Note that a started job was released before its handler was called."""
        if self.remaining is not None:
            self.remaining += 1

    def list_unstarted(self) -> tuple[deque[Delivery], ...]:
        """Return where jobs wait that have not started."""
        return (self.prefetched, self.suspects, *self.batched.values())

    def take_all(self) -> Iterator[Delivery]:
        """Remove and yield all jobs that have not started."""
        for deliveries in self.list_unstarted():
            while (delivery := take(deliveries)) is not None:
                yield delivery


class PrefetchWatchdog:
    """Calls `on_starvation` if jobs are prefetched and no job starts for a quarter of a second."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, held: Sized, on_starvation: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._prefetched = held
        self._on_starvation = on_starvation
        self._timer: asyncio.TimerHandle | None = None
        self.is_watching: bool = False
        """Whether the timer runs."""
        self.started_count = 0
        """The number of started jobs; the code that starts a job increments it."""

    def watch(self) -> None:
        """Start the timer, unless it runs. Call this when jobs are prefetched."""
        if not self.is_watching:
            self.is_watching = True
            self._timer = self._loop.call_later(
                _STARVATION_SECONDS, self._check, self.started_count
            )

    def _check(self, started_before: int) -> None:
        self.is_watching = False
        if self._prefetched and self.started_count == started_before:
            self._on_starvation()
        elif self._prefetched:
            self.watch()


def take(items: deque[T], *, last: bool = False) -> T | None:
    """Remove and return the first item (with `last`, the last), or None if there is none.

    Safe while another thread takes from the same deque.
    """
    try:
        return items.pop() if last else items.popleft()
    except IndexError:
        return None
