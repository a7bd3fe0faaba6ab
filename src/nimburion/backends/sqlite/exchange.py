"""The exchange: settle what is done, promote what became due, reserve what may run."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database
from nimburion.backends.sqlite.reserve import (
    Lanes,
    choose,
    count_fitting,
    gates_of,
    lease,
    open_lanes,
    sizes_of,
    waiting_of,
)
from nimburion.backends.sqlite.settle import settle, wait_or_cancel
from nimburion.backends.sqlite.transitions import Held
from nimburion.backends.waiters import EVERY_QUEUE
from nimburion.core.errors import OutOfOrder, SessionLost
from nimburion.core.exchange import DELIVERY_OVERHEAD, Lane, Reply, Want
from nimburion.core.job import NO_OPTIONS, Options
from nimburion.core.lease import Delivery, Lease, Token
from nimburion.core.session import Gate
from nimburion.core.settlement import Settled, Settlement

PROMOTED = 10_000
"""Jobs that one exchange promotes at most; more became due at once only after an outage."""

_LETTERS = {Settled.DONE: "d", Settled.ALREADY: "a", Settled.STALE: "s"}
_RESULTS = {letter: result for result, letter in _LETTERS.items()}
_encode = msgspec.json.Encoder().encode
_names = msgspec.json.Decoder(frozenset[str]).decode
_seqs = msgspec.json.Decoder(list[int]).decode
_options = msgspec.json.Decoder(Options).decode


class Parcel(msgspec.Struct, array_like=True, gc=False):
    """One job as `deliver` lists it."""

    seq: int
    id: str
    lane: int
    priority: int
    failures: int
    lost: int
    due: int
    created_at: int
    fence: int
    size: int
    options: str | None


Parcelled = tuple[Parcel, bytes, Lane]
"""A job, its payload and its lane."""

_parcels = msgspec.json.Decoder(list[Parcel]).decode


class Head(NamedTuple):
    """What an exchange knows before it begins."""

    n: int
    number: int
    results: str
    left_at: int | None
    dead_at: int | None
    paused: str
    gates: str
    next_due: int | None
    keyed: int


class Answer(NamedTuple):
    """What an exchange found; a reply once it is mapped, which happens after the commit."""

    results: list[Settled]
    parcels: list[Parcelled]
    nonce: bytes
    waiting: list[Lane]
    next_due: int | None
    now: int


def exchange(
    db: Database, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
) -> Answer:
    """See `Backend.exchange`."""
    head = head_of(db, session_id)
    if number == head.number and number > 0:
        return repeated(db, head, want)
    if number != head.number + 1:
        raise OutOfOrder(f"exchange {number} after {head.number} of session {session_id}")
    gates = gates_of(head.gates)
    keyed = bool(head.keyed)
    results = settle(db, head.n, settlements, gated=bool(gates), keyed=keyed) if settlements else []
    next_due = promote_due(db, head, settled=bool(settlements))
    freed = gates_of(db.value("gates")) if gates else gates
    lanes = open_lanes(db, want, _names(head.paused), freed)
    parcels = hand_out(db, (head.n, number), want, lanes, freed)
    taken = gates_of(db.value("gates")) if gates else gates
    if any(now.held < now.limit <= gates[name].held for name, now in taken.items()):
        db.ring([EVERY_QUEUE])
    db.run("exchange_note", head.n, number, "".join([_LETTERS[one] for one in results]))
    waiting = waiting_of(db, still_open(lanes, taken))
    return Answer(results, parcels, want.nonce, waiting, next_due, db.now)


def hand_out(
    db: Database, by: tuple[int, int], want: Want, lanes: Lanes, gates: dict[str, Gate]
) -> list[Parcelled]:
    """Lease the first of the merge that fit one reply, and read them, in rank order.

    Their payloads are read first, as they seldom are too much; what is too much then stays in line.
    """
    seqs = choose(db, want, lanes, gates) if want.total > 0 and lanes else []
    if not seqs:
        return []
    if db.looks_ahead:
        sizes = sizes_of(db, seqs)
        count = count_fitting([size for _, size in sizes], want.max_bytes)
        db.looks_ahead = count < len(seqs)
        leave_in_line(db, [lane for lane, _ in sizes[count:]])
        del seqs[count:]
    parcels = parcels_of(db, seqs)
    count = fitting(parcels, want.max_bytes)
    if count < len(seqs):
        db.looks_ahead = True
        leave_in_line(db, [parcel.lane for parcel, _, _ in parcels[count:]])
        del seqs[count:], parcels[count:]
    lease(db, by, want, seqs)
    return parcels


def fitting(parcels: list[Parcelled], max_bytes: int) -> int:
    """How many of these one reply holds, from the first on: at least one."""
    sizes = [len(payload) + len(parcel.options or "") for parcel, payload, _ in parcels]
    if sum(sizes) + DELIVERY_OVERHEAD * len(sizes) <= max_bytes:
        return len(sizes)
    return count_fitting(sizes, max_bytes)


def leave_in_line(db: Database, lanes: list[int]) -> None:
    """Give back the places under limits that were taken for jobs of these lanes."""
    for lane in lanes:
        db.run("gate_release", lane)


def head_of(db: Database, session_id: str) -> Head:
    """The session and what holds for all; `SessionLost` when it is not alive."""
    row = db.one("exchange_head", session_id)
    if row is None or row[3] is not None or row[4] is not None:
        raise SessionLost(session_id)
    return Head(*row)


def repeated(db: Database, head: Head, want: Want) -> Answer:
    """The same answer again; what does not fit it any more goes back to the line."""
    listed, nonce = db.one("lease_repeat", head.n, head.number) or ("[]", None)
    seqs = _seqs(listed)
    count = count_fitting([size for _, size in sizes_of(db, seqs)], want.max_bytes)
    for seq in seqs[count:]:
        held = db.one("lease_get", head.n, seq)
        assert held is not None, "it was read just now, in this transaction"
        wait_or_cancel(db, Held(*held), settles=False)
    lanes = open_lanes(db, want, _names(head.paused), gates_of(db.value("gates")))
    return Answer(
        [_RESULTS[letter] for letter in head.results],
        parcels_of(db, seqs[:count]),
        nonce or b"",
        waiting_of(db, lanes),
        head.next_due,
        db.now,
    )


def promote_due(db: Database, head: Head, *, settled: bool) -> int | None:
    """Put what became due into the line; the earliest due time still ahead."""
    due = db.value("next_due") if settled else head.next_due
    if due is not None and due <= db.now:
        promote(db, PROMOTED)
        due = db.value("next_due")
    return due


def promote(db: Database, limit: int) -> int:
    """Put up to `limit` jobs that are due into the line, earliest first; how many."""
    count = db.run("promote_copy", db.now, limit).rowcount
    db.run("promote_drop", db.now, limit)
    return count


def promote_and_ring(db: Database, limit: int) -> tuple[int, int | None]:
    """Promote by itself: how many, and the earliest due time still set aside."""
    lanes = _seqs(db.value("promote_lanes", db.now, limit))
    count = promote(db, limit) if lanes else 0
    db.ring({db.lane(lane).queue for lane in lanes})
    return count, db.value("next_due")


def still_open(lanes: Lanes, gates: dict[str, Gate]) -> Lanes:
    """The lanes that may still be served after what was taken."""
    if not gates:
        return lanes
    full = {name for name, gate in gates.items() if gate.held >= gate.limit}
    return {number: lane for number, lane in lanes.items() if lane.name not in full}


def parcels_of(db: Database, seqs: list[int]) -> list[Parcelled]:
    """Jobs with their payloads, in this order."""
    if not seqs:
        return []
    try:
        listed, payloads = db.one("deliver", _encode(seqs).decode())  # type: ignore[misc]
    except sqlite3.DataError:  # their payloads together are too large for one value
        if len(seqs) == 1:
            raise
        half = len(seqs) // 2
        return parcels_of(db, seqs[:half]) + parcels_of(db, seqs[half:])
    found, at = {}, 0
    for parcel in _parcels(listed):
        end = at + parcel.size
        found[parcel.seq] = (parcel, payloads[at:end], db.lane(parcel.lane))
        at = end
    return [found[seq] for seq in seqs]


def reply_of(answer: Answer) -> Reply:
    """The answer in the words of the contract."""
    nonce = answer.nonce
    deliveries = [
        Delivery(
            Lease(parcel.id, Token(parcel.fence + 1, nonce), parcel.seq),
            lane.name,
            lane.queue,
            payload,
            parcel.priority,
            parcel.failures,
            parcel.lost,
            parcel.due / MICRO,
            parcel.created_at / MICRO,
            NO_OPTIONS if parcel.options is None else _options(parcel.options),
        )
        for parcel, payload, lane in answer.parcels
    ]
    next_due = None if answer.next_due is None else answer.next_due / MICRO
    return Reply(answer.results, deliveries, answer.waiting, next_due, answer.now / MICRO)
