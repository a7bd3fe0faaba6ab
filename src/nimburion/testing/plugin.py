"""The pytest plugin, registered wherever nimburion is installed; it only adds fixtures.

- `nimburion_clock`: a `FakeClock`.
- `nimburion_processor`: makes processors on a memory backend that uses this clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from nimburion.testing.clock import FakeClock

if TYPE_CHECKING:
    from nimburion.jobs import Processor


class MakeProcessor(Protocol):
    """The type of the fixture `nimburion_processor`."""

    def __call__(self, *jobs: Any, **settings: Any) -> Processor:
        """Return a processor with these jobs registered. `settings` are single settings as
        keywords. The processor is not open: use `async with`. All processors of one test share
        one backend."""
        ...


def pytest_configure() -> None:
    """Rewrite the assertions of the contract so that failed cases show their values."""
    pytest.register_assert_rewrite("nimburion.testing.contract")


@pytest.fixture
def nimburion_clock() -> FakeClock:
    """A fake clock that only the test advances."""
    return FakeClock()


@pytest.fixture
def nimburion_processor(nimburion_clock: FakeClock) -> MakeProcessor:
    """Make processors: `nimburion_processor(SendEmail, report, concurrency=5)`."""
    from random import Random

    from nimburion.backends.memory import MemoryBackend
    from nimburion.jobs import Processor

    backend = MemoryBackend(clock=nimburion_clock)

    def make(*jobs: Any, **settings: Any) -> Processor:
        processor = Processor(
            backend.new_handle(),
            clock=nimburion_clock,
            random=Random(0),  # noqa: S311 (jitter that is the same each time)
            **settings,
        )
        if jobs:
            processor.register(*jobs)
        return processor

    return make
