"""How much a worker asks for, and of what: lanes, caps and the prefetch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sized

from nimburion.core.exchange import Lane, QueueOptions, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.lease import Delivery
from nimburion.core.settings import QueueSettings, Settings
from nimburion.jobs.declaration.registry import Registry

MAX_REQUESTED = 500
"""Jobs that one exchange is asked for at most."""
PREFETCH_SECONDS = 0.020
"""What is prefetched should be run in about this time."""

_MAX_LISTED_LANES = 64
"""Up to so many lanes are all named in every request; a reply names at most so many."""

_WEIGHT = 0.05


class Prefetch:
    """How many jobs to hold beyond those that run: a time budget, by the measured mean.

    Of a remote backend up to twice what one exchange brings: one half runs while the backend works
    on the other (26,000 jobs a second became 42,000 on PostgreSQL). A backend in this process would
    only get smaller batches from that.
    """

    __slots__ = ("_concurrency", "_mean", "_most", "size")

    def __init__(self, concurrency: int, *, remote: bool) -> None:
        self._concurrency = concurrency
        self._most = 2 * MAX_REQUESTED if remote else MAX_REQUESTED
        self._mean: float | None = None
        self.size: int = 0
        """0 while the mean is unknown or longer than the budget."""

    def learn(self, seconds: float) -> None:
        """An attempt took so long."""
        mean = self._mean
        self._mean = mean = seconds if mean is None else mean + _WEIGHT * (seconds - mean)
        if mean > PREFETCH_SECONDS:
            self.size = 0
        else:
            self.size = min(self._most, int(self._concurrency * PREFETCH_SECONDS / max(mean, 1e-6)))

    def suspend(self) -> None:
        """Hold nothing until another attempt has ended."""
        self.size = 0


class LaneSelector:
    """The lanes this worker serves and the terms it serves them on."""

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
        self._non_empty = self._lanes
        self._ageing = settings.ageing
        self._entropy = entropy

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues it serves."""
        return tuple(self._queues)

    def make_request(
        self, total: int, *, everything: bool, long_poll: float = 0.0
    ) -> ReserveRequest:
        """A request for `total` jobs: of all lanes, or of those last known not to be empty. The
        answer may wait for `long poll` seconds.

        Not of queues whose concurrency is used up: the backend would say that they hold more, and
        the worker would ask again at once. What ends in them asks anew, with its settlement.
        """
        lanes = (
            self._lanes if everything or len(self._lanes) <= _MAX_LISTED_LANES else self._non_empty
        )
        return ReserveRequest(
            total=total,
            lanes=self._select_lanes_with_room(lanes) if self._queue_limits else lanes,
            queues=self._limit_queues() if self._queue_limits else self._queue_options,
            ageing=self._ageing,
            nonce=self._entropy(16),
            long_poll=long_poll,
        )

    def note_non_empty(self, waiting: Iterable[Lane]) -> None:
        """The backend said that these lanes still hold jobs. A list as long as lists get may leave
        some out: then all are asked for, so that none waits behind its place."""
        if len(self._lanes) > _MAX_LISTED_LANES:
            named = tuple(waiting)
            self._non_empty = named if len(named) < _MAX_LISTED_LANES else self._lanes

    def occupy_slot(self, delivery: Delivery) -> None:
        """A job came in: it counts against its queue's concurrency."""
        if self._queue_limits:
            self._in_use[delivery.queue] += 1

    def free_slot(self, delivery: Delivery) -> None:
        """It has left this worker."""
        if self._queue_limits:
            self._in_use[delivery.queue] -= 1

    def _select_lanes_with_room(self, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        full = {name for name, most in self._queue_limits.items() if self._in_use[name] >= most}
        return tuple(lane for lane in lanes if lane.queue not in full) if full else lanes

    def _limit_queues(self) -> dict[str, QueueOptions]:
        capped = {
            name: QueueOptions(self._queues[name].priority, max(0, most - self._in_use[name]))
            for name, most in self._queue_limits.items()
        }
        return {**self._queue_options, **capped}


_STALL_SECONDS = 0.25
"""Seconds: many times what a prefetch should take."""


class PrefetchWatchdog:
    """Calls `on_stall` when something was held for a while in which no job began."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, held: Sized, on_stall: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._prefetched = held
        self._on_stall = on_stall
        self._timer: asyncio.TimerHandle | None = None
        self.started_count = 0
        """How many jobs have begun; whoever begins one counts it here."""

    def watch(self) -> None:
        """Something is held: look again in a while."""
        if self._timer is None:
            self._timer = self._loop.call_later(_STALL_SECONDS, self._check, self.started_count)

    def _check(self, begun: int) -> None:
        self._timer = None
        if self._prefetched and self.started_count == begun:
            self._on_stall()
        elif self._prefetched:
            self.watch()
