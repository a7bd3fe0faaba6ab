"""`python -m benchmarks.bare_backend [--jobs N] [SCENE ...]`: what the SQLite backend itself can
do.

No engine and no handlers: a bare loop of the contract's own calls, on one event loop. What the
whole system reaches lies below these figures. Every figure is checked against the backend's counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.ids import JobIds, make_session_id
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.core.settlement import Completed

PAYLOAD = b'{"to":"a@example.com","body":"' + b"x" * 218 + b'"}'
ONE_LANE = (Lane("bench", "noop"),)
LANES = tuple(Lane(f"bench_{n % 5}", f"noop_{n}") for n in range(200))
IDS = JobIds(time.time)
MILLION = 1_000_000


@asynccontextmanager
async def fresh() -> AsyncIterator[SQLiteBackend]:
    """A backend on a new file in a folder of its own, on the working directory's disk."""
    with tempfile.TemporaryDirectory(dir=".", prefix="floor-") as folder:
        backend = SQLiteBackend(Path(folder) / "floor.db")
        await backend.open()
        try:
            yield backend
        finally:
            await backend.close()


def new_jobs(many: int, lanes: Sequence[Lane] = ONE_LANE) -> list[NewJob]:
    """So many jobs, spread over the lanes."""
    return [
        NewJob(IDS.make(), lane.name, lane.queue, PAYLOAD)
        for lane in (lanes[n % len(lanes)] for n in range(many))
    ]


async def fill(backend: SQLiteBackend, many: int, lanes: Sequence[Lane] = ONE_LANE) -> float:
    """Enqueue so many by 1,000; the seconds that the backend took."""
    spent = 0.0
    for start in range(0, many, 1000):
        jobs = new_jobs(min(1000, many - start), lanes)
        begun = time.perf_counter()
        await backend.producing.enqueue(jobs)
        spent += time.perf_counter() - begun
    return spent


async def drain(
    backend: SQLiteBackend, batch: int, stop_after: int, lanes: Sequence[Lane] = ONE_LANE
) -> tuple[int, float]:
    """Complete jobs in a loop of exchanges as a worker makes them; how many, in what time."""
    session = make_session_id()
    await backend.consuming.open_session(
        Session(id=session, names=tuple({lane.name for lane in lanes}))
    )
    number = done = 0
    settled: list[Completed] = []
    requested: tuple[Lane, ...] = tuple(lanes)
    begun = requested_all = time.perf_counter()
    while True:
        number += 1
        total = batch if done + len(settled) < stop_after else 0
        want = ReserveRequest(total=total, lanes=requested, nonce=os.urandom(16))
        reply = await backend.consuming.exchange(session, number, settled, want)
        done += len(settled)
        settled = [Completed(delivery.lease) for delivery in reply.deliveries]
        if not settled:
            break
        now = time.perf_counter()
        requested = tuple(reply.waiting)
        if now - requested_all > 1 or not requested:
            requested_all, requested = now, tuple(lanes)
    spent = time.perf_counter() - begun
    await backend.consuming.close_session(session)
    return done, spent


async def exchange_loop(jobs: int) -> None:
    """Exchanges of one name, then of 200 names over 5 queues, by size of batch."""
    for lanes, title in ((ONE_LANE, "1 name"), (LANES, "200 names, 5 queues")):
        for batch in (1, 10, 50, 100, 200, 500):
            many = min(jobs, 2_000 * batch)
            async with fresh() as backend:
                await fill(backend, many, lanes)
                done, spent = await drain(backend, batch, many, lanes)
                await show(backend, f"exchange, {title}, batch {batch}", done, spent)


