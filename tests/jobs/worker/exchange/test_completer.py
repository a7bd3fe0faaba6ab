"""The one call in flight: repeats, bisection, staleness."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from nimburion.core.errors import BackendUnavailable, LeaseLost, SessionLost, Unstorable
from nimburion.core.events import Event, Events, StaleSettlement
from nimburion.core.exchange import RESERVE_NOTHING, Reply, ReserveRequest
from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import Lease, Token
from nimburion.core.result_errors import decode_result_error
from nimburion.core.session import HeartbeatReply, Session, Vitals
from nimburion.core.settlement import (
    Completed,
    Failed,
    Progressed,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
)
from nimburion.core.timing.clock import SystemClock
from nimburion.jobs.worker.connectivity import BackendConnectivity
from nimburion.jobs.worker.exchange.completer import Completer, measure_size
from nimburion.jobs.worker.exchange.exchange_size import MAX_SETTLEMENTS, ExchangeSize


class Clock(SystemClock):
    """Sleeps at once, and remembers how long it was asked to."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class FakeBackend:
    """Answers exchanges as scripted: an error to raise, or nothing out of the ordinary."""

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.calls: list[tuple[int, list[Settlement]]] = []
        self.poison: set[str] = set()
        self.stale: set[str] = set()

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: ReserveRequest
    ) -> Reply:
        self.calls.append((number, list(settlements)))
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        for settlement in settlements:
            if settlement.lease.job_id in self.poison and not isinstance(settlement, Failed):
                raise Unstorable("a value the backend refuses")
        results = [
            Settled.STALE if s.lease.job_id in self.stale else Settled.DONE for s in settlements
        ]
        return Reply(results, [], [])

    async def open_session(self, session: Session) -> None:
        raise NotImplementedError

    async def heartbeat(self, session_id: str, vitals: Vitals | None = None) -> HeartbeatReply:
        raise NotImplementedError


def lease(job_id: str) -> Lease:
    return Lease(job_id, Token(1, bytes(16)))


def make_completer(backend: FakeBackend, events: Events | None = None) -> Completer:
    connectivity = BackendConnectivity(Clock(), "memory")
    return Completer(backend, "s", Clock(), events or Events(), connectivity)  # type: ignore[arg-type]


async def test_an_unanswered_exchange_is_repeated_under_its_number() -> None:
    backend = FakeBackend(BackendUnavailable("gone"), BackendUnavailable("gone"), None)
    completer = make_completer(backend)
    completer.settle(Completed(lease("a")))
    await completer.exchange(RESERVE_NOTHING)
    await completer.exchange(RESERVE_NOTHING)
    assert [number for number, _ in backend.calls] == [1, 1, 1, 2]
    assert backend.calls[0] == backend.calls[1] == backend.calls[2]


async def test_pauses_between_repeats_grow_and_are_bounded() -> None:
    backend = FakeBackend(*[BackendUnavailable("gone")] * 8, None)
    completer = make_completer(backend)
    await completer.exchange(RESERVE_NOTHING)
    slept = completer._clock.slept  # type: ignore[attr-defined]
    assert slept == sorted(slept)
    assert slept[-1] == 2.0


async def test_what_settles_goes_once_and_in_order() -> None:
    backend = FakeBackend()
    completer = make_completer(backend)
    for n in range(MAX_SETTLEMENTS + 3):
        completer.settle(Completed(lease(str(n))))
    loaded = []
    for _ in range(2):
        await completer.exchange(RESERVE_NOTHING)
        loaded.append(completer.has_pending)
    assert loaded == [True, False]
    sent = [s.lease.job_id for _, batch in backend.calls for s in batch]
    assert sent == [str(n) for n in range(MAX_SETTLEMENTS + 3)]
    assert len(backend.calls[0][1]) == MAX_SETTLEMENTS


async def test_one_bad_settlement_does_not_wedge_the_rest() -> None:
    backend = FakeBackend()
    backend.poison = {"3"}
    completer = make_completer(backend)
    for n in range(8):
        completer.settle(Completed(lease(str(n))))
    await completer.exchange(RESERVE_NOTHING)
    applied = [
        s
        for number, batch in backend.calls
        for s in batch
        if (number, batch) == last_of_number(backend, number)
    ]
    assert sorted(s.lease.job_id for s in applied) == [str(n) for n in range(8)]
    [bad] = [s for s in applied if s.lease.job_id == "3"]
    assert isinstance(bad, Failed)
    assert bad.reason == Reason.UNSTORABLE


