"""The turns of tenants: read who is next in a queue, charge leased jobs, correct the charges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from nimburion.backends.sqlite.connection.database import MICRO, TENANT_UNIT, Database, to_micros
from nimburion.backends.sqlite.keyed_limits import KeyAdmission
from nimburion.core.exchange import DEFAULT_QUEUE_OPTIONS, Lane, ReserveRequest
from nimburion.core.fairness import (
    MAX_WAITING_COUNTED,
    WEIGHT_UNITS,
    TenantShare,
    TenantTurn,
    TenantUse,
    TenantUses,
    to_weight_units,
)

if TYPE_CHECKING:
    from nimburion.backends.sqlite.reserve import Capacity, Lanes, RankedJob

_FIRST_JOBS = 2
"""Further jobs of a group that are read when its first job was taken. It doubles each time."""
MAX_FORGOTTEN = 1_000
"""The most shares of tenants that one call forgets."""
_BEFORE_ALL = -(2**63)
_UNKNOWN = (_BEFORE_ALL, _BEFORE_ALL)
"""Due time and seq of a first job that was not read."""

ShareClass = tuple[str, int]
"""Queue and rank: the tenants of one class are compared."""
Turn = tuple[int, int, int, int, int, "TurnGroup"]
"""Rank, virtual time, due time and seq of the first job of a group, and the lane with the tenant.
Lowest first. A group whose first job must be read again stands before all others with the same
virtual time.
"""


class TurnRow(msgspec.Struct, array_like=True, gc=False):
    """A row of the statement `list_turns`: the first job of a group."""

    rank: int
    virtual_time: int
    due: int
    seq: int
    tenant: int

    @property
    def place(self) -> tuple[int, int, int, int]:
        """The place of the row in the order of the statement."""
        return (self.rank, self.virtual_time, self.due, self.seq)


class ShareRow(msgspec.Struct, array_like=True, gc=False):
    """A row of the statement `list_shares`: the share of a tenant."""

    tenant: int
    virtual_time: int
    mean_run_time: int
    unmeasured: int
    weight_units: int


class ChargeRow(msgspec.Struct, array_like=True, gc=False):
    """A row of the statement `list_charges`: the charge of a lease."""

    seq: int
    fence: int
    nonce: str
    lane: int
    rank: int
    charge: int
    leased_at: int


_encode = msgspec.json.Encoder().encode
_decode_turns = msgspec.json.Decoder(list[TurnRow]).decode
_decode_shares = msgspec.json.Decoder(list[ShareRow]).decode
_decode_charges = msgspec.json.Decoder(list[ChargeRow]).decode
_decode_floors = msgspec.json.Decoder(dict[int, int]).decode
_decode_jobs = msgspec.json.Decoder(list[tuple[int, int]]).decode


class WeightedShare:
    """The share of a tenant in a class, and its weight."""

    __slots__ = ("class_", "share", "tenant", "weight_units")

    def __init__(self, class_: ShareClass, row: ShareRow) -> None:
        self.class_: ShareClass = class_
        self.tenant: int = row.tenant
        self.share: TenantShare = TenantShare(row.virtual_time, row.mean_run_time, row.unmeasured)
        self.weight_units: int = row.weight_units


class TenantShares:
    """The shares and floors of the tenants that an exchange considers, and what it charges."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._shares: dict[ShareClass, dict[int, WeightedShare]] = {}
        self._floors: dict[str, dict[int, int]] = {}
        self._taken: dict[int, tuple[WeightedShare, int]] = {}
        """The shares and charges of the jobs that were taken, in their order, by seq."""

    def read(self, class_: ShareClass, tenants: Iterable[int]) -> dict[int, WeightedShare]:
        """Read the shares of tenants that are not known yet; return all of the class."""
        known = self._shares.setdefault(class_, {})
        unknown = [tenant for tenant in tenants if tenant not in known]
        if unknown:
            known |= read_shares(self._db, class_, unknown)
        return known

    def charge(self, weighted: WeightedShare, seq: int) -> None:
        """Charge a job that is taken to its tenant."""
        queue, rank = weighted.class_
        floors = self._floors.get(queue) or self._read_floors(queue)
        floors[rank], amount = weighted.share.charge(floors.get(rank, 0), weighted.weight_units)
        self._taken[seq] = (weighted, amount)

    def save(self, seqs: Sequence[int]) -> dict[int, int | None]:
        """Store what the tenants used after the jobs `seqs` were taken, before they leave `ready`.

        Returns the charge of each of these jobs; None: it did not wait for a turn.
        """
        if not self._taken:
            return dict.fromkeys(seqs)
        leased = [seq for seq in seqs if seq in self._taken]
        if len(leased) < len(self._taken):
            self._charge_again(leased)
        by_class: dict[ShareClass, dict[int, WeightedShare]] = {}
        for weighted, _ in self._taken.values():
            by_class.setdefault(weighted.class_, {})[weighted.tenant] = weighted
        floors = [(queue, rank, self._floors[queue][rank]) for queue, rank in by_class]
        self._db.run("put_floors", _encode(floors).decode())
        removed = _encode(leased).decode()
        for class_, shares in by_class.items():
            tenants = write_shares(self._db, class_, shares.values())
            self._db.run("move_turns", *class_, tenants, removed)
        return {seq: self._taken[seq][1] if seq in self._taken else None for seq in seqs}

    def _charge_again(self, seqs: list[int]) -> None:
        """Compute the charges without those of jobs that are not leased after all."""
        order = [(self._taken[seq][0], seq) for seq in seqs]
        known, self._shares = self._shares, {}
        self._floors.clear()
        self._taken.clear()
        for class_, shares in known.items():
            self.read(class_, shares)
        for weighted, seq in order:
            self.charge(self._shares[weighted.class_][weighted.tenant], seq)

    def _read_floors(self, queue: str) -> dict[int, int]:
        floors = _decode_floors(self._db.fetch_value("list_floors", queue))
        self._floors[queue] = floors
        return floors


