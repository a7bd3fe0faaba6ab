"""Limits by key: decide which candidates have room, park the others, return them to their lanes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, Database, to_micros
from nimburion.core.job import JobOptions
from nimburion.core.keyed_limits import MAX_PARKED, KeyedLimit, KeyUse
from nimburion.core.rate_limits import RateLimit

_decode_limits = msgspec.json.Decoder(
    list[tuple[str, str, int | None, str | None, int | None, int | None, int | None]]
).decode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_encode = msgspec.json.Encoder().encode

LimitKey = tuple[str, str]
"""The name of a limit by key, and a key."""
KeyedLimits = dict[str, dict[str, KeyedLimit]]
"""Limits by key, by job name and limit name."""


class StoredUse:
    """The use of a key, as read in this exchange and changed since."""

    __slots__ = ("in_use", "is_changed", "opens_at", "spent_until")

    def __init__(self, in_use: int, spent_until: int, opens_at: int | None) -> None:
        self.in_use: int = in_use
        self.spent_until: int = spent_until
        self.opens_at: int | None = opens_at
        self.is_changed: bool = False


class KeyAdmission:
    """Decides about the candidates of one exchange, and counts those that it leases."""

    def __init__(self, db: Database, limits: KeyedLimits) -> None:
        self._db = db
        self._limits = limits
        self._uses: dict[LimitKey, StoredUse] = {}
        self._taken: dict[int, list[tuple[LimitKey, RateLimit | None]]] = {}
        self._parked = 0
        self._has_returned = False

    def covers(self, name: str) -> bool:
        """Return whether jobs of this name have limits by key."""
        return name in self._limits

    @property
    def must_stop(self) -> bool:
        """Whether the exchange reserves no more: it parked too many, or a lane got jobs back."""
        return self._has_returned or self._parked >= MAX_PARKED

    def admit(self, name: str, seq: int) -> bool:
        """Count a job for its keys, or park it if one of them has no room and return False."""
        keys = list(_iter_keys(self._db, self._limits.get(name, {}), seq))
        full = next((key for key, limit, rate in keys if self._is_full(key, limit, rate)), None)
        if full is not None:
            self._park(seq, full, [key for key, _, _ in keys if key != full])
            return False
        for key, _, rate in keys:
            self._take(key, rate)
        self._taken[seq] = [(key, rate) for key, _, rate in keys]
        return True

    def save(self, seqs: Iterable[int]) -> None:
        """Store the counts of the jobs that were leased; take back what others were counted."""
        leased = set(seqs)
        for seq, keys in self._taken.items():
            if seq in leased:
                for key, _ in keys:
                    self._db.run("insert_lease_key", seq, *key)
            else:
                for key, rate in keys:
                    self._take_back(key, rate)
        for key, use in self._uses.items():
            if use.is_changed:
                self._db.run("put_key_use", *key, use.in_use, use.spent_until, use.opens_at)

    def _get_use(self, key: LimitKey) -> StoredUse:
        use = self._uses.get(key)
        if use is None:
            in_use, spent_until, opens_at = self._db.fetch_one("get_key_use", *key) or (0, 0, None)
            use = self._uses[key] = StoredUse(in_use, spent_until, opens_at)
        return use

    def _is_full(self, key: LimitKey, limit: KeyedLimit, rate: RateLimit | None) -> bool:
        use = self._get_use(key)
        if limit.concurrency is not None and use.in_use >= limit.concurrency:
            return True
        if rate is None or rate.count_room(use.spent_until, self._db.now) > 0:
            return False
        opening = rate.find_opening(use.spent_until)
        use.opens_at = opening if use.opens_at is None else min(use.opens_at, opening)
        use.is_changed = True
        return True

    def _park(self, seq: int, key: LimitKey, others: list[LimitKey]) -> None:
        self._db.run("copy_to_parked", *key, seq)
        self._db.run("delete_ready", seq)
        self._parked += 1
        lane = self._db.fetch_value("get_lane_of_job", seq)
        for other in others:
            if unpark(self._db, other, lane):
                self._has_returned = True

    def _take(self, key: LimitKey, rate: RateLimit | None) -> None:
        use = self._get_use(key)
        use.in_use += 1
        use.is_changed = True
        if rate is not None:
            use.spent_until = rate.spend(use.spent_until, self._db.now, rate.cost)
            if self._db.fetch_value("has_parked", *key):
                use.opens_at = max(self._db.now, find_unit(rate, use.spent_until))

    def _take_back(self, key: LimitKey, rate: RateLimit | None) -> None:
        use = self._get_use(key)
        use.in_use -= 1
        if rate is not None:
            use.spent_until = rate.refund(use.spent_until, self._db.now, self._db.now)


def find_unit(rate: RateLimit, spent_until: int) -> int:
    """Return the time from which one unit is available."""
    return msgspec.structs.replace(rate, cost=1).find_opening(spent_until)


def read_keyed_limits(db: Database, name: str | None = None) -> KeyedLimits:
    """Read the limits by key, of one job name or of all."""
    limits: KeyedLimits = {}
    for job_name, limit_name, concurrency, rate, interval, burst, cost in _decode_limits(
        db.fetch_value("list_keyed_limits", name)
    ):
        limit = KeyedLimit(
            concurrency,
            None if rate is None else RateLimit(rate, interval or 1, burst or 1, cost or 1),
        )
        limits.setdefault(job_name, {})[limit_name] = limit
    return limits


def set_keyed_limits(db: Database, name: str, limits: dict[str, KeyedLimit]) -> None:
    """Set the limits by key of a job name. If they change, its parked jobs are considered again."""
    if read_keyed_limits(db, name).get(name, {}) == limits:
        return
    db.run("delete_keyed_limits", name)
    for limit_name, limit in limits.items():
        rate = limit.rate
        parts = (None,) * 4 if rate is None else (rate.rate, rate.interval, rate.burst, rate.cost)
        db.run("insert_keyed_limit", name, limit_name, limit.concurrency, *parts)
    db.run("copy_name_from_parked", name)
    db.run("delete_name_from_parked", name)


def _iter_keys(
    db: Database, limits: dict[str, KeyedLimit], seq: int
) -> Iterator[tuple[LimitKey, KeyedLimit, RateLimit | None]]:
    """Yield the keys of a job that these limits concern, and the rate with the job's own cost."""
    text = db.fetch_value("get_job_options", seq) if limits else None
    options = None if text is None else _decode_options(text)
    if options is None or not options.limit_keys:
        return
    for name, limit in sorted(limits.items()):
        key = options.limit_keys.get(name)
        if key is None:
            continue
        rate = limit.rate
        if rate is not None and options.cost is not None:
            rate = msgspec.structs.replace(rate, cost=options.cost)
        yield (name, key), limit, rate


