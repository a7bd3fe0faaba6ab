"""On what something was measured: the commit, the day, the machine; and where results are kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def read_conditions() -> dict[str, Any]:
    """Return what a reader needs to judge figures, before the first one is taken."""
    return {
        "commit": describe_commit(ROOT),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": f"{os.cpu_count()} cores of {read_processor()}",
        "load": round(os.getloadavg()[0], 1),
    }


def describe_conditions(found: dict[str, Any]) -> str:
    """Return them as a sentence."""
    return (
        f"Commit {found['commit']}, {found['date']}, Python {found['python']}, {found['system']}, "
        f"{found['cpu']}, load before: {found['load']}."
    )


def describe_commit(checkout: Path) -> str:
    """Return the commit of a checkout, with `-dirty` when files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def read_processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "an unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def save(subject: str, found: dict[str, Any], text: str) -> Path:
    """Write the figures as JSON, and the text beside them; return the path of the text."""
    name = time.strftime(f"{subject}-%Y%m%d")
    path = RESULTS / f"{name}.md"
    path.write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return path


def load_newest(subject: str) -> tuple[Path, dict[str, Any]]:
    """Return the text's path and the figures of the last result of a subject."""
    found = sorted(RESULTS.glob(f"{subject}-[0-9]*.json"))
    if not found:
        raise SystemExit(f"no results of {subject}: run the command with --save first")
    figures: dict[str, Any] = json.loads(found[-1].read_text())
    return found[-1].with_suffix(".md"), figures
