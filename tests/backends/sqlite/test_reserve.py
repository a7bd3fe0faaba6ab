"""The merge of lanes against the plainest way to say the same: sort the heads, again and again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.exchange import Lane, QueueOptions, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import make_limits

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
queue_options = st.dictionaries(
    st.sampled_from("pqr"),
    st.builds(QueueOptions, st.integers(0, 4), st.none() | st.integers(0, 6)),
)
limits = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 6))


wants = st.builds(
    ReserveRequest,
    st.integers(1, 40),
    st.sets(st.sampled_from(LANES), min_size=1).map(lambda lanes: tuple(sorted(lanes, key=str))),
    queue_options,
    st.sampled_from([0.0, 10.0, 60.0]),
)


@settings(max_examples=100)
@given(jobs, wants, limits)
async def test_the_backend_hands_out_in_the_specified_order(
    drawn: list[tuple[Lane, int, int]], request: ReserveRequest, bounds: dict[str, int]
) -> None:
    clock = FakeClock()
    line = [
        Waiting(lane, priority, clock.now() + ago, seq)
        for seq, (lane, priority, ago) in enumerate(drawn)
    ]
    with tempfile.TemporaryDirectory() as folder:
        backend = SQLiteBackend(Path(folder) / "jobs.db", clock=clock)
        await backend.open()
        await backend.producing.enqueue(
            [
                NewJob(str(one.seq), one.lane.name, one.lane.queue, b"", one.priority, one.due)
                for one in line
            ]
        )
        await backend.consuming.open_session(
            Session(id="s", names=tuple("abcd"), limits=make_limits(bounds))
        )
        reply = await backend.consuming.exchange("s", 1, [], request)
        await backend.close()
    handed = [int(delivery.lease.job_id) for delivery in reply.deliveries]
    assert handed == choose_by_specification(line, request, bounds, clock.now())


def choose_by_specification(
    waiting: list[Waiting], request: ReserveRequest, limits: dict[str, int], now: float
) -> list[int]:
    """Choose one job after the other, as the contract says."""
    left = sorted((one for one in waiting if one.lane in request.lanes), key=lambda one: one.place)
    chosen: list[Waiting] = []
    while len(chosen) < request.total:
        heads: dict[Lane, Waiting] = {}
        for one in left:
            if is_admitted(one.lane, chosen, request, limits):
                heads.setdefault(one.lane, one)
        if not heads:
            break
        best = min(heads.values(), key=lambda head: compute_rank(head, request, now))
        chosen.append(best)
        left.remove(best)
    return [one.seq for one in chosen]


def is_admitted(
    lane: Lane, chosen: list[Waiting], request: ReserveRequest, limits: dict[str, int]
) -> bool:
    """Whether neither the queue's cap nor the name's limit is reached."""
    cap = request.queues.get(lane.queue, QueueOptions()).limit
    of_queue = sum(one.lane.queue == lane.queue for one in chosen)
    of_name = sum(one.lane.name == lane.name for one in chosen)
    return (cap is None or of_queue < cap) and of_name < limits.get(lane.name, 1000)


def compute_rank(
    head: Waiting, request: ReserveRequest, now: float
) -> tuple[float, int, float, int]:
    """Lower is first."""
    level = request.queues.get(head.lane.queue, QueueOptions()).priority
    if request.ageing:
        level += int((now - head.due) // request.ageing)
    return (-level, *head.place)


async def test_a_request_without_lanes_reports_none_waiting(backend: SQLiteBackend) -> None:
    await backend.producing.enqueue([NewJob("a", "a", "p", b"")])
    await backend.consuming.open_session(Session(id="s", names=("a",)))
    request = ReserveRequest(1, (Lane("p", "a"),))
    assert len((await backend.consuming.exchange("s", 1, [], request)).deliveries) == 1
    await backend.producing.enqueue([NewJob("b", "a", "p", b""), NewJob("c", "b", "p", b"")])
    reply = await backend.consuming.exchange("s", 2, [], ReserveRequest(0))
    assert (reply.deliveries, reply.waiting) == ([], [])
    assert (await backend.consuming.exchange("s", 3, [], request)).waiting == []
    assert (
        await backend.consuming.exchange("s", 4, [], ReserveRequest(0, request.lanes))
    ).waiting == []


@pytest.mark.parametrize("young", [7, 8], ids=["at the end of a reading", "inside one"])
async def test_old_jobs_stand_behind_the_urgent_ones_of_their_lane(
    backend: SQLiteBackend, clock: FakeClock, young: int
) -> None:
    now = clock.now()
    urgent = [NewJob(f"urgent-{n}", "a", "q", b"", 9, now - 1) for n in range(young)]
    old = [NewJob(f"old-{n}", "a", "q", b"", 3, now - 1000) for n in range(30)]
    await backend.producing.enqueue([*urgent, *old, NewJob("other", "b", "q", b"", 1, now)])
    await backend.consuming.open_session(Session(id="s", names=("a", "b")))
    request = ReserveRequest(10, (Lane("q", "a"), Lane("q", "b")), ageing=60.0)
    reply = await backend.consuming.exchange("s", 1, [], request)
    handed = [delivery.lease.job_id for delivery in reply.deliveries]
    assert handed == [job.id for job in [*urgent, *old]][:10]