class TurnLane:
    """Reads the first groups of one lane by turn, as far as the merge needs."""

    __slots__ = ("_chunk", "_db", "is_exhausted", "lane", "last", "number")

    def __init__(self, db: Database, number: int, lane: Lane, chunk: int) -> None:
        self._db = db
        self._chunk = chunk
        self.number: int = number
        self.lane: Lane = lane
        self.last: tuple[int, int, int, int] = (_BEFORE_ALL, _BEFORE_ALL, _BEFORE_ALL, _BEFORE_ALL)
        """The place up to which the groups were read."""
        self.is_exhausted: bool = False
        """Whether no more groups are read: there are none, or none of them may be taken."""

    def read_more(self) -> list[TurnRow]:
        """Return the next groups; twice as many as before."""
        rows = _decode_turns(
            self._db.fetch_value("list_turns", self.number, *self.last, self._chunk)
        )
        self.is_exhausted = len(rows) < self._chunk
        if rows:
            self.last = rows[-1].place
        self._chunk *= 2
        return rows


class TurnGroup:
    """The jobs of one tenant, lane and rank: they are reserved in the order of due time and seq."""

    __slots__ = ("chunk", "jobs", "number", "place", "rank", "source", "weighted")

    def __init__(self, source: TurnLane, row: TurnRow, weighted: WeightedShare) -> None:
        self.source: TurnLane = source
        self.number: int = source.number + TENANT_UNIT * row.tenant
        """The lane with the tenant."""
        self.rank: int = row.rank
        self.weighted: WeightedShare = weighted
        self.place: tuple[int, int] = (row.due, row.seq)
        """The job up to which the group was read."""
        self.jobs: list[tuple[int, int]] = [self.place]
        """Due times and seqs of the jobs that were read, the first one last."""
        self.chunk: int = _FIRST_JOBS


class TenantJob(NamedTuple):
    """The job of a queue whose turn is next."""

    ranked: RankedJob
    lane: Lane
    group: TurnGroup


