"""Rate limits: read them, take units, give units back, and stop a name for a time."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import Database, to_micros
from nimburion.backends.sqlite.keyed_limits import block_keys, refund_keys, spend_key_units
from nimburion.core.rate_limits import CLOCK_TOLERANCE, RateLimit

_decode_rows = msgspec.json.Decoder(list[tuple[str, str, int, int, int, int]]).decode


class StoredRate(NamedTuple):
    """A rate limit, and the time until which its units are spent."""

    limit: RateLimit
    spent_until: int

    def count_room(self, now: int) -> int:
        """Return how many jobs may start now."""
        return self.limit.count_room(self.spent_until, now)


Rates = dict[str, StoredRate]
"""Rate limits by job name."""


def decode_rates(listed: str) -> Rates:
    """Decode the JSON list of rate limits, as stored."""
    if listed == "[]":
        return {}
    return {
        name: StoredRate(RateLimit(rate, interval, burst, cost), spent_until)
        for name, rate, interval, burst, cost, spent_until in _decode_rows(listed)
    }


def read_rates(db: Database) -> Rates:
    """Read the rate limits."""
    return decode_rates(db.fetch_value("list_rates"))


def set_rate(db: Database, name: str, limit: RateLimit | None) -> None:
    """Set or remove the rate limit of a job name. What its jobs have taken stays."""
    if limit is None:
        db.run("delete_rate", name)
        return
    old = read_rates(db).get(name)
    db.run("set_rate", name, limit.rate, limit.interval, limit.burst, limit.cost)
    if old is not None and old.limit != limit:
        db.run("set_spent_until", name, limit.carry_over(old.limit, old.spent_until, db.now))


def follow_clock(db: Database) -> None:
    """Let the rates of names and keys follow the clock if it was set back.

    See `follow_clock` in core/rate_limits.py. The time of the latest exchange is stored once in a
    second.
    """
    before = db.fetch_value("get_limits_used_at")
    if abs(db.now - before) <= CLOCK_TOLERANCE:
        return
    db.run("put_limits_used_at", db.now)
    if db.now < before:
        db.run("let_rates_follow_clock", db.now, before)
        db.run("let_keys_follow_clock", db.now, before)


def take_units(db: Database, name: str, rate: StoredRate, jobs: int) -> None:
    """Take the units of some jobs that start now."""
    units = jobs * rate.limit.cost
    db.run("set_spent_until", name, rate.limit.spend(rate.spent_until, db.now, units))


def give_units_back(db: Database, lane: int, seq: int, taken_at: int) -> None:
    """Give back what a job that has not started took from the rates of its name and its keys."""
    refund_keys(db, lane, seq, taken_at)
    return_units(db, lane, taken_at)


def return_units(db: Database, lane: int, taken_at: int) -> None:
    """Give back what a job of this lane took from the rate of its name."""
    name = db.get_lane(lane).name
    rate = read_rates(db).get(name)
    if rate is not None:
        spent_until = rate.limit.refund(rate.spent_until, db.now, taken_at)
        db.run("set_spent_until", name, spent_until)


def spend_units(db: Database, lane: int, seq: int, units: int) -> None:
    """Take units that an attempt spent beyond its cost, or give some back."""
    spend_key_units(db, lane, seq, units)
    name = db.get_lane(lane).name
    rate = read_rates(db).get(name)
    if rate is not None:
        spent_until = rate.limit.spend(rate.spent_until, db.now, units)
        db.run("set_spent_until", name, spent_until)


def block_rates(db: Database, lane: int, seq: int, seconds: float) -> bool:
    """Let the rates of a job's keys, or that of its name, allow no job for some seconds.

    Returns whether there is a rate.
    """
    if block_keys(db, lane, seq, seconds):
        return True
    name = db.get_lane(lane).name
    rate = read_rates(db).get(name)
    if rate is None:
        return False
    delay = max(0, to_micros(seconds))
    db.run("set_spent_until", name, rate.limit.block(rate.spent_until, db.now, delay))
    return True
