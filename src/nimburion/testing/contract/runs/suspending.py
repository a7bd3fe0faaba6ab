"""Waits of durable runs: the first of a flow, a signal and a time resumes the run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from nimburion.core.flows import MAX_RESOLVED
from nimburion.core.job import JobOptions, State
from nimburion.core.runs import (
    CLEANUP_STEP,
    MAX_DELIVERED_RUN,
    MAX_UNREAD_SIGNALS,
    NewSignal,
    SignalOutcome,
    make_signal_source,
)
from nimburion.core.settlement import Completed, Recorded, Retried, Settled, Suspended
from nimburion.testing.contract.flows.graphs import fail, finish, make_flow, member, store
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    flow_source,
    read,
    read_signals,
    read_steps,
    record,
    send,
    start,
    start_suspended,
    suspend,
)

TEN_YEARS = 10 * 365 * 86_400.0


class SuspendingRuns:
    """A suspended run holds no slot, lease or limit, and counts nothing."""

    async def test_it_gives_its_lease_back(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start_suspended(harness, worker, PAID)
        assert await harness.state(RUN) is State.SUSPENDED
        assert await worker.take(5) == []
        assert (await worker.exchange(Completed(held.lease))).results == [Settled.ALREADY]
        counts = await harness.backend.reads.count_jobs()
        assert (counts[State.SUSPENDED], counts[State.PROCESSING]) == (1, 0)

    async def test_a_run_that_comes_with_its_lease_is_complete(self, harness: Harness) -> None:
        """A backend may leave it out; `read_run` returns it then."""
        worker = await harness.worker()
        held = await start(harness, worker)
        for number in (2, 1, CLEANUP_STEP):
            await record(worker, held, number, b"%d" % number)
        await suspend(worker, held, PAID)
        await send(harness, "early", key="s0")
        await send(harness)
        resumed = await worker.take_one()
        assert resumed.run in (None, await read(harness))
        await record(worker, resumed, 3, b"x" * MAX_DELIVERED_RUN)
        await suspend(worker, resumed, PAID)
        assert (await worker.take_one()).run is None

    async def test_a_suspended_run_takes_no_place_of_a_limit(self, harness: Harness) -> None:
        worker = await harness.worker(limits={"mail": 1})
        await start_suspended(harness, worker, PAID)
        await harness.add("next")
        assert ids(await worker.take(5)) == ["next"]

    async def test_it_counts_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(Retried(held.lease, 0.0, FAILURE))
        await suspend(worker, await worker.take_one(), PAID)
        await send(harness)
        assert await harness.state(RUN) is State.RETRYING
        held = await worker.take_one()
        assert (held.failures, held.lost, held.lease.token.fence) == (1, 0, 3)

    async def test_it_keeps_its_unique_key(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.put(harness.job(RUN, options=JobOptions(unique_key="k")))
        await suspend(worker, await worker.take_one(), PAID)
        other = harness.job("other", options=JobOptions(unique_key="k"))
        (result,) = await harness.enqueue(other)
        assert (result.id, result.outcome) == (RUN, "taken")

    async def test_a_stale_token_suspends_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await harness.lose(worker)
        other = await harness.worker()
        new = await other.take_one()
        assert (await other.exchange(Suspended(held.lease, (PAID,)))).results == [Settled.STALE]
        assert (await other.exchange(Completed(new.lease))).results == [Settled.DONE]

    async def test_a_repeat_of_the_exchange_changes_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await worker.exchange(Suspended(held.lease, (PAID,)))
        await send(harness)
        reply = await worker.repeat(Suspended(held.lease, (PAID,)))
        assert reply.results == [Settled.DONE]
        assert await harness.state(RUN) is State.PENDING

    async def test_steps_and_a_wait_in_one_exchange(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        settlements = (Recorded(held.lease, 1, b"x"), Suspended(held.lease, (PAID,)))
        assert (await worker.exchange(*settlements)).results == [Settled.DONE, Settled.DONE]
        assert await read_steps(harness) == [(1, b"x")]
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_without_anything_to_wait_for_it_waits(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker)
        harness.clock.advance(TEN_YEARS)
        worker = await harness.worker()
        assert await worker.take(5) == []
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_many_runs_in_one_exchange(self, harness: Harness) -> None:
        worker = await harness.worker()
        names = [f"r{number}" for number in range(20)]
        await harness.add(*names)
        held = await worker.take(20)
        waits = [
            Suspended(one.lease, (make_signal_source(one.lease.job_id, "go"),)) for one in held
        ]
        await worker.exchange(*waits)
        signals = [NewSignal(name, "go", "1", b"") for name in names]
        outcomes = await harness.backend.producing.send_signals(signals)
        assert outcomes == [SignalOutcome.STORED] * 20
        assert ids(await worker.take(20)) == names


class WaitingForTimes:
    """A run that waits until a time is resumed at that time, and not earlier."""

    async def test_it_is_resumed_at_its_time(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, delay=60.0)
        harness.clock.advance(59.9)
        assert await worker.take(5) == []
        assert await harness.state(RUN) is State.SUSPENDED
        harness.clock.advance(0.1)
        held = await worker.take_one()
        assert held.due == harness.clock.now()

    async def test_the_reply_names_the_time(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        due = harness.clock.now() + 60.0
        reply = await worker.exchange(Suspended(held.lease, (), 60.0), want=worker.want(1))
        assert reply.next_due == due
        assert (await harness.backend.consuming.promote(10)).next_due == due

    async def test_a_promotion_resumes_it(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, delay=60.0)
        harness.clock.advance(60.0)
        await harness.backend.consuming.promote(10)
        assert await harness.state(RUN) is State.PENDING

    async def test_a_time_that_has_come_resumes_it_at_once(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        reply = await worker.exchange(Suspended(held.lease, (), 0.0), want=worker.want(1))
        assert ids(reply.deliveries) == [RUN]

    async def test_ten_years(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, delay=TEN_YEARS)
        harness.clock.advance(TEN_YEARS - 1.0)
        worker = await harness.worker()
        assert await worker.take(5) == []
        harness.clock.advance(1.0)
        assert ids(await worker.take(5)) == [RUN]

    async def test_several_in_the_order_of_their_times(self, harness: Harness) -> None:
        worker = await harness.worker()
        await harness.add("late", "early", "later")
        held = await worker.take(3)
        delays = (20.0, 10.0, 30.0)
        await worker.exchange(
            *(Suspended(one.lease, (), delay) for one, delay in zip(held, delays, strict=True))
        )
        harness.clock.advance(10.0)
        assert ids(await worker.take(5)) == ["early"]
        harness.clock.advance(30.0)
        assert set(ids(await worker.take(5))) == {"late", "later"}

    async def test_more_times_than_one_step_resumes(self, harness: Harness) -> None:
        worker = await harness.worker()
        names = [f"r{number:04}" for number in range(MAX_RESOLVED + 20)]
        await harness.add(*names)
        held = await worker.take(len(names))
        await worker.exchange(*(Suspended(one.lease, (), 10.0) for one in held))
        harness.clock.advance(10.0)
        found = set(ids(await worker.take(len(names))))
        assert len(found) <= MAX_RESOLVED
        found |= set(ids(await worker.take(len(names))))
        assert found == set(names)


class Signalling:
    """A signal is stored when the call returns, and is never missed."""

    async def test_a_signal_resumes_the_run_that_waits_for_it(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID)
        assert await send(harness, payload=b'{"cents":1}') is SignalOutcome.STORED
        assert ids(await worker.take(1)) == [RUN]
        (signal,) = (await read(harness)).signals
        assert (signal.name, signal.payload) == ("paid", b'{"cents":1}')
        assert signal.at == harness.clock.now()

    async def test_one_that_came_before_the_wait(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness)
        reply = await worker.exchange(Suspended(held.lease, (PAID,)), want=worker.want(1))
        assert ids(reply.deliveries) == [RUN]

    async def test_one_that_came_before_the_run_began(self, harness: Harness) -> None:
        await harness.add(RUN)
        assert await send(harness) is SignalOutcome.STORED
        worker = await harness.worker()
        held = await worker.take_one()
        reply = await worker.exchange(Suspended(held.lease, (PAID,)), want=worker.want(1))
        assert ids(reply.deliveries) == [RUN]

    async def test_another_name_resumes_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID)
        assert await send(harness, "shipped") is SignalOutcome.STORED
        assert await harness.state(RUN) is State.SUSPENDED
        assert await read_signals(harness) == [("shipped", b"1")]

    async def test_another_name_before_the_wait_resumes_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness, "shipped")
        await suspend(worker, held, PAID)
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_one_that_was_taken_resumes_nothing(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness)
        (signal,) = (await read(harness)).signals
        await record(worker, held, 1, takes=signal.number)
        await suspend(worker, held, PAID)
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_they_are_read_in_their_order(self, harness: Harness) -> None:
        await harness.add(RUN)
        for number in range(12):
            await send(harness, payload=b"%d" % number, key=f"s{99 - number}")
        assert [payload for _, payload in await read_signals(harness)] == [
            b"%d" % number for number in range(12)
        ]

    async def test_an_id_is_one_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        assert await send(harness) is SignalOutcome.STORED
        assert await send(harness, payload=b"2") is SignalOutcome.EXISTS
        (signal,) = (await read(harness)).signals
        await record(worker, held, 1, takes=signal.number)
        assert await send(harness) is SignalOutcome.EXISTS
        assert await read_signals(harness) == []

    async def test_an_id_twice_in_one_call(self, harness: Harness) -> None:
        await harness.add(RUN)
        signal = NewSignal(RUN, "paid", "s1", b"1")
        outcomes = await harness.backend.producing.send_signals([signal, signal])
        assert outcomes == [SignalOutcome.STORED, SignalOutcome.EXISTS]
        assert await read_signals(harness) == [("paid", b"1")]

    async def test_an_unknown_and_a_finished_job(self, harness: Harness) -> None:
        worker = await harness.worker()
        assert await send(harness) is SignalOutcome.UNKNOWN
        held = await start(harness, worker)
        await send(harness)
        await worker.exchange(Completed(held.lease))
        assert await send(harness, key="s2") is SignalOutcome.FINISHED

    async def test_a_job_has_a_bounded_number_of_unread_ones(self, harness: Harness) -> None:
        await harness.add(RUN)
        signals = [NewSignal(RUN, "n", str(number), b"") for number in range(MAX_UNREAD_SIGNALS)]
        for start_at in range(0, len(signals), 500):
            await harness.backend.producing.send_signals(signals[start_at : start_at + 500])
        assert await send(harness, key="more") is SignalOutcome.FULL
        worker = await harness.worker()
        held = await worker.take_one()
        page = await harness.backend.reads.read_run(RUN, limit=1)
        await record(worker, held, 1, takes=page.signals[0].number)
        assert await send(harness, key="more") is SignalOutcome.STORED

    async def test_the_id_of_a_taken_one_is_known_for_a_bounded_number_of_later_ones(
        self, harness: Harness
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await send(harness, key="taken")
        (signal,) = (await read(harness)).signals
        await record(worker, held, 1, takes=signal.number)
        signals = [NewSignal(RUN, "n", str(number), b"") for number in range(MAX_UNREAD_SIGNALS)]
        for start_at in range(0, len(signals) - 1, 499):
            last = min(start_at + 499, len(signals) - 1)
            await harness.backend.producing.send_signals(signals[start_at:last])
        assert await send(harness, key="taken") is SignalOutcome.EXISTS
        assert await harness.backend.producing.send_signals(signals[-1:]) == [SignalOutcome.STORED]
        assert await send(harness, key="taken") is SignalOutcome.FULL  # it is a new one
        assert await send(harness, key="0") is SignalOutcome.EXISTS

    async def test_a_name_of_any_text(self, harness: Harness) -> None:
        worker = await harness.worker()
        name = "größe:1 {x} %s 'q'"
        await start_suspended(harness, worker, make_signal_source(RUN, name))
        await send(harness, name)
        assert ids(await worker.take(1)) == [RUN]


class WaitingForFlows:
    """A run waits for the end of flows, whatever their outcome."""

    @pytest.mark.parametrize("end", [finish, fail])
    async def test_the_end_of_a_flow_resumes_it(
        self, harness: Harness, end: Callable[[HandDrivenWorker, str], Awaitable[None]]
    ) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await store(harness, [member("a"), member("b")])
        await suspend(worker, held, flow_source("import"))
        await finish(worker, "a")
        assert await harness.state(RUN) is State.SUSPENDED
        await end(worker, "b")
        assert await harness.state(RUN) is State.PENDING

    async def test_a_flow_that_is_certain_to_fail_has_not_ended(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await store(harness, [member("a"), member("b")])
        await suspend(worker, held, flow_source("import"))
        await fail(worker, "a")
        assert await harness.state(RUN) is State.SUSPENDED

    async def test_one_that_has_ended_before(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await store(harness, [member("a")])
        await finish(worker, "a")
        reply = await worker.exchange(
            Suspended(held.lease, (flow_source("import"),)), want=worker.want(1)
        )
        assert ids(reply.deliveries) == [RUN]

    async def test_one_that_is_unknown(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        reply = await worker.exchange(
            Suspended(held.lease, (flow_source("gone"),)), want=worker.want(1)
        )
        assert ids(reply.deliveries) == [RUN]

    async def test_the_step_that_ends_the_flow_can_reserve_it(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await store(harness, [member("a")])
        await suspend(worker, held, flow_source("import"))
        child = await worker.take_one()
        reply = await worker.exchange(Completed(child.lease), want=worker.want(1))
        assert ids(reply.deliveries) == [RUN]

    async def test_a_member_can_be_a_run_with_members_of_its_own(self, harness: Harness) -> None:
        worker = await harness.worker()
        await store(harness, [member(RUN)])
        held = await worker.take_one()
        await store(harness, [member("child", flow="inner")], make_flow(1, flow_id="inner"))
        await suspend(worker, held, flow_source("inner"))
        await finish(worker, "child")
        await finish(worker, RUN)
        (flow,) = await harness.backend.reads.get_flow("import")
        assert flow.completed == 1


class WaitingForTheFirst:
    """The first of several resumes the run, and the others are forgotten."""

    async def test_a_signal_before_the_time(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID, delay=60.0)
        await send(harness)
        held = await worker.take_one()
        await suspend(worker, held, make_signal_source(RUN, "shipped"))
        harness.clock.advance(61.0)
        worker = await harness.worker()
        assert await worker.take(5) == []

    async def test_the_time_before_a_signal(self, harness: Harness) -> None:
        worker = await harness.worker()
        await start_suspended(harness, worker, PAID, delay=60.0)
        harness.clock.advance(60.0)
        held = await worker.take_one()
        await suspend(worker, held, make_signal_source(RUN, "shipped"))
        await send(harness)
        assert await harness.state(RUN) is State.SUSPENDED
        assert await read_signals(harness) == [("paid", b"1")]

    async def test_both_in_one_step(self, harness: Harness) -> None:
        worker = await harness.worker()
        held = await start(harness, worker)
        await store(harness, [member("a")])
        await suspend(worker, held, PAID, flow_source("import"), delay=60.0)
        child = await worker.take_one()
        harness.clock.advance(60.0)
        await send(harness)
        reply = await worker.exchange(Completed(child.lease), want=worker.want(5))
        assert ids(reply.deliveries) == [RUN]

    async def test_a_thousand_sources(self, harness: Harness) -> None:
        worker = await harness.worker()
        names = [f"n{number}" for number in range(1_000)]
        await start_suspended(harness, worker, *(make_signal_source(RUN, name) for name in names))
        await send(harness, "n777")
        held = await worker.take_one()
        await suspend(worker, held, PAID)
        await send(harness, "n3", key="s2")
        assert await harness.state(RUN) is State.SUSPENDED