class QueueTurns:
    """The jobs of the tenants of one queue, in the order of their turns: one more lane."""

    def __init__(  # noqa: PLR0917 - the parts of one exchange
        self,
        db: Database,
        queue: str,
        lanes: Lanes,
        request: ReserveRequest,
        shares: TenantShares,
        admission: KeyAdmission | None,
    ) -> None:
        self._db = db
        self._queue = queue
        self._shares = shares
        self._admission = admission
        self._priority = request.queues.get(queue, DEFAULT_QUEUE_OPTIONS).priority
        self._ageing = to_micros(request.ageing)
        self._lanes = [TurnLane(db, number, lane, request.total) for number, lane in lanes.items()]
        self._unread = self._lanes
        self._heap: list[Turn] = []
        self._known: set[tuple[int, int]] = set()
        """Lane with the tenant and rank of each group that was read."""
        self.head: TenantJob | None = None
        """The job that `peek` returned last."""

    def peek(self, capacity: Capacity) -> TenantJob | None:
        """Return the job whose turn is next, of those that may be taken; None: there is none."""
        self.head = self._find_head(capacity)
        return self.head

    def _find_head(self, capacity: Capacity) -> TenantJob | None:
        heap = self._heap
        while True:
            if self._unread:
                self._read_lanes()
            if not heap:
                return None
            rank, virtual_time, due, seq, number, group = heap[0]
            source = group.source
            if capacity.is_limited and capacity.get_available(source.lane) == 0:
                heappop(heap)  # no job of this name may be taken until the exchange ends
                source.is_exhausted = True
                continue
            current_time = group.weighted.share.virtual_time
            if not group.jobs and current_time == virtual_time and not self._read_group(group):
                heappop(heap)
                continue
            first_due, first_seq = group.jobs[-1] if group.jobs else _UNKNOWN
            if current_time != virtual_time or first_seq != seq or first_due != due:
                heapreplace(heap, (rank, current_time, first_due, first_seq, number, group))
                continue
            age = max(0, self._db.now - due) // self._ageing if self._ageing else 0
            return TenantJob((-self._priority - age, rank, due, seq), source.lane, group)

    def take(self, job: TenantJob) -> None:
        """Remove the job that `peek` returned, and charge it."""
        self.remove(job)
        self._shares.charge(job.group.weighted, job.ranked[3])

    def remove(self, job: TenantJob) -> None:
        """Remove the job that `peek` returned."""
        job.group.jobs.pop()

    def _read_lanes(self) -> None:
        """Read all groups that may come before the first one of the heap."""
        for turns in self._unread:
            while not turns.is_exhausted and (not self._heap or self._heap[0][:4] > turns.last):
                rows = turns.read_more()
                self._add(turns, rows)
                self._read_keys(turns.lane, [row.seq for row in rows])
        self._unread = [turns for turns in self._unread if not turns.is_exhausted]

    def _add(self, turns: TurnLane, rows: list[TurnRow]) -> None:
        by_rank: dict[int, list[int]] = {}
        for row in rows:
            by_rank.setdefault(row.rank, []).append(row.tenant)
        for rank, tenants in by_rank.items():
            self._shares.read((self._queue, rank), tenants)
        for row in rows:
            weighted = self._shares.read((self._queue, row.rank), ())[row.tenant]
            group = TurnGroup(turns, row, weighted)
            if (group.number, row.rank) not in self._known:
                self._known.add((group.number, row.rank))
                time = weighted.share.virtual_time
                heappush(self._heap, (row.rank, time, row.due, row.seq, group.number, group))

    def _read_group(self, group: TurnGroup) -> bool:
        """Read the next jobs of a group; return whether there are any."""
        chunk = group.chunk
        group.chunk *= 2
        jobs = _decode_jobs(
            self._db.fetch_value("list_turn_jobs", group.number, group.rank, *group.place, chunk)
        )
        if jobs:
            group.place = jobs[-1]
            self._read_keys(group.source.lane, [seq for _, seq in jobs])
        group.jobs = jobs[::-1]
        return bool(jobs)

    def _read_keys(self, lane: Lane, seqs: list[int]) -> None:
        if self._admission is not None and self._admission.covers(lane):
            self._admission.read_keys(dict.fromkeys(seqs, lane))


def read_shares(
    db: Database, class_: ShareClass, tenants: Sequence[int]
) -> dict[int, WeightedShare]:
    """Return the shares of tenants, by tenant."""
    rows = _decode_shares(db.fetch_value("list_shares", *class_, _encode(tenants).decode()))
    return {row.tenant: WeightedShare(class_, row) for row in rows}


