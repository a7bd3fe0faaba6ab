"""A virtual environment for each peer, outside the checkout, made when it is first needed.

Under `~/.cache/nimburion-bench`, or the folder that NIMBURION_BENCH_CACHE names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
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


def make_python_environment(program: str, packages: Sequence[str]) -> str:
    """Return the Python of an environment that another Python makes, with these packages."""
    folder = cache() / f"with-{Path(program).name}"
    wanted = "\n".join([program, *packages])
    stamp, python = folder / STAMP, folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != wanted:
        _begin(folder)
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        _must([uv, "venv", "--quiet", "--allow-existing", "--python", program, str(folder)])
        _must([uv, "pip", "install", "--quiet", "--python", str(python), *packages])
        stamp.write_text(wanted)
    return str(python)


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
    """What this peer was made from, such as `celery==5.7.0`."""
    wanted = REQUIREMENTS / f"{peer}.txt"
    if wanted.exists():
        return [line for line in wanted.read_text().split("\n") if "==" in line]
    package = REQUIREMENTS / f"{peer}.json"
    named = json.loads(package.read_text())["dependencies"] if package.exists() else {}
    return [f"{name}=={version}" for name, version in named.items()]


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
    version = _version(wanted)
    if uv:
        which = version or sys.executable
        _must([uv, "venv", "--quiet", "--allow-existing", "--python", which, str(folder)])
        _must([uv, "pip", "install", "--quiet", "--python", python, "-r", str(wanted)])
        return
    _must([_python(version), "-m", "venv", str(folder)])
    _must([python, "-m", "pip", "install", "--quiet", "--no-input", "-r", str(wanted)])


def _version(wanted: Path) -> str:
    """The Python that the first line of the requirements asks for; "" for ours."""
    found = re.match(r"# Python (\d+\.\d+)", wanted.read_text())
    return found[1] if found else ""


def _python(version: str) -> str:
    """A program of this version: ours, on PATH, or one that pyenv keeps."""
    if not version or sys.version.startswith(f"{version}."):
        return sys.executable
    kept = Path.home() / ".pyenv" / "versions"
    for one in (shutil.which(f"python{version}"), *kept.glob(f"{version}.*/bin/python")):
        if one and subprocess.run([one, "--version"], check=False).returncode == 0:
            return str(one)
    raise SystemExit(f"this needs Python {version} on PATH: or leave the peer out with --peers")


def _finish(folder: Path, wanted: Path) -> None:
    (folder / STAMP).write_text(_digest(wanted))


def _must(command: list[str], folder: Path | None = None) -> None:
    if subprocess.run(command, cwd=folder, check=False, stdout=sys.stderr).returncode:
        raise SystemExit(f"this did not work: {' '.join(command)}")
