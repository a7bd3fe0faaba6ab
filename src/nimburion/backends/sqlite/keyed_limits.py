"""Limits by key: decide which candidates have room, park the others, return them to their lanes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, TENANT_UNIT, Database, to_micros
from nimburion.core.exchange import Lane
from nimburion.core.keyed_limits import (
    MAX_PARKED,
    MAX_RETURNED,
    KeyedLimit,
    KeyedLimitInfo,
    KeyUse,
    add_sums,
    find_limit_key,
    get_limited_queue,
    make_queue_limit_name,
    summarize_uses,
)
from nimburion.core.limit_changes import LimitChange, apply_change
from nimburion.core.rate_limits import RateLimit

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

LimitKey = tuple[str, str]
"""The name of a limit by key, and a key."""
KeyedLimits = dict[str, dict[str, KeyedLimit]]
"""Limits by key, by job name and limit name."""


KeyChanges = dict[LimitKey, LimitChange]
"""The changes of single keys of limits."""


class JobKey(NamedTuple):
    """A key of a job, the limit that concerns it, and its rate with the cost of the job."""

    key: LimitKey
    limit: KeyedLimit
    rate: RateLimit | None


class KeyUseRow(msgspec.Struct, array_like=True, gc=False):
    """The use of a key, as read in this exchange and changed since."""

    in_use: int
    spent_until: int
    opens_at: int | None
    has_parked: int


_decode_key_options = msgspec.json.Decoder(list[tuple[int, LimitKeyOptions]]).decode
_decode_uses = msgspec.json.Decoder(list[KeyUseRow]).decode


class KeyAdmission:
    """Decides about the candidates of one exchange, and counts those that it leases.

    Options of jobs and uses of keys are read for many candidates at a time, and written once for
    all: a statement for each job costs more than all other work for it.
    """

    def __init__(self, db: Database, limits: KeyedLimits) -> None:
        self._db = db
        self._limits = limits
        self._changes = read_key_changes(db) if limits else {}
        self._uses: dict[LimitKey, KeyUseRow] = {}
        self._changed: set[LimitKey] = set()
        self._keys: dict[int, list[JobKey]] = {}
        self._taken: dict[int, list[JobKey]] = {}
        self._to_park: dict[int, LimitKey] = {}
        self._parked = 0
        self._has_returned = False

    def covers(self, lane: Lane) -> bool:
        """Return whether jobs of this lane may have limits by key."""
        return lane.name in self._limits and any(
            get_limited_queue(limit) in {None, lane.queue} for limit in self._limits[lane.name]
        )

    @property
    def must_stop(self) -> bool:
        """Whether the exchange reserves no more: it parked too many, or a lane got jobs back."""
        return self._has_returned or self._parked >= MAX_PARKED

    def read_keys(self, candidates: Mapping[int, Lane]) -> None:
        """Read the keys of candidates and their uses. `candidates`: lanes by seq."""
        options = read_key_options(self._db, candidates)
        for seq, lane in candidates.items():
            limits = self._limits[lane.name]
            self._keys[seq] = list_keys(limits, lane.queue, options.get(seq), self._changes)
        wanted = {job_key.key for seq in candidates for job_key in self._keys[seq]}
        self._uses |= read_uses(self._db, wanted - self._uses.keys())

    def admit(self, seq: int) -> bool:
        """Count a job for its keys, or park it if one of them has no room and return False."""
        keys = self._keys[seq]
        full = next((job_key.key for job_key in keys if self._is_full(job_key)), None)
        if full is not None:
            self._park(seq, full, [job_key.key for job_key in keys if job_key.key != full])
            return False
        for job_key in keys:
            self._take(job_key)
        self._taken[seq] = keys
        return True

    def save_parked(self) -> None:
        """Park the jobs that had no room, before anything else reads their lanes."""
        if not self._to_park:
            return
        by_limit: dict[str, dict[str, str]] = {}
        for seq, (limit, key) in self._to_park.items():
            by_limit.setdefault(limit, {})[str(seq)] = key
        for limit, keys in by_limit.items():
            self._db.run("copy_to_parked", limit, _encode(keys).decode())
        self._db.run("delete_taken_from_ready", _encode(list(self._to_park)).decode())
        self._to_park.clear()

    def save(self, seqs: Iterable[int]) -> None:
        """Store the counts of the jobs that were leased; take back what others were counted."""
        leased: dict[str, dict[str, str]] = {}
        for seq in seqs:
            for (limit, key), _, _ in self._taken.pop(seq, ()):
                leased.setdefault(limit, {})[str(seq)] = key
        for keys in self._taken.values():
            for job_key in keys:
                self._take_back(job_key)
        for limit, keys_by_seq in leased.items():
            self._db.run("insert_lease_keys", limit, _encode(keys_by_seq).decode())
        write_uses(self._db, {key: self._uses[key] for key in self._changed})

    def _is_full(self, job_key: JobKey) -> bool:
        key, limit, rate = job_key
        use = self._uses[key]
        if limit.concurrency is not None and use.in_use >= limit.concurrency:
            return True
        if rate is None or rate.count_room(use.spent_until, self._db.now) > 0:
            return False
        opening = rate.find_opening(use.spent_until)
        use.opens_at = opening if use.opens_at is None else min(use.opens_at, opening)
        self._changed.add(key)
        return True

    def _park(self, seq: int, key: LimitKey, others: list[LimitKey]) -> None:
        self._to_park[seq] = key
        self._uses[key].has_parked = 1
        self._parked += 1
        if others:
            self.save_parked()
            lane = self._db.fetch_value("get_lane_of_job", seq)
            for other in others:
                if unpark(self._db, other, lane):
                    self._has_returned = True

    def _take(self, job_key: JobKey) -> None:
        key, _, rate = job_key
        use = self._uses[key]
        use.in_use += 1
        self._changed.add(key)
        if rate is not None:
            use.spent_until = rate.spend(use.spent_until, self._db.now, rate.cost)
            if use.has_parked:
                use.opens_at = max(self._db.now, find_unit(rate, use.spent_until))

    def _take_back(self, job_key: JobKey) -> None:
        use = self._uses[job_key.key]
        use.in_use -= 1
        if job_key.rate is not None:
            use.spent_until = job_key.rate.refund(use.spent_until, self._db.now, self._db.now)


def read_key_options(db: Database, seqs: Iterable[int]) -> dict[int, LimitKeyOptions]:
    """Return the options of jobs that concern limits by key, without jobs that have no options."""
    return dict(
        _decode_key_options(db.fetch_value("list_job_options", _encode(list(seqs)).decode()))
    )


def read_uses(db: Database, keys: Iterable[LimitKey]) -> dict[LimitKey, KeyUseRow]:
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


def write_uses(db: Database, uses: Mapping[LimitKey, KeyUseRow]) -> None:
    """Store the uses of these keys."""
    by_limit: dict[str, dict[str, tuple[int, int, int | None]]] = {}
    for (limit, key), use in uses.items():
        by_limit.setdefault(limit, {})[key] = (use.in_use, use.spent_until, use.opens_at)
    for limit, rows in by_limit.items():
        db.run("put_key_uses", limit, _encode(rows).decode())


def find_unit(rate: RateLimit, spent_until: int) -> int:
    """Return the time from which one unit is available."""
    return msgspec.structs.replace(rate, cost=1).find_opening(spent_until)


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
        limit = KeyedLimit(
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


def set_keyed_limits(db: Database, name: str, limits: dict[str, KeyedLimit]) -> None:
    """Set the limits by key of a job name.

    If they change, exchanges consider its parked jobs again: see `unpark_changed`.
    """
    old_limits = read_keyed_limits(db, name).get(name, {})
    if old_limits == limits:
        return
    db.run("mark_changed_limits", name)
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


def list_keys(
    limits: Mapping[str, KeyedLimit],
    queue: str,
    options: LimitKeyOptions | None,
    changes: KeyChanges,
) -> list[JobKey]:
    """Return the keys of a job with these options for which limits are declared."""
    options = options or _NO_KEYS
    keys = []
    for name, limit in sorted(limits.items()):
        key = find_limit_key(name, queue, options.limit_keys)
        if key is None:
            continue
        if (name, key) in changes:
            limit = apply_change(limit, changes[name, key])  # noqa: PLW2901
        rate = limit.rate
        if rate is not None and options.cost is not None:
            rate = msgspec.structs.replace(rate, cost=options.cost)
        keys.append(JobKey((name, key), limit, rate))
    return keys


def list_job_keys(db: Database, lane: int, seq: int) -> list[JobKey]:
    """Return the keys of a job for which its name declares limits."""
    waiting_in = db.get_lane(lane)
    limits = read_keyed_limits(db, waiting_in.name).get(waiting_in.name, {})
    if not limits:
        return []
    options = read_key_options(db, [seq]).get(seq)
    return list_keys(limits, waiting_in.queue, options, read_key_changes(db))


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
        seqs = _encode([seq for _, lane, _, _, seq in parked if lane in lanes]).decode()
        db.run("copy_seqs_from_parked", seqs)
        db.run("delete_seqs_from_parked", seqs)
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
        for key, _, rate in list_job_keys(db, lane, seq):
            if rate is not None and key in counted:
                _change_spent_until(db, key, rate.refund(_get(db, key), db.now, taken_at))


def spend_key_units(db: Database, lane: int, seq: int, units: int) -> None:
    """Take units of the rates of a job's keys, or give some back."""
    for key, _, rate in list_job_keys(db, lane, seq):
        if rate is not None:
            _change_spent_until(db, key, rate.spend(_get(db, key), db.now, units))


