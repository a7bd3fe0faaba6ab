"""The rates and pickup times of README: `python3 dev.py bench`, and `bench peers` beside others.

`python -m benchmarks [--plot [FILE]] [--save]` measures nimburion alone on all four backends, in
two minutes. `python -m benchmarks peers` runs its scenes beside those of the peers, in turn.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.beside.environments import interpreter, node_modules, versions
from benchmarks.beside.family import Family
from benchmarks.beside.main import is_named
from benchmarks.beside.rounds import LOUD, Rounds, Shot, Size, shot
from benchmarks.beside.subjects import Subject
from benchmarks.conditions import describe_conditions, read_conditions, save
from benchmarks.cost import Costs, measure_costs, show_costs, show_figure
from benchmarks.picture import draw_speed
from benchmarks.postgres.family import FAMILY as POSTGRES
from benchmarks.redis.family import FAMILY as REDIS
from benchmarks.report import Rows, at, rounded, table
from benchmarks.sqlite.family import FAMILY as SQLITE
from tests.servers.binaries import valkey_binary

Figures = dict[str, list[float]]
"""The figures of one subject at one setting: of each repetition, by their names."""

PEERS = {
    "sqlite": ("huey",),
    "redis": ("dramatiq", "huey", "bullmq"),
    "postgres": ("pgqueuer", "graphile"),
}
SYNC = Subject("nimburion_sync", "nimburion, `processor.sync`", "", (0, 0), one_jobs=3_000)
SETTINGS = {"default": False, "best": True}
OURS = "nimburion"
COMPARED = (*("drain_rate", "enqueue_one_rate", "enqueue_bulk_rate", "pickup_p50", "pickup_p99"),)
OWN_SCENES = ("enqueue_together", "drain_two")
"""Scenes that only nimburion runs, at its default."""
SHORT = 0.6
"""The part of the jobs in the scenes of `python3 dev.py bench`, so that it takes two minutes."""
COLUMNS = {
    "drain_rate": "run, jobs/s",
    "drain_two_rate": "run by 2 processes, jobs/s",
    "enqueue_one_rate": "enqueue one by one, jobs/s",
    "enqueue_together_rate": "enqueue, 100 callers, jobs/s",
    "enqueue_bulk_rate": "enqueue 1,000 a call, jobs/s",
    "pickup_p50": "enqueue to handler, median, ms",
    "pickup_p99": "enqueue to handler, 99 %, ms",
    "drain_client_us": "worker CPU, µs a job",
    "drain_server_us": "server CPU, µs a job",
    "enqueue_bulk_server_us": "server CPU, enqueue 1,000 a call, µs a job",
}


class Play(NamedTuple):
    """A scene of one subject at one setting."""

    subject: Subject
    setting: str
    scene: str

    def make_shot(self) -> Shot:
        """Return the scene with its arguments."""
        subject, best = self.subject, SETTINGS[self.setting]
        if self.scene == "enqueue_one":
            return shot(subject, "enqueue_one", best, jobs=subject.one_jobs)
        if self.scene == "enqueue_together":
            jobs = 4 * subject.one_jobs
            return shot(subject, "enqueue_together", best, jobs=jobs, producers=100)
        if self.scene == "enqueue_bulk":
            return shot(subject, "enqueue_bulk", best, jobs=subject.bulk_jobs)
        if self.scene == "pickup":
            return shot(subject, "pickup", best, jobs=500, every=0.02)
        processes = 2 if self.scene == "drain_two" else 1
        jobs = subject.drained(best, processes)
        return shot(subject, "drain", best, jobs=jobs, processes=processes)


def list_plays(family: Family, peers: Sequence[Subject], *, own: bool) -> list[Play]:
    """Return the scenes of a backend; with `own`, also those that only nimburion runs."""
    plays = []
    for subject in (family.ours, *peers):
        for setting, best in SETTINGS.items():
            if best and subject == family.ours:
                continue  # nimburion is compared at its defaults
            plays += [Play(subject, setting, scene) for scene in ("drain", "pickup")]
            if subject.best_producer or not best:
                plays += [
                    Play(subject, setting, scene) for scene in ("enqueue_one", "enqueue_bulk")
                ]
    if family == SQLITE:
        plays.append(Play(SYNC, "default", "enqueue_one"))
    if own:
        plays += [Play(family.ours, "default", scene) for scene in OWN_SCENES]
    return plays


def measure_family(
    family: Family, peers: Sequence[Subject], repeat: int, size: float, *, retries: bool, own: bool
) -> dict[str, Any]:
    """Run all scenes of a backend in turn; return the figures by subject and setting."""
    binary = family.program()
    rounds = Rounds(family, binary, repeat, retries=retries, size=Size(jobs=size))
    shots = {play: play.make_shot() for play in list_plays(family, peers, own=own)}
    rounds.run([*shots.values()])
    subjects: dict[str, dict[str, Figures]] = {}
    loud = 0
    for play, one in shots.items():
        figures = subjects.setdefault(play.subject.title, {}).setdefault(play.setting, {})
        figures |= read_figures(play.scene, rounds.kept.get(one, []))
        loud += rounds.is_loud(one)
    return {
        "title": family.title,
        "server": binary.name,
        "settings": "" if family == SQLITE else family.settings_text,
        "versions": [
            line for peer in peers for line in versions(peer.name) if is_named(line, peer)
        ],
        "subjects": subjects,
        "loud": loud,
        "failed": rounds.failed,
    }


def read_figures(scene: str, runs: Sequence[dict[str, Any]]) -> Figures:
    """Return what the runs of a scene printed, by the names of the columns."""
    if not runs:
        return {}
    if scene == "pickup":
        return {
            f"pickup_p{percent}": [at(run["ms"], percent) for run in runs] for percent in (50, 99)
        }
    return {
        f"{scene}_{name}": [run[name] for run in runs]
        for name in ("rate", "client_us", "server_us")
        if f"{scene}_{name}" in COLUMNS
    }


def show_family(found: dict[str, Any]) -> str:
    """Return the table of a backend: a column for each subject and setting."""
    everyone = [
        (f"{title}, {setting}", figures)
        for title, settings in found["subjects"].items()
        for setting, figures in settings.items()
    ]
    rows: Rows = [
        [title, *(show_figure(figures.get(name, [])) for _, figures in everyone)]
        for name, title in COLUMNS.items()
        if any(any(figures.get(name, [])) for _, figures in everyone)
    ]
    parts = [table(found["server"], ["", *(title for title, _ in everyone)], rows)]
    if len(found["subjects"]) > 1 and found["versions"]:
        rows = [list(one) for one in compare(found)]
        head = ["", "nimburion, default", "peer, its better setting", "", "ratio of the speeds"]
        parts.append(table(f"{found['server']}, ratios", head, rows))
    return "\n".join([*parts, *list_notes(found), ""])


def list_notes(found: dict[str, Any]) -> list[str]:
    """Return what a reader of a table has to know."""
    notes = [f"Server: {found['settings']}."] if found["settings"] else []
    if found["versions"]:
        notes.append(f"Beside: {', '.join(found['versions'])}.")
    if found["loud"]:
        notes.append(
            f"Scenes in which other programs used more than {LOUD} of a core: {found['loud']}."
        )
    return notes + [f"Failed: {one}." for one in found["failed"]]


class Comparison(NamedTuple):
    """A figure of ours beside one of a peer at its better setting."""

    figure: str
    ours: str
    theirs: str
    peer: str
    ratio: str
    """Of the speeds: above 1, nimburion is faster."""


def compare(found: dict[str, Any]) -> list[Comparison]:
    """Return our figures beside those of each peer, also those of `processor.sync`."""
    comparisons = []
    for ours in (OURS, SYNC.title):
        own = found["subjects"].get(ours, {}).get("default", {})
        for peer, settings in found["subjects"].items():
            if peer in (OURS, SYNC.title):
                continue
            for name in (one for one in COMPARED if own.get(one)):
                theirs = find_better(settings, name)
                if theirs is None:
                    continue
                figure = COLUMNS[name] + ", `processor.sync`" * (ours != OURS)
                mine = statistics.median(own[name])
                ratio = mine / theirs if name.endswith("rate") else theirs / mine
                comparisons.append(
                    Comparison(figure, rounded(mine), rounded(theirs), peer, f"{ratio:.2f}")
                )
    return comparisons


def find_better(settings: dict[str, Figures], name: str) -> float | None:
    """Return a peer's median at the setting that is better for this figure."""
    values = [statistics.median(one[name]) for one in settings.values() if one.get(name)]
    if not values:
        return None
    return max(values) if name.endswith("rate") else min(values)