def last_of_number(backend: FakeBackend, number: int) -> tuple[int, list[Settlement]]:
    return [call for call in backend.calls if call[0] == number][-1]


@pytest.mark.parametrize(
    ("settlement", "expected"),
    [
        (Completed(lease("x"), b"1"), Failed),
        (Retried(lease("x"), 1.0, AttemptError(attempt=1, kind="failure", type="E")), Failed),
        (
            Failed(lease("x"), "exhausted", AttemptError(attempt=1, kind="failure", type="E")),
            Released,
        ),
        (Progressed(lease("x"), 0.5, "half"), Progressed),
    ],
)
async def test_what_stands_in_for_the_unstorable(
    settlement: Settlement, expected: type[Settlement]
) -> None:
    backend = FakeBackend(Unstorable("no"), None)
    completer = make_completer(backend)
    completer.settle(settlement)
    await completer.exchange(RESERVE_NOTHING)
    [(_, first), (_, second)] = backend.calls
    assert first == [settlement]
    assert isinstance(second[0], expected)


async def test_a_newer_progress_report_replaces_an_older_one() -> None:
    backend = FakeBackend()
    completer = make_completer(backend)
    completer.report_progress(Progressed(lease("a"), 0.1))
    completer.report_progress(Progressed(lease("a"), 0.2))
    completer.settle(Completed(lease("b")))
    await completer.exchange(RESERVE_NOTHING)
    assert backend.calls[0][1] == [Progressed(lease("a"), 0.2), Completed(lease("b"))]


async def test_a_stale_settlement_is_reported() -> None:
    backend = FakeBackend()
    backend.stale = {"a"}
    events, seen = Events(), list[Event]()
    events.subscribe(seen.append)
    completer = make_completer(backend, events)
    completer.settle(Completed(lease("a")))
    completer.settle(Completed(lease("b")))
    await completer.exchange(RESERVE_NOTHING)
    assert seen == [StaleSettlement("a")]


async def test_a_late_report_of_a_thread_is_no_stale_settlement() -> None:
    """The outcome of its attempt, a timeout, was written before."""
    backend, seen, events = FakeBackend(), list[Event](), Events()
    backend.stale = {"a"}
    events.subscribe(seen.append)
    completer = make_completer(backend, events)
    completer.report_progress(Progressed(lease("a"), 0.5))
    completer.settle(Spent(lease("a"), 3))
    await completer.exchange(RESERVE_NOTHING)
    assert seen == []


async def test_a_closed_completer_sends_nothing() -> None:
    backend = FakeBackend()
    completer = make_completer(backend)
    completer.settle(Completed(lease("a")))
    completer.closed = True
    with pytest.raises(SessionLost):
        await completer.exchange(RESERVE_NOTHING)
    assert backend.calls == []


async def test_a_lost_session_is_not_repeated() -> None:
    backend = FakeBackend(SessionLost("s"))
    with pytest.raises(SessionLost):
        await make_completer(backend).exchange(RESERVE_NOTHING)
    assert len(backend.calls) == 1


class SlowBackend(FakeBackend):
    """A backend behind a connection that brings `most` bytes in the time of one call; it keeps the
    number, as backends do, and answers a repeat with what it applied."""

    def __init__(self, clock: Ticking, most: int, *, lose: int = 0) -> None:
        super().__init__()
        self.clock = clock
        self.most = most
        self.lose = lose
        self.number = 0
        self.connectivity: BackendConnectivity | None = None
        """Hears that heartbeats are answered while exchanges are not."""
        self.results: list[Settled] = []
        self.applied: list[Settlement] = []

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: ReserveRequest
    ) -> Reply:
        self.calls.append((number, list(settlements)))
        if sum(map(measure_size, settlements)) > self.most:
            self.clock.time += 5.0
            if self.connectivity:
                self.connectivity.note_answer("heartbeat")
            raise BackendUnavailable("no answer in time")
        if number != self.number:
            self.number = number
            self.results = [Settled.DONE for _ in settlements]
            self.applied += settlements
        if self.lose:
            self.lose -= 1
            self.clock.time += 5.0
            raise BackendUnavailable("no answer in time")
        self.clock.time += 0.01
        return Reply(self.results, [], [])


