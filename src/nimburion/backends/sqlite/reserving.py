"""Handing jobs out: the exact merge of lane heads (SPEC G15), then one lease for each.

The order is not one that an index could hold: a head's rank moves with its age, and a lane stands
behind its head. So each lane is read from its front, a few jobs at a time, and merged here.
"""

from __future__ import annotations

from heapq import heapify, heappop, heapreplace

import msgspec

from nimburion.backends.sqlite.database import MICRO, Database
from nimburion.core.exchange import DEFAULT_TERMS, Lane, Want
from nimburion.core.session import Gate

_LEAST = 4
"""Jobs read of each lane at first, at the least."""
_WAITING = 64
"""Lanes a reply names at most."""

Head = tuple[int, int, int]
"""rank, due, seq."""
Merged = tuple[int, int, int, int, int]
"""minus the level of its queue, then rank, due and seq, then the place of its line."""

_encode = msgspec.json.Encoder().encode
_heads = msgspec.json.Decoder(list[tuple[int, list[Head]]]).decode
_line = msgspec.json.Decoder(list[Head]).decode
_seqs = msgspec.json.Decoder(list[int]).decode
_gates = msgspec.json.Decoder(list[tuple[str, int, int]]).decode

Lanes = dict[int, Lane]


def reserve(
    db: Database, by: tuple[int, int], want: Want, lanes: Lanes, gates: dict[str, Gate]
) -> list[int]:
    """Lease the first of the merge to a session and its exchange: their seqs, in rank order."""
    if want.total <= 0 or not lanes:
        return []
    seqs = choose(db, want, lanes, gates)
    if seqs:
        listed = _encode(seqs).decode()
        db.run("reserve_lease", *by, want.nonce, db.now, listed)
        db.run("reserve_take", listed)
    return seqs


def open_lanes(db: Database, want: Want, paused: frozenset[str], gates: dict[str, Gate]) -> Lanes:
    """The lanes asked for that exist and may be served, by number."""
    lanes: Lanes = {}
    for lane in want.lanes:
        gate = gates.get(lane.name) if gates else None
        if lane.queue in paused or (gate is not None and gate.held >= gate.limit):
            continue
        number = db.known_lane(lane)
        if number is not None:
            lanes[number] = lane
    return lanes


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
        seqs = merge(db, want, lanes, room)
    for name, taken in room.taken.items():
        db.run("gate_take", name, taken)
    return seqs


class Room:
    """How many more may be handed out: in all, of a queue, and under the limit of a name."""

    __slots__ = ("_names", "_queues", "taken", "total")

    def __init__(self, want: Want, gates: dict[str, Gate]) -> None:
        self.total = want.total
        self._queues = {
            queue: terms.cap for queue, terms in want.queues.items() if terms.cap is not None
        }
        self._names = {name: gate.limit - gate.held for name, gate in gates.items()}
        self.taken: dict[str, int] = {}

    def of(self, lane: Lane) -> int:
        """How many more of this lane."""
        room = self.total
        if self._queues:
            room = min(room, self._queues.get(lane.queue, room))
        if self._names:
            room = min(room, self._names.get(lane.name, room))
        return max(0, room)

    def take(self, lane: Lane, count: int = 1) -> None:
        """Note that so many are handed out."""
        self.total -= count
        if lane.queue in self._queues:
            self._queues[lane.queue] -= count
        if lane.name in self._names and count:
            self._names[lane.name] -= count
            self.taken[lane.name] = self.taken.get(lane.name, 0) + count


class Line:
    """One lane, read from its front as far as the merge needs."""

    __slots__ = ("_ahead", "_at", "_chunk", "_db", "_number", "_priority", "lane")

    def __init__(self, db: Database, number: int, lane: Lane, priority: int) -> None:
        self._db = db
        self._number = number
        self.lane = lane
        self._priority = priority
        self._ahead: list[Head] = []
        self._at = 0
        self._chunk = 0

    def begin(self, ahead: list[Head], chunk: int) -> None:
        """Take the first jobs of the lane, of which `chunk` were asked for."""
        self._ahead, self._chunk = ahead, chunk

    def next(self, place: int, ageing: int) -> Merged | None:
        """The next job as the merge ranks it; None at the end of the lane."""
        if self._at == len(self._ahead) and not self._read_on():
            return None
        rank, due, seq = self._ahead[self._at]
        self._at += 1
        level = self._priority
        if ageing and self._db.now > due:
            level += (self._db.now - due) // ageing
        return (-level, rank, due, seq, place)

    def _read_on(self) -> bool:
        """Read more of the lane; each time twice as much."""
        if len(self._ahead) < self._chunk:
            return False
        last = self._ahead[-1]
        self._chunk *= 2
        self._ahead = _line(self._db.value("reserve_more", self._number, *last, self._chunk))
        self._at = 0
        return bool(self._ahead)


def merge(db: Database, want: Want, lanes: Lanes, room: Room) -> list[int]:
    """The first jobs of the merge of all lanes."""
    ageing = round(want.ageing * MICRO)
    lines = lines_of(db, want, lanes)
    heap = [
        head for place, line in enumerate(lines) if (head := line.next(place, ageing)) is not None
    ]
    heapify(heap)
    chosen: list[int] = []
    while heap and room.total > 0:
        _, _, _, seq, place = heap[0]
        line = lines[place]
        if room.of(line.lane) == 0:
            heappop(heap)
            continue
        chosen.append(seq)
        room.take(line.lane)
        following = line.next(place, ageing)
        if following is None:
            heappop(heap)
        else:
            heapreplace(heap, following)
    return chosen


def lines_of(db: Database, want: Want, lanes: Lanes) -> list[Line]:
    """The lanes that hold jobs, with their first ones."""
    chunk = min(want.total, max(_LEAST, 2 * want.total // len(lanes)))
    lines = []
    for number, ahead in _heads(db.value("reserve_heads", _encode(list(lanes)).decode(), chunk)):
        if ahead:
            lane = lanes[number]
            priority = want.queues.get(lane.queue, DEFAULT_TERMS).priority
            line = Line(db, number, lane, priority)
            line.begin(ahead, chunk)
            lines.append(line)
    return lines