def show(found: dict[str, Any], command: str, repeat: int) -> str:
    """Return all tables, below what they were measured on."""
    head = (
        f"# Speed\n\n`{command}`\n\n{describe_conditions(found['conditions'])}\n\n"
        f"Median (minimum-maximum) of {repeat} runs in turn, each on an empty backend; the server "
        "on loopback. No-op async jobs with 250 bytes of arguments. default: no setting but the "
        "URL, logs at warning. best: the fastest setting known (`benchmarks/peers`). Pickup: "
        "from before the call in one process to the handler in another, 50 jobs a second. Rates "
        "and milliseconds differ from machine to machine; ratios of one run differ less.\n"
    )
    parts = [head, *(show_family(one) for one in found["backends"].values())]
    if "costs" in found:
        parts.append(show_costs(found["costs"]))
    return "\n".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Measure nimburion on all backends; 1 when a scene failed."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument(
        "--plot", nargs="?", const="speed.svg", metavar="FILE", help="draw a picture (speed.svg)"
    )
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    chosen = parser.parse_args(arguments)
    began = time.perf_counter()
    found: dict[str, Any] = {"conditions": read_conditions(), "backends": {}}
    found["costs"] = measure_costs(rounds=3, jobs=15_000)
    found["backends"]["memory"] = read_memory(found["costs"]["memory"])
    families = (SQLITE, replace(REDIS, program=valkey_binary), POSTGRES)
    for family in families:
        found["backends"][family.name] = measure_family(
            family, (), chosen.repeat, SHORT, retries=False, own=True
        )
    text = show(found, "python3 dev.py bench", chosen.repeat)
    print(text)
    print(f"{time.perf_counter() - began:.0f} seconds", file=sys.stderr)
    if chosen.save:
        print(save("speed", found, text), file=sys.stderr)
    if chosen.plot:
        Path(chosen.plot).write_text(draw_speed(found))
    return int(any_failed(found))


