"""The own limits of job names, concurrency and rate, and the lanes that they leave open."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.rate_limits import Rates, read_rates
from nimburion.core.exchange import Lane
from nimburion.core.session import ConcurrencyLimit

_MAX_WAITING_LANES = 64
"""The most waiting lanes that a reply names."""

_encode = msgspec.json.Encoder().encode
_decode_seqs = msgspec.json.Decoder(list[int]).decode
_decode_limit_rows = msgspec.json.Decoder(list[tuple[str, int, int]]).decode

Lanes = dict[int, Lane]
"""Lanes by number."""


class Limits(NamedTuple):
    """The concurrency limits and the rate limits at one moment, by job name."""

    running: dict[str, ConcurrencyLimit]
    rates: Rates

    def __bool__(self) -> bool:
        return bool(self.running or self.rates)

    def count_available(self, now: int) -> dict[str, int]:
        """Return how many jobs of each limited name may start now; negative above a limit."""
        available = {name: limit.limit - limit.in_use for name, limit in self.running.items()}
        for name, rate in self.rates.items():
            room = rate.count_room(now)
            available[name] = min(available.get(name, room), room)
        return available

    def exclude_full(self, lanes: Lanes, now: int) -> Lanes:
        """Return the lanes from which another job may start."""
        if not self:
            return lanes
        full = {name for name, available in self.count_available(now).items() if available <= 0}
        return {number: lane for number, lane in lanes.items() if lane.name not in full}

    def has_opened_since(self, before: Limits) -> bool:
        """Return whether a concurrency limit has room now that was full before."""
        return any(
            limit.in_use < limit.limit <= before.running[name].in_use
            for name, limit in self.running.items()
        )

    def find_next_opening(self, db: Database, lanes: Lanes) -> int | None:
        """Return when the first rate that delays a job of these lanes allows one, or None."""
        closed = {name for name, rate in self.rates.items() if rate.count_room(db.now) == 0}
        delayed = {number: lane for number, lane in lanes.items() if lane.name in closed}
        if not delayed:
            return None
        holding = _decode_seqs(
            db.fetch_value("find_waiting_lanes", _encode(list(delayed)).decode(), len(delayed))
        )
        rates = [self.rates[delayed[number].name] for number in holding]
        return min((rate.limit.find_opening(rate.spent_until) for rate in rates), default=None)


def read_all_limits(db: Database) -> Limits:
    """Read the concurrency limits and the rate limits."""
    return Limits(read_limits(db), read_rates(db))


def read_limits(db: Database) -> dict[str, ConcurrencyLimit]:
    """Read the concurrency limits, by job name."""
    return decode_limits(db.fetch_value("list_limits"))


def decode_limits(listed: str) -> dict[str, ConcurrencyLimit]:
    """Decode the JSON list of concurrency limits, as stored, into limits by job name."""
    return {
        name: ConcurrencyLimit(maximum, in_use)
        for name, maximum, in_use in _decode_limit_rows(listed)
    }


def find_waiting_lanes(db: Database, lanes: Lanes) -> list[Lane]:
    """Return up to 64 of these lanes that hold waiting jobs."""
    if not lanes:
        return []
    found = _decode_seqs(
        db.fetch_value("find_waiting_lanes", _encode(list(lanes)).decode(), _MAX_WAITING_LANES)
    )
    return [lanes[number] for number in found]
