"""What limits cost: a drain with limits beside one without, and how long an exchange takes.

    python -m benchmarks.limits [--backend NAME] [--jobs N] [--repeat N] [--save] [SCENE ...]

A worker in a process of its own completes no-op async jobs, which wait when it starts. Their
arguments are the same in every scene; only the limits of the job differ. Each scene runs beside a
drain without limits, in turn, and the ratio is the median of these pairs.

- The CPU time a job of the worker's process, and of the server with all its children. The ratio of
  the sums says more than the rate on a machine that other programs use too.
- The rate, from the start of the worker to its stop, and the jobs that the backend counts.
- How long an exchange takes that settles 100 jobs and reserves 100, with nothing else in the
  process: on the clock, and the mean of the CPU time of both processes.

It needs Linux, which tells the CPU time of other processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.payload import PAYLOAD
from benchmarks.postgres.family import serve as serve_postgres
from benchmarks.redis.family import APPEND_ONLY
from benchmarks.redis.family import serve as serve_redis
from benchmarks.report import Rows, at, ratio, spread, table
from nimburion.config import QueueLimitSettings
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.ids import make_session_id
from nimburion.core.job import State
from nimburion.core.limits import LimitRule, make_queue_limit_name
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.jobs import Limit, Processor, job
from nimburion.jobs.client.client import prepare_job
from nimburion.jobs.options.limits import JobLimits, split_limits
from tests.servers.binaries import valkey_binary
from tests.servers.postgres_programs import postgres_binary

KINDS = ("sqlite", "valkey", "postgres")
QUEUE, NAME = "bench", "noop"
EXCHANGE_JOBS = 100
_BATCH = 1_000
_FAST = "10000/s"
"""With a burst of 100,000, it delays no job, so that only its bookkeeping is measured."""


class Scene(NamedTuple):
    """A job with its limits, and the customers of its jobs."""

    title: str
    options: dict[str, Any]
    customers: int = 1_000
    in_a_row: int = 1
    """How many jobs of one customer follow each other."""
    tenants: bool = False
    """Whether the customers are tenants, which take turns."""
    queue_most: int | None = None
    """How many jobs of the queue run at once."""


SCENES = {
    "plain": Scene("no limit", {}),
    "keys_1000": Scene("5 of a key, 1,000 keys", {"limits": [Limit(5, key="customer")]}),
    "keys_10000": Scene("5 of a key, 10,000 keys", {"limits": [Limit(5, key="customer")]}, 10_000),
    "parked": Scene(
        "1 of a key, 1,000 keys, 20 jobs of a key in a row",
        {"limits": [Limit(1, key="customer")]},
        in_a_row=20,
    ),
    "rate": Scene("a rate of the job", {"limits": [Limit(rate=_FAST, burst=100_000)]}),
    "rate_one_key": Scene(
        "a rate by key, one key",
        {"limits": [Limit(rate=_FAST, burst=100_000, key="customer")]},
        customers=1,
    ),
    "rate_1000_keys": Scene(
        "a rate by key, 1,000 keys",
        {"limits": [Limit(rate=_FAST, burst=100_000, key="customer")]},
    ),
    "job_10": Scene("10 of the job", {"concurrency": 10}),
    "queue_10": Scene("10 of the queue", {}, queue_most=10),
    "queue_free": Scene("a limit of the queue that is never reached", {}, queue_most=100_000),
    "tenants_1": Scene("one tenant", {}, customers=1, tenants=True),
    "tenants_1000": Scene("1,000 tenants", {}, tenants=True),
    "tenants_10000": Scene("10,000 tenants", {}, customers=10_000, tenants=True),
}


def make_job(scene: Scene) -> Any:
    """Return the no-op job of a scene."""

    async def noop(customer: str, to: str, subject: str, body: str) -> None: ...

    return job(name=NAME, queue=QUEUE, **scene.options)(noop)


async def fill(processor: Processor, scene: Scene, noop: Any, jobs: int) -> None:
    """Enqueue the jobs of a scene."""
    for start in range(0, jobs, _BATCH):
        customers = [
            f"customer-{n // scene.in_a_row % scene.customers}"
            for n in range(start, min(start + _BATCH, jobs))
        ]
        if scene.tenants:
            await processor.backend.producing.enqueue(
                [
                    prepare_job(processor, noop.job(customer=name, **PAYLOAD), tenant=name)
                    for name in customers
                ]
            )
        else:
            await processor.enqueue_many(noop.job(customer=name, **PAYLOAD) for name in customers)


async def drain(url: str, scene: Scene, jobs: int, server: int | None) -> dict[str, float]:
    """Complete all jobs with one worker; return the rate and the CPU time a job in microseconds."""
    noop = make_job(scene)
    done = asyncio.Event()
    finished = 0

    async def count(ctx: Any, call_next: Any) -> Any:
        nonlocal finished
        result = await call_next(ctx)
        finished += 1
        if finished == jobs:
            done.set()
        return result

    queue_limits: tuple[QueueLimitSettings, ...] = ()
    if scene.queue_most is not None:
        queue_limits = (QueueLimitSettings(QUEUE, concurrency=scene.queue_most),)
    async with Processor(url, queue_limits=queue_limits) as processor:
        processor.register(noop)
        processor.use(count)
        await fill(processor, scene, noop, jobs)
        served = read_cpu(server)
        cpu, started = time.process_time(), time.perf_counter()
        await processor.start()
        await done.wait()
        await processor.stop()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        served = read_cpu(server) - served
        counts = await processor.backend.reads.count_jobs(budget=None)
        assert counts[State.COMPLETED] == jobs, counts
    return {"rate": jobs / seconds, "worker": cpu / jobs * 1e6, "server": served / jobs * 1e6}


async def measure_exchanges(
    url: str, scene: Scene, jobs: int, server: int | None
) -> dict[str, float]:
    """Complete all jobs in a loop of exchanges; return how long they took, in milliseconds."""
    noop = make_job(scene)
    async with Processor(url) as processor:
        processor.register(noop)
        await fill(processor, scene, noop, jobs)
    options = scene.options
    own, keyed = split_limits(options.get("concurrency"), None, options.get("limits", []))
    rules = JobLimits(NAME, keyed).make_rules(own.concurrency, own.rate)
    if scene.queue_most is not None:
        rules[make_queue_limit_name(QUEUE)] = LimitRule(scene.queue_most)
    took: list[float] = []
    done = 0
    async with Processor(url) as processor:
        backend = processor.backend
        session = make_session_id()
        await backend.consuming.open_session(
            Session(
                id=session,
                names=(NAME,),
                limits={NAME: rules},
            )
        )
        served, cpu = read_cpu(server), time.process_time()
        number = 0
        settled: list[Completed] = []
        while done < jobs:
            number += 1
            want = ReserveRequest(
                total=EXCHANGE_JOBS, lanes=(Lane(QUEUE, NAME),), nonce=os.urandom(16)
            )
            started = time.perf_counter()
            reply = await backend.consuming.exchange(session, number, settled, want)
            took.append((time.perf_counter() - started) * 1e3)
            done += len(settled)
            settled = [Completed(delivery.lease) for delivery in reply.deliveries]
            assert settled or done == jobs, "jobs wait, and an exchange reserved none"
        cpu = time.process_time() - cpu + read_cpu(server) - served
        await backend.consuming.close_session(session)
    return {"p50": statistics.median(took), "p99": at(took, 99), "cpu": cpu / number * 1e3}


def read_cpu(server: int | None) -> float:
    """Return the CPU seconds of a process and its children, and of children that ended."""
    if server is None:
        return 0.0
    ticks = 0
    waiting = [server]
    while waiting:
        pid = waiting.pop()
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except FileNotFoundError:  # it ended just now; its parent has its time
            continue
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
        waiting += map(int, children.split())
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(kind: str) -> Iterator[tuple[str, int | None]]:
    """Yield the URL of an empty backend, and the process of its server."""
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/jobs.db", None
    else:
        server = (
            serve_redis(valkey_binary(), APPEND_ONLY)
            if kind == "valkey"
            else serve_postgres(postgres_binary(), "")
        )
        with server as running:
            yield running.url, running.pid


def run(scene: str, kind: str, jobs: int) -> dict[str, float]:
    """Run one scene with an empty backend, in processes of its own."""
    with serve(kind) as (url, server):
        drained = run_here("drain", url, scene, jobs, server)
    with serve(kind) as (url, server):
        return drained | run_here("exchanges", url, scene, jobs, server)


def run_here(part: str, url: str, scene: str, jobs: int, server: int | None) -> dict[str, float]:
    """Run a part of a scene in a new process."""
    arguments = json.dumps([part, url, scene, jobs, server])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.limits", "--part", arguments],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


async def run_part(
    part: str, url: str, scene: str, jobs: int, server: int | None
) -> dict[str, float]:
    """Run a part of a scene in this process."""
    if part == "drain":
        return await drain(url, SCENES[scene], jobs, server)
    return await measure_exchanges(url, SCENES[scene], jobs, server)


def compare(kind: str, scenes: list[str], jobs: int, repeat: int) -> Rows:
    """Run each scene beside the plain drain, in turn; return the rows of a table."""
    rows: Rows = []
    plains: list[dict[str, float]] = []
    for scene in scenes:
        pairs = []
        for _ in range(repeat):
            plain = run("plain", kind, jobs)
            pairs.append((plain, run(scene, kind, jobs)))
            print(scene, *pairs[-1], file=sys.stderr, flush=True)
        plains += [plain for plain, _ in pairs]
        rows.append(make_row(SCENES[scene].title, *zip(*pairs, strict=True)))
    return [make_row(SCENES["plain"].title, plains, plains), *rows]


def show(kind: str, jobs: int, rows: Rows) -> str:
    """Return the figures as a table."""
    head = ["jobs", "worker, µs a job", "server, µs a job", "of the drain, by CPU time"]
    head += ["jobs/s", "of the drain, by rate", "exchange, ms, p50", "p99", "CPU ms"]
    return table(f"{kind}, {jobs:,} jobs", head, rows)


def make_row(
    title: str, plain: Sequence[dict[str, float]], limited: Sequence[dict[str, float]]
) -> list[str]:
    """Return the figures of a scene and of the plain drains beside it."""
    cost, base = ([one["worker"] + one["server"] for one in some] for some in (limited, plain))
    rates, base_rates = ([one["rate"] for one in some] for some in (limited, plain))
    return [
        title,
        spread([one["worker"] for one in limited], 1),
        spread([one["server"] for one in limited], 1),
        ratio(base, cost),
        spread(rates),
        ratio(rates, base_rates),
        spread([one["p50"] for one in limited], 2),
        spread([one["p99"] for one in limited], 2),
        spread([one["cpu"] for one in limited], 2),
    ]


def main() -> None:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", choices=[*SCENES, []])
    parser.add_argument("--backend", choices=KINDS, default="sqlite")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(asyncio.run(run_part(*json.loads(chosen.part)))))
        return
    conditions = read_conditions()
    scenes = [scene for scene in chosen.scenes or SCENES if scene != "plain"]
    rows = compare(chosen.backend, scenes, chosen.jobs, chosen.repeat)
    figures = show(chosen.backend, chosen.jobs, rows)
    print(figures)
    if chosen.save:
        command = f"python -m benchmarks.limits --backend {chosen.backend} --jobs {chosen.jobs}"
        command += f" --repeat {chosen.repeat}"
        text = (
            f"# What limits cost\n\n`{command}`\n\n{describe_conditions(conditions)} Medians "
            f"(minimum-maximum) of {chosen.repeat} runs beside the plain drain, in turn.\n\n"
            f"{figures}"
        )
        save(f"limits-{chosen.backend}", {"conditions": conditions, "rows": rows}, text)


if __name__ == "__main__":
    main()
