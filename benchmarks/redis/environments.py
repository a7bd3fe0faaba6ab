"""A virtual environment for each peer, outside the checkout, made when it is first needed.

Under `~/.cache/nimburion-bench`, or the folder that NIMBURION_BENCH_CACHE names.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements"
STAMP = "made-from"


def cache() -> Path:
    """The folder that all environments lie in."""
    named = os.environ.get("NIMBURION_BENCH_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "nimburion-bench"


def interpreter(peer: str) -> str:
    """The Python that runs this peer's module; its environment is made when it is missing."""
    wanted = REQUIREMENTS / f"{peer}.txt"
    if not wanted.exists():
        return sys.executable
    folder = cache() / peer
    if not _is_made(folder, wanted):
        _begin(folder)
        _make_environment(folder, wanted)
        _finish(folder, wanted)
    return str(folder / "bin" / "python")


def node_modules(peer: str) -> str:
    """Where Node finds this peer's packages; "" for a peer without any."""
    wanted = REQUIREMENTS / f"{peer}.json"
    if not wanted.exists():
        return ""
    folder = cache() / peer
    if not _is_made(folder, wanted):
        _begin(folder)
        shutil.copy(wanted, folder / "package.json")
        _must(["npm", "install", "--no-audit", "--no-fund", "--silent"], folder)
        _finish(folder, wanted)
    return str(folder / "node_modules")


def versions(peer: str) -> list[str]:
    """The lines of this peer's requirements, such as `celery==5.7.0`."""
    wanted = REQUIREMENTS / f"{peer}.txt"
    return wanted.read_text().split() if wanted.exists() else []


def _is_made(folder: Path, wanted: Path) -> bool:
    stamp = folder / STAMP
    return stamp.exists() and stamp.read_text() == _digest(wanted)


def _digest(wanted: Path) -> str:
    return hashlib.sha256(wanted.read_bytes() + sys.version.encode()).hexdigest()


def _begin(folder: Path) -> None:
    print(f"making {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _make_environment(folder: Path, wanted: Path) -> None:
    python = str(folder / "bin" / "python")
    uv = shutil.which("uv")
    if uv:
        _must([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)])
        _must([uv, "pip", "install", "--quiet", "--python", python, "-r", str(wanted)])
        return
    _must([sys.executable, "-m", "venv", str(folder)])
    _must([python, "-m", "pip", "install", "--quiet", "--no-input", "-r", str(wanted)])


def _finish(folder: Path, wanted: Path) -> None:
    (folder / STAMP).write_text(_digest(wanted))


def _must(command: list[str], folder: Path | None = None) -> None:
    if subprocess.run(command, cwd=folder, check=False, stdout=sys.stderr).returncode:
        raise SystemExit(f"this did not work: {' '.join(command)}")
