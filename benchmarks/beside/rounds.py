"""Scenes run in turn, each on a fresh server, and again where something else used the machine."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.beside.environments import ROOT, interpreter, node_modules
from benchmarks.beside.family import Family
from benchmarks.beside.subjects import Subject
from tests.servers.binaries import Binary

LOUD = 0.25
"""Cores that something else used, above which a run does not count as clean."""
TRIES = 3
TIMEOUT = 150
FEWEST = 12
"""Jobs in a scene, however small."""


@dataclass(frozen=True)
class Shot:
    """One scene of one subject at one setting."""

    subject: Subject
    scene: str
    best: bool = False
    arguments: tuple[tuple[str, int | float | str], ...] = ()
    condition: str = ""
    """Of the server; each family has its own."""
    limit: int = TIMEOUT
    """Seconds after which it is given up."""

    def __str__(self) -> str:
        words = [self.subject.title, self.scene, "best" if self.best else "default"]
        words += [f"{name}={value}" for name, value in self.arguments]
        return " ".join([*words, self.condition]).strip()

    def sized(self, times: float) -> Shot:
        """With so many times the jobs."""
        arguments = dict(self.arguments)
        if "jobs" in arguments:
            arguments["jobs"] = max(FEWEST, round(float(arguments["jobs"]) * times))
        return replace(self, arguments=tuple(arguments.items()))


def shot(subject: Subject, scene: str, best: bool = False, **arguments: Any) -> Shot:
    """A shot, its scene's arguments by name."""
    return Shot(subject, scene, best, tuple(arguments.items()))


@dataclass(frozen=True)
class Size:
    """How large scenes are, where the command line says so."""

    jobs: float = 1.0
    """Times as many jobs as a scene names."""
    kept: int = 1_000_000
    """Completed jobs that are kept."""
    minutes: float = 2.0
    """Of full flow."""


@dataclass
class Rounds:
    """Everything that was measured, and how."""

    family: Family
    binary: Binary
    repeat: int
    retries: bool = True
    """Whether to try again when something else used the machine."""
    size: Size = field(default_factory=Size)
    raw: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[Shot, list[dict[str, Any]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def run(self, shots: list[Shot], repeat: int | None = None) -> None:
        """All of them in turn, A B C A B C ..., so that noise meets all alike."""
        playing = [one for one in shots if one.subject.takes_part(one.scene, one.best)]
        for turn in range(repeat or self.repeat):
            for number, one in enumerate(playing):
                print(
                    f"{turn + 1}.{number + 1}/{len(playing)} {one.sized(self.size.jobs)}",
                    end=" ",
                    file=sys.stderr,
                )
                best = self._quietest(one)
                print(in_short(best) if best else "FAILED", file=sys.stderr, flush=True)
                if best:
                    self.kept.setdefault(one, []).append(best)

    def values(self, one: Shot, name: str) -> list[float]:
        """What the kept runs of a shot printed under this name."""
        return [printed[name] for printed in self.kept.get(one, [])]

    def is_loud(self, one: Shot) -> bool:
        """Whether something else used the machine in a run that was kept all the same."""
        return any(foreign > LOUD for foreign in self.values(one, "foreign"))

    def _quietest(self, one: Shot) -> dict[str, Any] | None:
        runs: list[dict[str, Any]] = []
        for _ in range(TRIES if self.retries else 1):
            printed = self._once(one)
            if printed is None:
                break
            runs.append(printed)
            if printed["foreign"] <= LOUD:
                break
        return min(runs, key=lambda printed: float(printed["foreign"]), default=None)

    def _once(self, one: Shot) -> dict[str, Any] | None:
        record: dict[str, Any] = {
            "subject": one.subject.name,
            "scene": one.scene,
            "best": one.best,
            "condition": one.condition,
            **dict(one.arguments),
        }
        self.raw.append(record)
        try:
            record["printed"] = play(self.family, self.binary, one.sized(self.size.jobs))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            record["error"] = str(error).strip().splitlines()[-1]  # what is above names folders
            self.failed.append(f"{one}: {record['error']}")
            return None
        printed: dict[str, Any] = record["printed"]
        return printed


def in_short(printed: dict[str, Any]) -> str:
    """The figures of a run on one line; of milliseconds the middle one."""
    shown = {name: value for name, value in printed.items() if isinstance(value, float)}
    if "ms" in printed:
        shown["ms"] = statistics.median(printed["ms"])
    return ", ".join(f"{name} {value:,.5g}" for name, value in shown.items())


def play(family: Family, binary: Binary, one: Shot) -> dict[str, Any]:
    """Start a server, run the scene in the subject's environment, and read what it prints."""
    with (
        family.serve(binary, one.condition) as server,
        tempfile.TemporaryDirectory(prefix="nimburion-bench-") as folder,
    ):
        name = one.subject.name
        variables = {
            "BENCH_URL": server.url,
            "BENCH_SERVER": str(server.pid),
            "BENCH_BEST": str(int(one.best)),
            "BENCH_NOTES": str(Path(folder) / "notes"),
            "NODE_PATH": node_modules(name),
            "PYTHONPATH": str(ROOT),
        }
        command = [interpreter(name), "-m", "benchmarks.peers", name, one.scene]
        command.append(json.dumps(dict(one.arguments)))
        printed: dict[str, Any] = json.loads(
            output_of(command, variables, one.limit).splitlines()[-1]
        )
    return printed


def output_of(command: list[str], variables: dict[str, str], limit: int) -> str:
    """What a scene's process prints. It is asked to end, not killed: its workers end with it."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        printed, complained = process.communicate(timeout=limit)
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(complained[-3000:] or f"ended with {process.returncode}")
    return printed
