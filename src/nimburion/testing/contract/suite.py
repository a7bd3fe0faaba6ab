"""The suite as one class: subclass it, implement `open_handles`, and run pytest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from nimburion.core.backend import Backend
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.consuming.bounded_exchanges import BoundedExchanges
from nimburion.testing.contract.consuming.clock_steps import ClockSteps
from nimburion.testing.contract.consuming.concurrency_limits import (
    ConcurrencyLimits,
    DeclaringLimits,
)
from nimburion.testing.contract.consuming.exchanges import NumberedExchanges
from nimburion.testing.contract.consuming.fairness import (
    Charges,
    ReadingTurns,
    TenantsThatJoin,
    Turns,
    TurnsAndLimits,
)
from nimburion.testing.contract.consuming.kept_arguments import KeptArguments
from nimburion.testing.contract.consuming.keyed_limits import KeyedLimits, KeyedRates
from nimburion.testing.contract.consuming.many_lanes import ManyLanes
from nimburion.testing.contract.consuming.ordering import Ordering
from nimburion.testing.contract.consuming.parked_jobs import ParkedJobs
from nimburion.testing.contract.consuming.progress import Reporting
from nimburion.testing.contract.consuming.promoting import Promoting
from nimburion.testing.contract.consuming.queue_limits import QueueLimits
from nimburion.testing.contract.consuming.rate_limits import (
    DeclaringRates,
    RateLimits,
    RefusedCalls,
)
from nimburion.testing.contract.consuming.releasing import Releasing
from nimburion.testing.contract.consuming.rescuing import Rescuing
from nimburion.testing.contract.consuming.reserving import Reserving
from nimburion.testing.contract.consuming.sessions import Closing, Sessions
from nimburion.testing.contract.consuming.settling import Settling
from nimburion.testing.contract.consuming.tokens import Tokens
from nimburion.testing.contract.consuming.waiting import Waiting
from nimburion.testing.contract.fairness_scenario import FairnessScenario
from nimburion.testing.contract.flows.counting import Counting, Groups
from nimburion.testing.contract.flows.dependencies import (
    EndingTogether,
    EndingWithoutSuccess,
    EnqueueingFlows,
    Resuming,
    Suspending,
)
from nimburion.testing.contract.flows.failing_fast import FailingFast, ReplayingFast
from nimburion.testing.contract.flows.growing import Growing, OpenFlows, TransactionalGrowth
from nimburion.testing.contract.flows.reading import PruningFlows, ReadingFlows
from nimburion.testing.contract.flows.replaying import ReplayingMembers
from nimburion.testing.contract.flows.transactions import TransactionalFlows
from nimburion.testing.contract.handles import Handles
from nimburion.testing.contract.harness import Harness
from nimburion.testing.contract.limits_scenario import LimitsScenario
from nimburion.testing.contract.maintaining.changing_jobs import JobChangeCases
from nimburion.testing.contract.maintaining.dead_letters import Deleting, Replaying
from nimburion.testing.contract.maintaining.limit_changes import LimitChanges
from nimburion.testing.contract.maintaining.making_due import MakingDue
from nimburion.testing.contract.maintaining.operators import Operators
from nimburion.testing.contract.maintaining.pausing import Pausing
from nimburion.testing.contract.maintaining.pruning import Pruning
from nimburion.testing.contract.maintaining.records import RecordCases
from nimburion.testing.contract.open_transactions import OpenTransactions
from nimburion.testing.contract.producing.blocking_enqueues import BlockingEnqueues
from nimburion.testing.contract.producing.boundary_values import Names, Payloads, Sizes, Unstorables
from nimburion.testing.contract.producing.cancelling import Cancelling
from nimburion.testing.contract.producing.enqueueing import EnqueueCases
from nimburion.testing.contract.producing.texts import Texts
from nimburion.testing.contract.producing.unique_key_modes import UniqueKeyModes
from nimburion.testing.contract.producing.unique_keys import UniqueKeys
from nimburion.testing.contract.racing import Racing
from nimburion.testing.contract.reads.attempt_history import AttemptHistory
from nimburion.testing.contract.reads.explaining import (
    Explaining,
    LimitReading,
    VitalsAndCommands,
)
from nimburion.testing.contract.reads.reading import ReadingCases
from nimburion.testing.contract.reads.searching import FailureGroupCases, Searching
from nimburion.testing.contract.reads.statistics import StatisticsCases
from nimburion.testing.contract.runs.cancelling import CancellingRuns
from nimburion.testing.contract.runs.operating import OperatedRuns, SignallingJobs
from nimburion.testing.contract.runs.recording import KeepingSteps, ReadingRuns, Recording
from nimburion.testing.contract.runs.repeating import RepeatedRuns
from nimburion.testing.contract.runs.suspending import (
    Signalling,
    SuspendingRuns,
    WaitingForFlows,
    WaitingForTheFirst,
    WaitingForTimes,
)
from nimburion.testing.contract.runs.transactional_steps import TransactionalSteps
from nimburion.testing.contract.schedules import Fire
from nimburion.testing.contract.traffic import Traffic
from nimburion.testing.contract.transactions import (
    TransactionalCompletions,
    TransactionalEnqueues,
    TransactionalFailures,
)


class BackendContract(
    EnqueueCases,
    BlockingEnqueues,
    UniqueKeys,
    UniqueKeyModes,
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
    ConcurrencyLimits,
    DeclaringLimits,
    RateLimits,
    RefusedCalls,
    DeclaringRates,
    ClockSteps,
    KeyedLimits,
    KeyedRates,
    ParkedJobs,
    QueueLimits,
    ManyLanes,
    Turns,
    TenantsThatJoin,
    TurnsAndLimits,
    Charges,
    ReadingTurns,
    LimitChanges,
    Cancelling,
    Reporting,
    Replaying,
    MakingDue,
    Deleting,
    Pruning,
    ReadingCases,
    Searching,
    FailureGroupCases,
    AttemptHistory,
    KeptArguments,
    Explaining,
    LimitReading,
    VitalsAndCommands,
    StatisticsCases,
    JobChangeCases,
    RecordCases,
    Pausing,
    Fire,
    Payloads,
    Names,
    Texts,
    Sizes,
    Unstorables,
    Handles,
    Waiting,
    Racing,
    Traffic,
    LimitsScenario,
    FairnessScenario,
    TransactionalEnqueues,
    TransactionalCompletions,
    TransactionalFailures,
    OpenTransactions,
    Suspending,
    Resuming,
    EndingWithoutSuccess,
    EnqueueingFlows,
    EndingTogether,
    Counting,
    Groups,
    ReplayingMembers,
    ReadingFlows,
    PruningFlows,
    TransactionalFlows,
    Growing,
    OpenFlows,
    TransactionalGrowth,
    FailingFast,
    ReplayingFast,
    Recording,
    KeepingSteps,
    ReadingRuns,
    SuspendingRuns,
    WaitingForTimes,
    Signalling,
    WaitingForFlows,
    WaitingForTheFirst,
    CancellingRuns,
    RepeatedRuns,
    OperatedRuns,
    SignallingJobs,
    TransactionalSteps,
):
    """Every promise of `nimburion.core.backend`, as cases.

    Test a backend with a subclass that opens it:

        class TestMyBackend(BackendContract):
            async def open_handles(self, clock, count, tmp_path):
                first = MyBackend(tmp_path / "jobs", clock=clock)
                return [first, *(first.new_handle() for _ in range(count - 1))]

    Needs pytest and pytest-asyncio. The suite opens and closes the handles. A case is skipped only
    if it does not apply to the `Capabilities` of the backend.
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.asyncio

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        """Return `count` handles on one new, empty backend that uses `clock`; open or not.

        `tmp_path` is an empty folder for this case alone.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def make_harness(self, count: int, tmp_path: Path) -> AsyncIterator[Harness]:
        """Yield a harness with `count` open handles on one empty backend; close all of them at
        the end."""
        clock = FakeClock()
        handles = await self.open_handles(clock, count, tmp_path)
        assert len(handles) == count
        try:
            for handle in handles:
                await handle.open()
            yield Harness(clock, handles)
        finally:
            for handle in handles:
                await handle.close()

    @pytest_asyncio.fixture
    async def harness(self, tmp_path: Path) -> AsyncIterator[Harness]:
        """A harness with one handle on an empty backend."""
        async with self.make_harness(1, tmp_path) as harness:
            yield harness

    @pytest_asyncio.fixture
    async def fleet(self, tmp_path: Path) -> AsyncIterator[Harness]:
        """A harness with eight handles on one empty backend."""
        async with self.make_harness(8, tmp_path) as harness:
            yield harness
