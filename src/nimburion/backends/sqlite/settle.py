"""What became of attempts. Completions go in bulk, by token; the rest one by one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite import transitions
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.transitions import CANCELLED, COMPLETED, FAILED, Counts, Held
from nimburion.core.lease import Lease
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settled,
    Settlement,
)

_FAILURE = Counts(failures=1)
_encode = msgspec.json.Encoder().encode
_seqs = msgspec.json.Decoder(list[int]).decode

Group = list[tuple[int, Completed]]
"""Completions of one token, each with its place in the call."""


def settle(
    db: Database, session: int, settlements: Sequence[Settlement], *, gated: bool, keyed: bool
) -> list[Settled]:
    """Apply settlements in order; see `Backend.exchange`.

    `gated`: some limit is set. `keyed`: some unique key is held.
    """
    if len({one.lease.ref for one in settlements}) < len(settlements):
        return [settle_one(db, session, one) for one in settlements]
    results: list[Settled | None] = [None] * len(settlements)
    for (fence, nonce), group in completions_by_token(settlements).items():
        matched = complete_all(db, session, fence, nonce, group, gated=gated, keyed=keyed)
        for place, one in group:
            if matched is None or one.lease.ref in matched:
                results[place] = Settled.DONE
    return [
        settle_one(db, session, one) if result is None else result
        for one, result in zip(settlements, results, strict=True)
    ]


def completions_by_token(settlements: Sequence[Settlement]) -> dict[tuple[int, bytes], Group]:
    """The completions among them; most calls have few tokens, as an exchange gives one nonce."""
    groups: dict[tuple[int, bytes], Group] = {}
    for place, one in enumerate(settlements):
        if type(one) is Completed and type(one.lease.ref) is int:
            token = one.lease.token
            groups.setdefault((token.fence, token.nonce), []).append((place, one))
    return groups


def complete_all(
    db: Database, session: int, fence: int, nonce: bytes, group: Group, *, gated: bool, keyed: bool
) -> set[int] | None:
    """Complete the jobs of one token; which of them, or None for all."""
    seqs = _encode([one.lease.ref for _, one in group]).decode()
    count = db.run("complete_jobs", db.now, session, seqs, fence, nonce).rowcount
    matched = None
    if count < len(group):
        matched = set(_seqs(db.value("complete_matched", session, seqs, fence, nonce)))
        seqs = _encode(sorted(matched)).decode()
    if gated:
        db.run("complete_gates", session, seqs, fence, nonce)
    db.run("complete_leases", session, seqs, fence, nonce)
    if keyed and db.run("unique_free", seqs).rowcount:
        db.ring({db.lane(lane).queue for (lane,) in db.run("lanes_of", seqs)})
    keep_results(db, [one for _, one in group if matched is None or one.lease.ref in matched])
    return matched


def keep_results(db: Database, completed: Sequence[Completed]) -> None:
    """Write what completed handlers returned."""
    places: dict[str, int] = {}
    at = 0
    for one in completed:
        if one.result is not None:
            places[str(one.lease.ref)] = at << 32 | len(one.result)
            at += len(one.result)
    if places:
        whole = b"".join([one.result for one in completed if one.result is not None])
        db.run("complete_results", _encode(places).decode(), whole)


def settle_one(db: Database, session: int, one: Settlement) -> Settled:
    """Apply one settlement if its token holds."""
    held = held_under(db, session, one.lease)
    if held is None:
        return settled_before(db, one.lease)
    match one:
        case Completed():
            transitions.finish_held(db, held, COMPLETED, result=one.result, nonce=held.nonce)
        case Retried():
            transitions.add_history(db, held.seq, one.error)
            wait_or_cancel(db, held, delay=one.delay, counts=_FAILURE)
        case Failed():
            transitions.add_history(db, held.seq, one.error)
            transitions.finish_held(
                db, held, FAILED, reason=one.reason, counts=_FAILURE, nonce=held.nonce
            )
        case Released():
            wait_or_cancel(db, held, delay=one.delay)
        case Cancelled():
            transitions.finish_held(db, held, CANCELLED, reason=one.reason, nonce=held.nonce)
        case Progressed():
            db.run("progress_set", held.seq, one.fraction, one.message)
    return Settled.DONE


def wait_or_cancel(
    db: Database,
    held: Held,
    *,
    delay: float | None = None,
    counts: Counts = transitions.NONE,
    settles: bool = True,
) -> None:
    """Let the job wait again, unless somebody wants it cancelled. Without `settles`, its token did
    not ask for that."""
    nonce = held.nonce if settles else None
    if held.cancel:
        transitions.finish_held(db, held, CANCELLED, counts=counts, nonce=nonce)
    else:
        transitions.wait_again(db, held, delay=delay, counts=counts, nonce=nonce)


def held_under(db: Database, session: int, lease: Lease) -> Held | None:
    """The lease as the file has it, if the session holds it under this whole token."""
    row = db.one("lease_get", session, lease.ref)
    if row is None or (row[3], row[4]) != (lease.token.fence, lease.token.nonce):
        return None
    return Held(*row)


def settled_before(db: Database, lease: Lease) -> Settled:
    """`already` when this token was the last to settle the job, else `stale`."""
    token = db.one("job_token", lease.ref, lease.job_id)
    same = token == (lease.token.fence, lease.token.nonce)
    return Settled.ALREADY if same else Settled.STALE
