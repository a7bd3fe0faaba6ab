"""Decides from which lanes a worker requests jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from nimburion.core.exchange import Lane, QueueOptions, ReserveRequest
from nimburion.core.ids import Entropy
from nimburion.core.lease import Delivery
from nimburion.core.settings import QueueSettings, Settings
from nimburion.jobs.declaration.registry import Registry

_MAX_LISTED_LANES = 64
"""Up to this many lanes are all listed in every request. A reply lists at most this many lanes."""


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
        self._non_empty = self._lanes
        self._ageing = settings.ageing
        self._entropy = entropy

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues that the worker serves."""
        return tuple(self._queues)

    def make_request(
        self, total: int, *, everything: bool, long_poll: float = 0.0
    ) -> ReserveRequest:
        """Return a request for `total` jobs: from all lanes, or from those last reported non-empty.

        The reply may wait up to `long_poll` seconds.

        Queues at their concurrency limit are left out. Otherwise the backend would report that they
        hold more jobs, and the worker would repeat the request immediately. A job that ends in such
        a queue triggers a new request with its settlement.
        """
        lanes = (
            self._lanes if everything or len(self._lanes) <= _MAX_LISTED_LANES else self._non_empty
        )
        return ReserveRequest(
            total=total,
            lanes=self._select_lanes_with_capacity(lanes) if self._queue_limits else lanes,
            queues=self._limit_queues() if self._queue_limits else self._queue_options,
            ageing=self._ageing,
            nonce=self._entropy(16),
            long_poll=long_poll,
        )

    def note_non_empty(self, waiting: Iterable[Lane]) -> None:
        """Note the lanes that the backend reports as non-empty.

        A list of the maximum length may be incomplete. Then all lanes are requested, so that no
        lane is left out for ever.
        """
        if len(self._lanes) > _MAX_LISTED_LANES:
            named = tuple(waiting)
            self._non_empty = named if len(named) < _MAX_LISTED_LANES else self._lanes

    def occupy_slot(self, delivery: Delivery) -> None:
        """Count a delivered job against the concurrency limit of its queue."""
        if self._queue_limits:
            self._in_use[delivery.queue] += 1

    def free_slot(self, delivery: Delivery) -> None:
        """Stop counting a job that has left this worker."""
        if self._queue_limits:
            self._in_use[delivery.queue] -= 1

    def _select_lanes_with_capacity(self, lanes: tuple[Lane, ...]) -> tuple[Lane, ...]:
        full = {name for name, most in self._queue_limits.items() if self._in_use[name] >= most}
        return tuple(lane for lane in lanes if lane.queue not in full) if full else lanes

    def _limit_queues(self) -> dict[str, QueueOptions]:
        capped = {
            name: QueueOptions(self._queues[name].priority, max(0, most - self._in_use[name]))
            for name, most in self._queue_limits.items()
        }
        return {**self._queue_options, **capped}
