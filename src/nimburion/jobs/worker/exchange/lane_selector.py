"""Decides from which lanes a worker requests jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from nimburion.core.exchange import MAX_WAITING_LANES, Lane, QueueOptions, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.lease import Delivery
from nimburion.core.settings import QueueSettings, Settings
from nimburion.jobs.declaration.registry import Registry
from nimburion.jobs.worker.children.pool import count_children
from nimburion.jobs.worker.exchange.slots import Prefetch


class LaneSelector:
    """The lanes that this worker serves, with their options and concurrency limits."""

    def __init__(self, registry: Registry, settings: Settings, entropy: Entropy) -> None:
        served = {queue.name: queue for queue in settings.queues}
        self._queues = served or {name: QueueSettings(name) for name in registry.queues}
        self._lanes = tuple(Lane(queue, name) for queue in self._queues for name in registry.names)
        self._queue_limits = {
            name: queue.concurrency
            for name, queue in self._queues.items()
            if queue.concurrency is not None
        }
        self._queue_options = {name: QueueOptions(q.priority) for name, q in self._queues.items()}
        self._in_use: Counter[str] = Counter()
        self._process_names = registry.process_names
        self._process_jobs = 0
        """The jobs held here whose handlers run in child processes."""
        self._children = count_children(settings)
        self._process_prefetch = {
            name: Prefetch(settings.concurrency, remote=False) for name in self._process_names
        }
        self._waiting_process_names: set[str] = set()
        """The names of the jobs for child processes that wait in the backend, as far as known."""
        self._other_jobs = 0
        """The number of other jobs in the last reply."""
        self.counts_jobs: bool = bool(self._queue_limits or self._process_names)
        """Whether the jobs held here count for a limit. If not, `occupy_slot`, `free_slot` and
        `note_run` do nothing, and need not be called."""
        self.uses_waiting: bool = bool(self._process_names) or len(self._lanes) > MAX_WAITING_LANES
        """Whether requests depend on the lanes that replies report as non-empty. If not,
        `note_non_empty` need not be called."""
        self._non_empty = self._lanes
        self._ageing = settings.ageing
        self._entropy = entropy

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues that the worker serves."""
        return tuple(self._queues)

    def make_request(
        self,
        total: int,
        *,
        everything: bool,
        long_poll: float = 0.0,
        free_slots: int = 0,
        without: Collection[str] = (),
    ) -> ReserveRequest:
        """Return a request for `total` jobs: from all lanes, or from those last reported non-empty.

        The reply may wait up to `long_poll` seconds. Jobs of the names in `without` are left out.
        `free_slots` is the number of jobs that can start at once.

        Queues at their concurrency limit are left out. Otherwise the backend would report that they
        hold more jobs, and the worker would repeat the request immediately. A job that ends in such
        a queue triggers a new request with its settlement.

        Jobs for child processes are left out while the children are busy: these jobs would only
        take slots from others.
        """
        lanes = (
            self._lanes if everything or len(self._lanes) <= MAX_WAITING_LANES else self._non_empty
        )
        if without:
            lanes = tuple(lane for lane in lanes if lane.name not in without)
        if self._waiting_process_names:
            total = self._limit_total(total)
        return ReserveRequest(
            total=total,
            lanes=self._select_lanes_with_capacity(lanes) if self.counts_jobs else lanes,
            queues=self._limit_queues() if self._queue_limits else self._queue_options,
            ageing=self._ageing,
            nonce=self._entropy(16),
            long_poll=long_poll,
            free_slots=free_slots,
        )

    def make_batch_request(self, total: int, name: str) -> ReserveRequest:
        """Return a request for `total` jobs of one name; for none if its queues are at a limit."""
        lanes = tuple(lane for lane in self._lanes if lane.name == name)
        if self.counts_jobs:
            lanes = self._select_lanes_with_capacity(lanes)
        return ReserveRequest(
            total=total if lanes else 0,
            lanes=lanes,
            queues=self._limit_queues() if self._queue_limits else self._queue_options,
            ageing=self._ageing,
            nonce=self._entropy(16),
        )

    def covers_all_lanes(self, request: ReserveRequest) -> bool:
        """Return whether a request is for all lanes that this worker serves."""
        return len(request.lanes) == len(self._lanes)

    def note_non_empty(self, waiting: Iterable[Lane]) -> None:
        """Note the lanes that the backend reports as non-empty.

        A list of the maximum length may be incomplete. Then all lanes are requested, so that no
        lane is left out for ever.
        """
        if self._process_names and self._process_jobs < self._children:
            waiting = tuple(waiting)
            names = {lane.name for lane in waiting}
            self._waiting_process_names = names.intersection(self._process_names)
        if len(self._lanes) > MAX_WAITING_LANES:
            named = tuple(waiting)
            self._non_empty = named if len(named) < MAX_WAITING_LANES else self._lanes

    def occupy_slot(self, delivery: Delivery) -> None:
        """Count a delivered job against the limits of its queue and of the child processes."""
        if self.counts_jobs:
            self._in_use[delivery.queue] += 1
            self._process_jobs += delivery.name in self._process_names

    def free_slot(self, delivery: Delivery) -> None:
        """Stop counting a job that has left this worker."""
        if self.counts_jobs:
            self._in_use[delivery.queue] -= 1
            self._process_jobs -= delivery.name in self._process_names

    def split_surplus(
        self, deliveries: Sequence[Delivery]
    ) -> tuple[Sequence[Delivery], Sequence[Delivery]]:
        """Return the deliveries to hold, and those for which there are not enough children.

        A request cannot limit the jobs of one name, so a reply may have more of them.
        """
        if not self._process_names:
            return deliveries, ()
        process_jobs = self._process_jobs
        held: list[Delivery] = []
        surplus: list[Delivery] = []
        self._other_jobs = 0
        for delivery in deliveries:
            if delivery.name not in self._process_names:
                self._other_jobs += 1
                held.append(delivery)
            elif process_jobs < self._count_process_capacity(delivery.name):
                process_jobs += 1
                held.append(delivery)
            else:
                surplus.append(delivery)
        self._waiting_process_names.update(delivery.name for delivery in surplus)
        return held, surplus

    def note_run(self, delivery: Delivery, seconds: float) -> None:
        """Note how long a job occupied its slot: short ones may wait for a child in a slot."""
        if delivery.name in self._process_names:
            self._process_prefetch[delivery.name].learn(seconds)

    def _count_process_capacity(self, name: str) -> int:
        """Return how many process jobs may be held when one of this name is added."""
        return self._children + self._process_prefetch[name].size

    def _limit_total(self, total: int) -> int:
        """Return how many jobs to request while jobs wait for child processes.

        Not many more than there are free children, so that few of the reply are surplus; more if
        the last reply was mostly other jobs.
        """
        names = self._waiting_process_names
        room = max(map(self._count_process_capacity, names)) - self._process_jobs
        return total if room <= 0 else min(total, room + 2 * self._other_jobs)

    def _select_lanes_with_capacity(self, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        full = {name for name, most in self._queue_limits.items() if self._in_use[name] >= most}
        busy = {
            name
            for name in self._process_names
            if self._process_jobs >= self._count_process_capacity(name)
        }
        if not full and not busy:
            return lanes
        return tuple(lane for lane in lanes if lane.queue not in full and lane.name not in busy)

    def _limit_queues(self) -> dict[str, QueueOptions]:
        capped = {
            name: QueueOptions(self._queues[name].priority, max(0, most - self._in_use[name]))
            for name, most in self._queue_limits.items()
        }
        return {**self._queue_options, **capped}
