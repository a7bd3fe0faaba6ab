"""What the server stores of waiting and parked jobs, limits and tenants, read as a `Source`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from struct import Struct
from typing import TypeVar

import msgspec

from nimburion.backends.planning.reserve import ReservePlan
from nimburion.backends.planning.source import ParkedJob, Place, PlanLane, Tenant, Turn
from nimburion.backends.redis.backend import RedisBackend
from nimburion.core.exchange import Lane
from nimburion.core.fairness import PlannedShare, ShareClass, TenantShare
from nimburion.core.job import MAX_PRIORITY
from nimburion.core.limits import JobLimit, LimitKey, LimitUse

T = TypeVar("T")

_READY = Struct(">4sBQQ")
_SHARE = Struct(">qqB")

_SETS = ("ready", "tenant_job", "parked")
_HASHES = ("lane_name", "limit_use", "tenant_share", "share_class")


class StoredJob(msgspec.Struct, frozen=True, order=True):
    """A due job: it waits in its lane, or is parked."""

    rank: int
    due: int
    seq: int
    lane: Lane
    tenant: str | None


class StoredState(msgspec.Struct):
    """The state at one time. Lists are in the order of the lanes."""

    waiting: dict[int, StoredJob]
    parked: dict[int, tuple[StoredJob, LimitKey]]
    uses: dict[LimitKey, LimitUse]
    shares: dict[ShareClass, dict[Tenant, TenantShare]]
    min_virtual_times: dict[ShareClass, int]

    def apply(self, plan: ReservePlan) -> None:
        """Do what a plan says."""
        jobs = self.waiting | {seq: job for seq, (job, _) in self.parked.items()}
        for lease in plan.leases:
            self.waiting.pop(lease.seq, None)
            self.parked.pop(lease.seq, None)
        for seq, key in (plan.park | plan.move).items():
            self.waiting.pop(seq, None)
            self.parked[seq] = (jobs[seq], key)
        for seq in plan.unpark:
            del self.parked[seq]
            self.waiting[seq] = jobs[seq]
        for key, use in plan.uses.items():
            self.uses[key] = use
        for class_, shares in plan.shares.items():
            self.min_virtual_times[class_] = plan.min_virtual_times[class_]
            for tenant, planned in shares.items():
                self.shares.setdefault(class_, {})[tenant] = planned.share


class StoredSource:
    """See `Source`. `limits` are those by key of each job, by seq."""

    def __init__(
        self,
        state: StoredState,
        limits: Mapping[int, list[JobLimit]],
        weights: Mapping[str, int],
    ) -> None:
        self._state = state
        self._limits = limits
        self._weights = weights

    def read_lanes(
        self, lanes: Sequence[PlanLane]
    ) -> Sequence[tuple[PlanLane, Iterator[list[Place]]]]:
        found = ((lane, self._list_jobs(lane.lane, None)) for lane in lanes)
        return [
            (lane, split([(job.rank, job.due, job.seq) for job in jobs]))
            for lane, jobs in found
            if jobs
        ]

    def read_turns(self, lane: PlanLane) -> Iterator[list[Turn]]:
        first: dict[tuple[int, str], StoredJob] = {}
        for job in sorted(self._state.waiting.values()):
            if job.lane == lane.lane and job.tenant is not None:
                first.setdefault((job.rank, job.tenant), job)
        shares = self._state.shares
        return split(
            sorted(
                Turn(
                    rank,
                    shares[lane.lane.queue, rank][tenant].virtual_time,
                    job.due,
                    job.seq,
                    tenant,
                )
                for (rank, tenant), job in first.items()
            )
        )

    def read_group(
        self, lane: PlanLane, tenant: Tenant, rank: int, after: tuple[int, int] | None
    ) -> Iterator[list[tuple[int, int]]]:
        jobs = self._list_jobs(lane.lane, tenant)
        places = [(job.due, job.seq) for job in jobs if job.rank == rank]
        return split([place for place in places if after is None or place > after])

    def read_shares(
        self, class_: ShareClass, tenants: Collection[Tenant]
    ) -> dict[Tenant, PlannedShare]:
        known = self._state.shares.get(class_, {})
        return {
            tenant: PlannedShare(
                msgspec.structs.replace(known.get(tenant, TenantShare())),
                self._weights.get(str(tenant), 100),
            )
            for tenant in tenants
        }

    def read_min_virtual_time(self, class_: ShareClass) -> int:
        return self._state.min_virtual_times.get(class_, 0)

    def read_limits(self, jobs: Mapping[int, PlanLane]) -> dict[int, list[JobLimit]]:
        return {seq: self._limits[seq] for seq in jobs}

    def read_uses(self, keys: Collection[LimitKey]) -> dict[LimitKey, LimitUse]:
        parked = {key for _, key in self._state.parked.values()}
        return {
            key: msgspec.structs.replace(
                self._state.uses.get(key, LimitUse()), has_parked=key in parked
            )
            for key in keys
        }

    def read_parked(self, key: LimitKey, lane: PlanLane) -> Iterator[list[ParkedJob]]:
        jobs = [
            job for job, of in self._state.parked.values() if of == key and job.lane == lane.lane
        ]
        return split([ParkedJob(job.rank, job.due, job.seq, job.tenant) for job in sorted(jobs)])

    def _list_jobs(self, lane: Lane, tenant: Tenant | None) -> list[StoredJob]:
        return sorted(
            job for job in self._state.waiting.values() if (job.lane, job.tenant) == (lane, tenant)
        )


def split(items: list[T]) -> Iterator[list[T]]:
    """Yield chunks of two."""
    for n in range(0, len(items), 2):
        yield items[n : n + 2]


async def read_state(backend: RedisBackend) -> StoredState:
    """Read the state."""
    connections = backend._server.get_connections()
    execute, select = connections.commands.execute, connections.keys.select
    found = {name: await execute("ZRANGE", *select([name]), 0, -1) for name in _SETS}
    hashes = {name: dict(read_hash(await execute("HGETALL", *select([name])))) for name in _HASHES}
    lanes = {}
    for number, full in hashes["lane_name"].items():
        queue, _, name = full.decode().partition("\0")
        lanes[number] = Lane(queue, name)
    waiting = [
        *(read_ready(member, lanes) for member in found["ready"]),
        *(read_tenant_job(member, lanes) for member in found["tenant_job"]),
    ]
    uses = {read_key(name): read_use(record) for name, record in hashes["limit_use"].items()}
    shares: dict[ShareClass, dict[Tenant, TenantShare]] = {}
    for field, record in hashes["tenant_share"].items():
        class_, tenant = read_class(field)
        shares.setdefault(class_, {})[tenant] = TenantShare(*_SHARE.unpack_from(record))
    return StoredState(
        {job.seq: job for job in waiting},
        {job.seq: (job, key) for job, key in (read_parked(one, lanes) for one in found["parked"])},
        uses,
        shares,
        {
            read_class(field)[0]: int.from_bytes(record[:8], "big")
            for field, record in hashes["share_class"].items()
        },
    )


def read_hash(flat: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the fields of a hash with their values."""
    return zip(flat[::2], flat[1::2], strict=True)


