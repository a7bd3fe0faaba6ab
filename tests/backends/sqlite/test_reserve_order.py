"""Sorting and stepping through the heads hand out the same jobs in the same order."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.exchange import Lane, QueueOptions, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.testing import FakeClock


@pytest.mark.parametrize("seed", range(25))
async def test_any_mix_is_ordered_as_in_the_memory_backend(seed: int, tmp_path: Path) -> None:
    random, clock = Random(seed), FakeClock()
    lanes = tuple(Lane(f"q{n % 3}", f"n{n}") for n in range(random.randint(2, 40)))
    priorities = random.choice([[5], [5, 5, 5, 5, 9], list(range(10))])
    queues = {f"q{n}": QueueOptions(random.choice([0, 0, 1, 3])) for n in range(3)}
    backends = MemoryBackend(clock=clock), SQLiteBackend(tmp_path / "jobs.db", clock=clock)
    for backend in backends:
        await backend.open()
        await backend.consuming.open_session(
            Session(id="s", names=tuple(lane.name for lane in lanes))
        )
    crowded = random.random() < 0.5
    for _ in range(6):
        jobs = [
            NewJob(
                f"{random.getrandbits(64):016x}",
                (
                    lane := lanes[0] if crowded and random.random() < 0.7 else random.choice(lanes)
                ).name,
                lane.queue,
                b"{}",
                priority=random.choice(priorities),
            )
            for _ in range(random.randint(1, 60))
        ]
        for backend in backends:
            await backend.producing.enqueue(jobs)
        clock.advance(random.choice([0.0, 1.0, 61.0, 200.0]))
    number = 0
    while True:
        number += 1
        request = ReserveRequest(random.randint(1, 50), lanes, queues, nonce=bytes(16))
        replies = [
            await backend.consuming.exchange("s", number, [], request) for backend in backends
        ]
        handed_out = [[one.lease.job_id for one in reply.deliveries] for reply in replies]
        assert handed_out[0] == handed_out[1]
        if not handed_out[0]:
            break
    for backend in backends:
        await backend.close()
