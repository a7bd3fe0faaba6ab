"""The turns of tenants: read who is next in a queue, charge leased jobs, correct the charges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
_BEFORE_ALL = -(2**63)
_UNKNOWN = (_BEFORE_ALL, _BEFORE_ALL)
"""Due time and seq of a first job that was not read."""

ShareKey = tuple[str, int, int]
"""Queue, rank and tenant."""
Group = tuple[int, int]
"""Lane with the tenant, and rank: jobs that are reserved in the order of due time and seq."""
Turn = tuple[int, int, int, int, Group]
"""Rank, virtual time, due time and seq of the first job of a group. Lowest first. A group whose
first job must be read again stands before all others with the same virtual time."""


class TurnRow(msgspec.Struct, array_like=True, gc=False):
    """A row of `list_turns`: the first job of a group, and the share of its tenant."""

    lane: int
    rank: int
    listed_time: int
    due: int
    seq: int
    tenant: int
    virtual_time: int
    mean_run_time: int
    unmeasured: int
    weight_units: int

    @property
    def place(self) -> tuple[int, int, int, int]:
        """The place of the row in the order of the statement."""
        return (self.rank, self.listed_time, self.due, self.seq)


class ChargeRow(msgspec.Struct, array_like=True, gc=False):
    """A row of the statement `list_charges`: the charge of a lease, and the share of its tenant."""

    seq: int
    fence: int
    nonce: str
    queue: str
    rank: int
    tenant: int
    charge: int
    leased_at: int
    virtual_time: int
    mean_run_time: int
    unmeasured: int
    weight_units: int


class Charge(NamedTuple):
    """What a leased job was charged."""

    key: ShareKey
    amount: int


_encode = msgspec.json.Encoder().encode
_decode_turns = msgspec.json.Decoder(list[TurnRow]).decode
_decode_charges = msgspec.json.Decoder(list[ChargeRow]).decode
_decode_floors = msgspec.json.Decoder(dict[int, int]).decode
_decode_jobs = msgspec.json.Decoder(list[tuple[int, int]]).decode


class TenantShares:
    """The shares and floors of the tenants that an exchange considers, and what it charges."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._shares: dict[ShareKey, TenantShare] = {}
        self._stored: dict[ShareKey, TenantShare] = {}
        """The shares as they were read."""
        self._floors: dict[str, dict[int, int]] = {}
        self._weights: dict[int, int] = {}
        self._taken: dict[int, Charge] = {}
        """The charges of the jobs that were taken, in their order, by seq."""

    def add(self, queue: str, row: TurnRow) -> TenantShare:
        """Return the share of the tenant of a group that was read."""
        key = (queue, row.rank, row.tenant)
        share = self._shares.get(key)
        if share is None:
            share = TenantShare(row.virtual_time, row.mean_run_time, row.unmeasured)
            self._shares[key] = share
            self._stored[key] = msgspec.structs.replace(share)
            self._weights[row.tenant] = row.weight_units
        return share

    def charge(self, key: ShareKey, seq: int) -> None:
        """Charge a job that is taken to its tenant."""
        self._taken[seq] = self._charge(key)

    def save(self, seqs: Sequence[int]) -> None:
        """Store what the leased jobs are charged: those of `seqs` that waited for a turn."""
        leased = [seq for seq in seqs if seq in self._taken]
        if not leased:
            return
        if len(leased) < len(self._taken):  # compute the charges again, without those of the others
            self._shares = {
                key: msgspec.structs.replace(share) for key, share in self._stored.items()
            }
            self._floors.clear()
            self._taken = {seq: self._charge(self._taken[seq].key) for seq in leased}
        charges = self._taken
        now = self._db.now
        rows = [(seq, *key, amount, now) for seq, (key, amount) in charges.items()]
        self._db.run("insert_charges", _encode(rows).decode())
        charged = {charge.key for charge in charges.values()}
        floors = {(queue, rank): self._floors[queue][rank] for queue, rank, _ in charged}
        listed = [(queue, rank, floor) for (queue, rank), floor in floors.items()]
        self._db.run("put_floors", _encode(listed).decode())
        write_shares(self._db, {key: self._shares[key] for key in charged})

    def _charge(self, key: ShareKey) -> Charge:
        queue, rank, tenant = key
        floors = self._read_floors(queue)
        floor = floors.get(rank, 0)
        floors[rank], amount = self._shares[key].charge(floor, self._weights[tenant])
        return Charge(key, amount)

    def _read_floors(self, queue: str) -> dict[int, int]:
        floors = self._floors.get(queue)
        if floors is None:
            floors = _decode_floors(self._db.fetch_value("list_floors", queue))
            self._floors[queue] = floors
        return floors


