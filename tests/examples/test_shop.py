"""The shop runs its own tests on each backend: only the URL differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT


@pytest.mark.slow
def test_in_memory(tmp_path: Path) -> None:
    check_shop({"NIMBURION_JOBS__URL": "memory://"}, tmp_path)


@pytest.mark.wide
def test_on_each_backend(backend_url: str, tmp_path: Path) -> None:
    """The orders are in the database of the jobs; with Redis, in a SQLite file."""
    database, _, place = backend_url.partition("://")
    addresses = {
        "sqlite": f"sqlite+aiosqlite://{place}",
        "postgresql": f"postgresql+psycopg://{place}",
    }
    environment = {"NIMBURION_JOBS__URL": backend_url}
    if database in addresses:
        environment["DATABASE_URL"] = addresses[database]
    check_shop(environment, tmp_path)


def check_shop(environment: dict[str, str], folder: Path) -> None:
    """Run pytest as a user does, in the folder of the example."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=ROOT / "examples" / "shop",
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout
