"""The same scenes for Huey's SQLite backend: `python -m benchmarks.huey_scenes NAME '{...}'`.

Public API, default settings but for the number of workers of a drain (its best: one thread). Huey
takes a job out of its backend before it runs it (at most once); done is when its backend is empty.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

from huey import SqliteHuey

from benchmarks.payload import PAYLOAD


def _open(path: str) -> tuple[SqliteHuey, Any, Any, list[float]]:
    huey = SqliteHuey("bench", filename=path)
    late: list[float] = []

    @huey.task(name="noop")  # type: ignore[untyped-decorator]
    def noop(to: str, subject: str, body: str) -> None: ...

    @huey.task(name="pickup")  # type: ignore[untyped-decorator]
    def pickup(sent: float) -> None:
        late.append((time.monotonic() - sent) * 1e3)

    return huey, noop, pickup, late


def enqueue_one(path: str, jobs: int) -> dict[str, float]:
    """One call after another."""
    _, noop, _, _ = _open(path)
    started = time.perf_counter()
    for _ in range(jobs):
        noop(**PAYLOAD)
    return {"rate": jobs / (time.perf_counter() - started)}


def drain(path: str, jobs: int, workers: int) -> dict[str, float]:
    """One consumer process, until nothing is left."""
    huey, noop, _, _ = _open(path)
    for _ in range(jobs):
        noop(**PAYLOAD)
    consumer = huey.create_consumer(workers=workers, worker_type="thread")
    cpu, started = time.process_time(), time.perf_counter()
    consumer.start()
    while huey.pending_count():
        threading.Event().wait(0.02)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    consumer.stop(graceful=True)
    return {"rate": jobs / seconds, "cpu_us": cpu / jobs * 1e6}


def pickup_worker(path: str, jobs: int) -> dict[str, list[float]]:
    """Wait for jobs that another process enqueues."""
    huey, _, _, late = _open(path)
    consumer = huey.create_consumer(workers=10, worker_type="thread")
    consumer.start()
    print("ready", file=sys.stderr, flush=True)
    while len(late) < jobs:
        threading.Event().wait(0.05)
    consumer.stop(graceful=True)
    return {"ms": late}


def pickup_producer(path: str, jobs: int, every: float) -> dict[str, float]:
    """Enqueue one job every so many seconds."""
    _, _, pickup, _ = _open(path)
    for _ in range(jobs):
        threading.Event().wait(every)
        pickup(time.monotonic())
    return {}


def idle(path: str, seconds: float) -> dict[str, float]:
    """A consumer with nothing to do."""
    huey, _, _, _ = _open(path)
    consumer = huey.create_consumer(workers=10, worker_type="thread")
    consumer.start()
    threading.Event().wait(5)
    cpu = time.process_time()
    threading.Event().wait(seconds)
    cpu = time.process_time() - cpu
    consumer.stop(graceful=True)
    return {"cpu_percent": 100 * cpu / seconds}


SCENES = {
    scene.__name__: scene for scene in (enqueue_one, drain, pickup_worker, pickup_producer, idle)
}

if __name__ == "__main__":
    print(json.dumps(SCENES[sys.argv[1]](**json.loads(sys.argv[2]))))