def block_keys(db: Database, lane: int, seq: int, seconds: float) -> bool:
    """Let the rates of a job's keys allow no job for some seconds; return whether it has one."""
    found = False
    for key, limit, _ in list_job_keys(db, lane, seq):
        if limit.rate is not None:
            delay = max(0, to_micros(seconds))
            _change_spent_until(db, key, limit.rate.block(_get(db, key), db.now, delay))
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
    for key, _, _ in list_job_keys(db, lane, seq):
        unpark(db, key, lane)


def list_key_uses(db: Database, limit: int) -> list[KeyUse]:
    """See `Backend.list_key_uses`."""
    return [_make_use(*row) for row in db.run("list_key_uses", None, None, limit)]


def list_keyed_limits(db: Database, name: str | None, fullest: int) -> list[KeyedLimitInfo]:
    """See `Backend.list_keyed_limits`."""
    rows = db.run("list_fullest_keys", name, max(1, fullest)).fetchall()
    sums = {row[0]: tuple(row[5:]) for row in rows}
    uses = [_make_use(*row[:5]) for row in rows]
    return add_sums(summarize_uses(read_keyed_limits(db), uses, fullest), sums, name)


def find_key_uses(db: Database, lane: int, seq: int) -> list[KeyUse]:
    """Return the keys of a job that are in use or for which jobs wait."""
    return [
        _make_use(*row)
        for key, _, _ in list_job_keys(db, lane, seq)
        for row in db.run("list_key_uses", *key, 1).fetchall()
    ]


def _make_use(limit: str, key: str, in_use: int, parked: int, opens_at: int | None) -> KeyUse:
    opens = None if opens_at is None or not parked else opens_at / MICRO
    return KeyUse(limit=limit, key=key, in_use=in_use, parked=parked, opens_at=opens)
