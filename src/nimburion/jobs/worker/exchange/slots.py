"""The jobs that a worker holds, running or not started, and the room for more."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeVar

from nimburion.core.lease import SUSPECT_AFTER, Delivery
from nimburion.jobs.worker.attempt.attempt import Attempt
from nimburion.jobs.worker.exchange.prefetch import Prefetch

T = TypeVar("T")


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

    def add_all(self, deliveries: Sequence[Delivery]) -> None:
        """Hold delivered jobs until they start. A suspect joins no batch: it runs alone."""
        for delivery in deliveries:
            if delivery.lost >= SUSPECT_AFTER:
                self.suspects.append(delivery)
            else:
                self.batched.get(delivery.name, self.prefetched).append(delivery)

    def list_unstarted(self) -> tuple[deque[Delivery], ...]:
        """Return where jobs wait that have not started."""
        return (self.prefetched, self.suspects, *self.batched.values())

    def take_all(self) -> Iterator[Delivery]:
        """Remove and yield all jobs that have not started."""
        for deliveries in self.list_unstarted():
            while (delivery := take(deliveries)) is not None:
                yield delivery


def take(items: deque[T], *, last: bool = False) -> T | None:
    """Remove and return the first item (with `last`, the last), or None if there is none.

    Safe while another thread takes from the same deque.
    """
    try:
        return items.pop() if last else items.popleft()
    except IndexError:
        return None
