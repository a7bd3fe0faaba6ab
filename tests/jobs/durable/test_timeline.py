"""The timeline of a durable run: its entries, their states and times, and what it waits for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from msgspec import Raw

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import JobNotFound
from nimburion.core.exchange import RESERVE_NOTHING, Lane, Reply, ReserveRequest
from nimburion.core.flows import NewFlow, SourceKind, WaitSource
from nimburion.core.job import AttemptError, NewJob
from nimburion.core.lease import Delivery
from nimburion.core.runs import CANCEL_SIGNAL, NewSignal, make_signal_source
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Failed, Recorded, Settlement, Suspended
from nimburion.jobs.durable import journal
from nimburion.jobs.durable.journal import AnyEntry, StoredError, encode_entry
from nimburion.jobs.durable.timeline import (
    EntryKind,
    EntryState,
    RunTimeline,
    read_run_timeline,
)
from nimburion.testing import FakeClock

SESSION = "s" * 32
Row = tuple[str, str, str]


class StoredRun:
    """A run `order` on a clock of its own, whose entries the test stores itself."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = MemoryBackend(clock=self.clock)
        self._number = 0
        self._exchange = 0
        self._delivery: Delivery | None = None

    async def start(self) -> None:
        """Enqueue the job and reserve it."""
        await self.backend.open()
        session = Session(id=SESSION, queues=("q",), names=("order",), ttl=1e9)
        await self.backend.consuming.open_session(session)
        await self.backend.producing.enqueue([NewJob("order", "order", "q", b"{}")])
        await self.reserve()

    async def reserve(self) -> None:
        """Reserve the job."""
        request = ReserveRequest(1, (Lane("q", "order"),))
        reply = await self.exchange(request=request)
        (self._delivery,) = reply.deliveries

    async def settle(self, *settlements: Settlement) -> None:
        """Send settlements of the lease."""
        await self.exchange(*settlements)

    async def exchange(
        self, *settlements: Settlement, request: ReserveRequest = RESERVE_NOTHING
    ) -> Reply:
        self._exchange += 1
        return await self.backend.consuming.exchange(SESSION, self._exchange, settlements, request)

    @property
    def delivery(self) -> Delivery:
        assert self._delivery is not None
        return self._delivery

    async def store(self, *entries: AnyEntry, after: float = 0.0, number: int = 0) -> None:
        """Store entries `after` seconds from now."""
        self.clock.advance(after)
        for entry in entries:
            self._number += 1
            await self.record_raw(number or self._number, encode_entry(entry))

    async def record_raw(self, number: int, body: bytes) -> None:
        await self.settle(Recorded(self.delivery.lease, number, body, None, False))

    async def suspend(self, *sources: WaitSource, delay: float | None = None) -> None:
        await self.settle(Suspended(self.delivery.lease, sources, delay))

    async def read(self, limit: int = 1_000) -> RunTimeline:
        return await read_run_timeline(self.backend, "order", limit=limit)

    async def list_rows(self) -> list[Row]:
        found = await self.read()
        return [(one.kind.value, one.key, one.state.value) for one in found.entries]


@pytest.fixture
async def run() -> AsyncIterator[StoredRun]:
    made = StoredRun()
    await made.start()
    yield made
    await made.backend.close()


async def test_a_step_with_its_value_and_its_times(run: StoredRun) -> None:
    await run.store(journal.StepEntry("charge", Raw(b'{"id":7}')), after=2.0)
    await run.store(journal.StepEntry("mail"), after=3.0)
    charge, mail = (await run.read()).entries
    assert (charge.kind, charge.state, charge.tries) == (
        EntryKind.STEP,
        EntryState.DONE,
        1,
    )
    assert charge.value == Raw(b'{"id":7}')
    assert charge.started_at is not None
    assert charge.ended_at is not None
    assert charge.ended_at - charge.started_at == pytest.approx(2.0)
    assert mail.started_at == charge.ended_at
    assert mail.ended_at == pytest.approx(charge.ended_at + 3.0)


async def test_a_step_that_is_tried_again(run: StoredRun) -> None:
    await run.store(journal.RetryEntry("charge", 1, 10.0, "ValueError: no"), after=1.0)
    (one,) = (await run.read()).entries
    assert (one.state, one.tries, one.error) == (EntryState.RETRYING, 1, "ValueError: no")
    assert one.until == pytest.approx(run.clock.now() + 10.0)
    await run.store(journal.StepEntry("charge", Raw(b"1")), after=10.0)
    (one,) = (await run.read()).entries
    assert (one.state, one.tries, one.error, one.until) == (EntryState.DONE, 2, "", None)


async def test_a_caught_error_and_one_that_ended_an_attempt(run: StoredRun) -> None:
    error = StoredError("LookupError", "builtins", "no plan")
    await run.store(journal.StepEntry("find", error=error))
    assert await run.list_rows() == [("step", "find", "failed")]
    assert (await run.read()).entries[0].error == "LookupError: no plan"
    await run.store(journal.ForgottenEntry("find", "step"))
    assert await run.list_rows() == [("step", "find", "retrying")]


async def test_a_sleep_ends_when_its_time_has_come(run: StoredRun) -> None:
    await run.store(journal.TimerEntry("trial", 60.0))
    await run.suspend(delay=60.0)
    (one,) = (await run.read()).entries
    assert (one.state, one.ended_at) == (EntryState.WAITING, None)
    assert one.until == pytest.approx(run.clock.now() + 60.0)
    run.clock.advance(61.0)
    (one,) = (await run.read()).entries
    assert (one.state, one.ended_at) == (EntryState.DONE, one.until)


