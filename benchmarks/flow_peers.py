"""`python3 dev.py bench flow-peers`: flows and durable functions beside those of other systems.

    python -m benchmarks flow-peers [--repeat N] [--save] [SCENE ...]

Every system runs a scene in turn, with one worker process and an empty server of its own; see
`benchmarks/peers/flow_scenes.py`. On Valkey, all append to its file (`appendfsync everysec`). On
PostgreSQL, fsync is on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.beside.environments import ROOT, interpreter, versions
from benchmarks.beside.rounds import output_of
from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.limits import serve
from benchmarks.report import Rows, rounded_spread, table
from tests.servers.binaries import valkey_binary
from tests.servers.postgres_programs import postgres_binary

LIMIT = 300
"""Seconds after which a run is given up."""


class FlowSubject(NamedTuple):
    """A job system on a server, and the scenes that it has."""

    title: str
    name: str
    server: str
    scenes: tuple[str, ...]
    settings: tuple[str, ...] = ("default", "best")


SUBJECTS = (
    FlowSubject(
        "nimburion", "nimburion", "valkey", ("chain", "fan_in", "steps", "children"), ("default",)
    ),
    FlowSubject("Celery (at most once)", "celery", "valkey", ("chain", "fan_in")),
    FlowSubject("Dramatiq (without results)", "dramatiq", "valkey", ("chain", "fan_in")),
    FlowSubject("Huey (at most once)", "huey", "valkey", ("chain", "fan_in")),
    FlowSubject(
        "nimburion", "nimburion", "postgres", ("chain", "fan_in", "steps", "children"), ("default",)
    ),
    FlowSubject("DBOS", "dbos", "postgres", ("steps", "children")),
)
SIZES = {"chain": (50, 10), "fan_in": (2, 1_000), "steps": (50, 10), "children": (2, 300)}
"""How many flows a scene has, and the size of each."""
TITLES = {
    "chain": "chains of 10 jobs",
    "fan_in": "times 1,000 jobs, then one that gets their results",
    "steps": "durable functions of 10 steps",
    "children": "durable functions that run 300 jobs and get their results",
}
FIGURES = {
    "rate": "jobs or steps a second",
    "client_us": "worker and producer CPU, µs",
    "server_us": "server CPU, µs",
}
Found = dict[str, dict[str, dict[str, list[float]]]]
"""The figures of a scene, by subject and setting, and by name."""


def run(subject: FlowSubject, scene: str, setting: str) -> dict[str, float]:
    """Run a scene on an empty server, in the environment of the subject."""
    flows, size = SIZES[scene]
    with (
        serve(subject.server) as (url, server),
        tempfile.TemporaryDirectory(prefix="nimburion-bench-") as folder,
    ):
        variables = {
            "BENCH_URL": url,
            "BENCH_SERVER": str(server),
            "BENCH_BEST": str(int(setting == "best")),
            "BENCH_NOTES": str(Path(folder) / "notes"),
            "PYTHONPATH": str(ROOT),
        }
        command = [interpreter(subject.name), "-m", "benchmarks.peers.flow_scenes"]
        command += [subject.name, scene, str(flows), str(size)]
        printed = output_of(command, variables, LIMIT)
    found: dict[str, float] = json.loads(printed.splitlines()[-1])
    return found


def measure(scenes: list[str], repeat: int) -> tuple[Found, list[str]]:
    """Run each scene of each subject in turn; return the figures, and what failed."""
    found: Found = {}
    failed: list[str] = []
    plays = [
        (scene, subject, setting)
        for scene in scenes
        for subject in SUBJECTS
        if scene in subject.scenes
        for setting in subject.settings
    ]
    for _ in range(repeat):
        for scene, subject, setting in plays:
            who = f"{subject.title} on {subject.server}, {setting}"
            try:
                figures = run(subject, scene, setting)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed.append(f"{scene}, {who}: {find_reason(str(error))}")
                print(scene, who, error, file=sys.stderr, flush=True)
                continue
            print(scene, who, figures, file=sys.stderr, flush=True)
            kept = found.setdefault(scene, {}).setdefault(who, {})
            for name, value in figures.items():
                kept.setdefault(name, []).append(value)
    return found, failed


def find_reason(text: str) -> str:
    """Return the error of a scene; what its workers printed follows it."""
    lines = [line for line in text.splitlines() if "Error: " in line]
    return (lines or text.strip().splitlines())[-1]


def show(found: Found) -> str:
    """Return a table for each scene."""
    head = ["", *FIGURES.values()]
    tables = []
    for scene, subjects in found.items():
        rows: Rows = [
            [who, *(rounded_spread(kept[name]) for name in FIGURES)]
            for who, kept in subjects.items()
        ]
        flows, _ = SIZES[scene]
        tables.append(table(f"{flows} {TITLES[scene]}", head, rows))
    return "\n".join(tables)


def main(arguments: list[str]) -> int:
    """Measure, print, and keep the report if asked to."""
    parser = argparse.ArgumentParser(prog="dev.py bench flow-peers", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", choices=[*SIZES, []])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    chosen = parser.parse_args(arguments)
    conditions = read_conditions()
    found, failed = measure(chosen.scenes or [*SIZES], chosen.repeat)
    peers = {one.name: versions(one.name) for one in SUBJECTS if versions(one.name)}
    beside = [line for name, lines in peers.items() for line in lines if line.startswith(name)]
    servers = [valkey_binary().name, postgres_binary().name]
    text = (
        f"# Flows and durable functions beside other systems\n\n`python3 dev.py bench flow-peers "
        f"--repeat {chosen.repeat}`\n\n{describe_conditions(conditions)} Medians "
        f"(minimum-maximum) of {chosen.repeat} runs in turn, with one worker process each. "
        f"Servers: {', '.join(servers)}. Beside: {', '.join(beside)}.\n\n{show(found)}"
        + "".join(f"\nFailed: {one}." for one in failed)
    )
    print(text)
    if chosen.save:
        save(
            "flow-peers",
            {
                "conditions": conditions,
                "servers": servers,
                "versions": beside,
                "sizes": SIZES,
                "scenes": found,
                "failed": failed,
            },
            text,
        )
    return int(bool(failed))
