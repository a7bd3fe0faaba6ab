"""The pytest plugin: it is there wherever nimburion is installed, and does nothing unless asked.

- `nimburion_clock`: a `FakeClock`.
- `nimburion_processor`: makes processors on a memory backend that lives by this clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from nimburion.testing.clock import FakeClock

if TYPE_CHECKING:
    from nimburion.jobs import Processor


class MakeProcessor(Protocol):
    """What the fixture `nimburion_processor` is."""

    def __call__(self, *jobs: Any, **settings: Any) -> Processor:
        """A processor with these jobs registered; `settings` are single ones as keywords. It is
        not open: use `async with`. All of one test share one backend."""
        ...


def pytest_configure() -> None:
    """Let failed cases of the contract show their values."""
    pytest.register_assert_rewrite("nimburion.testing.contract")


@pytest.fixture
def nimburion_clock() -> FakeClock:
    """A clock that moves only when the test moves it."""
    return FakeClock()


@pytest.fixture
def nimburion_processor(nimburion_clock: FakeClock) -> MakeProcessor:
    """Make processors: `nimburion_processor(SendEmail, report, concurrency=5)`."""
    from random import Random

    from nimburion.backends.memory import MemoryBackend
    from nimburion.jobs import Processor

    store = MemoryBackend(clock=nimburion_clock)

    def make(*jobs: Any, **settings: Any) -> Processor:
        processor = Processor(
            store.new_handle(),
            clock=nimburion_clock,
            random=Random(0),  # noqa: S311 (jitter that is the same each time)
            **settings,
        )
        if jobs:
            processor.register(*jobs)
        return processor

    return make