async def test_a_wait_for_a_signal_without_a_timeout_is_read_from_the_conditions(
    run: StoredRun,
) -> None:
    await run.store(journal.StepEntry("ask"), after=1.0)
    await run.suspend(make_signal_source("order", "paid"))
    run.clock.advance(5.0)
    assert await run.list_rows() == [("step", "ask", "done"), ("wait", "paid", "waiting")]
    found = await run.read()
    assert found.entries[1].started_at == found.entries[0].ended_at
    assert "the signal 'paid'" in found.why


async def test_a_wait_with_a_timeout_and_a_key_is_one_row(run: StoredRun) -> None:
    await run.store(journal.TimeoutEntry("first", 30.0))
    await run.suspend(make_signal_source("order", "paid"), delay=30.0)
    assert await run.list_rows() == [("wait", "first", "waiting")]


async def test_the_end_of_waits(run: StoredRun) -> None:
    await run.store(journal.SignalEntry("paid", Raw(b"3")), after=1.0)
    await run.store(journal.TimeoutEntry("reply", 9.0))
    await run.store(journal.SignalEntry("reply", timed_out=True), after=9.0)
    paid, reply = (await run.read()).entries
    assert (paid.state, paid.value) == (EntryState.DONE, Raw(b"3"))
    assert (reply.state, reply.value) == (EntryState.TIMEOUT, None)


async def test_child_jobs(run: StoredRun) -> None:
    await run.store(journal.ChildrenEntry("parts", "order.parts", ("part",), 3))
    assert await run.list_rows() == [("children", "parts", "started")]
    await run.suspend(WaitSource(SourceKind.SIGNAL, "order/x"))
    assert ("children", "parts", "started") in await run.list_rows()


async def test_child_jobs_among_many_sources_wait(run: StoredRun) -> None:
    keys = ["a", "b", "c", "d"]
    for key in keys:
        await run.store(journal.ChildrenEntry(key, f"order.{key}", (key,), 1))
    flows = [NewFlow(id=f"order.{key}", name=key, members=1) for key in keys]
    await run.backend.producing.enqueue([], flows)
    await run.suspend(*(WaitSource(SourceKind.FLOW, f"order.{key}") for key in keys))
    assert await run.list_rows() == [("children", key, "waiting") for key in keys]


async def test_the_results_of_child_jobs(run: StoredRun) -> None:
    await run.store(journal.ChildrenEntry("parts", "order.parts", ("part",), 2))
    await run.store(journal.OutcomeEntry("parts", (Raw(b"1"), Raw(b"2"))), after=4.0)
    (one,) = (await run.read()).entries
    assert (one.state, one.value, one.flow, one.jobs) == (
        EntryState.DONE,
        Raw(b"[1,2]"),
        "order.parts",
        2,
    )


async def test_a_run_that_is_undone(run: StoredRun) -> None:
    await run.store(journal.StepEntry("charge"))
    error = AttemptError(1, "failure", "ValueError", "no")
    await run.store(journal.EndingEntry(error=error), after=1.0)
    await run.store(journal.RetryEntry("undo refund", 1, 5.0, "OSError: down"))
    await run.store(journal.UndoEntry("refund"), after=5.0)
    assert await run.list_rows() == [
        ("step", "charge", "done"),
        ("end", "", "failed"),
        ("undo", "refund", "done"),
    ]
    assert (await run.read()).entries[2].tries == 2


async def test_a_restart_and_a_change_of_the_code(run: StoredRun) -> None:
    await run.store(journal.RestartEntry("", 2, Raw(b'{"n":1}')), journal.ChangedEntry("v2"))
    assert await run.list_rows() == [("restart", "2", "done"), ("changed", "v2", "done")]


async def test_what_an_ended_job_did_not_finish(run: StoredRun) -> None:
    await run.store(journal.TimeoutEntry("reply", 90.0))
    await run.store(journal.RetryEntry("charge", 1, 50.0, "ValueError: no"))
    await run.settle(Failed(run.delivery.lease, "exhausted", AttemptError(1, "failure", "E")))
    assert await run.list_rows() == [
        ("wait", "reply", "cancelled"),
        ("step", "charge", "failed"),
    ]


async def test_unread_signals_and_a_request_to_end(run: StoredRun) -> None:
    await run.store(journal.CleanupEntry(), number=0)
    await run.record_raw(0, encode_entry(journal.CleanupEntry()))
    signal = NewSignal("order", "paid", "1", b"7")
    await run.backend.producing.send_signals([signal])
    assert not (await run.read()).is_cancelling
    await run.suspend(make_signal_source("order", "other"))
    await run.backend.producing.cancel("order")
    found = await run.read()
    assert [(one.name, one.payload) for one in found.signals] == [("paid", b"7")]
    assert found.is_cancelling
    assert CANCEL_SIGNAL not in [one.name for one in found.signals]


async def test_more_steps_than_are_read(run: StoredRun) -> None:
    await run.store(*(journal.StepEntry(f"s{number}") for number in range(5)))
    found = await run.read(3)
    assert (found.steps, found.is_complete, len(found.entries)) == (3, False, 3)
    assert (await run.read(5)).is_complete


async def test_a_step_of_a_newer_version_is_counted(run: StoredRun) -> None:
    await run.record_raw(1, b'{"kind":"teleport","key":"x"}')
    found = await run.read()
    assert (found.unreadable, found.entries) == (1, [])


async def test_a_job_without_steps_and_no_job(run: StoredRun) -> None:
    await run.settle(Completed(run.delivery.lease))
    found = await run.read()
    assert (found.steps, found.entries) == (0, [])
    with pytest.raises(JobNotFound):
        await read_run_timeline(run.backend, "other")
