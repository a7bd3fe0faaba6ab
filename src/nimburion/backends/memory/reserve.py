"""Handing jobs out: the merge of lane heads, in the order of SPEC G15, exactly."""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace

from nimburion.backends.memory.state import MICRO, Entry, Held, Shelf, Tenant, micros
from nimburion.backends.server.encoding import encode_json
from nimburion.core.exchange import DEFAULT_TERMS, DELIVERY_OVERHEAD, Lane, Want
from nimburion.core.job import NO_OPTIONS
from nimburion.core.lease import Delivery, Token

_WAITING = 64

Head = tuple[int, int, int, int, int, int]
"""Minus the level of its queue, minus its priority, due time, seq; which lane it heads, and how
many bytes it counts."""


class Reserving:
    """One request being served."""

    def __init__(self, shelf: Shelf, want: Want, now: int) -> None:
        self._shelf = shelf
        self._want = want
        self._now = now
        self._lines = list(dict.fromkeys((lane.queue, lane.name) for lane in want.lanes))
        self._ageing = micros(want.ageing)
        self._caps = {
            queue: terms.cap for queue, terms in want.queues.items() if terms.cap is not None
        }

    def serve(self, tenant: Tenant, number: int) -> list[Delivery]:
        """Lease the first `total` of the merge that fit `max_bytes`, in rank order."""
        chosen: list[Delivery] = []
        room = self._want.max_bytes
        every = range(len(self._lines))
        heads = [head for n in every if (head := self._head(n)) is not None]
        heapify(heads)
        while heads and len(chosen) < self._want.total:
            n = heads[0][4]
            if not self._admits(*self._lines[n]):
                heappop(heads)
                continue
            room -= heads[0][5]
            if room < 0 and chosen:
                break
            chosen.append(self._lease(n, tenant, number))
            following = self._head(n)
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, following)
        return chosen

    def waiting(self) -> list[Lane]:
        """Which of the lanes still hold jobs that could be handed out."""
        found: list[Lane] = []
        for lane in self._want.lanes:
            if len(found) == _WAITING:
                break
            gate = self._shelf.gates.get(lane.name)
            open_ = lane.queue not in self._shelf.paused and (gate is None or gate.room > 0)
            if open_ and lane not in found and self._shelf.head((lane.queue, lane.name)):
                found.append(lane)
        return found

    def _head(self, n: int) -> Head | None:
        """The rank of the job that heads lane `n` now: it ages by itself, whatever is behind it."""
        line = self._lines[n]
        if line[0] in self._shelf.paused:
            return None
        entry = self._shelf.head(line)
        if entry is None:
            return None
        level = self._want.queues.get(line[0], DEFAULT_TERMS).priority
        if self._ageing and self._now > entry.due:
            level += (self._now - entry.due) // self._ageing
        size = DELIVERY_OVERHEAD + len(entry.payload or b"")
        if entry.options is not NO_OPTIONS:
            size = size_of(entry)
        return (-level, -entry.priority, entry.due, entry.seq, n, size)

    def _admits(self, queue: str, name: str) -> bool:
        """Whether the queue's cap and the name's gate let one more pass."""
        if self._caps.get(queue, 1) <= 0:
            return False
        gate = self._shelf.gates.get(name)
        return gate is None or gate.room > 0

    def _lease(self, n: int, tenant: Tenant, number: int) -> Delivery:
        entry = self._shelf.take_head(self._lines[n])
        if entry.queue in self._caps:
            self._caps[entry.queue] -= 1
        gate = self._shelf.gates.get(entry.name)
        if gate is not None:
            gate.held += 1
        entry.fence += 1
        token = Token(entry.fence, self._want.nonce)
        entry.held = Held(tenant, number, token, self._now, gated=gate is not None)
        tenant.held[entry.seq] = entry
        return delivery_of(entry, token)


def size_of(entry: Entry) -> int:
    """How many bytes a job counts when it is handed out (`Want.max_bytes`)."""
    size = DELIVERY_OVERHEAD + len(entry.payload or b"")
    return size if entry.options is NO_OPTIONS else size + len(encode_json(entry.options))


def delivery_of(entry: Entry, token: Token) -> Delivery:
    """The job as a worker gets it."""
    return Delivery(
        entry.lease(token),
        entry.name,
        entry.queue,
        entry.payload or b"",
        entry.priority,
        entry.failures,
        entry.lost,
        entry.due / MICRO,
        entry.created_at / MICRO,
        entry.options,
    )
