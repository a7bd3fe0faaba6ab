"""Run chaos on each durable backend, print a table, and keep it when asked to."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from benchmarks.chaos.fault_plan import Size
from benchmarks.chaos.report import LIMITS, describe_violations, keep, make_heading, show
from benchmarks.chaos.run import run_chaos
from benchmarks.chaos.targets import TARGETS

JOBS_PER_SECOND = 600
FLOWS = 2_000
DURABLE = 2_000
KILLS_PER_SECOND = 1.2
PAUSE_SECONDS = 5.0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="dev.py chaos", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="BACKEND", help=", ".join(TARGETS))
    whole = Size()
    parser.add_argument("--jobs", type=int, default=whole.jobs)
    parser.add_argument("--kills", type=int, default=whole.kills)
    parser.add_argument("--pauses", type=int, default=whole.pauses)
    parser.add_argument("--cuts", type=int, default=whole.cuts)
    parser.add_argument("--black-holes", type=int, default=whole.black_holes)
    parser.add_argument("--lost-replies", type=int, default=whole.lost_replies)
    parser.add_argument("--restarts", type=int, default=whole.restarts)
    parser.add_argument("--rolling-restarts", type=int, default=whole.rolling_restarts)
    parser.add_argument("--workers", type=int, default=whole.workers, help="processes to start")
    parser.add_argument("--processes", type=int, default=whole.processes)
    parser.add_argument("--sessions", type=int, default=whole.sessions, help="of each process")
    parser.add_argument("--names", type=int, default=whole.names, help="of jobs that do nothing")
    parser.add_argument(
        "--flows",
        type=int,
        nargs="?",
        const=FLOWS,
        default=whole.flows,
        help="of 5 to 200 members, instead of single jobs",
    )
    parser.add_argument(
        "--durable",
        type=int,
        nargs="?",
        const=DURABLE,
        help="runs of 10 steps beside the flows (without it, 1 run beside 20 flows)",
    )
    parser.add_argument("--filled", action="store_true", help="enqueue all before workers start")
    parser.add_argument("--least-alive", type=int, default=whole.least_alive)
    parser.add_argument("--jobs-per-second", type=float, default=JOBS_PER_SECOND)
    parser.add_argument("--kills-per-second", type=float, default=KILLS_PER_SECOND)
    parser.add_argument("--runs", type=int, default=1, help="with seeds one after another")
    parser.add_argument("--ttl", type=float, default=whole.ttl, help="session TTL in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="keep the files of each run here")
    parser.add_argument("--save", action="store_true", help="keep the tables in results/")
    options = parser.parse_args(arguments)
    if options.durable and not options.flows:
        parser.error("--durable needs --flows")
    if unknown := set(options.targets) - {*TARGETS}:
        parser.error(f"no such backend: {', '.join(sorted(unknown))}; there are {TARGETS}")
    return options


def make_size(options: argparse.Namespace) -> Size:
    """Return the size of the run: it lasts as long as its jobs and its faults need."""
    seconds = max(
        0.0 if options.filled or options.flows else options.jobs / options.jobs_per_second,
        options.kills / options.kills_per_second,
        options.pauses * PAUSE_SECONDS,
        1.0,
    )
    return Size(
        jobs=options.jobs,
        kills=options.kills,
        pauses=options.pauses,
        cuts=options.cuts,
        black_holes=options.black_holes,
        lost_replies=options.lost_replies,
        restarts=options.restarts,
        rolling_restarts=options.rolling_restarts,
        sessions=options.sessions,
        least_alive=options.least_alive,
        names=options.names,
        flows=options.flows,
        durable=options.flows // 20 if options.durable is None else options.durable,
        filled=options.filled,
        workers=options.workers,
        processes=options.processes,
        ttl=options.ttl,
        seconds=seconds,
    )


def main(arguments: list[str]) -> int:
    """Run what was asked for. Exit code 1 if a promise was broken."""
    options = parse_arguments(arguments)
    size = make_size(options)
    broken = False
    if options.folder is not None:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    for name in options.targets or TARGETS:
        for seed in range(options.seed, options.seed + options.runs):
            heading = make_heading()
            run = asyncio.run(run_chaos(name, size, seed, options.folder))
            print(heading, show(run), describe_violations(run), sep="\n\n", flush=True)
            broken |= bool(run.violations)
            if options.save:
                keep(name, heading, run)
    print(LIMITS)
    print("a promise was broken" if broken else "0 lost, 0 stale accepted", file=sys.stderr)
    return int(broken)