async def bulk(jobs: int) -> None:
    """Enqueue by 1,000, by 100 and by 1."""
    for size, many in ((1000, jobs), (100, jobs), (1, 2_000)):
        async with fresh() as backend:
            made = [new_jobs(size) for _ in range(many // size)]
            begun = time.perf_counter()
            for part in made:
                await backend.producing.enqueue(part)
            spent = time.perf_counter() - begun
            waiting = (await backend.reads.count_jobs(budget=None))[State.PENDING]
            print_figure(f"enqueue by {size}", f"{waiting / spent:>10,.0f} jobs/s")
    bare()


def bare(many: int = 2_000) -> None:
    """What one INSERT with a commit at FULL costs, with nothing around it."""
    with tempfile.TemporaryDirectory(dir=".", prefix="floor-") as folder:
        connection = sqlite3.connect(Path(folder) / "bare.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE job (id TEXT PRIMARY KEY, payload BLOB)")
        ids = [IDS.make() for _ in range(many)]
        begun = time.perf_counter()
        for one in ids:
            connection.execute("INSERT INTO job VALUES (?, ?)", (one, PAYLOAD))
        spent = time.perf_counter() - begun
        connection.close()
    print_figure("bare INSERT at FULL, by 1", f"{many / spent:>10,.0f} jobs/s")


async def crowded(jobs: int) -> None:
    """The same with a million completed kept and a million waiting."""
    async with fresh() as backend:
        await fill(backend, MILLION)
        done, spent = await drain(backend, 500, MILLION)
        await show(backend, "drain of 1 M, batch 500", done, spent)
        spent = await fill(backend, MILLION)
        print_figure("enqueue by 1,000, 1 M completed kept", f"{MILLION / spent:>10,.0f} jobs/s")
        for batch in (200, 500):
            done, spent = await drain(backend, batch, jobs)
            await show(backend, f"exchange, 1 M waiting and kept, batch {batch}", done, spent)
        for title, call in (
            ("counts", backend.reads.count_jobs),
            ("queues", backend.reads.list_queues),
        ):
            begun = time.perf_counter()
            await call()
            print_figure(
                f"{title}, 1 M waiting and kept",
                f"{(time.perf_counter() - begun) * 1e3:>10,.1f} ms",
            )


async def show(backend: SQLiteBackend, title: str, done: int, spent: float) -> None:
    """One line, if the backend's counts say the same."""
    completed = (await backend.reads.count_jobs(budget=None))[State.COMPLETED]
    if completed < done:
        raise SystemExit(f"{title}: {done} settled, but the backend counts {completed}")
    print_figure(title, f"{done / spent:>10,.0f} jobs/s")


async def pickup(jobs: int) -> None:
    """From the enqueue in one process to the delivery in another, 50 a second."""
    many = min(jobs, 300)
    async with fresh() as backend:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.bare_backend", "--pick", str(backend.path), str(many),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert worker.stdout is not None
        await worker.stdout.readline()
        for _ in range(many):
            await asyncio.sleep(0.02)
            await backend.producing.enqueue(
                [NewJob(IDS.make(), "noop", "bench", repr(time.time()).encode())]
            )
        times = sorted(float(one) for one in (await worker.stdout.read()).split())
        await worker.wait()
    middle, late = statistics.median(times), times[int(len(times) * 0.99)]
    print_figure(
        f"pickup by another process ({len(times)})", f"p50 {middle:.2f} ms, p99 {late:.2f} ms"
    )


async def pick(path: str, many: int) -> None:
    """The other process of `pickup`: print how long each job took to arrive."""
    backend = SQLiteBackend(path)
    await backend.open()
    session = make_session_id()
    await backend.consuming.open_session(Session(id=session, names=("noop",)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    number = 0
    settled: list[Completed] = []
    times: list[float] = []
    while len(times) < many or settled:
        number += 1
        want = ReserveRequest(total=10, lanes=ONE_LANE, nonce=os.urandom(16))
        reply = await backend.consuming.exchange(session, number, settled, want)
        now = time.time()
        times += [(now - float(delivery.payload)) * 1e3 for delivery in reply.deliveries]
        settled = [Completed(delivery.lease) for delivery in reply.deliveries]
        if not settled and len(times) < many:
            await backend.consuming.wait(("bench",), 1.0)
    sys.stdout.write(" ".join(f"{one:.3f}" for one in times))
    await backend.close()


SCENES: dict[str, Callable[[int], Coroutine[None, None, None]]] = {
    "exchange": exchange_loop,
    "bulk": bulk,
    "pickup": pickup,
    "crowded": crowded,
}


def print_figure(title: str, figure: str) -> None:
    """Print one line of the table."""
    print(f"{title:<48} {figure}", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Run the scenes that were asked for."""
    if arguments[:1] == ["--pick"]:
        asyncio.run(pick(arguments[1], int(arguments[2])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE")
    parser.add_argument("--jobs", type=int, default=100_000)
    requested = parser.parse_args(arguments)
    print_figure("backend", f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores")
    for scene in requested.scenes or SCENES:
        asyncio.run(SCENES[scene](requested.jobs))


if __name__ == "__main__":
    main(sys.argv[1:])
