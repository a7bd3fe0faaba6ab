"""The turns of tenants: store what they are charged, and correct the charges."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from nimburion.backends.sqlite.connection.database import TENANT_UNIT, Database
from nimburion.core.fairness import (
    MAX_WAITING_COUNTED,
    WEIGHT_UNITS,
    PlannedShare,
    ShareClass,
    TenantShare,
    TenantTurn,
    to_weight_units,
)
from nimburion.core.timing.clock import MICRO

if TYPE_CHECKING:
    from nimburion.backends.planning.reserve import ReservePlan
    from nimburion.backends.planning.source import Tenant

MAX_FORGOTTEN = 1_000
"""The most shares of tenants that one call forgets."""


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
_decode_shares = msgspec.json.Decoder(list[ShareRow]).decode
_decode_charges = msgspec.json.Decoder(list[ChargeRow]).decode


def read_shares(
    db: Database, class_: ShareClass, tenants: Collection[Tenant]
) -> dict[Tenant, PlannedShare]:
    """Return the shares of tenants, by tenant. A tenant that is not known has a new share."""
    rows = _decode_shares(db.fetch_value("list_shares", *class_, _encode(list(tenants)).decode()))
    return {
        row.tenant: PlannedShare(
            TenantShare(row.virtual_time, row.mean_run_time, row.unmeasured), row.weight_units
        )
        for row in rows
    }


def write_shares(db: Database, class_: ShareClass, shares: Mapping[Tenant, PlannedShare]) -> str:
    """Store shares of one class, by tenant; return the JSON array of the tenants."""
    numbers = [
        b"%20d%20d%20d" % (share.virtual_time, share.mean_run_time, share.unmeasured)
        for share in (planned.share for planned in shares.values())
    ]
    listed = _encode(list(shares)).decode()
    db.run("put_shares", *class_, listed, b"".join(numbers))
    return listed


def save_charges(db: Database, plan: ReservePlan) -> None:
    """Store what tenants were charged for jobs that are leased, before these leave `ready`."""
    classes = [(*class_, time) for class_, time in plan.min_virtual_times.items()]
    db.run("put_share_classes", _encode(classes).decode())
    removed = _encode([lease.seq for lease in plan.leases if lease.charge is not None]).decode()
    for class_, shares in plan.shares.items():
        db.run("move_turns", *class_, write_shares(db, class_, shares), removed)


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
        db.run("rank_turns", *class_, write_shares(db, class_, shares))


def set_tenant_weight(db: Database, tenant: str, weight: float | None) -> None:
    """Store the weight of a tenant. The weight 1, which all others have, is not stored."""
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
    db.run("delete_idle_share_classes")


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
