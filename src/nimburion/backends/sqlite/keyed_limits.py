"""Limits by key: read them and their uses, park jobs, and return them to their lanes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, TENANT_UNIT, Database, to_micros
from nimburion.core.exchange import Lane
from nimburion.core.limits import (
    MAX_RETURNED,
    JobLimit,
    KeyUse,
    LimitChange,
    LimitKey,
    LimitRule,
    LimitUse,
    closes_lane,
    find_limit_key,
    get_limited_queue,
    make_queue_limit_name,
)
from nimburion.core.rate_limits import RateLimit

if TYPE_CHECKING:
    from nimburion.backends.planning.reserve import PlannedLease, ReservePlan

_decode_limits = msgspec.json.Decoder(
    list[tuple[str, str, int | None, str | None, int | None, int | None, int | None]]
).decode
_decode_change = msgspec.json.Decoder(LimitChange).decode
_encode = msgspec.json.Encoder().encode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode


class LimitKeyOptions(msgspec.Struct, gc=False):
    """The options of a job that concern limits by key."""

    limit_keys: dict[str, str] = {}
    cost: int | None = None


_NO_KEYS = LimitKeyOptions()

KeyedLimits = dict[str, dict[str, LimitRule]]
"""Limits by key, by job name and limit name."""


KeyChanges = dict[LimitKey, LimitChange]
"""The changes of single keys of limits."""


_decode_key_options = msgspec.json.Decoder(list[tuple[int, LimitKeyOptions]]).decode
_decode_uses = msgspec.json.Decoder(list[LimitUse], strict=False).decode


def read_key_options(db: Database, seqs: Iterable[int]) -> dict[int, LimitKeyOptions]:
    """Return the options of jobs that concern limits by key, without jobs that have no options."""
    return dict(
        _decode_key_options(db.fetch_value("list_job_options", _encode(list(seqs)).decode()))
    )


def read_uses(db: Database, keys: Iterable[LimitKey]) -> dict[LimitKey, LimitUse]:
    """Return the uses of these keys, also of those that are not in use."""
    by_limit: dict[str, list[str]] = {}
    for limit, key in keys:
        by_limit.setdefault(limit, []).append(key)
    return {
        (limit, key): use
        for limit, some in by_limit.items()
        for key, use in zip(
            some,
            _decode_uses(db.fetch_value("list_uses_of_keys", limit, _encode(some).decode())),
            strict=True,
        )
    }


def write_uses(db: Database, uses: Mapping[LimitKey, LimitUse]) -> None:
    """Store the uses of these keys."""
    by_limit: dict[str, dict[str, tuple[int, int, int | None]]] = {}
    for (limit, key), use in uses.items():
        if closes_lane(limit):
            continue  # counted in `concurrency_limit` and `rate_limit`
        by_limit.setdefault(limit, {})[key] = (use.in_use, use.spent_until, use.opens_at)
    for limit, rows in by_limit.items():
        db.run("put_key_uses", limit, _encode(rows).decode())


def read_keyed_limits(
    db: Database, name: str | None = None, queues: Iterable[str] | None = None
) -> KeyedLimits:
    """Read the limits by key, of one job name or of all; with `queues`, not those of others."""
    limits: KeyedLimits = {}
    listed = None
    if queues is not None:
        listed = _encode([make_queue_limit_name(queue) for queue in queues]).decode()
    for job_name, limit_name, concurrency, rate, interval, burst, cost in _decode_limits(
        db.fetch_value("list_keyed_limits", name, listed)
    ):
        limit = LimitRule(
            concurrency,
            None if rate is None else RateLimit(rate, interval or 1, burst or 1, cost or 1),
        )
        limits.setdefault(job_name, {})[limit_name] = limit
    return limits


def read_key_changes(db: Database) -> KeyChanges:
    """Read the changes of single keys."""
    changes = [_decode_change(body) for (body,) in db.run("list_limit_changes", 1)]
    return {(change.name, change.key or ""): change for change in changes}


def change_key_rate(
    db: Database, key: LimitKey, old: RateLimit | None, new: RateLimit | None
) -> None:
    """Replace the rate of one key; see `RateLimit.carry_over`."""
    if old is not None and new is not None:
        use = read_uses(db, [key])[key]
        use.spent_until = new.carry_over(old, use.spent_until, db.now)
        write_uses(db, {key: use})


def set_keyed_limits(db: Database, name: str, limits: dict[str, LimitRule]) -> None:
    """Set the limits by key of a job name.

    If they change, exchanges consider its parked jobs again: see `unpark_changed`.
    """
    old_limits = read_keyed_limits(db, name).get(name, {})
    if old_limits == limits:
        return
    for limit_name in old_limits:
        if limit_name in limits:
            db.run("let_first_return", name, limit_name, limits[limit_name].count_at_once())
        else:
            db.run("mark_changed_limit", name, limit_name)
    db.run("delete_keyed_limits", name)
    for limit_name, limit in limits.items():
        old = old_limits.get(limit_name, limit).rate
        if old is not None and limit.rate is not None and old != limit.rate:
            ends = (db.now + rate.burst * rate.interval for rate in (limit.rate, old))
            db.run("carry_over_keys", limit_name, *ends)
    for limit_name, limit in limits.items():
        rate = limit.rate
        parts = (None,) * 4 if rate is None else (rate.rate, rate.interval, rate.burst, rate.cost)
        db.run("insert_keyed_limit", name, limit_name, limit.concurrency, *parts)


def covers(limits: KeyedLimits, lane: Lane) -> bool:
    """Return whether jobs of this lane may have limits by key."""
    return lane.name in limits and any(
        get_limited_queue(limit) in {None, lane.queue} for limit in limits[lane.name]
    )


def list_limits_of_job(
    limits: Mapping[str, LimitRule],
    queue: str,
    options: LimitKeyOptions | None,
    changes: KeyChanges,
) -> list[JobLimit]:
    """Return the declared limits in which a job with these options counts."""
    options = options or _NO_KEYS
    found = []
    for name, limit in sorted(limits.items()):
        key = find_limit_key(name, queue, options.limit_keys)
        if key is None:
            continue
        if (name, key) in changes:
            limit = limit.apply(changes[name, key])  # noqa: PLW2901
        rate = limit.rate
        if rate is not None and options.cost is not None:
            rate = msgspec.structs.replace(rate, cost=options.cost)
        found.append(JobLimit((name, key), limit.concurrency, rate))
    return found


def read_job_limits(
    db: Database, lane: int, seq: int, *, uses_own_cost: bool = True
) -> list[JobLimit]:
    """Return the limits by key in which a job counts.

    `uses_own_cost`: the rates have the cost of the job, if it has one.
    """
    waiting_in = db.get_lane(lane)
    limits = read_keyed_limits(db, waiting_in.name).get(waiting_in.name, {})
    if not limits:
        return []
    options = read_key_options(db, [seq]).get(seq)
    if options is not None and not uses_own_cost:
        options.cost = None
    return list_limits_of_job(limits, waiting_in.queue, options, read_key_changes(db))


def park(db: Database, plan: ReservePlan) -> None:
    """Park jobs that wait, and move parked jobs to other keys, before their lanes are read."""
    for statement, jobs in (("copy_to_parked", plan.park), ("move_parked", plan.move)):
        for limit, keys in group_by_limit(jobs.items()).items():
            db.run(statement, limit, _encode(keys).decode())
    if plan.park:
        db.run("delete_taken_from_ready", _encode(list(plan.park)).decode())


def count_lease_keys(db: Database, leases: Iterable[PlannedLease]) -> None:
    """Record for which keys leased jobs count."""
    keys = ((lease.seq, limit.key) for lease in leases for limit in lease.limits)
    for limit, keys_by_seq in group_by_limit(keys).items():
        db.run("insert_lease_keys", limit, _encode(keys_by_seq).decode())


def group_by_limit(keys: Iterable[tuple[int, LimitKey]]) -> dict[str, dict[str, str]]:
    """Return by the name of the limit: the key of each seq."""
    found: dict[str, dict[str, str]] = {}
    for seq, (limit, key) in keys:
        found.setdefault(limit, {})[str(seq)] = key
    return found


def return_parked(db: Database, seqs: Sequence[int]) -> None:
    """Return parked jobs to `ready`."""
    if seqs:
        listed = _encode(seqs).decode()
        db.run("copy_seqs_from_parked", listed)
        db.run("delete_seqs_from_parked", listed)


def delete_parked(db: Database, seqs: Sequence[int]) -> None:
    """Delete the places of parked jobs that are leased."""
    if seqs:
        db.run("delete_seqs_from_parked", _encode(seqs).decode())


def unpark(db: Database, key: LimitKey, lane: int, count: int = 1) -> int:
    """Return the first jobs of a lane that are parked for a key to `ready`; return how many."""
    lane %= TENANT_UNIT
    moved = db.run("copy_from_parked", *key, lane, count).rowcount
    if moved:
        db.run("delete_first_parked", *key, lane, count)
        db.notify([db.get_lane(lane).queue])
    return moved


def unpark_all_lanes(db: Database, key: LimitKey, count: int = 1) -> None:
    """Return the first jobs of each lane that are parked for a key to `ready`."""
    for (lane,) in db.run("list_parked_lanes", *key).fetchall():
        unpark(db, key, lane, count)


def unpark_open(db: Database) -> None:
    """Return jobs whose rate allows one now to `ready`."""
    for key in db.run("list_open_keys", db.now).fetchall():
        unpark_all_lanes(db, key)
    db.run("clear_openings", db.now)


def let_return(db: Database, key: LimitKey, count: int) -> None:
    """Return the first `count` jobs of each lane that are parked for a key to `ready`, in steps."""
    lanes = [lane for (lane,) in db.run("list_parked_lanes", *key)]
    db.run("put_changed_keys", *key, _encode(lanes).decode(), count)
    unpark_changed_keys(db, MAX_RETURNED)


def unpark_changed(db: Database) -> None:
    """Return up to `MAX_RETURNED` parked jobs to `ready` after limits changed."""
    unpark_changed_names(db, unpark_changed_keys(db, MAX_RETURNED))


def exclude_changing(db: Database, lanes: dict[int, Lane]) -> dict[int, Lane]:
    """Return the lanes to which no parked jobs return any more after limits changed.

    Nothing is reserved from the others meanwhile, so that no job overtakes a parked one.
    """
    names = {name for (name,) in db.run("list_changing_names")}
    numbers = {lane for _, _, lane, _ in db.run("list_changed_keys")}
    if not names and not numbers:
        return lanes
    return {
        number: lane
        for number, lane in lanes.items()
        if number not in numbers and lane.name not in names
    }


def unpark_changed_keys(db: Database, left: int) -> int:
    """Return parked jobs of keys whose maximum changed; return how many more may return."""
    for limit, key, lane, count in db.run("list_changed_keys").fetchall():
        moved = unpark(db, (limit, key), lane, min(count, left))
        if moved == left and moved < count:
            db.run("reduce_changed_key", limit, key, lane, moved)
            return 0
        db.run("delete_changed_key", limit, key, lane)
        left -= moved
    return left


def unpark_changed_names(db: Database, left: int) -> None:
    """Return parked jobs of names whose limits changed."""
    while left > 0 and (changed := db.fetch_one("get_changed_limit")) is not None:
        name, limit, *place = changed
        parked = db.run("list_parked_further", limit, *place, left).fetchall()
        lanes = {lane for _, lane, _, _, _ in parked if db.get_lane(lane).name == name}
        return_parked(db, [seq for _, lane, _, _, seq in parked if lane in lanes])
        db.notify({db.get_lane(lane).queue for lane in lanes})
        if len(parked) < left:
            db.run("delete_changed_limit", name, limit)
        else:
            db.run("put_changed_limit", name, limit, *parked[-1])
        left -= len(parked)


def release_lease_keys(db: Database, seqs: list[int]) -> None:
    """Stop counting jobs whose leases ended, and let the next parked jobs have their turn."""
    listed = _encode(seqs).decode()
    ended = db.run("count_lease_keys", listed).fetchall()
    if not ended:
        return
    db.run("delete_lease_keys", listed)
    for limit, jobs_by_key in ended:
        db.run("release_keys", limit, jobs_by_key)
        waiting = db.run("find_parked_keys", limit, jobs_by_key).fetchall()
        if waiting:
            jobs = _decode_counts(jobs_by_key)
            for (key,) in waiting:
                unpark_all_lanes(db, (limit, key), jobs[key])


def refund_keys(db: Database, lane: int, seq: int, taken_at: int) -> None:
    """Return what a job that has not started took from the rates of its keys."""
    counted = db.run("list_lease_keys", seq).fetchall()
    if counted:
        for key, _, rate in read_job_limits(db, lane, seq):
            if rate is not None and key in counted:
                _change_spent_until(db, key, rate.refund(_get(db, key), db.now, taken_at))


def spend_key_units(db: Database, lane: int, seq: int, units: int) -> None:
    """Take units of the rates of a job's keys, or give some back."""
    for key, _, rate in read_job_limits(db, lane, seq):
        if rate is not None:
            _change_spent_until(db, key, rate.spend(_get(db, key), db.now, units))


