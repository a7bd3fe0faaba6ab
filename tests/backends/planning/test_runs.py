"""Pages of durable runs, outcomes of signals, and runs that are resumed by few steps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.memory import MemoryBackend, transitions
from nimburion.backends.planning import runs
from nimburion.backends.planning.flows import FlowResolver
from nimburion.backends.planning.runs import RunCursor, cut_run_page, decide_signal
from nimburion.core.backend import Backend
from nimburion.core.flows import NewFlow, SourceKind, WaitSource
from nimburion.core.job import FINISHED, State
from nimburion.core.runs import (
    MAX_UNREAD_SIGNALS,
    NewSignal,
    RecordedStep,
    SignalOutcome,
    StoredSignal,
    make_signal_source,
    make_time_source,
    read_time_source,
    split_signal_source,
)
from nimburion.core.settlement import Completed, Suspended
from nimburion.testing import FakeClock
from nimburion.testing.contract.flows.graphs import member
from nimburion.testing.contract.harness import HandDrivenWorker, Harness
from tests.model.machine import check_waits

PAGE = 100
"""The size of a page in bytes, in these tests."""
bodies = st.lists(st.integers(0, PAGE + 20).map(bytes), max_size=12)


@given(step_bodies=bodies, payloads=bodies, limit=st.integers(1, 6))
def test_pages_have_all_once_and_in_order(
    step_bodies: list[bytes], payloads: list[bytes], limit: int
) -> None:
    steps = [RecordedStep(n, body, 0.0) for n, body in enumerate(step_bodies)]
    signals = [StoredSignal(2 * n + 1, "go", body, 0.0) for n, body in enumerate(payloads)]
    found_steps: list[RecordedStep] = []
    found_signals: list[StoredSignal] = []
    after: str | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RUN_PAGE_BYTES", PAGE)
        while True:
            cursor = RunCursor.parse(after)
            page = cut_run_page(
                cursor,
                [step for step in steps if step.number > cursor.step][: limit + 1],
                [signal for signal in signals if signal.number > cursor.signal][: limit + 1],
                limit,
            )
            count = len(page.steps) + len(page.signals)
            size = sum(len(step.body) for step in page.steps)
            size += sum(len(signal.payload) for signal in page.signals)
            assert count <= limit
            assert size <= PAGE or count == 1
            found_steps += page.steps
            found_signals += page.signals
            after = page.next
            if after is None:
                break
            assert count > 0, "a page that goes no further"
    assert (found_steps, found_signals) == (steps, signals)


@given(step=st.integers(-1, 10**9), signal=st.integers(0, 10**9))
def test_a_cursor_is_read_as_it_was_written(step: int, signal: int) -> None:
    assert RunCursor.parse(str(RunCursor(step, signal))) == RunCursor(step, signal)


@pytest.mark.parametrize("state", [None, *State])
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("unread", [0, MAX_UNREAD_SIGNALS - 1, MAX_UNREAD_SIGNALS])
def test_the_outcome_of_a_signal(state: State | None, is_known: bool, unread: int) -> None:
    outcome = decide_signal(state, is_known=is_known, unread=unread)
    if state is None:
        assert outcome is SignalOutcome.UNKNOWN
    elif state in FINISHED:
        assert outcome is SignalOutcome.FINISHED
    elif is_known:
        assert outcome is SignalOutcome.EXISTS
    else:
        is_full = unread == MAX_UNREAD_SIGNALS
        assert outcome is (SignalOutcome.FULL if is_full else SignalOutcome.STORED)


@given(job_id=st.text(max_size=20), name=st.text(max_size=20).filter(lambda text: "/" not in text))
def test_a_signal_source_is_read_as_it_was_written(job_id: str, name: str) -> None:
    assert split_signal_source(make_signal_source(job_id, name).id) == (job_id, name)


@given(times=st.lists(st.integers(0, 2**53), min_size=2, max_size=5))
def test_time_sources_are_in_the_order_of_their_times(times: list[int]) -> None:
    assert [int(make_time_source(at).id) for at in sorted(times)] == sorted(times)
    assert sorted(map(make_time_source, times)) == [make_time_source(at) for at in sorted(times)]
    assert read_time_source(make_time_source(times[0]).id) == pytest.approx(times[0] / 1e6)


class Specification:
    """Which runs wait, from what has come since they were suspended."""

    def __init__(self) -> None:
        self.waits: dict[str, set[WaitSource]] = {}
        self.ended: set[str] = set()
        """Flows."""
        self.unread: set[WaitSource] = set()

    def suspend(self, job_id: str, sources: set[WaitSource]) -> None:
        self.waits[job_id] = sources

    def list_waiting(self, now: int) -> set[str]:
        """Return the runs of which no source has come."""
        return {
            job_id
            for job_id, sources in self.waits.items()
            if not any(self.has_come(source, now) for source in sources)
        }

    def has_come(self, source: WaitSource, now: int) -> bool:
        if source.kind is SourceKind.TIME:
            return source <= make_time_source(now)
        if source.kind is SourceKind.FLOW:
            return source.id in self.ended
        return source in self.unread


FLOWS = ("flow-0", "flow-1", "flow-2")
RUNS = tuple(f"run-{n}" for n in range(8))


async def check_resuming(luck: Random, backend: Backend, clock: FakeClock) -> None:
    """Suspend runs, let things come, and compare which runs still wait after each of them."""
    await backend.open()
    harness = Harness(clock, [backend])
    worker = await harness.worker(names=("mail",))
    await harness.add(*RUNS)
    held = await worker.take(len(RUNS))
    for flow in FLOWS:
        new = NewFlow(id=flow, name="child", members=1)
        await backend.producing.enqueue([member(f"{flow}.0", flow=flow)], [new])
    expected = Specification()
    settlements = []
    for delivery in held:
        job_id, delay = delivery.lease.job_id, luck.choice((None, 1.0, 2.0, 3.0))
        sources = {make_signal_source(job_id, name) for name in "ab" if luck.random() < 0.5}
        sources |= {WaitSource(SourceKind.FLOW, flow) for flow in FLOWS if luck.random() < 0.3}
        settlements.append(Suspended(delivery.lease, tuple(sorted(sources)), delay))
        if delay is not None:
            sources.add(make_time_source(round((clock.now() + delay) * 1e6)))
        expected.suspend(job_id, sources)
    await worker.exchange(*settlements)
    events: list[Callable[[], Awaitable[None]]] = [
        partial(end_flow, worker, flow, expected) for flow in FLOWS
    ]
    events += [partial(send_one, backend, luck, expected) for _ in range(4)]
    events += [partial(pass_time, clock) for _ in range(3)]
    luck.shuffle(events)
    for event in events:
        await event()
        for _ in range(40):  # what earlier steps have left
            await backend.consuming.promote(100)
        waiting = {job_id for job_id in RUNS if await harness.state(job_id) is State.SUSPENDED}
        assert waiting == expected.list_waiting(round(clock.now() * 1e6))
        for job_id in waiting:
            await check_waits(backend, job_id, after_promotion=True)
    await backend.close()


async def end_flow(worker: HandDrivenWorker, flow: str, expected: Specification) -> None:
    """End the only member of a flow. Others that were taken go back."""
    deliveries = await worker.take(100)
    for delivery in deliveries:
        lease = delivery.lease
        if lease.job_id == f"{flow}.0":
            await worker.exchange(Completed(lease))
        else:
            await worker.backend.consuming.release(worker.id, [lease])
    expected.ended.add(flow)


async def send_one(backend: Backend, luck: Random, expected: Specification) -> None:
    signal = NewSignal(luck.choice(RUNS), luck.choice("ab"), str(luck.random()), b"")
    (outcome,) = await backend.producing.send_signals([signal])
    assert outcome is SignalOutcome.STORED
    expected.unread.add(make_signal_source(signal.job_id, signal.name))


async def pass_time(clock: FakeClock) -> None:
    clock.advance(1.0)


@pytest.mark.parametrize("limit", [1, 2, 500])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_first_source_resumes_a_run(limit: int, seed: int) -> None:
    """However few conditions a step may apply, the steps after it do the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "FlowResolver", partial(FlowResolver, limit=limit))
        clock = FakeClock()
        asyncio.run(check_resuming(Random(seed), MemoryBackend(clock=clock), clock))
