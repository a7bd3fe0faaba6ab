"""Parked jobs: park them for a key that has no room, and return them to their lanes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from nimburion.backends.sqlite.connection.database import TENANT_UNIT, Database
from nimburion.core.exchange import Lane
from nimburion.core.limits import MAX_RETURNED, LimitKey

if TYPE_CHECKING:
    from nimburion.backends.planning.reserve import PlannedLease, ReservePlan

_encode = msgspec.json.Encoder().encode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode


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
