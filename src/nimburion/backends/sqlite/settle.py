"""Apply settlements: completions in bulk, grouped by token; all others one by one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite import rate_limits, transitions
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.keyed_limits import release_lease_keys
from nimburion.backends.sqlite.tenants import settle_charge, settle_charges
from nimburion.backends.sqlite.transitions import CANCELLED, COMPLETED, FAILED, Increments, LeaseRow
from nimburion.core.lease import Lease
from nimburion.core.settlement import (
    Cancelled,
    Completed,
    Failed,
    Progressed,
    RateLimited,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
)

_FAILURE_INCREMENT = Increments(failures=1)
_encode = msgspec.json.Encoder().encode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


class TokenGroup(msgspec.Struct, eq=False):
    """The completions of one token that all keep or all drop their payloads."""

    seqs: list[int] = msgspec.field(default_factory=list)
    results: dict[int, bytes] = msgspec.field(default_factory=dict)
    """What handlers returned, by seq."""


TokenGroups = dict[tuple[int, bytes, bool], TokenGroup]
"""Groups by fence, nonce, and whether the payloads are kept. Most calls have few groups: an
exchange uses one nonce.
"""


def settle_batch(
    db: Database,
    session: int,
    settlements: Sequence[Settlement],
    *,
    has_limits: bool,
    has_unique_keys: bool,
    has_keys: bool,
    has_charges: bool,
) -> list[Settled]:
    """Apply settlements and return their results in the same order; see `Consuming.exchange`.

    `has_limits`: a concurrency limit exists. `has_unique_keys`: a unique key is held. `has_keys`: a
    lease may count for a limit by key. `has_charges`: a lease was charged to a tenant. If a job
    occurs twice, or tenants pay for other things than completions, the settlements are applied one
    by one.
    """
    groups, seqs, is_each_completed = group_completions(settlements)
    if len(seqs) < len(settlements) or (has_charges and not is_each_completed):
        return [settle_one(db, session, settlement) for settlement in settlements]
    if has_charges:
        settle_completed_charges(db, session, settlements)
    completed: set[object] = set()
    for (fence, nonce, keep_payload), group in groups.items():
        completed |= complete_group(
            db,
            session,
            fence,
            nonce,
            group,
            keep_payload=keep_payload,
            has_limits=has_limits,
            has_unique_keys=has_unique_keys,
            has_keys=has_keys,
        )
    if len(completed) == len(settlements):
        return [Settled.DONE] * len(settlements)
    return [
        Settled.DONE if settlement.lease.ref in completed else settle_one(db, session, settlement)
        for settlement in settlements
    ]


def settle_completed_charges(db: Database, session: int, completed: Sequence[Settlement]) -> None:
    """Replace the charges of completed jobs by their run times, in the order of the call."""
    nonces: dict[bytes, str] = {}
    tokens = {}
    for settlement in completed:
        if type(settlement.lease.ref) is int:
            token = settlement.lease.token
            if token.nonce not in nonces:
                nonces[token.nonce] = token.nonce.hex().upper()
            tokens[settlement.lease.ref] = (token.fence, nonces[token.nonce])
    settle_charges(db, session, list(tokens), ran=True, tokens=tokens)


def group_completions(
    settlements: Sequence[Settlement],
) -> tuple[TokenGroups, set[object], bool]:
    """Group the completions by token; see `TokenGroup`.

    Also returns the seqs of all settlements, and whether each is a completion.
    """
    groups: TokenGroups = {}
    seqs: set[object] = set()
    is_each_completed = True
    for settlement in settlements:
        lease = settlement.lease
        seq = lease.ref
        seqs.add(seq)
        if type(settlement) is not Completed:
            is_each_completed = False
        elif type(seq) is int:
            token = lease.token
            key = (token.fence, token.nonce, settlement.keep_payload)
            group = groups.get(key)
            if group is None:
                group = groups[key] = TokenGroup()
            group.seqs.append(seq)
            if settlement.result is not None:
                group.results[seq] = settlement.result
    return groups, seqs, is_each_completed


def complete_group(
    db: Database,
    session: int,
    fence: int,
    nonce: bytes,
    group: TokenGroup,
    *,
    keep_payload: bool,
    has_limits: bool,
    has_unique_keys: bool,
    has_keys: bool,
) -> set[int]:
    """Complete the leased jobs of one token; return the seqs completed."""
    completed = set(group.seqs)
    seqs = _encode(group.seqs).decode()
    # Other jobs may have been completed at the same microsecond: they are counted already.
    db.run("count_completed_at", db.now, -1)
    count = db.run("complete_jobs", db.now, session, seqs, fence, nonce, keep_payload).rowcount
    db.run("count_completed_at", db.now, 1)
    if count < len(completed):
        completed = set(
            _decode_seqs(db.fetch_value("find_matching_leases", session, seqs, fence, nonce))
        )
        seqs = _encode(sorted(completed)).decode()
    if has_limits:
        db.run("release_limits", session, seqs, fence, nonce)
    db.run("delete_completed_leases", session, seqs, fence, nonce)
    if has_keys:
        release_lease_keys(db, _decode_seqs(seqs))
    if has_unique_keys and db.run("free_unique_keys", seqs).rowcount:
        db.notify({db.get_lane(lane).queue for (lane,) in db.run("list_lanes_of_jobs", seqs)})
    if group.results:
        store_results(
            db, {seq: result for seq, result in group.results.items() if seq in completed}
        )
    return completed


def store_results(db: Database, results: dict[int, bytes]) -> None:
    """Store the results of completed jobs, by seq, in one statement."""
    offsets: dict[int, int] = {}
    at = 0
    for seq, result in results.items():
        offsets[seq] = at << 32 | len(result)
        at += len(result)
    db.run("store_results", _encode(offsets).decode(), b"".join(results.values()))


def settle_one(db: Database, session: int, settlement: Settlement) -> Settled:  # noqa: C901
    """Apply one settlement if its token matches the lease; else see `classify_unmatched`."""
    lease = find_lease(db, session, settlement.lease)
    if lease is None:
        return classify_unmatched(db, settlement.lease)
    if not isinstance(settlement, Progressed | Spent):
        ran = not (isinstance(settlement, Released) and settlement.unstarted)
        settle_charge(db, session, lease.seq, ran=ran)
    match settlement:
        case Completed():
            transitions.finish_leased(
                db,
                lease,
                COMPLETED,
                result=settlement.result,
                nonce=lease.nonce,
                keep_payload=settlement.keep_payload,
            )
        case Retried():
            transitions.add_error(db, lease.seq, settlement.error)
            requeue_or_cancel(db, lease, delay=settlement.delay, increments=_FAILURE_INCREMENT)
        case Failed():
            transitions.add_error(db, lease.seq, settlement.error)
            transitions.finish_leased(
                db,
                lease,
                FAILED,
                reason=settlement.reason,
                increments=_FAILURE_INCREMENT,
                nonce=lease.nonce,
                fingerprint=settlement.error.fingerprint,
            )
        case Released():
            if settlement.unstarted:
                rate_limits.give_units_back(db, lease.lane, lease.seq, lease.started_at)
            requeue_or_cancel(db, lease, delay=settlement.delay)
        case RateLimited():
            delay = rate_limits.block_rates(db, lease.lane, lease.seq, settlement.retry_after)
            requeue_or_cancel(db, lease, delay=delay)
        case Cancelled():
            transitions.finish_leased(
                db, lease, CANCELLED, reason=settlement.reason, nonce=lease.nonce
            )
        case Progressed():
            db.run("save_progress", lease.seq, settlement.fraction, settlement.message)
        case Spent():
            rate_limits.spend_units(db, lease.lane, lease.seq, settlement.units)
    return Settled.DONE


def requeue_or_cancel(
    db: Database,
    lease: LeaseRow,
    *,
    delay: float | None = None,
    increments: Increments = transitions.NO_INCREMENTS,
    settles: bool = True,
) -> None:
    """Requeue the job, or cancel it if a cancel was requested.

    `settles`: the token of the lease settles the job. False if the backend requeues it by itself.
    """
    nonce = lease.nonce if settles else None
    if lease.cancel_requested:
        transitions.finish_leased(db, lease, CANCELLED, increments=increments, nonce=nonce)
    else:
        transitions.requeue(db, lease, delay=delay, increments=increments, nonce=nonce)


def find_lease(db: Database, session: int, lease: Lease) -> LeaseRow | None:
    """Return the stored lease if the session holds it with this fence and nonce, else None."""
    row = db.fetch_one("get_lease", session, lease.ref)
    if row is None or (row[3], row[4]) != (lease.token.fence, lease.token.nonce):
        return None
    return LeaseRow(*row)


def classify_unmatched(db: Database, lease: Lease) -> Settled:
    """Return `ALREADY` if this token was the last to settle the job, else `STALE`."""
    token = db.fetch_one("get_settled_token", lease.ref, lease.job_id)
    same = token == (lease.token.fence, lease.token.nonce)
    return Settled.ALREADY if same else Settled.STALE
