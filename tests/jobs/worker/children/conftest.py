from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from nimburion.jobs import Processor
from tests.jobs.worker.children.application import make_processor

Make = Callable[..., Processor]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Make processors with the jobs of the application; all are closed at the end."""
    made: list[Processor] = []

    def make(**settings: Any) -> Processor:
        made.append(make_processor(**{"children": 1, **settings}))
        return made[-1]

    yield make
    for processor in made:
        await processor.stop(0.0)
        await processor.close()
