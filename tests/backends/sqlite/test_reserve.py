"""The merge of lanes against the plainest way to say the same: sort the heads, again and again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.exchange import Lane, QueueTerms, Want
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.testing.clock import FakeClock

LANES = [Lane(queue, name) for queue in "pqr" for name in "abcd"]


@dataclass(frozen=True)
class Waiting:
    """A job in the line."""

    lane: Lane
    priority: int
    due: float
    seq: int

    @property
    def place(self) -> tuple[int, float, int]:
        """Where it stands in its lane."""
        return (-self.priority, self.due, self.seq)


jobs = st.lists(
    st.tuples(st.sampled_from(LANES), st.integers(0, 9), st.integers(-300, 0)), max_size=80
)
terms = st.dictionaries(
    st.sampled_from("pqr"),
    st.builds(QueueTerms, st.integers(0, 4), st.none() | st.integers(0, 6)),
)
limits = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 6))


wants = st.builds(
    Want,
    st.integers(1, 40),
    st.sets(st.sampled_from(LANES), min_size=1).map(lambda lanes: tuple(sorted(lanes, key=str))),
    terms,
    st.sampled_from([0.0, 10.0, 60.0]),
)


@settings(max_examples=100)
@given(jobs, wants, limits)
async def test_the_store_hands_out_what_the_rule_says(
    drawn: list[tuple[Lane, int, int]], want: Want, bounds: dict[str, int]
) -> None:
    clock = FakeClock()
    line = [
        Waiting(lane, priority, clock.now() + ago, seq)
        for seq, (lane, priority, ago) in enumerate(drawn)
    ]
    with tempfile.TemporaryDirectory() as folder:
        store = SQLiteBackend(Path(folder) / "jobs.db", clock=clock)
        await store.open()
        await store.enqueue(
            [
                NewJob(str(one.seq), one.lane.name, one.lane.queue, b"", one.priority, one.due)
                for one in line
            ]
        )
        await store.open_session(Session(id="s", names=tuple("abcd"), limits=bounds))
        reply = await store.exchange("s", 1, [], want)
        await store.close()
    handed = [int(delivery.lease.job_id) for delivery in reply.deliveries]
    assert handed == by_the_rule(line, want, bounds, clock.now())


def by_the_rule(line: list[Waiting], want: Want, bounds: dict[str, int], now: float) -> list[int]:
    """SPEC G15, one job after the other."""
    left = sorted((one for one in line if one.lane in want.lanes), key=lambda one: one.place)
    chosen: list[Waiting] = []
    while len(chosen) < want.total:
        heads: dict[Lane, Waiting] = {}
        for one in left:
            if admitted(one.lane, chosen, want, bounds):
                heads.setdefault(one.lane, one)
        if not heads:
            break
        best = min(heads.values(), key=lambda head: rank(head, want, now))
        chosen.append(best)
        left.remove(best)
    return [one.seq for one in chosen]


def admitted(lane: Lane, chosen: list[Waiting], want: Want, bounds: dict[str, int]) -> bool:
    """Whether neither the queue's cap nor the name's limit is reached."""
    cap = want.queues.get(lane.queue, QueueTerms()).cap
    of_queue = sum(one.lane.queue == lane.queue for one in chosen)
    of_name = sum(one.lane.name == lane.name for one in chosen)
    return (cap is None or of_queue < cap) and of_name < bounds.get(lane.name, 1000)


def rank(head: Waiting, want: Want, now: float) -> tuple[float, int, float, int]:
    """Lower is first."""
    level = want.queues.get(head.lane.queue, QueueTerms()).priority
    if want.ageing:
        level += int((now - head.due) // want.ageing)
    return (-level, *head.place)


async def test_who_asks_for_no_lane_hears_of_none(store: SQLiteBackend) -> None:
    await store.enqueue([NewJob("a", "a", "p", b"")])
    await store.open_session(Session(id="s", names=("a",)))
    asked = Want(1, (Lane("p", "a"),))
    assert len((await store.exchange("s", 1, [], asked)).deliveries) == 1
    await store.enqueue([NewJob("b", "a", "p", b""), NewJob("c", "b", "p", b"")])
    reply = await store.exchange("s", 2, [], Want(0))
    assert (reply.deliveries, reply.waiting) == ([], [])
    assert (await store.exchange("s", 3, [], asked)).waiting == []
    assert (await store.exchange("s", 4, [], Want(0, asked.lanes))).waiting == []


@pytest.mark.parametrize("young", [7, 8], ids=["at the end of a reading", "inside one"])
async def test_old_jobs_stand_behind_the_urgent_ones_of_their_lane(
    store: SQLiteBackend, clock: FakeClock, young: int
) -> None:
    now = clock.now()
    urgent = [NewJob(f"urgent-{n}", "a", "q", b"", 9, now - 1) for n in range(young)]
    old = [NewJob(f"old-{n}", "a", "q", b"", 3, now - 1000) for n in range(30)]
    await store.enqueue([*urgent, *old, NewJob("other", "b", "q", b"", 1, now)])
    await store.open_session(Session(id="s", names=("a", "b")))
    want = Want(10, (Lane("q", "a"), Lane("q", "b")), ageing=60.0)
    reply = await store.exchange("s", 1, [], want)
    handed = [delivery.lease.job_id for delivery in reply.deliveries]
    assert handed == [job.id for job in [*urgent, *old]][:10]