def read_memory(costs: Costs) -> dict[str, Any]:
    """Return the rates of the memory backend, whose worker and client are one process."""
    names = ("drain_rate", "enqueue_one_rate", "enqueue_bulk_rate")
    return {
        "title": "memory",
        "server": "memory (client and worker in one process)",
        "settings": "",
        "versions": [],
        "subjects": {OURS: {"default": {name: costs[name] for name in names}}},
        "loud": 0,
        "failed": [],
    }


def main_peers(arguments: Sequence[str]) -> int:
    """Measure nimburion beside its peers; 1 when a scene failed."""
    parser = argparse.ArgumentParser(prog="benchmarks peers", description=__doc__)
    parser.add_argument("families", nargs="*", metavar="BACKEND", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--jobs", type=float, default=1.0, help="times as many jobs in each scene")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    parser.add_argument(
        "--impatient", action="store_true", help="no second try when the machine was busy"
    )
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.families) - set(PEERS)
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    families = [f for f in (SQLITE, REDIS, POSTGRES) if f.name in (chosen.families or PEERS)]
    make_environments(peer for family in families for peer in PEERS[family.name])
    found: dict[str, Any] = {"conditions": read_conditions(), "backends": {}}
    for family in families:
        peers = [family.peers[name] for name in PEERS[family.name]]
        found["backends"][family.name] = measure_family(
            family, peers, chosen.repeat, chosen.jobs, retries=not chosen.impatient, own=False
        )
        print(show_family(found["backends"][family.name]), flush=True)
    text = show(found, "python3 dev.py bench peers", chosen.repeat)
    if chosen.save:
        print(save("peers", found, text), file=sys.stderr)
    return int(any_failed(found))


def make_environments(peers: Iterable[str]) -> None:
    """Install what the peers need, before anything is measured."""
    for peer in peers:
        interpreter(peer)
        node_modules(peer)


def any_failed(found: dict[str, Any]) -> bool:
    """Print the scenes that failed, and tell whether there are any."""
    failed = [one for backend in found["backends"].values() for one in backend["failed"]]
    for one in failed:
        print(f"FAILED {one}", file=sys.stderr)
    return bool(failed)