class TurnLane:
    """Reads the first groups of one lane by turn, as far as the merge needs."""

    __slots__ = ("_chunk", "_db", "_number", "is_exhausted", "lane", "last")

    def __init__(self, db: Database, number: int, lane: Lane, chunk: int) -> None:
        self._db = db
        self._number = number
        self._chunk = chunk
        self.lane: Lane = lane
        self.last: tuple[int, int, int, int] = (_BEFORE_ALL, _BEFORE_ALL, _BEFORE_ALL, _BEFORE_ALL)
        """The place up to which the groups were read."""
        self.is_exhausted: bool = False
        """Whether no more groups are read: there are none, or none of them may be taken."""

    def read_more(self) -> list[TurnRow]:
        """Return the next groups; twice as many as before."""
        rows = _decode_turns(
            self._db.fetch_value("list_turns", self._number, *self.last, self._chunk)
        )
        self.is_exhausted = len(rows) < self._chunk
        if rows:
            self.last = rows[-1].place
        self._chunk *= 2
        return rows


class TenantJob(NamedTuple):
    """The job of a queue whose turn is next."""

    ranked: RankedJob
    lane: Lane
    group: Group


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
        self._lanes = {
            number: TurnLane(db, number, lane, request.total) for number, lane in lanes.items()
        }
        self._heap: list[Turn] = []
        self._known: dict[Group, TenantShare] = {}
        self._jobs: dict[Group, list[tuple[int, int]]] = {}
        """Due times and seqs of the jobs of a group that were read, the first one last."""
        self._chunks: dict[Group, int] = {}
        self._places: dict[Group, tuple[int, int]] = {}
        """The job up to which a group was read."""
        self.head: TenantJob | None = None
        """The job that `peek` returned last."""

    def peek(self, capacity: Capacity) -> TenantJob | None:
        """Return the job whose turn is next, of those that may be taken; None: there is none."""
        self.head = self._find_head(capacity)
        return self.head

    def _find_head(self, capacity: Capacity) -> TenantJob | None:
        while True:
            self._read_lanes()
            if not self._heap:
                return None
            rank, virtual_time, due, seq, group = self._heap[0]
            turns = self._lanes[group[0] % TENANT_UNIT]
            lane = turns.lane
            if capacity.is_limited and capacity.get_available(lane) == 0:
                heappop(self._heap)  # no job of this name may be taken until the exchange ends
                turns.is_exhausted = True
                continue
            current_time = self._known[group].virtual_time
            is_next = current_time == virtual_time
            if is_next and not self._jobs[group] and not self._read_group(group):
                heappop(self._heap)
                continue
            first_due, first_seq = self._jobs[group][-1] if self._jobs[group] else _UNKNOWN
            if (current_time, first_due, first_seq) != (virtual_time, due, seq):
                heapreplace(self._heap, (rank, current_time, first_due, first_seq, group))
                continue
            age = max(0, self._db.now - due) // self._ageing if self._ageing else 0
            return TenantJob((-self._priority - age, rank, due, seq), lane, group)

    def take(self, job: TenantJob) -> None:
        """Remove the job that `peek` returned, and charge it."""
        self.remove(job)
        (_, rank, _, seq), _, (lane, _) = job
        self._shares.charge((self._queue, rank, lane // TENANT_UNIT), seq)

    def remove(self, job: TenantJob) -> None:
        """Remove the job that `peek` returned."""
        self._jobs[job.group].pop()

    def _read_lanes(self) -> None:
        """Read all groups that may come before the first one of the heap."""
        for lane in self._lanes.values():
            while not lane.is_exhausted and (not self._heap or self._heap[0][:4] > lane.last):
                rows = lane.read_more()
                for row in rows:
                    self._add(row)
                self._read_keys(lane.lane, [row.seq for row in rows])

    def _add(self, row: TurnRow) -> None:
        group = (row.lane, row.rank)
        if group in self._known:
            return
        share = self._known[group] = self._shares.add(self._queue, row)
        self._jobs[group] = [(row.due, row.seq)]
        self._places[group] = (row.due, row.seq)
        self._chunks[group] = _FIRST_JOBS
        heappush(self._heap, (row.rank, share.virtual_time, row.due, row.seq, group))

    def _read_group(self, group: Group) -> bool:
        """Read the next jobs of a group; return whether there are any."""
        chunk = self._chunks[group]
        self._chunks[group] = chunk * 2
        jobs = _decode_jobs(
            self._db.fetch_value("list_turn_jobs", *group, *self._places[group], chunk)
        )
        if jobs:
            self._places[group] = jobs[-1]
            lane = self._lanes[group[0] % TENANT_UNIT].lane
            self._read_keys(lane, [seq for _, seq in jobs])
        self._jobs[group] = jobs[::-1]
        return bool(jobs)

    def _read_keys(self, lane: Lane, seqs: list[int]) -> None:
        if self._admission is not None and self._admission.covers(lane):
            self._admission.read_keys(dict.fromkeys(seqs, lane))


def write_shares(db: Database, shares: Mapping[ShareKey, TenantShare]) -> None:
    """Store shares, also in the turns of the groups of their tenants."""
    by_class: dict[tuple[str, int], list[tuple[int, int, int, int]]] = {}
    for (queue, rank, tenant), share in shares.items():
        by_class.setdefault((queue, rank), []).append(
            (tenant, share.virtual_time, share.mean_run_time, share.unmeasured)
        )
    for class_, rows in by_class.items():
        db.run("put_shares", *class_, _encode(rows).decode())
        db.run("rank_turns", *class_, _encode([row[0] for row in rows]).decode())


def settle_charges(
    db: Database,
    seqs: Sequence[int],
    *,
    ran: bool,
    session: int | None = None,
    tokens: Mapping[int, tuple[int, bytes]] | None = None,
) -> None:
    """Replace the charges of leases that end, in this order, by what the jobs used.

    `ran`: the handlers were called; else the tenants are charged nothing. `tokens`: fence and nonce
    by seq; leases of the session that have other ones are left out.
    """
    rows = _decode_charges(db.fetch_value("list_charges", _encode(seqs).decode(), session))
    shares: dict[ShareKey, TenantShare] = {}
    ended = []
    for row in rows:
        if tokens is not None and tokens[row.seq] != (row.fence, bytes.fromhex(row.nonce)):
            continue
        key = (row.queue, row.rank, row.tenant)
        share = shares.get(key)
        if share is None:
            share = TenantShare(row.virtual_time, row.mean_run_time, row.unmeasured)
            shares[key] = share
        run_time = db.now - row.leased_at if ran else None
        share.settle(row.charge, row.weight_units, run_time=run_time)
        ended.append(row.seq)
    if ended:
        db.run("delete_charges", _encode(ended).decode())
        write_shares(db, shares)


def set_tenant_weight(db: Database, tenant: str, weight: float | None) -> None:
    """See `Backend.set_tenant_weight`."""
    units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
    if units == WEIGHT_UNITS:
        db.run("delete_tenant_weight", tenant)
    else:
        db.run("set_tenant_weight", tenant, units)


def forget_tenants(db: Database) -> None:
    """Forget tenants without waiting and leased jobs that are not ahead of the others, and queues
    and priorities without such jobs.
    """
    db.run("delete_idle_shares")
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
