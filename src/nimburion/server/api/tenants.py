"""Tenants: list those that have jobs, and set weights."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.fairness import MAX_WEIGHT, MIN_WEIGHT, TenantUse, compute_shares
from nimburion.server.api.names import PageSize, Text
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation


class TenantSummary(TenantUse, frozen=True, kw_only=True):
    """A tenant with waiting or running jobs in a queue, at one job priority."""

    share: float
    """Its part of the weights of all tenants listed for this queue and priority, from 0 to 1."""


class TenantList(msgspec.Struct, frozen=True):
    """Tenants by queue, priority and virtual time, and the weights that were set."""

    tenants: list[TenantSummary]
    weights: dict[str, float]


class TenantQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many tenants to list."""

    limit: PageSize = 100


class WeightBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weight of a tenant in all queues; null: the default, which is 1."""

    tenant: Text
    weight: Annotated[float, Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)] | None


class TenantWeight(msgspec.Struct, frozen=True):
    """The weight of a tenant, as it is stored."""

    tenant: str
    weight: float


async def list_tenants(request: ApiRequest[TenantQuery, NoBody]) -> TenantList:
    """List the tenants that have waiting or running jobs, with their shares, and all weights."""
    found = await request.services.backend.reads.list_tenants(request.query.limit)
    shares = compute_shares(found.tenants)
    return TenantList(
        [
            TenantSummary(**msgspec.structs.asdict(use), share=share)
            for use, share in zip(found.tenants, shares, strict=True)
        ],
        found.weights,
    )


async def set_tenant_weight(request: ApiRequest[NoQuery, WeightBody]) -> TenantWeight:
    """Set the weight of a tenant. It counts for jobs that are reserved or end from now on."""
    tenant = request.body.tenant
    stored = await request.actions.tenants.set_weight(tenant, request.body.weight)
    return TenantWeight(tenant, stored)


OPERATIONS = (
    Operation(
        method="GET",
        path="/tenants",
        handle=list_tenants,
        query=TenantQuery,
        answer=TenantList,
    ),
    Operation(
        method="POST",
        path="/tenants/weight",
        handle=set_tenant_weight,
        action="tenant.weight",
        body=WeightBody,
        answer=TenantWeight,
    ),
)
