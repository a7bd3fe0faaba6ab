"""Apply settlements: completions in bulk, grouped by token; all others by their effects."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from nimburion.backends.planning.settle import (
    Effect,
    decide_effect,
    decide_release,
    decide_unmatched,
)
from nimburion.backends.sqlite import limits
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.flows import add_cancel_signal, add_run_conditions, note_ended_jobs
from nimburion.backends.sqlite.parked_jobs import release_lease_keys
from nimburion.backends.sqlite.tenants import settle_charges
from nimburion.backends.sqlite.waiting import (
    CANCELLED,
    COMPLETED,
    FAILED,
    end_waiting,
    put_in_lane,
    release_unique_key,
    remove_waiting,
)
from nimburion.core.job import State
from nimburion.core.lease import Lease, Token
from nimburion.core.settlement import (
    Completed,
    Progressed,
    RateLimited,
    Recorded,
    Settled,
    Settlement,
    Spent,
    Suspended,
)

STATE_NUMBERS = MappingProxyType(
    {State.COMPLETED: COMPLETED, State.FAILED: FAILED, State.CANCELLED: CANCELLED}
)
_encode = msgspec.json.Encoder().encode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


class LeaseRow(NamedTuple):
    """A row of a statement that reads leases. `started_at` is in microseconds since 1970."""

    session: int
    seq: int
    lane: int
    fence: int
    nonce: bytes
    started_at: int
    cancel_requested: int
    needs_cleanup: int
    """Whether a cancel was requested, and a worker must end the durable run."""


class TokenGroup(msgspec.Struct, eq=False):
    """The completions of one token that all keep or all drop their payloads."""

    seqs: list[int] = msgspec.field(default_factory=list)
    results: dict[int, bytes] = msgspec.field(default_factory=dict)
    """What handlers returned, by seq."""

    def find_common_result(self) -> bytes | None:
        """Return the result that all jobs have; None if they differ. All members of a flow whose
        handlers return nothing have the same.
        """
        if len(self.results) < len(self.seqs) or len(set(self.results.values())) > 1:
            return None
        return next(iter(self.results.values()))


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

    `has_limits`: a job name has a limit. `has_unique_keys`: a unique key is held. `has_keys`: a
    lease may count for another limit. `has_charges`: a lease was charged to a tenant. The first
    steps of each durable run are stored together. If a job occurs twice in the rest, or tenants pay
    for other things than completions, these settlements are applied one by one.
    """
    has_steps = Recorded in set(map(type, settlements))
    if has_steps and (recorded := record_first_steps(db, session, settlements)):
        if len(recorded) == len(settlements):
            return [Settled.DONE] * len(settlements)
        rest = [one for place, one in enumerate(settlements) if place not in recorded]
        results = settle_batch(
            db,
            session,
            rest,
            has_limits=has_limits,
            has_unique_keys=has_unique_keys,
            has_keys=has_keys,
            has_charges=has_charges,
        )
        others = iter(results)
        return [
            Settled.DONE if place in recorded else next(others) for place in range(len(settlements))
        ]
    groups, seqs, is_each_completed = group_completions(settlements)
    if len(seqs) < len(settlements) or (has_charges and not is_each_completed):
        return [settle_one(db, session, settlement) for settlement in settlements]
    if has_charges:
        settle_completed_charges(db, session, settlements)
    done: set[object] = set()
    for (fence, nonce, keep_payload), group in groups.items():
        done |= complete_group(
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
    if len(done) < len(settlements) and not (has_limits or has_keys):
        done |= suspend_unlimited_runs(db, session, settlements)
    if len(done) == len(settlements):
        return [Settled.DONE] * len(settlements)
    return [
        Settled.DONE if settlement.lease.ref in done else settle_one(db, session, settlement)
        for settlement in settlements
    ]


def suspend_unlimited_runs(
    db: Database, session: int, settlements: Sequence[Settlement]
) -> set[int]:
    """Suspend the durable runs among these settlements, which count for no limit. Return the seqs
    of those whose token matched, and whose cancel was not requested.
    """
    runs = {
        one.lease.ref: one
        for one in settlements
        if type(one) is Suspended and type(one.lease.ref) is int
    }
    if not runs:
        return set()
    from nimburion.backends.sqlite.runs import suspend_runs  # most workers suspend none

    return suspend_runs(db, session, runs)


def record_first_steps(db: Database, session: int, settlements: Sequence[Settlement]) -> set[int]:
    """Store the steps that precede all other settlements of their jobs. Return the places of those
    that were stored among the settlements: their token matched, and their number was new.
    """
    first: dict[tuple[object, int], int] = {}
    steps: list[Recorded] = []
    others = set()
    for place, settlement in enumerate(settlements):
        seq = settlement.lease.ref
        if type(settlement) is not Recorded or settlement.forgets:
            others.add(seq)
        elif type(seq) is int and seq not in others:
            key = (seq, settlement.number)
            if key not in first:
                first[key] = place
                steps.append(settlement)
    if not first:
        return set()
    from nimburion.backends.sqlite.runs import insert_steps  # most workers store no steps

    stored = insert_steps(db, session, steps)
    return {first[key] for key in stored}


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
    results = group.results
    common = group.find_common_result() if results else None
    values = (db.now, session, seqs, fence, nonce, keep_payload, common)
    count = db.run("complete_jobs", *values).rowcount
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
    if db.has_flows:
        note_ended_jobs(db, completed, State.COMPLETED)
    if results and common is None:
        store_results(db, {seq: result for seq, result in results.items() if seq in completed})
    return completed


def store_results(db: Database, results: dict[int, bytes]) -> None:
    """Store the results of completed jobs, by seq, in one statement."""
    offsets: dict[int, int] = {}
    at = 0
    for seq, result in results.items():
        offsets[seq] = at << 32 | len(result)
        at += len(result)
    db.run("store_results", _encode(offsets).decode(), b"".join(results.values()))


def settle_one(db: Database, session: int, settlement: Settlement) -> Settled:
    """Apply one settlement if its token matches the lease; else see `decide_unmatched`."""
    lease = find_lease(db, session, settlement.lease)
    if lease is None:
        row = db.fetch_one("get_settled_token", settlement.lease.ref, settlement.lease.job_id)
        return decide_unmatched(
            settlement.lease.token, None if row is None or row[1] is None else Token(*row)
        )
    if isinstance(settlement, Progressed):
        db.run("save_progress", lease.seq, settlement.fraction, settlement.message)
    elif isinstance(settlement, Spent):
        limits.spend_units(db, lease.lane, lease.seq, settlement.units)
    elif isinstance(settlement, Recorded):
        from nimburion.backends.sqlite.runs import insert_steps  # most workers store no steps

        insert_steps(db, session, [settlement])
    else:
        blocked = isinstance(settlement, RateLimited) and limits.block_rates(
            db, lease.lane, lease.seq, settlement.retry_after
        )
        effect = decide_effect(
            settlement,
            db.now,
            cancel_requested=bool(lease.cancel_requested),
            needs_cleanup=bool(lease.needs_cleanup),
            is_rate_blocked=blocked,
        )
        apply_effect(db, lease, effect)
    return Settled.DONE


def release_lease(db: Database, lease: LeaseRow, *, settles: bool, unstarted: bool) -> None:
    """Let a leased job wait again, for a reason other than a settlement."""
    effect = decide_release(
        cancel_requested=bool(lease.cancel_requested),
        settles=settles,
        unstarted=unstarted,
        needs_cleanup=bool(lease.needs_cleanup),
    )
    apply_effect(db, lease, effect)


def find_lease(db: Database, session: int, lease: Lease) -> LeaseRow | None:
    """Return the stored lease if the session holds it with this fence and nonce, else None."""
    row = db.fetch_one("get_lease", session, lease.ref)
    if row is None or (row[3], row[4]) != (lease.token.fence, lease.token.nonce):
        return None
    return LeaseRow(*row)


def apply_effect(db: Database, lease: LeaseRow, effect: Effect) -> None:
    """End the lease of a job as decided."""
    if effect.refunds_units:
        limits.give_units_back(db, lease.lane, lease.seq, lease.started_at)
    if effect.error is not None:
        error = msgspec.json.encode(effect.error).decode()
        db.run("insert_attempt_error", lease.seq, error)
    settle_charges(db, lease.session, [lease.seq], ran=effect.has_run)
    db.run("delete_lease", lease.session, lease.seq)
    if db.run("release_limit", lease.lane).rowcount:
        db.notify([db.get_lane(lease.lane).queue])
    release_lease_keys(db, [lease.seq])
    if effect.sends_cancel:
        add_cancel_signal(db, lease.seq)
    if effect.state is None:
        requeue(db, lease, effect)
    else:
        finish(db, lease, effect, STATE_NUMBERS[effect.state])


def finish(db: Database, lease: LeaseRow, effect: Effect, state: int) -> None:
    """Put a job whose lease has ended into a finished state."""
    db.run(
        "finish_job",
        lease.seq,
        state,
        db.now,
        effect.reason,
        effect.failures,
        effect.lost,
        effect.result,
        lease.fence,
        lease.nonce if effect.settles else None,
        lease.started_at,
        lease.session,
        effect.error.fingerprint if state == FAILED and effect.error is not None else None,
        effect.keeps_payload,
    )
    db.run("count_finished", lease.lane, state, 1)
    release_unique_key(db, lease.seq, lease.lane)
    if effect.state is not None and db.has_flows:
        note_ended_jobs(db, [lease.seq], effect.state)


def requeue(db: Database, lease: LeaseRow, effect: Effect) -> None:
    """Make a job whose lease has ended wait: until its due time, at its old place, or for what a
    durable run waits for.
    """
    priority, due, failures = db.fetch_one(  # type: ignore[misc]
        "requeue_job",
        lease.seq,
        effect.due,
        effect.failures,
        effect.lost,
        lease.fence,
        lease.nonce if effect.settles else None,
        lease.started_at,
    )
    if effect.sources is None:
        put_in_lane(db, lease.lane, priority, due, lease.seq, retry=failures > 0)
    else:
        db.run("insert_suspended", lease.seq, lease.lane)
        add_run_conditions(db, {lease.seq: effect.sources})


def cancel_waiting(db: Database, seq: int, lane: int) -> None:
    """Cancel a job without a lease."""
    if db.has_flows:
        note_ended_jobs(db, [seq], State.CANCELLED)
        if db.run("delete_suspended", seq).rowcount:
            db.run("delete_conditions_of_jobs", f"[{seq}]")
            end_waiting(db, seq, lane, None, keeps_payload=False)
            return
    remove_waiting(db, seq, lane)
    end_waiting(db, seq, lane, None, keeps_payload=False)