def list_job_keys(
    db: Database, lane: int, seq: int
) -> list[tuple[LimitKey, KeyedLimit, RateLimit | None]]:
    """Return the keys of a job for which its name declares limits."""
    name = db.get_lane(lane).name
    return list(_iter_keys(db, read_keyed_limits(db, name).get(name, {}), seq))


def unpark(db: Database, key: LimitKey, lane: int, count: int = 1) -> bool:
    """Return the first jobs of a lane that are parked for a key to `ready`; whether there were
    any.
    """
    if not db.run("copy_from_parked", *key, lane, count).rowcount:
        return False
    db.run("delete_first_parked", *key, lane, count)
    db.notify([db.get_lane(lane).queue])
    return True


def unpark_all_lanes(db: Database, key: LimitKey) -> None:
    """Return the first job of each lane that is parked for a key to `ready`."""
    for (lane,) in db.run("list_parked_lanes", *key).fetchall():
        unpark(db, key, lane)


def unpark_open(db: Database) -> None:
    """Return jobs whose rate allows one now to `ready`."""
    for key in db.run("list_open_keys", db.now).fetchall():
        unpark_all_lanes(db, key)
    db.run("clear_openings", db.now)


def release_lease_keys(db: Database, seqs: list[int]) -> None:
    """Stop counting jobs whose leases ended, and let the next parked jobs have their turn."""
    for key in db.run("delete_lease_keys", _encode(seqs).decode()).fetchall():
        db.run("release_key", *key)
        unpark_all_lanes(db, key)


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
    row = db.fetch_one("get_key_use", *key)
    return 0 if row is None else row[1]


def _change_spent_until(db: Database, key: LimitKey, spent_until: int) -> None:
    in_use, _, opens_at = db.fetch_one("get_key_use", *key) or (0, 0, None)
    db.run("put_key_use", *key, in_use, spent_until, opens_at)


def pass_turns(db: Database, lane: int, seq: int) -> None:
    """Let jobs that are parked for the keys of a cancelled job have its turn."""
    for key, _, _ in list_job_keys(db, lane, seq):
        unpark(db, key, lane)


def list_key_uses(db: Database, limit: int) -> list[KeyUse]:
    """See `Backend.list_key_uses`."""
    return [_make_use(*row) for row in db.run("list_key_uses", None, None, limit)]


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
