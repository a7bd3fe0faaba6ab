"""The scenes: each runs in a process of its own and prints one line of JSON.

`python -m benchmarks.scenes NAME '{"argument": ...}'`
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import cycle, islice
from typing import Any, cast
from zoneinfo import ZoneInfo

from benchmarks.payload import PAYLOAD
from benchmarks.workload import many_noops, noop
from nimburion import config, server
from nimburion.backends import open_backend
from nimburion.core.backend import Backend
from nimburion.core.events import TickDecided
from nimburion.core.job import State
from nimburion.jobs import Processor, job
from nimburion.scheduler import Scheduler
from nimburion.scheduler.triggers import Trigger, parse_trigger
from nimburion.server.metrics import METRICS_MAX_AGE

_BATCH = 1_000


async def enqueue_one(url: str, jobs: int) -> dict[str, float]:
    """One awaited call after another."""
    async with Processor(open_backend(url)) as processor:
        started = time.perf_counter()
        for _ in range(jobs):
            await processor.enqueue(noop.job(**PAYLOAD))
        seconds = time.perf_counter() - started
        await _expect(processor, waiting=jobs)
    return {"rate": jobs / seconds}


async def enqueue_together(url: str, jobs: int, producers: int) -> dict[str, float]:
    """Many tasks of one process, each one awaited call after another."""
    async with Processor(open_backend(url)) as processor:

        async def produce() -> None:
            for _ in range(jobs // producers):
                await processor.enqueue(noop.job(**PAYLOAD))

        started = time.perf_counter()
        await asyncio.gather(*(produce() for _ in range(producers)))
        seconds = time.perf_counter() - started
        await _expect(processor, waiting=jobs)
    return {"rate": jobs / seconds}


async def enqueue_bulk(url: str, jobs: int) -> dict[str, float]:
    """`enqueue_many`, 1,000 a call."""
    async with Processor(open_backend(url)) as processor:
        started = time.perf_counter()
        await _fill(processor, [noop], jobs)
        seconds = time.perf_counter() - started
        await _expect(processor, waiting=jobs)
    return {"rate": jobs / seconds}


async def fill(url: str, jobs: int, names: int = 1, queues: int = 1) -> dict[str, float]:
    """Leave so many jobs waiting."""
    async with Processor(open_backend(url)) as processor:
        await _fill(processor, many_noops(names, queues), jobs)
    return {}


async def drain(
    url: str,
    jobs: int,
    names: int = 1,
    queues: int = 1,
    *,
    fill_first: bool = False,
    look_every: float = 0.25,
) -> dict[str, float]:
    """One worker process, until `jobs` more are completed."""
    async with Processor(open_backend(url)) as processor:
        processor.register(*many_noops(names, queues))
        if fill_first:
            await _fill(processor, many_noops(names, queues), jobs)
        before = await _completed(processor)
        cpu, started = time.process_time(), time.perf_counter()
        await processor.start()
        looks = [(0, started)]
        while looks[-1][0] < jobs:
            await asyncio.sleep(look_every)
            looks.append((await _completed(processor) - before, time.perf_counter()))
        cpu = time.process_time() - cpu
        await processor.stop()
    # The end lies somewhere between the last two looks: the last that saw work left is exact.
    done, at = looks[-2] if len(looks) > 2 else looks[-1]
    return {"rate": done / (at - started), "cpu_us": cpu / jobs * 1e6}


async def pickup_worker(url: str, jobs: int) -> dict[str, list[float]]:
    """Wait for jobs that another process enqueues; the milliseconds each was under way."""
    late: list[float] = []
    over = asyncio.Event()

    @job(name="pickup", queue="bench")
    async def note(sent: float) -> None:
        late.append((time.monotonic() - sent) * 1e3)
        if len(late) == jobs:
            over.set()

    async with Processor(open_backend(url)) as processor:
        processor.register(note)
        await processor.start()
        print("ready", file=sys.stderr, flush=True)
        await over.wait()
    return {"ms": late}


async def pickup_producer(url: str, jobs: int, every: float) -> dict[str, float]:
    """Enqueue one job every so many seconds."""
    async with Processor(open_backend(url)) as processor:
        for _ in range(jobs):
            await asyncio.sleep(every)
            payload = json.dumps({"sent": time.monotonic()}).encode()
            await processor.enqueue_raw("pickup", payload, queue="bench")
    return {}


async def idle(url: str, seconds: float) -> dict[str, float]:
    """A worker with nothing to do: its CPU and its calls to the backend."""
    backend = _Counted(open_backend(url))
    processor = Processor(cast("Backend", backend))
    processor.register(noop)
    async with processor:
        await processor.start()
        await asyncio.sleep(5)
        cpu, calls = time.process_time(), backend.calls.total()
        await asyncio.sleep(seconds)
        cpu, calls = time.process_time() - cpu, backend.calls.total() - calls
    return {"cpu_percent": 100 * cpu / seconds, "calls_per_second": calls / seconds}


async def schedules(url: str, count: int, seconds: float) -> dict[str, float]:
    """A scheduler with many schedules, each once an hour in its own minute: its CPU, and how late
    their ticks are. What it takes to declare them comes before."""
    processor = Processor(open_backend(url))
    processor.register(noop)
    scheduler = Scheduler(processor)
    for number in range(count):
        scheduler.schedule(f"{number % 60} * * * *", noop.job(**PAYLOAD), name=f"schedule-{number}")
    late: list[float] = []
    processor.events.subscribe(
        lambda event: late.append(event.late) if isinstance(event, TickDecided) else None
    )
    async with processor:
        begun = time.perf_counter()
        await scheduler.fire_due()
        declaring = time.perf_counter() - begun
        await scheduler.start()
        await asyncio.sleep(5)
        late.clear()
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        cpu = time.process_time() - cpu
        await scheduler.stop()
    return {
        "cpu_percent": 100 * cpu / seconds,
        "ticks": len(late),
        "median_ms": 1000 * statistics.median(late),
        "worst_ms": 1000 * max(late),
        "declaring_s": declaring,
    }


async def next_tick(url: str, expression: str, zone: str) -> dict[str, float]:  # noqa: ARG001
    """Microseconds to compute the next tick, a year of them one after another; best of five."""
    trigger = parse_trigger(expression, ZoneInfo(zone))
    rounds = [_a_year_of(trigger) for _ in range(5)]
    return {"microseconds": 1e6 * min(rounds)}


def _a_year_of(trigger: Trigger) -> float:
    begin = tick = 1_767_225_600
    end, count = begin + 365 * 86_400, 0
    started = time.perf_counter()
    while tick < end and count < 20_000:
        found = trigger.next_after(tick)
        if found is None:
            break
        tick, count = found, count + 1
    return (time.perf_counter() - started) / count


class _Counted:
    """A backend that counts the calls made to it."""

    def __init__(self, backend: Any, calls: Counter[str] | None = None) -> None:
        self._backend = backend
        self.calls: Counter[str] = Counter() if calls is None else calls

    def new_handle(self) -> _Counted:
        return _Counted(self._backend.new_handle(), self.calls)

    def __getattr__(self, name: str) -> Any:
        if name not in {"capabilities", "describe", "wait", "open"}:
            self.calls[name] += 1
        return getattr(self._backend, name)


async def _fill(processor: Processor, kinds: list[Any], jobs: int) -> None:
    source = islice(cycle(kinds), jobs)
    while batch := [kind.job(**PAYLOAD) for kind in islice(source, _BATCH)]:
        await processor.enqueue_many(batch)


async def _completed(processor: Processor) -> int:
    return (await processor.backend.count_jobs())[State.COMPLETED]


async def scrape(
    url: str, queues: int, names: int, scrapes: int, *, counted: bool
) -> dict[str, Any]:
    """Scrape `/metrics` over a socket; the milliseconds of wall and CPU time of each scrape.

    With `counted`, the process itself enqueued and ran jobs of all queues and names.
    """
    made = many_noops(names, queues=1)
    processor = Processor(open_backend(url))
    processor.register(*made)
    cfg = config.load(None, server={"port": 0}, jobs={"url": url})
    app = server.bootstrap(cfg)
    app.set_job_processor(processor)
    reads = Counter[str]()

    def count(name: str) -> None:
        original = getattr(processor.backend, name)

        async def read(*args: Any, **options: Any) -> Any:
            reads[name] += 1
            return await original(*args, **options)

        setattr(processor.backend, name, read)

    async with app, Processor(processor.backend.new_handle()) as elsewhere:
        kinds, producer = cycle(made), processor if counted else elsewhere
        for number in range(queues):
            jobs = [kind.job(**PAYLOAD) for kind in islice(kinds, 2)]
            await producer.enqueue_many(jobs, queue=f"queue_{number}")
            if counted:
                _note_run(processor, f"queue_{number}", f"noop_{2 * number % names}")
        for name in (
            *("list_queues", "list_sessions", "list_limits", "count_jobs"),
            *("list_statistics", "list_jobs"),
        ):
            count(name)
        taken, burnt, size = [], [], 0
        for _ in range(scrapes):
            await asyncio.sleep(METRICS_MAX_AGE + 0.1)
            cpu = time.process_time()
            milliseconds, size = await asyncio.to_thread(_scrape_once, cast("str", app.url))
            taken.append(milliseconds)
            burnt.append((time.process_time() - cpu) * 1e3)
    return {"ms": taken, "cpu_ms": burnt, "bytes": size, "reads": dict(reads)}


def _note_run(processor: Processor, queue: str, name: str) -> None:
    """Count a run, as a worker of this process does: all histograms then have a series."""
    lane = processor._statistics.jobs.get_lane(queue, name)  # noqa: SLF001
    lane.waits.append(0.02)
    lane.completed_runs.append(0.02)


def _scrape_once(url: str) -> tuple[float, int]:
    """The milliseconds of one scrape, and the bytes of the answer."""
    host, port = url.removeprefix("http://").split(":")
    began = time.perf_counter()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        parts = []
        while part := connection.recv(1 << 20):
            parts.append(part)
    milliseconds = (time.perf_counter() - began) * 1e3
    answer = b"".join(parts)
    if not answer.startswith(b"HTTP/1.1 200") or b"nimburion_backend_up 1" not in answer:
        raise RuntimeError(answer[:500].decode())
    return milliseconds, len(answer)


async def _expect(processor: Processor, waiting: int) -> None:
    stored = await processor.pending_count()
    if stored != waiting:
        raise RuntimeError(f"{waiting} jobs were enqueued, the backend has {stored}")


SCENES: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    scene.__name__: scene
    for scene in (
        enqueue_one,
        enqueue_together,
        enqueue_bulk,
        fill,
        drain,
        pickup_worker,
        pickup_producer,
        idle,
        schedules,
        next_tick,
        scrape,
    )
}


def main() -> None:
    """Run the scene that the arguments name."""
    logging.basicConfig(level=logging.WARNING)
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(asyncio.run(SCENES[name](**arguments))))


if __name__ == "__main__":
    main()
