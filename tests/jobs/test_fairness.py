"""Fairness among tenants, from the settings to the handlers."""

from __future__ import annotations

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.config import QueueSettings, TenantSettings
from nimburion.core.errors import ConfigurationError
from nimburion.core.settings import FairnessMode
from nimburion.jobs import Processor, job
from nimburion.testing.clock import FakeClock

pytestmark = pytest.mark.asyncio

QUEUES = (
    QueueSettings(name="fair", fairness="tenants"),
    QueueSettings(name="plain", fairness="none"),
    QueueSettings(name="default"),
)


@job
async def sync(tenant: str) -> None: ...


@pytest.mark.parametrize("fairness", ["tenants", "none"])
async def test_the_setting_of_the_queue_decides_and_then_that_of_the_processor(
    fairness: FairnessMode,
) -> None:
    processor = Processor(MemoryBackend(), queues=QUEUES, fairness=fairness)
    processor.register(sync)
    expected = {"fair": True, "plain": False, "default": fairness == "tenants"}
    async with processor:
        for queue, fair in expected.items():
            one = await processor.enqueue(sync.job("acme"), tenant="acme", queue=queue)
            (many,) = await processor.enqueue_many([sync.job("a")], tenant="acme", queue=queue)
            raw = await processor.enqueue_raw("sync", {"tenant": "a"}, tenant="acme", queue=queue)
            for job_id in (one, many, raw):
                options = (await processor.backend.reads.get_job(job_id)).options
                assert (options.tenant, options.fair) == ("acme", fair)
            without = await processor.enqueue(sync.job("acme"), queue=queue)
            assert (await processor.backend.reads.get_job(without)).options.fair


async def test_a_flood_of_one_tenant_does_not_delay_the_others() -> None:
    ran = []
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)

    @processor.job
    async def send(tenant: str) -> None:
        ran.append(tenant)

    async with processor:
        await processor.enqueue_many((send.job("flood") for _ in range(50)), tenant="flood")
        for tenant in ("acme", "initech"):
            await processor.enqueue_many((send.job(tenant) for _ in range(2)), tenant=tenant)
        await processor.drain()
    assert len(ran) == 54
    assert sorted(ran[:6]) == ["acme", "acme", "flood", "flood", "initech", "initech"]


async def test_a_worker_sets_the_weights_of_its_settings() -> None:
    tenants = (TenantSettings(name="acme", weight=2.5), TenantSettings(name="initech"))
    processor = Processor(MemoryBackend(), tenants=tenants)
    processor.register(sync)
    async with processor:
        await processor.start()
        await processor.stop()
        assert (await processor.backend.reads.list_tenants()).weights == {"acme": 2.5}


async def test_a_weight_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="the weight of 'acme' in 'tenants' must be from"):
        Processor(MemoryBackend(), tenants=(TenantSettings(name="acme", weight=0.0),))