def write_shares(db: Database, class_: ShareClass, shares: Iterable[WeightedShare]) -> str:
    """Store shares of one class; return the JSON array of the tenants."""
    tenants, numbers = [], []
    for weighted in shares:
        share = weighted.share
        tenants.append(weighted.tenant)
        numbers.append(
            b"%20d%20d%20d" % (share.virtual_time, share.mean_run_time, share.unmeasured)
        )
    listed = _encode(tenants).decode()
    db.run("put_shares", *class_, listed, b"".join(numbers))
    return listed


def settle_charges(
    db: Database,
    session: int,
    seqs: Sequence[int],
    *,
    ran: bool,
    tokens: Mapping[int, tuple[int, str]] | None = None,
) -> None:
    """Replace the charges of leases that end, in this order, by what the jobs used.

    `ran`: the handlers were called; else the tenants are charged nothing. `tokens`: fence and nonce
    (hexadecimal) by seq; leases that have other ones are left out. The charges stay in the leases.
    """
    rows = _decode_charges(db.fetch_value("list_charges", session, _encode(seqs).decode()))
    by_class: dict[ShareClass, list[ChargeRow]] = {}
    for row in rows:
        if tokens is None or tokens[row.seq] == (row.fence, row.nonce):
            by_class.setdefault((db.get_lane(row.lane).queue, row.rank), []).append(row)
    for class_, charges in by_class.items():
        shares = read_shares(db, class_, list({row.lane // TENANT_UNIT for row in charges}))
        for row in charges:
            weighted = shares[row.lane // TENANT_UNIT]
            run_time = db.now - row.leased_at if ran else None
            weighted.share.settle(row.charge, weighted.weight_units, run_time=run_time)
        db.run("rank_turns", *class_, write_shares(db, class_, shares.values()))


def settle_charge(db: Database, session: int, seq: int, *, ran: bool) -> None:
    """Replace the charge of a lease that ends by what the job used, once."""
    settle_charges(db, session, [seq], ran=ran)
    db.run("clear_charge", session, seq)


def set_tenant_weight(db: Database, tenant: str, weight: float | None) -> None:
    """See `Backend.set_tenant_weight`."""
    units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
    if units == WEIGHT_UNITS:
        db.run("delete_tenant_weight", tenant)
    else:
        db.run("set_tenant_weight", tenant, units)


def forget_tenants(db: Database) -> None:
    """Forget tenants without waiting and leased jobs that are not ahead of the others, some in each
    call, and queues and priorities without such jobs.
    """
    db.run("delete_idle_shares", MAX_FORGOTTEN)
    db.run("delete_idle_floors")


def list_tenants(db: Database, limit: int) -> TenantUses:
    """See `Backend.list_tenants`."""
    return TenantUses(
        [
            TenantUse(
                tenant=tenant,
                queue=queue,
                priority=-rank,
                weight=units / WEIGHT_UNITS,
                waiting=waiting,
                running=running,
                ahead=max(0, ahead) / MICRO,
            )
            for queue, rank, tenant, units, ahead, waiting, running in db.run(
                "list_tenants", MAX_WAITING_COUNTED, limit
            )
        ],
        {tenant: units / WEIGHT_UNITS for tenant, units in db.run("list_tenant_weights", limit)},
    )


def find_turn(db: Database, seq: int) -> TenantTurn | None:
    """Return where a job stands in the turns of its queue; None: it does not wait for a turn."""
    row = db.fetch_one("find_turn", seq, MAX_WAITING_COUNTED)
    if row is None:
        return None
    tenant, ahead, tenants_before, jobs_before = row
    return TenantTurn(
        tenant=tenant,
        ahead=max(0, ahead) / MICRO,
        tenants_before=tenants_before,
        jobs_before=jobs_before,
    )


def open_turns(
    db: Database,
    request: ReserveRequest,
    lanes: Lanes,
    shares: TenantShares,
    admission: KeyAdmission | None,
) -> list[QueueTurns]:
    """Return the turns of the queues of these lanes."""
    by_queue: dict[str, Lanes] = {}
    for number, lane in lanes.items():
        by_queue.setdefault(lane.queue, {})[number] = lane
    return [
        QueueTurns(db, queue, own, request, shares, admission) for queue, own in by_queue.items()
    ]