class Ticking(Clock):
    """Its time passes when it sleeps, and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 100.0

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


def on(
    backend: SlowBackend, *, give_up_after: float = 10_000.0, max_unsettled: int = 10_000
) -> Completer:
    connectivity = BackendConnectivity(backend.clock, "memory")
    return Completer(
        backend,  # type: ignore[arg-type]
        "s",
        backend.clock,
        Events(),
        connectivity,
        size=ExchangeSize(8_000),
        max_unsettled=max_unsettled,
        give_up_after=give_up_after,
    )


def done(number: int, size: int = 1_000) -> Completed:
    return Completed(lease(str(number)), b"x" * size)


async def flush(completer: Completer) -> None:
    while completer.has_pending:
        await completer.exchange(RESERVE_NOTHING)


async def test_an_exchange_carries_so_many_bytes() -> None:
    backend = SlowBackend(Ticking(), most=1_000_000)
    completer = on(backend)
    sent = [done(n) for n in range(20)]
    for one in sent:
        completer.settle(one)
    await flush(completer)
    assert [len(batch) for _, batch in backend.calls] == [8, 8, 4]
    assert backend.applied == sent


async def test_a_settlement_goes_alone_whatever_its_size() -> None:
    backend = SlowBackend(Ticking(), most=1_000_000)
    completer = on(backend)
    completer.settle(done(1, 50_000))
    completer.settle(done(2))
    await flush(completer)
    assert [len(batch) for _, batch in backend.calls] == [1, 1]


async def test_an_exchange_that_takes_too_long_shrinks_until_it_fits() -> None:
    backend = SlowBackend(Ticking(), most=1_500)
    completer = on(backend)
    sent = [done(n) for n in range(20)]
    for one in sent:
        completer.settle(one)
    await flush(completer)
    assert backend.applied == sent
    assert [len(batch) for number, batch in backend.calls if number == 1] == [8, 2, 1]


async def test_a_smaller_repeat_learns_what_the_first_try_had_applied() -> None:
    backend = SlowBackend(Ticking(), most=1_000_000, lose=2)
    completer = on(backend)
    sent = [done(n) for n in range(8)]
    for one in sent:
        completer.settle(one)
    await flush(completer)
    assert [(number, len(batch)) for number, batch in backend.calls] == [(1, 8), (1, 2), (1, 1)]
    assert backend.applied == sent


async def test_what_a_smaller_repeat_left_out_keeps_its_place() -> None:
    """Progress before the settlement of its lease; what settled first before what settled since."""
    backend = SlowBackend(Ticking(), most=1_500)
    completer = on(backend)
    for n in range(4):
        completer.settle(done(n))
    completer.report_progress(Progressed(lease("9"), 0.5))
    await completer.exchange(RESERVE_NOTHING)
    completer.report_progress(Progressed(lease("9"), 0.6))
    completer.settle(Completed(lease("9")))
    await flush(completer)
    order = [one.lease.job_id for one in backend.applied]
    assert [job_id for job_id in order if job_id != "9"] == ["0", "1", "2", "3"]
    assert isinstance(backend.applied[-1], Completed)
    assert order[-1] == "9"


async def test_it_grows_again_when_exchanges_are_quick() -> None:
    backend = SlowBackend(Ticking(), most=1_500)
    completer = on(backend)
    for n in range(8):
        completer.settle(done(n))
    await flush(completer)
    backend.most = 1_000_000
    for _ in range(6):
        await completer.exchange(RESERVE_NOTHING)
    for n in range(8):
        completer.settle(done(n))
    await completer.exchange(RESERVE_NOTHING)
    assert len(backend.calls[-1][1]) == 8


async def test_a_request_after_a_failure_asks_for_fewer_bytes() -> None:
    size = ExchangeSize(8_000)
    size.note_failure(0.001)
    assert size.max_bytes == 8_000, "nobody listened: that says nothing about the size"
    size.note_failure(5.0)
    assert size.max_bytes == 2_000
    size.note_answer(2.0)
    assert 2_000 < size.max_bytes < 4_000
    size.note_answer(0.1)
    assert size.max_bytes > 4_000
    for _ in range(20):
        size.note_failure(5.0)
    assert size.max_bytes == 1
    assert size.max_settlements == 1


async def test_a_result_that_does_not_get_through_alone_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = SlowBackend(Ticking(), most=500)
    completer = on(backend, give_up_after=100.0)
    backend.connectivity = completer._connectivity
    completer.settle(done(1))
    await flush(completer)
    (applied,) = backend.applied
    assert isinstance(applied, Completed)
    assert decode_result_error(applied.result) == ("the connection is too slow for its 1000 bytes")
    assert "the result of job 1 is not stored" in caplog.text


async def test_a_small_result_is_kept_whatever_fails() -> None:
    """A server that answers heartbeats and no exchange: another size would not help."""
    backend = SlowBackend(Ticking(), most=-1)
    completer = on(backend, give_up_after=100.0)
    backend.connectivity = completer._connectivity
    completed = Completed(lease("1"), b"1" * 512)
    completer.settle(completed)
    with pytest.raises(SessionLost):
        await completer.exchange(RESERVE_NOTHING)
    assert len(backend.calls) > 5
    assert {one for _, (one,) in backend.calls} == {completed}


async def test_a_result_is_kept_when_only_larger_batches_failed() -> None:
    """Half of the time has passed before the first try with one settlement alone."""
    backend = SlowBackend(Ticking(), most=1_000)
    completer = on(backend, give_up_after=18.0)
    backend.connectivity = completer._connectivity
    sent = [done(n) for n in range(8)]
    for settlement in sent:
        completer.settle(settlement)
    await flush(completer)
    assert [len(settlements) for _, settlements in backend.calls[:3]] == [8, 2, 1]
    assert backend.applied == sent


async def test_an_error_that_does_not_get_through_alone_is_shortened() -> None:
    backend = SlowBackend(Ticking(), most=600)
    completer = on(backend, give_up_after=100.0)
    backend.connectivity = completer._connectivity
    error = AttemptError(1, "failure", "E", "m" * 600, "t" * 5_000)
    completer.settle(Retried(lease("1"), 1.0, error))
    await flush(completer)
    assert backend.applied == [Retried(lease("1"), 1.0, AttemptError(1, "failure", "E", "m" * 512))]


async def test_exchanges_that_fail_for_too_long_give_the_session_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Ticking()
    backend = SlowBackend(clock, most=-1)
    completer = on(backend, give_up_after=27.0)
    completer.settle(Completed(lease("1")))
    with pytest.raises(SessionLost):
        await completer.exchange(RESERVE_NOTHING)
    assert completer.closed
    assert clock.time - 100.0 <= 27.0 + 5.0
    assert "ends: no exchange with the backend succeeded" in caplog.text


async def test_an_exchange_that_hangs_gives_the_session_up() -> None:
    class Hanging(SlowBackend):
        async def exchange(
            self,
            session_id: str,
            number: int,
            settlements: Sequence[Settlement],
            want: ReserveRequest,
        ) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

    completer = on(Hanging(Ticking(), 1), give_up_after=0.05)
    with pytest.raises(SessionLost):
        await asyncio.wait_for(completer.exchange(RESERVE_NOTHING), 10.0)


async def test_it_is_full_while_too_much_waits() -> None:
    backend = SlowBackend(Ticking(), most=1_000_000)
    completer = on(backend, max_unsettled=3_000)
    full = []
    for n in range(4):
        completer.settle(done(n))
        full.append(completer.is_full)
    assert full == [False, False, False, True]
    await flush(completer)
    assert not completer.is_full


class Answer:
    """What a step was answered."""

    def __init__(self) -> None:
        self.given: list[float | Exception] = []

    def note_stored(self, at: float, /) -> None:
        self.given.append(at)

    def note_failure(self, error: Exception, /) -> None:
        self.given.append(error)


async def test_a_step_is_awaited_until_its_exchange_is_answered() -> None:
    backend = FakeBackend(BackendUnavailable("gone"), None)
    completer = make_completer(backend)
    answer = Answer()
    is_awaited = []
    for name, each, awaits in (("z", Answer(), False), ("a", answer, True)):
        completer.record(Recorded(lease(name), 1, b"{}"), each, is_awaited=awaits)
        is_awaited.append(completer.is_awaited)
    assert is_awaited == [False, True]
    assert not answer.given
    await completer.exchange(RESERVE_NOTHING)
    assert answer.given == [0.0]  # the time of the reply
    has_answered = [completer.has_answered]
    await completer.exchange(RESERVE_NOTHING)
    has_answered.append(completer.has_answered)
    assert has_answered == [True, False]
    assert not completer.is_awaited


async def test_a_step_of_a_lost_lease_and_one_that_cannot_be_stored() -> None:
    backend = FakeBackend()
    backend.stale, backend.poison = {"stale"}, {"bad"}
    completer = make_completer(backend)
    answers = {name: Answer() for name in ("stale", "bad", "good")}
    for name, answer in answers.items():
        completer.record(Recorded(lease(name), 1, b"{}"), answer, is_awaited=True)
    await completer.exchange(RESERVE_NOTHING)
    found = {name: [type(one) for one in answer.given] for name, answer in answers.items()}
    assert found == {"stale": [LeaseLost], "bad": [Unstorable], "good": [float]}
    assert not completer.is_awaited
    assert Failed not in {type(each) for _, batch in backend.calls for each in batch}
