"""The durable functions of the examples run on each backend: only the URL differs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from nimburion import Processor
from nimburion.core.job import State
from tests.waiting import wait_until, wait_until_finished

Load = Callable[[str, str], ModuleType]


async def test_in_memory(import_example: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_durable_functions(import_example, monkeypatch, "memory://")


async def test_on_each_backend(
    import_example: Load, monkeypatch: pytest.MonkeyPatch, backend_url: str
) -> None:
    await check_durable_functions(import_example, monkeypatch, backend_url)


async def check_durable_functions(load: Load, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Run each example to its end."""
    monkeypatch.setenv("NIMBURION_JOBS__URL", url)
    await check_onboarding(load("durable", "onboard"))
    await check_orders(load("durable", "order"))
    await check_import(load("durable", "import_in_code"))


async def check_onboarding(example: ModuleType) -> None:
    """Confirm an address before and after the run asks for it."""
    processor = example.processor
    async with processor:
        early = await processor.enqueue(example.onboard.job("ann@example.com", 0), id="early")
        await example.confirm(early, "ann", "click-1")
        await example.confirm(early, "someone else", "click-1")
        late = await processor.enqueue(example.onboard.job("bob@example.com", 0), id="late")
        await processor.start()
        await wait_until_suspended(processor, late)
        await example.confirm(late, "bob", "click-2")
        assert await processor.wait(early, timeout=60) == "ann"
        assert await processor.wait(late, timeout=60) == "bob"
        await processor.stop()
    assert sorted(example.accounts) == ["ann@example.com", "bob@example.com"]
    assert len(example.sent) == 2


async def check_orders(example: ModuleType) -> None:
    """Ship an order, and undo one that cannot be shipped."""
    processor = example.processor
    async with processor:
        await processor.enqueue(example.order.job("good", 100), id="good")
        await processor.start()
        assert await processor.wait("good", timeout=60) == "shipment of good"
        assert example.log == ["reserve", "charge 100", "ship"]
        example.log.clear()
        await processor.enqueue(example.order.job("late", 100), id="late-order")
        record = await wait_until_finished(processor, "late-order")
        await processor.stop()
    assert record.state is State.FAILED
    assert example.log == [
        *("reserve", "charge 100"),
        *("ship", "ship", "ship"),
        *("refund payment of late", "release reservation of late"),
    ]


async def check_import(example: ModuleType) -> None:
    """Import a file in as many parts as it has."""
    processor = example.processor
    async with processor:
        await processor.enqueue(example.import_file.job("https://example.com/f.csv"), id="import")
        await processor.start()
        parts = len("/srv/imports/f.csv")
        rows = sum(1_000 + part for part in range(parts))
        assert await processor.wait("import", timeout=60) == rows
        await processor.stop()
    assert example.sent == [f"team@example.com: {rows} rows in {parts} parts"]


async def wait_until_suspended(processor: Processor, job_id: str) -> None:
    """Return when a run waits without a worker."""

    async def is_suspended() -> bool:
        return (await processor.backend.reads.get_job(job_id)).state is State.SUSPENDED

    await wait_until(is_suspended, f"{job_id} is suspended")
