"""What a worker asks for in an exchange, and what comes back."""

from __future__ import annotations

import msgspec

from nimburion.core.lease import Delivery
from nimburion.core.settlement import Settled


class Lane(msgspec.Struct, frozen=True, gc=False):
    """A line of jobs of one name in one queue. Computed, never registered."""

    queue: str
    name: str


class QueueOptions(msgspec.Struct, frozen=True, gc=False):
    """How a worker serves one queue."""

    priority: int = 0
    """Higher first, before the priorities of single jobs."""
    limit: int | None = None
    """At most so many of this queue in this reply; None: the total bounds it."""


DEFAULT_QUEUE_OPTIONS = QueueOptions()

REPLY_BYTES = 16 * 1024 * 1024
"""What the deliveries of one reply hold at most, where a request does not say less."""
DELIVERY_OVERHEAD = 256
"""Bytes that a delivery counts beside its payload and its options."""


class ReserveRequest(msgspec.Struct, frozen=True):
    """What the worker could start now.

    The backend returns the first `total` of the merge of the lanes' heads. A head is ranked by:
    its queue's priority plus one for each whole `ageing` seconds that it has been due (0: no
    ageing), then job priority, both higher first; then due time, then enqueue order, both lower
    first. Inside a lane jobs stand by priority, due time and enqueue order.
    """

    total: int
    lanes: tuple[Lane, ...] = ()
    queues: dict[str, QueueOptions] = msgspec.field(default_factory=dict)
    """Terms by queue; a queue that is not here has `DEFAULT_QUEUE_OPTIONS`."""
    ageing: float = 60.0
    nonce: bytes = bytes(16)
    """16 fresh random bytes: the random half of the tokens of this reply."""
    long_poll: float = 0.0
    """Seconds that the answer may wait, in a `patient` store, while there is nothing to hand out.
    A hint: it may come at once, and does where settlements are written."""
    max_bytes: int = REPLY_BYTES
    """The most bytes of deliveries in this reply; the first job is handed out whatever its size.

    A delivery counts the bytes of its payload and of its options as the backend encodes them, plus
    `DELIVERY_OVERHEAD`. The reply ends before the first job that does not fit, so it is the
    beginning of the same order. In a repeat of a number: what was handed out and no longer fits
    goes back to its place in the line, nothing counted, and is not in the reply.
    """


RESERVE_NOTHING = ReserveRequest(total=0)


class Reply(msgspec.Struct, frozen=True):
    """The answer to an exchange; a repeat of its number brings the same results and deliveries, but
    for deliveries that the repeat's `max_bytes` gives back."""

    results: list[Settled]
    """One for each settlement, in their order. In a repeat: one for each that was applied, whatever
    settlements the repeat carries."""
    deliveries: list[Delivery]
    """In rank order."""
    waiting: list[Lane]
    """Of the lanes asked for, up to 64 that still hold jobs which could be handed out."""
    next_due: float | None = None
    """The backend's earliest due time still ahead, in epoch seconds; None: nothing is scheduled."""
    now: float = 0.0
    """The backend's time at this exchange."""
