"""Requests and replies of an exchange."""

from __future__ import annotations

import msgspec

from nimburion.core.lease import Delivery
from nimburion.core.settlement import Settled


class Lane(msgspec.Struct, frozen=True, gc=False):
    """The waiting jobs of one name in one queue. A lane is computed, never registered."""

    queue: str
    name: str


class QueueOptions(msgspec.Struct, frozen=True, gc=False):
    """How a worker serves one queue."""

    priority: int = 0
    """Queues with a higher priority come first. It takes precedence over the priority of the
    jobs.
    """
    limit: int | None = None
    """The maximum number of jobs of this queue in the reply; None: only `total` limits them."""


DEFAULT_QUEUE_OPTIONS = QueueOptions()

REPLY_BYTES = 16 * 1024 * 1024
"""The default maximum size of the deliveries in one reply, in bytes."""
DELIVERY_OVERHEAD = 256
"""Bytes that each delivery counts in addition to its payload and its options."""
DUE_WINDOW = 20.0
"""Seconds before a due time in which it is reported to one session only. A worker makes at least
one exchange in this time.
"""
MAX_PROMOTED = 1_000
"""The most due jobs that one exchange promotes. So thousands of jobs that become due at once do not
delay jobs that wait already. A backend may promote fewer.
"""
MAX_WAITING_LANES = 64
"""The most waiting lanes that a reply names. A worker with at most this number requests all."""


class ReserveRequest(msgspec.Struct, frozen=True):
    """The jobs that a worker can start now.

    The backend merges the lanes and returns the first `total` jobs. It ranks the first job of each
    lane by these values, in this order:

    - The priority of the queue, plus one for each whole `ageing` seconds that the job has been due
      (0: no ageing); higher first.
    - The priority of the job; higher first.
    - The due time, then the enqueue order; lower first.

    Inside a lane, jobs are ordered by priority, due time and enqueue order.

    Jobs of tenants (`JobOptions.fair_tenant`) take turns. Those of a queue, of all requested names
    that may be served, are together one more lane. It is ordered by priority, then by the virtual
    time of the tenant (`nimburion.core.fairness`), due time and enqueue order. The jobs of one
    tenant, name and priority are thus ordered by due time and enqueue order.
    """

    total: int
    lanes: tuple[Lane, ...] = ()
    queues: dict[str, QueueOptions] = msgspec.field(default_factory=dict)
    """Options by queue; a queue without an entry has `DEFAULT_QUEUE_OPTIONS`."""
    ageing: float = 60.0
    nonce: bytes = bytes(16)
    """16 fresh random bytes: the random half of the tokens in the reply."""
    long_poll: float = 0.0
    """Seconds that the exchange may wait for a job, if the backend supports long polls.

    The wait is best effort. The reply may come immediately, and does if the exchange writes
    settlements.
    """
    max_bytes: int = REPLY_BYTES
    """The maximum size of the deliveries in the reply. The first job is always delivered.

    A delivery counts the bytes of its payload and its options as the backend encodes them, plus
    `DELIVERY_OVERHEAD`. The reply ends before the first job that does not fit, so the limit never
    changes the order. If a repeat of an exchange has less room, the deliveries that no longer fit
    go back to their places in the queue. They count nothing and are not in the reply.
    """
    free_slots: int = 0
    """The number of jobs that the worker can start at once. If fewer are reserved, and none waits,
    the worker is idle: a backend may prepare its next call of `wait` in the same step.
    """


RESERVE_NOTHING = ReserveRequest(total=0)


class Reply(msgspec.Struct, frozen=True):
    """The reply to an exchange.

    A repeat of its number returns the same results and deliveries, except deliveries that exceed
    the `max_bytes` of the repeat.
    """

    results: list[Settled]
    """One result for each settlement, in their order.

    In a repeat: one for each settlement that was applied, whatever settlements the repeat carries.
    """
    deliveries: list[Delivery]
    """The reserved jobs, in rank order."""
    waiting: list[Lane]
    """Up to `MAX_WAITING_LANES` of the requested lanes that still hold jobs which may run."""
    next_due: float | None = None
    """The earliest time ahead at which a job can become available, in epoch seconds; None: none.

    That is the earliest due time in the backend, also of a suspended durable run, or the time at
    which a rate limit allows the next job of a requested lane that holds jobs and is not paused. It
    can be now if this exchange has left some of what follows from the end of members of flows: the
    next one continues.

    If the request is for jobs, a due time less than `DUE_WINDOW` seconds ahead is reported to one
    session only: the first that asks, and the others only if it is earlier than the one reported
    last, or if that session has ended. At that time the session makes an exchange. It promotes the
    jobs that are due, and wakes as many workers as it leaves jobs.
    """
    now: float = 0.0
    """The time on the backend's clock at this exchange, in epoch seconds."""
