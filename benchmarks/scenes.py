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
from nimburion.core.events import TickDecided
from nimburion.jobs import Processor
from nimburion.scheduler import Scheduler
from nimburion.scheduler.triggers import Trigger, parse_trigger
from nimburion.server.metrics import METRICS_MAX_AGE

_BATCH = 1_000


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
        original = getattr(processor.backend.reads, name)

        async def read(*args: Any, **options: Any) -> Any:
            reads[name] += 1
            return await original(*args, **options)

        setattr(processor.backend.reads, name, read)

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


SCENES: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    scene.__name__: scene for scene in (schedules, next_tick, scrape)
}


def main() -> None:
    """Run the scene that the arguments name."""
    logging.basicConfig(level=logging.WARNING)
    name, arguments = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps(asyncio.run(SCENES[name](**arguments))))


if __name__ == "__main__":
    main()
