"""Reads the tables for a plan: lanes, turns, limits and parked jobs, in chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from nimburion.backends.planning.admission import make_reply_limit
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, PlanSource, Tenant, Turn
from nimburion.backends.sqlite.connection.database import TENANT_UNIT, Database
from nimburion.backends.sqlite.limits import (
    LaneLimits,
    Rules,
    list_lane_limits,
    list_limits_of_job,
    read_key_changes,
    read_key_options,
    read_uses,
)
from nimburion.backends.sqlite.reserve import READ_AHEAD, Lanes
from nimburion.backends.sqlite.tenants import read_shares
from nimburion.core.exchange import ReserveRequest
from nimburion.core.fairness import PlannedShare, ShareClass
from nimburion.core.limits import (
    JobLimit,
    LimitKey,
    LimitUse,
)

_FIRST_JOBS = 2
"""Further jobs that the first read of a group, or of the jobs parked for a key, returns."""
_MAX_CHUNK = 1_000
_FIRST = -(2**63)
"""Before all ranks, times and seqs."""

_encode = msgspec.json.Encoder().encode
_decode_heads = msgspec.json.Decoder(list[tuple[int, list[Place]]]).decode
_decode_places = msgspec.json.Decoder(list[Place]).decode
_decode_turns = msgspec.json.Decoder(list[tuple[int, int, int, int, int]]).decode
_decode_group = msgspec.json.Decoder(list[tuple[int, int]]).decode
_decode_parked = msgspec.json.Decoder(list[tuple[int, int, int, int]]).decode
_decode_min_times = msgspec.json.Decoder(dict[int, int]).decode


class SQLiteSource(PlanSource):
    """Reads for a plan; see `PlanSource`."""

    def __init__(
        self, db: Database, request: ReserveRequest, limits: LaneLimits, rules: Rules
    ) -> None:
        self._db = db
        self._request = request
        self._limits = limits
        self._rules = rules
        self._changes = read_key_changes(db) if rules else {}
        self._min_virtual_times: dict[str, dict[int, int]] = {}

    def make_lanes(self, lanes: Lanes) -> tuple[list[PlanLane], dict[LimitKey, LimitUse]]:
        """Return lanes, by number, with the limits that concern them, and the uses of these."""
        uses: dict[LimitKey, LimitUse] = {}
        caps: dict[str, JobLimit] = {}
        for queue, options in self._request.queues.items():
            if options.limit is not None:
                caps[queue] = limit = make_reply_limit(queue, options.limit)
                uses[limit.key] = LimitUse()
        planned = []
        for number, lane in lanes.items():
            limits = [caps[lane.queue]] if lane.queue in caps else []
            for limit, use in list_lane_limits(self._limits, lane):
                limits.append(limit)
                uses[limit.key] = use
            planned.append(PlanLane(number, lane, limits=limits, has_keys=lane.name in self._rules))
        return planned, uses

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        # The first jobs of all lanes are read in one statement.
        if not lanes:
            return []
        by_number = {lane.number: lane for lane in lanes}
        total = self._request.total
        chunk = min(total, total // len(lanes) + READ_AHEAD)
        listed = _encode(list(by_number)).decode()
        heads = _decode_heads(self._db.fetch_value("read_lane_heads", listed, chunk))
        return [
            (by_number[number], read_lane_further(self._db, number, jobs, chunk))
            for number, jobs in heads
            if jobs
        ]

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        chunk = self._request.total
        last: tuple[int, ...] = (_FIRST,) * 4
        while turns := _decode_turns(self._db.fetch_value("list_turns", lane.number, *last, chunk)):
            yield [Turn(*turn) for turn in turns]
            if len(turns) < chunk:
                return
            last = turns[-1][:4]
            chunk *= 2

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        assert isinstance(tenant, int)
        number, chunk = lane.number + TENANT_UNIT * tenant, _FIRST_JOBS
        last = after or (_FIRST, _FIRST)
        while jobs := _decode_group(
            self._db.fetch_value("list_turn_jobs", number, rank, *last, chunk)
        ):
            yield jobs
            if len(jobs) < chunk:
                return
            last = jobs[-1]
            chunk *= 2

    def read_shares(
        self, class_: ShareClass, tenants: Collection[Tenant]
    ) -> dict[Tenant, PlannedShare]:
        return read_shares(self._db, class_, tenants)

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        # Those of a queue are read in one statement.
        queue, rank = class_
        by_rank = self._min_virtual_times.get(queue)
        if by_rank is None:
            by_rank = _decode_min_times(self._db.fetch_value("list_min_virtual_times", queue))
            self._min_virtual_times[queue] = by_rank
        return by_rank.get(rank, 0)

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        options = read_key_options(self._db, jobs)
        return {
            seq: list_limits_of_job(
                self._rules[lane.lane.name], lane.lane.queue, options.get(seq), self._changes
            )
            for seq, lane in jobs.items()
        }

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        return read_uses(self._db, keys)

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        chunk = _FIRST_JOBS
        last: tuple[int, ...] = (_FIRST,) * 3
        while jobs := _decode_parked(
            self._db.fetch_value("list_parked", *key, lane.number, *last, chunk)
        ):
            yield [ParkedJob(rank, due, seq, tenant or None) for rank, due, seq, tenant in jobs]
            if len(jobs) < chunk:
                return
            last = jobs[-1][:3]
            chunk = min(2 * chunk, _MAX_CHUNK)


def read_lane_further(
    db: Database, number: int, jobs: list[Place], chunk: int
) -> Iterator[list[Place]]:
    """Yield the first jobs of a lane, which were read, and the next ones: twice as many each time.

    `chunk`: the maximum number of jobs of the first read.
    """
    while jobs:
        yield jobs
        if len(jobs) < chunk:
            return
        chunk *= 2
        jobs = _decode_places(db.fetch_value("read_lane_further", number, *jobs[-1], chunk))
