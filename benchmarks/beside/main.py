"""Run the tables that were asked for; print them, and keep them when asked to."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.beside.environments import interpreter, node_modules, versions
from benchmarks.beside.family import Family
from benchmarks.beside.figures import ABSENT
from benchmarks.beside.rounds import LOUD, Rounds, Size
from benchmarks.beside.subjects import Subject
from benchmarks.beside.tables import Table
from tests.servers.binaries import Binary

RESULTS = Path(__file__).parents[1] / "results"


Tables = Mapping[str, Table]


def main(family: Family, tables: Tables, arguments: list[str]) -> int:
    """Measure; 1 when something failed."""
    options = parse(family, tables, arguments)
    peers = [family.peers[name] for name in options.peers.split(",") if name]
    for peer in peers:
        interpreter(peer.name)
        node_modules(peer.name)
    binary = family.program()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    head = heading(family, binary, peers, options.repeat)
    print(head)
    failed: list[str] = []
    for name in options.tables or tables:
        rounds = Rounds(
            family, binary, options.repeat, retries=not options.impatient, size=sizes(options)
        )
        text = "\n".join(tables[name](rounds, peers))
        print(text, flush=True)
        failed += rounds.failed
        if options.save:
            made = {"heading": head, "text": text, "raw": rounds.raw}
            keep(family, tables, name, made)
    for one in failed:
        print(f"FAILED {one}", file=sys.stderr)
    return int(bool(failed))


def parse(family: Family, tables: Tables, arguments: list[str]) -> argparse.Namespace:
    """What was asked for."""
    peers = ",".join(family.peers)
    parser = argparse.ArgumentParser(
        prog=f"benchmarks {family.name}", description=f"Tables: {', '.join(tables)}."
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--peers", default=peers, help=f"of {peers}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    parser.add_argument(
        "--impatient", action="store_true", help="no second try when the machine was busy"
    )
    parser.add_argument("--jobs", type=float, default=1.0, help="times as many jobs in each scene")
    parser.add_argument("--kept", type=int, default=1_000_000, help="completed jobs kept (kept)")
    parser.add_argument("--minutes", type=float, default=2.0, help="at full flow (flow)")
    options = parser.parse_args(arguments)
    unknown = (set(options.tables) - set(tables)) | (
        set(options.peers.split(",")) - {*family.peers, ""}
    )
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    return options


def sizes(options: argparse.Namespace) -> Size:
    """How large the scenes are."""
    return Size(options.jobs, options.kept, options.minutes)


def heading(family: Family, binary: Binary, peers: list[Subject], repeat: int) -> str:
    """What was measured, on what, and how to read it."""
    options = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(options, capture_output=True, text=True, check=False).stdout.strip()
    named = [line for peer in peers for line in versions(peer.name) if is_named(line, peer)]
    beside = ", ".join(named) or "no peers"
    drivers = ", ".join(f"{name} {version(name)}" for name in family.drivers)
    cannot = "".join(
        f"{ABSENT}: {peer.title} at its default, {why}. "
        for peer in peers
        for why in dict.fromkeys(peer.cannot.values())
    )
    return (
        f"Commit {commit}, {time.strftime('%Y-%m-%d %H:%M')}, Python {platform.python_version()}, "
        f"{binary.name} on loopback ({family.settings_text}), {drivers}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores. Beside: {beside}.\n\n"
        f"Median (minimum-maximum) of {repeat} runs in turn; no-op jobs with 250 bytes. "
        "default: no setting but the URL and the number of processes, logs at warning. best: the "
        "fastest setting known (benchmarks/peers). ratio: nimburion at its default against it. "
        f"{cannot}"
        f"!: in a run, other programs used more than {LOUD} of a core.\n"
    )


def is_named(line: str, peer: Subject) -> bool:
    """Whether a line of the requirements is the peer itself, not something that it needs."""
    name = re.split(r"[=\[@]", line, maxsplit=1)[0].lower()
    return name in {peer.package or peer.name, f"{peer.name}-redis"}


def keep(family: Family, tables: Tables, name: str, table: dict[str, Any]) -> None:
    """Add a table to the day's results; one of the same name is replaced."""
    stem = RESULTS / time.strftime(f"{family.name}-%Y%m%d")
    path = stem.with_suffix(".json")
    made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    made[name] = table
    path.write_text(json.dumps(made, indent=1) + "\n")
    ordered = [made[one] for one in tables if one in made]
    shown: list[str] = []
    for one in ordered:
        shown += [one["heading"]] * (one["heading"] not in shown) + [one["text"]]
    stem.with_suffix(".md").write_text("\n".join(shown))