def block_keys(db: Database, lane: int, seq: int, seconds: float) -> bool:
    """Let the rates of a job's keys allow no job for some seconds; return whether it has one."""
    found = False
    for key, _, rate in read_job_limits(db, lane, seq, uses_own_cost=False):
        if rate is not None:
            delay = max(0, to_micros(seconds))
            _change_spent_until(db, key, rate.block(_get(db, key), db.now, delay))
            found = True
    return found


def _get(db: Database, key: LimitKey) -> int:
    return read_uses(db, [key])[key].spent_until


def _change_spent_until(db: Database, key: LimitKey, spent_until: int) -> None:
    use = read_uses(db, [key])[key]
    use.spent_until = spent_until
    write_uses(db, {key: use})


def pass_turns(db: Database, lane: int, seq: int) -> None:
    """Let jobs that are parked for the keys of a cancelled job have its turn."""
    for key, _, _ in read_job_limits(db, lane, seq):
        unpark(db, key, lane)


def read_fullest_keys(
    db: Database, name: str | None, most: int
) -> tuple[list[KeyUse], dict[str, tuple[int, int, int]]]:
    """Return the fullest keys of each limit, and by limit the sums of all: keys, in use, parked."""
    rows = db.run("list_fullest_keys", name, max(1, most)).fetchall()
    return [_make_use(*row[:5]) for row in rows], {row[0]: tuple(row[5:]) for row in rows}


def find_key_uses(db: Database, lane: int, seq: int) -> list[KeyUse]:
    """Return the keys of a job that are in use or for which jobs wait."""
    return [
        _make_use(*row)
        for key, _, _ in read_job_limits(db, lane, seq)
        for row in db.run("list_key_uses", *key, 1).fetchall()
    ]


def _make_use(limit: str, key: str, in_use: int, parked: int, opens_at: int | None) -> KeyUse:
    opens = None if opens_at is None or not parked else opens_at / MICRO
    return KeyUse(limit=limit, key=key, in_use=in_use, parked=parked, opens_at=opens)
