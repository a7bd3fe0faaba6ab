"""The suite as one class: subclass it, say how to open your store, and run pytest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from nimburion.core.backend import Backend
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.bounded_exchanges import BoundedExchanges
from nimburion.testing.contract.bounds import Names, Payloads, Sizes, Unstorables
from nimburion.testing.contract.cancelling import Cancelling
from nimburion.testing.contract.concurrency_limits import DeclaringLimits, Gates
from nimburion.testing.contract.dead_letters import Deleting, Replaying
from nimburion.testing.contract.enqueueing import Enqueueing
from nimburion.testing.contract.exchanges import NumberedExchanges
from nimburion.testing.contract.handles import Living
from nimburion.testing.contract.harness import Stage
from nimburion.testing.contract.limits_scenario import LimitsStory
from nimburion.testing.contract.operators import Operators
from nimburion.testing.contract.ordering import Ordering
from nimburion.testing.contract.pausing import Pausing
from nimburion.testing.contract.progress import Reporting
from nimburion.testing.contract.promoting import Promoting
from nimburion.testing.contract.pruning import Pruning
from nimburion.testing.contract.racing import Racing
from nimburion.testing.contract.reading import Reading
from nimburion.testing.contract.releasing import Releasing
from nimburion.testing.contract.rescuing import Rescuing
from nimburion.testing.contract.reserving import Reserving
from nimburion.testing.contract.schedules import Firing, Schedules
from nimburion.testing.contract.sessions import Closing, Sessions
from nimburion.testing.contract.settling import Settling
from nimburion.testing.contract.tokens import Tokens
from nimburion.testing.contract.traffic import Traffic
from nimburion.testing.contract.transactions import JoiningCompletions, JoiningEnqueues
from nimburion.testing.contract.unique_keys import UniqueKeys
from nimburion.testing.contract.waiting import Waiting


class BackendContract(
    Enqueueing,
    UniqueKeys,
    Reserving,
    Ordering,
    NumberedExchanges,
    BoundedExchanges,
    Settling,
    Tokens,
    Operators,
    Sessions,
    Closing,
    Releasing,
    Rescuing,
    Promoting,
    Gates,
    DeclaringLimits,
    Cancelling,
    Reporting,
    Replaying,
    Deleting,
    Pruning,
    Reading,
    Pausing,
    Schedules,
    Firing,
    Payloads,
    Names,
    Sizes,
    Unstorables,
    Living,
    Waiting,
    Racing,
    Traffic,
    LimitsStory,
    JoiningEnqueues,
    JoiningCompletions,
):
    """Every promise of `nimburion.core.backend`, as cases.

    A store proves itself with a subclass that opens it:

        class TestMyStore(BackendContract):
            async def open_handles(self, clock, count, tmp_path):
                first = MyBackend(tmp_path / "jobs", clock=clock)
                return [first, *(first.sibling() for _ in range(count - 1))]

    Needs pytest and pytest-asyncio. The suite opens and closes the handles. A case is skipped only
    where the store's `Capabilities` say that it cannot apply.
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.asyncio

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        """`count` handles on one new, empty store that lives by `clock`; open or not.

        `tmp_path` is an empty folder of this case alone.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def stage_of(self, count: int, tmp_path: Path) -> AsyncIterator[Stage]:
        """A stage with so many handles on one empty store; all closed at the end."""
        clock = FakeClock()
        handles = await self.open_handles(clock, count, tmp_path)
        assert len(handles) == count
        try:
            for handle in handles:
                await handle.open()
            yield Stage(clock, handles)
        finally:
            for handle in handles:
                await handle.close()

    @pytest_asyncio.fixture
    async def stage(self, tmp_path: Path) -> AsyncIterator[Stage]:
        """One handle on an empty store."""
        async with self.stage_of(1, tmp_path) as stage:
            yield stage

    @pytest_asyncio.fixture
    async def fleet(self, tmp_path: Path) -> AsyncIterator[Stage]:
        """Eight handles on one empty store."""
        async with self.stage_of(8, tmp_path) as stage:
            yield stage
