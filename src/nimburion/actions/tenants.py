"""Set the weights of tenants."""

from __future__ import annotations

from nimburion.actions.operator import SubjectActions
from nimburion.core.fairness import WEIGHT_UNITS, to_weight_units
from nimburion.core.size_limits import check_text


class TenantActions(SubjectActions):
    """Set the weights of tenants: `processor.tenants`."""

    async def set_weight(self, tenant: str, weight: float | None) -> float:
        """Set the weight of a tenant in all queues, and return it as it is stored.

        None: the default, which is 1. It counts for jobs that are reserved or end from now on.
        """
        check_text("tenant", tenant)
        async with self._operator.record(self._backend, "tenant.weight", tenant, weight=weight):
            await self._backend.maintenance.set_tenant_weight(tenant, weight)
        return 1.0 if weight is None else to_weight_units(weight) / WEIGHT_UNITS