def read_ready(member: bytes, lanes: Mapping[bytes, Lane], tenant: str | None = None) -> StoredJob:
    """Read a member of `ready`."""
    number, rank, due, seq = _READY.unpack(member)
    return StoredJob(rank - MAX_PRIORITY, due - 2**63, seq, lanes[number], tenant)


def read_tenant_job(member: bytes, lanes: Mapping[bytes, Lane]) -> StoredJob:
    """Read a member of `tenant_job`."""
    return read_ready(member[:5] + member[-16:], lanes, member[5:-17].decode())


def read_parked(member: bytes, lanes: Mapping[bytes, Lane]) -> tuple[StoredJob, LimitKey]:
    """Read a member of `parked`."""
    limit, key, rest = member.split(b"\0", 2)
    tenant = rest[_READY.size + 1 :].decode() or None
    return read_ready(rest[: _READY.size], lanes, tenant), (
        limit.decode(),
        key.decode(),
    )


def read_key(name: bytes) -> LimitKey:
    """Read the name of a key."""
    limit, key = name.decode().split("\0")
    return limit, key


def read_use(record: bytes) -> LimitUse:
    """Read a value of `limit_use`."""
    in_use, *rate = record.decode().split()
    if not rate:
        return LimitUse(int(in_use))
    return LimitUse(int(in_use), int(rate[0]), None if rate[1] == "-" else int(rate[1]))


def read_class(field: bytes) -> tuple[ShareClass, str]:
    """Read the beginning of a field of `tenant_share` or `share_class`; return the tenant too."""
    queue, rest = field.split(b"\0", 1)
    return (queue.decode(), rest[0] - MAX_PRIORITY), rest[1:].decode()
