"""Handing jobs out: the exact merge of lane heads (SPEC G15), then one lease for each.

The order is not one that an index could hold: a head's rank moves with its age, and a lane stands
behind its head. So each lane is read from its front, a few jobs at a time, and merged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heapreplace

import msgspec

from nimburion.backends.sqlite.connection.database import Database, micros
from nimburion.core.exchange import DEFAULT_TERMS, DELIVERY_OVERHEAD, Lane, Want
from nimburion.core.session import Gate

_AHEAD = 2
"""Jobs read of each lane at first, beyond its even share."""
_WAITING = 64
"""Lanes a reply names at most."""

Head = tuple[int, int, int]
"""rank, due, seq."""
Merged = tuple[int, int, int, int]
"""minus the level of its queue, then rank, due and seq."""

_encode = msgspec.json.Encoder().encode
_heads = msgspec.json.Decoder(list[tuple[int, list[Head]]]).decode
_line = msgspec.json.Decoder(list[Head]).decode
_seqs = msgspec.json.Decoder(list[int]).decode
_sizes = msgspec.json.Decoder(list[tuple[int, int]]).decode
_gates = msgspec.json.Decoder(list[tuple[str, int, int]]).decode

Lanes = dict[int, Lane]


def lease(db: Database, by: tuple[int, int], want: Want, seqs: list[int]) -> None:
    """Lease these jobs, in rank order, to a session and its exchange."""
    listed = _encode(seqs).decode()
    db.run("reserve_lease", *by, want.nonce, db.now, listed)
    db.run("reserve_take", listed)


def sizes_of(db: Database, seqs: list[int]) -> list[tuple[int, int]]:
    """Lane and size of each job, without reading its payload."""
    return _sizes(db.value("reserve_sizes", _encode(seqs).decode()))


def count_fitting(sizes: Iterable[int], max_bytes: int) -> int:
    """How many jobs of these sizes, from the first on, one reply holds: at least one."""
    count = 0
    for size in sizes:
        max_bytes -= size + DELIVERY_OVERHEAD
        if max_bytes < 0 and count:
            break
        count += 1
    return count


def open_lanes(db: Database, want: Want, paused: frozenset[str], gates: dict[str, Gate]) -> Lanes:
    """The lanes asked for that exist and may be served, by number."""
    lanes = db.lanes_of(want.lanes)
    full = {name for name, gate in gates.items() if gate.held >= gate.limit}
    if not paused and not full:
        return lanes
    return {
        number: lane
        for number, lane in lanes.items()
        if lane.queue not in paused and lane.name not in full
    }


def gates_of(listed: str) -> dict[str, Gate]:
    """The limits, as the statement lists them."""
    return {name: Gate(bound, held) for name, bound, held in _gates(listed)}


def waiting_of(db: Database, lanes: Lanes) -> list[Lane]:
    """Which of these lanes hold jobs, as far as a reply names them."""
    if not lanes:
        return []
    found = _seqs(db.value("lanes_waiting", _encode(list(lanes)).decode(), _WAITING))
    return [lanes[number] for number in found]


def choose(db: Database, want: Want, lanes: Lanes, gates: dict[str, Gate]) -> list[int]:
    """The seqs to hand out, in rank order, within the caps; places under limits are taken."""
    room = Room(want, gates)
    if len(lanes) == 1:
        ((number, lane),) = lanes.items()
        seqs = _seqs(db.value("reserve_one", number, room.of(lane)))
        room.take(lane, len(seqs))
    else:
        sorted_ = None if room.bounded else merge_by_sorting(lines_of(db, want, lanes), room.total)
        seqs = merge(lines_of(db, want, lanes), room) if sorted_ is None else sorted_
    for name, taken in room.taken.items():
        db.run("gate_take", name, taken)
    return seqs


class Room:
    """How many more may be handed out: in all, of a queue, and under the limit of a name."""

    __slots__ = ("_names", "_queues", "bounded", "taken", "total")

    def __init__(self, want: Want, gates: dict[str, Gate]) -> None:
        self.total: int = want.total
        self._queues = {
            queue: terms.cap for queue, terms in want.queues.items() if terms.cap is not None
        }
        self._names = {name: gate.limit - gate.held for name, gate in gates.items()}
        self.bounded: bool = bool(self._queues or self._names)
        """Whether anything but the total bounds it."""
        self.taken: dict[str, int] = {}
        """How many of each limited name."""

    def of(self, lane: Lane) -> int:
        """How many more of this lane, but for the total."""
        room = self._queues.get(lane.queue, self.total)
        return max(0, min(room, self._names.get(lane.name, room), self.total))

    def pass_one(self, lane: Lane) -> bool:
        """Let one more of this lane pass, if there is room."""
        if self.of(lane) == 0:
            return False
        self.take(lane, 1)
        return True

    def take(self, lane: Lane, count: int) -> None:
        """Note that so many of this lane are handed out."""
        if lane.queue in self._queues:
            self._queues[lane.queue] -= count
        if lane.name in self._names and count:
            self._names[lane.name] -= count
            self.taken[lane.name] = self.taken.get(lane.name, 0) + count


class Line:
    """One lane, read from its front as far as the merge needs."""

    __slots__ = ("_ageing", "_ahead", "_chunk", "_db", "_number", "_priority", "_rank", "lane")

    def __init__(  # noqa: PLR0917 - made a hundred times an exchange: keywords cost
        self, db: Database, number: int, lane: Lane, want: Want, ahead: list[Head], chunk: int
    ) -> None:
        self._db = db
        self._number = number
        self.lane: Lane = lane
        self._priority = want.queues.get(lane.queue, DEFAULT_TERMS).priority
        self._ageing = micros(want.ageing)
        self._ahead = ahead
        self._rank = ahead[0][0]
        self._chunk = chunk

    @property
    def level(self) -> bool:
        """Whether all that was read is of one job priority: then it is in the merge's order."""
        return self._ahead[-1][0] == self._rank

    @property
    def ended(self) -> bool:
        """Whether all of the lane was read."""
        return len(self._ahead) < self._chunk

    def ranked(self) -> list[Merged]:
        """What was read last, as the merge ranks it."""
        now, ageing, priority = self._db.now, self._ageing, self._priority
        return [
            (-priority - ((now - due) // ageing if ageing and now > due else 0), rank, due, seq)
            for rank, due, seq in self._ahead
        ]

    def read_on(self) -> bool:
        """Read twice as much as before, behind it; False at the end of the lane."""
        if self.ended:
            return False
        self._chunk *= 2
        last = self._ahead[-1]
        self._ahead = _line(self._db.value("reserve_more", self._number, *last, self._chunk))
        return bool(self._ahead)

    def every(self) -> Iterator[Merged]:
        """All of the lane, as the merge ranks it."""
        yield from self.ranked()
        while self.read_on():
            yield from self.ranked()


def lines_of(db: Database, want: Want, lanes: Lanes) -> list[Line]:
    """The lanes that hold jobs, with their first ones."""
    chunk = min(want.total, want.total // len(lanes) + _AHEAD)
    heads = _heads(db.value("reserve_heads", _encode(list(lanes)).decode(), chunk))
    return [Line(db, n, lanes[n], want, ahead, chunk) for n, ahead in heads if ahead]


def merge_by_sorting(lines: list[Line], limit: int) -> list[int] | None:
    """The first jobs of the merge, where each line is in its order already: then the merge is a
    sort, a quarter of the work. None where a line is not."""
    ranked: list[Merged] = []
    unread = lines
    while unread:
        if not all(line.level for line in unread):
            return None
        ends = []
        for line in unread:
            part = line.ranked()
            ranked += part
            if not line.ended:
                ends.append((part[-1], line))
        ranked.sort()
        if len(ranked) > limit:
            last = ranked[limit - 1]
            ends = [(end, line) for end, line in ends if end < last]
        unread = [line for _, line in ends if line.read_on()]
    return [seq for _, _, _, seq in ranked[:limit]]


def merge(lines: list[Line], room: Room) -> list[int]:
    """The first jobs of the merge that caps and limits let pass. A line stands behind its head,
    whatever comes after it."""
    following = [line.every() for line in lines]
    heap = [(next(jobs), place) for place, jobs in enumerate(following)]
    heapify(heap)
    chosen: list[int] = []
    limit = room.total
    while heap and len(chosen) < limit:
        (_, _, _, seq), place = heap[0]
        if room.bounded and not room.pass_one(lines[place].lane):
            heappop(heap)
            continue
        chosen.append(seq)
        after = next(following[place], None)
        if after is None:
            heappop(heap)
        else:
            heapreplace(heap, (after, place))
    return chosen
