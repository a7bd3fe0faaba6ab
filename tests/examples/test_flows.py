"""The import in parts runs on each backend: only the URL differs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from nimburion.core.flows import FlowState

Load = Callable[[str, str], ModuleType]
GOOD = "https://example.com/f.csv"
BROKEN = "https://example.com/broken.csv"


async def test_in_memory(import_example: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    await check_import(import_example, monkeypatch, "memory://")


async def test_on_each_backend(
    import_example: Load, monkeypatch: pytest.MonkeyPatch, backend_url: str
) -> None:
    await check_import(import_example, monkeypatch, backend_url)


async def check_import(load: Load, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Import a file, and one of which too many parts fail."""
    monkeypatch.setenv("NIMBURION_JOBS__URL", url)
    example = load("flows", "import_file")
    processor = example.processor
    async with processor:
        for _ in range(2):  # a repeat changes nothing
            await processor.enqueue_flow(example.make_import(GOOD), id="good")
        await processor.enqueue_flow(example.make_import(BROKEN), id="broken")
        await processor.start()
        good = await processor.flows.wait("good", timeout=60)
        broken = await processor.flows.wait("broken", timeout=60)
        await processor.wait("broken.on_failure", timeout=60)
        await processor.stop()
    assert (good.state, good.groups[0].completed) == (FlowState.COMPLETED, 100)
    assert (broken.state, broken.groups[0].failed) == (FlowState.FAILED, 10)
    assert sorted(example.sent) == [
        f"ops@example.com: the import of {BROKEN} failed",
        "team@example.com: 104950 rows in 100 of 100 parts",
    ]
