"""The one call in flight: repeats, bisection, staleness."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nimburion.core.clock import SystemClock
from nimburion.core.errors import BackendUnavailable, SessionLost, Unstorable
from nimburion.core.events import Event, Events, StaleSettlement
from nimburion.core.exchange import NOTHING, Reply, Want
from nimburion.core.job import AttemptError, Reason
from nimburion.core.lease import Lease, Token
from nimburion.core.session import Orders, Session
from nimburion.core.settlement import (
    Completed,
    Failed,
    Progressed,
    Released,
    Retried,
    Settled,
    Settlement,
)
from nimburion.jobs.conveyor import MOST_AT_ONCE, Conveyor
from nimburion.jobs.reach import Reach


class Clock(SystemClock):
    """Sleeps at once, and remembers how long it was asked to."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Store:
    """Answers exchanges as scripted: an error to raise, or nothing out of the ordinary."""

    def __init__(self, *script: Exception | None) -> None:
        self.script = list(script)
        self.calls: list[tuple[int, list[Settlement]]] = []
        self.poison: set[str] = set()
        self.stale: set[str] = set()

    async def exchange(
        self, session_id: str, number: int, settlements: Sequence[Settlement], want: Want
    ) -> Reply:
        self.calls.append((number, list(settlements)))
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        for settlement in settlements:
            if settlement.lease.job_id in self.poison and not isinstance(settlement, Failed):
                raise Unstorable("a value the store refuses")
        results = [
            Settled.STALE if s.lease.job_id in self.stale else Settled.DONE for s in settlements
        ]
        return Reply(results, [], [])

    async def open_session(self, session: Session) -> None:
        raise NotImplementedError

    async def beat(self, session_id: str) -> Orders:
        raise NotImplementedError


def lease(job_id: str) -> Lease:
    return Lease(job_id, Token(1, bytes(16)))


def conveyor(store: Store, events: Events | None = None) -> Conveyor:
    return Conveyor(store, "s", Clock(), events or Events(), Reach(Clock()))  # type: ignore[arg-type]


async def test_an_unanswered_exchange_is_repeated_under_its_number() -> None:
    store = Store(BackendUnavailable("gone"), BackendUnavailable("gone"), None)
    belt = conveyor(store)
    belt.settle(Completed(lease("a")))
    await belt.turn(NOTHING)
    await belt.turn(NOTHING)
    assert [number for number, _ in store.calls] == [1, 1, 1, 2]
    assert store.calls[0] == store.calls[1] == store.calls[2]


async def test_pauses_between_repeats_grow_and_are_bounded() -> None:
    store = Store(*[BackendUnavailable("gone")] * 8, None)
    belt = conveyor(store)
    await belt.turn(NOTHING)
    slept = belt._clock.slept  # type: ignore[attr-defined]
    assert slept == sorted(slept)
    assert slept[-1] == 2.0


async def test_what_settles_goes_once_and_in_order() -> None:
    store = Store()
    belt = conveyor(store)
    for n in range(MOST_AT_ONCE + 3):
        belt.settle(Completed(lease(str(n))))
    loaded = []
    for _ in range(2):
        await belt.turn(NOTHING)
        loaded.append(belt.loaded)
    assert loaded == [True, False]
    sent = [s.lease.job_id for _, batch in store.calls for s in batch]
    assert sent == [str(n) for n in range(MOST_AT_ONCE + 3)]
    assert len(store.calls[0][1]) == MOST_AT_ONCE


async def test_one_bad_settlement_does_not_wedge_the_rest() -> None:
    store = Store()
    store.poison = {"3"}
    belt = conveyor(store)
    for n in range(8):
        belt.settle(Completed(lease(str(n))))
    await belt.turn(NOTHING)
    applied = [
        s
        for number, batch in store.calls
        for s in batch
        if (number, batch) == last_of_number(store, number)
    ]
    assert sorted(s.lease.job_id for s in applied) == [str(n) for n in range(8)]
    [bad] = [s for s in applied if s.lease.job_id == "3"]
    assert isinstance(bad, Failed)
    assert bad.reason == Reason.UNSTORABLE


def last_of_number(store: Store, number: int) -> tuple[int, list[Settlement]]:
    return [call for call in store.calls if call[0] == number][-1]


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
    store = Store(Unstorable("no"), None)
    belt = conveyor(store)
    belt.settle(settlement)
    await belt.turn(NOTHING)
    [(_, first), (_, second)] = store.calls
    assert first == [settlement]
    assert isinstance(second[0], expected)


async def test_a_newer_progress_report_replaces_an_older_one() -> None:
    store = Store()
    belt = conveyor(store)
    belt.report(Progressed(lease("a"), 0.1))
    belt.report(Progressed(lease("a"), 0.2))
    belt.settle(Completed(lease("b")))
    await belt.turn(NOTHING)
    assert store.calls[0][1] == [Progressed(lease("a"), 0.2), Completed(lease("b"))]


async def test_a_stale_settlement_is_told() -> None:
    store = Store()
    store.stale = {"a"}
    events, seen = Events(), list[Event]()
    events.subscribe(seen.append)
    belt = conveyor(store, events)
    belt.settle(Completed(lease("a")))
    belt.settle(Completed(lease("b")))
    await belt.turn(NOTHING)
    assert seen == [StaleSettlement("a")]


async def test_an_abandoned_conveyor_sends_nothing() -> None:
    store = Store()
    belt = conveyor(store)
    belt.settle(Completed(lease("a")))
    belt.abandoned = True
    with pytest.raises(SessionLost):
        await belt.turn(NOTHING)
    assert store.calls == []


async def test_a_lost_session_is_not_repeated() -> None:
    store = Store(SessionLost("s"))
    with pytest.raises(SessionLost):
        await conveyor(store).turn(NOTHING)
    assert len(store.calls) == 1
